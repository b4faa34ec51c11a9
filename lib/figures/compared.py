"""Figures that compare conditions: training cells, held-out sides, protocols."""

import itertools

import numpy as np
from matplotlib.lines import Line2D

from lib.figures import look
from lib.figures.shown import Note, counted
from lib.figures.study import PARAMETERS, loss_label

SIDES = {
    "test_random": ("cells of training donors", "#D55E00", "o"),
    "validation": ("other donors", "#0072B2", "s"),
    "test": ("other donors again", "#56B4E9", "D"),
    "test_dataset": ("other data sets", "#000000", "^"),
}
"""Label, colour and marker of every held-out side."""


def matched(all_donors=None, few_donors=None, gains=None, turning=None, metric="validation_mse", sentence="", **_):
    """Everything equal but the training cells: the loss of every size, and what size saves.

    Parameters
    ----------
    all_donors, few_donors : DataFrame
        Runs, from lib.fit.conditions.data_axis: size, parameters, cells_train, loss and the baselines of their cells.
    gains : DataFrame
        From lib.fit.conditions.gains: cells_train, gain, se.
    turning : DataFrame, optional
        From lib.fit.joint.frontier: cells, cells_per_parameter (NaN beyond the fitted sizes), for the caption.
    sentence : str
        What stands in place of the panels where there is no matched axis.

    Returns
    -------
    Figure with two panels
    """
    if gains is None:
        return Note(sentence)
    figure, axes = look.panels(1, 2, height=72)
    losses, saved = axes.flat
    sizes = list(all_donors.sort_values("parameters")["size"].unique())
    shade, marker = look.shades(sizes), look.markers(sizes)
    ends = []
    for size in sizes:
        for rows, dashes in ((all_donors, "-"), (few_donors, ":")):
            of = rows[rows["size"] == size].groupby("cells_train")["loss"].mean()
            losses.plot(of.index, of, dashes, color=shade[size], marker=marker[size], markersize=3)
        ends.append(
            (all_donors[all_donors["size"] == size].groupby("cells_train")["loss"].mean().iloc[-1], size, shade[size])
        )
    for name in ("bayes", "gaussian"):
        column = f"{name}_mse" if metric.endswith("mse") else {"bayes": "bayes_bits", "gaussian": "gaussian_nll"}[name]
        known = all_donors.groupby("cells_train")[column].mean().dropna()
        if len(known):
            label, colour, dashes = look.BASELINES[name]
            losses.plot(known.index, known, color=colour, linestyle=dashes, linewidth=0.9, zorder=1)
            ends.append((known.iloc[-1], label, colour))
    look.log_axis(losses.xaxis)
    losses.set(xlabel="training cells (number)", ylabel=loss_label(metric))
    look.header(losses, "Loss at equal updates")
    look.end_labels(losses, ends)
    saved.errorbar(
        gains["cells_train"], gains["gain"], 1.96 * gains["se"], fmt="o", color=look.INK, capsize=2, **look.DOT
    )
    saved.axhline(0, color=look.GREY, linewidth=0.6)
    look.log_axis(saved.xaxis)
    saved.set(xlabel="training cells (number)", ylabel=f"saved {loss_label(metric)}")
    look.header(saved, "Gain from size", ["smallest to best size; bars: 95 % from the seeds"])
    keys = {"all donors": Line2D([], [], color=look.INK), "few donors": Line2D([], [], color=look.INK, linestyle=":")}
    if len(few_donors):
        look.legend(figure, list(keys.values()), list(keys))
    return look.settle(
        figure,
        f"Left: loss against training cells, all else equal: {counted(len(all_donors) + len(few_donors), 'run')} "
        f"of {len(sizes)} sizes{', dotted where the cells are of few donors' * bool(len(few_donors))}. Right: what the "
        f"best size saves against the smallest one. {sentence} {_balance(turning)}",
    )


def _balance(turning):
    """At how many cells per parameter a little more of either buys the same: no constant, so one number to a place."""
    if turning is None:
        return ""
    found = [
        f"beyond the fitted sizes at {row.cells:,.0f} cells"
        if np.isnan(row.cells_per_parameter)
        else f"{row.cells_per_parameter:.3g} cells per parameter at {row.cells:,.0f}"
        for row in turning.itertuples()
    ]
    return f"Size and cells limit equally: {'; '.join(found)}."


