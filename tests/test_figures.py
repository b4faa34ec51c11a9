"""Figures: the numbers drawn are those given, files are whole, text and colours can be told apart."""

import itertools
import re
from functools import cache
from io import StringIO
from types import SimpleNamespace as View

import interval_coverage
import numpy as np
import pandas as pd
import pytest
import test_compared
from conftest import read_kept
from matplotlib.text import Text

from lib import figures, io
from lib.figures import style, tables
from lib.fit import capacity, conditions, published, runs, summary
from lib.model import sizes
from lib.model.sizes import PUBLISHED
from lib.study import load_study

# Among them: a layout that found no room for the axes.
pytestmark = pytest.mark.filterwarnings("error::UserWarning")

METRIC = "validation_mse"
DATA = io.CODE / "data"
LADDER = pd.read_csv(DATA / "results/ladder/runs.csv")
KEPT = io.read_json(DATA / "results/ladder/laws.json")
FAILED = LADDER.head(2).assign(**{"seed": 99, METRIC: np.nan, "status": ["diverged", "interrupted"]})
RUNS = pd.concat([LADDER, LADDER.assign(regime="data-limited"), FAILED])
"""The kept study twice, with two runs that ended without a loss."""
LAWS = {regime: {METRIC: KEPT["data-rich"][METRIC]} for regime in RUNS["regime"].unique()}
CURVES = summary.curves(LAWS)
MEASURED = {"validation": {name: LADDER[name].iloc[0] for name in ("gene_mean_mse", "gaussian_mse", "bayes_mse")}}
NO_LAW = {"alpha": None, "c": None, "status": "too few sizes", "level": 0.95, "intervals": {}}


def make_histories():
    """Learning curves; one seed stopped early."""
    cells, parts = np.unique(np.geomspace(32, 240_000, 20).astype(int)), []
    for size, seed in itertools.product(PUBLISHED, (7, 8)):
        loss = 0.07 + 1.9 * PUBLISHED[size].parameters(512) ** -0.42 * (1 + 1e4 / (cells + 1e3)) + 0.001 * (seed - 7)
        part = pd.DataFrame({"size": size, "seed": seed, "cells_seen": cells, METRIC: loss})
        parts.append(part[:12] if (size, seed) == ("XS", 8) else part)
    return dict.fromkeys(("data-rich", "data-limited"), pd.concat(parts))


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
    return View(run="d64, seed 7, of counts", genes=genes, bits=bits)


@cache
def make_matched():
    few = test_compared.table(test_compared.apart, (200, 500), donors=2)
    return conditions.matched(pd.concat([test_compared.table(test_compared.apart), few]))


XL = View(sizes=[PUBLISHED["XL"]], regimes={"rich": View(genes=1024)}, training=lambda regime: View(objective="mse"))
SHARES = conditions.explained(*test_compared.splits(leak=0.1))
REALISM = pd.read_csv(DATA / "realism.csv", keep_default_na=False)
SWITCHES = read_kept("protocol")
OF_SWITCHES = [io.read_json(DATA / f"results/protocol/{name}.json") for name in ("laws", "baselines")]
UNJUDGED = {"data-rich": {METRIC: KEPT["data-rich"][METRIC] | {"status": "convergence not known"}}}
DRAWN = {
    "unjudged": lambda: figures.loss_against_parameters(LADDER, CURVES, {}, UNJUDGED),
    "loss": lambda: figures.loss_against_parameters(RUNS, CURVES, dict.fromkeys(LAWS, MEASURED), LAWS),
    "learning": lambda: figures.learning_curves(make_histories()),
    "budget": lambda: figures.budget(
        capacity.budgets(LADDER, KEPT, {"data-rich": {"validation": {"bayes_mse": 0.515}}})
    ),
    "matched": lambda: figures.matched(make_matched()),
    "held_out": lambda: figures.held_out(SHARES, conditions.leak(SHARES)),
    "genes": lambda: figures.by_gene(make_examined()),
    "bits": lambda: figures.conversions(make_examined()),
    "audit": lambda: figures.published_audit(*make_published()),
    "coverage": lambda: interval_coverage.draw(pd.read_csv(DATA / "coverage.csv")),
    "splits": lambda: figures.splits(make_cells()),
    "realism": lambda: figures.realism(REALISM, REALISM[:25].assign(source="this panel"), "data-rich"),
    "architecture": lambda: figures.architecture(XL),
    "recipe": lambda: figures.recipe(pd.read_csv(DATA / "recipe.csv")),
    "depth": lambda: figures.depth(conditions.depth(read_kept("noise"))),
    "protocols": lambda: figures.protocols(conditions.protocols(SWITCHES, *OF_SWITCHES), SWITCHES),
}


