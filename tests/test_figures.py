"""Figures: same bytes again, fonts that travel, text that can be read, colours that everyone can tell apart."""

import itertools
import os
import re
import subprocess
import sys
from io import BytesIO, StringIO
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import test_compared as compared
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from lib import figures, io
from lib.data import realism
from lib.figures import look
from lib.fit import conditions, runs, summary
from lib.model.sizes import PUBLISHED
from lib.study import load_study
from lib.train import examine, rates

# Among them: a layout that found no room for the axes.
pytestmark = pytest.mark.filterwarnings("error::UserWarning")

METRIC = "validation_mse"
TRUTH = {"data-rich": (512, 180_000, 1.9, 0.42, 0.0712), "data-limited": (1024, 9_000, 0.9, 0.25, 0.093)}


def make_runs(sizes=tuple(PUBLISHED), regimes=tuple(TRUTH), seeds=(7, 8, 9)):
    """A table of runs.csv in which one run diverged and one was interrupted."""
    rng, rows = np.random.default_rng(0), []
    for regime, size, seed in itertools.product(regimes, sizes, seeds):
        genes, cells, a, alpha, c = TRUTH[regime]
        parameters = PUBLISHED[size].parameters(genes)
        loss = c + a * parameters**-alpha + rng.normal(0, 0.002)
        rows.append({
            "regime": regime, "size": size, "seed": seed, "parameters": parameters, "genes": genes,
            "cells_train": cells, "cells_seen": 240_000, "validation_mse": loss, "test_mse": loss,
            "gene_mean_mse": 0.182, "status": "ok",
        })  # fmt: skip
    runs = pd.DataFrame(rows)
    runs.loc[1, ["status", METRIC]] = ["diverged", np.nan]
    return pd.concat(
        [runs, pd.DataFrame([{"regime": regimes[0], "size": sizes[0], "seed": 10, "status": "interrupted"}])]
    )


def make_curves(regimes=tuple(TRUTH)):
    parameters = np.geomspace(300, 5e8, 60)
    loss = {regime: TRUTH[regime][4] + TRUTH[regime][2] * parameters ** -TRUTH[regime][3] for regime in regimes}
    return pd.concat(
        pd.DataFrame({"regime": regime, "parameters": parameters, "loss": y, "lo": y - 0.004, "hi": y + 0.004})
        for regime, y in loss.items()
    )


def make_law(regime):
    alpha, c = TRUTH[regime][3:]
    grid, floors = np.linspace(0.4, 2, 50) * alpha, np.linspace(0.9, 1.1, 50) * c
    between = {"alpha": [0.8 * alpha, 1.3 * alpha], "c": [0.97 * c, 1.02 * c]}
    methods = ("profile_size_means", "profile_runs", "bootstrap_runs", "bootstrap_runs_bca", "bootstrap_within_sizes")
    wide = {"bootstrap_sizes": {"alpha": [0.1 * alpha, 9 * alpha], "c": [-2.0, 1.1 * c]},
            "two_stage": {"alpha": [0.5 * alpha, None], "c": [None, 1.1 * c]}}  # fmt: skip
    return {
        "alpha": alpha, "c": c, "rss": 0.004, "status": "ok", "n_sizes": 7, "n_runs": 21, "level": 0.95,
        "intervals": dict.fromkeys(methods, between) | wide,
        "profile": {"c": floors.tolist(), "relative_rss": (1 + 900 * (floors / c - 1) ** 2).tolist(), "threshold": 2.1,
                    "alpha_grid": grid.tolist(), "alpha_relative_rss": (1 + 9 * (grid / alpha - 1) ** 2).tolist()},
    }  # fmt: skip


def make_laws(regimes=tuple(TRUTH)):
    return {regime: {METRIC: make_law(regime)} for regime in regimes}


NO_LAW = {"alpha": None, "c": None, "status": "too few sizes", "level": 0.95, "intervals": {}, "profile": None}
BASELINES = {
    regime: {"validation": {"gene_mean_mse": 0.182, "gaussian_mse": 0.104, "bayes_mse": 0.0705}} for regime in TRUTH
}


