"""Is it a law of capacity, or of a training budget? The law of every budget, its limit, and what it hangs on.

Every run has the losses that an eighth, a quarter and half of its updates would have given (`lib.train.loop`). Where
half of them do as well, a law in P says what sizes can learn; else it says how far training got.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import optimize, stats
from scipy.special import expit, logit

from lib.fit.intervals import HEADLINE, brief, columns_of, readable, with_cells
from lib.fit.law import FEWEST_SIZES, LEVEL, MOVING, Ladder, Status, ladder
from lib.fit.runs import baseline_columns, levels, of_metric, sees_context, usable
from lib.model.sizes import BUDGETS

DECAYS = np.geomspace(0.05, 4, 120)  # exponents b that are tried, of a loss that falls as budget^-b
ROUNDING = 1e-6  # part of a loss below which it is not said to fall


def rising(rows: pd.DataFrame) -> pd.Series:
    """Whether the second half of its updates raised the loss that each run was trained for; False where not known."""
    rose = pd.Series(False, rows.index)
    for loss in ("validation_mse", "validation_nll"):  # bits, where they were trained for
        if (half := f"{loss}_half") in rows:
            rose = (rows[loss].astype(float) > rows[half].astype(float)).where(rows[half].notna(), rose)
    return rose


def judged(rows: pd.DataFrame, status: str) -> str:
    """The status of a law of these runs: of some size half or more rise, or else still fall; or nobody knows."""
    if "convergence" not in rows:
        return status
    known = rows[rows["convergence"].notna()]
    moving = known["convergence"] == "not converged"
    shares = pd.DataFrame({"all": moving, "up": moving & rising(known)}).groupby(known["parameters"]).mean()
    judges_all, shares = len(shares) == rows["parameters"].nunique(), shares[shares["all"] >= 0.5]
    if shares.empty:
        return Status.UNJUDGED if status == Status.OK and not judges_all else status
    return Status.OVERFITTED if (shares["up"] > shares["all"] / 2).any() else Status.BUDGET


def of_budgets(rows: pd.DataFrame, metric: str) -> dict[str, dict]:
    """The law of every budget of the usable runs of one regime, and the law that they tend to.

    `eighth`, `quarter`, `half` and `whole`: alpha, c, intervals, status, and `share` of the updates. `limit`: the law
    of every size's own limit. Empty without earlier budgets.
    """
    columns = {name: f"{metric}_{name}" for name in BUDGETS if f"{metric}_{name}" in rows}
    columns = {name: column for name, column in columns.items() if rows[column].notna().all()} | {"whole": metric}
    if len(columns) == 1:
        return {}
    laws, before = {}, np.nan
    for name, column in columns.items():  # what is known of a loss is how it moved since the budget before
        of = rows.assign(**{metric: rows[column], f"{metric}_half": before})
        laws[name] = {"share": 1 / BUDGETS.get(name, 1), **brief(ladder(of, metric))}
        before = rows[column]
    if len(columns) >= 3 and rows["parameters"].nunique() >= FEWEST_SIZES:
        losses = rows.groupby("parameters")[list(columns.values())].mean().to_numpy(float)
        shares = np.array([law["share"] for law in laws.values()])
        laws["limit"] = limit(ladder(rows, metric), losses, shares)
    return laws


def limit(data: Ladder, losses: np.ndarray, shares: np.ndarray) -> dict:
    """The law of the limits that each size's losses tend to, L(s) = limit + B s^-b, with one b for all sizes.

    For a given b a size is a straight line in s^-b, through its loss at the whole budget, whose B is not negative. The
    interval spans the laws at every b that the F test does not reject. Where the best b is an end of those tried, the
    budgets do not determine a limit.

    `data` has the sizes at the whole budget, `losses` are (sizes, budgets), and `shares` of the updates (budgets,)
    ascend to 1.
    """
    fall = losses[:, :-1] - losses[:, -1:]
    x = shares[:-1] ** -DECAYS[:, None] - 1  # (decays, earlier budgets)
    slopes = np.maximum(fall @ x.T / (x**2).sum(1), 0)  # (sizes, decays)
    scores = ((fall[:, None] - slopes[..., None] * x) ** 2).sum((0, 2))
    best, df = int(scores.argmin()), fall.size - len(fall) - 1
    region = np.flatnonzero(scores <= scores[best] * (1 + stats.f.ppf(LEVEL, 1, df) / df))
    some = np.unique([best, *np.linspace(region[0], region[-1], 8).round().astype(int)])
    variance = scores / df / (x**2).sum(1)
    laws = {i: brief(replace(data, means=losses[:, -1] - slopes[:, i], variance=data.variance + variance[i]))
            for i in some}  # fmt: skip
    if region[0] == 0 and slopes[:, 0].max() > ROUNDING * losses.max():  # may fall as much at every doubling: no limit
        laws[0]["intervals"][HEADLINE]["c"][0] = -np.inf
    law = widened(laws[best], laws.values()) | {"b": float(DECAYS[best])}
    return law | {"status": Status.EXPONENT_AT_EDGE} if best in (0, len(DECAYS) - 1) else law


def widened(law: dict, laws: Iterable[dict]) -> dict:
    """`law` with the headline interval from the lowest to the highest end of `laws`: no floor if that of c is open."""
    each = [of["intervals"][HEADLINE] for of in laws]
    ends = {name: [min(of[name][0] for of in each), max(of[name][1] for of in each)] for name in ("alpha", "c")}
    lost = law["status"] == Status.OK and not np.isfinite(ends["c"]).all()
    status = Status.NO_FLOOR if lost else law["status"]
    return law | {"intervals": law["intervals"] | {HEADLINE: ends}, "status": status}


def sensitivity(rows: pd.DataFrame, metric: str) -> dict[str, dict]:
    """The law under other choices: alpha, c, intervals and status of each.

    `rows` are the usable runs of one regime, those of sizes that see no context among them. Choices do not make a law
    of a budget one of capacity.
    """
    seeing = rows[sees_context(rows)]
    P = seeing["parameters"]
    variants = {"smallest size left out": seeing[P.min() < P], "largest size left out": seeing[P.max() > P]}
    if "parameters_without_embeddings" in seeing and seeing["parameters_without_embeddings"].notna().all():
        variants["parameters without embeddings"] = seeing.assign(parameters=seeing["parameters_without_embeddings"])
    if len(seeing) < len(rows):
        variants["with sizes that see no context"] = rows
    table = {name: brief(ladder(of, metric)) for name, of in variants.items() if of["parameters"].nunique() >= 3}
    data, column = ladder(seeing, metric), baseline_columns(metric)["gene_mean"]
    uninformed = float(rows[column].astype(float).mean()) if column in rows else np.nan
    if len(data.d) >= FEWEST_SIZES and uninformed > data.means.min():
        table["bounded by the gene mean"] = bounded(data, uninformed)
    return {name: {**law, "status": judged(seeing, law["status"])} for name, law in table.items()}


def bounded(data: Ladder, uninformed: float) -> dict:
    """L = E + (L0 - E) h / (1 + h), h = b P^-a: a law below the uninformed loss L0 at any size (arXiv 2605.09189).

    For a given E the loss is a logistic function of log P, fitted by least squares; the interval of E is where the best
    such fit is not rejected. E may lie above the smallest loss, as the floor of any law.
    """
    d, y, w = data.d, data.means, np.sqrt(data.weights)

    def fit(E):
        inner = np.clip((y - E) / (uninformed - E), 1e-3, 1 - 1e-3)
        start = np.polyfit(d, logit(inner), 1, w=w)
        return optimize.least_squares(lambda line: w * (y - E - (uninformed - E) * expit(np.polyval(line, d))), start)

    def rss(E):
        return 2 * fit(E).cost

    reducible = uninformed - y.min()
    floors = np.linspace(y.min() - 3 * reducible, y.min() + 0.5 * reducible, 40)
    scores = np.array([rss(E) for E in floors])
    least = int(scores[1:-1].argmin()) + 1
    found = optimize.minimize_scalar(rss, bounds=floors[[least - 1, least + 1]], method="bounded")
    df = len(d) - 3
    rim = found.fun + stats.f.ppf(LEVEL, 1, df) * max(found.fun / df, data.known_variance)
    above = floors > found.x
    outside = {"low": floors[~above & (scores > rim)], "high": floors[above & (scores > rim)]}
    low = optimize.brentq(lambda E: rss(E) - rim, outside["low"][-1], found.x) if len(outside["low"]) else -np.inf
    high = optimize.brentq(lambda E: rss(E) - rim, found.x, outside["high"][0]) if len(outside["high"]) else np.inf
    ends = {"alpha": [-np.inf, np.inf], "c": with_cells(found.x, low, high, data)}
    status = Status.OK if np.isfinite([low, high]).all() else Status.NO_FLOOR
    return {"alpha": -fit(found.x).x[0], "c": found.x, "status": status, "intervals": {HEADLINE: ends}}


@dataclass(frozen=True, eq=False)
class Budgets:
    """More updates: the loss of every size at every budget, and the floor of each budget's law."""

    regime: str
    metric: str
    runs: pd.DataFrame  # size, parameters (ascending), cells_seen, loss; flops, where they are known
    table: pd.DataFrame  # name, cells_seen, c, c_low, c_high, status: of every budget, and the limit
    exact: float | None  # floor

    @property
    def frontier(self) -> pd.DataFrame:
        """Mean losses, of every size at every budget, that no cheaper one reaches: size, cells_seen, flops, loss."""
        means = self.runs.groupby(["parameters", "size", "cells_seen"])[["flops", "loss"]].mean().reset_index()
        means = means.dropna(subset="flops").sort_values(["flops", "loss"])
        best = means["loss"].cummin()
        return means[means["loss"] < best.shift(fill_value=np.inf)].reset_index(drop=True)