@pytest.fixture(scope="module")
def drawn():
    return {name: draw() for name, draw in DRAWN.items()}


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
    assert "68 runs of 12 sizes in 2 regimes" in drawn["loss"].caption
    assert "2 runs without a final loss" in drawn["loss"].caption


def test_what_a_study_has_no_runs_for_is_nothing_and_an_earlier_figure_of_it_goes(tmp_path, drawn):
    failed, empty = RUNS.assign(status="diverged", validation_mse=np.nan), pd.DataFrame()
    nothing = View(gains=None, sizes=[])
    shown = [figures.matched(nothing), figures.by_gene(None), figures.conversions(None), figures.budget(None),
             figures.learning_curves({}), figures.loss_against_parameters(failed, CURVES[:0], {}, LAWS),
             figures.architecture(nothing), figures.held_out(empty, empty), tables.sizes(empty), tables.plain(empty),
             tables.plain(None), tables.rollout(empty), tables.forms(empty)]  # fmt: skip
    assert shown == [None] * len(shown)
    figures.save(drawn["matched"], tmp_path, "drawn")
    assert figures.save(None, tmp_path, "drawn") is None and list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("study", ["demo", "pbmc", "protocol", "ladder"])
def test_what_is_shown_alone_looks_as_it_does_among_all_of_its_study(study, monkeypatch):
    monkeypatch.setattr(style, "_order", dict(style._order))
    figures.use(settings := load_study(study))
    regimes, sizes = list(settings.regimes), [size.name for size in settings.sizes]
    assert len(set(style.colours(regimes).values())) == len(regimes)
    assert style.colours(regimes[-1:])[regimes[-1]] == style.colours(regimes)[regimes[-1]]
    assert [style.title(regime) for regime in regimes] == (regimes if len(regimes) > 1 else [""])
    assert style.markers(sizes[-1:])[sizes[-1]] == style.markers(sizes)[sizes[-1]]
    assert style.shades(sizes[-1:])[sizes[-1]] == style.shades(sizes)[sizes[-1]] != style.shades(sizes)[sizes[0]]


def test_points_lines_band_and_floor_are_those_given(drawn):
    axes, law = drawn["loss"].axes[0], LAWS["data-rich"][METRIC]
    small = [y for line in axes.lines if line.get_alpha() for y in line.get_ydata()]
    assert sorted(small) == sorted(LADDER[METRIC])
    pairs = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 2]
    assert {ends[0] for ends in pairs if ends[0] == ends[1]} == {law["c"], *MEASURED["validation"].values()}
    curve = CURVES[CURVES["regime"] == "data-rich"]
    assert any(np.array_equal(line.get_ydata(), curve["loss"]) for line in axes.lines)
    edges = [band.get_paths()[0].vertices[:, 1] for band in axes.collections if band.get_paths()]
    assert any(min(y) == curve["lo"].min() and max(y) == curve["hi"].max() for y in edges)


def test_a_law_with_open_ends_or_none_is_drawn_with_its_runs():
    law = LAWS["data-rich"][METRIC] | {"status": "floor not identified"}
    law["intervals"] = {"profile_size_means": {"alpha": [None, 0.5], "c": [None, None]}}
    figures.loss_against_parameters(RUNS, CURVES, {}, LAWS | {"data-rich": {METRIC: law}})
    none, rows = {"data-rich": {METRIC: NO_LAW}}, LADDER[LADDER["width"] < 6]
    figure = figures.loss_against_parameters(rows, CURVES[:0], {}, none)
    shown = " ".join(text.get_text() for text, _ in visible_texts(figure))
    assert "no law: too few sizes" in shown and figure.get_figwidth() * 25.4 == pytest.approx(85)


def test_of_a_law_of_its_budget_the_limit_alone_is_named():
    law = LAWS["data-rich"][METRIC] | {"status": "budget-limited"}
    axes = figures.loss_against_parameters(LADDER, CURVES[:0], {}, {"data-rich": {METRIC: law}}).axes[0]
    levels = {line.get_ydata()[0] for line in axes.lines if len(line.get_ydata()) == 2}
    assert law["budget"]["limit"]["c"] in levels and law["c"] not in levels


