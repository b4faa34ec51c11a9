"""The first two pieces of gpu.py: does the device compute what a CPU does, and how fast does it train?"""

import copy
import csv
import datetime
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

from lib import io
from lib.data import panel
from lib.model import sizes, transformer
from lib.model.sizes import PUBLISHED, Size
from lib.train import loop, machine

TOLERANCE = 1e-4
"""Largest error of a float32 number, as a part of the largest in its tensor; that of TF32 is about 1e-3."""
SEEDS, UPDATES = (7, 8, 9), 500
"""Of the comparison of bf16 with float32."""


def load(folder: Path) -> panel.Arrays:
    """The arrays of a panel that gpu.py packed."""
    with np.load(folder / "panel.npz", allow_pickle=False) as file:
        parts = {name: file[name] for name in file.files}
    counts = parts["counts"].astype(np.int32)
    rows, masks = (
        {name.removeprefix(kind): value for name, value in parts.items() if name.startswith(kind)}
        for kind in ("split-", "masks-")
    )
    x = panel.normalise(counts, counts.sum(1) if parts["library_size"] == "panel" else parts["library"])
    train = rows.pop("train")
    return panel.Arrays(x, counts, parts["library"], parts["donor"], train, rows, masks)


def settings(part: dict, updates: int | None = None, **changed) -> SimpleNamespace:
    """The settings of a regime, as `lib.study.Train` holds them, which needs pydantic; `updates` shortens a run."""
    train = part["train"] | changed
    branches = {name: tuple(ends) for name, ends in part["branches"].items()}
    if updates:
        train, branches = train | {"cells_seen": updates * train["batch"]}, {}
    derived = {"updates": updates or part["updates"], "branches": branches}  # of the class: a digest takes the rest
    return type("Settings", (SimpleNamespace,), derived)(**train)


def name_of(device: torch.device) -> str:
    """The GPU's name, as in a run's record."""
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"


def stamp(device) -> dict[str, str]:
    """When, by which code, on what."""
    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M}", "commit": io.code_version(),
        "device": name_of(device), "torch": torch.__version__,
    }  # fmt: skip


def say(text):
    print(text, flush=True)


def agreement(size: Size, device: torch.device, genes: int = 64, cells: int = 4) -> float:
    """Largest error of outputs and gradients in float32 on the device, against float64 on the CPU; see TOLERANCE."""
    torch.manual_seed(0)
    model = transformer.Transformer(size, genes, embedding_scale=0.5)
    x, positions = torch.rand(cells, genes), torch.rand(cells, genes).topk(genes // 6).indices

    def outcome(on, kind):
        own, where = copy.deepcopy(model).to(on, kind), positions.to(on)
        predicted = own(x.to(on, kind), transformer.hide(where, genes), where)
        predicted.square().mean().backward()
        return [tensor.detach().cpu().double() for tensor in (predicted, *(w.grad for w in own.parameters()))]

    pairs = zip(outcome(device, torch.float32), outcome("cpu", torch.float64), strict=True)
    errors = [(ours - exact).abs().max() / exact.abs().max().clamp(min=1e-3) for ours, exact in pairs]
    return float(torch.stack(errors).max())  # NaN where one is


def precisions(data, part: dict, size: Size, device: torch.device) -> dict[str, list[float]]:
    """Validation loss of every seed after training in float32, and under bf16 autocast."""
    contexts = {"float32": nullcontext(), "bfloat16": torch.autocast(device.type, dtype=torch.bfloat16)}
    losses = {name: [] for name in contexts}
    for name, context in contexts.items():
        with mock.patch.object(machine, "precision", return_value=context), tempfile.TemporaryDirectory() as folder:
            for seed in SEEDS:
                run = loop.Run(data, size, seed, settings(part, UPDATES), Path(folder), f"seed {seed}")
                run.advance(lambda *state: None)
                losses[name].append(float(run.losses("validation").mean()))
    return losses


def correctness(plan: dict, path: Path, device: torch.device) -> None:
    """Write correctness.json; a device that does not compute what a CPU does ends the call with one sentence."""
    if path.is_file() and io.read_json(path)["torch"] == stamp(device)["torch"]:
        return
    shapes = PUBLISHED["XS"], Size("padded", 1020, 2, 12, 4)
    errors = {f"width {size.d}": agreement(size, device) for size in shapes}
    if not max(errors.values()) < TOLERANCE:
        raise io.InputError(f"float32 on {name_of(device)} is wrong by {errors}, above {TOLERANCE:g}: nothing was run.")
    regime, part = next(iter(plan["regimes"].items()))
    size = Size(**plan["sizes"][:2][-1])
    losses = precisions(load(plan["folder"] / regime), part, size, device)
    spread = float(np.std(losses["float32"], ddof=1))
    apart = float(np.mean(losses["bfloat16"]) - np.mean(losses["float32"]))
    if not np.isfinite(apart):
        raise io.InputError(f"{size.name} ends at {losses} on {name_of(device)}: nothing else was run.")
    content = {**stamp(device), "largest_error": errors, "losses": losses, "bf16_minus_float32": apart}
    io.write_json(path, content | {"seed_spread": spread, "bf16_within_seed_spread": abs(apart) <= spread})
    say(f"float32 is right to {max(errors.values()):.0e}; bf16 ends {apart:+.5f} from it, seeds spread {spread:.5f}")


def computed_flops(size: Size, genes: int, masked: int) -> int:
    """FLOPs of the matrix products of one cell's forward pass, of which the last block computes masked genes alone.

    Two for each multiply-add, none for the rest, after Kaplan et al. 2020 (arXiv 2001.08361, section 2.1), with the
    attention's own products as in Chowdhery et al. 2022 (arXiv 2204.02311, appendix B). A utilisation by
    `Size.forward_flops`, which counts the last block in full, would be too high, by a tenth for L. The products of the
    optimiser are not counted.
    """
    d, f = size.d, size.ff_mult
    full = genes * (4 + 2 * f) * d * d + 2 * genes * genes * d
    last = (2 * genes + masked * (2 + 2 * f)) * d * d + 2 * masked * genes * d
    return 2 * (2 * genes * d + (size.layers - 1) * full + last + masked * d)


def matrix_rate(device: torch.device, n: int, seconds: float) -> float:
    """FLOPs per second of the product of two n x n matrices, in bf16 on a GPU and in float32 on a CPU."""
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=kind) for _ in range(2))
    return 2 * n**3 / time_of(lambda: torch.mm(a, b), device, seconds)


