"""The data of one law: runs collected by model size, and the weight of each size."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.fit.projection import fit_many
from lib.io import InputError

ENOUGH_SEEDS = 5


@dataclass(frozen=True, eq=False)
class Ladder:
    """Losses by model size, smallest first.

    Attributes
    ----------
    labels : tuple of str, (sizes,)
    parameters, means, weights : (sizes,)
        Parameter count, mean loss over seeds, and weight of that mean (mean weight 1).
    seeds : (sizes,) of int
        Runs of each size.
    index, losses : (runs,)
        Size and loss of each run, sorted by size and loss so that the order of rows decides nothing.
    """

    labels: tuple
    parameters: np.ndarray
    means: np.ndarray
    weights: np.ndarray
    seeds: np.ndarray
    index: np.ndarray
    losses: np.ndarray

    @property
    def d(self):
        """log(P / smallest P), (sizes,)."""
        return np.log(self.parameters / self.parameters[0])

    @property
    def within(self):
        """Sum of squares of seeds about their size mean (pure error)."""
        return ((self.losses - self.means[self.index]) ** 2).sum()

    def by_size(self, values):
        """Sums over the runs (last axis) of each size: (..., runs) to (..., sizes)."""
        return np.add.reduceat(values, np.cumsum(self.seeds) - self.seeds, axis=-1)

    def only(self, sizes):
        """The ladder of some sizes (boolean mask), weights kept."""
        runs = sizes[self.index]
        return Ladder(
            tuple(np.array(self.labels)[sizes]),
            *(x[sizes] for x in (self.parameters, self.means, self.weights, self.seeds)),
            index=(np.cumsum(sizes) - 1)[self.index[runs]],
            losses=self.losses[runs],
        )


def usable(runs, metric):
    """Rows that may enter a fit: status ok, a finite loss, and, where seeds are named, no exact copy of another row."""
    good = np.isfinite(pd.to_numeric(runs[metric], errors="coerce"))
    if "status" in runs:
        good &= runs["status"] == "ok"
    if "seed" in runs:
        good &= ~runs.duplicated()
    return runs[good]


def ladder(runs, metric="validation_mse"):
    """Collect the usable runs of one regime.

    Parameters
    ----------
    runs : DataFrame
        Columns `parameters` and `metric`; `size` labels sizes and `status` selects runs where they are present.

    Raises
    ------
    InputError
        When a column is missing, a parameter count is not positive, or no run is usable.
    """
    for column in ("parameters", metric):
        if column not in runs:
            raise InputError(f"the table of runs has no column {column!r}: give a table like runs.csv")
    rows = usable(runs, metric)
    if rows.empty:
        raise InputError(f"no run has a finite {metric!r} and status ok: train some, or choose another metric")
    if not (rows["parameters"] > 0).all():
        raise InputError("column 'parameters' holds a count that is not positive: correct the table of runs")
    rows = rows.sort_values(["parameters", metric], kind="stable")
    parameters, first, index = np.unique(rows["parameters"].to_numpy(float), return_index=True, return_inverse=True)
    losses, seeds = rows[metric].to_numpy(float), np.bincount(index)
    means = np.bincount(index, losses) / seeds
    labels = rows["size"].iloc[first] if "size" in rows else [f"{p:.3g}" for p in parameters]
    squares = np.bincount(index, (losses - means[index]) ** 2)
    weights = size_weights(np.log(parameters / parameters[0]), means, squares, seeds)[0]
    return Ladder(tuple(map(str, labels)), parameters, means, weights, seeds, index, losses)


def size_weights(d, means, squares, seeds):
    """Weights of size means: the inverse of (variance between sizes + seed variance / seeds), scaled to mean 1.

    The variance between sizes is what an unweighted law leaves over beyond seed noise. The seed variance is the pooled
    one; sizes with five seeds or more use their own, shrunk half-way to the pool: two or three seeds say next to
    nothing about a variance. Equal numbers of few seeds therefore give equal weights.

    Parameters
    ----------
    d : (sizes,)
    means, squares : (datasets, sizes)
        Mean and sum of squares about it; squares of zero everywhere give equal weights.
    seeds : (sizes,)
    """
    means, squares = np.atleast_2d(means), np.atleast_2d(squares)
    extra = seeds.sum() - len(seeds)
    if extra == 0 or len(seeds) < 4 or not squares.any():
        return np.ones_like(means)
    pooled = squares.sum(1, keepdims=True) / extra
    own = np.where(seeds >= ENOUGH_SEEDS, (pooled + squares / np.maximum(seeds - 1, 1)) / 2, pooled)
    left = fit_many(d, means, np.ones_like(means)).rss[:, None] / (len(seeds) - 3)
    between = np.maximum(left - (pooled / seeds).mean(1, keepdims=True), 0)
    weights = 1 / (between + own / seeds)
    return weights / weights.mean(1, keepdims=True)
