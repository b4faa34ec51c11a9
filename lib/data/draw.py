"""From an open Census: the cells that a study may use, the most variable genes, and counts of both.

A Census on a server is read in blocks. Each is tried again when it fails, and kept in a folder until the panel is
complete, so that a download that breaks goes on from there.
"""

import hashlib
import zipfile

import numpy as np
import pandas as pd

from lib import io
from lib.data import census, filters, split
from lib.io import InputError

COLUMNS = ["soma_joinid", "dataset_id", "donor_id", "tissue", "cell_type", "raw_sum"]
"""obs columns read from the Census; raw_sum becomes total_counts."""
ROWS, CELLS, VALUES = 2**22, 2**14, 2**25
"""In one block: rows of obs; cells of a count matrix, and at most so many of its values."""
SPAN = 0.3
"""Share of the genes in one local fit of seurat_v3's variance trend, as in scanpy."""


def cells(collection, study):
    """Labels of the cells that a study may use, by soma_joinid, and how they were found.

    Rows are read ROWS at a time and kept as 24 bytes each. For 10^8 cells that is 2.4 GB, and 5 GB for a moment, or
    10 GB with census.sample.

    Returns
    -------
    DataFrame
        COLUMNS and what the split and the sample go by; only cells that pass the filter, have counts, and are drawn.
    dict
        filter, cells_available, cells_without_counts; with census.sample also sample.
    """
    source, obs = study.census, filters.table(collection)
    by = [source.sample.by] if source.sample else []
    names = list(dict.fromkeys([*COLUMNS, *split.columns(study.split), *by]))
    absent = [name for name in names if name not in obs.schema.names]
    if absent:
        raise InputError(f"the Census has no obs column {absent[0]!r}; it has {', '.join(obs.schema.names)}.")
    passing = filters.condition(collection, source)
    columns, empty = {name: [] for name in names}, 0
    for rows in _passing(collection, obs, names, passing):
        counted = rows["raw_sum"].to_numpy() > 0
        empty += int((~counted).sum())
        for name in names:
            columns[name].append(pd.Series(rows[name].array[counted]))  # without an index of 8 bytes a row
    columns = {name: pd.concat(columns.pop(name), ignore_index=True) for name in names}
    columns["total_counts"] = columns.pop("raw_sum")
    found = pd.DataFrame(columns, copy=False)
    if found.empty:
        raise InputError(f"no cell of the Census passes census.filter {passing!r} and has counts; ask for other cells.")
    said = {"filter": passing, "cells_available": len(found), "cells_without_counts": empty}
    if source.sample:
        found = found.iloc[sample(found, source.sample, source.seed)].reset_index(drop=True)
        said["sample"] = source.sample.model_dump(exclude_none=True) | {"cells": len(found)}
    for name in found.columns[found.dtypes == "category"]:
        found[name] = _in_use(found[name].array)
    return found, said


def _in_use(labels):
    """A categorical without the categories that no cell has; pandas' own way takes three times the memory."""
    used = np.bincount(labels.codes[labels.codes >= 0], minlength=len(labels.categories)) > 0
    codes = np.append(np.where(used, np.cumsum(used) - 1, -1), -1).astype(labels.codes.dtype)[labels.codes]
    return pd.Categorical.from_codes(codes, labels.categories[used], validate=False)


def _passing(collection, obs, names, passing):
    """Rows of obs that pass, sorted by soma_joinid, as one DataFrame for every ROWS ids."""
    first, last = census.fetch(collection, lambda: census.ids(obs))
    for start in range(first, last + 1, ROWS):
        ids = slice(start, min(start + ROWS - 1, last))

        def read(ids=ids):
            return obs.read(coords=(ids,), column_names=names, value_filter=passing).concat().to_pandas()

        try:
            yield census.fetch(collection, read).sort_values("soma_joinid")
        except InputError:
            raise
        except Exception as error:
            reason = census.short(error)
            raise InputError(f"census.filter {passing!r} gives no answer ({reason}); correct it.") from None


