"""Figures of what goes in: panels of genes and cells, splits, the architecture and its learning rates."""

import numpy as np
import pandas as pd
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import FuncFormatter

from lib.figures import style
from lib.figures.style import Figure, Note, key
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

    Parameters
    ----------
    table, panel : DataFrame
        source, quantile and, at each quantile: library, zeros, mean, variance, correlation; `table` also simulated.
    """
    figure, axes = style.panels(2, 2, height=48)
    lines = {
        False: {"color": style.SPLITS["train"], "linewidth": 0.9},
        True: {"color": style.INK, "linewidth": 0.9, "linestyle": "--"},
    }
    this = {"color": style.colours([regime])[regime], "linewidth": 1.8}
    parts = [(rows, lines[simulated]) for (simulated, _), rows in table.groupby(["simulated", "source"])]
    for axis, (column, (x, y)) in zip(axes.flat, DISTRIBUTIONS.items(), strict=True):
        for rows, line in [*parts, (panel, this)]:
            axis.plot(rows[column], rows["variance"] if column == "mean" else 100 * rows["quantile"], **line)
        axis.set(xlabel=x, ylabel=y)
    style.log_axis(axes[0, 0].xaxis, axes[1, 0].xaxis, axes[1, 0].yaxis)
    number, name = table.groupby("simulated")["source"].nunique(), panel["source"].iloc[0]
    style.legend(figure, {
        f"real data sets ({number[False]})": key(**lines[False]),
        f"simulator, default settings ({number[True]})": key(**lines[True]), name: key(**this),
    })  # fmt: skip
    return style.settle(
        figure,
        f"Distributions over cells, genes and pairs of genes: {name} beside {number[False]} real data sets and "
        f"{number[True]} simulated ones, each at its most variable genes.",
    )


def splits(cells: pd.DataFrame) -> Figure:
    """Cells of every donor, by split; `cells` has donor_id and split, and the largest 100 donors are drawn."""
    table = pd.crosstab(cells["donor_id"].astype(str), cells["split"].astype(str))
    table = table[[split for split in style.SPLITS if split in table]]
    order = table.assign(total=table.sum(axis=1), main=table.to_numpy().argmax(axis=1))
    table = table.loc[order.sort_values(["main", "total"], ascending=[True, False], kind="stable").index]
    shown = table[table.index.isin(order["total"].nlargest(MOST_DONORS).index)]
    figure, axes = style.panels(1, 1, height=52)
    axis = axes.flat[0]
    shown.plot.bar(stacked=True, color=style.SPLITS, width=0.85, linewidth=0, legend=False, ax=axis)
    few, whole = len(shown) <= 15, len(shown) == len(table)
    which = "one bar each" if whole else f"the {len(shown)} largest of {len(table):,}"
    axis.set(xlabel=f"donor ({which})", ylabel="cells (number)", xlim=(-0.7, len(shown) - 0.3))
    axis.yaxis.set_major_formatter(FuncFormatter(style.short))
    x, names = (range(len(shown)), shown.index) if few else ([], [])
    axis.set_xticks(x, names, rotation=35, ha="right", rotation_mode="anchor")
    names = [f"{split}: {table[split].sum():,} cells, donors: {(table[split] > 0).sum():,}" for split in table]
    style.legend(figure, dict(zip(names, axis.containers, strict=True)))
    return style.settle(
        figure,
        f"Cells of each donor, coloured by split: {len(cells):,} cells of {len(table):,} donors"
        + ("." if whole else f", of whom the {len(shown)} largest are drawn."),
    )


def recipe(swept: pd.DataFrame) -> Figure:
    """What optimiser, rate and batch do to the loss at equal seconds, a panel of cells to each axis.

    `swept` is data/recipe.csv, see `lib.model.sizes.recipe`.
    """
    of_width = swept[(swept["width"] == 16) & np.isfinite(swept["validation_mse"])]
    figure, axes = style.abreast(of_width["panel"].nunique(), height=52)
    colours = dict(zip(("adamw", "muon", "soap"), (style.BASELINES["gene_mean"][1], style.INK, "#AA7744"), strict=True))
    usual, keys = swept[swept["rule"]].set_index("panel")["batch"].groupby(level=0).first(), {}
    for axis, (name, rows) in zip(axes, of_width.groupby("panel", sort=False), strict=True):
        plain = rows[(rows["beta2"] == 0.99) & (rows["embedding_scale"] == 0.5)]
        for (optimiser, batch), of in plain.groupby(["optimiser", "batch"]):
            dashes = "-" if batch == usual[name] else ":"
            of = of.sort_values("factor")
            axis.plot(of["factor"], of["validation_mse"], dashes, marker="o", markersize=3, color=colours[optimiser])
        keys |= {optimiser: key(color=colours[optimiser], marker="o", markersize=3) for optimiser in plain["optimiser"]}
        style.header(
            axis, name, [f"{rows['seconds'].iloc[0]:.0f} s a run, batch {usual[name]}; dotted: a quarter, 4 times"]
        )
        axis.set(xlabel="learning rate (times the rule's)", ylabel=style.loss_label("validation_mse"), xscale="log")
        axis.xaxis.set_ticks([0.5, 1, 2], labels=["0.5", "1", "2"])
        axis.minorticks_off()
    style.legend(figure, keys)
    return style.settle(
        figure,
        f"Validation loss of width 16 after equal seconds against the learning rate, by optimiser and batch: "
        f"{len(of_width)} of {len(swept)} runs of the sweep.",
    )


# The architecture is drawn in millimetres on the page.
LEARNED, PLAIN, HIDDEN = "#D9E8F3", "#FFFFFF", "#FBE3D4"
"""Fill of what is learned, of what is given, and of what belongs to masked genes."""
HEIGHT, LINE = 62, 30
ROWS = (("gene 1", "1.9"), ("gene 2", "?"), ("gene 3", "0"), ("…", "…"), ("gene {}", "0.7"))
PREDICTED = ("", "1.2", "", "", "")


def architecture(study: Study) -> Figure | Note:
    """The masked transformer of a study's last size on the most genes of its regimes, parameter counts in blue."""
    if not study.sizes:
        return Note("This study trains no models of its own.")
    size, genes = study.sizes[-1], max(regime.genes for regime in study.regimes.values())
    figure = style.Figure(figsize=(style.DOUBLE / 25.4, HEIGHT / 25.4), dpi=200)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, style.DOUBLE), ylim=(0, HEIGHT))
    axis.axis("off")
    title = f"{size.name}: masked transformer on {genes:,} genes"
    _write(axis, 3, HEIGHT - 3.5, title, fontsize=style.TITLE, weight="bold")
    _write(axis, 3, HEIGHT - 8, f"{size.parameters(genes):,} parameters (blue: where they are)", color=style.GREY)
    _genes(axis, 3, [name.format(genes) for name, _ in ROWS], [value for _, value in ROWS])
    _tokens(axis, size.d, genes)
    _block(axis, size)
    _box(axis, (143, LINE - 6), (11, 12), f"head\n{size.d}→1", LEARNED)
    _count(axis, 148.5, LINE - 8, size.d + 1)
    _genes(axis, 161, [""] * len(ROWS), PREDICTED)
    _arrow(axis, (70.5, LINE), (78, LINE))
    _arrow(axis, (136.7, LINE), (143, LINE))
    _arrow(axis, (154, LINE), (157.5, LINE), (157.5, LINE + 8), (161, LINE + 8))
    note = {"color": style.GREY, "va": "top"}
    _write(axis, 3, 7, "input: log1p expression of one\ncell, a share of its genes masked", **note)
    _write(axis, 172, 7, "output; the loss is the squared\nerror over masked genes", ha="right", **note)
    figure.caption = (
        f"The masked transformer, with the shapes and parameter counts (blue) of size {size.name} on {genes:,} genes: "
        f"{size.parameters(genes):,} parameters. Tinted orange is what belongs to masked genes."
    )
    return figure


