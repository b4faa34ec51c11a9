"""The look of every figure, set once: theme, widths, colours, markers, labels; how it is shown and written."""

import base64
import io
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.figure
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter
from PIL import Image

from lib.io import atomic
from lib.study import Study

SINGLE, DOUBLE = 85, 175
"""Widths of one and of two journal columns, mm. Figures are drawn at their printed size, so a point is a point."""
TALLEST = 120
"""No figure is taller, mm."""
SMALL, TEXT, TITLE = 6.5, 7, 7.5
"""Font sizes, pt; nothing is set smaller than SMALL, which is why tick labels have no superscripts."""
LETTER = 4.1
"""Mean width of a letter at SMALL, pt."""

INK, GREY = "#222222", "#6E6E6E"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A0000", "#DDCC77")
"""Okabe and Ito's colours and two more, ordered so that the first two differ most for every kind of colour vision."""
BASELINES = {
    "gene_mean": ("gene mean", "#858585", (0, (1, 1.2))),
    "pca": ("PCA", "#F0A800", (0, (5, 1.5))),
    "gaussian": ("conditional\nGaussian", "#882255", (0, (4, 1.2, 1, 1.2))),
    "floor": ("exact floor", "#000000", "-"),
}
"""Label, colour and dashes of each baseline: different in colour and in dashes."""
DOT = {"markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.4}
"""A marker that stays visible on top of others."""
MARKERS = "os^DvPX<>ph*d8"
PARAMETERS = "model parameters (number)"
SPLITS = {
    "train": "#B4B4B4", "validation": "#E69F00", "test": "#332288", "test_dataset": "#117733", "test_random": "#56B4E9",
}  # fmt: skip
"""Colour of every split."""
SPLIT_NAMES = {"test_dataset": "test (data sets)", "test_random": "test (same donors)"}
UNITS = {"mse": "MSE (log1p expression²)", "nll": "loss (bits per masked gene)"}
KINDS = ("pdf", "svg", "png", "txt", "csv", "tex")
"""Endings of all files that `save` may write for one name."""

_order = {"regimes": [], "sizes": []}

seaborn.set_theme(context="paper", style="ticks", palette=PALETTE, font="DejaVu Sans", rc={
    "font.size": TEXT, "axes.labelsize": TEXT, "axes.titlesize": TITLE, "axes.titleweight": "bold",
    "xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "legend.fontsize": SMALL, "legend.title_fontsize": SMALL,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.linewidth": 0.6, "lines.linewidth": 1.2, "lines.markersize": 4, "patch.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "xtick.minor.width": 0.4, "ytick.minor.width": 0.4, "xtick.minor.size": 1.5, "ytick.minor.size": 1.5,
    "axes.labelpad": 2.5, "xtick.major.pad": 2, "ytick.major.pad": 2, "legend.frameon": False,
    "legend.handlelength": 1.8, "legend.columnspacing": 1.4, "legend.handletextpad": 0.5,
    "axes.spines.top": False, "axes.spines.right": False,
    # Hinted letters are as wide as fits the pixels: the layout would hold for one resolution alone.
    "text.hinting": "none",
    # TrueType in PDF stays editable and is accepted everywhere (Type 3 is not). SVG text becomes outlines: a font named
    # in an SVG is looked up on the reader's machine, and another font would move and clip the labels.
    "pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "single-cell-scaling",
})  # fmt: skip


class Shown:
    """What a notebook cell shows and a manuscript takes: a figure, a table, or a note in their place.

    Subclasses give `content`, the pair of data and metadata of a notebook output, and `write`.
    """

    caption = ""

    def _ipython_display_(self):
        from IPython.display import Markdown, display

        data, metadata = self.content()
        display(data, metadata=metadata, raw=True)
        if self.caption:
            display(Markdown(f"<small>{self.caption}</small>"), metadata={"caption": True})


@dataclass
class Note(Shown):
    """One line in place of a figure or table that a study has no runs for; nothing is written for it."""

    sentence: str

    def content(self):
        return {"text/markdown": self.sentence, "text/plain": self.sentence}, {}

    def write(self, folder, name):
        for kind in KINDS:  # of an earlier run that had it
            (Path(folder) / f"{name}.{kind}").unlink(missing_ok=True)


def section(text: str, *parts: Shown) -> None:
    """Show a section of a notebook, `text` in Markdown and then its parts; nothing where all of them are notes."""
    from IPython.display import Markdown, display

    if shown := [part for part in parts if not isinstance(part, Note)]:
        display(Markdown(text), *shown)


class Figure(Shown, matplotlib.figure.Figure):
    """A matplotlib figure that shows itself in a notebook as a small PNG with the same bytes on every run.

    It is not registered with pyplot, so a cell that ends in a figure shows it once, and nothing is left to close.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.caption = ""
        self.later = []  # what can only be placed when the size of the axes is known; see `settle`

    def content(self):
        png, size = self._repr_png_()
        return {"image/png": base64.b64encode(png).decode(), "text/plain": self.caption}, {"image/png": size}

    def _repr_png_(self):
        drawn, small = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png", dpi=200, pil_kwargs={"compress_level": 1})
        image = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
        image.save(small, format="png", optimize=True)
        # Shown at 130 % of the printed size: 7 pt read on paper at 40 cm need about 9 pt on a screen at arm's length.
        scale = 1.3 * 96 / 200
        size = {"width": round(image.width * scale), "height": round(image.height * scale)}
        return small.getvalue(), size | {"alt": self.caption}

    def write(self, folder, name, formats=("pdf", "svg", "png")):
        """Write `folder/name.<format>` for each format, and the caption beside them as `name.txt`.

        No file carries a date or a version, each is complete or absent, and its width is the printed width.
        """
        unstamped = {
            "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
            "svg": {"Date": None, "Creator": None},
            "png": {"Software": None},
        }
        for kind in formats:
            with atomic(Path(folder) / f"{name}.{kind}") as partial:
                self.savefig(partial, format=kind, dpi=300, metadata=unstamped[kind])
        write_caption(self.caption, folder, name)


def save(what: Shown, folder: Path, name: str, *formats: tuple[str, ...]) -> Shown:
    """Write a figure (in other formats, if given) or a table, `folder/name.<kind>`, and return it for the notebook.

    The same content gives the same bytes.
    """
    what.write(folder, name, *formats)
    return what


def write_caption(caption: str, folder: Path, name: str) -> None:
    """The caption as plain text, `folder/name.txt`."""
    with atomic(Path(folder) / f"{name}.txt") as partial:
        partial.write_text(caption + "\n")


def use(study: Study) -> None:
    """Give every regime its colour, and every size its marker and shade, in the order of a study.

    A figure that shows only some of them then shows them as every other figure does. Without this call the order is
    that of the names that a figure is given.
    """
    _order.update(regimes=list(study.regimes), sizes=[size.name for size in study.sizes])


def _ordered(kind, names):
    known = _order[kind]
    return [*known, *(name for name in names if name not in known)] if set(names) & set(known) else list(names)


def colours(regimes: Iterable[str]) -> dict[str, str]:
    """{regime: colour}."""
    names = _ordered("regimes", dict.fromkeys(regimes))
    few = len(names) <= len(PALETTE)
    palette = PALETTE if few else seaborn.color_palette("viridis", len(names) + 1).as_hex()[1:]
    return {name: palette[names.index(name)] for name in regimes}


def markers(sizes: Iterable[str]) -> dict[str, str]:
    """{size: marker}; `sizes` in ascending order."""
    names = _ordered("sizes", dict.fromkeys(sizes))
    return {name: MARKERS[names.index(name) % len(MARKERS)] for name in sizes}


def shades(sizes: Iterable[str]) -> dict[str, str]:
    """{size: colour} from light (smallest) to dark (largest)."""
    names = _ordered("sizes", dict.fromkeys(sizes))
    return dict(zip(names, seaborn.color_palette("crest", len(names) + 1).as_hex()[1:], strict=True))


def panels(rows: int, columns: int, height: float, width: float | None = None) -> tuple[Figure, np.ndarray]:
    """A figure of `rows` x `columns` axes, each row `height` mm high at most; one column wide where it has one."""
    width, height = width or (SINGLE if columns == 1 else DOUBLE), min(rows * height, TALLEST)
    figure = Figure(figsize=(width / 25.4, height / 25.4), dpi=200, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    return figure, figure.subplots(rows, columns, squeeze=False)


def abreast(number: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of so many axes in rows of two, or of three or four where there are many; the axes as a list."""
    columns = min(number, 2 if number <= 4 else 3 if number <= 9 else 4)
    figure, axes = panels(-(-number // columns), columns, height)
    for axis in axes.flat[number:]:
        axis.remove()
    return figure, list(axes.flat[:number])


def settle(figure: Figure, caption: str) -> Figure:
    """Lay a finished figure out once and keep it so: every format, and every later drawing, has the same layout.

    `caption` says what is shown: what lines, bands and bars are, and how many runs stand behind them.
    """
    figure.draw_without_rendering()
    for place_labels in figure.later:
        place_labels()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.caption = " ".join(caption.split())
    return figure


def header(axis: Axes, title: str, lines: Iterable[str] = (), above: float = 0) -> None:
    """A bold title with plain lines under it, `above` pt above the axes."""
    lines, step = [line for line in lines if line], SMALL + 2.5
    for place, line in enumerate(reversed(lines)):
        axis.annotate(line, (0, 1), (0, above + 3 + place * step), xycoords="axes fraction",
                      textcoords="offset points", fontsize=SMALL, color=GREY, va="bottom")  # fmt: skip
    axis.set_title(title, loc="left", pad=above + 4 + len(lines) * step)


def size_names(axis: Axes, places: dict[str, float]) -> float:
    """Name each size above its place, {name: x}, turned where it must be; returns the height that this takes, pt."""
    length = axis.figure.get_figwidth() * 72 / axis.get_subplotspec().get_gridspec().ncols * 0.6
    at = axis.transScale + axis.transLimits
    spots = [(at.transform((x, 1))[0] * length, LETTER * len(name)) for name, x in places.items()]
    turned = any(b - a < (u + v) / 2 + 3 for (a, u), (b, v) in itertools.pairwise(spots))
    for name, x in places.items():
        axis.annotate(name, (x, 1), (0, 2), xycoords=axis.get_xaxis_transform(), textcoords="offset points",
                      fontsize=SMALL, color=GREY, ha="center", va="bottom", rotation=90 * turned)  # fmt: skip
    return 3 + (max(width for _, width in spots) if turned else SMALL) if places else 0


def key(**style) -> Line2D:
    """A line for a legend, of that style."""
    return Line2D([], [], **style)


def legend(figure: Figure, keys: dict[str, object]) -> None:
    """A legend under the axes, `keys` is {label: handle}: one row where it fits, otherwise as many columns as fit."""
    room, widths = figure.get_figwidth() * 72, [LETTER * len(label) + 32 for label in keys]
    columns = len(keys) if sum(widths) < room else max(1, int(room // max(widths)))
    figure.legend(list(keys.values()), list(keys), loc="outside lower center", borderaxespad=0, borderpad=0.2,
                  ncols=columns)  # fmt: skip


def end_labels(axis: Axes, labels: list[tuple[float, str, str]]) -> None:
    """Write labels right of the axes, each at its height or as near as the others leave room for.

    `labels` is a list of (y, text, colour); call it when the limits are final.
    """
    at = axis.transScale + axis.transLimits
    x = axis.get_xlim()[1]
    wanted = sorted((at.transform((x, y))[1], text, colour) for y, text, colour in labels)
    leader = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}
    texts = [
        axis.annotate(text, (1, y), (1.06, y), xycoords="axes fraction", textcoords="axes fraction", fontsize=SMALL,
                      color=colour, va="center", linespacing=1.05, annotation_clip=False,
                      arrowprops=leader | {"color": colour})
        for y, text, colour in wanted
    ]  # fmt: skip

    def place():
        line = (SMALL + 1.2) / 72 * axis.figure.dpi / axis.get_window_extent().height
        heights = [line * (text.count("\n") + 1) for _, text, _ in wanted]
        for text, middle in zip(texts, spread([y for y, *_ in wanted], heights), strict=True):
            text.set_position((1.06, middle))

    axis.figure.later.append(place)


def spread(wanted: list[float], heights: list[float]) -> list[float]:
    """Move ascending middles apart, as little as possible, until labels of these heights fit beside each other in 0..1.

    Less what the labels below take up, middles have only to ascend.
    """
    from scipy.optimize import isotonic_regression

    below = np.cumsum(heights) - np.array(heights) / 2
    shifts = isotonic_regression(np.array(wanted) - below).x
    return list(np.clip(shifts, 0, max(0, 1 - sum(heights))) + below)


def size_lines(axis: Axes, runs: pd.DataFrame, x: str, y: str, **line: object) -> list[tuple[float, str, str]]:
    """The mean of each size over its runs, a line each, sizes in ascending order; returns what `end_labels` takes."""
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


def interval(axis: Axes, y: float, ends: Iterable[float], colour: str = INK, **dot: object) -> None:
    """An estimate with its interval, `ends` is (low, estimate, high); arrows where it leaves the axis or has no end.

    Call it when the limits of x are final.
    """
    low, value, high = (np.nan if end is None else end for end in ends)
    left, right = axis.get_xlim()
    whisker = [np.fmax(left, low), np.fmin(right, high)]
    axis.plot(whisker, [y, y], color=colour, linewidth=1, solid_capstyle="butt")
    for edge, inside, arrow in ((left, low >= left, "<"), (right, high <= right, ">")):
        if not inside:
            axis.plot(edge, y, arrow, color=colour, markersize=3.5, clip_on=False)
    axis.plot(np.clip(value, left, right), y, "o", color=colour, zorder=4, **{"markersize": 4} | dot)


def loss_label(metric: str) -> str:
    """Axis label of a loss, with its unit: `validation_mse` is validation MSE (log1p expression²)."""
    split, kind = metric.rsplit("_", 1)
    return f"{SPLIT_NAMES.get(split, split)} {UNITS[kind]}"


def counted(number: int, thing: str) -> str:
    """1 run, 12 runs, 1,200 runs."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def short(value: float, _=None) -> str:
    """A count in few characters: 533, 10k, 1.5M, 3.4B; ratios as 0.01. Used on axes instead of superscripts."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"


def log_axis(*axes: Axis) -> None:
    """Powers of ten written as `short` writes them, on x or y axes (pass `axes.xaxis`)."""
    for axis in axes:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        axis.set_major_locator(LogLocator(numticks=7))
        axis.set_major_formatter(FuncFormatter(short))
        axis.set_minor_formatter(NullFormatter())


def log_ticks(*axes: Axis) -> None:
    """Readable ticks for logarithmic axes that span about a decade or less; call it when the limits are final."""
    for axis in axes:
        low, high = axis.get_view_interval()
        steps = (1, 2, 3, 5, 7) if high < 20 * low else (1, 2, 5)
        near = high < 4 * low
        axis.set_major_locator(MaxNLocator(5) if near else LogLocator(subs=steps, numticks=9))
        alike = ScalarFormatter(useOffset=False)  # equally many decimals on all ticks
        alike.set_scientific(False)
        axis.set_major_formatter(alike if near else FuncFormatter(short))
        axis.set_minor_formatter(NullFormatter())


def rounded(value: float, interval: tuple | list | None) -> str:
    """`value` with its interval, to the digits that the interval supports; None is an end that does not exist."""
    ends = [end for end in interval or () if end is not None]
    width = ends[1] - ends[0] if len(ends) == 2 else abs(value - ends[0]) if ends else 0.01
    digits = min(6, max(0, 1 - math.floor(math.log10(width)))) if width > 0 else 3
    text, *ends = (f"{number:.{digits}f}".replace("-", "−") for number in (value, *ends))
    if len(ends) == 2:
        return f"{text} [{ends[0]}, {ends[1]}]"
    if not ends:
        return f"{text} (not bounded)"
    return f"{text} ({'≤' if interval[0] is None else '≥'} {ends[0]})"
