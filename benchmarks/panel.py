"""Speed and memory of building a panel: against the plain route, and how both grow with the number of cells.

    python benchmarks/panel.py                                     # about 6 minutes, 6 GB of temporary files
    python benchmarks/panel.py --cells 20000 --largest 100000      # about 1 minute

Each part runs in a process of its own, whose seconds (without imports) and peak resident memory are printed.
"""

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from lib import io
from lib.data import census, panel
from lib.study import parse_study

PANEL, SMALLEST = 512, 10_000
ROUNDS = 3
"""Times that each route builds the panel, in turns; the fastest counts, as others may work on the machine."""
GROWTH_GENES = 600
"""Genes of the censuses whose number of cells grows: few, so that most of the time goes to the panel."""


def study(cells, genes):
    """All cells, held out at random and used for the choice of genes: what the plain route does too."""
    content = {
        "census": {"simulate": {"cells": cells, "genes": genes}},
        "regimes": {"all": {"genes": PANEL, "cells": cells}},
        "split": {"by": "random"},
        "train": {"statistics_from": "all"},
        "sizes": ["XXS"],
        "seeds": [7],
    }
    return parse_study(content, f"{cells}-{genes}")


def write(made):
    census.prepare(made)


def build(made):
    io.remove(made.folder("all"))
    panel.build(made, "all")


def plain(made):
    """Everything in memory, then scanpy: the same genes and values, written as .h5ad too."""
    import cellxgene_census
    import scanpy

    with cellxgene_census.open_soma(uri=census.prepare(made)) as collection:
        adata = cellxgene_census.get_anndata(collection, "homo_sapiens", obs_value_filter="is_primary_data == True")
    scanpy.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=PANEL)
    adata = adata[:, adata.var["highly_variable"]].copy()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.multiply(panel.TARGET / adata.obs["raw_sum"].to_numpy()[:, None]).tocsr().log1p()
    adata.write_h5ad(made.data / "plain.h5ad")


def check(made):
    """Both routes gave the same panel."""
    import anndata

    ours, theirs = panel.read(made.folder("all") / "panel.h5ad"), anndata.read_h5ad(made.data / "plain.h5ad")
    assert ours.var_names.tolist() == theirs.var["feature_id"].tolist()
    for start in range(0, ours.n_obs, census.CELLS):
        rows = slice(start, start + census.CELLS)
        np.testing.assert_array_equal(ours.layers["counts"][rows], theirs.layers["counts"][rows].toarray())
        np.testing.assert_allclose(ours.X[rows], theirs.X[rows].toarray(), rtol=1e-5)


PARTS = {part.__name__: part for part in (write, build, plain, check)}


def measured(root, part, cells, genes):
    """Run one part in a process of its own; gives its seconds and its peak memory in MiB."""
    command = [sys.executable, __file__, "--part", part, "--cells", str(cells), "--genes", str(genes)]
    environment = os.environ | {"SCALING_ROOT": root, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def one(part, cells, genes):
    """Inside that process."""
    for library in ("anndata", "cellxgene_census", "skmisc.loess", *(["scanpy"] if part == "plain" else [])):
        importlib.import_module(library)
    started = time.perf_counter()
    PARTS[part](study(cells, genes))
    seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"seconds": seconds, "memory": memory}))


def against_plain(run, cells, genes):
    written = run("write", cells, genes)
    rounds = [(run("build", cells, genes), run("plain", cells, genes)) for _ in range(ROUNDS)]
    ours, theirs = (min(found, key=lambda one: one["seconds"]) for found in zip(*rounds, strict=True))
    run("check", cells, genes)
    print(f"a census of {cells:,} cells x {genes:,} genes: written in {said(written)}")
    print(f"its panel of {PANEL} genes: {said(ours)}; the same genes and values by the plain route: {said(theirs)}")
    print(f"{theirs['memory'] / ours['memory']:.1f}x less peak memory than get_anndata of everything, then scanpy")
    print(f"{theirs['seconds'] / ours['seconds']:.1f}x as fast as get_anndata of everything, then scanpy")


def growth(run, largest):
    cells, before = SMALLEST, None
    while cells <= largest:
        run("write", cells, GROWTH_GENES)
        found = run("build", cells, GROWTH_GENES)
        line = f"{cells:>9,} cells x {PANEL} of {GROWTH_GENES} genes: {said(found)}"
        if before:
            seconds, memory = (found[name] / before[name] for name in ("seconds", "memory"))
            line += f"; 10x the cells take {seconds:.1f}x the time and {memory:.1f}x the memory"
        print(line)
        cells, before = 10 * cells, found


def said(found):
    return f"{found['seconds']:.1f} s, peak memory {found['memory']:,.0f} MiB"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000, help="of the census that both routes read")
    parser.add_argument("--genes", type=int, default=2000, help="of that census")
    parser.add_argument("--largest", type=int, default=1_000_000, help="cells at which the growth ends")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        return one(chosen.part, chosen.cells, chosen.genes)
    with tempfile.TemporaryDirectory() as root:

        def run(part, cells, genes):
            return measured(root, part, cells, genes)

        against_plain(run, chosen.cells, chosen.genes)
        growth(run, chosen.largest)


if __name__ == "__main__":
    main()
