"""Every table of the study as a reader sees it: few columns, numbers to the digits that their intervals support.

A table shows itself in a notebook, and `lib.figures.save` writes it as CSV with every digit and as LaTeX as shown.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lib.figures import look
from lib.figures.shown import Note, Shown, write_caption
from lib.io import atomic, write_csv

TEX = str.maketrans({
    "−": "$-$", "≤": r"$\le$", "≥": r"$\ge$", "α": r"$\alpha$", "Δ": r"$\Delta$", "²": "$^2$", "×": r"$\times$",
})  # fmt: skip
"""What LaTeX cannot read as it is."""
FAILS = 100
"""A form that predicts a left-out size so many times worse than the best form does not predict it."""
NONE = "–"
"""Stands where there is no number."""


@dataclass
class Table(Shown):
    """`raw` has every digit and is what is saved as CSV; `printed`, text in every cell, is what is shown."""

    raw: pd.DataFrame
    printed: pd.DataFrame
    caption: str = ""

    def content(self):
        with pd.option_context("display.max_colwidth", None):
            shown = self.printed.to_html(index=False, border=0, justify="left")
        shown = shown.replace("<td>", '<td style="text-align: left">')
        return {"text/html": shown, "text/plain": self.printed.to_string(index=False)}, {}

    def write(self, folder, name):
        """Write `folder/name.csv`, `.tex` (booktabs) and the caption as `.txt`."""
        write_csv(Path(folder) / f"{name}.csv", self.raw)
        ends = {"index": False, "escape": True, "label": f"tab:{name}", "position": "htbp"}
        with atomic(Path(folder) / f"{name}.tex") as partial:
            partial.write_text(self.printed.to_latex(caption=_escaped(self.caption), **ends).translate(TEX))
        write_caption(self.caption, folder, name)


def _escaped(text):
    return text.replace("%", r"\%").replace("_", r"\_").replace("&", r"\&").replace("#", r"\#")


def laws(table):
    """The laws with their headline intervals; `table` is what `lib.fit.laws_table` gives."""
    printed = pd.DataFrame({
        "regime": table["regime"], "loss": _losses(table["metric"]), "exponent α": _with_ends(table, "alpha"),
        "floor c": _with_ends(table, "c"), "exact floor": _numbers(table["exact_floor"], 3),
        "conditional Gaussian": _numbers(table["gaussian"], 3), "status": table["status"],
    })  # fmt: skip
    return Table(table, _said_once(printed, "regime"), (
        "Law L(P) = a P^(-alpha) + c of every regime's headline loss, least squares over size means, with "
        "profile-likelihood intervals in brackets."
    ))  # fmt: skip


def runs(table):
    """Size means and the shares of the reducible loss explained; `table` is what `lib.fit.runs.summary` gives."""
    shares = {"explained": "explained (%)", "explained_by_pca": "by PCA", "explained_by_gaussian": "by Gaussian"}
    printed = pd.DataFrame({
        "regime": table["regime"], "size": table["size"], "parameters": _counts(table["parameters"]),
        "seeds": _counts(table["seeds"]), "loss": _losses(table["metric"]), "mean": _numbers(table["loss"], 4),
        "on test": _numbers(table["test"], 4),
        **{said: _numbers(100 * table[name], 1) for name, said in shares.items() if name in table},
    })  # fmt: skip
    return Table(table, _said_once(_known(printed), "regime", "loss"), (
        f"Mean loss of every size over its seeds, {len(table):,} size means, and the share of the reducible loss that "
        "it explains: 0 is each gene's mean, 100 the exact floor where that is known."
    ))  # fmt: skip


def forms(table):
    """The forms compared; `table` is what `lib.fit.comparison_table` gives."""
    table = table.reset_index()
    smallest = table.groupby("regime")["loso_rmse"].transform("min") if len(table) else []
    printed = pd.DataFrame({
        "regime": table.get("regime", pd.Series(dtype=str)), "form": table.get("form", pd.Series(dtype=str)),
        "constants": _counts(table["parameters"]), "ΔAICc": _numbers(table["delta_aicc"], 1),
        "leave-one-size-out error": [
            "fails" if value > FAILS * best else said
            for value, best, said in zip(table["loso_rmse"], smallest, _numbers(table["loso_rmse"], 4), strict=True)
        ],
    })  # fmt: skip
    return Table(table, _said_once(printed, "regime"), (
        "Forms of the law compared: AICc above the best form of the regime, and the root mean square error of "
        "predicting the mean of a size that was left out."
    ))  # fmt: skip


def rollout(table):
    """What small sizes say of large ones; `table` is what `lib.fit.rollout_table` gives."""
    if table.empty:
        return Note("A roll-out takes five sizes at least; this study has no regime with as many.")
    table = table.assign(
        low=[ends[0] for ends in table["interval"]], high=[ends[1] for ends in table["interval"]],
        held_out=[" ".join(sizes) for sizes in table["held_out"]],
    ).drop(columns="interval")  # fmt: skip
    ends = zip(table["low"], table["high"], strict=True)
    inside = [low <= seen <= high for (low, high), seen in zip(ends, table["observed"], strict=True)]
    printed = pd.DataFrame({
        "regime": table["regime"], "fitted without": table["held_out"], "predicts": table["size"],
        "predicted": _with_ends(table, "predicted", "low", "high"), "observed": _numbers(table["observed"], 4),
        "missed by (%)": _numbers(100 * table["miss"] / table["predicted"], 1),
        "inside": np.where(inside, "yes", "no"),
    })  # fmt: skip
    return Table(table, _said_once(printed, "regime", "fitted without"), (
        "Laws fitted without the largest sizes, and what they predict for them, with prediction intervals in brackets: "
        f"{sum(inside)} of {len(inside)} means lie inside."
    ))  # fmt: skip


def sizes(table):
    """Shapes and costs of the sizes, those of regimes alike shown once; `table` is of `lib.model.sizes.table`."""
    alike = ["size", "genes", "parameters"]
    kept = table.drop_duplicates(alike)
    regimes = table.groupby(alike)["regime"].agg(", ".join)
    printed = pd.DataFrame({
        "regimes": [regimes[tuple(row)] for row in kept[alike].itertuples(index=False)], "size": kept["size"],
        "genes": _counts(kept["genes"]), "width": _counts(kept["d"]),
        "blocks": _counts(kept["layers"]), "heads": _counts(kept["heads"]),
        "feed-forward": _counts(kept["d"] * kept["ff_mult"]),
        "parameters": _counts(kept["parameters"]), "FLOPs of a cell": [look.short(n) for n in kept["flops_per_cell"]],
    })  # fmt: skip
    said = "Shapes of the models, their exact parameter counts, and the forward pass of one cell."
    return Table(table, _said_once(printed, "regimes"), said)


def predictors(table):
    """What needs no training, side by side; `table` is what `lib.train.baselines.table` gives."""
    printed = pd.DataFrame({
        "held-out side": table["split"], "predictor": table["predictor"],
        "MSE (± s.e.)": [f"{mse:.4f} ± {se:.4f}" for mse, se in zip(table["mse"], table["se"], strict=True)],
        "explained (%)": _numbers(100 * table["explained"], 1), "bits": _numbers(table["bits"].astype(float), 3),
    })  # fmt: skip
    return Table(table, _said_once(printed, "held-out side"))


def losses(runs):
    """Every final loss of the seeds of one size, with its standard error over cells; a column for each seed.

    `runs` has a row per seed, with the columns of runs.csv.
    """
    names = [name for name in runs if f"{name}_se" in runs]
    printed = pd.DataFrame({"loss": _losses(names)})
    for run in runs.to_dict("records"):
        printed[f"seed {run['seed']}"] = [f"{run[name]:.4f} ± {run[f'{name}_se']:.4f}" for name in names]
    return Table(runs, printed)


def halves(runs):
    """The loss of half the updates beside the final one, for the seeds of one size; `runs` as for `losses`."""
    unit = "nll" if "validation_nll_half" in runs else "mse"
    half, whole = runs[f"validation_{unit}_half"], runs[f"validation_{unit}"]
    printed = pd.DataFrame({
        "seed": _counts(runs["seed"]), "loss of half the updates": _numbers(half, 4), "final loss": _numbers(whole, 4),
        "still gained (%)": _numbers(100 * (1 - whole / half), 1), "": runs["convergence"],
    })  # fmt: skip
    return Table(runs, printed)


def bits(table):
    """Fitted floors as Gaussian bits beside the exact entropy; `table` is what `lib.fit.bits_table` gives."""
    fitted = _with_ends(table, "gaussian_bits_of_fitted_floor", "low", "high")
    printed = pd.DataFrame({
        "regime": table["regime"], "Gaussian bits of the fitted floor": fitted,
        "of the exact floor": _numbers(table["gaussian_bits_of_exact_floor"].astype(float), 3),
        "exact entropy of a count": _numbers(table["exact_bits_of_the_count"].astype(float), 3),
    })  # fmt: skip
    return Table(table, _known(printed))


def sides(table):
    """The law on every held-out side; `table` is what `lib.fit.conditions.laws_by_split` gives."""
    printed = pd.DataFrame({
        "regime": table["regime"], "judged on": table["cells"], "exponent α": _with_ends(table, "alpha"),
        "floor c": _with_ends(table, "c"), "status": table["status"],
    })  # fmt: skip
    return Table(table, _said_once(printed, "regime"))


def choices(table):
    """One regime fitted by several choices; `table` is what `lib.fit.published.refits` gives."""
    printed = pd.DataFrame({
        "fit": table["fit"], "runs": _counts(table["runs"]), "exponent α": _with_ends(table, "alpha"),
        "floor c": _with_ends(table, "c"), "status": table["status"].fillna("gives no interval"),
    })  # fmt: skip
    without = table["status"].isna().to_numpy()
    for name, column in {"alpha": "exponent α", "c": "floor c"}.items():
        printed.loc[without, column] = _numbers(table.loc[without, name], 3)
    return Table(table, printed)


def listed(facts):
    """Facts, {what: value}, one to a row."""
    table = pd.DataFrame({"": list(facts), " ": [str(value) for value in facts.values()]})
    return Table(table, table)


def plain(table, digits=3, empty="There is nothing to show."):
    """Any table, its numbers to so many significant digits; `empty` stands in place of one without rows."""
    if not len(table):
        return Note(empty)
    printed = table.copy()
    for column in table:
        if pd.api.types.is_bool_dtype(table[column]):
            printed[column] = np.where(table[column], "yes", "no")
        elif pd.api.types.is_numeric_dtype(table[column]):
            printed[column] = [_significant(value, digits) for value in table[column]]
    printed.columns = [str(column).replace("_", " ") for column in table.columns]
    return Table(table, _said_once(printed, *({"regime"} & set(printed))))


def _significant(value, digits):
    if pd.isna(value):
        return NONE
    said = f"{value:,.0f}" if abs(value) >= 10**digits or float(value).is_integer() else f"{value:.{digits}g}"
    return said.replace("-", "−") if "e-" not in said else said


def _with_ends(table, name, low=None, high=None):
    """A column of values with their intervals in brackets."""
    found = []
    for value, lo, hi in (
        table[[name, low or f"{name}_low", high or f"{name}_high"]].astype(float).itertuples(index=False)
    ):
        ends = [None if not np.isfinite(end) else end for end in (lo, hi)]
        known = ends if any(end is not None for end in ends) else None
        found.append(NONE if np.isnan(value) else look.rounded(value, known))
    return found


def _numbers(values, digits):
    said = (NONE if pd.isna(value) else f"{value:,.{digits}f}" for value in values)
    return [text.replace("-", "−") for text in said]


def _counts(values):
    return [f"{int(value):,}" for value in values]


def _losses(metrics):
    """validation_mse -> validation MSE, test_dataset_nll -> test dataset bits."""
    return [name.replace("_mse", " MSE").replace("_nll", " bits").replace("_", " ") for name in metrics]


def _known(printed):
    """Without the columns that have no number at all."""
    return printed.loc[:, (printed != NONE).any()]


def _said_once(printed, *columns):
    """Blank where a column repeats the row above it (each column within those before it)."""
    printed = printed.copy().reset_index(drop=True)
    same = pd.Series(True, printed.index)
    for column in columns:
        same &= printed[column] == printed[column].shift()
        printed.loc[same, column] = ""
    return printed