def make_histories(regimes=tuple(TRUTH), sizes=tuple(PUBLISHED)):
    """Learning curves; one seed stopped early."""
    cells, found = np.unique(np.geomspace(32, 240_000, 20).astype(int)), {}
    for regime in regimes:
        parts = []
        for size, seed in itertools.product(sizes, (7, 8)):
            parameters = PUBLISHED[size].parameters(512)
            loss = 0.07 + 1.9 * parameters**-0.42 * (1 + 1e4 / (cells + 1e3)) + 0.001 * (seed - 7)
            kept = slice(0, 12) if (size, seed) == ("XS", 8) else slice(None)
            parts.append(pd.DataFrame({"size": size, "seed": seed, "cells_seen": cells, "validation_mse": loss})[kept])
        found[regime] = pd.concat(parts)
    return found


def make_sizes():
    return pd.DataFrame(
        {"size": s.name, "genes": genes, "parameters": s.parameters(genes), "flops_per_cell": s.forward_flops(genes)}
        for genes in (512, 1024)
        for s in PUBLISHED.values()
    )


def make_panel():
    rng = np.random.default_rng(0)
    mean = rng.lognormal(-1, 1.5, 300)
    genes = pd.DataFrame({"mean": mean, "variance": mean + 0.5 * mean**2, "zeros": np.exp(-0.8 * mean)})
    cells = pd.DataFrame({"total_counts": rng.lognormal(8, 0.5, 800), "donor_id": rng.integers(0, 12, 800)})
    split = np.array(["train"] * 8 + ["validation"] * 2 + ["test"] * 2)
    return cells.assign(split=split[cells["donor_id"]], donor_id=[f"donor {n}" for n in cells["donor_id"]]), genes


def make_criterion():
    """A criterion that rises to the end of its grid, as the published one does."""
    c = np.linspace(0, 0.99 * 0.0712, 300)
    return pd.DataFrame({"regime": "data-rich", "c": c, "r2": 0.66 + 0.2 / (1 + 8 * (c[-1] - c)), "rss": 0.3 - 3 * c})


def make_audit():
    runs = make_runs(list(PUBLISHED)[:6], ["data-rich"]).query("status == 'ok'").reset_index(drop=True)
    runs = runs.assign(final_val_mse=runs[METRIC].astype(float) + 0.01, evaluations=np.where(runs.index == 15, 2, 61))
    curve = make_curves(["data-rich"]).drop(columns="regime").assign(fit="ours")
    refits = pd.DataFrame({
        "fit": ["published method", "c at the smallest loss", "least squares", "without XXS"],
        "alpha": [0.27, 0.49, 0.53, 0.42], "alpha_low": [np.nan, np.nan, 0.45, 0.09],
        "alpha_high": [np.nan, np.nan, 0.64, None], "status": [np.nan, np.nan, "ok", "ok"],
    })  # fmt: skip
    return runs, pd.concat([curve, curve.assign(fit="published", lo=np.nan, hi=np.nan)]), refits


def make_coverage():
    methods = ("profile_size_means", "profile_runs", "bootstrap_runs", "bootstrap_sizes", "two_stage")
    rows = itertools.product(methods, ("floor", "no floor"), ((7, 3), (7, 7), (12, 3)), (0.0, 0.012))
    return pd.DataFrame(
        {"method": method, "truth": truth, "sizes": sizes, "seeds": seeds, "size_effect": effect, "studies": 300,
         "level": 0.95, "alpha": 0.95 - 10 * effect * ("runs" in method), "c": 1.0 if method == "two_stage" else 0.94}
        for method, truth, (sizes, seeds), effect in rows
    )  # fmt: skip


def make_plan():
    plan = SimpleNamespace(parameters=1e6, cells=2e4, limited_by="data", level=0.95, reach=10.0)
    gains = pd.DataFrame({"of": ["parameters", "parameters", "cells", "cells"], "factor": [2, 10, 2, 10]})
    gains = gains.assign(
        gain=[0.001, 0.003, 0.006, np.nan], low=[0.0, 0.001, 0.005, np.nan], high=[0.002, 0.004, 0.007, np.nan]
    )
    grid = pd.DataFrame(itertools.product([1e3, 1e4, 1e5], [1e3, 1e4, 1e5]), columns=["parameters", "cells_train"])
    cells = np.geomspace(200, 1e6, 12)
    frontier = pd.DataFrame({"cells": cells, "parameters": 3 * cells, "low": 2 * cells, "high": 5 * cells})
    frontier.loc[0, ["parameters", "low"]] = np.nan
    frontier.loc[11, "high"] = np.inf
    return plan, gains, frontier, grid


