"""Figures of what goes in: the panel of genes and cells, the splits, and the sizes of the model."""

import numpy as np
import pandas as pd
import seaborn
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from lib.figures import look

SPLITS = {
    "train": "#B4B4B4", "validation": "#E69F00", "test": "#332288", "test_dataset": "#882255", "test_random": "#56B4E9",
}  # fmt: skip
MOST_DONORS = 100


def panel_statistics(cells, genes, regime):
    """What the counts of a panel look like: library sizes, zeros against the mean, variance against the mean.

    Parameters
    ----------
    cells : DataFrame
        total_counts, one row per cell.
    genes : DataFrame
        mean, variance (of the raw counts) and zeros (share of cells without a count), one row per gene.
    regime : str
        Decides the colour.

    Returns
    -------
    Figure with three panels; dashed lines are what Poisson counts of equal library size would give.
    """
    figure, axes = look.panels(1, 3, height=58)
    depth, zeros, spread = axes.flat
    colour = look.colours([regime])[regime]
    seaborn.histplot(x=cells["total_counts"].to_numpy(float), log_scale=True, bins=40, element="step", color=colour,
                     alpha=0.3, linewidth=0.8, ax=depth)  # fmt: skip
    depth.set(xlabel="library size (counts per cell)", ylabel="cells (number)")
    dots = {"marker": ".", "linestyle": "", "markersize": 3, "alpha": 0.5, "markeredgewidth": 0, "color": colour}
    expressed = genes[genes["mean"] > 0]
    mean = np.geomspace(expressed["mean"].min(), expressed["mean"].max(), 200)
    poisson = {"color": look.INK, "linestyle": "--", "linewidth": 0.8}
    zeros.plot(expressed["mean"], 100 * expressed["zeros"], **dots)
    zeros.plot(mean, 100 * np.exp(-mean), **poisson)
    zeros.set(ylabel="cells without a count (%)", ylim=(-3, 103))
    spread.plot(expressed["mean"], expressed["variance"], **dots)
    spread.plot(mean, mean, **poisson)
    look.log_axis(spread.yaxis)
    spread.set_ylabel("variance (counts²)")
    for axis in (zeros, spread):
        axis.set_xlabel("mean count of a gene (counts per cell)")
    for axis in axes.flat:
        look.log_axis(axis.xaxis)
    look.header(depth, regime, [f"{len(cells):,} cells, {len(genes):,} genes"])
    look.legend(figure, [Line2D([], [], marker=".", linestyle="", color=colour), Line2D([], [], **poisson)],
                ["one gene", "Poisson counts, equal library sizes"])  # fmt: skip
    return look.settle(
        figure,
        f"The counts of {len(cells):,} cells and {len(genes):,} genes ({regime}): library sizes; the share of cells "
        "without a count, and the variance, of each gene against its mean. Dashed: Poisson counts of cells that all "
        "have the same library size.",
    )


def realism(table, panel, regime):
    """Marginal statistics of a panel beside those of real data sets and of the simulator at its default settings.

    Parameters
    ----------
    table : DataFrame
        source, simulated (bool), quantile and, at each quantile: library, zeros, mean, variance, correlation.
    panel : DataFrame
        The same columns, without `simulated`, of the one panel that is compared.
    regime : str
        Decides its colour.

    Returns
    -------
    Figure with four panels: three distributions, and variance against mean.
    """
    figure, axes = look.panels(2, 2, height=48)
    depth, zeros, spread, correlation = axes.flat
    real = {"color": SPLITS["train"], "linewidth": 0.9}
    simulated = {"color": look.INK, "linewidth": 0.9, "linestyle": "--"}
    own = {"color": look.colours([regime])[regime], "linewidth": 1.8}
    kinds = [(rows, simulated if rows["simulated"].iloc[0] else real) for _, rows in table.groupby("source")]
    for rows, style in [*sorted(kinds, key=lambda kind: kind[1] is simulated), (panel, own)]:
        depth.plot(rows["library"], 100 * rows["quantile"], **style)
        zeros.plot(100 * rows["zeros"], 100 * rows["quantile"], **style)
        spread.plot(rows["mean"], rows["variance"], **style)
        correlation.plot(rows["correlation"], 100 * rows["quantile"], **style)
    for axis in (depth.xaxis, spread.xaxis, spread.yaxis):
        look.log_axis(axis)
    depth.set(xlabel="library size (counts per cell)", ylabel="cells below (%)")
    zeros.set(xlabel="cells without a count (%)", ylabel="genes below (%)")
    spread.set(xlabel="mean count of a gene (counts per cell)", ylabel="variance (counts²)")
    correlation.set(xlabel="correlation of two genes (Pearson's r)", ylabel="pairs of genes below (%)")
    number = table.groupby("simulated")["source"].nunique()
    said = [f"real data sets ({number[False]})", f"simulator, default settings ({number[True]})"]
    lines = [Line2D([], [], **style) for style in (real, simulated, own)]
    look.legend(figure, lines, [*said, panel["source"].iloc[0]])
    return look.settle(
        figure,
        f"Distributions over cells, genes and pairs of genes: {panel['source'].iloc[0]} (thick) beside "
        f"{number[False]} real data sets (thin) and {number[True]} simulated at default settings (dashed), each at its "
        "most variable genes.",
    )


