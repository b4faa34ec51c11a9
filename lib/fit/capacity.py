"""Is it a law of capacity, or of a training budget? The law of every budget, its limit, and what it hangs on.

Every run has the losses that an eighth, a quarter and half of its updates would have given (`lib.train.loop`). Where
half of them do as well, a law in P says what sizes can learn. Where they do not, it says how far training got.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import optimize, stats

from lib.fit.intervals import HEADLINE, brief, columns_of
from lib.fit.joint import joint_law
from lib.fit.law import FEWEST_SIZES, Status, ladder
from lib.fit.runs import UNITS, Ladder, sees_context, usable
from lib.model.sizes import BUDGETS

FLOORS = 80
"""Floors of the bounded form that are tried."""
DECAYS = np.geomspace(0.05, 4, 120)
"""Exponents b of a loss that falls as budget^-b that are tried."""


def budget_limited(rows: pd.DataFrame) -> bool:
    """Whether a law of these runs is one of their budget: most of them have not converged.

    What the others still move is part of what is known of their losses, and widens the interval (`lib.fit.law.ladder`).
    """
    if "convergence" not in rows or rows["convergence"].isna().all():
        return False
    return bool((rows["convergence"] == "not converged").mean() > 0.5)


def of_budgets(rows: pd.DataFrame, metric: str, level: float = 0.95) -> dict[str, dict]:
    """The law of every budget of the usable runs of one regime, and the law that they tend to.

    Returns
    -------
    dict
        `eighth`, `quarter`, `half` and `whole`: alpha, c, intervals, status, and `share` of the updates. `limit`: the
        law of every size's own limit, see `limits`; `joint`: E and a of L = E + A N^-a + B S^-b, S the budget, as c and
        alpha. Empty without earlier budgets.
    """
    columns = {
        name: f"{metric}_{name}"
        for name in BUDGETS
        if rows.get(f"{metric}_{name}", rows[metric] * np.nan).notna().all()
    }
    if not columns:
        return {}
    laws = {}
    for name, column in {**columns, "whole": metric}.items():
        laws[name] = {
            "share": 1 / BUDGETS.get(name, 1),
            **brief(ladder(rows.assign(**{metric: rows[column]}), metric), level),
        }
    if len(columns) >= 2 and rows["parameters"].nunique() >= FEWEST_SIZES:
        laws["limit"] = limit(rows, metric, columns, level)
        laws["joint"] = _joint(rows, metric, columns, level)
    return laws


def limits(rows: pd.DataFrame, metric: str, columns: dict[str, str], level: float = 0.95):
    """Every size's loss in the limit of the budget: L(s) = limit + B s^-b with one b for all sizes.

    For a given b each size is a straight line in s^-b, s the share of the updates, that passes through the loss of the
    whole budget; B is not negative.

    Returns
    -------
    parameters : (sizes,)
    at : callable(b) -> (sizes,), the limits for that b
    region : (n,) the exponents b that the F test does not reject, the best first
    variance : (sizes,) of the limits at the best b
    """
    means = rows.groupby("parameters")[[*columns.values(), metric]].mean()
    shares = np.array([1 / BUDGETS[name] for name in columns])
    fall = means[list(columns.values())].to_numpy(float) - means[[metric]].to_numpy(float)

    def slopes(b):
        x = shares**-b - 1
        return np.maximum(fall @ x / (x @ x), 0), x

    def rss(b):
        slope, x = slopes(b)
        return ((fall - slope[:, None] * x) ** 2).sum()

    scores = np.array([rss(b) for b in DECAYS])
    df = max(1, fall.size - len(fall) - 1)
    inside = DECAYS[scores <= scores.min() * (1 + stats.f.ppf(level, 1, df) / df)]
    best = DECAYS[scores.argmin()]
    _, x = slopes(best)
    variance = np.full(len(fall), scores.min() / df * (1 / (x @ x)))
    region = np.concatenate([[best], np.geomspace(inside[0], inside[-1], 7)])
    whole = means[metric].to_numpy(float)
    return means.index.to_numpy(float), lambda b: whole - slopes(b)[0], region, variance


def limit(rows: pd.DataFrame, metric: str, columns: dict[str, str], level: float = 0.95) -> dict:
    """The law of the sizes' limits; its intervals span those at every b that is not rejected."""
    data = ladder(rows, metric)
    _, at, region, variance = limits(rows, metric, columns, level)
    laws = [brief(replace(data, means=at(b), known=data.known + variance), level) for b in region]
    ends = {}
    for name in ("alpha", "c"):
        low, high = zip(*(law["intervals"][HEADLINE][name] for law in laws), strict=True)
        ends[name] = [min(low), max(high)]
    return {**laws[0], "b": float(region[0]), "losses": at(region[0]), "intervals": {HEADLINE: ends}}


def _joint(rows, metric, columns, level):
    """E and a of the joint law in parameters and budget, by `lib.fit.joint`."""
    every = {**{name: 1 / BUDGETS[name] for name in columns}, "whole": 1.0}
    parts = [
        pd.DataFrame({"parameters": rows["parameters"], "cells_train": share, "cells_seen": share,
                      "loss": rows[columns.get(name, metric)].astype(float)})
        for name, share in every.items()
    ]  # fmt: skip
    law = joint_law(pd.concat(parts), resamples=200)
    tails = [(1 - level) / 2, (1 + level) / 2]
    alpha, c = (np.quantile(x, tails).tolist() for x in (law.draws.theta[:, 0], law.draws.linear[:, 0]))
    return {
        "alpha": law.theta[0],
        "c": law.linear[0],
        "status": law.status,
        "intervals": {HEADLINE: {"alpha": alpha, "c": c}},
    }


