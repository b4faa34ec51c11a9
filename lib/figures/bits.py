"""Figures of one run looked at closely: gene by gene, as a predictor of counts, and in bits."""

import numpy as np
from matplotlib.lines import Line2D

from lib.figures import look
from lib.figures.shown import Note

COLOURS = {"run": "#0072B2", "exact posterior": "#000000", "exact": "#000000", "conditional Gaussian": "#882255"}
THIRDS = {"low": ":", "middle": "--", "high": "-"}


def by_gene(genes=None, run="", sentence="", **_):
    """What each gene adds to the squared error that is left.

    Parameters
    ----------
    genes : DataFrame
        From lib.train.examine.by_gene: mean, variance, residual, share, and floor, floor_share where they are known.

    run : str
        Whose errors they are.

    Returns
    -------
    Figure with two panels: variances against mean expression; share of the error against share of the genes.
    """
    if genes is None:
        return Note(sentence)
    figure, axes = look.panels(1, 2, height=66)
    variances, shares = axes.flat
    shown = {"gene mean": ("variance", look.GREY, "s"), "run": ("residual", COLOURS["run"], "o")}
    if "floor" in genes:
        shown["exact floor"] = ("floor", COLOURS["exact"], "D")
    for column, colour, marker in shown.values():
        variances.plot(genes["mean"], genes[column], marker, color=colour, markersize=3, alpha=0.8, markeredgewidth=0)
    variances.set(yscale="log", xlabel="mean expression (log1p)", ylabel="squared error of a gene (log1p²)")
    look.log_axis(variances.xaxis)
    for axis in (variances.xaxis, variances.yaxis):
        look.log_ticks(axis)
    look.header(variances, "Error of each gene", [run])
    ranks = 100 * np.arange(len(genes) + 1) / len(genes)
    for label, column in {"run": "share", "exact floor": "floor_share"}.items():
        if column in genes:
            carried = 100 * np.concatenate([[0], np.sort(genes[column])[::-1].cumsum()])
            shares.plot(ranks, carried, color=shown[label][1], linestyle="-" if label == "run" else "--")
    shares.plot([0, 100], [0, 100], color=look.GREY, linewidth=0.6, linestyle=":")
    shares.set(
        xlabel="genes, those of most error first (%)",
        ylabel="share of the squared error (%)",
        xlim=(0, 100),
        ylim=(0, 102),
    )
    look.header(shares, "Who carries it")
    keys = {label: Line2D([], [], color=colour, marker=marker, linestyle="", markersize=4)
            for label, (_, colour, marker) in shown.items()}  # fmt: skip
    keys["all genes alike"] = Line2D([], [], color=look.GREY, linewidth=0.8, linestyle=":")
    look.legend(figure, list(keys.values()), list(keys))
    return look.settle(
        figure,
        f"Left: squared error of each of {len(genes)} genes on held-out cells, predicted by its mean, by a run ({run})"
        f"{' and by who knows all but the counts' if 'floor' in genes else ''}. Right: the share of the error that the "
        f"genes of most error carry; dotted, were all genes alike. {sentence}",
    )


