"""The batch: what reruns after a change, what survives, how the runner behaves. A script stands in for papermill."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import filelock
import pytest
import yaml
from reliability import fault

from lib import io
from lib.run import progress, steps, workflow
from lib.run.progress import Batch, spoken
from lib.study import load_study, parse_study

STUDY = {
    "census": {"simulate": {"cells": 2000, "genes": 100}},
    "regimes": {"rich": {"genes": 64, "cells": 1000}, "limited": {"genes": 32, "cells": 200}},
    "sizes": ["XXS", "TINY"],
    "seeds": [7, 8],
    "train": {"cells_seen": 6400},
}
NOTEBOOKS = {
    "01_data": "from lib import panel, params",
    "02_model": "from lib import model, params",
    "03_train": "%time\nfrom lib import params\nfrom lib.train import train",
    "04_fit": "from lib import runs",
    "05_figures": "from lib import figures",
}
PAPERMILL = """
import json, os, sys, time
from pathlib import Path
source, target = map(Path, sys.argv[1:3])
given = dict(zip(sys.argv, sys.argv[1:]))  # each word and the one after it
study, regime, size = (given.get(name, "") for name in ("study", "regime", "size"))
notebook = json.loads(source.read_text())
if os.environ.get("FAIL") == source.stem + regime:
    notebook["cells"][0]["outputs"] = [{"output_type": "error", "ename": "InputError", "evalue": "no such cells."}]
target.write_text(json.dumps(notebook))
if "FAIL" in os.environ and notebook["cells"][0]["outputs"]:
    sys.exit(1)
target.with_name(f"pid-{os.getpid()}").touch()
time.sleep(float(os.environ.get("SLEEP", 0)))
seeds = [line for line in Path(f"../../params/{study}.yaml").read_text().splitlines() if line.startswith("seeds: ")]
seeds = json.loads(seeds[0].removeprefix("seeds: "))
outputs = {
    "01_data": [f"{regime}/panel.h5ad", f"{regime}/baselines.json"], "02_model": ["sizes.csv"],
    "03_train": [f"{regime}/runs/{size}/seed-{seed}/result.json" for seed in seeds],
    "04_fit": ["runs.csv", "laws.json"], "05_figures": [f"../../figures/{study}/law.png"],
}[source.stem]
for name in map(Path, outputs):
    name.parent.mkdir(parents=True, exist_ok=True)
    if source.stem != "03_train" or not name.exists():  # as training does, which knows its finished runs
        name.write_text(json.dumps({"validation": {"bayes_mse": 0.5}, "made": time.time()}))
"""


def write_study(project, **changes):
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in (STUDY | changes).items())
    (project / "params" / "tiny.yaml").write_text(text)


def call(project, *words, **more):
    """Run Python in a copy of the project, with its own lib and the script in place of papermill."""
    environment = os.environ | {"PYTHONPATH": str(project), "SLEEP": "0"} | more.pop("environment", {})
    environment.pop("SCALING_ROOT", None)
    run = subprocess.Popen if more.pop("wait", True) is False else subprocess.run
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return run([sys.executable, "-m", *words], cwd=project, env=environment, **pipes, **more)


def planned(project):
    """Titles of the jobs that Snakemake would run."""
    dry_run = call(project, "snakemake", "--dry-run", "--config", "study=tiny")
    assert dry_run.returncode == 0, dry_run.stdout
    return set(re.findall(r"Job \d+: (.*)", dry_run.stdout))


TITLES = {
    "data": "reading the cells of {regime}", "model": "counting parameters", "train": "training {size} on {regime}",
    "fit": "fitting the law", "figures": "drawing the figures",
}  # fmt: skip


def standing(project, *wanted):
    """What `make status` tells of the study: titles of the steps that stand so, or that are not done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "ROOT", project)
        patch.setattr(io, "CODE", project)
        study = load_study("tiny")
        found = steps.look(study, progress.last(study))
    chosen = [step for step in found if (step.state in wanted if wanted else step.state != "done")]
    return {TITLES[step.rule].format(**step.place) for step in chosen}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A copy of the project with five small notebooks, and a study that has been run to its end."""
    project = tmp_path_factory.mktemp("workflow") / "project"
    shutil.copytree(io.CODE / "lib", project / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(io.CODE / "Snakefile", project)
    for name in ("papermill", "params", "notebooks"):
        (project / name).mkdir()
    (project / "papermill" / "__init__.py").touch()
    (project / "papermill" / "__main__.py").write_text(PAPERMILL)
    (project / "lib" / "fit" / "__init__.py").write_text("def answer(laws, floors):\n    return [f'floors {floors}']\n")
    for name, source in NOTEBOOKS.items():
        cells = [{"cell_type": "code", "source": source, "outputs": []}]
        (project / "notebooks" / f"{name}.ipynb").write_text(json.dumps({"cells": cells}))
    write_study(project)
    run = call(project, "lib", "run", "tiny")
    assert run.returncode == 0, run.stdout
    assert "floors {'rich': 0.5, 'limited': 0.5}" in run.stdout and "figures/tiny/" in run.stdout
    return project


@pytest.fixture
def project(finished, tmp_path):
    """The finished project, moved elsewhere; every path in Snakemake's records must survive that."""
    return shutil.copytree(finished, tmp_path / "moved", dirs_exist_ok=True)


