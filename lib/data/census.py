"""Every source of counts becomes a CELLxGENE Census: the public one, a folder, your own files, or the simulator.

A local Census is written so that the unmodified `cellxgene_census` client reads it, hence there is one reader and no
second code path. Nothing ever takes the place of a Census that cannot be opened.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import cellxgene_census
import numpy as np
import pandas as pd
import pyarrow as pa
import tiledbsoma as soma
from filelock import FileLock
from scipy import sparse

from lib import io
from lib.data import simulate, user_files
from lib.io import InputError, short, shown
from lib.study import S3, Study

ORGANISM = "homo_sapiens"
OBS = {
    "dataset_id": "unknown", "assay": "unknown", "cell_type": "unknown", "tissue": "unknown",
    "tissue_general": "unknown", "tissue_type": "tissue", "donor_id": "unknown", "is_primary_data": True,
    "suspension_type": "unknown", "disease": "unknown", "sex": "unknown", "development_stage": "unknown",
    "raw_sum": None, "nnz": None,
}  # fmt: skip
"""The obs columns of a Census written here, and what stands where the source says nothing (None: counted)."""
PRESENCE = "feature_dataset_presence_matrix"

CELL_BYTES = 5000  # what a Census sends for a cell, about: 2,000 genes that it shows, at 2.5 bytes each
CELLS, VALUES = 2**14, 2**25
"""In one block of counts: cells, and at most so many values of chosen genes."""
PATIENCE = 60.0
"""Seconds that opening a Census may take. The client's own request for the list of releases has no time limit."""
READ, PAUSES = 300.0, (1.0, 5.0, 25.0)
"""Seconds that one attempt to read a block from a server may take, and the waits before further attempts."""
TILEDB = {
    "soma.init_buffer_bytes": 32 * 2**20,
    "sm.mem.total_budget": 2 * 2**30,
    "vfs.s3.connect_timeout_ms": 10_000,
    "vfs.s3.request_timeout_ms": 30_000,
    "vfs.s3.connect_max_tries": 5,
}
"""TileDB ends a silent request by itself, but repeats for ever one that is answered SlowDown: there READ is the end."""


def prepare(study: Study) -> str:
    """The path or uri of a study's Census; for a public release its date.

    One from the simulator or from files is built in data/<study>/census when it is missing or was made from other
    settings or files. A file that cannot be used is an InputError before anything is written.
    """
    source = study.census
    if source.version:
        return source.version
    if source.uri:
        return source.uri if "://" in source.uri else str(io.ROOT / source.uri)
    path, settings = study.data / "census", user_files.made_from(study)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(".census.lock")):
            if _settings(path) != settings:
                io.sweep(path)
                if source.simulate:
                    truth = simulate.truth(source.simulate)
                    about = {"simulated": "true", "settings": settings}
                    write(path, simulate.genes(truth), simulate.chunks(truth), about)
                else:
                    pool = user_files.survey(source, user_files.own_columns(study))
                    about = {"files": pool.report.to_json(orient="records"), "settings": settings}
                    write(path, pool.var, pool.chunks(), about, pool.presence)
    except (OSError, soma.SOMAError) as error:
        advice = "make room on its disk, or take a folder that may be written"
        raise InputError(f"{shown(path)} cannot be written ({short(error)}); {advice}.") from None
    return str(path)


def _settings(path):
    """Fingerprint that a local Census carries; None when there is none that opens."""
    try:
        with soma.Collection.open(str(path)) as collection:
            return summary(collection).get("settings")
    except (soma.DoesNotExistError, soma.SOMAError, KeyError):
        return None


