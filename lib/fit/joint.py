"""Laws of loss in parameters N and training cells D together, and what they say about the next run.

With N and D in units of their smallest values:

- additive: E + A N^-a + B D^-b (Hoffmann et al. 2022);
- interaction: additive plus G N^-a D^-b.

For fixed exponents both are linear, so the fit is again variable projection: a grid over the exponents, then
Levenberg-Marquardt on the projected residual, batched over bootstrap draws.

At the crossover a little more N and a little more D save the same: below it (in N) capacity limits, above it data. For
an additive law that is a A N^-a = b B D^-b, which is also the optimal split of a FLOP budget proportional to N D
(Hoffmann et al. 2022); here it is computed numerically, for every joint law.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lib.fit.law import Status, aicc
from lib.io import InputError

EXPONENTS = np.geomspace(0.05, 30, 24)  # a and b, times the span of log N and log D
FORMS = ("additive", "interaction")
FACTORS = (2, 10)
"""Times the parameters or the cells of a run for which a plan says what they save."""
REACH = 10.0
"""Furthest extrapolation, as a factor beyond the fitted range of N and of D."""
STEP = 0.01  # half-width, in log N or log D, of the numerical derivatives


@dataclass(frozen=True, eq=False)
class Joint:
    """A fitted joint law; `draws` is the same law fitted to redrawn tables: theta and linear gain a leading axis."""

    form: str
    theta: np.ndarray  # a, b
    linear: np.ndarray  # E, A, B[, G]
    cells: pd.DataFrame  # what it was fitted to, of `grid_means`
    unit: tuple[float, float]  # smallest N, smallest D
    rss: float
    draws: "Joint | None" = None
    status: Status = Status.OK

    def predict(self, parameters: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Expected loss; arguments broadcast with each other (and with the draws, if these are draws)."""
        N, D = np.broadcast_arrays(*(np.asarray(x, float) for x in (parameters, cells)))
        return (_columns(self.form, self.theta, N, D, *self.unit) * self.linear).sum(-1)


def _columns(form, theta, N, D, N0, D0):
    """Linear columns of a form, (..., k); theta (..., t) broadcasts against N."""
    a, b = theta[..., 0], theta[..., 1]
    f, g = np.exp(-a * np.log(N / N0)), np.exp(-b * np.log(D / D0))
    columns = [np.ones_like(f * g), f + 0 * g, g + 0 * f] + ([f * g] if form == "interaction" else [])
    return np.stack(columns, -1)


def joint_law(table: pd.DataFrame, form: str = "additive", resamples: int = 400, seed: int = 0) -> Joint:
    """Fit a joint law to a grid of sizes x training cells.

    Parameters
    ----------
    table : DataFrame
        Columns parameters, cells_train, loss. Runs of one (parameters, cells_train) are averaged: what is drawn and
        weighed is a cell of the grid, not a seed.
    form : {"additive", "interaction"}
    resamples : int
        Draws, see `_redraw`.

    Raises
    ------
    InputError
        For fewer than three distinct N or D, or no degree of freedom left.
    """
    cells = grid_means(table, form)
    theta, linear, rss = _fit(form, cells, cells["loss"].to_numpy()[None])
    unit = cells["parameters"].min(), cells["cells_train"].min()
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
    fitted = law.predict(cells["parameters"], cells["cells_train"])
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


def grid_means(table: pd.DataFrame, form: str) -> pd.DataFrame:
    """Mean loss of each (parameters, cells_train), checked: the cells of the grid."""
    cells = table.groupby(["parameters", "cells_train"], as_index=False)[["loss"]].mean().astype(float)
    for column, what in (("parameters", "model sizes"), ("cells_train", "numbers of training cells")):
        if cells[column].nunique() < 3:
            raise InputError(f"a joint law needs three {what} at least, and the table has {cells[column].nunique()}")
    needed = 6 + (form == "interaction")
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
    return Status.OK


