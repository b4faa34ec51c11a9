"""What training costs: FLOPs of runs and studies, the share of a device's peak that was reached, the bill of a plan.

A model FLOP is one that the architecture asks for (`lib.model.sizes`), whether or not it is saved by an implementation.
"""

import math
import time
from functools import cache

from lib import io
from lib.model.sizes import PUBLISHED

TRAINING = 3
"""Forward passes that an update costs for each of its cells: the backward pass counts twice."""
PEAKS = {"H200": 989.4e12, "H100 PCIe": 756e12, "H100": 989.4e12, "A100": 312e12}
"""Dense bf16 FLOPs a second of GPUs by a part of their name, from NVIDIA's data sheets."""
SHARES, EXACT, LAUNCHES = (0.2, 0.4), 30e12, (1e-3, 4e-3)
"""Assumed of a GPU: shares of its bf16 peak in training, FLOPs a second in float32, seconds of a small update."""
LAUNCH_BOUND = 1e12
"""FLOPs of an update below which a GPU is kept waiting for its next kernel: some milliseconds at its peak."""


def speed(record, size):
    """How fast one run was: its columns of speed.csv.

    Parameters
    ----------
    record : dict
        Of `lib.train.train`, of a run on this machine where its device has no known peak.
    size : lib.model.sizes.Size

    Returns
    -------
    dict
        size, seed, parameters, genes, device, cells_per_second (the evaluations on the way are part of its time),
        flops_per_cell (of an update), flops_per_second, peak, peak_from (what that is) and utilisation.
    """
    flops = TRAINING * size.forward_flops(record["genes"])
    reached = flops * record["cells_per_second"]
    top, words = peak(record["device"], size.threads(record["genes"]))
    kept = {key: record[key] for key in ("size", "seed", "parameters", "genes", "device", "cells_per_second")}
    return {
        **kept, "flops_per_cell": flops, "flops_per_second": reached, "peak": top, "peak_from": words,
        "utilisation": reached / top,
    }  # fmt: skip


def peak(device, threads=1):
    """FLOPs a second that a device could do at most, and in words where the number is from."""
    for name, flops in PEAKS.items():
        if all(part in device for part in name.split()):
            return flops, "its data sheet's bf16 rate"
    if device == "cpu":
        return products("cpu", threads), f"a float32 matrix product on {threads} thread(s)"
    return products("cuda", threads), "a bf16 matrix product"


