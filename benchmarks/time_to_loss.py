"""The honest speed of a recipe: seconds until the validation loss has lost a share of what can be removed.

The same panel of 512 genes, the same validation masks, for ours as studies train by default and for plain AdamW in the
plain implementation of reference.py, at the best of several constant rates. What can be removed lies between the gene
mean and the lowest loss that either of them reaches here. Ours is a schedule that ends: its seconds are those of the
shortest of a series of whole runs, each twice as long as the one before, that gets there, interpolated in logarithms.
Seconds are the processor's, of one thread each, so that a busy machine does not decide; measuring the loss is not
counted. `python benchmarks/time_to_loss.py [SIZE ...]`
"""

import math
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import recipe
import reference
import torch
from replicates import Aside

from lib.data import panel
from lib.model.sizes import PUBLISHED, batch
from lib.study import Train
from lib.train import loop

CENSUS = recipe.simulated(cells=24_000, genes=1200)
GENES, CELLS = 512, 18_000
SHARES = (0.5, 0.75)
RATES = (1e-3, 3e-3, 1e-2)
"""Constant rates of the reference."""
SHORTEST, DOUBLINGS = 125, 6
"""Updates of our shortest run, and how often they are doubled."""
PATIENCE, EVERY = 1.5, 25
"""The reference may take so many times the ratio that is asked for; updates between its evaluations."""
ASKED = {"TINY": 10.0, "XS": 5.0}
SEEN = 300
"""Validation cells of both."""


def arrays(folder, census=CENSUS, genes=GENES, cells=CELLS):
    """A simulated panel."""
    content = {"split": recipe.HELD, "regimes": {"panel": {"genes": genes, "cells": cells}}}
    study = Aside(name="speed", root=Path(folder), census=census, sizes=["TINY"], seeds=[7], **content)
    return panel.arrays(panel.read(panel.build(study, "panel")))


def ours(size, data, folder, doublings=DOUBLINGS, shortest=SHORTEST):
    """(seconds, loss) at the end of each of our runs."""
    usual, ends = Train(), []
    cells = batch(data.masks["validation"].shape[-1])
    for doubling in range(doublings):
        updates = shortest * 2**doubling
        settings = usual.model_copy(update={"batch": cells, "cells_seen": updates * cells, "evaluations": 2})
        run = loop.Run(data, size, 7, settings, Path(folder), "benchmark")
        torch.set_num_threads(1)
        started = time.process_time()
        for _ in range(updates):
            run.step()
        seconds = time.process_time() - started
        ends.append((seconds, float(run.losses("validation", cells=SEEN, masks=1).mean())))
    return np.array(ends)


def plain(size, data, rate, seconds):
    """(seconds, loss) along one run of the reference, which stops after so many seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(7)
    genes, masked = data.x.shape[1], data.masks["validation"].shape[-1]
    model, cells = reference.Reference(size, genes, 0.0), reference.Cells(data.x[data.train], masked)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    spent, curve = 0.0, []
    while spent < seconds:
        started = time.process_time()
        reference.train(model, cells, EVERY, optimiser=optimiser)
        spent += time.process_time() - started
        curve.append((spent, loss_of(model, data)))
        if not math.isfinite(curve[-1][1]):
            break
    return np.array(curve)


@torch.no_grad()
def loss_of(model, data):
    """Mean squared error of the reference at the first masks of the validation cells that ours is measured on."""
    model.eval()
    rows, masks = data.held["validation"][:SEEN], torch.as_tensor(data.masks["validation"][:SEEN, 0], dtype=torch.long)
    x = torch.as_tensor(np.asarray(data.x[rows]))
    errors = []
    for lot, positions in zip(x.split(32), masks.split(32), strict=True):
        hidden = torch.zeros_like(lot, dtype=torch.bool).scatter_(1, positions, True)
        errors.append((model(lot, hidden) - lot).gather(1, positions).square())
    return float(torch.cat(errors).mean())


def seconds_to(level, curve):
    """Seconds at which a curve of (seconds, loss) first falls to a level, between its points in logarithms; or inf."""
    below = np.flatnonzero(curve[:, 1] <= level)
    if not len(below):
        return math.inf
    if (end := below[0]) == 0:
        return float(curve[0, 0])
    (before, high), (after, low) = curve[end - 1 : end + 1]
    part = (high - level) / (high - low)
    return float(math.exp((1 - part) * math.log(before) + part * math.log(after)))


def compare(name, data, folder, rates=RATES, **words):
    """{share: (our seconds, those of the reference at its best rate)} of one size.

    The reference is stopped after PATIENCE times what is asked for: its seconds, and the ratio, are then larger still.
    """
    size = PUBLISHED[name]
    x, masks = np.asarray(data.x), data.masks["validation"][:SEEN, 0]
    mean, rows = x[data.train].mean(0), data.held["validation"][:SEEN]
    uninformed = float(((np.take_along_axis(x[rows], masks, 1) - mean[masks]) ** 2).mean())
    own = ours(size, data, folder, **words)
    if (lowest := own[:, 1].min()) >= uninformed:
        raise ValueError(f"{name} has not got below the gene mean; let our longest run be longer (DOUBLINGS)")
    levels = {share: uninformed - share * (uninformed - lowest) for share in SHARES}
    most = PATIENCE * ASKED.get(name, 1.0) * max(seconds_to(level, own) for level in levels.values())
    curves = [plain(size, data, rate, most) for rate in rates]
    theirs = {share: min(seconds_to(level, curve) for curve in curves) for share, level in levels.items()}
    return {share: (seconds_to(level, own), min(theirs[share], most)) for share, level in levels.items()}


def main(names=tuple(ASKED), **words):
    """Print the ratio of every size and share, and return them."""
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        data = words.pop("data", None) or arrays(Path(folder) / "panel")
        for name in names:
            found = compare(name, data, Path(folder) / name, **words)
            for share, (own, theirs) in found.items():
                ratios[name, share] = theirs / own
                of = f"{name}: {share:.0%} of what can be removed"
                print(f"{of} in {own:.1f} s, by the reference in {theirs:.0f} s: {theirs / own:.1f}x", flush=True)
    return ratios


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or tuple(ASKED))
