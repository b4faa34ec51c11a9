"""Which cells a study uses, and which of them train or are held out: whole groups of related cells, decided once."""

import ast
import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from cellxgene_census import open_soma
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from lib.data import census
from lib.data.user_files import Pool, compared
from lib.io import InputError, short
from lib.study import SPLITS, Census, Regime, Sample, Split, Study

ORDERS, TOLERANCE = 1000, 0.2
"""Seeded orders of the groups that are tried, and the relative miss of a held-out share at which the search stops."""
COLUMNS = ["soma_joinid", "dataset_id", "donor_id", "tissue", "cell_type", "raw_sum"]
"""obs columns of every panel; raw_sum becomes total_counts."""
ROWS = 2**22  # rows of obs that are read at a time

UMI = [
    "10x 3' transcription profiling", "10x 3' v1", "10x 3' v2", "10x 3' v3", "10x 3' v4",
    "10x 5' transcription profiling", "10x 5' v1", "10x 5' v2", "10x 5' v3", "10x gene expression flex",
    "10x multiome", "5' STRT-seq", "Asteria scRNA-seq kit", "BD Rhapsody Whole Transcriptome Analysis", "CEL-seq2",
    "DroNc-seq", "Drop-seq", "GEXSCOPE technology", "HIVE CLX Single-Cell RNAseq Solution", "MARS-seq",
    "Parse Evercode Whole Transcriptome v1", "Parse Evercode Whole Transcriptome v2",
    "Parse Evercode Whole Transcriptome v3", "SHARE-seq", "SORT-seq", "SPLiT-seq",
    "ScaleBio single cell RNA sequencing", "Seq-Well", "Seq-Well S3", "TruDrop", "inDrop", "microwell-seq",
    "modified STRT-seq", "particle-templated instant partition sequencing", "sci-CAR", "sci-Plex", "sci-RNA-seq",
    "sci-RNA-seq3", "snDrop-seq",
]  # fmt: skip
"""Assays of the Census whose counts are molecules of the whole transcriptome. Left out: full-length methods such as
Smart-seq, whose counts are reads; targeted panels; labels that leave it open, such as STRT-seq."""


