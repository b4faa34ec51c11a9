"""Your own .h5ad files of raw counts: checked to the last value, then pooled over the genes that they share."""

import glob
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from lib import files
from lib.errors import InputError

CELLS = 2000
"""Cells of a sparse file read at once; of a dense one, as many as make VALUES numbers."""
VALUES = 20_000_000
LARGEST = 2**24
"""Above this, float32 (the type of a Census' counts) no longer holds every integer."""
CARRIED = (
    "assay", "cell_type", "tissue_general", "tissue_type", "is_primary_data",
    "suspension_type", "disease", "sex", "development_stage",
)  # fmt: skip
"""obs columns taken over under their own name where a file has them."""


@dataclass(frozen=True)
class File:
    """One checked file.

    Attributes
    ----------
    path : Path
    obs : DataFrame, (cells,)
        Columns named as in the Census.
    genes : DataFrame, (genes,)
        Indexed by the file's own gene names; feature_id and feature_name, missing where the file does not know them.
    """

    path: Path
    obs: pd.DataFrame
    genes: pd.DataFrame


def pooled(settings):
    """Check every file, then give the pooled cells as `soma.write` takes them.

    A gene is known by its name in the var index, so all files must name genes the same way; it keeps its Ensembl id
    where any file gives one. Equal donor names are taken to be one donor, in whichever file they stand.

    Parameters
    ----------
    settings : params.Census
        `h5ad` (paths or globs, relative to the project folder); the obs columns `donor`, `dataset`, `tissue`. Without
        a dataset_id column the name of the file stands for it, without a tissue column `unknown`.

    Returns
    -------
    var : DataFrame
        feature_id and feature_name of the shared genes, in the order of the first file.
    chunks : iterator of (obs DataFrame, csr_matrix)
        raw_sum counts all genes of a file, not only those shared.
    summary : dict
        `files`: for each file its cells, genes, shared genes and donors, as JSON.

    Raises
    ------
    InputError
        At the first file that cannot be used, naming it, the place in it, and what to do.
    """
    checked = [check(path, settings) for path in expand(settings.h5ad)]
    var = _shared_genes(checked)
    report = [
        {
            "file": shown(file.path),
            "cells": len(file.obs),
            "genes": len(file.genes),
            "genes_shared": len(var),
            "donors": file.obs["donor_id"].nunique(),
        }
        for file in checked
    ]
    return var, _chunks(checked, var.index), {"simulated": "false", "files": json.dumps(report)}


def expand(patterns):
    """The files that globs name, each once, sorted; relative patterns start at the project folder."""
    found = {}
    for pattern in patterns:
        matches = glob.glob(str(files.ROOT / Path(pattern).expanduser()), recursive=True)
        if not matches:
            raise InputError(f"census.h5ad: {pattern!r} matches no file; a relative path starts at the project folder.")
        for path in (Path(os.path.abspath(match)) for match in matches):
            if not os.path.exists(path):
                raise InputError(f"{shown(path)} is a link to a file that is not there; restore the file or the link.")
            found.setdefault(path.resolve(), path)
    return sorted(found.values())


def shown(place):
    """A path as a reader on any machine may see it: relative to the project folder; a uri as it is."""
    place = str(place).removeprefix("file://")
    return place if "://" in place or not os.path.isabs(place) else os.path.relpath(place, files.ROOT)


def check(path, settings):
    """Read one file through, and return its labels and genes.

    Raises
    ------
    InputError
        Not readable, no cells or genes, repeated gene names, values that are not counts, columns that are missing.
    """
    name = shown(path)
    with _opened(path) as h5:
        absent = [key for key in ("X", "obs", "var") if key not in h5]
        if absent:
            raise InputError(f"{name} has no {' and no '.join(absent)}; write it again with adata.write_h5ad.")
        genes = _names(h5["var"])
        for number, (start, counts) in enumerate(_blocks(h5)):
            _check_counts(counts, start, genes, name)
            if number == 0:  # what is quick to check is checked before the rest of the counts is read
                _check_genes(genes, counts.shape[1], name)
                obs, table = _labels(h5["obs"], settings, path), _gene_table(h5["var"], genes)
        if len(obs) != start + counts.shape[0]:
            raise InputError(
                f"{name}: X and obs have different numbers of cells; write it again with adata.write_h5ad."
            )
    return File(path, obs, table)


@contextmanager
def _opened(path):
    """The HDF5 file; whatever goes wrong in reading it becomes one sentence."""
    import h5py

    name = shown(path)
    if path.stat().st_size == 0:
        raise InputError(f"{name} is an empty file (0 bytes); copy or download it again.")
    if not h5py.is_hdf5(path):
        raise InputError(f"{name} is not an .h5ad file (it is not HDF5); write it with adata.write_h5ad.")
    try:
        with h5py.File(path) as h5:
            yield h5
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        advice = "it is damaged or was cut short: copy or download it again"
        raise InputError(f"{name} cannot be read ({reason}); {advice}.") from None


