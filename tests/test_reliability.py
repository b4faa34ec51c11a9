"""What goes wrong on one machine: processes killed, the disk full, folders read-only. A clear end, and nothing lost.

That a killed training ends with the same weights is tested in test_train.
"""

import json
import shutil
import subprocess
from contextlib import contextmanager, suppress

import psutil
import pytest
from conftest import wait
from test_workflow import call, finished, planned, project, working

DIES = {
    "cells": [{"cell_type": "code", "source": "import os; os.kill(os.getpid(), 9)", "metadata": {}, "outputs": [],
               "execution_count": None}],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    "nbformat": 4, "nbformat_minor": 4,
}  # fmt: skip
"""A notebook whose kernel is killed, as by a machine without memory."""


def process(run, *words):
    """The one descendant of a run whose command line holds all words."""
    children = [child for child in psutil.Process(run.pid).children(recursive=True) if child.name() != "bash"]
    found = [child for child in children if all(word in " ".join(child.cmdline()) for word in words)]
    assert len(found) == 1, found
    return found[0]


def results(project):
    return {path: path.read_bytes() for path in (project / "data").rglob("result.json")}


def test_a_killed_kernel_is_named_and_loses_nothing(project):
    kept, notebook = results(project), project / "notebooks" / "03_train.ipynb"
    content = notebook.read_text()
    notebook.write_text(json.dumps(DIES))
    (project / "papermill").rename(project / "replaced")  # so that it is the real one
    run = call(project, "lib", "run", "tiny")
    assert run.returncode == 1 and "Traceback" not in run.stdout, run.stdout
    assert [run.stdout.count(f"{size}.ipynb: the kernel was killed") for size in ("XXS", "TINY")] == [2, 2]
    (project / "replaced").rename(project / "papermill")
    notebook.write_text(content)
    assert call(project, "lib", "run", "tiny").returncode == 0 and planned(project) == set()
    assert len(kept) == 8 and results(project) == kept


def test_a_killed_job_is_named_and_its_finished_seeds_stay(project):
    shutil.rmtree(project / "data" / "tiny" / "rich" / "runs")
    (project / "hold").touch()
    run = call(project, "lib", "run", "tiny", wait=False)
    wait(lambda: len(working(project)) == 2 and len(results(project)) == 6)
    kept = results(project)
    process(run, "lib.run.workflow", "size=XXS").kill()
    (project / "hold").unlink()
    said, _ = run.communicate(timeout=240)
    assert run.returncode == 1 and "Traceback" not in said and said.count("FAILED") == 1, said
    assert "XXS.log: it was killed" in said, said
    assert call(project, "lib", "run", "tiny").returncode == 0 and planned(project) == set()
    assert kept.items() <= results(project).items()


def test_a_full_disk_is_named_and_the_study_goes_on_once_there_is_room(project):
    with mounted(project / "data"):
        (project / "hold").touch()
        run = call(project, "lib", "run", "tiny", wait=False)
        wait(lambda: len(working(project)) == 2)
        filler = project / "data" / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as disk:
            while True:
                disk.write(bytes(2**12))
        (project / "hold").unlink()
        said, _ = run.communicate(timeout=240)
        assert run.returncode == 1 and "The disk that holds data/tiny/ is full." in said, said
        refused = call(project, "lib", "run", "tiny")
        assert refused.returncode == 2 and "No space left" in refused.stdout, refused.stdout
        filler.unlink()
        again = call(project, "lib", "run", "tiny")
        assert again.returncode == 0 and planned(project) == set(), again.stdout


def test_a_read_only_folder_is_refused_before_any_work(project):
    for name in ("figures", "data"):
        with mounted(project / name):
            subprocess.run(["mount", "-o", "remount,ro", project / name], check=True)
            run = call(project, "lib", "run", "tiny")
        assert run.returncode == 2 and run.stdout.count("\n") == 1 and "cannot be written" in run.stdout, run.stdout
    assert planned(project) == set()


def test_a_killed_scheduler_leaves_no_process_and_is_continued(project):
    shutil.rmtree(project / "data" / "tiny" / "rich" / "runs")
    (project / "hold").touch()
    run = call(project, "lib", "run", "tiny", wait=False)
    wait(lambda: len(working(project)) == 2)
    process(run, "-m snakemake").kill()
    said, _ = run.communicate(timeout=240)
    wait(lambda: not working(project))
    assert run.returncode == 1 and "FAILED" not in said, said
    (project / "hold").unlink()
    assert call(project, "lib", "run", "tiny").returncode == 0 and planned(project) == set()


@contextmanager
def mounted(place, size="8m"):
    """A small disk of its own at a place."""
    place.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("FAULT NOT TESTED: no small disk can be mounted here, which takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