def budgets(table: pd.DataFrame, laws: dict, baselines: dict) -> Budgets | None:
    """The budgets of the first regime that has several; `baselines` is what `runs.baselines` gives."""
    several = [regime for regime, law in of_metric(laws).items() if law["budget"]]
    if not several:
        return None
    regime = several[0]
    metric, law = next(iter(laws[regime].items()))
    runs = usable(table[table["regime"] == regime], metric)
    runs = runs[sees_context(runs)].astype({"cells_seen": float})
    if runs["cells_seen"].isna().any():
        return None
    rows, parts = [], []
    for name, of in law["budget"].items():
        seen = of.get("share", np.inf) * runs["cells_seen"]
        status = {"whole": law["status"], "limit": of["status"]}.get(name, Status.UNJUDGED)
        rows.append({"name": name, "cells_seen": seen.max(), **columns_of(of), "status": status})
        if "share" in of:
            losses = runs[metric if name == "whole" else f"{metric}_{name}"].astype(float)
            flops = seen * runs.get("training_flops_per_cell", pd.Series(np.nan, runs.index)).astype(float)
            parts.append(runs[["size", "parameters"]].assign(cells_seen=seen, loss=losses, flops=flops))
    runs = pd.concat(parts).sort_values("parameters")
    return Budgets(regime, metric, runs, pd.DataFrame(rows), levels(baselines, regime, metric)["floor"])


