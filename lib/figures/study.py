"""Figures of trained runs and of the laws fitted to them. Curves, bands and intervals arrive ready made."""

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from lib.figures import style
from lib.figures.style import BASELINES, OPEN, RULE, Figure, counted, key, loss_label
from lib.fit.intervals import readable_columns
from lib.fit.law import SPEAKING
from lib.fit.runs import levels, sees_context, usable

ESTIMATE = {"linestyle": "--", "linewidth": 0.9}  # the line of a floor that is fitted


def loss_against_parameters(
    runs: pd.DataFrame, curves: pd.DataFrame, baselines: dict, laws: dict, metric: str | None = None
) -> Figure | None:
    """The loss of every run against its model's parameters, with the law, its floor and the baselines.

    `runs` and `laws` are the contents of runs.csv and laws.json, `curves` is of `lib.fit.summary`, and `baselines` of
    `lib.fit.runs`; what these lack is not drawn. The `metric` is by default the headline loss of each regime.
    """
    metrics = {regime: metric or next(iter(laws[regime])) for regime in runs["regime"].unique()}
    shown = {}
    for regime, name in metrics.items():
        if len(ended := usable(runs[runs["regime"] == regime], name)):
            shown[regime] = ended.astype({name: float}).sort_values(["parameters", "seed"])
    if not shown:
        return None
    figure, axes = style.panels(len(shown), 82)
    few, ends, colour, known = len(shown) <= 4, {}, style.colours(shown), {}  # few panels have labels beside them
    floors = set()
    for axis, (regime, rows) in zip(axes, shown.items(), strict=True):
        law, of = laws[regime].get(metrics[regime], {}), levels(baselines, regime, metrics[regime])
        known[regime] = {name: loss for name, loss in of.items() if pd.notna(loss)}
        places = draw_runs(axis, rows, metrics[regime], colour[regime])
        labels = _law(axis, curves[curves["regime"] == regime], law, known[regime], colour[regime])
        if len(labels) > len(known[regime]):
            floors.add("floor at infinite training" if law.get("status") == "budget-limited" else "floor")
        lines = [_size_of(rows)] * few + _numbers(law, few)
        style.header(axis, style.title(regime), lines, style.size_names(axis, places, 0.6 if few else 0.8))
        if few:
            ends[axis] = labels
        else:
            below = axes[-axis.get_subplotspec().get_gridspec().ncols :]  # nothing stands under them
            axis.set(ylabel="", xlabel=style.PARAMETERS if axis in below else "")
    if not few:
        figure.supylabel(" or ".join(dict.fromkeys(map(loss_label, metrics.values()))), fontsize=style.TEXT)
    named = ["law, 95 % band"] * bool(curves["regime"].isin(list(shown)).any())
    named += [f"{name}, 95 % interval" for name in sorted(floors)]
    drawn, out = pd.concat(shown.values()), len(runs) - sum(map(len, shown.values()))
    return style.settle(
        figure,
        f"Loss against model parameters: {_runs_of(drawn)}, means and ranges of seeds"
        + "".join(f"; {name.replace(',', ' with')}" for name in named)
        + (f". {counted(out, 'run')} without a final loss left out." if out else "."),
        _loss_keys(named, [] if few else known.values()),
        ends,
    )


def _runs_of(runs):
    """12 runs of 6 sizes in 2 regimes."""
    several = runs["regime"].nunique()
    where = f" in {several} regimes" if several > 1 else ""
    return f"{counted(len(runs), 'run')} of {counted(runs['size'].nunique(), 'size')}{where}"


def draw_runs(axis: Axes, runs: pd.DataFrame, metric: str, colour: str) -> dict[str, float]:
    """One run a light marker; the mean of a size a full one, with a bar over its seeds. Returns {size: parameters}."""
    marker = style.markers(runs["size"])
    for size, seeds in runs.groupby("size", sort=False):
        x, losses = seeds["parameters"].iloc[0], seeds[metric]
        face = {} if sees_context(seeds).all() else OPEN | {"markeredgecolor": colour}
        axis.plot(seeds["parameters"], losses, marker[size], color=colour, alpha=0.45, markersize=3, markeredgewidth=0)
        axis.vlines(x, losses.min(), losses.max(), color=colour, linewidth=0.9)
        axis.plot(x, losses.mean(), marker[size], color=colour, zorder=4, **style.DOT | face)
    limits = runs["parameters"].min() / 2, runs["parameters"].max() * 2
    axis.set(xlabel=style.PARAMETERS, ylabel=loss_label(metric), xscale="log", xlim=limits)
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
        label, line = BASELINES[name]
        axis.axhline(y, **RULE, **line)
        labels.append((y, f"{label} {y:#.3g}", line["color"]))
    limit = law.get("budget", {}).get("limit", {})
    of = law if law.get("status") != "budget-limited" else limit if limit.get("status") == "ok" else {}
    floor, lo, hi = readable_columns(of)[["c", "c_low", "c_high"]]
    if low - span < floor < high:
        near = [end for end in (lo, hi) if low - span < end < high + span]
        low, high = min([low, floor, *near]), max([high, *near])
        axis.axhline(floor, color=colour, zorder=2, **ESTIMATE)
        ends = np.nan_to_num(lo, nan=low - span), np.nan_to_num(hi, nan=high + span)
        axis.axhspan(*ends, color=colour, alpha=0.1, linewidth=0, zorder=0)
        name = "fitted floor" if of is law else "floor at infinite\ntraining"
        labels.append((floor, f"{name} {floor:#.3g}", colour))
    axis.set_ylim(style.around([low, high], 0.08))
    return labels


