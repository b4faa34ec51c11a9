"""What goes wrong on one machine: processes killed, the disk full, folders read-only. One sentence, and nothing lost.

The runner and Snakemake are the real ones, and so is training where numbers count; scripts stand in for the rest.
"""

import importlib.util
import json
import re
import shutil
import signal
import subprocess
from contextlib import contextmanager

import psutil
import pytest
from reliability import fault, named, rows
from test_workflow import PAPERMILL, STUDY, call, finished, project, standing, wait_until, working, write_study

from lib import io
from lib.fit import runs
from lib.study import load_study, parse_study
from lib.train import loop

AGAIN = "run it again"
EXACT = ("validation_mse", "test_mse", "validation_mse_half", "weights_sha256", "updates")
REAL = """
import os, runpy, sys
if "03_train" in sys.argv[1]:  # this notebook is run by papermill itself
    sys.path = [place for place in sys.path if place != os.environ["PYTHONPATH"]]
    for name in [name for name in sys.modules if name.split(".")[0] == "papermill"]:
        del sys.modules[name]
    runpy.run_module("papermill", run_name="__main__", alter_sys=True)
    sys.exit()
"""
CELLS = """
import os, time
from types import SimpleNamespace
import numpy as np

def panel():
    rng = np.random.default_rng(0)
    rows, masks = np.split(np.arange(80), [60, 70]), np.argsort(rng.random((10, 2, 16)))[..., :3]
    held, x = {"validation": rows[1], "test": rows[2]}, rng.random((80, 16), dtype=np.float32)
    masks = dict.fromkeys(held, masks)
    return SimpleNamespace(x=x, counts=None, library=np.ones(80), train=rows[0], held=held, masks=masks)

def hold(done, total, loss):
    while done == 40 and os.path.exists(os.environ.get("HOLD", "")):
        time.sleep(0.05)
"""
TRAIN = """
import cells
from lib import params, train
loop.CHECKPOINT_SECONDS = -1
chosen = load_study(study)
for seed in chosen.seeds:
    folder, progress = chosen.run_folder(regime, size, seed), cells.hold if seed == 8 else lambda *state: None
    loop.finished([loop.train(cells.panel(), chosen.size(size), seed, chosen.train, folder, progress)])
"""
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
SMALL = {
    "regimes": {"rich": {"genes": 16, "cells": 60}},
    "sizes": [{"name": f"d{d}", "d": d, "layers": 1, "heads": 2} for d in (8, 16)],
    "train": {"cells_seen": 1600, "batch": 16, "evaluations": 6},
}


@pytest.fixture
def training(finished, tmp_path):
    """The project before any run; its sizes are trained by the real loop in a kernel of the real papermill."""
    project = tmp_path / "training"
    shutil.copytree(finished, project, ignore=shutil.ignore_patterns("data", "figures"))
    (project / "papermill" / "__main__.py").write_text(REAL + PAPERMILL)
    (project / "cells.py").write_text(CELLS)
    cells = [
        {"cell_type": "code", "source": source, "metadata": {"tags": tags}, "outputs": [], "execution_count": None}
        for source, tags in (('study = regime = size = ""', ["parameters"]), (TRAIN, []))
    ]
    content = {"cells": cells, "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 4}
    (project / "notebooks" / "03_train.ipynb").write_text(json.dumps(content))
    write_study(project, **SMALL)
    return project


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """{(size, seed): what an undisturbed run ends with}."""
    folder = tmp_path_factory.mktemp("expected")
    (folder / "cells.py").write_text(CELLS)
    spec = importlib.util.spec_from_file_location("cells", folder / "cells.py")
    cells = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cells)
    study, found = parse_study(STUDY | SMALL, "tiny"), {}
    for size in study.sizes:
        for seed in study.seeds:
            record = loop.train(cells.panel(), size, seed, study.train, folder / size.name / str(seed))
            found[size.name, seed] = [record[name] for name in EXACT]
    return found