def make_genes():
    rng = np.random.default_rng(3)
    mean = rng.lognormal(-2, 1, 40)
    genes = pd.DataFrame({"mean": mean, "variance": mean * 0.9, "residual": mean * 0.7, "floor": mean * 0.6})
    return genes.assign(
        share=genes["residual"] / genes["residual"].sum(), floor_share=genes["floor"] / genes["floor"].sum()
    )


def make_calibration():
    bins = {"bin": np.arange(20) / 20, "density": 1 + 0.1 * np.cos(np.arange(20)), "low": 0.95, "high": 1.05}
    shown = [("run", genes) for genes in ("all", "low", "middle", "high")] + [("exact", "all")]
    return pd.concat([pd.DataFrame(bins).assign(predictor=name, genes=genes) for name, genes in shown])


def make_bits():
    rules = list(examine.RULES)
    rows = [("run", rule, 0.7 + 0.02 * n) for n, rule in enumerate(rules[:6])]
    rows += [("exact posterior", rule, 0.6 + 0.02 * n) for n, rule in enumerate(rules)]
    table = pd.DataFrame(rows, columns=["predictor", "rule", "bits"])
    return table.assign(rule=pd.Categorical(table["rule"], rules))


def make_sides():
    rows, known = compared.splits(leak=0.1)
    shares = conditions.explained(rows, known)
    return shares, conditions.leak(shares), rows["regime"].iloc[0]


def make_switches():
    regimes = ["published", "split", "library-size", "initialisation", "learning-rate", "updates", "evaluation"]
    law = {"alpha": 0.2, "alpha_low": 0.1, "alpha_high": np.nan, "relative_c": 0.6, "relative_c_low": 0.5}
    law |= {"relative_c_high": 0.7, "status": "ok"}
    rows = pd.concat([compared.table(compared.apart, (20000,)).assign(regime=regime) for regime in regimes])
    return pd.DataFrame([law | {"regime": regime} for regime in regimes]), rows


def make_budgets():
    seen, floors = [24_000, 96_000, 384_000], np.array([0.62, 0.55, 0.52])
    rows = pd.DataFrame([
        {"size": size, "parameters": parameters, "cells_seen": cells, "loss": c + 0.5 * parameters**-0.3}
        for cells, c in zip(seen, floors, strict=True) for size, parameters in compared.SIZES.items()
    ])  # fmt: skip
    ends = {"c_low": [None, 0.54, 0.51], "c_high": floors + 0.01}
    table = pd.DataFrame({"cells_seen": seen, "c": floors, **ends, "largest": floors + 0.03})
    joint = {"value": 0.5, "low": 0.48, "high": 0.51, "status": "ok"}
    return rows, table.assign(status=["floor not identified", "ok", "ok"]), joint, 0.49


