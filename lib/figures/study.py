"""Figures of trained runs and of the laws fitted to them. Curves, bands and intervals arrive ready made."""

import numpy as np
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullFormatter

from lib.figures import style
from lib.figures.style import Figure, Note, counted, key, loss_label

METHODS = {
    "profile_size_means": "profile, size means",
    "profile_runs": "profile, runs",
    "bootstrap_runs": "bootstrap, runs",
    "bootstrap_runs_bca": "bootstrap, runs (BCa)",
    "bootstrap_within_sizes": "bootstrap, within sizes",
    "bootstrap_sizes": "bootstrap, sizes",
    "two_stage": "bootstrap, sizes then seeds",
}
"""Names of the intervals in laws.json, the headline first, and what figures call them."""
HEADLINE = next(iter(METHODS))
OPEN = (None, None)
CELLS = {"cells_seen": "training cells seen", "cells_train": "different training cells"}
NO_INTERVALS = Note("No regime of this study has a law with intervals; that takes four sizes.")


def loss_against_parameters(
    runs: pd.DataFrame, curves: pd.DataFrame, baselines: dict, laws: dict, metric: str | None = None
) -> Figure | Note:
    """The loss of every run against its model's parameters, with the law, its floor and the baselines.

    Parameters
    ----------
    runs : DataFrame
        Table of runs.csv. Rows that are not `ok` or have no loss are left out, and their number is shown.
    curves : DataFrame
        The fitted laws: regime, parameters, loss, lo, hi (the band).
    baselines : dict
        {regime: {split: {gene_mean_mse, gaussian_mse, bayes_mse, ...}}}; whatever is missing is not drawn.
    laws : dict
        Content of laws.json, for the floor and the numbers above each panel.
    metric : str, optional
        Column of `runs`: test_mse, validation_nll, ...; the headline loss of each regime when left out.

    Returns
    -------
    Figure, one panel per regime; a Note where no run has such a loss
    """
    metrics = {regime: metric or next(iter(laws.get(regime, {})), "validation_mse") for regime in runs["regime"]}
    shown = {regime: _usable(runs[runs["regime"] == regime], name) for regime, name in metrics.items()}
    shown = {regime: rows for regime, rows in shown.items() if len(rows)}
    if not shown:
        return Note("No run of this study has ended with a loss.")
    figure, axes = style.two_abreast(len(shown), height=82 if len(shown) > 1 else 88)
    colour, drawn = style.colours(shown), set()
    for axis, (regime, rows) in zip(axes, shown.items(), strict=True):
        law, levels = laws.get(regime, {}).get(metrics[regime], {}), _levels(baselines, regime, metrics[regime])
        drawn |= set(levels)
        places = _runs(axis, rows, metrics[regime], colour[regime])
        _law(axis, curves[curves["regime"] == regime], law, levels, colour[regime])
        left_out = int((runs["regime"] == regime).sum()) - len(rows)
        lines = [_size_of(rows, left_out), _numbers(law)]
        style.header(axis, regime, lines, style.size_names(axis, places))
    level = next((law["level"] for of in laws.values() for law in of.values()), 0.95)
    _loss_legend(figure, level)
    return style.settle(figure, _loss_caption(runs, pd.concat(shown.values()), level, drawn))


def _loss_caption(runs, shown, level, drawn):
    baselines = ", ".join(label.replace("\n", " ") for name, (label, *_) in style.BASELINES.items() if name in drawn)
    out = len(runs) - len(shown)
    return (
        f"Loss against model parameters: {_runs_of(shown)}. Small markers are runs, large ones size means with the "
        f"range of seeds; law and floor (dashed) with {100 * level:.3g} % band and interval."
        + (f" Without training: {baselines}." if baselines else "")
        + (f" {counted(out, 'run')} without a final loss left out." if out else "")
    )


def _runs_of(runs):
    """12 runs of 6 sizes in 2 regimes."""
    several = runs["regime"].nunique()
    where = f" in {several} regimes" if several > 1 else ""
    return f"{counted(len(runs), 'run')} of {counted(runs['size'].nunique(), 'size')}{where}"


def _usable(runs, metric):
    good = (runs["status"] == "ok") & np.isfinite(runs[metric].astype(float))
    return runs[good].astype({metric: float}).sort_values(["parameters", "seed"])


