"""One file or folder of counts, of whatever kind, as `Counts`: opened by anndata and scanpy, given in blocks of cells.

An .h5ad file stays on disk and may be larger than memory; 10x output is read whole. Folders of 10x go through
pandas: scanpy takes neither an unpacked features.tsv, as STARsolo writes it, nor a packed genes.tsv, as in GEO.
"""

import csv
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.io import mminfo

from lib.io import InputError, short, shown

ENTRIES, BY_GENE = 2_000_000, 10_000_000
"""Stored counts in a block of cells, on average; more where they are stored by gene, for each block reads them all."""
LAYERS = r"(?i)(raw|umi)?[\W_]?(raw|umis?|counts?)"
"""Names of layers, beside X and raw.X, in which an .h5ad file may have its counts."""
MISSING = ("", "na", "n/a", "#n/a", "nan", "none", "<na>", "null")
"""What stands for a label that is not there, once spreadsheets and other languages have written it as text."""
TYPES = ("Gene Expression", "Antibody Capture", "CRISPR Guide Capture", "Multiplexing Capture", "Peaks", "Custom")
"""10x's types of features. They stand in one matrix, and only the first are genes."""
GENES = ("gene expression", "gene", "gex", "rna")  # what others call these
OTHERS = {
    "/mod": ("is a MuData file", "write its gene expression as .h5ad, with mudata.read(path)['rna'].write_h5ad(...)"),
    "/barcode_idx": ("lists 10x's molecules", "name the filtered_feature_bc_matrix.h5 that lies beside it"),
}
"""Kinds that look like files that are read, by a name in them: what such a path is, and what to name instead."""
ADVICE = {
    "unable to lock file": "it is open in another program: close it there, or set HDF5_USE_FILE_LOCKING=FALSE",
    "No read method": "a newer anndata wrote it: update anndata here, or leave that column out there",
    "": "see that it is whole, that it is packed where its name ends in .gz and only there, and that text is UTF-8",
}
"""The step to take, by what a library says of a file that it cannot read: the first that fits."""


@dataclass(frozen=True)
class Counts:
    """An open file."""

    name: str  # the file, as messages have it
    obs: pd.DataFrame
    var: pd.DataFrame  # its genes, without other features
    matrix: object  # (cells, features), sparse or dense, in memory or in the file
    kept: np.ndarray  # (features,) bool: which are genes
    counts_in: str  # where in the file the counts are
    left_out: str  # how many features of which types are no genes

    def blocks(self) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Number of the first cell and counts, (cells, genes) float64, of one block of cells after another."""
        cells, width = self.matrix.shape
        by_gene = getattr(self.matrix, "format", "") == "csc"
        rows = _step(self.matrix, cells, BY_GENE if by_gene else ENTRIES)
        for start in range(0, cells, rows):
            if by_gene:
                columns = _step(self.matrix, width, ENTRIES)
                parts = (_checked(self.matrix[:, at : at + columns]) for at in range(0, width, columns))
                block = sparse.hstack([part[start : start + rows] for part in parts], "csr")
            else:
                block = _checked(self.matrix[start : start + rows])
            yield start, block if self.kept.all() else block[:, self.kept]


def _step(matrix, length, entries):
    """How many of `length` rows or columns hold `entries` stored values, on average; four dense ones count as one."""
    dense = matrix.shape[0] * matrix.shape[1] // 4
    stored = len(matrix.group["data"]) if hasattr(matrix, "group") else getattr(matrix, "nnz", dense)
    return max(1, length * entries // max(stored, 1))


def _checked(part):
    """A part of a matrix as float64. Indices beyond its shape would read other memory, and raise ValueError first."""
    part = part if sparse.issparse(part) else sparse.csr_matrix(part)
    part.check_format(full_check=True)
    return part.tocsr().astype(np.float64)


@contextmanager
def opened(path: Path) -> Iterator[Counts]:
    """Context manager: any file or folder of counts; InputError: it is unreadable or holds no counts of named genes."""
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that names are not unique is checked where it matters
        adata = _read(path)
        try:
            yield _counts(adata, shown(path))
        finally:
            file = getattr(getattr(adata.X, "group", adata.X), "file", None)
            if file is not None:
                file.close()


def _read(path):
    """The path as an AnnData."""
    inside = _inside(path)
    for name, (what, step) in OTHERS.items():
        if name in inside:
            raise InputError(f"{shown(path)} {what}; {step}.")
    if {"/obs", "/var"} <= inside:
        return _read_h5ad(path)
    if any(name.endswith("/barcodes") for name in inside):
        import scanpy

        return scanpy.read_10x_h5(path, gex_only=False)
    if _is_folder(path):
        return _read_folder(path)
    kinds = "an .h5ad file, 10x's .h5, or a folder with matrix.mtx, unpacked"
    raise InputError(f"{shown(path)} is no known kind of file; give {kinds}.")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Context manager: what a library says of a file that it cannot read becomes one sentence with the next step."""
    check_access(path)
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        reason = short(error)
        advice = next(advice for said, advice in ADVICE.items() if said in reason)
        raise InputError(f"{shown(path)} cannot be read ({reason}); {advice}.") from None