def _server(s3: S3 | None) -> dict[str, str]:
    """TileDB's settings for the server of s3:// uris, and for the proxy that the environment names on the way there."""
    scheme, host, settings = "https", "s3.amazonaws.com", {}
    if s3:
        settings = {"region": s3.region, "no_sign_request": str(not s3.signed).lower()}
    if s3 and s3.endpoint:
        scheme, host = s3.endpoint.split("://")
        settings |= {"scheme": scheme, "endpoint_override": host, "use_virtual_addressing": "false"}
    proxy = "" if proxy_bypass(host) else getproxies().get(scheme, "")
    if proxy:  # TileDB does not look into the environment
        proxy = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        parts = {"scheme": proxy.scheme, "host": proxy.hostname, "port": proxy.port or 80}
        parts |= {"username": proxy.username or "", "password": proxy.password or ""}
        settings |= {f"proxy_{name}": str(value) for name, value in parts.items()}
    return {f"vfs.s3.{key}": value for key, value in settings.items()}


def open_census(study: Study) -> soma.Collection:
    """Context manager: the open Census of a study, built first where `prepare` has to.

    InputError: it is not there, is not a Census, or did not open within PATIENCE seconds.
    """
    where, version = prepare(study), study.census.version
    keywords = {"census_version" if version else "uri": where, "tiledb_config": TILEDB | _server(study.census.s3)}

    def attempt():
        collection = cellxgene_census.open_soma(**keywords)
        human(collection)  # KeyError where there are none
        return collection

    try:
        return _within(PATIENCE, attempt)
    except Exception as error:
        reason = short(error)
    what = f"readable Census of human cells at {shown(where)}"
    advice = "check census.uri: from the project folder, where census_info and census_data are"
    if version:
        what = f"public Census {where}"
        advice = "check the date and the network, or download that release and name its folder with census.uri"
        if "not valid" in reason:  # the list of releases has been read, and this one is not in it
            dates = [name for name in _within(PATIENCE, cellxgene_census.get_census_version_directory) if "-" in name]
            advice = f"there are {', '.join(dates)}"
    elif is_remote(where):
        advice = "check census.uri, census.s3 and the network"
    raise InputError(f"there is no {what} ({reason}); {advice}.")


def _within(seconds, work):
    """What `work()` returns or raises, in its own thread that is left behind when it takes longer: TimeoutError."""
    answer = Future()  # an executor's thread would be waited for when the process ends

    def attempt():
        try:
            answer.set_result(work())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=attempt, daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer in {seconds:g} s") from None


def is_remote(uri: str) -> bool:
    """Whether reading from there can fail for a while."""
    return "://" in uri and not uri.startswith("file://")


def fetch(collection, work: Callable[[], Any], patience: float | None = None):
    """What `work()` reads from an open Census; on a server tried again after an error or `patience` seconds (READ).

    InputError: a server refused for half a minute, or never answered in 21 minutes.
    """
    if not is_remote(collection.uri):
        return work()
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        try:
            return _within(patience or READ, work)
        except Exception as error:
            reason = short(error)
    advice = "check the network, then run the same command again: it goes on from finished blocks"
    raise InputError(f"reading from {collection.uri} failed {1 + len(PAUSES)} times ({reason}); {advice}.")


def human(collection):
    """The Experiment of human cells in an open Census."""
    return collection["census_data"][ORGANISM]


def describe(collection) -> dict[str, Any]:
    """Which Census this is, for the provenance of a result; a local folder is named relative to the project."""
    about, tables = summary(collection), (human(collection).obs, human(collection).ms["RNA"].var)
    cells, genes = (1 + last for _, last in fetch(collection, lambda: [each.non_empty_domain()[0] for each in tables]))
    return {
        "uri": shown(collection.uri),
        "version": about.get("census_build_date", "unknown"),
        "schema": about.get("census_schema_version", "unknown"),
        "simulated": about.get("simulated") == "true",
        "cells": cells,
        "genes": genes,
    }


def sources(collection) -> pd.DataFrame:
    """The files behind a Census of user files, as their survey reports them; no rows for any other Census."""
    return pd.DataFrame(json.loads(summary(collection).get("files", "[]")))


def summary(collection) -> dict[str, str]:
    """Rows of census_info/summary of an open Census, {label: value}."""
    table = fetch(collection, lambda: collection["census_info"]["summary"].read().concat().to_pandas())
    return dict(zip(table["label"].astype(str), table["value"].astype(str), strict=True))


