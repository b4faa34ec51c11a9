"""Atomic writing, the version of the code, the line that says how far a run is, and who imports whom."""

import ast
import json
import subprocess
import sys

import pytest

from lib import io


def test_a_file_or_folder_is_replaced_whole_or_not_at_all(tmp_path):
    file, folder = tmp_path / "result.json", tmp_path / "census"
    io.write_json(file, {"a": 1})
    with pytest.raises(ValueError):
        io.write_json(file, {"a": float("nan")})
    for content in ("old", "new"):
        with io.atomic(folder) as partial:
            partial.mkdir()
            (partial / content).touch()
    for target in (file, folder):
        with pytest.raises(OSError), io.atomic(target) as partial:
            partial.write_text("half")
            raise OSError("no space left")
    assert io.read_json(file) == {"a": 1} and [path.name for path in folder.iterdir()] == ["new"]
    assert set(tmp_path.iterdir()) == {file, folder}


def test_what_a_killed_process_left_of_a_file_is_removed_and_nothing_else(tmp_path):
    for name in (".partial-12-panel.h5ad", ".partial-12-panel.npz", "panel.h5ad"):
        (tmp_path / name).touch()
    io.sweep(tmp_path / "panel.h5ad")
    assert {path.name for path in tmp_path.iterdir()} == {".partial-12-panel.npz", "panel.h5ad"}


def test_code_studies_and_sources_of_notebooks_are_modified_and_outputs_and_prose_are_not(tmp_path, monkeypatch):
    project = tmp_path / "project"
    for name in ("lib/io.py", "params/demo.yaml", "Snakefile", "README.md"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("as committed")
    path = project / "notebooks" / "01 data.ipynb"
    cell = {"cell_type": "code", "source": ["print(1)"], "outputs": [], "execution_count": None}
    opened = cell | {"source": ["study = 1"], "metadata": {"tags": ["parameters"]}}
    io.write_json(path, {"cells": [opened, cell]})
    monkeypatch.setattr(io, "CODE", project)
    assert io.code_version() == "unknown"
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)
    assert len(io.code_version()) == 12
    opened["source"] = ["study = 2"]
    io.write_json(path, {"cells": [opened, cell | {"outputs": [{"text": "1"}], "execution_count": 1}]})
    for name in ("README.md", "params/mine.yaml"):  # a study file that is new is no change of the code
        (project / name).write_text("changed")
    assert not io.code_version().endswith("-modified")
    changes = {"lib/new.py": "", "params/demo.yaml": "", "Snakefile": ""}
    for name, text in (changes | {path: json.dumps({"cells": [opened, cell | {"source": ["print(2)"]}]})}).items():
        before = (project / name).read_text() if (project / name).exists() else None
        (project / name).write_text(text)
        assert io.code_version().endswith("-modified"), name
        (project / name).unlink() if before is None else (project / name).write_text(before)
        assert not io.code_version().endswith("-modified"), name


STARTS = """
import sys, lib.run.cli
print({"torch", "scanpy", "pandas", "matplotlib", "snakemake", "anndata", "papermill", "IPython"} & set(sys.modules))
import lib.figures, lib.train.evaluate
print({"torch", "scanpy", "anndata"} & set(sys.modules))
"""


def test_commands_and_the_notebooks_that_only_read_start_without_what_is_slow_to_import():
    done = subprocess.run([sys.executable, "-c", STARTS], capture_output=True, text=True, cwd=io.CODE)
    assert done.stdout == "set()\nset()\n", done.stdout + done.stderr


ORDER = ["io", "model", "study", "data", "train", "fit", "figures", "run"]
"""A folder of lib imports what stands above it here, never what stands below, inside functions neither."""


def imported(path):
    """Parts of lib that a source imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names = (f"{start}{alias.name}".split(".") for alias in node.names)
            yield from (name[1] for name in names if name[0] == "lib")


def test_imports_run_upwards():
    lib = io.CODE / "lib"
    downwards = [
        f"{path.relative_to(io.CODE)} imports {part}"
        for path in [lib / "io.py", lib / "study.py", *sorted(lib.glob("*/*.py"))]
        for part in imported(path)
        if ORDER.index(part) > ORDER.index(path.relative_to(lib).parts[0].removesuffix(".py"))
    ]
    assert downwards == []
