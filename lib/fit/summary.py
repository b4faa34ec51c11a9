"""The laws of a study as one JSON-ready dictionary, and the tables that are read from it."""

import json

import numpy as np
import pandas as pd
from pydantic_core import to_json
from scipy import stats

from lib.fit import capacity, intervals
from lib.fit.intervals import HEADLINE, METHODS, columns_of, curve, readable, readable_columns
from lib.fit.law import FEWEST_SIZES, LEVEL, PARAMETERS, SPEAKING, Ladder, Law, Status, ladder, means_law, power_law
from lib.fit.runs import levels, of_metric, sees_context, usable
from lib.io import InputError
from lib.study import SPLITS
from lib.train.baselines import gaussian_bits

METRICS = tuple(f"{split}_{unit}" for split in SPLITS[1:] for unit in ("nll", "mse"))
"""Losses that have laws where a regime's runs have them; its first is the headline: bits where counts are predicted."""

NOTHING = dict.fromkeys(("alpha", "a", "c", "rss", "r2")) | {
    "status": Status.TOO_FEW_SIZES, "comparison": {}, "lack_of_fit": None, "rollout": [], "intervals": {},
    "sizes": None, "known_variance": None, "budget": {}, "sensitivity": {},
}  # fmt: skip
"""Of an entry of laws.json, where too few sizes were trained."""


def fit_laws(
    table: pd.DataFrame, resamples: int, seed: int, metrics: tuple[str, ...] = METRICS, errors: str = "donors"
) -> dict:
    """{regime: {metric: law}}: power + floor, fitted to the metrics that the runs of a regime have, the headline first.

    It is weighted least squares over size means, the centre of the region behind the headline interval. A regime that
    cannot be fitted has status "too few sizes" and nulls.

    `table` has columns of runs.csv: `regime`, `size`, `parameters` and a metric at least; rows that are not `usable`
    are left out and counted. `resamples` and `seed` are those of every bootstrap. All sizes share the `errors` of the
    losses over held-out "donors" or "cells", and c has them.
    """
    present = [metric for metric in metrics if metric in table and len(usable(table, metric))]
    if not present:
        raise InputError(f"no run has status ok and a finite loss in any of {', '.join(metrics)}: train some first")
    if errors == "cells":
        table = table.drop(columns=[name for name in table if name.endswith("_donor_se")])
    laws = {}
    for regime, rows in table.groupby("regime", sort=False):
        fitted = [metric for metric in present if len(usable(rows, metric))] or present[:1]
        laws[str(regime)] = {metric: _law(rows, metric, resamples, seed, headline=fitted[0]) for metric in fitted}
    return laws


def _law(rows, metric, resamples, seed, headline):
    usable_rows = usable(rows, metric)
    good = usable_rows[sees_context(usable_rows)]
    counts = {"n_sizes": good["parameters"].nunique(), "n_runs": len(good), "n_left_out": len(rows) - len(good)}
    content = {"form": "power + floor", "level": LEVEL, **counts, **NOTHING}
    if content["n_sizes"] >= 3:
        content |= _fitted(ladder(good, metric), resamples, seed)
        content["budget"] = capacity.of_budgets(good, metric)
        if metric == headline:
            content["sensitivity"] = capacity.sensitivity(usable_rows, metric)
        if "limit" in content["budget"]:
            # Converged runs too would still gain a little; on simulated cells the intervals of one budget missed the
            # exact floor from above.
            content = capacity.widened(content, [content, content["budget"]["limit"]])
        content["status"] = capacity.judged(good, content["status"])
        if metric[-3:] != headline[-3:] and content["status"] == Status.OK:  # convergence is of the loss trained for
            content["status"] = Status.UNJUDGED
    # The types of JSON: NaN and infinity become null, arrays lists.
    content = json.loads(to_json(content, inf_nan_mode="null", fallback=lambda value: value.tolist()))
    columns = columns_of(content)
    return content | {"floor_bits": floor_bits(metric, columns["c"], [columns["c_low"], columns["c_high"]])}


def _fitted(data, resamples, seed):
    law = means_law(data)
    rss = ((data.losses - law.predict(data.parameters[data.index])) ** 2).sum()
    spread = ((data.losses - data.losses.mean()) ** 2).sum()
    ends = {}
    if len(data.d) >= FEWEST_SIZES:
        ends = intervals.all_intervals(data, resamples, np.random.default_rng(seed))
    return {
        "alpha": law.alpha, "a": law.a, "c": law.c, "rss": rss, "r2": 1 - rss / spread if spread else 0.0,
        "status": law.status, "comparison": compare_forms(data), "lack_of_fit": lack_of_fit(data),
        "rollout": rollout(data), "intervals": ends,
        "sizes": {"size": data.labels, "parameters": data.parameters, "mean": data.means, "seeds": data.seeds,
                  "weight": data.weights},
        "known_variance": data.known_variance,
    }  # fmt: skip