DRAWN = {
    "budget": lambda: figures.budget(*make_budgets()),
    "matched": lambda: figures.matched(**vars(conditions.matched(compared.table(compared.apart)))),
    "held_out": lambda: figures.held_out(*make_sides()),
    "protocols": lambda: figures.protocols(*make_switches()),
    "replicates": lambda: figures.replicates(summary.read_replicates()),
    "genes": lambda: figures.by_gene(make_genes(), "d64, seed 7, of counts"),
    "calibration": lambda: figures.calibration(make_calibration()),
    "bits": lambda: figures.conversions(make_bits()),
    "loss": lambda: figures.loss_against_parameters(make_runs(), make_curves(), BASELINES, make_laws()),
    "learning": lambda: figures.learning_curves(make_histories()),
    "intervals": lambda: figures.intervals(make_laws(), floors={"data-rich": 0.0705}),
    "profile": lambda: figures.profile(make_laws()),
    "cells": lambda: figures.cells_per_parameter(make_runs()),
    "architecture": lambda: figures.architecture(PUBLISHED["XL"], 1024),
    "sizes": lambda: figures.sizes(make_sizes()),
    "panel": lambda: figures.panel_statistics(*make_panel(), "data-limited"),
    "splits": lambda: figures.splits(make_panel()[0]),
    "realism": lambda: figures.realism(realism.compared(), realism.compared().tail(25), "data-rich"),
    "criterion": lambda: figures.criterion_curve(make_criterion(), make_laws()),
    "audit": lambda: figures.published_audit(*make_audit()),
    "coverage": lambda: figures.coverage(make_coverage()),
    "planner": lambda: figures.planner(*make_plan()),
    "rates": lambda: figures.learning_rates(rates.read(), rates.trial(rates.read(), *rates.rule(rates.read()))),
}
SCRIPT = """
import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])
import test_figures as t
t.write(Path(sys.argv[2]), {name: draw() for name, draw in t.DRAWN.items()}, ("svg",))
"""


def write(folder, drawn, kinds=("pdf", "svg")):
    """All figures as vectors, and one in every format, the small PNG of a notebook among them."""
    for name, figure in drawn.items():
        figures.save(figure, folder, name, ("pdf", "svg", "png") if name == "loss" else kinds)
    (folder / "loss.notebook.png").write_bytes(drawn["loss"]._repr_png_()[0])


@pytest.fixture(scope="module")
def drawn():
    return {name: draw() for name, draw in DRAWN.items()}


@pytest.fixture(scope="module")
def folder(drawn, tmp_path_factory):
    place = tmp_path_factory.mktemp("figures")
    write(place, drawn)
    return place


def test_another_process_on_another_day_writes_the_same_bytes(folder, tmp_path):
    elsewhere = os.environ | {"PYTHONHASHSEED": "1", "SOURCE_DATE_EPOCH": "86400", "TZ": "Pacific/Auckland"}
    script = [sys.executable, "-c", SCRIPT, os.path.dirname(__file__), str(tmp_path)]
    subprocess.run(script, check=True, env=elsewhere)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2 * len(DRAWN) + 3, "of every figure SVG and caption, of one also PDF and two PNG"
    assert [name for name in names if (folder / name).read_bytes() != (tmp_path / name).read_bytes()] == []


def test_showing_a_figure_first_does_not_change_what_is_saved(folder, tmp_path):
    figure = DRAWN["loss"]()
    for kind in ("png", "pdf"):
        figure.savefig(BytesIO(), format=kind)
    assert figures.save(figure, tmp_path, "loss") is figure
    for kind in ("pdf", "svg", "png"):
        assert (tmp_path / f"loss.{kind}").read_bytes() == (folder / f"loss.{kind}").read_bytes()


def test_pdf_fonts_are_embedded_truetype(folder):
    for path in folder.glob("*.pdf"):
        objects = re.findall(rb"\d+ 0 obj\n(.*?)\nendobj", path.read_bytes(), re.DOTALL)
        described = [found for found in objects if re.search(rb"/Type /FontDescriptor\b", found)]
        fonts = [found for found in objects if re.search(rb"/Type /Font\b", found)]
        assert fonts and described, path.name
        assert all(b"/FontFile2 " in found for found in described), f"{path.name}: a font is not embedded"
        kinds = {re.search(rb"/Subtype /(\w+)", found)[1] for found in fonts}
        assert kinds <= {b"TrueType", b"Type0", b"CIDFontType2"}, f"{path.name}: {kinds}"
        whole = [found for found in fonts if b"/Subtype /Type0" not in found]  # of which Type0 fonts are composed
        assert all(b"/FontDescriptor " in found for found in whole), path.name


def test_every_figure_has_a_caption_that_is_written_beside_it_with_its_printed_width(folder, drawn):
    for name, figure in drawn.items():
        caption, blank, width = (folder / f"{name}.txt").read_text().splitlines()
        assert caption == figure.caption.replace("**", "") and len(caption) > 60, name
        assert not blank and f"{round(figure.get_figwidth() * 25.4)} mm wide" in width


