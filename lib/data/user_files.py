"""User files: which files a study names, whose cells and what genes they hold, checked to the last value and pooled."""

import ast
import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import ValidationError
from scipy import sparse

from lib import io
from lib import study as study_file
from lib.data.readers import check_access, check_once, files, opened, table, texts
from lib.io import InputError, shown

CARRIED = (
    "assay", "cell_type", "tissue_general", "tissue_type", "is_primary_data",
    "suspension_type", "disease", "sex", "development_stage",
)  # fmt: skip
"""obs columns taken over under their own name where a file has them."""
NOBODY = ("unknown", "unassigned", "undetermined", "negative", "ambiguous", "doublet", "multiplet", "not available",
          "not applicable", "-", "?")  # fmt: skip
"""What stands for a donor who is not known, also after demultiplexing, besides what is missing in any column."""
ENSEMBL = r"(?:\w+?_+)?(ENS[A-Z]*G\d+)(?:\.\d+)?(_PAR_Y)?"
"""An Ensembl gene id: perhaps after a genome, as in GRCh38_ENSG..., and with a version, as in ENSG... .12."""
IDS = ("feature_id", "gene_ids", "gene_id", "ensembl_id", "ensembl_gene_id", "ensembl", "id")
SYMBOLS = ("feature_name", "gene_symbols", "gene_symbol", "gene_name", "gene_names", "symbol", "gene_short_name")
"""Columns of var that are read, in capitals or not; of symbols the first that is there."""
LARGEST = 2**24  # above this, float32 (the type of a Census' counts) no longer holds every integer
EMPTY = LEVEL = 0.5
"""Larger shares of cells without a count are those of unfiltered droplets; of cells of one total, normalised data."""
FEW_GENES = 10_000  # shorter lists of genes look like a selection
LITTLE = 0.1  # files whose genes meet in no larger share of the shorter list name them in different ways
SAME_BARCODE, ANY_BARCODE = 10, 100
"""Genes that a cell must show for equal counts to mean one cell: under the same barcode, and under two names."""


@dataclass(frozen=True)
class Pool:
    """All files of a study, checked; the lists have an entry for each."""

    paths: list[Path]
    obs: list[pd.DataFrame]  # its cells, as in the Census; raw_sum is over all genes of the file, nnz over the pool
    var: pd.DataFrame  # feature_id and feature_name of the pooled genes, in the order in which the files bring them
    placed: list[sparse.csr_matrix]  # (genes of the file, genes of the pool): 1 where they are one
    report: pd.DataFrame  # one row for each file, in numbers

    @property
    def presence(self) -> dict[str, np.ndarray]:
        """For each data set the genes that all of its files measured, (genes,) bool."""
        found = {}
        for obs, placed in zip(self.obs, self.placed, strict=True):
            for dataset in obs["dataset_id"].unique():
                found[dataset] = found.get(dataset, True) & (placed.getnnz(axis=0) > 0)
        return found

    def chunks(self) -> Iterator[tuple[pd.DataFrame, sparse.csr_matrix]]:
        """obs and counts of the pooled genes, block by block."""
        for path, obs, placed in zip(self.paths, self.obs, self.placed, strict=True):
            with opened(path) as counts:
                for start, block in counts.blocks():
                    yield obs.iloc[start : start + block.shape[0]], block @ placed


def survey(settings: study_file.Census, own: Iterable[str] = ()) -> Pool:
    """Check the files of a study to the last value, and find what they hold; nothing is written.

    Equal donor names are one donor, in whichever file they stand. `own` are obs columns that every file needs besides.
    InputError: the first file that cannot be used, the place in it, and what to do.
    """
    obs, genes, rows, named = [], [], [], sources(settings)
    for path, given in named.items():
        with opened(path) as counts:
            obs.append(_labels(counts, given, settings, own))
            genes.append(_genes(counts.var, counts.name))
            rows.append({"file": counts.name, "cells": len(counts.obs), "genes": len(counts.var),
                         "counts_in": counts.counts_in, "left_out": counts.left_out})  # fmt: skip
    paths, keys = list(named), gene_keys(genes)
    _check_donors(paths, obs)
    _name_datasets(paths, obs)
    if settings.genes.duplicates == "refuse":
        advice = "add their counts up with census: {genes: {duplicates: sum}}, or run adata.var_names_make_unique()"
        for row, table, key in zip(rows, genes, keys, strict=True):
            check_once(f"{row['file']} names gene", table["name"], pd.Index(key).duplicated(), advice)
    chosen = _choose(paths, keys, settings.genes.pool)
    placed = [_placed(key, chosen) for key in keys]
    shared = np.all([each.getnnz(axis=0) > 0 for each in placed], axis=0)
    cells = [_read(path, each, shared, chosen) for path, each in zip(paths, placed, strict=True)]
    _check_copies(paths, obs, cells)
    for row, key, labels, read in zip(rows, keys, obs, cells, strict=True):
        labels["raw_sum"], labels["nnz"] = read["total"].to_numpy(), read["nnz"].to_numpy()
        row |= {
            "genes_shared": int(shared.sum()),
            "ensembl_ids": int(_ensembl(pd.Series(key)).notna().sum()),
            "donors": labels["donor_id"].nunique(),
            "datasets": labels["dataset_id"].nunique(),
            "libraries": labels.index.str.extract(r"[ACGT]{12,}-(\d+)$", expand=False).nunique(),
            "primary_cells": int(labels["is_primary_data"].sum()),
            "median_counts": float(read["total"].median()),
            "empty_cells": int((read["total"] == 0).sum()),
        }
    return Pool(paths, obs, _var(genes, keys, chosen), placed, pd.DataFrame(rows))


