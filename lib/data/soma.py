"""Write a local CELLxGENE Census, a chunk of cells at a time, as the unmodified `cellxgene_census` client reads it."""

from contextlib import contextmanager

import numpy as np
import pandas as pd
from scipy import sparse

from lib import io
from lib.io import InputError

ORGANISM = "homo_sapiens"
SCHEMA = "2.4.0"
BUILD = "local"
"""What a Census written here gives as its build date: no date, so that writing it again gives the same content."""

OBS = {
    "dataset_id": "unknown", "assay": "unknown", "cell_type": "unknown", "tissue": "unknown",
    "tissue_general": "unknown", "tissue_type": "tissue", "donor_id": "unknown", "is_primary_data": True,
    "suspension_type": "unknown", "disease": "unknown", "sex": "unknown", "development_stage": "unknown",
    "raw_sum": None, "nnz": None,
}  # fmt: skip
"""The obs columns of a Census written here, and what stands where the source says nothing (None: counted)."""

PRESENCE = "feature_dataset_presence_matrix"

COUNTED = ["assay", "cell_type", "tissue_general", "disease", "sex", "suspension_type"]
"""The columns whose labels census_info counts."""


def write(path, var, chunks, summary, presence=None):
    """Write a local SOMA Census, one chunk of cells in memory at a time; `path` appears when it is complete.

    Parameters
    ----------
    var : DataFrame, (genes,)
        feature_id (unique), feature_name and, if known, feature_length in base pairs.
    chunks : iterable of (obs DataFrame, (cells, genes) sparse counts)
        obs has columns of `OBS`; what it lacks is filled in. A given raw_sum is kept: it may cover more genes.
    summary : dict of str
        Rows added to census_info/summary; `settings` is also the mark by which `prepare` knows the Census again.
    presence : dict of str to (genes,) bool, optional
        Which genes each data set measured; all of them where it is not given.
    """
    repeated = var["feature_id"][var["feature_id"].duplicated()]
    if len(repeated):
        raise InputError(f"gene {repeated.iloc[0]} is listed more than once; make feature_id unique.")
    with io.atomic(path) as partial:
        human = f"{partial}/census_data/{ORGANISM}"
        _lay_out(partial, len(var), summary.get("settings", ""))
        obs, nnz = _write_counts(f"{human}/ms/RNA/X", chunks, len(var))
        cells = obs["dataset_id"].value_counts(sort=False)
        present = np.ones((len(cells), len(var)), bool)
        if presence is not None:
            present[:] = [presence[name] for name in cells.index]
        var = var.assign(feature_length=var.get("feature_length", 0), nnz=nnz, n_measured_obs=cells.values @ present)
        _write_table(human, "obs", obs)
        _write_table(f"{human}/ms/RNA", "var", var)
        _write_information(f"{partial}/census_info", obs, summary)
        _write_presence(f"{human}/ms/RNA", present)


@contextmanager
def writing(path):
    """What keeps a Census from being written, a full disk above all, becomes one sentence."""
    import tiledbsoma

    try:
        yield
    except (OSError, tiledbsoma.SOMAError) as error:
        reason = getattr(error, "strerror", None) or str(error).rsplit(";", 1)[-1].removeprefix(" POSIX write error:")
        advice = "free space on its disk, or take a folder that may be written"
        raise InputError(f"{io.shown(path)} cannot be written ({reason[:200]}); {advice}.") from None


def _lay_out(path, genes, settings):
    """Create the collections and the two empty matrices."""
    import pyarrow as pa
    import tiledbsoma as soma

    # A tile is as wide as the gene table, so that the rows of a CSR matrix are already in the order of the array.
    squeeze = {"filters": ["ByteShuffleFilter", {"_type": "ZstdFilter", "level": 1}]}
    tiles = {"soma_dim_0": {"tile": 2048, **squeeze}, "soma_dim_1": {"tile": genes, **squeeze}}
    layout = soma.TileDBCreateOptions(dims=tiles, attrs={"soma_data": squeeze}, capacity=2**16, allows_duplicates=True)
    with soma.Collection.create(str(path)) as root:
        root.metadata["settings"] = settings
        root.add_new_collection("census_info")
        human = root.add_new_collection("census_data").add_new_collection(ORGANISM, soma.Experiment)
        matrices = human.add_new_collection("ms").add_new_collection("RNA", soma.Measurement).add_new_collection("X")
        for name in ("raw", "normalized"):
            matrices.add_new_sparse_ndarray(name, type=pa.float32(), shape=(1, genes), platform_config=layout)


def _write_counts(folder, chunks, genes):
    """Write all chunks; return the finished obs table and the number of cells in which each gene is seen."""
    parts, measured, cells = [], np.zeros(genes, np.int64), 0
    for obs, counts in chunks:
        counts = sparse.csr_matrix(counts, dtype=np.float32, copy=True)
        counts.sum_duplicates()
        counts.eliminate_zeros()
        nnz = np.diff(counts.indptr).astype(np.int64)
        total = obs.get("raw_sum", np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel())
        parts.append(_complete(obs.assign(raw_sum=np.asarray(total, np.float64), nnz=nnz)))
        _append(f"{folder}/raw", cells, counts)
        counts.data /= np.repeat(parts[-1]["raw_sum"].to_numpy(np.float32), nnz)
        _append(f"{folder}/normalized", cells, counts)
        measured += np.bincount(counts.indices, minlength=genes)
        cells += len(obs)
    if not cells:
        raise InputError("a Census needs at least one cell, and the source has none.")
    return pd.DataFrame({name: _joined([part[name] for part in parts]) for name in OBS}), measured


