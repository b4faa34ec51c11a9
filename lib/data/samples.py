"""Which files of counts a study names, with what labels, and how each is opened."""

import glob
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from lib import io
from lib import study as study_file
from lib.data import counts, h5ad, tenx
from lib.io import InputError, shown

READERS = (tenx, h5ad)
"""Modules that read HDF5 files by `recognises(h5)` and `opened(h5, name)`. The first to recognise a file opens it."""


@dataclass(frozen=True)
class Source:
    """One file or folder of counts, and the labels that the study gives to all of its cells."""

    path: Path
    labels: dict = field(default_factory=dict)


def sources(settings):
    """The files that a study names, each once, in the order of their paths, with the labels it gives them."""
    found = {}
    for sample, place in _samples(settings):
        labels = sample.model_dump(exclude={"path"}, exclude_none=True)
        matches = glob.glob(str(_place(sample.path)), recursive=True)
        if not matches:
            raise InputError(f"{place}: {sample.path!r} matches no file; a relative path starts at the project folder.")
        for path in (Path(os.path.abspath(match)) for match in matches):
            if not os.path.exists(path):
                raise InputError(f"{shown(path)} is a link to a file that is not there; restore the file or the link.")
            counts.check_access(path)
            if found.setdefault(path.resolve(), Source(path, labels)).labels != labels:
                raise InputError(f"{place}: {shown(path)} is named twice, with different labels; name it once.")
    if not found:
        raise InputError("census.h5ad and census.files name no file; add the path of one.")
    return sorted(found.values(), key=lambda source: source.path)


def inputs(settings):
    """All files that decide the content of the pool: counts, the tables beside a 10x matrix, sample sheets."""
    listed = [_place(sample.path) for sample in settings.files or () if _is_sheet(sample)]
    for source in sources(settings):
        listed += tenx.parts(source.path).values() if _is_text(source.path) else [source.path]
    return listed


def marks(settings):
    """What tells whether the files of a study have changed, as JSON types: labels; name, size and time of each file."""
    labels = [(shown(source.path), source.labels) for source in sources(settings)]
    return labels + [(shown(path), path.stat().st_size, path.stat().st_mtime_ns) for path in inputs(settings)]


def _samples(settings):
    """Every Source of a study, those of its sample sheets included, and where it stands."""
    for pattern in settings.h5ad or ():
        yield study_file.Source(path=pattern), "census.h5ad"
    for sample in settings.files or ():
        if _is_sheet(sample):
            yield from _sheet(_place(sample.path))
        else:
            yield sample, "census.files"


def _place(path):
    return io.ROOT / Path(path).expanduser()


def _is_sheet(sample):
    return sample.path.endswith(".csv")


def _is_text(path):
    return path.is_dir() or "matrix.mtx" in path.name


def _sheet(path):
    """The rows of a sample sheet."""
    name, known = shown(path), list(study_file.Source.model_fields)
    if not path.is_file():
        raise InputError(f"census.files: there is no sample sheet {name}; relative paths start at the project folder.")
    with counts.reading(path):
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False).fillna("")
    unknown = [column for column in table if column not in known]
    if unknown or "path" not in table:
        said = f"an unknown column {unknown[0]!r}" if unknown else "no column 'path'"
        raise InputError(f"{name} has {said}; a sample sheet has columns {', '.join(known)}, with commas between.")
    for number, row in enumerate(table.to_dict("records"), 2):
        given = {key: value.strip() for key, value in row.items() if value.strip()}
        if "path" not in given:
            raise InputError(f"{name}, line {number}: the path is empty; name a file, or delete the line.")
        yield study_file.Source(**given), f"{name}, line {number}"


@contextmanager
def opened(path):
    """Context manager: any file or folder of counts as `counts.Counts`."""
    import h5py

    if _is_text(path):
        with tenx.folder(path) as file:
            yield file
        return
    with counts.reading(path):
        if not h5py.is_hdf5(path):
            kind = f"an {path.suffix}" if path.suffix in (".h5ad", ".h5") else "a known kind of"
            raise InputError(
                f"{shown(path)} is not {kind} file (it is not HDF5); give an .h5ad file, or 10x output as .h5 or as a "
                "folder with matrix.mtx."
            )
        with h5py.File(path) as h5:
            if lost := _elsewhere(h5):
                raise InputError(
                    f"{shown(path)} keeps {lost[0]} in another file, which the study does not name; write it whole."
                )
            yield next(reader for reader in READERS if reader.recognises(h5)).opened(h5, shown(path))


def _elsewhere(h5):
    """What an HDF5 file only points to: links into other files, and data sets whose bytes or parts lie in others."""
    import h5py

    found = []

    def look(key, item):
        if isinstance(item, h5py.Dataset):
            pieces = item.virtual_sources() if item.is_virtual else []
            if item.external or any(piece.file_name != "." for piece in pieces):
                found.append(key)
        else:
            links = {inner: item.get(inner, getlink=True) for inner in item}
            found.extend(f"{key}/{inner}" for inner, link in links.items() if isinstance(link, h5py.ExternalLink))

    look("", h5)
    h5.visititems(look)
    return found
