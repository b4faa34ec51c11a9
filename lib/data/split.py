"""Which cells train and which are held out: whole groups of related cells, decided once for all regimes of a study."""

import numpy as np
import pandas as pd

from lib.io import InputError

SPLITS = ("train", "validation", "test", "test_dataset", "test_random")
"""The sides of a split; a study has the first three at least. Everywhere below a side is an index into this."""
ORDERS, TOLERANCE = 1000, 0.2
"""Seeded orders of the groups that are tried, and the relative miss of a held-out share at which the search stops."""


def assign(cells, split):
    """Put every cell of the Census on one side.

    Cells that share a label of `split.by` or `split.related`, or a donor, directly or through others, stay together.
    With `random` each cell is drawn by itself, and donors are in several splits. Data sets that are set aside go first,
    with all that is related to them; single cells of training donors last.

    Parameters
    ----------
    cells : DataFrame
        donor_id, dataset_id and the columns that `split` names.
    split : params.Split

    Returns
    -------
    side, group : (cells,) int

    Raises
    ------
    InputError
        Fewer than three groups, or than two data sets where some are set aside.
    """
    if split.by == "random":
        side, order = np.zeros(len(cells), int), np.random.default_rng(split.seed).permutation(len(cells))
        validation, test = round(split.validation * len(cells)), round(split.test * len(cells))
        side[order[:validation]], side[order[validation : validation + test]] = 1, 2
        return side, np.arange(len(cells))
    group = related(*(cells[name] for name in columns(split)))
    sizes = np.bincount(group)
    side = np.zeros(len(sizes), int)  # of each group
    if split.dataset:
        side[group[_data_sets(cells, split)]] = SPLITS.index("test_dataset")
    left = np.flatnonzero(side == 0)
    if len(left) < 3:
        donors = cells["donor_id"][side[group] == 0].nunique()
        aside = " once split.dataset has set data sets aside" if split.dataset else ""
        raise InputError(
            f"a split by {split.by} needs 3 groups of cells without a common donor; these cells form {len(left)}, of "
            f"{donors} donor(s){aside}: add donors, set split.by to donor_id, or to random if that leak is wanted."
        )
    side[left] = hold_out(sizes[left], (split.validation, split.test), split.seed, len(cells))
    side = side[group]
    if split.random:
        _single_cells(side, split)
    return side, group


def _data_sets(cells, split):
    """The cells, (cells,) bool, of the data sets that are set aside, and of all that is related to them."""
    group = related(cells["dataset_id"], *(cells[name] for name in columns(split)))
    sizes = np.bincount(group)
    if len(sizes) < 2:
        raise InputError(
            "split.dataset sets whole data sets aside, and all cells are of one, or of several that share donors; "
            "drop split.dataset, or add data sets."
        )
    return hold_out(sizes, (split.dataset,), split.seed)[group] == 1


def _single_cells(side, split):
    """Put cells that would train, whoever their donor is, on the side test_random."""
    number = SPLITS.index("test_random")
    order = np.random.default_rng([split.seed, number]).permutation(np.flatnonzero(side == 0))
    side[order[: round(split.random * len(side))]] = number


def columns(split):
    """obs columns of which no label may stand on two sides; none for a random split."""
    return [] if split.by == "random" else list(dict.fromkeys(filter(None, (split.by, "donor_id", split.related))))


