"""The main figure: loss against parameters in every kept study, and beside them the published runs."""

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lib.figures import look
from lib.figures.study import HEADLINE, PARAMETERS, loss_label

COLOURS = (look.PALETTE[0], look.PALETTE[2], look.PALETTE[1])
"""Of the regimes of a panel, by their training cells: the most, some, the fewest."""


def answer(panels):
    """Loss against parameters, a panel for each study and side.

    Parameters
    ----------
    panels : list of dict
        From `lib.fit.answer.view`: title; side; metric; labels, {regime: label}, most training cells first; runs; laws,
        {regime: entry of laws.json} of those that can be named; curves (regime, parameters, loss, lo, hi); levels,
        {baseline: loss}.

    Returns
    -------
    Figure
    """
    figure, axes = look.panels(-(-len(panels) // 2), 2, height=66)
    for axis, panel in zip(axes.flat, panels, strict=False):
        _panel(axis, **panel)
    for axis in list(axes.flat)[len(panels):]:  # fmt: skip
        axis.remove()
    _keys(figure)
    named = sum(len(panel["laws"]) for panel in panels)
    regimes = sum(len(panel["labels"]) for panel in panels)
    return look.settle(
        figure,
        f"Loss against model parameters in {len(panels)} panels of kept studies and of the published runs. Small dots "
        f"are runs, large ones means of a size; {named} of {regimes} conditions have a law that can be "
        "named, drawn with its band, and its floor c with its interval beside the axes' end. The other lines need no "
        "training; the exact floor is known of simulated cells.",
    )


def _panel(axis, title, side, metric, labels, runs, laws, curves, levels):
    look.log_axis(axis.xaxis)
    colours = dict(zip(labels, COLOURS if len(labels) > 2 else COLOURS[::2], strict=False))
    ends, seen = [], [*levels.values()]
    for regime, colour in colours.items():
        means = _points(axis, runs[runs["regime"] == regime], metric, colour, named=regime in laws)
        seen += [*runs.loc[runs["regime"] == regime, metric].astype(float)]
        ends.append((means.iloc[-1], labels[regime], colour))
        curve = curves.loc[curves["regime"] == regime, ["parameters", "loss", "lo", "hi"]].astype(float)
        axis.plot(curve["parameters"], curve["loss"], color=colour, zorder=3)
        axis.fill_between(curve["parameters"], curve["lo"], curve["hi"], color=colour, alpha=0.15, linewidth=0)
    low, high = min(seen), max(seen)
    below = [end for law in laws.values() for end in (law["c"], *_ends(law)) if end is not None]
    low = max(min([low, *below]), low - 0.4 * (high - low))  # floors too, but not at the cost of all else
    axis.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    right = runs["parameters"].max() * 4
    axis.set_xlim(runs["parameters"].min() / 2, right * 1.6)
    for place, (regime, law) in enumerate(laws.items()):
        _floor(axis, right / 1.5**place, law, colours[regime])
    for name, loss in levels.items():
        label, colour, dashes = look.BASELINES[name]
        axis.axhline(loss, color=colour, linestyle=dashes, linewidth=0.9, zorder=1)
        ends.append((loss, label, colour))
    axis.set(xlabel=PARAMETERS, ylabel=loss_label(metric))
    look.header(axis, title, [side])
    look.end_labels(axis, ends)


def _points(axis, runs, metric, colour, named):
    """Every run light, every size mean full; joined by dots where no law is named. Returns the means."""
    axis.plot(runs["parameters"], runs[metric].astype(float), "o", color=colour, alpha=0.35, markersize=2.5,
              markeredgewidth=0)  # fmt: skip
    means = runs[metric].astype(float).groupby(runs["parameters"]).mean().sort_index()
    axis.plot(means.index, means, "o" if named else "o:", color=colour, zorder=4, linewidth=0.8, **look.DOT)
    return means


def _floor(axis, x, law, colour):
    """The fitted floor beyond the largest size: a diamond with its interval, open ends running out of the axes."""
    bottom, top = axis.get_ylim()
    low, high = _ends(law)
    ends = (bottom if low is None else max(low, bottom), top if high is None else min(high, top))
    axis.vlines(x, *ends, color=colour, linewidth=1)
    axis.plot(x, np.clip(law["c"], bottom, top), "D", color=colour, zorder=4, **(look.DOT | {"markersize": 4}))


def _ends(law):
    """Of the floor's interval; None where it is open."""
    return law["intervals"].get(HEADLINE, {}).get("c") or (None, None)


def _keys(figure):
    grey = {"color": look.GREY}
    keys = {
        "one run": Line2D([], [], marker="o", linestyle="", markersize=2.5, alpha=0.5, markeredgewidth=0, **grey),
        "size mean": Line2D([], [], marker="o", linestyle="", **grey),
        "law with 95 % band": (Patch(alpha=0.3, linewidth=0, **grey), Line2D([], [], **grey)),
        "no law named": Line2D([], [], marker="o", linestyle=":", linewidth=0.8, **grey),
        "floor c with 95 % interval": (
            Line2D([], [], marker="|", markersize=9, linestyle="", **grey),
            Line2D([], [], marker="D", linestyle="", markersize=4, **grey),
        ),
    }
    look.legend(figure, list(keys.values()), list(keys))
