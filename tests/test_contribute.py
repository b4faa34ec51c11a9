"""The changes that the README calls a contribution are all that it takes: they are made in a copy of lib, and used."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from lib import io
from lib.model.sizes import Size

README = (io.CODE / "README.md").read_text()
READER = """
import numpy as np
import pandas as pd
from scipy import sparse

from lib import counts, genes


def recognises(h5):
    return "layout" in h5.attrs


def opened(h5, name):
    matrix = sparse.csr_matrix(h5["counts"][:].astype(float))
    cells = pd.Index([f"cell{cell}" for cell in range(matrix.shape[0])])
    names = pd.Index([f"G{gene}" for gene in range(matrix.shape[1])])
    donors = {"donor_id": lambda: np.full(len(cells), "A")}
    return counts.Counts(name, cells, genes.table(names, {}, name), lambda: iter([(0, matrix)]), lambda: donors)
"""
USE = """
import h5py, numpy as np
from lib import own, params, runs
from lib.fit import fit_laws
from lib.fit.law import power_law
with h5py.File("mine.h5", "w") as h5:
    h5.attrs["layout"], h5["counts"] = "mine", np.arange(600).reshape(20, 30) % 7
pool = own.survey(params.Census(files=["mine.h5"]))
print("cells:", pool.report["cells"][0])
print("readers:", *own.MODULES)
content = {"census": {"simulate": {"cells": 1000}}, "regimes": {"rich": {"genes": 20, "cells": 500}}, "seeds": [7]}
print("parameters:", params.parse(content | {"sizes": ["XS", NEW_SIZE]}, "mine").sizes[1].parameters(20))
laws = fit_laws(runs.given(params.load("published-runs")), 100, 0, metrics=("validation_mse",))
print("compared:", ", ".join(sorted(laws["data-rich"]["validation_mse"]["comparison"][NEW_LAW])))
print("predicted:", power_law([1e3, 1e4, 1e5, 1e6], [4, 3, 2, 1], form=NEW_LAW).predict(1e5))
"""


def block(language, file):
    """Lines of the README's block that names this file, of which the comments say what they are."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(block for block in blocks if re.search(rf"^# {file}, (in|after)", block, re.MULTILINE)).splitlines()


def line(language, file):
    """The one line that stands below the comment with this file's name."""
    lines = block(language, file)
    return lines[next(at for at, text in enumerate(lines) if text.startswith(f"# {file}, ")) + 1]


def edit(path, pattern, line):
    """Put a line in place of what matches in a file."""
    old = path.read_text()
    new, times = re.subn(pattern, lambda found: found.expand(line), old, flags=re.MULTILINE)
    assert times == 1, path
    path.write_text(new)


@pytest.fixture
def changed(tmp_path):
    """A copy of lib with the README's lines put into it, and the module of a new reader."""
    shutil.copytree(io.CODE / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params/published-runs.yaml", "data/published_runs.csv"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(io.CODE / name, tmp_path / name)
    (tmp_path / "lib" / "mine.py").write_text(READER)
    edit(tmp_path / "lib/fit/law.py", r"^FORMS = \{$", rf"\g<0>\n{line('python', 'lib/fit/law.py')}")
    edit(tmp_path / "lib/data/samples.py", r"^READERS = .*$", line("python", "lib/data/samples.py"))
    edit(tmp_path / "lib/data/samples.py", r"^(from lib import .*)\bparams, ", r"\1mine, params, ")
    return tmp_path


def test_a_size_a_law_and_a_source_take_the_lines_that_the_readme_says(changed):
    size = yaml.safe_load(line("yaml", "params/mine.yaml"))[0]
    law = re.search('"(.+?)"', line("python", "lib/fit/law.py")).group(1)
    script = USE.replace("NEW_SIZE", repr(size)).replace("NEW_LAW", repr(law))
    environment = os.environ | {"PYTHONPATH": str(changed), "SCALING_ROOT": str(changed)}
    done = subprocess.run([sys.executable, "-c", script], cwd=changed, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = dict(part.split(": ") for part in done.stdout.splitlines())
    assert said["cells"] == "20" and "mine.py" in said["readers"], "the new reader was not used"
    assert int(said["parameters"]) == Size("", size["d"], size["layers"], size["heads"], 4).parameters(20)
    assert said["compared"] == "aicc, loso_rmse, parameters", "the new law was not compared with the others"
    assert 1.5 < float(said["predicted"]) < 2.5
