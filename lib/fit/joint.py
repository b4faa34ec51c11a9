"""Laws of loss in parameters N and training cells D together, and what they say about the next run.

With N and D in units of their smallest values:

- additive: E + A N^-a + B D^-b (Hoffmann et al. 2022);
- repeated data: the same with D replaced by D (1 + R (1 - exp(-r / R))), r = passes over the data - 1, so that a
  repeated cell is worth less at each pass (the data half of Muennighoff et al. 2023);
- interaction: additive plus G N^-a D^-b.

For fixed exponents each is linear, so the fit is again variable projection: a grid over the exponents, then
Levenberg-Marquardt on the projected residual, batched over bootstrap draws.

At the crossover a little more N and a little more D save the same: below it (in N) capacity limits, above it data. For
an additive law that is a A N^-a = b B D^-b, which is also the optimal split of a FLOP budget proportional to N D
(Hoffmann et al. 2022); here it is computed numerically, for every joint law.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lib.fit.law import Status, aicc
from lib.fit.runs import usable
from lib.io import InputError

EXPONENTS = np.geomspace(0.05, 30, 24)  # a and b, times the span of log N and log D
REUSE = np.geomspace(0.3, 300, 10)  # R: passes after which a repeated cell is worth 1 / e of a new one
FORMS = {"additive": 2, "repeated data": 3, "interaction": 2}
"""form -> number of parameters it is not linear in."""
FACTORS = (2, 10)
"""Times the parameters or the cells of a run for which a plan says what they save."""
REACH = 10.0
"""Furthest extrapolation, as a factor beyond the fitted range of N and of D."""
STEP = 0.01  # half-width, in log N or log D, of the numerical derivatives


@dataclass(frozen=True, eq=False)
class Joint:
    """A fitted joint law, with draws that carry its uncertainty.

    Attributes
    ----------
    theta, linear : (nonlinear,), (linear,)
        (a, b[, R]) and (E, A, B[, G]), N and D in units of the smallest of the table.
    cells : DataFrame
        The means it was fitted to: parameters, cells_train, cells_seen, loss.
    unit : (smallest N, smallest D, median of cells seen)
    rss : float
    draws : Joint or None
        The same law fitted to `resamples` redrawn tables; theta and linear gain a leading axis.
    """

    form: str
    theta: np.ndarray
    linear: np.ndarray
    cells: pd.DataFrame
    unit: tuple[float, float, float]
    rss: float
    draws: "Joint | None" = None
    status: Status = Status.OK

    def predict(self, parameters: np.ndarray, cells: np.ndarray, cells_seen: np.ndarray | None = None) -> np.ndarray:
        """Expected loss; arguments broadcast with each other (and with the draws, if these are draws)."""
        seen = self.unit[2] if cells_seen is None else cells_seen
        N, D, seen = np.broadcast_arrays(*(np.asarray(x, float) for x in (parameters, cells, seen)))
        return (_columns(self.form, self.theta, N, D, seen, *self.unit[:2]) * self.linear).sum(-1)


def _columns(form, theta, N, D, seen, N0, D0):
    """Linear columns of a form, (..., k); theta (..., t) broadcasts against N."""
    a, b = theta[..., 0], theta[..., 1]
    if form == "repeated data":
        R, used = theta[..., 2], np.minimum(D, seen)
        D = used * (1 + R * -np.expm1(-(seen / used - 1) / R))
    f, g = np.exp(-a * np.log(N / N0)), np.exp(-b * np.log(D / D0))
    columns = [np.ones_like(f * g), f + 0 * g, g + 0 * f] + ([f * g] if form == "interaction" else [])
    return np.stack(columns, -1)


def joint_law(table: pd.DataFrame, form: str = "additive", resamples: int = 400, seed: int = 0) -> Joint:
    """Fit a joint law to a grid of sizes x training cells.

    Parameters
    ----------
    table : DataFrame
        Columns parameters, cells_train, loss and, optionally, cells_seen (else every cell is seen once). Runs of one
        (parameters, cells_train) are averaged: what is drawn and weighed is a cell of the grid, not a seed.
    resamples : int
        Draws: tables redrawn as fitted values + errors (see `_redraw`), each fitted again.

    Raises
    ------
    InputError
        For missing columns, an unknown form, fewer than three distinct N or D, or no degree of freedom left.
    """
    cells = grid_means(table, form)
    theta, linear, rss = _fit(form, cells, cells["loss"].to_numpy()[None])
    unit = cells["parameters"].min(), cells["cells_train"].min(), cells["cells_seen"].median()
    law = Joint(form, theta[0], linear[0], cells, unit, float(rss[0]))
    law = replace(law, status=_status(law))
    if not resamples:
        return law
    theta, linear, _ = _fit(form, cells, _redraw(law, resamples, np.random.default_rng(seed)))
    return replace(law, draws=replace(law, theta=theta, linear=linear))


def _redraw(law, resamples, rng):
    """Tables (resamples, n): fitted values, errors of the cells, and errors that a whole size or a whole D shares.

    The residual sum of squares is split as in a two-way analysis of variance: the part between the L sizes has L - 3
    degrees of freedom, because the law spends three on it, and likewise for D. Each draw takes its variances from these
    parts as sums of squares over chi-squared variates (generalised intervals, Weerahandi 1993), so that few levels
    give wide intervals. Three levels leave nothing to see a shared error with: then none is assumed.
    """
    cells, n = law.cells, len(law.cells)
    fitted = law.predict(cells["parameters"], cells["cells_train"], cells["cells_seen"])
    residual = cells["loss"].to_numpy() - fitted
    shared = []
    for column in ("parameters", "cells_train"):
        _, index, count = np.unique(cells[column], return_inverse=True, return_counts=True)
        if len(count) > 3:
            shared.append((index, len(count), (np.bincount(index, residual) ** 2 / count).sum()))
    df = max(n - len(law.theta) - len(law.linear) - sum(levels - 3 for _, levels, _ in shared), 1)
    alone = max(law.rss - sum(part for *_, part in shared), 0) / rng.chisquare(df, (resamples, 1))
    drawn = fitted + np.sqrt(alone) * rng.standard_normal((resamples, n))
    for index, levels, part in shared:
        excess = np.maximum(part / rng.chisquare(levels - 3, (resamples, 1)) - alone, 0) * levels / n
        drawn += (np.sqrt(excess) * rng.standard_normal((resamples, levels)))[:, index]
    return drawn


def grid_means(table: pd.DataFrame, form: str = "additive") -> pd.DataFrame:
    """Mean loss of each (parameters, cells_train), checked: the cells of the grid."""
    if form not in FORMS:
        raise InputError(f"there is no joint law {form!r}: choose one of {', '.join(FORMS)}")
    for column in ("parameters", "cells_train", "loss"):
        if column not in table:
            raise InputError(f"the table for a joint law has no column {column!r}: rename what plays that part")
    table = table if "cells_seen" in table else table.assign(cells_seen=table["cells_train"])
    table = table[np.isfinite(table["loss"])]
    cells = table.groupby(["parameters", "cells_train"], as_index=False)[["cells_seen", "loss"]].mean().astype(float)
    for column, what in (("parameters", "model sizes"), ("cells_train", "numbers of training cells")):
        if cells[column].nunique() < 3:
            raise InputError(f"a joint law needs three {what} at least, and the table has {cells[column].nunique()}")
    needed = FORMS[form] + 3 + (form == "interaction") + 1
    if len(cells) < needed:
        raise InputError(f"{form!r} needs {needed} cells of the grid, and the table has {len(cells)}: train more")
    return cells


def _status(law):
    spans = np.log(law.cells[["parameters", "cells_train"]].max() / law.cells[["parameters", "cells_train"]].min())
    scaled = law.theta[:2] * spans.to_numpy()
    if (scaled <= EXPONENTS[0] * 1.001).any() or (scaled >= EXPONENTS[-1] * 0.999).any():
        return Status.EXPONENT_AT_EDGE
    if (law.linear[1:3] <= 0).any():
        return Status.INCREASING_JOINTLY
    if law.form == "repeated data" and not REUSE[0] * 1.001 < law.theta[2] < REUSE[-1] * 0.999:
        return Status.REUSE_AT_EDGE
    return Status.OK


def _fit(form, cells, losses):
    """Least squares of `losses` (draws, n): theta (draws, t), linear (draws, k), rss (draws,)."""
    N, D, seen = (cells[c].to_numpy(float) for c in ("parameters", "cells_train", "cells_seen"))
    axes = [EXPONENTS / np.log(N.max() / N.min()), EXPONENTS / np.log(D.max() / D.min()), REUSE][: FORMS[form]]
    starts = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))

    def residual(log_theta, y):
        X = _columns(form, np.exp(log_theta)[:, None], N, D, seen, N.min(), D.min())
        Q, _ = np.linalg.qr(X)
        return y - (Q @ (np.swapaxes(Q, -1, -2) @ y[..., None]))[..., 0]

    Q, _ = np.linalg.qr(_columns(form, starts[:, None], N, D, seen, N.min(), D.min()))
    explained = sum((losses @ Q[:, :, k].T) ** 2 for k in range(Q.shape[-1]))
    bounds = np.log([[axis[0], axis[-1]] for axis in axes])
    theta = np.exp(_descend(residual, np.log(starts[explained.argmax(1)]), losses, bounds))
    X = _columns(form, theta[:, None], N, D, seen, N.min(), D.min())
    linear = (np.linalg.pinv(X) @ losses[..., None])[..., 0]
    return theta, linear, ((losses - (X @ linear[..., None])[..., 0]) ** 2).sum(-1)


def _descend(residual, x, y, bounds, rounds=60, h=1e-5):
    """Batched Levenberg-Marquardt inside bounds, x (draws, t): a step is taken where it lowers the sum of squares."""
    damping = np.full(len(x), 1e-3)
    r = residual(x, y)
    for _ in range(rounds):
        J = np.stack([(residual(x + h * e, y) - residual(x - h * e, y)) / (2 * h) for e in np.eye(x.shape[1])], -1)
        A, g = np.swapaxes(J, -1, -2) @ J, (np.swapaxes(J, -1, -2) @ r[..., None])[..., 0]
        scale = np.einsum("bii->bi", A) + 1e-30
        step = np.linalg.solve(A + damping[:, None, None] * scale[..., None] * np.eye(x.shape[1]), g[..., None])[..., 0]
        tried = np.clip(x - np.clip(step, -1, 1), *bounds.T)
        r_tried = residual(tried, y)
        better = (r_tried**2).sum(-1) < (r**2).sum(-1)
        moved = better & (abs(tried - x).max(-1) > 1e-10)
        x, r = np.where(better[:, None], tried, x), np.where(better[:, None], r_tried, r)
        damping = np.clip(np.where(better, damping / 5, damping * 8), 1e-12, 1e8)
        if not moved.any() and (damping > 1).all():
            break
    return x


def best_form(table: pd.DataFrame) -> str:
    """The form of least AICc over the cells of the grid; for `table` and errors see `joint_law`."""
    laws = [joint_law(table, form, resamples=0) for form in FORMS]
    scores = [aicc(law.rss, len(law.cells), len(law.theta) + len(law.linear)) for law in laws]
    return pd.Series(scores, list(FORMS)).idxmin()


# ---------------------------------------------------------------- the next run: more parameters, or more cells?


@dataclass(frozen=True)
class Quantity:
    """A number with its interval; an end is infinite where draws have no answer in reach."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Plan:
    """What limits a run of N parameters and D training cells, what more of either saves, and where the two balance.

    Attributes
    ----------
    limited_by, capacity_share : str, float
        "capacity", "data" or "not resolved", and the share of draws in which capacity limits.
    gains : DataFrame
        of (parameters or cells), factor, and the loss saved: gain, low, high; NaN beyond `reach`.
    crossover : Quantity or None
        Parameters at which size and cells limit equally at this D; None beyond `reach`.
    reach : float
        Furthest extrapolation, as a factor beyond the fitted range of N and of D.
    """

    parameters: float
    cells: float
    limited_by: str
    capacity_share: float
    gains: pd.DataFrame
    crossover: Quantity | None
    reach: float
    level: float