def check_access(path: Path) -> None:
    """Refuse what is not there, may not be read, or is empty."""
    if not os.path.isfile(path) and not os.path.isdir(path):
        wrong = "is not there, or is no file (but a pipe, or a link to nothing); restore the file or correct its name"
    elif not os.access(path, os.R_OK):
        wrong = "may not be read; ask its owner for the permission (chmod +r)"
    elif path.is_file() and not path.stat().st_size:
        wrong = "is an empty file (0 bytes); copy or download it again"
    else:
        return
    raise InputError(f"{shown(path)} {wrong}.")


def _inside(path):
    """Names in an HDF5 file, as /obs/donor_id; none of any other path."""
    names = set()
    if h5py.is_hdf5(path):
        with h5py.File(path) as h5:
            h5.visit(lambda name: names.add(f"/{name}"))
    return names


def _counts(adata, name):
    """What a reader gives, checked as far as its names go."""
    if not all(adata.shape):
        raise InputError(f"{name} holds {adata.n_obs} cells x {adata.n_vars} genes; there is nothing to use in it.")
    advice = "drop the copies, or if they are different cells run adata.obs_names_make_unique()"
    check_once(f"{name} names cell", adata.obs_names, adata.obs_names.duplicated(), advice)
    types = adata.var.get("feature_types", pd.Series(TYPES[0], adata.var_names)).astype(str)
    genes = types.str.lower().isin(GENES)
    kept = (genes | ~(genes | types.isin(TYPES)).any()).to_numpy()
    if not kept.any():
        raise InputError(f"{name} has no feature of type {TYPES[0]!r} (it has {types.iloc[0]!r}); name another file.")
    left_out = ", ".join(f"{number} {kind}" for kind, number in types[~kept].value_counts().items()) or "nothing"
    return Counts(name, adata.obs, adata.var[kept], adata.X, kept, adata.uns.get("counts_in", "matrix"), left_out)


def check_once(where: str, names: pd.Index | pd.Series, repeated: np.ndarray, advice: str) -> None:
    """Refuse names of which some are repeated, (names,) bool."""
    if repeated.any():
        first, *others = names[repeated].unique()
        more = f" (and {len(others)} more)" if others else ""
        raise InputError(f"{where} {first}{more} more than once; {advice}.")


def texts(values: pd.Series, thousands: bool = False) -> pd.Series:
    """Labels as text, missing where there is none; 24.0, as pandas writes 24, is 24.

    With `thousands`, where commas are decimal, 24.000 stays what it is: it may be 24000.
    """
    whole = r"^(-?\d+)\.(?!000$)0+$" if thousands else r"^(-?\d+)\.0+$"
    text = values.astype("string").str.strip().str.replace(whole, r"\1", regex=True)
    return text.mask(text.str.lower().isin(MISSING)).astype(object)


def table(path: Path) -> pd.DataFrame:
    """A table as spreadsheets of any country write it: cells as `texts`, its index the lines of the file.

    Its separator (in attrs) is the comma, semicolon or tab of which the first line has most. Empty rows and columns are
    left out.
    """
    with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        separator = max(",;\t", key=file.readline().count)
        file.seek(0)
        head, *rows = csv.reader(file, delimiter=separator)  # pandas refuses empty values beyond the header
    head = pd.Index([name.strip() or f"column {number}" for number, name in enumerate(head, 1)])
    check_once(f"{shown(path)} names column", head, head.duplicated(), "rename or drop one")
    if long := [line for line, row in enumerate(rows, 2) if any(map(str.strip, row[len(head) :]))]:
        advice = f"put what has a {separator!r} in it in quotes, and the names of the columns on line 1"
        raise InputError(f"{shown(path)}, line {long[0]} has more values than there are columns; {advice}.")
    cells = pd.DataFrame([dict(zip(head, row, strict=False)) for row in rows], range(2, len(rows) + 2), head)
    cells = cells.apply(texts, thousands=separator == ";").dropna(how="all").dropna(how="all", axis=1)
    if cells.empty:
        raise InputError(f"{shown(path)} has no row below the names of its columns; add some.")
    cells.attrs["separator"] = separator
    return cells


def _read_h5ad(path):
    """Cells and genes by anndata, the counts left in the file."""
    import anndata
    from anndata.io import read_elem, sparse_dataset

    h5 = h5py.File(path)
    if isinstance(h5["obs"], h5py.Dataset):
        raise InputError(f"{shown(path)} was written before anndata 0.7; read it with anndata, and write it again.")
    place = _counts_in(h5, shown(path))
    matrix = sparse_dataset(h5[place]) if isinstance(h5[place], h5py.Group) else h5[place]
    var = h5["raw/var"] if place == "raw/X" else h5["var"]
    return anndata.AnnData(matrix, read_elem(h5["obs"]), read_elem(var), uns={"counts_in": place})