def calibration(table=None, sentence="", **_):
    """Histograms of probability integral transforms: flat inside the band where the predicted distributions are right.

    Parameters
    ----------
    table : DataFrame
        From lib.train.examine.calibration: predictor, genes, bin, density, low, high.

    Returns
    -------
    Figure, a panel for each predictor
    """
    if table is None:
        return Note(sentence)
    predictors = list(table["predictor"].unique())
    figure, axes = look.panels(1, len(predictors), height=58)
    for axis, predictor in zip(axes.flat, predictors, strict=True):
        of = table[table["predictor"] == predictor]
        whole = of[of["genes"] == "all"]
        width = 1 / len(whole)
        edges = np.append(whole["bin"], 1)
        axis.stairs(whole["high"], edges, baseline=whole["low"].to_numpy(), fill=True, color=look.GREY, alpha=0.3)
        axis.stairs(whole["density"], edges, baseline=None, color=COLOURS[predictor], linewidth=1.4)
        for genes, dashes in THIRDS.items():
            part = of[of["genes"] == genes]
            axis.plot(part["bin"] + width / 2, part["density"], dashes, color=look.INK, linewidth=0.7)
        axis.axhline(1, color=look.INK, linewidth=0.5)
        axis.set(xlabel="transform of the hidden count (0 to 1)", ylabel="density (1 where right)", xlim=(0, 1))
        axis.set_ylim(0, max(1.6, 1.08 * table["density"].max()))
        look.header(axis, predictor)
    keys = {"all genes": Line2D([], [], color=look.INK, linewidth=1.4)}
    if "run" in predictors:
        keys |= {f"{genes} mean": Line2D([], [], color=look.INK, linewidth=0.7, linestyle=dashes)
                 for genes, dashes in THIRDS.items()}  # fmt: skip
    keys["95 % of uniform samples"] = Line2D([], [], color=look.GREY, alpha=0.4, linewidth=5)
    look.legend(figure, list(keys.values()), list(keys))
    return look.settle(
        figure,
        f"Randomised transforms of the hidden counts under {len(predictors)} predicted distributions: flat at 1 where "
        "a distribution is right. Grey is where 95 % of uniform samples of as many cells lie"
        + ("; thin lines are thirds of the genes by mean count." if "run" in predictors else "."),
    )


def _beyond(axis, values):
    """Leave one value that would squeeze all others out of view, with an arrow that says where it lies."""
    *_, second, largest = sorted(values)
    if largest > 1.5 * second:
        axis.set_xlim(right=second + 0.2 * (second - min(values)))
        place = int(np.argmax([largest in np.atleast_1d(line.get_xdata()) for line in axis.lines]))
        y = dict(zip(axis.lines[place].get_xdata(), axis.lines[place].get_ydata(), strict=True))[largest]
        axis.annotate(f"{largest:.3g} →", (1, y), xycoords=axis.get_yaxis_transform(), ha="right", va="center",
                      fontsize=look.SMALL, color=look.INK)  # fmt: skip


def conversions(table=None, sentence="", **_):
    """Bits per masked gene by every rule that turns predictions into them, beside the exact entropy.

    Parameters
    ----------
    table : DataFrame
        From lib.train.examine.conversions: predictor, rule, bits.

    Returns
    -------
    Figure
    """
    if table is None:
        return Note(sentence)
    rules = list(table["rule"].cat.categories)
    figure, axes = look.panels(1, 1, height=22 + 6 * len(rules), width=look.DOUBLE)
    axis = axes.flat[0]
    predictors = list(table["predictor"].unique())
    for predictor, marker in zip(predictors, "oD", strict=False):
        of = table[table["predictor"] == predictor]
        places = [rules.index(rule) for rule in of["rule"]]
        axis.plot(of["bits"], places, marker, color=COLOURS[predictor], **look.DOT)
    _beyond(axis, table["bits"])
    exact = table.loc[table["rule"] == "exact entropy", "bits"]
    if len(exact):
        axis.axvline(exact.iloc[0], color="black", linewidth=0.9, zorder=0)
    axis.set_yticks(range(len(rules)), rules)
    axis.tick_params(axis="y", length=0)
    axis.set(
        ylim=(len(rules) - 0.5, -0.5),
        xlabel="cost of a hidden count (bits per masked gene)",
    )
    axis.set_ylabel("rule (of conversion)", labelpad=8)
    keys = {predictor: Line2D([], [], color=COLOURS[predictor], marker=marker, linestyle="")
            for predictor, marker in zip(predictors, "oD", strict=False)}  # fmt: skip
    look.legend(figure, list(keys.values()), list(keys))
    return look.settle(
        figure,
        f"The same predictions ({' and '.join(predictors)}) turned into bits per masked gene by {len(rules)} rules "
        "that leave out less and less from top to bottom."
        + (" The black line is the exact entropy of a hidden count." if len(exact) else ""),
    )