def test_the_numbers_in_a_caption_are_those_of_the_data():
    few, baselines = make_runs(("XXS", "XS"), ["data-limited"], (7, 8)), {"data-limited": BASELINES["data-limited"]}
    said = figures.loss_against_parameters(few, make_curves(["data-limited"]), baselines, make_laws()).caption
    assert "3 runs of 2 sizes." in said, "four, of which one diverged"
    assert "2 runs without a final loss left out" in said and "gene mean, conditional Gaussian, exact floor" in said
    whole = figures.loss_against_parameters(make_runs(), make_curves(), {}, make_laws()).caption
    assert "41 runs of 7 sizes in 2 regimes" in whole and "need no training" not in whole
    wide = make_laws() | {"data-rich": {METRIC: make_law("data-rich") | {"n_runs": 5, "n_sizes": 4}}}
    assert "data-rich (5 runs of 4 sizes) and data-limited (21 runs of 7 sizes)" in figures.intervals(wide).caption


def test_a_notebook_shows_the_caption_under_the_figure(drawn, monkeypatch):
    seen = []
    monkeypatch.setattr("IPython.display.display", lambda what, **how: seen.append((what, how)))
    drawn["sizes"]._ipython_display_()
    (image, how), (said, marked) = seen
    assert how["metadata"]["image/png"]["alt"] == drawn["sizes"].caption and image["image/png"]
    assert drawn["sizes"].caption in said.data and marked["metadata"] == {"caption": True}


def test_a_figure_that_a_study_no_longer_has_does_not_stay_behind(tmp_path, drawn):
    figures.save(drawn["matched"], tmp_path, "matched", ("pdf", "svg"))
    figures.save(figures.matched(sentence="no three numbers of cells"), tmp_path, "matched")
    assert list(tmp_path.iterdir()) == []


def test_svg_text_is_outlines_and_undated(folder):
    for path in folder.glob("*.svg"):
        content = path.read_text()
        assert "<text" not in content and "font-family" not in content, path.name
        assert "dc:date" not in content and "matplotlib v" not in content, path.name


def test_a_page_is_as_wide_as_a_column(folder, drawn):
    for name, figure in drawn.items():
        width = round(figure.get_figwidth() * 25.4, 6)
        box = re.search(rb"/MediaBox \[ *0 0 ([\d.]+)", (folder / f"{name}.pdf").read_bytes())
        assert width in (85, 175)
        assert float(box[1]) * 25.4 / 72 == pytest.approx(width, abs=0.01)


def test_a_notebook_shows_a_small_sharp_png(folder, drawn):
    content, shown = drawn["learning"]._repr_png_()
    image = Image.open(BytesIO(content))
    assert len(content) < 60_000
    assert image.width > 1.5 * shown["width"]
    assert shown["width"] / shown["height"] == pytest.approx(image.width / image.height, rel=0.01)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    figure = DRAWN["sizes"]()
    figures.save(figure, tmp_path, "sizes", ["pdf"])
    before = (tmp_path / "sizes.pdf").read_bytes()

    def full_disk(self, path, **_):
        path.write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(look.Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="no space"):
        figures.save(figure, tmp_path, "sizes", ["pdf"])
    assert {path.name for path in tmp_path.iterdir()} == {"sizes.pdf", "sizes.txt"}
    assert (tmp_path / "sizes.pdf").read_bytes() == before


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
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]
    return [(text, Text.get_window_extent(text)) for text in texts]


def test_no_text_is_smaller_than_a_reader_can_read(drawn):
    for name, figure in drawn.items():
        for text, _ in visible_texts(figure):
            assert text.get_fontsize() >= look.SMALL, (name, text.get_text())
            assert "$" not in text.get_text(), f"{name}: superscripts of mathematics are set too small"


def test_no_text_leaves_the_page(drawn):
    for name, figure in drawn.items():
        for text, box in visible_texts(figure):
            page = figure.bbox.padded(0.5)
            assert page.containsx(box.x0) and page.containsx(box.x1), (name, text.get_text(), box)
            assert page.containsy(box.y0) and page.containsy(box.y1), (name, text.get_text(), box)