def overview(pool: Pool) -> str:
    """What a pool holds, on one line, and what of each file should be looked at, on further ones."""
    labels, shared = pd.concat(pool.obs), pool.report["genes_shared"].iloc[0]
    donors, datasets, tissues = labels.reindex(columns=["donor_id", "dataset_id", "tissue"]).nunique()
    lines = [
        f"cells: {len(labels):,}; donors: {donors:,}; data sets: {datasets:,}; tissues: {tissues:,}; "
        f"genes in the pool: {len(pool.var):,}, in every file: {shared:,}"
    ]
    for row, obs in zip(pool.report.to_dict("records"), pool.obs, strict=True):
        if row["libraries"] > 1 and row["donors"] == 1:
            lines.append(f"{row['file']}: barcodes of {row['libraries']} libraries, and one donor; is that one person?")
        if not row["primary_cells"]:
            lines.append(
                f"{row['file']}: no cell is primary data; a census.filter on is_primary_data can ask for others."
            )
        if np.isclose(obs["raw_sum"], row["median_counts"], rtol=0.01).mean() > LEVEL:
            lines.append(f"{row['file']}: most cells have {row['median_counts']:,.0f} counts; were they normalised?")
        if row["genes"] < FEW_GENES:
            lines.append(f"{row['file']}: {row['genes']:,} genes; library sizes lack all others: give the full list.")
    return "\n".join(lines)


def sources(settings: study_file.Census) -> dict[Path, dict[str, str]]:
    """The files that a study names, each once, in the order of their paths, and the labels it gives to their cells."""
    found, resolved = {}, {}
    samples = (_sheet(given) if _is_sheet(given) else [(given, "census")] for given in settings.sources)
    for sample, where in chain.from_iterable(samples):
        exact = os.path.lexists(io.ROOT / sample.path)  # then brackets in it are part of a name
        matches = [sample.path] if exact else glob.glob(sample.path, root_dir=io.ROOT, recursive=True)
        if not matches:
            raise InputError(f"{where}: {sample.path!r} matches no file; a relative path starts at the project folder.")
        labels = texts(pd.Series(sample.model_dump(exclude={"path"}), dtype=object)).dropna().to_dict()
        for path in (Path(os.path.abspath(io.ROOT / match)) for match in matches):
            check_access(path)
            first = resolved.setdefault(path.resolve(), path)
            if found.setdefault(first, labels) != labels:
                raise InputError(f"{where}: {shown(path)} is named twice, with different labels; name it once.")
    return dict(sorted(found.items()))


def inputs(settings: study_file.Census) -> list[Path]:
    """All files that decide the content of the pool: counts, the tables beside a 10x matrix, sample sheets."""
    sheets = [io.ROOT / given.path for given in settings.sources if _is_sheet(given)]
    return sheets + [file for path in sources(settings) for file in files(path)]


def made_from(study: study_file.Study) -> str:
    """Fingerprint of all that decides the content of a study's Census: settings, files, and the number of their reader.

    A file counts by name, size and time of change. A Census given by `uri` or `version` is taken not to change.
    """
    source = study.census.model_dump(exclude={"filter", "tissues", "sample", "seed"})
    if study.census.sources:
        labels = [(shown(path), given) for path, given in sources(study.census).items()]
        source |= {"h5ad": None, "files": labels + [io.mark(path) for path in inputs(study.census)]}
        source["own"] = sorted({*own_columns(study), *filtered(study.census.filter)})
    return io.fingerprint(source, io.SIMULATE_NUMERICS if study.census.simulate else io.FILES_NUMERICS)


