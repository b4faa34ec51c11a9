"""The five notebooks: as they lie in the repository, and executed for a whole study as a user runs it, in seconds."""

import json
import re

import pandas as pd
import pytest
from conftest import STUDY
from papermill.execute import execute_notebook

from lib import io
from lib.fit import runs

NOTEBOOKS = {path.stem: path for path in sorted((io.CODE / "notebooks").glob("*.ipynb"))}


def cells(notebook):
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def outputs(notebook):
    return [output for cell in cells(notebook) for output in cell["outputs"]]


def test_every_run_is_one_row_of_the_stated_columns(executed):
    table = pd.read_csv(executed / "data/demo/runs.csv")
    assert list(table.columns) == runs.COLUMNS
    assert len(table) == 4 * 2
    assert not table.duplicated(["regime", "size", "seed"]).any()
    assert (table["status"] == "ok").all()
    assert set(table["convergence"]) <= {"converged", "not converged"}
    # Runs that went well, of all donors, in squared errors, on two splits of one donor each: the rest is empty.
    empty = table.columns[table.columns.str.contains("test_dataset|test_random|_nll|_donor_se")]
    bits = {"gene_nll", "gaussian_nll"}  # those of the baselines stay
    unasked = list({"reason", "donors", "thin", *empty} - bits)
    assert table[unasked].isna().all().all()
    assert table.drop(columns=unasked).notna().all().all()
    assert (table["bayes_mse"] < table["gaussian_mse"]).all() and (table["bayes_mse"] < table["gene_mean_mse"]).all()
    possible = table["bayes_mse"] - 5 * table["validation_mse_se"]
    assert (table["validation_mse"] > possible).all(), "no model beats what is possible"


def test_laws_carry_intervals_comparison_and_origin(executed):
    laws = json.loads((executed / "data/demo/laws.json").read_text())
    assert set(laws) == set(STUDY["regimes"])
    for law in (laws[regime][metric] for regime in laws for metric in ("validation_mse", "test_mse")):
        assert {"form", "alpha", "a", "c", "r2", "n_sizes", "n_runs", "status", "floor_bits"} <= set(law)
        assert law["n_sizes"] == 4 and law["n_runs"] == 8
        assert law["provenance"]["census"]["simulate"]["states"] == 8


def test_figures_and_tables_come_in_every_format_with_their_caption(executed):
    place = executed / "figures/demo"
    drawn, laid = ({path.stem for path in place.glob(f"*.{kind}")} for kind in ("pdf", "csv"))
    assert {"loss_against_parameters", "learning_curves", "budget", "architecture", "genes", "bits"} <= drawn
    assert not {"published_audit", "matched", "protocols"} & drawn, "what a study has no data for is left out"
    assert {"table_laws", "table_sizes", "table_forms", "table_runs"} <= laid
    for name in drawn:
        assert all((place / f"{name}.{kind}").stat().st_size > 1000 for kind in ("pdf", "svg", "png")), name
    for name in laid:
        assert r"\midrule" in (place / f"{name}.tex").read_text(), name
    assert {path.stem for path in place.glob("*.txt")} == drawn | laid


def test_executed_notebooks_show_figures_and_neither_errors_nor_warnings(executed):
    shown = sorted((executed / "data/demo/notebooks").rglob("*.ipynb"))
    assert len(shown) == 1 + 1 + 4 + 1 + 1
    for notebook in shown:
        found = outputs(notebook)
        assert not [output for output in found if output["output_type"] == "error" or output.get("name") == "stderr"]
        assert any("image/png" in output.get("data", {}) for output in found), notebook.name


def fit_and_draw(root, study, *copied):
    """04_fit and 05_figures executed on a study in a folder that has no more than its file and what is copied there."""
    for name in (f"params/{study}.yaml", *copied):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(re.sub(r"resamples: \d+", "resamples: 100", (io.CODE / name).read_text()))
    for name in ("04_fit", "05_figures"):
        execute_notebook(NOTEBOOKS[name], root / f"{name}.ipynb", {"study": study}, cwd=root, progress_bar=False)


def test_a_kept_study_is_fitted_and_drawn_where_nothing_of_it_was_trained(project):
    kept = "data/results/marrow-noise"
    files = ("runs.csv", "baselines.json", "origin.json", "probe.csv")
    fit_and_draw(project, "marrow-noise", *(f"{kept}/{of}" for of in files))
    table, runs_now = (runs.read(folder / "runs.csv") for folder in (io.CODE / kept, project / "data/marrow-noise"))
    assert runs_now["validation_mse"].equals(table["validation_mse"])
    laws, now = (io.read_json(folder / "laws.json") for folder in (io.CODE / kept, project / "data/marrow-noise"))
    statuses = {regime: of["validation_mse"]["status"] for regime, of in laws.items()}
    assert {regime: of["validation_mse"]["status"] for regime, of in now.items()} == statuses
    assert len(set(statuses.values())) > 1 and "not trained here" in (project / "04_fit.ipynb").read_text()
    for name in ("loss_against_parameters", "depth", "probe"):
        assert (project / f"figures/marrow-noise/{name}.svg").is_file()


def test_the_published_runs_are_fitted_audited_and_drawn(project):
    fit_and_draw(project, "published-runs", "data/published_runs.csv")
    law = json.loads((project / "data/published-runs/laws.json").read_text())["data-rich"]["validation_mse"]
    assert law["sensitivity"]["with sizes that see no context"]["c"] == pytest.approx(1.470, abs=5e-4)
    assert (project / "figures/published-runs/published_audit.svg").is_file()


KEPT = [*NOTEBOOKS.values(), *sorted((io.CODE / "data" / "results").glob("*/*.ipynb"))]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_committed_notebooks_were_executed_and_show_neither_errors_nor_warnings(path):
    assert all(cell["execution_count"] for cell in cells(path))
    assert not [output for output in outputs(path) if output["output_type"] in ("error", "stream")]
    assert not [cell for cell in cells(path) if len(cell["source"]) > 12 or "def " in "".join(cell["source"])]