def test_the_layout_holds_at_the_resolution_of_every_format():
    figure = DRAWN["bits"]()  # of long labels
    widths = []
    for dpi in (72, 200, 300):  # of vectors, of notebooks, of PNG files
        figure.set_dpi(dpi)
        widths.append([box.width / figure.bbox.width for _, box in visible_texts(figure)])
    assert np.ptp(widths, axis=0).max() < 0.005


def test_no_two_labels_overlap(drawn):
    for name, figure in drawn.items():
        # The extent of slanted text is far larger than the text.
        straight = [(text, box) for text, box in visible_texts(figure) if text.get_rotation() % 90 == 0]
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
def test_colours_are_told_apart(vision):
    """20 units of CIELAB is about nine just noticeable differences; the palette of regimes keeps 15."""
    lines = [colour for _, colour, _ in look.BASELINES.values()]
    assert nearest([*look.PALETTE[:2], *lines], vision) > 20
    assert nearest(look.PALETTE, vision) > 15
    assert nearest(list(figures.inputs.SPLITS.values()), vision) > 20
    assert nearest(list(figures.outlook.EFFECT.values()), vision) > 20


def drawn_styles(figure):
    """(colour, marker, dashes, open) of every line in the keys, and of every line of markers in the axes."""
    lines = [line for legend in figure.legends for line in legend.findobj(Line2D)]
    lines += [line for axes in figure.axes for line in axes.lines if line.get_marker() not in NO_MARKER]
    for line in lines:
        marker = "" if line.get_marker() in NO_MARKER else str(line.get_marker())
        dashes = "" if marker else str(line.get_linestyle()) + str(line._unscaled_dash_pattern)
        face = marker and matplotlib.colors.to_hex(line.get_markerfacecolor())
        yield matplotlib.colors.to_hex(line.get_color()), marker, dashes, face == "#ffffff"


NO_MARKER = ("None", "", " ", None)


@pytest.mark.parametrize("vision", VISION)
def test_what_one_figure_shows_differs_in_marker_or_dashes_or_in_a_colour_that_everyone_can_tell(drawn, vision):
    for name, figure in drawn.items():
        for one, other in itertools.combinations(sorted(set(drawn_styles(figure))), 2):
            if one[1:] == other[1:]:
                assert nearest([one[0], other[0]], vision) > 10, (name, one, other)


@pytest.mark.parametrize("study", ["demo", "pbmc", "protocol"])
def test_the_regimes_of_a_shipped_study_have_colours_of_the_palette(study, monkeypatch):
    monkeypatch.setattr(look, "_order", dict(look._order))
    regimes = load_study(study).regimes
    figures.use(regimes, ["XXS"])
    found = look.colours(regimes).values()
    assert len(set(found)) == len(regimes) and set(found) <= set(look.PALETTE)


def test_a_regime_keeps_its_colour_when_shown_alone():
    both = look.colours(["data-rich", "data-limited"])
    assert look.colours(["data-limited"])["data-limited"] == both["data-limited"] != both["data-rich"]


def test_a_study_of_its_own_keeps_colours_and_markers(monkeypatch):
    monkeypatch.setattr(look, "_order", dict(look._order))
    figures.use(["kidney", "liver", "skin"], ["d8", "d16", "d32"])
    assert look.colours(["skin"])["skin"] == look.colours(["kidney", "liver", "skin"])["skin"]
    assert look.markers(["d32"])["d32"] == look.markers(["d8", "d16", "d32"])["d32"]
    assert len(set(look.shades(["d8", "d16", "d32"]).values())) == 3


def test_points_lines_and_floor_are_those_given():
    figure = figures.loss_against_parameters(make_runs(), make_curves(), BASELINES, make_laws())
    for axes, regime in zip(figure.axes, TRUTH, strict=True):
        runs = make_runs().query("regime == @regime and status == 'ok'")
        small = [y for line in axes.lines if line.get_alpha() for y in line.get_ydata()]
        assert sorted(small) == sorted(runs[METRIC].astype(float))
        pairs = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 2]
        flat = {ends[0] for ends in pairs if ends[0] == ends[1]}
        assert flat == {TRUTH[regime][4], *BASELINES[regime]["validation"].values()}
        curve = make_curves([regime])
        assert any(np.array_equal(line.get_ydata(), curve["loss"]) for line in axes.lines)
    assert "2 of 22 runs left out" in " ".join(text.get_text() for text, _ in visible_texts(figure))


