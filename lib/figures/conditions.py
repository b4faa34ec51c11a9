"""Figures of what stands beside the laws: conditions compared, a run looked at closely, the published study audited."""

import numpy as np
import pandas as pd
from matplotlib.patheffects import withStroke

from lib.figures import style
from lib.figures.study import draw_runs
from lib.figures.style import BASELINES, OPEN, RULE, Figure, counted, key, loss_label
from lib.fit.capacity import Budgets
from lib.fit.conditions import Depth, Matched
from lib.fit.runs import baseline_columns, usable
from lib.train.evaluate import Examination

SHAPES = {"test_random": "o", "validation": "s", "test": "D", "test_dataset": "^"}  # marker of every held-out split
GENE_MEAN, GAUSSIAN, EXACT = (BASELINES[name][1] for name in ("gene_mean", "gaussian", "floor"))
RUN = "#999933"
OURS, THEIRS = style.PALETTE[0], style.INK


def matched(view: Matched) -> Figure | None:
    """Everything equal but the training cells: the loss of every size, and what size saves."""
    if view.gains is None:
        return None
    figure, (losses, saved) = style.panels(2, 72)
    few, runs = view.few_donors, view.all_donors
    style.size_lines(losses, few, "cells_train", "loss", linestyle=":")
    ends = style.size_lines(losses, runs, "cells_train", "loss")
    columns = baseline_columns(view.metric)
    levels = runs.groupby("cells_train")[list(columns.values())].mean()
    ends += _baselines(losses, levels.set_axis(columns, axis=1))
    losses.set(title="Loss at the best budget", xlabel="training cells (number)", ylabel=loss_label(view.metric),
               xscale="log")  # fmt: skip
    gains = view.gains
    saved.errorbar(gains["cells_train"], gains["gain"], gains["reach"], color=style.INK, **style.BARS)
    saved.axhline(0, color=style.GREY, linewidth=0.6)
    saved.set(xlabel="training cells (number)", ylabel=f"saved {loss_label(view.metric)}", xscale="log")
    style.header(saved, "Gain from size", ["smallest to best size; bars: 95 % from the seeds"])
    keys = {"all donors": key(color=style.INK), "few donors": key(color=style.INK, linestyle=":")}
    return style.settle(
        figure,
        f"Left: loss against training cells, all else equal: {counted(len(runs) + len(few), 'run')} of "
        f"{runs['size'].nunique()} sizes, each at the best of its budgets. Right: what the best size saves against the "
        "smallest one.",
        keys if len(few) else {},
        {losses: ends},
    )


def _baselines(axis, levels):
    """Baselines as lines over the index of `levels`, a column each; returns their labels at the ends."""
    ends = []
    for name, level in levels.items():
        if len(level := level.dropna()):
            label, line = BASELINES[name]
            axis.plot(level.index, level, **RULE, **line)
            ends.append((level.iloc[-1], label, line["color"]))
    return ends


def held_out(explained: pd.DataFrame, leak: pd.DataFrame) -> Figure | None:
    """The first regime's models on every held-out split; `explained` and `leak` are of `lib.fit.conditions`."""
    if explained.empty:
        return None
    regime = explained["regime"].iloc[0]
    shares, keys = explained[explained["regime"] == regime], {}
    leak = leak[leak["regime"] == regime]
    figure, (axis, *others) = style.panels(1 + (len(leak) > 0), 70)
    for (split, cells), rows in shares.groupby(["split", "cells"], sort=False):
        of, line = rows.groupby("parameters")[["explained", "se"]].mean(), {"color": style.SPLITS[split]}
        axis.errorbar(of.index, 100 * of["explained"], 196 * of["se"], fmt=f"{SHAPES[split]}-", markersize=3,
                      capsize=1.5, linewidth=0.9, **line)  # fmt: skip
        keys[cells] = key(marker=SHAPES[split], **line)
    exact = shares["floor"].notna().all()
    share, floor = ("reached (%)", " to its exact floor") if exact else ("explained squared error (%)", "")
    axis.set(xlabel=style.PARAMETERS, ylabel=share, xscale="log")
    style.header(axis, style.title(regime), [f"of the error from each split's gene mean{floor}"])
    for axis in others:  # one, or none
        axis.errorbar(leak["parameters"], 100 * leak["leak"], 196 * leak["se"], color=style.INK, **style.BARS)
        (keys["conditional Gaussian"],) = axis.plot(leak["parameters"], 100 * leak["gaussian"], **GAUSSIAN)
        axis.axhline(0, color=style.GREY, linewidth=0.6)
        axis.set(xlabel=style.PARAMETERS, ylabel="difference in explained error (points)", xscale="log")
        style.header(axis, "Training minus test donors", ["bars: 95 % over cells; that donors differ is not in them"])
    return style.settle(
        figure,
        f"What {len(shares.drop_duplicates(['size', 'seed']))} runs of {regime} explain of the squared error on "
        f"{shares['split'].nunique()} held-out splits"
        + ("; right: by how much more on training than on test donors" * bool(others) + ". Bars: 95 % over cells."),
        keys,
    )