def own_columns(study: study_file.Study) -> list[str]:
    """obs columns by which a study splits or samples, beside those that every file has or is given."""
    by = {study.split.by, study.split.related, study.census.sample and study.census.sample.by}
    return sorted(by - {None, "random", "donor_id", "dataset_id", "tissue", "tissue_general"})


def _is_sheet(given):
    return given.path.lower().endswith((".csv", ".tsv"))


def _sheet(given):
    """The rows of a sample sheet, with the labels beside its path where they have none, and where each stands."""
    path, beside = io.ROOT / given.path, given.model_dump(exclude={"path"}, exclude_none=True)
    for line, row in table(path).iterrows():
        where = f"{shown(path)}, line {line}"
        try:
            yield study_file.Source(**beside | dict(row.dropna().rename(str.lower))), where
        except ValidationError as error:
            wrong = error.errors()[0]
            reason = ": ".join([*map(repr, wrong["loc"]), wrong["msg"].removeprefix("Value error, ")])
            raise InputError(f"{where}: {reason}; correct it: a .csv or .tsv is read as a sample sheet.") from None


def _labels(counts, given, settings, own):
    """The obs columns of a file under their names in the Census, labels of the study before them."""
    asked = {"donor_id": settings.donor, "dataset_id": settings.dataset, "tissue": settings.tissue}
    obs = pd.DataFrame(index=counts.obs.index)
    own, named = {*own}, filtered(settings.filter)
    for column, key in ({key: key for key in (*CARRIED, *sorted(own | named))} | asked).items():
        # Data set and tissue may be absent under their default names; a column that the study names must be there.
        needed = column in own | named or (column in asked and (column == "donor_id" or key != column))
        if column not in given and key in counts.obs:
            obs[column] = _column(counts, key, column in asked or column in own)
        elif column not in given and needed:
            setting, has = column.removesuffix("_id"), ", ".join(sorted(counts.obs)) or "none"
            advice = "add it: the study splits, samples or filters by it"
            if column in asked:
                advice = f"name another by census.{setting}, or give each file its own, {{path: ..., {column}: ...}}, "
                advice += "in census.files or in a sample sheet"
            raise InputError(f"{counts.name} has no obs column {key!r} (it has: {has}); {advice}.")
    obs = obs.assign(is_primary_data=obs.get("is_primary_data", True), **given)
    return obs.assign(tissue_general=obs.get("tissue_general", obs["tissue"])) if "tissue" in obs else obs


def filtered(condition: str | None) -> set[str]:
    """The obs columns that a filter names, as `sample` or as attr("cell type"), beside those of every Census."""
    try:
        names, _ = compared(ast.parse(condition or "", mode="eval"))
    except SyntaxError:  # of which `split.condition` speaks
        return set()
    return names - {*CARRIED, "donor_id", "dataset_id", "tissue", "raw_sum", "nnz", "soma_joinid"}


def compared(condition: ast.AST) -> tuple[set[str], list]:
    """The obs columns that a condition, or a part of one, names, and the constants that they are compared with."""
    parts = list(ast.walk(condition))
    calls = [part for part in parts if isinstance(part, ast.Call) and ast.unparse(part.func) == "attr"]
    quoted = [arg for call in calls for arg in call.args if isinstance(arg, ast.Constant)]  # attr("cell type")
    names = {part.id for part in parts if isinstance(part, ast.Name)} - {"attr", "val", "true", "false"}
    constants = [part.value for part in parts if isinstance(part, ast.Constant) and part not in quoted]
    return names | {name.value for name in quoted}, constants


def _column(counts, key, needed):
    """One obs column as text (is_primary_data: as booleans); no cell may be without its donor, data set or tissue."""
    text = texts(counts.obs[key])
    if key == "is_primary_data":
        text = text.str.lower().replace({"1": "true", "0": "false"})
        if not set(text.unique()) <= {"true", "false"}:
            raise InputError(f"{counts.name}: obs column {key} holds more than True and False; correct or drop it.")
        return text == "true"
    if needed and text.isna().any():
        advice = "fill it in or drop these cells"
        raise InputError(f"{counts.name}: obs column {key!r} is empty for {text.isna().sum()} cells; {advice}.")
    return text.fillna("unknown")