def _write(axis, x, y, text, **how):
    axis.text(x, y, text, **({"fontsize": style.SMALL, "va": "center", "linespacing": 1.15} | how))


def _box(axis, corner, extent, text, fill=PLAIN, **how):
    """A rounded box with its text in the middle; `corner` is the lower left one."""
    (x, y), (width, height) = corner, extent
    axis.add_patch(FancyBboxPatch((x + 0.7, y + 0.7), width - 1.4, height - 1.4, boxstyle="round,pad=0.7",
                                  facecolor=fill, edgecolor=style.INK, linewidth=0.6))  # fmt: skip
    _write(axis, x + width / 2, y + height / 2, text, ha="center", **how)


def _arrow(axis, *points):
    """A line through the points with a head at the last one."""
    *before, start, end = points
    axis.plot(*zip(*before, start, strict=True), color=style.INK, linewidth=0.7, solid_joinstyle="round")
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=5, linewidth=0.7, color=style.INK,
                                   shrinkA=0, shrinkB=0))  # fmt: skip


def _count(axis, x, y, number):
    _write(axis, x, y, f"{number:,}", color=style.PALETTE[0], ha="center")


def _plus(axis, x):
    axis.plot(x, LINE, "o", markersize=7, color=PLAIN, markeredgecolor=style.INK, markeredgewidth=0.6)
    axis.plot(x, LINE, "+", markersize=4.5, color=style.INK, markeredgewidth=0.7)