def held_out(shares=None, leak=None, regime="", sentence="", **_):
    """The same models on every held-out split: share of its reducible error explained, and what a random split leaks.

    Parameters
    ----------
    shares : DataFrame
        From lib.fit.conditions.explained: regime, split, parameters, explained, se, gaussian.
    leak : DataFrame
        From lib.fit.conditions.leak: regime, parameters, leak, se, gaussian.
    regime : str
        The regime shown.
    sentence : str
        What stands in place of the panels where there is but one side.

    Returns
    -------
    Figure with two panels
    """
    if shares is None:
        return Note(sentence)
    figure, axes = look.panels(1, 2, height=70)
    share, gap = axes.flat
    of_regime = shares[shares["regime"] == regime]
    for side, (_, colour, marker) in SIDES.items():
        of = of_regime[of_regime["split"] == side].groupby("parameters")[["explained", "se"]].mean()
        if len(of):
            style = {"fmt": marker + "-", "color": colour, "markersize": 3, "capsize": 1.5, "linewidth": 0.9}
            share.errorbar(of.index, 100 * of["explained"], 196 * of["se"], **style)
    look.log_axis(share.xaxis)
    share.set(xlabel=PARAMETERS, ylabel="explained share of the reducible error (%)")
    look.header(share, regime, ["relative to each side's own gene mean and floor"])
    of = leak[leak["regime"] == regime]
    bars = {"fmt": "o", "color": look.INK, "capsize": 2} | look.DOT
    gap.errorbar(of["parameters"], 100 * of["leak"].astype(float), 196 * of["se"].astype(float), **bars)
    gap.plot(of["parameters"], 100 * of["gaussian"].astype(float), color=look.BASELINES["gaussian"][1], linestyle="--")
    gap.axhline(0, color=look.GREY, linewidth=0.6)
    if len(of):
        look.log_axis(gap.xaxis)
    gap.set(xlabel=PARAMETERS, ylabel="training donors minus other donors (%)")
    look.header(gap, "What a random split leaks", ["bars: 95 % over the cells of both sides"])
    keys = {SIDES[side][0]: Line2D([], [], color=SIDES[side][1], marker=SIDES[side][2]) for side in SIDES
            if (of_regime["split"] == side).any()}  # fmt: skip
    keys["conditional Gaussian"] = Line2D([], [], color=look.BASELINES["gaussian"][1], linestyle="--")
    look.legend(figure, list(keys.values()), list(keys))
    return look.settle(
        figure,
        f"Left: share of the reducible error that {of_regime.drop_duplicates(['size', 'seed']).shape[0]} runs of "
        f"{regime} explain on {of_regime['split'].nunique()} held-out sides, each relative to its own gene mean and "
        f"floor. Right: what cells of training donors make look better. Bars are 95 % over cells. {sentence}",
    )


def budget(runs=None, table=None, joint=None, exact=None, sentence=""):
    """More updates: the loss of every size against cells seen, and the floor of each budget's law.

    Parameters
    ----------
    runs : DataFrame
        From lib.fit.conditions.budgets: size, parameters, cells_seen, loss.
    table : DataFrame
        From lib.fit.conditions.floors: cells_seen, c, c_low, c_high, status.
    joint : dict
        From lib.fit.conditions.limit: value, low, high of the floor when size and budget are large.
    exact : float, optional
        The exact floor.
    sentence : str
        What stands in place of the panels where a study has one budget.

    Returns
    -------
    Figure with two panels
    """
    if table is None:
        return Note(sentence)
    figure, axes = look.panels(1, 2, height=72)
    keys = _losses_of_budgets(axes.flat[0], runs, exact) | _floors_of_budgets(axes.flat[1], table, joint, exact)
    for axis in axes.flat:
        look.log_axis(axis.xaxis)
        look.log_ticks(axis.xaxis)
        axis.set_xlabel("cells seen in training (number)")
    look.legend(figure, list(keys.values()), list(keys))
    return look.settle(
        figure,
        f"Left: mean loss of every size against the cells seen in training ({len(runs):,} losses, those of half the "
        "updates included). Right: the floor of each budget's law with its 95 % interval, the loss of the largest "
        f"size, and the floor of the joint law in parameters and cells seen with its band; open where no law is named, "
        f"on the edge where it lies beyond. {sentence}",
    )