def floor_bits(metric: str, floor: float | None, interval: list[float | None]) -> dict:
    """Bits of a fitted floor: value, interval (carried over end by end; None is open) and kind of conversion."""
    if "nll" in metric:
        kind = "negative log-likelihood: an upper bound on H(count | visible genes)"
        return {"value": floor, "interval": interval, "kind": kind}
    kind = "Gaussian differential entropy, depends on the scale of the input"
    return {"value": gaussian_bits(floor), "interval": [gaussian_bits(end) for end in interval], "kind": kind}


def compare_forms(data: Ladder) -> dict[str, dict]:
    """{form: {aicc, loso_rmse, parameters}}, None where a number does not exist.

    AICc (Hurvich & Tsai 1989) takes runs as independent; the error in predicting the mean of a size left out does not.
    """
    n, table = len(data.losses), {}
    rounding = n * (np.finfo(float).eps * abs(data.losses).max()) ** 2
    for form, parameters in PARAMETERS.items():
        k, score = parameters + 1, None  # the error variance is a parameter too
        if len(data.d) >= parameters and n > k + 1:
            rss = max(runs_law(data, form).rss, rounding, np.finfo(float).tiny)
            score = float(n * np.log(rss / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))
        table[form] = {"aicc": score, "loso_rmse": loso_rmse(data, form), "parameters": parameters}
    return table


def runs_law(data: Ladder, form: str = "power + floor") -> Law:
    """Unweighted least squares over the runs."""
    return power_law(data.parameters[data.index], data.losses, form=form)


def loso_rmse(data: Ladder, form: str) -> float | None:
    """Root mean square error of predicting each size mean from the other sizes; None with too few of them."""
    if len(data.d) <= PARAMETERS[form]:
        return None
    predicted = [means_law(data.only(data.parameters != P), form).predict(P) for P in data.parameters]
    return float(np.sqrt(np.mean((predicted - data.means) ** 2)))


def lack_of_fit(data: Ladder) -> dict | None:
    """F test of the law against seed-to-seed (pure) error; None where there are no degrees of freedom for it."""
    m, n = len(data.d), len(data.losses)
    if m <= 3 or n <= m or data.within <= 0:
        return None
    F = (runs_law(data).rss - data.within) / (m - 3) / (data.within / (n - m))
    return {"F": float(F), "df": [m - 3, n - m], "p": float(stats.f.sf(F, m - 3, n - m))}


def rollout(data: Ladder) -> list[dict]:
    """Fit without the largest sizes, then predict the mean loss of each of them, with a prediction interval.

    Each row has held_out (labels), size, parameters, predicted, interval, observed (mean over seeds) and miss (observed
    minus predicted). Empty below five sizes.
    """
    m, rows = len(data.d), []
    for fewer in range(m - 1, FEWEST_SIZES - 1, -1):
        smaller = data.only(np.arange(m) < fewer)
        law, region = means_law(smaller), intervals.region_of(smaller)
        for size in range(fewer, m):
            ends = region.interval(lambda alpha, d=data.d[size]: np.exp(-alpha * d), noise=1 / data.weights[size])
            predicted, observed = law.predict(data.parameters[size]), data.means[size]
            rows.append({
                "held_out": data.labels[fewer:], "size": data.labels[size], "parameters": data.parameters[size],
                "predicted": predicted, "interval": np.ravel(ends), "observed": observed, "miss": observed - predicted,
            })  # fmt: skip
    return rows


def closeness(table: pd.DataFrame, laws: dict) -> tuple[str, pd.DataFrame] | None:
    """How close the sizes lie to a law: of the first regime whose law is ok, or else has a readable floor; or None.

    The regime, and of its sizes parameters, excess (mean loss minus c), fitted (of the law), se (known, of the mean).
    """
    able = {name: law for name, law in of_metric(laws).items() if law["intervals"] and law["status"] in SPEAKING}
    able = {name: law for name, law in able.items() if pd.notna(readable_columns(law)["c"])}
    if not able:
        return None
    regime = min(able, key=lambda name: SPEAKING.index(able[name]["status"]))
    rows, c = usable(table[table["regime"] == regime], metric := next(iter(laws[regime]))), able[regime]["c"]
    data = ladder(rows[sees_context(rows)], metric)
    fitted, se = means_law(data).predict(data.parameters) - c, np.sqrt(np.maximum(data.variance, data.known_variance))
    return regime, pd.DataFrame({"parameters": data.parameters, "excess": data.means - c, "fitted": fitted, "se": se})