TRAIN = {f"training {size} on {regime}" for size in ("XXS", "TINY") for regime in ("rich", "limited")}
DATA = {"reading the cells of rich", "reading the cells of limited"}
END = {"fitting the law", "drawing the figures"}
LIMITED = {"training XXS on limited", "training TINY on limited"}


def test_nothing_reruns_in_an_unchanged_project_that_was_moved_or_touched(project):
    for path in [*project.glob("lib/*.py"), *project.glob("notebooks/*")]:
        path.touch()
    assert planned(project) == standing(project) == set()


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"seeds": [7, 8, 9]}, TRAIN | END),
        (
            {"sizes": ["XXS", "TINY", "XS"]},
            {"training XS on rich", "training XS on limited", "counting parameters"} | END,
        ),
        ({"fit": {"resamples": 200}}, END),
        ({"train": {"cells_seen": 640}}, TRAIN | END),
        ({"train": {"cells_seen": 6400, "library_size": "panel"}}, DATA | TRAIN | END),
        ({"split": {"seed": 5}}, DATA | TRAIN | END),
        (
            {"regimes": STUDY["regimes"] | {"limited": {"genes": 32, "cells": 300}}},
            {"reading the cells of limited"} | LIMITED | END,
        ),
    ],
    ids=["seed", "size", "fit", "train", "normaliser", "split", "cells of one regime"],
)
def test_a_changed_key_reruns_what_depends_on_it_and_only_that(project, changes, expected):
    write_study(project, **changes)
    assert planned(project) == standing(project) == expected


@pytest.mark.parametrize(
    "module, expected",
    [
        ("draw", DATA | TRAIN | END),
        ("model", {"counting parameters"} | TRAIN | END),
        ("figures/look", {"drawing the figures"}),
        ("status", set()),
    ],
)
def test_a_changed_module_reruns_what_imports_it_and_only_that(project, module, expected):
    with (project / "lib" / f"{module}.py").open("a") as source:
        source.write("# changed\n")
    assert planned(project) == standing(project) == expected


@fault("a module, a notebook, a panel or a run is changed or lost", "run it again")
def test_a_changed_module_notebook_or_lost_run_reruns_what_depends_on_it_and_only_that(project):
    notebook = project / "notebooks" / "05_figures.ipynb"
    content = json.loads(notebook.read_text())
    content["cells"][0]["outputs"] = [{"output_type": "stream", "text": "seen in JupyterLab"}]
    notebook.write_text(json.dumps(content))
    assert planned(project) == standing(project) == set()
    content["cells"][0]["source"] += "\n1 + 1"
    notebook.write_text(json.dumps(content))
    assert planned(project) == standing(project) == {"drawing the figures"}
    with (project / "lib" / "runs.py").open("a") as module:
        module.write("# changed\n")
    assert planned(project) == standing(project) == END
    shutil.rmtree(project / "data" / "tiny" / "rich" / "runs" / "XXS" / "seed-8")
    assert planned(project) == standing(project) == {"training XXS on rich"} | END
    (project / "data" / "tiny" / "limited" / "panel.h5ad").unlink()
    expected = {"training XXS on rich", "reading the cells of limited"} | LIMITED | END
    assert planned(project) == standing(project) == expected
    return "what depends on it is made again, and nothing else"


def test_finished_runs_survive_a_new_seed_and_a_failing_one(project):
    results = {path: path.read_bytes() for path in (project / "data").rglob("result.json")}
    assert len(results) == 8
    write_study(project, seeds=[7, 8, 9])
    failed = call(project, "lib", "run", "tiny", environment={"FAIL": "03_trainrich"})
    assert failed.returncode == 1
    assert {path: path.read_bytes() for path in results} == results
    assert call(project, "lib", "run", "tiny").returncode == 0
    assert {path: path.read_bytes() for path in results} == results
    assert len(list((project / "data").rglob("result.json"))) == 12
    assert planned(project) == set()


