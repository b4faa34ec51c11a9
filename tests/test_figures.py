"""Figures: the numbers drawn are those given, files are whole, text and colours can be told apart."""

import itertools
import re
import subprocess
import sys
from functools import cache
from io import BytesIO, StringIO
from types import SimpleNamespace as View

import interval_coverage
import matplotlib
import numpy as np
import pandas as pd
import pytest
import test_compared
from matplotlib.text import Text
from PIL import Image

from lib import figures, io
from lib.figures import conditions as beside
from lib.figures import style, tables
from lib.fit import capacity, conditions, published, runs, summary
from lib.model import sizes
from lib.model.sizes import PUBLISHED
from lib.study import load_study

# Among them: a layout that found no room for the axes.
pytestmark = pytest.mark.filterwarnings("error::UserWarning")

METRIC = "validation_mse"
TRUTH = {"data-rich": (512, 180_000, 1.9, 0.42, 0.0712), "data-limited": (1024, 9_000, 0.9, 0.25, 0.093)}
DATA = io.CODE / "data"


def make_runs(names=tuple(PUBLISHED), regimes=tuple(TRUTH), seeds=(7, 8, 9)):
    """A table of runs.csv in which one run diverged and one was interrupted."""
    rng, rows = np.random.default_rng(0), []
    for regime, size, seed in itertools.product(regimes, names, seeds):
        genes, cells, a, alpha, c = TRUTH[regime]
        parameters = PUBLISHED[size].parameters(genes)
        loss = c + a * parameters**-alpha + rng.normal(0, 0.002)
        rows.append({
            "regime": regime, "size": size, "seed": seed, "parameters": parameters, "genes": genes,
            "cells_train": cells, "cells_seen": 240_000, METRIC: loss, "gene_mean_mse": 0.182, "status": "ok",
        })  # fmt: skip
    table = pd.DataFrame(rows)
    table.loc[1, ["status", METRIC]] = ["diverged", np.nan]
    interrupted = {"regime": regimes[0], "size": names[0], "seed": 10, "status": "interrupted"}
    return pd.concat([table, pd.DataFrame([interrupted])])


def make_curves(regimes=tuple(TRUTH)):
    parameters = np.geomspace(300, 5e8, 60)
    loss = {regime: TRUTH[regime][4] + TRUTH[regime][2] * parameters ** -TRUTH[regime][3] for regime in regimes}
    return pd.concat(
        pd.DataFrame({"regime": regime, "parameters": parameters, "loss": y, "lo": y - 0.004, "hi": y + 0.004})
        for regime, y in loss.items()
    )


def make_law(regime):
    alpha, c = TRUTH[regime][3:]
    between = {"alpha": [0.8 * alpha, 1.3 * alpha], "c": [0.97 * c, 1.02 * c]}
    methods = ("profile_size_means", "profile_runs", "bootstrap_runs", "bootstrap_runs_bca", "bootstrap_within_sizes")
    wide = {"bootstrap_sizes": {"alpha": [0.1 * alpha, 9 * alpha], "c": [-2.0, 1.1 * c]},
            "two_stage": {"alpha": [0.5 * alpha, None], "c": [None, 1.1 * c]}}  # fmt: skip
    law = {"alpha": alpha, "c": c, "status": "ok", "n_sizes": 7, "n_runs": 21, "level": 0.95}
    return law | {"intervals": dict.fromkeys(methods, between) | wide}


LAWS = {regime: {METRIC: make_law(regime)} for regime in TRUTH}
NO_LAW = {"data-rich": {METRIC: {"alpha": None, "c": None, "status": "too few sizes", "level": 0.95, "intervals": {}}}}
BASELINES = {
    regime: {"validation": {"gene_mean_mse": 0.182, "gaussian_mse": 0.104, "bayes_mse": 0.0705}} for regime in TRUTH
}