def cells(collection, study: Study) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Cells that pass the filter, have counts and are drawn, by soma_joinid, and how, for the provenance.

    The table has COLUMNS (raw_sum as total_counts) and what the split and the sample go by.
    """
    source, obs = study.census, census.fetch(collection, lambda: census.human(collection).obs)
    by = [source.sample.by] if source.sample else []
    names = list(dict.fromkeys([*COLUMNS, *columns(study.split), *by]))
    if absent := [name for name in names if name not in obs.schema.names]:
        raise InputError(f"the Census has no obs column {absent[0]!r}; it has {', '.join(obs.schema.names)}.")
    passing, parts, rows = condition(collection, obs, source), [], 0
    first, last = census.fetch(collection, lambda: obs.non_empty_domain()[0])  # its `count` would stop all threads
    for start in range(first, last + 1, ROWS):
        asked = {"coords": (slice(start, min(start + ROWS - 1, last)),), "column_names": names, "value_filter": passing}
        part = census.fetch(collection, lambda asked=asked: obs.read(**asked).concat().to_pandas())
        parts.append(part[part["raw_sum"] > 0].sort_values("soma_joinid"))
        rows += len(part)
    table = pd.concat(parts, ignore_index=True)[names].rename(columns={"raw_sum": "total_counts"})
    if table.empty:
        raise InputError(f"no cell of the Census passes census.filter {passing!r} and has counts; ask for other cells.")
    found = {"filter": passing, "cells_available": len(table), "cells_without_counts": rows - len(table)}
    if source.sample:
        table = table.iloc[sample(table, source.sample, source.seed)].reset_index(drop=True)
        found["sample"] = source.sample.model_dump(exclude_none=True) | {"cells": len(table)}
    for name in table.columns[table.dtypes == "category"]:
        table[name] = table[name].cat.remove_unused_categories()
    return table, found


def condition(collection, obs, source: Census) -> str:
    """The filter in force: that of the study or the default of this Census, and census.tissues.

    The default is primary data, and in a public release from normal tissue by an assay that counts molecules. Of user
    files it stays primary data, unless the filter says otherwise: their copies are marked so. Refused is a filter that
    names a column or a label which the Census lacks: it would give no cells, and no error either.
    """
    primary = "is_primary_data == True"  # no copies of other data sets
    clauses = [primary if source.filter is None else source.filter]
    if source.sources and "is_primary_data" not in clauses[0]:
        clauses.append(primary)
    release = re.fullmatch(r"\d{4}-\d{2}-\d{2}", census.summary(collection).get("census_build_date", ""))
    if source.filter is None and (source.version or release):
        known = _labels(collection, obs, "assay")
        if not (assays := [assay for assay in UMI if assay in known]):
            raise InputError("no assay of this Census is known to count molecules; choose its cells by census.filter.")
        clauses += ["tissue_type == 'tissue'"] if "tissue_type" in obs.schema.names else []  # since schema 2.2.0
        clauses += ["disease == 'normal'", f"assay in {assays}"]
    if source.tissues:
        clauses.append(f"tissue_general in {source.tissues}")
    for clause in clauses:
        _check(collection, obs, clause, "tissues" if source.tissues and clause is clauses[-1] else "filter")
    return clauses[0] if len(clauses) == 1 else " and ".join(f"({clause})" for clause in clauses)


def _labels(collection, obs, column):
    """The labels of a categorical obs column."""
    return census.fetch(collection, lambda: obs.get_enumeration_values([column])[column].to_pylist())


def _check(collection, obs, clause, key):
    """Refuse a clause that is no condition on these columns, and labels that the Census lacks."""
    try:
        obs.read(value_filter=clause)  # reads nothing yet
    except Exception as error:
        there = f"write a condition such as nnz > 500 on {', '.join(obs.schema.names)}"
        unquoted = "incompatible function arguments" in str(error)  # what TileDB-SOMA says of a text compared with 5
        reason = "labels stand in quotes, also '5' and 'True'" if unquoted else short(error)
        raise InputError(f"census.{key} {clause!r} cannot be used ({reason}); {there}.") from None
    categorical = {field.name for field in obs.schema if pa.types.is_dictionary(field.type)}
    for node in ast.walk(ast.parse(clause, mode="eval")):
        named, asked = compared(node) if isinstance(node, ast.Compare) else (set(), [])
        for column in named & categorical:
            labels = _labels(collection, obs, column)
            if missing := [label for label in asked if label not in labels]:
                near = "".join(difflib.get_close_matches(str(missing[0]), labels, n=1, cutoff=0))
                lacks = f"the Census has no {column} {missing[0]!r}; the nearest label is {near!r}"
                raise InputError(f"census.{key} {clause!r}: {lacks}.")


def sample(cells: pd.DataFrame, asked: Sample, seed: int) -> np.ndarray:
    """A seeded draw of blocks of neighbouring ids, with caps; see `study.Sample`: positions in `cells`, ascending.

    Blocks come in a random order, until a donor, then a label of `by`, has enough cells. Donors count within a data
    set: their names are unique only there.
    """
    block = cells["soma_joinid"].to_numpy() // asked.block
    block = np.cumsum(np.diff(block, prepend=block[:1]) != 0, dtype=np.int32)
    order = np.random.default_rng([seed, 3]).permutation(block[-1] + 1)
    order = np.argsort(order[block], kind="stable")
    if asked.per_donor:
        order = order[_turn(cells, order, ["dataset_id", "donor_id"]) < asked.per_donor]
    return np.sort(order[_turn(cells, order, [asked.by]) < asked.each])


def _turn(cells, order, columns):
    """How many cells with the same labels stand before each one of `order`, (n,) int64."""
    return cells[columns].iloc[order].groupby(columns, observed=True, dropna=False).cumcount().to_numpy()


def assign(cells: pd.DataFrame, split: Split) -> np.ndarray:
    """Put every cell of the Census into a split.

    Cells that share a label of `split.by` or `split.related`, or a donor, directly or through others, stay together;
    with `random` each is drawn by itself. Data sets that are set aside go first, with all that is related to them;
    single cells of training donors last. Returns for each cell an index into SPLITS.
    """
    if split.by == "random":
        assigned, order = np.zeros(len(cells), int), np.random.default_rng(split.seed).permutation(len(cells))
        validation, test = round(split.validation * len(cells)), round(split.test * len(cells))
        assigned[order[:validation]], assigned[order[validation : validation + test]] = 1, 2
        return assigned
    labels = [cells[name] for name in columns(split)]
    group = related(*labels)
    sizes = np.bincount(group)
    assigned = np.zeros(len(sizes), int)  # of each group
    if split.dataset:
        of_data_sets = related(cells["dataset_id"], *labels)
        if not of_data_sets.any():
            raise InputError("split.dataset needs two data sets without a common donor; drop it, or add data sets.")
        aside = hold_out(np.bincount(of_data_sets), (split.dataset,), split.seed)[of_data_sets] == 1
        assigned[group[aside]] = SPLITS.index("test_dataset")
    left = np.flatnonzero(assigned == 0)
    if len(left) < 3:
        donors = cells["donor_id"][assigned[group] == 0].nunique()
        there = f"these cells form {len(left)}, of {donors} donor(s)"
        finer = "" if split.by == "donor_id" else " to donor_id, or"
        advice = f"add donors, or set split.by{finer} to random if that leak is wanted"
        raise InputError(f"a split by {split.by} needs 3 groups of cells without a common donor; {there}: {advice}.")
    assigned[left] = hold_out(sizes[left], (split.validation, split.test), split.seed, len(cells))
    assigned = assigned[group]
    if split.random:
        number = SPLITS.index("test_random")
        order = np.random.default_rng([split.seed, number]).permutation(np.flatnonzero(assigned == 0))
        assigned[order[: round(split.random * len(assigned))]] = number
    return assigned


def columns(split: Split) -> list[str]:
    """obs columns of which no label may stand in two splits; none for a random split."""
    return [] if split.by == "random" else list(dict.fromkeys(filter(None, (split.by, "donor_id", split.related))))


def related(*labels: Iterable) -> np.ndarray:
    """Number of each cell's group, (cells,) int: connected components of cells with an equal label in any column."""
    nodes, size = [], 0
    for column in labels:
        nodes.append(size + pd.factorize(column, use_na_sentinel=False)[0])  # what has no label counts as one group
        size = nodes[-1].max() + 1
    pairs = pd.DataFrame(dict(enumerate(nodes))).drop_duplicates()  # one edge for each combination of labels
    ends = np.repeat(pairs[0].to_numpy(), len(nodes)), pairs.to_numpy().ravel()
    graph = sparse.coo_matrix((np.ones(len(ends[0]), bool), ends), shape=(size, size))
    return connected_components(graph, directed=False)[1][nodes[0]]


