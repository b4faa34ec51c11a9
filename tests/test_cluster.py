"""Runs on a cluster: what a job asks for, what is refused before work starts, and studies through a real SLURM.

Without SLURM (tests/slurm.py installs it where it can) the last part is skipped, loudly.
"""

import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pandas as pd
import psutil
import pytest
import slurm
import yaml
from test_workflow import NOTEBOOKS, working

from lib import fit, io
from lib.data import panel, simulate
from lib.fit import runs, summary
from lib.io import InputError
from lib.model import sizes
from lib.run import cluster, workflow
from lib.run.progress import Batch
from lib.study import load_study
from lib.train import baselines, loop

TIMES = ["seconds", "cells_per_second"]
LADDER = ["XXS", "TINY", "XS", "S", "M", "L", "XL"]
WIDE = {
    "census": {"simulate": {"cells": 100_000, "genes": 2000}},
    "regimes": {"few": {"genes": 512, "cells": 1000}, "many": {"genes": 512, "cells": 90_000}},
    "sizes": LADDER,
    "seeds": [7, 8, 9],
}
SECONDS = {
    "census": {
        "simulate": {"cells": 600, "genes": 120, "transcriptome": 120, "states": 8, "donors": 12, "profiles": 2}
    },
    "regimes": {"rich": {"genes": 24, "cells": 300}},
    "split": {"validation": 0.1, "test": 0.1},
    "sizes": ["XXS", *({"name": f"d{d}", "d": d, "layers": 1} for d in (4, 8, 16))],
    "seeds": [7],
    "train": {"cells_seen": 640, "learning_rate": 0.008, "evaluations": 2},
    "fit": {"resamples": 100},
}
STAND_IN = """
import json, os, sys, time
from pathlib import Path
source, target = map(Path, sys.argv[1:3])
given = dict(zip(sys.argv, sys.argv[1:]))  # each word and the one after it
regime, size, root = given.get("regime", ""), given.get("size", ""), Path("../..")
target.with_name(f"pid-{os.getpid()}").touch()
target.write_text(source.read_text())
results = sorted(Path(".").glob("*/runs/*/*/result.json"))
outputs = {
    "01_data": [f"{regime}/panel.h5ad", f"{regime}/baselines.json"], "02_model": ["sizes.csv"],
    "03_train": [f"{regime}/runs/{size}/seed-{seed}/result.json" for seed in (7, 8)],
    "04_fit": ["runs.csv", "laws.json"], "05_figures": ["../../figures/tiny/law.png"],
}[source.stem]
for path in map(Path, outputs):
    path.parent.mkdir(parents=True, exist_ok=True)
    if source.stem == "03_train" and path.exists():  # as training does, which knows its finished runs
        continue
    while "seed-8" in str(path) and (root / "hold").exists():
        time.sleep(0.05)
    rows = ["regime,size,seed", *(",".join(result.parts[i] for i in (0, 2, 3)) for result in results)]
    path.write_text("\\n".join(rows) if path.name == "runs.csv" else '{"validation": {"bayes_mse": 0.5}}')
    with (root / "written").open("a") as written:
        written.write(f"{path}\\n")
"""
"""In place of papermill: the second seed of a size is trained while no file `hold` is there; all writes are noted."""
RUNS = {f"rich/runs/{size}/seed-{seed}/result.json" for size in ("XXS", "TINY") for seed in (7, 8)}


@pytest.fixture
def wide(project):
    """The seven published sizes, as a file in a project of its own with the profiles of this one."""
    (project / "params" / "wide.yaml").write_text(yaml.safe_dump(WIDE))
    shutil.copytree(io.CODE / "profiles", project / "profiles")
    return load_study("wide")


def edit(project, **changes):
    """Change keys of profiles/slurm, as its user does."""
    path = project / "profiles" / "slurm" / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def test_a_larger_size_and_more_cells_never_ask_for_less(wide):
    for regime in wide.regimes:
        asked = [
            (workflow.megabytes(wide, "train", regime, size), workflow.gpus(wide, regime, size)) for size in LADDER
        ]
        assert asked == sorted(asked) and asked[0][0] < asked[-1][0]
        asked = [workflow.gpus(wide, regime, size) for size in LADDER]
        assert asked == sorted(asked) and (asked[0], asked[-1]) == (0, 1)
        for on_gpu in (0, 1):
            same = [size for size, gpus in zip(LADDER, asked, strict=True) if gpus == on_gpu]
            times = [workflow.minutes(wide, "train", regime, size) for size in same]
            assert times == sorted(times) and times[0] < times[-1]
    assert workflow.megabytes(wide, "data", "few") < workflow.megabytes(wide, "data", "many")
    assert workflow.minutes(wide, "data", "few") < workflow.minutes(wide, "data", "many")


