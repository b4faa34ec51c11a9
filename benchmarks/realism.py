"""Does the simulated census look like real cells? Measures what data/realism.csv holds.

    python benchmarks/realism.py [FOLDER]

measures every .h5ad file of raw counts in a folder, ../shared/data or another, and the simulator at its defaults.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from lib import io
from lib.data import panel, simulate
from lib.io import InputError
from lib.study import Simulation

GENES = 512
"""Genes of each panel compared: the most variable ones of its data set, as in a study; a quarter of it at most."""
SIMULATED, CELLS = (2000, 20_000), 4000
"""Genes of the simulated censuses that are measured, and their cells."""
REFERENCES = {
    "10x_pbmc1k_v2": "10x Genomics pbmc_1k_v2",
    "10x_pbmc1k_v3": "10x Genomics pbmc_1k_v3",
    "10x_pbmc3k": "10x Genomics pbmc3k",
    "10x_pbmc4k_subset": "10x Genomics pbmc4k, subset",
    "10x_pbmc8k_5p_subset": "10x Genomics vdj_v1_hs_pbmc 5', subset",
    "geact_fetal_organs": "GeACT, GSA-Human HRA000330",
    "kang2018_pbmc_ifnb": "Kang et al. 2018, GSE96583",
    "zheng2017_frozen_pbmc_donorA": "Zheng et al. 2017, doi:10.1038/ncomms14049",
    "zheng2017_pbmc_facs": "Zheng et al. 2017, doi:10.1038/ncomms14049",
}


def main(folder=io.CODE.parent / "shared" / "data", target=io.CODE / "data" / "realism.csv"):
    """Measure every .h5ad file of a folder and the simulator, write `target`, and return the table."""
    import anndata

    paths = sorted(Path(folder).glob("*.h5ad"))
    if not paths:
        raise InputError(f"{folder} has no .h5ad file; give the folder of the real data sets.")
    parts = []
    for path in paths:
        counts = sparse.csr_matrix(anndata.read_h5ad(path).X)
        library = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        parts.append(_measured(counts, library, path.stem, REFERENCES.get(path.stem, ""), simulated=False))
    table = pd.concat([*parts, *(simulated(genes) for genes in SIMULATED)], ignore_index=True)
    io.write_csv(target, table.round(5))
    return table


def simulated(genes):
    """What `main` writes for the simulator at its default settings."""
    obs, counts = next(simulate.chunks(simulate.truth(Simulation(cells=CELLS, genes=genes))))
    library = obs["raw_sum"].to_numpy(float)
    return _measured(counts, library, f"simulated, {genes:,} genes", "default settings", simulated=True)


def _measured(counts, library, source, reference, simulated):
    """`marginals` of the most variable genes of one data set, (cells, genes) csr."""
    import anndata
    import scanpy

    most = min(GENES, counts.shape[1] // 4)
    adata = anndata.AnnData(counts)
    genes = scanpy.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=most, inplace=False)
    counts = counts[:, genes["highly_variable"].to_numpy()].toarray().astype(np.int32)
    table = panel.marginals(counts, library, panel.normalise(counts, library))
    return table.assign(source=source, reference=reference, simulated=simulated)


def typical(table):
    """Of `marginals` with a source, one row each: medians, and the correlations that 6 % of the pairs are beyond."""
    by_source = table.assign(spread=table["variance"] / table["mean"]).groupby("source", sort=False)
    middle = by_source[["library", "mean", "spread"]].median().add_prefix("median_")
    ends = {
        f"correlation_{100 * panel.QUANTILES[row]:.0f}%": by_source["correlation"].nth(row).to_numpy()
        for row in (1, -2)
    }
    return by_source[["cells", "genes", "sparsity"]].first().join(middle).assign(**ends)


if __name__ == "__main__":
    try:
        print(typical(main(*sys.argv[1:2])).round(3).to_string())
    except InputError as error:
        sys.exit(str(error))
