"""Figures of trained runs and of the laws fitted to them. Curves, bands and intervals arrive ready made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lib.figures import style
from lib.figures.style import Figure, Note, counted, key, loss_label
from lib.fit.intervals import headline_ends
from lib.fit.runs import UNITS, sees_context, usable

if TYPE_CHECKING:
    from lib.fit.summary import Closeness

FEW = 4
"""Panels that have room for labels beside them."""


def loss_against_parameters(
    runs: pd.DataFrame, curves: pd.DataFrame, baselines: dict, laws: dict, metric: str | None = None
) -> Figure | Note:
    """The loss of every run against its model's parameters, with the law, its floor and the baselines.

    Parameters
    ----------
    runs, laws : DataFrame, dict
        Contents of runs.csv and laws.json.
    curves : DataFrame
        The fitted laws: regime, parameters, loss, lo, hi (the band).
    baselines : dict
        {regime: {split: {gene_mean_mse, gaussian_mse, bayes_mse, ...}}}; whatever is missing is not drawn.
    metric : str, optional
        Column of `runs`; the headline loss of each regime when left out.
    """
    metrics = {regime: metric or next(iter(laws.get(regime, {})), "validation_mse") for regime in runs["regime"]}
    ended = {regime: usable(runs[runs["regime"] == regime], name) for regime, name in metrics.items()}
    ended = {regime: rows.astype({metrics[regime]: float}) for regime, rows in ended.items() if len(rows)}
    shown = {regime: rows.sort_values(["parameters", "seed"]) for regime, rows in ended.items()}
    if not shown:
        return Note("No run of this study has ended with a loss.")
    figure, axes = style.abreast(len(shown), height=82)
    colour, levels = style.colours(shown), {regime: _levels(baselines, regime, metrics[regime]) for regime in shown}
    for axis, (regime, rows) in zip(axes, shown.items(), strict=True):
        law = laws.get(regime, {}).get(metrics[regime], {})
        places = draw_runs(axis, rows, metrics[regime], colour[regime])
        labels = _law(axis, curves[curves["regime"] == regime], law, levels[regime], colour[regime])
        if len(shown) <= FEW:
            style.end_labels(axis, labels)
            style.header(axis, regime, [_size_of(rows), "   ".join(_numbers(law))], style.size_names(axis, places))
        else:
            style.header(axis, regime, _numbers(law))
            below = axes[-axis.get_subplotspec().get_gridspec().ncols :]  # nothing stands under them
            axis.set(ylabel="", xlabel=style.PARAMETERS if axis in below else "")
    named = [name for name in style.BASELINES if any(name in of for of in levels.values())] if len(shown) > FEW else []
    if len(shown) > FEW:
        figure.supylabel(" or ".join(dict.fromkeys(map(loss_label, metrics.values()))), fontsize=style.TEXT)
    level = next((law["level"] for of in laws.values() for law in of.values()), 0.95)
    _loss_legend(figure, level, named)
    drawn, out = pd.concat(shown.values()), len(runs) - sum(map(len, shown.values()))
    return style.settle(
        figure,
        f"Loss against model parameters: {_runs_of(drawn)}, size means with the range of seeds, and the law and its "
        f"floor with {100 * level:.3g} % band and interval."
        + (f" {counted(out, 'run')} without a final loss left out." if out else ""),
    )


def _runs_of(runs):
    """12 runs of 6 sizes in 2 regimes."""
    several = runs["regime"].nunique()
    where = f" in {several} regimes" if several > 1 else ""
    return f"{counted(len(runs), 'run')} of {counted(runs['size'].nunique(), 'size')}{where}"


def _levels(baselines, regime, metric):
    """{baseline: its loss} on the split and in the unit of a regime's metric, as far as they are measured."""
    split, kind = metric.rsplit("_", 1)
    measured = baselines.get(regime, {}).get(split, {})
    levels = {name: measured.get(UNITS[kind].get(name)) for name in style.BASELINES}
    return {name: value for name, value in levels.items() if value is not None and np.isfinite(value)}


def draw_runs(axis: Axes, runs: pd.DataFrame, metric: str, colour: str) -> dict[str, float]:
    """One run a light marker; the mean of a size a full one, with a bar over its seeds. Returns {size: parameters}."""
    marker = style.markers(runs["size"])
    style.log_axis(axis.xaxis)
    for size, seeds in runs.groupby("size", sort=False):
        x, losses, face = seeds["parameters"].iloc[0], seeds[metric], {}
        if not sees_context(seeds).all():
            face = {"markerfacecolor": "white", "markeredgecolor": colour}
        axis.plot(seeds["parameters"], losses, marker[size], color=colour, alpha=0.45, markersize=3, markeredgewidth=0)
        axis.vlines(x, losses.min(), losses.max(), color=colour, linewidth=0.9)
        axis.plot(x, losses.mean(), marker[size], color=colour, zorder=4, **style.DOT | face)
    axis.set(xlabel=style.PARAMETERS, ylabel=loss_label(metric))
    axis.set_xlim(runs["parameters"].min() / 2, runs["parameters"].max() * 2)
    return runs.groupby("size", sort=False)["parameters"].first().to_dict()