def _levels(baselines, regime, metric):
    """{baseline: its loss} on the split and in the unit of a regime's metric, as far as they are measured."""
    split, kind = metric.rsplit("_", 1)
    measured = baselines.get(regime, {}).get(split, {})
    names = {"gene_mean": "gene_nll", "bayes": "bayes_bits"} if kind == "nll" else {}
    levels = {name: measured.get(names.get(name, f"{name}_{kind}")) for name in style.BASELINES}
    return {name: value for name, value in levels.items() if value is not None and np.isfinite(value)}


def _runs(axis, runs, metric, colour):
    """One run a light marker; the mean of a size a full one, with a bar over its seeds. Returns {size: parameters}."""
    marker, places = style.markers(runs["size"]), {}
    style.log_axis(axis.xaxis)
    for size, seeds in runs.groupby("size", sort=False):
        x, losses = seeds["parameters"].iloc[0], seeds[metric]
        axis.plot(seeds["parameters"], losses, marker[size], color=colour, alpha=0.45, markersize=3, markeredgewidth=0)
        axis.vlines(x, losses.min(), losses.max(), color=colour, linewidth=0.9)
        axis.plot(x, losses.mean(), marker[size], color=colour, zorder=4, **style.DOT)
        places[size] = x
    axis.set(xlabel=style.PARAMETERS, ylabel=loss_label(metric))
    axis.set_xlim(runs["parameters"].min() / 2, runs["parameters"].max() * 2)
    return places


def _law(axis, curve, law, levels, colour):
    """Law with band, floor with strip, baselines; labels at the right edge, limits around what was measured."""
    curve = curve.astype(dict.fromkeys(("parameters", "loss", "lo", "hi"), float))
    seen = [y for line in axis.lines for y in np.atleast_1d(line.get_ydata())]
    left, right = axis.get_xlim()
    seen += [*levels.values(), *curve.loc[curve["parameters"].between(2 * left, right / 2), "loss"]]
    axis.plot(curve["parameters"], curve["loss"], color=colour, zorder=3)
    axis.fill_between(curve["parameters"], curve["lo"], curve["hi"], color=colour, alpha=0.18, linewidth=0)
    low, high = min(seen), max(seen)
    span = high - low or 1.0
    labels = []
    for name, y in levels.items():
        label, grey, dashes = style.BASELINES[name]
        axis.axhline(y, color=grey, linestyle=dashes, linewidth=0.9, zorder=1)
        labels.append((y, f"{label} {y:#.3g}", grey))
    floor = law.get("c")
    if floor is not None and low - span < floor < high:
        low = min(low, floor)
        lo, hi = law["intervals"].get(HEADLINE, {}).get("c") or OPEN
        axis.axhline(floor, color=colour, linestyle="--", linewidth=0.9, zorder=2)
        axis.axhspan(low - span if lo is None else lo, high + span if hi is None else hi, color=colour, alpha=0.1,
                     linewidth=0, zorder=0)  # fmt: skip
        labels.append((floor, f"fitted floor {floor:#.3g}", colour))
    axis.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    style.end_labels(axis, labels)


def _size_of(runs, left_out):
    """512 genes · 10,000 training cells · 1 of 22 runs left out."""
    text = []
    for column, of in (("genes", "genes"), ("cells_train", "training cells")):
        if len(values := runs[column].dropna().astype(int)):
            text.append(" to ".join(f"{end:,}" for end in dict.fromkeys((values.min(), values.max()))) + f" {of}")
    return " · ".join([*text, *[f"{left_out} of {left_out + len(runs)} runs left out"] * bool(left_out)])


def _numbers(law):
    """The law's exponent and floor in one line, or why there is none."""
    if law.get("alpha") is None or law.get("c") is None:
        return f"no law: {law['status']}" if law.get("status") else ""
    ends = law["intervals"].get(HEADLINE, {})
    if law["status"] != "ok":
        return f"{law['status']}: α = {law['alpha']:.3g}, c = {law['c']:.3g}".replace("= -", "= −")
    return f"α = {style.rounded(law['alpha'], ends.get('alpha'))}   c = {style.rounded(law['c'], ends.get('c'))}"