def _check_donors(paths, obs):
    """Refuse who is not known, and one name in two spellings: that person might be trained on and held out."""
    spelt = {}
    for path, labels in zip(paths, obs, strict=True):
        if unknown := int(labels["donor_id"].str.lower().isin(NOBODY).sum()):
            raise InputError(f"{shown(path)}: the donor of {unknown} cells is not known; name it or drop these cells.")
        for donor in labels["donor_id"].unique():
            alike = re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[-_. ]+", " ", donor.casefold()))
            first, where = spelt.setdefault(alike, (donor, path))
            if donor != first:
                advice = "write one person's name in one way, or give two people names that differ by more"
                raise InputError(f"{shown(path)} has donor {donor!r} and {shown(where)} {first!r}; {advice}.")


def _name_datasets(paths, obs):
    """A file whose cells have no data set is one by itself, called like the file, with its folder where others are."""
    names = [path.name if path.is_dir() else path.stem.removesuffix("matrix.mtx").rstrip("_.") for path in paths]
    for path, name, labels in zip(paths, names, obs, strict=True):
        if "dataset_id" not in labels:
            labels["dataset_id"] = name if name and names.count(name) == 1 else shown(path)


def _genes(var, name):
    """The genes of one file: `name` (its own), `id` and `symbol`. Of identifiers only Ensembl's go before a symbol."""
    own = pd.Series(var.index, dtype=object).str.strip()
    columns = {key.lower(): texts(var[key]).reset_index(drop=True) for key in var if key.lower() in (*IDS, *SYMBOLS)}
    ids, symbols = _ensembl(own), own.mask(own.str.fullmatch(ENSEMBL) | own.str.fullmatch(r"[\d.]*"))
    for key in [key for key in IDS if key in columns]:
        ids = _or(ids, _ensembl(columns[key]))
    if key := next((key for key in SYMBOLS if key in columns), None):
        symbols = _or(columns[key].mask(columns[key] == "unknown"), symbols)
    nameless = np.flatnonzero(ids.isna() & symbols.isna())
    if len(nameless):
        called = f"gene {nameless[0]} (of {len(nameless)} like it) is called {own[nameless[0]]!r}, which names no gene"
        raise InputError(f"{name}: {called}; use symbols or Ensembl ids as var names.")
    species = sorted(set(ids.dropna().str.extract(r"^(ENS[A-Z]*G)\d", expand=False)))
    if len(species) > 1:
        raise InputError(f"{name} has genes of {len(species)} species ({', '.join(species)}); keep those of one.")
    return pd.DataFrame({"name": own, "id": ids, "symbol": symbols}, dtype=object)


def _ensembl(names):
    """Ensembl ids without genome and version, NaN for what is none. The copy of a gene on Y keeps its _PAR_Y."""
    found = names.astype(object).str.extract(f"^{ENSEMBL}$").astype(object)
    return found[0] + _or(found[1], "")


def _or(values, others):
    """Values, and others where there is none; pandas' fillna makes numbers of what has no value at all."""
    return values.where(values.notna(), others)


def gene_keys(tables: list[pd.DataFrame]) -> list[np.ndarray]:
    """What each gene of each file, a table with `id` and `symbol`, is called in the pool.

    That is its Ensembl id. A gene known by its symbol alone gets the id that other files give this symbol, if it is a
    single one. An id which one file gives to several symbols tells them not apart, and does not count there.
    """
    tables = [each.assign(id=each["id"].mask(each.groupby("id")["symbol"].transform("nunique") > 1)) for each in tables]
    both = pd.concat(tables)[["id", "symbol"]].dropna().drop_duplicates()
    ids = both.drop_duplicates("symbol", keep=False).set_index("symbol")["id"]
    keys = []
    for each in tables:
        borrowed = each["symbol"].map(ids).where(each["id"].isna())
        key = _or(_or(each["id"], borrowed), each["symbol"])
        # Two symbols of this file that would become one id are two genes here, and keep their names.
        keys.append(key.mask(borrowed.notna() & key.duplicated(keep=False), each["symbol"]).to_numpy(object))
    return keys


def _choose(paths, keys, how):
    """Keys of the pooled genes: those of all files, or of any, in the order of the files."""
    pool = pd.unique(keys[0])
    for path, key in zip(paths[1:], map(pd.unique, keys[1:]), strict=True):
        common = pool[pd.Index(pool).isin(key)]
        if len(common) <= LITTLE * min(len(pool), len(key)):
            shared = f"shares {len(common)} of its {len(key)} genes with the files before it"
            advice = f"it has {key[0]}, they have {pool[0]}: use the same names, or add a file with symbols and ids"
            raise InputError(f"{shown(path)} {shared}; {advice}.")
        pool = pd.unique(np.concatenate([pool, key])) if how == "union" else common
    return pool


