"""Figures of the method: a run looked at closely, the published study audited, the next run, what intervals hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from lib.figures import style
from lib.figures.study import HEADLINE, METHODS, OPEN
from lib.figures.style import Figure, Note, key, loss_label

if TYPE_CHECKING:  # these import SciPy
    import pandas as pd

    from lib.fit.joint import Outlook
    from lib.train.evaluate import Examination

COLOURS = {"run": "#0072B2", "exact posterior": "#000000", "exact": "#000000", "conditional Gaussian": "#882255"}
"""Of each predictor."""
THIRDS = {"low": ":", "middle": "--", "high": "-"}
"""Dashes of the thirds of the genes by mean count."""
OURS, THEIRS = style.PALETTE[0], style.INK
EFFECT = {False: style.PALETTE[5], True: "#882255"}
"""Colour of simulated studies without and with an effect that all seeds of a size share."""
UNPUBLISHED = "The published method fits losses above zero, of two sizes or more."


def by_gene(examined: Examination) -> Figure | Note:
    """What each gene adds to the squared error that is left.

    Parameters
    ----------
    examined : lib.train.evaluate.Examination
        run, its name; genes: mean, variance, residual, share, and floor, floor_share where they are known; or genes
        None and a sentence.

    Returns
    -------
    Figure with two panels: variances against mean expression; share of the error against share of the genes. Or a Note.
    """
    genes = examined.genes
    if genes is None:
        return Note(examined.sentence)
    figure, axes = style.panels(1, 2, height=66)
    errors, shares = axes.flat
    kinds = {"gene mean": ("variance", style.GREY, "s"), "run": ("residual", COLOURS["run"], "o")}
    if "floor" in genes:
        kinds["exact floor"] = ("floor", COLOURS["exact"], "D")
    keys = {}
    for label, (column, colour, marker) in kinds.items():
        errors.plot(genes["mean"], genes[column], marker, color=colour, markersize=3, alpha=0.8, markeredgewidth=0)
        keys[label] = key(color=colour, marker=marker, linestyle="", markersize=4)
    errors.set(yscale="log", xlabel="mean expression (log1p)", ylabel="squared error of a gene (log1p²)")
    style.log_axis(errors.xaxis)
    style.log_ticks(errors.xaxis, errors.yaxis)
    style.header(errors, "Error of each gene", [examined.run])
    ranks = 100 * np.arange(len(genes) + 1) / len(genes)
    for column, label, dashes in (("share", "run", "-"), ("floor_share", "exact floor", "--")):
        if column in genes:
            carried = 100 * np.concatenate([[0], np.sort(genes[column])[::-1].cumsum()])
            shares.plot(ranks, carried, color=kinds[label][1], linestyle=dashes)
    shares.plot([0, 100], [0, 100], color=style.GREY, linewidth=0.6, linestyle=":")
    shares.set(xlabel="genes, those of most error first (%)", ylabel="share of the squared error (%)",
               xlim=(0, 100), ylim=(0, 102))  # fmt: skip
    style.header(shares, "Which genes carry it")
    style.legend(figure, keys | {"all genes alike": key(color=style.GREY, linewidth=0.8, linestyle=":")})
    return style.settle(
        figure,
        f"Left: squared error of each of {len(genes)} genes on held-out cells, by its mean, by a run ({examined.run})"
        f"{', and the exact floor' * ('floor' in genes)}. Right: the share that the genes of most error carry. "
        f"{examined.sentence}",
    )


def calibration(examined: Examination) -> Figure | Note:
    """Histograms of probability integral transforms: flat inside the band where the predicted distributions are right.

    Parameters
    ----------
    examined : lib.train.evaluate.Examination
        calibration: predictor, genes, bin, density, low, high; or None and a sentence.

    Returns
    -------
    Figure, a panel for each predictor; or a Note
    """
    table = examined.calibration
    if table is None:
        return Note(examined.sentence)
    predictors = list(table["predictor"].unique())
    figure, axes = style.panels(1, len(predictors), height=58)
    keys = {"all genes": key(color=style.INK, linewidth=1.4)}
    for axis, predictor in zip(axes.flat, predictors, strict=True):
        of = table[table["predictor"] == predictor]
        whole = of[of["genes"] == "all"]
        edges = np.append(whole["bin"], 1)
        axis.stairs(whole["high"], edges, baseline=whole["low"].to_numpy(), fill=True, color=style.GREY, alpha=0.3)
        axis.stairs(whole["density"], edges, baseline=None, color=COLOURS[predictor], linewidth=1.4)
        for genes, part in of[of["genes"] != "all"].groupby("genes", sort=False):
            line = {"color": style.INK, "linewidth": 0.7, "linestyle": THIRDS[genes]}
            axis.plot(part["bin"] + 0.5 / len(whole), part["density"], **line)
            keys[f"{genes} mean"] = key(**line)
        axis.axhline(1, color=style.INK, linewidth=0.5)
        axis.set(xlabel="transform of the hidden count (0 to 1)", ylabel="density (1 where right)", xlim=(0, 1))
        axis.set_ylim(0, max(1.6, 1.08 * table["density"].max()))
        style.header(axis, predictor)
    style.legend(figure, keys | {"95 % of uniform samples": key(color=style.GREY, alpha=0.4, linewidth=5)})
    return style.settle(
        figure,
        f"Randomised transforms of the hidden counts under {len(predictors)} predicted distributions: flat at 1 where "
        "a distribution is right, inside the grey band in 95 % of samples"
        + ("; thin lines are thirds of the genes by mean count." if len(keys) > 1 else "."),
    )


def conversions(examined: Examination) -> Figure | Note:
    """Bits per masked gene by every rule that turns predictions into them, beside the exact entropy.

    Parameters
    ----------
    examined : lib.train.evaluate.Examination
        bits: predictor, rule (categorical), bits; or None and a sentence.

    Returns
    -------
    Figure, or a Note
    """
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
    exact = table.loc[table["rule"] == "exact entropy", "bits"]
    for entropy in exact:
        axis.axvline(entropy, color="black", linewidth=0.9, zorder=0)
    axis.set_yticks(range(len(rules)), rules)
    axis.tick_params(axis="y", length=0)
    axis.set(ylim=(len(rules) - 0.5, -0.5), xlabel="cost of a hidden count (bits per masked gene)")
    axis.set_ylabel("rule (of conversion)", labelpad=8)
    style.legend(figure, keys)
    return style.settle(
        figure,
        f"The same predictions ({' and '.join(predictors)}) turned into bits per masked gene by {len(rules)} rules "
        "that leave out less and less from top to bottom."
        + " The black line is the exact entropy of a hidden count."
        * bool(len(exact)),
    )


def criterion_curve(curves: pd.DataFrame, laws: dict) -> Figure:
    """What the published fitter maximises, against the floors that it tries, and how well each fits the loss itself.

    Parameters
    ----------
    curves : DataFrame
        From lib.fit.published.criterion: regime; c in the order of the grid; r2 of log(L - c), whose largest value is
        chosen; rss of the loss itself.
    laws : dict
        Content of laws.json, for the floor by least squares, its interval and its residual sum of squares.

    Returns
    -------
    Figure, a row per regime: the criterion over the whole grid, the residuals at the end of the grid
    """
    regimes = list(dict.fromkeys(curves["regime"]))
    if not regimes:
        return Note(UNPUBLISHED)
    figure, axes = style.panels(len(regimes), 2, height=52)
    for (whole, end), regime in zip(axes, regimes, strict=True):
        curve = curves[curves["regime"] == regime]
        best = int(np.argmax(curve["r2"]))
        for axis, column in ((whole, "r2"), (end, "rss")):
            axis.plot(curve["c"], curve[column], color=THEIRS, linewidth=0.9)
            axis.plot(curve["c"].iloc[best], curve[column].iloc[best], "o", color=THEIRS, **style.DOT)
        law = laws.get(regime, {}).get("validation_mse", {})
        _end_of_grid(end, curve, law, style.colours(regimes)[regime])
        style.header(whole, regime, [f"{len(curve)} floors tried; number {best + 1} has the largest R² and is chosen"])
        whole.set(xlabel="floor c tried, MSE (log1p expression²)", ylabel="R² of log(L − c) (no unit)")
        end.set(xlabel="floor c, MSE (log1p expression²)", ylabel="residual sum\nof squares (MSE²)")
    style.legend(figure, {
        "floors tried": key(color=THEIRS, linewidth=0.9), "chosen": key(color=THEIRS, marker="o", linestyle=""),
        "least squares, interval of its floor": key(color=style.GREY, marker="D", linewidth=1),
    })  # fmt: skip
    return style.settle(
        figure,
        f"What the published fitter maximises over the floors that it tries, {len(regimes)} regimes: R² of log(L − c) "
        "on log P (left); residuals of the loss itself at the grid's end (right). Diamond: floor by least squares.",
    )


def _end_of_grid(axis, curve, law, colour):
    """The last tenth of the floors tried, and the least-squares floor where it lies near."""
    first, last = curve["c"].iloc[-len(curve) // 10], curve["c"].iloc[-1]
    width, left, right = last - first, first, last
    seen = [*curve["rss"][curve["c"] >= first]]
    c, rss = law.get("c"), law.get("rss")
    if rss and first - 2 * width < c < last + 2 * width:
        lo, hi = law["intervals"].get(HEADLINE, {}).get("c") or OPEN
        left = max(left - width, min(left, c if lo is None else lo))
        right = min(last + 2 * width, max(c, last if hi is None else hi))
        ends = [left - width if lo is None else lo, right + width if hi is None else hi]
        axis.plot(ends, [rss, rss], color=colour, linewidth=1)
        axis.plot(c, rss, "D", color=colour, zorder=4, **style.DOT)
        seen.append(rss)
    axis.set(yscale="log", xlim=(left - 0.1 * width, right + 0.1 * width), ylim=(min(seen) / 1.4, max(seen) * 1.4))
    style.log_ticks(axis.yaxis)
    axis.xaxis.set_major_locator(MaxNLocator(5))


def published_audit(runs: pd.DataFrame, curves: pd.DataFrame, refits: pd.DataFrame) -> Figure:
    """What the published runs show: both fits, best against final loss, and what each choice changes.

    Parameters
    ----------
    runs : DataFrame
        Of one regime: size, parameters, validation_mse (the best), final_val_mse, evaluations, gene_mean_mse.
    curves : DataFrame
        From lib.fit.published.both_fits: fit ("ours" or "published"), parameters, loss, lo, hi (NaN: no band).
    refits : DataFrame
        From lib.fit.published.refits: fit, alpha, alpha_low, alpha_high, status (NaN for a fit without intervals).

    Returns
    -------
    Figure with three panels, or two where the runs have no final_val_mse and evaluations beside the best loss
    """
    if curves.empty:
        return Note(UNPUBLISHED)
    best_of_many = {"evaluations", "final_val_mse"} <= set(runs)
    figure, _ = style.panels(1, 3 if best_of_many else 2, height=72)
    runs = runs.sort_values(["parameters", *["evaluations"] * best_of_many, "validation_mse"])
    _both_fits(figure.axes[0], runs, curves)
    if best_of_many:
        _best_and_final(figure.axes[1], runs)
    _refits(figure.axes[-1], refits)
    _, grey, dashes = style.BASELINES["gene_mean"]
    style.legend(figure, {
        "one run": key(color=OURS, marker="o", linestyle="", markersize=3.5), "least squares, band": key(color=OURS),
        "published method": key(color=THEIRS, linestyle="--"), "gene mean": key(color=grey, linestyle=dashes),
    })  # fmt: skip
    return style.settle(
        figure,
        f"{len(runs)} runs of {runs['size'].nunique()} sizes fitted by least squares (blue, with band) and by the "
        "published method (dashed)." + " Middle: by how much a run's last loss lies above its best." * best_of_many
        + f" Right: the exponent by {len(refits)} choices; black fits have no interval.",
    )  # fmt: skip


def _both_fits(axis, runs, curves):
    marker = style.markers(runs["size"])
    style.log_axis(axis.xaxis)
    for size, of in runs.groupby("size"):
        axis.plot(of["parameters"], of["validation_mse"], marker[size], color=OURS, zorder=4,
                  **style.DOT | {"markersize": 4})  # fmt: skip
    for fit, of in curves.groupby("fit"):
        line = {"color": THEIRS, "linestyle": "--"} if fit == "published" else {"color": OURS}
        axis.plot(of["parameters"], of["loss"], linewidth=1, **line)
        band = [of[edge].astype(float) for edge in ("lo", "hi")]
        axis.fill_between(of["parameters"], *band, color=line["color"], alpha=0.18, linewidth=0)
    _, grey, dashes = style.BASELINES["gene_mean"]
    axis.axhline(runs["gene_mean_mse"].mean(), color=grey, linestyle=dashes, linewidth=0.9)
    low, high = runs["validation_mse"].min(), runs["validation_mse"].max()
    axis.set(xlabel=style.PARAMETERS, ylabel=loss_label("validation_mse"))
    axis.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    axis.set_xlim(runs["parameters"].min() / 2, runs["parameters"].max() * 2)
    above = style.size_names(axis, runs.groupby("size", sort=False)["parameters"].first().to_dict())
    style.header(axis, "Two fits of the same runs", above=above)


def _best_and_final(axis, runs):
    """Seeds side by side within a size: how far the last loss lies above the best one reported."""
    most = runs["evaluations"].max()
    for place, (_, of) in enumerate(runs.groupby("size", sort=False)):
        for x, run in zip(place + 0.26 * (np.arange(len(of)) - (len(of) - 1) / 2), of.itertuples(), strict=True):
            lift = 1000 * (run.final_val_mse - run.validation_mse)
            axis.vlines(x, 0, lift, color=OURS, linewidth=1)
            axis.plot(x, lift, "o", color=OURS, markersize=3)
            if run.evaluations < most:
                axis.annotate(f"{run.evaluations}", (x, lift), (0, 3), textcoords="offset points", ha="center",
                              fontsize=style.SMALL, color=style.PALETTE[1])  # fmt: skip
    names = list(dict.fromkeys(runs["size"]))
    axis.set_xticks(range(len(names)), names)
    axis.set(xlabel="size (one line per seed)", ylabel="final − best loss (10⁻³ MSE)")
    style.header(axis, "Final minus best loss", [f"numbers: fewer than {most} evaluations"])


def _refits(axis, refits):
    ends = refits[["alpha_low", "alpha", "alpha_high"]].astype(float)
    low, high = np.nanmin(ends), np.nanmax(ends)
    room = 0.12 * (high - low)
    without = refits["status"].isna()
    for y, (lo, alpha, hi) in enumerate(ends.itertuples(index=False)):
        if not without.iloc[y]:
            whisker = [low - room if np.isnan(lo) else lo, high + room if np.isnan(hi) else hi]
            axis.plot(whisker, [y, y], color=OURS, linewidth=1)
            for end, edge, sign in ((lo, whisker[0], "<"), (hi, whisker[1], ">")):
                if np.isnan(end):
                    axis.plot(edge, y, sign, color=OURS, markersize=3.5)
        axis.plot(alpha, y, "o", color=THEIRS if without.iloc[y] else OURS, **style.DOT)
    axis.set_yticks(range(len(refits)), [name.replace(" at the ", " at\n") for name in refits["fit"]])
    axis.set(ylim=(len(refits) - 0.5, -0.5), xlabel="exponent α (no unit)", ylabel="fit (by choice made)")
    style.header(axis, "What a choice changes", ["arrow: an interval without an end"])


def planner(view: Outlook) -> Figure | Note:
    """What limits a run, and what more parameters or more cells would buy.

    Parameters
    ----------
    view : lib.fit.joint.Outlook
        plan: parameters, cells, limited_by, level, reach of the largest run; gains: of (parameters or cells), factor,
        gain, low, high, NaN beyond reach; frontier: cells, parameters, low, high; grid: parameters, cells_train; or
        plan None and a sentence.

    Returns
    -------
    Figure with two panels, or a Note
    """
    if view.plan is None:
        return Note(view.sentence)
    figure, axes = style.panels(1, 2, height=66)
    _frontier(axes.flat[0], view.plan, view.frontier, view.grid)
    _gains(axes.flat[1], view.gains, view.plan.level)
    return style.settle(
        figure,
        f"Left: where parameters and training cells limit equally, with {100 * view.plan.level:.3g} % band; dots are "
        f"the {len(view.grid)} cells of the fitted grid, the star the largest run. Right: the loss that more of either "
        f"would save there. {view.sentence}",
    )


def _frontier(axis, plan, frontier, grid):
    colour, red = style.PALETTE[2], style.PALETTE[1]
    frontier = frontier.dropna(subset=["parameters"])
    low, high = grid["parameters"].min() / plan.reach, grid["parameters"].max() * plan.reach
    axis.plot(grid["cells_train"], grid["parameters"], ".", color=style.GREY, markersize=4, markeredgewidth=0)
    axis.plot(frontier["cells"], frontier["parameters"], color=colour)
    style.log_axis(axis.xaxis, axis.yaxis)
    ends = (frontier[end].astype(float).fillna(edge).clip(low, high) for end, edge in (("low", low), ("high", high)))
    axis.fill_between(frontier["cells"], *ends, color=colour, alpha=0.18, linewidth=0)
    axis.plot(plan.cells, plan.parameters, "*", color=red, zorder=4, clip_on=False, **style.DOT | {"markersize": 9})
    axis.set(xlabel="training cells (number)", ylabel=style.PARAMETERS, ylim=(low, high))
    axis.set_xlim(grid["cells_train"].min() / plan.reach, grid["cells_train"].max() * plan.reach)
    corner = {"transform": axis.transAxes, "fontsize": style.SMALL, "color": style.GREY}
    axis.text(0.03, 0.97, "limited by data", va="top", **corner)
    axis.text(0.97, 0.03, "limited by capacity", ha="right", **corner)
    limit = "not resolved by these runs" if plan.limited_by == "not resolved" else f"limited by {plan.limited_by}"
    style.header(axis, "What limits a run", [f"the largest run: {limit}"])
    style.legend(axis.figure, {
        "fitted grid": key(marker=".", linestyle="", color=style.GREY),
        f"equal, {100 * plan.level:.3g} % band": key(color=colour),
        "largest run": key(marker="*", linestyle="", color=red, markersize=8),
    })  # fmt: skip


def _gains(axis, gains, level):
    for y, row in enumerate(gains.itertuples()):
        if np.isnan(row.gain):
            axis.text(0.08, y, "too far beyond the grid", transform=axis.get_yaxis_transform(), va="center",
                      fontsize=style.SMALL, color=style.GREY, backgroundcolor="white")  # fmt: skip
            continue
        axis.plot([row.low, row.high], [y, y], color=style.INK, linewidth=1)
        axis.plot(row.gain, y, "o", color=style.INK, **style.DOT)
    axis.axvline(0, color=style.GREY, linewidth=0.6, zorder=0)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.set_yticks(range(len(gains)), [f"{row.factor:g} × {row.of}" for row in gains.itertuples()])
    axis.set(ylim=(len(gains) - 0.5, -0.5), ylabel="change (of the run)")
    axis.set_xlabel(f"saved {loss_label('validation_mse')}")
    style.header(axis, "What more would buy", [f"{100 * level:.3g} % intervals"])


def coverage(table: pd.DataFrame, promised: tuple[float, float] = (0.92, 0.98)) -> Figure:
    """How often each interval held the truth, in every kind of simulated study.

    Parameters
    ----------
    table : DataFrame
        data/coverage.csv: method, truth, sizes, seeds, size_effect, studies, level, and the shares alpha and c of
        intervals that held it.

    Returns
    -------
    Figure with two panels, exponent and floor; bars are 95 % binomial, the strip is what the headline promises.
    """
    methods = [name for name in METHODS if name in set(table["method"])]
    figure, axes = style.panels(1, 2, height=25 + 10 * len(methods))
    cells = table.assign(design=[f"{row.sizes} × {row.seeds}" for row in table.itertuples()])
    cells["cell"] = cells.groupby(["size_effect", "design", "truth"]).ngroup()
    marker = dict(zip(dict.fromkeys(cells["design"]), style.MARKERS, strict=False))
    for axis, name in zip(axes.flat, ("alpha", "c"), strict=True):
        axis.axvspan(*(100 * end for end in promised), color=style.GREY, alpha=0.15, linewidth=0)
        axis.axvline(100 * table["level"].iloc[0], color=style.GREY, linewidth=0.8, linestyle="--")
        _shares(axis, cells, name, methods, marker)
        axis.set_yticks(range(len(methods)), [METHODS[method] for method in methods] if name == "alpha" else [])
        axis.tick_params(axis="y", length=0)
        axis.set(xlim=(min(100 * promised[0] - 4, axis.get_xlim()[0]), 100.5), ylim=(len(methods) - 0.4, -0.6))
    exponent, floor = axes.flat
    exponent.set(xlabel="studies whose interval held the exponent (%)", ylabel="interval (by method)")
    exponent.get_yticklabels()[0].set_fontweight("bold" if methods[0] == HEADLINE else "normal")
    floor.set_xlabel("studies whose interval held the floor (%)")
    _coverage_legend(figure, marker, dict.fromkeys(cells["truth"]))
    return style.settle(
        figure,
        f"How often each interval held the true exponent and floor in {cells['cell'].nunique()} kinds of simulated "
        f"study, {cells['studies'].min():,} or more of each. Bars: 95 % binomial; dashed: what is promised; strip: "
        f"{100 * promised[0]:.3g} to {100 * promised[1]:.3g} %.",
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
    grey = {"color": style.GREY, "linestyle": "", "markersize": 4}
    keys = {design: key(marker=shape, **grey) for design, shape in marker.items()}
    keys |= {"seed noise": key(color=EFFECT[False], linewidth=3)}
    keys |= {"and size effect": key(color=EFFECT[True], linewidth=3)}
    fill = {truth: "white" if truth == "no floor" else style.GREY for truth in truths}
    style.legend(figure, keys | {truth: key(marker="o", markerfacecolor=fill[truth], **grey) for truth in truths})