def _loss_legend(figure, level):
    grey = {"color": style.GREY}
    dot = {"marker": "o", "linestyle": "", "markeredgewidth": 0} | grey
    band = Patch(alpha=0.3, linewidth=0, **grey)
    style.legend(figure, {
        "one run": key(markersize=3, alpha=0.5, **dot),
        "size mean, range": (key(marker="|", markersize=9, linestyle="", **grey), key(markersize=5, **dot)),
        f"law, {100 * level:.3g} % band": (band, key(**grey)),
        f"floor, {100 * level:.3g} % interval": (band, key(linestyle="--", linewidth=0.9, **grey)),
    })  # fmt: skip


def learning_curves(histories: dict[str, pd.DataFrame]) -> Figure | Note:
    """Validation loss against training cells seen, a line per size.

    Parameters
    ----------
    histories : dict
        {regime: DataFrame with size, seed, cells_seen, validation_mse or _nll}. Thin lines are seeds (a cross
        where one stopped early), the thick line is the mean of those that finished.

    Returns
    -------
    Figure, one panel per regime; a Note where there is no regime
    """
    if not histories:
        return Note("These runs were trained elsewhere; their learning curves are not here.")
    figure, axes = style.two_abreast(len(histories), height=66)
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
    shade, marker, ends = style.shades(history["size"]), style.markers(history["size"]), []
    for size, seeds in history.groupby("size", sort=False):
        last = seeds["cells_seen"].max()
        for _, seed in seeds.groupby("seed"):
            stopped = seed["cells_seen"].max() < last
            axis.plot(seed["cells_seen"], seed[metric], color=shade[size], linewidth=0.5, alpha=0.6,
                      marker="x" if stopped else "", markevery=[-1], markersize=4)  # fmt: skip
        whole = seeds.groupby("seed")["cells_seen"].transform("max") == last
        mean = seeds[whole].groupby("cells_seen")[metric].mean()
        axis.plot(mean.index, mean, color=shade[size], linewidth=1.3, clip_on=False,
                  marker=marker[size], markevery=[-1])  # fmt: skip
        ends.append((mean.iloc[-1], size, shade[size]))
    style.log_axis(axis.xaxis)
    axis.set(yscale="log", xlabel="training cells seen (number)", ylabel=loss_label(metric))
    low, high = axis.get_xlim()
    if high < 100 * low:  # decades alone would be one tick or two
        style.log_ticks(axis.xaxis)
    style.log_ticks(axis.yaxis)
    style.end_labels(axis, ends)


def intervals(laws: dict, floors: dict | None = None) -> Figure | Note:
    """Every interval of the exponent and of the floor, by method, beside the estimate; the headline one emphasised.

    Parameters
    ----------
    laws : dict
        Content of laws.json. An end that does not exist is an arrow; one outside the axis, an arrow with its value.
    floors : dict, optional
        {regime: exact floor}, drawn where it is known.

    Returns
    -------
    Figure, a row per regime: exponent, floor; a Note where no law has intervals
    """
    metrics, shown = _with(laws, "intervals")
    if not shown:
        return NO_INTERVALS
    figure, axes = style.panels(len(shown), 2, height=48)
    colours, exact = style.colours(laws), {regime: (floors or {}).get(regime) for regime in shown}
    for row, (regime, law) in zip(axes, shown.items(), strict=True):
        _whiskers(row[0], law, "alpha", colours[regime])
        _whiskers(row[1], law, "c", colours[regime], exact[regime])
        row[0].set_xlabel("exponent α (no unit)")
        row[1].set_xlabel(f"floor c, {loss_label(metrics[regime])}")
        if exact[regime] is not None:
            row[1].axvline(exact[regime], color="black", linewidth=0.9, zorder=1)
            row[1].annotate("exact floor", (exact[regime], 1), (0, 2), xycoords=row[1].get_xaxis_transform(),
                            color="black", textcoords="offset points", fontsize=style.SMALL, ha="center",
                            va="bottom")  # fmt: skip
        level = f"{100 * law['level']:.3g} % intervals"
        style.header(row[0], regime, [f"{law['n_sizes']} sizes, {law['n_runs']} runs; {level}"])
    return style.settle(
        figure,
        f"Intervals of exponent and floor by {counted(len(METHODS), 'method')}, for {_laws_of(shown)}; in bold the "
        "headline. An arrow is an interval without an end, or one that ends at the number beside it."
        + (" Black: the exact floor." if any(floor is not None for floor in exact.values()) else ""),
    )


