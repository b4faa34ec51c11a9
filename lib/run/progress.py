"""How far a run of a study is and how long it still takes: expected costs, corrected by what is measured."""

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field

import psutil

from lib import io
from lib.run import workflow
from lib.study import Study

LAST = ("fit", "figures")
"""Rules that wait for all others, so that nothing runs beside them."""
RECORD = "progress.json"
"""Where in data/<study> the runner writes how far it is, for whoever looks (`lib.run.status`)."""
BEAT, SILENT = 5, 120
"""Seconds between two signs of life in the record, and how old the last one is when the runner must be gone."""


@dataclass
class Job:
    """One notebook of the batch. `fixed` and `training` are expected seconds, start and end seconds since the epoch.

    A job that is `waiting` was sent to a cluster and is not at work yet; `said` is what the cluster says of a failure.
    """

    title: str
    rule: str
    wildcards: dict
    log: list
    fixed: float
    training: float
    start: float | None = None
    end: float | None = None
    waiting: bool = False
    failed: bool = False
    said: str = ""

    @property
    def elapsed(self):
        return (self.end or time.time()) - self.start if self.start is not None and not self.waiting else 0.0


@dataclass
class Batch:
    """All jobs of one run of a study, kept up to date from the events of `lib.run.events`.

    `cores` is the number of jobs that run at the same time; with `queues` they wait in those of a cluster first.
    """

    study: Study
    cores: int
    jobs: dict[int, Job] = field(default_factory=dict)
    start: float = field(default_factory=time.time)
    queues: bool = False
    started: bool = False
    stopped: bool = False
    shown: float = 0.0
    seen: float = 0.0
    """When its runner gave the last sign of life, where this was read from its record."""
    written: tuple = ("", 0.0)
    measured: dict = field(default_factory=dict)

    def __post_init__(self):
        self.measured = measured(self.study)

    def expected(self, rule, regime=None, size=None):
        """Expected seconds of a job, as `workflow.seconds`, by the speed of the runs that are finished, if any are."""
        fixed, training = workflow.seconds(self.study, rule, regime, size)
        return fixed, training * self.measured.get(size, self.measured.get(None, 1.0))

    def read(self, event):
        """Take in one event. Returns the job that it ended, or None."""
        kind, number = event["event"], event.get("id")
        if kind == "start":
            self.started = True
        elif kind == "job_info" and event["log"] and not self.started:  # without a log it is the target, no notebook
            expected = self.expected(event["rule"], **event["wildcards"])
            self.jobs[number] = Job(*(event[key] for key in ("title", "rule", "wildcards", "log")), *expected)
        elif kind == "job_info" and event["log"]:  # a job that has failed may be tried again
            job = self.jobs[number]
            job.start, job.end, job.failed, job.waiting = time.time(), None, False, self.queues
        elif number in self.jobs:
            job = self.jobs[number]
            self.look(job)
            job.end, job.failed, job.said = time.time(), kind == "job_error", event.get("text", "")
            job.log = event.get("log", job.log)
            return job
        return None

    def write(self, ended=False):
        """Leave the record in data/<study>, when something has changed or a sign of life is due.

        It is there to be looked at; a disk without room for it does not stop the run.
        """
        jobs = [asdict(job) for job in list(self.jobs.values())]
        content = {"cores": self.cores, "start": self.start, "started": self.started, "ended": ended, "jobs": jobs}
        content |= {"host": socket.gethostname(), "pid": os.getpid()}
        text, moment = json.dumps(content), time.monotonic()
        if text != self.written[0] or moment - self.written[1] > BEAT:
            with suppress(OSError):
                io.write_json(self.study.data / RECORD, content)
            self.written = text, moment

    def look(self, job):
        """Find out whether a job that waits is at work: then its notebook has opened the file for what it says."""
        messages = self.study.data / job.log[1]
        if job.waiting and messages.is_file() and messages.stat().st_mtime > job.start:
            job.waiting, job.start = False, messages.stat().st_mtime

    @property
    def submitted(self):
        """Jobs that wait or are at work."""
        return [job for job in list(self.jobs.values()) if job.start and not job.end]

    @property
    def running(self):
        return [job for job in self.submitted if not job.waiting]

    def trained(self, job):
        """Share of a training job that is done: 0 to 1, from the learning curves written since it started.

        Seeds are trained in turn, so a curve that moves means that the seeds before it are finished.
        """
        if not job.training or not job.start or job.end:
            return float(job.end is not None)
        seeds = self.study.seeds_for(job.wildcards["size"])
        for turn, seed in reversed(list(enumerate(seeds))):
            curve = self.study.run_folder(**job.wildcards, seed=seed) / "history.csv"
            lines = curve.read_text().splitlines() if curve.is_file() else []
            if len(lines) > 1 and curve.stat().st_mtime >= job.start:
                seen = float(lines[-1].split(",")[lines[0].split(",").index("cells_seen")])
                whole = self.study.training(job.wildcards["regime"]).cells_seen
                return min(1.0, (turn + seen / whole) / len(seeds))
        return 0.0

    def pace(self):
        """Measured over expected training time, over all that has been trained so far."""
        shares = [(job, self.trained(job)) for job in self.jobs.values() if job.training and job.start]
        expected = sum(share * job.training for job, share in shares)
        return sum(max(0.0, job.elapsed - job.fixed) for job, share in shares if share) / expected if expected else 1.0

    def start_pace(self):
        """The same for what notebooks take besides training, over those that have ended."""
        ended = [job for job in self.jobs.values() if job.end and not (job.training or job.failed)]
        expected = sum(job.fixed for job in ended)
        return sum(job.elapsed for job in ended) / expected if expected else 1.0

    def job_left(self, job, pace):
        """Seconds that a job still takes."""
        share = self.trained(job)
        fixed = 0.0 if share else max(job.fixed * self.start_pace() - job.elapsed, 1.0)
        return fixed + pace * job.training * (1 - share)

    def left(self):
        """Seconds until the last job ends."""
        pace, jobs = self.pace(), list(self.jobs.values())
        parallel = [self.job_left(job, pace) for job in jobs if job.rule not in LAST]
        last = [self.job_left(job, pace) for job in jobs if job.rule in LAST]
        return max(sum(parallel) / self.cores, *parallel, 0.0) + sum(last)

    def share(self):
        """Share of the whole run that is done, by time. It never falls."""
        elapsed = time.time() - self.start
        self.shown = max(self.shown, elapsed / (elapsed + self.left() + 1e-9))
        return self.shown

    def job_share(self, job):
        return job.elapsed / (job.elapsed + self.job_left(job, self.pace()) + 1e-9)


