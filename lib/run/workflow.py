"""What the Snakefile and the runner know of the batch: the code of each notebook, its settings, how long it takes."""

import csv
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lib import io, names
from lib.io import InputError

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads slow small models many-fold on a busy machine
    "PYTHONHASHSEED": "0",
    "JUPYTER_PLATFORM_DIRS": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
"""Environment of every notebook of the batch."""

NUMERICS = {
    "data": [io.SIMULATE_NUMERICS, io.FILES_NUMERICS, io.PANEL_NUMERICS],
    "train": io.TRAIN_NUMERICS,
    "fit": io.FIT_NUMERICS,
}
"""What a person raises when the results of a rule change."""

LISTS = ("*/data.txt", "*/runs/*/results.txt", "figures.txt")
"""Where the Snakefile keeps lists of results (lines of cksum: checksum, bytes, name), as seen from data/<study>."""

START_SECONDS = {"data": 15, "model": 6, "train": 6, "fit": 15, "figures": 15}
"""What a notebook takes besides training, seconds: a first guess, only for the time left."""
UPDATE_SECONDS, FLOPS_PER_SECOND = 2e-3, 2e10
"""Speed of training on one core: a first guess, corrected by what is measured during the run."""

GPU_FLOPS = 1e15
"""Training from here on asks for a GPU (half a day on one core)."""
GPU_FLOPS_PER_SECOND = 1e13
"""Speed of training on a GPU: a first guess, below what one of the last few years should reach."""
NOTEBOOK_MEGABYTES, MEMORY_SLACK = 3000, 2
"""Memory of a job: what any notebook may take, and how many times the size's or the panel's own memory."""
SPARE_MINUTES, TIME_SLACK, READ_CELLS_PER_SECOND = 30, 4, 500
"""Time limit of a job: minutes on top, how many times the expected time, and the least speed of reading cells."""


def cells(name):
    """Cells of notebooks/<name>.ipynb as (type, source)."""
    content = io.read_json(io.CODE / "notebooks" / f"{name}.ipynb")
    return [(cell["cell_type"], "".join(cell["source"])) for cell in content["cells"]]


def words(name):
    """Digest of a notebook's text and code. Its outputs do not count: running it in JupyterLab changes no result."""
    return hashlib.sha256(json.dumps(cells(name)).encode()).hexdigest()


def settings(study, rule, regime=None, size=None):
    """What a rule's results depend on, as canonical JSON: its part of the study file, and the numbers of its code."""
    content = study.model_dump(mode="json", include={"census", "fit", "runs"})
    if rule == "data":
        chosen = study.panel_settings(regime) | {"census": content["census"]}
    elif rule == "model":
        outputs = {name: (regime.genes, study.training(name).objective) for name, regime in study.regimes.items()}
        chosen = {"genes": outputs, "sizes": [asdict(size) for size in study.sizes]}
    elif rule == "train":
        chosen = {"train": study.training(regime).model_dump(mode="json"), "size": asdict(study.size(size))}
    else:
        chosen = {"fit": content["fit"], "runs": content["runs"]} if rule == "fit" else {}
    return json.dumps([chosen, NUMERICS.get(rule)], sort_keys=True)


def sources(study):
    """The files that a study names, its own counts or its table of runs, each checked to be there."""
    if study.runs:
        table = io.ROOT / study.runs.table
        if not table.is_file():
            raise InputError(f"params/{study.name}.yaml: runs.table {study.runs.table} is not there; name a CSV file.")
        return [table]
    if not (study.census.h5ad or study.census.files):
        return []
    from lib.data import user_files

    return user_files.inputs(study.census)


def flops(study, regime, size):
    """Floating-point operations of training one size with all its seeds (backward counts twice the forward)."""
    forward = study.size(size).forward_flops(study.regimes[regime].genes)
    return 3 * forward * study.training(regime).cells_seen * len(study.seeds_for(size))


def seconds(study, rule, regime=None, size=None):
    """Expected duration of a job: (fixed part, training part)."""
    if rule != "train":
        return START_SECONDS[rule], 0.0
    train = study.training(regime)
    updates = train.cells_seen / train.batch * len(study.seeds_for(size))
    return START_SECONDS[rule], updates * UPDATE_SECONDS + flops(study, regime, size) / FLOPS_PER_SECOND


