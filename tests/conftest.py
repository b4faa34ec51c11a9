"""Fixtures shared by all tests: a project folder of their own, small inputs, the real data where it is."""

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path

import anndata
import cellxgene_census
import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import sparse

from lib import io
from lib.data import census
from lib.fit import runs
from lib.study import load_study

TINY = yaml.safe_load("""
census: {simulate: {cells: 600, genes: 120, transcriptome: 120, states: 8, donors: 12, profiles: 2}}
regimes: {data-rich: {genes: 24, cells: 500}, data-limited: {genes: 40, cells: 120}}
split: {validation: 0.1, test: 0.1}
sizes: [XXS, {name: small, d: 8, layers: 1, heads: 2, ff_mult: 1}]
seeds: [7, 8]
train: {cells_seen: 320, evaluations: 2}
fit: {resamples: 100}
""")
"""A whole study that takes seconds."""

STUDY = yaml.safe_load("""
census: {simulate: {cells: 900, genes: 150, transcriptome: 150, states: 8, donors: 12, profiles: 2}}
regimes: {data-rich: {genes: 24, cells: 500}}
split: {validation: 0.1, test: 0.1, cells: 40}
sizes: [{d: 4, layers: 1}, {d: 6, layers: 1}, {d: 8, layers: 1}, {d: 16, layers: 1}]
seeds: [7, 8]
train: {cells_seen: 1600, batch: 32, evaluations: 4}
fit: {resamples: 100}
""")
"""The demo at a size whose notebooks take a minute: the sizes that a law needs, one regime (published-runs has two)."""

