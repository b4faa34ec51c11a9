"""An .h5ad file as `Counts`: X stored by cell, by gene or dense."""

from functools import partial

import numpy as np
import pandas as pd
from scipy import sparse

from lib.data import counts, genes
from lib.io import InputError


def recognises(h5):
    """Any HDF5 file that no other reader knows; `opened` says what it lacks."""
    return True


def opened(h5, name):
    """The open HDF5 file as `Counts`.

    Raises
    ------
    InputError
        It lacks X, obs or var, they do not fit each other, or names are missing or repeated.
    """
    from anndata.io import sparse_dataset

    absent = [key for key in ("X", "obs", "var") if key not in h5]
    if absent:
        raise InputError(f"{name} has no {' and no '.join(absent)}; write it again with adata.write_h5ad.")
    matrix, layout = h5["X"], "dense"
    if hasattr(matrix, "keys"):
        stored = sparse_dataset(matrix)
        shape, layout = stored.shape, stored.format
    else:
        shape = matrix.shape
    cells, var = _names(h5["obs"]), _names(h5["var"])
    counts.check_shape(name, shape, len(cells), len(var))
    counts.check_numbers(name, matrix.dtype if layout == "dense" else matrix["data"].dtype)
    counts.check_names(name, cells)
    blocks = {
        "dense": partial(_dense, matrix),
        "csr": partial(counts.rows, matrix, shape),
        "csc": lambda: counts.by_cell(_by_gene(matrix, shape), shape, name),
    }[layout]
    known = _columns(h5["var"], name) if hasattr(h5["var"], "keys") else {}
    columns = partial(_columns, h5["obs"], name)
    return counts.Counts(name, cells, genes.table(var, known, name), blocks, columns, direct=layout != "csc")


def _dense(matrix):
    cells, width = matrix.shape
    for first, end in counts.cuts(np.full(cells, -(-width // 4))):  # four plain numbers take no more than one entry
        yield first, sparse.csr_matrix(matrix[first:end].astype(np.float64))


def _by_gene(matrix, shape):
    """Entries of a matrix that is stored gene by gene, in that order."""
    pointer = counts.pointers(matrix, shape[1])
    for start in range(0, pointer[-1], counts.ENTRIES):
        stop = min(start + counts.ENTRIES, pointer[-1])
        part = np.empty(stop - start, counts.ENTRY)
        part["cell"], part["count"] = matrix["indices"][start:stop], matrix["data"][start:stop]
        part["gene"] = np.searchsorted(pointer, np.arange(start, stop), side="right") - 1
        if part["cell"].min() < 0 or part["cell"].max() >= shape[0]:
            raise ValueError("indices of its matrix go beyond the number of cells")
        yield part


def _names(table):
    """Row names of obs or var."""
    import h5py
    from anndata.io import read_elem

    if isinstance(table, h5py.Dataset):  # as anndata before 0.7 wrote it; enough to name a gene in a message
        return pd.Index(table[table.dtype.names[0]].astype(str))
    return pd.Index(np.asarray(read_elem(table[table.attrs["_index"]]), dtype=object).astype(str))


def _columns(table, name):
    """{name of a column: callable that reads it} of obs or var."""
    import h5py
    from anndata.io import read_elem

    if isinstance(table, h5py.Dataset):
        raise InputError(f"{name} was written by anndata before 0.7; read it with anndata and write it again.")
    return {key: lambda key=key: np.asarray(read_elem(table[key])) for key in table if key != table.attrs["_index"]}