def gpus(study, regime, size):
    """GPUs that the training of one size with all its seeds asks for: one from GPU_FLOPS on."""
    return int(flops(study, regime, size) >= GPU_FLOPS)


def megabytes(study, rule, regime=None, size=None, attempt=1):
    """Memory that a job asks a cluster for. It doubles with every further attempt, where the profile allows retries."""
    own = 0
    if regime:
        own = 8 * study.regimes[regime].genes * study.regimes[regime].cells  # X and counts, if all of them were read
    if size:
        own += study.size(size).memory(study.regimes[regime].genes)
    return round(2 ** (attempt - 1) * (NOTEBOOK_MEGABYTES + MEMORY_SLACK * own / 1e6))


def minutes(study, rule, regime=None, size=None, attempt=1):
    """Time that a job asks a cluster for. It doubles with every further attempt, where the profile allows retries."""
    fixed, training = seconds(study, rule, regime, size)
    if size and gpus(study, regime, size):
        training *= FLOPS_PER_SECOND / GPU_FLOPS_PER_SECOND
    reading = study.regimes[regime].cells / READ_CELLS_PER_SECOND if rule == "data" else 0.0
    return round(2 ** (attempt - 1) * (SPARE_MINUTES + TIME_SLACK * (fixed + training + reading) / 60))


def forget_lost(study):
    """Remove the list of a job's results when one of them is gone, so that the job runs again."""
    for listing in (path for place in LISTS for path in study.data.glob(place)):
        if not there(study, listing):
            listing.unlink()


def there(study, listing):
    """Whether all results of a job are there, by the list that it left."""
    names = listed(listing)
    return bool(names) and all((study.data / name).is_file() for name in names)


def listed(listing):
    """Names in a list of results; none where it is only half written, by a cksum that was killed."""
    lines = [line.split(maxsplit=2) for line in listing.read_text().splitlines()]
    return [line[2] for line in lines] if all(len(line) == 3 for line in lines) else []


@dataclass(frozen=True)
class Produced:
    """Where a study of that name writes, and nowhere else."""

    name: str
    data: Path
    figures: Path


def produced(name):
    """The folders of a study by its name alone: its study file may be gone, or no longer be valid."""
    try:
        names.check("study", name)
    except ValueError as error:
        raise InputError(f"{error}.") from None
    return Produced(name, io.ROOT / "data" / name, io.ROOT / "figures" / name)


def keep(study):
    """Copy what a finished study says, small enough for git, to data/results/<study>, with when and where it was run.

    The tables runs.csv, laws.json (without its profile curves) and, of a sweep, speed.csv; the executed notebook of the
    fit; and origin.json: date, commit, machine, hours of training.
    """
    import shutil

    if not (study.data / "laws.json").is_file():
        raise InputError(f"study {study.name} has no laws.json to keep; run it first: make run STUDY={study.name}.")
    place = io.ROOT / "data" / "results" / study.name
    place.mkdir(parents=True, exist_ok=True)
    laws = io.read_json(study.data / "laws.json")
    for law in (law for by_metric in laws.values() for law in by_metric.values()):
        law["profile"] = None
    io.write_json(place / "laws.json", laws)
    io.write_json(place / "origin.json", _origin(study))
    for name in ("runs.csv", "speed.csv", "notebooks/04_fit.ipynb"):
        if (study.data / name).is_file():
            with io.atomic(place / (study.data / name).name) as partial:
                shutil.copyfile(study.data / name, partial)
    return place


def _origin(study):
    """When, from what code and where a finished study was run, and how long its runs trained in all."""
    import datetime
    import os
    import platform

    made = datetime.datetime.fromtimestamp((study.data / "laws.json").stat().st_mtime, datetime.UTC)
    with (study.data / "runs.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    devices = sorted({row["device"] for row in rows if row.get("device")})
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()}
    return {
        "study": study.name, "date": f"{made:%Y-%m-%d}", "commit": io.code_version(),
        "machine": machine | {"devices": devices},
        "hours": round(sum(float(row["seconds"]) for row in rows if row.get("seconds")) / 3600, 3),
    }  # fmt: skip
