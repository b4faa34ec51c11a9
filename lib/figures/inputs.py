"""Figures of what goes in: panels of genes and cells, splits, the architecture and its learning rates."""

import itertools

import numpy as np
import pandas as pd

from lib.figures import style
from lib.figures.style import Figure, key
from lib.model.sizes import OUTPUTS
from lib.study import Study

MOST_DONORS = 100

DISTRIBUTIONS = {
    "library": ("library size (counts per cell)", "cells below (%)"),
    "zeros": ("cells without a count (share)", "genes below (%)"),
    "mean": ("mean count of a gene (counts per cell)", "variance (counts²)"),
    "correlation": ("correlation of two genes (Pearson's r)", "pairs of genes below (%)"),
}
"""Labels of each panel of `realism`."""


def realism(table: pd.DataFrame, panel: pd.DataFrame, regime: str) -> Figure:
    """Marginal statistics of a panel beside those of real data sets and of the simulator at its default settings.

    Both tables have source, quantile and at each quantile library, zeros, mean, variance, correlation; `table` also
    simulated, bool.
    """
    figure, axes = style.panels(4, 48)
    lines = {
        False: {"color": style.SPLITS["train"], "linewidth": 0.9},
        True: {"color": style.INK, "linewidth": 0.9, "linestyle": "--"},
    }
    this = {"color": style.colours([regime])[regime], "linewidth": 1.8}
    parts = [(rows, lines[simulated]) for (simulated, _), rows in table.groupby(["simulated", "source"])]
    for axis, (column, (x, y)) in zip(axes, DISTRIBUTIONS.items(), strict=True):
        for rows, line in [*parts, (panel, this)]:
            axis.plot(rows[column], rows["variance"] if column == "mean" else 100 * rows["quantile"], **line)
        axis.set(xlabel=x, ylabel=y)
    axes[0].set(xscale="log")
    axes[2].set(xscale="log", yscale="log")
    number, name = table.groupby("simulated")["source"].nunique(), panel["source"].iloc[0]
    keys = {
        f"{number[False]} real data sets, one line each": key(**lines[False]),
        f"{number[True]} simulated ones, default settings": key(**lines[True]),
        name: key(**this),
    }
    return style.settle(
        figure,
        f"Distributions over cells, genes and pairs of genes: {name} beside {number[False]} real data sets and "
        f"{number[True]} simulated ones, each at its most variable genes.",
        keys,
    )


def splits(cells: pd.DataFrame) -> Figure:
    """Cells of every donor, by split; `cells` has donor_id and split, and the largest 100 donors are drawn."""
    table = pd.crosstab(cells["donor_id"].astype(str), cells["split"].astype(str))
    table = table[[split for split in style.SPLITS if split in table]]
    shown = table.loc[table.sum(axis=1).nlargest(MOST_DONORS).index].sort_values([*table], ascending=False)
    figure, (axis,) = style.panels(1, 52)
    shown.plot.bar(stacked=True, color=style.SPLITS, width=0.85, linewidth=0, legend=False, ax=axis)
    few, whole = len(shown) <= 15, len(shown) == len(table)
    which = "one bar each" if whole else f"the {len(shown)} largest of {len(table):,}"
    axis.set(xlabel=f"donor ({which})", ylabel="cells (number)", xlim=(-0.7, len(shown) - 0.3))
    axis.yaxis.set_major_formatter(style.short)
    x, names = (range(len(shown)), shown.index) if few else ([], [])
    axis.set_xticks(x, names, rotation=35, ha="right", rotation_mode="anchor")
    names = [f"{split}: {table[split].sum():,} cells, donors: {(table[split] > 0).sum():,}" for split in table]
    return style.settle(
        figure,
        f"Cells of each donor, coloured by split: {len(cells):,} cells of {len(table):,} donors"
        + ("." if whole else f", of whom the {len(shown)} largest are drawn."),
        dict(zip(names, axis.containers, strict=True)),
    )


