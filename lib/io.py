"""Where things lie, and how they are written: to a temporary name first, then renamed."""

import atexit
import gc
import glob
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

CODE = Path(__file__).resolve().parents[1]
ROOT = Path(os.environ.get("SCALING_ROOT", CODE)).resolve()
"""Folder that holds params/, data/ and figures/: the project itself, unless SCALING_ROOT names another."""

atexit.register(gc.freeze)  # a process ends a second or two sooner, a study starts dozens: nothing is left to collect

SIMULATE_NUMERICS = PANEL_NUMERICS = 1
FILES_NUMERICS = 4
TRAIN_NUMERICS, FIT_NUMERICS = 3, 14
"""What the results of each step are found by, besides their settings: a person raises one when the same study gives
other numbers. Golden tests fail when one should have been raised. They stand here to be read without loading torch."""

TARGET = 1e4  # counts that every cell is scaled to before the logarithm


class InputError(ValueError):
    """Bad input, in one sentence: what is wrong, where, and what to do."""

    def _render_traceback_(self):
        """In a notebook the sentence replaces the traceback, which would only bury it."""
        return [f"{type(self).__name__}: {self}"]


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, for a file or a folder, that takes its place when the block ends well."""
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


def sweep(path: Path):
    """Remove what killed processes have left of `path`; to be called by whoever holds the lock that guards `path`."""
    for left in path.parent.glob(f".partial-*-{glob.escape(path.name)}"):
        remove(left)


def remove(path: str | Path):
    """Remove a file or a folder, if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_writable(folder: Path):
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


def shown(path: str | Path) -> str:
    """A path as a reader on any machine may see it: relative to the project folder; a uri as it is."""
    path = str(path).removeprefix("file://")
    return path if "://" in path or not os.path.isabs(path) else os.path.relpath(path, ROOT)


def mark(path: str | Path) -> list:
    """What tells whether a file has changed, as JSON types: name, size, and time of change."""
    stat = Path(path).stat()
    return [shown(path), stat.st_size, stat.st_mtime_ns]


def short(error: BaseException) -> str:
    """An error on one line of at most 300 characters, without its stack and the project's folder on this machine."""
    message = f"{type(error).__name__}: {error}".split("\n\nAt:")[0].replace(f"{ROOT}{os.sep}", "")
    return " ".join(message.split())[:300].rstrip(".")


def write_json(path: str | Path, content: Any):
    """Write `content` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    with atomic(path) as partial:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text())


def fingerprint(settings: Any, numerics: int | list[int]) -> str:
    """SHA-256 of settings (JSON types) and of numbers that are raised when the same settings give other results."""
    return hashlib.sha256(json.dumps([settings, numerics], sort_keys=True).encode()).hexdigest()


def parse_yaml(text: str) -> Any:
    """Plain data from YAML. A key given twice is refused: else the last one would win in silence.

    A number is one only where it is written plainly: YAML 1.1 makes 8 of the label 010, 12 of 1_2, 750.5 of 12:30.5. A
    date stays text.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor):
            node = super().compose_mapping_node(anchor)
            keys = [key.value for key, _ in node.value]
            if twice := [key for key, _ in node.value if keys.count(key.value) > 1]:
                problem = f"{twice[-1].value} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=twice[-1].start_mark)
            return node

        def number(self, node):
            if re.fullmatch("-?(0|[1-9][0-9]*)", node.value):
                return int(node.value)
            plain = "." in node.value and not re.search("[_:]", node.value)
            return self.construct_yaml_float(node) if plain else node.value

    for kind in ("int", "float", "timestamp"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.number)
    return yaml.load(text, Loader)  # noqa: S506 (it is a SafeLoader)


def write_csv(path: str | Path, table: "pandas.DataFrame"):
    """Write a DataFrame without its index, atomically."""
    with atomic(path) as partial:
        table.to_csv(partial, index=False)


def code_version() -> str:
    """Commit of the code, `-modified` where code, notebooks or study files differ from it; `unknown` outside git.

    Outputs of notebooks and the study that they open make no difference, nor does a study file that is new.
    """

    def git(*words):
        return subprocess.run(["git", "-C", str(CODE), *words], capture_output=True, text=True, check=True).stdout

    try:
        commit = git("rev-parse", "--short=12", "HEAD").strip()
        modified = git("status", "--porcelain", "--", "lib", "Snakefile")
        modified += git("status", "--porcelain", "--untracked-files=no", "--", "params")
        names = git("diff", "-z", "--name-only", "--relative", "--diff-filter=M", "HEAD", "--", "notebooks").split("\0")
        now = {name: (CODE / name).read_text(encoding="utf-8") for name in names[:-1]}
        changed = any(sources(git("show", f"HEAD:./{name}")) != sources(text) for name, text in now.items())
    except (OSError, subprocess.CalledProcessError, ValueError):  # ValueError: a notebook that is being written
        return "unknown"
    return f"{commit}-modified" if modified or changed else commit


def sources(notebook: str) -> list[tuple[str, str]]:
    """Kind and text of a notebook's cells, but for the one that names its study (papermill's parameters)."""
    cells = json.loads(notebook)["cells"]
    kept = (cell for cell in cells if "parameters" not in cell.get("metadata", {}).get("tags", []))
    return [(cell["cell_type"], "".join(cell["source"])) for cell in kept]


def stop_after(parent: int, group: bool = False) -> None:
    """Interrupt this process (or its whole group) soon after process `parent` has ended, in whatever way it did."""

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(0 if group else os.getpid(), signal.SIGINT)
        time.sleep(20)
        os.kill(0 if group else os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def versions() -> dict[str, str]:
    """Versions of the libraries that decide the numbers, for a result's provenance."""
    found = {}
    for name in ("torch", "numpy", "scipy", "anndata", "scanpy", "cellxgene-census", "tiledbsoma"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class Progress:
    """How far a piece of work is, on one line of a notebook's output, with speed and remaining time.

    The line that a saved notebook keeps has neither, and is the same whether the work was done just now or found done:
    `finished`, or how far it got when the cell was stopped.
    """

    SECONDS = 0.5  # between two updates of the line

    def __init__(self, label: str, unit: str = "updates", cells: int = 1):
        """`unit` is what is counted, and `cells` how many cells one of it is."""
        from IPython import get_ipython
        from IPython.display import display

        self.label, self.unit, self.cells, self.events = label, unit, cells, get_ipython().events
        self.first, self.shown, self.reached = None, None, None
        self.handle = display({"text/plain": f"{label} ..."}, raw=True, display_id=True)
        self.events.register("post_run_cell", self.close)

    def __call__(self, done: int, total: int, loss: float | None = None):
        """Show that `done` of `total` are done. The first call starts the clock: an earlier run may have done some."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.shown = (done, now), now
        self.reached = f"{done:,} of {total:,} {self.unit}" if done < total else None
        if done == total:
            self.write("finished")
        elif done > self.first[0] and now - self.shown > self.SECONDS:
            rate = (done - self.first[0]) / (now - self.first[1])
            at = "" if loss is None else f", loss {loss:.4f}"
            self.write(f"{self.reached}{at}, {rate * self.cells:,.0f} cells/s, {(total - done) / rate:,.0f} s left")
            self.shown = now

    def close(self, result):
        """End the line with its cell."""
        self.events.unregister("post_run_cell", self.close)
        self.write(f"stopped at {self.reached}" if self.reached else "finished" if result.success else "not finished")

    def write(self, text):
        self.handle.update({"text/plain": f"{self.label}: {text}"}, raw=True)
