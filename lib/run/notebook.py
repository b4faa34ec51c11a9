"""What only a notebook needs: its parameters checked, and progress kept as one line of text."""

import ast
import itertools
import sys
import time

from IPython import get_ipython
from IPython.display import TextDisplayObject, display

from lib import figures
from lib.fit import runs
from lib.io import InputError
from lib.study import load_study

EVERY = 0.5
"""Seconds between two updates of the line."""


def settings(study):
    """The study of that name; colours and markers of all its figures are fixed from here on.

    Raises
    ------
    InputError
        Also for a parameter that the notebook lacks, which papermill would pass over.
    """
    cells = get_ipython().user_ns["In"] if get_ipython() else []
    for known, given in itertools.pairwise(cells):
        if given.startswith("# Parameters\n") and (unknown := sorted(_assigned(given) - _assigned(known))):
            known = ", ".join(sorted(_assigned(known)))
            raise InputError(f"this notebook has no parameter {', '.join(unknown)}; it has {known}.")
    chosen = load_study(study)
    sizes = [size.name for size in chosen.sizes]
    if chosen.runs:
        sizes = runs.given(chosen).sort_values("parameters")["size"].unique()
    figures.use(chosen.regimes, sizes)
    return chosen


def _assigned(cell):
    """Names that a cell of plain assignments sets."""
    return {target.id for line in ast.parse(cell).body if isinstance(line, ast.Assign) for target in line.targets}


class Line(TextDisplayObject):
    """One line of plain text as a notebook output."""

    def __repr__(self):
        return self.data


class Progress:
    """Shows how far a run is: in a notebook one line that is rewritten, in a terminal the same on standard error.

    Rate and remaining time are shown while it runs. The line that stays in a saved notebook has neither, and is the
    same whether the run was trained just now or before: it says `finished` when the cell has ended well, even if
    there was nothing to do, and how far it got when it was stopped.
    """

    def __init__(self, label, unit="updates", cells=1):
        """`unit` is what is counted, and `cells` how many cells one of it is."""
        self.label, self.unit, self.cells = label, unit, cells
        self.shown, self.first, self.reached = 0.0, None, None
        self.shell = get_ipython()
        self.handle = display(Line(f"{label} ..."), display_id=True) if self.shell else None
        if self.shell:
            self.shell.events.register("post_run_cell", self.close)

    def __call__(self, done, total, loss=None):
        now = time.monotonic()
        if self.first is None:  # the clock starts here: what was done before, by an earlier run too, says nothing
            self.first, self.started = done, now
        self.reached = f"{done:,} of {total:,} {self.unit}" if done < total else None
        if done == total:
            self.write(f"{self.label}: finished", end="\n")
        elif done > self.first and now - self.shown > EVERY:
            rate = (done - self.first) / (now - self.started)
            told = "" if loss is None else f", loss {loss:.4f}"
            told += f", {rate * self.cells:,.0f} cells/s, {(total - done) / rate:,.0f} s left"
            self.write(f"{self.label}: {self.reached}{told}")
            self.shown = now

    def close(self, result):
        """End the line with its cell."""
        self.shell.events.unregister("post_run_cell", self.close)
        if self.reached:
            self.write(f"{self.label}: stopped at {self.reached}")
        else:
            self.write(f"{self.label}: {'finished' if result.success else 'not finished'}")

    def write(self, line, end=""):
        if self.handle:
            self.handle.update(Line(line))
        elif sys.stderr.isatty():
            print(f"\r{line:<100}", end=end, file=sys.stderr)
