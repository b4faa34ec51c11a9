"""The look of every figure, set once: theme, widths, colours, markers, labels; how it is shown and written."""

import base64
import io
import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import matplotlib.figure
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter
from PIL import Image

from lib.io import atomic, remove
from lib.study import Study

SINGLE, DOUBLE = 85, 175
"""Widths of one and of two journal columns, mm. Figures are drawn at their printed size, so a point is a point."""
TALLEST = 120  # no figure is taller, mm
SMALL, TEXT, TITLE = 6.5, 7, 7.5
"""Font sizes, pt; nothing is set smaller than SMALL, which is why tick labels have no superscripts."""
LETTER = 4.1  # mean width of a letter at SMALL, pt

INK, GREY = "#222222", "#6E6E6E"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#994F00", "#5D3A9B", "#DDCC77")
"""Five colours of Okabe and Ito's, and three more, ordered so that the first two differ most for every kind of colour
vision; no baseline has one of them."""
BASELINES = {
    "gene_mean": ("gene mean", {"color": "#858585", "linestyle": (0, (1, 1.2))}),
    "pca": ("PCA", {"color": "#F0A800", "linestyle": (0, (5, 1.5))}),
    "gaussian": ("conditional\nGaussian", {"color": "#882255", "linestyle": (0, (4, 1.2, 1, 1.2))}),
    "floor": ("exact floor", {"color": "#000000", "linestyle": "-"}),
}
"""Label and line of each baseline: different in colour and in dashes."""
RULE = {"linewidth": 0.9, "zorder": 1}  # a line across the axes, below what was measured
DOT = {"markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.4}
"""A marker that stays visible on top of others."""
BARS = DOT | {"fmt": "o", "capsize": 2}  # the same with an interval
OPEN = {"markerfacecolor": "white"}  # a marker of what enters no headline, or is not determined
MARKERS = "os^DvPX<>ph*d8"
PARAMETERS = "model parameters (number)"
SPLITS = {
    "train": "#B4B4B4", "validation": "#AA4499", "test": "#332288", "test_dataset": "#117733", "test_random": "#44AA99",
}  # fmt: skip
"""Colour of every split."""
SPLIT_NAMES = {"test_dataset": "test (data sets)", "test_random": "test (same donors)"}
LOSS_NAMES = {"mse": "MSE (log1p expression²)", "nll": "loss (bits per masked gene)"}

_order = {"regimes": [], "sizes": []}

TICKS = {"labelsize": SMALL, "color": INK, "major.width": 0.6, "major.size": 2.5, "major.pad": 2, "minor.width": 0.4,
         "minor.size": 1.5}  # fmt: skip
seaborn.set_theme(context="paper", style="ticks", palette=PALETTE, font="DejaVu Sans", rc={
    "font.size": TEXT, "axes.labelsize": TEXT, "axes.titlesize": TITLE, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlepad": 4, "axes.labelpad": 2.5, "axes.labelcolor": INK,
    "axes.edgecolor": INK, "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "lines.linewidth": 1.2, "lines.markersize": 4, "patch.linewidth": 0.6, "text.color": INK,
    "legend.fontsize": SMALL, "legend.frameon": False, "legend.handlelength": 1.8, "legend.columnspacing": 1.4,
    "legend.handletextpad": 0.5,
    # Hinted letters are as wide as fits the pixels: the layout would hold for one resolution alone.
    "text.hinting": "none",
    # TrueType in PDF stays editable and is accepted everywhere (Type 3 is not). SVG text becomes outlines: a font named
    # in an SVG is looked up on the reader's machine, and another font would move and clip the labels.
    "pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "single-cell-scaling",
} | {f"{axis}tick.{name}": value for axis in "xy" for name, value in TICKS.items()})  # fmt: skip


class Shown:
    """A figure or a table; its `content` is the data and metadata of a notebook's output."""

    caption = ""

    def _ipython_display_(self):
        from IPython.display import Markdown, display

        data, metadata = self.content()
        display(data, metadata=metadata, raw=True)
        if self.caption:
            display(Markdown(f"<small>{self.caption}</small>"), metadata={"caption": True})


def section(text: str, *parts: Shown | None) -> None:
    """Show a section of a notebook, `text` in Markdown and then its parts; nothing where a study has none of them."""
    from IPython.display import Markdown, display

    if shown := [part for part in parts if part]:
        display(Markdown(text), *shown)


class Figure(Shown, matplotlib.figure.Figure):
    """A matplotlib figure, `width` x `height` mm, that shows itself in a notebook as a small PNG.

    It is not registered with pyplot, so a cell that ends in a figure shows it once, and nothing is left to close.
    """

    def __init__(self, width: float, height: float):
        super().__init__(figsize=(width / 25.4, height / 25.4), dpi=200, layout="constrained")
        self.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)

    def content(self):
        drawn, small = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png", dpi=200, pil_kwargs={"compress_level": 1})
        image = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
        image.save(small, format="png", optimize=True)
        # Shown at 130 % of the printed size: 7 pt read on paper at 40 cm need about 9 pt on a screen at arm's length.
        scale = 1.3 * 96 / 200
        size = {"width": round(image.width * scale), "height": round(image.height * scale), "alt": self.caption}
        png = base64.b64encode(small.getvalue()).decode()
        return {"image/png": png, "text/plain": self.caption}, {"image/png": size}

    def write(self, folder, name):
        """Write PDF, SVG and PNG of the printed width, without a date or a version."""
        unstamped = {
            "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
            "svg": {"Date": None, "Creator": None},
            "png": {"Software": None},
        }
        for kind, metadata in unstamped.items():
            with atomic(folder / f"{name}.{kind}") as partial:
                self.savefig(partial, format=kind, dpi=300, metadata=metadata)


