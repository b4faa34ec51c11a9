"""Figures about the method and beyond the runs: what the intervals promise, and what the next run should be."""

import numpy as np
import seaborn
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lib.figures import look
from lib.figures.shown import Note
from lib.figures.study import HEADLINE, METHODS, loss_label

WHAT = {False: "seed noise", True: "and size effect"}
EFFECT = {False: look.PALETTE[5], True: "#882255"}


def planner(plan=None, gains=None, frontier=None, grid=None, metric="validation_mse", sentence="", **_):
    """What limits a run, and what more parameters or more cells would buy; without a plan, the sentence that says why.

    Parameters
    ----------
    plan : lib.fit.joint.Plan
        The run in question.
    gains : DataFrame
        of (parameters or cells), factor, gain, low, high: loss saved, NaN too far beyond the grid.
    frontier : DataFrame
        cells, parameters, low, high: where parameters and cells limit equally.
    grid : DataFrame
        parameters, cells_train: what the law was fitted to.
    sentence : str
        What `lib.fit.outlook` says.

    Returns
    -------
    Figure with two panels
    """
    if plan is None:
        return Note(sentence)
    figure, _ = look.panels(1, 2, height=66)
    _frontier(figure.axes[0], plan, frontier, grid)
    _gains(figure.axes[1], gains, plan.level, metric)
    return look.settle(
        figure,
        f"Left: where parameters and training cells limit equally, with its {100 * plan.level:.3g} % band; dots are "
        f"the {len(grid)} cells of the grid that the joint law was fitted to, the star the largest run. Right: the "
        f"loss that more of either would save there. {sentence}",
    )


def _frontier(axis, plan, frontier, grid):
    colour = look.PALETTE[2]
    known = frontier.dropna(subset=["parameters"])
    axis.plot(grid["cells_train"], grid["parameters"], ".", color=look.GREY, markersize=4, markeredgewidth=0)
    axis.plot(known["cells"], known["parameters"], color=colour)
    look.log_axis(axis.xaxis)
    look.log_axis(axis.yaxis)
    low, high = grid["parameters"].min() / plan.reach, grid["parameters"].max() * plan.reach
    ends = (known[end].astype(float).fillna(edge).clip(low, high) for end, edge in (("low", low), ("high", high)))
    axis.fill_between(known["cells"], *ends, color=colour, alpha=0.18, linewidth=0)
    star = look.DOT | {"markersize": 9, "color": look.PALETTE[1]}
    axis.plot(plan.cells, plan.parameters, "*", zorder=4, clip_on=False, **star)
    axis.set(xlabel="training cells (number)", ylabel="model parameters (number)", ylim=(low, high))
    axis.set_xlim(grid["cells_train"].min() / plan.reach, grid["cells_train"].max() * plan.reach)
    corner = {"transform": axis.transAxes, "fontsize": look.SMALL, "color": look.GREY}
    axis.text(0.03, 0.97, "limited by data", va="top", **corner)
    axis.text(0.97, 0.03, "limited by capacity", ha="right", **corner)
    said = {"not resolved": "not resolved by these runs"}.get(plan.limited_by, f"limited by {plan.limited_by}")
    look.header(axis, "What limits a run", [f"the run in question: {said}"])
    keys = {
        "fitted grid": Line2D([], [], marker=".", linestyle="", color=look.GREY),
        f"equal, {100 * plan.level:.3g} % band": Line2D([], [], color=colour),
        "run in question": Line2D([], [], marker="*", linestyle="", color=look.PALETTE[1], markersize=8),
    }
    look.legend(axis.figure, list(keys.values()), list(keys))


def _gains(axis, gains, level, metric):
    names = []
    for y, row in enumerate(gains.itertuples()):
        names.append(f"{row.factor:g} × {row.of}")
        if np.isnan(row.gain):
            axis.text(0.08, y, "not said: too far beyond the grid", transform=axis.get_yaxis_transform(), va="center",
                      fontsize=look.SMALL, color=look.GREY, backgroundcolor="white")  # fmt: skip
            continue
        axis.plot([row.low, row.high], [y, y], color=look.INK, linewidth=1)
        axis.plot(row.gain, y, "o", color=look.INK, **look.DOT)
    axis.axvline(0, color=look.GREY, linewidth=0.6, zorder=0)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.set_yticks(range(len(names)), names)
    axis.set(ylim=(len(names) - 0.5, -0.5), xlabel=f"saved {loss_label(metric)}", ylabel="change (of the run)")
    look.header(axis, "What more would buy", [f"{100 * level:.3g} % intervals"])


def coverage(table, promised=(0.92, 0.98)):
    """How often each interval held the truth, in every kind of simulated study.

    Parameters
    ----------
    table : DataFrame
        method, truth, sizes, seeds, size_effect, studies, level, and the shares alpha and c of intervals that held it.

    Returns
    -------
    Figure with two panels, exponent and floor; bars are 95 % binomial, the strip is what the headline promises.
    """
    methods = [name for name in METHODS if name in set(table["method"])]
    figure, _ = look.panels(1, 2, height=25 + 10 * len(methods))
    cells = table.assign(design=[f"{row.sizes} × {row.seeds}" for row in table.itertuples()])
    cells["cell"] = cells.groupby(["size_effect", "design", "truth"]).ngroup()
    marker = dict(zip(dict.fromkeys(cells["design"]), look.MARKERS, strict=False))
    for axis, name in zip(figure.axes, ("alpha", "c"), strict=True):
        axis.axvspan(*(100 * end for end in promised), color=look.GREY, alpha=0.15, linewidth=0)
        axis.axvline(100 * table["level"].iloc[0], color=look.GREY, linewidth=0.8, linestyle="--")
        _shares(axis, cells, name, methods, marker)
        axis.set_yticks(range(len(methods)), [METHODS[method] for method in methods])
        axis.get_yticklabels()[0].set_fontweight("bold" if methods[0] == HEADLINE else "normal")
        axis.tick_params(axis="y", length=0)
        axis.set(xlim=(min(100 * promised[0] - 4, axis.get_xlim()[0]), 100.5), ylim=(len(methods) - 0.4, -0.6))
    figure.axes[0].set(xlabel="studies whose interval held the exponent (%)", ylabel="interval (by method)")
    figure.axes[1].set(xlabel="studies whose interval held the floor (%)", yticklabels=[])
    _coverage_legend(figure, marker, dict.fromkeys(cells["truth"]))
    return look.settle(
        figure,
        f"How often each interval held the true exponent (left) and floor (right) in simulated studies: "
        f"{cells['cell'].nunique()} kinds of study, {cells['studies'].min():,} or more of each. Bars are 95 % "
        f"binomial; dashed is what is promised, the strip is {100 * promised[0]:.3g} to {100 * promised[1]:.3g} %.",
    )


