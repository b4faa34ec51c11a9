"""Marginal statistics of a panel, beside those that benchmarks/realism.py measured of real cells and the simulator."""

import numpy as np
import pandas as pd

from lib import io

TABLE = io.CODE / "data" / "realism.csv"
CELLS = 4000
"""Cells at most that enter the statistics of one panel."""
QUANTILES = (np.arange(25) + 0.5) / 25


def of_panel(adata, name):
    """Marginal statistics of a panel of `lib.data.panel`; see `marginals`. Of a large one, evenly spaced cells."""
    rows = np.unique(np.linspace(0, adata.n_obs - 1, min(adata.n_obs, CELLS)).astype(int))
    library = adata.obs["total_counts"].to_numpy()[rows]
    return marginals(adata.layers["counts"][rows], library, adata.X[rows]).assign(source=name)


def marginals(counts, library, x):
    """What a panel's counts, (cells, genes) int, and the values x that a model sees look like: a row for each quantile.

    `library` is that quantile over cells; `zeros` (share of cells without a count) and `mean` (counts per cell) are
    over genes, `correlation` (Pearson, of x) over pairs of genes; `variance` is the median over the genes around that
    quantile of the mean. `sparsity`, `cells` and `genes` are the panel's.
    """
    mean, variance, zeros = counts.mean(0), counts.var(0), (counts == 0).mean(0)
    varying = x[:, x.std(0) > 0]
    correlation = np.corrcoef(varying, rowvar=False)[np.triu_indices(varying.shape[1], 1)]
    centre, reach = QUANTILES * (len(mean) - 1), len(mean) / len(QUANTILES) / 2
    ranked = variance[np.argsort(mean, kind="stable")]
    near = [ranked[round(max(0, c - reach)) : round(c + reach) + 1] for c in centre]
    return pd.DataFrame(
        {
            "quantile": QUANTILES,
            "library": np.quantile(library, QUANTILES),
            "zeros": np.quantile(zeros, QUANTILES),
            "mean": np.quantile(mean, QUANTILES),
            "variance": [np.median(values) for values in near],
            "correlation": np.quantile(correlation, QUANTILES),
            "sparsity": zeros.mean(),
            "cells": len(counts),
            "genes": len(mean),
        }
    )


def compared():
    """The statistics that are carried with the code: `marginals` with source, reference and simulated (bool)."""
    return pd.read_csv(TABLE, keep_default_na=False)


def summary(table):
    """One row per source, for reading: medians, and the correlations that 6 % of the pairs are below and above."""
    by_source = table.assign(spread=table["variance"] / table["mean"]).groupby("source", sort=False)
    middle = by_source[["library", "mean", "spread"]].median().add_prefix("median_")
    ends = {f"correlation_{100 * QUANTILES[row]:.0f}%": by_source["correlation"].nth(row).to_numpy() for row in (1, -2)}
    return by_source[["cells", "genes", "sparsity"]].first().join(middle).assign(**ends)
