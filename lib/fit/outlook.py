"""The planner asked about a study's own runs: what limits its largest run, in one table of facts and one paragraph."""

import numpy as np

from lib.fit.joint import compare_joint, joint_law
from lib.fit.ladder import usable
from lib.fit.planner import frontier, gains_table, plan
from lib.io import InputError

NOTHING = 1e-6
"""A loss, or a change of one, that is said to be none."""


def outlook(runs, resamples=400, seed=0, level=0.95, reach=10.0):
    """Fit the additive joint law to the runs that share one number of genes, and plan from the largest of them.

    Parameters
    ----------
    runs : DataFrame
        Columns of runs.csv. The joint law needs three sizes and three numbers of training cells on panels of equally
        many genes, everything else being the same.

    Returns
    -------
    dict
        sentence, and where a joint law can be fitted: law, comparison of the joint forms, plan, gains, frontier and
        grid, as `lib.figures.planner` draws them.
    """
    rows = usable(runs, "validation_mse").rename(columns={"validation_mse": "loss"})
    for column, kept in (("objective", "mse"), ("donors", None)):  # one loss, and cells of all donors
        if column in rows:
            rows = rows[rows[column].isna() | (rows[column] == kept)]
    cells = rows.groupby("genes")["cells_train"].nunique()
    if cells.empty or cells.max() < 3:
        most = 0 if cells.empty else cells.max()
        return {
            "sentence": "Capacity and data cannot be told apart by these runs: that takes at least three numbers of "
            f"training cells on panels of equally many genes, all else being equal, and they have {most}."
        }
    rows = rows[rows["genes"] == cells.idxmax()]
    try:
        law = joint_law(rows, resamples=resamples, seed=seed)
    except InputError as refusal:
        return {"sentence": f"No joint law: {refusal}."}
    largest = law.cells.loc[law.cells["parameters"].mul(law.cells["cells_train"]).idxmax()]
    N, D = float(largest["parameters"]), float(largest["cells_train"])
    per_cell = 6 * cells.idxmax() * largest["cells_seen"] / D
    made = plan(law, N, D, per_cell * N * D, per_cell, reach, level)
    grid = np.geomspace(law.cells["cells_train"].min(), law.cells["cells_train"].max(), 25)
    return {
        "law": law, "comparison": compare_joint(rows), "plan": made, "gains": gains_table(made),
        "frontier": frontier(law, grid, reach, level), "grid": law.cells, "sentence": describe(made),
    }  # fmt: skip


def describe(plan):
    """A plan in words, every number with its interval."""
    limit = {"not resolved": "limited by neither capacity nor data as far as these runs can tell"}
    limit = limit.get(plan["limited_by"], f"limited by {plan['limited_by']}")
    said = [
        f"The largest run ({plan['parameters']:,.0f} parameters, {plan['cells']:,.0f} training cells) is **{limit}** "
        f"({plan['capacity_share']:.0%} of the draws say capacity; the joint law's status: {plan['status']})."
    ]
    for gain in plan["gains"]:
        more = f"{gain['factor']} x the {gain['of']}"
        said.append(
            f"{more}: {gain['refused']}." if "refused" in gain else f"{more} saves {_number(gain)} of the loss."
        )
    point, best = plan["turning_point"], plan["best"]
    if "refused" in point:
        said.append(f"Turning point: {point['refused']}.")
    else:
        said.append(
            f"At this many cells the two balance at {_number(point['parameters'], ',.0f')} parameters, "
            f"{_number(point['cells_per_parameter'])} cells per parameter."
        )
    said.append(
        f"Best size for the FLOPs of this run: {best['refused']}."
        if "refused" in best
        else f"For the FLOPs of this run the best size is {_number(best['parameters'], ',.0f')} parameters."
    )
    return " ".join(said)


def _number(quantity, digits=".3g"):
    value, low, high = (
        "out of reach" if number is None else "0" if abs(number) < NOTHING else f"{number:{digits}}"
        for number in (quantity["value"], *quantity["interval"])
    )
    return f"{value} ({low} to {high})"