def related(*labels):
    """Number the groups of cells, (cells,) int: connected components of the graph that joins the labels of a cell.

    Parameters
    ----------
    labels : (cells,) each
        Columns of labels; cells with an equal label in any of them are of one group.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    nodes, size = [], 0
    for column in labels:
        nodes.append(size + pd.factorize(column, use_na_sentinel=False)[0])  # what has no label counts as one group
        size = nodes[-1].max() + 1
    first = _different(nodes)  # one edge for each combination of labels, not for each cell
    edges = np.tile(nodes[0][first], len(nodes)), np.concatenate([column[first] for column in nodes])
    graph = coo_matrix((np.ones(len(edges[0]), bool), edges), shape=(size, size))
    return connected_components(graph, directed=False)[1][nodes[0]]


def _different(columns):
    """A cell of each combination of numbers that cells have in some columns, (combinations,) int."""
    kind = columns[0]
    for column in columns[1:]:
        kind = pd.factorize(kind * (column.max() + 1) + column)[0]
    return np.flatnonzero(~pd.Series(kind).duplicated().to_numpy())


def hold_out(sizes, shares, seed, cells=None):
    """Choose the groups that are held out, so that their cells come near the asked shares.

    Groups are taken in a seeded random order, each if it brings its side nearer to its share, at least one a side. The
    largest group always trains. The first order that misses no share by more than TOLERANCE of it is used, or
    else the one of ORDERS that misses least.

    Parameters
    ----------
    sizes : (groups,) int
        Cells of each group, of which there are more than shares.
    shares : tuple
        Of each side, such as (validation, test).
    cells : int, optional
        What these are shares of; all cells of these groups when left out.

    Returns
    -------
    (groups,) int
        The side of each group: 0 where it trains, else 1 for the first share and so on.
    """
    rng, goals = np.random.default_rng(seed), np.multiply(shares, cells or sizes.sum())
    movable = np.delete(np.arange(len(sizes)), sizes.argmax())
    least = np.inf
    for _ in range(ORDERS):
        order, taken = rng.permutation(movable), []
        for later, goal in zip(reversed(range(len(goals))), goals, strict=True):  # each later side needs a group too
            taken.append(_fill(order[: len(order) - later], sizes, goal))
            order = order[~np.isin(order, taken[-1])]
        miss = np.abs(np.array([sizes[groups].sum() for groups in taken]) / goals - 1).max()
        if miss < least:
            least, side = miss, np.zeros(len(sizes), int)
            for number, groups in enumerate(taken, 1):
                side[groups] = number
        if least <= TOLERANCE:
            break
    return side


def _fill(order, sizes, goal):
    """Those groups of `order` that each bring their sum nearer to `goal`; the first one if none does."""
    taken, held = [], 0
    for group in order:
        if abs(held + sizes[group] - goal) < abs(held - goal):
            taken.append(group)
            held += sizes[group]
    return taken or [order[0]]


def draw(side, asked, split, seed, donor):
    """Draw one regime's cells from all sides, in the shares asked for, or with split.cells on each held-out side.

    Each side has one seeded order, whatever is asked for, so that the cells of a small regime are among those of a
    larger one. So have the donors that train: a regime that asks for a number of them takes its training cells, in the
    same order as ever, from the first ones.

    Parameters
    ----------
    side : (cells of the Census,) int
    asked : params.Regime
        How many cells: in all, or for training where split.cells fixes the held-out cells.
    donor : Series of (cells of the Census,)
        Label of each cell's donor.

    Returns
    -------
    (cells,) int
        Positions in `side`, ascending.

    Raises
    ------
    InputError
        Too few cells on a side, or none asked for.
    """
    if asked.cells > len(side):
        raise InputError(
            f"{asked.cells:,} cells are asked for, and census.filter and census.sample leave {len(side):,}; "
            "ask for fewer."
        )
    chosen = []
    for name, wanted in _wanted(asked.cells, split).items():
        if wanted < 1:
            raise InputError(
                f"the {name} split of {asked.cells:,} cells would be empty; ask for more cells or a larger share."
            )
        number, limited = SPLITS.index(name), name == "train" and asked.donors
        order = np.random.default_rng([seed, number]).permutation(np.flatnonzero(side == number))
        if limited:
            order = order[_of_donors(donor, order, asked.donors, seed)]
        if wanted > len(order):
            pool = f"{asked.donors:,} donors" if limited else "groups"
            advice = "for more donors" if limited else "change the shares or the seed of the split"
            raise InputError(
                f"{_need(name, wanted, asked, split)}, whose {pool} have {len(order):,}; "
                f"ask for at most {_most(name, len(order), asked.cells, split):,}, or {advice}."
            )
        chosen.append(order[:wanted])
    return np.sort(np.concatenate(chosen))


def _wanted(cells, split):
    """Cells of each side of a regime, {side: cells}."""
    held = {name: split.cells or round(share * cells) for name, share in split.shares.items()}
    return {"train": cells if split.cells else cells - sum(held.values())} | held


def _need(name, wanted, asked, split):
    """What asks for more cells of a side than there are, in words."""
    if split.cells:
        return f"{wanted:,} cells are asked for {name}"
    return f"{asked.cells:,} cells need {wanted:,} for {name}"


def _most(name, available, cells, split):
    """The most cells that may be asked for where a side has only `available`: of that side itself with split.cells."""
    if split.cells:
        return available
    while _wanted(cells, split)[name] > available:  # no step passes the number sought
        cells = min(cells - 1, int((available + len(split.shares)) * cells / _wanted(cells, split)[name]))
    return cells


def _of_donors(donor, order, donors, seed):
    """Which cells of `order`, (n,) bool, are of the first `donors` donors, in the donors' own seeded order."""
    codes = donor.astype("category").cat.codes.to_numpy()[order]
    labels = np.flatnonzero(np.bincount(codes + 1)) - 1  # without a label: -1
    if donors > len(labels):
        raise InputError(
            f"{donors:,} donors are asked for, and {len(labels):,} train; ask for at most {len(labels):,}."
        )
    first = np.random.default_rng([seed, len(SPLITS)]).permutation(labels)[:donors]  # a stream no side has
    return np.isin(codes, first)