def _counts_in(h5, name):
    """Where the counts of an .h5ad file are: the first place of whole numbers, some above 1, else the first.

    raw.X goes before an X of whole numbers where it has more genes: those of X have been chosen from them.
    """
    first, layers = {}, [f"layers/{name}" for name in h5.get("layers", ()) if re.fullmatch(LAYERS, name)]
    for place in [place for place in ("X", "raw/X", *layers) if place in h5]:
        data = h5[place].get("data") if hasattr(h5[place], "keys") else h5[place]
        if data is not None and data.shape:
            first[place] = data[: 1 + 100_000 // (1 + data[:1].size)]
    if not first:
        raise InputError(f"{name} has no counts: neither X nor raw.X nor layers['counts'] is there; put them in X.")
    whole = [place for place, values in first.items() if _whole(values)]
    genes = {place: h5[place].attrs.get("shape", getattr(h5[place], "shape", (0, 0)))[-1] for place in whole}
    return "raw/X" if genes.get("raw/X", 0) > genes.get("X", np.inf) else [*whole, *first][0]


def _whole(values):
    """Whether these are whole numbers, and some above 1."""
    return values.dtype.kind in "biuf" and (values > 1).any() and (values >= 0).all() and (values % 1 == 0).all()


def _read_folder(path):
    """A 10x folder, with the columns that scanpy gives its genes."""
    import anndata

    parts, tables = _parts(path), []
    with reading(parts[0]):  # a damaged header would ask for any amount of memory: it is compared first
        genes, cells, entries, *_ = mminfo(parts[0])
    how = {"sep": "\t", "header": None, "dtype": str, "quoting": 3, "keep_default_na": False}
    for part, length in zip(parts[1:], (cells, genes), strict=True):
        with reading(part):  # more columns than any has: rows may be of different lengths
            table = pd.read_csv(part, names=range(30), **how).fillna("")
        if len(table) != length:
            first = " ".join(table.iloc[0, :3]).strip()
            wrong = f"has {len(table)} lines for the {length} {'genes' if part == parts[2] else 'cells'} of"
            advice = f"give one line to each, without a header (the first line is {first!r})"
            if len(table) == genes + cells - length:
                advice = "its rows are cells, and should be genes: write it transposed"
            raise InputError(f"{shown(part)} {wrong} {parts[0].name}; {advice}.")
        tables.append(table.apply(lambda column: column.str.strip('"')))
    with reading(parts[0]):
        # By pandas: SciPy's mmread can end Python itself (segmentation fault, 1.17) on a damaged line.
        types = {"gene": np.int64, "cell": np.int64, "count": np.float64}
        body = pd.read_csv(parts[0], sep=r"\s+", comment="%", header=0, names=list(types), dtype=types, index_col=False)
        if len(body) != entries:
            raise ValueError(f"it holds {len(body)} entries and its header says {entries}")
        matrix = sparse.csr_matrix((body["count"], (body["cell"] - 1, body["gene"] - 1)), (cells, genes))
    ids, symbols, types = (tables[1][column] for column in range(3))
    var = pd.DataFrame({"gene_ids": ids, "feature_types": types}).set_index(symbols.where(symbols != "", ids))
    return anndata.AnnData(matrix, pd.DataFrame(index=tables[0][0]), var)


def files(path: Path) -> list[Path]:
    """The files that are read where a study names `path`."""
    return _parts(path) if _is_folder(path) else [path]


def _is_folder(path):
    return any("matrix.mtx" in name for name in [path.name, *(os.listdir(path) if path.is_dir() else ())])


def _parts(path):
    """Matrix, barcodes and features of a 10x folder, or of a path to a matrix; a prefix before one is before all."""
    folder, names = (path, os.listdir(path)) if path.is_dir() else (path.parent, [path.name])
    # Names that begin with a dot are macOS's own.
    prefixes = {name.partition("matrix.mtx")[0] for name in names if "matrix.mtx" in name and name[0] != "."}
    if len(prefixes) > 1 and "" not in prefixes:
        raise InputError(f"{shown(path)} holds matrices of {', '.join(sorted(prefixes))}; name each by its own path.")
    prefix = "" if "" in prefixes else min(prefixes, default="")
    found = []
    for names in (("matrix.mtx",), ("barcodes.tsv",), ("features.tsv", "genes.tsv")):
        asked = [folder / f"{prefix}{name}{packed}" for name in names for packed in ("", ".gz")]
        found.append(next((place for place in asked if place.is_file()), None))
        if found[-1] is None:
            raise InputError(f"{shown(path)} needs one of {', '.join(place.name for place in asked)}; put it there.")
    return found
