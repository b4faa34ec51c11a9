"""Every source of counts becomes a CELLxGENE Census: the public one, a folder, your own .h5ad files, or the simulator.

A local Census is written so that the unmodified `cellxgene_census` client reads it, hence there is one reader and no
second code path. Nothing ever takes the place of a Census that cannot be opened.
"""

import hashlib
import json
import os
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from lib import files
from lib.errors import CensusUnavailable, InputError
from lib.h5ad import expand, pooled, shown

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

COUNTED = ["assay", "cell_type", "tissue_general", "disease", "sex", "suspension_type"]
"""The columns whose labels census_info counts."""

PATIENCE = 60.0
"""Seconds that opening a Census may take. The client's own request for the list of releases has no time limit."""
TILEDB = {
    "soma.init_buffer_bytes": 32 * 2**20,
    "vfs.s3.connect_timeout_ms": 10_000,
    "vfs.s3.request_timeout_ms": 60_000,
    "vfs.s3.connect_max_tries": 5,
}


# ---------------------------------------------------------------- which Census, and opening it


def prepare(study):
    """Make sure that the Census of a study is there; built once, also when several processes ask at the same time.

    A Census from the simulator or from .h5ad files is built in data/<study>/census when it is missing or was made from
    other settings, other files or other code. One given by `uri` or `version` is left for `open_census` to open.

    Returns
    -------
    str
        Path or uri; for a public release its date.

    Raises
    ------
    InputError
        A source file that cannot be used; nothing has been written then.
    """
    source = study.census
    if source.version:
        return source.version
    if source.uri:
        return source.uri if "://" in source.uri else str(files.ROOT / source.uri)
    from filelock import FileLock

    path = study.data / "census"
    settings = made_from(study)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(".census.lock")):
        if _metadata(path).get("settings") != settings:
            var, chunks, summary = _simulated(source.simulate) if source.simulate else pooled(source)
            write(path, var, chunks, summary | {"settings": settings})
    return str(path)


def made_from(study):
    """Fingerprint of all that decides the content of a study's Census: settings, files, and the code that writes it.

    A file counts by name, size and time of change. A Census given by `uri` or `version` is taken not to change.
    """
    source = study.census.model_dump(exclude={"filter", "seed"})
    if study.census.h5ad:
        found = [(path, path.stat()) for path in expand(study.census.h5ad)]
        source["h5ad"] = [(shown(path), stat.st_size, stat.st_mtime_ns) for path, stat in found]
    return fingerprint(source, "census.py", "simulate.py" if study.census.simulate else "h5ad.py")


