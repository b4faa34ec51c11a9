"""How far a run of a study is and how long it still takes: expected costs, corrected by what is measured."""

import time
from dataclasses import dataclass, field

from lib import params, workflow

LAST = ("fit", "figures")
"""Rules that wait for all others, so that nothing runs beside them."""


@dataclass
class Job:
    """One notebook of the batch. `fixed` and `training` are expected seconds, start and end seconds since the epoch."""

    title: str
    rule: str
    wildcards: dict
    log: list
    fixed: float
    training: float
    start: float | None = None
    end: float | None = None
    failed: bool = False

    @property
    def elapsed(self):
        return (self.end or time.time()) - self.start if self.start else 0.0


@dataclass
class Batch:
    """All jobs of one run of a study, kept up to date from the events of `lib.events`."""

    study: params.Study
    cores: int
    jobs: dict[int, Job] = field(default_factory=dict)
    start: float = field(default_factory=time.time)
    started: bool = False
    stopped: bool = False
    shown: float = 0.0

    def read(self, event):
        """Take in one event. Returns the job that it ended, or None."""
        kind, number = event["event"], event.get("id")
        if kind == "start":
            self.started = True
        elif kind == "job_info" and event["log"] and not self.started:  # without a log it is the target, no notebook
            expected = workflow.seconds(self.study, event["rule"], **event["wildcards"])
            self.jobs[number] = Job(*(event[key] for key in ("title", "rule", "wildcards", "log")), *expected)
        elif kind == "job_info" and event["log"]:
            self.jobs[number].start = time.time()
        elif number in self.jobs:
            self.jobs[number].end, self.jobs[number].failed = time.time(), kind == "job_error"
            return self.jobs[number]
        return None

    @property
    def running(self):
        return [job for job in list(self.jobs.values()) if job.start and not job.end]

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

    def job_left(self, job, pace):
        """Seconds that a job still takes."""
        share = self.trained(job)
        fixed = 0.0 if share else max(job.fixed - job.elapsed, 1.0)
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


def spoken(seconds):
    """A duration for a person: 40 s, 3 min, 1 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
