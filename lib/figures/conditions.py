"""Figures of what stands beside the laws: conditions compared, a run looked at closely, the published study audited.

A view of `lib.fit.capacity`, `lib.fit.conditions` or `lib.train.evaluate`, whose class says what it holds, is drawn, or
a sentence given where a study has no such thing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lib.figures import style
from lib.figures.study import draw_runs
from lib.figures.style import Figure, Note, counted, key, loss_label
from lib.fit import conditions
from lib.fit.runs import UNITS

if TYPE_CHECKING:
    import pandas as pd

    from lib.fit.capacity import Budgets
    from lib.fit.conditions import Matched
    from lib.train.evaluate import Examination

SHAPES = {"test_random": "o", "validation": "s", "test": "D", "test_dataset": "^"}
"""Marker of every held-out split."""
OPEN = {"markerfacecolor": "white"}
"""A law whose status is not ok."""
DETERMINED = {
    "law determined": key(color=style.INK, marker="o", linestyle=""),
    "not determined": key(color=style.INK, marker="o", linestyle="", **OPEN),
}
"""What a legend says of both."""
RUN, EXACT = "#999933", style.BASELINES["floor"][1]
COLOURS = {"run": RUN, "exact posterior": EXACT}
"""Of each predictor."""
OURS, THEIRS = style.PALETTE[0], style.INK


def matched(view: Matched) -> Figure | Note:
    """Everything equal but the training cells: the loss of every size, and what size saves."""
    if view.gains is None:
        return Note(view.sentence)
    figure, axes = style.panels(1, 2, height=72)
    losses, saved = axes.flat
    few, runs = view.few_donors, view.all_donors.sort_values("parameters")
    style.size_lines(losses, few.sort_values("parameters"), "cells_train", "loss", linestyle=":")
    ends = style.size_lines(losses, runs, "cells_train", "loss")
    for name in ("floor", "gaussian"):
        level = runs.groupby("cells_train")[UNITS[view.metric.rsplit("_", 1)[1]][name]].mean().dropna()
        if len(level):
            label, colour, dashes = style.BASELINES[name]
            losses.plot(level.index, level, color=colour, linestyle=dashes, linewidth=0.9, zorder=1)
            ends.append((level.iloc[-1], label, colour))
    losses.set(xlabel="training cells (number)", ylabel=loss_label(view.metric))
    style.header(losses, "Loss at equal updates")
    bars = style.DOT | {"fmt": "o", "color": style.INK, "capsize": 2}
    saved.errorbar(view.gains["cells_train"], view.gains["gain"], 1.96 * view.gains["se"], **bars)
    saved.axhline(0, color=style.GREY, linewidth=0.6)
    saved.set(xlabel="training cells (number)", ylabel=f"saved {loss_label(view.metric)}")
    style.header(saved, "Gain from size", ["smallest to best size; bars: 95 % from the seeds"])
    style.log_axis(losses.xaxis, saved.xaxis)
    style.end_labels(losses, ends)
    if len(few):
        style.legend(figure, {"all donors": key(color=style.INK), "few donors": key(color=style.INK, linestyle=":")})
    return style.settle(
        figure,
        f"Left: loss against training cells, all else equal: {counted(len(runs) + len(few), 'run')} of "
        f"{runs['size'].nunique()} sizes. Right: what the best size saves against the smallest one.",
    )


def held_out(explained: pd.DataFrame) -> Figure | Note:
    """The first regime's models on every held-out split: reducible error explained, and what a random split leaks.

    `explained` is what `lib.fit.conditions.explained` gives.
    """
    if explained.empty:
        return Note("These runs were measured on one held-out split alone.")
    regime = explained["regime"].iloc[0]
    shares, keys = explained[explained["regime"] == regime], {}
    leak = conditions.leak(shares)
    figure, axes = style.panels(1, 1 + (len(leak) > 0), height=70)
    for (split, cells), rows in shares.groupby(["split", "cells"], sort=False):
        of, line = rows.groupby("parameters")[["explained", "se"]].mean(), {"color": style.SPLITS[split]}
        axes.flat[0].errorbar(of.index, 100 * of["explained"], 196 * of["se"], fmt=f"{SHAPES[split]}-", markersize=3,
                              capsize=1.5, linewidth=0.9, **line)  # fmt: skip
        keys[cells] = key(marker=SHAPES[split], **line)
    axes.flat[0].set(xlabel=style.PARAMETERS, ylabel="explained share of the reducible error (%)")
    style.header(axes.flat[0], regime, ["relative to each split's own gene mean and floor"])
    style.log_axis(axes.flat[0].xaxis)
    if len(leak):
        keys["conditional Gaussian"] = _leak(axes.flat[1], leak)
    style.legend(figure, keys)
    return style.settle(
        figure,
        f"Share of the reducible error that {len(shares.drop_duplicates(['size', 'seed']))} runs of {regime} "
        f"explain on {shares['split'].nunique()} held-out splits"
        + ("; right: what cells of training donors make look better" * bool(len(leak)) + ". Bars: 95 % over cells."),
    )


def _leak(axis, leak):
    """What a random split leaks; returns what the legend explains."""
    bars = style.DOT | {"fmt": "o", "color": style.INK, "capsize": 2}
    axis.errorbar(leak["parameters"], 100 * leak["leak"], 196 * leak["se"], **bars)
    (line,) = axis.plot(leak["parameters"], 100 * leak["gaussian"], "--", color=style.BASELINES["gaussian"][1])
    axis.axhline(0, color=style.GREY, linewidth=0.6)
    axis.set(xlabel=style.PARAMETERS, ylabel="training donors minus other donors (%)")
    style.header(axis, "What a random split leaks", ["bars: 95 % over the cells of both splits"])
    style.log_axis(axis.xaxis)
    return line


def budget(view: Budgets | None) -> Figure | Note:
    """More updates: every size's loss against cells seen, and the floor of each budget's law and in their limit."""
    if view is None:
        return Note("These runs have one budget each.")
    figure, axes = style.panels(1, 2, height=72)
    losses, floors = axes.flat
    ends = style.size_lines(losses, view.runs.sort_values("parameters"), "cells_seen", "loss")
    losses.set(xlabel="cells seen in training (number)", ylabel=loss_label(view.metric))
    style.log_axis(losses.xaxis)
    style.log_ticks(losses.xaxis)
    style.header(losses, view.regime)
    names = [f"{seen:,.0f} cells seen" if np.isfinite(seen) else "limit" for seen in view.table["cells_seen"]]
    near = [*view.runs["loss"], *[view.exact] * (view.exact is not None)]
    room = 0.1 * np.ptp(near)
    floors.set(
        xlim=(min(near) - 3 * room, np.quantile(view.runs["loss"], 0.6)),
        xlabel=f"floor c ({'bits' if view.metric.endswith('nll') else 'MSE'})",
        ylabel="law (of a budget, or in the limit)",
    )
    for y, row in enumerate(view.table.itertuples()):
        interval = np.array([row.c_low, row.c, row.c_high], float)
        style.interval(floors, y, interval, **{} if row.status == "ok" else OPEN)
    style.listed(floors, names)
    keys = {}
    if view.exact is not None:
        keys["exact floor"] = floors.axvline(view.exact, color="black", linewidth=0.9, zorder=1)
        losses.axhline(view.exact, color="black", linewidth=0.9, zorder=1)
    style.end_labels(losses, ends)
    style.legend(figure, keys | DETERMINED)
    return style.settle(
        figure,
        f"Left: mean loss of every size of {view.regime} after an eighth, a quarter, half and all of its updates. "
        "Right: the floor of each budget's law, and in the limit of the budget.",
    )


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
