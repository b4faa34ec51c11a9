"""Your own counts, .h5ad files and 10x output: checked to the last value, then pooled over genes that they share."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from lib.data import counts, genes
from lib.data.samples import opened, sources
from lib.io import InputError, shown

CARRIED = (
    "assay", "cell_type", "tissue_general", "tissue_type", "is_primary_data",
    "suspension_type", "disease", "sex", "development_stage",
)  # fmt: skip
"""obs columns taken over under their own name where a file has them."""
EMPTY = 0.5
"""A larger share of cells without a single count is that of unfiltered droplets."""
SAME_BARCODE, ANY_BARCODE = 10, 100
"""Genes that a cell must show for equal counts to mean one cell: under the same barcode, and under two names."""


@dataclass(frozen=True)
class Pool:
    """All files of a study, checked.

    Attributes
    ----------
    sources : list of Source
    obs : list of DataFrame
        For each file its cells, columns named as in the Census.
    var : DataFrame, (genes,)
        feature_id and feature_name of the pooled genes, in the order in which the files bring them.
    placed : list of (genes of the file, genes) csr_matrix
        1 where a gene of the file is a gene of the pool.
    report : DataFrame
        One row for each file, in numbers.
    """

    sources: list
    obs: list
    var: pd.DataFrame
    placed: list
    report: pd.DataFrame


def pooled(settings):
    """Check every file, then give the pooled cells as `soma.write` takes them.

    A gene is known by its Ensembl id, or by its symbol where no file gives one; see `genes.keys`. Equal donor names
    are taken to be one donor, in whichever file they stand.

    Parameters
    ----------
    settings : params.Census
        `h5ad` or `files`; the obs columns `donor`, `dataset`, `tissue`; `genes`. Without a data set its file's name
        stands for it, without a tissue `unknown`.

    Returns
    -------
    var : DataFrame
        feature_id and feature_name.
    chunks : iterator of (obs DataFrame, csr_matrix)
        raw_sum counts all genes of a file, not only those of the pool.
    summary : dict
        `files`: the report of `survey`, as JSON.
    presence : dict of str to (genes,) bool
        For each data set the genes that all of its files measured.

    Raises
    ------
    InputError
        At the first file that cannot be used, naming it, the place in it, and what to do.
    """
    pool = survey(settings)
    summary = {"simulated": "false", "files": pool.report.to_json(orient="records")}
    return pool.var, _chunks(pool), summary, presence(pool)


def presence(pool):
    """For each data set the genes, (genes,) bool, that all of its files measured."""
    measured = {}
    for obs, placed in zip(pool.obs, pool.placed, strict=True):
        here = placed.getnnz(axis=0) > 0
        for dataset in obs["dataset_id"].unique():
            measured[dataset] = measured.get(dataset, True) & here
    return measured


def _chunks(pool):
    for source, obs, placed in zip(pool.sources, pool.obs, pool.placed, strict=True):
        with opened(source.path) as file:
            for start, block in file.blocks():
                total = np.asarray(block.sum(axis=1)).ravel()
                yield obs.iloc[start : start + len(total)].assign(raw_sum=total), block @ placed


def survey(settings, labelled=True):
    """Check the files of a study to the last value, and find what they hold; nothing is written.

    Parameters
    ----------
    settings : params.Census
    labelled : bool
        Whether a file without donors is refused.

    Returns
    -------
    Pool
    """
    found = sources(settings)
    obs, tables, left_out = zip(*(_inspect(source, settings, labelled) for source in found), strict=True)
    _name_datasets(found, obs, labelled)
    keys = genes.keys(tables)
    for source, table, key in zip(found, tables, keys, strict=True):
        _check_repeated(source, table, key, settings.genes.duplicates)
    chosen = _choose(found, keys, settings.genes.pool)
    placed = [_placed(key, chosen) for key in keys]
    var = pd.DataFrame({"feature_id": chosen, "feature_name": _symbols(tables, keys, chosen)})
    shared = np.all([each.getnnz(axis=0) > 0 for each in placed], axis=0)
    read = [_read(source, each[:, shared], chosen[shared]) for source, each in zip(found, placed, strict=True)]
    _check_duplicates(found, obs, read)
    rows = [_row(*each, int(shared.sum())) for each in zip(found, obs, tables, left_out, read, strict=True)]
    return Pool(found, list(obs), var, placed, pd.DataFrame(rows))


def _row(source, labels, table, left_out, read, shared):
    """One file of the report."""
    cells = len(labels)
    return {
        "file": shown(source.path),
        "cells": cells,
        "genes": len(table),
        "genes_shared": shared,
        "donors": labels["donor_id"].nunique() if "donor_id" in labels else 0,
        "datasets": labels["dataset_id"].nunique(),
        "median_counts": float(read["total"].median()),
        "zeros": round(1 - read["stored"].sum() / (cells * len(table)), 4),
        "empty_cells": int((read["total"] == 0).sum()),
        "left_out": left_out or "nothing",
    }


def said(pool):
    """What a pool holds, on one line."""
    labels = {"donors": "donor_id", "data sets": "dataset_id", "tissues": "tissue"}
    labels = {kind: [obs[column] for obs in pool.obs if column in obs] for kind, column in labels.items()}
    numbers = "; ".join(f"{kind}: {pd.concat(each).nunique() if each else 0:,}" for kind, each in labels.items())
    cells, shared = pool.report["cells"].sum(), pool.report["genes_shared"].iloc[0]
    return f"cells: {cells:,}; {numbers}; genes in the pool: {len(pool.var):,}, in every file: {shared:,}"


# ---------------------------------------------------------------- what they hold


def _inspect(source, settings, labelled):
    """Labels, genes and what is left out of one file: all that is quick to check."""
    with opened(source.path) as file:
        if file.direct:  # that these are no counts at all is said before what is wrong with labels
            counts.check_values(file, *next(file.blocks()))
        return _labels(file, source, settings, labelled), file.genes, file.left_out


def _labels(file, source, settings, labelled):
    """The obs columns of a file under their names in the Census; indexed by the names of its cells."""
    columns = file.columns()
    asked = {"donor_id": settings.donor, "dataset_id": settings.dataset, "tissue": settings.tissue}
    for column, key in asked.items():
        # Data set and tissue may be absent under their default names; a column that the study names must be there.
        needed = labelled if column == "donor_id" else key != column
        if needed and column not in source.labels and key not in columns:
            raise InputError(_no_column(file, column, key, columns))
    wanted = {**{key: key for key in CARRIED}, **asked}
    wanted = {column: key for column, key in wanted.items() if key in columns and column not in source.labels}
    read = {column: _column(columns[key](), key, file.name) for column, key in wanted.items()}
    obs = pd.DataFrame(read, index=file.cells).assign(**source.labels)
    if "tissue_general" not in obs and "tissue" in obs:
        obs["tissue_general"] = obs["tissue"]
    return obs


def _no_column(file, column, key, columns):
    if not columns:
        return (
            f"{file.name} names no {column.removesuffix('_id')}; give it one in the study file "
            f"({{path: ..., {column}: ...}} under census.files) or in a sample sheet."
        )
    setting = f"census.{column.removesuffix('_id')}"
    has = ", ".join(sorted(columns))
    return f"{file.name} has no obs column {key!r} (it has: {has}); name the right column with {setting}."


def _column(values, key, name):
    """One obs column as text (is_primary_data: as booleans); no cell may be without its donor, data set or tissue."""
    values = pd.Series(values)
    if key == "is_primary_data":
        if values.dtype != bool:
            raise InputError(f"{name}: obs column {key} holds {values.dtype}, not booleans; convert or drop it.")
        return values.to_numpy()
    if key in CARRIED:
        return values.astype(object).where(values.notna(), "unknown").astype(str).to_numpy()
    if values.isna().any():
        empty = values.isna().sum()
        raise InputError(f"{name}: obs column {key!r} is empty for {empty} cells; fill it in or drop these cells.")
    return values.astype(str).to_numpy()


def _name_datasets(found, obs, distinct):
    """A file whose cells have no data set is one by itself, called like the file."""
    named = {}
    for source, labels in zip(found, obs, strict=True):
        if "dataset_id" in labels:
            continue
        name = source.path.name if source.path.is_dir() else source.path.stem.removesuffix("matrix.mtx").rstrip("_.")
        first = named.setdefault(name, source)
        if distinct and first is not source:
            raise InputError(
                f"{shown(first.path)} and {shown(source.path)} would both be called data set {name}; give each a "
                "dataset_id in a sample sheet or in an obs column."
            )
        labels["dataset_id"] = name


def _check_repeated(source, table, key, how):
    """Refuse a gene that stands in a file more than once, unless the study wants its rows summed."""
    repeated = table["name"][pd.Series(key).duplicated()].unique()
    if len(repeated) and how == "refuse":
        more = f" (and {len(repeated) - 1} more)" if len(repeated) > 1 else ""
        advice = "add their counts up with census: {genes: {duplicates: sum}}, or run adata.var_names_make_unique()"
        raise InputError(f"{shown(source.path)} names gene {repeated[0]}{more} more than once; {advice}.")


def _choose(found, keys, how):
    """Keys of the pooled genes: those of all files, or of any, in the order of the files."""
    if how == "union":
        return pd.unique(np.concatenate(keys))
    shared = pd.unique(keys[0])
    for source, key in zip(found[1:], keys[1:], strict=True):
        left = shared[np.isin(shared.astype(str), key.astype(str))]
        if not len(left):
            raise InputError(
                f"{shown(source.path)} shares no gene with the files before it (it has {key[0]}, they have {shared[0]}"
                "); name genes in the same way, or add a file that knows both their symbols and their Ensembl ids."
            )
        shared = left
    return shared


def _placed(key, chosen):
    """(genes of a file, genes of the pool) csr_matrix that turns counts of the one into counts of the other."""
    place = pd.Index(chosen).get_indexer(key)
    kept = np.flatnonzero(place >= 0)
    return sparse.csr_matrix((np.ones(len(kept)), (kept, place[kept])), (len(key), len(chosen)))


def _symbols(tables, keys, chosen):
    """The symbol of each pooled gene, from the first file that knows it; its key where none does."""
    known = pd.concat([pd.Series(table["symbol"].to_numpy(), key) for table, key in zip(tables, keys, strict=True)])
    known = known.dropna()
    return known[~known.index.duplicated()].reindex(chosen).fillna(pd.Series(chosen, chosen)).to_numpy()


# ---------------------------------------------------------------- what is in their counts


def _read(source, placed, chosen):
    """Check every count of a file.

    Returns
    -------
    DataFrame, (cells,)
        total and stored (non-zero) counts; `seen`, how many of the chosen genes a cell shows; `mark`, see `cell_marks`.
    """
    parts = []
    with opened(source.path) as file:
        for start, block in file.blocks():
            counts.check_values(file, start, block)
            block.eliminate_zeros()
            pooled = block @ placed
            part = {"total": np.asarray(block.sum(axis=1)).ravel(), "stored": np.diff(block.indptr)}
            parts.append(pd.DataFrame(part | {"seen": np.diff(pooled.indptr), "mark": cell_marks(pooled, chosen)}))
    cells = pd.concat(parts, ignore_index=True)
    empty = int((cells["total"] == 0).sum())
    if empty == len(cells):
        raise InputError(f"{file.name} holds {empty} cells and not a single count; name the file with the raw counts.")
    if empty > EMPTY * len(cells):
        raise InputError(
            f"{file.name}: {empty} of {len(cells)} cells have no count at all, as in 10x's raw matrix of all droplets; "
            "use the filtered matrix."
        )
    return cells


def cell_marks(block, names):
    """Hash of each cell's counts by the names of their genes, (cells,) uint64; the order of the genes plays no part."""
    salt = pd.util.hash_array(names, categorize=False)[block.indices]
    each = pd.util.hash_array(salt + pd.util.hash_array(block.data.astype(np.uint64)))
    ends = np.zeros(block.nnz + 1, np.uint64)
    np.cumsum(each, out=ends[1:])  # modulo 2^64, and so is the difference
    return ends[block.indptr[1:]] - ends[block.indptr[:-1]]


