"""What `make status` says of a study, from files alone: never started, at work, stopped, failed, done."""

import json
import os
import subprocess
import sys
import time
from io import StringIO

import pytest
from rich.console import Console

from lib import io
from lib.run import progress, status, steps, workflow
from lib.run.failure import KERNEL_KILLED, KILLED, failure


def said(study, **terminal):
    """(exit code, text) of the status."""
    console = Console(file=StringIO(), highlight=False, soft_wrap=True, **terminal)
    code = status.show(study, console)
    return code, console.file.getvalue()


def states(study):
    """{(rule, regime, size): state} of the steps that are not waiting."""
    found = steps.look(study, progress.last(study))
    return {(step.rule, *step.place.values()): step.state for step in found if step.state != "waiting"}


def notebook(study, name, cells=(), message="", **papermill):
    """Leave an executed notebook as papermill does: {source: (status, outputs)} by cell, and its messages."""
    content = [
        {"cell_type": "code", "source": source, "execution_count": number, "outputs": outputs,
         "metadata": {"papermill": {"status": state}}}
        for number, (source, state, outputs) in enumerate(cells, 1)
    ]  # fmt: skip
    io.write_json(study.data / "notebooks" / f"{name}.ipynb", {"cells": content, "metadata": {"papermill": papermill}})
    (study.data / "notebooks" / f"{name}.log").write_text(message)


def record(study, host="elsewhere", pid=0, ended=False, **changes):
    """Leave the record of a run that trains small on data-rich."""
    place = {"regime": "data-rich", "size": "small"}
    job = {"title": "training", "rule": "train", "wildcards": place, "log": [], "fixed": 6.0, "training": 30.0}
    job |= {"start": time.time() - 20} | changes
    content = {"cores": 3, "start": time.time() - 60, "started": True, "ended": ended, "jobs": [job]}
    io.write_json(study.data / progress.RECORD, content | {"host": host, "pid": pid})


def age(study, seconds):
    """Make everything that a study has left look so old."""
    for path in study.data.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


def test_a_study_never_started_is_all_left_and_nothing_is_written_for_looking(tiny, project):
    code, text = said(tiny)
    assert code == 0 and "not running: 0 of 9 notebooks done" in text and "make run STUDY=tiny" in text
    assert text.count("waiting") == 9 and states(tiny) == {}
    assert [path.name for path in project.iterdir()] == ["params"]


def test_looking_loads_neither_training_nor_tables_nor_plots():
    heavy = "{'torch', 'scanpy', 'pandas', 'matplotlib', 'snakemake', 'anndata'}"
    program = f"import sys, lib.run.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=io.CODE)
    assert done.stdout == "[]\n", done.stderr


def test_a_runner_is_at_work_as_long_as_it_gives_signs_of_life(tiny):
    notebook(tiny, "03_train-data-rich-small")
    step = ("train", "data-rich", "small")
    record(tiny)
    assert states(tiny) == {step: "running"} and "running for 60 s, 3 at a time" in said(tiny)[1]
    record(tiny, start=None)
    assert states(tiny) == {}
    record(tiny, ended=True)
    assert states(tiny) == {step: "interrupted"}
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    record(tiny, host=progress.socket.gethostname(), pid=gone.pid)
    assert states(tiny) == {step: "interrupted"}
    record(tiny)
    age(tiny, 2 * progress.SILENT)
    assert states(tiny) == {step: "interrupted"} and "not running" in said(tiny)[1]


def test_a_job_that_a_cluster_has_no_place_for_yet_is_queued(tiny):
    record(tiny)
    assert states(tiny) == {("train", "data-rich", "small"): "queued"}


def test_a_notebook_without_a_runner_is_running_while_its_files_move(tiny):
    notebook(tiny, "03_train-data-rich-small", [("train()", "running", [])])
    curve = tiny.run_folder("data-rich", "small", 7) / "history.csv"
    curve.parent.mkdir(parents=True)
    curve.write_text("update\n0\n")
    assert states(tiny) == {("train", "data-rich", "small"): "running"}
    age(tiny, 2 * progress.SILENT)
    assert states(tiny) == {("train", "data-rich", "small"): "interrupted"}
    curve.touch()
    assert states(tiny) == {("train", "data-rich", "small"): "running"}


def test_an_executed_notebook_whose_results_are_lost_is_left_to_do_unless_its_kernel_had_died(tiny):
    notebook(tiny, "02_model", [("a()", "completed", [])], end_time="2026-11-25T23:02:19")
    assert states(tiny) == {}
    message = "nbclient.exceptions.DeadKernelError: Kernel died"
    notebook(tiny, "02_model", [("a()", "completed", [])], message, end_time="2026-11-25T23:02:19")
    assert states(tiny) == {("model",): "failed"}
    assert "failed in cell [1] of" in said(tiny)[1]


