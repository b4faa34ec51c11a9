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
from types import SimpleNamespace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import reference
import torch

from lib.model import kernels
from lib.model.sizes import PUBLISHED
from lib.study import Train
from lib.train import loop

GENES, MASKED, CELLS, ROUNDS = 512, 77, 2000, 5
SECONDS = 1.0
"""What one side's turn should take at least, so that a small size makes several updates in it."""


def data(seed=0):
    """A panel of random numbers: its values do not change what an update costs."""
    rng = np.random.default_rng(seed)
    masks = np.argsort(rng.random((100, 1, GENES)))[..., :MASKED]
    rows = np.arange(CELLS)
    return SimpleNamespace(
        x=rng.random((CELLS, GENES), dtype=np.float32), train=rows[200:], validation=rows[:100], test=rows[100:200],
        masks={"validation": masks, "test": masks},
    )  # fmt: skip


def seconds(work, updates):
    started = time.perf_counter()
    work(updates)
    return (time.perf_counter() - started) / updates


def ours(size, panel, dropout, folder):
    """A function that makes some updates of our training loop."""
    settings = Train(dropout=dropout, cells_seen=32 * 10**6)
    run = loop.Run(panel, size, 7, settings, Path(folder), "benchmark")

    def work(updates):
        torch.set_num_threads(size.threads(GENES))
        for _ in range(updates):
            run.step()
            run.update += 1

    return work


def plain(size, panel, dropout):
    """The same for the reference."""
    model, cells = reference.Reference(size, GENES, dropout), reference.Cells(panel.x[panel.train], MASKED)

    def work(updates):
        torch.set_num_threads(os.cpu_count())
        reference.train(model, cells, updates)

    return work


def products(size, side=1024):
    """FLOPs per second of a float32 matrix product that is large enough to be at its best, on ours' threads."""
    torch.set_num_threads(size.threads(GENES))
    one, other = torch.randn(side, side), torch.randn(side, side)
    return 2 * side**3 / min(seconds(lambda updates: [one @ other for _ in range(updates)], 5) for _ in range(5))


def compare(size, panel, dropout):
    """Median seconds per update of ours and of the reference, and the median share of the matrix-product rate."""
    with tempfile.TemporaryDirectory() as folder:
        sides = ours(size, panel, dropout, folder), plain(size, panel, dropout)
        updates = [max(1, round(SECONDS / max(seconds(work, 1), seconds(work, 1) / 2))) for work in sides]
        taken, shares = ([], []), []
        for _ in range(ROUNDS):
            for times, work, number in zip(taken, sides, updates, strict=True):
                times.append(seconds(work, number))
            shares.append(3 * 32 * size.forward_flops(GENES) / taken[0][-1] / products(size))
    return *(statistics.median(times) for times in taken), statistics.median(shares)


def main():
    panel, code = data(), "compiled" if kernels.available() else "torch's"
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, {code} kernels")
    for name in sys.argv[1:] or ("XXS", "TINY", "XS", "S"):
        size, taken = PUBLISHED[name], {}
        for dropout in (0.0, 0.1):
            own, theirs, share = taken[dropout] = compare(size, panel, dropout)
            print(
                f"{name:<5}{theirs / own:6.1f}x as many updates per second as the reference, dropout {dropout:g} "
                f"({1e3 * own:.1f} ms against {1e3 * theirs:.1f} ms; {size.threads(GENES)} thread(s) against "
                f"{os.cpu_count()}; model FLOPs at {share:.0%} of the matrix-product rate)",
                flush=True,
            )
        ratio = taken[0.1][1] / taken[0.0][0]
        print(
            f"{name:<5}{ratio:6.1f}x: the cost of one update of the published protocol against one of ours", flush=True
        )


if __name__ == "__main__":
    main()
