"""Peak memory and speed of checking one's own files, the same counts in every format, at two sizes.

Each file is checked by a process of its own. Memory should grow by what is kept of a cell (its name, its labels) and
not with the counts.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

GENES, SHOWN = 20_000, 1200  # genes, and how many of them a cell shows
SIZES = (10_000, 30_000)


def write(folder, cells):
    """The same counts as .h5ad by cell and by gene, as 10x .h5 and as a 10x folder; paths by format."""
    rng = np.random.default_rng(0)
    genes = np.concatenate([np.sort(rng.choice(GENES, SHOWN, replace=False)) for _ in range(cells)])
    counts = rng.geometric(0.6, cells * SHOWN).astype(np.float32)
    matrix = sparse.csr_matrix((counts, genes, np.arange(0, len(genes) + 1, SHOWN)), (cells, GENES))
    names = np.array([f"G{gene}" for gene in range(GENES)])
    barcodes = np.array([f"cell{cell}" for cell in range(cells)])
    paths = {name: folder / f"{cells}-{name}" for name in ("h5ad by cell", "h5ad by gene", "h5", "mtx")}
    for name, stored in (("h5ad by cell", matrix), ("h5ad by gene", matrix.tocsc())):
        obs = pd.DataFrame({"donor_id": "A"}, index=barcodes)
        anndata.AnnData(stored, obs, pd.DataFrame(index=names)).write_h5ad(paths[name])
    with h5py.File(paths["h5"], "w") as h5:
        group = h5.create_group("matrix")
        parts = {"data": matrix.data.astype(np.int32), "indices": matrix.indices, "indptr": matrix.indptr}
        parts |= {"shape": matrix.shape[::-1], "barcodes": barcodes.astype("S")}
        parts |= {"features/id": names.astype("S"), "features/name": names.astype("S")}
        for key, values in (parts | {"features/feature_type": np.full(GENES, b"Gene Expression")}).items():
            group[key] = values
    paths["mtx"].mkdir()
    (paths["mtx"] / "barcodes.tsv").write_text("\n".join(barcodes))
    (paths["mtx"] / "genes.tsv").write_text("\n".join(names))
    with open(paths["mtx"] / "matrix.mtx", "w") as file:
        file.write(f"%%MatrixMarket matrix coordinate integer general\n{GENES} {cells} {matrix.nnz}\n")
        entries = {"gene": genes + 1, "cell": np.repeat(np.arange(cells) + 1, SHOWN), "count": counts.astype(int)}
        pd.DataFrame(entries).to_csv(file, sep=" ", header=False, index=False)
    return paths


def peak():
    """Peak resident memory of this process, MiB. (Linux; what getrusage gives includes the parent's, by fork.)"""
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def check(path):
    """Check one file; print peak memory above that of the imports, and seconds."""
    from lib.data import own
    from lib.study import Census

    started, before = time.perf_counter(), peak()
    own.survey(Census(files=[path]), labelled=False)
    print(peak() - before, time.perf_counter() - started)


def main():
    with tempfile.TemporaryDirectory() as folder:
        for cells in SIZES:
            for name, path in write(Path(folder), cells).items():
                call = [sys.executable, __file__, path]
                said = subprocess.run(call, capture_output=True, text=True, check=True).stdout
                memory, seconds = map(float, said.split())
                size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir())) / 2**20
                rate = cells * SHOWN / seconds / 1e6
                print(f"{name:13} {cells:7,} cells: {size:5.0f} MiB on disk, {memory:4.0f} MiB of memory, "
                      f"{rate:4.1f} million counts/s")  # fmt: skip


if __name__ == "__main__":
    check(sys.argv[1]) if len(sys.argv) > 1 else main()