def measured(collection, datasets: Iterable[str]) -> np.ndarray:
    """Which genes all of the given data sets measured, (genes,) bool by soma_joinid: elsewhere a zero is no count."""
    table = collection["census_info"]["datasets"].read(column_names=["soma_joinid", "dataset_id"]).concat().to_pandas()
    rows = table["soma_joinid"][table["dataset_id"].isin(datasets)].to_numpy()
    matrix = human(collection).ms["RNA"][PRESENCE]
    found = np.zeros(matrix.shape[1], np.int64)
    for part in matrix.read((rows,)).tables():
        found += np.bincount(part["soma_dim_1"].to_numpy()[part["soma_data"].to_numpy() > 0], minlength=len(found))
    return found == len(rows)


def blocks(collection, cells, genes, folder, progress):
    """Yield (rows, csr_matrix) for block after block of cells: counts of `genes`, or with None of all, by soma_joinid.

    Blocks of a Census on a server are kept in `folder` until the panel is complete, so that a download that breaks
    goes on from there.
    """
    matrix = fetch(collection, lambda: human(collection).ms["RNA"].X["raw"])
    step = CELLS if genes is None else max(1, min(CELLS, VALUES // len(genes)))
    for start in range(0, len(cells), step):
        ids, stop, path, kept = cells[start : start + step], min(start + step, len(cells)), None, None
        if folder and is_remote(collection.uri):
            asked = hashlib.sha256(ids.tobytes() + (b"all" if genes is None else genes.tobytes())).hexdigest()
            path = folder / f"{asked[:32]}.npz"
            with suppress(Exception):  # it is missing, or damaged as its checksum shows
                kept = sparse.load_npz(path)
        counts = fetch(collection, lambda ids=ids: _counts(matrix, ids, genes)) if kept is None else kept
        if path and kept is None:
            with io.atomic(path) as partial, partial.open("wb") as file:
                sparse.save_npz(file, counts)
        yield slice(start, stop), counts
        if progress and (kept is None or stop == len(cells)):  # those that were there say nothing about the rate
            progress(stop, len(cells))


def _counts(matrix, ids, genes):
    """Counts of some cells, (cells, genes of the Census) csr_matrix."""
    table = matrix.read((ids, slice(None) if genes is None else genes)).tables().concat()
    cells, columns, values = (table[name].to_numpy() for name in ("soma_dim_0", "soma_dim_1", "soma_data"))
    return sparse.csr_matrix((values, (np.searchsorted(ids, cells), columns)), (len(ids), matrix.shape[1]))


def write(path: Path, var: pd.DataFrame, chunks: Iterable, summary: dict[str, str], presence=None) -> None:
    """Write a local SOMA Census, one chunk of cells in memory at a time; `path` appears when it is complete.

    `var` has feature_id (unique) and feature_name of each gene. A chunk is obs, with some columns of `OBS` and perhaps
    others of text, and sparse counts, (cells, genes); raw_sum and nnz of obs may cover more genes. `summary` are rows
    for census_info/summary. `presence` has the genes that each data set measured, (genes,) bool; without it all are.
    """
    with io.atomic(path) as partial:
        human = f"{partial}/census_data/{ORGANISM}"
        _lay_out(partial, len(var))
        obs, nnz = _write_counts(f"{human}/ms/RNA/X/raw", chunks, len(var))
        cells = obs["dataset_id"].value_counts(sort=False)
        present = np.array([presence[name] if presence else np.ones(len(var), bool) for name in cells.index])
        _append(f"{human}/ms/RNA/{PRESENCE}", 0, sparse.csr_matrix(present, dtype=np.uint8))
        _write_table(human, "obs", obs)
        var = var.assign(feature_length=0, nnz=nnz, n_measured_obs=cells.values @ present)
        _write_table(f"{human}/ms/RNA", "var", var)
        names = cells.index.astype(str)
        datasets = {"dataset_id": names, "dataset_title": names, "dataset_total_cell_count": cells.to_numpy()}
        _write_table(f"{partial}/census_info", "datasets", pd.DataFrame(datasets))
        # No date is given as the build's, so that writing it again gives the same content.
        about = {"census_schema_version": "2.4.0", "census_build_date": "local", **summary}
        about = pd.Series(about, dtype=str).rename_axis("label").reset_index(name="value")
        _write_table(f"{partial}/census_info", "summary", about)


def _lay_out(path, genes):
    """Create the collections and the empty matrices."""
    # A tile is as wide as the gene table, so that the rows of a CSR matrix are already in the order of the array.
    squeeze = {"filters": ["ByteShuffleFilter", {"_type": "ZstdFilter", "level": 1}]}
    tiles = {"soma_dim_0": {"tile": 2048, **squeeze}, "soma_dim_1": {"tile": genes, **squeeze}}
    layout = soma.TileDBCreateOptions(dims=tiles, attrs={"soma_data": squeeze}, capacity=2**16, allows_duplicates=True)
    empty = {"shape": (1, genes), "platform_config": layout}
    with soma.Collection.create(str(path)) as root:
        root.add_new_collection("census_info")
        experiment = root.add_new_collection("census_data").add_new_collection(ORGANISM, soma.Experiment)
        matrices = experiment.add_new_collection("ms").add_new_collection("RNA", soma.Measurement)
        matrices.add_new_sparse_ndarray(PRESENCE, type=pa.uint8(), **empty)
        matrices.add_new_collection("X").add_new_sparse_ndarray("raw", type=pa.float32(), **empty)


def _write_counts(uri, chunks, genes):
    """Write all chunks; return the finished obs table and the number of cells in which each gene is seen."""
    parts, seen, cells = [], np.zeros(genes, np.int64), 0
    for obs, counts in chunks:
        counts = sparse.csr_matrix(counts, dtype=np.float32, copy=True)
        counts.sum_duplicates()
        counts.eliminate_zeros()
        total = obs.get("raw_sum", np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel())
        nnz = np.asarray(obs.get("nnz", np.diff(counts.indptr)), np.int64)
        filled = {name: value for name, value in OBS.items() if name not in obs}
        parts.append(obs.assign(**filled | {"raw_sum": np.asarray(total, np.float64), "nnz": nnz}))
        _append(uri, cells, counts)
        seen += np.bincount(counts.indices, minlength=genes)
        cells += len(obs)
    own = [name for name in parts[0] if name not in OBS]
    text = {name: "category" for name, value in OBS.items() if isinstance(value, str)} | dict.fromkeys(own, "category")
    return pd.concat(parts, ignore_index=True)[[*OBS, *own]].astype(text), seen


def _append(uri, start, rows):
    """Write the rows of a csr_matrix after the `start` rows that a SOMA matrix already has."""
    with soma.open(uri, "w") as array:
        array.resize((start + rows.shape[0], rows.shape[1]))
    number = np.repeat(np.arange(start, start + rows.shape[0]), np.diff(rows.indptr))
    columns = {"soma_dim_0": number, "soma_dim_1": rows.indices.astype(np.int64), "soma_data": rows.data}
    _fill(uri, columns, platform_config=soma.TileDBWriteOptions(sort_coords=False))


def _fill(uri, columns, **options):
    """Write to a SOMA array that exists. The handle that made or resized it would lose categories, and cells."""
    with soma.open(uri, "w") as array:
        array.write(pa.table(columns), **options)


def _write_table(parent, name, frame):
    """Add a DataFrame to a collection, numbered by soma_joinid."""
    frame = pd.DataFrame({"soma_joinid": np.arange(len(frame))}).join(frame.reset_index(drop=True))
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    with soma.open(parent, "w") as collection:
        collection.add_new_dataframe(name, schema=table.schema, domain=[(0, len(frame) - 1)])
    _fill(f"{parent}/{name}", table)
