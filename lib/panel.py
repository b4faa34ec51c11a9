"""From a Census to a panel: cells drawn and split, genes chosen, counts normalised, masks fixed."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib import census, files, split
from lib.errors import InputError

COLUMNS = ["soma_joinid", "dataset_id", "donor_id", "tissue", "cell_type", "raw_sum"]
"""obs columns read from the Census; raw_sum becomes total_counts."""
TARGET = 1e4
"""Counts that every cell is scaled to before the logarithm."""
SPAN = 0.3
"""Share of the genes in one local fit of seurat_v3's variance trend, as in scanpy."""


@dataclass(frozen=True)
class Arrays:
    """A panel as NumPy arrays, all that training needs.

    Attributes
    ----------
    x : (cells, genes) float32
        log1p(1e4 * counts / library).
    counts : (cells, genes) int32
    library : (cells,) float64
        Counts of the whole transcriptome.
    train, validation, test : int64
        Indices into cells.
    masks : dict of (cells of the split, per_cell, k) int32
        For `validation` and `test`, row i for the i-th cell of that split: the masked genes, sorted.
    """

    x: np.ndarray
    counts: np.ndarray
    library: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    masks: dict


def build(study, regime):
    """Write data/<study>/<regime>/panel.h5ad; one made from the same settings and code is kept as it is.

    The split is decided on the whole Census before any regime draws its cells, so all regimes of a study hold out the
    same donors. Each regime then draws from the three sides in the shares asked for; see `split`.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        Too few cells, donors or genes for what is asked; CensusUnavailable where there is no Census.
    """
    from filelock import FileLock

    path = study.folder(regime) / "panel.h5ad"
    decisive = {"census": {"filter", "seed"}, "split": True, "masking": True, "regimes": {regime}}
    decisive["train"] = {"library_size", "statistics_from"}
    settings = [census.made_from(study), study.model_dump(include=decisive)]
    settings = census.fingerprint(settings, "panel.py", "split.py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(".panel.lock")):
        if _settings(path) != settings:
            with census.open_census(study) as collection:
                adata = assemble(collection, study, regime)
            adata.uns["provenance"]["settings"] = settings
            with files.atomic(path) as partial:
                adata.write_h5ad(partial)
    return path


def _settings(path):
    """Fingerprint that a panel carries; None where there is no whole panel."""
    import h5py

    try:
        with h5py.File(path) as h5:
            return h5["uns/provenance/settings"].asstr()[()]
    except (OSError, KeyError):
        return None


def read(path):
    """The panel as AnnData."""
    import anndata

    return anndata.read_h5ad(path)


def arrays(adata):
    """The arrays of a panel; see `Arrays`."""
    return Arrays(
        x=adata.X,
        counts=adata.layers["counts"],
        library=adata.obs["total_counts"].to_numpy(np.float64),
        **{name: np.flatnonzero(adata.obs["split"] == name) for name in split.SPLITS},
        masks=dict(adata.uns["masks"]),
    )


def origin(adata):
    """Where a panel comes from, in words and numbers, for a table."""
    made = adata.uns["provenance"]
    source, held = made["census"], made["split"]
    kind = "simulated" if source["simulated"] else "measured"
    sides = [f"{held['cells'][name]:,} {name} ({held['groups'][name]} groups)" for name in split.SPLITS]
    return {
        "census": f"{source['uri']} ({kind}), {source['cells']:,} cells x {source['genes']:,} genes",
        "cells that pass the filter": f"{made['cells_available']:,} ({made['filter']})",
        "cells of this panel": ", ".join(sides),
        "held out by": str(held["by"]),
        "donors, cells in two splits": f"{held['donors_in_two_splits']}, {held['cells_in_two_splits']}",
        "genes": f"{adata.n_vars:,}, {made['gene_selection']} on {made['statistics_from']} cells",
        "library size": str(made["library_size"]),
        "median library size": f"{adata.obs['total_counts'].median():,.0f} counts",
        "zeros": f"{np.mean(adata.layers['counts'] == 0):.1%} of the panel",
    }


def gene_statistics(adata):
    """Mean and variance of every gene's counts, and its share of cells without any: a DataFrame, one row per gene."""
    counts = adata.layers["counts"]
    return pd.DataFrame(
        {"mean": counts.mean(0), "variance": counts.var(0), "zeros": np.mean(counts == 0, axis=0)},
        index=adata.var_names,
    )


def assemble(collection, study, regime):
    """Draw, split, select, read and normalise one regime's panel from an open Census.

    Returns
    -------
    AnnData
        X, layers["counts"], obs, var, uns["masks"], uns["provenance"].
    """
    import anndata

    asked = study.regimes[regime]
    cells, empty = _cells(collection, study)
    side, group = split.assign(cells, study.split)
    chosen = split.draw(side, asked.cells, study.split, study.census.seed)
    obs = cells.iloc[chosen].set_index(cells["soma_joinid"].iloc[chosen].astype(str).rename(None))
    obs["split"] = pd.Categorical.from_codes(side[chosen], split.SPLITS)
    ids = obs["soma_joinid"].to_numpy()
    fitted = ids[side[chosen] == 0] if study.train.statistics_from == "train" else ids
    var = _select(collection, fitted, asked.genes)
    counts = _read(collection, ids, var["soma_joinid"].to_numpy())
    library = obs["total_counts"].to_numpy() if study.train.library_size == "transcriptome" else counts.sum(axis=1)
    adata = anndata.AnnData(normalise(counts, library), obs, var, layers={"counts": counts})
    adata.uns["masks"] = {
        name: draw_masks((side[chosen] == number).sum(), asked.genes, study.masking, number)
        for number, name in enumerate(split.SPLITS)
        if name != "train"
    }
    adata.uns["provenance"] = {
        "study": study.name,
        "regime": regime,
        "census": census.describe(collection),
        "filter": study.census.filter,
        "cells_available": len(cells),
        "cells_without_counts": empty,
        "sample_seed": study.census.seed,
        "split": split.report(obs, group[chosen], study.split),
        "masking": study.masking.model_dump(),
        "gene_selection": "seurat_v3",
        "statistics_from": study.train.statistics_from,
        "library_size": study.train.library_size,
        "versions": files.versions(),
        "code_version": files.code_version(),
    }
    return adata


def _cells(collection, study):
    """Labels of the cells that pass the filter and have counts, by soma_joinid; and the number that have none."""
    import cellxgene_census

    known = collection["census_data"][census.ORGANISM].obs.keys()
    names = list(dict.fromkeys([*COLUMNS, *({study.split.by} - {"random"})]))
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


def _select(collection, cells, genes):
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


def _read(collection, cells, genes):
    """Counts of the given cells and genes (ascending soma_joinids), (cells, genes) int32."""
    import tiledbsoma as soma

    counts = np.zeros((len(cells), len(genes)), np.int32)
    queries = soma.AxisQuery(coords=(cells,)), soma.AxisQuery(coords=(genes,))
    human = collection["census_data"][census.ORGANISM]
    with human.axis_query("RNA", obs_query=queries[0], var_query=queries[1]) as query:
        for table in query.X("raw").tables():
            row = np.searchsorted(cells, table["soma_dim_0"].to_numpy())
            counts[row, np.searchsorted(genes, table["soma_dim_1"].to_numpy())] = table["soma_data"].to_numpy()
    return counts


def normalise(counts, library):
    """log1p(1e4 * counts / library), (cells, genes) float32; a cell whose library is 0 stays 0."""
    x = counts.astype(np.float32)
    x *= (TARGET / np.maximum(library, 1)).astype(np.float32)[:, None]
    return np.log1p(x, out=x)


def draw_masks(cells, genes, masking, stream):
    """Fixed masks: for each cell `masking.per_cell` sets of round(share * genes) genes.

    Returns
    -------
    (cells, per_cell, k) int32
        Sorted along the last axis. Depends on `masking.seed` and `stream` alone, not on the cells.
    """
    rng, k = np.random.default_rng([masking.seed, stream]), max(1, round(masking.share * genes))
    masks = np.empty((cells, masking.per_cell, k), np.int32)
    for start in range(0, cells, 1000):  # the same draws as at once, in bounded memory
        part = masks[start : start + 1000]
        part[:] = np.sort(np.argpartition(rng.random((*part.shape[:2], genes)), k - 1)[..., :k])
    return masks