def _genes(axis, x, names, values):
    """A column of genes; the masked one is tinted."""
    for row, (name, value) in enumerate(zip(names, values, strict=True)):
        y = LINE + 15 - 7 * row
        masked = ROWS[row][1] == "?"
        _box(axis, (x + 11 * bool(name), y - 3), (9, 6), value, HIDDEN if masked else PLAIN)
        _write(axis, x + 10, y, name, ha="right")


def _tokens(axis, d, genes):
    """Gene embedding, plus the projected expression or, where a gene is masked, the mask vector."""
    axis.plot([23.3, 24.3, 24.3, 23.3], [LINE + 18, LINE + 18, LINE - 16, LINE - 16], color=style.INK, linewidth=0.7)
    parts = (("gene", "gene embedding", f"{genes:,} × {d}", 15, genes * d, LEARNED),
             ("value", "projected expression", f"1→{d}", 0, 2 * d, LEARNED),
             ("mask", "mask vector", f"{d}", -15, d, HIDDEN))  # fmt: skip
    for what, name, shape, up, number, fill in parts:
        _arrow(axis, (24.3, LINE + up), (34, LINE + up))
        _write(axis, 28.8, LINE + up + 2, what, ha="center", color=style.GREY)
        _box(axis, (34, LINE + up - 4.5), (29, 9), f"{name}\n{shape}", fill)
        _count(axis, 48.5, LINE + up - 6.3, number)
    for up in (15, -15):
        _arrow(axis, (63, LINE + up), (68.5, LINE + up), (68.5, LINE + up / 7.5))
    _arrow(axis, (63, LINE), (66.6, LINE))
    _plus(axis, 68.5)


def _block(axis, size):
    """One encoder block, pre-LayerNorm, with its two residual paths."""
    d, wide = size.d, size.d * size.ff_mult
    axis.add_patch(FancyBboxPatch((74, LINE - 14), 64, 36, boxstyle="round,pad=0.7", facecolor="#F7F7F7",
                                  edgecolor=style.GREY, linewidth=0.6, linestyle=(0, (3, 2))))  # fmt: skip
    _write(axis, 76, LINE + 19, f"encoder block × {size.layers}", weight="bold")
    heads = f"{size.heads} head{'s' * (size.heads > 1)}"
    shape = f"{d}→\n{wide}→\n{d}"
    parts = (("attention", heads, 4 * d * d + 4 * d), ("feed-\nforward", shape, 2 * d * wide + wide + d))
    for x, (name, inner, count) in zip((78, 109), parts, strict=True):
        _box(axis, (x, LINE - 9), (5, 18), "LayerNorm", LEARNED, rotation=90)
        _box(axis, (x + 7, LINE - 9), (15, 18), f"{name}\n{inner}", LEARNED)
        _count(axis, x + 14.5, LINE - 11.3, count)
        _count(axis, x + 2.5, LINE - 11.3, 2 * d)
        _arrow(axis, (x + 5, LINE), (x + 7, LINE))
        _arrow(axis, (x + 22, LINE), (x + 23.8, LINE))
        _arrow(axis, (x - 1.8, LINE), (x - 1.8, LINE + 13), (x + 25.7, LINE + 13), (x + 25.7, LINE + 2))
        _plus(axis, x + 25.7)
    each = sum(part[2] for part in parts) + 4 * d
    _write(axis, 136.5, LINE + 19, f"{each:,} each", color=style.PALETTE[0], ha="right")
    _arrow(axis, (105.6, LINE), (109, LINE))
