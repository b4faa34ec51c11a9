"""From a Census to a panel: cells drawn and split, genes chosen, counts normalised, masks fixed."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
from filelock import FileLock

from lib import io
from lib.io import TARGET, InputError, short

if TYPE_CHECKING:
    from lib.study import Masking, Study

COUNTS = "layers/counts"
IN_MEMORY = 2**28
"""Counts, 2 GiB, up to which scanpy chooses the genes in memory; the Census client streams through more, twice."""
QUANTILES = (np.arange(25) + 0.5) / 25  # at which a panel's marginal distributions are described
THINNING = 5  # the stream of random numbers, beside those of the split, that thins counts
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Arrays:
    """A panel as NumPy arrays, all that training needs; x and counts are mapped from panel.h5ad."""

    x: np.ndarray  # (cells, genes) float32: log1p(1e4 * counts / library)
    counts: np.ndarray  # (cells, genes) int32
    library: np.ndarray  # (cells,) float64: counts of the whole transcriptome
    donor: np.ndarray  # (cells,) int: a number for each donor
    train: np.ndarray  # int64: indices into cells
    held: dict[str, np.ndarray]  # those of every held-out split, in the order of `split.SPLITS`
    masks: dict[str, np.ndarray]  # of every held-out split, (its cells, per_cell, k) int32: the masked genes, sorted

    @cached_property
    def digest(self) -> str:
        """Of all that decides a run's numbers. Counts stand for x, whose last bits differ from machine to machine."""
        found = hashlib.sha256(repr(io.PANEL_NUMERICS).encode())
        donors = [np.unique(self.donor[rows], return_inverse=True)[1] for rows in self.held.values()]
        for array in (self.counts, self.library, self.train, *self.held.values(), *donors, *self.masks.values()):
            found.update(np.ascontiguousarray(array))
        return found.hexdigest()


def read(path: Path):
    """The panel as AnnData, its matrices mapped from the file: memory holds the rows that are looked at, no more.

    A change of a value stays in this process; the file is never written to.
    """
    import anndata

    with h5py.File(path) as h5:
        parts = {name: anndata.io.read_elem(h5[name]) for name in ("obs", "var", "uns")}
        x, counts = _mapped(h5["X"]), _mapped(h5[COUNTS])
    return anndata.AnnData(x, layers={"counts": counts}, **parts)


def _mapped(dataset):
    """A contiguous HDF5 dataset as an array; one that another program chunked or compressed is loaded."""
    if (start := dataset.id.get_offset()) is None:
        return dataset[()]
    return np.memmap(dataset.file.filename, dataset.dtype, "c", start, dataset.shape)  # "c": torch wants it writable


def arrays(adata) -> Arrays:
    """The arrays of a panel that has been read."""
    rows = {name: np.flatnonzero(adata.obs["split"] == name) for name in adata.obs["split"].cat.categories}
    library = adata.obs["total_counts"].to_numpy(np.float64)
    donor = adata.obs["donor_id"].astype("category").cat.codes.to_numpy()
    return _arrays(adata.X, adata.layers["counts"], library, donor, rows, dict(adata.uns["masks"]))


def _arrays(x, counts, library, donor, rows, masks):
    held = {name: found for name, found in rows.items() if name != "train"}  # in the order of split.SPLITS
    return Arrays(x, counts, library, donor, rows["train"], held, {name: masks[name] for name in held})


def load(folder: Path) -> Arrays:
    """The arrays of the panel in a regime's folder, by NumPy and h5py alone."""
    path = folder / "panel.h5ad"
    if not path.is_file():
        raise InputError(f"there is no panel in {io.shown(folder)}/; run notebook 01_data first.")
    with h5py.File(path) as h5:
        names, codes = h5["obs/split/categories"].asstr()[()], h5["obs/split/codes"][()]
        rows = {name: np.flatnonzero(codes == code) for code, name in enumerate(names)}
        library = h5["obs/total_counts"][()].astype(np.float64)
        masks = {name: masks[()] for name, masks in h5["uns/masks"].items()}
        return _arrays(_mapped(h5["X"]), _mapped(h5[COUNTS]), library, h5["obs/donor_id/codes"][()], rows, masks)


def load_current(study: "Study", regime: str) -> Arrays:
    """The arrays of a regime's panel, as `load`; a panel.h5ad that an edited study file has left behind is refused."""
    path = study.folder(regime) / "panel.h5ad"
    if path.is_file() and made_by(path) != _fingerprint(study, regime):
        raise InputError(f"{io.shown(path)} was made from another study file or other counts; run 01_data again first.")
    return load(path.parent)


