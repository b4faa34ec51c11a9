"""The masked transformer, drawn with the numbers of one size. Coordinates are millimetres on the page."""

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from lib.figures import look

LEARNED, PLAIN, HIDDEN = "#D9E8F3", "#FFFFFF", "#FBE3D4"
"""Fill of what is learned, of what is given, and of what belongs to masked genes."""
HEIGHT, LINE = 62, 30
ROWS = (("gene 1", "1.9"), ("gene 2", "?"), ("gene 3", "0"), ("…", "…"), ("gene {}", "0.7"))
ANSWERS = ("", "1.2", "", "", "")


def architecture(size, genes):
    """The masked transformer: tokens, encoder blocks, head; with its widths, and parameter counts in blue.

    Parameters
    ----------
    size : lib.model.sizes.Size
    genes : int

    Returns
    -------
    Figure
    """
    figure = look.Figure(figsize=(look.DOUBLE / 25.4, HEIGHT / 25.4), dpi=200)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, look.DOUBLE), ylim=(0, HEIGHT))
    axis.axis("off")
    title = f"{size.name}: masked transformer on {genes:,} genes"
    _say(axis, 3, HEIGHT - 3.5, title, fontsize=look.TITLE, weight="bold")
    _say(axis, 3, HEIGHT - 8, f"{size.parameters(genes):,} parameters (blue: where they are)", color=look.GREY)
    _genes(axis, 3, [name.format(genes) for name, _ in ROWS], [value for _, value in ROWS])
    _tokens(axis, size.d, genes)
    _block(axis, size)
    _box(axis, (143, LINE - 6), (11, 12), f"head\n{size.d}→1", LEARNED)
    _count(axis, 148.5, LINE - 8, size.d + 1)
    _genes(axis, 161, [""] * len(ROWS), ANSWERS)
    _arrow(axis, (70.5, LINE), (78, LINE))
    _arrow(axis, (136.7, LINE), (143, LINE))
    _arrow(axis, (154, LINE), (157.5, LINE), (157.5, LINE + 8), (161, LINE + 8))
    note = {"color": look.GREY, "va": "top"}
    _say(axis, 3, 7, "input: log1p expression of one\ncell, a share of its genes masked", **note)
    _say(axis, 172, 7, "output; the loss is the squared\nerror over masked genes", ha="right", **note)
    figure.caption = (
        f"The masked transformer, with the shapes and parameter counts (blue) of size {size.name} on {genes:,} genes: "
        f"{size.parameters(genes):,} parameters. Tinted orange is what belongs to masked genes."
    )
    return figure


def _say(axis, x, y, text, **style):
    axis.text(x, y, text, **({"fontsize": look.SMALL, "va": "center", "linespacing": 1.15} | style))


def _box(axis, corner, extent, text, fill=PLAIN, **style):
    """A rounded box with its text in the middle; `corner` is the lower left one."""
    (x, y), (width, height) = corner, extent
    axis.add_patch(FancyBboxPatch((x + 0.7, y + 0.7), width - 1.4, height - 1.4, boxstyle="round,pad=0.7",
                                  facecolor=fill, edgecolor=look.INK, linewidth=0.6))  # fmt: skip
    _say(axis, x + width / 2, y + height / 2, text, ha="center", **style)


def _arrow(axis, *points):
    """A line through the points with a head at the last one."""
    *before, start, end = points
    corners = [*before, start]
    axis.plot([x for x, _ in corners], [y for _, y in corners], color=look.INK, linewidth=0.7, solid_joinstyle="round")
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=5, linewidth=0.7, color=look.INK,
                                   shrinkA=0, shrinkB=0))  # fmt: skip


def _count(axis, x, y, number):
    _say(axis, x, y, f"{number:,}", color=look.PALETTE[0], ha="center")


def _plus(axis, x):
    axis.plot(x, LINE, "o", markersize=7, color=PLAIN, markeredgecolor=look.INK, markeredgewidth=0.6)
    axis.plot(x, LINE, "+", markersize=4.5, color=look.INK, markeredgewidth=0.7)


def _genes(axis, x, names, values):
    """A column of genes; the masked one is tinted."""
    for row, (name, value) in enumerate(zip(names, values, strict=True)):
        y = LINE + 15 - 7 * row
        masked = ROWS[row][1] == "?"
        _box(axis, (x + 11 * bool(name), y - 3), (9, 6), value, HIDDEN if masked else PLAIN)
        _say(axis, x + 10, y, name, ha="right")


def _tokens(axis, d, genes):
    """Gene embedding, plus the projected expression or, where a gene is masked, the mask vector."""
    axis.plot([23.3, 24.3, 24.3, 23.3], [LINE + 18, LINE + 18, LINE - 16, LINE - 16], color=look.INK, linewidth=0.7)
    parts = (("gene", "gene embedding", f"{genes:,} × {d}", 15, genes * d, LEARNED),
             ("value", "projected expression", f"1→{d}", 0, 2 * d, LEARNED),
             ("mask", "mask vector", f"{d}", -15, d, HIDDEN))  # fmt: skip
    for what, name, shape, up, number, fill in parts:
        _arrow(axis, (24.3, LINE + up), (34, LINE + up))
        _say(axis, 28.8, LINE + up + 2, what, ha="center", color=look.GREY)
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
                                  edgecolor=look.GREY, linewidth=0.6, linestyle=(0, (3, 2))))  # fmt: skip
    _say(axis, 76, LINE + 19, f"encoder block × {size.layers}", weight="bold")
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
    _say(axis, 136.5, LINE + 19, f"{sum(part[2] for part in parts) + 4 * d:,} each", color=look.PALETTE[0], ha="right")
    _arrow(axis, (105.6, LINE), (109, LINE))