def results(project):
    """{(size, seed): what the runs of a project ended with}, each run in one row of the study's table."""
    study = parse_study(STUDY | SMALL, "tiny")
    before, io.ROOT = io.ROOT, project
    try:
        table = runs.collect(study)
        assert len(table) == 4 and not table.duplicated(["regime", "size", "seed"]).any()
        records = [
            io.read_json(study.run_folder(*place) / "result.json")
            for place in table[["regime", "size", "seed"]].to_numpy()
        ]
    finally:
        io.ROOT = before
    return {(record["size"], record["seed"]): [record[name] for name in EXACT] for record in records}


@contextmanager
def held(project):
    """A run that stands still in the middle of the last seed of every size; gives (process, file to remove)."""
    hold = project / "hold"
    hold.touch()
    run = call(project, "lib", "run", "tiny", wait=False, environment={"HOLD": str(hold)})
    try:
        wait_until(lambda: run.poll() is not None or all(_stands(project, size) for size in ("d8", "d16")))
        assert run.poll() is None, run.communicate()[0]
        yield run, hold
    finally:
        hold.unlink(missing_ok=True)
        run.kill()
        run.wait()


def _stands(project, size):
    saved = (project / "data" / "tiny" / "rich" / "runs" / size / "seed-8").glob("checkpoint-*")
    return max((int(path.name.split("-")[1]) for path in saved), default=0) >= 39


def process(run, *words):
    """The one descendant of a run whose command line holds all words."""
    children = [child for child in psutil.Process(run.pid).children(recursive=True) if child.name() != "bash"]
    found = [child for child in children if all(word in " ".join(child.cmdline()) for word in words)]
    assert len(found) == 1, found
    return found[0]


@fault("a notebook's kernel is killed, or its whole process is", AGAIN)
def test_a_killed_kernel_and_a_killed_worker_lose_nothing_and_write_nothing_more(training, expected):
    with held(training) as (run, hold):
        small, large = (process(run, "papermill", f"size {size}") for size in ("d8", "d16"))
        kernel, orphan = (worker.children()[0] for worker in (small, large))
        kept = {path: path.read_bytes() for path in training.rglob("seed-7/result.json")}
        looked = call(training, "lib", "status", "tiny")
        assert looked.returncode == 0 and len(re.findall("running +1 of 2 +150 of 220", looked.stdout)) == 2, (
            looked.stdout
        )
        kernel.kill()
        large.kill()
        wait_until(lambda: not orphan.is_running())
        hold.unlink()
        said, _ = run.communicate(timeout=240)
    assert run.returncode == 1 and "Traceback" not in said
    sentences = [
        line.split(" failed: ")[1].split(" (see ")[0] for line in sorted(said.splitlines()) if " failed: " in line
    ]
    assert (
        len(sentences) == 2 and sentences[0].startswith("it was killed") and sentences[1].startswith("its kernel was")
    ), said
    looked = call(training, "lib", "status", "tiny")
    assert looked.returncode == 1 and re.search("failed +1 of 2 +150 of 220", looked.stdout), looked.stdout
    assert "d8 failed in cell [3] of data/tiny/notebooks/03_train-rich-d8.ipynb\n    import cells" in looked.stdout
    assert call(training, "lib", "run", "tiny").returncode == 0
    assert len(kept) == 2 and {path: path.read_bytes() for path in kept} == kept
    assert results(training) == expected
    return f"the others go on; it says “{sentences[1]}”; training ends with the same weights"


@fault("the scheduler is killed", AGAIN)
def test_a_killed_scheduler_leaves_no_process_and_is_continued(project):
    shutil.rmtree(project / "data" / "tiny" / "rich" / "runs")
    run = call(project, "lib", "run", "tiny", wait=False, environment={"SLEEP": "600"})
    wait_until(lambda: len(working(project)) == 2)
    process(run, "lib.run.events").kill()
    said, _ = run.communicate(timeout=240)
    wait_until(lambda: not working(project))
    assert run.returncode == 1 and "failed" not in said
    assert call(project, "lib", "run", "tiny").returncode == 0
    assert standing(project) == set()
    return f"its notebooks are stopped; it says “{said.splitlines()[-1]}”"


