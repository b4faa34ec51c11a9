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
from lib.fit.law import IDENTIFIED
from lib.fit.runs import UNITS

if TYPE_CHECKING:
    import pandas as pd

    from lib.fit.capacity import Budgets
    from lib.fit.conditions import Depth, Matched
    from lib.train.evaluate import Examination

SHAPES = {"test_random": "o", "validation": "s", "test": "D", "test_dataset": "^"}
"""Marker of every held-out split."""
OPEN = {"markerfacecolor": "white"}
"""A law whose floor is not identified, or its budget's."""
DETERMINED = {
    "floor identified": key(color=style.INK, marker="o", linestyle=""),
    "not identified, or the budget's": key(color=style.INK, marker="o", linestyle="", **OPEN),
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
    columns = UNITS[view.metric.rsplit("_", 1)[1]]
    levels = runs.groupby("cells_train")[[columns["floor"], columns["gaussian"]]].mean()
    ends += _baselines(losses, levels.set_axis(["floor", "gaussian"], axis=1))
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


def _baselines(axis, levels):
    """Baselines as lines over the index of `levels`, a column each; returns what `style.end_labels` takes."""
    ends = []
    for name, level in levels.items():
        if len(level := level.dropna()):
            label, colour, dashes = style.BASELINES[name]
            axis.plot(level.index, level, color=colour, linestyle=dashes, linewidth=0.9, zorder=1)
            ends.append((level.iloc[-1], label, colour))
    return ends


def held_out(explained: pd.DataFrame, leak: pd.DataFrame) -> Figure | Note:
    """The first regime's models on every held-out split: reducible error explained, and what a random split leaks.

    `explained` and `leak` are what the functions of these names in `lib.fit.conditions` give.
    """
    if explained.empty:
        return Note("These runs were measured on one held-out split alone.")
    regime = explained["regime"].iloc[0]
    shares, keys = explained[explained["regime"] == regime], {}
    leak = leak[leak["regime"] == regime]
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
        + ("; right: by how much more on training than on test donors" * bool(len(leak)) + ". Bars: 95 % over cells."),
    )


