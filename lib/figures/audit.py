"""Figures about the published study: how its floor was found, and what its runs show."""

import numpy as np
from matplotlib.lines import Line2D

from lib.figures import look
from lib.figures.study import HEADLINE, PARAMETERS, loss_label

OURS, THEIRS = look.PALETTE[0], look.INK


def criterion_curve(curve, smallest, law=None):
    """The published criterion against the floors it chooses from, and the end of their grid.

    Parameters
    ----------
    curve : DataFrame
        c and r2 (of log(L - c)) in the order of the grid; the largest r2 is what the published fitter chooses.
    smallest : float
        The smallest loss, which the grid stops short of.
    law : dict, optional
        Entry of laws.json for the same runs, for the least-squares floor and its interval.

    Returns
    -------
    Figure with two panels: the whole grid, and its end
    """
    best = int(np.argmax(curve["r2"]))
    chosen, highest = curve["c"].iloc[best], curve["r2"].iloc[best]
    figure, _ = look.panels(1, 2, height=62)
    whole, end = figure.axes
    for axis in (whole, end):
        axis.plot(curve["c"], curve["r2"], ".-", color=THEIRS, markersize=3 if axis is end else 0, linewidth=0.9)
        axis.plot(chosen, highest, "o", color=look.PALETTE[1], zorder=4, **look.DOT)
        axis.set(xlabel="floor c tried, MSE (log1p expression²)", ylabel="R² of log(L − c) (no unit)")
    look.header(whole, "The whole grid", [f"{len(curve)} floors tried; number {best + 1} is chosen"])
    marks = {
        f"chosen {chosen:.4f}": (chosen, look.PALETTE[1], "-"),
        f"smallest loss {smallest:.4f}": (smallest, look.GREY, ":"),
    }
    if law:
        marks[f"least squares {law['c']:.4f}"] = (law["c"], OURS, "--")
    _end_of_grid(end, curve, smallest, law)
    for x, colour, dashes in marks.values():
        end.axvline(x, color=colour, linestyle=dashes, linewidth=0.9, zorder=0)
    look.header(end, "Its end", [f"chosen: {chosen / smallest:.2f} × smallest loss"])
    look.legend(
        figure, [Line2D([], [], color=colour, linestyle=dashes) for _, colour, dashes in marks.values()], list(marks)
    )
    return look.settle(figure)


def _end_of_grid(axis, curve, smallest, law):
    """Limits around the last five floors tried and what lies beyond them; the strip is the interval of least squares."""
    width = smallest - curve["c"].iloc[-6]
    near = curve["r2"].iloc[-6:]
    room = 0.15 * np.ptp(near)
    lo, hi = law["intervals"].get(HEADLINE, {}).get("c") or (None, None) if law else (None, None)
    inside = [x for x in (law["c"], lo, hi) if x is not None and abs(x - smallest) < 3 * width] if law else []
    right = max([smallest, *inside]) + 0.15 * width
    axis.set(xlim=(smallest - width, right), ylim=(near.min() - room, near.max() + room))
    if lo is not None or hi is not None:
        axis.axvspan(
            axis.get_xlim()[0] if lo is None else lo, right if hi is None else hi, color=OURS, alpha=0.12, linewidth=0
        )


def published_audit(runs, curves, refits, gene_mean):
    """What the published runs show: both fits, best against final loss, and what each choice changes.

    Parameters
    ----------
    runs : DataFrame
        size, params, best_val_mse, final_val_mse, evaluations; one row per run.
    curves : DataFrame
        fit ("least squares" or "published method"), parameters, loss, lo, hi (NaN where there is no band).
    refits : DataFrame
        fit, alpha, alpha_low, alpha_high, status (NaN for a fit without intervals).
    gene_mean : float
        Loss of predicting each gene's mean.

    Returns
    -------
    Figure with three panels
    """
    figure, _ = look.panels(1, 3, height=70)
    runs = runs.sort_values(["params", "evaluations", "best_val_mse"])
    _both_fits(figure.axes[0], runs, curves, gene_mean)
    _best_and_final(figure.axes[1], runs)
    _refits(figure.axes[2], refits)
    keys = {
        "one run": Line2D([], [], color=OURS, marker="o", linestyle="", markersize=3.5),
        "least squares, band": Line2D([], [], color=OURS),
        "published method": Line2D([], [], color=THEIRS, linestyle="--"),
        "gene mean": Line2D([], [], color=look.BASELINES["gene_mean"][1], linestyle=look.BASELINES["gene_mean"][2]),
    }
    look.legend(figure, list(keys.values()), list(keys))
    return look.settle(figure)