def _law(axis, curve, law, levels, colour):
    """Law with band, floor with strip, baselines; limits around what was measured. Returns what names the lines."""
    seen = [y for line in axis.lines for y in np.atleast_1d(line.get_ydata())]
    left, right = axis.get_xlim()
    seen += [*levels.values(), *curve.loc[curve["parameters"].between(2 * left, right / 2), "loss"]]
    style.curve(axis, curve, color=colour, zorder=3)
    low, high = min(seen), max(seen)
    span, labels = high - low or 1.0, []
    for name, y in levels.items():
        label, grey, dashes = style.BASELINES[name]
        axis.axhline(y, color=grey, linestyle=dashes, linewidth=0.9, zorder=1)
        labels.append((y, f"{label} {y:#.3g}", grey))
    of = law.get("budget", {}).get("limit", {}) if law.get("status") == "budget-limited" else law
    floor = of.get("c")
    if floor is not None and low - span < floor < high:
        low = min(low, floor)
        lo, hi = headline_ends(of, "c")
        axis.axhline(floor, color=colour, linestyle="--", linewidth=0.9, zorder=2)
        axis.axhspan(low - span if lo is None else lo, high + span if hi is None else hi, color=colour, alpha=0.1,
                     linewidth=0, zorder=0)  # fmt: skip
        name = "fitted floor" if of is law else "limit of the floor"
        labels.append((floor, f"{name} {floor:#.3g}", colour))
    axis.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    return labels


def _size_of(runs):
    """512 genes · 10,000 training cells."""
    text = []
    for column, of in (("genes", "genes"), ("cells_train", "training cells")):
        if len(values := runs[column].dropna().astype(int)):
            text.append(" to ".join(f"{end:,}" for end in dict.fromkeys((values.min(), values.max()))) + f" {of}")
    return " · ".join(text)


def _numbers(law):
    """The law's exponent and floor, or why there is none."""
    if law.get("alpha") is None or law.get("c") is None:
        return [f"no law: {law['status']}"] if law.get("status") else []
    if law["status"] == "budget-limited":
        return ["budget-limited, no law"]
    if law["status"] != "ok":
        return [f"{law['status']}:", f"α = {law['alpha']:.3g}, c = {law['c']:.3g}".replace("= -", "= −")]
    numbers = (("α", "alpha"), ("c", "c"))
    return [f"{sign} = {style.rounded(law[name], headline_ends(law, name))}" for sign, name in numbers]


def _loss_legend(figure, level, named):
    names = {label.replace("\n", " "): key(color=colour, linestyle=dashes, linewidth=0.9)
             for label, colour, dashes in map(style.BASELINES.get, named)}  # fmt: skip
    grey = {"color": style.GREY}
    dot = {"marker": "o", "linestyle": "", "markeredgewidth": 0} | grey
    band = Patch(alpha=0.3, linewidth=0, **grey)
    style.legend(figure, {
        "one run": key(markersize=3, alpha=0.5, **dot),
        "size mean, range": (key(marker="|", markersize=9, linestyle="", **grey), key(markersize=5, **dot)),
        f"law, {100 * level:.3g} % band": (band, key(**grey)),
        f"floor, {100 * level:.3g} % interval": (band, key(linestyle="--", linewidth=0.9, **grey)),
    } | names)  # fmt: skip


def learning_curves(histories: dict[str, pd.DataFrame]) -> Figure | Note:
    """Validation loss against training cells seen, a line per size.

    Parameters
    ----------
    histories : dict
        {regime: DataFrame with size, seed, cells_seen, validation_mse or _nll}.
    """
    if not histories:
        return Note("These runs were trained elsewhere; their learning curves are not here.")
    figure, axes = style.abreast(len(histories), height=66)
    for axis, (regime, history) in zip(axes, histories.items(), strict=True):
        metric = "validation_nll" if "validation_nll" in history else "validation_mse"
        _curves(axis, history[np.isfinite(history[metric]) & (history["cells_seen"] > 0)], metric)
        style.header(axis, regime)
    runs = pd.concat([history.assign(regime=regime) for regime, history in histories.items()])
    return style.settle(
        figure,
        f"Validation loss during training: {_runs_of(runs.drop_duplicates(['regime', 'size', 'seed']))}. Thin lines "
        "are seeds, thick ones the mean of those that finished; a cross marks where a run stopped early.",
    )