def _leak(axis, leak):
    """What a random split leaks; returns what the legend explains."""
    bars = style.DOT | {"fmt": "o", "color": style.INK, "capsize": 2}
    axis.errorbar(leak["parameters"], 100 * leak["leak"], 196 * leak["se"], **bars)
    (line,) = axis.plot(leak["parameters"], 100 * leak["gaussian"], "--", color=style.BASELINES["gaussian"][1])
    axis.axhline(0, color=style.GREY, linewidth=0.6)
    axis.set(xlabel=style.PARAMETERS, ylabel="training minus test donors (%)")
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
    limits = {"limit": "limit, size by size", "joint": "limit, joint law"}
    names = [
        limits.get(name, f"{seen:,.0f} cells seen") for name, seen in view.table[["name", "cells_seen"]].to_numpy()
    ]
    found, known = view.runs["loss"], view.table[["c_low", "c", "c_high"]].astype(float).stack()
    known = known.clip(found.min() - 2 * np.ptp(found), found.max())  # what is wider leaves the axis
    near = [found.min(), *known, *[view.exact] * (view.exact is not None)]
    room = 0.05 * np.ptp(near)
    floors.set(
        xlim=(min(near) - room, max(near) + room),
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


def compute(view: Budgets | None) -> Figure | Note:
    """Loss against the floating-point operations of training: every size at every budget, and the frontier."""
    if view is None or view.runs["flops"].isna().all():
        return Note("The operations of these runs, or several budgets of them, are not known.")
    figure, axes = style.panels(1, 1, height=72, width=style.DOUBLE)
    axis, best = axes.flat[0], view.frontier
    runs = view.runs.sort_values("parameters")
    colour = style.shades(runs["size"])
    style.size_lines(axis, runs, "flops", "loss", linewidth=0.8)
    starts = runs[runs["cells_seen"] == runs["cells_seen"].min()]  # there, sizes lie furthest apart
    for size, (flops, loss) in starts.groupby("size")[["flops", "loss"]].mean().iterrows():
        axis.annotate(size, (flops, loss), (0, 5), textcoords="offset points", fontsize=style.SMALL,
                      color=colour[size], ha="center")  # fmt: skip
    axis.plot(best["flops"], best["loss"], color=style.INK, linewidth=1.6, zorder=0)
    keys = {"frontier": key(color=style.INK, linewidth=1.6)}
    if view.exact is not None:
        keys["exact floor"] = axis.axhline(view.exact, color=EXACT, linewidth=0.9, zorder=0)
    axis.set(xlabel="training compute of a run (FLOPs)", ylabel=loss_label(view.metric))
    style.log_axis(axis.xaxis)
    style.header(axis, view.regime)
    style.legend(figure, keys)
    return style.settle(
        figure,
        f"Mean loss of every size of {view.regime} at each of its budgets, against the operations that they take. The "
        f"frontier is what no cheaper run reaches; {counted(best['size'].nunique(), 'size')} lie on it.",
    )


def depth(view: Depth | None) -> Figure | Note:
    """The same cells with fewer counts: the loss, and the explained share that can be compared between depths."""
    if view is None:
        return Note("All regimes of this study have the same depth.")
    figure, axes = style.panels(1, 2, height=72)
    losses, shares = axes.flat
    ends = style.size_lines(losses, view.runs.sort_values("parameters"), "depth", "loss")
    ends += _baselines(losses, view.levels.set_index("depth")[["gene_mean", "gaussian", "floor"]])
    losses.set(xlabel="counts kept (share)", ylabel=loss_label(view.metric))
    losses.set_xscale("log", base=2)
    losses.xaxis.set_major_formatter(style.FuncFormatter(style.short))
    style.header(losses, "Loss", ["the fewer counts, the less there is to predict"])
    of_regime = style.colours(view.levels["regime"])
    names = []
    for level in view.levels.itertuples():
        of, line = view.runs[view.runs["depth"] == level.depth], {"color": of_regime[level.regime]}
        shares.plot(of["parameters"], 100 * of["explained"], marker="o", markersize=3, linewidth=0.9, **line)
        shares.axhline(100 * level.explained_gaussian, linestyle=style.BASELINES["gaussian"][2], linewidth=0.8, **line)
        if np.isfinite(level.explained_floor):
            shares.axhline(100 * level.explained_floor, linewidth=0.8, **line)
        names.append((100 * of["explained"].iloc[-1], f"{level.depth:.3g} of the counts", of_regime[level.regime]))
    shares.set(xlabel=style.PARAMETERS, ylabel="explained squared error (%)")
    style.header(shares, "Explained", ["of the gene mean's squared error"])
    style.log_axis(shares.xaxis)
    style.end_labels(losses, ends)
    style.end_labels(shares, names)
    style.legend(figure, {
        "runs": key(color=style.INK, marker="o", markersize=3), "exact floor": key(color=style.INK, linewidth=0.8),
        "conditional Gaussian": key(color=style.INK, linestyle=style.BASELINES["gaussian"][2]),
    })  # fmt: skip
    return style.settle(
        figure,
        f"The same cells at {counted(len(view.levels), 'depth')}, means over seeds. Left: loss of every size. Right: "
        "what it explains of the gene mean's squared error, beside the linear model and the exact floor of each depth.",
    )


def protocols(table: pd.DataFrame, runs: pd.DataFrame) -> Figure | Note:
    """From one protocol to another, switch by switch: exponent, floor, and the losses of all sizes.

    `table` is what `lib.fit.conditions.protocols` gives, and `runs` the content of runs.csv.
    """
    if table.empty:
        return Note("This study has one protocol. `make run STUDY=protocol` goes from the published to the tuned one.")
    runs = runs[runs["status"] == "ok"]
    figure, axes = style.panels(1, 3, height=78)
    alpha, floor, losses = axes.flat
    regimes, colour = list(table["regime"]), style.colours(table["regime"])
    for axis, name in ((alpha, "alpha"), (floor, "relative_c")):
        ends = table[[f"{name}_low", name, f"{name}_high"]].astype(float).fillna({f"{name}_low": 0}).clip(lower=0)
        axis.set_xlim(0, 1.05 * np.nanmax(ends) if name == "alpha" else 1.15)
        for y, (regime, status) in enumerate(zip(regimes, table["status"], strict=True)):
            style.interval(axis, y, ends.iloc[y], colour[regime], **{} if status in IDENTIFIED else OPEN)
        style.listed(axis, regimes, shown=axis is alpha)
    alpha.set(xlabel="exponent α (no unit)", ylabel="switch (each keeps those above it)")
    floor.set(xlabel="floor c (share of the gene mean)")
    relative = runs["validation_mse"] / runs["gene_mean_mse"]
    for regime, of in relative.groupby(runs["regime"]):
        mean = of.groupby(runs["parameters"]).mean()
        losses.plot(mean.index, mean, color=colour[regime], marker="o", markersize=3, linewidth=0.9)
    losses.axhline(1, color=style.BASELINES["gene_mean"][1], linestyle=":", linewidth=0.9, zorder=0)
    losses.set(xlabel=style.PARAMETERS, ylabel="validation MSE (relative to the gene mean)", yscale="log")
    style.log_axis(losses.xaxis)
    style.log_ticks(losses.yaxis)
    style.legend(figure, DETERMINED)
    return style.settle(
        figure,
        f"From one protocol to another in {counted(len(regimes) - 1, 'step')}: exponent and floor with intervals, and "
        f"losses of all sizes relative to the gene mean, in the colours of the steps ({counted(len(runs), 'run')}).",
    )


def probe(table: pd.DataFrame | None) -> Figure | Note:
    """Macro F1 of a linear probe of cell types against the loss of each size; `table` is of `evaluate.probe`."""
    if table is None:
        return Note("The cells of this study have no two types.")
    figure, axes = style.panels(1, 1, height=72, width=style.DOUBLE)
    axis, sizes, ends, keys = axes.flat[0], table.dropna(subset="loss"), [], {}
    shade, marks = style.shades(sizes["features"]), style.markers(sizes["features"])
    for row in sizes.itertuples():
        bars = style.DOT | {"fmt": marks[row.features], "color": shade[row.features], "capsize": 1.5}
        keys[row.features] = axis.errorbar(row.loss, row.f1, [[row.f1 - row.low], [row.high - row.f1]], **bars)
    lines = {"principal components": style.BASELINES["pca"], "all genes": style.BASELINES["gene_mean"]}
    for row in table[table["loss"].isna()].itertuples():
        _, colour, dashes = lines[row.features]
        axis.axhline(row.f1, color=colour, linestyle=dashes, linewidth=0.9, zorder=0)
        ends.append((row.f1, row.features, colour))
    axis.set(xlabel=loss_label("validation_mse"), ylabel="macro F1 of cell types (no unit)")
    style.end_labels(axis, ends)
    style.legend(figure, keys)
    return style.settle(
        figure,
        f"A logistic regression of cell types on the mean token of {counted(len(sizes), 'size')}, on held-out donors, "
        "against the loss of the same run. Bars: 95 % over donors. Lines: the same on features without a model.",
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
