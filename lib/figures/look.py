"""The look shared by every figure: theme, widths, colours, markers, labels, and how a figure is written."""

import io
import itertools
import math
from pathlib import Path

import matplotlib.figure
import seaborn
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter
from PIL import Image

from lib.figures import shown
from lib.io import atomic
from lib.model.sizes import PUBLISHED

SINGLE, DOUBLE = 85, 175
"""Widths of one and of two journal columns, mm. Figures are drawn at their printed size, so a point is a point."""

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
    "bayes": ("exact floor", "#000000", "-"),
}
"""Label, colour and dashes of each baseline: told apart by colour and by dashes."""
DOT = {"markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.4}
"""A marker that stays visible on top of others."""
MARKERS = "os^DvPX<>ph*d8"
UNITS = {
    "mse": "MSE (log1p expression²)",
    "nll": "loss (bits per masked gene)",
}

_order = {"regimes": ["data-rich", "data-limited"], "sizes": list(PUBLISHED)}

seaborn.set_theme(context="paper", style="ticks", palette=PALETTE, font="DejaVu Sans", rc={
    "font.size": TEXT, "axes.labelsize": TEXT, "axes.titlesize": TITLE, "axes.titleweight": "bold",
    "xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "legend.fontsize": SMALL, "legend.title_fontsize": SMALL,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.linewidth": 0.6, "lines.linewidth": 1.2, "lines.markersize": 4, "patch.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "xtick.minor.width": 0.4, "ytick.minor.width": 0.4, "xtick.minor.size": 1.5, "ytick.minor.size": 1.5,
    "axes.labelpad": 2.5, "xtick.major.pad": 2, "ytick.major.pad": 2, "legend.frameon": False,
    "legend.handlelength": 1.8, "legend.columnspacing": 1.4, "legend.handletextpad": 0.5,
    # Hinted letters are as wide as fits the pixels: the layout would hold for one resolution alone.
    "text.hinting": "none",
    # TrueType in PDF stays editable and is accepted everywhere (Type 3 is not). SVG text becomes outlines: a font named
    # in an SVG is looked up on the reader's machine, and another font would move and clip the labels.
    "pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "single-cell-scaling",
})  # fmt: skip


class Figure(shown.Shown, matplotlib.figure.Figure):
    """A matplotlib figure that shows itself in a notebook as a small PNG with the same bytes on every run.

    It is not registered with pyplot, so a cell that ends in a figure shows it once, and nothing is left to close.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.caption = ""
        self.later = []  # what can only be placed when the size of the axes is known; see `settle`

    def content(self):
        png, size = self._repr_png_()
        return {"image/png": shown.base64(png), "text/plain": self.caption}, {"image/png": size}

    def _repr_png_(self):
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=200, pil_kwargs={"compress_level": 1})
        image = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
        small = io.BytesIO()
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
        width = round(self.get_figwidth() * 25.4)
        columns = {SINGLE: "one column", DOUBLE: "two columns"}.get(width, "width")
        shown.write_caption(f"{self.caption}\n\nTo be printed {width} mm wide ({columns}).", folder, name)


def use(regimes, sizes):
    """Fix the colour of every regime and the marker and shade of every size of a study, in the study's order.

    A figure that shows only some of them then shows them as every other figure does.
    """
    kept = ["data-rich", "data-limited"]
    _order["regimes"] = list(dict.fromkeys([*(kept if set(kept) & set(regimes) else []), *regimes]))
    _order["sizes"] = list(sizes)


def colours(regimes):
    """{regime: colour}."""
    names = list(dict.fromkeys([*_order["regimes"], *regimes]))
    palette = PALETTE if len(names) <= len(PALETTE) else seaborn.color_palette("viridis", len(names)).as_hex()
    return {name: palette[names.index(name)] for name in regimes}


def _sizes(sizes):
    known = _order["sizes"]
    return [*known, *(name for name in sizes if name not in known)] if set(sizes) & set(known) else list(sizes)


def markers(sizes):
    """{size: marker}; `sizes` in ascending order."""
    names = _sizes(sizes)
    return {name: MARKERS[names.index(name) % len(MARKERS)] for name in sizes}


def shades(sizes):
    """{size: colour} from light (smallest) to dark (largest)."""
    names = _sizes(sizes)
    palette = seaborn.color_palette("crest", len(names) + 1).as_hex()[1:]
    return {name: palette[names.index(name)] for name in sizes}


def panels(rows, columns, height, width=None):
    """A figure of `rows` x `columns` axes, each row `height` mm high; one column wide when it has one column."""
    width = width or (SINGLE if columns == 1 else DOUBLE)
    figure = Figure(figsize=(width / 25.4, rows * height / 25.4), dpi=200, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    axes = figure.subplots(rows, columns, squeeze=False)
    seaborn.despine(figure)
    return figure, axes


def settle(figure, caption=""):
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


def header(axis, title, lines=(), room=0):
    """A bold title with plain lines under it, `room` pt above the axes."""
    lines, step = [line for line in lines if line], SMALL + 2.5
    for place, line in enumerate(reversed(lines)):
        axis.annotate(line, (0, 1), (0, room + 3 + place * step), xycoords="axes fraction",
                      textcoords="offset points", fontsize=SMALL, color=GREY, va="bottom")  # fmt: skip
    axis.set_title(title, loc="left", pad=room + 4 + len(lines) * step)


def size_names(axis, places):
    """Name each size above its place on the x axis, turned where it must be; `places` is {name: x}.

    Returns
    -------
    Room taken above the axes, pt.
    """
    length = axis.figure.get_figwidth() * 72 / axis.get_subplotspec().get_gridspec().ncols * 0.6
    at = axis.transScale + axis.transLimits
    spots = [(at.transform((x, 1))[0] * length, LETTER * len(name)) for name, x in places.items()]
    turned = any(b - a < (u + v) / 2 + 3 for (a, u), (b, v) in itertools.pairwise(spots))
    for name, x in places.items():
        axis.annotate(name, (x, 1), (0, 2), xycoords=axis.get_xaxis_transform(), textcoords="offset points",
                      fontsize=SMALL, color=GREY, ha="center", va="bottom", rotation=90 * turned)  # fmt: skip
    return 3 + (max(width for _, width in spots) if turned else SMALL) if places else 0


def legend(figure, handles, labels):
    """A legend under the axes: one row where it fits, otherwise as many columns as fit."""
    room, widths = figure.get_figwidth() * 72, [LETTER * len(label) + 32 for label in labels]
    columns = len(labels) if sum(widths) < room else max(1, int(room // max(widths)))
    figure.legend(handles, labels, loc="outside lower center", borderaxespad=0, borderpad=0.2, ncols=columns)


def end_labels(axis, labels):
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
        lines = (SMALL + 1.2) / 72 * axis.figure.dpi / axis.get_window_extent().height
        heights = [lines * (text.count("\n") + 1) for _, text, _ in wanted]
        for text, middle in zip(texts, spread([y for y, *_ in wanted], heights), strict=True):
            text.set_position((1.06, middle))

    axis.figure.later.append(place)


def spread(wanted, heights):
    """Move ascending middles apart until labels of these heights no longer overlap, as little as possible.

    Labels that would overlap form a block centred on the mean of its wanted middles; blocks merge until none overlap
    (pool-adjacent-violators), and what remains is moved into 0 to 1.
    """
    starts = [sum(heights[:i]) + heights[i] / 2 for i in range(len(heights))]
    blocks = []
    for offset, y in zip(starts, wanted, strict=True):
        blocks.append([y - offset, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            shift, count = blocks.pop()
            before, earlier = blocks.pop()
            blocks.append([(before * earlier + shift * count) / (earlier + count), earlier + count])
    shifts = [min(max(shift, 0), 1 - sum(heights)) for shift, count in blocks for _ in range(count)]
    return [shift + offset for shift, offset in zip(shifts, starts, strict=True)]


def short(value, _=None):
    """A count in few characters: 533, 10k, 1.5M, 3.4B; ratios as 0.01. Used on axes instead of superscripts."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"


def log_axis(axis):
    """Powers of ten written as `short` writes them, on the x or y axis of an Axes (pass `axes.xaxis`)."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(numticks=7))
    axis.set_major_formatter(FuncFormatter(short))
    axis.set_minor_formatter(NullFormatter())


def log_ticks(axis):
    """Readable ticks for a logarithmic axis that spans about a decade or less; call it when the limits are final."""
    low, high = axis.get_view_interval()
    steps = (1, 2, 3, 5, 7) if high < 20 * low else (1, 2, 5)
    near = high < 4 * low
    axis.set_major_locator(MaxNLocator(5) if near else LogLocator(subs=steps, numticks=9))
    axis.set_major_formatter(alike() if near else FuncFormatter(short))
    axis.set_minor_formatter(NullFormatter())


def alike():
    """A formatter that gives all ticks of an axis equally many decimals, without an offset."""
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    return formatter


def rounded(value, interval):
    """`value` with its interval, to the digits that the interval supports; None is an end that does not exist."""
    ends = [end for end in interval or () if end is not None]
    width = ends[1] - ends[0] if len(ends) == 2 else abs(value - ends[0]) if ends else 0.01
    digits = min(6, max(0, 1 - math.floor(math.log10(width)))) if width > 0 else 3
    said, *ends = (f"{number:.{digits}f}".replace("-", "−") for number in (value, *ends))
    if len(ends) == 2:
        return f"{said} [{ends[0]}, {ends[1]}]"
    if not ends:
        return f"{said} (not bounded)"
    return f"{said} ({'≤' if interval[0] is None else '≥'} {ends[0]})"