@pytest.mark.parametrize("c", [None, -15.3, 0.071])
def test_the_criterion_is_marked_where_it_is_highest(c):
    curve = make_criterion().assign(r2=lambda t: -((t["c"] - t["c"][47]) ** 2))
    law = {"c": c, "rss": None if c is None else 0.01, "intervals": {"profile_size_means": {"c": [None, None]}}}
    texts = [text.get_text() for text, _ in visible_texts(figures.criterion_curve(curve, {"data-rich": {METRIC: law}}))]
    assert any("number 48 has the largest" in text for text in texts)


def test_a_gain_beyond_reach_is_refused_in_words():
    texts = [text.get_text() for text, _ in visible_texts(figures.planner(*make_plan()))]
    assert sum(text.startswith("not said") for text in texts) == 1


@pytest.mark.parametrize(
    "name", ["planner", "matched", "held_out", "protocols", "by_gene", "calibration", "conversions"]
)
def test_without_runs_to_draw_one_line_says_why(name):
    data, _ = getattr(figures, name)(sentence="three numbers of cells").content()
    assert data["text/markdown"] == "three numbers of cells" and "image/png" not in data


TABLES = {
    "laws": lambda: figures.tables.laws(summary.laws_table(real_laws(), {})),
    "forms": lambda: figures.tables.forms(summary.comparison_table(real_laws())),
    "rollout": lambda: figures.tables.rollout(summary.rollout_table(real_laws())),
    "runs": lambda: figures.tables.runs(runs.summary(pd.read_csv(KEPT / "runs.csv"))),
    "sizes": lambda: figures.tables.sizes(make_sizes().assign(regime="data-rich", d=1, layers=1, heads=1, ff_mult=4)),
}
KEPT = io.CODE / "data" / "results" / "pbmc"


def real_laws():
    return io.read_json(KEPT / "laws.json")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    place = tmp_path_factory.mktemp("tables")
    for name, table in TABLES.items():
        figures.save(table(), place, name)
    return place


