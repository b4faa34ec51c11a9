"""Which rows of different files are the same gene: by Ensembl id where a file gives one, by symbol where none does."""

import numpy as np
import pandas as pd

from lib.io import InputError

ENSEMBL = r"(?:\w+?_+)?(ENS[A-Z]*G\d+)(?:\.\d+)?(_PAR_Y)?"
"""An Ensembl gene id: perhaps after a genome, as in GRCh38_ENSG..., and with a version, as in ENSG... .12."""
IDS = ("feature_id", "gene_ids", "gene_id", "ensembl_id", "ensembl_gene_id")
SYMBOLS = ("feature_name", "gene_symbols", "gene_symbol", "gene_name", "gene_names", "symbol")
"""Columns of var that are read, the first that is there. The index is read before either."""


def table(names, columns, name):
    """The genes of one file, as a DataFrame: `name` (its own), `id` and `symbol`, missing where not known.

    Parameters
    ----------
    names : Index, (genes,)
    columns : dict of str to callable
        Gives the values of a column of the gene table.
    name : str
        The file, for messages.

    Raises
    ------
    InputError
        A gene without a name, or genes of several species.
    """
    own = pd.Series(names, dtype=object)
    ids, symbols = ensembl(own), own.mask(own.str.fullmatch(ENSEMBL) | own.str.fullmatch(r"\d*"))
    for key in [key for key in IDS if key in columns][:1]:
        ids = _first(ids, ensembl(pd.Series(columns[key]()).astype(str)))
    for key in [key for key in SYMBOLS if key in columns][:1]:
        given = pd.Series(columns[key]()).astype(object)
        symbols = _first(symbols, given.mask(given.isna() | given.isin(["", "unknown"])).map(str, na_action="ignore"))
    nameless = np.flatnonzero(ids.isna() & symbols.isna())
    if len(nameless):
        raise InputError(
            f"{name}: gene {nameless[0]} (of {len(nameless)} like it) is called {own[nameless[0]]!r}, which names no "
            "gene; use symbols or Ensembl ids as var names."
        )
    species = sorted(set(ids.dropna().str.extract(r"^(ENS[A-Z]*)G\d", expand=False)))
    if len(species) > 1:
        raise InputError(
            f"{name} has genes of {len(species)} species ({', '.join(f'{word}G' for word in species)}...); "
            "keep the cells and genes of one."
        )
    return pd.DataFrame({"name": own, "id": ids, "symbol": symbols}, dtype=object)


def ensembl(names):
    """Ensembl ids without genome and version, NaN for what is none. The copy of a gene on Y keeps its _PAR_Y."""
    found = names.astype(object).str.extract(f"^{ENSEMBL}$").astype(object)
    return found[0] + found[1].where(found[1].notna(), "")


def _first(known, otherwise):
    return known.astype(object).where(known.notna(), otherwise)


def keys(tables):
    """What each gene of each file is called in the pool: one object array for each table.

    That is its Ensembl id. A gene known by its symbol alone gets the id that other files give this symbol, if it is a
    single one. An id which one file gives to several symbols tells them not apart, and does not count there.

    Parameters
    ----------
    tables : list of DataFrame
        As `table` gives them.
    """
    tables = [each.assign(id=each["id"].mask(each.groupby("id")["symbol"].transform("nunique") > 1)) for each in tables]
    both = pd.concat(tables)[["id", "symbol"]].dropna().drop_duplicates()
    known = both.drop_duplicates("symbol", keep=False).set_index("symbol")["id"]
    found = []
    for each in tables:
        borrowed = each["symbol"].map(known).where(each["id"].isna())
        key = _first(_first(each["id"], borrowed), each["symbol"])
        # Two symbols of this file that would become one id are two genes here, and keep their names.
        key = key.mask(borrowed.notna() & key.duplicated(keep=False), each["symbol"])
        found.append(key.to_numpy(object))
    return found
