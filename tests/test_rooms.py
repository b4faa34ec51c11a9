"""A folder of lib imports what stands above it in this list, never what stands below, inside functions neither."""

import ast

from lib import io

ORDER = ["io", "model", "study", "data", "train", "fit", "figures", "run"]


def imported(path):
    """Parts of lib that a source imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names = (f"{start}{alias.name}".split(".") for alias in node.names)
            yield from (name[1] for name in names if name[0] == "lib")


def test_imports_run_upwards():
    lib = io.CODE / "lib"
    downwards = [
        f"{path.relative_to(io.CODE)} imports {part}"
        for path in [lib / "io.py", lib / "study.py", *sorted(lib.glob("*/*.py"))]
        for part in imported(path)
        if ORDER.index(part) > ORDER.index(path.relative_to(lib).parts[0].removesuffix(".py"))
    ]
    assert downwards == []