TOGETHER = ["test_browser", "test_commands", "test_notebooks"]
"""Modules whose tests share the executed demo: with several workers they run on one of them."""
FIRST = [*TOGETHER, "test_workflow", "test_cluster", "test_public_census", "test_cost", "test_train"]
"""The modules that take longest, in whose order they begin, so that all workers end together."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With several workers, one runs all tests of a module, or of modules that belong together.

    xdist's own groups are marks that it writes behind a test's name, where pytest 9.2 no longer reads them.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            name = Path(nodeid.partition("::")[0]).stem
            return "executed" if name in TOGETHER else name

    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    """Begin with what takes longest."""
    items.sort(key=lambda item: [*FIRST, item.module.__name__].index(item.module.__name__))


@pytest.fixture
def real_data():
    """Folder of the real data sets; the test is skipped where they are missing."""
    folder = io.CODE.parent / "shared" / "data"
    if not any(folder.glob("*.h5ad")):
        pytest.skip("REAL DATA MISSING: no .h5ad file in ../shared/data, so nothing was tested on real cells")
    return folder


@pytest.fixture(scope="session")
def published_runs():
    """The 38 published runs, with the columns of runs.csv."""
    return runs.given(load_study("published-runs"))


@pytest.fixture(scope="session")
def executed(tmp_path_factory):
    """A project whose demo takes seconds, run once from the study file to the figures.

    A test that changes its results takes a copy.
    """
    folder = tmp_path_factory.mktemp("executed")
    (folder / "params").mkdir()
    (folder / "params" / "demo.yaml").write_text(yaml.safe_dump(STUDY))
    other = tmp_path_factory.mktemp("jupyter")  # a kernel of another Python in the user's shell, which plays no part
    io.write_json(other / "kernels/python3/kernel.json", {"argv": ["/of/another/python"], "display_name": "python3"})
    environment = os.environ | {"SCALING_ROOT": str(folder), "JUPYTER_PATH": str(other)}
    words = [sys.executable, "-m", "lib", "run", "demo", "--jobs", "2"]
    done = subprocess.run(words, timeout=1800, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder that lib works in, here and in processes started by the test."""
    (tmp_path / "params").mkdir()
    monkeypatch.setattr(io, "ROOT", tmp_path)
    monkeypatch.setenv("SCALING_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def study_file(project):
    """Write params/<name>.yaml, TINY with some keys replaced, and return the study."""

    def write(name="tiny", **changed):
        (project / "params" / f"{name}.yaml").write_text(yaml.safe_dump(TINY | changed, sort_keys=False))
        return load_study(name)

    return write


@pytest.fixture
def tiny(study_file):
    """The simulated study of seconds."""
    return study_file()


@pytest.fixture
def h5ad(project):
    """Write input/<name>.h5ad from counts, with equal shares of `donors` and any other obs columns; return its path."""

    def write(name, counts, donors=("A", "B", "C", "D"), genes=None, var=None, **obs):
        cells, width = counts.shape
        names = [f"G{gene}" for gene in range(width)] if genes is None else genes
        obs = {"donor_id": np.resize(donors, cells)} | obs if donors else obs
        adata = anndata.AnnData(
            counts if sparse.issparse(counts) else sparse.csr_matrix(counts),
            pd.DataFrame(obs, index=[f"{name}-{cell}" for cell in range(cells)]),
            pd.DataFrame(var or {}, index=names),
        )
        path = project / "input" / f"{name}.h5ad"
        path.parent.mkdir(exist_ok=True)
        adata.write_h5ad(path)
        return path

    return write


@pytest.fixture
def tenx(project):
    """Write input/<name> as Cell Ranger does: layout `h5`, or `mtx` or `mtx.gz` (a folder); return its path.

    Gene names are given by their ids, symbols and feature types. What is written can be read by scanpy.
    """

    def write(name, counts, layout="h5", ids=None, symbols=None, types=None, barcodes=None):
        cells, width = counts.shape
        ids = [f"ENSG{gene:011d}" for gene in range(width)] if ids is None else ids
        symbols = [f"G{gene}" for gene in range(width)] if symbols is None else symbols
        barcodes = bases(cells) if barcodes is None else barcodes
        types = ["Gene Expression"] * width if types is None else types
        path = project / "input" / (name if layout.startswith("mtx") else f"{name}.h5")
        path.parent.mkdir(exist_ok=True)
        if layout.startswith("mtx"):
            path.mkdir()
            packed = layout.removeprefix("mtx")
            features = zip(ids, symbols, types, strict=True)
            text = {"barcodes.tsv": barcodes, "features.tsv": ["\t".join(row) for row in features]}
            entries = sparse.coo_matrix(sparse.csr_matrix(counts))
            head = ["%%MatrixMarket matrix coordinate integer general", "% a comment", f"{width} {cells} {entries.nnz}"]
            lines = (f"{g + 1} {c + 1} {n:g}" for c, g, n in zip(*entries.coords, entries.data, strict=True))
            text["matrix.mtx"] = [*head, *lines]
            for part, content in text.items():
                with (gzip.open if packed else open)(path / f"{part}{packed}", "wt", encoding="utf-8") as file:
                    file.write("\n".join(content) + "\n")
            return path
        matrix = sparse.csr_matrix(counts)
        with h5py.File(path, "w") as h5:
            group = h5.create_group("matrix")
            group["data"], group["indices"] = matrix.data.astype(np.int32), matrix.indices.astype(np.int64)
            group["indptr"], group["shape"] = matrix.indptr.astype(np.int64), np.array([width, cells], np.int32)
            group["barcodes"] = np.array(barcodes, "S")
            columns = {"id": ids, "name": symbols, "feature_type": types, "genome": ["GRCh38"] * width}
            for key, values in columns.items():
                group[f"features/{key}"] = np.array(values, "S")
        return path

    return write


def whole_census(study):
    """All counts and labels of a study's Census, as AnnData, and the files behind it."""
    with census.open_census(study) as collection:
        return cellxgene_census.get_anndata(collection, census.ORGANISM), census.sources(collection)


def read_kept(study):
    """The runs of data/results/<study> with all columns of today."""
    return runs.read(io.CODE / "data" / "results" / study / "runs.csv").reindex(columns=runs.COLUMNS)


def wait(true, step=0.1, failure=lambda: ""):
    """What `true` gives as soon as it is true; a busy machine needs many seconds."""
    end = time.monotonic() + 400
    while not (found := true()):
        assert time.monotonic() < end, f"it did not happen in time {failure()}"
        time.sleep(step)
    return found


def bases(cells, seed=0):
    """Barcodes as of 10x: 16 bases and -1."""
    letters = np.random.default_rng(seed).choice(list("ACGT"), (cells, 16))
    return ["".join(row) + "-1" for row in letters]


@pytest.fixture
def counts():
    """Counts of 200 cells x 30 genes of unequal means, (cells, genes) float32."""
    rng = np.random.default_rng(0)
    return rng.poisson(rng.gamma(2, 1, 30) * rng.gamma(3, 1 / 3, (200, 30))).astype(np.float32)
