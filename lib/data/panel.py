"""From a Census to a panel: cells drawn and split, genes chosen, counts normalised, masks fixed."""

import shutil

import numpy as np
import pandas as pd

from lib import io
from lib.data import census, draw, soma, split
from lib.data.compact import Arrays
from lib.io import InputError

TARGET = 1e4
"""Counts that every cell is scaled to before the logarithm."""
COUNTS = "layers/counts"
ROWS = 20_000
"""Cells whose values are held in memory at a time."""
ALIGNMENT = 64
"""Bytes; a cache line."""


def build(study, regime, progress=None):
    """Write data/<study>/<regime>/panel.h5ad; one made from the same settings and code is kept as it is.

    The split is decided on the whole Census before any regime draws its cells, so all regimes of a study hold out the
    same donors. Each regime then draws from all sides in the shares asked for; see `split`. Memory is bounded by
    a block of cells, not by the panel, and a build that the network broke goes on from the blocks it had finished.

    Parameters
    ----------
    progress : callable, optional
        Called with (cells read, cells to read) after every block.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        Too few cells, donors or genes for what is asked, no room on the disk; CensusUnavailable where there is no
        Census.
    """
    from filelock import FileLock

    path = study.folder(regime) / "panel.h5ad"
    blocks = path.with_name(".blocks")
    settings = [census.made_from(study), study.panel_settings(regime)]
    settings = census.fingerprint(settings, io.PANEL_NUMERICS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(".panel.lock")):
        if _settings(path) != settings:
            io.sweep(path)
            _need_room(path.parent, study.regimes[regime], study.split)
            folder = blocks / settings[:16]
            with census.open_census(study) as collection, io.atomic(path) as partial:
                adata = plan(collection, study, regime, folder, progress)
                adata.uns["provenance"]["settings"] = settings
                write(partial, adata, collection, study, folder, progress)
            io.remove(blocks)
    return path


def _need_room(folder, asked, held):
    """Refuse a panel that the disk has no room for: eight bytes a value, and half as much for all the rest."""
    cells = asked.cells + len(held.shares) * (held.cells or 0)
    need, free = 12 * cells * asked.genes, shutil.disk_usage(folder).free
    if need > free:
        raise InputError(
            f"a panel of {cells:,} cells x {asked.genes:,} genes needs {need / 2**30:,.1f} GiB, and its disk has "
            f"{free / 2**30:,.1f} GiB free; make room, or ask for fewer cells or genes."
        )


def _settings(path):
    """Fingerprint that a panel carries; None where there is no whole panel."""
    import h5py

    try:
        with h5py.File(path) as h5:
            return h5["uns/provenance/settings"].asstr()[()]
    except (OSError, KeyError):
        return None


def read(path):
    """The panel as AnnData, its matrices mapped from the file: memory holds the rows that are looked at, no more.

    A change of a value stays in this process; the file is never written to.
    """
    import anndata
    import h5py

    with h5py.File(path) as h5:
        parts = {name: anndata.io.read_elem(h5[name]) for name in ("obs", "var", "uns")}
        x, counts = _mapped(h5["X"]), _mapped(h5[COUNTS])
    return anndata.AnnData(x, layers={"counts": counts}, **parts)


def _mapped(dataset):
    """A contiguous HDF5 dataset as an array; one that another program chunked or compressed is loaded."""
    if (start := dataset.id.get_offset()) is None:
        return dataset[()]
    return np.memmap(dataset.file.filename, dataset.dtype, "c", start, dataset.shape)  # "c": torch wants it writable


def arrays(adata):
    """The arrays of a panel; see `Arrays`."""
    return Arrays(
        x=adata.X,
        counts=adata.layers["counts"],
        library=adata.obs["total_counts"].to_numpy(np.float64),
        train=np.flatnonzero(adata.obs["split"] == "train"),
        held={name: np.flatnonzero(adata.obs["split"] == name) for name in _sides(adata)[1:]},
        masks=dict(adata.uns["masks"]),
    )