def _placed(key, chosen):
    """(genes of a file, genes of the pool) csr_matrix that turns counts of the one into counts of the other."""
    place = pd.Index(chosen).get_indexer(key)
    rows = np.flatnonzero(place >= 0)
    return sparse.csr_matrix((np.ones(len(rows)), (rows, place[rows])), (len(key), len(chosen)))


def _var(genes, keys, chosen):
    """The pooled genes, each with the symbol that the first file gives it; its key where none does."""
    symbols = pd.concat([pd.Series(table["symbol"].to_numpy(), key) for table, key in zip(genes, keys, strict=True)])
    symbols = symbols.groupby(level=0).first().reindex(chosen)
    return pd.DataFrame({"feature_id": chosen, "feature_name": symbols.fillna(pd.Series(chosen, chosen)).to_numpy()})


def _check_values(counts, start, block):
    """Refuse values that are not raw counts, naming the first by cell and gene."""
    values = block.data
    wrong = ~((values >= 0) & (values <= LARGEST) & (values == np.rint(values)))
    if wrong.any():
        at = int(wrong.argmax())
        cell, gene = start + np.searchsorted(block.indptr, at, side="right") - 1, counts.var.index[block.indices[at]]
        advice = "raw UMI counts are needed (in an .h5ad file, in X, raw.X or layers['counts'])"
        where = f"{counts.name}: cell {cell}, gene {gene}"
        raise InputError(f"{where} has {values[at]!s}, no whole number from 0 to {LARGEST}; {advice}.")


def _read(path, placed, shared, chosen):
    """Check every count of a file; each cell's total, genes it shows of the pool (`nnz`) and of all files, and mark."""
    parts = []
    with opened(path) as counts:
        for start, block in counts.blocks():
            _check_values(counts, start, block)
            block.eliminate_zeros()
            pooled = block @ placed
            common = pooled[:, shared]
            part = {"total": block.sum(axis=1).A1, "nnz": np.diff(pooled.indptr), "seen": np.diff(common.indptr)}
            parts.append(pd.DataFrame(part | {"mark": cell_marks(common, chosen[shared])}))
    cells = pd.concat(parts, ignore_index=True)
    empty = int((cells["total"] == 0).sum())
    if empty > EMPTY * len(cells):
        advice = "if this is 10x's raw matrix of all droplets, use the filtered matrix"
        raise InputError(f"{counts.name}: {empty} of {len(cells)} cells have no count at all; {advice}.")
    return cells


def cell_marks(block: sparse.csr_matrix, names: np.ndarray) -> np.ndarray:
    """Hash of each cell's counts by the names of their genes, (cells,) uint64; the order of the genes plays no part."""
    salt = pd.util.hash_array(names, categorize=False)[block.indices]
    each = pd.util.hash_array(salt + pd.util.hash_array(block.data.astype(np.uint64)))
    ends = np.zeros(block.nnz + 1, np.uint64)
    np.cumsum(each, out=ends[1:])  # modulo 2^64, and so is the difference
    return ends[block.indptr[1:]] - ends[block.indptr[:-1]]


def _check_copies(paths, obs, cells):
    """Refuse a cell that is there twice: equal counts under the same barcode, or under two names if there are many.

    Cells that are marked as no primary data may be copies. Of a barcode only the bases are compared, not a sample's
    name or the -1 beside them.
    """
    parts = []
    for path, labels, read in zip(paths, obs, cells, strict=True):
        names = pd.Series(labels.index, dtype=object)
        barcode = _or(names.str.extract("([ACGT]{12,})", expand=False), names)
        part = read[["seen", "mark"]].assign(path=shown(path), name=names, barcode=barcode)
        parts.append(part[labels["is_primary_data"].to_numpy()])
    table = pd.concat(parts, ignore_index=True)
    for least, same in ((SAME_BARCODE, ["mark", "barcode"]), (ANY_BARCODE, ["mark"])):
        rich = table[table["seen"] >= least]
        copies = rich[rich.duplicated(same)]
        if len(copies):
            copy, first = copies.iloc[0], rich.merge(copies[same].iloc[:1]).iloc[0]
            more = f" (and {len(copies) - 1} more cells like it)" if len(copies) > 1 else ""
            twice = f"cell {copy['name']} has the same counts as cell {first['name']} of {first['path']}{more}"
            raise InputError(f"{copy['path']}: {twice}; leave one out, or set is_primary_data to False for it.")
