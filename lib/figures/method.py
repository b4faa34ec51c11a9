"""Figures of the method: a run looked at closely, the published study audited, what intervals hold.

Those of one run draw a `lib.train.evaluate.Examination`, whose class says what it holds, or give its sentence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lib.figures import style
from lib.figures.study import HEADLINE, METHODS, OPEN, draw_runs
from lib.figures.style import Figure, Note, key

if TYPE_CHECKING:
    from lib.train.evaluate import Examination

RUN, EXACT, GAUSSIAN = "#999933", style.BASELINES["bayes"][1], style.BASELINES["gaussian"][1]
COLOURS = {"run": RUN, "exact posterior": EXACT, "exact": EXACT, "conditional Gaussian": GAUSSIAN}
"""Of each predictor."""
THIRDS = {"low": ":", "middle": "--", "high": "-"}
"""Dashes of the thirds of the genes by mean count."""
OURS, THEIRS = style.PALETTE[0], style.INK
EFFECT = {False: style.PALETTE[5], True: "#7A0000"}
"""Colour of simulated studies without and with an effect that all seeds of a size share."""


def by_gene(examined: Examination) -> Figure | Note:
    """What each gene adds to the squared error that is left."""
    genes = examined.genes
    if genes is None:
        return Note(examined.sentence)
    figure, axes = style.panels(1, 2, height=66)
    errors, shares = axes.flat
    kinds = [("gene mean", "variance", "", style.GREY, "s"), ("run", "residual", "share", RUN, "o"),
             ("exact floor", "floor", "floor_share", EXACT, "D")]  # fmt: skip
    ranks, keys = 100 * np.arange(len(genes) + 1) / len(genes), {}
    for label, column, share, colour, marker in kinds:
        if column in genes:
            errors.plot(genes["mean"], genes[column], marker, color=colour, markersize=3, alpha=0.8, markeredgewidth=0)
            keys[label] = key(color=colour, marker=marker, linestyle="", markersize=4)
        if share in genes:
            carried = 100 * np.concatenate([[0], np.sort(genes[share])[::-1].cumsum()])
            shares.plot(ranks, carried, color=colour, linestyle="--" if label == "exact floor" else "-")
    shares.plot([0, 100], [0, 100], color=style.GREY, linewidth=0.6, linestyle=":")
    errors.set(yscale="log", xlabel="mean expression (log1p)", ylabel="squared error of a gene (log1p²)")
    style.log_axis(errors.xaxis)
    style.log_ticks(errors.xaxis, errors.yaxis)
    shares.set(xlabel="genes, those of most error first (%)", ylabel="share of the squared error (%)",
               xlim=(0, 100), ylim=(0, 102))  # fmt: skip
    style.header(errors, "Error of each gene", [examined.run])
    style.header(shares, "Which genes carry it")
    style.legend(figure, keys | {"all genes alike": key(color=style.GREY, linewidth=0.8, linestyle=":")})
    return style.settle(
        figure,
        f"Left: squared error of each of {len(genes)} genes on held-out cells, by its mean, for one run. Right: the "
        "share of the error that the genes of most error carry.",
    )


def calibration(examined: Examination) -> Figure | Note:
    """Histograms of probability integral transforms: flat where the predicted distributions are right."""
    table = examined.calibration
    if table is None:
        return Note(examined.sentence)
    predictors = table["predictor"].unique()
    figure, axes = style.panels(1, len(predictors), height=58)
    keys = {"all genes": key(color=style.INK, linewidth=1.4)}
    for axis, predictor in zip(axes.flat, predictors, strict=True):
        of = table[table["predictor"] == predictor]
        whole = of[of["genes"] == "all"]
        edges = np.append(whole["bin"], 1)
        axis.stairs(whole["high"], edges, baseline=whole["low"].to_numpy(), fill=True, color=style.GREY, alpha=0.3)
        axis.stairs(whole["density"], edges, baseline=None, color=COLOURS[predictor], linewidth=1.4)
        for genes, part in of[of["genes"] != "all"].groupby("genes", sort=False):
            line = {"color": style.INK, "linewidth": 0.7, "linestyle": THIRDS[genes]}
            axis.plot(part["bin"] + 0.5 / len(whole), part["density"], **line)
            keys[f"{genes} mean"] = key(**line)
        axis.axhline(1, color=style.INK, linewidth=0.5)
        axis.set(xlabel="transform of the hidden count (0 to 1)", ylabel="density (1 where right)", xlim=(0, 1),
                 ylim=(0, max(1.6, 1.08 * table["density"].max())))  # fmt: skip
        style.header(axis, predictor)
    style.legend(figure, keys | {"95 % of uniform samples": key(color=style.GREY, alpha=0.4, linewidth=5)})
    return style.settle(
        figure,
        f"Randomised transforms of the hidden counts under {len(predictors)} predicted distributions: flat at 1 where "
        "a distribution is right, inside the grey band in 95 % of samples"
        + ("; thin lines are thirds of the genes by mean count." if len(keys) > 1 else "."),
    )


def conversions(examined: Examination) -> Figure | Note:
    """Bits per masked gene by every rule that turns predictions into them, beside the exact entropy."""
    table = examined.bits
    if table is None:
        return Note(examined.sentence)
    rules, predictors = list(table["rule"].cat.categories), list(table["predictor"].unique())
    figure, axes = style.panels(1, 1, height=22 + 6 * len(rules), width=style.DOUBLE)
    axis, keys = axes.flat[0], {}
    for predictor, marker in zip(predictors, "oD", strict=False):
        of = table[table["predictor"] == predictor]
        axis.plot(of["bits"], of["rule"].cat.codes, marker, color=COLOURS[predictor], **style.DOT)
        keys[predictor] = key(color=COLOURS[predictor], marker=marker, linestyle="")
    *_, second, largest = sorted(table["bits"])
    if largest > 1.5 * second:  # it would squeeze all others: an arrow says where it lies
        axis.set_xlim(right=second + 0.2 * (second - table["bits"].min()))
        y = table["rule"].cat.codes[table["bits"].idxmax()]
        axis.annotate(f"{largest:.3g} →", (1, y), xycoords=axis.get_yaxis_transform(), ha="right", va="center",
                      fontsize=style.SMALL, color=style.INK)  # fmt: skip
    for entropy in table.loc[table["rule"] == "exact entropy", "bits"]:
        keys["exact entropy"] = axis.axvline(entropy, color=EXACT, linewidth=0.9, zorder=0)
    style.listed(axis, rules)
    axis.set_xlabel("cost of a hidden count (bits per masked gene)")
    axis.set_ylabel("rule (of conversion)", labelpad=8)
    style.legend(figure, keys)
    return style.settle(
        figure,
        f"The same predictions ({' and '.join(predictors)}) turned into bits per masked gene by {len(rules)} rules "
        "that leave out less and less from top to bottom.",
    )


def criterion_curve(curves: pd.DataFrame, laws: dict) -> Figure | Note:
    """What the published fitter maximises over the floors that it tries, of `lib.fit.published.criterion`.

    The floor by least squares and its interval are those of `laws`, the content of laws.json.
    """
    regimes = list(dict.fromkeys(curves["regime"]))
    if not regimes:
        return Note("The floors that the published fitter tries are drawn for the published runs.")
    figure, axes = style.abreast(len(regimes), height=58)
    for axis, regime in zip(axes, regimes, strict=True):
        curve = curves[curves["regime"] == regime].reset_index(drop=True)
        best, law = curve["r2"].idxmax(), laws.get(regime, {}).get("validation_mse", {})
        axis.plot(curve["c"], curve["r2"], color=THEIRS, linewidth=0.9)
        axis.plot(curve["c"][best], curve["r2"][best], "o", color=THEIRS, **style.DOT)
        low, high = law.get("intervals", {}).get(HEADLINE, {}).get("c") or OPEN
        if None not in (low, high):
            axis.axvspan(low, high, color=style.colours(regimes)[regime], alpha=0.25, linewidth=0)
            axis.axvline(law["c"], color=style.colours(regimes)[regime], linewidth=1)
        axis.set(xlabel="floor c, MSE (log1p expression²)", ylabel="R² of log(L − c) (no unit)")
        style.header(axis, regime, [f"{len(curve)} floors tried; number {best + 1} has the largest R²"])
    style.legend(figure, {
        "floors tried": key(color=THEIRS, linewidth=0.9), "chosen": key(color=THEIRS, marker="o", linestyle=""),
        "floor by least squares, interval": key(color=style.GREY, linewidth=4, alpha=0.5),
    })  # fmt: skip
    return style.settle(
        figure,
        f"R² of log(L − c) on log P, which the published fitter maximises, over the floors that it tries in "
        f"{style.counted(len(regimes), 'regime')}; beside it the floor by least squares where it has an interval.",
    )


def published_audit(runs: pd.DataFrame, curves: pd.DataFrame, refits: pd.DataFrame) -> Figure | Note:
    """What the published runs of one regime show: both fits, best against final loss, and what each choice changes.

    `curves` and `refits` are of `lib.fit.published`: both_fits, refits.
    """
    if curves.empty:
        return Note("The published method fits losses above zero, of two sizes or more.")
    best_of_many = {"evaluations", "final_val_mse"} <= set(runs)
    figure, _ = style.panels(1, 2 + best_of_many, height=72)
    runs = runs.sort_values(["parameters", *["evaluations"] * best_of_many, "validation_mse"])
    _both_fits(figure.axes[0], runs, curves)
    if best_of_many:
        _best_and_final(figure.axes[1], runs)
    _refits(figure.axes[-1], refits)
    _, grey, dashes = style.BASELINES["gene_mean"]
    style.legend(figure, {
        "one run": key(color=OURS, marker="o", linestyle="", markersize=3.5), "least squares, band": key(color=OURS),
        "published method": key(color=THEIRS, linestyle="--"), "gene mean": key(color=grey, linestyle=dashes),
    })  # fmt: skip
    return style.settle(
        figure,
        f"{len(runs)} runs of {runs['size'].nunique()} sizes fitted by least squares and by the published method."
        + " Middle: how far a run's last loss lies above its best." * best_of_many
        + f" Right: the exponent by {len(refits)} choices; black fits have no interval.",
    )  # fmt: skip


def _both_fits(axis, runs, curves):
    places = draw_runs(axis, runs, "validation_mse", OURS)
    for fit, of in curves.groupby("fit"):
        line = {"color": THEIRS, "linestyle": "--"} if fit == "published" else {"color": OURS}
        style.curve(axis, of, linewidth=1, **line)
    _, grey, dashes = style.BASELINES["gene_mean"]
    axis.axhline(runs["gene_mean_mse"].mean(), color=grey, linestyle=dashes, linewidth=0.9)
    low, high = runs["validation_mse"].min(), runs["validation_mse"].max()
    axis.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    style.header(axis, "Two fits of the same runs", above=style.size_names(axis, places))


def _best_and_final(axis, runs):
    """Seeds side by side within a size: how far the last loss lies above the best one reported."""
    by_size, most = runs.groupby("size", sort=False), runs["evaluations"].max()
    x = by_size.ngroup() + 0.26 * (by_size.cumcount() - (by_size["size"].transform("size") - 1) / 2)
    lift = 1000 * (runs["final_val_mse"] - runs["validation_mse"])
    axis.vlines(x, 0, lift, color=OURS, linewidth=1)
    axis.plot(x, lift, "o", color=OURS, markersize=3)
    for number, *spot in zip(runs["evaluations"], x, lift, strict=True):
        if number < most:
            axis.annotate(f"{number}", spot, (0, 3), textcoords="offset points", ha="center",
                          fontsize=style.SMALL, color=style.INK)  # fmt: skip
    axis.set_xticks(range(by_size.ngroups), runs["size"].unique())
    axis.set(xlabel="size (one line per seed)", ylabel="final − best loss (10⁻³ MSE)")
    style.header(axis, "Final minus best loss", [f"numbers: fewer than {most} evaluations"])


def _refits(axis, refits):
    ends = refits[["alpha_low", "alpha", "alpha_high"]].astype(float)
    low, high = np.nanmin(ends), np.nanmax(ends)
    axis.set_xlim(low - 0.12 * (high - low), high + 0.12 * (high - low))
    without = refits["status"].isna()
    for y, of in enumerate(ends.to_numpy()):
        if without.iloc[y]:
            axis.plot(of[1], y, "o", color=THEIRS, **style.DOT)
        else:
            style.interval(axis, y, of, OURS, **style.DOT)
    style.listed(axis, [name.replace(" at the ", " at\n") for name in refits["fit"]])
    axis.set(xlabel="exponent α (no unit)", ylabel="fit (by choice made)")
    style.header(axis, "What a choice changes", ["arrow: an interval without an end"])


def coverage(table: pd.DataFrame, promised: tuple[float, float] = (0.92, 0.98)) -> Figure:
    """How often each interval of data/coverage.csv held the truth, and the shares that the headline promises."""
    methods = [name for name in METHODS if name in set(table["method"])]
    figure, axes = style.panels(1, 2, height=25 + 10 * len(methods))
    cells = table.assign(design=[f"{row.sizes} × {row.seeds}" for row in table.itertuples()])
    cells["cell"] = cells.groupby(["size_effect", "design", "truth"]).ngroup()
    marker = dict(zip(dict.fromkeys(cells["design"]), style.MARKERS, strict=False))
    for axis, name, what in zip(axes.flat, ("alpha", "c"), ("exponent", "floor"), strict=True):
        axis.axvspan(*(100 * end for end in promised), color=style.GREY, alpha=0.15, linewidth=0)
        axis.axvline(100 * table["level"].iloc[0], color=style.GREY, linewidth=0.8, linestyle="--")
        _shares(axis, cells.dropna(subset=[name]), name, methods, marker)
        style.listed(axis, [METHODS[method] for method in methods], shown=name == "alpha")
        axis.set(xlim=(min(100 * promised[0] - 4, axis.get_xlim()[0]), 100.5),
                 xlabel=f"studies whose interval held the {what} (%)")  # fmt: skip
    axes.flat[0].set_ylabel("interval (by method)")
    axes.flat[0].get_yticklabels()[0].set_fontweight("bold" if methods[0] == HEADLINE else "normal")
    grey = {"color": style.GREY, "linestyle": "", "markersize": 4}
    style.legend(figure, {design: key(marker=shape, **grey) for design, shape in marker.items()} | {
        "seed noise": key(color=EFFECT[False], linewidth=3), "and size effect": key(color=EFFECT[True], linewidth=3),
        "floor": key(marker="o", **grey), "no floor": key(marker="o", markerfacecolor="white", **grey),
    })  # fmt: skip
    return style.settle(
        figure,
        f"How often each interval held the truth in {cells['cell'].nunique()} kinds of simulated study, "
        f"{cells['studies'].min():,} or more of each. Bars: 95 % binomial; dashed: what is promised; strip: "
        f"{100 * promised[0]:.3g} to {100 * promised[1]:.3g} %.",
    )


def _shares(axis, cells, name, methods, marker):
    """One dot per simulated cell, below each other within their method."""
    for row in cells.itertuples():
        y = methods.index(row.method) + 0.8 * ((row.cell + 0.5) / (cells["cell"].max() + 1) - 0.5)
        share, colour = getattr(row, name), EFFECT[row.size_effect > 0]
        reach = 1.96 * np.sqrt(share * (1 - share) / row.studies)
        axis.plot([100 * (share - reach), min(100, 100 * (share + reach))], [y, y], color=colour, linewidth=0.6)
        axis.plot(100 * share, y, marker[row.design], color=colour, markersize=3.5, markeredgewidth=0.7, zorder=4,
                  markerfacecolor="white" if row.truth == "no floor" else colour)  # fmt: skip