def time_of(work, device: torch.device, seconds: float) -> float:
    """Seconds of one call: of as many as fit into `seconds`, with the device awaited at their end alone."""

    def taken(calls):
        wait(device)
        started = time.perf_counter()
        for _ in range(calls):
            work()
        wait(device)
        return (time.perf_counter() - started) / calls

    for _ in range(2):  # compiles, chooses kernels, fills the allocator's cache
        work()
    return taken(min(500, max(2, round(seconds / taken(2)))))


def rates(plan: dict, path: Path, device: torch.device, until: float, seconds: float = 1.0, n: int = 8192) -> None:
    """Add to rates.csv what is not in it: the four largest sizes, batch 32 and the recipe's, eager and compiled."""
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
    asked = [(own, name, shape) for own in (False, True) for name in plan["regimes"] for shape in plan["sizes"][:-5:-1]]
    best, regime, data = None, None, None
    for own, name, shape in asked:
        if time.monotonic() > until:
            return
        part, size = plan["regimes"][name], Size(**shape)
        batch = sizes.batch(part["masked"]) if own else part["train"]["batch"]
        done = {(row["size"], int(row["genes"]), int(row["batch"]), row["mode"]) for row in rows}
        modes = [mode for mode in ("eager", "compiled") if (size.name, part["genes"], batch, mode) not in done]
        if modes:
            best = best or matrix_rate(device, n, seconds)
            regime, data = name, data if regime == name else load(plan["folder"] / name)
            rows += measured(data, part, size, batch, modes, device, seconds, best)
            write_rows(path, rows)


def measured(data, part, size, batch, modes, device, seconds, best):
    """Rows of rates.csv for one size and batch, one for each mode."""
    rows, genes = [], part["genes"]
    with tempfile.TemporaryDirectory() as folder:
        run = loop.Run(data, size, 7, settings(part, 10**6, batch=batch), Path(folder), "rates")
        fast = {"eager": run.model, "compiled": machine.compiled(run.model, device.type, least=1)}
        for mode in modes:
            run.fast = fast[mode]
            compilations = {"stats": {}} if run.fast is run.model else torch._dynamo.utils.counters
            compilations["stats"].clear()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken = time_of(run.step, device, seconds)
            cells, peak = batch / taken, torch.cuda.max_memory_allocated() if device.type == "cuda" else ""
            counted, computed = size.forward_flops(genes), computed_flops(size, genes, part["masked"])
            used = 3 * cells * computed / best
            numbers = {
                "size": size.name, "genes": genes, "batch": batch, "mode": mode,
                "graphs": compilations["stats"].get("unique_graphs", 0), "cells_at_once": run.at_once,
                "cells_per_second": round(cells, 1), "model_flops_per_second": f"{3 * cells * counted:.4g}",
                "computed_flops_per_second": f"{3 * cells * computed:.4g}", "matrix_flops_per_second": f"{best:.4g}",
                "utilisation": round(used, 4), "peak_memory_bytes": peak,
            }  # fmt: skip
            rows.append({**stamp(device), **numbers})
            say(f"{size.name} at {genes} genes, batch {batch}, {mode}: {cells:,.0f} cells/s, {used:.1%}")
    del run, fast
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return rows


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write a CSV file of all columns that any row has."""
    with io.atomic(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
