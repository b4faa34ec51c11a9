"""Everything about the laws of a study, as one JSON-ready dictionary."""

import numpy as np

from lib.data.split import SPLITS
from lib.fit import compare
from lib.fit.intervals import FEWEST_SIZES, HEADLINE, all_intervals, profile
from lib.fit.ladder import ladder, usable
from lib.fit.law import huber_law
from lib.fit.projection import alpha_grid, project
from lib.io import InputError
from lib.train import entropy

METRICS = tuple(f"{side}_{unit}" for side in SPLITS[1:] for unit in ("nll", "mse"))
"""Losses that have laws where a regime's runs have them; its first is the headline: bits where counts are predicted."""


def fit_laws(runs, resamples, seed, level=0.95, metrics=METRICS):
    """Fit power + floor to every regime and metric of a table of runs.

    The headline is weighted least squares over size means, so that the point is the centre of the region behind the
    headline interval. With equally many seeds per size it equals least squares over runs.

    Parameters
    ----------
    runs : DataFrame
        Columns of runs.csv; `regime`, `parameters` and one metric are needed. Rows whose status is not ok, whose
        loss is not finite or that copy another row exactly are left out and counted.
    resamples, seed : int
        Of every bootstrap. The order of the rows decides nothing.
    level : float
        Of every interval, between 0 and 1.

    Returns
    -------
    dict
        regime -> metric -> law, for the metrics that its runs have, the headline first. A regime that cannot be fitted
        has status "too few sizes" and nulls.
    """
    for column in ("regime", "parameters"):
        if column not in runs:
            raise InputError(f"the table of runs has no column {column!r}: give a table like runs.csv")
    present = [metric for metric in metrics if metric in runs and len(usable(runs, metric))]
    if not present:
        raise InputError(f"no run has status ok and a finite loss in any of {', '.join(metrics)}: train some first")
    laws = {}
    for regime, rows in runs.groupby("regime", sort=False):
        own = [metric for metric in present if len(usable(rows, metric))] or present[:1]
        laws[str(regime)] = {metric: _law(rows, metric, resamples, seed, level) for metric in own}
    return laws


def _law(rows, metric, resamples, seed, level):
    good = usable(rows, metric)
    counts = {"n_sizes": good["parameters"].nunique(), "n_runs": len(good), "n_left_out": len(rows) - len(good)}
    content = {"form": "power + floor", "level": level, **counts}
    if content["n_sizes"] < 3:
        return {**content, **_nothing(metric, content["n_sizes"])}
    data = ladder(good, metric)
    law, comparison = compare.means_law(data), compare.compare_forms(data)
    residual = data.losses - law.predict(data.parameters[data.index])
    spread = ((data.losses - data.losses.mean()) ** 2).sum()
    huber = huber_law(data.parameters[data.index], data.losses)
    content |= {
        "alpha": law.alpha, "a": law.a, "c": law.c, "rss": (residual**2).sum(),
        "r2": 1 - (residual**2).sum() / spread if spread else 0.0, "status": law.status,
        "comparison": comparison, "lack_of_fit": compare.lack_of_fit(data), "rollout": compare.rollout(data, level),
        "condition_number": compare.condition_number(law), "huber": huber and _abc(huber),
        "runs_fit": _abc(compare.runs_law(data)), "intervals": {}, "profile": None,
        "sizes": {"size": data.labels, "parameters": data.parameters, "mean": data.means, "seeds": data.seeds,
                  "weight": data.weights},
    }  # fmt: skip
    c_interval = [-np.inf, np.inf]
    if content["n_sizes"] >= FEWEST_SIZES:
        content["intervals"] = all_intervals(data, resamples, np.random.default_rng(seed), level)
        content["profile"] = profile_curve(data, level)
        c_interval = content["intervals"][HEADLINE]["c"]
    content["verdict"] = compare.verdict(law, comparison, c_interval, compare.scaling_p(data), level)
    content = plain(content)
    ends = content["intervals"].get(HEADLINE, {"c": [None, None]})["c"]
    return content | {"floor_bits": entropy.floor_bits(metric, content["c"], ends)}


def _abc(law):
    return {"alpha": law.alpha, "a": law.a, "c": law.c}


def _nothing(metric, sizes):
    empty = ("alpha", "a", "c", "rss", "r2", "lack_of_fit", "condition_number", "huber", "runs_fit", "sizes", "profile")
    return dict.fromkeys(empty) | {
        "status": "too few sizes", "intervals": {}, "comparison": {}, "rollout": [],
        "floor_bits": entropy.floor_bits(metric, None, [None, None]),
        "verdict": f"No law: {sizes} model size(s) with a finite loss; three are needed, four for an interval.",
    }  # fmt: skip


def plain(value):
    """The same content in JSON's own types; NaN and infinity become None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def profile_curve(data, level=0.95, points=121):
    """Residual sum of squares relative to its minimum: over the floor (alpha refitted at each) and over alpha.

    Returns
    -------
    dict
        c, relative_rss and alpha (its best value there), each (points,); alpha_grid and alpha_relative_rss for the
        other curve; threshold, the height at which the curves cross the ends of the headline interval.
    """
    df = len(data.d) - 3
    region = profile(data.d, data.means, data.weights, df, level=level)
    best = max(region.fits.rss[0], np.finfo(float).tiny)
    threshold = max(float(region.limit[0] / best), 1.0)
    low, high = (float(end[0]) for end in region.interval())
    c, spread = float(region.fits.c[0]), np.ptp(data.means)
    low, high = low if np.isfinite(low) else c - spread, high if np.isfinite(high) else c + spread
    floors = np.linspace(low - 0.5 * (high - low), high + 0.5 * (high - low), points)
    edges = alpha_grid(data.d)[[0, -1]]
    alphas = np.sort(np.append(np.geomspace(*edges, 1500), region.fits.alpha[0]))
    along = project(data.d, data.means[:, None], data.weights[:, None], alphas)
    value, variance = along.value(0.0)
    rss = along.rss[:, None] + (floors - value[:, None]) ** 2 / variance[:, None]
    near = (alphas > alphas[0]) & (along.rss < best * (1 + 2 * (threshold - 1)))
    return {
        "c": floors, "relative_rss": rss.min(0) / best, "alpha": alphas[rss.argmin(0)], "threshold": threshold,
        "alpha_grid": alphas[near], "alpha_relative_rss": along.rss[near] / best,
    }  # fmt: skip