def make_histories(regimes=tuple(TRUTH)):
    """Learning curves; one seed stopped early."""
    cells, found = np.unique(np.geomspace(32, 240_000, 20).astype(int)), {}
    for regime in regimes:
        parts = []
        for size, seed in itertools.product(PUBLISHED, (7, 8)):
            parameters = PUBLISHED[size].parameters(512)
            loss = 0.07 + 1.9 * parameters**-0.42 * (1 + 1e4 / (cells + 1e3)) + 0.001 * (seed - 7)
            part = pd.DataFrame({"size": size, "seed": seed, "cells_seen": cells, METRIC: loss})
            parts.append(part[:12] if (size, seed) == ("XS", 8) else part)
        found[regime] = pd.concat(parts)
    return found


def make_cells():
    rng = np.random.default_rng(0)
    split, donor = np.array(["train"] * 8 + ["validation"] * 2 + ["test"] * 2), rng.integers(0, 12, 800)
    return pd.DataFrame({"donor_id": [f"donor {n}" for n in donor], "split": split[donor]})


@cache
def make_published():
    """The first regime of the published runs, and the view of it that the audit draws."""
    rows = runs.collect(load_study("published-runs"))
    first = rows[rows["regime"] == "data-rich"]
    return first, published.both_fits(first), published.refits(first)


def make_examined():
    rng = np.random.default_rng(3)
    mean = rng.lognormal(-2, 1, 40)
    genes = pd.DataFrame({"mean": mean, "variance": mean * 0.9, "residual": mean * 0.7, "floor": mean * 0.6})
    genes = genes.assign(share=mean / mean.sum(), floor_share=mean / mean.sum())
    rules = ["one Gaussian, differential", "the same at 1,000,000 counts a cell", "one Gaussian, of counts",
             "a Gaussian for each prediction, of counts", "predicted counts", "exact entropy"]  # fmt: skip
    rows = [("run", rule, 0.7 + 0.02 * n) for n, rule in enumerate(rules[:5])]
    rows += [("exact posterior", rule, 0.6 + 0.02 * n if n != 1 else 2.6) for n, rule in enumerate(rules)]
    bits = pd.DataFrame(rows, columns=["predictor", "rule", "bits"])
    bits["rule"] = pd.Categorical(bits["rule"], rules)
    return View(run="d64, seed 7, of counts", genes=genes, bits=bits, sentence="")


def make_held_out():
    parameters_of = {"XXS": 85, "d8": 1_417, "d16": 4_369, "d32": 14_881}
    cells = {"test_random": "cells of training donors", "validation": "other donors", "test": "other donors again"}
    shares = pd.DataFrame([
        {"regime": "rich", "size": size, "seed": 7, "split": split, "cells": of, "parameters": parameters, "se": 0.02,
         "explained": 0.1 * np.log10(parameters) + 0.02 * len(of)}
        for (split, of), (size, parameters) in itertools.product(cells.items(), parameters_of.items())
    ])  # fmt: skip
    leak = {"regime": "rich", "parameters": list(parameters_of.values()), "leak": 0.1, "se": 0.02, "gaussian": 0.12}
    return View(regime="rich", shares=shares, leak=pd.DataFrame(leak), sentence="")


def make_matched():
    few = test_compared.table(test_compared.apart, (200, 500), donors=2)
    return conditions.matched(pd.concat([test_compared.table(test_compared.apart), few]))


@cache
def make_switched():
    """Runs of a study of seven protocols, each a little better than the one before, and their laws."""
    names = ("published", "split", "library-size", "initialisation", "learning-rate", "optimiser", "updates")
    parts = [
        test_compared.table(lambda N, D, fall=0.1 + 0.15 * n: 0.2 - fall * (0.08 - 0.6 * N**-0.5), (20_000,))
        .assign(regime=name, protocol="published") for n, name in enumerate(names)
    ]  # fmt: skip
    rows = pd.concat(parts, ignore_index=True)
    rows["test_mse"] = rows["validation_mse"] + 0.01
    return rows, summary.fit_laws(rows, 100, 0)