@pytest.mark.parametrize("name", TABLES)
def test_a_table_for_a_manuscript_is_whole_latex_and_has_every_digit_as_csv(tables, name):
    tex, shown = (tables / f"{name}.tex").read_text(), TABLES[name]().printed
    body = tex[tex.index(r"\midrule") : tex.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == len(shown)
    assert all(len(re.findall(r"(?<!\\)&", row)) == shown.shape[1] - 1 for row in rows)
    assert re.findall(r"(?<!\\)[%#_]", tex) == [] and tex.count("$") % 2 == 0
    assert set(re.findall(r"[^\x00-\x7f]", tex)) <= {"–"}, "LaTeX stops at other letters"
    assert (tables / f"{name}.txt").read_text().strip()
    pd.testing.assert_frame_equal(
        pd.read_csv(tables / f"{name}.csv"), pd.read_csv(StringIO(TABLES[name]().raw.to_csv(index=False)))
    )


def test_a_printed_law_has_the_digits_that_its_interval_supports():
    table = summary.laws_table({"r": {"test_random_mse": real_laws()["data-rich"]["test_random_mse"]}}, {})
    printed = figures.tables.laws(table).printed.loc[0]
    assert printed["exponent α"] == look.rounded(table["alpha"][0], list(table.loc[0, ["alpha_low", "alpha_high"]]))
    assert printed["exponent α"].count("0.") == 3 and "[" in printed["floor c"]


def test_tables_fit_a_laptop_page(tables):
    """8 columns and 110 letters are about 880 pixels at the notebook's font."""
    for name, table in TABLES.items():
        assert max(map(len, table().content()[0]["text/plain"].splitlines())) <= 125, name


def test_one_regime_and_three_sizes_are_enough():
    sizes = ("XXS", "TINY", "XS")
    runs = make_runs(sizes, ["data-limited"], (7, 8))
    figure = figures.loss_against_parameters(runs, make_curves(["data-limited"]), {}, make_laws(["data-limited"]))
    assert figure.get_figwidth() * 25.4 == pytest.approx(85)
    figures.learning_curves(make_histories(["data-limited"], sizes))
    figures.cells_per_parameter(runs)


@pytest.mark.parametrize("draw", [figures.intervals, figures.profile])
def test_a_study_without_any_law_is_drawn_and_says_so(draw):
    texts = [text.get_text() for text, _ in visible_texts(draw({"data-rich": {METRIC: NO_LAW}}))]
    assert any(text.startswith("no law") for text in texts)


def test_too_few_sizes_are_named_where_the_law_would_stand():
    laws, empty = {"data-rich": {METRIC: NO_LAW}}, make_curves().iloc[:0]
    figure = figures.loss_against_parameters(make_runs(("XXS", "XS")), empty, {}, laws)
    assert "no law: too few sizes" in [text.get_text() for text, _ in visible_texts(figure)]


def test_an_exact_floor_outside_every_interval_is_still_in_view():
    axes = figures.intervals(make_laws(), floors={"data-rich": 0.05}).axes[1]
    assert axes.get_xlim()[0] < 0.05 < axes.get_xlim()[1]


def test_a_law_without_any_finite_interval_is_drawn():
    law = make_law("data-rich") | {"status": "floor not identified"}
    law["intervals"] = {method: {"alpha": [None, None], "c": [None, None]} for method in law["intervals"]}
    laws = {"data-rich": {METRIC: law}}
    arrows = [line for axes in figures.intervals(laws).axes for line in axes.lines if line.get_marker() in ("<", ">")]
    assert len(arrows) == 28, "seven methods, two numbers, two ends"
    figures.loss_against_parameters(make_runs(), make_curves(), BASELINES, laws)


def test_curves_of_runs_that_all_diverged_are_an_empty_panel():
    history = make_histories(["data-rich"])["data-rich"].assign(validation_mse=np.nan)
    figures.learning_curves({"data-rich": history})


def test_no_run_with_a_loss_is_an_empty_panel_rather_than_an_error():
    runs = make_runs().assign(status="diverged", validation_mse=np.nan)
    figures.loss_against_parameters(runs, make_curves().iloc[:0], {})


@given(st.lists(st.tuples(st.floats(-1, 2), st.floats(0.01, 0.1)), min_size=1, max_size=9))
def test_spread_labels_neither_overlap_nor_leave_the_axes(labels):
    wanted, heights = sorted(y for y, _ in labels), [height for _, height in labels]
    middles = look.spread(wanted, heights)
    ends = [(middle - height / 2, middle + height / 2) for middle, height in zip(middles, heights, strict=True)]
    assert all(below[1] <= above[0] + 1e-9 for below, above in itertools.pairwise(ends))
    assert ends[0][0] >= -1e-9 and ends[-1][1] <= 1 + 1e-9


def test_labels_with_room_stay_where_they_belong():
    assert look.spread([0.2, 0.5, 0.8], [0.1] * 3) == pytest.approx([0.2, 0.5, 0.8])
    assert look.spread([0.5, 0.5], [0.1] * 2) == pytest.approx([0.45, 0.55])


@pytest.mark.parametrize(
    ("value", "interval", "said"),
    [
        (1.4702, [1.4504, 1.4890], "1.470 [1.450, 1.489]"),
        (0.5292, [0.4467, 0.6389], "0.53 [0.45, 0.64]"),
        (-15.3, [None, -12.0], "−15.3 (≤ −12.0)"),
        (0.5, [None, None], "0.500 (not bounded)"),
        (0.5, None, "0.500 (not bounded)"),
    ],
)
def test_numbers_have_the_digits_their_interval_supports(value, interval, said):
    assert look.rounded(value, interval) == said


@pytest.mark.parametrize(
    ("value", "said"), [(533, "533"), (999_700, "1M"), (19_178_497, "19.2M"), (3.4e9, "3.4B"), (0.01, "0.01"), (0, "0")]
)
def test_counts_are_short(value, said):
    assert look.short(value) == said
