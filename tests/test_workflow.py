"""A study as a graph of notebooks: what reruns, what `run` and `status` say, and what survives what goes wrong on one
machine: processes killed, the disk full, folders read-only.

The command line and Snakemake are the real ones; a script stands in for papermill, and writes small results. That a
killed training ends with the same weights is tested in test_train.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import psutil
import pytest
from conftest import wait

from lib import io
from lib.run import cli, workflow
from lib.study import parse_study

STUDY = {
    "census": {"simulate": {"cells": 2000, "genes": 100}},
    "regimes": {"rich": {"genes": 64, "cells": 1000}, "limited": {"genes": 64, "cells": 200}},
    "sizes": ["XXS", "TINY"],
    "seeds": [7, 8],
    "train": {"cells_seen": 6400},
}
PAPERMILL = """
import json, os, time
from pathlib import Path
from papermill.exceptions import PapermillExecutionError

def execute_notebook(source, target, parameters, **options):
    name, target = Path(source).stem, Path(target)
    study, regime, size = (parameters.get(key, "") for key in ("study", "regime", "size"))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(Path(source).read_text())
    if os.environ.get("FAIL") == name + regime:
        raise PapermillExecutionError("InputError: no such cells.")
    target.with_name(f"pid-{os.getpid()}").touch()
    hold = Path("../../hold")
    seeds = [line for line in Path(f"../../params/{study}.yaml").read_text().splitlines() if line.startswith("seeds: ")]
    outputs = {
        "01_data": [f"{regime}/panel.h5ad", f"{regime}/baselines.json"], "02_model": ["sizes.csv"],
        "03_train": [f"{regime}/runs/{size}/seed-{seed}/result.json" for seed in json.loads(seeds[0][7:])],
        "04_fit": ["runs.csv", "laws.json"], "05_figures": [f"../../figures/{study}/law.png"],
    }[name]
    for path in map(Path, outputs):
        while name == "03_train" and hold.exists() and path.parts[-2:] != ("seed-7", "result.json"):
            time.sleep(0.05)
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "03_train" and path.exists():  # as training does, which knows its finished runs
            continue
        path.write_text(json.dumps({"made": time.time()}))
        with open("../../written", "a") as written:
            written.write(f"{path}\\n")
"""
"""In place of papermill. While there is a file `hold`, training stands still after its first seed."""
STAND_INS = {
    "papermill/__init__": "",
    "papermill/exceptions": """
class PapermillExecutionError(Exception):
    ename, exec_count, traceback = "InputError", 3, ["\x1b[31mInputError: no such cells.\x1b[0m"]
""",
    "papermill/execute": PAPERMILL,
    "lib/fit/__init__": "",
    "lib/fit/runs": "def baselines(study): return list(study.regimes)\ndef read(path): return path",
    "lib/fit/conditions": "class bought:\n    sentence, steps = '', None\n    def __init__(self, runs): pass",
    "lib/fit/summary": "def laws_table(laws, regimes): return regimes",
    "lib/figures/__init__": "",
    "lib/figures/tables": """
import pandas as pd
class laws:
    def __init__(self, regimes):
        self.printed = pd.DataFrame({"regime": regimes, "exponent": "0.50 (0.40 to 0.60)"})
""",
}
"""Source files of papermill and of the fitted laws, by what they stand in for."""


def write_study(project, name="tiny", **changes):
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in (STUDY | changes).items())
    (project / "params" / f"{name}.yaml").write_text(text)


def make_project(folder):
    """A project with the real lib/run, Snakefile and profiles, and stand-ins for papermill and for the fitted laws."""
    shutil.copytree(io.CODE / "lib", folder / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(io.CODE / "profiles", folder / "profiles")
    shutil.copy(io.CODE / "Snakefile", folder)
    for name in ("papermill", "params", "notebooks"):
        (folder / name).mkdir()
    for name, text in STAND_INS.items():
        (folder / f"{name}.py").write_text(text)
    for name in workflow.NOTEBOOKS.values():
        cells = [{"cell_type": "code", "source": f"import {name}", "outputs": []}]
        (folder / "notebooks" / f"{name}.ipynb").write_text(json.dumps({"cells": cells}))
    write_study(folder)
    return folder


def call(project, *words, wait=True, environment=None):
    """`python -m ...` in a project of its own; the finished process, or with wait=False the running one."""
    path = os.pathsep.join(filter(None, (str(project), os.environ.get("PYTHONPATH"))))
    environment = os.environ | (environment or {}) | {"PYTHONPATH": path}
    environment.pop("SCALING_ROOT", None)
    run = subprocess.run if wait else subprocess.Popen
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return run([sys.executable, "-m", *words], cwd=project, env=environment, **pipes)


def planned(project, study="tiny"):
    """Notebooks that Snakemake would run."""
    dry_run = call(project, "snakemake", "--dry-run", "--config", f"study={study}")
    assert dry_run.returncode == 0, dry_run.stdout
    return set(re.findall(r"Job \d+: (.*)", dry_run.stdout))


def standing(project, state):
    """Notebooks in that state, as `status` says."""
    text = call(project, "lib", "status", "tiny").stdout
    return {" ".join(line.split(state)[0].split()) for line in text.splitlines()[1:] if f" {state}" in line}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project whose study has been run to its end."""
    project = make_project(tmp_path_factory.mktemp("workflow") / "project")
    run = call(project, "lib", "run", "tiny", environment={"SNAKEMAKE_PROFILE": "/of/other/projects"})
    assert run.returncode == 0, run.stdout
    assert "03_train rich TINY\n" in run.stdout and "10 of 10 steps (100%) done\n" in run.stdout
    *_, heading, rich, _, _, _, places, _ = run.stdout.splitlines()  # what it ends with
    assert re.split("  +", rich) == ["rich", "0.50 (0.40 to 0.60)"] and heading.startswith("regime")
    assert places == "Figures: figures/tiny/   executed notebooks: data/tiny/notebooks/"
    return project