def make_protocols():
    rows, laws = make_switched()
    known = {regime: {"validation": {"gene_mean_mse": 0.21}} for regime in laws}
    return conditions.protocols(rows, laws, known), rows


def make_budgets():
    rows = pd.read_csv(DATA / "results/ladder/runs.csv")
    laws = io.read_json(DATA / "results/ladder/laws.json")
    return capacity.budgets(rows, laws, {"data-rich": rows["bayes_mse"].mean()})


XL = View(sizes=[PUBLISHED["XL"]], regimes={"rich": View(genes=1024)})
REALISM = pd.read_csv(DATA / "realism.csv", keep_default_na=False)
DRAWN = {
    "loss": lambda: figures.loss_against_parameters(make_runs(), make_curves(), BASELINES, LAWS),
    "learning": lambda: figures.learning_curves(make_histories()),
    "intervals": lambda: figures.intervals(LAWS, floors={"data-rich": 0.0705}),
    "budget": lambda: figures.budget(make_budgets()),
    "matched": lambda: figures.matched(make_matched()),
    "held_out": lambda: figures.held_out(make_held_out()),
    "protocols": lambda: figures.protocols(*make_protocols()),
    "genes": lambda: figures.by_gene(make_examined()),
    "bits": lambda: figures.conversions(make_examined()),
    "audit": lambda: figures.published_audit(*make_published()),
    "coverage": lambda: interval_coverage.draw(pd.read_csv(DATA / "coverage.csv")),
    "splits": lambda: figures.splits(make_cells()),
    "realism": lambda: figures.realism(REALISM),
    "architecture": lambda: figures.architecture(XL),
    "recipe": lambda: figures.recipe(sizes.recipe()),
}


@pytest.fixture(scope="module")
def drawn():
    return {name: draw() for name, draw in DRAWN.items()}


def texts(figure):
    return [text.get_text() for text, _ in visible_texts(figure)]


def test_importing_figures_loads_no_slow_library():
    script = "import sys; from lib import figures; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "anndata", "scanpy"} & set(loaded)