def _complete(obs):
    """Columns of OBS for one chunk, in that order: what is missing filled in, text as categories."""
    unknown = set(obs.columns) - set(OBS)
    if unknown:
        raise KeyError(f"{sorted(unknown)} are not obs columns of the Census; soma.OBS lists those that are")
    obs = obs.assign(**{name: value for name, value in OBS.items() if name not in obs})
    return obs.astype({name: "category" for name, value in OBS.items() if isinstance(value, str)})


def _joined(parts):
    if isinstance(parts[0].dtype, pd.CategoricalDtype):
        return pd.api.types.union_categoricals(parts, sort_categories=True)
    return np.concatenate(parts)


def _append(uri, start, counts):
    """Write CSR rows after the `start` rows that a SOMA matrix already has."""
    import pyarrow as pa
    import tiledbsoma as soma

    with soma.SparseNDArray.open(uri, "w") as array:
        array.resize((start + counts.shape[0], counts.shape[1]))
    rows = np.repeat(np.arange(start, start + counts.shape[0]), np.diff(counts.indptr))
    columns = {"soma_dim_0": rows, "soma_dim_1": counts.indices.astype(np.int64), "soma_data": counts.data}
    with soma.SparseNDArray.open(uri, "w") as array:  # opened again: a handle does not see its own resize
        array.write(pa.table(columns), platform_config=soma.TileDBWriteOptions(sort_coords=False))


def _write_table(parent, name, frame):
    """Add a DataFrame to a collection, numbered by soma_joinid.

    It is opened again for writing, because categories written through the handle that created it are lost.
    """
    import pyarrow as pa
    import tiledbsoma as soma

    frame = pd.DataFrame({"soma_joinid": np.arange(len(frame))}).join(frame.reset_index(drop=True))
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    with soma.open(parent, "w") as collection:
        collection.add_new_dataframe(name, schema=table.schema, domain=[(0, len(frame) - 1)])
    with soma.DataFrame.open(f"{parent}/{name}", "w") as handle:
        handle.write(table)


def _write_information(folder, obs, summary):
    """census_info: what this Census is, its data sets, its cell counts."""
    datasets = obs["dataset_id"].value_counts(sort=False).rename_axis("dataset_id").reset_index(name="cells")
    datasets = datasets.astype({"dataset_id": str}).rename(columns={"cells": "dataset_total_cell_count"})
    _write_table(folder, "datasets", datasets.assign(dataset_title=datasets["dataset_id"], collection_name="local"))
    counts = [
        obs.groupby(column, observed=True)["is_primary_data"].agg(["size", "sum"]).rename_axis("label").reset_index()
        for column in COUNTED
    ]
    counts = pd.concat(counts, keys=COUNTED, names=["category", None]).reset_index("category").astype({"label": str})
    counts = counts.rename(columns={"size": "total_cell_count", "sum": "unique_cell_count"})
    _write_table(folder, "summary_cell_counts", counts.assign(organism="Homo sapiens"))
    rows = {
        "census_schema_version": SCHEMA,
        "census_build_date": BUILD,
        "total_cell_count": len(obs),
        "unique_cell_count": obs["is_primary_data"].sum(),
        "number_donors_homo_sapiens": obs["donor_id"].nunique(),
        **summary,
    }
    _write_table(folder, "summary", pd.Series(rows, dtype=str).rename_axis("label").reset_index(name="value"))


def _write_presence(parent, present):
    """Which gene was measured in which data set: `present`, (data sets, genes) bool."""
    import pyarrow as pa
    import tiledbsoma as soma

    with soma.open(parent, "w") as measurement:
        measurement.add_new_sparse_ndarray(PRESENCE, type=pa.uint8(), shape=present.shape)
    dataset, gene = np.nonzero(present)
    with soma.SparseNDArray.open(f"{parent}/{PRESENCE}", "w") as array:
        array.write(pa.table({"soma_dim_0": dataset, "soma_dim_1": gene, "soma_data": np.ones(dataset.size, np.uint8)}))


def measured(collection, datasets):
    """Which genes all of the given data sets measured: elsewhere the zeros of a gene are no counts.

    Parameters
    ----------
    collection : an open Census
    datasets : sequence of str
        Labels of dataset_id.

    Returns
    -------
    (genes,) bool
        By soma_joinid.
    """
    table = collection["census_info"]["datasets"].read(column_names=["soma_joinid", "dataset_id"]).concat().to_pandas()
    rows = table["soma_joinid"][table["dataset_id"].isin(datasets)].to_numpy()
    matrix = collection["census_data"][ORGANISM].ms["RNA"][PRESENCE]
    found = np.zeros(matrix.shape[1], np.int64)
    for part in matrix.read((rows,)).tables():
        found += np.bincount(part["soma_dim_1"].to_numpy()[part["soma_data"].to_numpy() > 0], minlength=len(found))
    return found == len(rows)
