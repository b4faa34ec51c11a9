"""The table of faults, data/reliability.csv: each row is what a test has seen happen, and is compared at every run.

    @fault("the kernel is killed", "run it again")
    def test_...():
        ...
        return "what happened"

`make reliability` runs these tests and writes the rows of those that pass.
"""

import ast
import csv
import functools
import os
from io import StringIO

import pytest

from lib import io

TABLE = io.CODE / "data" / "reliability.csv"
COLUMNS = ["fault", "what happens", "what you do"]


def fault(name, advice):
    """Of a test that returns what happened: compare it with the row of the table, or write that row."""

    def decorate(test):
        @functools.wraps(test)
        def run(*arguments, **fixtures):
            row = [name, test(*arguments, **fixtures), advice]
            if os.environ.get("RELIABILITY") == "write":
                write([row if old[0] == name else old for old in rows() if old[0] in named()], row)
            assert row in rows(), f"{TABLE.name} says otherwise than {row}: run make reliability, and change the README"

        return pytest.mark.fault(run)

    return decorate


def rows():
    """The table's rows without its header."""
    return list(csv.reader(TABLE.read_text().splitlines()))[1:] if TABLE.is_file() else []


def write(kept, row):
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *kept, *([] if row in kept else [row])])
    with io.atomic(TABLE) as partial:
        partial.write_text(text.getvalue())


def named():
    """Names of all faults that some test in this folder is about."""
    trees = [ast.parse(path.read_text()) for path in sorted((io.CODE / "tests").glob("test_*.py"))]
    tests = [node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    calls = [call for test in tests for call in test.decorator_list if isinstance(call, ast.Call)]
    return [call.args[0].value for call in calls if isinstance(call.func, ast.Name) and call.func.id == "fault"]
