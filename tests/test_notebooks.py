"""The whole study through papermill and Snakemake, as a user runs it, on a demo of seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import STUDY

from lib import io
from lib.fit import runs

NOTEBOOKS = io.CODE / "notebooks"


def command(project, *words, cwd=None):
    environment = os.environ | {"SCALING_ROOT": str(project)}
    return subprocess.run(words, env=environment, cwd=cwd, capture_output=True, text=True, timeout=900)


def papermill(project, notebook, cwd, *parameters):
    words = [sys.executable, "-m", "papermill", "--no-progress-bar", "--log-level", "ERROR"]
    return command(project, *words, str(NOTEBOOKS / notebook), str(cwd / notebook), *parameters, cwd=cwd)


@pytest.fixture
def project(executed):
    return executed


def outputs(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


def test_one_command_says_where_the_figures_are_and_what_the_answer_is(project):
    said = (project / "said.txt").read_text()
    assert "figures/demo" in said
    for regime in STUDY["regimes"]:
        assert f"{regime}: " in said


def test_every_run_is_one_row_of_the_stated_columns(project):
    table = pd.read_csv(project / "data/demo/runs.csv")
    assert list(table.columns) == runs.COLUMNS
    assert len(table) == 2 * 4 * 2
    assert not table.duplicated(["regime", "size", "seed"]).any()
    assert (table["status"] == "ok").all()
    assert set(table["convergence"]) <= {"converged", "not converged"}
    unasked = ["reason", "donors", *table.columns[table.columns.str.contains("test_dataset|test_random|_nll")]]
    unasked = [name for name in unasked if name not in ("gene_nll", "gaussian_nll")]  # the bits of the baselines stay
    assert table[unasked].isna().all().all()  # runs that went well, of all donors, on two sides, in squared errors
    assert table.drop(columns=unasked).notna().all().all()
    assert (table["bayes_mse"] < table["gaussian_mse"]).all() and (table["bayes_mse"] < table["gene_mean_mse"]).all()


def test_no_model_beats_what_is_possible(project):
    table = pd.read_csv(project / "data/demo/runs.csv")
    assert (table["validation_mse"] > table["bayes_mse"] - 5 * table["validation_mse_se"]).all()


def test_laws_carry_intervals_comparison_and_origin(project):
    laws = json.loads((project / "data/demo/laws.json").read_text())
    assert set(laws) == set(STUDY["regimes"])
    for law in (laws[regime][metric] for regime in laws for metric in ("validation_mse", "test_mse")):
        assert {"form", "alpha", "a", "c", "r2", "n_sizes", "n_runs", "status", "floor_bits"} <= set(law)
        assert law["n_sizes"] == 4 and law["n_runs"] == 8
        assert {"profile_size_means", "bootstrap_runs"} <= set(law["intervals"])
        assert all(len(ends) == 2 for ends in law["intervals"]["profile_size_means"].values())
        assert {"power + floor", "constant"} <= set(law["comparison"])
        assert law["provenance"]["census"]["simulate"]["states"] == 8


def test_figures_and_tables_come_in_every_format_with_their_caption(project):
    place = project / "figures/demo"
    drawn, laid = ({path.stem for path in place.glob(f"*.{kind}")} for kind in ("pdf", "csv"))
    assert {"loss_against_parameters", "learning_curves", "intervals", "profile", "cells_per_parameter"} <= drawn
    assert {"table_laws", "table_sizes", "table_forms", "table_runs"} <= laid
    for name in drawn:
        assert all((place / f"{name}.{kind}").stat().st_size > 1000 for kind in ("pdf", "svg", "png")), name
    for name in laid:
        assert r"\midrule" in (place / f"{name}.tex").read_text(), name
    assert {path.stem for path in place.glob("*.txt")} == drawn | laid


def test_the_report_shows_what_was_run(project):
    done = command(project, sys.executable, "-m", "lib", "report", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    page = (project / "figures/demo/report.html").read_text()
    assert done.stdout.strip() == "figures/demo/report.html"
    assert "Figure 5." in page and "Table 2." in page and "<math" in page
    assert 'class="failed"' not in page


def test_executed_notebooks_show_figures_and_neither_errors_nor_warnings(project):
    executed = sorted((project / "data/demo/notebooks").glob("*.ipynb"))
    assert len(executed) == 2 + 1 + 2 * 4 + 1 + 1
    for notebook in executed:
        found = outputs(notebook)
        assert not [output for output in found if output["output_type"] == "error" or output.get("name") == "stderr"]
        assert any("image/png" in output.get("data", {}) for output in found), notebook.name


def test_a_second_run_finds_nothing_to_do_and_changes_nothing(project):
    def state():
        return {path: path.stat().st_mtime_ns for path in (project / "data/demo").glob("*/runs/*/*/result.json")}

    before = state()
    assert len(before) == 16
    done = command(project, sys.executable, "-m", "lib", "run", "demo", "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert state() == before


def test_a_sweep_finds_the_runs_of_the_notebooks_done_and_what_is_kept_says_how_fast_they_were(project):
    before = {path: path.read_bytes() for path in (project / "data/demo").rglob("result.json")}
    for words in (("sweep", "demo"), ("keep", "demo")):
        done = command(project, sys.executable, "-m", "lib", *words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.read_bytes() for path in (project / "data/demo").rglob("result.json")} == before
    kept = project / "data/results/demo"
    speeds = pd.read_csv(kept / "speed.csv")
    assert len(speeds) == len(pd.read_csv(kept / "runs.csv")) == 16
    assert speeds["utilisation"].between(0, 1, inclusive="neither").all()
    assert json.loads((kept / "origin.json").read_text())["machine"]["devices"] == ["cpu"]


def test_a_notebook_runs_from_its_default_parameters_in_any_folder(project, tmp_path):
    done = papermill(project, "03_train.ipynb", tmp_path)  # all five do in test_browser
    assert done.returncode == 0, done.stderr


def test_a_rerun_shows_the_same(project, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    assert (
        papermill(project, "04_fit.ipynb", tmp_path).returncode == papermill(project, "04_fit.ipynb", again).returncode
    )
    shown = [[output.get("data") for output in outputs(folder / "04_fit.ipynb")] for folder in (tmp_path, again)]
    assert shown[0] == shown[1]


def test_a_size_that_the_study_lacks_is_refused_in_one_sentence(project, tmp_path):
    done = papermill(project, "03_train.ipynb", tmp_path, "-p", "size", "d61")
    assert done.returncode != 0
    assert "study demo has no size 'd61' (did you mean d16?)" in done.stderr


def test_kept_notebooks_show_neither_errors_nor_warnings():
    kept = sorted((io.CODE / "data" / "results").glob("*/*.ipynb"))
    assert kept
    for notebook in kept:
        wrong = [output for output in outputs(notebook) if output["output_type"] in ("error", "stream")]
        assert not wrong, notebook.parent.name


def test_committed_notebooks_were_executed_and_are_short_to_read():
    for path in sorted(Path(NOTEBOOKS).glob("*.ipynb")):
        code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert all(cell["execution_count"] for cell in code), path.name
        assert not [output for output in outputs(path) if output["output_type"] in ("error", "stream")], path.name
        assert max(len("".join(cell["source"]).splitlines()) for cell in code) <= 12, path.name
        assert "def " not in "".join("".join(cell["source"]) for cell in code), path.name


def test_the_published_runs_are_audited_by_the_fit_notebook(tmp_path):
    (tmp_path / "params").mkdir()
    (tmp_path / "data").mkdir()
    for name in ("params/published-runs.yaml", "data/published_runs.csv"):
        (tmp_path / name).write_text((io.CODE / name).read_text())
    done = papermill(tmp_path, "04_fit.ipynb", tmp_path, "-p", "study", "published-runs")
    assert done.returncode == 0, done.stderr
    law = json.loads((tmp_path / "data/published-runs/laws.json").read_text())["data-rich"]["validation_mse"]
    assert (round(law["alpha"], 3), round(law["c"], 3)) == (0.529, 1.470)
    interval = law["intervals"]["profile_size_means"]
    assert [round(end, 3) for end in interval["alpha"]] == pytest.approx([0.447, 0.639], abs=0.002)
    assert [round(end, 3) for end in interval["c"]] == pytest.approx([1.450, 1.489], abs=0.002)