def budget(view: Budgets | None) -> Figure | None:
    """More updates: every size's loss against cells seen, and the floor of each budget's law and in their limit."""
    if view is None:
        return None
    figure, (losses, floors) = style.panels(2, 72)
    ends = style.size_lines(losses, view.runs, "cells_seen", "loss")
    losses.set(title=style.title(view.regime), xlabel="cells seen in training (number)", ylabel=loss_label(view.metric),
               xscale="log")  # fmt: skip
    seen = view.table[["name", "cells_seen"]].to_numpy()
    names = ["infinite training" if name == "limit" else f"{cells:,.0f} cells seen" for name, cells in seen]
    found, known = view.runs["loss"], view.table[["c_low", "c", "c_high"]].astype(float)
    near = known.stack().clip(found.min() - 2 * np.ptp(found), found.max() + np.ptp(found))  # else it leaves the axis
    floors.set(xlim=style.around([found.min(), *near, view.exact]), ylabel="law (by budget)",
               xlabel=f"floor c ({'bits' if view.metric.endswith('nll') else 'MSE'})")  # fmt: skip
    style.intervals(floors, names, known, solid=view.table["status"] == "ok")
    keys = {}
    if view.exact is not None:
        keys["exact floor"] = floors.axvline(view.exact, **RULE, **EXACT)
        losses.axhline(view.exact, **RULE, **EXACT)
    return style.settle(
        figure,
        f"Left: mean loss of every size of {view.regime} after an eighth, a quarter, half and all of its updates. "
        "Right: the floor of each budget's law, and at infinite training.",
        keys | _statuses(view.table),
        {losses: ends},
    )


def _statuses(laws):
    """What a legend says of the solid and the open dots of a table of laws."""
    ok, dot = laws["status"] == "ok", {"color": style.INK, "marker": "o", "linestyle": ""}
    others = ", ".join(laws["status"][~ok].unique())
    names = {"status: ok": (ok.any(), {}), f"status: {others}": (not ok.all(), OPEN)}
    return {name: key(**dot | face) for name, (there, face) in names.items() if there}


def compute(view: Budgets | None) -> Figure | None:
    """Loss against the floating-point operations of training: every size at every budget, and the frontier."""
    if view is None or view.runs["flops"].isna().all():
        return None
    figure, (axis,) = style.panels(1, 72, style.DOUBLE)
    runs, best = view.runs, view.frontier
    colour = style.shades(runs["size"])
    style.size_lines(axis, runs, "flops", "loss", linewidth=0.8)
    first = runs.groupby("size")["cells_seen"].transform("min")
    starts = runs[runs["cells_seen"] == first]  # there, sizes lie furthest apart
    for size, (flops, loss) in starts.groupby("size")[["flops", "loss"]].mean().iterrows():
        axis.annotate(size, (flops, loss), (0, 5), textcoords="offset points", fontsize=style.SMALL,
                      color=colour[size], ha="center", path_effects=[withStroke(linewidth=2, foreground="white")],
                      zorder=5)  # fmt: skip
    frontier = {"color": style.GREY, "linewidth": 3, "alpha": 0.5}
    axis.plot(best["flops"], best["loss"], zorder=0, **frontier)
    keys = {"frontier": key(**frontier)}
    if view.exact is not None:
        keys["exact floor"] = axis.axhline(view.exact, **RULE, **EXACT)
    axis.set(title=style.title(view.regime), xlabel="training compute of a run (FLOPs)", ylabel=loss_label(view.metric),
             xscale="log", ymargin=0.1)  # fmt: skip
    return style.settle(
        figure,
        f"Mean loss of every size of {view.regime} at each of its budgets, against the operations that they take. The "
        f"frontier is what no cheaper run reaches; {counted(best['size'].nunique(), 'size')} lie on it.",
        keys,
    )