def curves(laws: dict, metric: str | None = None) -> pd.DataFrame:
    """Laws that say something, of a metric or the headline, with pointwise bands: regime, parameters, loss, lo, hi."""
    parts = []
    for regime, law in of_metric(laws, metric).items():
        if law["status"] in SPEAKING:
            sizes = law["sizes"]
            fitted = power_law(sizes["parameters"], sizes["mean"], sizes["weight"])
            grid = np.geomspace(min(sizes["parameters"]) / 2, max(sizes["parameters"]) * 2, 120)
            parts.append(curve(fitted, grid, law["known_variance"]).assign(regime=regime))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["regime", "parameters", "loss", "lo", "hi"])


def intervals_table(laws: dict) -> pd.DataFrame:
    """Every interval of each regime's headline law that says something: regime, interval, alpha and c, with their ends.

    A row for each method by which one of them is `readable`, below the headline, which is the profile over size means,
    extended to the limit of the budget where there is one.
    """
    rows = []
    for regime, law in of_metric(laws).items():
        if law["intervals"] and law["status"] in SPEAKING:
            whole = law["budget"].get("whole", law)["intervals"]
            named = {METHODS[name]: ends for name, ends in (law["intervals"] | whole).items() if name in METHODS}
            for name, ends in ({"headline": law["intervals"][HEADLINE]} | named).items():
                read = readable_columns(law | {"intervals": {HEADLINE: ends}})
                rows.append({"regime": regime, "interval": name, **read})
    table = pd.DataFrame(rows, columns=None if rows else ["alpha", "c", "status"])
    return table.drop(columns="status").dropna(subset=["alpha", "c"], how="all")


def comparison_table(laws: dict) -> pd.DataFrame:
    """Every form against every regime: AICc above the best form's, leave-one-size-out error, number of parameters.

    Beside the law, p of its lack of fit: whether sizes scatter about it by more than their seeds. A form that misses by
    more than the largest loss ran away, as powers do when extrapolated, and has no error.
    """
    rows = [
        {"regime": regime, "form": form, **of, "largest": np.abs(law["sizes"]["mean"]).max(),
         "lack_of_fit": law["lack_of_fit"]["p"] if form == "power + floor" and law["lack_of_fit"] else None}
        for regime, law in of_metric(laws).items()
        for form, of in law["comparison"].items()
    ]  # fmt: skip
    columns = ["regime", "form", "aicc", "loso_rmse", "parameters", "largest", "lack_of_fit"]
    table = pd.DataFrame(rows, columns=columns).set_index(["regime", "form"]).astype(float)
    table["loso_rmse"] = table["loso_rmse"].mask(table["loso_rmse"] > table.pop("largest"))
    table.insert(0, "delta_aicc", table["aicc"] - table["aicc"].groupby("regime").transform("min"))
    return table


def rollout_table(laws: dict) -> pd.DataFrame:
    """What the smaller sizes predict for the largest ones, and what was seen there."""
    return pd.DataFrame([{"regime": name, **row} for name, law in of_metric(laws).items() for row in law["rollout"]])


def laws_table(laws: dict, baselines: dict) -> pd.DataFrame:
    """The answer of a study: the headline law of every regime. `baselines` is what `runs.baselines` gives.

    Columns: regime, metric; alpha and c with the ends of their headline intervals; limit, the floor in the limit of the
    budget with its ends; exact_floor of that loss; baseline, the least loss without a network; largest, the mean
    loss of the largest size; status, of `capacity.standing`. NaN where unknown, without end, or not `readable`.
    """
    rows = []
    for regime, by_metric in laws.items():
        metric, law = next(iter(by_metric.items()))
        untrained = levels(baselines, regime, metric)
        exact = untrained.pop("floor")
        rows.append({
            "regime": regime, "metric": metric, **columns_of(law), **_limit(law), "exact_floor": exact,
            "baseline": min((loss for loss in untrained.values() if loss is not None), default=None),
            "largest": law["sizes"] and law["sizes"]["mean"][-1], "status": law["status"],
        })  # fmt: skip
    table = pd.DataFrame(rows)
    table = readable(table.astype(dict.fromkeys(table.columns[2:-1], float)))
    return table.assign(status=[capacity.standing(law) for law in of_metric(laws).values()])


def _limit(law):
    """The floor in the limit of the budget, as columns; None where that law is not determined."""
    limit = law["budget"].get("limit")
    there = limit and limit["status"] == Status.OK and law["status"] != Status.OVERFITTED
    columns = columns_of(limit) if there else {}
    return {f"limit{end}": columns.get(f"c{end}") for end in ("", "_low", "_high")}


def bits_table(laws: dict) -> pd.DataFrame:
    """The `readable` floors of the squared error as Gaussian bits: regime, bits and its ends."""
    squared = of_metric(laws, "validation_mse")
    bits = {name: law["floor_bits"] for name, law in squared.items() if pd.notna(readable_columns(law)["c"])}
    rows = [(regime, of["value"], *of["interval"]) for regime, of in bits.items()]
    return pd.DataFrame(rows, columns=["regime", "bits", "bits_low", "bits_high"]).dropna(subset="bits")
