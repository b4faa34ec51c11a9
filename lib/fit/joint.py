"""Laws of loss in parameters N and training cells D together.

With N and D in units of their smallest values:

- additive: E + A N^-a + B D^-b (Hoffmann et al. 2022);
- repeated data: the same with D replaced by D (1 + R (1 - exp(-r / R))), r = passes over the data - 1, so that a
  repeated cell is worth less at each pass (the data half of Muennighoff et al. 2023);
- interaction: additive plus G N^-a D^-b.

For fixed exponents each is linear, so the fit is again variable projection: a grid over the exponents, then
Levenberg-Marquardt on the projected residual, batched over bootstrap draws.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lib.io import InputError

EXPONENTS = np.geomspace(0.05, 30, 24)  # a and b, times the span of log N and log D
REUSE = np.geomspace(0.3, 300, 10)  # R: passes after which a repeated cell is worth 1 / e of a new one
FORMS = {"additive": 2, "repeated data": 3, "interaction": 2}
"""form -> number of parameters it is not linear in."""


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
    status : str
        "ok", or what stands against reading its parameters.
    """

    form: str
    theta: np.ndarray
    linear: np.ndarray
    cells: pd.DataFrame
    unit: tuple
    rss: float
    draws: "Joint | None" = None
    status: str = "ok"

    def predict(self, parameters, cells, cells_seen=None):
        """Expected loss; arguments broadcast with each other (and with the draws, if these are draws)."""
        seen = self.unit[2] if cells_seen is None else cells_seen
        N, D, seen = np.broadcast_arrays(*(np.asarray(x, float) for x in (parameters, cells, seen)))
        return (_columns(self.form, self.theta, N, D, seen, *self.unit[:2]) * self.linear).sum(-1)

    def __str__(self):
        names = {"additive": "E A B", "repeated data": "E A B", "interaction": "E A B G"}[self.form].split()
        values = [*zip(names, self.linear, strict=True), *zip(("a", "b", "R"), self.theta, strict=False)]
        numbers = ", ".join(f"{name} = {value:.4g}" for name, value in values)
        size = f"{len(self.cells)} cells of the grid, status: {self.status}"
        return f"{self.form}: {numbers} (N, D in units of the smallest)\n{size}"


def _columns(form, theta, N, D, seen, N0, D0):
    """Linear columns of a form, (..., k); theta (..., t) broadcasts against N."""
    a, b = theta[..., 0], theta[..., 1]
    if form == "repeated data":
        R, used = theta[..., 2], np.minimum(D, seen)
        D = used * (1 + R * -np.expm1(-(seen / used - 1) / R))
    f, g = np.exp(-a * np.log(N / N0)), np.exp(-b * np.log(D / D0))
    columns = [np.ones_like(f * g), f + 0 * g, g + 0 * f] + ([f * g] if form == "interaction" else [])
    return np.stack(columns, -1)


def joint_law(table, form="additive", resamples=400, seed=0):
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
    own = max(law.rss - sum(part for *_, part in shared), 0) / rng.chisquare(df, (resamples, 1))
    drawn = fitted + np.sqrt(own) * rng.standard_normal((resamples, n))
    for index, levels, part in shared:
        excess = np.maximum(part / rng.chisquare(levels - 3, (resamples, 1)) - own, 0) * levels / n
        drawn += (np.sqrt(excess) * rng.standard_normal((resamples, levels)))[:, index]
    return drawn


def grid_means(table, form="additive"):
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
        return "exponent at grid edge"
    if (law.linear[1:3] <= 0).any():
        return "increasing in N or D"
    if law.form == "repeated data" and not REUSE[0] * 1.001 < law.theta[2] < REUSE[-1] * 0.999:
        return "reuse at grid edge"
    return "ok"


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


def compare_joint(table, forms=tuple(FORMS)):
    """Each form fitted without the largest N, and without the largest D, then made to predict them.

    Returns
    -------
    DataFrame
        form, parameters, aicc (over cells of the grid), rmse_largest_N, rmse_largest_D, status; NaN where a form cannot
        be fitted to what is left.
    """
    rows = []
    for form in forms:
        law = joint_law(table, form, resamples=0)
        n, k = len(law.cells), len(law.theta) + len(law.linear) + 1
        aicc = n * np.log(law.rss / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else np.nan
        row = {"form": form, "parameters": k - 1, "aicc": aicc, "status": law.status}
        for name, column in (("N", "parameters"), ("D", "cells_train")):
            row[f"rmse_largest_{name}"] = _held_out(law.cells, form, column)
        rows.append(row)
    return pd.DataFrame(rows)


def _held_out(cells, form, column):
    held = cells[column] == cells[column].max()
    try:
        law = joint_law(cells[~held], form, resamples=0)
    except InputError:
        return np.nan
    rest = cells[held]
    missed = law.predict(rest["parameters"], rest["cells_train"], rest["cells_seen"]) - rest["loss"]
    return float(np.sqrt(np.mean(missed**2)))