def depth(view: Depth | None) -> Figure | None:
    """The same cells with fewer counts: the loss, and the explained share that can be compared between depths."""
    if view is None:
        return None
    figure, (losses, shares) = style.panels(2, 72)
    ends = style.size_lines(losses, view.runs, "depth", "loss")
    ends += _baselines(losses, view.levels.set_index("depth")[["gene_mean", "gaussian", "floor"]])
    losses.set(xlabel="counts kept (share)", ylabel=loss_label(view.metric), xscale="log")
    losses.set_xticks(view.levels["depth"], map(style.short, view.levels["depth"]))
    losses.minorticks_off()
    style.header(losses, "Loss", ["not comparable: each depth has other values to predict"])
    of_regime = style.colours(view.levels["regime"])
    names = []
    for level in view.levels.itertuples():
        of, colour = view.runs[view.runs["depth"] == level.depth], of_regime[level.regime]
        shares.plot(of["parameters"], 100 * of["explained"], marker="o", markersize=3, linewidth=0.9, color=colour)
        for baseline, line in ((level.explained_gaussian, GAUSSIAN), (level.explained_floor, EXACT)):
            if np.isfinite(baseline):
                shares.axhline(100 * baseline, linewidth=0.8, **line | {"color": colour})
        share = "all counts" if level.depth == 1 else f"{level.depth:.3g} of the counts"
        names.append((100 * of["explained"].iloc[-1], share, colour))
    shares.set(xlabel=style.PARAMETERS, ylabel="explained squared error (%)", xscale="log")
    style.header(shares, "Explained", ["of the gene mean's squared error"])
    ink = {"color": style.INK}
    keys = {"runs": key(marker="o", markersize=3, **ink), "conditional Gaussian": key(**GAUSSIAN | ink)}
    exact = bool(view.levels["floor"].notna().any())
    keys |= {"exact floor": key(linewidth=0.8, **ink)} if exact else {}
    return style.settle(
        figure,
        f"The same cells at {counted(len(view.levels), 'depth')}, means over seeds. Left: loss of every size. Right: "
        f"what it explains of the gene mean's squared error, beside the linear model{' and the exact floor' * exact}.",
        keys,
        {losses: ends, shares: names},
    )


def protocols(table: pd.DataFrame, runs: pd.DataFrame) -> Figure | None:
    """Exponent, floor and losses from protocol to protocol; `table` is of `lib.fit.conditions`, `runs` of runs.csv."""
    if table.empty:
        return None
    runs = runs[runs["status"] == "ok"]
    figure, (alpha, floor, losses) = style.panels(3, 78, columns=3)
    regimes, colour = list(table["regime"]), style.colours(table["regime"])
    for axis, name in ((alpha, "alpha"), (floor, "relative_c")):
        ends = table[[f"{name}_low", name, f"{name}_high"]].astype(float).clip(lower=0)
        ends.loc[ends.notna().any(axis=1) & ends[f"{name}_low"].isna(), f"{name}_low"] = 0  # neither can be less
        right = {"alpha": 1.05 * ends.max(axis=None), "relative_c": 1.15}[name]
        axis.set_xlim(0, right if right > 0 else 1)  # NaN where no law has an exponent
        style.intervals(axis, regimes, ends, [colour[regime] for regime in regimes], table["status"] == "ok",
                        shown=axis is alpha)  # fmt: skip
    alpha.set(xlabel="exponent α (no unit)", ylabel="switch (each keeps those above it)")
    floor.set(xlabel="floor c (share of the gene mean)")
    relative = runs["validation_mse"] / runs["gene_mean_mse"]
    for regime, of in relative.groupby(runs["regime"]):
        mean = of.groupby(runs["parameters"]).mean()
        losses.plot(mean.index, mean, color=colour[regime], marker="o", markersize=3, linewidth=0.9)
    losses.axhline(1, **RULE, **GENE_MEAN)
    losses.set(xlabel=style.PARAMETERS, ylabel="validation MSE (relative to the gene mean)", xscale="log", yscale="log")
    return style.settle(
        figure,
        f"From one protocol to another in {counted(len(regimes) - 1, 'step')}: exponent and floor with intervals, and "
        f"losses of all sizes relative to the gene mean, in the colours of the steps ({counted(len(runs), 'run')}).",
        _statuses(table),
    )