def hold_out(sizes: np.ndarray, shares: tuple[float, ...], seed: int, cells: int | None = None) -> np.ndarray:
    """Choose the groups that are held out, so that their cells come near the asked shares of `cells` (of all of them).

    Groups are taken in a seeded random order, each if it brings its split nearer to its share, at least one a split.
    The largest always trains. The first order that misses no share by more than TOLERANCE of it is used, or else the
    one of ORDERS that misses least. Returns for each group 0 where it trains, else 1 for the first share and so on.
    """
    rng, goals = np.random.default_rng(seed), np.multiply(shares, cells or sizes.sum())
    movable = np.delete(np.arange(len(sizes)), sizes.argmax())
    least = np.inf
    for _ in range(ORDERS):
        order, taken = rng.permutation(movable), []
        for later, goal in zip(reversed(range(len(goals))), goals, strict=True):  # each later split needs a group too
            taken.append(_fill(order[: len(order) - later], sizes, goal))
            order = order[~np.isin(order, taken[-1])]
        miss = np.abs(np.array([sizes[groups].sum() for groups in taken]) / goals - 1).max()
        if miss < least:
            least, assigned = miss, np.zeros(len(sizes), int)
            for number, groups in enumerate(taken, 1):
                assigned[groups] = number
        if least <= TOLERANCE:
            break
    return assigned


def _fill(order, sizes, goal):
    """Those groups of `order` that each bring their sum nearer to `goal`; the first one if none does."""
    taken, held = [], 0
    for group in order:
        if abs(held + sizes[group] - goal) < abs(held - goal):
            taken.append(group)
            held += sizes[group]
    return taken or [order[0]]


def draw(assigned: np.ndarray, asked: Regime, split: Split, seed: int, donor: pd.Series) -> np.ndarray:
    """Draw one regime's cells from all splits, in the shares asked for, or with split.cells of each held-out split.

    `assigned` is that of `assign`, `donor` each cell's label, and the result positions of cells in them, ascending.
    Each split, and the donors that train, have one seeded order, so that a small regime is part of a larger one.
    """
    chosen = []
    held = {name: split.cells or round(share * asked.cells) for name, share in split.shares.items()}
    train = asked.cells if split.cells else asked.cells - sum(held.values())
    for name, wanted in {"train": train, **held}.items():
        order = _order(assigned, SPLITS.index(name), asked.donors, seed, donor)
        if not 1 <= wanted <= len(order):
            asking = f"{wanted:,} cells are asked for {name}, which has {len(order):,}"
            raise InputError(f"{asking}; change the regime's cells or donors, or the shares or the seed of the split.")
        chosen.append(order[:wanted])
    return np.sort(np.concatenate(chosen))


