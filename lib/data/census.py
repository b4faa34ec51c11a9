"""Every source of counts becomes a CELLxGENE Census: the public one, a folder, your own .h5ad files, or the simulator.

A local Census is written so that the unmodified `cellxgene_census` client reads it, hence there is one reader and no
second code path. Nothing ever takes the place of a Census that cannot be opened.
"""

import hashlib
import json
import os
import re
import threading
import time
from contextlib import contextmanager

import pandas as pd

from lib import io
from lib.data import simulate
from lib.data.soma import ORGANISM, write, writing
from lib.data.user_files import marks, pooled
from lib.io import CensusUnavailable, shown

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
        return source.uri if "://" in source.uri else str(io.ROOT / source.uri)
    from filelock import FileLock

    path = study.data / "census"
    settings = made_from(study)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(".census.lock")):
            if _metadata(path).get("settings") != settings:
                io.sweep(path)
                var, chunks, summary, presence = _simulated(source.simulate) if source.simulate else pooled(source)
                write(path, var, chunks, summary | {"settings": settings}, presence)
    return str(path)


def made_from(study):
    """Fingerprint of all that decides the content of a study's Census: settings, files, and the number of their reader.

    A file counts by name, size and time of change. A Census given by `uri` or `version` is taken not to change.
    """
    source = study.census.model_dump(exclude={"filter", "tissues", "sample", "seed"})
    if study.census.h5ad or study.census.files:
        source |= {"h5ad": None, "files": marks(study.census)}
    return fingerprint(source, io.SIMULATE_NUMERICS if study.census.simulate else io.FILES_NUMERICS)


def fingerprint(settings, numerics):
    """SHA-256 of settings (JSON types) and of a number that is raised when the same settings give other results."""
    return hashlib.sha256(json.dumps([settings, numerics], sort_keys=True).encode()).hexdigest()


@contextmanager
def open_census(study):
    """Context manager: the open Census of a study, built first where `prepare` has to.

    Raises
    ------
    CensusUnavailable
        It is not there, is not a Census, or did not open within PATIENCE seconds.
    """
    where = prepare(study)
    keywords = {"census_version": where} if study.census.version else {"uri": where}
    collection, human = _open(where, keywords | {"tiledb_config": TILEDB | _server(study.census.s3)})
    with collection:
        if not human:
            raise CensusUnavailable(
                f"{shown(where)} can be opened, but is no Census of human cells (it has no census_data/{ORGANISM}); "
                "give census.uri the folder that holds census_info and census_data."
            )
        yield collection


def _server(s3):
    """TileDB's settings for the server of an s3:// uri; none when it is the public one."""
    if s3 is None:
        return {}
    settings = {"vfs.s3.region": s3.region, "vfs.s3.no_sign_request": str(not s3.signed).lower()}
    if s3.endpoint:
        scheme, host = s3.endpoint.split("://")
        settings |= {
            "vfs.s3.scheme": scheme,
            "vfs.s3.endpoint_override": host,
            "vfs.s3.use_virtual_addressing": "false",
        }
    return settings


def _open(where, keywords):
    """The collection, and whether it holds human cells."""
    import cellxgene_census

    def attempt():
        collection = cellxgene_census.open_soma(**keywords)
        return collection, "census_data" in collection and ORGANISM in collection["census_data"]

    try:
        return _within(PATIENCE, attempt)
    except Exception as error:
        reason = short(error)
    if "census_version" in keywords:
        advice = "check the release date and the network, or download the release and name its folder with census.uri"
        raise CensusUnavailable(f"the public Census {where} could not be opened ({reason}); {advice}.")
    advice = "check census.uri; a relative path starts at the project folder"
    if is_remote(where):
        advice = "check census.uri, census.s3 and the network"
    raise CensusUnavailable(f"there is no readable Census at {shown(where)} ({reason}); {advice}.")


def _within(seconds, work):
    """What `work()` returns or raises, in its own thread that is left behind when it takes longer: TimeoutError."""
    answer = {}

    def attempt():
        try:
            answer["value"] = work()
        except Exception as error:
            answer["error"] = error

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in answer:
        raise answer["error"]
    if "value" not in answer:
        raise TimeoutError(f"no answer in {seconds:g} s")
    return answer["value"]


def is_remote(uri):
    """Whether reading from there can fail for a while."""
    return "://" in uri and not uri.startswith("file://")


def fetch(collection, work):
    """What `work()` reads from an open Census. On a server it is tried again after an error or READ seconds of silence.

    A server that refuses is given up after the waits alone, half a minute; one that never answers after 21 minutes at
    the latest.

    Raises
    ------
    CensusUnavailable
        All attempts failed.
    """
    if not is_remote(collection.uri):
        return work()
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        try:
            return _within(READ, work)
        except Exception as error:
            reason = short(error)
    raise CensusUnavailable(
        f"reading from {collection.uri} failed {1 + len(PAUSES)} times ({reason}); check the network, then run the "
        "same command again: it goes on from the blocks that are finished."
    )


def describe(collection):
    """Which Census this is, for the provenance of a result.

    Returns
    -------
    dict
        uri (a local folder relative to the project), version (build date), schema, simulated (bool), cells, genes.
    """

    def size():
        human = collection["census_data"][ORGANISM]
        return [1 + ids(table)[1] for table in (human.obs, human.ms["RNA"].var)]

    summary, (cells, genes) = _summary(collection), fetch(collection, size)
    return {
        "uri": shown(collection.uri),
        "version": summary.get("census_build_date", "unknown"),
        "schema": summary.get("census_schema_version", "unknown"),
        "simulated": summary.get("simulated") == "true",
        "cells": cells,
        "genes": genes,
    }


def ids(table):
    """First and last soma_joinid of an open table. Its `count` would stop all of Python's threads while it waits."""
    return table.non_empty_domain()[0]


def is_release(collection):
    """Whether this is a release of the public Census, wherever it is read from: those are known by their date."""
    return re.fullmatch(r"\d{4}-\d{2}-\d{2}", _summary(collection).get("census_build_date", "")) is not None


def sources(collection):
    """The files behind a Census of one's own, as `user_files.survey` reports them; no rows for any other Census."""
    return pd.DataFrame(json.loads(_summary(collection).get("files", "[]")))


def _summary(collection):
    table = fetch(collection, lambda: collection["census_info"]["summary"].read().concat().to_pandas())
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
    said = f"{type(error).__name__}: {error}".split("\n\nAt:")[0].replace(f"{io.ROOT}{os.sep}", "")
    return " ".join(said.split())[:300].rstrip(".")


def _simulated(settings):
    truth = simulate.truth(settings)
    return simulate.genes(truth), simulate.chunks(truth), {"simulated": "true"}, None