def test_seeds_and_updates_are_counted_from_results_checkpoints_and_curves(study_file):
    study = study_file(train={"cells_seen": 3200, "batch": 32})
    first, second = (study.run_folder("data-rich", "small", seed) for seed in study.seeds)
    for folder in (first, second):
        folder.mkdir(parents=True)
        (folder / "history.csv").write_text("update,loss\n0,2.0\n30,1.0\n")
    whole = 100 + 10  # and a fifth of the first half once more, for the half-way measurement
    assert steps._trained(study, 0.0, "data-rich", "small") == ((0, 2), (60, 2 * whole))
    (second / "checkpoint-000000000042-abc.pt").touch()
    io.write_json(first / "result.json", {"updates": 100, "status": "ok"})
    assert steps._trained(study, 0.0, "data-rich", "small") == ((1, 2), (whole + 42, 2 * whole))
    assert steps._trained(study, time.time() + 9, "data-rich", "small")[0] == (0, 2)
    longer = study_file(train={"cells_seen": 6400, "batch": 32})
    assert steps._trained(longer, 0.0, "data-rich", "small")[0] == (0, 2)


def test_the_time_left_follows_what_finished_runs_took(tiny):
    guessed = status.left(tiny, None, steps.look(tiny, None))
    _, training = workflow.seconds(tiny, "train", "data-rich", "small")
    folder = tiny.run_folder("data-rich", "small", 7)
    io.write_json(folder / "result.json", {"updates": 10, "cells_seen": 320, "seconds": 500 * training / 2})
    assert progress.measured(tiny) == pytest.approx({"small": 500.0, None: 500.0})
    assert progress.Batch(tiny, 2).expected("train", "data-limited", "XXS")[1] > 400 * training / 2
    assert status.left(tiny, None, steps.look(tiny, None)) > guessed + 300 * training / 2
    begun = {"rule": "data", "wildcards": {"regime": "data-rich"}, "training": 0.0, "fixed": 15.0}
    record(tiny, ended=True, start=0.0, end=150.0, **begun)
    slow = status.left(tiny, progress.last(tiny), steps.look(tiny, None))
    assert slow > 2 * guessed, "notebooks took ten times what was expected, training apart"


def test_a_failed_notebook_is_linked_with_its_cell_the_first_line_and_the_error(tiny):
    error = {"output_type": "error", "ename": "InputError", "evalue": "no such\n cells."}
    notebook(tiny, "01_data-data-rich", [("study = 1", "completed", []), ("\nbuild(\n1)", "failed", [error])])
    code, text = said(tiny)
    lines = [line.strip() for line in text.splitlines()[-3:]]
    place = "data/tiny/notebooks/01_data-data-rich.ipynb"
    assert code == 1 and ", 1 failed;" in text
    assert lines == [f"01_data data-rich failed in cell [2] of {place}", "build(", "InputError: no such cells."]
    assert "\x1b]8;" not in text
    link = (tiny.data / "notebooks" / "01_data-data-rich.ipynb").as_uri()
    assert link in said(tiny, force_terminal=True, width=200)[1]
    error["ename"] = "KeyboardInterrupt"
    notebook(tiny, "01_data-data-rich", [("build()", "failed", [error])])
    assert said(tiny)[0] == 0 and states(tiny) == {("data", "data-rich"): "interrupted"}


def test_what_was_killed_is_told_from_what_failed(tiny):
    place = [tiny.data / "notebooks" / f"01_data-data-rich.{kind}" for kind in ("ipynb", "log")]
    notebook(tiny, "01_data-data-rich", [("a()", "completed", []), ("b()", "running", [])], "")
    why = failure(*place)
    assert (why.error, why.cell, why.line) == (KILLED, 2, "b()")
    place[1].write_text(
        "/usr/bin/bash: line 1: 27514 Killed            python -m papermill\n[IPKernelApp] Parent gone\n"
    )
    assert failure(*place).error == KILLED
    place[1].write_text("Traceback\nnbclient.exceptions.DeadKernelError: Kernel died\n\n")
    assert failure(*place).error == KERNEL_KILLED
    place[1].write_text("Traceback\nOSError: no\n")
    assert failure(*place).error == "OSError: no"


def test_files_that_are_just_being_written_are_read_another_time(tiny):
    notebook(tiny, "01_data-data-rich")
    for name in ("notebooks/01_data-data-rich.ipynb", progress.RECORD, ".snakemake/metadata/x", "data-rich/data.txt"):
        path = tiny.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("123 4" if name.endswith("txt") else '{"cells": [')
    assert states(tiny) == {("data", "data-rich"): "running"}


def test_the_table_fits_a_hundred_columns(study_file):
    regimes = {"a-regime-of-many-letters-and-words": {"genes": 24, "cells": 500}}
    study = study_file(
        regimes=regimes,
        train={"cells_seen": 10**10},
        seeds=list(range(100)),
        sizes=[{"name": "d1024x12", "d": 8, "layers": 1}],
    )
    notebook(study, "03_train-a-regime-of-many-letters-and-words-d1024x12", [("x", "running", [])])
    for terminal in ({}, {"force_terminal": True, "width": 300, "color_system": None}):
        lines = said(study, **terminal)[1].splitlines()[1:]
        assert max(map(len, lines)) <= 100 and "running" in "".join(lines)


def test_a_study_of_given_runs_has_one_notebook(study_file, project):
    (project / "params" / "given.yaml").write_text(json.dumps({"runs": {"table": "runs.csv"}}))
    study = progress.params.load("given")
    assert "0 of 1 notebooks" in said(study)[1]
    for name in ("runs.csv", "laws.json"):
        study.data.mkdir(parents=True, exist_ok=True)
        (study.data / name).touch()
    code, text = said(study)
    assert code == 0 and "given: 1 of 1 notebooks done. Figures: figures/given/" in text