@fault("runner and scheduler are killed at once, and notebooks stay at work", AGAIN)
def test_what_a_killed_run_has_left_at_work_is_stopped_before_a_new_run_starts(project):
    shutil.rmtree(project / "data" / "tiny" / "rich" / "runs")
    run = call(project, "lib", "run", "tiny", wait=False, environment={"SLEEP": "600"})
    wait_until(lambda: len(working(project)) == 2)
    scheduler = process(run, "lib.run.events")
    run.send_signal(signal.SIGSTOP)  # else the one that dies last stops the notebooks
    scheduler.kill()
    run.kill()
    run.communicate()
    orphans = working(project)
    assert len(orphans) == 2
    again = call(project, "lib", "run", "tiny")
    assert again.returncode == 0 and not set(working(project)) & set(orphans)
    assert standing(project) == set()
    return f"the next run stops them first; it says “{again.stdout.splitlines()[0]}”"


@fault("the same study is run twice at the same time", "wait for the first, or stop it")
def test_of_two_runs_started_at_once_one_is_refused_and_the_other_ends_well(project):
    shutil.rmtree(project / "data")
    both = [call(project, "lib", "run", "tiny", wait=False, environment={"SLEEP": "1"}) for _ in range(2)]
    said = {run.communicate(timeout=240)[0]: run.returncode for run in both}
    assert sorted(said.values()) == [0, 2], said
    refused = next(text for text, code in said.items() if code == 2)
    assert refused.count("\n") == 1 and standing(project) == set()
    assert len(list(project.rglob("result.json"))) == 8
    return f"one is refused: “{refused.strip()}”"


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


@fault("the disk is full", "make room, and run it again")
def test_a_full_disk_is_one_sentence_and_training_ends_with_the_same_weights(training, expected):
    with mounted(training / "data"):
        with held(training) as (run, hold):
            filler = training / "data" / "filler"
            with suppress_full(), filler.open("wb", buffering=0) as disk:
                while True:
                    disk.write(bytes(2**12))
            hold.unlink()
            said, _ = run.communicate(timeout=240)
        sentence = said.splitlines()[-1]
        assert run.returncode == 1 and "Traceback" not in said and "is full" in sentence, said
        refused = call(training, "lib", "run", "tiny")
        assert refused.returncode == 2 and refused.stdout.count("\n") == 1 and "No space left" in refused.stdout
        filler.unlink()
        again = call(training, "lib", "run", "tiny")
        assert again.returncode == 0, again.stdout
        assert results(training) == expected
    return f"it says “{sentence}”; no checkpoint is lost, and training ends with the same weights"


@contextmanager
def suppress_full():
    try:
        yield
    except OSError as error:
        assert "No space left" in str(error)


@fault("the folder of data or of figures is read-only", "make it writable, and run it again")
def test_a_read_only_folder_is_refused_in_one_sentence_before_any_work(project):
    said = {}
    for name in ("figures", "data"):
        with mounted(project / name):
            subprocess.run(["mount", "-o", "remount,ro", project / name], check=True)
            run = call(project, "lib", "run", "tiny")
        assert run.returncode == 2 and run.stdout.count("\n") == 1, run.stdout
        said[name] = run.stdout.strip()
    assert standing(project) == set()
    return f"it is refused before any work: “{said['figures']}”"


def test_every_row_of_the_table_has_a_test_and_is_in_the_readme():
    assert sorted(row[0] for row in rows()) == sorted(named())
    readme = (io.CODE / "README.md").read_text()
    assert [row for row in rows() if f"| {' | '.join(row)} |" not in readme] == []
