"""The steps of a study, one notebook each, and how every one stands: from files alone, of which it writes none.

Read are the record of the runner (`lib.run.progress`), Snakemake's records, the executed notebooks, learning
curves and the names of checkpoints. So it works while a study runs elsewhere, and needs neither torch nor pandas.
"""

import functools
import hashlib
import json
import math
import time
from dataclasses import dataclass

from lib import io
from lib.run import progress, workflow
from lib.run.failure import KERNEL_KILLED, Failure, executed, failure, last_words

NAMES = {"data": "01_data", "model": "02_model", "train": "03_train", "fit": "04_fit", "figures": "05_figures"}
"""Notebook of each rule of the Snakefile."""
RESULTS = {
    "data": ["{regime}/data.txt"],
    "model": ["sizes.csv"],
    "train": ["{regime}/runs/{size}/results.txt"],
    "fit": ["runs.csv", "laws.json"],
    "figures": ["figures.txt"],
}
"""What each rule leaves in data/<study>."""


@dataclass(frozen=True)
class Step:
    """One notebook of a study: where it belongs, how it stands, and how much of its training is done."""

    rule: str
    place: dict
    state: str
    seeds: tuple = (0, 0)
    updates: tuple = (0, 0)
    seconds: float | None = None
    """What it took when it is done, what is left when it is running."""
    failure: Failure | None = None


def look(study, run):
    """All steps of a study, in their order, as they stand now. `run` is its last run, or None."""
    records, found = _records(study), {}
    for rule, place in _steps(study):
        known = records.get(f"notebooks/{_notebook(rule, place)}.ipynb")
        ahead = [found[_key(*other)].state for other in _upstream(study, rule, place)]
        found[_key(rule, place)] = _step(study, run, known, ahead, rule, place)
    return list(found.values())


def _steps(study):
    """(rule, wildcards) of every notebook of a study."""
    if study.runs:
        return [("fit", {})]
    regimes = [{"regime": regime} for regime in study.regimes]
    sizes = [{**regime, "size": size.name} for regime in regimes for size in study.sizes]
    by_rule = {"data": regimes, "model": [{}], "train": sizes, "fit": [{}], "figures": [{}]}
    return [(rule, place) for rule, places in by_rule.items() for place in places]


def _upstream(study, rule, place):
    """The steps whose results a step reads."""
    if rule == "train":
        return [("data", {"regime": place["regime"]})]
    wanted = {"fit": ("data", "train"), "figures": ("model", "fit")}.get(rule, ())
    return [other for other in _steps(study) if other[0] in wanted]


def _key(rule, place):
    return rule, *place.values()


def _notebook(rule, place):
    return "-".join([NAMES[rule], *place.values()])


def _results(rule, place):
    return [name.format(**place) for name in RESULTS[rule]]


def _step(study, run, record, ahead, rule, place):
    """One step. What the runner knows of a run that goes on comes first, then what the files say."""
    jobs = run.jobs.values() if run else ()
    job = next((job for job in jobs if _key(job.rule, job.wildcards) == _key(rule, place)), None)
    notebook, messages = (study.data / "notebooks" / f"{_notebook(rule, place)}.{kind}" for kind in ("ipynb", "log"))
    changed = bool(record) and _changed(study, record, rule, place)
    why = None
    if job and not run.stopped:
        state = _of_run(job, messages)
    elif all(map(functools.partial(_complete, study), _results(rule, place))):
        state = "out of date" if changed or set(ahead) - {"done"} else "done"
    else:
        state = _of_files(study, run, job, notebook, messages, place)
    if state == "failed":
        why = failure(notebook, messages)
        state, why = ("interrupted", None) if why.stopped else (state, why)
    since = job.start if job and state == "running" and changed else 0.0
    seeds, updates = _trained(study, since, **place) if rule == "train" else ((0, 0), (0, 0))
    return Step(rule, place, state, seeds, updates, _seconds(run, job, state, notebook), why)


def _of_run(job, messages):
    """State of a job of the run that is going on."""
    if job.failed:
        return "failed"
    if job.end:
        return "done"
    if not job.start:
        return "waiting"
    begun = messages.is_file() and messages.stat().st_mtime > job.start - progress.BEAT
    return "running" if begun else "queued"  # sent to a cluster that has no place for it yet