def plan(law: Joint, parameters: float, cells: float, level: float = 0.95) -> Plan:
    """Ask a joint law, fitted with draws, about a run of so many parameters and training cells.

    Raises
    ------
    InputError
        When the law has no draws, or N or D is out of reach.
    """
    if law.draws is None:
        raise InputError("this joint law has no draws, so a plan could have no interval: fit it with resamples > 0")
    for name, value in (("parameters", parameters), ("cells", cells)):
        low, high = _range(law, name)
        if not low <= value <= high:
            fitted = f"{low * REACH:.3g} to {high / REACH:.3g}"
            raise InputError(f"{name} = {value:.3g} is more than {REACH:g} times outside the fitted range, {fitted}")
    share = float((_elasticity(law.draws, parameters, cells) > 0).mean())
    tail = (1 - level) / 2
    return Plan(
        parameters, cells,
        limited_by="capacity" if share > 1 - tail else "data" if share < tail else "not resolved",
        capacity_share=share,
        gains=_gains(law, parameters, cells, level),
        crossover=_crossover(law, cells, level),
        reach=REACH, level=level,
    )  # fmt: skip


def frontier(law: Joint, cells: np.ndarray, level: float = 0.95) -> pd.DataFrame:
    """The crossover at each number of training cells.

    Returns
    -------
    DataFrame
        cells, parameters, low, high, cells_per_parameter; NaN where out of reach.
    """
    rows = []
    for D in np.ravel(cells):
        point = _crossover(law, D, level) or Quantity(np.nan, np.nan, np.nan)
        row = {"cells": D, "parameters": point.value, "low": point.low, "high": point.high}
        rows.append(row | {"cells_per_parameter": D / point.value})
    return pd.DataFrame(rows).replace([-np.inf, np.inf], np.nan)


