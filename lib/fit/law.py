"""One law of loss against model size: the data of a law, its fit, and the region of laws that the data do not reject.

For a fixed exponent the law `L = c + A exp(-alpha d)`, d = log(P / smallest P), is linear in (A, c), so each fit is a
search over alpha alone: a grid, then the root of the derivative of the residual sum of squares (variable projection,
Golub & Pereyra 1973). Nothing is started from a guess and nothing is bounded by the data. Thousands of fits are done at
once; arrays put the sizes on the first axis, because sums over it are then fast.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import elementwise

from lib.fit.runs import usable

GRID = np.geomspace(0.01, 100, 100)
"""alpha times the span of log P. Below it the law is straight in log P; above it only the smallest size differs."""

FEWEST_SIZES = 4  # three sizes determine three parameters exactly: an interval needs one more
LEVEL = 0.95  # confidence of every interval

FORMS = {
    "power + floor": lambda d, alpha: [np.exp(-alpha * d), np.ones_like(d)],
    "power": lambda d, alpha: [np.exp(-alpha * d)],
    "log-linear": lambda d, alpha: [np.ones_like(d), d],
    "quadratic": lambda d, alpha: [np.ones_like(d), d, d**2],
    "constant": lambda d, alpha: [np.ones_like(d)],
}
"""form -> columns that are linear in its coefficients, at d = log(P / smallest P). Only a `power` has an alpha."""

PARAMETERS = {form: len(columns(np.ones(1), 1.0)) + form.startswith("power") for form, columns in FORMS.items()}
"""form -> number of its coefficients, with the exponent of a power."""


class Status(StrEnum):
    """Whether the parameters of a law can be read, or what stands against it."""

    OK = "ok"
    TOO_FEW_SIZES = "too few sizes"  # no error can be given
    INCREASING = "increasing"
    ALPHA_AT_EDGE = "alpha at grid edge"
    NO_FLOOR = "floor not identified"  # the 95 % region of the law reaches an infinite floor
    BUDGET = "budget-limited"  # the runs have not learned what their sizes can: no law of capacity
    OVERFITTED = "overfitted"  # longer training raises the loss of some size: a law of few cells
    UNJUDGED = "convergence not known"  # identified, but nobody measured whether half the updates do as well
    # of joint laws in parameters and training cells:
    EXPONENT_AT_EDGE = "exponent at grid edge"
    INCREASING_JOINTLY = "increasing in N or D"


SPEAKING = (Status.OK, Status.UNJUDGED, Status.NO_FLOOR)
"""Statuses of laws that are drawn, and whose intervals say something: no law of its budget or at an end of its grid."""
MOVING = (Status.BUDGET, Status.OVERFITTED)
"""Training went on too short, or too long, for a law of capacity: neither floor nor exponent is printed."""


@dataclass(frozen=True, eq=False)
class Ladder:
    """Losses by model size, smallest first: arrays are (sizes,), and index and losses (runs,)."""

    labels: tuple[str, ...]
    parameters: np.ndarray
    means: np.ndarray  # over seeds
    weights: np.ndarray  # of the means; their mean is 1
    seeds: np.ndarray  # runs of each size
    index: np.ndarray  # size of each run, sorted by size and loss so that the order of rows decides nothing
    losses: np.ndarray  # of each run
    variance: np.ndarray  # of each mean, as far as it is known: between its seeds, and by how the loss still moved
    error: float = 0.0  # standard error of all losses together, over held-out donors; where those are not known, cells
    df: float = np.inf  # its degrees of freedom

    @property
    def d(self) -> np.ndarray:
        """log(P / smallest P), (sizes,)."""
        return np.log(self.parameters / self.parameters[0])

    @property
    def within(self) -> float:
        """Sum of squares of seeds about their size mean (pure error)."""
        return ((self.losses - self.means[self.index]) ** 2).sum()

    @property
    def known_variance(self) -> float:
        """Weighted mean of the known variances: the residual variance of a law is never taken for less."""
        return float((self.weights * self.variance).mean())

    def by_size(self, values: np.ndarray) -> np.ndarray:
        """Sums over the runs of each size: (..., runs) to (..., sizes)."""
        return np.add.reduceat(values, np.cumsum(self.seeds) - self.seeds, axis=-1)

    def only(self, sizes: np.ndarray) -> "Ladder":
        """The ladder of some sizes (boolean mask), weights unchanged."""
        runs = sizes[self.index]
        columns = ("parameters", "means", "weights", "seeds", "variance")
        of_sizes = {name: getattr(self, name)[sizes] for name in columns}
        of_runs = {"index": (np.cumsum(sizes) - 1)[self.index[runs]], "losses": self.losses[runs]}
        return replace(self, labels=tuple(np.array(self.labels)[sizes]), **of_sizes, **of_runs)


def ladder(runs: pd.DataFrame, metric: str = "validation_mse") -> Ladder:
    """Collect the `usable` runs of one regime, at least one, whose parameters are positive.

    Of a mean is known the variance between seeds, and of a uniform variate up to what the last half of updates changed.
    """
    rows = usable(runs, metric)
    rows = rows.sort_values(["parameters", metric], kind="stable")
    parameters, first, index = np.unique(rows["parameters"].to_numpy(float), return_index=True, return_inverse=True)
    losses, seeds = rows[metric].to_numpy(float), np.bincount(index)
    means = np.bincount(index, losses) / seeds
    squares = np.bincount(index, (losses - means[index]) ** 2)
    weights = size_weights(np.log(parameters / parameters[0]), means, squares, seeds)[0]
    variance = squares.sum() / max(1, len(losses) - len(seeds)) / seeds
    if (half := f"{metric}_half") in rows:
        moved = rows[half].astype(float).fillna(rows[metric]).to_numpy() - losses
        variance = variance + (np.bincount(index, moved) / seeds) ** 2 / 12
    labels, shared = tuple(rows["size"].iloc[first]), _shared_error(rows[index == len(seeds) - 1], metric)
    return Ladder(labels, parameters, means, weights, seeds, index, losses, variance, *shared)


def _shared_error(largest, metric):
    """Standard error of the largest size's losses, and its degrees of freedom: over donors, or else over cells."""
    over = {name: largest.get(f"{metric}{name}", pd.Series(dtype=float)).astype(float) for name in ("_donor_se", "_se")}
    if over["_donor_se"].notna().any():
        donors = largest.get(f"{metric.rpartition('_')[0]}_donors", pd.Series(dtype=float)).max()
        return over["_donor_se"].mean(), np.inf if np.isnan(donors) else donors - 1
    return (over["_se"].mean(), np.inf) if over["_se"].notna().any() else (0.0, np.inf)