def save(what: Shown | None, folder: Path, name: str) -> Shown | None:
    """Write a figure or a table, `folder/name.<kind>`, with its caption as `.txt`; returns it for the notebook.

    The same content gives the same bytes. For None, what an earlier run had in its place is removed.
    """
    if not what:
        for kind in ("pdf", "svg", "png", "csv", "tex", "txt"):
            remove(folder / f"{name}.{kind}")
        return None
    what.write(folder, name)
    with atomic(folder / f"{name}.txt") as partial:
        partial.write_text(what.caption + "\n")
    return what


def use(study: Study) -> None:
    """Give regimes colours, and sizes markers and shades, in the order of a study; else that of the names is taken."""
    _order.update(regimes=list(study.regimes), sizes=[size.name for size in study.sizes])


def _ordered(kind, names):
    known, names = _order[kind], dict.fromkeys(names)
    return [*known, *(name for name in names if name not in known)] if set(names) & set(known) else list(names)


def colours(regimes: Iterable[str]) -> dict[str, str]:
    """{regime: colour}."""
    names = _ordered("regimes", regimes)
    few = len(names) <= len(PALETTE)
    palette = PALETTE if few else seaborn.color_palette("viridis", len(names) + 1).as_hex()[1:]
    return dict(zip(names, palette, strict=False))


def title(regime: str) -> str:
    """What a panel of one regime is called: nothing where the study has no other."""
    return "" if _order["regimes"] == [regime] else regime


def markers(sizes: Iterable[str]) -> dict[str, str]:
    """{size: marker}; `sizes` in ascending order."""
    return dict(zip(_ordered("sizes", sizes), itertools.cycle(MARKERS), strict=False))


def shades(sizes: Iterable[str]) -> dict[str, str]:
    """{size: colour} from light (smallest) to dark (largest)."""
    names = _ordered("sizes", sizes)
    return dict(zip(names, seaborn.color_palette("crest", len(names) + 1).as_hex()[1:], strict=True))