def test_a_figure_is_written_whole_in_three_formats_with_its_caption_and_the_same_again(drawn, tmp_path):
    name, files = "loss", []
    for figure, folder in ((drawn[name], tmp_path / "one"), (DRAWN[name](), tmp_path / "two")):
        folder.mkdir()
        assert figures.save(figure, folder, name) is figure
        files.append({path.suffix: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1] and set(files[0]) == {".pdf", ".svg", ".png", ".txt"}
    pdf, svg = files[0][".pdf"], files[0][".svg"].decode()
    assert b"/FontFile2 " in pdf and b"/Type3" not in pdf, "fonts are embedded"
    assert "<text" not in svg and "font-family" not in svg and "dc:date" not in svg
    box = re.search(rb"/MediaBox \[ *0 0 ([\d.]+)", pdf)
    assert float(box[1]) * 25.4 / 72 == pytest.approx(drawn[name].get_figwidth() * 25.4, abs=0.01)
    assert files[0][".txt"].decode() == drawn[name].caption + "\n"


def test_a_figure_fits_a_page_and_its_caption_is_short(drawn):
    for name, figure in drawn.items():
        width, height = figure.get_size_inches() * 25.4
        assert round(width, 6) in (85, 175) and height <= 120 + 1e-6, name
        assert 8 < len(figure.caption.split()) <= 40 and not re.search(r"[<{\[]\w+", figure.caption), name
    assert "41 runs of 7 sizes in 2 regimes" in drawn["loss"].caption
    assert "2 runs without a final loss" in drawn["loss"].caption


def test_many_regimes_fit_a_page_too():
    regimes = [f"regime {n}" for n in range(11)]
    one = make_runs(regimes=["data-rich"])
    rows = pd.concat([one.assign(regime=regime) for regime in regimes])
    curves = pd.concat([make_curves(["data-rich"]).assign(regime=regime) for regime in regimes])
    laws = {regime: {METRIC: make_law("data-rich") | {"status": "ok" if n > 4 else "increasing"}}
            for n, regime in enumerate(regimes)}  # fmt: skip
    figure = figures.loss_against_parameters(rows, curves, {}, laws)
    assert len(figure.axes) == 11 and figure.get_figheight() * 25.4 <= 120 + 1e-6
    shown = [text for text in texts(figures.intervals(laws, {})) if text.startswith("regime")]
    assert shown == regimes[5:9], "laws that are determined come first"


def test_a_notebook_shows_a_small_sharp_png_and_under_it_the_caption(drawn, monkeypatch):
    seen = []
    monkeypatch.setattr("IPython.display.display", lambda what, **how: seen.append((what, how)))
    figure = drawn["learning"]
    figure._ipython_display_()
    (_, how), (caption, _) = seen
    assert how["metadata"]["image/png"]["alt"] == figure.caption and figure.caption in caption.data
    content, shown = figure._repr_png_()
    assert len(content) < 60_000 and Image.open(BytesIO(content)).width > 1.5 * shown["width"]


NOTHING = View(sentence="three numbers of cells", gains=None, shares=None, genes=None, bits=None)
VIEWS = ["matched", "held_out", "by_gene", "conversions"]


@pytest.mark.parametrize("name", VIEWS)
def test_without_runs_to_draw_one_line_says_why_and_an_earlier_figure_goes(name, tmp_path, drawn):
    figures.save(drawn["matched"], tmp_path, "drawn", ("svg",))
    note = figures.save(getattr(figures, name)(NOTHING), tmp_path, "drawn")
    assert note.content()[0]["text/markdown"] == "three numbers of cells" and list(tmp_path.iterdir()) == []


def test_a_study_without_laws_losses_or_sizes_gets_notes():
    failed = make_runs().assign(status="diverged", validation_mse=np.nan)
    empty, given = pd.DataFrame(), View(sizes=[], regimes={})
    notes = [figures.budget(None), figures.intervals(NO_LAW, {}), figures.learning_curves({}),
             figures.loss_against_parameters(failed, make_curves()[:0], {}, NO_LAW), figures.architecture(given),
             tables.sizes(empty), tables.plain(empty), tables.plain(None), tables.rollout(empty),
             tables.forms(empty), figures.protocols(empty, failed)]  # fmt: skip
    assert all(isinstance(note, style.Note) for note in notes)


def test_a_section_is_shown_with_what_there_is_and_left_out_without(drawn, monkeypatch):
    seen = []
    monkeypatch.setattr("IPython.display.display", lambda *shown: seen.append(shown))
    nothing = style.Note("no runs")
    figures.section("## Left out", nothing, nothing)
    figures.section("## Shown", nothing, drawn["loss"])
    ((text, figure),) = seen
    assert text.data == "## Shown" and figure is drawn["loss"]


def visible_texts(figure):
    """Every text that is drawn: (text, extent in pixels). Tick labels outside the limits are not drawn."""
    figure.draw_without_rendering()  # extents are those of the last drawing, which may have been a PDF's
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            edge = 1e-9 * (high - low)
            hidden |= set(axis.get_minorticklabels())
            for place, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False):
                if not axes.axison or not low - edge <= place <= high + edge:
                    hidden.add(label)
        if not axes.axison:
            hidden |= {axes.xaxis.label, axes.yaxis.label}
    found = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]
    return [(text, Text.get_window_extent(text)) for text in found]