@pytest.fixture
def project(finished, tmp_path):
    """The finished project, moved to a folder with brackets; every path in Snakemake's records must survive that."""
    return shutil.copytree(finished, tmp_path / "moved [2024]", dirs_exist_ok=True)


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A folder with the study's file and no more, that this process works in."""
    (tmp_path / "params").mkdir()
    monkeypatch.setattr(io, "ROOT", tmp_path)
    write_study(tmp_path)
    return tmp_path


TRAIN = {f"03_train {regime} {size}" for regime in ("rich", "limited") for size in ("XXS", "TINY")}
LIMITED = {name for name in TRAIN if "limited" in name}
DATA = {"01_data rich", "01_data limited"}
END = {"04_fit", "05_figures"}


def test_a_finished_study_is_found_done_where_it_was_moved_after_code_was_renamed_and_notebooks_were_run(project):
    for path in [*project.glob("lib/*.py"), *project.glob("notebooks/*")]:
        path.touch()
    notebook = project / "notebooks" / "05_figures.ipynb"
    content = json.loads(notebook.read_text())
    content["cells"][0]["outputs"] = [{"output_type": "stream", "text": "seen in JupyterLab"}]
    notebook.write_text(json.dumps(content))
    with (project / "lib" / "io.py").open("a") as module:
        module.write("renamed = None\n")
    snakefile = project / "Snakefile"
    snakefile.write_text(snakefile.read_text().replace("EXECUTE", "JOB").replace("exec {PYTHON", "exec  {PYTHON"))
    before = (project / "written").read_text()
    assert standing(project, "done") == {"02_model"} | DATA | TRAIN | END
    again = call(project, "lib", "run", "tiny")
    assert again.returncode == 0 and not re.search(r"^0\d_", again.stdout, re.MULTILINE), again.stdout
    assert (project / "written").read_text() == before


NEW_SIZE = {"02_model", "03_train rich XS", "03_train limited XS"}


def regimes(**own):
    """The study's regimes, some with keys of their own."""
    return {"regimes": {name: content | own.get(name, {}) for name, content in STUDY["regimes"].items()}}


@pytest.mark.parametrize("genes_from, changes, expected", [
    (None, {"seeds": [7, 8, 9]}, TRAIN),
    (None, {"sizes": ["XXS", "TINY", "XS"]}, NEW_SIZE),
    (None, {"fit": {"resamples": 200}}, {"04_fit"}),
    (None, {"train": {"cells_seen": 640}}, TRAIN),
    (None, {"train": {"cells_seen": 6400, "library_size": "panel"}}, DATA | TRAIN),
    (None, {"split": {"seed": 5}}, DATA),
    (None, regimes(limited={"cells": 300}), {"01_data limited"}),
    ("rich", regimes(limited={"cells": 300}), {"01_data limited"}),
    ("rich", regimes(rich={"donors": 5}), DATA),
    ("rich", {"genes_from": None}, DATA),
    ("rich", {"split": {"random": 0.1}}, DATA),
    ("rich", regimes(limited={"train": {"cells_seen": 640}}), LIMITED),
    ("rich", regimes(limited={"train": {"library_size": "panel"}}), LIMITED | {"01_data limited"}),
    ("rich", regimes(limited={"train": {"statistics_from": "all"}}), LIMITED),
    ("rich", regimes(rich={"train": {"statistics_from": "all"}}), DATA | TRAIN - LIMITED),
    ("rich", regimes(limited={"train": {"objective": "negative_binomial"}}), LIMITED | {"02_model"}),
])  # fmt: skip
def test_a_changed_key_of_a_study_or_regime_reruns_only_what_depends_on_it(genes_from, changes, expected):
    def settings(**changes):
        steps = workflow.steps(parse_study(STUDY | {"genes_from": genes_from} | changes, "tiny"))
        return {(workflow.NOTEBOOKS[step.rule], step.regime, step.size): step.settings for step in steps}

    changed = settings(**changes).items() - settings().items()
    assert {" ".join(filter(None, name)) for name, _ in changed} == expected


