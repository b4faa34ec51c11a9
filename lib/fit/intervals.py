"""Intervals for alpha, for the floor and for predictions: by profile likelihood, and by four bootstraps.

What a resampling can see is what it resamples. Seeds of one size share what that size has in common (one learning rate
suits some sizes better), so an interval that resamples or counts runs is too narrow as soon as sizes differ by more
than seeds do. The profile over size means allows for it: it is the headline. `lib.fit.coverage` measures them all.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from lib.fit.projection import CHUNK_NUMBERS, Fits, Projection, alpha_grid, fit_many, project, roots

BOOTSTRAPS = {
    "bootstrap_runs": "runs",
    "bootstrap_within_sizes": "seeds",
    "bootstrap_sizes": "sizes",
    "two_stage": "both",
}
"""method -> what is drawn again, see `resample`"""

HEADLINE = "profile_size_means"
PATH_POINTS = 201
FEWEST_SIZES = 4
"""Three sizes determine three parameters exactly: an interval needs one more."""


class Profile(NamedTuple):
    """The region of laws that the F test does not reject, walked along alpha; first axis points, last datasets."""

    fits: Fits
    limit: np.ndarray  # (datasets,) residual sum of squares at the rim of the region
    alpha: tuple  # (low, high), each (datasets,); -inf or inf where open
    path: np.ndarray  # (points, datasets) alphas across the region
    along: Projection  # at the path

    def interval(self, basis=0.0, noise=None):
        """Ends of the loss where exp(-alpha d) is `basis(alpha)`: by default of the floor.

        At each alpha the residual sum of squares is a parabola in that value, so the rim of the region is known in
        closed form and only alpha has to be walked. `noise`, 1 / weight of a new observation, turns the interval into
        one for that observation.
        """
        value, variance = self.along.value(basis(self.path) if callable(basis) else basis)
        if noise is not None:
            variance = variance + noise
        reach = np.sqrt(np.maximum(self.limit - self.along.rss, 0) * variance)
        low, high = value - reach, value + reach
        # As alpha tends to 0 the floor runs away to infinity: an extreme found at that end is an open end.
        runaway = np.isneginf(self.alpha[0]) & np.isscalar(basis)
        return (
            np.where(runaway & (low.argmin(0) == 0), -np.inf, low.min(0)),
            np.where(runaway & (high.argmax(0) == 0), np.inf, high.max(0)),
        )


def profile(d, y, w, df, within=0.0, level=0.95):
    """Profile-likelihood region of the law, batched.

    A law belongs to it when its residual sum of squares is at most (1 + F / df) times the smallest, F being the `level`
    quantile of F(1, df) (Bates & Watts 1988, section 6.1).

    Parameters
    ----------
    d : (sizes,)
    y, w : (datasets, sizes)
        One value per size and its weight.
    df : int
        Residual degrees of freedom: sizes - 3 over size means, runs - 3 over runs.
    within : float or (datasets,)
        Weighted sum of squares inside the sizes (zero over size means).
    """
    y, w = np.broadcast_arrays(np.atleast_2d(y).astype(float), np.atleast_2d(w).astype(float))
    fits = fit_many(d, y, w)
    limit = (fits.rss + within) * (1 + stats.f.ppf(level, 1, df) / df) - within
    y, w, grid = y.T, w.T, alpha_grid(d)
    inside = project(d, y[:, None], w[:, None], grid[:, None]).rss <= limit

    def excess(alpha, i):
        return project(d, y[:, i], w[:, i], alpha).rss - limit[i]

    low = np.minimum(np.where(inside, grid[:, None], np.inf).min(0), fits.alpha)
    high = np.maximum(np.where(inside, grid[:, None], -np.inf).max(0), fits.alpha)
    low = roots(excess, low, grid[np.maximum(np.searchsorted(grid, low) - 1, 0)])
    high = roots(excess, high, grid[np.minimum(np.searchsorted(grid, high, "right"), len(grid) - 1)])
    path = np.geomspace(np.nan_to_num(low, nan=grid[0]), np.nan_to_num(high, nan=grid[-1]), PATH_POINTS)
    along = project(d, y[:, None], w[:, None], path)
    ends = np.nan_to_num(low, nan=-np.inf), np.nan_to_num(high, nan=np.inf)
    return Profile(fits, limit, ends, path, along)


def resample(ladder, unit, size, rng):
    """Draw `size` resampled ladders: their size means and weights, each (size, sizes).

    Parameters
    ----------
    unit : {"runs", "seeds", "sizes", "both"}
        What is drawn with replacement: runs regardless of size, seeds within each size, whole sizes with all their
        seeds, or sizes and then seeds within them.
    """
    n, m = len(ladder.losses), len(ladder.d)
    if unit == "runs":
        counts = rng.multinomial(n, [1 / n] * n, size)
        weights = ladder.by_size(counts)
    else:
        times = np.ones((size, m), int) if unit == "seeds" else rng.multinomial(m, [1 / m] * m, size)
        weights = times * ladder.weights
        if unit == "sizes":
            return np.broadcast_to(ladder.means, weights.shape), weights
        counts = np.hstack([rng.multinomial(times[:, s] * k, [1 / k] * k) for s, k in enumerate(ladder.seeds)])
    return ladder.by_size(counts * ladder.losses) / np.maximum(ladder.by_size(counts), 1), weights


def leave_one_out(ladder, start, stop):
    """The ladder without each of the runs start..stop in turn: unweighted means and weights, (runs, sizes)."""
    taken = ladder.index[start:stop, None] == np.arange(len(ladder.d))
    counts = ladder.seeds - taken
    sums = ladder.seeds * ladder.means - taken * ladder.losses[start:stop, None]
    return sums / np.maximum(counts, 1), counts


def fit_draws(d, y, w):
    """(alpha, c) of resampled ladders, (2, draws); +-inf where alpha ran to an end of its grid.

    NaN where fewer than four distinct sizes were drawn: they do not determine a law with an error.
    """
    with np.errstate(all="ignore"):
        fits = fit_many(d, y, w)
    alpha = np.select([fits.edge < 0, fits.edge > 0], [-np.inf, np.inf], fits.alpha)
    runaway = np.where(fits.amplitude > 0, -np.inf, np.inf)
    found = np.stack([alpha, np.where(fits.edge < 0, runaway, fits.c)])
    return np.where((w > 0).sum(1) >= FEWEST_SIZES, found, np.nan)


def _in_chunks(ladder, total, draw):
    """Fit `draw(start, stop)` for all of `total` draws with bounded memory."""
    step = max(1, CHUNK_NUMBERS // (len(ladder.losses) + len(ladder.d)))
    chunks = [(i, min(i + step, total)) for i in range(0, total, step)]
    return np.concatenate([fit_draws(ladder.d, *draw(*chunk)) for chunk in chunks], axis=1)


def bootstrap(ladder, unit, resamples, rng):
    """(alpha, c) of `resamples` resampled ladders, (2, resamples); see `resample` and `fit_draws`."""
    return _in_chunks(ladder, resamples, lambda start, stop: resample(ladder, unit, stop - start, rng))


def percentile(draws, level=0.95):
    """Percentile interval over the last axis of draws: (2 ends, ...). Open where fewer than half of them have a law."""
    few = np.isnan(draws).mean(-1) > 0.5
    known = np.where(few[..., None], 0, draws)
    ends = np.nanquantile(known, [(1 - level) / 2, (1 + level) / 2], axis=-1, method="closest_observation")
    return np.stack([np.where(few, -np.inf, ends[0]), np.where(few, np.inf, ends[1])])


def bca(draws, left_out, point, level=0.95):
    """Bias-corrected and accelerated interval (Efron 1987) of one quantity.

    Parameters
    ----------
    draws, left_out : (resamples,), (runs,)
        Its values over a bootstrap of runs, and without each run in turn.
    point : float

    Returns
    -------
    (2,) ends
    """
    draws, tails = draws[~np.isnan(draws)], stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    if len(draws) == 0 or not np.isfinite(left_out).all():
        return np.array([-np.inf, np.inf])
    bias = stats.norm.ppf(((draws < point).sum() + 0.5) / (len(draws) + 1))
    pull = left_out.mean() - left_out
    acceleration = (pull**3).sum() / (6 * (pull**2).sum() ** 1.5 or 1)
    at = stats.norm.cdf(bias + (bias + tails) / (1 - acceleration * (bias + tails)))
    return np.quantile(draws, at, method="closest_observation")


def all_intervals(ladder, resamples, rng, level=0.95):
    """Every interval of a ladder with at least four sizes.

    Returns
    -------
    dict
        method -> {"alpha": (low, high), "c": (low, high)}, -inf or inf for an end that does not exist.
    """
    found = {}
    over = {
        HEADLINE: profile(ladder.d, ladder.means, ladder.weights, len(ladder.d) - 3, level=level),
        "profile_runs": profile(ladder.d, ladder.means, ladder.seeds, len(ladder.losses) - 3, ladder.within, level),
    }
    for method, region in over.items():
        found[method] = {"alpha": np.ravel(region.alpha), "c": np.ravel(region.interval())}
    for method, unit in BOOTSTRAPS.items():
        draws = bootstrap(ladder, unit, resamples, rng)
        found[method] = dict(zip(("alpha", "c"), percentile(draws, level).T, strict=True))
        if unit == "runs":
            left_out = _in_chunks(ladder, len(ladder.losses), lambda *runs: leave_one_out(ladder, *runs))
            point = fit_draws(ladder.d, ladder.means[None], ladder.seeds[None])[:, 0]
            corrected = [bca(*one, level) for one in zip(draws, left_out, point, strict=True)]
            found[method + "_bca"] = dict(zip(("alpha", "c"), corrected, strict=True))
    return found