def held_out(side, group, split):
    """Share of the Census' cells that each held-out side got, in words, and why where it misses what was asked."""
    sizes, said, missed = np.bincount(group), [], False
    for name, asked in split.shares.items():
        got = np.mean(side == SPLITS.index(name))
        said.append(f"{name} {got:.1%} of the cells ({asked:.1%} asked)")
        missed |= abs(got / asked - 1) > TOLERANCE
    reason = (
        f"; none of {ORDERS:,} choices among the {len(sizes):,} groups, which stay whole and have {sizes.min():,} to "
        f"{sizes.max():,} cells, came nearer"
    )
    return ", ".join(said) + (reason if missed else "")


def report(obs, split):
    """Who is where, for the provenance: counted from the table as it was written, and not from `assign`.

    Parameters
    ----------
    obs : DataFrame
        soma_joinid, donor_id, split and the columns that `split` names.

    Returns
    -------
    dict
        Settings; cells, groups and donors of each side; and how many donors, cells, and labels of the columns that
        the split keeps together are found on two sides. For donors and labels, test_random counts as training, of
        whose donors it is made; how many of its donors train in this regime is said.
    """
    sides = {name: obs[obs["split"] == name] for name in ("train", *split.shares)}
    donors = {name: np.unique(rows["donor_id"].astype(str)).astype(object) for name, rows in sides.items()}
    kept = columns(split) or ["soma_joinid"]
    people = obs.assign(split=obs["split"].astype(str).replace("test_random", "train"))
    in_two = {name: _in_two(people, name) for name in kept}
    if split.dataset:
        in_two["dataset_id"] = _in_two(people.assign(split=people["split"] == "test_dataset"), "dataset_id")
    told = {
        **split.model_dump(exclude_none=True),
        "cells": {name: len(rows) for name, rows in sides.items()},
        "groups": {name: len(np.unique(related(*(rows[column] for column in kept)))) for name, rows in sides.items()},
        "donors": donors,
        "donors_in_two_splits": _in_two(people, "donor_id"),
        "cells_in_two_splits": _in_two(obs, "soma_joinid"),
        "labels_in_two_splits": sum(in_two.values()),
    }
    if split.random:
        told["test_random_donors_that_train"] = len(np.intersect1d(donors["train"], donors["test_random"]))
    return told


def _in_two(obs, name):
    """How many labels of a column are found on two sides."""
    pairs = obs[[name, "split"]].drop_duplicates()
    return int((pairs[name].value_counts(dropna=False) > 1).sum())