def panels(number: int, height: float, width: float | None = None, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure of so many axes, in rows of two (three or four where there are many) that are `height` mm or lower."""
    columns = min(number, columns if number <= 4 else 3 if number <= 9 else 4)
    rows = -(-number // columns)
    figure = Figure(width or (SINGLE if columns == 1 else DOUBLE), min(rows * height, TALLEST))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[number:]:
        axis.remove()
    return figure, axes[:number]


def settle(figure: Figure, caption: str, keys: dict | None = None, ends: dict | None = None) -> Figure:
    """Finish a figure: ticks of logarithmic axes, legend, labels of lines, and one layout for every later drawing.

    `keys` are {label: handle} of the legend; `ends` {axes: [(y, text, colour), ...]}, labels right of the axes.
    """
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatter):  # else its ticks are chosen
            _log_ticks(axis)
    if keys:  # in one row where it fits, otherwise in as many columns as fit
        width, widths = figure.get_figwidth() * 72, [LETTER * len(label) + 32 for label in keys]
        columns = len(keys) if sum(widths) < width else max(1, int(width // max(widths)))
        figure.legend(list(keys.values()), list(keys), loc="outside lower center", borderaxespad=0, borderpad=0.2,
                      ncols=columns)  # fmt: skip
    figure.draw_without_rendering()
    for axes, labels in (ends or {}).items():
        _end_labels(axes, labels)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.caption = " ".join(caption.split())
    return figure


def _log_ticks(axis):
    """Powers of ten as `short` writes them, with numbers between them over less than two decades."""
    low, high = axis.get_view_interval()
    if high < 4 * low:
        axis.set_major_locator(MaxNLocator(5))
        alike = ScalarFormatter(useOffset=False)  # equally many decimals on all ticks
        alike.set_scientific(False)
        axis.set_major_formatter(alike)
    else:
        steps = (1, 2, 3, 5, 7) if high < 20 * low else (1, 2, 5) if high < 100 * low else (1,)
        axis.set_major_locator(LogLocator(subs=steps, numticks=9 if len(steps) > 1 else 7))
        axis.set_major_formatter(short)
    axis.set_minor_formatter(NullFormatter())


def _end_labels(axis, labels):
    """Labels right of the axes, each at its height or as near as the others leave room for."""
    from scipy.optimize import isotonic_regression

    x, at = axis.get_xlim()[1], axis.transScale + axis.transLimits
    labels = sorted((at.transform((x, y))[1], text, colour) for y, text, colour in labels)
    line = (SMALL + 1.2) / 72 * axis.figure.dpi / axis.get_window_extent().height
    heights = np.array([line * (text.count("\n") + 1) for _, text, _ in labels])
    # Less what the labels below take up, middles have only to ascend.
    below = np.cumsum(heights) - heights / 2
    shifts = isotonic_regression(np.array([y for y, *_ in labels]) - below).x
    middles = np.clip(shifts, 0, max(0, 1 - sum(heights))) + below
    for (y, text, colour), middle in zip(labels, middles, strict=True):
        leader = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5), "color": colour}
        axis.annotate(text, (1, y), (1.06, middle), xycoords="axes fraction", textcoords="axes fraction",
                      fontsize=SMALL, color=colour, va="center", linespacing=1.05, annotation_clip=False,
                      arrowprops=leader)  # fmt: skip


def header(axis: Axes, title: str, lines: Iterable[str] = (), above: float = 0) -> None:
    """A title with plain lines under it, `above` pt above the axes."""
    lines, step = [line for line in lines if line], SMALL + 2.5
    axis.annotate("\n".join(lines), (0, 1), (0, above + 3), xycoords="axes fraction", textcoords="offset points",
                  fontsize=SMALL, linespacing=1.2, color=GREY, va="bottom")  # fmt: skip
    axis.set_title(title, pad=above + 4 + len(lines) * step)


def size_names(axis: Axes, places: dict[str, float], share: float = 0.6) -> float:
    """Name each size above its place, {name: x}, turned where it must be; returns the height that this takes, pt.

    The axes take this `share` of the width of their column, about.
    """
    length = axis.figure.get_figwidth() * 72 / axis.get_subplotspec().get_gridspec().ncols * share
    at = axis.transScale + axis.transLimits
    spots = [(at.transform((x, 1))[0] * length, LETTER * len(name)) for name, x in places.items()]
    turned = any(b - a < (u + v) / 2 + 1 for (a, u), (b, v) in itertools.pairwise(spots))
    last = -np.inf
    for (name, x), (spot, _) in zip(places.items(), spots, strict=True):
        last = max(spot, last + SMALL * turned)  # turned names, too, stand apart
        axis.annotate(name, (x, 1), (last - spot, 2), xycoords=axis.get_xaxis_transform(), textcoords="offset points",
                      fontsize=SMALL, color=GREY, ha="center", va="bottom", rotation=90 * turned)  # fmt: skip
    return 3 + (max(width for _, width in spots) if turned else SMALL) if places else 0


def key(**style) -> Line2D:
    """A line for a legend, of that style."""
    return Line2D([], [], **style)


def size_lines(axis: Axes, runs: pd.DataFrame, x: str, y: str, **line: object) -> list[tuple[float, str, str]]:
    """The mean of each size over its runs, a line each, sizes in ascending order; returns its labels for `settle`."""
    shade, end = shades(runs["size"]), runs[x] == runs.groupby("size")[x].transform("max")
    if len(runs):
        seaborn.lineplot(runs, x=x, y=y, hue="size", style="size", palette=shade, markers=markers(runs["size"]),
                         markeredgewidth=0, dashes=False, errorbar=None, legend=False, ax=axis, **line)  # fmt: skip
    return [(mean, size, shade[size]) for size, mean in runs[end].groupby("size")[y].mean().items()]


def curve(axis: Axes, table: pd.DataFrame, **line: object) -> None:
    """A fitted curve, `loss` against parameters, with its band from `lo` to `hi` (none where they are NaN)."""
    table = table[["parameters", "loss", "lo", "hi"]].astype(float)
    axis.plot(table["parameters"], table["loss"], **line)
    axis.fill_between(table["parameters"], table["lo"], table["hi"], color=line["color"], alpha=0.18, linewidth=0)


def listed(axis: Axes, names: Iterable[str], shown: bool = True) -> None:
    """Rows of a y axis that are things, not numbers, the first on top."""
    axis.set_yticks(range(len(names)), names if shown else [])
    axis.tick_params(axis="y", length=0, pad=5)
    axis.set_ylim(len(names) - 0.5, -0.5)


def intervals(
    axis: Axes, names: Iterable[str], ends: pd.DataFrame, colours: Iterable[str] | None = None,
    solid: Iterable[bool] | None = None, shown: bool = True,
) -> None:  # fmt: skip
    """Estimates with their intervals, a row each, `listed`; open dots where they are not `solid`.

    The columns of `ends` are low, estimate and high; arrows stand where an interval leaves the axis or has one end, so
    the limits of x have to be final. Without either end there is no interval.
    """
    left, right = axis.get_xlim()
    colours, solid = colours or itertools.repeat(INK), itertools.repeat(True) if solid is None else solid
    rows = zip(ends.to_numpy(), colours, solid, strict=False)
    for y, ((low, value, high), colour, whole) in enumerate(rows):
        if np.isfinite([low, high]).any():
            whisker = [np.fmax(left, low), np.fmin(right, high)]
            axis.plot(whisker, [y, y], color=colour, linewidth=1, solid_capstyle="butt")
            for edge, inside, arrow in ((left, low >= left, "<"), (right, high <= right, ">")):
                if not inside:
                    axis.plot(edge, y, arrow, color=colour, markersize=3.5, clip_on=False)
        axis.plot(np.clip(value, left, right), y, "o", color=colour, zorder=4, **{} if whole else OPEN)
    listed(axis, names, shown)


def around(values: Iterable[float], share: float = 0.05) -> tuple[float, float]:
    """Limits of an axis that leave this share of the values' range beside them; NaN and None are passed over."""
    values = np.array(values, float)
    low, high = np.nanmin(values), np.nanmax(values)
    return low - share * (high - low), high + share * (high - low)


def loss_label(metric: str) -> str:
    """Axis label of a loss, with its unit: `validation_mse` is validation MSE (log1p expression²)."""
    split, kind = metric.rsplit("_", 1)
    return f"{SPLIT_NAMES.get(split, split)} {LOSS_NAMES[kind]}"


def counted(number: int, thing: str) -> str:
    """1 run, 12 runs, 1,200 runs."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def short(value: float, _=None) -> str:
    """A count in few characters: 533, 10k, 1.5M, 3.4B; ratios as 0.01. Used on axes instead of superscripts."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"


def rounded(value: float, ends: Iterable[float | None]) -> str:
    """`value` with its interval, to the digits that it supports; None, NaN or infinity is an end that is not there."""
    low, high = np.array(ends, float)
    known = [end for end in (low, high) if np.isfinite(end)]
    width = high - low if len(known) == 2 else abs(value - known[0]) if known else 0.01
    digits = min(6, max(0, 1 - math.floor(math.log10(width)))) if width > 0 else 3
    text, *known = (f"{number:z.{digits}f}".replace("-", "−") for number in (value, *known))
    if len(known) == 2:
        return f"{text} [{known[0]}, {known[1]}]"
    if not known:
        return text
    return f"{text} ({'≥' if np.isfinite(low) else '≤'} {known[0]})"