def size_weights(d: np.ndarray, means: np.ndarray, squares: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Weights of size means: the inverse of (variance between sizes + seed variance / seeds), scaled to mean 1.

    The variance between sizes is what an unweighted law leaves over beyond seed noise. The seed variance is the pooled
    one; sizes with five seeds or more use their own, shrunk half-way to the pool. Seeds without spread, and equal
    numbers of few seeds, therefore give equal weights.

    `means`, `squares` (sums of squares about them) and the weights are (datasets, sizes), `d` and `seeds` (sizes,).
    """
    means, squares = np.atleast_2d(means), np.atleast_2d(squares)
    extra = seeds.sum() - len(seeds)
    if extra == 0 or len(seeds) < FEWEST_SIZES or not squares.any():
        return np.ones_like(means)
    pooled = squares.sum(1, keepdims=True) / extra
    shrunk = (pooled + squares / np.maximum(seeds - 1, 1)) / 2
    left = fit_many(d, means, np.ones_like(means)).rss[:, None] / (len(seeds) - 3)
    between = np.maximum(left - (pooled / seeds).mean(1, keepdims=True), 0)
    weights = 1 / (between + np.where(seeds >= 5, shrunk, pooled) / seeds)
    return weights / weights.mean(1, keepdims=True)


class Projection(NamedTuple):
    """Least squares at given alpha; every field has the shape of alpha."""

    weight: np.ndarray  # sum of weights
    centre: np.ndarray  # weighted mean of exp(-alpha d)
    spread: np.ndarray  # weighted sum of squares of exp(-alpha d) about it
    amplitude: np.ndarray
    c: np.ndarray
    rss: np.ndarray


class Fits(NamedTuple):
    """One law per dataset; every field has shape (datasets,)."""

    alpha: np.ndarray
    amplitude: np.ndarray
    c: np.ndarray
    rss: np.ndarray
    edge: np.ndarray  # -1 or 1 where alpha is at the low or the high end of its grid, else 0


def project(d: np.ndarray, y: np.ndarray, w: np.ndarray, alpha: np.ndarray, floor: bool = True) -> Projection:
    """Solve the linear half of the law at `alpha`, (...); without `floor`, c is zero.

    `d` is (sizes,), and losses `y` and weights `w` (inverse variances) are (sizes, ...), broadcasting against alpha.
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


def alpha_grid(d: np.ndarray, floor: bool = True) -> np.ndarray:
    """The alphas searched: positive with a floor (the law falls towards it); of either sign without one."""
    grid = GRID / np.ptp(d)
    return grid if floor else np.concatenate([-grid[::-1], grid])


def fit_many(d: np.ndarray, y: np.ndarray, w: np.ndarray, floor: bool = True) -> Fits:
    """Global weighted least squares for every dataset.

    `d` is log(P / smallest P), (sizes,), at least two distinct values; losses `y` and weights `w` are (datasets,
    sizes), and a size with weight 0 takes no part.
    """
    y, w = np.broadcast_arrays(np.atleast_2d(y).astype(float), np.atleast_2d(w).astype(float))
    y, w, grid = np.ascontiguousarray(y.T), np.ascontiguousarray(w.T), alpha_grid(d, floor)
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = _explained(d, y, w, grid, floor)
        alpha, edge = _refine(d, y, w, grid, explained.argmax(0), floor)
        at_edge = np.flatnonzero(edge)
        if len(at_edge):
            # An end of the grid can beat a peak only because the peak lies between two of its points: refine that too.
            inner = explained[1:-1, at_edge]
            peak = (inner > explained[:-2, at_edge]) & (inner >= explained[2:, at_edge])
            some = y[:, at_edge], w[:, at_edge]
            other, other_edge = _refine(d, *some, grid, 1 + np.where(peak, inner, -1).argmax(0), floor)
            better = project(d, *some, other, floor).rss < project(d, *some, alpha[at_edge], floor).rss
            alpha[at_edge[better]], edge[at_edge[better]] = other[better], other_edge[better]
        fit = project(d, y, w, alpha, floor)
    return Fits(alpha, fit.amplitude, fit.c, fit.rss, edge)


def _refine(d, y, w, grid, best, floor):
    """Move alpha from the grid point `best` to the stationary point beside it; also -1 or 1 at an end of the grid."""
    weight, sums = w.sum(0), np.stack([np.ones_like(d), d])
    centred = y - (w * y).sum(0) / weight * floor
    bracket = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]

    def slope(alpha, i):
        """Half the derivative of the residual sum of squares by alpha, as sums that are matrix products."""
        e = np.exp(np.multiply.outer(-d, alpha))
        we = w[:, i] * e
        parts = we, we * e, we * centred[:, i]
        (first, d_first), (second, d_second), (cross, d_cross) = (sums @ part for part in parts)
        centre = first / weight[i] * floor
        amplitude = cross / (second - first * centre)
        return amplitude * (d_cross - amplitude * (d_second - centre * d_first))

    root = roots(slope, *bracket)
    edge = np.where(np.isnan(root), (best == len(grid) - 1) * 1 - (best == 0) * 1, 0)
    return np.where(np.isnan(root), grid[best], root), edge


