"""Figures about the published study: how its floor was found, and what its runs show."""

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lib.figures import look
from lib.figures.study import HEADLINE, PARAMETERS, loss_label

OURS, THEIRS = look.PALETTE[0], look.INK


def criterion_curve(curves, laws=None, metric="validation_mse"):
    """What the published fitter maximises, against the floors that it tries, and how well each fits the loss itself.

    Parameters
    ----------
    curves : DataFrame
        regime; c in the order of the grid; r2 of log(L - c), whose largest value is chosen; rss of the loss itself.
    laws : dict, optional
        Content of laws.json, for the floor by least squares, its interval and its residual sum of squares.

    Returns
    -------
    Figure, a row per regime: the criterion over the whole grid, the residuals at the end of the grid
    """
    by_regime = dict(list(curves.groupby("regime", sort=False)))
    figure, axes = look.panels(len(by_regime), 2, height=52)
    for (whole, end), (regime, curve) in zip(axes, by_regime.items(), strict=True):
        best = int(np.argmax(curve["r2"]))
        for axis, column in ((whole, "r2"), (end, "rss")):
            axis.plot(curve["c"], curve[column], color=THEIRS, linewidth=0.9)
            axis.plot(curve["c"].iloc[best], curve[column].iloc[best], "o", color=THEIRS, **look.DOT)
        law = (laws or {}).get(regime, {}).get(metric, {})
        _end_of_grid(end, curve, law, look.colours(list(by_regime))[regime])
        look.header(whole, regime, [f"{len(curve)} floors tried; number {best + 1} has the largest R² and is chosen"])
        whole.set(xlabel="floor c tried, MSE (log1p expression²)", ylabel="R² of log(L − c) (no unit)")
        end.set(xlabel="floor c, MSE (log1p expression²)", ylabel="residual sum\nof squares (MSE²)")
    keys = {
        "floors tried": Line2D([], [], color=THEIRS, linewidth=0.9),
        "chosen": Line2D([], [], color=THEIRS, marker="o", linestyle=""),
        "least squares, interval of its floor": Line2D([], [], color=look.GREY, marker="D", linewidth=1),
    }
    look.legend(figure, list(keys.values()), list(keys))
    return look.settle(
        figure,
        f"What the published fitter maximises over the floors that it tries ({len(by_regime)} regimes): R² of "
        "log(L − c) on log P over the whole grid (left), and the residual sum of squares of the loss itself at the "
        "grid's end (right). Dot: the floor chosen. Diamond: the floor by least squares, with its interval.",
    )


def _end_of_grid(axis, curve, law, colour):
    """The last tenth of the floors tried, and the least-squares floor where it lies near."""
    first, last = curve["c"].iloc[-len(curve) // 10], curve["c"].iloc[-1]
    width, left, right = last - first, first, last
    seen = curve["rss"][curve["c"] >= first]
    low, high = seen.min(), seen.max()
    c, rss = law.get("c"), law.get("rss")
    if rss and first - 2 * width < c < last + 2 * width:
        lo, hi = law["intervals"].get(HEADLINE, {}).get("c") or (None, None)
        left, right = (
            max(left - width, min(left, c if lo is None else lo)),
            min(last + 2 * width, max(c, last if hi is None else hi)),
        )
        axis.plot(
            [left - width if lo is None else lo, right + width if hi is None else hi],
            [rss, rss],
            color=colour,
            linewidth=1,
        )
        axis.plot(c, rss, "D", color=colour, zorder=4, **look.DOT)
        low, high = min(low, rss), max(high, rss)
    axis.set(yscale="log", xlim=(left - 0.1 * width, right + 0.1 * width), ylim=(low / 1.4, high * 1.4))
    look.log_ticks(axis.yaxis)
    axis.xaxis.set_major_locator(MaxNLocator(5))


def published_audit(runs, curves, refits):
    """What the published runs show: both fits, best against final loss, and what each choice changes.

    Parameters
    ----------
    runs : DataFrame
        Of one regime: size, parameters, validation_mse (the best), final_val_mse, evaluations, gene_mean_mse.
    curves : DataFrame
        fit ("ours" or "published"), parameters, loss, lo, hi (NaN where there is no band).
    refits : DataFrame
        fit, alpha, alpha_low, alpha_high, status (NaN for a fit without intervals).

    Returns
    -------
    Figure with three panels, or two where the runs have no final_val_mse and evaluations beside the best loss
    """
    best_of_many = {"evaluations", "final_val_mse"} <= set(runs)
    figure, _ = look.panels(1, 3 if best_of_many else 2, height=72)
    runs = runs.sort_values(["parameters", *(["evaluations"] if best_of_many else []), "validation_mse"])
    _both_fits(figure.axes[0], runs, curves)
    if best_of_many:
        _best_and_final(figure.axes[1], runs)
    _refits(figure.axes[-1], refits)
    keys = {
        "one run": Line2D([], [], color=OURS, marker="o", linestyle="", markersize=3.5),
        "least squares, band": Line2D([], [], color=OURS),
        "published method": Line2D([], [], color=THEIRS, linestyle="--"),
        "gene mean": Line2D([], [], color=look.BASELINES["gene_mean"][1], linestyle=look.BASELINES["gene_mean"][2]),
    }
    look.legend(figure, list(keys.values()), list(keys))
    return look.settle(
        figure,
        f"{len(runs)} runs of {runs['size'].nunique()} sizes fitted by least squares (blue, with its band) and by the "
        "published method (dashed)."
        + (" Middle: by how much the last loss of a run lies above the best one." if best_of_many else "")
        + f" Right: the exponent by {len(refits)} choices; arrows are intervals without an end, black dots fits "
        "without an interval.",
    )


def _both_fits(axis, runs, curves):
    marker = look.markers(list(dict.fromkeys(runs["size"])))
    look.log_axis(axis.xaxis)
    for size, of in runs.groupby("size"):
        axis.plot(
            of["parameters"], of["validation_mse"], marker[size], color=OURS, zorder=4, **look.DOT | {"markersize": 4}
        )
    for fit, of in curves.groupby("fit"):
        style = {"color": THEIRS, "linestyle": "--"} if fit == "published" else {"color": OURS}
        axis.plot(of["parameters"], of["loss"], linewidth=1, **style)
        band = [of[edge].astype(float) for edge in ("lo", "hi")]
        axis.fill_between(of["parameters"], *band, color=style["color"], alpha=0.18, linewidth=0)
    _, colour, dashes = look.BASELINES["gene_mean"]
    axis.axhline(runs["gene_mean_mse"].mean(), color=colour, linestyle=dashes, linewidth=0.9)
    low, high = runs["validation_mse"].min(), runs["validation_mse"].max()
    axis.set(xlabel=PARAMETERS, ylabel=loss_label("validation_mse"))
    axis.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    axis.set_xlim(runs["parameters"].min() / 2, runs["parameters"].max() * 2)
    room = look.size_names(axis, runs.groupby("size", sort=False)["parameters"].first().to_dict())
    look.header(axis, "Two fits of the same runs", room=room)


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
    axis.set_yticks(range(len(refits)), [name.replace(" at the ", " at\n") for name in refits["fit"]])
    axis.set(ylim=(len(refits) - 0.5, -0.5), xlabel="exponent α (no unit)", ylabel="fit (by choice made)")
    look.header(axis, "What a choice changes", ["arrow: an interval without an end"])
