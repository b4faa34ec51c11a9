"""A real SLURM for tests: a controller and one node of two cores on localhost, all of it in one folder, as root."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

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
ReturnToService=1
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=100000
PartitionName=all Nodes=node Default=YES MaxTime=INFINITE
"""
SRUN = """#!/bin/sh
# The jobs' own srun finds only a configuration in its default place.
SLURM_CONF={folder}/slurm.conf exec {srun} "$@"
"""


class Unavailable(Exception):
    """SLURM cannot be had here, and why. One that is there and does not start is an error, not this."""


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
        self.daemon("slurmd", "-D", "-b", "-N", "node")  # -b: its machine has just been started
        self.wait(lambda: "idle" in self("sinfo", "--noheader", "--format", "%T", check=False))

    def restart_node(self):
        """The power is back: SLURM sees that the node was started again, and somebody declares it fit for work."""
        self.daemon("slurmd", "-D", "-b", "-N", "node")
        self.wait(lambda: "down" in self("sinfo", "--noheader", "--format", "%T", check=False))
        self("scontrol", "update", "NodeName=node", "State=RESUME")

    def kill_node(self):
        """The node's power fails: its daemon and all processes of its jobs are gone at once."""
        self.daemons["slurmd"].kill()
        self.daemons.pop("slurmd").wait()
        self.kill_jobs()

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

    def wait(self, true, seconds=300):
        end = time.monotonic() + seconds
        while not true():
            ended = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            if ended or time.monotonic() > end:
                said = "".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("*.said")))
                raise RuntimeError(f"it did not happen in time, and {', '.join(ended) or 'no daemon'} ended: {said}")
            time.sleep(0.1)

    def stop(self):
        self.kill_jobs()
        for daemon in reversed(self.daemons.values()):
            daemon.kill()
            daemon.wait()
        self.kill_jobs()


@contextmanager
def running():
    """A cluster that takes jobs, stopped and removed when the block ends, however it ends."""
    if os.geteuid():
        raise Unavailable("it has to be started as root")
    if missing := [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name)]:
        raise Unavailable(f"{', '.join(missing)} not found; install slurm-wlm and munge")
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)  # munged refuses a socket in a folder that others may not enter
        cluster = Slurm(folder)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
