"""Which cells train and which are held out: whole groups of related cells, decided once for all regimes of a study."""

import numpy as np
import pandas as pd

from lib.errors import InputError

SPLITS = ("train", "validation", "test")
"""The sides of a split; everywhere below a side is an index into this."""
ORDERS, TOLERANCE = 1000, 0.2
"""Seeded orders of the groups that are tried, and the relative miss of a held-out share at which the search stops."""


def assign(cells, split):
    """Put every cell of the Census on one side.

    Cells that share a label of `split.by` or `split.related`, or a donor, directly or through others, stay together.
    With `random` each cell is drawn by itself, and donors are in several splits.

    Parameters
    ----------
    cells : DataFrame
        donor_id and the columns that `split` names.
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
    group = related(*(cells[name] for name in columns(split)))
    sizes = np.bincount(group)
    if len(sizes) < len(SPLITS):
        donors = cells["donor_id"].nunique()
        raise InputError(
            f"a split by {split.by} needs 3 groups of cells without a common donor; these cells form {len(sizes)}, of "
            f"{donors} donor(s): add donors, set split.by to donor_id, or to random if that leak is wanted."
        )
    return hold_out(sizes, (split.validation, split.test), split.seed)[group], group


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


def hold_out(sizes, shares, seed):
    """Choose the groups that are held out, so that their cells come near the asked shares.

    Groups are taken in a seeded random order, each if it brings its side nearer to its share, at least one a side. The
    largest group always trains. The first order that misses no share by more than TOLERANCE of it is used, or
    else the one of ORDERS that misses least.

    Parameters
    ----------
    sizes : (groups,) int
        Cells of each of three or more groups.
    shares : (validation, test)

    Returns
    -------
    (groups,) int
        The side of each group.
    """
    rng, goals = np.random.default_rng(seed), np.multiply(shares, sizes.sum())
    movable = np.delete(np.arange(len(sizes)), sizes.argmax())
    least = np.inf
    for _ in range(ORDERS):
        order = rng.permutation(movable)
        validation = _fill(order[:-1], sizes, goals[0])
        test = _fill(order[~np.isin(order, validation)], sizes, goals[1])
        miss = np.abs(np.array([sizes[validation].sum(), sizes[test].sum()]) / goals - 1).max()
        if miss < least:
            least, side = miss, np.zeros(len(sizes), int)
            side[validation], side[test] = 1, 2
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


def draw(side, cells, split, seed):
    """Draw one regime's cells from the three sides, in the shares asked for, or with split.cells on each held-out side.

    Each side has one seeded order, whatever is asked for, so that the cells of a small regime are among those of a
    larger one.

    Parameters
    ----------
    side : (cells of the Census,) int
    cells : int
        How many the regime asks for: in all, or for training where split.cells fixes the held-out cells.

    Returns
    -------
    (cells,) int
        Positions in `side`, ascending.

    Raises
    ------
    InputError
        Too few cells on a side, or none asked for.
    """
    if cells > len(side):
        raise InputError(
            f"{cells:,} cells are asked for, and census.filter and census.sample leave {len(side):,}; ask for fewer."
        )
    held = [split.cells] * 2 if split.cells else [round(split.validation * cells), round(split.test * cells)]
    chosen = []
    for number, (name, wanted) in enumerate(
        zip(SPLITS, [cells if split.cells else cells - sum(held), *held], strict=True)
    ):
        pool = np.flatnonzero(side == number)
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
        chosen.append(np.random.default_rng([seed, number]).permutation(pool)[:wanted])
    return np.sort(np.concatenate(chosen))


def held_out(side, group, split):
    """Share of the Census' cells that each held-out side got, in words, and why where it misses what was asked."""
    sizes, said, missed = np.bincount(group), [], False
    for number, name in enumerate(SPLITS[1:], 1):
        asked, got = getattr(split, name), np.mean(side == number)
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
        the split keeps together are found on two sides.
    """
    sides = {name: obs[obs["split"] == name] for name in SPLITS}
    kept = columns(split) or ["soma_joinid"]
    pairs = {name: obs[[name, "split"]].drop_duplicates() for name in ("donor_id", "soma_joinid", *kept)}
    in_two = {name: int((pairs[name][name].value_counts(dropna=False) > 1).sum()) for name in pairs}
    return {
        **split.model_dump(exclude_none=True),
        "cells": {name: len(rows) for name, rows in sides.items()},
        "groups": {name: len(np.unique(related(*(rows[column] for column in kept)))) for name, rows in sides.items()},
        "donors": {name: np.unique(rows["donor_id"].astype(str)).astype(object) for name, rows in sides.items()},
        "donors_in_two_splits": in_two["donor_id"],
        "cells_in_two_splits": in_two["soma_joinid"],
        "labels_in_two_splits": sum(in_two[name] for name in kept),
    }