def build(study: "Study", regime: str, progress: Progress | None = None) -> Path:
    """Write data/<study>/<regime>/panel.h5ad; one made from the same settings is kept as it is.

    The split is decided on the whole Census before any regime draws its cells, so all regimes of a study hold out the
    same donors. `progress` is called with (cells read, cells to read).
    InputError: too few cells, donors or genes for what is asked, or no room on the disk.
    """
    from lib.data import census

    path, settings = study.folder(regime) / "panel.h5ad", _fingerprint(study, regime)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(".panel.lock")):
        if made_by(path) != settings:
            io.sweep(path)
            blocks = path.with_name(".blocks") / settings[:16]
            with census.open_census(study) as collection, io.atomic(path) as partial:
                adata = plan(collection, study, regime, blocks, progress)
                adata.uns["provenance"]["settings"] = settings
                try:
                    adata.write_h5ad(partial)
                    _fill(partial, adata, collection, study, blocks, progress)
                except (OSError, RuntimeError) as error:  # a full disk is either, by the place where HDF5 meets it
                    advice = "see that its disk has room and can be written to, and run again"
                    raise InputError(f"{io.shown(path)} could not be finished ({short(error)}); {advice}.") from error
            io.remove(blocks.parent)
    return path


def _fingerprint(study, regime):
    """What a panel is found by: the Census, the study's settings for it and PANEL_NUMERICS."""
    from lib.data import user_files

    return io.fingerprint([user_files.made_from(study), study.panel_settings(regime)], io.PANEL_NUMERICS)


def settings_of(study: "Study", regime: str) -> str:
    """Digest of what a study file says of a regime's panel, but for where the files lie, which may have moved since."""
    labels = {"__all__": {"path"}} if study.census.files else True
    census = study.census.model_dump(mode="json", exclude={"h5ad": True, "files": labels})
    numerics = [io.SIMULATE_NUMERICS, io.FILES_NUMERICS, io.PANEL_NUMERICS]
    return io.fingerprint([census, study.panel_settings(regime)], numerics)


def made_by(path: Path) -> str | None:
    """Fingerprint of the settings and counts that a panel was made from; None where there is no whole panel."""
    try:
        with h5py.File(path) as h5:
            return h5["uns/provenance/settings"].asstr()[()]
    except (OSError, KeyError):
        return None


def plan(collection, study: "Study", regime: str, blocks: Path | None = None, progress: Progress | None = None):
    """Draw, split and select from an open Census: one regime's panel, as AnnData, but without its values."""
    import anndata
    import pandas as pd

    from lib.data import census, split

    asked, source = study.regime(regime), study.genes_from or regime
    cells, found = split.cells(collection, study)
    held_out = study.split_of(regime)
    assigned = split.assign(cells, held_out)
    chosen, fitted = (
        split.draw(assigned, study.regime(name), held_out, study.census.seed, cells["donor_id"])
        for name in (regime, source)
    )
    obs = cells.iloc[chosen].set_index(cells["soma_joinid"].iloc[chosen].astype(str).rename(None))
    obs["split"] = pd.Categorical.from_codes(assigned[chosen], split.SPLITS).remove_unused_categories()
    if study.training(source).statistics_from == "train":
        fitted = fitted[assigned[fitted] == 0]
    datasets = (cells if study.genes_from else obs)["dataset_id"].unique()  # the same for every regime
    measured = census.fetch(collection, lambda: census.measured(collection, datasets))
    shown = _part(progress, 0, len(fitted) + len(obs))
    var = select(collection, cells["soma_joinid"].to_numpy()[fitted], asked.genes, measured, blocks, shown)
    adata = anndata.AnnData(obs=obs, var=var)
    adata.uns["masks"] = {
        name: draw_masks((obs["split"] == name).sum(), asked.genes, study.masking, split.SPLITS.index(name))
        for name in obs["split"].cat.categories[1:]
    }
    report = split.report(obs, held_out)
    if report["labels_in_two_splits"] or report["cells_in_two_splits"]:
        raise AssertionError(f"the split leaks: {report}")
    adata.uns["provenance"] = {
        **_provenance(study, regime, len(fitted)),
        "census": census.describe(collection),
        **found,
        "split": report | {"held_out": split.held_out(assigned, held_out)},
    }
    return adata