def _range(law, name):
    column = law.cells["parameters" if name == "parameters" else "cells_train"]
    return column.min() / REACH, column.max() * REACH


def _over_draws(law, level, quantity):
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(quantity(law.draws), tails, method="closest_observation")
    return Quantity(float(quantity(law)), float(low), float(high))


def _elasticity(law, N, D):
    """Loss saved per unit of log N less loss saved per unit of log D: positive where capacity limits."""
    up, down = np.exp(STEP), np.exp(-STEP)
    by_N = law.predict(N * down, D) - law.predict(N * up, D)
    return (by_N - (law.predict(N, D * down) - law.predict(N, D * up))) / (2 * STEP)


def _gains(law, N, D, level):
    rows = []
    for of, value in (("parameters", N), ("cells", D)):
        for factor in FACTORS:
            row = {"of": of, "factor": factor, "gain": np.nan, "low": np.nan, "high": np.nan}
            if factor * value <= _range(law, of)[1]:
                more = (factor * N, D) if of == "parameters" else (N, factor * D)
                saved = _over_draws(law, level, lambda x, more=more: x.predict(N, D) - x.predict(*more))
                row |= {"gain": saved.value, "low": saved.low, "high": saved.high}
            rows.append(row)
    return pd.DataFrame(rows)


def _balance(law, D, low, high, rounds=50):
    """N at which the elasticities balance at D, by bisection in log N: per draw, +-inf out of range.

    Capacity limits small N and data limits large N, so the difference falls through zero once.
    """
    at_low, at_high = (_elasticity(law, N, D) for N in (low, high))
    bottom, top = np.full_like(at_low, np.log(low)), np.full_like(at_low, np.log(high))
    for _ in range(rounds):
        middle = (bottom + top) / 2
        N = np.exp(middle)
        capacity = _elasticity(law, N, D) > 0
        bottom, top = np.where(capacity, middle, bottom), np.where(capacity, top, middle)
    return np.select([at_low <= 0, at_high >= 0], [-np.inf, np.inf], np.exp(middle))