@fault("a notebook fails", "mend what it names, and run it again; `make status` shows the cell")
def test_a_failing_notebook_is_one_sentence_and_the_others_go_on(project):
    shutil.rmtree(project / "data")
    run = call(project, "lib", "run", "tiny", environment={"FAIL": "01_datarich"})
    said = "reading the cells of rich failed: InputError: no such cells. (see data/tiny/notebooks/01_data-rich.ipynb)"
    assert run.returncode == 1
    assert said in run.stdout and "Traceback" not in run.stdout and run.stdout.count("failed") == 1
    assert (project / "data" / "tiny" / "limited" / "runs" / "TINY" / "results.txt").is_file()
    assert not (project / "data" / "tiny" / "laws.json").exists()
    told = call(project, "lib", "status", "tiny")
    assert told.returncode == 1 and ", 1 failed;" in told.stdout
    assert "01_data rich failed in cell [1] of data/tiny/notebooks/01_data-rich.ipynb" in told.stdout
    assert standing(project, "waiting") == LIMITED ^ TRAIN | END
    return f"what does not depend on it goes on; it says “{said}”"


def test_a_run_is_refused_in_one_sentence_before_any_work(project):
    write_study(project, seeds=[])
    (project / "params" / "mine.yaml").write_text(yaml.safe_dump(STUDY | {"census": {"h5ad": ["absent/*.h5ad"]}}))
    for name, words in (("tiny", "seeds"), ("tinny", "did you mean tiny"), ("mine", "absent/*.h5ad")):
        run = call(project, "lib", "run", name)
        assert (run.returncode, run.stdout.count("\n")) == (2, 1), run.stdout
        assert words in run.stdout
    assert not (project / "data" / "mine").exists()


def test_two_runs_of_one_study_do_not_mix(project):
    with filelock.FileLock(project / "data" / "tiny" / ".lock"):
        run = call(project, "lib", "run", "tiny")
    assert run.returncode == 2 and "already being run" in run.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
@fault("a run is stopped with Ctrl-C, or its runner is ended or killed", "run it again")
def test_a_stopped_run_leaves_no_process_and_is_continued(project, number):
    shutil.rmtree(project / "data" / "tiny" / "rich" / "runs")
    run = call(project, "lib", "run", "tiny", wait=False, environment={"SLEEP": "60"})
    wait_until(lambda: len(working(project)) == 2)
    at_work, before = {"training XXS on rich", "training TINY on rich"}, snapshot(project)
    wait_until(lambda: standing(project, "running") == at_work)
    assert standing(project, "waiting") == END and snapshot(project) == before
    run.send_signal(number)
    said, _ = run.communicate(timeout=240)
    assert run.returncode == (-9 if number == signal.SIGKILL else 130)
    assert "Traceback" not in said and "failed" not in said
    wait_until(lambda: not working(project))
    assert standing(project, "interrupted") == at_work
    assert call(project, "lib", "run", "tiny").returncode == 0
    assert planned(project) == set()
    return "its notebooks are stopped, and no process stays; finished work is not repeated"


def snapshot(project):
    """Every file of the study with the moment of its last change; the runner's own record apart."""
    paths = [path for path in (project / "data").rglob("*") if path.name != progress.RECORD and path.is_file()]
    return {path: path.stat().st_mtime_ns for path in paths if ".partial-" not in path.name}


def working(project):
    """Processes at work on a notebook of this project."""

    def alive(number):
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return False
        return True

    return [path for path in project.rglob("pid-*") if alive(int(path.name.removeprefix("pid-")))]


def wait_until(true, seconds=240):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def test_time_left_follows_the_learning_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "ROOT", tmp_path)
    study = parse_study(STUDY, "tiny")
    batch = Batch(study, cores=2)
    place = {"regime": "rich", "size": "TINY"}
    info = {"event": "job_info", "id": 1, "rule": "train", "wildcards": place, "title": "t", "log": ["a", "b"]}
    for event in (info, {**info, "id": 2, "rule": "fit", "wildcards": {}}, {"event": "start"}, info):
        assert batch.read(event) is None
    job, curve = batch.jobs[1], study.run_folder("rich", "TINY", 8) / "history.csv"
    job.start -= 1000
    assert batch.trained(job) == 0
    curve.parent.mkdir(parents=True)
    curve.write_text("update,cells_seen,loss\n0,0,2.0\n100,3200,1.0\n")
    assert batch.trained(job) == 0.75  # the second of two seeds is half way
    expected = (1000 - job.fixed) / 3 + workflow.START_SECONDS["fit"]
    assert batch.left() == pytest.approx(expected, rel=0.01)
    before = batch.share()
    assert 0 < before < 1
    assert batch.read({"event": "job_error", "id": 1}).failed
    assert batch.left() == workflow.START_SECONDS["fit"] and batch.share() > before
    os.utime(curve, (0, 0))  # a curve from an earlier run says nothing about this one
    job.end = None
    assert batch.trained(job) == 0


def test_durations_are_spoken():
    assert [spoken(seconds) for seconds in (4.4, 89, 150, 3570, 4800)] == [
        "4 s",
        "89 s",
        "2 min",
        "1 h 00 min",
        "1 h 20 min",
    ]
