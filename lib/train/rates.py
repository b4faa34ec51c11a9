"""The learning rate of every size: the best one found, a rule put through some of them, and its trial on the others.

`make rates` does it on the demo's data-rich panel and writes data/learning_rates.csv. The rule is that of
`lib.train.learning_rate`; what it found are the defaults of a study.
"""

import math
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from lib import io
from lib.model.sizes import PUBLISHED, Size

SHORT, LONG = 16_000, 64_000
"""Budgets, cells seen."""
PLAN = {
    Size("d4", 4, 1, 1, 4): (SHORT, LONG), Size("d8", 8, 1, 1, 4): (SHORT, LONG),
    Size("d16", 16, 1, 1, 4): (SHORT, LONG), Size("d32", 32, 1, 2, 4): (SHORT, LONG),
    Size("d32-2", 32, 2, 2, 4): (SHORT, LONG), PUBLISHED["XS"]: (SHORT,)
}  # fmt: skip
HELD_OUT = ("d8", "d32", "d32-2")
"""Sizes that the rule is not fitted to: of widths between the others, and of another depth."""
START = 0.008
REFERENCE = 64
"""Width at which the rule states its rate."""
TABLE = "learning_rates.csv"


def sweep(data, settings, folder, plan=None, seed=7):
    """Train every size at rates a factor of two apart until the best has a worse one on either side.

    Finished runs in `folder` are not trained again.

    Returns
    -------
    DataFrame
        size, width, layers, held_out, cells_seen, learning_rate and validation_mse, infinite where a run diverged.
    """
    from lib.train import loop

    rows = []
    for size, budgets in (plan or PLAN).items():
        for budget in budgets:

            def loss(rate, size=size, budget=budget):
                changed = {"learning_rate": rate, "width_exponent": 0.0, "cells_seen": budget, "evaluations": 2}
                place = Path(folder) / size.name / f"{budget}-{rate:g}"
                record = loop.train(data, size, seed, SimpleNamespace(**(vars(settings) | changed)), place)
                return math.inf if record["validation_mse"] is None else record["validation_mse"]

            shape = {"size": size.name, "width": size.d, "layers": size.layers, "held_out": size.name in HELD_OUT}
            found = sorted(bracket(loss, START).items())
            rows += [
                shape | {"cells_seen": budget, "learning_rate": rate, "validation_mse": mse} for rate, mse in found
            ]
    return pd.DataFrame(rows)


def bracket(loss, start):
    """{rate: loss} at rates a factor of two apart, such that the best has a worse neighbour on either side."""
    known = {start: loss(start)}
    while True:
        best = min(known, key=known.get)
        unknown = [rate for rate in (best / 2, 2 * best) if rate not in known]
        if not unknown:
            return known
        known[unknown[0]] = loss(unknown[0])


def vertex(runs):
    """Best learning rate: the vertex of the parabola in log rate through the best rate and its two neighbours."""
    runs = runs.sort_values("learning_rate")
    rates, losses = runs["learning_rate"].to_numpy(), runs["validation_mse"].to_numpy()
    least = int(losses.argmin())
    near = slice(least - 1, least + 2)
    if not np.isfinite(losses[near]).all():
        return float(rates[least])
    bend, slope, _ = np.polyfit(np.log(rates[near]), losses[near], 2)
    return float(np.exp(-slope / (2 * bend)))


def rule(table):
    """The power of width through the best rates of the sizes that are not held out, least squares in logarithms.

    Returns
    -------
    base, exponent : float
        rate = base * (REFERENCE / width)**exponent
    """
    known = [
        (runs["width"].iloc[0], vertex(runs)) for _, runs in table[~table["held_out"]].groupby(["size", "cells_seen"])
    ]
    width, rate = np.array(known).T
    exponent, base = np.polyfit(np.log(REFERENCE / width), np.log(rate), 1)
    return float(np.exp(base)), float(exponent)


def trial(table, base, exponent):
    """What the rule costs each size and budget.

    Returns
    -------
    DataFrame
        The size, best_rate, rule_rate, and cost: by which share the loss at the rule's rate, read off between the
        trained ones, is above the least.
    """
    rows = []
    for _, runs in table.groupby(["size", "cells_seen"], sort=False):
        runs = runs[np.isfinite(runs["validation_mse"])].sort_values("learning_rate")
        row = runs.iloc[0][["size", "width", "layers", "held_out", "cells_seen"]].to_dict()
        row |= {"best_rate": vertex(runs), "rule_rate": base * (REFERENCE / row["width"]) ** exponent}
        logs, losses = np.log(runs["learning_rate"]), runs["validation_mse"]
        rows.append(row | {"cost": np.interp(np.log(row["rule_rate"]), logs, losses) / losses.min() - 1})
    return pd.DataFrame(rows)


def read():
    """The committed sweep."""
    return pd.read_csv(io.CODE / "data" / TABLE)


def main():
    """Sweep on the demo's data-rich panel, write the table, say what came out, and return the table."""
    from lib import io
    from lib.data import panel
    from lib.study import load_study

    study = load_study("demo")
    data = panel.arrays(panel.read(panel.build(study, "data-rich")))
    with tempfile.TemporaryDirectory() as folder:
        table = sweep(data, study.training("data-rich"), folder)
    io.write_csv(io.ROOT / "data" / TABLE, table.round(6))
    print(trial(table, *rule(table)).round(4).to_string(index=False))
    print("rule, fitted to the sizes not held out: {:.3g} x (64 / width)^{:.2f}".format(*rule(table)))
    return table
