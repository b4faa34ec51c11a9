"""Toward the whole Census: where the design breaks first, measured in small, and what the whole would cost.

    python benchmarks/scale.py                     # about 5 minutes, under 4 GB
    python benchmarks/scale.py --rows 1000000      # under a minute

Each part runs in a process of its own on two numbers of cells, a factor of ten apart, with a panel of two genes: what
grows with cells and not with genes. Seconds and peak memory (beyond what the imports take) are printed, and carried
on to the whole Census in proportion. Then the bill, see `bill`: what is assumed of a GPU is not measured, and says so.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import anndata
import h5py
import numpy as np
import pandas as pd

from lib import io
from lib.data import census, panel, split
from lib.model.sizes import PUBLISHED, Size
from lib.study import Regime, Split, load_study

WHOLE = 100_000_000
"""Cells of the whole Census: its primary human ones, rounded."""
LARGE = Size("1B", 2048, 20, 16, 4)
"""A model of 10^9 parameters."""
GENES = 512
H100 = 989.4e12
"""Dense bf16 FLOPs a second, from NVIDIA's data sheet."""
SHARES, EXACT, LAUNCHES = (0.2, 0.4), 30e12, (1e-3, 4e-3)
"""Assumed of a GPU: shares of its bf16 peak in training, FLOPs a second in float32, seconds of a small update."""
LAUNCH_BOUND = 1e12
"""FLOPs of an update below which a GPU is kept waiting for its next kernel: some milliseconds at its peak."""
RATES = {"compact": 125, "network": census.CELL_BYTES, "labels": 170, "order": 16, "reading": 2e-4, "hashed": 1e9,
         "saved": 5e8}  # fmt: skip
"""Bytes of a cell: compact, network, labels, order; its seconds of reading; bytes hashed, and bytes of a checkpoint
saved, in a second. Round numbers of two cores: `python benchmarks/scale.py` measures labels, order, hashed and saved,
`benchmarks/panel.py` reading. Compact is the simulated census' at 512 genes."""
BYTES = {
    "panel": "file of the panel", "compact": "compact form of it", "network": "sent by the Census",
    "labels": "memory to make the panel", "order": "memory for the order of a pass",
    "checkpoints": "checkpoints on disk", "gpu": "memory of a GPU, batch of 32", "gradient": "gradient of an update",
}  # fmt: skip
"""What the bill counts in bytes, in words."""