# ---------------------------------------------------------------- what a law hangs on


def sensitivity(rows: pd.DataFrame, metric: str, level: float = 0.95) -> dict[str, dict]:
    """The law under other choices: alpha, c, intervals and status of each.

    `rows` are the usable runs of one regime, those of sizes that see no context among them.
    """
    seeing = rows[sees_context(rows)]
    P, variants = seeing["parameters"], {}
    variants["smallest size left out"] = seeing[P.min() < P]
    variants["largest size left out"] = seeing[P.max() > P]
    if "parameters_without_embeddings" in seeing and seeing["parameters_without_embeddings"].notna().all():
        variants["parameters without embeddings"] = seeing.assign(parameters=seeing["parameters_without_embeddings"])
    if len(seeing) < len(rows):
        variants["with sizes that see no context"] = rows
    table = {name: brief(ladder(of, metric), level) for name, of in variants.items() if of["parameters"].nunique() >= 3}
    data, column = ladder(seeing, metric), UNITS[metric.rsplit("_", 1)[1]]["gene_mean"]
    uninformed = float(rows[column].astype(float).mean()) if column in rows else np.nan
    if len(data.d) >= FEWEST_SIZES and uninformed > data.means.min():
        table["bounded by the gene mean"] = bounded(data, uninformed, level)
    return table


def bounded(data: Ladder, uninformed: float, level: float = 0.95) -> dict:
    """L = E + (L0 - E) h / (1 + h), h = b P^-a: a law below the uninformed loss L0 at any size (arXiv 2605.09189).

    For a given E it is a line in logarithms, log((L - E) / (L0 - L)) against log P, refined by least squares of the
    loss itself. The interval of E is where the best such fit is not rejected.
    """
    d, y, w = data.d, data.means, data.weights

    def best(E):
        inner = np.clip((y - E) / (uninformed - E), 1e-4, 1 - 1e-4)
        slope, start = np.polyfit(d, np.log(inner / (1 - inner)), 1, w=np.sqrt(w))
        fit = optimize.least_squares(
            lambda t: np.sqrt(w) * (y - E - (uninformed - E) / (1 + np.exp(-t[0] - t[1] * d))), [start, slope]
        )
        return 2 * fit.cost, fit.x

    span = uninformed - y.min()
    floors = np.linspace(y.min() - 3 * span, y.min() - 1e-4 * span, FLOORS)
    scores = np.array([best(E)[0] for E in floors])
    least = int(scores.argmin())
    found = optimize.minimize_scalar(
        lambda E: best(E)[0], bounds=(floors[max(least - 1, 0)], floors[min(least + 1, FLOORS - 1)]), method="bounded"
    )
    df = len(d) - 3
    rim = found.fun + stats.f.ppf(level, 1, df) * max(found.fun / df, (w * data.known).mean())
    inside = floors[scores <= rim]
    low, high = min(inside.min(initial=found.x), found.x), max(inside.max(initial=found.x), found.x)
    low = -np.inf if low == floors[0] else low
    identified = np.isfinite(low) and least < len(floors) - 1
    return {
        "alpha": float(-best(found.x)[1][1]),
        "c": float(found.x),
        "status": Status.OK if identified else Status.NO_FLOOR,
        "intervals": {HEADLINE: {"alpha": [-np.inf, np.inf], "c": [float(low), float(high)]}},
    }


# ---------------------------------------------------------------- tables


@dataclass(frozen=True, eq=False)
class Budgets:
    """More updates: the loss of every size at every budget, and the floor of each budget's law.

    Attributes
    ----------
    runs : DataFrame
        size, parameters, cells_seen, loss.
    table : DataFrame
        name, cells_seen, c, c_low, c_high, status: of every budget, and the limit.
    exact : float or None
        The exact floor.
    """

    regime: str
    metric: str
    runs: pd.DataFrame
    table: pd.DataFrame
    exact: float | None


def budgets(table: pd.DataFrame, laws: dict, floors: dict) -> Budgets | None:
    """The budgets of the first regime that has several; `floors` is {regime: exact floor or None}."""
    several = (regime for regime, by_metric in laws.items() if next(iter(by_metric.values()))["budget"])
    if (regime := next(several, None)) is None:
        return None
    metric, law = next(iter(laws[regime].items()))
    runs = usable(table[table["regime"] == regime], metric)
    runs = runs[sees_context(runs)]
    rows, parts = [], []
    for name, of in law["budget"].items():
        seen = of.get("share", np.inf) * runs["cells_seen"].max()
        rows.append({"name": name, "cells_seen": seen, **columns_of(of), "status": of["status"]})
        if "share" in of:
            losses = runs[metric if name == "whole" else f"{metric}_{name}"]
            parts.append(runs[["size", "parameters"]].assign(cells_seen=seen, loss=losses.astype(float)))
    return Budgets(regime, metric, pd.concat(parts), pd.DataFrame(rows), floors.get(regime))


def sensitivity_table(laws: dict) -> pd.DataFrame:
    """What each regime's headline law hangs on: regime, choice, alpha and c with their ends, status."""
    names = {"limit": "limit of the budget, size by size", "joint": "limit of the budget, joint law"}
    rows = []
    for regime, by_metric in laws.items():
        law = next(iter(by_metric.values()))
        limits = {text: law["budget"][name] for name, text in names.items() if name in law["budget"]}
        for choice, of in ({"headline": law} | law["sensitivity"] | limits).items():
            rows.append({"regime": regime, "choice": choice, **columns_of(of), "status": of["status"]})
    return pd.DataFrame(rows)
