"""Why a notebook failed, from what it left: its executed copy, and the messages beside it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from lib import io

AGAIN = "often because memory ran out; the same command goes on from here"
KILLED = f"it was killed before it could say why, {AGAIN}"
KERNEL_KILLED = f"its kernel was killed, {AGAIN}"
OF_BASH = re.compile(r"bash: line \d+: +\d+ Killed ")
"""How bash tells that."""
LAST = 5
"""Lines in which to look for that."""
FULL = "the disk is full"


@dataclass(frozen=True)
class Failure:
    """One failed notebook: its error in a line; the number of the failing cell and its first line, where known."""

    place: Path
    error: str
    cell: int | None = None
    line: str = ""
    stopped: bool = False
    """It was interrupted on purpose, and did not fail."""


def executed(path):
    """An executed notebook as a dict, or None where there is none, or only half of one (being written; disk full)."""
    try:
        content = io.read_json(path)
        return content if isinstance(content.get("cells"), list) else None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        return None


def failure(notebook, messages):
    """What went wrong in a notebook that has ended without its results: an error of a cell, or else the last message.

    Parameters
    ----------
    notebook, messages : Path
        The executed copy, and what papermill said. Either may be missing.
    """
    cells = [cell for cell in (executed(notebook) or {"cells": []})["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        errors = [output for output in cell["outputs"] if output["output_type"] == "error"]
        if errors:
            error = f"{errors[-1]['ename']}: {' '.join(errors[-1]['evalue'].split())}"
            return Failure(notebook, error, *_shown(number, cell), errors[-1]["ename"] == "KeyboardInterrupt")
    place = notebook if cells else messages
    return Failure(place, last_words(messages), *_at_work(cells))


def last_words(messages):
    """The last line that a notebook's process said, or that it was killed."""
    text = messages.read_text(errors="replace") if messages.is_file() else ""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:  # a full disk swallows messages too
        return FULL if io.full(messages.parent) else KILLED
    end = "\n".join(lines[-LAST:])  # a kernel that has lost its parent says so, too
    if OF_BASH.search(end):
        return KILLED
    return KERNEL_KILLED if "DeadKernelError" in end else lines[-1]


def _at_work(cells):
    """Number and first line of the cell that was at work when all ended: marked by papermill, or the last one begun."""
    marked = [cell.get("metadata", {}).get("papermill", {}).get("status") in ("running", "failed") for cell in cells]
    begun = [bool(cell.get("execution_count")) for cell in cells]
    for chosen in (marked, begun):
        if any(chosen):
            number = max(place for place, here in enumerate(chosen) if here)
            return _shown(number + 1, cells[number])
    return None, ""


def _shown(number, cell):
    """Number and first line of a cell, as they stand in the notebook."""
    lines = [line for line in "".join(cell["source"]).splitlines() if line.strip()]
    return cell.get("execution_count") or number, lines[0] if lines else ""