def _provenance(study, regime, fitted):
    """What the study file and this code say of a panel."""
    source = study.genes_from or regime
    return {
        "study": study.name,
        "regime": regime,
        "asked": study.regime(regime).model_dump(exclude={"train"}, exclude_none=True),
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


def _fill(path, adata, collection, study, blocks, progress):
    """Write counts and values into the file of a planned panel, block by block, and count the cells that are copies."""
    import anndata

    from lib.data import census, user_files

    obs, var, made = adata.obs, adata.var, adata.uns["provenance"]
    asked = study.regime(made["regime"])
    # Contiguous and not compressed, so that `read` can map them; aligned to bytes of a cache line, as torch needs it.
    with h5py.File(path, "r+", alignment_threshold=1, alignment_interval=64) as h5:
        for name, kind in (("X", "f4"), (COUNTS, "i4")):
            matrix = h5.create_dataset(name, adata.shape, kind, fill_time="never")
            matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        shown = _part(progress, made["statistics_cells"], made["statistics_cells"] + len(obs))
        genes, library = var["soma_joinid"].to_numpy(), obs["total_counts"].to_numpy(copy=True)
        marks = np.zeros(len(obs), np.uint64)
        for rows, sparse in census.blocks(collection, obs["soma_joinid"].to_numpy(), genes, blocks, shown):
            block = sparse[:, genes].toarray().astype(np.int32)
            if asked.thin:
                seed = [study.census.seed, THINNING, rows.start]
                block, library[rows] = thinned(block, library[rows], asked.thin, seed, made["census"]["simulated"])
            h5[COUNTS][rows] = block
            h5["X"][rows] = normalise(block, block.sum(1) if made["library_size"] == "panel" else library[rows])
            seen = (block > 0).sum(1) >= user_files.SAME_BARCODE
            marks[rows] = user_files.cell_marks(sparse[:, genes], var["feature_id"].to_numpy(object)) * seen
        equal = obs.assign(mark=marks)[marks > 0].groupby(["mark", "total_counts"])["dataset_id"].transform("nunique")
        anndata.io.write_elem(h5["uns/provenance"], "cells_of_two_datasets", int((equal > 1).sum()))
        h5["obs/total_counts"][:] = library


def thinned(counts: np.ndarray, library: np.ndarray, chance: float, seed, simulated: bool) -> tuple:
    """Counts, (cells, genes) int, of which each molecule is kept with a `chance`, and their library sizes, (cells,).

    A simulated library size is a known rate and is scaled: a thinned negative binomial of mean m is one of mean
    `chance` m and the same dispersion, so that the floor of the thinned cells is exact too.
    """
    rng = np.random.default_rng(seed)
    thin = rng.binomial(counts, chance).astype(counts.dtype)
    if simulated:
        return thin, chance * library
    others = np.maximum(library - counts.sum(1), 0).astype(np.int64)
    return thin, np.maximum(thin.sum(1) + rng.binomial(others, chance), 1)


def _part(progress, before, total):
    """Progress of one of the two readings, of the genes' statistics and of the panel, as a part of both."""
    return progress and (lambda done, _: progress(before + done, total))


def normalise(counts: np.ndarray, library: np.ndarray) -> np.ndarray:
    """log1p(1e4 * counts / library), (cells, genes) float32; a cell whose library is 0 stays 0.

    scanpy's normalize_total divides by the sum over the given genes; `library` may be that of the whole transcriptome.
    """
    x = counts.astype(np.float32)
    x *= (TARGET / np.maximum(library, 1)).astype(np.float32)[:, None]
    return np.log1p(x, out=x)


def draw_masks(cells: int, genes: int, masking: "Masking", stream: int) -> np.ndarray:
    """Fixed masks, (cells, per_cell, k) int32: for each cell `per_cell` sorted sets of round(share * genes) genes.

    They depend on `masking.seed` and `stream` alone, not on the cells.
    """
    rng, k = np.random.default_rng([masking.seed, stream]), masking.genes(genes)
    masks = np.empty((cells, masking.per_cell, k), np.int32)
    for start in range(0, cells, 1000):  # the same draws as at once, in bounded memory
        part = masks[start : start + 1000]
        part[:] = np.sort(np.argpartition(rng.random((*part.shape[:2], genes)), k - 1)[..., :k])
    return masks


def select(collection, cells, genes, measured, blocks=None, progress=None):
    """The `genes` most variable genes (seurat_v3) of the cells with these soma_joinids, ascending, in that order too.

    `measured`, (genes of the Census,) bool, says which may be chosen: those that all data sets of the panel measured.
    The table has soma_joinid, feature_id (its index, too), feature_name, means, variances and variances_norm.
    """
    from scipy import sparse

    from lib.data import census

    human, columns = census.human(collection), ["soma_joinid", "feature_id", "feature_name"]
    table = census.fetch(collection, lambda: human.ms["RNA"].var.read(column_names=columns).concat())
    var = table.to_pandas().sort_values("soma_joinid").set_index("soma_joinid", drop=False).rename_axis(None)
    counts = census.fetch(collection, lambda: human.obs.read((cells,), column_names=["nnz"]).concat())
    if counts["nnz"].to_numpy().sum() > IN_MEMORY:
        from cellxgene_census.experimental.pp import get_highly_variable_genes

        def ask():
            return get_highly_variable_genes(collection, census.ORGANISM, obs_coords=cells, n_top_genes=1)

        statistics = census.fetch(collection, ask, patience=threading.TIMEOUT_MAX)
    else:
        parts = [block for _, block in census.blocks(collection, cells, None, blocks, progress)]
        statistics = variability(sparse.vstack(parts, format="csr")).loc[var.index]
    var = var[measured[var["soma_joinid"]]]
    if var.empty:
        raise InputError("no gene is measured in all data sets of the panel; leave some out by census.filter.")
    var = var.join(statistics[["means", "variances", "variances_norm"]])
    varying = int((var["variances"] > 0).sum())
    if varying < genes:
        there = f"{varying:,} of the Census' {len(var):,} vary in the training cells"
        raise InputError(f"{genes:,} genes are asked for, and {there}; ask for fewer.")
    var = var.sort_values("variances_norm", ascending=False, kind="stable").head(genes).sort_values("soma_joinid")
    return var.set_index(var["feature_id"].astype(str).rename(None))


def variability(counts):
    """Mean, variance and normalised variance of every gene by scanpy's seurat_v3, for (cells, genes) csr counts.

    Its fit of variance on mean is singular where many genes have the same mean, as among a few hundred real cells.
    Genes are then scaled apart by a hair, seeded, which leaves the normalised variance as it is.
    """
    import anndata
    import scanpy

    apart = np.random.default_rng(0).uniform(-1, 1, counts.shape[1])
    for size in (0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4):
        scaled = counts if size == 0 else counts.multiply(1 + size * apart).tocsr()
        adata = anndata.AnnData(scaled)
        try:
            scanpy.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=1, check_values=False)
        except ValueError:
            continue
        return adata.var.reset_index(drop=True)
    raise InputError("the varying genes are too few or too alike to choose among; give more cells or genes.")


