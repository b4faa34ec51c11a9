"""Output of 10x's Cell Ranger as `Counts`: an .h5 file, or a folder with a matrix and its tables as text."""

import gzip
import re
import warnings
from contextlib import contextmanager
from functools import partial

import numpy as np
import pandas as pd

from lib.data import counts, genes
from lib.io import InputError, shown

EXPRESSION = "Gene Expression"
"""The feature type that is used; antibodies, guides and peaks stand in the same matrix and are no genes."""
NAMES = {"matrix": ("matrix.mtx",), "cells": ("barcodes.tsv",), "genes": ("features.tsv", "genes.tsv")}


def recognises(h5):
    """Whether an open HDF5 file is Cell Ranger's."""
    return "matrix" in h5 or bool(_genomes(h5))


def _genomes(h5):
    """Groups as Cell Ranger before 3.0 wrote them, one for each genome."""
    return [key for key, group in h5.items() if hasattr(group, "keys") and {"barcodes", "genes"} <= set(group)]


def opened(h5, name):
    """The open .h5 file as `Counts`; layouts of Cell Ranger 2 and of 3 and later."""
    if "matrix" in h5:
        group, table = h5["matrix"], h5["matrix/features"]
        ids, symbols, types = (_texts(table[key]) for key in ("id", "name", "feature_type"))
    else:
        genomes = _genomes(h5)
        if len(genomes) > 1:
            raise InputError(f"{name} has cells of {len(genomes)} genomes ({', '.join(genomes)}); keep those of one.")
        group = h5[genomes[0]]
        ids, symbols, types = _texts(group["genes"]), _texts(group["gene_names"]), None
    cells, shape = pd.Index(_texts(group["barcodes"])), tuple(int(length) for length in group["shape"][:][::-1])
    counts.check_shape(name, shape, len(cells), len(ids), ("shape", "barcodes", "features"))
    counts.check_numbers(name, group["data"].dtype)
    return _counts(name, cells, (ids, symbols, types), partial(counts.rows, group, shape))


def _texts(dataset):
    return dataset.asstr()[:]


def _counts(name, cells, table, blocks, direct=True):
    """`Counts` over those features that are genes."""
    ids, symbols, types = table
    counts.check_names(name, cells)
    kept = np.full(len(ids), True) if types is None else np.asarray(types) == EXPRESSION
    if not kept.any():
        raise InputError(f"{name} has no feature of type {EXPRESSION!r} (it has {types[0]!r}); name another file.")
    others = {} if types is None else pd.Series(types)[~kept].value_counts().to_dict()
    left_out = ", ".join(f"{number} {kind}" for kind, number in others.items())
    known = genes.table(pd.Index(ids)[kept], {"symbol": lambda: np.asarray(symbols)[kept]}, name)

    def selected():
        for start, block in blocks():
            yield start, block[:, kept] if others else block

    return counts.Counts(name, cells, known, selected, direct=direct, left_out=left_out)


def parts(path):
    """The three files of a 10x folder, or of a path to its matrix: {matrix, cells, genes}.

    A prefix, as in GSM1234_matrix.mtx.gz, is that of all three.
    """
    folder, prefix = (path, "") if path.is_dir() else (path.parent, path.name[: path.name.find("matrix.mtx")])
    found = {}
    for part, names in NAMES.items():
        asked = [folder / f"{prefix}{name}{packed}" for name in names for packed in ("", ".gz")]
        there = [place for place in asked if place.is_file()]
        if not there:
            what = " or ".join(f"{prefix}{name}[.gz]" for name in names)
            kind = f"is not an {path.suffix} file but a folder" if path.suffix == ".h5ad" else "is no whole 10x matrix"
            raise InputError(f"{shown(path)} {kind}: there is no {what}; restore that file, or name another place.")
        if len(there) > 1:
            raise InputError(f"{shown(path)} has both {there[0].name} and {there[1].name}; keep the right one.")
        found[part] = there[0]
    return found