def sample(cells, asked, seed):
    """A seeded draw of blocks of neighbouring ids, with caps; see `params.Sample`.

    All blocks are put in a random order, and cells are taken in it until their donor, then their label of `by`, has
    enough. Donors count within a data set, because their names are unique only there.

    Returns
    -------
    (cells,) int64
        Positions in `cells`, ascending.
    """
    block = cells["soma_joinid"].to_numpy() // asked.block
    block = np.cumsum(np.diff(block, prepend=block[:1]) != 0, dtype=np.int32)
    order = np.random.default_rng([seed, 3]).permutation(block[-1] + 1).astype(np.int32)
    order = np.argsort(order[block], kind="stable")
    if asked.per_donor:
        dataset, donor = (_codes(cells[name]).astype(np.int64) for name in ("dataset_id", "donor_id"))
        donor += dataset * (donor.max() + 1)
        order = order[_turn(donor[order]) < asked.per_donor]
    return np.sort(order[_turn(_codes(cells[asked.by])[order]) < asked.each])


def _codes(column):
    return column.astype("category").cat.codes.to_numpy()


def _turn(labels):
    """How many times each label has occurred before, (n,) int32."""
    order = np.argsort(labels, kind="stable")
    first = np.flatnonzero(np.diff(labels[order], prepend=-2)).astype(np.int32)
    turn, sizes = np.empty(len(labels), np.int32), np.diff(first, append=len(labels))
    turn[order] = np.arange(len(labels), dtype=np.int32) - np.repeat(first, sizes)
    return turn


def select(collection, cells, genes, measured, folder=None, progress=None):
    """The `genes` most variable genes of the given cells (ascending soma_joinids), in the order of soma_joinid.

    `measured`, (genes,) bool, says which may be chosen: those that all data sets of the panel measured. All counts of
    the cells are read once; memory holds a table of how often each gene has each count.
    """
    columns = ["soma_joinid", "feature_id", "feature_name"]
    table = census.fetch(collection, lambda: _measured(collection).var.read(column_names=columns).concat())
    var, seen = table.to_pandas().sort_values("soma_joinid"), None
    for _, block in _blocks(collection, cells, None, folder, progress):
        seen = block if seen is None else _joined([seen, block])
    statistics = variability(seen, len(cells), var["soma_joinid"].iloc[-1] + 1)
    var = var[measured[var["soma_joinid"]]]
    if var.empty:
        raise InputError("no gene is measured in all data sets of the panel; leave some out by census.filter.")
    var = var.join(statistics, on="soma_joinid")
    varying = int((var["variances"] > 0).sum())
    if varying < genes:
        raise InputError(
            f"{genes:,} genes are asked for, and {varying:,} of the Census' {len(var):,} vary in the training cells; "
            "ask for fewer."
        )
    var = var.sort_values("variances_norm", ascending=False, kind="stable").head(genes).sort_values("soma_joinid")
    return var.set_index(var["feature_id"].astype(str).rename(None))


def _measured(collection):
    return collection["census_data"][census.ORGANISM].ms["RNA"]


def tally(gene, count):
    """How often each gene has each count: (3, pairs) int64 of gene, count, cells, from the non-zero counts."""
    pair, cells = np.unique(np.asarray(gene, np.int64) << 32 | np.asarray(count, np.int64), return_counts=True)
    return np.stack([pair >> 32, pair & 2**32 - 1, cells])


def _joined(tallies):
    """Several tallies of different cells as one."""
    gene, count, cells = np.concatenate(tallies, axis=1)
    pair, place = np.unique(gene << 32 | count, return_inverse=True)
    return np.stack([pair >> 32, pair & 2**32 - 1, np.bincount(place, cells).astype(np.int64)])


