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

import pandas as pd

from lib import files
from lib.errors import CensusUnavailable
from lib.files import shown
from lib.own import MODULES, pooled
from lib.samples import marks
from lib.soma import ORGANISM, write, writing

PATIENCE = 60.0
"""Seconds that opening a Census may take. The client's own request for the list of releases has no time limit."""
TILEDB = {
    "soma.init_buffer_bytes": 32 * 2**20,
    "vfs.s3.connect_timeout_ms": 10_000,
    "vfs.s3.request_timeout_ms": 60_000,
    "vfs.s3.connect_max_tries": 5,
}


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
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(".census.lock")):
            if _metadata(path).get("settings") != settings:
                files.sweep(path)
                var, chunks, summary, presence = _simulated(source.simulate) if source.simulate else pooled(source)
                write(path, var, chunks, summary | {"settings": settings}, presence)
    return str(path)


def made_from(study):
    """Fingerprint of all that decides the content of a study's Census: settings, files, and the code that writes it.

    A file counts by name, size and time of change. A Census given by `uri` or `version` is taken not to change.
    """
    source = study.census.model_dump(exclude={"filter", "seed"})
    if study.census.h5ad or study.census.files:
        source |= {"h5ad": None, "files": marks(study.census)}
    return fingerprint(source, "census.py", "soma.py", *(["simulate.py"] if study.census.simulate else MODULES))


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
    """The files behind a Census of one's own, as `own.survey` reports them; no rows for any other Census."""
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


def _simulated(settings):
    from lib import simulate

    truth = simulate.truth(settings)
    return simulate.genes(truth), simulate.chunks(truth), {"simulated": "true"}, None