def _laws_of(shown):
    """data-rich (12 runs of 6 sizes) and counts (...)."""
    parts = [f"{regime} ({law['n_runs']} runs of {law['n_sizes']} sizes)" for regime, law in shown.items()]
    return ", ".join(parts[:-1]) + (" and " if parts[:-1] else "") + parts[-1]


def _with(laws, part):
    """{regime: metric} and {regime: law} of the headline laws that have a part."""
    metrics = {regime: next(iter(of)) for regime, of in laws.items()}
    shown = {regime: laws[regime][name] for regime, name in metrics.items() if laws[regime][name].get(part)}
    return metrics, shown


def _whiskers(axis, law, name, colour, exact=None):
    """One row per method; whiskers beyond the axis become arrows that say where they would end."""
    methods = {label: law["intervals"][method].get(name) or OPEN for method, label in METHODS.items()
               if method in law["intervals"]}  # fmt: skip
    low, high = _window(law[name], list(methods.values()))
    low, high = (low, high) if exact is None else (min(low, exact), max(high, exact))
    for y, (label, (lo, hi)) in enumerate(methods.items()):
        main = label == METHODS[HEADLINE]
        line = {"color": colour if main else style.GREY, "linewidth": 1.8 if main else 0.8}
        left, right = max(low, -np.inf if lo is None else lo), min(high, np.inf if hi is None else hi)
        axis.plot([left, right], [y, y], solid_capstyle="butt", **line)
        for end, edge, sign in ((lo, low, "<"), (hi, high, ">")):
            if end is None or not low <= end <= high:
                axis.plot(edge, y, sign, color=line["color"], markersize=3.5, clip_on=False)
                axis.annotate("" if end is None else f"{end:.3g}".replace("-", "−"), (edge, y), (0, 2), ha="center",
                              textcoords="offset points", va="bottom", fontsize=style.SMALL,
                              color=style.GREY)  # fmt: skip
        axis.plot(law[name], y, "o", color=line["color"], markersize=4.5 if main else 3,
                  markerfacecolor=line["color"] if main else "white")  # fmt: skip
    axis.axvline(law[name], color=colour, linewidth=0.5, zorder=0)
    margin = 0.03 * (high - low)
    axis.set(xlim=(low - margin, high + margin), ylim=(len(methods) - 0.5, -0.6))
    axis.set_yticks(range(len(methods)), list(methods) if name == "alpha" else [])
    if name == "alpha":
        axis.set_ylabel("interval (by method)")
        axis.yaxis.get_ticklabels()[0].set_fontweight("bold" if METHODS[HEADLINE] in methods else "normal")
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)


def _window(estimate, intervals):
    """Limits that hold every finite end, except ends more than four times as far out as the median one."""
    reach = [abs(end - estimate) for interval in intervals for end in interval if end is not None]
    if not reach:
        return estimate - max(abs(estimate), 0.1), estimate + max(abs(estimate), 0.1)
    limit = 4 * float(np.median(reach)) or 0.1
    ends = [float(np.clip(end, estimate - limit, estimate + limit)) for i in intervals for end in i if end is not None]
    low, high = min([estimate, *ends]), max([estimate, *ends])
    room = 0.25 * (high - low)
    open_low, open_high = (any(interval[end] is None for interval in intervals) for end in (0, 1))
    return low - room * open_low, high + room * open_high


