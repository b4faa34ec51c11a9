"""What the Snakefile and the command line know of a study's notebooks: results, settings, needs, state.

As a program it is one job of the Snakefile, a notebook executed by papermill:

    python -m lib.run.workflow NOTEBOOK EXECUTED MARKER study=NAME [regime=NAME size=NAME] -- RESULT ...
"""

import csv
import hashlib
import json
import os
import re
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock

from lib import io
from lib.model.sizes import recipe
from lib.study import Study

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads slow small models many-fold on a busy machine
    "PYTHONHASHSEED": "0",
    "JUPYTER_PLATFORM_DIRS": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
"""Environment of every notebook of a run."""

NOTEBOOKS = {"data": "01_data", "model": "02_model", "train": "03_train", "fit": "04_fit", "figures": "05_figures"}
"""Notebook of each rule of the Snakefile."""

NUMERICS = {
    "data": [io.SIMULATE_NUMERICS, io.FILES_NUMERICS, io.PANEL_NUMERICS],
    "train": io.TRAIN_NUMERICS,
    "fit": io.FIT_NUMERICS,
}
"""What a person raises when the results of a rule change."""

GPU_FLOPS = 1e15  # training from here on asks a cluster for a GPU (half a day on one core)
FLOPS_PER_SECOND = {"cpu": 2e10, "gpu": 1e13}  # cautious guesses for time limits: one core, a GPU of the last years
RUNNER = "SCALING_RUNNER"  # environment variable by which Snakemake knows the process that started it
FAILED = "The notebook failed"  # begins what a job says of it; where and why follow


@dataclass(frozen=True)
class Step:
    """One notebook of a study: what it leaves, what its results depend on, and what it needs of a cluster."""

    study: Study
    rule: str
    regime: str = ""
    size: str = ""

    def file(self, suffix: str) -> Path:
        """The executed notebook (.ipynb), the messages of its process (.log) or the marker of its good end (.done)."""
        name = "/".join(filter(None, (NOTEBOOKS[self.rule], self.regime, self.size)))
        return self.study.data / "notebooks" / f"{name}{suffix}"

    @property
    def results(self) -> list[str]:
        """Files that the notebook writes, as seen from data/<study>; for the figures their folder."""
        study, regime, size = self.study, self.regime, self.size
        return {
            "data": [f"{regime}/panel.h5ad", f"{regime}/baselines.json"],
            "model": ["sizes.csv"],
            "train": [f"{regime}/runs/{size}/seed-{seed}/result.json" for seed in study.seeds_for(size)],
            "fit": ["runs.csv", "laws.json"],
            "figures": [relative(study, study.figures)],
        }[self.rule]

    @property
    def settings(self) -> str:
        """What the results depend on, as canonical JSON: part of the study file, numbers of the code, the notebook.

        Outputs of the notebook, and the study that it opens, do not count: running it in JupyterLab changes no result.
        """
        study, content = self.study, self.study.model_dump(mode="json", include={"census", "fit", "runs"})
        chosen = {}
        if self.rule == "data":
            chosen = study.panel_settings(self.regime) | {"census": content["census"]}
        elif self.rule == "model":
            outputs = {name: (regime.genes, study.training(name).objective) for name, regime in study.regimes.items()}
            chosen = {"genes": outputs, "sizes": [asdict(size) for size in study.sizes]}
        elif self.rule == "train":
            chosen = {"train": study.training(self.regime).model_dump(mode="json")}
            chosen |= {"size": asdict(study.size(self.size)), "seeds": study.seeds_for(self.size)}
        elif self.rule == "fit":
            chosen = {"fit": content["fit"], "runs": content["runs"]}
        notebook = (io.CODE / "notebooks" / f"{NOTEBOOKS[self.rule]}.ipynb").read_text(encoding="utf-8")
        digest = hashlib.sha256(json.dumps(io.sources(notebook)).encode()).hexdigest()
        return json.dumps([chosen, NUMERICS.get(self.rule), digest], sort_keys=True)

    @property
    def flops(self) -> float:
        """Floating-point operations of training all seeds of one size."""
        genes, training = self.study.regimes[self.regime].genes, self.study.training(self.regime)
        return float(self.study.size(self.size).training_flops(genes, training) * len(self.study.seeds_for(self.size)))

    @property
    def cells(self) -> int:
        """Training cells that all seeds of one size are to see."""
        return self.study.training(self.regime).cells_seen * len(self.study.seeds_for(self.size))

    @property
    def gpus(self) -> int:
        return int(self.flops >= GPU_FLOPS)

    @property
    def megabytes(self) -> int:
        """Memory to ask for: 3 GB for any notebook, and twice what the panel and the model take by themselves."""
        if not self.regime:
            return 3000
        regime = self.study.regimes[self.regime]
        model = self.study.size(self.size).memory(regime.genes) if self.size else 0
        return round(3000 + 2 * (8 * regime.genes * regime.cells + model) / 1e6)  # X and counts, if all were read

    @property
    def minutes(self) -> int:
        """Time to ask for: half an hour, and four times what reading the cells (500 a second) or training may take."""
        seconds = self.study.regimes[self.regime].cells / 500 if self.rule == "data" else 0.0
        if self.size:
            seconds = self.flops / FLOPS_PER_SECOND["gpu" if self.gpus else "cpu"]
            seconds += 2e-3 * self.cells / self.study.training(self.regime).batch
        return round(30 + 4 * seconds / 60)

    @property
    def state(self) -> str:
        """done, failed, running or not yet: by the files that the notebook leaves."""
        if held(self.file(".lock")):
            return "running"
        if self.failure():
            return "failed"
        files = [self.file(".done")] if self.rule == "figures" else [self.study.data / name for name in self.results]
        if not all(file.is_file() for file in files):
            return "not yet"
        if self.rule == "train":  # results of an earlier recipe may still lie there
            due = recipe(self.study.size(self.size), self.study.training(self.regime))
            return "done" if all(io.read_json(file).get("recipe", due) == due for file in files) else "not yet"
        return "done"

    @property
    def cells_seen(self) -> int:
        """Training cells that all seeds of a size have seen so far, by the last lines of their learning curves."""
        seeds = self.study.seeds_for(self.size)
        curves = [self.study.run_folder(self.regime, self.size, seed) / "history.csv" for seed in seeds]
        last = [list(csv.DictReader(path.read_text().splitlines()))[-1] for path in curves if path.is_file()]
        return sum(int(point["cells_seen"]) for point in last)

    def failure(self) -> str:
        """Where and why the notebook failed: its cell and the end of the traceback; empty if it has not failed."""
        log = self.file(".log")
        _, failed, why = (log.read_text(errors="replace") if log.is_file() else "").partition(FAILED)
        return f"{io.shown(self.file('.ipynb'))}{why.rstrip()}" if failed else ""