def last(study):
    """The last run of a study, as its runner wrote it down, or None. It is `stopped` unless it is still going on.

    A runner is at work as long as its record is young. On this machine its process has to be there besides.
    """
    path = study.data / RECORD
    try:
        content, seen = io.read_json(path), path.stat().st_mtime
        jobs = {number: Job(**job) for number, job in enumerate(content["jobs"])}
        gone = content["host"] == socket.gethostname() and not psutil.pid_exists(content["pid"])
        stopped = content["ended"] or gone or time.time() - seen > SILENT
        known = {name: content[name] for name in ("cores", "start", "started")}
        return Batch(study, **known, jobs=jobs, stopped=stopped, seen=seen)
    except (OSError, ValueError, TypeError, KeyError):  # none there, or one of another version
        return None


def measured(study):
    """Measured over expected training time of finished runs: {size: ratio}, and of all of them under None."""
    sums = {}
    for regime, size, seed in (
        (r, s.name, n) for r in study.regimes for s in study.sizes for n in study.seeds_for(s.name)
    ):
        path = study.run_folder(regime, size, seed) / "result.json"
        record = io.read_json(path) if path.is_file() else {}
        if record.get("seconds") and record.get("cells_seen"):
            share = record["cells_seen"] / study.training(regime).cells_seen / len(study.seeds_for(size))
            expected = share * workflow.seconds(study, "train", regime, size)[1]
            for key in (size, None):
                before = sums.get(key, (0.0, 0.0))
                sums[key] = before[0] + record["seconds"], before[1] + expected
    return {key: seconds / expected for key, (seconds, expected) in sums.items()}


def spoken(seconds):
    """A duration for a person: 40 s, 3 min, 1 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
