"""Figures of trained runs and of the laws fitted to them. Curves, bands and intervals arrive ready made."""

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullFormatter

from lib.figures import look
from lib.figures.shown import counted
from lib.fit.runs import headline

METHODS = {
    "profile_size_means": "profile, size means",
    "profile_runs": "profile, runs",
    "bootstrap_runs": "bootstrap, runs",
    "bootstrap_runs_bca": "bootstrap, runs (BCa)",
    "bootstrap_within_sizes": "bootstrap, within sizes",
    "bootstrap_sizes": "bootstrap, sizes",
    "two_stage": "bootstrap, sizes then seeds",
}
HEADLINE = "profile_size_means"
CELLS = {"cells_seen": "training cells seen", "cells_train": "different training cells"}
PARAMETERS = "model parameters (number)"
SIDES = {"test_dataset": "test (data sets)", "test_random": "test (same donors)"}


def loss_against_parameters(runs, curves, baselines, laws=None, metric=None):
    """The loss of every run against its model's parameters, with the law, its floor and the baselines.

    Parameters
    ----------
    runs : DataFrame
        Table of runs.csv. Rows that are not `ok` or have no loss are left out, and their number is shown.
    curves : DataFrame
        The fitted laws: regime, parameters, loss, lo, hi (the band).
    baselines : dict
        {regime: {split: {gene_mean_mse, gaussian_mse, bayes_mse, ...}}}; whatever is missing is not drawn.
    laws : dict, optional
        Content of laws.json, for the floor and the numbers above each panel.
    metric : str, optional
        Column of `runs`: test_mse, validation_nll, ...; the headline loss of each regime when left out.

    Returns
    -------
    Figure, one panel per regime
    """
    metrics = headline(runs) if metric is None else dict.fromkeys(runs["regime"], metric)
    metrics = {regime: name for regime, name in metrics.items() if len(_usable(runs[runs["regime"] == regime], name))}
    regimes = list(metrics) or list(dict.fromkeys(runs["regime"]))
    columns = min(2, len(regimes))
    figure, axes = look.panels(-(-len(regimes) // columns), columns, height=82 if columns == 2 else 88)
    for axis, regime in zip(axes.flat, regimes, strict=False):
        metric = metrics.get(regime, "validation_mse")
        law = (laws or {}).get(regime, {}).get(metric, {})
        levels = _levels_of(baselines, regime, metric)
        of_regime = runs[runs["regime"] == regime]
        _loss_panel(axis, of_regime, metric, look.colours(regimes)[regime])
        _law(axis, curves[curves["regime"] == regime], law, levels, look.colours(regimes)[regime])
        room = look.size_names(axis, _places(of_regime, metric))
        look.header(axis, regime, [_size_of(of_regime, metric), _numbers(law)], room)
    for axis in list(axes.flat)[len(regimes):]:  # fmt: skip
        axis.remove()
    levels = [law["level"] for of in (laws or {}).values() for law in of.values()]
    level = levels[0] if levels else 0.95
    _loss_legend(figure, level)
    lines = {name: None for regime in metrics for name in _levels_of(baselines, regime, metrics[regime])}
    return look.settle(figure, _loss_caption(runs, metrics, level, lines))


def _loss_caption(runs, metrics, level, lines):
    kept = pd.concat([_usable(runs[runs["regime"] == regime], name) for regime, name in metrics.items()] or [runs[:0]])
    out, baselines = len(runs) - len(kept), ", ".join(look.BASELINES[name][0].replace("\n", " ") for name in lines)
    return (
        f"Loss against model parameters: {_runs_of(kept)}. Small markers are runs, large ones the mean of a size with "
        f"the range of its seeds. The line is the fitted law with its pointwise {100 * level:.3g} % band, the dashed "
        f"line of its colour the floor, and the strip the {100 * level:.3g} % interval of the floor."
        + (f" The other lines need no training: {baselines}." if baselines else "")
        + (f" {counted(out, 'run')} without a final loss left out." if out else "")
    )


def _runs_of(runs):
    """12 runs of 6 sizes in 2 regimes."""
    several = runs["regime"].nunique() if "regime" in runs else 1
    where = f" in {several} regimes" if several > 1 else ""
    return f"{counted(len(runs), 'run')} of {counted(runs['size'].nunique(), 'size')}{where}"


def _usable(runs, metric):
    return runs[(runs["status"] == "ok") & np.isfinite(runs[metric].astype(float))].sort_values(["parameters", "seed"])


def _places(runs, metric):
    return _usable(runs, metric).groupby("size", sort=False)["parameters"].first().to_dict()


def _levels_of(baselines, regime, metric):
    """{baseline: its loss} on the side and in the unit of a regime's metric, as far as they are known."""
    side, kind = metric.rsplit("_", 1)
    measured = baselines.get(regime, {}).get(side, {})
    names = {"gene_mean": "gene_nll", "bayes": "bayes_bits"} if kind == "nll" else {}
    found = {name: measured.get(names.get(name, f"{name}_{kind}")) for name in look.BASELINES}
    return {name: value for name, value in found.items() if value is not None and np.isfinite(value)}


def _loss_panel(axis, runs, metric, colour):
    """One run a light marker; the mean of a size a full one, with a bar over its seeds."""
    shown = _usable(runs, metric)
    marker = look.markers(list(dict.fromkeys(shown["size"])))
    look.log_axis(axis.xaxis)
    for size, seeds in shown.groupby("size", sort=False):
        x, losses = seeds["parameters"].iloc[0], seeds[metric].astype(float)
        axis.plot(seeds["parameters"], losses, marker[size], color=colour, alpha=0.45, markersize=3, markeredgewidth=0)
        axis.vlines(x, losses.min(), losses.max(), color=colour, linewidth=0.9)
        axis.plot(x, losses.mean(), marker[size], color=colour, zorder=4, **look.DOT)
    axis.set(xlabel=PARAMETERS, ylabel=loss_label(metric))
    if shown.empty:
        axis.set(xlim=(1e3, 1e6), ylim=(0, 1))
    else:
        axis.set_xlim(shown["parameters"].min() / 2, shown["parameters"].max() * 2)


def loss_label(metric):
    """Axis label of a loss, with its unit."""
    side, kind = metric.rsplit("_", 1)
    return f"{SIDES.get(side, side)} {look.UNITS[kind]}"


def _law(axis, curve, law, levels, colour):
    """Law with band, floor with strip, baselines; labels at the right edge, limits around what was measured."""
    low, high = axis.get_xlim()
    inside = curve[curve["parameters"].between(2 * low, high / 2)]
    axis.plot(curve["parameters"], curve["loss"], color=colour, zorder=3)
    axis.fill_between(curve["parameters"].astype(float), curve["lo"].astype(float), curve["hi"].astype(float),
                      color=colour, alpha=0.18, linewidth=0)  # fmt: skip
    seen = [y for line in axis.lines for y in np.atleast_1d(line.get_ydata()) if line.get_marker() != "None"]
    seen += [*levels.values(), *inside["loss"]]
    low, high = (min(seen), max(seen)) if seen else axis.get_ylim()
    span = high - low or 1.0
    labels = [(y, f"{look.BASELINES[name][0]} {y:#.3g}", look.BASELINES[name][1]) for name, y in levels.items()]
    for name, y in levels.items():
        axis.axhline(y, color=look.BASELINES[name][1], linestyle=look.BASELINES[name][2], linewidth=0.9, zorder=1)
    floor = law.get("c")
    if floor is not None and low - span < floor < high:
        low = min(low, floor)
        lo, hi = law["intervals"].get(HEADLINE, {}).get("c") or (None, None)
        axis.axhline(floor, color=colour, linestyle="--", linewidth=0.9, zorder=2)
        axis.axhspan(low - span if lo is None else lo, high + span if hi is None else hi, color=colour, alpha=0.1,
                     linewidth=0, zorder=0)  # fmt: skip
        labels.append((floor, f"fitted floor {floor:#.3g}", colour))
    axis.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    look.end_labels(axis, labels)


def _size_of(runs, metric):
    genes, cells = (runs[column].dropna() for column in ("genes", "cells_train"))
    said = [f"{_range(genes)} genes"] if len(genes) else []
    said += [f"{_range(cells)} training cells"] if len(cells) else []
    left_out = len(runs) - len(_usable(runs, metric))
    return " · ".join([*said, f"{left_out} of {len(runs)} runs left out"] if left_out else said)


def _range(values):
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _numbers(law):
    """The law's exponent and floor in one line, or why there is none."""
    if law.get("alpha") is None or law.get("c") is None:
        return f"no law: {law['status']}" if law.get("status") else ""
    headline = law["intervals"].get(HEADLINE, {})
    if law["status"] != "ok":
        return f"{law['status']}: α = {law['alpha']:.3g}, c = {law['c']:.3g}".replace("= -", "= −")
    return f"α = {look.rounded(law['alpha'], headline.get('alpha'))}   c = {look.rounded(law['c'], headline.get('c'))}"


def _loss_legend(figure, level):
    grey = {"color": look.GREY}
    dot = {"marker": "o", "linestyle": "", "markeredgewidth": 0} | grey
    bar = Line2D([], [], marker="|", markersize=9, linestyle="", **grey)
    band = Patch(alpha=0.3, linewidth=0, **grey)
    keys = {
        "one run": Line2D([], [], markersize=3, alpha=0.5, **dot),
        "size mean, range": (bar, Line2D([], [], markersize=5, **dot)),
        f"law, {100 * level:.3g} % band": (band, Line2D([], [], **grey)),
        f"floor, {100 * level:.3g} % interval": (band, Line2D([], [], linestyle="--", linewidth=0.9, **grey)),
    }
    look.legend(figure, list(keys.values()), list(keys))


def learning_curves(histories):
    """Validation loss against training cells seen, a line per size.

    Parameters
    ----------
    histories : dict
        {regime: DataFrame with size, seed, cells_seen, validation_mse or _nll}. Thin lines are seeds (a cross
        where one stopped early), the thick line is the mean of those that finished.

    Returns
    -------
    Figure, one panel per regime
    """
    columns = min(2, len(histories))
    figure, axes = look.panels(-(-len(histories) // columns), columns, height=66)
    for axis, (regime, history) in zip(axes.flat, histories.items(), strict=False):
        metric = "validation_nll" if "validation_nll" in history else "validation_mse"
        _curves(axis, history[np.isfinite(history[metric]) & (history["cells_seen"] > 0)], metric)
        look.header(axis, regime)
    for axis in list(axes.flat)[len(histories):]:  # fmt: skip
        axis.remove()
    runs = pd.concat([history.assign(regime=regime) for regime, history in histories.items()])
    runs = runs.drop_duplicates(["regime", "size", "seed"])
    return look.settle(
        figure,
        f"Validation loss during training: {_runs_of(runs)}. Thin lines are seeds, thick ones the mean of those that "
        "finished, with the marker of their size at the end; a cross marks where a run stopped early.",
    )


def _curves(axis, history, metric):
    sizes = list(dict.fromkeys(history["size"]))
    shade, marker = look.shades(sizes), look.markers(sizes)
    ends = []
    for size, seeds in history.groupby("size", sort=False):
        last = seeds["cells_seen"].max()
        whole = seeds.groupby("seed")["cells_seen"].transform("max") == last
        for _, seed in seeds.groupby("seed"):
            stopped = seed["cells_seen"].max() < last
            axis.plot(seed["cells_seen"], seed[metric], color=shade[size], linewidth=0.5, alpha=0.6,
                      marker="x" if stopped else "", markevery=[-1], markersize=4)  # fmt: skip
        mean = seeds[whole].groupby("cells_seen")[metric].mean()
        axis.plot(mean.index, mean, color=shade[size], linewidth=1.3, clip_on=False,
                  marker=marker[size], markevery=[-1])  # fmt: skip
        ends.append((mean.iloc[-1], size, shade[size]))
    look.log_axis(axis.xaxis)
    axis.set(yscale="log", xlabel="training cells seen (number)", ylabel=loss_label(metric))
    low, high = axis.get_xlim()
    if high < 100 * low:  # decades alone would be one tick or two
        look.log_ticks(axis.xaxis)
    look.log_ticks(axis.yaxis)
    look.end_labels(axis, ends)


def intervals(laws, metric=None, floors=None):
    """Every interval of the exponent and of the floor, by method, beside the estimate; the headline one emphasised.

    Parameters
    ----------
    laws : dict
        Content of laws.json. An end that does not exist is an arrow; one outside the axis, an arrow with its value.
    floors : dict, optional
        {regime: exact floor}, drawn where it is known.

    Returns
    -------
    Figure, a row per regime: exponent, floor
    """
    metrics, shown = _with(laws, metric, "intervals")
    figure, axes = look.panels(max(1, len(shown)), 2, height=48)
    if not shown:
        return _nothing(figure, axes, "no law with intervals", ("exponent α (no unit)", "floor c"))
    colours = look.colours(list(laws))
    for row, (regime, law) in zip(axes, shown.items(), strict=True):
        exact = (floors or {}).get(regime)
        _whiskers(row[0], law, "alpha", colours[regime])
        _whiskers(row[1], law, "c", colours[regime], exact)
        row[0].set_xlabel("exponent α (no unit)")
        row[1].set(xlabel=f"floor c, {loss_label(metrics[regime])}")
        if exact is not None:
            row[1].axvline(exact, color="black", linewidth=0.9, zorder=1)
            row[1].annotate("exact floor", (exact, 1), (0, 2), xycoords=row[1].get_xaxis_transform(), color="black",
                            textcoords="offset points", fontsize=look.SMALL, ha="center", va="bottom")  # fmt: skip
        level = f"{100 * law['level']:.3g} % intervals"
        look.header(row[0], regime, [f"{law['n_sizes']} sizes, {law['n_runs']} runs; {level}"])
    return look.settle(figure, _intervals_caption(shown, floors))


def _intervals_caption(shown, floors):
    first = next(iter(shown.values()))
    exact = any((floors or {}).get(regime) is not None for regime in shown)
    return (
        f"{100 * first['level']:.3g} % intervals of the exponent (left) and of the floor (right) by "
        f"{counted(len(first['intervals']), 'method')}, for {_laws_of(shown)}. In bold the headline, a profile "
        "likelihood over size means. An arrow is an interval without an end, or one that ends at the number beside it."
        + (" The black line is the exact floor." if exact else "")
    )


def _laws_of(shown):
    """data-rich (12 runs of 6 sizes) and counts (...)."""
    parts = [f"{regime} ({law['n_runs']} runs of {law['n_sizes']} sizes)" for regime, law in shown.items()]
    return ", ".join(parts[:-1]) + (" and " if parts[:-1] else "") + parts[-1]


def _with(laws, metric, part):
    """{regime: metric} and {regime: law} of the headline laws, or those of one metric, that have a part."""
    metrics = {regime: metric or next(iter(of)) for regime, of in laws.items()}
    shown = {regime: laws[regime][name] for regime, name in metrics.items() if laws[regime].get(name, {}).get(part)}
    return metrics, shown


def _nothing(figure, axes, sentence, labels):
    for axis, label in zip(axes.flat, labels, strict=True):
        axis.set(xlabel=label, xticks=[], yticks=[])
    axes.flat[0].text(0.5, 0.5, sentence, ha="center", va="center", transform=axes.flat[0].transAxes)
    return look.settle(figure, f"There is {sentence} in this study.")


def _whiskers(axis, law, name, colour, exact=None):
    """One row per method; whiskers beyond the axis become arrows that say where they would end."""
    methods = {label: law["intervals"][key] for key, label in METHODS.items() if key in law["intervals"]}
    low, high = _window(law[name], [methods[label].get(name) or (None, None) for label in methods])
    low, high = (low, high) if exact is None else (min(low, exact), max(high, exact))
    for y, (label, interval) in enumerate(methods.items()):
        main = label == METHODS[HEADLINE]
        style = {"color": colour if main else look.GREY, "linewidth": 1.8 if main else 0.8}
        lo, hi = interval.get(name) or (None, None)
        left, right = max(low, -np.inf if lo is None else lo), min(high, np.inf if hi is None else hi)
        axis.plot([left, right], [y, y], solid_capstyle="butt", **style)
        for end, edge, sign in ((lo, low, "<"), (hi, high, ">")):
            if end is None or not low <= end <= high:
                said = "" if end is None else f"{end:.3g}".replace("-", "−")
                axis.plot(edge, y, sign, color=style["color"], markersize=3.5, clip_on=False)
                axis.annotate(said, (edge, y), (0, 2), textcoords="offset points", ha="center", va="bottom",
                              fontsize=look.SMALL, color=look.GREY)  # fmt: skip
        axis.plot(law[name], y, "o", color=style["color"], markersize=4.5 if main else 3,
                  markerfacecolor=style["color"] if main else "white")  # fmt: skip
    axis.axvline(law[name], color=colour, linewidth=0.5, zorder=0)
    margin = 0.03 * (high - low)
    axis.set(xlim=(low - margin, high + margin), ylim=(len(methods) - 0.5, -0.6), ylabel="interval (by method)")
    axis.set_yticks(range(len(methods)), list(methods))
    axis.yaxis.get_ticklabels()[0].set_fontweight("bold" if METHODS[HEADLINE] in methods else "normal")
    axis.xaxis.set_major_locator(MaxNLocator(5))
    if name == "c":
        axis.set(ylabel="", yticklabels=[])
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
    open_low, open_high = (any(interval[side] is None for interval in intervals) for side in (0, 1))
    return low - room * open_low, high + room * open_high


def profile(laws, metric=None):
    """How fast the fit worsens when the floor, or the exponent, is held away from its best value.

    Parameters
    ----------
    laws : dict
        Content of laws.json; `profile` of a law holds c with relative_rss, alpha_grid with alpha_relative_rss, and the
        threshold of the interval.

    Returns
    -------
    Figure with two panels, exponent and floor; values under the dashed line are inside the interval.
    """
    metrics, shown = _with(laws, metric, "profile")
    figure, axes = look.panels(max(1, len(shown)), 2, height=52)
    if not shown:
        return _nothing(figure, axes, "no law with intervals", ("exponent α (no unit)", "floor c"))
    for row, (regime, law) in zip(axes, shown.items(), strict=True):
        colour = look.colours(list(laws))[regime]
        _profile_panel(row[0], law, "alpha", colour)
        _profile_panel(row[1], law, "c", colour)
        row[0].set_xlabel("exponent α (no unit)")
        row[1].set_xlabel(f"floor c, {loss_label(metrics[regime])}")
        look.header(row[0], regime)
    level = next(iter(shown.values()))["level"]
    return look.settle(
        figure,
        "Residual sum of squares, relative to the best fit, when the exponent (left) or the floor (right) is held at "
        f"another value, for {_laws_of(shown)}. The dot is the best fit; where the curve lies below the dashed line is "
        f"the {100 * level:.3g} % interval.",
    )


def _profile_panel(axis, law, name, colour):
    """`name` is alpha or c; the curve is drawn up to two and a half times the threshold's distance from the minimum."""
    grid, heights = {"alpha": ("alpha_grid", "alpha_relative_rss"), "c": ("c", "relative_rss")}[name]
    x, rss = (np.array(law["profile"][key], float) for key in (grid, heights))
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
    axis.axhline(threshold, color=look.GREY, linestyle="--", linewidth=0.8)
    axis.set_ylim(1 - 0.05 * (top - 1), top)
    if len(near) > 1:
        axis.set_xlim(near.min(), near.max())
    look.end_labels(axis, [(threshold, f"{100 * law['level']:.3g} %\nlimit", look.GREY)])


def cells_per_parameter(runs, metric="validation_mse"):
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
    shown = _usable(runs, metric)
    loss, label = shown[metric], loss_label(metric)
    if metric == "validation_mse" and shown["gene_mean_mse"].notna().all():
        loss, label = loss / shown["gene_mean_mse"], "validation MSE (relative to the gene mean)"
    figure, axes = look.panels(1, 2, height=72)
    colour = look.colours(list(dict.fromkeys(runs["regime"])))
    marker = look.markers(list(dict.fromkeys(shown["size"])))
    for axis, (cells, said) in zip(axes.flat, CELLS.items(), strict=True):
        for (regime, size), of in shown.groupby(["regime", "size"], sort=False):
            axis.plot(of[cells] / of["parameters"], loss[of.index], marker[size], color=colour[regime], alpha=0.75,
                      **look.DOT)  # fmt: skip
        look.log_axis(axis.xaxis)
        axis.set(xlabel=f"{said} per parameter (number)", ylabel=label)
        if loss is not shown[metric]:
            axis.axhline(1, color=look.BASELINES["gene_mean"][1], linestyle=":", linewidth=0.9, zorder=0)
    axes.flat[1].set(ylim=axes.flat[0].get_ylim(), ylabel="")
    axes.flat[1].yaxis.set_major_formatter(NullFormatter())
    keys = {regime: Line2D([], [], color=colour[regime], linewidth=3) for regime in colour}
    keys |= {size: Line2D([], [], color=look.GREY, marker=marker[size], linestyle="") for size in marker}
    look.legend(figure, list(keys.values()), list(keys))
    return look.settle(
        figure,
        f"Loss against the training cells seen (left) and the different training cells (right) for each parameter: "
        f"{_runs_of(shown)}. Colours are regimes, markers sizes."
        + (" The dotted line is the gene mean." if loss is not shown[metric] else ""),
    )