def steps(study: Study) -> list[Step]:
    """All notebooks of a study, in their order; of runs that are given, the fit and the figures."""
    end = [Step(study, "fit"), Step(study, "figures")]
    if study.runs:
        return end
    data = [Step(study, "data", regime) for regime in study.regimes]
    train = [Step(study, "train", regime, size.name) for regime in study.regimes for size in study.sizes]
    return [*data, Step(study, "model"), *train, *end]


def relative(study: Study, path: Path) -> str:
    """A path as seen from data/<study>, which may be a link to another disk."""
    return os.path.relpath(path, os.path.realpath(study.data))


def sources(study: Study) -> list[Path]:
    """The files that a study names, user files or its table of runs."""
    if study.runs:
        return [io.ROOT / study.runs.table]
    if not study.census.sources:
        return []
    from lib.data import user_files

    return user_files.inputs(study.census)


def held(lock: Path) -> bool:
    """Whether a job holds this lock."""
    try:
        with filelock.FileLock(lock, timeout=0) if lock.is_file() else nullcontext():
            return False
    except filelock.Timeout:
        return True


def forget_lost(study: Study) -> None:
    """Remove the marker of a notebook when a result is gone, or a table is not what it wrote, so that it runs again.

    A notebook that is run in JupyterLab after its study file was edited leaves other tables.
    """
    for marker in (study.data / "notebooks").rglob("*.done"):
        for name, checksum in io.read_json(marker).items():
            path, table = study.data / name, name.endswith((".json", ".csv")) and not name.startswith("..")
            if not path.is_file() or (table and _checksum(path) != checksum):
                marker.unlink()
                break


def _checksum(path):
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def execute(notebook: str, executed: str, marker: str, parameters: dict, results: list[str]) -> int:
    """Execute one notebook, then write its marker, which holds a checksum of each result. Returns the exit code.

    A marker with the same checksums as before makes nothing else run again. Whoever holds the lock is alone: a job that
    a crashed run has left on a cluster ends before its successor begins, which then finds its results.
    """
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from papermill.execute import execute_notebook
    from traitlets.config import Config

    encrypted = Config({"KernelManager": {"transport_encryption": "auto"}})  # or every kernel warns of plain TCP
    options = {"kernel_name": "python3", "progress_bar": False, "start_timeout": 600, "config": encrypted}
    with filelock.FileLock(Path(executed).with_name(f"{Path(executed).stem}.lock")):
        try:
            execute_notebook(notebook, executed, parameters, cwd=Path(notebook).parent, **options)
        except PapermillExecutionError as error:
            if error.ename != "KeyboardInterrupt":
                lines = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()  # without colours
                lines = [line for line in lines if line.strip()][-6:]  # all are in the notebook
                print(f"{FAILED}, cell [{error.exec_count}]:", *lines, sep="\n    ")
            return 1
        except DeadKernelError:
            print(f"{FAILED}: the kernel was killed, often because memory ran out; the same command goes on from here")
            return 1
        except Exception as error:
            print(f"{FAILED}: {io.short(error)}")
            raise
        files = [file for name in map(Path, results) for file in (sorted(name.iterdir()) if name.is_dir() else [name])]
        # The report is made of the notebooks; JupyterLab makes folders.
        files = [file for file in files if file.suffix != ".html" and not file.is_dir()]
        io.write_json(marker, {str(file): _checksum(file) for file in files})
    return 0


if __name__ == "__main__":
    io.stop_after(os.getppid())
    words, results = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    sys.exit(execute(*words[:3], dict(word.split("=", 1) for word in words[3:]), results))