def sensitivity_table(laws: dict) -> pd.DataFrame:
    """What each regime's headline law hangs on: regime, choice, `readable` alpha and c with their ends, status."""
    rows = []
    for regime, law in of_metric(laws).items():
        able = "limit" in law["budget"] and law["status"] != Status.OVERFITTED
        limits = {"infinite training": law["budget"]["limit"]} if able else {}
        for choice, of in ({"headline": law} | law["sensitivity"] | limits).items():
            if choice == "headline" or of["status"] not in MOVING:
                rows.append({"regime": regime, "choice": choice, **columns_of(of), "status": of["status"]})
    several = [row for row in rows if row["choice"] != "headline"]
    return readable(pd.DataFrame(rows)) if several else pd.DataFrame()


def standing(law: dict) -> str:
    """The status of a headline law; where it is ok, also what of it cannot be cited, because an end size decides it.

    Without the smallest or the largest size the floor has to be identified still, and alpha to lie in its interval.
    """
    if law["status"] != Status.OK:
        return law["status"]
    without = [law["sensitivity"][f"{end} size left out"] for end in ("smallest", "largest")]
    if not all(of["status"] in (Status.OK, Status.TOO_FEW_SIZES) for of in without):  # of four sizes nobody knows
        return "ok, not citable"
    low, high = law["intervals"][HEADLINE]["alpha"]
    inside = None not in (low, high) and all(low <= of["alpha"] <= high for of in without)
    return "ok" if inside else "ok, alpha not citable"