def _curves(axis, history, metric):
    """Thin lines of seeds, crossed where one stopped early, and the mean of those that finished."""
    shade = style.shades(history["size"])
    seaborn.lineplot(history, x="cells_seen", y=metric, hue="size", units="seed", estimator=None, palette=shade,
                     linewidth=0.5, alpha=0.6, legend=False, ax=axis)  # fmt: skip
    ends = history.groupby(["size", "seed"])["cells_seen"].transform("max")
    whole = ends == history.groupby("size")["cells_seen"].transform("max")
    for row in history[~whole & (history["cells_seen"] == ends)].itertuples():
        axis.plot(row.cells_seen, getattr(row, metric), "x", color=shade[row.size], markersize=4)
    labels = style.size_lines(axis, history[whole], "cells_seen", metric, linewidth=1.3, markevery=[-1], clip_on=False)
    style.log_axis(axis.xaxis)
    axis.set(yscale="log", xlabel="training cells seen (number)", ylabel=loss_label(metric))
    low, high = axis.get_xlim()
    if high < 100 * low:  # decades alone would be one tick or two
        style.log_ticks(axis.xaxis)
    style.log_ticks(axis.yaxis)
    style.end_labels(axis, labels)


def closeness(view: Closeness | None) -> Figure | Note:
    """What a law leaves over above its floor, and how its exponent and floor scatter over bootstraps."""
    if view is None:
        return Note("No law of this study has an interval.")
    figure = Figure(figsize=(style.DOUBLE / 25.4, 76 / 25.4), dpi=200, layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(3, 1), width_ratios=(1.3, 1, 1))
    above = figure.add_subplot(grid[0, 0])
    below, alpha, c = (
        figure.add_subplot(grid[1, 0], sharex=above),
        figure.add_subplot(grid[:, 1]),
        figure.add_subplot(grid[:, 2]),
    )
    _excess(above, below, view.means)
    style.header(above, view.regime)
    colour = dict(zip(("runs", "sizes"), style.PALETTE[3:5], strict=True))
    for axis, name, label, line in (
        (alpha, "alpha", "exponent α (no unit)", None),
        (c, "c", _floor_label(view.metric), view.exact),
    ):
        _scatter(axis, view, name, colour, line)
        axis.set_xlabel(label)
    alpha.set_ylabel("bootstraps (share)")
    keys = {f"{unit} drawn again": key(color=shade) for unit, shade in colour.items()}
    keys["headline interval"] = Patch(color=style.GREY, alpha=0.2, linewidth=0)
    style.legend(figure, keys | ({} if view.exact is None else {"exact floor": key(color=style.BASELINES["floor"][1])}))
    return style.settle(
        figure,
        f"Left: mean loss of {counted(len(view.means), 'size')} above the fitted floor (those below it are not drawn), "
        f"with the law and what it misses. Right: exponent and floor over {len(view.draws):,} bootstraps.",
    )


def _excess(above, below, means):
    """L - c against P on logarithmic axes, and the residuals below."""
    shown = means[means["excess"] > 0]
    bars = style.DOT | {"fmt": "o", "capsize": 1.5, "color": style.PALETTE[0]}
    above.errorbar(shown["parameters"], shown["excess"], 1.96 * shown["se"], **bars)
    above.plot(means["parameters"], means["fitted"], color=style.INK, linewidth=1)
    below.errorbar(means["parameters"], means["excess"] - means["fitted"], 1.96 * means["se"], **bars)
    below.axhline(0, color=style.INK, linewidth=0.6)
    above.set(ylabel="loss above the floor, L − c")
    below.set(xlabel=style.PARAMETERS, ylabel="residual")
    style.log_axis(above.xaxis, above.yaxis)
    if len(shown):
        # Two decades at most, and not where the law, or half a bar, goes to nothing.
        above.set_ylim(bottom=max(shown["excess"].min() / 2, shown["excess"].max() / 100))
    style.log_ticks(above.yaxis)
    above.tick_params(labelbottom=False)


def _scatter(axis, view, name, colour, exact):
    """Distribution of one constant over bootstraps, its estimate and headline interval."""
    draws, ends = view.draws, [end for end in headline_ends(view.law, name) if end is not None]
    near = [*draws.groupby("of")[name].quantile([0.02, 0.98]), *ends, view.law[name], *[exact] * (exact is not None)]
    room = 0.05 * np.ptp(near)
    limits = min(near) - room, max(near) + room
    for unit, shade in colour.items():
        values = draws.loc[draws["of"] == unit, name]
        near = values[values.between(*limits)]
        axis.hist(near, 40, limits, weights=np.full(len(near), 1 / max(1, len(values))), histtype="step", color=shade)
    low, high = (edge if end is None else end for end, edge in zip(headline_ends(view.law, name), limits, strict=True))
    axis.axvspan(low, high, color=style.GREY, alpha=0.2, linewidth=0, zorder=0)
    axis.axvline(view.law[name], color=style.INK, linewidth=0.8)
    if exact is not None:
        axis.axvline(exact, color=style.BASELINES["floor"][1], linewidth=1.4)
    axis.set(xlim=limits, yticks=[])
    axis.xaxis.set_major_locator(MaxNLocator(4))


def _floor_label(metric):
    return f"floor c ({'bits' if metric.endswith('nll') else 'MSE'})"
