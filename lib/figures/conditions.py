"""Figures that compare conditions: training cells, updates, held-out donors, protocols, replicated studies.

Each draws a view of `lib.fit.conditions`, or shows the sentence by which it says that a study has no such comparison.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lib.figures import style
from lib.figures.style import Figure, Note, counted, key, loss_label

if TYPE_CHECKING:  # these import SciPy
    import pandas as pd

    from lib.fit.conditions import Budget, HeldOut, Matched, Protocols

SPLITS = {
    "test_random": ("#D55E00", "o"), "validation": ("#0072B2", "s"), "test": ("#56B4E9", "D"),
    "test_dataset": ("#000000", "^"),
}  # fmt: skip
"""Colour and marker of every held-out split."""
OPEN = {"markerfacecolor": "white"}
"""A law whose status is not ok."""


def matched(view: Matched) -> Figure | Note:
    """Everything equal but the training cells: the loss of every size, and what size saves.

    Parameters
    ----------
    view : lib.fit.conditions.Matched
        all_donors, few_donors: runs with size, parameters, cells_train, loss and the baselines of their cells; gains:
        cells_train, gain, se; metric; or gains None and a sentence.

    Returns
    -------
    Figure with two panels, or a Note
    """
    if view.gains is None:
        return Note(view.sentence)
    figure, axes = style.panels(1, 2, height=72)
    losses, saved = axes.flat
    sizes = list(view.all_donors.sort_values("parameters")["size"].unique())
    shade, marker, ends = style.shades(sizes), style.markers(sizes), []
    for size in sizes:
        for rows, dashes in ((view.few_donors, ":"), (view.all_donors, "-")):
            of = rows[rows["size"] == size].groupby("cells_train")["loss"].mean()
            losses.plot(of.index, of, dashes, color=shade[size], marker=marker[size], markersize=3)
        ends.append((of.iloc[-1], size, shade[size]))
    bits = {"bayes": "bayes_bits", "gaussian": "gaussian_nll"}
    for name in bits:
        column = bits[name] if view.metric.endswith("nll") else f"{name}_mse"
        level = view.all_donors.groupby("cells_train")[column].mean().dropna()
        if len(level):
            label, colour, dashes = style.BASELINES[name]
            losses.plot(level.index, level, color=colour, linestyle=dashes, linewidth=0.9, zorder=1)
            ends.append((level.iloc[-1], label, colour))
    losses.set(xlabel="training cells (number)", ylabel=loss_label(view.metric))
    style.header(losses, "Loss at equal updates")
    gains, dot = view.gains, style.DOT | {"fmt": "o", "color": style.INK, "capsize": 2}
    saved.errorbar(gains["cells_train"], gains["gain"], 1.96 * gains["se"], **dot)
    saved.axhline(0, color=style.GREY, linewidth=0.6)
    saved.set(xlabel="training cells (number)", ylabel=f"saved {loss_label(view.metric)}")
    style.header(saved, "Gain from size", ["smallest to best size; bars: 95 % from the seeds"])
    style.log_axis(losses.xaxis, saved.xaxis)
    style.end_labels(losses, ends)
    if len(view.few_donors):
        style.legend(figure, {"all donors": key(color=style.INK), "few donors": key(color=style.INK, linestyle=":")})
    return style.settle(
        figure,
        f"Left: loss against training cells, all else equal: "
        f"{counted(len(view.all_donors) + len(view.few_donors), 'run')} of {len(sizes)} sizes"
        f"{', dotted where the cells are of few donors' * bool(len(view.few_donors))}. Right: what the best size saves "
        f"against the smallest one. {view.sentence}",
    )


def held_out(view: HeldOut) -> Figure | Note:
    """The same models on every held-out split: share of its reducible error explained, and what a random split leaks.

    Parameters
    ----------
    view : lib.fit.conditions.HeldOut
        regime, the one shown; shares: regime, size, seed, split, cells (whose), parameters, explained, se; leak:
        regime, parameters, leak, se, gaussian; or shares None and a sentence.

    Returns
    -------
    Figure with two panels, or a Note
    """
    if view.shares is None:
        return Note(view.sentence)
    figure, axes = style.panels(1, 2, height=70)
    share, gap = axes.flat
    shares, keys = view.shares[view.shares["regime"] == view.regime], {}
    for (split, cells), rows in shares.groupby(["split", "cells"], sort=False):
        colour, marker = SPLITS[split]
        of = rows.groupby("parameters")[["explained", "se"]].mean()
        line = {"fmt": marker + "-", "color": colour, "markersize": 3, "capsize": 1.5, "linewidth": 0.9}
        share.errorbar(of.index, 100 * of["explained"], 196 * of["se"], **line)
        keys[cells] = key(color=colour, marker=marker)
    share.set(xlabel=style.PARAMETERS, ylabel="explained share of the reducible error (%)")
    style.header(share, view.regime, ["relative to each split's own gene mean and floor"])
    leak = view.leak[view.leak["regime"] == view.regime].astype(dict.fromkeys(("leak", "se", "gaussian"), float))
    gaussian = {"color": style.BASELINES["gaussian"][1], "linestyle": "--"}
    bars = {"fmt": "o", "color": style.INK, "capsize": 2} | style.DOT
    gap.errorbar(leak["parameters"], 100 * leak["leak"], 196 * leak["se"], **bars)
    gap.plot(leak["parameters"], 100 * leak["gaussian"], **gaussian)
    gap.axhline(0, color=style.GREY, linewidth=0.6)
    gap.set(xlabel=style.PARAMETERS, ylabel="training donors minus other donors (%)")
    style.header(gap, "What a random split leaks", ["bars: 95 % over the cells of both splits"])
    style.log_axis(share.xaxis, *[gap.xaxis] * bool(len(leak)))
    style.legend(figure, keys | {"conditional Gaussian": key(**gaussian)})
    return style.settle(
        figure,
        f"Left: share of the reducible error that {len(shares.drop_duplicates(['size', 'seed']))} runs of "
        f"{view.regime} explain on {len(keys)} held-out splits. Right: what cells of training donors make look better. "
        f"Bars are 95 % over cells. {view.sentence}",
    )


def budget(view: Budget) -> Figure | Note:
    """More updates: the loss of every size against cells seen, and the floor of each budget's law.

    Parameters
    ----------
    view : lib.fit.conditions.Budget
        runs: size, parameters, cells_seen, loss; table: cells_seen, c, c_low, c_high, largest (size's loss), status;
        joint: value, low, high of the floor when size and budget are large; exact floor or None; or table None and a
        sentence.

    Returns
    -------
    Figure with two panels, or a Note
    """
    if view.table is None:
        return Note(view.sentence)
    figure, axes = style.panels(1, 2, height=72)
    keys = {}
    if view.exact is not None:
        for axis in axes.flat:
            keys["exact floor"] = axis.axhline(view.exact, color="black", linewidth=0.9, zorder=1)
    _losses_of_budgets(axes.flat[0], view.runs)
    keys |= _floors_of_budgets(axes.flat[1], view.table, view.joint, view.exact)
    for axis in axes.flat:
        axis.set_xlabel("cells seen in training (number)")
        style.log_axis(axis.xaxis)
        style.log_ticks(axis.xaxis)
    style.legend(figure, keys)
    return style.settle(
        figure,
        f"Left: mean loss of every size against cells seen ({len(view.runs):,} losses, those of half the updates "
        "included). Right: floor of each budget's law with 95 % interval, and of the joint law with its band; open "
        f"where not determined. {view.sentence}",
    )


def _losses_of_budgets(axis, runs):
    """A line for each size, named at its end."""
    means = runs.groupby(["parameters", "size", "cells_seen"], as_index=False)["loss"].mean()
    shade, marker, ends = style.shades(means["size"]), style.markers(means["size"]), []
    for size, of in means.groupby("size"):
        axis.plot(of["cells_seen"], of["loss"], color=shade[size], marker=marker[size], markersize=3)
        ends.append((of["loss"].iloc[-1], size, shade[size]))
    axis.set_ylabel(loss_label("validation_mse"))
    style.end_labels(axis, ends)


def _floors_of_budgets(axis, table, joint, exact):
    """Floor and interval of every budget, open where its status is not ok. Returns what the legend explains."""
    table = table.astype(dict.fromkeys(("c", "c_low", "c_high"), float))
    ok, green = table["status"] == "ok", {"color": style.PALETTE[2]}
    within = [*table["c"][ok], *table["largest"], *([] if exact is None else [exact])]
    bottom, top = min(within) - 0.6 * np.ptp(within), max(within) + 0.2 * np.ptp(within)
    low, high = (table[f"c_{end}"].fillna(edge).clip(bottom, top) for end, edge in (("low", bottom), ("high", top)))
    axis.vlines(table["cells_seen"], low, high, color=style.INK, linewidth=1)
    dot = {"color": style.INK, "marker": "o", "linestyle": "", "markersize": 4}
    keys = {"floor of the law": key(**dot)}
    axis.plot(table["cells_seen"][ok], table["c"][ok], **dot)
    if not ok.all():
        axis.plot(table["cells_seen"][~ok], table["c"][~ok].clip(bottom, top), clip_on=False, **dot | OPEN)
        keys["not determined"] = key(**dot | OPEN)
    (keys["loss of the largest size"],) = axis.plot(table["cells_seen"], table["largest"], "--", color=style.GREY)
    axis.axhspan(max(joint["low"], bottom), min(joint["high"], top), alpha=0.2, linewidth=0, **green)
    keys["floor of the joint law"] = axis.axhline(joint["value"], linewidth=0.9, **green)
    axis.set(ylim=(bottom, top), ylabel="floor c (MSE)")
    return keys


def protocols(view: Protocols) -> Figure | Note:
    """From one protocol to another, switch by switch: exponent, floor, and the losses of all sizes.

    Parameters
    ----------
    view : lib.fit.conditions.Protocols
        table: regime, alpha and relative_c with _low and _high, status; runs, the table of runs.csv; or table None and
        a sentence.

    Returns
    -------
    Figure with three panels, or a Note
    """
    if view.table is None:
        return Note(view.sentence)
    table, runs = view.table, view.runs[view.runs["status"] == "ok"]
    figure, axes = style.panels(1, 3, height=78)
    alpha, floor, losses = axes.flat
    regimes, dot = list(table["regime"]), {"color": style.INK, "marker": "o", "linestyle": "", "markersize": 4}
    for axis, name in ((alpha, "alpha"), (floor, "relative_c")):
        values = table[[name, f"{name}_low", f"{name}_high"]].astype(float).to_numpy()
        top = np.nanmax(values) if name == "alpha" else 1.15
        for y, (value, start, end) in enumerate(values):
            ends = [max(0, np.nan_to_num(start, nan=0)), min(top, np.nan_to_num(end, nan=top))]
            axis.plot(ends, [y, y], color=style.INK, linewidth=1)
            axis.plot(np.clip(value, 0, top), y, **dot | ({} if table["status"].iloc[y] == "ok" else OPEN))
        axis.set(xlim=(0, top), ylim=(len(regimes) - 0.5, -0.5))
        axis.set_yticks(range(len(regimes)), regimes if axis is alpha else [])
        axis.tick_params(axis="y", length=0)
    alpha.set(xlabel="exponent α (no unit)", ylabel="switch (each keeps those above it)")
    floor.set(xlabel="floor c (share of the gene mean)")
    keys = {}
    for regime, colour, marker in zip(regimes, style.spectrum(len(regimes)), style.MARKERS, strict=False):
        of = runs[runs["regime"] == regime]
        relative = (of["validation_mse"] / of["gene_mean_mse"]).groupby(of["parameters"]).mean()
        line = {"color": colour, "marker": marker, "markersize": 3.5, "linewidth": 0.9}
        (keys[regime],) = losses.plot(relative.index, relative, **line)
    losses.axhline(1, color=style.BASELINES["gene_mean"][1], linestyle=":", linewidth=0.9, zorder=0)
    losses.set(xlabel=style.PARAMETERS, ylabel="validation MSE (relative to the gene mean)", yscale="log")
    style.log_axis(losses.xaxis)
    style.log_ticks(losses.yaxis)
    style.legend(figure, keys | {"law determined": key(**dot), "not determined": key(**dot | OPEN)})
    return style.settle(
        figure,
        f"From one protocol to another in {len(regimes) - 1} steps, each keeping those above it: exponent and floor "
        "with intervals (open: not determined), and losses of all sizes relative to the gene mean "
        f"({counted(len(runs), 'run')}). {view.sentence}",
    )


def replicates(table: pd.DataFrame) -> Figure:
    """The interval of c in every replicated study, relative to the exact floor, sorted by c.

    Parameters
    ----------
    table : DataFrame
        data/replicates.csv: objective, c, low, high, exact, family.

    Returns
    -------
    Figure, a panel for each objective; orange where the interval misses the floor, open ends run to the edge
    """
    objectives = list(table["objective"].unique())
    figure, axes = style.panels(1, len(objectives), height=80)
    holds, misses = "#0072B2", "#D55E00"
    for axis, objective in zip(axes.flat, objectives, strict=True):
        of = table[table["objective"] == objective].sort_values("c", ignore_index=True)
        ends = 100 * (of[["low", "c", "high"]].div(of["exact"], axis=0) - 1)
        low, high = ends["c"].quantile([0.1, 0.9])  # a floor that a study did not find may lie anywhere
        left, right = min(-10, low - 5), high + 15
        ends = ends.fillna({"low": -np.inf, "high": np.inf})
        held = (ends["low"] <= 0) & (ends["high"] >= 0)
        for y, (low, c, high) in enumerate(ends.to_numpy()):
            colour = holds if held[y] else misses
            axis.plot([max(low, left), min(high, right)], [y, y], color=colour, linewidth=0.8)
            marker = "<" if c < left else ">" if c > right else "o"
            axis.plot(np.clip(c, left, right), y, marker, color=colour, markersize=2, clip_on=False)
        axis.axvline(0, color="black", linewidth=0.9)
        family = 100 * (of["family"] / of["exact"] - 1).median()
        axis.axvline(family, color=style.GREY, linewidth=0.8, linestyle="--")
        axis.set(xlabel="c above the exact floor (%)", ylabel="replicated study (number)", xlim=(left, right))
        style.header(axis, objective.replace("_", " "), [f"{held.sum()} of {len(of)} intervals hold it"])
    style.legend(figure, {
        "holds the floor": key(color=holds), "misses it": key(color=misses), "exact floor": key(color="black"),
        "best of the family": key(color=style.GREY, linestyle="--"),
    })  # fmt: skip
    numbers = " and ".join(str(number) for number in table.groupby("objective", sort=False).size())
    return style.settle(
        figure,
        f"Floor and interval of {numbers} replicated studies, relative to the exact floor and sorted by floor; orange "
        "intervals miss it, a triangle lies beyond the axis. Dashed: the best that the family of models can reach.",
    )