def test_text_is_large_enough_on_the_page_and_apart_from_other_text(drawn):
    for name, figure in drawn.items():
        page, straight = figure.bbox.padded(0.5), []
        for text, box in visible_texts(figure):
            assert text.get_fontsize() >= style.SMALL and "$" not in text.get_text(), (name, text.get_text())
            assert page.containsx(box.x0) and page.containsx(box.x1), (name, text.get_text(), box)
            assert page.containsy(box.y0) and page.containsy(box.y1), (name, text.get_text(), box)
            if text.get_rotation() % 90 == 0:  # the extent of slanted text is far larger than the text
                straight.append((text, box))
        for (a, box), (b, other) in itertools.combinations(straight, 2):
            width = min(box.x1, other.x1) - max(box.x0, other.x0)
            height = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert width <= 1.5 or height <= 1.5, (name, a.get_text(), b.get_text())


def test_every_axis_has_a_label_and_a_unit(drawn):
    for name, figure in drawn.items():
        for axes in (axes for axes in figure.axes if axes.axison):
            labels = [axes.get_xlabel()]
            if any(label.get_text() for label in axes.get_yticklabels()):
                labels.append(axes.get_ylabel())
            for label in labels:
                assert re.search(r"\w.*\(.+\)$", label, re.DOTALL), (name, label)


# Machado, Oliveira & Fernandes 2009, severity 1, for linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def cielab(colour, vision):
    """CIELAB (D65) of a colour as seen with that vision."""
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = to_xyz @ np.clip(np.array(VISION[vision]) @ linear, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colours, vision):
    return min(np.linalg.norm(cielab(a, vision) - cielab(b, vision)) for a, b in itertools.combinations(colours, 2))


@pytest.mark.parametrize("vision", VISION)
def test_colours_of_one_figure_are_told_apart_by_everyone(vision):
    """20 units of CIELAB is about nine just noticeable differences; the palette of regimes keeps 15."""
    lines = [colour for _, colour, _ in style.BASELINES.values()]
    assert nearest([*style.PALETTE[:2], *lines], vision) > 20
    assert nearest(style.PALETTE, vision) > 15
    assert nearest(list(style.SPLITS.values()), vision) > 20
    assert nearest(list(interval_coverage.EFFECT.values()), vision) > 20
    assert nearest({*beside.COLOURS.values(), style.GREY}, vision) > 10, "they differ in marker or dashes, too"


def test_a_colour_means_one_thing():
    fixed = [*(colour for _, colour, _ in style.BASELINES.values()), *style.SPLITS.values(), beside.RUN]
    assert len(set(fixed)) == len(fixed) and not set(fixed) & {*style.PALETTE[:4], style.GREY, style.INK}


@pytest.mark.parametrize("study", ["demo", "pbmc", "protocol"])
def test_what_is_shown_alone_looks_as_it_does_among_all_of_its_study(study, monkeypatch):
    monkeypatch.setattr(style, "_order", dict(style._order))
    figures.use(settings := load_study(study))
    regimes, sizes = list(settings.regimes), [size.name for size in settings.sizes]
    assert len(set(style.colours(regimes).values())) == len(regimes)
    assert style.colours(regimes[1:])[regimes[-1]] == style.colours(regimes)[regimes[-1]]
    assert style.markers(sizes[-1:])[sizes[-1]] == style.markers(sizes)[sizes[-1]]
    assert style.shades(sizes[-1:])[sizes[-1]] == style.shades(sizes)[sizes[-1]] != style.shades(sizes)[sizes[0]]


def test_points_lines_and_floor_are_those_given(drawn):
    for axes, regime in zip(drawn["loss"].axes, TRUTH, strict=True):
        rows = make_runs().query("regime == @regime and status == 'ok'")
        small = [y for line in axes.lines if line.get_alpha() for y in line.get_ydata()]
        assert sorted(small) == sorted(rows[METRIC].astype(float))
        pairs = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 2]
        flat = {ends[0] for ends in pairs if ends[0] == ends[1]}
        assert flat == {TRUTH[regime][4], *BASELINES[regime]["validation"].values()}
        curve = make_curves([regime])
        assert any(np.array_equal(line.get_ydata(), curve["loss"]) for line in axes.lines)
    assert "2 of 22 runs left out" in " ".join(texts(drawn["loss"]))