def _check_duplicates(found, obs, read):
    """Refuse a cell that is there twice: equal counts under the same barcode, or under two names if there are many.

    Cells that are marked as no primary data may be copies. What a barcode has before and after its bases, such as a
    sample's name and -1, is not compared; genes are those that all files measured.
    """
    parts = []
    for number, (labels, each) in enumerate(zip(obs, read, strict=True)):
        part = each[["seen", "mark"]].assign(file=number, name=labels.index, barcode=_barcodes(labels.index))
        parts.append(part[np.broadcast_to(labels.get("is_primary_data", True), len(part))])
    cells = pd.concat(parts, ignore_index=True)
    for least, same in ((SAME_BARCODE, ["mark", "barcode"]), (ANY_BARCODE, ["mark"])):
        rich = cells[cells["seen"] >= least]
        copies = rich[rich.duplicated(same)]
        if len(copies):
            copy = copies.iloc[0]
            first = rich[(rich[same] == copy[same]).all(axis=1)].iloc[0]
            more = f" (and {len(copies) - 1} more cells like it)" if len(copies) > 1 else ""
            raise InputError(
                f"{shown(found[copy['file']].path)}: cell {copy['name']} has the same counts as cell {first['name']} "
                f"of {shown(found[first['file']].path)}{more}; leave one out, or set is_primary_data to False for it."
            )


def _barcodes(names):
    """Hash of the bases of each name, or of the whole name where it has none, (cells,) uint64."""
    names = pd.Series(names, dtype=object)
    bases = names.str.extract("([ACGT]{12,})", expand=False).fillna(names)
    return pd.util.hash_array(bases.to_numpy(object), categorize=False)
