"""Counts of one file, whatever its format, as blocks of cells: memory is bounded by a block and not by the file."""

import os
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import sparse

from lib.io import InputError, shown

ENTRIES = 2_000_000
"""Stored counts in one block. A cell with more is a block of its own."""
LARGEST = 2**24
"""Above this, float32 (the type of a Census' counts) no longer holds every integer."""
ENTRY = np.dtype([("cell", np.int32), ("gene", np.int32), ("count", np.float64)])


@dataclass(frozen=True)
class Counts:
    """An open file of counts.

    Attributes
    ----------
    name : str
        The file, as messages name it.
    cells : Index, (cells,)
        Names of the cells: barcodes, mostly.
    genes : DataFrame, (genes,)
        As `genes.table` gives it.
    blocks : callable
        Gives an iterator of (number of the first cell, csr_matrix of float64) down the cells, over all genes.
    columns : callable
        Gives {name of an obs column: callable that reads it}.
    direct : bool
        The first block comes at once, without a pass through the whole file.
    left_out : str
        Features that are not genes and are not used, such as antibodies; empty if there are none.
    """

    name: str
    cells: pd.Index
    genes: pd.DataFrame
    blocks: Callable
    columns: Callable = dict
    direct: bool = True
    left_out: str = ""


def check_access(path):
    """Refuse what is neither file nor folder (a pipe would never answer), or may not be read."""
    if not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
        raise InputError(f"{shown(path)} may not be read; ask its owner for the permission (chmod +r).")
    if not os.path.isfile(path) and not os.path.isdir(path):
        raise InputError(f"{shown(path)} is neither a file nor a folder; name a file of counts.")


@contextmanager
def reading(path):
    """Whatever goes wrong in reading a file becomes one sentence."""
    name = shown(path)
    check_access(path)
    if path.is_file() and not path.stat().st_size:
        raise InputError(f"{name} is an empty file (0 bytes); copy or download it again.")
    try:
        yield
    except InputError:
        raise
    except UnicodeDecodeError as error:
        bad = error.object[error.start : error.start + 1]
        raise InputError(f"{name} is not UTF-8 text (byte {bad!r}); save it again as UTF-8.") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        advice = "it is damaged or was cut short: copy or download it again"
        raise InputError(f"{name} cannot be read ({reason}); {advice}.") from None


def check_shape(name, shape, cells, genes, places=("X", "obs", "var")):
    """Refuse a matrix without cells or genes, or one that its tables of cells and genes do not fit.

    `places` are what the file calls its matrix, its table of cells and its table of genes.
    """
    if not all(shape):
        raise InputError(f"{name} holds {shape[0]} cells x {shape[1]} genes; there is nothing to use in it.")
    turned = "it is transposed: write it" if (cells, genes) == tuple(shape[::-1]) else "write it again"
    for kind, place, held, named in (("cells", places[1], shape[0], cells), ("genes", places[2], shape[1], genes)):
        if named != held:
            raise InputError(
                f"{name}: {places[0]} and {place} have different numbers of {kind} ({held} and {named}); {turned} with "
                "one name for each of its rows and columns."
            )


def check_names(name, cells):
    """Refuse two cells of one name."""
    repeated = cells[cells.duplicated()].unique()
    if len(repeated):
        more = f" (and {len(repeated) - 1} more)" if len(repeated) > 1 else ""
        advice = "drop the copies, or if they are different cells run adata.obs_names_make_unique()"
        raise InputError(f"{name} names cell {repeated[0]}{more} more than once; {advice}.")


def check_numbers(name, dtype):
    if dtype.kind not in "biuf":
        raise InputError(f"{name}: its matrix (X) holds {dtype}, not numbers; put raw counts in X.")


def check_values(counts, start, block):
    """Refuse values that are not raw counts, naming the first by cell and gene."""
    values = block.data
    wrong = ~np.isfinite(values) | (values < 0) | (values != np.rint(values)) | (values > LARGEST)
    if not wrong.any():
        return
    at = int(wrong.argmax())
    value, cell = values[at], start + int(np.searchsorted(block.indptr, at, side="right")) - 1
    if not np.isfinite(value):
        kind = "not a number to count with"
    elif value < 0:
        kind = "negative, as in scaled data"
    elif value > LARGEST:
        kind = f"above {LARGEST}, more than a cell holds"
    else:
        kind = "not a whole number, as in normalised data"
    gene = counts.genes["name"].iloc[block.indices[at]]
    raise InputError(
        f"{counts.name}: cell {cell}, gene {gene} has {value:g}, which is {kind}; raw UMI counts are needed (in an "
        ".h5ad file, in X)."
    )


