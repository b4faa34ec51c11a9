"""What a study file, a file of counts or a name cannot do: run code or leave its folders. The repository is small."""

import ast
import os
import pickle
import shutil
import subprocess
import sys
from contextlib import contextmanager

import filelock
import h5py
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import io, names, plain
from lib.data import draw, filters, panel, user_files
from lib.fit import runs
from lib.io import InputError
from lib.run.cli import main
from lib.study import Census, load_study, parse_study
from lib.train import loop

SOURCES = sorted([*io.CODE.glob("lib/**/*.py"), *io.CODE.glob("benchmarks/*.py")])
GOOD = {
    "census": {"simulate": {"cells": 1000}},
    "regimes": {"data-rich": {"genes": 20, "cells": 500}},
    "sizes": ["XXS"],
    "seeds": [7],
}
NASTY = [
    "..", ".", "../..", "/etc", "a/b", "-rf", "--help", "a b", "a;b", "$(id)", "`id`", "a\nb", "*", "~", "", "a.", ".a",
    "a..b", "laws.json", "runs.csv", "é", "\0",
]  # fmt: skip


# ---------------------------------------------------------------- nothing that is read runs


class Program:
    """Pickled, it runs when it is loaded."""

    def __reduce__(self):
        return (os.getpid, ())


@contextmanager
def unpickling():
    """Names that pickle looks up in this process meanwhile: without one it makes nothing but plain data."""
    seen.clear()
    watching.append(True)
    try:
        yield seen
    finally:
        watching.clear()


seen, watching = [], []
sys.addaudithook(lambda event, words: seen.append(words) if watching and event == "pickle.find_class" else None)


def test_no_pickle_is_loaded_from_the_census_to_the_trained_weights(tiny, h5ad, counts):
    shape = tiny.sizes[0]
    with unpickling() as looked_up:
        data = panel.arrays(panel.read(panel.build(tiny, "data-rich")))
        for _ in range(2):  # trained, then found
            loop.train(data, shape, 7, tiny.training("data-rich"), tiny.run_folder("data-rich", shape.name, 7))
        assert set(runs.histories(tiny, "data-rich")["size"]) == {shape.name}
        user_files.survey(Census(files=[str(h5ad("a", counts))]))
    assert looked_up == []
    with unpickling() as looked_up:
        pickle.loads(pickle.dumps(Program()))
    assert looked_up, "the watch itself is blind"


def test_a_block_of_cells_that_hides_a_pickled_program_is_read_again(tmp_path):
    np.savez(tmp_path / "block.npz", block=np.array([Program()], object))
    with unpickling() as looked_up:
        assert draw._kept(tmp_path / "block.npz", lambda: np.arange(3)).tolist() == [0, 1, 2]
    assert looked_up == []


FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
FORBIDDEN_CALLS = {
    ".eval", ".exec", "os.system", "os.popen", "pd.read_pickle", "pandas.read_pickle", "yaml.load", "yaml.full_load",
    "yaml.unsafe_load", "yaml.load_all", "anndata.read_zarr",
}  # fmt: skip
"""What runs, or makes objects of, what it is given; a name before the point is that of the module."""
ONLY_WITH = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def risks(source):
    """What of a Python source could run what it reads: imports and calls."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_IMPORTS]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_IMPORTS:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            found += _risky(node)
    return found


def _risky(call):
    words = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
    name = ast.unparse(call.func) if isinstance(call.func, ast.Attribute) else f".{ast.unparse(call.func)}"
    needed, value = ONLY_WITH.get(name, ("", None))
    risky = name in FORBIDDEN_CALLS or words.get("shell") or (needed and words.get(needed) is not value)
    return [name] if risky else []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from joblib import load", "np.load(p)", "np.load(p, allow_pickle=True)", "torch.load(p)",
     "yaml.load(t, Loader=yaml.Loader)", "eval(text)", "run(words, shell=True)", "pd.read_pickle(p)"],
)  # fmt: skip
def test_the_search_for_risks_finds(source):
    assert risks(source)


def test_the_code_neither_loads_pickle_nor_runs_what_it_reads():
    found = {str(path.relative_to(io.CODE)): risks(path.read_text()) for path in SOURCES}
    assert len(found) > 50
    assert {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize("kind", ["link", "bytes", "parts"])
def test_a_file_that_points_to_another_file_is_refused(h5ad, counts, tmp_path, kind):
    path, secret = h5ad("a", counts), tmp_path / "secret"
    secret.write_bytes(bytes(8 * 200))
    with h5py.File(path, "a") as h5:
        values = h5["X/data"][:]
        del h5["X/data"]
        if kind == "link":
            h5["X/data"] = h5py.ExternalLink(str(secret), "/data")
        elif kind == "bytes":
            h5["X"].create_dataset("data", (len(values),), np.uint8, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        else:
            layout = h5py.VirtualLayout((len(values),), np.float32)
            layout[:] = h5py.VirtualSource(str(secret), "data", (len(values),))
            h5["X"].create_virtual_dataset("data", layout)
    with pytest.raises(InputError, match="keeps X/data in another file, which the study does not name"):
        user_files.survey(Census(files=[str(path)]))


def test_a_filter_nested_too_deep_is_refused_in_one_sentence():
    for clause in ("-" * 100_000 + "1", "(" * 10_000, "a" + ".b" * 100_000, "__import__('os').system('true')"):
        with pytest.raises(InputError, match="is no condition"):
            filters._check(None, None, clause)


# ---------------------------------------------------------------- YAML is data


def read(project, text):
    path = project / "params" / "mine.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return plain.read(path)


def bomb(levels, width=10):
    """YAML that is small, and whose anchors stand for width ** levels values."""
    lines = ["l0: &l0 [1]", *(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * width)}]" for n in range(1, levels + 1))]
    return "\n".join(lines)


MERGED = "a0: &a0 {k: 1}\n" + "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 12))


MORE_THAN_DATA = {
    "python tag": "seeds: !!python/object/apply:os.getpid []", "endless": "a: &a [*a]", "bomb": bomb(12),
    "merged bomb": MERGED, "deep": "seeds: " + "[" * 2000, "long number": f"seeds: [{'9' * 5000}]",
    "no date": "version: 2025-13-08", "unhashable": "? [a]\n: b", "nul": "a: \0", "no text": "\ud800",
}  # fmt: skip


@pytest.mark.parametrize("kind", MORE_THAN_DATA)
def test_yaml_that_is_more_than_data_is_refused_in_one_sentence(project, kind):
    with pytest.raises(InputError, match=r"^params/mine.yaml is not valid YAML: [^\n]*\.$"):
        read(project, MORE_THAN_DATA[kind])


@settings(deadline=None)
@given(st.text(st.sampled_from("ab01-:[]{}&*!<>|'\"#%@,? \n\t.e"), max_size=60) | st.text(max_size=20))
def test_any_text_is_a_study_file_or_refused_in_one_sentence(tmp_path_factory, text):
    project = tmp_path_factory.getbasetemp() / "yaml"
    (project / "params").mkdir(parents=True, exist_ok=True)
    try:
        assert read(project, text) == yaml.safe_load(text.replace("\r\n", "\n").replace("\r", "\n"))
    except InputError as refusal:
        assert "\n" not in str(refusal) and str(refusal).endswith(".")


def test_shipped_studies_use_anchors_and_are_read(project):
    assert plain.read(io.CODE / "params" / "protocol.yaml")["regimes"]["updates"]["train"]["decay"] == 0.2


# ---------------------------------------------------------------- names stay in their folders


def parsed(study="mine", regime="data-rich", size="XXS"):
    sizes = [{"name": size, "d": 4, "layers": 1}]
    return parse_study(GOOD | {"regimes": {regime: GOOD["regimes"]["data-rich"]}, "sizes": sizes}, study)


words = st.text(max_size=8) | st.text("aZ0._-/ ", max_size=6) | st.sampled_from(NASTY)


@settings(deadline=None)
@given(words, words, words)
def test_a_run_lies_in_the_folders_of_its_study_regime_and_size_or_is_refused(study, regime, size):
    try:
        place = parsed(study, regime, size).run_folder(regime, size, 7)
    except InputError as refusal:
        assert "\n" not in str(refusal) and str(refusal).endswith(".")
    else:
        below = os.path.relpath(os.path.normpath(place), io.ROOT / "data")
        assert below.split(os.sep) == [study, regime, "runs", size, "seed-7"]


@pytest.mark.parametrize("kind", ["study", "regime", "size"])
@pytest.mark.parametrize("name", NASTY)
def test_a_name_that_is_no_folder_of_its_own_is_refused(kind, name):
    with pytest.raises(InputError, match="cannot name a"):
        parsed(**{kind: name})


@pytest.mark.parametrize(
    "kind, name",
    [("study", "results"), ("study", "Gallery"), ("regime", "census"), ("regime", "notebooks"), ("size", 61 * "x")],
)
def test_a_name_that_is_taken_or_too_long_is_refused(kind, name):
    with pytest.raises(InputError, match=r"folder has another use|has 61 characters"):
        parsed(**{kind: name})


def test_two_regimes_that_are_one_folder_on_some_disks_are_refused():
    regimes = dict.fromkeys(("rich", "Rich"), GOOD["regimes"]["data-rich"])
    with pytest.raises(InputError, match="regimes lists Rich, rich more than once"):
        parse_study(GOOD | {"regimes": regimes}, "mine")


def test_no_folder_that_git_keeps_is_a_name_of_a_study():
    kept = subprocess.run(["git", "ls-files", "data", "figures"], cwd=io.CODE, capture_output=True, text=True).stdout
    beside = {line.split("/")[1] for line in kept.splitlines()}
    for name in beside:
        with pytest.raises(ValueError):
            names.check("study", name)
    assert {"results", "gallery"} <= beside or not kept  # outside git there is no list


@settings(deadline=None)
@given(st.text("a./~ ", max_size=12) | st.text(max_size=8))
def test_a_table_of_runs_lies_in_the_project_or_is_named_by_its_whole_path(path):
    try:
        table = parse_study({"runs": {"table": path}}, "mine").runs.table
    except InputError as refusal:
        assert "leads out of the project folder" in str(refusal)
        assert not os.path.normpath(io.ROOT / path).startswith(f"{io.ROOT}{os.sep}")
    else:
        place = os.path.normpath(os.path.join("project", table))
        assert os.path.isabs(table) or place == "project" or place.startswith("project/")


@pytest.mark.parametrize("name", ["../params/demo", "..", "/etc/passwd", "demo.yaml", "*"])
def test_a_notebook_parameter_cannot_name_a_study_elsewhere(project, name):
    shutil.copy(io.CODE / "params" / "demo.yaml", project / "params")
    with pytest.raises(InputError, match="there is no study"):
        load_study(name)


@pytest.mark.parametrize("name", ["..", "", "../../x"])
def test_a_notebook_parameter_cannot_name_a_regime_or_size_elsewhere(name):
    with pytest.raises(InputError, match="has no regime"):
        parsed().folder(name)
    with pytest.raises(InputError, match="has no size"):
        parsed().size(name)


# ---------------------------------------------------------------- what is deleted


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def produced(project):
    folders = "data/demo/rich", "data/other", "data/results", "figures/demo", "figures/gallery", "params"
    for name in (*(f"{folder}/file" for folder in folders), "data/coverage.csv"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()
    return project


def clean(project, *words, **more):
    make = [
        "make",
        "-f",
        str(io.CODE / "Makefile"),
        "-o",
        ".venv/installed",
        f"BIN={os.path.dirname(sys.executable)}",
    ]
    environment = {key: value for key, value in os.environ.items() if key != "STUDY"} | {"SCALING_ROOT": str(project)}
    return subprocess.run([*make, "clean", *words], cwd=io.CODE, env=environment | more, capture_output=True, text=True)


def test_clean_deletes_the_two_folders_of_the_study_that_is_named(produced):
    before = tree(produced)
    done = clean(produced, "STUDY=demo")
    assert done.returncode == 0, done.stderr
    assert tree(produced) == [path for path in before if not path.startswith(("data/demo", "figures/demo"))]


def test_clean_without_a_name_or_with_a_command_for_a_name_deletes_nothing(produced):
    before = tree(produced)
    done = clean(produced)
    assert done.returncode != 0 and "name the study: make clean STUDY=name" in done.stderr
    done = clean(produced, STUDY='"; touch here; echo "')
    assert done.returncode != 0 and "cannot name a study" in done.stderr
    assert tree(produced) == before and not (io.CODE / "here").exists()


@pytest.mark.parametrize(
    "name", [*(name for name in NASTY if "\0" not in name), "gallery", "results", "coverage.csv", "demo/rich"]
)
def test_clean_leaves_every_other_folder_alone(produced, name, capsys):
    before = tree(produced)
    assert main(["clean", "--", name]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert tree(produced) == before


def test_clean_leaves_a_study_that_is_being_run(produced, capsys):
    before = tree(produced)
    with filelock.FileLock(produced / "data" / "demo" / ".lock"):
        assert main(["clean", "demo"]) == 2
    assert "already being run" in capsys.readouterr().err
    assert [path for path in tree(produced) if not path.endswith(".lock")] == before


def test_clean_removes_a_link_and_not_what_it_leads_to(produced, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("disk")
    (elsewhere / "kept").touch()
    (produced / "data" / "linked").symlink_to(elsewhere)
    assert main(["clean", "linked"]) == 0
    assert (elsewhere / "kept").exists() and not os.path.lexists(produced / "data" / "linked")


# ---------------------------------------------------------------- the repository stays small

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def tracked():
    """Files that git keeps, {path: bytes}; the test is skipped where the project is no checkout."""
    if not (io.CODE / ".git").exists() or not shutil.which("git"):
        pytest.skip("NO GIT CHECKOUT: the size of the repository was not tested")
    listed = git("ls-files", "-z").split("\0")[:-1]
    return {name: (io.CODE / name).lstat().st_size for name in listed if (io.CODE / name).exists()}


def git(*words):
    return subprocess.run(["git", *words], cwd=io.CODE, capture_output=True, text=True, check=True).stdout


def test_the_files_and_the_whole_history_are_under_15_megabytes(tracked):
    assert sum(tracked.values()) < 15 * MEGABYTE
    assert int(git("rev-list", "--objects", "--disk-usage", "HEAD")) < 15 * MEGABYTE


def test_no_notebook_carries_more_than_two_megabytes_of_output(tracked):
    notebooks = {name: size for name, size in tracked.items() if name.endswith(".ipynb")}
    assert len(notebooks) >= 5
    assert {name: size for name, size in notebooks.items() if size > 2 * MEGABYTE} == {}


def test_no_count_file_or_trained_weight_is_committed(tracked):
    assert [
        name for name in tracked if name.endswith((".h5ad", ".h5", ".npz", ".npy", ".pt", ".pkl", ".safetensors"))
    ] == []