def variability(seen, cells, genes):
    """Mean, variance and normalised variance of every gene: the seurat_v3 criterion.

    The variance expected at a gene's mean is a local quadratic fit of log10 variance on log10 mean; counts are clipped
    at sqrt(cells) expected standard deviations, and the variance of what remains is divided by the expected one (Stuart
    et al. 2019, Cell 177:1888). It selects what scanpy and cellxgene_census select; it is written here because
    importing either takes longer than the work, and because one reading of the counts is enough.

    Parameters
    ----------
    seen : (3, pairs) int
        Gene, count, and in how many cells the gene has that count; see `tally`.
    cells, genes : int

    Returns
    -------
    DataFrame, (genes,)
        means, variances, variances_norm.
    """
    total, squares = _sums(seen, genes, np.full(genes, np.inf))
    mean, variance = total / cells, (squares - total * (total / cells)) / (cells - 1)
    variance[cells * squares == total**2] = 0  # a constant gene, exactly
    varies = variance > 0
    expected = np.ones(genes)
    expected[varies] = np.sqrt(10 ** _trend(np.log10(mean[varies]), np.log10(variance[varies])))
    total, squares = _sums(seen, genes, mean + expected * np.sqrt(cells))
    clipped = (cells * mean**2 + squares - 2 * mean * total) / ((cells - 1) * expected**2)
    return pd.DataFrame({"means": mean, "variances": variance, "variances_norm": np.where(varies, clipped, 0)})


def _sums(seen, genes, ceiling):
    """Sum and sum of squares of each gene's counts, clipped at `ceiling`; both (genes,)."""
    gene, count, cells = seen
    count = np.minimum(count, ceiling[gene])
    return np.bincount(gene, count * cells, genes), np.bincount(gene, count**2 * cells, genes)


def _trend(mean, variance):
    """Local quadratic fit of log variance on log mean. Many equal means make it singular: then they are moved apart."""
    from skmisc.loess import loess

    jitter = np.random.default_rng(0).uniform(-1, 1, len(mean))
    for size in (0, *np.logspace(-18, -6, 13)):
        try:
            model = loess(mean + size * jitter, variance, span=SPAN, degree=2)
            model.fit()
            return model.outputs.fitted_values
        except ValueError:
            continue
    raise InputError(f"{len(mean)} varying genes are too few or too alike to choose among; give more cells or genes.")


def read(collection, cells, genes, out, folder=None, progress=None):
    """Fill `out` with the counts of the given cells and genes (ascending soma_joinids), a block of cells at a time.

    Parameters
    ----------
    out : (cells, genes) int32
        An array or a memory map; whole blocks of rows are assigned to it.
    folder : Path, optional
        Where finished blocks of a remote Census are kept. The caller removes it when it needs them no longer.
    progress : callable, optional
        Called with (cells done, cells) after every block.
    """
    for rows, block in _blocks(collection, cells, genes, folder, progress):
        out[rows] = block


def _blocks(collection, cells, genes, folder, progress):
    """Yield (slice, array) for block after block of cells: their counts of `genes`, or with None the tally of all."""
    matrix = census.fetch(collection, lambda: _measured(collection).X["raw"])
    step = CELLS if genes is None else max(1, min(CELLS, VALUES // len(genes)))
    for start in range(0, len(cells), step):
        ids, stop, fresh = cells[start : start + step], min(start + step, len(cells)), True

        def block(ids=ids):
            return census.fetch(
                collection, lambda: _tallied(matrix, ids) if genes is None else _dense(matrix, ids, genes)
            )

        if folder and census.is_remote(collection.uri):
            asked = hashlib.sha256(ids.tobytes() + (b"all" if genes is None else genes.tobytes())).hexdigest()
            path = folder / f"{asked[:32]}.npz"
            fresh = not path.exists()
            yield slice(start, stop), _kept(path, block)
        else:
            yield slice(start, stop), block()
        if progress and (fresh or stop == len(cells)):  # blocks that were there already say nothing about the rate
            progress(stop, len(cells))


def _tallied(matrix, ids):
    tables = matrix.read((ids, slice(None))).tables()
    parts = [tally(table["soma_dim_1"].to_numpy(), table["soma_data"].to_numpy()) for table in tables]
    return _joined([np.zeros((3, 0), np.int64), *parts])


def _dense(matrix, ids, genes):
    counts = np.zeros((len(ids), len(genes)), np.int32)
    for table in matrix.read((ids, genes)).tables():
        row = np.searchsorted(ids, table["soma_dim_0"].to_numpy())
        counts[row, np.searchsorted(genes, table["soma_dim_1"].to_numpy())] = table["soma_data"].to_numpy()
    return counts


def _kept(path, block):
    """The array in a file. Where that is missing or damaged, which its checksum shows, `block()` is called and kept."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return stored["block"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        array = block()
    with io.atomic(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, block=array)
    return array
