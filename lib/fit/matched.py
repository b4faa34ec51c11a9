"""The matched data axis: everything equal but the training cells. Does the gain from size vanish because cells are few?

Regimes differ in cells_train alone; their runs share genes, held-out cells, sizes and updates. An additive joint law
says by construction that size gains as much at any number of cells, so the claim is tested without it first: the loss
that size saves at each number of cells, and its trend.
"""

import numpy as np
import pandas as pd
from scipy import stats

from lib.fit.joint import compare_joint, joint_law
from lib.fit.ladder import usable
from lib.fit.planner import frontier
from lib.fit.runs import headline
from lib.io import InputError


def matched(runs, metric="validation_mse"):
    """The usable runs of the matched axis, with the loss as a column: those of all donors, then those of few.

    Raises
    ------
    InputError
        The regimes differ in more than the training cells, or have fewer than three numbers of them.
    """
    rows = usable(runs, metric).assign(loss=lambda table: table[metric].astype(float))
    for column in ("genes", "cells_seen", "objective", "protocol"):
        if column in rows and rows[column].nunique() > 1:
            raise InputError(
                f"these runs are not matched: {column} has the values {', '.join(map(str, rows[column].unique()))}; "
                "compare regimes that differ in training cells alone."
            )
    few = rows["donors"].notna() if "donors" in rows else pd.Series(False, rows.index)
    if rows.loc[~few, "cells_train"].nunique() < 3:
        raise InputError("a data axis takes three numbers of training cells at least; train more regimes.")
    return rows[~few], rows[few]


def gains(rows):
    """What size saves at each number of training cells.

    Returns
    -------
    DataFrame, one row per number of cells
        cells_train; best (size of the least mean loss) and its parameters; gain, the loss that it saves against the
        smallest size, with its standard error from the seeds; largest_behind, by how much the largest size is worse
        than the best; relative, the gain as a share of the smallest size's loss.
    """
    found = []
    for cells, of in rows.groupby("cells_train"):
        sizes = of.groupby("parameters").agg(size=("size", "first"), loss=("loss", "mean"), n=("loss", "size"))
        pooled = _seed_variance(rows)
        best = sizes["loss"].idxmin()
        smallest, largest = sizes.iloc[0], sizes.iloc[-1]
        gain = smallest["loss"] - sizes.loc[best, "loss"]
        error = np.sqrt(pooled * (1 / smallest["n"] + 1 / sizes.loc[best, "n"]))
        found.append({
            "cells_train": cells, "best": sizes.loc[best, "size"], "parameters": best, "gain": gain, "se": error,
            "relative": gain / smallest["loss"], "largest_behind": largest["loss"] - sizes.loc[best, "loss"],
        })  # fmt: skip
    return pd.DataFrame(found)


def _seed_variance(rows):
    """Variance between seeds of one size and number of cells, pooled."""
    groups = rows.groupby(["cells_train", "parameters"])["loss"]
    free = len(rows) - groups.ngroups
    return float(((rows["loss"] - groups.transform("mean")) ** 2).sum() / free) if free else 0.0


def trend(rows, level=0.95):
    """How the gain from size changes per tenfold cells: least squares over the numbers of cells, whose spread it uses.

    Returns
    -------
    dict
        slope (loss per decade), interval, p (of no trend), smallest: the trend that would have been seen four times in
        five (Student's t, normal power).
    """
    table = gains(rows)
    x, y = np.log10(table["cells_train"].to_numpy(float)), table["gain"].to_numpy(float)
    line = stats.linregress(x, y)
    t = stats.t.ppf((1 + level) / 2, len(x) - 2)
    reach = t * line.stderr
    return {
        "slope": float(line.slope), "interval": [float(line.slope - reach), float(line.slope + reach)],
        "p": float(line.pvalue), "smallest": float((t + stats.norm.ppf(0.8)) * line.stderr), "level": level,
    }  # fmt: skip


def additive_p(rows):
    """p of the F test of a joint law with interaction against the additive one, over the cells of the grid."""
    grid = rows[["parameters", "cells_train", "cells_seen", "loss"]]
    additive, crossed = (joint_law(grid, form, resamples=0) for form in ("additive", "interaction"))
    free = len(crossed.cells) - len(crossed.theta) - len(crossed.linear)
    if free < 1 or crossed.rss <= 0:
        return np.nan
    return float(stats.f.sf(max(additive.rss - crossed.rss, 0) / (crossed.rss / free), 1, free))


def forms(rows):
    """Joint laws compared on the matched grid, with the test of additivity in its attribute `additive_p`."""
    table = compare_joint(rows[["parameters", "cells_train", "cells_seen", "loss"]])
    return table.assign(additive_p=additive_p(rows))


def turning(rows, form):
    """Parameters at which size and cells limit equally, at each number of training cells; see `planner.frontier`."""
    law = joint_law(rows[["parameters", "cells_train", "cells_seen", "loss"]], form)
    return frontier(law, np.sort(rows["cells_train"].unique()))


