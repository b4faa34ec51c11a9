"""Runs on a cluster: the profile that says how its jobs are sent there, and the jobs that a run has left behind.

A profile is a folder of Snakemake options, profiles/<name>/config.yaml, with one of its executor plugins.
"""

import difflib
import hashlib
import importlib.util
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from lib import io
from lib.io import InputError

INSTALL = ".venv/bin/pip install -c constraints.txt"
EXTRAS = {"slurm": "-e '.[cluster]'", "kubernetes": "-e '.[kubernetes]'"}
"""What pip is asked for, for an executor that is an extra of this project; for any other it is the plugin itself."""
COMMANDS = {"slurm": "sbatch"}
"""The command that an executor cannot do without."""
JOBS = 100
"""Jobs in the queue at the same time, where a profile does not say."""
ENDED = re.compile("TIMEOUT|CANCELLED|OUT_OF_MEMORY|NODE_FAIL|BOOT_FAIL|DEADLINE")
"""States of jobs that SLURM has ended; one that ended by itself, with an error, is FAILED."""
PATIENCE = 120
"""Seconds that cancelled jobs may take to end: SLURM kills what does not listen after 30, unless told otherwise."""


@dataclass(frozen=True)
class Profile:
    """A folder of Snakemake options, its executor plugin, and how many jobs are sent at the same time."""

    place: Path
    executor: str
    jobs: int


def load(name):
    """Find and check profiles/<name>, and that its jobs can be sent from here.

    Raises
    ------
    InputError
        There is no such profile, it is no valid one, or this machine lacks its plugin or its cluster's commands.
    """
    path = io.ROOT / "profiles" / name / "config.yaml"
    known = sorted(file.parent.name for file in (io.ROOT / "profiles").glob("*/config.yaml"))
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        nearest = f" (did you mean {close[0]}?)" if close else ""
        raise InputError(f"there is no profile {name!r}{nearest}; profiles/ has {', '.join(known) or 'none'}.")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"profiles/{name}/config.yaml is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict) or not isinstance(content.get("executor"), str):
        raise InputError(f"profiles/{name}/config.yaml names no executor; add a line such as executor: slurm.")
    jobs = content.get("jobs", JOBS)
    if not isinstance(jobs, int) or jobs < 1:
        raise InputError(f"profiles/{name}/config.yaml: jobs is {jobs!r}; it has to be a number, at least 1.")
    check(name, content["executor"])
    return Profile(path.parent, content["executor"], jobs)


def check(name, executor):
    """Refuse an executor whose plugin or command is missing here."""
    package = f"snakemake-executor-plugin-{executor}"
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        install = f"{INSTALL} {EXTRAS.get(executor, package)}"
        raise InputError(f"profile {name} needs {package}, which is not installed here; install it: {install}")
    command = COMMANDS.get(executor)
    if command and not shutil.which(command):
        raise InputError(
            f"profile {name} sends jobs with {command}, which is not on the PATH; run it on a login node of the "
            f"cluster, or load the module that brings {command}."
        )


def options(study, profile, jobs):
    """Snakemake's options for a run on a cluster."""
    chosen = ["--profile", str(profile.place), "--jobs", str(jobs)]
    return chosen + (["--slurm-jobname-prefix", prefix(study)] if profile.executor == "slurm" else [])


def prefix(study):
    """What the names of all jobs of this study in this folder begin with; SLURM allows letters, digits, - and _."""
    place = hashlib.sha256(str(study.data).encode()).hexdigest()[:12]
    return f"{re.sub('[^A-Za-z0-9_-]', '-', study.name)[:36]}-{place}"


@contextmanager
def alone(study, profile):
    """No job of the study is on the cluster before, and none is left there after.

    A run that was killed, or whose machine went down, leaves jobs behind; and Snakemake, when it is stopped, cancels
    none that it is just asking about. Such a job would write beside the one that takes its place.
    """
    if profile is None or profile.executor != "slurm":
        yield
        return
    cancel(study)
    try:
        yield
    finally:
        cancel(study)


def cancel(study):
    """Cancel all jobs of the study in this folder, and wait until they have ended."""
    end = time.monotonic() + PATIENCE
    while jobs := queued(study):
        subprocess.run(["scancel", *jobs], capture_output=True)  # it fails for a job that has just ended: look again
        if time.monotonic() > end:
            raise InputError(
                f"jobs {', '.join(jobs)} of study {study.name} are cancelled and still running; wait until squeue does "
                f"not list them, then run again."
            )
        time.sleep(1)


def word(study, job):
    """What the cluster says of a failed job, and the file that says more; None where its own notebook knows better.

    The cluster knows better of a job that it has ended, and of one that has not begun: then the notebook is an old one.
    """
    if not job.said or not (job.waiting or ENDED.search(job.said)):
        return None
    return job.said, study.data / job.log[-1]


def queued(study):
    """Numbers of the study's jobs that wait, run or are about to end."""
    asked = ["squeue", "--me", "--noheader", "--format", "%i %j"]
    done = subprocess.run(asked, capture_output=True, text=True)
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise InputError(
            f"squeue does not say whether jobs of study {study.name} are still on the cluster ({said}); run the same "
            f"command again when it answers."
        )
    numbers = [line.partition(" ")[::2] for line in done.stdout.splitlines()]
    return [number for number, name in numbers if name.startswith(prefix(study) + "_")]