def load(path):
    """The arrays of a panel straight from its file; the labels of its cells, which training needs not, are not read.

    They are what would not fit first: a hundred bytes of a cell's name and labels against none of its mapped values.
    """
    import h5py

    with h5py.File(path) as h5:
        names, codes = h5["obs/split/categories"].asstr()[()], h5["obs/split/codes"][()]
        rows = {name: np.flatnonzero(codes == code) for code, name in enumerate(names)}
        return Arrays(
            x=_mapped(h5["X"]),
            counts=_mapped(h5[COUNTS]),
            library=h5["obs/total_counts"][()].astype(np.float64),
            train=rows["train"],
            held={name: rows[name] for name in split.SPLITS[1:] if name in rows},
            masks={name: masks[()] for name, masks in h5["uns/masks"].items()},
        )


def _sides(adata):
    """Names of the panel's sides, in order."""
    used = set(adata.obs["split"].unique())
    return [name for name in split.SPLITS if name in used]


def origin(adata):
    """Where a panel comes from, in words and numbers, for a table."""
    made = adata.uns["provenance"]
    source, held = made["census"], made["split"]
    kind = "simulated" if source["simulated"] else "measured"
    sides = [f"{held['cells'][name]:,} {name} ({held['groups'][name]} groups)" for name in _sides(adata)]
    asked = f" ({made['asked']['donors']:,} asked)" if "donors" in made["asked"] else ""
    alike = {}
    if "random" in held:
        said = f"{held['test_random_donors_that_train']:,} of its {len(held['donors']['test_random']):,} donors"
        alike = {"leak that test_random shows": f"{said} train here"}
    return {
        "census": f"{source['uri']} ({kind}), {source['cells']:,} cells x {source['genes']:,} genes",
        "cells that pass the filter": f"{made['cells_available']:,} ({made['filter']})",
        "cells of this panel": ", ".join(sides),
        "held out by": " and ".join(str(held[key]) for key in ("by", "related") if key in held),
        "held out of the census": str(held["held_out"]),
        "donors that train": f"{len(held['donors']['train']):,}{asked}",
        "donors, cells in two splits": f"{held['donors_in_two_splits']}, {held['cells_in_two_splits']}",
        **alike,
        "genes": f"{adata.n_vars:,}, {made['gene_selection']} on {made['statistics_from']} cells",
        "genes chosen on the cells of": made["genes_from"],
        "library size": str(made["library_size"]),
        "median library size": f"{adata.obs['total_counts'].median():,.0f} counts",
        "zeros": f"{gene_statistics(adata)['zeros'].mean():.1%} of the panel",
    }


def gene_statistics(adata):
    """Mean and variance of every gene's counts, and its share of cells without any: a DataFrame, one row per gene."""
    counts, n = adata.layers["counts"], adata.n_obs
    total, squares, zeros = np.zeros((3, adata.n_vars))
    for start in range(0, n, ROWS):
        block = counts[start : start + ROWS].astype(np.float64)  # sums of integers below 2^53 are exact
        total, squares, zeros = total + block.sum(0), squares + (block**2).sum(0), zeros + (block == 0).sum(0)
    mean = total / n
    return pd.DataFrame(
        {"mean": mean, "variance": (squares - total * mean) / n, "zeros": zeros / n}, index=adata.var_names
    )