def _losses_of_budgets(axis, runs, exact):
    """A line for each size, named at its end; returns what the legend explains."""
    means = runs.groupby(["parameters", "size", "cells_seen"], as_index=False)["loss"].mean()
    sizes = list(means["size"].unique())
    shade, marker, ends = look.shades(sizes), look.markers(sizes), []
    for size, of in means.groupby("size"):
        axis.plot(of["cells_seen"], of["loss"], color=shade[size], marker=marker[size], markersize=3)
        ends.append((of["loss"].iloc[-1], size, shade[size]))
    axis.set_ylabel(loss_label("validation_mse"))
    keys = {}
    if exact is not None:
        keys["exact floor"] = axis.axhline(exact, color="black", linewidth=0.9, zorder=1)
    look.end_labels(axis, ends)
    return keys


def _floors_of_budgets(axis, table, joint, exact):
    """Floor and interval of every budget, open where no law is named; returns what the legend explains."""
    table = table.astype(dict.fromkeys(("c", "c_low", "c_high"), float))
    named, green = table["status"] == "ok", {"color": look.PALETTE[2]}
    known = [*table["c"][named], *table["largest"], *([] if exact is None else [exact])]
    bottom, top = min(known) - 0.6 * np.ptp(known), max(known) + 0.2 * np.ptp(known)
    low, high = (table[f"c_{end}"].fillna(edge).clip(bottom, top) for end, edge in (("low", bottom), ("high", top)))
    axis.vlines(table["cells_seen"], low, high, color=look.INK, linewidth=1)
    dot = {"color": look.INK, "marker": "o", "linestyle": "", "markersize": 4}
    keys = {"floor of the law": Line2D([], [], **dot)}
    axis.plot(table["cells_seen"][named], table["c"][named], **dot)
    if not named.all():
        open_dot = dot | {"markerfacecolor": "white", "clip_on": False}
        axis.plot(table["cells_seen"][~named], table["c"][~named].clip(bottom, top), **open_dot)
        keys["no law named"] = Line2D([], [], **open_dot)
    (keys["loss of the largest size"],) = axis.plot(table["cells_seen"], table["largest"], "--", color=look.GREY)
    axis.axhspan(max(joint["low"], bottom), min(joint["high"], top), alpha=0.2, linewidth=0, **green)
    keys["floor of the joint law"] = axis.axhline(joint["value"], linewidth=0.9, **green)
    if exact is not None:
        axis.axhline(exact, color="black", linewidth=0.9)
    axis.set(ylim=(bottom, top), ylabel="floor c (MSE)")
    return keys


def protocols(table=None, runs=None, sentence=""):
    """From one protocol to another, switch by switch: exponent, floor, and the losses of all sizes.

    Parameters
    ----------
    table : DataFrame
        From lib.fit.conditions.switches.
    runs : DataFrame
        Table of runs.csv, for the losses relative to the gene mean.
    sentence : str
        What stands in place of the panels where a study has one protocol.

    Returns
    -------
    Figure with three panels
    """
    if table is None:
        return Note(sentence)
    figure, axes = look.panels(1, 3, height=78)
    regimes = list(table["regime"])
    labels = {"alpha": "exponent α (no unit)", "relative_c": "floor c (share of the gene mean)"}
    for axis, (name, label) in zip(axes.flat, labels.items(), strict=False):
        values = table[[name, f"{name}_low", f"{name}_high"]].astype(float).to_numpy()
        low, high = 0, np.nanmax(values) if name == "alpha" else 1.15
        for y, (value, start, end) in enumerate(values):
            axis.plot([max(low, np.nan_to_num(start, nan=low)), min(high, np.nan_to_num(end, nan=high))], [y, y],
                      color=look.INK, linewidth=1)  # fmt: skip
            named = table["status"].iloc[y] == "ok"
            axis.plot(
                np.clip(value, low, high),
                y,
                "o",
                color=look.INK,
                markersize=4,
                markerfacecolor=look.INK if named else "white",
            )
        axis.set(xlim=(low, high), ylim=(len(regimes) - 0.5, -0.5), xlabel=label)
        axis.set_yticks(range(len(regimes)), regimes if axis is axes.flat[0] else [])
        axis.tick_params(axis="y", length=0)
    axes.flat[0].set_ylabel("switch (each keeps those above it)")
    shade, marker = look.shades(regimes), dict(zip(regimes, itertools.cycle(look.MARKERS), strict=False))
    for regime in regimes:
        of = runs[(runs["regime"] == regime) & (runs["status"] == "ok")]
        relative = (of["validation_mse"] / of["gene_mean_mse"]).groupby(of["parameters"]).mean()
        style = {"color": shade[regime], "marker": marker[regime], "markersize": 3.5}
        axes.flat[2].plot(relative.index, relative, linewidth=0.9, **style)
    axes.flat[2].axhline(1, color=look.BASELINES["gene_mean"][1], linestyle=":", linewidth=0.9, zorder=0)
    look.log_axis(axes.flat[2].xaxis)
    axes.flat[2].set(xlabel=PARAMETERS, ylabel="validation MSE (relative to the gene mean)", yscale="log")
    look.log_ticks(axes.flat[2].yaxis)
    keys = {
        regime: Line2D([], [], color=shade[regime], marker=marker[regime], markersize=3.5, linewidth=0.9)
        for regime in regimes
    }
    keys["law is named"] = Line2D([], [], color=look.INK, marker="o", linestyle="", markersize=4)
    keys["no law named"] = Line2D(
        [], [], color=look.INK, marker="o", linestyle="", markersize=4, markerfacecolor="white"
    )
    look.legend(figure, list(keys.values()), list(keys))
    return look.settle(
        figure,
        f"From one protocol to another in {len(regimes) - 1} steps, each keeping those above it: exponent and floor "
        f"with their intervals, and the loss of every size relative to its gene mean ({counted(len(runs), 'run')}). An "
        f"open circle is a law that cannot be named. {sentence}",
    )


