"""Every notebook as a person meets it: opened in JupyterLab in a real browser, Run > Run All Cells, saved."""

import shutil

import lab
import psutil
import pytest

from lib import io
from lib.run import workflow
from lib.study import load_study

NAMES = sorted(path.stem for path in (io.CODE / "notebooks").glob("*.ipynb"))
DEFAULTS = {"data": ["data-rich"], "train": ["data-rich", "d16"]}
"""Regime and size of the notebooks' default parameters, by rule."""


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


@pytest.mark.parametrize("name", NAMES)
def test_run_all_in_jupyterlab_shows_every_figure_and_no_fault(name, page, place, project, monkeypatch):
    monkeypatch.setattr(io, "ROOT", project)
    rule = next(rule for rule, notebook in workflow.NOTEBOOKS.items() if notebook == name)
    promised = lab.pictures(workflow.Step(load_study("demo"), rule, *DEFAULTS.get(rule, [])).file(".ipynb"))
    assert sum(promised), f"{name} promises no figure"
    opened = lab.copied(io.CODE / "notebooks" / f"{name}.ipynb", place.folder)
    lab.run_all(page, place, opened)
    assert lab.faults(opened, promised) == []


def test_make_lab_listens_on_this_machine_alone_and_asks_for_its_token(place):
    sockets = psutil.Process(place.pid).net_connections("inet")
    listening = {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
    assert listening and listening <= {"127.0.0.1", "::1"}
    assert len(place.token) >= 32
    assert place.get("contents", token=False).status_code == 403
    assert place.get("kernels", token=False, method="post").status_code == 403
    assert place.get("contents").status_code == 200