@contextmanager
def folder(path):
    """Context manager: the folder as `Counts`."""
    place = parts(path)
    name = shown(path)
    with counts.reading(place["cells"]):
        cells = pd.Index(_table(place["cells"])[0])
    with counts.reading(place["genes"]):
        table = _table(place["genes"])
    with counts.reading(place["matrix"]):
        shape, entries, first = _header(place["matrix"])
        counts.check_shape(name, shape, len(cells), len(table), [place[part].name for part in NAMES])
        columns = [table[column].tolist() if column in table else None for column in range(3)]

        def blocks():
            return counts.by_cell(_entries(place["matrix"], shape, entries, first), shape, name)

        yield _counts(name, cells, (columns[0], columns[1] or columns[0], columns[2]), blocks, direct=False)


def _table(path):
    return pd.read_csv(path, sep="\t", header=None, dtype=str, quoting=3, keep_default_na=False, encoding="utf-8")


def _text(path):
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")


def _header(path):
    """(cells, genes), number of entries, and number of the line on which they begin, of a Matrix Market file."""
    name = shown(path)
    with _text(path) as lines:
        banner = next(lines, "").lower().split()
        if banner[:3] != ["%%matrixmarket", "matrix", "coordinate"] or banner[4:] != ["general"]:
            raise InputError(
                f"{name} does not begin with '%%MatrixMarket matrix coordinate'; give a matrix as 10x has it."
            )
        if banner[3] not in ("integer", "real"):
            raise InputError(f"{name} holds {banner[3]} values; write it with integer counts.")
        for number, line in enumerate(lines, 2):
            if not line.startswith("%"):
                sizes = line.split()
                if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
                    said = f"{name}, line {number}: {line.strip()[:40]!r} is not 'genes cells entries'"
                    raise InputError(f"{said}; copy or download the file again.")
                return (int(sizes[1]), int(sizes[0])), int(sizes[2]), number + 1
    raise InputError(f"{name} ends before its sizes; it was cut short: copy or download it again.")


def _entries(path, shape, entries, first):
    """The entries of a Matrix Market file as arrays of counts.ENTRY, in its order; each is checked to be in `shape`."""
    name, read = shown(path), 0
    for lines in _lines(path, first) if entries else ():
        part = np.empty(len(lines), counts.ENTRY)
        for key, length in (("cell", shape[0]), ("gene", shape[1])):
            outside = ~lines[key].between(1, length).to_numpy()
            if outside.any():
                at = int(outside.argmax())
                raise InputError(
                    f"{name}, line {first + read + at}: {key} {lines[key].iloc[at]} is outside the 1 to {length} of "
                    "its header; it was damaged or edited: copy or download it again."
                )
            part[key] = lines[key] - 1
        part["count"] = lines["count"]
        read += len(lines)
        yield part
    if read != entries:
        raise InputError(
            f"{name} holds {read:,} entries and its header says {entries:,}; it was cut short or edited: copy or "
            "download it again."
        )


def _lines(path, first):
    """Yield DataFrames of gene, cell and count; a line that is not three numbers is named."""
    types = {"gene": np.int64, "cell": np.int64, "count": np.float64}
    how = {"names": list(types), "dtype": types, "index_col": False, "skiprows": first - 1, "encoding": "utf-8"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a line with more than three fields
            with pd.read_csv(path, sep=r"\s+", header=None, chunksize=counts.ENTRIES, **how) as reader:
                yield from reader
    except pd.errors.EmptyDataError:
        return
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError, pd.errors.ParserWarning):
        with _text(path) as lines:
            for number, line in enumerate(lines, 1):
                if number >= first and not re.fullmatch(r"\s*(\d{1,18}\s+\d{1,18}\s+[-+.\deE]+\s*)?", line):
                    said = f"{shown(path)}, line {number}: {line.strip()[:40]!r} is not 'gene cell count'"
                    raise InputError(f"{said}; copy or download the file again.") from None
        raise