def origin(adata) -> dict[str, str]:
    """Where a panel comes from, in words and numbers, for a table."""
    made = adata.uns["provenance"]
    source, held = made["census"], made["split"]
    kind = "simulated" if source["simulated"] else "measured"
    names = adata.obs["split"].cat.categories
    parts = [f"{held['cells'][name]:,} {name} ({held['groups'][name]} groups)" for name in names]
    asked = f" ({made['asked']['donors']:,} asked)" if "donors" in made["asked"] else ""
    thin = f", thinned to {made['asked']['thin']:.3g} of the counts" if "thin" in made["asked"] else ""
    return {
        "census": f"{source['uri']} ({kind}), {source['cells']:,} cells x {source['genes']:,} genes",
        "cells that pass the filter": f"{made['cells_available']:,} ({made['filter']})",
        "cells of this panel": ", ".join(parts),
        "held out by": " and ".join(str(held[key]) for key in ("by", "related") if key in held),
        "held out of the census": str(held["held_out"]),
        "donors that train": f"{len(held['donors']['train']):,}{asked}",
        "donors in two splits, but for test_random": f"{held['donors_in_two_splits']}",
        "cells in two splits": f"{held['cells_in_two_splits']}",
        "cells whose counts another data set has": f"{made.get('cells_of_two_datasets', 'not counted')}",
        "genes": f"{adata.n_vars:,}, {made['gene_selection']}",
        "genes chosen on": f"{made['statistics_from']} cells of {made['genes_from']}",
        "library size": str(made["library_size"]),
        "median library size": f"{adata.obs['total_counts'].median():,.0f} counts{thin}",
    }


def marginals(counts: np.ndarray, library: np.ndarray, x: np.ndarray):
    """What counts, (cells, genes) int, and the values x of a model look like: a DataFrame, a row a quantile.

    `library` is over cells; `zeros` (share of cells without a count) and `mean` (counts per cell) over genes,
    `correlation` (Pearson, of x) over pairs of genes; `variance` is the median over genes of about that mean.
    """
    import pandas as pd

    mean, variance, zeros = counts.mean(0), counts.var(0), (counts == 0).mean(0)
    varying = x[:, x.std(0) > 0]
    correlation = np.corrcoef(varying, rowvar=False)[np.triu_indices(varying.shape[1], 1)]
    centre, reach = QUANTILES * (len(mean) - 1), len(mean) / len(QUANTILES) / 2
    ranked = variance[np.argsort(mean, kind="stable")]
    near = [ranked[round(max(0, c - reach)) : round(c + reach) + 1] for c in centre]
    over = {"library": library, "zeros": zeros, "mean": mean, "correlation": correlation}
    table = pd.DataFrame({"quantile": QUANTILES} | {name: np.quantile(each, QUANTILES) for name, each in over.items()})
    table.insert(4, "variance", [np.median(values) for values in near])
    return table.assign(sparsity=zeros.mean(), cells=len(counts), genes=len(mean))
