"""Atomic writing, the version of the code, and the line that says how far a run is."""

import json
import subprocess

import nbformat
import pytest
from nbclient import NotebookClient

from lib import io


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "result.json"
    io.write_json(target, {"a": 1})
    with pytest.raises(ValueError):
        io.write_json(target, {"a": float("nan")})
    assert io.read_json(target) == {"a": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "census"
    for content in ("old", "new"):
        with io.atomic(target) as partial:
            partial.mkdir()
            (partial / content).touch()
    with pytest.raises(OSError), io.atomic(target) as partial:
        partial.mkdir()
        raise OSError("no space left")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_process_left_of_a_file_is_removed_and_nothing_else(tmp_path):
    for name in (".partial-12-panel.h5ad", ".partial-12-panel.npz", "panel.h5ad"):
        (tmp_path / name).touch()
    io.sweep(tmp_path / "panel.h5ad")
    assert {path.name for path in tmp_path.iterdir()} == {".partial-12-panel.npz", "panel.h5ad"}


# ---------------------------------------------------------------- the version of the code


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A project in a folder of a git repository, with one file of each kind committed."""

    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    project = tmp_path / "project"
    for name in ("lib/io.py", "params/demo.yaml", "Snakefile", "README.md"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("as committed")
    cell = {"cell_type": "code", "source": ["print(1)"], "outputs": [], "execution_count": None}
    io.write_json(project / "notebooks" / "01 data.ipynb", {"cells": [cell]})
    monkeypatch.setattr(io, "CODE", project)
    assert io.code_version() == "unknown"
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    return project


def outputs(notebook):
    notebook["cells"][0] |= {"outputs": [{"text": "1"}], "execution_count": 1}


def source(notebook):
    notebook["cells"][0]["source"] = ["print(2)"]


@pytest.mark.parametrize("change, modified", [(outputs, False), (source, True)])
def test_a_notebook_is_modified_when_its_source_is_and_not_by_being_executed(repository, change, modified):
    path = repository / "notebooks" / "01 data.ipynb"
    assert len(io.code_version()) == 12
    notebook = json.loads(path.read_text())
    change(notebook)
    path.write_text(json.dumps(notebook))
    assert io.code_version().endswith("-modified") == modified


@pytest.mark.parametrize("name, modified", [("lib/io.py", True), ("lib/new.py", True), ("params/demo.yaml", True),
                                            ("Snakefile", True), ("README.md", False)])  # fmt: skip
def test_code_and_studies_are_modified_and_prose_is_not(repository, name, modified):
    (repository / name).write_text("changed")
    assert io.code_version().endswith("-modified") == modified


# ---------------------------------------------------------------- progress

CELLS = {
    "progress = Progress('seed 7')\nfor done in range(301): progress(done, 300, 0.5)": ["seed 7: finished"],
    "progress = Progress('seed 8')": ["seed 8: finished"],
    "for progress in (Progress('a'), Progress('b')): [progress(n, 3) for n in range(4)]": [
        "a: finished",
        "b: finished",
    ],
    "progress = Progress('diverges')\nfor done in (1, 1200): progress(done, 3000, float('nan'))": [
        "diverges: stopped at 1,200 of 3,000 updates"
    ],
    "progress = Progress('reading', 'cells')\nraise ValueError": ["reading: not finished"],
    "progress = Progress('reading', 'cells')\nfor n in 5, 1000: progress(n, 3000)\nraise KeyboardInterrupt": [
        "reading: stopped at 1,000 of 3,000 cells"
    ],
}
"""A cell, and the lines that a saved notebook shows of it."""


def test_a_saved_notebook_has_one_line_that_says_how_a_run_ended():
    first = "from lib.io import Progress\nProgress.SECONDS = 0"  # every update is shown
    cells = [nbformat.v4.new_code_cell(source) for source in (first, *CELLS)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3", allow_errors=True).execute()
    for cell, lines in zip(notebook.cells[1:], CELLS.values(), strict=True):
        shown = [output for output in cell.outputs if output.output_type != "error"]
        assert {output.output_type for output in shown} == {"display_data"}
        assert [output.data["text/plain"] for output in shown] == lines


def test_progress_counts_from_its_first_call_so_that_finished_blocks_do_not_inflate_the_rate(monkeypatch):
    clock, shown = iter([100.0, 110.0, 120.0]), []
    monkeypatch.setattr(io.time, "monotonic", lambda: next(clock))
    progress = io.Progress("reading", "cells")
    progress.write = lambda text, end="": shown.append(text)
    for done in (5000, 5500, 6000):
        progress(done, 10_000)
    assert shown == ["5,500 of 10,000 cells, 50 cells/s, 90 s left", "6,000 of 10,000 cells, 50 cells/s, 80 s left"]
