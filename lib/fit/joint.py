"""Laws of loss in parameters N and training cells D together, and what they say about the next run.

The law is L = E + A N^-a + B D^-b (Hoffmann et al. 2022), with N and D in units of their smallest values. For fixed
exponents it is linear, so the fit is again variable projection: a grid over the exponents, then Levenberg-Marquardt on
the projected residual, batched over bootstrap draws.

At the crossover a little more N and a little more D save the same, a A N^-a = b B D^-b: below it (in N) capacity
limits, above it data. It is also the optimal split of a FLOP budget proportional to N D (Hoffmann et al. 2022).
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lib.fit.law import LEVEL, Status
from lib.io import InputError

EXPONENTS = np.geomspace(0.05, 30, 24)  # a and b, times the span of log N and log D
REACH = 10.0  # furthest extrapolation, as a factor beyond the fitted range of N and of D


@dataclass(frozen=True, eq=False)
class Joint:
    """A fitted joint law; `draws` is the same law fitted to redrawn tables: theta and linear gain a leading axis."""

    theta: np.ndarray  # a, b
    linear: np.ndarray  # E, A, B
    cells: pd.DataFrame  # parameters, cells_train, mean loss: what it was fitted to
    unit: tuple[float, float]  # smallest N, smallest D
    rss: float
    draws: "Joint | None" = None
    status: Status = Status.OK

    def predict(self, parameters: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Expected loss; arguments broadcast with each other (and with the draws, if these are draws)."""
        N, D = np.broadcast_arrays(*(np.asarray(x, float) for x in (parameters, cells)))
        return (_columns(self.theta, N, D, *self.unit) * self.linear).sum(-1)


def _columns(theta, N, D, N0, D0):
    """Linear columns of the law, (..., 3); theta (..., 2) broadcasts against N."""
    f, g = np.exp(-theta[..., 0] * np.log(N / N0)), np.exp(-theta[..., 1] * np.log(D / D0))
    return np.stack(np.broadcast_arrays(1.0, f, g), -1)


def joint_law(table: pd.DataFrame, resamples: int = 400, seed: int = 0) -> Joint:
    """Fit a joint law to a grid of sizes x training cells; InputError for fewer than three of either, or six cells.

    `table` has the columns parameters, cells_train and loss. Runs of one (parameters, cells_train) are averaged: what
    is drawn and weighed is a cell of the grid, not a seed. For the `resamples` see `_redraw`.
    """
    cells = table.groupby(["parameters", "cells_train"], as_index=False)[["loss"]].mean().astype(float)
    for column, what in (("parameters", "model sizes"), ("cells_train", "numbers of training cells")):
        if cells[column].nunique() < 3:
            raise InputError(f"a joint law needs three {what} at least, and the table has {cells[column].nunique()}")
    if len(cells) < 6:
        raise InputError(f"a joint law needs 6 cells of the grid, and the table has {len(cells)}: train more")
    theta, linear, rss = _fit(cells, cells["loss"].to_numpy()[None])
    unit = cells["parameters"].min(), cells["cells_train"].min()
    law = Joint(theta[0], linear[0], cells, unit, float(rss[0]))
    theta, linear, _ = _fit(cells, _redraw(law, resamples, np.random.default_rng(seed)))
    return replace(law, status=_status(law), draws=replace(law, theta=theta, linear=linear))


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
    df = max(n - 5 - sum(levels - 3 for _, levels, _ in shared), 1)  # E, A, B, a and b
    alone = max(law.rss - sum(part for *_, part in shared), 0) / rng.chisquare(df, (resamples, 1))
    drawn = fitted + np.sqrt(alone) * rng.standard_normal((resamples, n))
    for index, levels, part in shared:
        excess = np.maximum(part / rng.chisquare(levels - 3, (resamples, 1)) - alone, 0) * levels / n
        drawn += (np.sqrt(excess) * rng.standard_normal((resamples, levels)))[:, index]
    return drawn