def _crossover(law, D, level):
    """Parameters at which size and cells limit equally at D cells; None out of reach."""
    low, high = _range(law, "parameters")
    point = _over_draws(law, level, lambda x: _balance(x, D, low, high))
    return point if np.isfinite(point.value) else None


@dataclass(frozen=True, eq=False)
class Outlook:
    """The plan from a study's largest run, or in `sentence` why there is none."""

    sentence: str
    plan: Plan | None = None


def outlook(table: pd.DataFrame, seed: int = 0, level: float = 0.95, resamples: int = 400) -> Outlook:
    """Fit the additive joint law to the runs that share one number of genes, and plan from the largest of them.

    Parameters
    ----------
    table : DataFrame
        Columns of runs.csv. The joint law needs three sizes and three numbers of training cells on panels of equally
        many genes, everything else being the same; runs for bits or on cells of few donors are left out.
    """
    rows = usable(table, "validation_mse").rename(columns={"validation_mse": "loss"})
    if "objective" in rows:
        rows = rows[rows["objective"].isna() | (rows["objective"] == "mse")]
    if "donors" in rows:
        rows = rows[rows["donors"].isna()]
    cells = rows.groupby("genes")["cells_train"].nunique()
    if cells.empty or cells.max() < 3:
        return Outlook(
            "Capacity and data cannot be separated by these runs: that takes at least three numbers of training cells "
            f"on panels of equally many genes, all else being equal, and they have {0 if cells.empty else cells.max()}."
        )
    rows = rows[rows["genes"] == cells.idxmax()]
    try:
        law = joint_law(rows, resamples=resamples, seed=seed)
    except InputError as refusal:
        return Outlook(f"No joint law: {refusal}.")
    largest = law.cells.loc[law.cells["parameters"].mul(law.cells["cells_train"]).idxmax()]
    made = plan(law, float(largest["parameters"]), float(largest["cells_train"]), level)
    sentence = (
        f"The largest run has {made.parameters:,.0f} parameters and {made.cells:,.0f} training cells; in "
        f"{made.capacity_share:.0%} of the draws capacity limits it (status of the joint law: {law.status})."
    )
    return Outlook(sentence, made)
