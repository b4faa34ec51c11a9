"""What a joint law says about the next run: more parameters, or more cells?

The turning point is where a little more N and a little more D buy the same: below it (in N) capacity limits, above it
data. For an additive law that is a A N^-a = b B D^-b, which is also the optimal split of a FLOP budget proportional to
N D (Hoffmann et al. 2022); here it is found numerically, so that every joint law can be asked.
"""

import numpy as np
import pandas as pd

from lib.fit.laws import plain
from lib.io import InputError

FACTORS = (2, 10)
STEP = 0.01  # half-width, in log N or log D, of the numerical derivatives


def plan(law, parameters, cells, flops=None, flops_per_cell_parameter=None, reach=10.0, level=0.95):
    """Capacity or data: what limits (N, D), what more of either buys, and where the two balance.

    Parameters
    ----------
    law : Joint
        Fitted with draws.
    parameters, cells : float
        N and D (training cells) of the run in question.
    flops, flops_per_cell_parameter : float, optional
        A training budget, and its cost C = k N D: k = 6 x genes x passes over each cell is the usual estimate.
    reach : float
        Furthest extrapolation, as a factor beyond the fitted range of N and of D.

    Returns
    -------
    dict
        JSON-ready: loss, limited_by ("capacity", "data" or "not resolved") and capacity_share (of draws), gains (a
        list: loss saved by 2x and 10x of either), turning_point (parameters and cells_per_parameter at this D), best
        (parameters and cells for the budget, and the loss). Each quantity is {"value", "interval"}, None for an end
        out of reach; what would extrapolate too far is {"refused": reason}.

    Raises
    ------
    InputError
        When the law has no draws, N or D is not positive or out of reach, or a budget comes without its cost.
    """
    _check(law, parameters, cells, flops, flops_per_cell_parameter, reach)
    more = [(of, factor) for of in ("parameters", "cells") for factor in FACTORS]
    return plain({
        "parameters": parameters, "cells": cells, "form": law.form, "status": law.status, "reach": reach,
        "level": level, "loss": _with_interval(lambda x: x.predict(parameters, cells), law, level),
        **_limit(law, parameters, cells, level),
        "gains": [_gain(law, parameters, cells, *one, reach, level) for one in more],
        "turning_point": _turning_point(law, cells, reach, level),
        "best": None if flops is None else _best(law, flops / flops_per_cell_parameter, reach, level),
    })  # fmt: skip


def frontier(law, cells, reach=10.0, level=0.95):
    """The turning point at each number of training cells, for drawing.

    Returns
    -------
    DataFrame
        cells, parameters, low, high, cells_per_parameter; NaN where out of reach.
    """
    rows = []
    for D in np.ravel(cells):
        _check(law, law.cells["parameters"].median(), D, None, None, reach)
        point = _turning_point(law, D, reach, level)
        value, (low, high) = point["parameters"].values() if "parameters" in point else (np.nan, (np.nan, np.nan))
        rows.append({"cells": D, "parameters": value, "low": low, "high": high, "cells_per_parameter": D / value})
    return pd.DataFrame(rows).replace([-np.inf, np.inf], np.nan)


def gains_table(plan):
    """The gains of a plan, one row each: of, factor, gain, low, high, refused."""
    rows = []
    for row in plan["gains"]:
        low, high = row.get("interval", (None, None))
        rows.append({"of": row["of"], "factor": row["factor"], "gain": row.get("value"), "low": low, "high": high})
        rows[-1]["refused"] = row.get("refused")
    return pd.DataFrame(rows).astype({"gain": float, "low": float, "high": float})


def _check(law, parameters, cells, flops, cost, reach):
    if law.draws is None:
        raise InputError("this joint law has no draws, so a plan could have no interval: fit it with resamples > 0")
    if flops is not None and cost is None:
        raise InputError("a FLOP budget needs flops_per_cell_parameter, its cost per training cell and parameter")
    for name, value in (("parameters", parameters), ("cells", cells)):
        low, high = _range(law, name, reach)
        if not low <= value <= high:
            raise InputError(
                f"{name} = {value:.3g} is more than {reach:g} times outside the fitted range "
                f"({low * reach:.3g} to {high / reach:.3g}): ask nearer to it, or raise reach knowingly"
            )