def splits(cells):
    """Cells of every donor, by split.

    Parameters
    ----------
    cells : DataFrame
        donor_id and split (train and the held-out sides), one row per cell; the largest 100 donors are drawn.

    Returns
    -------
    Figure
    """
    table = pd.crosstab(cells["donor_id"].astype(str), cells["split"].astype(str))
    table = table[[split for split in SPLITS if split in table]]
    order = table.assign(total=table.sum(axis=1), main=table.to_numpy().argmax(axis=1))
    table = table.loc[order.sort_values(["main", "total"], ascending=[True, False], kind="stable").index]
    largest = order["total"].nlargest(MOST_DONORS).index
    shown = table[table.index.isin(largest)]
    figure, axes = look.panels(1, 1, height=52)
    axis, x = axes.flat[0], np.arange(len(shown))
    bottom = np.zeros(len(shown))
    for split in table:
        axis.bar(x, shown[split], bottom=bottom, color=SPLITS[split], width=0.85, linewidth=0)
        bottom += shown[split].to_numpy()
    few = len(shown) <= 15
    which = "one bar each" if len(shown) == len(table) else f"the {len(shown)} largest of {len(table):,}"
    axis.set(xlabel=f"donor ({which})", ylabel="cells (number)", xlim=(-0.7, len(shown) - 0.3))
    axis.set_ylim(0, 1.05 * bottom.max())
    axis.yaxis.set_major_formatter(FuncFormatter(look.short))
    axis.set_xticks(x if few else [], list(shown.index) if few else [], rotation=35, ha="right", rotation_mode="anchor")
    said = [f"{split}: {table[split].sum():,} cells, donors: {(table[split] > 0).sum():,}" for split in table]
    look.legend(figure, axis.containers, said)
    return look.settle(
        figure,
        f"Cells of each donor, coloured by the side of the split that they are on: {len(cells):,} cells of "
        f"{len(table):,} donors"
        + ("." if len(shown) == len(table) else f", of whom the {len(shown)} largest are drawn."),
    )


def sizes(table):
    """Parameters of every size and the operations that one cell costs.

    Parameters
    ----------
    table : DataFrame
        size, genes, parameters, flops_per_cell; one row per size and number of genes.

    Returns
    -------
    Figure
    """
    table = table.drop_duplicates(["size", "genes"])  # regimes of equally many genes share their models
    figure, axes = look.panels(1, 1, height=62)
    axis = axes.flat[0]
    table = table.sort_values("parameters")
    marker = look.markers(list(dict.fromkeys(table["size"])))
    panels = sorted(table["genes"].unique())
    shade = dict(zip(panels, seaborn.color_palette("crest", len(panels) + 1).as_hex()[1:], strict=True))
    for genes, rows in table.groupby("genes"):
        axis.plot(rows["parameters"], rows["flops_per_cell"], color=shade[genes], linewidth=0.6, zorder=1)
        for row in rows.itertuples():
            axis.plot(row.parameters, row.flops_per_cell, marker[row.size], color=shade[genes], **look.DOT)
    for number, row in enumerate(table[table["genes"] == panels[0]].itertuples()):
        above = len(panels) == 1 and number % 2
        offset, ha, va = ((-4, 3), "right", "bottom") if above else ((4, -3), "left", "top")
        axis.annotate(row.size, (row.parameters, row.flops_per_cell), offset, textcoords="offset points", ha=ha, va=va,
                      fontsize=look.SMALL)  # fmt: skip
    look.log_axis(axis.xaxis)
    look.log_axis(axis.yaxis)
    axis.set(xlabel="model parameters (number)", ylabel="forward pass of one cell (FLOPs)")
    axis.margins(x=0.04 + 0.02 * max(len(size) for size in marker), y=0.1)
    keys = [Line2D([], [], color=colour) for colour in shade.values()]
    look.legend(figure, keys, [f"{genes:,} genes" for genes in shade])
    return look.settle(
        figure,
        f"Forward operations of one cell against model parameters, both counted exactly, for {len(marker)} sizes on "
        f"panels of {' and '.join(f'{genes:,}' for genes in shade)} genes.",
    )
