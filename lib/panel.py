"""From a Census to a panel: cells drawn and split, genes chosen, counts normalised, masks fixed."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib import census, draw, files, split

TARGET = 1e4
"""Counts that every cell is scaled to before the logarithm."""


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


def build(study, regime, progress=None):
    """Write data/<study>/<regime>/panel.h5ad; one made from the same settings and code is kept as it is.

    The split is decided on the whole Census before any regime draws its cells, so all regimes of a study hold out the
    same donors. Each regime then draws from the three sides in the shares asked for; see `split`. A build that the
    network broke goes on from the blocks it had finished; `progress` is called with (cells read, cells to read).

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
    blocks = path.with_name(".blocks")
    decisive = {"census": {"filter", "tissues", "sample", "seed"}, "split": True, "masking": True, "regimes": {regime}}
    decisive["train"] = {"library_size", "statistics_from"}
    settings = [census.made_from(study), study.model_dump(include=decisive)]
    settings = census.fingerprint(settings, "panel.py", "draw.py", "filters.py", "split.py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(".panel.lock")):
        if _settings(path) != settings:
            with census.open_census(study) as collection:
                adata = assemble(collection, study, regime, blocks / settings[:16], progress)
            adata.uns["provenance"]["settings"] = settings
            with files.atomic(path) as partial:
                adata.write_h5ad(partial)
            files.remove(blocks)
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


def assemble(collection, study, regime, folder=None, progress=None):
    """Draw, split, select, read and normalise one regime's panel from an open Census; see `draw.read`.

    Returns
    -------
    AnnData
        X, layers["counts"], obs, var, uns["masks"], uns["provenance"].
    """
    import anndata

    asked = study.regimes[regime]
    cells, found = draw.cells(collection, study)
    side, group = split.assign(cells, study.split)
    chosen = split.draw(side, asked.cells, study.split, study.census.seed)
    obs = cells.iloc[chosen].set_index(cells["soma_joinid"].iloc[chosen].astype(str).rename(None))
    obs["split"] = pd.Categorical.from_codes(side[chosen], split.SPLITS)
    ids = obs["soma_joinid"].to_numpy()
    fitted = ids[side[chosen] == 0] if study.train.statistics_from == "train" else ids
    counts = np.zeros((len(ids), asked.genes), np.int32)

    def told(before):
        return progress and (lambda done, _: progress(before + done, len(fitted) + len(ids)))

    var = draw.select(collection, fitted, asked.genes, folder, told(0))
    draw.read(collection, ids, var["soma_joinid"].to_numpy(), counts, folder, told(len(fitted)))
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
        **found,
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
