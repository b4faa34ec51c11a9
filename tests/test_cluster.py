"""Runs on a cluster: what a job asks for, and a study through a real SLURM (skipped loudly where it is missing)."""

import importlib.util
import os
import signal
import subprocess
import sys

import pytest
import slurm
import yaml
from test_workflow import call, make_project, working, write_study

from lib.run import cli, workflow
from lib.study import parse_study

LADDER = ["XXS", "TINY", "XS", "S", "M", "L", "XL"]
WIDE = {
    "census": {"simulate": {"cells": 100_000, "genes": 2000}},
    "regimes": {"few": {"genes": 512, "cells": 1000}, "many": {"genes": 512, "cells": 90_000}},
    "sizes": LADDER,
    "seeds": [7, 8, 9],
}


def test_a_larger_size_and_more_cells_never_ask_for_less():
    study = parse_study(WIDE, "wide")
    asked = [workflow.Step(study, "train", "few", size) for size in LADDER]
    assert [step.gpus for step in asked] == sorted(step.gpus for step in asked) and asked[-1].gpus == 1
    assert [step.megabytes for step in asked] == sorted(step.megabytes for step in asked)
    assert 1e6 * asked[-1].megabytes > study.size("XL").memory(512)
    for gpus in (0, 1):
        minutes = [step.minutes for step in asked if step.gpus == gpus]
        assert minutes == sorted(minutes) and 30 <= minutes[0] < minutes[-1]
    few, many = (workflow.Step(study, "data", regime) for regime in ("few", "many"))
    assert few.megabytes < many.megabytes and few.minutes < many.minutes


def test_snakemake_takes_the_kubernetes_profile(tmp_path):
    if not importlib.util.find_spec("snakemake_executor_plugin_kubernetes"):
        pytest.skip("NO KUBERNETES PLUGIN, so that its profile was not tried: pip install -e '.[kubernetes]'")
    project = make_project(tmp_path / "project")
    words = [sys.executable, "-c", cli.KUBERNETES, "-n", "--profile", "profiles/kubernetes", "--config", "study=tiny"]
    done = subprocess.run(
        words, cwd=project, env=os.environ | {"PYTHONPATH": f"{project}:{os.environ.get('PYTHONPATH')}"}
    )
    assert done.returncode == 0


@pytest.fixture(scope="module")
def node():
    """A cluster of one node with two cores, for the tests of this module."""
    if not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        pytest.skip("NO SLURM PLUGIN, so that no run on a cluster was tested: pip install -e '.[cluster]'")
    try:
        with slurm.running() as running:
            yield running
    except slurm.Unavailable as why:
        pytest.skip(f"NO SLURM, so that no run on a cluster was tested: {why}")


@pytest.fixture
def project(node, tmp_path):
    """A project with stand-ins for the notebooks, and the shipped profile for a cluster without accounting."""
    project = make_project(tmp_path / "project")
    write_study(project, regimes={"rich": {"genes": 64, "cells": 1000}})
    path = project / "profiles" / "slurm" / "config.yaml"
    hurry = {"slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 1, "latency-wait": 10}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | hurry))
    (project / "hold").touch()
    return project


def start(project, node):
    """Run the study on the cluster until both its trainings are at work on their second seed."""
    run = call(project, "lib", "run", "tiny", "--profile", "slurm", wait=False, environment=node.environment)
    finished = [project / f"data/tiny/rich/runs/{size}/seed-7/result.json" for size in ("XXS", "TINY")]
    node.wait(lambda: run.poll() is not None or (len(working(project)) == 2 and all(map(os.path.isfile, finished))))
    assert run.poll() is None, run.communicate()
    return run


def test_a_study_on_slurm_survives_a_stop_and_a_lost_node_and_writes_nothing_twice(node, project):
    run = start(project, node)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=240)
    assert run.returncode == 130 and "Stopped." in said, said
    node.wait(lambda: not node.jobs() and not working(project))  # a stopped run leaves no job on the cluster

    run = start(project, node)
    node.kill_node()
    node.restart_node()
    node.wait(lambda: len(working(project)) == 2)  # SLURM starts the jobs of a failed node again, and the run goes on
    node("scancel", node.jobs()[0])
    (project / "hold").unlink()
    said, _ = run.communicate(timeout=600)  # the profile has a failed job tried again
    assert run.returncode == 0 and said.count("FAILED") == 1 and "Figures: figures/tiny/" in said, said
    written = (project / "written").read_text().split()
    assert sorted(name for name in written if name.endswith("result.json")) == [
        f"rich/runs/{size}/seed-{seed}/result.json" for size in ("TINY", "XXS") for seed in (7, 8)
    ]
