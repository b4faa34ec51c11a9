"""The learning rate of every size: swept for each, put into a rule by some, and the rule tried on the others.

`make rates` trains every size of SIZES at every rate of RATES on the demo's data-rich panel, for each budget of
BUDGETS, and writes data/learning_rates.csv. The rule is `lib.train.learning_rate`; its numbers are a study's defaults.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from lib import files
from lib.sizes import PUBLISHED, Size

SIZES = (
    Size("d4", 4, 1, 1, 4), Size("d8", 8, 1, 1, 4), Size("d16", 16, 1, 1, 4), Size("d32", 32, 1, 2, 4),
    Size("d32-2", 32, 2, 2, 4), PUBLISHED["XS"], PUBLISHED["S"],
)  # fmt: skip
HELD_OUT = ("d8", "d32", "d32-2", "S")
"""Sizes that the rule is not fitted to: between its widths, of another depth, and twice as wide as any."""
RATES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)
BUDGETS = (32_000, 128_000)
"""Cells seen."""


def sweep(data, settings, folder, sizes=SIZES, rates=RATES, budgets=BUDGETS, seed=7):
    """Train every size at every rate for every budget; finished runs in `folder` are not trained again.

    Returns
    -------
    DataFrame
        size, width, layers, held_out, cells_seen, learning_rate, validation_mse (NaN where it diverged), and
        validation_mse_se.
    """
    from lib import train

    rows = []
    for size in sizes:
        for budget in budgets:
            for rate in rates:
                changed = {"learning_rate": rate, "width_exponent": 0.0, "cells_seen": budget, "evaluations": 2}
                place = Path(folder) / size.name / f"{budget}-{rate:g}"
                record = train.train(data, size, seed, SimpleNamespace(**(vars(settings) | changed)), place)
                rows.append({
                    "size": size.name, "width": size.d, "layers": size.layers, "held_out": size.name in HELD_OUT,
                    "cells_seen": budget, "learning_rate": rate,
                    "validation_mse": record["validation_mse"], "validation_mse_se": record["validation_mse_se"],
                })  # fmt: skip
    return pd.DataFrame(rows)


def best(rates, losses):
    """Rate of the least loss: the vertex of the parabola in log rate through the best rate and its two neighbours.

    At an end of the sweep it is that end.
    """
    rates, losses = np.asarray(rates, float), np.asarray(losses, float)
    least = int(np.nanargmin(losses))
    near = slice(least - 1, least + 2)
    if not 0 < least < len(rates) - 1 or not np.isfinite(losses[near]).all():
        return rates[least]
    bend, slope, _ = np.polyfit(np.log(rates[near]), losses[near], 2)
    return float(np.exp(-slope / (2 * bend)))


def optima(table):
    """Best rate and its loss for every size and budget: a DataFrame with the columns of `sweep`, one row each."""
    rows = []
    for _, runs in table.groupby(["size", "cells_seen"], sort=False):
        rate = best(runs["learning_rate"], runs["validation_mse"])
        least = runs.loc[runs["validation_mse"].idxmin()]
        rows.append(least.to_dict() | {"learning_rate": rate})
    return pd.DataFrame(rows)


def rule(table, reference=64):
    """The power of width through the best rates of the sizes that are not held out, least squares in logarithms.

    Returns
    -------
    base : float
        Rate at width `reference`.
    exponent : float
        rate = base * (reference / width)**exponent.
    """
    known = optima(table[~table["held_out"]])
    slope, base = np.polyfit(np.log(reference / known["width"]), np.log(known["learning_rate"]), 1)
    return float(np.exp(base)), float(slope)


def trial(table, base, exponent, reference=64):
    """What the rule costs every size: its rate, the loss there, and by which share that is above the least loss.

    The loss at the rule's rate is read off between the swept rates, linearly in log rate.
    """
    rows = []
    for _, runs in table.groupby(["size", "cells_seen"], sort=False):
        first, rate = runs.iloc[0], base * (reference / runs["width"].iloc[0]) ** exponent
        loss = float(np.interp(np.log(rate), np.log(runs["learning_rate"]), runs["validation_mse"]))
        row = {name: first[name] for name in ("size", "width", "layers", "held_out", "cells_seen")}
        found = best(runs["learning_rate"], runs["validation_mse"])
        cost = loss / runs["validation_mse"].min() - 1
        rows.append(row | {"best_rate": found, "rule_rate": rate, "loss_at_rule": loss, "cost": cost})
    return pd.DataFrame(rows)


def main():
    """Sweep, write data/learning_rates.csv, and say what came out."""
    from lib import panel, params

    study = params.load("demo")
    data = panel.arrays(panel.read(panel.build(study, "data-rich")))
    with tempfile.TemporaryDirectory() as folder:
        table = sweep(data, study.train, folder)
    files.write_csv(files.ROOT / "data" / "learning_rates.csv", table.round(6))
    tried = trial(table, *rule(table))
    print(tried.round(4).to_string(index=False))
    print("rule fitted to the sizes not held out: {:.3g} x (64 / width)^{:.2f}".format(*rule(table)))
    return table