def test_a_changed_notebook_a_raised_number_or_a_lost_or_rewritten_result_reruns_what_depends_on_it(project):
    notebook = project / "notebooks" / "02_model.ipynb"
    content = json.loads(notebook.read_text())
    content["cells"][0]["source"] += "\n1 + 1"
    notebook.write_text(json.dumps(content))
    with (project / "lib" / "io.py").open("a") as module:
        module.write("FIT_NUMERICS += 1\n")
    assert planned(project) == {"02_model"} | END
    (project / "figures/tiny/.ipynb_checkpoints").mkdir()  # of a table that was edited in JupyterLab
    assert call(project, "lib", "run", "tiny").returncode == 0
    (project / "data" / "tiny" / "laws.json").write_text("{}")  # in JupyterLab, of a study file changed for it
    assert planned(project) == END
    shutil.rmtree(project / "data" / "tiny" / "rich" / "runs" / "XXS" / "seed-8")
    (project / "data" / "tiny" / "limited" / "panel.h5ad").unlink()
    assert planned(project) == {"03_train rich XXS", "01_data limited"} | LIMITED | END


def test_runs_that_are_given_are_fitted_and_drawn_also_where_data_is_a_link_to_another_disk(project, tmp_path):
    (project / "params" / "given.yaml").write_text("runs: {table: given.csv}\nseeds: []\n")
    (project / "given.csv").touch()
    assert "given: 0 of 2 notebooks done" in call(project, "lib", "status", "given").stdout
    os.utime(project / "given.csv", (time.time() + 9 * 3600,) * 2)  # of a colleague some time zones ahead
    assert call(project, "snakemake", "--cores", "2", "--config", "study=given").returncode == 0
    assert planned(project, "given") == set()
    (project / "given.csv").write_text("changed")
    assert planned(project, "given") == END
    shutil.rmtree(project / "data")
    (disk := tmp_path / "another" / "disk" / "scratch").mkdir(parents=True)
    (project / "data").symlink_to(disk)
    assert planned(project, "given") == END


def test_finished_runs_survive_a_new_seed_and_a_failed_notebook_which_is_shown_with_its_error(project):
    kept = results(project)
    assert len(kept) == 8
    write_study(project, seeds=[7, 8, 9])
    content = (project / "notebooks" / "03_train.ipynb").read_text()
    assert call(project, "lib", "run", "tiny", environment={"FAIL": "03_trainrich"}).returncode == 1
    assert (project / "notebooks" / "03_train.ipynb").read_text() == content
    assert call(project, "lib", "run", "tiny").returncode == 0
    assert kept.items() <= results(project).items() and len(results(project)) == 12
    shutil.rmtree(project / "data")
    run = call(project, "lib", "run", "tiny", environment={"FAIL": "01_datarich"})
    why = "FAILED data/tiny/notebooks/01_data/rich.ipynb, cell [3]:\n    InputError: no such cells.\n"
    assert run.returncode == 1 and run.stdout.count("FAILED") == 1 and why in run.stdout
    shown = call(project, "lib", "status", "tiny")
    assert shown.returncode == 1 and why in shown.stdout and "tiny: 4 of 9 notebooks done" in shown.stdout
    assert standing(project, "failed") == {"01_data rich"} and standing(project, "not yet") == LIMITED ^ TRAIN | END
    assert not (project / "data" / "tiny" / "laws.json").exists()


def test_bad_input_is_one_sentence_before_any_work(bare, monkeypatch, capsys):
    write_study(bare, seeds=[])
    write_study(bare, "fine")
    write_study(bare, "mine", census={"h5ad": ["absent/*.h5ad"]})
    shutil.copytree(io.CODE / "profiles", bare / "profiles")
    refused = {
        "tiny": "seeds", "tinny": "did you mean", "mine": "absent/*.h5ad", "fine --jobs 0": "--jobs is 0",
        "fine --profile slrum": "no profile 'slrum'", "fine --profile slurm": "snakemake-executor-plugin-slurm",
    }  # fmt: skip
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    for words, said in refused.items():
        assert cli.main(["run", *words.split()]) == 2
        out, refusal = capsys.readouterr()
        assert not out and refusal.count("\n") == 1 and said in refusal, refusal
    assert not (bare / "data" / "mine").exists() and not (bare / "data" / "fine").exists()
    (bare / "figures").touch()
    assert cli.main(["run", "fine"]) == 2 and "cannot be written" in capsys.readouterr().err
    (bare / "figures").unlink()
    monkeypatch.setenv("HOME", "/of/nobody")
    assert cli.main(["run", "fine"]) == 2
    assert capsys.readouterr().err.startswith("HOME is /of/nobody, which cannot be written")