def _range(law, name, reach):
    column = law.cells["parameters" if name == "parameters" else "cells_train"]
    return column.min() / reach, column.max() * reach


def _with_interval(quantity, law, level):
    """{"value", "interval"} of a function of the law, over its draws; infinite where a draw has no answer in reach."""
    return {"value": float(quantity(law)), "interval": _ends(quantity(law.draws), level)}


def _ends(draws, level):
    return np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method="closest_observation")


def _elasticity(law, N, D):
    """Loss saved per unit of log N less loss saved per unit of log D: positive where capacity limits."""
    up, down = np.exp(STEP), np.exp(-STEP)
    by_N = law.predict(N * down, D) - law.predict(N * up, D)
    return (by_N - (law.predict(N, D * down) - law.predict(N, D * up))) / (2 * STEP)


def _limit(law, N, D, level):
    share = float((_elasticity(law.draws, N, D) > 0).mean())
    tail = (1 - level) / 2
    return {
        "limited_by": "capacity" if share > 1 - tail else "data" if share < tail else "not resolved",
        "capacity_share": share,
    }


def _gain(law, N, D, of, factor, reach, level):
    target = {"parameters": (factor * N, D), "cells": (N, factor * D)}[of]
    head = {"of": of, "factor": factor}
    if target[of == "cells"] > _range(law, of, reach)[1]:
        return head | {"refused": f"{factor} x {of} lies more than {reach:g} times beyond the fitted range"}
    return head | _with_interval(lambda x: x.predict(N, D) - x.predict(*target), law, level)


def _balance(law, cells_of, low, high, rounds=50):
    """N at which the elasticities balance along D = cells_of(N), by bisection in log N: per draw, +-inf out of range.

    Capacity limits small N and data limits large N, so the difference falls through zero once.
    """
    at_low, at_high = (_elasticity(law, N, cells_of(N)) for N in (low, high))
    bottom, top = np.full_like(at_low, np.log(low)), np.full_like(at_low, np.log(high))
    for _ in range(rounds):
        middle = (bottom + top) / 2
        N = np.exp(middle)
        capacity = _elasticity(law, N, cells_of(N)) > 0
        bottom, top = np.where(capacity, middle, bottom), np.where(capacity, top, middle)
    return np.select([at_low <= 0, at_high >= 0], [-np.inf, np.inf], np.exp(middle))


def _turning_point(law, D, reach, level):
    low, high = _range(law, "parameters", reach)
    point = _with_interval(lambda x: _balance(x, lambda N: D + 0 * N, low, high), law, level)
    if not np.isfinite(point["value"]):
        side = "above" if point["value"] > 0 else "below"
        return {"refused": f"at {D:,.0f} cells the turning point lies {side} {reach:g} times the fitted parameters"}
    ends = [D / end if np.isfinite(end) else np.nan for end in point["interval"][::-1]]
    return {"parameters": point, "cells_per_parameter": {"value": D / point["value"], "interval": ends}}


def _best(law, product, reach, level):
    """Best N (and D) under N D = product, within reach of the fitted ranges."""
    (low, high), (few, many) = _range(law, "parameters", reach), _range(law, "cells", reach)
    low, high = max(low, product / many), min(high, product / few)
    if low >= high:
        return {"refused": f"no N and D within {reach:g} times the fitted ranges cost that budget"}
    point = _with_interval(lambda x: _balance(x, lambda N: product / N, low, high), law, level)
    if not np.isfinite(point["value"]):
        return {"refused": f"the best N for that budget lies beyond {reach:g} times the fitted ranges"}
    N = point["value"]
    loss = _with_interval(lambda x: x.predict(N, product / N), law, level)
    return {"parameters": point, "cells": product / N, "loss": loss}