@pytest.mark.parametrize("name", ["learning", "matched", "budget"])
def test_labels_point_at_the_ends_of_their_lines_from_small_to_large(name, drawn):
    axes = drawn[name].axes[0]
    ends = [line.get_ydata()[-1] for line in axes.lines if len(line.get_ydata())]
    labels = {
        text.get_text(): text for text in axes.texts if text.get_text() in {*PUBLISHED, "d4", "d8", "d16", "d64", "d96"}
    }
    assert len(labels) >= 5
    for label, text in labels.items():
        _, y = (axes.transScale + axes.transLimits).inverted().transform((1, text.xy[1]))
        assert np.isclose(y, ends).any(), label
    shades = [matplotlib.colors.to_rgb(text.get_color()) for text in labels.values()]
    heights = [text.xy[1] for text in labels.values()]
    order = np.argsort(heights)[::-1]  # the largest loss is of the smallest size, drawn lightest
    assert np.all(np.diff([sum(shades[i]) for i in order]) < 0), "the larger a size, the darker"


def whiskers(axes):
    """{row: (low, high)} of the intervals in a panel."""
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2 and len(set(line.get_ydata())) == 1]
    return {line.get_ydata()[0]: tuple(line.get_xdata()) for line in lines}


def test_intervals_are_those_of_laws_json_and_what_bounds_nothing_is_left_out():
    law = make_law("data-rich")
    law["intervals"]["two_stage"] = {"alpha": [None, None], "c": [None, None]}
    figure = figures.intervals({"data-rich": {METRIC: law}}, floors={"data-rich": 0.05})
    exponent, floor = figure.axes
    assert whiskers(exponent)[0] == pytest.approx(law["intervals"]["profile_size_means"]["alpha"])
    assert whiskers(floor)[0] == pytest.approx(law["intervals"]["profile_size_means"]["c"])
    assert len(whiskers(exponent)) == 6 and floor.get_xlim()[0] < 0.05 < floor.get_xlim()[1]
    beyond = whiskers(floor)[5]
    assert beyond[0] == floor.get_xlim()[0] and "−2" in texts(figure), "an end beyond the axis is a number"
    assert [line.get_ydata() for line in floor.lines if line.get_marker() == "<"] == [[5]]
    law["intervals"] = {method: {"alpha": [None, None], "c": [None, None]} for method in law["intervals"]}
    assert isinstance(figures.intervals({"data-rich": {METRIC: law}}, {}), style.Note), "nothing but arrows"


def test_a_law_with_open_ends_or_none_is_drawn_with_its_runs():
    law = make_law("data-rich") | {"status": "floor not identified"}
    law["intervals"] = {"profile_size_means": {"alpha": [None, 0.5], "c": [None, None]}}
    figures.loss_against_parameters(make_runs(), make_curves(), BASELINES, {"data-rich": {METRIC: law}})
    figure = figures.loss_against_parameters(make_runs(("XXS", "XS"), ["data-rich"]), make_curves()[:0], {}, NO_LAW)
    assert "no law: too few sizes" in texts(figure) and figure.get_figwidth() * 25.4 == pytest.approx(85)


def test_means_gains_and_bands_are_those_given(drawn):
    view, axes = make_matched(), drawn["matched"].axes
    means = view.all_donors.groupby(["size", "cells_train"])["loss"].mean()
    lines = [line.get_ydata() for line in axes[0].lines if len(line.get_ydata()) > 2]
    assert all(any(np.allclose(line, of) for line in lines if len(line) == len(of)) for _, of in means.groupby("size"))
    assert axes[1].lines[0].get_ydata() == pytest.approx(view.gains["gain"].to_numpy())
    curve = make_curves(["data-rich"])
    edges = [band.get_paths()[0].vertices[:, 1] for band in drawn["loss"].axes[0].collections if band.get_paths()]
    assert any(min(y) == curve["lo"].min() and max(y) == curve["hi"].max() for y in edges)
    law = make_switched()[1]["updates"][METRIC]
    ends = whiskers(drawn["protocols"].axes[0])[6]
    assert ends == pytest.approx(law["intervals"]["profile_size_means"]["alpha"])


