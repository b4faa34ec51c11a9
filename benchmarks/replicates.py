"""Known truth: the whole pipeline run again and again on simulated censuses, and its intervals held to the exact floor.

Each replicate is a small study of its own: a census with a new truth, a panel, a ladder of sizes trained for squared
error and for bits, a law for each. `python benchmarks/replicates.py [REPLICATES [JOBS]]` writes one row for each law to
data/replicates.csv (about a minute each); rows of the same settings are not run again. Besides whether the headline
interval of c holds the exact floor, a row has what can put it off:

- *training*: c as half the updates would have given it; what still moves has not been paid for by capacity;
- *family*: one negative binomial is not the mixture that the truth is. Given its mean, which is best at the mixture's,
  the dispersion that costs least says what no model of this family can get below;
- *cells*: the floor is an expectation; on these very validation cells the best predictor scores a little off it, and
  so do all sizes with it.
"""

import concurrent.futures
import hashlib
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from lib import io
from lib.data import panel, simulate
from lib.fit.intervals import headline_ends
from lib.fit.summary import fit_laws
from lib.study import Study
from lib.train import baselines, loop

WIDTHS = (4, 6, 8, 12, 16, 24, 32)
OBJECTIVES = {"mse": "validation_mse", "negative_binomial": "validation_nll"}
CENSUS = {
    "cells": 24_000,
    "genes": 100,
    "transcriptome": 2000,
    "depth": 3000,
    "states": 16,
    "profiles": 2,
    "donors": 40,
}
CONTENT = {
    "split": {"validation": 0.1, "test": 0.1, "cells": 1000},
    "regimes": {"known": {"genes": 16, "cells": 18_000}},
    "sizes": [{"name": f"d{width}", "d": width, "layers": 1} for width in WIDTHS],
    "seeds": [7],
    "train": {"cells_seen": 64_000, "evaluations": 2},
}
"""The study file of every replicate, but for its census' seed."""
FAMILY_CELLS = 150
"""Validation cells on which the best negative binomial is looked for."""


class Replicate(Study):
    """A study whose files lie in a folder of their own."""

    root: Path

    @property
    def data(self):
        return self.root


def replicate(number, root, census=CENSUS, content=CONTENT):
    """Run one replicate in the folder `root`: its rows, one for each objective."""
    source = {"simulate": census | {"seed": 1000 + number}}
    study = Replicate(name=f"replicate-{number}", root=root, census=source, **content)
    adata = panel.read(panel.build(study, "known"))
    data, truth = panel.arrays(adata), simulate.truth(study.census.simulate)
    floors = exact(data, truth, baselines.census_columns(adata, truth))
    rows = []
    for objective, metric in OBJECTIVES.items():
        started, settings = time.monotonic(), study.train.model_copy(update={"objective": objective})
        runs = [
            loop.train(data, size, study.seeds[0], settings, root / f"{objective}-{size.name}") for size in study.sizes
        ]
        head = {"replicate": number, "objective": objective, "code_version": io.code_version()}
        seconds = {"seconds": round(time.monotonic() - started, 1)}
        rows.append(head | law(runs, metric) | floors[objective] | seconds)
    return rows


def law(runs, metric):
    """What the runs of one replicate say: the law's c with its interval, and c at half the updates."""
    table = pd.DataFrame(
        [{key: run.get(key) for key in (metric, f"{metric}_half", "parameters", "status")} for run in runs]
    )
    fitted = fit_laws(table.assign(regime="known"), 100, 0, metrics=(metric, f"{metric}_half"))["known"]
    full, half = fitted[metric], fitted.get(f"{metric}_half", {})
    low, high = headline_ends(full, "c")
    converged = np.mean([run["convergence"] == "converged" for run in runs])
    return {
        "status": full["status"], "alpha": full["alpha"], "c": full["c"], "low": low, "high": high,
        "half": half.get("c"), "best": table[metric].min(), "converged": converged,
    }  # fmt: skip


def exact(data, truth, columns):
    """The floors of a panel's validation cells, by objective: exact (an expectation), realised, and of the family.

    The family's is the exact one and what a negative binomial costs beyond it, measured on the first FAMILY_CELLS.
    """
    rows, masked = data.held["validation"], data.masks["validation"]
    known = data.counts[rows], data.library[rows], masked
    best = simulate.predictive(truth, columns, *known, panel.TARGET)
    hidden = np.take_along_axis(data.x[rows][:, None, :], masked, axis=2)
    counts = np.take_along_axis(known[0][:, None, :], masked, axis=2)
    cost = -np.log2(simulate.probabilities(truth, columns, *known, counts[..., None]))
    few = [part[:FAMILY_CELLS] for part in known]
    x = np.arange(int(4 * counts.max()) + 50)
    excess = family_excess(simulate.probabilities(truth, columns, *few, x), x)
    mse, bits = best.variance.mean(), best.bits.mean()
    return {
        "mse": {"exact": mse, "realised": ((hidden - best.mean) ** 2).mean(), "family": mse},
        "negative_binomial": {"exact": bits, "realised": cost.mean(), "family": bits + excess.mean()},
    }  # fmt: skip


def family_excess(probability, x):
    """Bits that the best negative binomial costs beyond the entropy of each distribution of a count.

    For any dispersion the best mean is that of the distribution.

    Parameters
    ----------
    probability : (..., counts)
        Of the counts `x`, (counts,).

    Returns
    -------
    array of the leading shape, at least 0 but for rounding
    """
    probability = probability.reshape(-1, len(x)) / probability.reshape(-1, len(x)).sum(1, keepdims=True)
    mean = (probability * x).sum(1, keepdims=True)

    def cost(log_dispersion):
        return (probability * baselines.bits(x, mean, np.exp(log_dispersion)[:, None])).sum(1)

    return cost(np.log(baselines.best_dispersion(cost, len(probability)))) - stats.entropy(probability, base=2, axis=1)


def fingerprint():
    """Digest of what the replicates are and of the numbers of the code that makes them, 16 digits."""
    numerics = [io.SIMULATE_NUMERICS, io.PANEL_NUMERICS, io.TRAIN_NUMERICS, io.FIT_NUMERICS]
    return hashlib.sha256(repr([CENSUS, CONTENT, *numerics]).encode()).hexdigest()[:16]


def _aside(number):
    """One replicate in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        return replicate(number, Path(folder))


def main(replicates=50, jobs=2):
    """Run what data/replicates.csv lacks, row by row into it."""
    path, code = io.ROOT / "data" / "replicates.csv", fingerprint()
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    rows = [row for row in rows if row["fingerprint"] == code]
    missing = sorted(set(range(replicates)) - {row["replicate"] for row in rows})
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for future in concurrent.futures.as_completed([pool.submit(_aside, number) for number in missing]):
            rows += [row | {"fingerprint": code} for row in future.result()]
            io.write_csv(path, pd.DataFrame(rows).sort_values(["replicate", "objective"]))
            print(f"replicate {rows[-1]['replicate']}: {len(rows) // len(OBJECTIVES)} of {replicates} done", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
