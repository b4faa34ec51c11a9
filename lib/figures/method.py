"""Figures of the method: a run looked at closely, and the published study audited.

Those of one run draw a `lib.train.evaluate.Examination`, whose class says what it holds, or give its sentence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lib.figures import style
from lib.figures.study import draw_runs
from lib.figures.style import Figure, Note, key

if TYPE_CHECKING:
    from lib.train.evaluate import Examination

RUN, EXACT = "#999933", style.BASELINES["floor"][1]
COLOURS = {"run": RUN, "exact posterior": EXACT}
"""Of each predictor."""
OURS, THEIRS = style.PALETTE[0], style.INK


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


def published_audit(runs: pd.DataFrame, curves: pd.DataFrame, refits: pd.DataFrame) -> Figure | Note:
    """What the published runs of one regime show: both fits, and what each choice changes.

    `curves` and `refits` are of `lib.fit.published`: both_fits, refits.
    """
    if curves.empty:
        return Note("The published method fits losses above zero, of three sizes or more.")
    figure, axes = style.panels(1, 2, height=72)
    _both_fits(axes.flat[0], runs.sort_values("parameters"), curves)
    _refits(axes.flat[1], refits)
    _, grey, dashes = style.BASELINES["gene_mean"]
    style.legend(figure, {
        "one run": key(color=OURS, marker="o", linestyle="", markersize=3.5), "least squares, band": key(color=OURS),
        "published method": key(color=THEIRS, linestyle="--"), "gene mean": key(color=grey, linestyle=dashes),
    })  # fmt: skip
    return style.settle(
        figure,
        f"{len(runs)} runs of {runs['size'].nunique()} sizes fitted by least squares and by the published method. "
        f"Right: the exponent by {len(refits)} choices; black fits have no interval.",
    )


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