@cache
def products(kind, threads=1):
    """Measured FLOPs a second of a matrix product that is large enough to be at its best."""
    import torch

    side, type_ = (1024, torch.float32) if kind == "cpu" else (8192, torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    one, best = torch.ones(side, side, dtype=type_, device=kind), math.inf
    for _ in range(6):
        started = time.perf_counter()
        (one @ one)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    torch.set_num_threads(before)
    return 2 * side**3 / best


def hours(training, evaluation=0.0, small_updates=0):
    """Hours of one H100 for what `of_study` counts, from a good case to a bad one: assumed, not measured."""
    return [
        (training / PEAKS["H100"] / share + evaluation / EXACT + small_updates * seconds) / 3600
        for share, seconds in zip(SHARES[::-1], LAUNCHES, strict=True)
    ]


def is_small(study, regime, size, kind):
    """Whether a run leaves most of the device idle: less than a GPU's launches cost, or one thread of a CPU."""
    genes, shape = study.regimes[regime].genes, study.size(size)
    if kind == "cpu":
        return shape.threads(genes) == 1
    return TRAINING * study.training(regime).batch * shape.forward_flops(genes) < LAUNCH_BOUND


def flops(study, regime, size):
    """Model FLOPs of one run of a study.

    Returns
    -------
    training, evaluation : float
        The excursion half-way is part of training. Evaluations are of every held-out cell's masks at the end, the
        validation cells' half-way too, or all that the published protocol chooses its best from; they are in float32.
        The points of a learning curve, a few cells each, are left out.
    """
    settings, asked, split = study.training(regime), study.regimes[regime], study.split
    forward = study.size(size).forward_flops(asked.genes)
    held = {side: split.cells or round(share * asked.cells) for side, share in split.shares.items()}
    excursion = 0.0 if settings.report == "best" else settings.decay / 2
    passes = study.masking.per_cell * sum(held.values())
    passes += held["validation"] * (settings.evaluations if settings.report == "best" else study.masking.per_cell)
    return TRAINING * forward * settings.cells_seen * (1 + excursion), float(forward * passes)


def of_study(study):
    """Model FLOPs of all runs of a study, of training and evaluation, and its small_updates (a number).

    Those are the updates of runs that are small on a GPU (`is_small`), which launches hold up rather than FLOPs.
    """
    total = {"training": 0.0, "evaluation": 0.0, "small_updates": 0}
    for regime in study.regimes:
        settings = study.training(regime)
        for size in study.sizes:
            seeds = len(study.seeds_for(size.name))
            training, evaluation = flops(study, regime, size.name)
            total["training"] += seeds * training
            total["evaluation"] += seeds * evaluation
            if is_small(study, regime, size.name, "cuda"):
                total["small_updates"] += seeds * math.ceil(settings.cells_seen / settings.batch)
    return total


def of_published_runs():
    """Training FLOPs of the published runs behind the two laws, as far as their table says."""
    import pandas as pd  # which training elsewhere does without

    table = pd.read_csv(io.CODE / "data" / "published_runs.csv")
    return sum(
        TRAINING * PUBLISHED[run.size].forward_flops(run.genes) * run.micro_steps * run.micro_batch
        for run in table.itertuples(index=False)
    )


def bill(size, genes, cells, passes=1.0, peak=PEAKS["H100"], shares=SHARES, rates=None):
    """What training one model on a panel of many cells would take.

    Parameters
    ----------
    size : lib.model.sizes.Size
    genes, cells : int
        Of the panel.
    passes : float
        Times that every cell is seen.
    peak : float
        FLOPs a second of one GPU.
    shares : pair of float
        Of the peak that training is expected to reach, from a bad case to a good one.
    rates : dict, optional
        Measured costs of a cell, by the names of `RATES`; what is left out has those of `RATES`.

    Returns
    -------
    dict
        flops, parameters; hours of one GPU as [most, least]; bytes: panel (its file), compact, network (what a Census
        sends: all values of every cell, twice, for the genes' statistics and for the panel), labels (memory while the
        panel is made), order (memory for the order of a pass), checkpoints (on disk), gpu (memory for weights, moments
        and a batch of 32 cells in float32), gradient (what several GPUs exchange for each update); and seconds:
        reading (one process making the panel), hashing (before each run, of all values), saving (one checkpoint).
    """
    cost = RATES | (rates or {})
    parameters = size.parameters(genes)
    work = TRAINING * size.forward_flops(genes) * cells * passes
    state = 4 * 3 * parameters  # weights and two moments, float32
    activations = 4 * 32 * size.layers * genes * size.d * (8 + 2 * size.ff_mult)
    return {
        "flops": work, "parameters": parameters, "hours": [work / peak / share / 3600 for share in shares],
        "panel": 8 * genes * cells, "compact": cost["compact"] * cells, "network": 2 * cost["network"] * cells,
        "labels": cost["labels"] * cells, "order": cost["order"] * cells,
        "checkpoints": 2 * 2 * state,  # two are kept, and half-way each holds the state twice
        "gpu": 16 * parameters + activations, "gradient": 4 * parameters,
        "reading": cost["reading"] * cells, "hashing": 4 * genes * cells / cost["hashed"],
        "saving": state / cost["saved"],
    }  # fmt: skip


RATES = {"compact": 125, "network": 5000, "labels": 170, "order": 16, "reading": 2e-4, "hashed": 1e9,
         "saved": 5e8}  # fmt: skip
"""Bytes of a cell: compact, network, labels, order; its seconds of reading; bytes hashed, and bytes of a checkpoint
saved, in a second. Round numbers of two cores: `python benchmarks/scale.py` measures labels, order, hashed and saved,
`benchmarks/panel.py` reading. Compact is the simulated census' at 512 genes; network stands for 2,000 genes seen in a
cell at 2.5 bytes each."""