def test_a_job_asks_for_more_than_is_expected_and_for_twice_that_when_tried_again(wide):
    assert 60 * workflow.minutes(wide, "train", "few", "XS") > sum(workflow.seconds(wide, "train", "few", "XS"))
    assert 1e6 * workflow.megabytes(wide, "train", "few", "XL") > wide.size("XL").memory(512)
    for ask in (workflow.megabytes, workflow.minutes):
        assert ask(wide, "fit", attempt=2) == pytest.approx(2 * ask(wide, "fit"), abs=1)


PLAN = """
import sys
from snakemake.cli import main
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry
from lib import events
class LogHandler(events.LogHandler):
    def emit(self, record):
        if getattr(record, "event", None) == "job_info":
            events.say(record.rule_msg, **{name: str(value) for name, value in dict(record.resources).items()})
        elif record.levelname in ("ERROR", "CRITICAL"):
            print(record.getMessage())
events.LogHandler = LogHandler
events.let_pods_share_files()
LoggerPluginRegistry().register_plugin("snakemake_logger_plugin_events", events)
main([*sys.argv[1:], "--dry-run", "--logger", "events"])
"""


def plugin(executor):
    """Skip the test where Snakemake's plugin is not installed: both are optional."""
    if not importlib.util.find_spec(f"snakemake_executor_plugin_{executor}"):
        extra = cluster.EXTRAS[executor]
        pytest.skip(f"NO {executor.upper()} PLUGIN, so that its profile was not tried: pip install {extra}")


def requests(profile):
    """What each job of the plan asks for, as Snakemake understands it: {title: {resource: value}}."""
    plugin(profile.name)
    words = ["--profile", str(profile), "--snakefile", str(io.CODE / "Snakefile"), "--config", "study=wide"]
    done = subprocess.run([sys.executable, "-c", PLAN, *words], capture_output=True, text=True, cwd=profile)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"event"')]
    return {job.pop("event"): job for job in asked}


def test_snakemake_takes_requests_from_the_size_and_a_profile_overrides_them_by_rule_and_size(wide, project):
    edit(project, **{"set-resources": {"train": {"runtime": "2880 if wildcards.size == 'XL' else 60", "gpu": 0}}})
    plan = requests(project / "profiles" / "slurm")
    large, small = plan["training XL on few"], plan["training XXS on few"]
    assert (large["runtime"], small["runtime"]) == ("2880", "60") and (large["gpu"], small["gpu"]) == ("0", "0")
    assert large["mem_mb"] == str(workflow.megabytes(wide, "train", "few", "XL"))


def test_snakemake_accepts_the_kubernetes_profile_and_plans_gpus_by_size(wide, project):
    plan = requests(project / "profiles" / "kubernetes")
    assert (plan["training XL on few"]["gpu"], plan["training XXS on few"]["gpu"]) == ("1", "0")
    assert plan["training XL on few"]["gpu_manufacturer"] == "nvidia"


def test_a_profile_that_cannot_work_is_refused_in_one_sentence(wide, project, monkeypatch):
    monkeypatch.setattr(cluster.shutil, "which", lambda command: None)
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None if "lsf" in name else name)
    contents = {
        "text": ("just words", "names no executor"),
        "jobs": ("{executor: slurm, jobs: many}", "at least 1"),
        "broken": ("executor: [", "not valid YAML"),
        "mine": ("executor: lsf", r"snakemake-executor-plugin-lsf, which is not installed here; install it: .*pip"),
    }
    for name, (content, said) in contents.items():
        (project / "profiles" / name).mkdir()
        (project / "profiles" / name / "config.yaml").write_text(content)
        with pytest.raises(InputError, match=said):
            cluster.load(name)
    with pytest.raises(InputError, match="sbatch, which is not on the PATH"):
        cluster.load("slurm")


def test_an_unknown_profile_names_the_ones_that_are_there_before_any_work(wide, project):
    for name, said in (("slrum", "did you mean slurm?"), ("x", "profiles/ has kubernetes, slurm."), ("../x", "has")):
        run = start(project, "wide", profile=name)
        out, _ = run.communicate(timeout=120)
        assert (run.returncode, out.count("\n")) == (2, 1) and said in out, out
    assert not (project / "data").exists()