def donors(all_donors, few_donors, level=0.95):
    """What fewer donors cost at equally many cells: paired differences over sizes, few minus all.

    Returns
    -------
    DataFrame
        cells_train, donors, difference (mean over sizes), low, high (Student's t over sizes).
    """
    rows = []
    for (cells, number), of in few_donors.groupby(["cells_train", "donors"]):
        same = all_donors[all_donors["cells_train"] == cells].groupby("size")["loss"].mean()
        gap = (of.groupby("size")["loss"].mean() - same).dropna()
        if len(gap) > 1:
            reach = stats.t.ppf((1 + level) / 2, len(gap) - 1) * gap.std(ddof=1) / np.sqrt(len(gap))
            rows.append({"cells_train": cells, "donors": int(number), "difference": gap.mean(),
                         "low": gap.mean() - reach, "high": gap.mean() + reach})  # fmt: skip
    return pd.DataFrame(rows, columns=["cells_train", "donors", "difference", "low", "high"])


def answer(rows):
    """The direct test of the claim in one sentence, whichever way it went."""
    table, found = gains(rows).sort_values("cells_train"), trend(rows)
    few, many = table.iloc[0], table.iloc[-1]
    low, high = found["interval"]
    t = stats.norm.ppf(0.975)
    less, reach = many["gain"] - few["gain"], t * np.hypot(few["se"], many["se"])
    left = "still saves" if few["gain"] > t * few["se"] else "saves no more than seeds differ by:"
    way = {True: "The gain from size grows with cells", False: "No trend of the gain with cells is shown"}[
        found["p"] < 0.05
    ]
    if found["p"] < 0.05 and found["slope"] < 0:
        way = "The gain from size shrinks with cells"
    worse = table[table["largest_behind"] > t * table["se"]]["cells_train"]
    behind = (
        f"Up to {worse.max():,.0f} training cells the largest size is worse than a smaller one."
        if len(worse)
        else "Nowhere is the largest size shown to be worse than a smaller one."
    )
    apart = additive_p(rows)
    return (
        f"With {many['cells_train']:,.0f} training cells, size saves {many['gain']:.4f} ({many['relative']:.0%}) of "
        f"the loss; with {few['cells_train']:,.0f} it {left} {few['gain']:.4f} ({few['relative']:.0%}), "
        f"{less:.4f} less ({less - reach:.4f} to {less + reach:.4f}). That size and cells act apart, as in an additive "
        f"law, is {'refused' if apart < 0.05 else 'not refused'} (p = {apart:.1g}). {way}: "
        f"{found['slope']:+.4f} per tenfold cells ({low:+.4f} to {high:+.4f}, p = {found['p']:.2g}; a trend of "
        f"{found['smallest']:.4f} would have been seen four times in five). {behind}"
    )


CONFOUNDS = {
    "genes": "genes of the panel", "cells_train": "training cells", "micro_steps": "micro-steps", "updates": "updates",
    "cells_seen": "cells seen", "learning_rate": "learning rate", "evaluations": "evaluations to choose from",
    "donors": "donors asked for", "objective": "objective", "protocol": "protocol",
}  # fmt: skip


def confounds(runs):
    """What differs between the regimes of a table besides training cells, one row per setting and a column per regime.

    A comparison of regimes is matched where the column `differs` is true for training cells alone.
    """
    rows = []
    for column, name in CONFOUNDS.items():
        if column not in runs or runs[column].isna().all():
            continue
        said = {regime: _range(of[column]) for regime, of in runs.groupby("regime", sort=False)}
        rows.append({"setting": name, **said, "differs": len(set(said.values())) > 1})
    passes = runs["cells_seen"] / runs["cells_train"] if {"cells_seen", "cells_train"} <= set(runs) else None
    if passes is not None and passes.notna().any():
        said = {regime: _range(passes[of.index].round(2)) for regime, of in runs.groupby("regime", sort=False)}
        rows.append({"setting": "passes over the cells", **said, "differs": len(set(said.values())) > 1})
    return pd.DataFrame(rows)


def _range(values):
    """Values of a column in words: one, or their range."""
    values = values.dropna().unique()
    if not len(values):
        return "-"
    if values.dtype == object:
        return ", ".join(sorted(map(str, values)))
    low, high = (f"{end:,.6g}" if end >= 1000 else f"{end:.3g}" for end in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def view(runs):
    """The matched axis of a table of runs, as `lib.figures.matched` draws it, or the sentence that says why not.

    Regimes with another objective than the first are left out.
    """
    metric = next(iter(headline(runs).values()))
    like = runs[runs["objective"].fillna("") == runs["objective"].fillna("").iloc[0]]
    try:
        all_donors, few_donors = matched(like, metric)
        table = forms(all_donors)
    except InputError as refusal:
        return {"sentence": f"No matched data axis: {refusal}"}
    return {
        "all_donors": all_donors, "few_donors": few_donors, "gains": gains(all_donors), "metric": metric,
        "forms": table, "turning": turning(all_donors, table.loc[table["aicc"].idxmin(), "form"]),
        "donors": donors(all_donors, few_donors), "sentence": answer(all_donors),
    }  # fmt: skip