def recipe(swept: pd.DataFrame) -> Figure:
    """What optimiser, rate and batch do to the loss at equal seconds, an axis per panel; `swept` is data/recipe.csv."""
    of_width = swept[(swept["width"] == 16) & np.isfinite(swept["validation_mse"])]
    figure, axes = style.panels(of_width["panel"].nunique(), 52)
    colours = {"adamw": style.BASELINES["gene_mean"][1]["color"], "muon": style.INK, "soap": "#AA7744"}
    usual, keys = swept[swept["rule"]].set_index("panel")["batch"].groupby(level=0).first(), {}
    for axis, (name, rows) in zip(axes, of_width.groupby("panel", sort=False), strict=True):
        plain = rows[(rows["beta2"] == 0.99) & (rows["embedding_scale"] == 0.5)]
        for (optimiser, batch), of in plain.groupby(["optimiser", "batch"]):
            dashes = "-" if batch == usual[name] else ":" if batch < usual[name] else "--"
            of = of.sort_values("factor")
            axis.plot(of["factor"], of["validation_mse"], dashes, marker="o", markersize=3, color=colours[optimiser])
        keys |= {optimiser: key(color=colours[optimiser], marker="o", markersize=3) for optimiser in plain["optimiser"]}
        seconds = f"{rows['seconds'].iloc[0]:.0f} s a run, batch {usual[name]}"
        style.header(axis, name, [f"{seconds}; dotted: a quarter of it, dashed: four times"])
        axis.set(xlabel="learning rate (times the rule's)", ylabel=style.loss_label("validation_mse"), xscale="log")
        axis.xaxis.set_ticks([0.5, 1, 2], labels=["0.5", "1", "2"])
        axis.minorticks_off()
    return style.settle(
        figure,
        f"Validation loss of width 16 after equal seconds against the learning rate, by optimiser and batch: "
        f"{len(of_width)} of {len(swept)} runs of the sweep.",
        keys,
    )


def architecture(study: Study) -> Figure | None:
    """The masked transformer of a study's last size on the most genes of its regimes, parameter counts in blue."""
    if not study.sizes:
        return None
    size, regime = study.sizes[-1], max(study.regimes, key=lambda name: study.regimes[name].genes)
    genes, outputs = study.regimes[regime].genes, OUTPUTS[study.training(regime).objective]
    parameters = size.parameters(genes, outputs)
    d, wide = size.d, size.d * size.ff_mult
    parts = (
        ("expression of a cell,\na share of its\ngenes masked", None),
        ("token of every gene:\ngene embedding +\nprojected expression\nor mask vector", genes * d + 3 * d),
        (f"LayerNorm,\nattention:\n{style.counted(size.heads, 'head')}", 4 * d * d + 6 * d),
        (f"LayerNorm,\nfeed-forward:\n{d} → {wide} → {d}", 2 * d * wide + wide + 3 * d),
        (f"head:\n{d} → {outputs}", outputs * (d + 1)),
        ("expression of\nmasked genes", None),
    )
    figure, (axis,) = style.panels(1, 38, style.DOUBLE)
    middle, boxes = {"ha": "center", "va": "center"}, []
    axis.set(xlim=(-0.5, len(parts) - 0.5), ylim=(0, 1))
    axis.axis("off")
    arrow = {"arrowstyle": "-|>", "color": style.INK, "linewidth": 0.7, "mutation_scale": 5}
    for x, (text, count) in enumerate(parts):
        fill = "#D9E8F3" if count else "white"
        frame = {"boxstyle": "round", "facecolor": fill, "edgecolor": style.INK, "linewidth": 0.6}
        boxes.append(axis.text(x, 0.45, text, fontsize=style.SMALL, bbox=frame, **middle).get_bbox_patch())
        if count:
            axis.text(x, 0.06, f"{count:,}", fontsize=style.SMALL, color=style.PALETTE[0], **middle)
    for x, (before, after) in enumerate(itertools.pairwise(boxes)):
        ends = {"patchA": before, "patchB": after, "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", (x + 1, 0.45), (x, 0.45), arrowprops=arrow | ends)
    around = {"connectionstyle": "bar,fraction=-0.3", "shrinkA": 0, "shrinkB": 0}
    for x in (2, 3):  # the residual paths
        axis.annotate("", (x + 0.5, 0.45), (x - 0.5, 0.45), arrowprops=arrow | around)
    axis.text(2.5, 0.92, f"encoder block × {size.layers}", fontsize=style.SMALL, **middle)
    title = f"{size.name}: masked transformer on {genes:,} genes"
    style.header(axis, title, [f"{parameters:,} parameters (blue: where they are, of one block)"])
    return style.settle(
        figure,
        f"The masked transformer, with the shapes and parameter counts (blue) of size {size.name} on {genes:,} genes: "
        f"{parameters:,} parameters. Arrows around attention and feed-forward are residual paths.",
    )
