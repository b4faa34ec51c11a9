"""A panel as one small file: all that training needs, on a machine with NumPy and torch alone.

Counts are kept as the smallest integers that hold them. The normalised values are not computed again, because the last
digit of a logarithm is the processor's: each cell has few different counts, and their values are kept with it. Masks
are bits. The zip file around it all has a checksum of every part.
"""

import zipfile
import zlib
from dataclasses import dataclass

import numpy as np

from lib import io
from lib.io import InputError

NAME = "panel.npz"
ENTRIES = 2**22
"""Entries of the table of cells x counts that is looked at together; it decides how many cells are."""


@dataclass(frozen=True)
class Arrays:
    """A panel as NumPy arrays, all that training needs.

    Attributes
    ----------
    x : (cells, genes) float32
        log1p(1e4 * counts / library). Mapped from the file where `lib.data.panel.read` gives it, as the counts are.
    counts : (cells, genes) int32
    library : (cells,) float64
        Counts of the whole transcriptome.
    train : int64
        Indices into cells.
    held : dict of int64
        Those of every held-out side, in the order of `split.SPLITS`: validation, test, and what else is set aside.
    masks : dict of (cells of the side, per_cell, k) int32
        For every held-out side, row i for its i-th cell: the masked genes, sorted.
    """

    x: np.ndarray
    counts: np.ndarray
    library: np.ndarray
    train: np.ndarray
    held: dict
    masks: dict


def write(path, data, origin):
    """Write a panel's arrays, and what they were made from in words; what comes back from the file is compared.

    Parameters
    ----------
    path : Path
    data : Arrays
    origin : str
        `read` gives the panel out only to who asks for the same.
    """
    genes = data.counts.shape[1]
    parts = {"origin": np.array(origin), "library": data.library, "train": data.train.astype(np.int32)}
    parts["counts"] = np.asarray(data.counts).astype(np.min_scalar_type(int(data.counts.max())))
    parts["values"] = _values(parts["counts"], data.x)
    parts |= {f"held-{side}": rows.astype(np.int32) for side, rows in data.held.items()}
    parts |= {f"masks-{side}": _bits(masks, genes) for side, masks in data.masks.items()}
    with io.atomic(path) as partial:
        np.savez_compressed(partial, **parts)
        if not _equal(read(partial, origin), data):
            raise AssertionError(f"{path.name} does not hold what was written to it")


def read(path, origin):
    """The arrays of a compact panel, bit for bit and in the order of those that it was written from.

    Raises
    ------
    InputError
        The file is damaged, or was made from other data or settings than those asked for.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = {name: file[name] for name in file.files}
        told = str(parts["origin"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{io.shown(path)} cannot be read ({' '.join(str(error).split())[:120]}); copy it again, or make it "
            "anew with python -m lib pack."
        ) from None
    if told != origin:
        raise InputError(
            f"{io.shown(path)} was made for other data or settings than the study file now asks for; make it anew "
            "with python -m lib pack."
        )
    counts = parts["counts"]
    held = {name[5:]: rows.astype(np.int64) for name, rows in parts.items() if name.startswith("held-")}
    masks = {name[6:]: _masks(bits, counts.shape[1]) for name, bits in parts.items() if name.startswith("masks-")}
    x, train = _normalised(counts, parts["values"]), parts["train"].astype(np.int64)
    return Arrays(x, counts.astype(np.int32), parts["library"], train, held, masks)


def _bits(masks, genes):
    hidden = np.zeros((*masks.shape[:2], genes), bool)
    np.put_along_axis(hidden, masks.astype(np.int64), True, axis=-1)
    return np.packbits(hidden, axis=-1)


def _masks(bits, genes):
    """Positions of the masked genes, (cells, per_cell, k) int32, of which each mask has equally many."""
    hidden = np.unpackbits(bits, axis=-1, count=genes)
    return hidden.nonzero()[-1].astype(np.int32).reshape(*hidden.shape[:2], -1)


def _blocks(counts):
    """Each block of cells, its counts, and the number of every one of its cells' different counts, see `_numbers`."""
    step = max(1, ENTRIES // (int(counts.max()) + 1))
    for start in range(0, len(counts), step):
        block = counts[start : start + step]
        yield slice(start, start + step), *_numbers(block)


def _numbers(block):
    """Number the different counts above zero of every cell, cell after cell, from 1: (cells, genes); and how many."""
    rows = np.arange(len(block))[:, None]
    there = np.zeros((len(block), int(block.max()) + 1), bool)
    there[rows, block] = True
    there[:, 0] = False
    numbers = np.where(there, there.cumsum().reshape(there.shape), 0)
    return numbers[rows, block], int(there.sum())


def _values(counts, x):
    """The normalised value of each cell's different counts, in the order of `_numbers`."""
    found = []
    for cells, numbers, size in _blocks(counts):
        values = np.zeros(size + 1, np.float32)
        values[numbers] = x[cells]
        found.append(values[1:])
    return np.concatenate(found)


def _normalised(counts, values):
    x, start = np.empty(counts.shape, np.float32), 0
    for cells, numbers, size in _blocks(counts):
        x[cells] = np.concatenate([np.zeros(1, np.float32), values[start : start + size]])[numbers]
        start += size
    return x


def _equal(one, other):
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("x", "counts", "library", "train")]
    pairs += [(one.held[side], other.held[side]) for side in other.held]
    pairs += [(one.masks[side], other.masks[side]) for side in other.held]
    return all(np.array_equal(*pair) for pair in pairs)