def _order(assigned, number, donors, seed, donor):
    """Cells of a split, (n,) int, in its order; those that train of the first `donors` donors in their own order."""
    order = np.random.default_rng([seed, number]).permutation(np.flatnonzero(assigned == number))
    if number or not donors:
        return order
    codes = donor.astype("category").cat.codes.to_numpy()[order]
    labels = np.flatnonzero(np.bincount(codes + 1)) - 1  # without a label: -1
    if donors > len(labels):
        raise InputError(f"{donors:,} donors are asked for, and {len(labels):,} train; ask for at most those.")
    first = np.random.default_rng([seed, len(SPLITS)]).permutation(labels)[:donors]  # a stream no split has
    return order[np.isin(codes, first)]


def outlook(study: Study, pool: Pool) -> tuple[dict[str, Any], pd.DataFrame, int]:
    """What a study would train on and hold out of checked files.

    How `cells` were chosen; a row for each regime; and the fewest donors of a split that trains no cell of theirs.

    InputError: what building its panels would be refused for, as far as it can be known without the counts.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "census"
        no_counts = ((obs, sparse.csr_matrix((len(obs), len(pool.var)))) for obs in pool.obs)
        census.write(path, pool.var, no_counts, {})
        with open_soma(uri=str(path)) as collection:
            table, found = cells(collection, study)
    rows, fewest, presence = [], np.inf, pool.presence
    for name, regime in study.regimes.items():
        assigned = assign(table, study.split_of(name))
        chosen = draw(assigned, regime, study.split, study.census.seed, table["donor_id"])
        datasets = (table if study.genes_from else table.iloc[chosen])["dataset_id"].unique()
        measured = np.all([presence[dataset] for dataset in datasets], axis=0).sum()
        if regime.genes > measured:
            most = f"ask for at most the {measured:,} that all data sets have measured"
            raise InputError(f"{name} asks for {regime.genes:,} genes; {most}.")
        drawn = table["donor_id"].iloc[chosen].groupby(assigned[chosen]).agg(["size", "nunique"])
        drawn.index = [SPLITS[number] for number in drawn.index]
        fewest = min(fewest, *drawn["nunique"].drop(["train", "test_random"], errors="ignore"))
        counted = {split: f"{cells:,} ({donors:,} donors)" for split, cells, donors in drawn.itertuples()}
        rows.append({"regime": name, "genes": regime.genes} | counted)
    return found, pd.DataFrame(rows), int(fewest)


def held_out(assigned: np.ndarray, split: Split) -> str:
    """Share of the Census' cells that each held-out split got, in words: groups stay whole, and may miss the asked."""
    got = {name: np.mean(assigned == SPLITS.index(name)) for name in split.shares}
    return ", ".join(f"{name} {got[name]:.1%} of the cells ({asked:.1%} asked)" for name, asked in split.shares.items())


def report(obs: pd.DataFrame, split: Split) -> dict[str, Any]:
    """What is in each split, for the provenance: counted from the panel's table of cells.

    `obs` has soma_joinid, donor_id, split and the columns that `split` names, whose labels should be in one split. For
    donors and labels, test_random counts as training, of whose donors it is made.
    """
    parts = {name: obs[obs["split"] == name] for name in ("train", *split.shares)}
    donors = {name: np.unique(rows["donor_id"].astype(str)).astype(object) for name, rows in parts.items()}
    together = columns(split) or ["soma_joinid"]
    people = obs.assign(split=obs["split"].astype(str).replace("test_random", "train"))
    in_two = {name: _in_two(people, name) for name in together}
    if split.dataset:
        in_two["dataset_id"] = _in_two(people.assign(split=people["split"] == "test_dataset"), "dataset_id")
    return {
        **split.model_dump(exclude_none=True),
        "cells": {name: len(rows) for name, rows in parts.items()},
        "groups": {name: int(related(*(rows[key] for key in together)).max()) + 1 for name, rows in parts.items()},
        "donors": donors,
        "donors_in_two_splits": _in_two(people, "donor_id"),
        "cells_in_two_splits": _in_two(obs, "soma_joinid"),
        "labels_in_two_splits": sum(in_two.values()),
    }


def _in_two(obs, name):
    """How many labels of a column are in two splits."""
    return int((obs.groupby(name, observed=True, dropna=False)["split"].nunique() > 1).sum())