def _fit(form, cells, losses):
    """Least squares of `losses` (draws, n): theta (draws, 2), linear (draws, k), rss (draws,)."""
    N, D = (cells[c].to_numpy(float) for c in ("parameters", "cells_train"))
    axes = [EXPONENTS / np.log(N.max() / N.min()), EXPONENTS / np.log(D.max() / D.min())]
    starts = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)

    def residual(log_theta, y):
        X = _columns(form, np.exp(log_theta)[:, None], N, D, N.min(), D.min())
        Q, _ = np.linalg.qr(X)
        return y - (Q @ (np.swapaxes(Q, -1, -2) @ y[..., None]))[..., 0]

    Q, _ = np.linalg.qr(_columns(form, starts[:, None], N, D, N.min(), D.min()))
    explained = sum((losses @ Q[:, :, k].T) ** 2 for k in range(Q.shape[-1]))
    bounds = np.log([[axis[0], axis[-1]] for axis in axes])
    theta = np.exp(_descend(residual, np.log(starts[explained.argmax(1)]), losses, bounds))
    X = _columns(form, theta[:, None], N, D, N.min(), D.min())
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


def best_joint_law(table: pd.DataFrame) -> Joint:
    """The law of least AICc over the cells of the grid, without draws; for `table` and errors see `joint_law`."""
    laws = [joint_law(table, form, resamples=0) for form in FORMS]  # without AICc (NaN) the first, additive one
    return min(laws, key=lambda law: aicc(law.rss, len(law.cells), len(law.theta) + len(law.linear)))


# ---------------------------------------------------------------- the next run: more parameters, or more cells?


def _over_draws(law, level, quantity):
    """A quantity of a law that was fitted with draws, and the ends of its interval over them."""
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(quantity(law.draws), tails, method="closest_observation")
    return float(quantity(law)), float(low), float(high)


def _elasticity(law, N, D):
    """Loss saved per unit of log N less loss saved per unit of log D: positive where capacity limits."""
    up, down = np.exp(STEP), np.exp(-STEP)
    by_N = law.predict(N * down, D) - law.predict(N * up, D)
    return (by_N - (law.predict(N, D * down) - law.predict(N, D * up))) / (2 * STEP)


def capacity_share(law: Joint, parameters: float, cells: float) -> float:
    """Share of the draws in which more parameters save more than as many times more training cells."""
    return float((_elasticity(law.draws, parameters, cells) > 0).mean())


def gains(law: Joint, parameters: float, cells: float, level: float = 0.95) -> pd.DataFrame:
    """What more of either saves a run: of (parameters or cells), factor, gain, low, high; NaN beyond `REACH`."""
    rows = []
    for of, column, value in (("parameters", "parameters", parameters), ("cells", "cells_train", cells)):
        for factor in FACTORS:
            more = (factor * parameters, cells) if of == "parameters" else (parameters, factor * cells)
            saved = _over_draws(law, level, lambda x, more=more: x.predict(parameters, cells) - x.predict(*more))
            within = factor * value <= REACH * law.cells[column].max()
            rows.append((of, factor, *(saved if within else [np.nan] * 3)))
    return pd.DataFrame(rows, columns=["of", "factor", "gain", "low", "high"])


def frontier(law: Joint, cells: np.ndarray, rounds: int = 50) -> np.ndarray:
    """Parameters at which capacity and data limit equally, at each number of training cells; +-inf out of reach.

    By bisection in log N: capacity limits small N and data limits large N, so their difference falls through zero once.
    """
    D, (least, most) = np.asarray(cells, float), law.cells["parameters"].agg(["min", "max"])
    low, high = np.full_like(D, least / REACH), np.full_like(D, most * REACH)
    at_low, at_high = (_elasticity(law, N, D) for N in (low, high))
    bottom, top = np.log(low), np.log(high)
    for _ in range(rounds):
        middle = (bottom + top) / 2
        capacity = _elasticity(law, np.exp(middle), D) > 0
        bottom, top = np.where(capacity, middle, bottom), np.where(capacity, top, middle)
    return np.select([at_low <= 0, at_high >= 0], [-np.inf, np.inf], np.exp(middle))


def outlook(law: Joint, level: float = 0.95) -> tuple[str, pd.DataFrame]:
    """What limits the largest run of a law with draws, in a sentence, and the `gains` of more."""
    cells = law.cells
    N, D = cells.loc[(cells["parameters"] * cells["cells_train"]).idxmax(), ["parameters", "cells_train"]]
    sentence = (
        f"The largest run has {N:,.0f} parameters and {D:,.0f} training cells; in {capacity_share(law, N, D):.0%} of "
        f"the draws capacity limits it (status of the joint law: {law.status})."
    )
    return sentence, gains(law, N, D, level)