def test_names_of_jobs_tell_studies_and_folders_apart_and_are_what_the_plugin_takes(wide, monkeypatch, tmp_path):
    odd = wide.model_copy(update={"name": "a.very.long.name" * 5})
    names = {cluster.prefix(wide), cluster.prefix(odd)}
    monkeypatch.setattr(io, "ROOT", tmp_path / "elsewhere")
    names.add(cluster.prefix(wide))
    assert len(names) == 3 and all(re.fullmatch("[A-Za-z0-9_-]{1,50}", name) for name in names)


@pytest.fixture
def sent(wide):
    """A batch with one training job that has been sent to a cluster, and the place of its notebook."""
    batch, logs = Batch(wide, cores=100, queues=True), ["notebooks/t.ipynb", "notebooks/t.log"]
    place = {"regime": "few", "size": "XS"}
    info = {"event": "job_info", "id": 1, "rule": "train", "wildcards": place, "title": "t", "log": logs}
    for event in (info, {"event": "start"}, info):
        batch.read(event)
    notebook = wide.data / logs[0]
    notebook.parent.mkdir(parents=True)
    return batch, notebook


def test_a_job_in_the_queue_is_not_at_work_and_its_time_does_not_run(sent):
    batch, notebook = sent
    job, expected = batch.jobs[1], sum(workflow.seconds(batch.study, "train", "few", "XS"))
    job.start -= 1000
    batch.look(job)
    assert (batch.submitted, batch.running, job.elapsed) == ([job], [], 0.0)
    assert batch.left() == pytest.approx(expected)
    notebook.with_suffix(".log").touch()  # as a job does first of all
    batch.look(job)
    assert batch.running == [job] and 0 <= job.elapsed < 500


def test_a_job_that_failed_in_the_queue_is_blamed_on_the_cluster_and_not_on_an_old_notebook(sent):
    batch, notebook = sent
    error = {"cells": [{"outputs": [{"output_type": "error", "ename": "InputError", "evalue": "old"}]}]}
    io.write_json(notebook, error)
    end = {"event": "job_error", "id": 1, "text": "SLURM said no.", "log": [*batch.jobs[1].log, "slurm.log"]}
    job = batch.read(end)
    assert cluster.word(batch.study, job) == ("SLURM said no.", batch.study.data / "slurm.log")
    job.waiting = False
    assert cluster.word(batch.study, job) is None  # it did begin, and the notebook knows better
    job.said = "SLURM-job '3' failed, SLURM status is: 'TIMEOUT'."
    assert cluster.word(batch.study, job) == (job.said, batch.study.data / "slurm.log")


def test_threads_are_those_of_the_job_not_of_the_whole_node(monkeypatch):
    monkeypatch.setattr(sizes.os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    monkeypatch.setattr(sizes.os, "cpu_count", lambda: 64)
    assert sizes.PUBLISHED["XL"].threads(512) == 2


def start(project, study, profile="slurm", environment=None):
    environment = (environment or os.environ) | {"PYTHONUNBUFFERED": "1"}
    words = [sys.executable, "-m", "lib", "run", study, *(["--profile", profile] if profile else [])]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, cwd=project, env=environment, **pipes)


def finish(run, code=0):
    said, _ = run.communicate(timeout=1500)
    assert run.returncode == code, said
    return said


@pytest.fixture(scope="module")
def node():
    """A cluster of one node with two cores, for the tests of this module."""
    plugin("slurm")
    try:
        with slurm.running() as running:
            yield running
    except slurm.Unavailable as why:
        pytest.skip(f"NO SLURM, so that no run on a cluster was tested: {why}")