def learning_rates(table, trial):
    """What the learning rate does to every size, and the rule that was put through some of them.

    Parameters
    ----------
    table : DataFrame
        size, width, held_out, cells_seen, learning_rate, validation_mse.
    trial : DataFrame
        width, held_out, cells_seen, best_rate, rule_rate, one row per size and budget.

    Returns
    -------
    Figure with two panels: loss above the best (%) against the rate; best rate against width, open where held out.
    """
    figure, axes = look.panels(1, 2, height=58)
    losses, best = axes.flat
    budgets = sorted(table["cells_seen"].unique())
    marker = dict(zip(budgets, look.MARKERS, strict=False))
    widths = sorted(table["width"].unique())
    shade = dict(zip(widths, seaborn.color_palette("viridis", len(widths)).as_hex(), strict=True))
    for (_, budget), runs in table[np.isfinite(table["validation_mse"])].groupby(["size", "cells_seen"]):
        runs, colour = runs.sort_values("learning_rate"), shade[runs["width"].iloc[0]]
        above = 100 * (runs["validation_mse"] / runs["validation_mse"].min() - 1)
        dashes = "--" if runs["held_out"].iloc[0] else "-"
        losses.plot(
            runs["learning_rate"], above, dashes, marker=marker[budget], color=colour, linewidth=0.8, markersize=3
        )
    for row in trial.itertuples():
        face = "white" if row.held_out else shade[row.width]
        best.plot(row.width, row.best_rate, marker[row.cells_seen], color=shade[row.width], markerfacecolor=face)
    line = trial.sort_values("width")
    best.plot(line["width"], line["rule_rate"], color=look.INK, linewidth=0.8, zorder=0)
    losses.set(xlabel="peak learning rate (x 0.001)", ylabel="loss above the best (%)", ylim=(-1, 30))
    best.set(xlabel="width of the model (values per token)", ylabel="best learning rate (x 0.001)")
    for axis in (losses.xaxis, best.xaxis, best.yaxis):
        look.log_axis(axis)
    best.set_xticks(widths, [str(width) for width in widths])
    rates = sorted(table["learning_rate"].unique())
    losses.set_xticks(rates, [f"{1000 * rate:g}" for rate in rates])
    best.set_yticks(rates, [f"{1000 * rate:g}" for rate in rates])
    for axis in (losses, best):
        axis.minorticks_off()
    keys = {
        f"{budget:,} cells seen": Line2D([], [], marker=marker[budget], color=look.GREY, linestyle="")
        for budget in budgets
    }
    keys |= {f"width {width}": Line2D([], [], color=shade[width]) for width in widths}
    keys["held out (open, dashed)"] = Line2D(
        [], [], color=look.GREY, linestyle="--", marker="o", markerfacecolor="white", markersize=4
    )
    keys["rule"] = Line2D([], [], color=look.INK, linewidth=0.8)
    look.legend(figure, list(keys.values()), list(keys))
    return look.settle(
        figure,
        f"Left: loss above a size's best against the peak learning rate, {len(table)} runs of "
        f"{table['size'].nunique()} sizes. Right: the best rate of each size and budget, and the rule fitted to those "
        "that are not held out (line); open markers and dashed lines are held out.",
    )


def _shares(axis, cells, name, methods, marker):
    """One dot per simulated cell, below each other within their method."""
    for row in cells.dropna(subset=[name]).itertuples():
        y = methods.index(row.method) + 0.8 * ((row.cell + 0.5) / (cells["cell"].max() + 1) - 0.5)
        share, colour = getattr(row, name), EFFECT[row.size_effect > 0]
        reach = 1.96 * np.sqrt(share * (1 - share) / row.studies)
        axis.plot([100 * (share - reach), min(100, 100 * (share + reach))], [y, y], color=colour, linewidth=0.6)
        axis.plot(100 * share, y, marker[row.design], color=colour, markersize=3.5, markeredgewidth=0.7, zorder=4,
                  markerfacecolor="white" if row.truth == "no floor" else colour)  # fmt: skip


def _coverage_legend(figure, marker, truths):
    grey = {"color": look.GREY, "linestyle": "", "markersize": 4}
    keys = {design: Line2D([], [], marker=marker[design], **grey) for design in marker}
    keys |= {said: Line2D([], [], color=EFFECT[effect], linewidth=3) for effect, said in WHAT.items()}
    fill = {truth: "white" if truth == "no floor" else look.GREY for truth in truths}
    keys |= {truth: Line2D([], [], marker="o", markerfacecolor=fill[truth], **grey) for truth in truths}
    look.legend(figure, list(keys.values()), list(keys))
