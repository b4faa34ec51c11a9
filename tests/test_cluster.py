"""Runs on a cluster: what a job asks for, and a study through a real SLURM (skipped loudly where it is missing).

SLURM is a controller and one node of two cores on localhost, all of it in one folder, started as root.
"""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import wait
from test_workflow import call, make_project, working, write_study

from lib.run import workflow
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


CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
MpiDefault=none
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
KillWait=1
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=100000
PartitionName=all Nodes=node Default=YES MaxTime=INFINITE
"""
SRUN = """#!/bin/sh
# The jobs' own srun finds only a configuration in its default place.
SLURM_CONF={folder}/slurm.conf exec {srun} "$@"
"""


class Slurm:
    """The daemons of one test cluster, and what its user does."""

    def __init__(self, folder):
        self.folder, self.daemons = Path(folder), {}
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        self.environment = os.environ | {"SLURM_CONF": f"{self.folder}/slurm.conf", "PATH": path}

    def __call__(self, *words, check=True):
        """What a command of SLURM says."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 or not check, (words, done.stderr)
        return done.stdout

    def jobs(self):
        """Numbers of all jobs that wait, run or are about to end."""
        return self("squeue", "--noheader", "--format", "%i").split()

    def start(self):
        """Start all daemons, and wait until the node takes jobs."""
        for name in ("bin", "munge", "state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "munge" / "key").write_bytes(secrets.token_bytes(1024))
        (self.folder / "munge" / "key").chmod(0o400)
        places = {"folder": self.folder, "host": socket.gethostname().split(".")[0], "srun": shutil.which("srun")}
        with socket.socket() as one, socket.socket() as other:  # two free ports
            for name, probe in {"controller": one, "node": other}.items():
                probe.bind(("127.0.0.1", 0))
                places[name] = probe.getsockname()[1]
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(**places))
        (self.folder / "bin" / "srun").write_text(SRUN.format(**places))
        (self.folder / "bin" / "srun").chmod(0o755)
        munge = {name: self.folder / "munge" / name for name in ("key", "socket", "pid", "log", "seed")}
        places = [f"--{name}-file={path}" for name, path in munge.items() if name != "socket"]
        self.daemon("munged", "--foreground", "--force", f"--socket={munge['socket']}", *places)
        self.wait(lambda: munge["socket"].exists())
        self.daemon("slurmctld", "-D", "-c")
        self.daemon("slurmd", "-D", "-N", "node")
        self.wait(lambda: "idle" in self("sinfo", "--noheader", "--format", "%T", check=False))

    def kill_jobs(self):
        """Kill all processes of this cluster's jobs, after the steps' daemons that watch them."""
        jobs, daemons = [], {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                environment = process.environ()
                if "SLURM_JOB_ID" in environment and environment.get("SLURM_CONF", "").startswith(str(self.folder)):
                    jobs.append(process)
                    daemons |= {parent.pid: parent for parent in process.parents() if parent.name() == "slurmstepd"}
        for process in [*daemons.values(), *jobs]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(jobs, 30)

    def daemon(self, name, *words):
        with (self.folder / f"{name}.said").open("a") as said:
            self.daemons[name] = subprocess.Popen(
                [name, *words], env=self.environment, stdout=said, stderr=said, start_new_session=True
            )

    def wait(self, true):
        """Wait for something, as long as all daemons live."""

        def said():
            return "".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("*.said")))

        def waited():
            assert all(daemon.poll() is None for daemon in self.daemons.values()), said()
            return true()

        wait(waited, failure=said)

    def stop(self):
        self.kill_jobs()
        for daemon in reversed(self.daemons.values()):
            daemon.kill()
            daemon.wait()
        self.kill_jobs()


@pytest.fixture(scope="module")
def node():
    """A cluster of one node with two cores, for the tests of this module."""
    if not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        pytest.skip("NO SLURM PLUGIN, so that no run on a cluster was tested: pip install -e '.[cluster]'")
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name)]
    if missing or os.geteuid():
        pytest.skip(f"NO SLURM, so that no run on a cluster was tested; start it as root, with {', '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)  # munged refuses a socket in a folder that others may not enter
        cluster = Slurm(folder)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


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


def test_a_study_on_slurm_survives_a_stop_and_a_cancelled_job_and_writes_nothing_twice(node, project):
    run = start(project, node)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=240)
    assert run.returncode == 130 and "Stopped." in said, said
    node.wait(lambda: not node.jobs() and not working(project))  # a stopped run leaves no job on the cluster

    run = start(project, node)
    node("scancel", node.jobs()[0])
    (project / "hold").unlink()
    said, _ = run.communicate(timeout=600)  # the profile has a failed job tried again
    assert run.returncode == 0 and said.count("FAILED") == 1 and "Figures: figures/tiny/" in said, said
    written = (project / "written").read_text().split()
    assert sorted(name for name in written if name.endswith("result.json")) == [
        f"rich/runs/{size}/seed-{seed}/result.json" for size in ("TINY", "XXS") for seed in (7, 8)
    ]