def profiles(project):
    """The shipped profiles; for a cluster without accounting, and in a hurry."""
    shutil.copytree(io.CODE / "profiles", project / "profiles")
    edit(
        project,
        **{"slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 1, "latency-wait": 10},
    )


def test_a_study_through_slurm_has_the_runs_and_laws_that_the_same_study_has_here(node, project):
    (project / "params" / "tiny.yaml").write_text(yaml.safe_dump(SECONDS))
    profiles(project)
    said = finish(start(project, "tiny", environment=node.environment | {"SCALING_ROOT": str(project)}))
    study = load_study("tiny")
    table, laws = pd.read_csv(study.data / "runs.csv"), io.read_json(study.data / "laws.json")
    assert not node.jobs()
    answer = summary.laws_table(laws, runs.baselines(study)).to_string(index=False).splitlines()
    jobs = {line.split("] ")[1].split(":")[0] for line in said.splitlines() if line.startswith("[")}
    assert set(answer) <= set(said.splitlines()) and "Figures: figures/tiny/" in said.splitlines()[-2]
    assert len(jobs) == 3 + len(study.sizes) + 1, said
    shutil.rmtree(study.data)
    expected = trained_here(study).drop(columns=TIMES)
    io.write_csv(project / "expected.csv", expected)
    pd.testing.assert_frame_equal(table.drop(columns=TIMES), pd.read_csv(project / "expected.csv"))
    again = fit.fit_laws(runs.collect(study), study.fit.resamples, study.fit.seed, study.fit.level)
    io.write_json(project / "expected.json", runs.with_provenance(again, study))
    assert laws == io.read_json(project / "expected.json")


def trained_here(study):
    """The table of all runs of a study, trained in this process by the calls of the notebooks."""
    for regime in study.regimes:
        cells = panel.read(panel.build(study, regime))
        measured = baselines.measure(cells, simulate.truth(study.census.simulate))
        io.write_json(study.folder(regime) / "baselines.json", measured)
        data = panel.arrays(cells)
        for size, seed in itertools.product(study.sizes, study.seeds):
            loop.train(data, size, seed, study.training(regime), study.run_folder(regime, size.name, seed))
    return runs.collect(study)


@pytest.fixture
def held(node, tmp_path):
    """A project with stand-ins for the notebooks: its training stops after the first seed while `hold` is there."""
    project = tmp_path / "project"
    shutil.copytree(io.CODE / "lib", project / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(io.CODE / "Snakefile", project)
    for name in ("papermill", "params", "notebooks"):
        (project / name).mkdir()
    (project / "papermill" / "__init__.py").touch()
    (project / "papermill" / "__main__.py").write_text(STAND_IN)
    (project / "lib" / "fit" / "__init__.py").write_text("def answer(laws, floors):\n    return ['the answer']\n")
    for name, source in NOTEBOOKS.items():
        cells = [{"cell_type": "code", "source": source, "outputs": []}]
        (project / "notebooks" / f"{name}.ipynb").write_text(json.dumps({"cells": cells}))
    study = SECONDS | {"sizes": ["XXS", "TINY"], "seeds": [7, 8]}
    (project / "params" / "tiny.yaml").write_text(yaml.safe_dump(study))
    profiles(project)
    (project / "hold").touch()
    return project


def again(project, node):
    """The command that runs the study."""
    environment = node.environment | {"PYTHONPATH": str(project)}
    environment.pop("SCALING_ROOT", None)
    return start(project, "tiny", environment=environment)


def at_work(project):
    """Whether the first seeds of both sizes are finished, and both jobs at work on the second."""
    finished = [project / "data/tiny/rich/runs" / size / "seed-7/result.json" for size in ("XXS", "TINY")]
    return len(working(project)) == 2 and all(result.is_file() for result in finished)


def begin(project, node):
    """Run the study until the second seeds of both sizes are at work. Returns the run."""
    left, run = node.jobs(), again(project, node)
    node.wait(lambda: run.poll() is not None or (not set(left) & set(node.jobs()) and at_work(project)))
    assert run.poll() is None, run.communicate()
    return run


def crash(run):
    """The machine that the run was started on goes down: the runner and Snakemake are gone at once."""
    processes = [*psutil.Process(run.pid).children(recursive=True), psutil.Process(run.pid)]
    for process in processes:
        process.suspend()  # so that none of them hears of the others' end
    for process in processes:
        process.kill()
    run.wait()


def test_whatever_stops_a_run_or_its_jobs_the_same_command_goes_on_without_loss_or_repetition(node, held):
    run = begin(held, node)
    run.send_signal(signal.SIGINT)
    assert "Stopped." in finish(run, code=130)
    assert not node.jobs() and not working(held)  # a stopped run leaves no job on the cluster

    run = begin(held, node)
    crash(run)
    assert len(node.jobs()) == len(working(held)) == 2  # a crash does; the next run cancels them (see begin)

    run = begin(held, node)
    node.kill_node()
    assert not working(held)
    node.restart_node()
    node.wait(lambda: at_work(held))  # SLURM starts the jobs of a failed node again, and the run goes on
    assert run.poll() is None

    slow, unwanted = node.jobs()
    node("scontrol", "update", f"JobId={slow}", "EndTime=now")
    node("scancel", unwanted)
    said = finish(run, code=1)
    assert said.count("failed: SLURM-job") == 2 and "TIMEOUT" in said and "CANCELLED" in said, said
    (held / "hold").unlink()
    assert "the answer" in finish(again(held, node))

    written = (held / "written").read_text().splitlines()
    assert sorted(line for line in written if line.endswith("result.json")) == sorted(RUNS)
    table = pd.read_csv(held / "data/tiny/runs.csv")
    assert len(table) == len(RUNS) and not table.duplicated().any()