def _of_files(study, run, job, notebook, messages, place):
    """State of a step without its results, when no runner says how it stands."""
    content = executed(notebook)
    if content is None and not messages.is_file():
        return "waiting"
    papermill = (content or {}).get("metadata", {}).get("papermill", {})
    broken = [output for cell in (content or {}).get("cells", []) for output in cell.get("outputs", [])]
    if any(output["output_type"] == "error" for output in broken) or papermill.get("exception"):
        return "failed"
    if papermill.get("end_time") and not (job and job.failed):  # it ended well and its results are lost, or never began
        return "failed" if last_words(messages) == KERNEL_KILLED else "waiting"
    folder = study.run_folder(**place, seed="*").parent if "size" in place else None
    moved = [notebook, messages, *(folder.glob("seed-*/*") if folder else ())]
    latest = max(path.stat().st_mtime for path in moved if path.is_file())
    if job and job.start and latest < run.seen + progress.BEAT:  # this is what that run has left
        return "failed" if job.failed else "interrupted"
    return "running" if time.time() - latest < progress.SILENT else "interrupted"


def _complete(study, name):
    path = study.data / name
    return path.is_file() and (path.suffix != ".txt" or workflow.there(study, path))


def _records(study):
    """Snakemake's records of finished jobs: {their executed notebook: record}."""
    found = {}
    for path in (study.data / ".snakemake" / "metadata").rglob("*"):
        try:
            record = io.read_json(path) if path.is_file() else None
            found |= {record["log"][0]: record} if record and record.get("log") else {}
        except (OSError, json.JSONDecodeError):  # just being written, or removed
            continue
    return found


def _changed(study, record, rule, place):
    """Whether a finished step would run again: its part of the study file, its notebook or its inputs have changed."""
    settings = {repr(workflow.settings(study, rule, **place)), repr(workflow.words(NAMES[rule]))}
    upstream = {name for other in _upstream(study, rule, place) for name in _results(*other)}
    read = set(record["input"])
    if rule == "train" and set(study.seeds_for(place["size"])) != _seeds(study, place):
        return True
    if not settings <= set(record["params"]) or upstream != {name for name in read if not name.startswith("..")}:
        return True
    inputs = [study.data / name for name in read if not name.endswith(".ipynb")]
    later = [path for path in inputs if not path.is_file() or path.stat().st_mtime > record["endtime"]]
    sums = {study.data / name: value for name, value in record.get("input_checksums", {}).items()}
    return any(not path.is_file() or sums.get(path) != _checksum(path) for path in later)


def _seeds(study, place):
    """Seeds whose results a size's list names."""
    listing = study.data / RESULTS["train"][0].format(**place)
    names = workflow.listed(listing) if listing.is_file() else []
    return {int(name.split("/")[-2].removeprefix("seed-")) for name in names}


def _checksum(path):
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def _trained(study, since, regime, size):
    """Seeds and updates of a size, each as (done, in all). Results from before `since` are another run's."""
    training = study.training(regime)
    total = math.ceil(training.cells_seen / training.batch)
    # the half-way measurement counts, as in the numbers of checkpoints (lib.train)
    whole = total + (0 if training.report == "best" else round(training.decay * (total // 2)))
    counts = [_updates(study.run_folder(regime, size, seed), since, total, whole) for seed in study.seeds_for(size)]
    return (counts.count(whole), len(counts)), (sum(counts), whole * len(counts))


def _updates(folder, since, total, whole):
    """Updates of one run that are done: all with its result, else those of its newest checkpoint or learning curve."""
    result, curve = folder / "result.json", folder / "history.csv"
    begun = curve.stat().st_mtime if curve.is_file() else 0.0
    if result.is_file() and result.stat().st_mtime >= max(begun, since):
        record = io.read_json(result)
        return whole if record.get("updates", total) == total or record.get("status") == "diverged" else 0
    if begun <= since:
        return 0
    saved = [int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*.pt")]
    measured = curve.read_text().splitlines()[-1].split(",")[0]
    return min(whole - 1, max([*saved, int(measured) if measured.isdigit() else 0]))


def _seconds(run, job, state, notebook):
    """What a step took when it is done, what is left of it when it is running, else None."""
    if state == "running" and job and not run.stopped:
        return run.job_left(job, run.pace())
    if state != "done":
        return None
    took = (executed(notebook) or {}).get("metadata", {}).get("papermill", {}).get("duration")
    return took or (job.elapsed if job and job.end else None)
