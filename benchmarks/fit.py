"""Speed of the bootstrap against scipy.optimize.curve_fit, on the 18 published 512-gene runs.

Both sides fit the same resamples of the runs, one core, medians of several rounds in one process. curve_fit gets one
start, once as users write it (P as a count) and once made easy (P in units of the smallest, start near the answer).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
import tracemalloc
import warnings

import numpy as np
from scipy.optimize import curve_fit

from lib.fit.intervals import bootstrap
from lib.fit.law import fit_many, ladder
from lib.fit.runs import given
from lib.study import load_study

ROUNDS, FITS, SCIPY_FITS, MANY = 5, 10_000, 300, (10_000, 40_000, 160_000)
STARTS = {"one start, P as a count": (1.0, (2.0, 0.3, 1.4)), "one start near the answer": (533.0, (0.6, 0.5, 1.45))}


def law(P, a, alpha, c):
    return a * P**-alpha + c


def median_seconds(work):
    """Median CPU seconds of `work()`, after one warm-up: on one core that is the time it takes on an idle machine."""
    work()
    taken = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return float(np.median(taken))


def scipy_fits(parameters, losses, unit, start, draws):
    """Fit every resample with curve_fit; gives the number that did not converge."""
    failed = 0
    for chosen in draws:
        try:
            curve_fit(law, parameters[chosen] / unit, losses[chosen], p0=start)
        except RuntimeError:
            failed += 1
    return failed


def main():
    warnings.simplefilter("ignore")
    table = given(load_study("published-runs"))
    data = ladder(table[table["regime"] == "data-rich"])
    parameters, rng = data.parameters[data.index], np.random.default_rng(0)
    ours = median_seconds(lambda: bootstrap(data, "runs", FITS, np.random.default_rng(0))) / FITS
    print(f"batched variable projection   {1e6 * ours:8.1f} us per resample; {FITS:,} take {FITS * ours:.2f} s")
    draws = rng.integers(0, len(parameters), (SCIPY_FITS, len(parameters)))
    for name, (unit, start) in STARTS.items():
        theirs = median_seconds(lambda u=unit, s=start: scipy_fits(parameters, data.losses, u, s, draws)) / SCIPY_FITS
        failed = scipy_fits(parameters, data.losses, unit, start, draws)
        ratio = f"{theirs / ours:.1f}x as many resamples per second as curve_fit, {name}"
        print(f"{ratio} ({1e6 * theirs:.1f} us, {failed} of {SCIPY_FITS} failed)")
    for many in MANY:
        y = data.means + 0.01 * rng.standard_normal((many, len(data.d)))
        seconds = median_seconds(lambda y=y: fit_many(data.d, y, data.weights))
        tracemalloc.start()
        fit_many(data.d, y, data.weights)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        print(f"{many:>9,} fits: {1e6 * seconds / many:5.1f} us each, peak memory {peak:.0f} MiB")


if __name__ == "__main__":
    main()