def profile(laws: dict) -> Figure | Note:
    """How fast the fit worsens when the floor, or the exponent, is held away from its best value.

    Parameters
    ----------
    laws : dict
        Content of laws.json; `profile` of a law holds c with relative_rss, alpha_grid with alpha_relative_rss, and the
        threshold of the interval.

    Returns
    -------
    Figure with two panels, exponent and floor; values under the dashed line are inside the interval. A Note where no
    law has intervals.
    """
    metrics, shown = _with(laws, "profile")
    if not shown:
        return NO_INTERVALS
    figure, axes = style.panels(len(shown), 2, height=52)
    colours = style.colours(laws)
    for row, (regime, law) in zip(axes, shown.items(), strict=True):
        _profile_panel(row[0], law, "alpha", colours[regime])
        _profile_panel(row[1], law, "c", colours[regime])
        row[0].set_xlabel("exponent α (no unit)")
        row[1].set_xlabel(f"floor c, {loss_label(metrics[regime])}")
        style.header(row[0], regime)
    level = next(iter(shown.values()))["level"]
    return style.settle(
        figure,
        "Residual sum of squares, relative to the best fit (dot), when exponent or floor is held at another value, for "
        f"{_laws_of(shown)}. Below the dashed line is the {100 * level:.3g} % interval.",
    )


def _profile_panel(axis, law, name, colour):
    """`name` is alpha or c; the curve is drawn up to two and a half times the threshold's distance from the minimum."""
    grid, heights = {"alpha": ("alpha_grid", "alpha_relative_rss"), "c": ("c", "relative_rss")}[name]
    x, rss = (np.array(law["profile"][column], float) for column in (grid, heights))
    threshold = law["profile"]["threshold"] or np.nan
    top = 1 + 2.5 * (threshold - 1)
    near = x[rss <= top]
    axis.plot(x, rss, color=colour)
    inside = {"where": rss <= threshold, "interpolate": True}
    axis.fill_between(x, rss, threshold, color=colour, alpha=0.18, linewidth=0, **inside)
    axis.plot(law[name], 1, "o", color=colour, markersize=4.5, zorder=4)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.set_ylabel("residual sum of squares\n(relative to the best fit)")
    if not np.isfinite(threshold):
        return
    axis.axhline(threshold, color=style.GREY, linestyle="--", linewidth=0.8)
    axis.set_ylim(1 - 0.05 * (top - 1), top)
    if len(near) > 1:
        axis.set_xlim(near.min(), near.max())
    style.end_labels(axis, [(threshold, f"{100 * law['level']:.3g} %\nlimit", style.GREY)])


def cells_per_parameter(runs: pd.DataFrame) -> Figure:
    """The loss of every run against the cells seen, and the different training cells, per model parameter.

    Losses are relative to the gene-mean baseline where every run has one, so that regimes share the axis.

    Parameters
    ----------
    runs : DataFrame
        Table of runs.csv; see `loss_against_parameters`.

    Returns
    -------
    Figure with two panels
    """
    shown = _usable(runs, "validation_mse")
    loss, label = shown["validation_mse"], loss_label("validation_mse")
    relative = bool(shown["gene_mean_mse"].notna().all())
    if relative:
        loss, label = loss / shown["gene_mean_mse"], "validation MSE (relative to the gene mean)"
    figure, axes = style.panels(1, 2, height=72)
    colour, marker = style.colours(runs["regime"]), style.markers(shown["size"])
    for axis, (cells, name) in zip(axes.flat, CELLS.items(), strict=True):
        for (regime, size), of in shown.groupby(["regime", "size"], sort=False):
            axis.plot(of[cells] / of["parameters"], loss[of.index], marker[size], color=colour[regime], alpha=0.75,
                      **style.DOT)  # fmt: skip
        style.log_axis(axis.xaxis)
        axis.set(xlabel=f"{name} per parameter (number)", ylabel=label)
        if relative:
            axis.axhline(1, color=style.BASELINES["gene_mean"][1], linestyle=":", linewidth=0.9, zorder=0)
    axes.flat[1].set(ylim=axes.flat[0].get_ylim(), ylabel="")
    axes.flat[1].yaxis.set_major_formatter(NullFormatter())
    keys = {regime: key(color=colour[regime], linewidth=3) for regime in dict.fromkeys(runs["regime"])}
    keys |= {size: key(color=style.GREY, marker=marker[size], linestyle="") for size in dict.fromkeys(shown["size"])}
    style.legend(figure, keys)
    return style.settle(
        figure,
        f"Loss against training cells seen (left) and different training cells (right) per parameter: "
        f"{_runs_of(shown)}. Colours are regimes, markers sizes." + " The dotted line is the gene mean." * relative,
    )
