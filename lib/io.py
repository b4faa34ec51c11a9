"""Where things lie, and how they are written: to a temporary name first, then renamed."""

import glob
import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CODE = Path(__file__).resolve().parents[1]
ROOT = Path(os.environ.get("SCALING_ROOT", CODE)).resolve()
"""Folder that holds params/, data/ and figures/: the project itself, unless SCALING_ROOT names another."""

SIMULATE_NUMERICS = FILES_NUMERICS = PANEL_NUMERICS = TRAIN_NUMERICS = FIT_NUMERICS = 1
"""What the results of each step are found by, besides their settings: a person raises one when the same study gives
other numbers. Golden tests fail when one should have been raised. They stand here to be read without loading torch."""

TARGET = 1e4
"""Counts that every cell is scaled to before the logarithm."""

REPORTED = ("torch", "numpy", "scipy", "anndata", "scanpy", "cellxgene-census", "tiledbsoma")


class InputError(ValueError):
    """Bad input, said in one sentence: what is wrong, where, and what to do."""

    def _render_traceback_(self):
        """In a notebook the sentence replaces the traceback, which would only bury it."""
        return [f"{type(self).__name__}: {self}"]


class CensusUnavailable(InputError):
    """The Census asked for cannot be opened or read; nothing is put in its place."""


@contextmanager
def atomic(path):
    """Give a temporary path beside `path`; rename it to `path` when the block ends well, remove it when it does not.

    Works for a file and for a folder. An existing folder at `path` is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    remove(partial)
    try:
        yield partial
        if path.is_dir():
            remove(path)
        os.replace(partial, path)
    finally:
        remove(partial)


def sweep(path):
    """Remove what killed processes have left of `path`; to be called by whoever holds the lock that guards `path`."""
    path = Path(path)
    for left in path.parent.glob(f".partial-*-{glob.escape(path.name)}"):
        pid = left.name.split("-")[1]
        if pid.isdigit() and not runs(int(pid)):
            remove(left)


def runs(pid):
    """Whether a process of that number is there, on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and somebody else's
        return True
    return True


def remove(path):
    """Remove a file or a folder, if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_writable(folder):
    """Make a folder, and refuse one that cannot be written: read-only, somebody else's, or without room for a block."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / ".writable") as partial:
            partial.write_bytes(bytes(2**16))
        remove(folder / ".writable")
    except OSError as error:
        raise InputError(
            f"{shown(folder)}/ cannot be written ({error.strerror}); make it writable, or make room, and run it again."
        ) from None


def full(folder):
    """Whether the disk that holds a folder has less than a MiB left."""
    return shutil.disk_usage(folder).free < 2**20


def shown(place):
    """A path as a reader on any machine may see it: relative to the project folder; a uri as it is."""
    place = str(place).removeprefix("file://")
    return place if "://" in place or not os.path.isabs(place) else os.path.relpath(place, ROOT)


def write_json(path, content):
    """Write `content` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    with atomic(path) as partial:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path):
    return json.loads(Path(path).read_text())


def write_csv(path, table):
    """Write a DataFrame without its index, atomically."""
    with atomic(path) as partial:
        table.to_csv(partial, index=False)


def code_version():
    """Commit of the code, with `-modified` when lib, notebooks or params differ from it; `unknown` outside git."""

    def git(*words):
        return subprocess.run(
            ["git", "-C", str(CODE), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        modified = git("status", "--porcelain", "--", "lib", "params", "Snakefile")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-modified" if modified else commit


def versions():
    """Versions of the libraries that decide the numbers, for a result's provenance: {name: version}."""
    found = {}
    for name in REPORTED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
