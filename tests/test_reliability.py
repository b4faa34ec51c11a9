"""What goes wrong on one machine: processes killed, the disk full, folders read-only. A clear end, and nothing lost.

The command line, Snakemake, papermill, kernels and the training loop are the real ones; only 03_train's data is small.
"""

import importlib.util
import json
import re
import shutil
import signal
import subprocess
from contextlib import contextmanager, suppress

import psutil
import pytest
from conftest import wait
from test_workflow import PAPERMILL, STUDY, call, finished, planned, project, working, write_study

from lib import io
from lib.study import parse_study
from lib.train import loop

EXACT = ("validation_mse", "test_mse", "weights_sha256", "updates")
REAL = """
import importlib, sys
def real(*arguments, **options):
    # the real papermill, which this folder hides
    path, sys.path[:] = sys.path[:], [place for place in sys.path if place != __file__.rpartition("/papermill/")[0]]
    for name in [name for name in sys.modules if name.split(".")[0] == "papermill"]:
        del sys.modules[name]
    module = importlib.import_module("papermill.execute")
    sys.path[:] = path
    return module.execute_notebook(*arguments, **options)
"""
REAL_CALL = "real(source, target, parameters, **options)"
CELLS = """
import os, time
from types import SimpleNamespace
import numpy as np

def panel():
    rng = np.random.default_rng(0)
    rows, masks = np.split(np.arange(80), [60, 70]), np.argsort(rng.random((10, 2, 16)))[..., :3]
    held, x = {"validation": rows[1], "test": rows[2]}, rng.random((80, 16), dtype=np.float32)
    cells = {"x": x, "counts": None, "library": np.ones(80), "donor": np.arange(80) % 5}
    return SimpleNamespace(**cells, train=rows[0], held=held, masks=dict.fromkeys(held, masks))

def hold(done, total, loss):
    while done == 40 and os.path.exists(os.environ.get("HOLD", "")):
        time.sleep(0.05)
"""
TRAIN = """
import cells
from lib.study import load_study
from lib.train import loop
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
    first = "    notebook = json.loads"
    script = PAPERMILL.replace(first, f"    if name == '03_train':\n        return {REAL_CALL}\n{first}", 1)
    (project / "papermill" / "execute.py").write_text(REAL + script)
    (project / "cells.py").write_text(CELLS)
    cells = [
        {"cell_type": "code", "source": source, "metadata": {"tags": tags}, "outputs": [], "execution_count": None}
        for source, tags in (('study = ""\nregime = ""\nsize = ""', ["parameters"]), (TRAIN, []))
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
    """{(size, seed): what the runs of a project ended with}."""
    records = [io.read_json(path) for path in (project / "data" / "tiny").rglob("result.json")]
    return {(record["size"], record["seed"]): [record[name] for name in EXACT] for record in records}


@contextmanager
def held(project):
    """A run that stands still in the middle of the last seed of every size; gives (process, file to remove)."""
    hold = project / "still"
    hold.touch()
    run = call(project, "lib", "run", "tiny", wait=False, environment={"HOLD": str(hold)})
    try:
        wait(lambda: run.poll() is not None or all(_stands(project, size) for size in ("d8", "d16")))
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


def test_a_killed_kernel_and_a_killed_job_lose_nothing_and_write_nothing_more(training, expected):
    with held(training) as (run, hold):
        small, large = (process(run, "lib.run.workflow", f"size={size}") for size in ("d8", "d16"))
        kernel, orphan = (job.children()[0] for job in (small, large))
        kept = {path: path.read_bytes() for path in training.rglob("seed-7/result.json")}
        looked = call(training, "lib", "status", "tiny")
        assert looked.returncode == 0 and len(re.findall("running +1,[6-9][0-9]+ of 3,200", looked.stdout)) == 2, (
            looked.stdout
        )
        kernel.kill()
        large.kill()
        wait(lambda: not orphan.is_running())
        hold.unlink()
        said, _ = run.communicate(timeout=240)
    assert run.returncode == 1 and "Traceback" not in said and said.count("FAILED") == 2, said
    assert "d8.log: the kernel was killed" in said and "d16.log: it was killed" in said, said
    assert call(training, "lib", "run", "tiny").returncode == 0
    assert len(kept) == 2 and {path: path.read_bytes() for path in kept} == kept
    assert results(training) == expected


def test_a_full_disk_is_named_and_training_ends_with_the_same_weights(training, expected):
    with mounted(training / "data"):
        with held(training) as (run, hold):
            filler = training / "data" / "filler"
            with suppress(OSError), filler.open("wb", buffering=0) as disk:
                while True:
                    disk.write(bytes(2**12))
            hold.unlink()
            said, _ = run.communicate(timeout=240)
        assert run.returncode == 1 and "The disk that holds data/tiny/ is full." in said, said
        refused = call(training, "lib", "run", "tiny")
        assert refused.returncode == 2 and "No space left" in refused.stdout, refused.stdout
        filler.unlink()
        again = call(training, "lib", "run", "tiny")
        assert again.returncode == 0, again.stdout
        assert results(training) == expected


def test_a_read_only_folder_is_refused_before_any_work(project):
    for name in ("figures", "data"):
        with mounted(project / name):
            subprocess.run(["mount", "-o", "remount,ro", project / name], check=True)
            run = call(project, "lib", "run", "tiny")
        assert run.returncode == 2 and run.stdout.count("\n") == 1 and "cannot be written" in run.stdout, run.stdout
    assert planned(project) == set()


@pytest.mark.parametrize("both", [False, True], ids=["Snakemake", "Snakemake and its runner"])
def test_a_killed_scheduler_leaves_no_process_and_is_continued(project, both):
    shutil.rmtree(project / "data" / "tiny" / "rich" / "runs")
    (project / "hold").touch()
    run = call(project, "lib", "run", "tiny", wait=False)
    wait(lambda: len(working(project)) == 2)
    scheduler = process(run, "-m snakemake")
    if both:
        run.send_signal(signal.SIGSTOP)  # so that it hears nothing of the scheduler's end
    scheduler.kill()
    if both:
        run.kill()
    said, _ = run.communicate(timeout=240)
    wait(lambda: not working(project))
    assert run.returncode == (-9 if both else 1) and "FAILED" not in said, said
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