def fingerprint(settings, *modules):
    """SHA-256 of settings (JSON types) and of what modules of lib do: results of other code are not reused."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for module in modules:
        digest.update(files.program(Path(__file__).parent / module).encode())
    return digest.hexdigest()


@contextmanager
def open_census(study):
    """Context manager: the open Census of a study, built first where `prepare` has to.

    Raises
    ------
    CensusUnavailable
        It is not there, is not a Census, or did not open within PATIENCE seconds.
    """
    where = prepare(study)
    collection = _open(where, {"census_version": where} if study.census.version else {"uri": where})
    with collection:
        if "census_data" not in collection or ORGANISM not in collection["census_data"]:
            raise CensusUnavailable(
                f"{shown(where)} can be opened, but is no Census of human cells (it has no census_data/{ORGANISM}); "
                "give census.uri the folder that holds census_info and census_data."
            )
        yield collection


def _open(where, keywords):
    """`open_soma` in a thread of its own, left behind when it does not answer in time."""
    import cellxgene_census

    answer = {}

    def attempt():
        try:
            answer["collection"] = cellxgene_census.open_soma(**keywords, tiledb_config=TILEDB)
        except Exception as error:
            answer["error"] = error

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if "collection" in answer:
        return answer["collection"]
    error = answer.get("error")
    reason = f"{type(error).__name__}: {short(error)}" if error else f"no answer in {PATIENCE:g} s"
    if "census_version" in keywords:
        advice = "check the release date and the network, or download the release and name its folder with census.uri"
        raise CensusUnavailable(f"the public Census {where} could not be opened ({reason}); {advice}.")
    advice = "check census.uri; a relative path starts at the project folder"
    raise CensusUnavailable(f"there is no readable Census at {shown(where)} ({reason}); {advice}.")


def describe(collection):
    """Which Census this is, for the provenance of a result.

    Returns
    -------
    dict
        uri (a local folder relative to the project), version (build date), schema, simulated (bool), cells, genes.
    """
    summary = _summary(collection)
    human = collection["census_data"][ORGANISM]
    return {
        "uri": shown(collection.uri),
        "version": summary.get("census_build_date", "unknown"),
        "schema": summary.get("census_schema_version", "unknown"),
        "simulated": summary.get("simulated") == "true",
        "cells": human.obs.count,
        "genes": human.ms["RNA"].var.count,
    }


def sources(collection):
    """The .h5ad files behind a local Census: file, cells, genes, genes_shared, donors; no rows for any other Census."""
    return pd.DataFrame(json.loads(_summary(collection).get("files", "[]")))


def _summary(collection):
    table = collection["census_info"]["summary"].read().concat().to_pandas()
    return dict(zip(table["label"].astype(str), table["value"].astype(str), strict=True))


def _metadata(path):
    """Metadata of a local Census; empty when there is none that opens."""
    import tiledbsoma

    try:
        with tiledbsoma.Collection.open(str(path)) as collection:
            return dict(collection.metadata)
    except (tiledbsoma.DoesNotExistError, tiledbsoma.SOMAError):
        return {}


def short(error):
    """An error on one line of at most 300 characters, without its stack and the project's place on this machine."""
    said = str(error).split("\n\nAt:")[0].replace(f"{files.ROOT}{os.sep}", "")
    return " ".join(said.split())[:300].rstrip(".")


# ---------------------------------------------------------------- writing a local Census


def write(path, var, chunks, summary):
    """Write a local SOMA Census, one chunk of cells in memory at a time; `path` appears when it is complete.

    Parameters
    ----------
    var : DataFrame, (genes,)
        feature_id (unique), feature_name and, if known, feature_length in base pairs.
    chunks : iterable of (obs DataFrame, (cells, genes) sparse counts)
        obs has columns of `OBS`; what it lacks is filled in. A given raw_sum is kept: it may cover more genes.
    summary : dict of str
        Rows added to census_info/summary; `settings` is also the mark by which `prepare` knows the Census again.
    """
    repeated = var["feature_id"][var["feature_id"].duplicated()]
    if len(repeated):
        raise InputError(f"gene {repeated.iloc[0]} is listed more than once; make feature_id unique.")
    with files.atomic(path) as partial:
        human = f"{partial}/census_data/{ORGANISM}"
        _lay_out(partial, len(var), summary.get("settings", ""))
        obs, measured = _write_counts(f"{human}/ms/RNA/X", chunks, len(var))
        var = var.assign(feature_length=var.get("feature_length", 0), nnz=measured, n_measured_obs=len(obs))
        _write_table(human, "obs", obs)
        _write_table(f"{human}/ms/RNA", "var", var)
        _write_information(f"{partial}/census_info", obs, summary)
        _write_presence(f"{human}/ms/RNA", obs["dataset_id"].nunique(), len(var))


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
        raise KeyError(f"{sorted(unknown)} are not obs columns of the Census; census.OBS lists those that are")
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


def _write_presence(parent, datasets, genes):
    """Which gene was measured in which data set: all of them, since a local Census holds shared genes only."""
    import pyarrow as pa
    import tiledbsoma as soma

    name = "feature_dataset_presence_matrix"
    with soma.open(parent, "w") as measurement:
        measurement.add_new_sparse_ndarray(name, type=pa.uint8(), shape=(datasets, genes))
    dataset, gene = (axis.ravel() for axis in np.indices((datasets, genes)))
    with soma.SparseNDArray.open(f"{parent}/{name}", "w") as array:
        array.write(pa.table({"soma_dim_0": dataset, "soma_dim_1": gene, "soma_data": np.ones(dataset.size, np.uint8)}))


def _simulated(settings):
    from lib import simulate

    truth = simulate.truth(settings)
    return simulate.genes(truth), simulate.chunks(truth), {"simulated": "true"}