FOUND = pd.DataFrame({
    "regime": ["rich", "rich", "limited"], "metric": [METRIC, "test_nll", METRIC], "alpha": [0.5292, np.nan, -15.3],
    "alpha_low": [0.4467, np.nan, np.nan], "alpha_high": [0.6389, np.nan, -12.0], "c": [1.4702, np.nan, 0.5],
    "c_low": [1.4504, np.nan, np.nan], "c_high": [1.4890, np.nan, np.nan], "limit": np.nan, "exact_floor": np.nan,
    "gaussian": [1.5, np.nan, 1.6], "status": ["ok", "too few sizes", "floor not identified"],
})  # fmt: skip
TABLES = {
    "laws": lambda: tables.laws(FOUND),
    "forms": lambda: tables.forms(summary.comparison_table(make_switched()[1])),
    "rollout": lambda: tables.rollout(summary.rollout_table(make_switched()[1])),
    "runs": lambda: tables.runs(runs.summary(make_switched()[0])),
    "sizes": lambda: tables.sizes(sizes.table(load_study("published"))),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_for_a_manuscript_is_whole_latex_and_has_every_digit_as_csv(name, tmp_path):
    table = figures.save(TABLES[name](), tmp_path, name)
    tex, shown = (tmp_path / f"{name}.tex").read_text(), table.printed
    body = tex[tex.index(r"\midrule") : tex.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == len(shown) and (tmp_path / f"{name}.txt").read_text().strip()
    assert all(len(re.findall(r"(?<!\\)&", row)) == shown.shape[1] - 1 for row in rows)
    assert re.findall(r"(?<!\\)[%#_]", tex) == [] and tex.count("$") % 2 == 0
    assert set(re.findall(r"[^\x00-\x7f]", tex)) <= {"–"}, "LaTeX stops at other letters"
    assert max(map(len, table.content()[0]["text/plain"].splitlines())) <= 125, "it fits a laptop page"
    written = StringIO(table.raw.to_csv(index=False))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / f"{name}.csv"), pd.read_csv(written))


def test_numbers_have_the_digits_their_interval_supports():
    printed = TABLES["laws"]().printed
    assert list(printed["exponent α"]) == ["0.53 [0.45, 0.64]", "–", "−15.3 (≤ −12.0)"]
    assert list(printed["floor c"]) == ["1.470 [1.450, 1.489]", "–", "0.500 (not bounded)"]
    assert list(printed["regime"]) == ["rich", "", "limited"] and "exact floor" not in printed
    forms = {"regime": ["rich"] * 2, "form": ["power", "constant"], "delta_aicc": [0.0, 51], "loso_rmse": [0.003, 0.9]}
    printed = tables.forms(pd.DataFrame(forms | {"parameters": [3, 1]}).set_index(["regime", "form"])).printed
    assert list(printed["leave-one-size-out error"]) == ["0.00300", "fails"]
    table = pd.DataFrame({"loss": [0.15, 1200.4], "loss_se": [0.001, 2.0], "held": [True, False], "n": [7, 12_000]})
    assert tables.plain(table).printed.values.tolist() == [
        ["0.1500 ± 0.0010", "yes", "7"], ["1200.4000 ± 2.0000", "no", "12,000"],
    ]  # fmt: skip


def test_counts_are_short():
    values = {533: "533", 999_700: "1M", 19_178_497: "19.2M", 3.4e9: "3.4B", 0.01: "0.01", 0: "0"}
    assert {value: style.short(value) for value in values} == values