def _blocks(h5):
    """Yield (number of the first cell, csr_matrix) down X; memory is bounded by a block, except for CSC, read whole."""
    import h5py
    from anndata.io import sparse_dataset

    matrix = h5["X"]
    dense = isinstance(matrix, h5py.Dataset)
    if not dense:
        matrix = sparse_dataset(matrix)
        matrix = matrix.to_memory().tocsr() if matrix.format == "csc" else matrix
    cells, genes = matrix.shape
    if not cells or not genes:
        raise InputError(f"{shown(h5.filename)} holds {cells} cells x {genes} genes; there is nothing to use in it.")
    if matrix.dtype.kind not in "biuf":
        raise InputError(f"{shown(h5.filename)}: X holds {matrix.dtype}, not numbers; put raw counts in X.")
    step = max(1, min(CELLS, VALUES // genes)) if dense else CELLS
    for start in range(0, cells, step):
        block = sparse.csr_matrix(matrix[start : start + step])
        block.check_format(full_check=True)
        yield start, block


def _check_counts(counts, start, genes, name):
    """Refuse values that are not raw counts, naming the first by cell and gene."""
    values = counts.data
    wrong = ~np.isfinite(values) | (values < 0) | (values != np.rint(values)) | (values > LARGEST)
    if not wrong.any():
        return
    at = int(wrong.argmax())
    value, cell = values[at], start + int(np.searchsorted(counts.indptr, at, side="right")) - 1
    if not np.isfinite(value):
        kind = "not a number to count with"
    elif value < 0:
        kind = "negative, as in scaled data"
    elif value > LARGEST:
        kind = f"above {LARGEST}, more than a cell holds"
    else:
        kind = "not a whole number, as in normalised data"
    gene = genes[counts.indices[at]]
    raise InputError(f"{name}: cell {cell}, gene {gene} has {value:g}, which is {kind}; put the raw UMI counts in X.")


def _check_genes(genes, columns, name):
    if len(genes) != columns:
        raise InputError(f"{name}: X has {columns} genes and var {len(genes)}; write it again with adata.write_h5ad.")
    repeated = genes[genes.duplicated()].unique()
    if len(repeated):
        more = f" (and {len(repeated) - 1} more)" if len(repeated) > 1 else ""
        advice = "sum such columns or run adata.var_names_make_unique()"
        raise InputError(f"{name} names gene {repeated[0]}{more} more than once; {advice}.")


def _names(table):
    """Row names of obs or var."""
    import h5py
    from anndata.io import read_elem

    if isinstance(table, h5py.Dataset):  # as anndata before 0.7 wrote it; enough to name a gene in a message
        return pd.Index(table[table.dtype.names[0]].astype(str))
    return pd.Index(np.asarray(read_elem(table[table.attrs["_index"]]), dtype=object).astype(str))


def _gene_table(var, names):
    """feature_id (Ensembl only) and feature_name, NaN where the file does not tell."""
    from anndata.io import read_elem

    known = {key: np.asarray(read_elem(var[key])).astype(str) for key in ("feature_id", "feature_name") if key in var}
    table = pd.DataFrame(known, index=names).reindex(columns=["feature_id", "feature_name"])
    table["feature_id"] = table["feature_id"].where(table["feature_id"].astype(str).str.startswith("ENS"))
    return table


def _labels(group, settings, path):
    """The obs columns of a file under their names in the Census."""
    import h5py

    name = shown(path)
    if isinstance(group, h5py.Dataset):
        raise InputError(f"{name} was written by anndata before 0.7; read it with anndata and write it again.")
    asked = {"donor_id": settings.donor, "dataset_id": settings.dataset, "tissue": settings.tissue}
    for column, key in asked.items():
        # Data set and tissue may be absent under their default names; a column that the study names must be there.
        if key not in group and (column == "donor_id" or key != column):
            has = ", ".join(sorted(set(group) - {group.attrs["_index"]})) or "none"
            setting = f"census.{column.removesuffix('_id')}"
            raise InputError(f"{name} has no obs column {key!r} (it has: {has}); name the right column with {setting}.")
    wanted = {**{key: key for key in CARRIED}, **asked}
    obs = pd.DataFrame({column: _column(group, key, name) for column, key in wanted.items() if key in group})
    if "dataset_id" not in obs:
        obs["dataset_id"] = path.stem
    if "tissue_general" not in obs and "tissue" in obs:
        obs["tissue_general"] = obs["tissue"]
    return obs


def _column(group, key, name):
    """One obs column as text (is_primary_data: as booleans); no cell may be without its donor, data set or tissue."""
    from anndata.io import read_elem

    values = pd.Series(np.asarray(read_elem(group[key])))
    if key == "is_primary_data":
        if values.dtype != bool:
            raise InputError(f"{name}: obs column {key} holds {values.dtype}, not booleans; convert or drop it.")
        return values
    if key in CARRIED:
        return values.astype(object).where(values.notna(), "unknown").astype(str)
    if values.isna().any():
        empty = values.isna().sum()
        raise InputError(f"{name}: obs column {key!r} is empty for {empty} cells; fill it in or drop these cells.")
    return values.astype(str)


def _shared_genes(checked):
    """The gene table of the pool, indexed by the name that the files share."""
    shared = checked[0].genes.index
    for file in checked[1:]:
        left = shared[shared.isin(file.genes.index)]
        if left.empty:
            raise InputError(
                f"{shown(file.path)} shares no gene with the files before it (it has {file.genes.index[0]}, they have "
                f"{shared[0]}); name the genes of all files in the same way."
            )
        shared = left
    var = checked[0].genes.reindex(shared)
    for file in checked[1:]:
        var = var.combine_first(file.genes.reindex(shared)).loc[shared]
    var = var.apply(lambda column: column.fillna(pd.Series(shared, shared)))
    var["feature_id"] = var["feature_id"].mask(var["feature_id"].duplicated(keep=False), shared.to_series())
    return var


def _chunks(checked, shared):
    for file in checked:
        columns = file.genes.index.get_indexer(shared)
        with _opened(file.path) as h5:
            for start, counts in _blocks(h5):
                total = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
                yield file.obs.iloc[start : start + len(total)].assign(raw_sum=total), counts[:, columns]
