"""More updates: the same cells and sizes, and only the cells seen change. What becomes of the law?

The floor that a law finds is that of its budget. Every run also knows the loss that half its updates would have given,
so that each regime tells of two budgets. With three of them loss is fitted in parameters N and cells seen S together,
L = E + A N^-a + B S^-b, whose E is the floor when both are large.
"""

import numpy as np
import pandas as pd

from lib.fit.joint import joint_law
from lib.fit.ladder import usable
from lib.fit.laws import fit_laws
from lib.fit.report import HEADLINE, _between
from lib.io import InputError

METRIC = "validation_mse"
ALIKE = ("genes", "cells_train", "donors", "objective", "protocol")


def budgets(runs):
    """The runs of a study of budgets, those of half the updates among them, with the loss as a column.

    Raises
    ------
    InputError
        The regimes differ in more than the cells seen, or have one budget.
    """
    rows = usable(runs, METRIC)
    rates = rows.groupby("size")["learning_rate"].nunique() if "learning_rate" in rows else pd.Series(dtype=int)
    other = [name for name in ALIKE if name in rows and rows[name].nunique(dropna=False) > 1]
    other += ["learning_rate"] * bool((rates > 1).any())
    if other:
        raise InputError(f"the regimes differ in {other[0]}; compare those that differ in cells seen alone.")
    if "cells_seen" not in rows or rows["cells_seen"].nunique() < 2:
        raise InputError("all runs have one budget; `make run STUDY=budget` changes it alone.")
    both = rows.assign(loss=rows[METRIC].astype(float))
    if (half := f"{METRIC}_half") in rows:
        earlier = rows.assign(loss=rows[half].astype(float), cells_seen=rows["cells_seen"] / 2)
        both = pd.concat([both, earlier[earlier["loss"].notna()]])
    return both.sort_values(["cells_seen", "parameters"], kind="stable", ignore_index=True)


def floors(rows):
    """The law of every budget.

    Returns
    -------
    DataFrame, one row per budget
        cells_seen, alpha, c and their ends (None: open), status, largest (loss of the largest size).
    """
    found = []
    for seen, of in rows.groupby("cells_seen"):
        law = fit_laws(of.assign(regime="", **{METRIC: of["loss"]}), 100, 0, metrics=(METRIC,))[""][METRIC]
        ends = law["intervals"].get(HEADLINE, {"alpha": [None, None], "c": [None, None]})
        largest = of[of["parameters"] == of["parameters"].max()]["loss"].mean()
        row = {"cells_seen": seen, "status": law["status"], "largest": largest}
        for name in ("alpha", "c"):
            row |= {name: law[name], f"{name}_low": ends[name][0], f"{name}_high": ends[name][1]}
        found.append(row)
    return pd.DataFrame(found)


def limit(rows, resamples=400, seed=0, level=0.95):
    """E of the joint law in parameters and cells seen: value, low, high, status.

    Raises
    ------
    InputError
        Fewer than three sizes or budgets.
    """
    law = joint_law(rows.assign(cells_train=rows["cells_seen"])[["parameters", "cells_train", "loss"]],
                    resamples=resamples, seed=seed)  # fmt: skip
    low, high = np.quantile(law.draws.linear[:, 0], [(1 - level) / 2, (1 + level) / 2])
    return {"value": float(law.linear[0]), "low": float(low), "high": float(high), "status": law.status}


def answer(table, joint, exact=None):
    """How exponent and floor move with the budget, in two sentences."""
    known = "" if exact is None else f"; the exact floor is {exact:.3f}"
    said = " ".join(_said(row) for _, row in table.iloc[[0, -1]].iterrows())
    floor = f"{joint['value']:.3f} ({joint['low']:.3f} to {joint['high']:.3f}; status: {joint['status']})"
    return f"{said} The floor of the joint law in parameters and cells seen is {floor}{known}."


def _said(row):
    """The law of one budget in words."""
    after = f"After {row['cells_seen']:,.0f} cells seen"
    if row["status"] != "ok":
        return f"{after} no law can be named ({row['status']}) and the largest size ends at {row['largest']:.3f}."
    said = []
    for name in ("alpha", "c"):
        ends = [None if pd.isna(row[f"{name}_{end}"]) else row[f"{name}_{end}"] for end in ("low", "high")]
        said.append(f"{name} = {row[name]:.3f} ({_between(ends, '.3f')})")
    return f"{after} {' and '.join(said)}, and the largest size ends at {row['largest']:.3f}."


def view(runs):
    """The budgets of a study as `lib.figures.budget` draws them, or the sentence that says why not."""
    try:
        rows = budgets(runs)
        joint = limit(rows)
    except InputError as refusal:
        return {"sentence": f"No comparison of budgets: {refusal}"}
    exact = rows["bayes_mse"].mean() if "bayes_mse" in rows else np.nan
    exact = None if np.isnan(exact) else float(exact)
    table = floors(rows)
    return {"runs": rows, "table": table, "joint": joint, "exact": exact, "sentence": answer(table, joint, exact)}