def test_the_audit_and_the_curves_show_no_run_that_stopped_early_as_one_that_ended():
    rows, curves, refits = make_published()
    failed = rows.head(1).assign(status="diverged", validation_mse=50.0)
    drawn = figures.published_audit(pd.concat([rows, failed]), curves, refits)
    assert drawn.axes[0].get_ylim()[1] < 10 and drawn.caption.startswith(f"{len(rows)} runs")
    history = make_histories()["data-rich"]
    stopped = history[(history["size"] != "XL") | (history["cells_seen"] < 1000)]  # both of its seeds
    crosses = [line for line in figures.learning_curves({"r": stopped}).axes[0].lines if line.get_marker() == "x"]
    assert len(crosses) == 3


def test_the_sizes_are_drawn_above_a_floor_that_can_be_read_or_not_at_all():
    laws, table = OF_SWITCHES[0], SWITCHES
    regime, rows = summary.closeness(table, laws)
    assert laws[regime][METRIC]["c"] > 0 and rows["excess"].max() < 1
    assert summary.closeness(table, {"published": laws["published"]}) is None  # its floor lies below zero


def test_depths_are_drawn_in_percent_of_what_their_runs_explain(drawn):
    view = conditions.depth(read_kept("noise"))
    found = [line.get_ydata() for line in drawn["depth"].axes[1].lines if line.get_marker() == "o"]
    assert sorted(np.concatenate(found)) == pytest.approx(sorted(100 * view.runs["explained"]))


def test_means_and_gains_are_those_given(drawn):
    view, axes = make_matched(), drawn["matched"].axes
    means = view.all_donors.groupby(["size", "cells_train"])["loss"].mean()
    lines = [line.get_ydata() for line in axes[0].lines if len(line.get_ydata()) > 2]
    assert all(any(np.allclose(line, of) for line in lines if len(line) == len(of)) for _, of in means.groupby("size"))
    assert axes[1].lines[0].get_ydata() == pytest.approx(view.gains["gain"].to_numpy())


FOUND = pd.DataFrame({
    "regime": ["rich", "rich", "limited"], "metric": [METRIC, "test_nll", METRIC], "alpha": [0.5292, np.nan, -15.3],
    "alpha_low": [0.4467, np.nan, np.nan], "alpha_high": [0.6389, np.nan, -12.0], "c": [1.4702, np.nan, 0.5],
    "c_low": [1.4504, np.nan, np.nan], "c_high": [1.4890, np.nan, np.nan], "limit": np.nan, "exact_floor": np.nan,
    "baseline": [1.5, np.nan, 1.6], "largest": [1.48, np.nan, 1.55],
    "status": ["ok", "too few sizes", "floor not identified"],
})  # fmt: skip
TABLES = {
    "laws": lambda: tables.laws(FOUND),
    "intervals": lambda: tables.plain(summary.intervals_table(KEPT), caption="By method"),
    "forms": lambda: tables.forms(summary.comparison_table(KEPT)),
    "rollout": lambda: tables.rollout(summary.rollout_table(KEPT)),
    "runs": lambda: tables.runs(runs.summary(LADDER)),
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
    assert re.findall(r"(?<!\\)[%#_^]", tex) == [] and tex.count("$") % 2 == 0
    assert set(re.findall(r"[^\x00-\x7f]", tex)) <= {"–"}, "LaTeX stops at other letters"
    assert max(map(len, table.content()[0]["text/plain"].splitlines())) <= 125, "it fits a laptop page"
    written = StringIO(table.raw.to_csv(index=False))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / f"{name}.csv"), pd.read_csv(written))


def test_numbers_have_the_digits_their_interval_supports():
    printed = TABLES["laws"]().printed
    assert list(printed["exponent α"]) == ["0.53 [0.45, 0.64]", "–", "−15.3 (≤ −12.0)"]
    assert list(printed["floor c"]) == ["1.470 [1.450, 1.489]", "–", "0.500"]
    assert list(printed["regime"]) == ["rich", "", "limited"] and "exact floor" not in printed
    table = pd.DataFrame({"loss": [0.15, 1200.4], "loss_se": [0.001, 2.0], "held": [True, False], "n": [477.3, 12_000]})
    assert tables.plain(table).printed.values.tolist() == [
        ["0.1500 ± 0.0010", "yes", "477"], ["1200.4000 ± 2.0000", "no", "12,000"],
    ]  # fmt: skip


def test_counts_are_short():
    values = {533: "533", 999_700: "1M", 19_178_497: "19.2M", 3.4e9: "3.4B", 0.01: "0.01", 0: "0"}
    assert {value: style.short(value) for value in values} == values