def cuts(entries):
    """Yield (first, end) of runs of cells that hold at most ENTRIES entries together, or are one cell."""
    ends, start = np.cumsum(entries), 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + ENTRIES, side="right")))
        yield start, stop
        start = stop


def pointers(group, size):
    """`indptr` of a compressed matrix with `size` rows (or columns) in an HDF5 group, checked against its data."""
    pointer, entries = group["indptr"][:].astype(np.int64), len(group["data"])
    if len(pointer) != size + 1 or pointer[0] or pointer[-1] != entries or len(group["indices"]) != entries:
        raise ValueError("data, indices and indptr of its matrix do not fit each other")
    if (np.diff(pointer) < 0).any():
        raise ValueError("indptr of its matrix decreases")
    return pointer


def rows(group, shape):
    """Blocks of a compressed matrix that is stored cell by cell in an HDF5 group."""
    pointer = pointers(group, shape[0])
    for first, end in cuts(np.diff(pointer)):
        part = slice(pointer[first], pointer[end])
        values, genes = group["data"][part].astype(np.float64), group["indices"][part]
        block = sparse.csr_matrix((values, genes, pointer[first : end + 1] - part.start), (end - first, shape[1]))
        block.check_format(full_check=True)
        yield first, block


def by_cell(entries, shape, name):
    """Blocks down the cells, from entries in any order.

    Entries go through temporary files that have no name, so that nothing of them can be left behind: one in the order
    of arrival and, unless that is the order of the cells, one sorted into blocks. Both are 16 bytes an entry.

    Parameters
    ----------
    entries : iterable of arrays of ENTRY
        Whose cells and genes are within `shape`.
    """
    with tempfile.TemporaryFile() as arrived, tempfile.TemporaryFile() as binned:
        per_cell, ordered, last = np.zeros(shape[0], np.int64), True, 0
        for part in entries:
            cell = part["cell"]
            if len(part):
                ordered &= cell[0] >= last and bool((np.diff(cell) >= 0).all())
                last = cell[-1]
            per_cell += np.bincount(cell, minlength=shape[0])
            _put(arrived, part, name)
        edges = np.array([0, *(end for _, end in cuts(per_cell))])
        offsets = np.concatenate([[0], np.cumsum(per_cell)])[edges]
        if not ordered:
            _bin(arrived, binned, edges, offsets, name)
        source = arrived if ordered else binned
        for (first, end), (start, stop) in zip(pairwise(edges), pairwise(offsets), strict=True):
            part = _get(source, start, stop - start)
            where = part["cell"] - first, part["gene"]
            block = sparse.csr_matrix((part["count"], where), (end - first, shape[1]))
            if block.nnz < len(part):
                raise InputError(f"{name} gives the count of one cell and gene twice, in cells {first} to {end - 1}.")
            yield first, block


def _bin(arrived, binned, edges, offsets, name):
    """Copy entries to the part of `binned` that belongs to their block of cells."""
    place, at = offsets.copy(), 0
    while len(part := _get(arrived, at, min(ENTRIES, offsets[-1] - at))):
        at += len(part)
        part = part[np.argsort(part["cell"], kind="stable")]
        ends = np.searchsorted(part["cell"], edges)
        for block in np.flatnonzero(np.diff(ends)):
            piece = part[ends[block] : ends[block + 1]]
            binned.seek(int(place[block]) * ENTRY.itemsize)
            _put(binned, piece, name)
            place[block] += len(piece)


def _get(file, start, many):
    file.seek(int(start) * ENTRY.itemsize)
    return np.frombuffer(file.read(int(many) * ENTRY.itemsize), ENTRY)


def _put(file, part, name):
    try:
        file.write(part.tobytes())
        file.flush()
    except OSError as error:
        place = tempfile.gettempdir()
        raise InputError(
            f"the counts of {name} cannot be sorted in {place} ({error.strerror}); free space there, or set TMPDIR."
        ) from None