def replicates(table):
    """The interval of c in every replicated study, relative to the exact floor, sorted by c.

    Parameters
    ----------
    table : DataFrame
        data/replicates.csv: objective, c, low, high, exact, family.

    Returns
    -------
    Figure, a panel for each objective; red where the interval misses the floor, open ends run to the edge
    """
    objectives = list(table["objective"].unique())
    figure, axes = look.panels(1, len(objectives), height=80)
    for axis, objective in zip(axes.flat, objectives, strict=True):
        of = table[table["objective"] == objective].sort_values("c", ignore_index=True)
        ends = 100 * (of[["low", "c", "high"]].div(of["exact"], axis=0) - 1)
        low, high = ends["c"].quantile([0.1, 0.9])  # a floor that a study did not find may lie anywhere
        left, right = min(-10, low - 5), high + 15
        for y, (low, c, high) in enumerate(ends.to_numpy()):
            low, high = np.nan_to_num(low, nan=-np.inf), np.nan_to_num(high, nan=np.inf)
            colour = "#0072B2" if low <= 0 <= high else "#D55E00"
            axis.plot([max(low, left), min(high, right)], [y, y], color=colour, linewidth=0.8)
            marker = "<" if c < left else ">" if c > right else "o"
            axis.plot(np.clip(c, left, right), y, marker, color=colour, markersize=2, clip_on=False)
        axis.axvline(0, color="black", linewidth=0.9)
        family = 100 * (of["family"] / of["exact"] - 1).median()
        axis.axvline(family, color=look.GREY, linewidth=0.8, linestyle="--")
        axis.set(xlabel="c above the exact floor (%)", ylabel="replicated study (number)", xlim=(left, right))
        held = ((of["low"].fillna(-np.inf) <= of["exact"]) & (of["exact"] <= of["high"].fillna(np.inf))).sum()
        look.header(axis, objective.replace("_", " "), [f"{held} of {len(of)} intervals hold it"])
    keys = {
        "holds the floor": Line2D([], [], color="#0072B2"), "misses it": Line2D([], [], color="#D55E00"),
        "exact floor": Line2D([], [], color="black"),
        "best of the family": Line2D([], [], color=look.GREY, linestyle="--"),
    }  # fmt: skip
    look.legend(figure, list(keys.values()), list(keys))
    return look.settle(
        figure,
        f"Floor and interval of {' and '.join(str(n) for n in table.groupby('objective', sort=False).size())} "
        f"replicated studies ({' and '.join(name.replace('_', ' ') for name in objectives)}), relative to the exact "
        "floor (black) and sorted by floor; orange intervals miss it, a triangle lies beyond the axis. "
        "Dashed: the best loss that the family of models "
        "can reach, in the median study.",
    )
