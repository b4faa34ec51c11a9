"""Intervals for alpha, for the floor and for predictions: by profile likelihood, and by four bootstraps.

What a resampling can see is what it resamples. Seeds of one size share what that size has in common (one learning rate
suits some sizes better), so an interval that resamples or counts runs is too narrow as soon as sizes differ by more
than seeds do. The profile over size means allows for it: it is the headline.
`benchmarks/interval_coverage.py` measures how often each interval holds the truth, in data/coverage.csv.
"""

import numpy as np
import pandas as pd
from scipy import stats

from lib.fit.law import FEWEST_SIZES, LEVEL, MOVING, Ladder, Law, Profile, Status, fit_many, means_law, profile

HEADLINE = "profile_size_means"
METHODS = {
    HEADLINE: "profile, size means",
    "profile_runs": "profile, runs",
    "bootstrap_runs": "bootstrap, runs",
    "bootstrap_within_sizes": "bootstrap, within sizes",
    "bootstrap_sizes": "bootstrap, sizes",
    "two_stage": "bootstrap, sizes then seeds",
}
"""What tables and figures call the intervals in laws.json."""
BOOTSTRAPS = list(METHODS)[2:]


def resample(ladder: Ladder, method: str, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw `size` resampled ladders: their size means and weights, each (size, sizes).

    What is drawn with replacement is, by the `method` of `BOOTSTRAPS`: runs regardless of size, seeds within each size,
    whole sizes with all their seeds, or sizes and then seeds within them.
    """
    n, m = len(ladder.losses), len(ladder.d)
    if method == "bootstrap_runs":
        counts = rng.multinomial(n, [1 / n] * n, size)
        weights = ladder.by_size(counts)
    else:
        within = method == "bootstrap_within_sizes"
        times = np.ones((size, m), int) if within else rng.multinomial(m, [1 / m] * m, size)
        weights = times * ladder.weights
        if method == "bootstrap_sizes":
            return np.broadcast_to(ladder.means, weights.shape), weights
        counts = np.hstack([rng.multinomial(times[:, s] * k, [1 / k] * k) for s, k in enumerate(ladder.seeds)])
    return ladder.by_size(counts * ladder.losses) / np.maximum(ladder.by_size(counts), 1), weights


def fit_draws(d: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """(alpha, c) of resampled ladders, (2, draws); +-inf where alpha ran to an end of its grid.

    NaN where fewer than four distinct sizes were drawn: they do not determine a law with an error.
    """
    with np.errstate(all="ignore"):
        fits = fit_many(d, y, w)
    alpha = np.select([fits.edge < 0, fits.edge > 0], [-np.inf, np.inf], fits.alpha)
    runaway = np.where(fits.amplitude > 0, -np.inf, np.inf)
    draws = np.stack([alpha, np.where(fits.edge < 0, runaway, fits.c)])
    return np.where((w > 0).sum(1) >= FEWEST_SIZES, draws, np.nan)


def percentile(draws: np.ndarray) -> np.ndarray:
    """Percentile interval over the last axis of draws: (2 ends, ...). Open where fewer than half of them have a law."""
    few = np.isnan(draws).mean(-1) > 0.5
    some = np.where(few[..., None], 0, draws)
    ends = np.nanquantile(some, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=-1, method="closest_observation")
    return np.stack([np.where(few, -np.inf, ends[0]), np.where(few, np.inf, ends[1])])


def all_intervals(ladder: Ladder, resamples: int, rng: np.random.Generator) -> dict:
    """Every interval of a ladder with at least four sizes: {method: {"alpha" or "c": (low, high)}}, inf where open."""
    intervals = {HEADLINE: headline(ladder)}
    region = profile(ladder.d, ladder.means, ladder.seeds, len(ladder.losses) - 3, ladder.within)
    intervals["profile_runs"] = {"alpha": np.ravel(region.alpha), "c": np.ravel(region.interval())}
    for method in BOOTSTRAPS:
        draws = fit_draws(ladder.d, *resample(ladder, method, resamples, rng))
        intervals[method] = dict(zip(("alpha", "c"), percentile(draws).T, strict=True))
    return intervals


def region_of(ladder: Ladder) -> Profile:
    """The profile over size means behind the headline interval; its variance is at least what is known of the means."""
    df = len(ladder.d) - 3
    return profile(ladder.d, ladder.means, ladder.weights, df, variance=ladder.known_variance)


def headline(ladder: Ladder) -> dict[str, list[float]]:
    """Headline interval of alpha and c: by the profile, for c with the error over held-out cells."""
    region = region_of(ladder)
    c = with_cells(region.fits.c[0], *np.ravel(region.interval()), ladder)
    return {"alpha": np.ravel(region.alpha).tolist(), "c": c}


def with_cells(point: float, low: float, high: float, ladder: Ladder) -> list[float]:
    """An interval of a floor with the error over held-out cells added in quadrature.

    All sizes are measured on the same cells, so that error moves every loss, and the floor with them.
    """
    reach = stats.t.ppf((1 + LEVEL) / 2, ladder.df) * ladder.error
    return [float(point - np.hypot(point - low, reach)), float(point + np.hypot(high - point, reach))]


def brief(ladder: Ladder) -> dict:
    """alpha, c, status and headline interval of a ladder, as an entry of laws.json has them."""
    law = means_law(ladder)
    intervals = {HEADLINE: headline(ladder)} if len(ladder.d) >= FEWEST_SIZES else {}
    return {"alpha": law.alpha, "c": law.c, "status": law.status, "intervals": intervals}


def columns_of(law: dict) -> dict:
    """alpha and c of an entry of laws.json, each with the ends of its headline interval; None where there is none."""
    columns = {}
    for name in ("alpha", "c"):
        low, high = law["intervals"].get(HEADLINE, {}).get(name, (None, None))
        columns |= {name: law[name], f"{name}_low": low, f"{name}_high": high}
    return columns


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of laws, with their status, without the numbers that cannot be read: NaN in their place.

    Left out is an exponent or floor without an end, or below zero in a law that is not ok; an exponent at an end of the
    grid that was searched; and both where the law is one of its training budget, of overfitted runs, or rises.
    """
    table = table.astype({f"{name}{end}": float for name in ("alpha", "c") for end in ("", "_low", "_high")})
    status = table["status"]
    for name in ("alpha", "c"):
        ends = [f"{name}_low", f"{name}_high"]
        unknown = table[ends].isna().all(axis=1) | (status != Status.OK) & (table[name] < 0)
        table[name] = table[name].mask(unknown)
        table[[name, *ends]] = table[[name, *ends]].mask(status.isin((*MOVING, Status.INCREASING)))
    table["alpha"] = table["alpha"].mask(status == Status.ALPHA_AT_EDGE)
    return table


def readable_columns(law: dict) -> pd.Series:
    """`columns_of` a law, or of {}, as far as they are `readable`, NaN otherwise."""
    law = {"alpha": None, "c": None, "intervals": {}, "status": None} | law
    return readable(pd.DataFrame([columns_of(law) | {"status": law["status"]}])).iloc[0]


def curve(law: Law, grid: np.ndarray, variance: float = 0.0) -> pd.DataFrame:
    """A law of size means with its pointwise band at counts `grid`: parameters, loss, lo, hi (NaN below four sizes).

    The band is the range of the loss over all laws in `region_of`; for `variance` see `Ladder.known_variance`.
    """
    sizes, low, high = law.parameters, np.nan, np.nan
    if len(sizes) >= FEWEST_SIZES:
        region = profile(np.log(sizes / sizes[0]), law.losses, law.weights, len(sizes) - 3, variance=variance)
        low, high = region.interval(lambda alpha: np.exp(-alpha * np.log(grid / sizes[0])))
    return pd.DataFrame({"parameters": grid, "loss": law.predict(grid), "lo": low, "hi": high})
