"""Which cells train and which are held out: whole groups of related cells, decided once for all regimes of a study."""

import numpy as np
import pandas as pd

from lib.errors import InputError

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
        Fewer than three groups.
    """
    if split.by == "random":
        side, order = np.zeros(len(cells), int), np.random.default_rng(split.seed).permutation(len(cells))
        validation, test = round(split.validation * len(cells)), round(split.test * len(cells))
        side[order[:validation]], side[order[validation : validation + test]] = 1, 2
        return side, np.arange(len(cells))
    side, group = np.zeros(len(cells), int), related(*(cells[name] for name in columns(split)))
    if split.dataset:
        side[_data_sets(cells, split)] = SPLITS.index("test_dataset")
    rest = np.flatnonzero(side == 0)
    group_of_rest = np.unique(group[rest], return_inverse=True)[1]
    sizes = np.bincount(group_of_rest)
    if len(sizes) < 3:
        donors = cells["donor_id"].iloc[rest].nunique()
        raise InputError(
            f"a split by {split.by} needs 3 groups of cells without a common donor; these cells form {len(sizes)}, of "
            f"{donors} donor(s): add donors, set split.by to donor_id, or to random if that leak is wanted."
        )
    side[rest] = hold_out(sizes, (split.validation, split.test), split.seed, len(cells))[group_of_rest]
    if split.random:
        number, train = SPLITS.index("test_random"), np.flatnonzero(side == 0)
        order = np.random.default_rng([split.seed, number]).permutation(train)
        side[order[: round(split.random * len(cells))]] = number
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
    ends = np.tile(nodes[0], len(nodes)), np.concatenate(nodes)
    edges = coo_matrix((np.ones(len(ends[0]), bool), ends), shape=(size, size))
    return connected_components(edges, directed=False)[1][nodes[0]]


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
    larger one; so have the donors, of which the first ones train where a regime asks for a number of them.

    Parameters
    ----------
    side : (cells of the Census,) int
    asked : params.Regime
        How many cells: in all, or for training where split.cells fixes the held-out cells.
    donor : (cells of the Census,)
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
    cells = asked.cells
    if cells > len(side):
        raise InputError(
            f"{cells:,} cells are asked for, and census.filter and census.sample leave {len(side):,}; ask for fewer."
        )
    wanted_of = {name: split.cells or round(share * cells) for name, share in split.shares.items()}
    wanted_of = {"train": cells if split.cells else cells - sum(wanted_of.values())} | wanted_of
    chosen = []
    for name, wanted in wanted_of.items():
        number = SPLITS.index(name)
        pool = np.flatnonzero(side == number)
        order = np.random.default_rng([seed, number]).permutation(pool)
        if name == "train" and asked.donors:
            order = order[_of_donors(donor[order], asked.donors, wanted, seed)]
        if wanted < 1:
            raise InputError(
                f"the {name} split of {cells:,} cells would be empty; ask for more cells or a larger share."
            )
        if wanted > len(pool) and split.cells:
            raise InputError(
                f"{wanted:,} cells are asked for {name}, whose groups have {len(pool):,}; "
                "ask for fewer, or change the shares or the seed of the split."
            )
        if wanted > len(pool):
            most = int(len(pool) * cells / wanted)
            raise InputError(
                f"{cells:,} cells need {wanted:,} for {name}, whose groups have {len(pool):,}; "
                f"ask for at most {most:,}, or change the shares or the seed of the split."
            )
        chosen.append(order[:wanted])
    return np.sort(np.concatenate(chosen))


def _of_donors(donor, donors, wanted, seed):
    """The cells, (cells,) bool, of the first `donors` of the training donors in their seeded order."""
    labels = np.unique(donor)
    if donors > len(labels):
        raise InputError(f"{donors:,} donors are asked for, and {len(labels):,} train; ask for fewer.")
    kept = np.isin(donor, np.random.default_rng([seed, len(SPLITS)]).permutation(labels)[:donors])
    if kept.sum() < wanted:
        raise InputError(
            f"{wanted:,} training cells of {donors:,} donors are asked for, and those have {kept.sum():,}; "
            "ask for fewer cells, or for more donors."
        )
    return kept


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
        the split keeps together are found on two sides. The single cells of training donors count as training there.
    """
    sides = {name: obs[obs["split"] == name] for name in ("train", *split.shares)}
    kept = columns(split) or ["soma_joinid"]
    people = obs.assign(split=obs["split"].astype(str).replace("test_random", "train"))
    in_two = {name: _in_two(people, name) for name in ("donor_id", *kept)} | {
        "soma_joinid": _in_two(obs, "soma_joinid")
    }
    if split.dataset:
        apart = people.assign(split=people["split"] == "test_dataset")
        in_two["dataset_id"] = _in_two(apart, "dataset_id")
    return {
        **split.model_dump(exclude_none=True),
        "cells": {name: len(rows) for name, rows in sides.items()},
        "groups": {name: len(np.unique(related(*(rows[column] for column in kept)))) for name, rows in sides.items()},
        "donors": {name: np.unique(rows["donor_id"].astype(str)).astype(object) for name, rows in sides.items()},
        "donors_in_two_splits": in_two["donor_id"],
        "cells_in_two_splits": in_two["soma_joinid"],
        "labels_in_two_splits": sum(in_two[name] for name in {*kept, *(["dataset_id"] if split.dataset else [])}),
    }


def _in_two(obs, name):
    """How many labels of a column are found on two sides."""
    pairs = obs[[name, "split"]].drop_duplicates()
    return int((pairs[name].value_counts(dropna=False) > 1).sum())