def test_a_run_stopped_or_killed_in_any_part_leaves_no_process_and_is_continued(project):
    rich, held = project / "data" / "tiny" / "rich", {"03_train rich XXS", "03_train rich TINY"}
    shutil.rmtree(rich / "runs")
    (project / "hold").touch()
    for code, stop in {
        130: lambda run: run.send_signal(signal.SIGTERM), 1: lambda run: process(run, "-m snakemake").kill(),
        -9: lambda run: run.send_signal(signal.SIGKILL),
    }.items():  # fmt: skip
        run = begun(project)
        if code == 130:
            assert standing(project, "running") == held
            second = call(project, "lib", "run", "tiny")
            assert second.returncode == 2 and second.stdout.startswith("study tiny is already being run"), second.stdout
        stop(run)
        said, _ = run.communicate(timeout=240)
        assert run.returncode == code and "Traceback" not in said and "FAILED" not in said, said
        wait(lambda: not working(project) and free(project))
    assert standing(project, "not yet") == held
    run, kept = begun(project), results(project)
    process(run, "lib.run.workflow", "size=XXS").kill()
    (project / "hold").unlink()
    said, _ = run.communicate(timeout=240)
    assert run.returncode == 1 and "Traceback" not in said and said.count("FAILED") == 1, said
    assert "XXS.log: it was killed" in said, said
    assert call(project, "lib", "run", "tiny").returncode == 0 and planned(project) == set()
    assert len(kept) == 6 and kept.items() <= results(project).items()
    written = (project / "written").read_text().split()
    assert max(written.count(name) for name in written if "rich/runs" in name) == 2  # once before, and once after


def begun(project):
    """A run whose two trainings have ended their first seed, and stand still."""
    run = call(project, "lib", "run", "tiny", wait=False)
    wait(lambda: len(working(project)) == 2 and len(list((project / "data/tiny/rich").rglob("result.json"))) == 2)
    return run


def free(project):
    """Whether no run holds the study."""
    with (project / "data" / "tiny" / ".lock").open() as lock, suppress(BlockingIOError):
        return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) is None


def working(project):
    """Processes at work on a notebook of this project."""

    def alive(number):
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return False
        return True

    return [path for path in project.rglob("pid-*") if alive(int(path.name.removeprefix("pid-")))]


DIES = {
    "cells": [{"cell_type": "code", "source": "import os; os.kill(os.getpid(), 9)", "metadata": {}, "outputs": [],
               "execution_count": None}],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    "nbformat": 4, "nbformat_minor": 4,
}  # fmt: skip
"""A notebook whose kernel is killed, as by a machine without memory."""


def process(run, *words):
    """The one descendant of a run whose command line holds all words."""
    children = [child for child in psutil.Process(run.pid).children(recursive=True) if child.name() != "bash"]
    found = [child for child in children if all(word in " ".join(child.cmdline()) for word in words)]
    assert len(found) == 1, found
    return found[0]


def results(project):
    return {path: path.read_bytes() for path in (project / "data").rglob("result.json")}


def test_a_killed_kernel_is_named_and_leaves_no_marker(tmp_path, capsys):
    notebook, marker = tmp_path / "03_train.ipynb", tmp_path / "XXS.done"
    notebook.write_text(json.dumps(DIES))
    assert workflow.execute(str(notebook), str(tmp_path / "XXS.ipynb"), str(marker), {}, []) == 1
    assert "The notebook failed: the kernel was killed" in capsys.readouterr().out and not marker.exists()


def test_a_full_disk_is_named_and_the_study_goes_on_once_there_is_room(project):
    with mounted(project / "data"):
        (project / "hold").touch()
        run = call(project, "lib", "run", "tiny", wait=False)
        wait(lambda: len(working(project)) == 2)
        filler = project / "data" / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as disk:
            while True:
                disk.write(bytes(2**12))
        (project / "hold").unlink()
        said, _ = run.communicate(timeout=240)
        assert run.returncode == 1 and "The disk that holds data/tiny/ is full." in said, said
        refused = call(project, "lib", "run", "tiny")
        assert refused.returncode == 2 and "No space left" in refused.stdout, refused.stdout
        filler.unlink()
        again = call(project, "lib", "run", "tiny")
        assert again.returncode == 0, again.stdout


@contextmanager
def mounted(place, size="8m"):
    """A small disk of its own at a place."""
    place.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("FAULT NOT TESTED: no small disk can be mounted here, which takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