def roots(function: Callable, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Root of `function(x, i)` for every dataset i, between low[i] and high[i]; nan where the signs there are alike."""
    result = elementwise.find_root(function, (low, high), args=(np.arange(len(low)),))
    return np.where(result.success, result.x, np.nan)


def _explained(d, y, w, grid, floor):
    """Sum of squares explained at each alpha of the grid, (grid, datasets): three matrix products."""
    e, weight = np.exp(-grid[:, None] * d), w.sum(0)
    spread = (e * e) @ w - (e @ w) ** 2 / weight * floor
    explained = (e @ (w * (y - (w * y).sum(0) / weight * floor))) ** 2
    return np.divide(explained, spread, out=np.zeros_like(explained), where=spread > 0)


class Profile(NamedTuple):
    """The region of laws that the F test does not reject, walked along alpha."""

    fits: Fits
    limit: np.ndarray  # (datasets,) residual sum of squares at the rim of the region
    alpha: tuple  # (low, high), each (datasets,); -inf or inf where open
    path: np.ndarray  # (points, datasets) alphas across the region
    along: Projection  # at the path

    def interval(self, basis: Callable | None = None, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the loss where exp(-alpha d) is `basis(alpha)`: by default of the floor.

        At each alpha the residual sum of squares is a parabola in that value, so the rim of the region is known in
        closed form and only alpha has to be walked. `noise` is 1 / weight of a new observation, if the interval is to
        hold that.
        """
        e, along = basis(self.path) if basis else 0.0, self.along
        value = along.c + along.amplitude * e
        variance = 1 / along.weight + (e - along.centre) ** 2 / along.spread + noise  # in units of sigma squared
        reach = np.sqrt(np.maximum(self.limit - along.rss, 0) * variance)
        low, high = value - reach, value + reach
        # As alpha tends to 0 the floor runs away to infinity: an extreme at that end is an open end.
        runaway = np.isneginf(self.alpha[0]) & (basis is None)
        return (
            np.where(runaway & (low.argmin(0) == 0), -np.inf, low.min(0)),
            np.where(runaway & (high.argmax(0) == 0), np.inf, high.max(0)),
        )


def profile(
    d: np.ndarray, y: np.ndarray, w: np.ndarray, df: int, within: float | np.ndarray = 0.0,
    variance: float | np.ndarray = 0.0,
) -> Profile:  # fmt: skip
    """Profile-likelihood region of the law, batched; for `d`, `y` and `w` see `fit_many`.

    A law belongs to it when its residual sum of squares is at most (1 + F / df) times the smallest, F being the `LEVEL`
    quantile of F(1, df) (Bates & Watts 1988, section 6.1); `df` are sizes - 3 over size means, runs - 3 over runs.
    `within`, the weighted sum of squares inside the sizes, is zero over size means. By luck the residual variance can
    be below `variance`, see `Ladder.known_variance`. Both are numbers or (datasets,).
    """
    y, w = np.broadcast_arrays(np.atleast_2d(y).astype(float), np.atleast_2d(w).astype(float))
    fits = fit_many(d, y, w)
    limit = fits.rss + stats.f.ppf(LEVEL, 1, df) * np.maximum((fits.rss + within) / df, variance)
    y, w, grid = y.T, w.T, alpha_grid(d)
    inside = project(d, y[:, None], w[:, None], grid[:, None]).rss <= limit

    def excess(alpha, i):
        return project(d, y[:, i], w[:, i], alpha).rss - limit[i]

    low = np.minimum(np.where(inside, grid[:, None], np.inf).min(0), fits.alpha)
    high = np.maximum(np.where(inside, grid[:, None], -np.inf).max(0), fits.alpha)
    low = roots(excess, low, grid[np.maximum(np.searchsorted(grid, low) - 1, 0)])
    high = roots(excess, high, grid[np.minimum(np.searchsorted(grid, high, "right"), len(grid) - 1)])
    path = np.geomspace(np.nan_to_num(low, nan=grid[0]), np.nan_to_num(high, nan=grid[-1]), 201)
    along = project(d, y[:, None], w[:, None], path)
    ends = np.nan_to_num(low, nan=-np.inf), np.nan_to_num(high, nan=np.inf)
    return Profile(fits, limit, ends, path, along)


@dataclass(frozen=True, eq=False)
class Law:
    """A fitted law, and the parameters, losses and weights, (n,), that it was fitted to."""

    form: str  # a key of `FORMS`
    alpha: float | None  # exponent of a power form
    coefficients: np.ndarray  # of the columns of the form, with P in units of the smallest P
    parameters: np.ndarray
    losses: np.ndarray
    weights: np.ndarray
    rss: float  # weighted residual sum of squares of the loss itself
    status: Status

    @property
    def a(self) -> float:
        """Amplitude of a power form, `a P**-alpha`, with P a plain count (inf where that overflows)."""
        with np.errstate(over="ignore"):
            return float(self.coefficients[0] * np.exp(self.alpha * np.log(self.parameters.min())))

    @property
    def c(self) -> float:
        """Floor of the form that has one."""
        return float(self.coefficients[1])

    def predict(self, parameters: np.ndarray) -> np.ndarray:
        """Expected loss at these parameter counts (any shape)."""
        d = np.log(np.asarray(parameters, float) / self.parameters.min())
        return sum(k * column for k, column in zip(self.coefficients, FORMS[self.form](d, self.alpha), strict=True))


def means_law(data: Ladder, form: str = "power + floor") -> Law:
    """Weighted least squares over the size means: the headline fit, the centre of the headline interval."""
    return power_law(data.parameters, data.means, data.weights, form, data.known_variance)


def power_law(
    parameters: np.ndarray, losses: np.ndarray, weights: np.ndarray | None = None, form: str = "power + floor",
    variance: float = 0.0,
) -> Law:  # fmt: skip
    """Fit one law, to as many sizes as its form has parameters at least, at its global least-squares optimum.

    `parameters`, positive, and `losses`, (n,), are those of runs or of size means; `weights`, (n,), are inverse
    variances (`curve_fit` wants standard deviations instead), by default equal. The status heeds `variance`, see
    `Ladder.known_variance`; the fit does not.
    """
    P, L = np.asarray(parameters, float).ravel(), np.asarray(losses, float).ravel()
    w = np.ones_like(L) if weights is None else np.asarray(weights, float).ravel()
    sizes, index = np.unique(P, return_inverse=True)
    alpha, status = None, Status.OK
    if form.startswith("power"):
        d, weight = np.log(sizes / sizes[0]), np.bincount(index, w)
        means = np.bincount(index, w * L) / weight
        fits = fit_many(d, means, weight, floor=form == "power + floor")
        alpha, status = float(fits.alpha[0]), _status(form, fits, d, means, weight, variance)
    root = np.sqrt(w)
    design = np.stack(FORMS[form](np.log(P / P.min()), alpha), -1)
    # As statsmodels' WLS, whose import would cost every notebook of the study 0.35 s.
    coefficients = np.linalg.lstsq(design * root[:, None], L * root, rcond=None)[0]
    rss = float((w * (L - design @ coefficients) ** 2).sum())
    return Law(form, alpha, coefficients, P, L, w, rss, status)


def _status(form, fits, d, means, weights, variance):
    if fits.amplitude[0] * fits.alpha[0] <= 0:
        return Status.INCREASING
    if fits.edge[0]:
        return Status.ALPHA_AT_EDGE
    if form == "power":
        return Status.OK
    if len(d) < FEWEST_SIZES:
        return Status.TOO_FEW_SIZES
    identified = np.isfinite(profile(d, means, weights, len(d) - 3, variance=variance).interval()).all()
    return Status.OK if identified else Status.NO_FLOOR
