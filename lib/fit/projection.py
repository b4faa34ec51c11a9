"""Variable projection for `L = c + A exp(-alpha d)`, with d = log(P / smallest P): thousands of fits at once.

For a fixed alpha the law is linear in (A, c), so each fit is a search over alpha alone: a grid, then the root of the
derivative of the residual sum of squares (Golub & Pereyra 1973). Nothing is started from a guess and nothing is bounded
by the data. The raw amplitude is `a = A * smallest_P ** alpha`.

Arrays put the sizes on the first axis, because sums over it are then fast.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq, elementwise

GRID = np.geomspace(0.01, 100, 100)
"""alpha times the span of log P. Below it the law is straight in log P; above it only the smallest size differs."""

CHUNK_NUMBERS = 2**23
"""Most float64 numbers (64 MiB) that one array of a batched fit may hold."""


class Projection(NamedTuple):
    """Least squares at given alpha; every field has the shape of alpha."""

    weight: np.ndarray  # sum of weights
    centre: np.ndarray  # weighted mean of exp(-alpha d)
    spread: np.ndarray  # weighted sum of squares of exp(-alpha d) about it
    amplitude: np.ndarray
    c: np.ndarray
    rss: np.ndarray

    def value(self, basis):
        """Fitted loss where exp(-alpha d) is `basis` (0: the floor), and its variance in units of sigma squared."""
        return self.c + self.amplitude * basis, 1 / self.weight + (basis - self.centre) ** 2 / self.spread


class Fits(NamedTuple):
    """One law per dataset; every field has shape (datasets,)."""

    alpha: np.ndarray
    amplitude: np.ndarray
    c: np.ndarray
    rss: np.ndarray
    edge: np.ndarray  # -1 or 1 where alpha is at the low or the high end of its grid, else 0


def project(d, y, w, alpha, floor=True):
    """Solve the linear half of the law at `alpha`.

    Parameters
    ----------
    d : (sizes,)
    y, w : (sizes, ...)
        Losses and weights (inverse variances), broadcasting against alpha behind the first axis.
    alpha : (...)
    floor : bool
        False fits `A exp(-alpha d)`, without c.
    """
    d = d.reshape(-1, *[1] * np.ndim(alpha))
    e = np.exp(-alpha * d)
    we = w * e
    weight = w.sum(0) + np.zeros_like(alpha)
    centre = we.sum(0) / weight * floor
    middle = (w * y).sum(0) / weight * floor
    spread = ((e - centre) * we).sum(0)
    amplitude = (we * (y - middle)).sum(0) / spread
    residual = y - middle - amplitude * (e - centre)
    rss = (w * residual * residual).sum(0)
    return Projection(weight, centre, spread, amplitude, middle - amplitude * centre, rss)


def alpha_grid(d, floor=True):
    """The alphas searched: positive with a floor (the law falls towards it); of either sign without one."""
    grid = GRID / np.ptp(d)
    return grid if floor else np.concatenate([-grid[::-1], grid])


def fit_many(d, y, w, floor=True):
    """Global weighted least squares for every dataset.

    Parameters
    ----------
    d : (sizes,)
        log(P / smallest P), at least two distinct values.
    y, w : (datasets, sizes)
        A size with weight 0 takes no part.
    """
    y, w = np.broadcast_arrays(np.atleast_2d(y).astype(float), np.atleast_2d(w).astype(float))
    grid = alpha_grid(d, floor)
    step = max(1, CHUNK_NUMBERS // (len(grid) + len(d)))
    parts = []
    for i in range(0, len(y), step):
        chunk = (np.ascontiguousarray(x[i : i + step].T) for x in (y, w))
        parts.append(_fit_chunk(d, *chunk, grid, floor))
    return Fits(*map(np.concatenate, zip(*parts, strict=True)))


def _fit_chunk(d, y, w, grid, floor):
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = _explained(d, y, w, grid, floor)
        alpha, edge = _refine(d, y, w, grid, explained.argmax(0), floor)
        fit = project(d, y, w, alpha, floor)
        at_edge = np.flatnonzero(edge)
        if len(at_edge):
            # An end of the grid can beat a peak only because the peak lies between two of its points: refine that too.
            inner = explained[1:-1, at_edge]
            peak = (inner > explained[:-2, at_edge]) & (inner >= explained[2:, at_edge])
            some = y[:, at_edge], w[:, at_edge]
            other, other_edge = _refine(d, *some, grid, 1 + np.where(peak, inner, -1).argmax(0), floor)
            better = project(d, *some, other, floor).rss < fit.rss[at_edge]
            alpha[at_edge[better]], edge[at_edge[better]] = other[better], other_edge[better]
            fit = project(d, y, w, alpha, floor)
    return alpha, fit.amplitude, fit.c, fit.rss, edge


def _refine(d, y, w, grid, best, floor):
    """Move alpha from the grid point `best` to the stationary point beside it; also -1 or 1 at an end of the grid."""
    weight = w.sum(0)
    centred = y - (w * y).sum(0) / weight * floor
    bracket = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]

    def slope(alpha, i):
        some = (slice(None), i) if len(i) < len(weight) else ...
        return _slope(d, centred[some], w[some], weight[i], alpha, floor)

    root = roots(slope, *bracket)
    edge = np.where(np.isnan(root), (best == len(grid) - 1) * 1 - (best == 0) * 1, 0)
    return np.where(np.isnan(root), grid[best], root), edge


def roots(function, low, high):
    """Root of `function(x, i)` for every dataset i, between low[i] and high[i]; nan where the signs there are alike.

    A batched search takes milliseconds even for one dataset, which is what most single fits need.
    """
    datasets = np.arange(len(low))
    if len(low) > 1:
        found = elementwise.find_root(function, (low, high), args=(datasets,))
        return np.where(found.success, found.x, np.nan)

    def value(x):
        return function(np.array([x]), datasets)[0]

    crosses = value(low[0]) * value(high[0]) <= 0
    return np.array([brentq(value, low[0], high[0], xtol=1e-15) if crosses else np.nan])


def _explained(d, y, w, grid, floor):
    """Sum of squares explained at each alpha of the grid, (grid, datasets): three matrix products."""
    e, weight = np.exp(-grid[:, None] * d), w.sum(0)
    spread = (e * e) @ w - (e @ w) ** 2 / weight * floor
    explained = (e @ (w * (y - (w * y).sum(0) / weight * floor))) ** 2
    return np.divide(explained, spread, out=np.zeros_like(explained), where=spread > 0)


def _slope(d, centred, w, weight, alpha, floor):
    """Half the derivative of the residual sum of squares by alpha, (datasets,), as sums that are matrix products."""
    e = np.exp(np.multiply.outer(-d, alpha))
    we = w * e
    sums = np.stack([np.ones_like(d), d])
    (first, d_first), (second, d_second), (cross, d_cross) = (sums @ part for part in (we, we * e, we * centred))
    centre = first / weight * floor
    amplitude = cross / (second - first * centre)
    return amplitude * (d_cross - amplitude * (d_second - centre * d_first))