def _size_of(runs):
    """512 genes · 10,000 training cells."""
    text = []
    for column, of in (("genes", "genes"), ("cells_train", "training cells")):
        if len(values := runs[column].dropna().astype(int)):
            text.append(" to ".join(f"{end:,}" for end in dict.fromkeys((values.min(), values.max()))) + f" {of}")
    return " · ".join(text)


def _numbers(law, beside):
    """Lines with the law's exponent and floor as far as they can be read, or why there is none."""
    known, status = readable_columns(law), law.get("status")
    text = [
        f"{sign} = {style.rounded(known[name], known[[f'{name}_low', f'{name}_high']])}"
        for sign, name in (("α", "alpha"), ("c", "c")) if pd.notna(known[name])
    ]  # fmt: skip
    text = ["   ".join(text)] if text and beside else text
    if status == "ok":
        return text
    if text:
        return [f"{status}:", *text]
    return [status if status in SPEAKING else f"no law: {status}"] * bool(status)


def _loss_keys(fitted, levels):
    """The legend: runs, what is `fitted` to them, and baselines that have no label beside them."""
    named = [BASELINES[name] for name in BASELINES if any(name in of for of in levels)]
    names = {label.replace("\n", " "): key(**RULE, **line) for label, line in named}
    grey = {"color": style.GREY}
    dot = {"marker": "o", "linestyle": "", "markeredgewidth": 0} | grey
    band = Patch(alpha=0.3, linewidth=0, **grey)
    return {
        "one run": key(markersize=3, alpha=0.5, **dot),
        "size mean, range": (key(marker="|", markersize=9, linestyle="", **grey), key(markersize=5, **dot)),
        **{name: (band, key(**grey | ({} if name.startswith("law") else ESTIMATE))) for name in fitted},
        **names,
    }


def learning_curves(histories: dict[str, pd.DataFrame]) -> Figure | None:
    """Validation loss against training cells seen, a line per size, of {regime: `lib.fit.runs.histories` of it}."""
    if not histories:
        return None
    (figure, axes), ends = style.panels(len(histories), 66), {}
    for axis, (regime, history) in zip(axes, histories.items(), strict=True):
        metric = "validation_nll" if "validation_nll" in history else "validation_mse"
        ends[axis] = _curves(axis, history[np.isfinite(history[metric]) & (history["cells_seen"] > 0)], metric)
        axis.set(title=style.title(regime))
    points = pd.concat([history.assign(regime=regime) for regime, history in histories.items()])
    runs = points.drop_duplicates(["regime", "size", "seed"])
    return style.settle(
        figure,
        f"Monitored loss on validation cells during training: {_runs_of(runs)}. Thin lines are seeds, "
        "thick ones the mean of those that finished; a cross marks where a run stopped early.",
        ends=ends,
    )


def _curves(axis, history, metric):
    """Thin lines of seeds, crossed where one stopped early, and the mean of those that finished; returns its labels."""
    shade = style.shades(history["size"])
    seaborn.lineplot(history, x="cells_seen", y=metric, hue="size", units="seed", estimator=None, palette=shade,
                     linewidth=0.5, alpha=0.6, legend=False, ax=axis)  # fmt: skip
    ends = history.groupby(["size", "seed"])["cells_seen"].transform("max")
    whole = ends == history["cells_seen"].max()
    for row in history[~whole & (history["cells_seen"] == ends)].itertuples():
        axis.plot(row.cells_seen, getattr(row, metric), "x", color=shade[row.size], markersize=4)
    labels = style.size_lines(axis, history[whole], "cells_seen", metric, linewidth=1.3, markevery=[-1], clip_on=False)
    axis.set(xscale="log", yscale="log", xlabel="training cells seen (number)",
             ylabel=loss_label(metric).replace("validation", "monitored"))  # fmt: skip
    return labels


def closeness(view: tuple[str, pd.DataFrame] | None) -> Figure | None:
    """What a law leaves over above its floor, on logarithmic axes, and what it misses; of `lib.fit.summary`."""
    if view is None:
        return None
    regime, means = view
    figure = Figure(style.SINGLE, 76)
    above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    shown = means[means["excess"] > means["excess"].max() / 100]  # two decades; the others lie below the axis
    bars = style.BARS | {"capsize": 1.5, "color": style.colours([regime])[regime]}
    above.errorbar(shown["parameters"], shown["excess"], 1.96 * shown["se"], **bars)
    above.plot(means["parameters"], means["fitted"], color=bars["color"], linewidth=1)
    below.errorbar(means["parameters"], means["excess"] - means["fitted"], 1.96 * means["se"], **bars)
    below.axhline(0, color=style.INK, linewidth=0.6)
    above.set(title=style.title(regime), ylabel="loss above the floor, L − c", xscale="log", yscale="log")
    below.set(xlabel=style.PARAMETERS, ylabel="residual")
    if len(shown):
        above.set_ylim(bottom=shown["excess"].min() / 2)  # not where the law, or half a bar, goes to nothing
    of = f"{len(shown)} of {counted(len(means), 'size')}"
    return style.settle(
        figure,
        f"Mean loss above the fitted floor, of the {of} that lie above it, with the law; below, what it misses. "
        "Bars: 95 %, as far as the error of a mean is known.",
    )
