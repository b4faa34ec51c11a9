"""The learning rate of every size: the best one that is found, and the rule put through them.

`python benchmarks/rates.py` does it on the demo's data-rich panel in a quarter of an hour and writes
data/learning_rates.csv. What the rule of `lib.model.sizes` found there are the defaults of a study.
"""

import math
import tempfile
from pathlib import Path

import pandas as pd

from lib import io
from lib.data import panel
from lib.model import sizes
from lib.model.sizes import PUBLISHED, Size
from lib.study import load_study
from lib.train import loop

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


def sweep(data, settings, folder, plan=None, seed=7):
    """Train every size at rates a factor of two apart until the best has a worse one on either side.

    Finished runs in `folder` are not trained again. Returns the table that `lib.model.sizes.read` describes.
    """
    rows = []
    for size, budgets in (plan or PLAN).items():
        for budget in budgets:

            def loss(rate, size=size, budget=budget):
                changed = {"learning_rate": rate, "width_exponent": 0.0, "cells_seen": budget, "evaluations": 2}
                place = Path(folder) / size.name / f"{budget}-{rate:g}"
                record = loop.train(data, size, seed, settings.model_copy(update=changed), place)
                return math.inf if record["validation_mse"] is None else record["validation_mse"]

            shape = {"size": size.name, "width": size.d, "layers": size.layers, "held_out": size.name in HELD_OUT}
            rows += [
                shape | {"cells_seen": budget, "learning_rate": rate, "validation_mse": mse}
                for rate, mse in sorted(bracket(loss, START).items())
            ]
    return pd.DataFrame(rows)


def bracket(loss, start):
    """{rate: loss} at rates a factor of two apart, such that the best has a worse neighbour on either side."""
    tried = {start: loss(start)}
    while True:
        best = min(tried, key=tried.get)
        new = [rate for rate in (best / 2, 2 * best) if rate not in tried]
        if not new:
            return tried
        tried[new[0]] = loss(new[0])


def main():
    """Sweep on the demo's data-rich panel, write the table, and print what the rule costs."""
    study = load_study("demo")
    data = panel.arrays(panel.read(panel.build(study, "data-rich")))
    with tempfile.TemporaryDirectory() as folder:
        swept = sweep(data, study.training("data-rich"), folder)
    io.write_csv(io.ROOT / "data" / "learning_rates.csv", swept.round(6))
    print(sizes.trial(swept, *sizes.rule(swept)).round(4).to_string(index=False))
    print("rule, fitted to the sizes not held out: {:.3g} x (64 / width)^{:.2f}".format(*sizes.rule(swept)))


if __name__ == "__main__":
    main()
