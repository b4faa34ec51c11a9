"""From an open Census: the cells that a study may use, the most variable genes, and counts of both."""

import numpy as np
import pandas as pd

from lib import census, split
from lib.errors import InputError

COLUMNS = ["soma_joinid", "dataset_id", "donor_id", "tissue", "cell_type", "raw_sum"]
"""obs columns read from the Census; raw_sum becomes total_counts."""
ROWS = 20_000
"""Cells whose counts are held in memory at a time."""
SPAN = 0.3
"""Share of the genes in one local fit of seurat_v3's variance trend, as in scanpy."""


def cells(collection, study):
    """Labels of the cells that pass the filter and have counts, by soma_joinid; and the number that have none."""
    import cellxgene_census

    known = collection["census_data"][census.ORGANISM].obs.keys()
    names = list(dict.fromkeys([*COLUMNS, *split.columns(study.split)]))
    absent = [name for name in names if name not in known]
    if absent:
        raise InputError(f"the Census has no obs column {absent[0]!r}; it has {', '.join(known)}.")
    passing = study.census.filter
    try:
        obs = cellxgene_census.get_obs(collection, census.ORGANISM, value_filter=passing, column_names=names)
    except Exception as error:
        reason = census.short(error)
        raise InputError(f"census.filter {passing!r} gives no answer ({reason}); correct it, or try again.") from None
    if obs.empty:
        raise InputError(f"no cell of the Census passes census.filter {passing!r}; check the spelling of its labels.")
    obs = obs[names].rename(columns={"raw_sum": "total_counts"}).sort_values("soma_joinid", ignore_index=True)
    counted = obs["total_counts"] > 0
    obs = obs[counted].reset_index(drop=True)
    labels = obs.select_dtypes("category")
    return obs.assign(**{name: labels[name].cat.remove_unused_categories() for name in labels}), int((~counted).sum())


def select(collection, cells, genes):
    """The `genes` most variable genes of the given cells (soma_joinids), in the order of soma_joinid."""
    import tiledbsoma as soma

    human = collection["census_data"][census.ORGANISM]
    columns = ["soma_joinid", "feature_id", "feature_name"]
    var = human.ms["RNA"].var.read(column_names=columns).concat().to_pandas().sort_values("soma_joinid")
    with human.axis_query("RNA", obs_query=soma.AxisQuery(coords=(cells,))) as query:

        def counts():
            for table in query.X("raw").tables():
                yield table["soma_dim_1"].to_numpy(), table["soma_data"].to_numpy()

        statistics = variability(counts, len(cells), var["soma_joinid"].iloc[-1] + 1)
    var = var.join(statistics, on="soma_joinid")
    varying = int((var["variances"] > 0).sum())
    if varying < genes:
        raise InputError(
            f"{genes:,} genes are asked for, and {varying:,} of the Census' {len(var):,} vary in the training cells; "
            "ask for fewer."
        )
    var = var.sort_values("variances_norm", ascending=False, kind="stable").head(genes).sort_values("soma_joinid")
    return var.set_index(var["feature_id"].astype(str).rename(None))


def variability(counts, cells, genes):
    """Mean, variance and normalised variance of every gene: the seurat_v3 criterion, from a stream of counts.

    The variance expected at a gene's mean is a local quadratic fit of log10 variance on log10 mean; counts are clipped
    at sqrt(cells) expected standard deviations, and the variance of what remains is divided by the expected one (Stuart
    et al. 2019, Cell 177:1888). It selects what scanpy and cellxgene_census select; it is written here because
    importing either takes longer than the work, and because sums of integers do not depend on the stream's order.

    Parameters
    ----------
    counts : callable
        Gives an iterator over (gene, count) arrays of the non-zero counts; called twice.
    cells, genes : int

    Returns
    -------
    DataFrame, (genes,)
        means, variances, variances_norm.
    """
    total, squares = _sums(counts, genes, np.full(genes, np.inf))
    mean, variance = total / cells, (squares - total * (total / cells)) / (cells - 1)
    variance[cells * squares == total**2] = 0  # a constant gene, exactly
    varies = variance > 0
    expected = np.ones(genes)
    expected[varies] = np.sqrt(10 ** _trend(np.log10(mean[varies]), np.log10(variance[varies])))
    total, squares = _sums(counts, genes, mean + expected * np.sqrt(cells))
    clipped = (cells * mean**2 + squares - 2 * mean * total) / ((cells - 1) * expected**2)
    return pd.DataFrame({"means": mean, "variances": variance, "variances_norm": np.where(varies, clipped, 0)})


def _sums(counts, genes, ceiling):
    """Sum and sum of squares of each gene's counts, clipped at `ceiling`; both (genes,)."""
    total, squares = np.zeros(genes), np.zeros(genes)
    for gene, count in counts():
        count = np.minimum(count, ceiling[gene])
        total += np.bincount(gene, count, genes)
        squares += np.bincount(gene, count**2, genes)
    return total, squares


def _trend(mean, variance):
    """Local quadratic fit of log variance on log mean. Many equal means make it singular: then they are moved apart."""
    from skmisc.loess import loess

    jitter = np.random.default_rng(0).uniform(-1, 1, len(mean))
    for size in (0, *np.logspace(-18, -6, 13)):
        try:
            model = loess(mean + size * jitter, variance, span=SPAN, degree=2)
            model.fit()
            return model.outputs.fitted_values
        except ValueError:
            continue
    raise InputError(f"{len(mean)} varying genes are too few or too alike to choose among; give more cells or genes.")


def read(collection, cells, genes, out, folder=None, progress=None):
    """Counts of the given cells and genes (ascending soma_joinids) into `out`, (cells, genes) int32, block by block."""
    import tiledbsoma as soma

    human = collection["census_data"][census.ORGANISM]
    var_query = soma.AxisQuery(coords=(genes,))
    for start in range(0, len(cells), ROWS):
        rows = cells[start : start + ROWS]
        counts = np.zeros((len(rows), len(genes)), np.int32)
        with human.axis_query("RNA", obs_query=soma.AxisQuery(coords=(rows,)), var_query=var_query) as query:
            for table in query.X("raw").tables():
                row = np.searchsorted(rows, table["soma_dim_0"].to_numpy())
                counts[row, np.searchsorted(genes, table["soma_dim_1"].to_numpy())] = table["soma_data"].to_numpy()
        out[start : start + len(rows)] = counts
        if progress:
            progress(start + len(rows), len(cells))