def _status(law):
    scaled = law.theta * np.log(law.cells[["parameters", "cells_train"]].max() / law.unit).to_numpy()
    if (scaled <= EXPONENTS[0] * 1.001).any() or (scaled >= EXPONENTS[-1] * 0.999).any():
        return Status.EXPONENT_AT_EDGE
    return Status.INCREASING_JOINTLY if (law.linear[1:] <= 0).any() else Status.OK


def _fit(cells, losses):
    """Least squares of `losses` (draws, n): theta (draws, 2), linear (draws, k), rss (draws,)."""
    N, D = (cells[c].to_numpy(float) for c in ("parameters", "cells_train"))
    axes = [EXPONENTS / np.log(N.max() / N.min()), EXPONENTS / np.log(D.max() / D.min())]
    starts = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)

    def residual(log_theta, y):
        X = _columns(np.exp(log_theta)[:, None], N, D, N.min(), D.min())
        Q, _ = np.linalg.qr(X)
        return y - (Q @ (np.swapaxes(Q, -1, -2) @ y[..., None]))[..., 0]

    Q, _ = np.linalg.qr(_columns(starts[:, None], N, D, N.min(), D.min()))
    explained = sum((losses @ Q[:, :, k].T) ** 2 for k in range(Q.shape[-1]))
    bounds = np.log([[axis[0], axis[-1]] for axis in axes])
    theta = np.exp(_descend(residual, np.log(starts[explained.argmax(1)]), losses, bounds))
    X = _columns(theta[:, None], N, D, N.min(), D.min())
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


def capacity_share(law: Joint, parameters: float, cells: float) -> float:
    """Share of the draws in which more parameters save more than as many times more training cells."""
    (a, b), (_, A, B), (N, D) = law.draws.theta.T, law.draws.linear.T, law.unit
    return float((a * A * (parameters / N) ** -a > b * B * (cells / D) ** -b).mean())


def gains(law: Joint, parameters: float, cells: float) -> pd.DataFrame:
    """What more of either saves a run: of (parameters or cells), factor, gain and its ends; NaN beyond `REACH`."""
    rows, tails = [], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    most = REACH * law.cells[["parameters", "cells_train"]].max()
    for of, factor in itertools.product(("parameters", "cells"), (2, 10)):
        more = (factor * parameters, cells) if of == "parameters" else (parameters, factor * cells)
        saved, draws = (x.predict(parameters, cells) - x.predict(*more) for x in (law, law.draws))
        ends = saved, *np.quantile(draws, tails, method="closest_observation")
        rows.append((of, factor, *(ends if (more <= most).all() else [np.nan] * 3)))
    return pd.DataFrame(rows, columns=["of", "factor", "gain", "gain_low", "gain_high"])


def frontier(law: Joint, cells: np.ndarray) -> np.ndarray:
    """Parameters at which capacity and data limit equally, at each number of training cells; NaN out of reach."""
    (a, b), (_, A, B) = law.theta, np.maximum(law.linear, 0)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        ratio = a * A / (b * B * (np.asarray(cells, float) / law.unit[1]) ** -b)
        crossover = law.unit[0] * ratio ** (1 / a)
    least, most = law.cells["parameters"].agg(["min", "max"])
    return np.where((least / REACH <= crossover) & (crossover <= most * REACH), crossover, np.nan)


def outlook(law: Joint) -> tuple[str, pd.DataFrame | None]:
    """What limits the largest run of a law with draws, in a sentence, and the `gains` of more; None if undetermined."""
    cells = law.cells
    if law.status != Status.OK:
        return f"These runs do not determine a joint law ({law.status}), and what more would save them.", None
    N, D = cells.loc[(cells["parameters"] * cells["cells_train"]).idxmax(), ["parameters", "cells_train"]]
    sentence = (
        f"The largest run has {N:,.0f} parameters and {D:,.0f} training cells: of the two, at these budgets, "
        f"parameters limit it in {capacity_share(law, N, D):.0%} of the draws."
    )
    return sentence, gains(law, N, D)
