"""Each notebook as a person meets it: opened in JupyterLab in a real browser, Run > Run All Cells, saved."""

import functools
import shutil

import lab
import nbformat
import psutil
import pytest

from lib import io

NOTEBOOKS = io.CODE / "notebooks"
BATCH = {"01_data": "01_data-data-rich", "03_train": "03_train-data-rich-d16"}
"""Notebooks of the batch that have the default parameters, where they are named after them."""


@pytest.fixture(scope="module")
def project(executed, tmp_path_factory):
    """A copy of the executed demo in which 03_train has something to train."""
    folder = tmp_path_factory.mktemp("browser") / "project"
    shutil.copytree(executed, folder)
    shutil.rmtree(folder / "data/demo/data-rich/runs/d16")
    return folder


@pytest.fixture(scope="module")
def place(project, tmp_path_factory):
    """The server of `make lab`, showing an empty folder."""
    with lab.server(tmp_path_factory.mktemp("shown"), project) as place:
        yield place


@pytest.fixture(scope="module")
def page(place):
    if not (lab.CHROMIUM and lab.DRIVER):
        pytest.skip("CHROMIUM MISSING: no chromium and chromedriver here, so no notebook was opened in a browser")
    with lab.browser() as page:
        yield page


@pytest.fixture(scope="module")
def run_all(page, place):
    """Open a copy of a notebook, press Run All once, save; return what was saved and what is wider than the page."""

    @functools.cache
    def saved(path):
        opened = lab.copied(path, place.folder)
        return opened, lab.run_all(page, place, opened)

    return saved


def promised(project, name):
    """Figures of each code cell of a notebook, as its copy of the batch shows them."""
    return lab.pictures(project / "data/demo/notebooks" / f"{BATCH.get(name, name)}.ipynb")


@pytest.mark.parametrize("name", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_run_all_in_jupyterlab_shows_every_figure_no_fault_and_nothing_wider_than_a_laptop(name, run_all, project):
    due = promised(project, name)
    assert sum(due), f"{name} promises no figure"
    saved, too_wide = run_all(NOTEBOOKS / f"{name}.ipynb")
    assert lab.faults(saved, due) == []
    assert not too_wide, f"{name} has to be scrolled sideways on a laptop: {too_wide}"


def test_a_training_watched_in_jupyterlab_leaves_one_line_for_each_seed(run_all):
    cells = lab.code(run_all(NOTEBOOKS / "03_train.ipynb")[0])
    shown = [output["data"] for cell in cells for output in cell["outputs"] if output["output_type"] == "display_data"]
    lines = ["".join(data["text/plain"]) for data in shown if list(data) == ["text/plain"]]  # tables have more forms
    assert lines == ["seed 7: finished", "seed 8: finished"]


def test_a_notebook_broken_on_purpose_is_found_out_by_its_name_and_cell(run_all, tmp_path):
    cells = [
        "import sys; sys.stderr.write('so be it')",
        "'no figure'  # " + 150 * "!",
        "1 / 0",
        "'never reached'",
    ]
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    broken.metadata.kernelspec = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    nbformat.write(broken, tmp_path / "broken.ipynb")
    saved, too_wide = run_all(tmp_path / "broken.ipynb")
    assert len(too_wide) == 1 and too_wide[0].startswith("'no figure")
    assert lab.faults(saved, [0, 1, 0, 0]) == [
        "broken.ipynb, code cell 1 writes to standard error: so be it",
        "broken.ipynb, code cell 2 shows 0 figures instead of 1",
        "broken.ipynb, code cell 3 failed: ZeroDivisionError: division by zero",
        "broken.ipynb, code cell 4 has not run",
    ]


def test_make_lab_listens_on_this_machine_alone_and_asks_for_its_token(place):
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(place.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening and set(listening) <= {"127.0.0.1", "::1"}
    assert len(place.token) >= 32
    assert place.get("contents", token=False).status_code == 403
    assert place.get("kernels", token=False, method="post").status_code == 403
    assert place.get("contents").status_code == 200