def labels(rows):
    """Cells as `lib.data.split.cells` gives them: categories, ids, library sizes; a data set has a dozen donors."""
    donor = np.arange(rows, dtype=np.int64) * 20_000 // rows
    kinds = {"donor_id": (donor, 20_000), "dataset_id": (donor // 12, 1667), "tissue": (donor % 50, 50),
             "cell_type": (donor % 700, 700)}  # fmt: skip
    columns = {
        name: pd.Categorical.from_codes(codes.astype(np.int16), [f"{name} {n}" for n in range(top)])
        for name, (codes, top) in kinds.items()
    }
    return pd.DataFrame({"soma_joinid": np.arange(rows), **columns, "total_counts": np.full(rows, 3000.0)}, copy=False)


def splits(rows, root):
    """The split of the whole Census by data set, and the draw of nine cells of ten."""
    cells, asked = labels(rows), Split(by="dataset_id")
    side = split.assign(cells, asked)
    wanted = Regime(genes=2, cells=int(0.9 * rows))
    return len(split.draw(side, wanted, asked, 42, cells["donor_id"]))


def order(rows, root):
    """The order of one pass over the training cells, as `lib.train` makes it."""
    return int(np.random.default_rng([7, 0]).permutation(np.arange(rows))[0])


def write(rows, root):
    """The labels of all cells into a panel's file, and values of two genes beside them."""
    obs = labels(rows)
    obs["split"] = pd.Categorical.from_codes((np.arange(rows) % 20 == 0).astype(np.int8), ["train", "validation"])
    obs.index = obs["soma_joinid"].astype(str).rename(None)
    adata = anndata.AnnData(obs=obs, var=pd.DataFrame(index=["a", "b"]))
    adata.uns["masks"] = {"validation": np.zeros((1, 1, 1), np.int32)}
    path = root / str(rows) / "panel.h5ad"
    path.parent.mkdir(exist_ok=True)
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as h5:
        for name, kind in (("X", "f4"), (panel.COUNTS, "i4")):
            h5.create_dataset(name, data=np.ones((rows, 2), kind))
            h5[name].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def with_labels(rows, root):
    """A panel as AnnData, labels and all: what training read before."""
    return panel.read(root / str(rows) / "panel.h5ad").n_obs


def without_labels(rows, root):
    """The same panel's arrays alone: what training reads."""
    return len(panel.load(root / str(rows)).x)


PARTS = {part.__name__: part for part in (splits, order, write, with_labels, without_labels)}


def measured(part, rows, root):
    """One part in a process of its own: seconds, and bytes at the peak beyond those before it."""
    words = [sys.executable, __file__, "--part", part, "--rows", str(rows), "--root", str(root)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def one(part, rows, root):
    """Inside that process."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before, started = _memory("VmRSS"), time.perf_counter()
    PARTS[part](rows, root)
    print(json.dumps({"seconds": time.perf_counter() - started, "bytes": _memory("VmHWM") - before}))


def _memory(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 2**10


def hashed(size=2**27):
    """Bytes a second of SHA-256, which tells a run by its panel's values."""
    block = np.ones(size, np.uint8)
    started = time.perf_counter()
    hashlib.sha256(block)
    return size / (time.perf_counter() - started)


def saved(folder, size=2**28):
    """Bytes a second of a checkpoint, written and kept as training keeps it."""
    import torch

    from lib.train import machine

    started = time.perf_counter()
    machine.save_checkpoint(Path(folder), 1, {"state": torch.zeros(size // 4)})
    return size / (time.perf_counter() - started)


def hours(training, evaluation=0.0, small_updates=0):
    """Hours of one H100 for what `cost` counts, from a good case to a bad one: assumed, not measured."""
    return [
        (training / H100 / share + evaluation / EXACT + small_updates * seconds) / 3600
        for share, seconds in zip(SHARES[::-1], LAUNCHES, strict=True)
    ]


def cost(study):
    """Model FLOPs of all runs of a study, {training, evaluation}, and its small_updates (a number).

    Those are the updates that launches hold up on a GPU rather than FLOPs. Evaluations, in float32, are of every
    held-out cell's masks at the end, of the validation cells' at the end of a branch, or all that the published
    protocol chooses its best from; the points of a learning curve, a few cells each, are left out.
    """
    total, masks = {"training": 0.0, "evaluation": 0.0, "small_updates": 0}, study.masking.per_cell
    for name, regime in study.regimes.items():
        settings = study.training(name)
        held = {split: study.split.cells or round(share * regime.cells) for split, share in study.split.shares.items()}
        again = settings.evaluations if settings.report == "best" else masks * len(settings.branches)
        passes = masks * sum(held.values()) + again * held["validation"]
        for size in study.sizes:
            seeds, forward = len(study.seeds_for(size.name)), size.forward_flops(regime.genes)
            total["training"] += seeds * size.training_flops(regime.genes, settings)
            total["evaluation"] += seeds * passes * forward
            small = 3 * settings.batch * forward < LAUNCH_BOUND
            updates = settings.updates + sum(end - leaves for leaves, end in settings.branches.values())
            total["small_updates"] += seeds * updates * small
    return total


def of_published_runs():
    """Training FLOPs of the published runs behind the two laws, as far as their table says."""
    table = pd.read_csv(io.CODE / "data" / "published_runs.csv")
    return sum(
        3 * PUBLISHED[run.size].forward_flops(run.genes) * run.micro_steps * run.micro_batch
        for run in table.itertuples(index=False)
    )


def bill(size, genes, cells, rates=None):
    """What training one model on a panel of many cells, each seen once, would take.

    `rates` are measured costs of a cell, by the names of `RATES`, which has those that are left out. The bill: flops,
    parameters; hours of one GPU, [most, least]; bytes: panel (its file), compact, network (what a Census sends: all
    values of every cell, twice, for the genes' statistics and for the panel), labels (memory while the panel is made),
    order (memory for the order of a pass), checkpoints (on disk), gpu (memory for weights, moments and a batch of 32
    cells in float32), gradient (what several GPUs exchange for each update); and seconds: reading (one process making
    the panel), hashing (before each run, of all values), saving (one checkpoint).
    """
    rate = RATES | (rates or {})
    parameters = size.parameters(genes)
    work = 3 * size.forward_flops(genes) * cells
    state = 4 * 3 * parameters  # weights and two moments, float32
    activations = 4 * 32 * size.layers * genes * size.d * (8 + 2 * size.ff_mult)
    return {
        "flops": work, "parameters": parameters, "hours": [work / H100 / share / 3600 for share in SHARES],
        "panel": 8 * genes * cells, "compact": rate["compact"] * cells, "network": 2 * rate["network"] * cells,
        "labels": rate["labels"] * cells, "order": rate["order"] * cells,
        "checkpoints": 2 * 2 * state,  # two are kept, and half-way each holds the state twice
        "gpu": 16 * parameters + activations, "gradient": 4 * parameters,
        "reading": rate["reading"] * cells, "hashing": 4 * genes * cells / rate["hashed"],
        "saving": state / rate["saved"],
    }  # fmt: skip


def line(found, rows):
    """What a part took, and what the whole Census would in proportion."""
    times = WHOLE / rows
    return (
        f"{found['seconds']:.1f} s, {found['bytes'] / rows:.0f} bytes a cell; {WHOLE:,} cells: "
        f"{times * found['seconds'] / 60:.1f} min, {times * found['bytes'] / 1e9:.1f} GB"
    )


def planned():
    """What the published runs and the study `tuned` would take, in lines."""
    theirs = of_published_runs()
    low, high = hours(theirs)
    yield f"the published runs: {theirs:.2g} FLOPs of training, {low:.1f} to {high:.1f} h of one H100 (assumed rates)"
    for name in ("tuned", "published"):
        counted = cost(load_study(name))
        low, high = hours(**counted)
        yield (
            f"{name}: {counted['training']:.2g} FLOPs of training, {counted['evaluation']:.2g} of evaluation in "
            f"float32, {counted['small_updates']:,} updates of small sizes: {low:.1f} to {high:.1f} h"
        )


def listed(bill):
    """The bill in lines."""
    most, least = bill["hours"]
    yield f"{bill['parameters']:.3g} parameters, {GENES} genes, {WHOLE:,} cells once: {bill['flops']:.2g} FLOPs"
    yield f"GPU hours (H100, 40 % to 20 % of its bf16 peak; assumed, not measured): {least:,.0f} to {most:,.0f}"
    for name, words in BYTES.items():
        yield f"{words}: {bill[name] / 1e9:,.1f} GB"
    yield f"one process making the panel: {bill['reading'] / 3600:.1f} h"
    yield f"telling a run by its values: {bill['hashing'] / 60:.1f} min before each"
    from lib.train.loop import CHECKPOINT_SECONDS as pause

    yield f"one checkpoint: {bill['saving']:.0f} s, every {pause} s of training, as the code stands"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="the larger number of cells")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        return one(chosen.part, chosen.rows, chosen.root)
    with tempfile.TemporaryDirectory() as root:
        rates = {"hashed": hashed(), "saved": saved(root)}
        print(f"hashed {rates['hashed'] / 1e9:.2f} GB/s, checkpoints {rates['saved'] / 1e9:.2f} GB/s")
        for part, function in PARTS.items():
            print(f"{part}: {function.__doc__}")
            for rows in (chosen.rows // 10, chosen.rows):
                found = measured(part, rows, root)
                print(f"  {rows:>11,} cells: {line(found, rows)}", flush=True)
            name = {"write": "labels", "order": "order"}.get(part)
            rates |= {name: found["bytes"] / rows} if name else {}
    print(*listed(bill(LARGE, GENES, WHOLE, rates=rates)), *planned(), sep="\n")


if __name__ == "__main__":
    main()