def probe(table: pd.DataFrame | None) -> Figure | None:
    """Macro F1 of a linear probe of cell types against the loss of each size; `table` is of `evaluate.probe`."""
    if table is None:
        return None
    figure, (axis,) = style.panels(1, 72, style.DOUBLE)
    sizes, ends, keys = table.dropna(subset="loss"), [], {}
    shade, marks = style.shades(sizes["features"]), style.markers(sizes["features"])
    for row in sizes.itertuples():
        bars = style.BARS | {"fmt": marks[row.features], "color": shade[row.features], "capsize": 1.5}
        reach = np.maximum([[row.f1 - row.low], [row.high - row.f1]], 0)
        keys[row.features] = axis.errorbar(row.loss, row.f1, reach, **bars)
    lines = {"principal components": BASELINES["pca"][1], "all genes": GENE_MEAN}
    for row in table[table["loss"].isna()].itertuples():
        axis.axhline(row.f1, **RULE, **lines[row.features])
        if row.features == "principal components" and np.isfinite([row.low, row.high]).all():
            axis.axhspan(row.low, row.high, color=lines[row.features]["color"], alpha=0.1, linewidth=0)
        ends.append((row.f1, row.features, lines[row.features]["color"]))
    axis.set(xlabel=loss_label("validation_mse"), ylabel="macro F1 of cell types (no unit)")
    return style.settle(
        figure,
        f"A logistic regression of cell types on the mean token of {counted(len(sizes), 'size')}, on held-out cells, "
        "against the loss of the same run (better models left). Bars and band: 95 % over donors, where there are "
        "several. Lines: features without a model.",
        keys,
        {axis: ends},
    )


def by_gene(examined: Examination | None) -> Figure | None:
    """What each gene adds to the squared error that is left."""
    if examined is None:
        return None
    genes = examined.genes
    figure, (errors, shares) = style.panels(2, 66)
    kinds = [("gene mean", "variance", "", style.GREY, "s"), ("run", "residual", "share", RUN, "o"),
             ("exact floor", "floor", "floor_share", EXACT["color"], "D")]  # fmt: skip
    ranks, keys = 100 * np.arange(len(genes) + 1) / len(genes), {}
    for label, column, share, colour, marker in kinds:
        if column in genes:
            errors.plot(genes["mean"], genes[column], marker, color=colour, markersize=3, alpha=0.8, markeredgewidth=0)
            keys[label] = key(color=colour, marker=marker, linestyle="", markersize=4)
        if share in genes:
            carried = 100 * np.concatenate([[0], np.sort(genes[share])[::-1].cumsum()])
            shares.plot(ranks, carried, color=colour, linestyle="--" if label == "exact floor" else "-")
    (keys["all genes alike"],) = shares.plot([0, 100], [0, 100], color=style.GREY, linewidth=0.8, linestyle=":")
    errors.set(xscale="log", yscale="log", xlabel="mean expression (log1p)", ylabel="squared error of a gene (log1p²)")
    style.header(errors, "Error of each gene", [examined.run])
    shares.set(title="Which genes carry it", xlabel="genes, those of most error first (%)", xlim=(0, 100),
               ylabel="share of the squared error (%)", ylim=(0, 102))  # fmt: skip
    return style.settle(
        figure,
        f"Left: squared error of each of {len(genes)} genes on held-out cells, by its mean, for one run. Right: the "
        "share that genes of most error carry"
        + " (dashed: of the floor; single genes may lie below)" * ("floor" in genes)
        + ".",
        keys,
    )


