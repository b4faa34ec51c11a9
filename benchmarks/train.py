"""Speed of training against the plain implementation in reference.py: the same work on both sides.

One update is 32 cells of 512 genes, 77 of them masked. Ours and the reference take turns; the ratio is that of their
medians. The reference has all cores, as torch uses them by default; ours has what `Size.threads` says. The last
line of a size is what one update of the published protocol (reference, dropout 0.1) costs against one of ours without.
`python benchmarks/train.py [SIZE ...]` takes about ten minutes for XXS, TINY, XS and S on two cores.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import reference
import torch

from lib.data import panel
from lib.model.sizes import PUBLISHED, cores
from lib.study import Train
from lib.train import loop

GENES, MASKED, CELLS, ROUNDS = 512, 77, 2000, 5
SECONDS = 1.0
"""What one side's turn should take at least, so that a small size makes several updates in it."""


def data(cells=CELLS, genes=GENES, masked=MASKED, seed=0):
    """A panel of random numbers: its values do not change what an update costs."""
    rng = np.random.default_rng(seed)
    held = {"validation": np.arange(50), "test": np.arange(50, 100)}
    masks = np.argsort(rng.random((50, 1, genes)))[..., :masked]
    x, library = rng.random((cells, genes), dtype=np.float32), np.full(cells, 1e4)
    return panel.Arrays(
        x, np.rint(x), library, np.zeros(cells), np.arange(100, cells), held, dict.fromkeys(held, masks)
    )


def seconds(work, updates):
    """Seconds of one update."""
    started = time.perf_counter()
    work(updates)
    return (time.perf_counter() - started) / updates


def ours(size, arrays, dropout, folder):
    """A function that makes some updates of our training loop."""
    settings = Train(dropout=dropout, batch=32, optimiser="adamw", cells_seen=32 * 10**6)
    run = loop.Run(arrays, size, 7, settings, Path(folder), "benchmark")

    def work(updates):
        torch.set_num_threads(size.threads(arrays.x.shape[1]))
        for _ in range(updates):
            run.step()

    return work


def plain(size, arrays, dropout):
    """The same for the reference."""
    genes, masked = arrays.x.shape[1], arrays.masks["test"].shape[-1]
    model, cells = reference.Reference(size, genes, dropout), reference.Cells(arrays.x[arrays.train], masked)

    def work(updates):
        torch.set_num_threads(cores())
        reference.train(model, cells, updates)

    return work


def compare(size, arrays, dropout, rounds=ROUNDS, least=SECONDS):
    """Median seconds per update of ours and of the reference."""
    with tempfile.TemporaryDirectory() as folder:
        both = ours(size, arrays, dropout, folder), plain(size, arrays, dropout)
        updates = [max(1, round(least / min(seconds(work, 1) for _ in range(2)))) for work in both]
        taken = [], []
        for _ in range(rounds):
            for times, work, number in zip(taken, both, updates, strict=True):
                times.append(seconds(work, number))
    return tuple(statistics.median(times) for times in taken)


def main(names, arrays=None, **words):
    """Print the ratios of some sizes, and return them: {size: [without dropout, with it, published against ours]}."""
    print(f"{cores()} cores, torch {torch.__version__}")
    arrays, ratios = arrays or data(), {}
    for name in names:
        size, taken = PUBLISHED[name], {}
        for dropout in (0.0, 0.1):
            own, theirs = taken[dropout] = compare(size, arrays, dropout, **words)
            print(
                f"{name:<5}{theirs / own:6.1f}x as many updates per second as the reference, dropout {dropout:g} "
                f"({1e3 * own:.1f} ms against {1e3 * theirs:.1f} ms; {size.threads(arrays.x.shape[1])} thread(s) "
                f"against {cores()})",
                flush=True,
            )
        published = taken[0.1][1] / taken[0.0][0]
        print(
            f"{name:<5}{published:6.1f}x: the cost of one update of the published protocol against one of ours",
            flush=True,
        )
        ratios[name] = [theirs / own for own, theirs in taken.values()] + [published]
    return ratios


if __name__ == "__main__":
    main(sys.argv[1:] or ("XXS", "TINY", "XS", "S"))