def _both_fits(axis, runs, curves, gene_mean):
    marker = look.markers(list(dict.fromkeys(runs["size"])))
    look.log_axis(axis.xaxis)
    for size, of in runs.groupby("size"):
        axis.plot(of["params"], of["best_val_mse"], marker[size], color=OURS, zorder=4, **look.DOT | {"markersize": 4})
    for fit, of in curves.groupby("fit"):
        style = {"color": THEIRS, "linestyle": "--"} if fit == "published method" else {"color": OURS}
        axis.plot(of["parameters"], of["loss"], linewidth=1, **style)
        band = [of[edge].astype(float) for edge in ("lo", "hi")]
        axis.fill_between(of["parameters"], *band, color=style["color"], alpha=0.18, linewidth=0)
    _, colour, dashes = look.BASELINES["gene_mean"]
    axis.axhline(gene_mean, color=colour, linestyle=dashes, linewidth=0.9)
    low, high = runs["best_val_mse"].min(), runs["best_val_mse"].max()
    axis.set(xlabel=PARAMETERS, ylabel=loss_label("validation_mse"))
    axis.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    axis.set_xlim(runs["params"].min() / 2, runs["params"].max() * 2)
    room = look.size_names(axis, runs.groupby("size", sort=False)["params"].first().to_dict())
    look.header(axis, "Two fits of the same runs", room=room)


def _best_and_final(axis, runs):
    """Seeds side by side within a size: how far the last loss lies above the best one reported."""
    most = runs["evaluations"].max()
    for place, (_, of) in enumerate(runs.groupby("size", sort=False)):
        for x, run in zip(place + 0.26 * (np.arange(len(of)) - (len(of) - 1) / 2), of.itertuples(), strict=True):
            lift = 1000 * (run.final_val_mse - run.best_val_mse)
            axis.vlines(x, 0, lift, color=OURS, linewidth=1)
            axis.plot(x, lift, "o", color=OURS, markersize=3)
            if run.evaluations < most:
                axis.annotate(f"{run.evaluations}", (x, lift), (0, 3), textcoords="offset points", ha="center",
                              fontsize=look.SMALL, color=look.PALETTE[1])  # fmt: skip
    sizes = list(dict.fromkeys(runs["size"]))
    axis.set_xticks(range(len(sizes)), sizes)
    axis.set(xlabel="size (one line per seed)", ylabel="final − best loss (10⁻³ MSE)")
    look.header(axis, "Final minus best loss", [f"numbers: fewer than {most} evaluations"])


def _refits(axis, refits):
    ends = refits[["alpha_low", "alpha", "alpha_high"]].astype(float)
    low, high = np.nanmin(ends), np.nanmax(ends)
    room = 0.12 * (high - low)
    for y, (lo, alpha, hi) in enumerate(ends.itertuples(index=False)):
        if not isinstance(refits["status"].iloc[y], str):
            axis.plot(alpha, y, "o", color=THEIRS, **look.DOT)
            continue
        whisker = [low - room if np.isnan(lo) else lo, high + room if np.isnan(hi) else hi]
        axis.plot(whisker, [y, y], color=OURS, linewidth=1)
        for end, edge, sign in ((lo, whisker[0], "<"), (hi, whisker[1], ">")):
            if np.isnan(end):
                axis.plot(edge, y, sign, color=OURS, markersize=3.5)
        axis.plot(alpha, y, "o", color=OURS, **look.DOT)
    names = [name.removeprefix("least squares, ").replace(", ", ",\n") for name in refits["fit"]]
    axis.set_yticks(range(len(names)), names)
    axis.set(ylim=(len(names) - 0.5, -0.5), xlabel="exponent α (no unit)", ylabel="fit (by choice made)")
    look.header(axis, "What a choice changes", ["arrow: an interval without an end"])