def conversions(examined: Examination | None) -> Figure | None:
    """Bits per masked gene by every rule that turns predictions into them, beside the exact entropy."""
    if examined is None:
        return None
    table = examined.bits
    rules, predictors = list(table["rule"].cat.categories), list(table["predictor"].unique())
    figure, (axis,) = style.panels(1, 22 + 6 * len(rules), style.DOUBLE)
    keys = {}
    for predictor, marker, colour in zip(predictors, "oD", (RUN, EXACT["color"]), strict=False):
        of, dot = table[table["predictor"] == predictor], {"marker": marker, "color": colour, "linestyle": ""}
        dot |= {"markersize": 7} if predictor == predictors[0] else {}  # not hidden by the other
        axis.plot(of["bits"], of["rule"].cat.codes, **style.DOT | dot)
        keys[predictor] = key(**dot)
    *_, second, largest = sorted(table["bits"])
    if largest > 1.5 * second:  # it would squeeze all others: an arrow says where it lies
        axis.set_xlim(right=second + 0.2 * (second - table["bits"].min()))
        y = table["rule"].cat.codes[table["bits"].idxmax()]
        axis.annotate(f"{largest:.3g} →", (1, y), xycoords=axis.get_yaxis_transform(), ha="right", va="center",
                      fontsize=style.SMALL, color=style.INK)  # fmt: skip
    for entropy in table.loc[table["rule"] == "exact entropy", "bits"]:
        keys["exact entropy"] = axis.axvline(entropy, **RULE, **EXACT)
    style.listed(axis, rules)
    axis.set_xlabel("cost of a hidden count (bits per masked gene)")
    axis.set_ylabel("rule (of conversion)", labelpad=8)
    return style.settle(
        figure,
        f"The same predictions ({' and '.join(predictors)}) turned into bits per masked gene by {len(rules)} rules, "
        "from the published one on top to the exact one.",
        keys,
    )


def published_audit(runs: pd.DataFrame, curves: pd.DataFrame, refits: pd.DataFrame) -> Figure | None:
    """Both fits of one regime's runs, and what each choice changes: `both_fits`, `refits` of `lib.fit.published`."""
    if curves.empty:
        return None
    figure, (fits, choices) = style.panels(2, 72)
    runs = usable(runs, "validation_mse").sort_values("parameters")
    places = draw_runs(fits, runs, "validation_mse", OURS)
    for fit, of in curves.groupby("fit"):
        line = {"color": THEIRS, "linestyle": "--"} if fit == "published" else {"color": OURS}
        style.curve(fits, of, linewidth=1, **line)
    (low, high), gene_mean = style.around(runs["validation_mse"], 0.1), runs["gene_mean_mse"].mean()
    fits.axhline(gene_mean, **RULE, **GENE_MEAN)
    fits.set_ylim(low, high)
    style.header(fits, "Two fits of the same runs", above=style.size_names(fits, places))
    ends, without = refits[["alpha_low", "alpha", "alpha_high"]].astype(float), refits["status"].isna()
    choices.set(xlim=style.around(ends, 0.12), xlabel="exponent α (no unit)", ylabel="fit (by choice made)")
    names = [name.replace(" at the ", " at\n") for name in refits["fit"]]
    style.intervals(choices, names, ends, np.where(without, THEIRS, OURS).tolist())
    style.header(choices, "What a choice changes", ["arrow: an interval without an end"])
    keys = {
        "one run": key(color=OURS, marker="o", linestyle="", markersize=3.5), "least squares, band": key(color=OURS),
        "published method": key(color=THEIRS, linestyle="--"),
    }  # fmt: skip
    keys |= {"gene mean": key(**GENE_MEAN)} if low < gene_mean < high else {}
    return style.settle(
        figure,
        f"{len(runs)} runs of {runs['size'].nunique()} sizes fitted by least squares and by the published method. "
        f"Right: the exponent by {len(refits)} choices; black fits have no interval.",
        keys,
    )
