"""Nothing that is read can run a program (ruff's rules S forbid the calls that do), leads out of a study's folders, or
calls the network."""

import os
import pickle
import subprocess
import sys

import filelock
import pytest
from conftest import TINY

from lib import io
from lib.data import panel
from lib.io import InputError
from lib.run.cli import main
from lib.study import parse_study

NASTY = [
    "..", ".", "../..", "/etc", "a/b", "-rf", "--help", "a b", "a;b", "$(id)", "`id`", "a\nb", "*", "~", "", "a.", ".a",
    "a..b", "laws.json", "runs.csv", "é", "\0",
]  # fmt: skip


def test_a_simulated_study_is_read_without_pickle_and_without_network(tiny):
    """Without a name to look up, pickle makes nothing but plain data."""
    seen = []

    def watch(event, arguments):  # for good: an audit hook cannot be taken away
        away = event == "socket.connect" and isinstance(arguments[1], tuple)
        if event == "pickle.find_class" or (away and arguments[1][0] not in ("127.0.0.1", "::1")):
            seen.append(event)

    panel.build(tiny, "data-limited")  # scanpy has numba compile what it runs, which numba keeps for itself by pickle
    sys.addaudithook(watch)
    panel.read(panel.build(tiny, "data-rich"))
    assert seen == []
    pickle.loads(pickle.dumps(os.getpid))
    assert seen, "the watch itself is blind"


def parsed(study="mine", regime="data-rich", size="XXS"):
    sizes = [{"name": size, "d": 4, "layers": 1}]
    return parse_study(TINY | {"regimes": {regime: TINY["regimes"]["data-rich"]}, "sizes": sizes}, study)


NAMES = [*(("regime", name) for name in (*NASTY, 61 * "x")), ("study", "../.."), ("size", "../..")]
TAKEN = [("study", "gallery"), ("study", "Results"), ("regime", "census")]


@pytest.mark.parametrize("kind, name", [*NAMES, *TAKEN])
def test_a_name_that_is_no_folder_of_its_own_or_one_of_the_projects_is_refused(kind, name):
    with pytest.raises(InputError, match="choose another name" if (kind, name) in TAKEN else "cannot name a folder"):
        parsed(**{kind: name})


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def produced(project):
    folders = "data/demo/rich", "data/other", "data/results", "figures/demo", "figures/gallery", "params"
    for name in (*(f"{folder}/file" for folder in folders), "data/coverage.csv"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()
    return project


@pytest.mark.parametrize("study", [None, '"; touch here; echo "'])
def test_make_clean_without_a_name_or_with_a_command_for_a_name_deletes_nothing(produced, study):
    before, bin = tree(produced), os.path.dirname(sys.executable)
    environment = {key: value for key, value in os.environ.items() if key != "STUDY"}
    environment |= {"SCALING_ROOT": str(produced)} | ({"STUDY": study} if study else {})
    command = ["make", "-o", ".venv/installed", f"BIN={bin}", "clean"]
    done = subprocess.run(command, cwd=io.CODE, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and ("cannot name a folder" if study else "name the study") in done.stderr
    assert tree(produced) == before and not (io.CODE / "here").exists()


def test_clean_deletes_the_two_folders_of_a_study_unless_it_is_being_run_and_not_what_a_link_leads_to(produced):
    before = tree(produced)
    with filelock.FileLock(produced / "data" / "demo" / ".lock"):
        assert main(["clean", "demo"]) == 2
    (produced / "data/demo/notebooks").mkdir()
    with filelock.FileLock(produced / "data/demo/notebooks/05_figures.lock"):  # run by Snakemake itself
        assert main(["clean", "demo"]) == 2
    assert set(tree(produced)) >= set(before)
    (produced / "data" / "linked").symlink_to(produced / "data" / "other")
    assert main(["clean", "demo"]) == main(["clean", "linked"]) == 0
    left = {path for path in before if not path.startswith(("data/demo", "figures/demo"))}
    assert {*tree(produced)} == left | {"data/other/.lock"}