def plan(collection, study, regime, folder=None, progress=None):
    """Draw, split and select from an open Census: all of one regime's panel but its values; see `draw.select`.

    Returns
    -------
    AnnData
        obs, var, uns["masks"], uns["provenance"].
    """
    import anndata

    asked, source = study.regime(regime), study.genes_from or regime
    cells, found = draw.cells(collection, study)
    side, group = split.assign(cells, study.split)
    chosen = split.draw(side, asked, study.split, study.census.seed, cells["donor_id"])
    obs = cells.iloc[chosen].set_index(cells["soma_joinid"].iloc[chosen].astype(str).rename(None))
    obs["split"] = pd.Categorical.from_codes(side[chosen], split.SPLITS).remove_unused_categories()
    fitted = chosen
    if source != regime:
        fitted = split.draw(side, study.regime(source), study.split, study.census.seed, cells["donor_id"])
    if study.training(source).statistics_from == "train":
        fitted = fitted[side[fitted] == 0]
    measured_in = cells["dataset_id"] if study.genes_from else obs["dataset_id"]  # the same for every regime
    measured = census.fetch(collection, lambda: soma.measured(collection, measured_in.unique()))
    told = _told(progress, 0, len(fitted) + len(obs))
    var = draw.select(collection, cells["soma_joinid"].to_numpy()[fitted], asked.genes, measured, folder, told)
    adata = anndata.AnnData(obs=obs, var=var)
    adata.uns["masks"] = {
        name: draw_masks((obs["split"] == name).sum(), asked.genes, study.masking, split.SPLITS.index(name))
        for name in _sides(adata)[1:]
    }
    adata.uns["provenance"] = {
        **_origin(study, regime, len(fitted)),
        "census": census.describe(collection),
        **found,
        "split": {"held_out": split.held_out(side, group, study.split)},
    }
    return adata


def _origin(study, regime, fitted):
    """What the study file and this code say of a panel, for its provenance."""
    source = study.genes_from or regime
    return {
        "study": study.name,
        "regime": regime,
        "asked": study.regime(regime).model_dump(include={"genes", "cells", "donors"}, exclude_none=True),
        "sample_seed": study.census.seed,
        "masking": study.masking.model_dump(),
        "gene_selection": "seurat_v3",
        "genes_from": source,
        "statistics_from": study.training(source).statistics_from,
        "statistics_cells": fitted,
        "library_size": study.training(regime).library_size,
        "versions": io.versions(),
        "code_version": io.code_version(),
    }


def write(path, adata, collection, study, folder, progress):
    """Write a planned panel and its values; a disk that fails on the way is one sentence."""
    try:
        adata.write_h5ad(path)
        _fill(path, collection, study, adata.uns["provenance"], folder, progress)
    except (OSError, RuntimeError) as error:  # a full disk is either, by the place where HDF5 meets it
        raise InputError(
            f"the panel of {study.name} could not be finished ({census.short(error)}), and nothing of it was kept; "
            "see that its disk has room and can be written to, and run again."
        ) from error


def _fill(path, collection, study, made, folder, progress):
    """Read the counts into the file, block by block, and write the values and the split as counted in the file.

    Both matrices are contiguous and not compressed, so that `read` can map them; aligned, so that torch can use them.
    """
    import anndata
    import h5py

    with h5py.File(path, "r+", alignment_threshold=1, alignment_interval=ALIGNMENT) as h5:
        obs, var = (anndata.io.read_elem(h5[name]) for name in ("obs", "var"))
        report = split.report(obs, study.split)
        if report["labels_in_two_splits"] or report["cells_in_two_splits"]:
            raise AssertionError(f"the split leaks: {report}")
        for key, value in report.items():
            anndata.io.write_elem(h5["uns/provenance/split"], key, value)
        x, counts = (_matrix(h5, name, (len(obs), len(var)), kind) for name, kind in (("X", "f4"), (COUNTS, "i4")))
        told = _told(progress, made["statistics_cells"], made["statistics_cells"] + len(obs))
        draw.read(collection, obs["soma_joinid"].to_numpy(), var["soma_joinid"].to_numpy(), counts, folder, told)
        for start in range(0, len(obs), ROWS):
            block, library = counts[start : start + ROWS], obs["total_counts"].to_numpy()[start : start + ROWS]
            x[start : start + ROWS] = normalise(block, block.sum(1) if made["library_size"] == "panel" else library)


def _told(progress, before, total):
    """What one of the two readings, of the genes' statistics and of the panel, says of both."""
    return progress and (lambda done, _: progress(before + done, total))


def _matrix(h5, name, shape, kind):
    """An empty dense matrix as AnnData stores it, whose room in the file is not filled with zeros first."""
    dataset = h5.create_dataset(name, shape, kind, fill_time="never")
    dataset.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return dataset


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
