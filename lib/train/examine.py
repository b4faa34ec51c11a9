"""A finished run looked at closely: read back from its weights, by gene, as a predictor of counts, and in bits."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.data import panel, simulate
from lib.train import baselines, entropy, predictive

BINS = 20
"""Of a histogram of probability integral transforms."""
STEP = 64
"""Cells that a model predicts at a time."""


@dataclass(frozen=True)
class Predictions:
    """What one run says of the masked genes of a held-out side; arrays are (cells, masks, k) unless said otherwise."""

    rows: np.ndarray  # (cells,): row numbers of the panel
    masked: np.ndarray  # genes
    expression: np.ndarray  # predicted mean of the log-normalised expression
    mean: np.ndarray | None  # predicted mean of the count, and dispersion; None for a run trained for squared error
    dispersion: np.ndarray | None


def largest(runs, regime):
    """Size and seed of a regime's finished run of most parameters, the first seed of them."""
    done = runs[(runs["regime"] == regime) & (runs["status"] == "ok")].sort_values(["parameters", "seed"])
    best = done[done["parameters"] == done["parameters"].max()].iloc[0]
    return best["size"], int(best["seed"])


def view(study, runs):
    """One run of a study from all sides: the largest of the first regime that predicts counts, or of the first.

    Returns
    -------
    dict
        sentence; and for a study that has trained: run (its name), genes (`by_gene`), bits (`conversions`) and
        calibration.
    """
    if study.runs:
        return {"sentence": "These runs were trained elsewhere; their weights are not here to be looked at."}
    counted = [name for name in study.regimes if study.training(name).objective != "mse"]
    regime = (counted or list(study.regimes))[0]
    if not ((runs["regime"] == regime) & (runs["status"] == "ok")).any():
        return {"sentence": f"No run of {regime} has ended with a loss; there is none to look at."}
    size, seed = largest(runs, regime)
    adata = panel.read(panel.build(study, regime))
    data, source = panel.arrays(adata), study.census.simulate
    truth = simulate.truth(source) if source and study.training(regime).library_size != "panel" else None
    found = predictions(study, regime, size, seed, data)
    genes = by_gene(adata, data, found, truth)
    return {
        "run": f"{size}, seed {seed}, of {regime}", "genes": genes, "bits": conversions(adata, data, found, truth),
        "calibration": calibration(adata, data, found, truth), "sentence": concentration(genes),
    }  # fmt: skip


def predictions(study, regime, size, seed, data, side="validation"):
    """Predict the fixed masked genes of a held-out side with the weights that a finished run left.

    Parameters
    ----------
    data : lib.data.panel.Arrays

    Returns
    -------
    Predictions
    """
    import torch
    from safetensors.torch import load_file

    from lib.model import transformer
    from lib.model.sizes import OUTPUTS

    settings = study.training(regime)
    network = transformer.Transformer(study.size(size), data.x.shape[1], outputs=OUTPUTS[settings.objective]).eval()
    network.load_state_dict(load_file(study.run_folder(regime, size, seed) / "weights.safetensors"))
    rows, masked, raw = data.held[side], data.masks[side], []
    with torch.no_grad():
        for start in range(0, len(rows), STEP):
            x = torch.as_tensor(np.asarray(data.x[rows[start : start + STEP]]))
            positions = torch.as_tensor(masked[start : start + STEP], dtype=torch.long)
            hidden = [torch.zeros(x.shape, dtype=torch.bool).scatter_(1, one, True) for one in positions.unbind(1)]
            found = [network(x, *one) for one in zip(hidden, positions.unbind(1), strict=True)]
            raw.append(torch.stack(found, 1))
    raw, library = torch.cat(raw), data.library[rows][:, None, None]
    if settings.objective == "mse":
        return Predictions(rows, masked, raw.numpy().astype(np.float64), None, None)
    counts = transformer.distribution(raw, torch.as_tensor(library[..., 0], dtype=torch.float32), settings.objective)
    return Predictions(rows, masked, predictive.moments(*counts, library)[0], *counts)


def hidden(data, found):
    """Log-normalised expression and counts at the masked positions of predictions, each (cells, masks, k)."""
    parts = (data.x[found.rows], data.counts[found.rows])
    return tuple(np.take_along_axis(part[:, None, :], found.masked, axis=2) for part in parts)


def by_gene(adata, data, found, truth=None):
    """What each gene adds to the loss that is left, over the masked positions of a held-out side.

    Returns
    -------
    DataFrame, one row per gene of the panel
        feature_name; times (it was masked); mean_count and mean (of the log-normalised expression) of training cells;
        variance, the squared error of the training mean; residual, that of the run; share of all residuals summed; with
        a truth floor, the exact variance, and floor_share; for predicted counts nll, bits, and with a truth floor_bits.
    """
    expression, counts = hidden(data, found)
    mean = np.asarray(data.x[data.train]).mean(axis=0, dtype=np.float64)
    values = {"variance": (expression - mean[found.masked]) ** 2, "residual": (expression - found.expression) ** 2}
    if found.mean is not None:
        values["nll"] = predictive.bits(counts, found.mean, found.dispersion)
    if truth is not None:
        known = data.counts[found.rows], data.library[found.rows], found.masked
        exact = simulate.predictive(truth, baselines.census_columns(adata, truth), *known, panel.TARGET)
        values |= {"floor": exact.variance} | ({"floor_bits": exact.bits} if found.mean is not None else {})
    genes = found.masked.ravel()
    times = np.bincount(genes, minlength=adata.n_vars)
    summed = {name: np.bincount(genes, value.ravel(), adata.n_vars) for name, value in values.items()}
    table = pd.DataFrame({"feature_name": adata.var["feature_name"].astype(str).to_numpy(), "times": times})
    table["mean_count"] = np.asarray(data.counts[data.train]).mean(axis=0, dtype=np.float64)
    table["mean"] = mean
    for name, value in summed.items():
        table[name] = value / np.maximum(times, 1)
    table["share"] = summed["residual"] / summed["residual"].sum()
    if truth is not None:
        table["floor_share"] = summed["floor"] / summed["floor"].sum()
    return table


def concentration(genes):
    """Which genes carry the loss, in one sentence."""
    ordered = genes.sort_values("share", ascending=False)
    half = int((ordered["share"].cumsum() < 0.5).sum()) + 1
    top = ", ".join(ordered["feature_name"].head(3))
    rank = genes[["residual", "mean"]].corr("spearman").iloc[0, 1]
    return (
        f"{half} of {len(genes)} genes carry half of what is left of the squared error (most of all {top}); the "
        f"residual variance of a gene goes with its mean expression (rank correlation {rank:.2f})."
    )


RULES = {
    "one Gaussian, differential": "published: depends on the scale of the input, takes counts for a continuum",
    "the same at 1,000,000 counts a cell": "another scale of the same counts, and other bits",
    "one Gaussian, of counts": "a code for counts, with one spread for all genes and cells",
    "a Gaussian for each gene, of counts": "spreads of genes, but none that changes from cell to cell",
    "a Gaussian for each prediction, of counts": "the right mean and spread of each prediction, the wrong shape",
    "predicted counts": "nothing but what the model has not learned",
    "exact mixture, these counts": "nothing: what these very counts cost who knows the truth",
    "exact entropy": "nothing: what a count costs on average, the floor in bits",
}
"""How squared errors, or distributions, become bits per masked gene, and what each rule leaves out."""


def conversions(adata, data, found, truth=None):
    """The same predictions turned into bits by rules that leave out less and less.

    Returns
    -------
    DataFrame
        predictor (run, or exact posterior where the truth is known), rule, bits, what the rule leaves out.
    """
    expression, counts = hidden(data, found)
    library = data.library[found.rows][:, None, None]
    bits = {"run": _gaussian_rules(counts, library, found, found.expression, (expression - found.expression) ** 2)}
    if found.mean is not None:
        bits["run"]["predicted counts"] = predictive.bits(counts, found.mean, found.dispersion).mean()
    if truth is not None:
        columns = baselines.census_columns(adata, truth)
        known = data.counts[found.rows], data.library[found.rows], found.masked
        exact = simulate.predictive(truth, columns, *known, panel.TARGET)
        of = _gaussian_rules(counts, library, found, exact.mean, exact.variance)
        wider = simulate.predictive(truth, columns, *known, 1e6).variance.mean()
        of["the same at 1,000,000 counts a cell"] = entropy.gaussian_bits(wider)
        each = baselines.normal_bits(counts, exact.mean, np.sqrt(exact.variance), library)
        of["a Gaussian for each prediction, of counts"] = each.mean()
        cost = -np.log2(simulate.probabilities(truth, columns, *known, counts[..., None]))
        bits["exact posterior"] = of | {"exact mixture, these counts": cost.mean(), "exact entropy": exact.bits.mean()}
    rows = [
        {"predictor": predictor, "rule": rule, "bits": of[rule], "leaves out": said}
        for predictor, of in bits.items()
        for rule, said in RULES.items()
        if rule in of
    ]
    table = pd.DataFrame(rows)
    return table.assign(rule=pd.Categorical(table["rule"], [rule for rule in RULES if rule in set(table["rule"])]))


def _gaussian_rules(counts, library, found, mean, squares):
    """Bits by the rules that take a mean and an average squared error, pooled or of each gene."""
    pooled, genes = squares.mean(), found.masked.ravel()
    times = np.bincount(genes)
    of_gene = np.bincount(genes, squares.ravel()) / np.maximum(times, 1)
    deviation = np.sqrt(np.maximum(of_gene, 1e-6))[found.masked]
    return {
        "one Gaussian, differential": entropy.gaussian_bits(pooled),
        "one Gaussian, of counts": baselines.normal_bits(counts, mean, np.sqrt(pooled), library).mean(),
        "a Gaussian for each gene, of counts": baselines.normal_bits(counts, mean, deviation, library).mean(),
    }


def calibration(adata, data, found, truth=None, seed=0):
    """Randomised probability integral transforms of the hidden counts, as histograms by group of genes.

    Predictions of counts by the run, overall and by thirds of the genes' mean count; beside them the discretised
    conditional Gaussian and, where the truth is known, the exact mixture, which must be uniform.

    Returns
    -------
    DataFrame
        predictor, genes (all, or low / middle / high mean), bin (left end), density (1 where uniform), low and high
        (where 95 % of uniform samples of as many cells lie), misfit: the mean absolute distance of the density from 1.
    """
    rng = np.random.default_rng(seed)
    counts = hidden(data, found)[1]
    known = data.counts[found.rows], data.library[found.rows], found.masked
    transforms = {}
    if found.mean is not None:
        transforms["run"] = predictive.pit(counts, found.mean, found.dispersion, rng)
    gaussian = baselines.fit_gaussian(data.x, data.train)
    mean, deviation = baselines.predict_normal(gaussian, data.x[found.rows], found.masked)
    ends = baselines.normal_ends(counts, mean, deviation, known[1][:, None, None])
    transforms["conditional Gaussian"] = predictive.between(*ends, rng)
    if truth is not None:
        columns = baselines.census_columns(adata, truth)
        few = [part[:EXACT_CELLS] for part in known]
        x = np.arange(int(counts[:EXACT_CELLS].max()) + 1)
        cumulated = np.cumsum(simulate.probabilities(truth, columns, *few, x), axis=-1)
        place = counts[:EXACT_CELLS, ..., None].astype(int)
        upto = np.take_along_axis(cumulated, place, axis=-1)[..., 0]
        below = np.where(place[..., 0] > 0, np.take_along_axis(cumulated, np.maximum(place - 1, 0), axis=-1)[..., 0], 0)
        transforms["exact"] = predictive.between(below, upto, rng)
    third = _thirds(np.asarray(data.counts[data.train]).mean(axis=0))[found.masked]
    parts = []
    for name, u in transforms.items():
        groups = {"all": slice(None)} | ({g: third[: len(u)] == g for g in GROUPS} if name == "run" else {})
        parts += [
            _histogram(u[where].ravel(), len(u), rng).assign(predictor=name, genes=g) for g, where in groups.items()
        ]
    return pd.concat(parts, ignore_index=True)


GROUPS = ("low", "middle", "high")
EXACT_CELLS = 200
"""Cells for which the exact mixture is summed over all counts."""


def _thirds(values):
    """Each gene's third by its value: low, middle or high."""
    return np.array(GROUPS)[np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values)]


def _histogram(u, cells, rng):
    """Density of transforms in BINS bins, and the band that uniform ones keep to."""
    density = np.histogram(u, BINS, (0, 1))[0] * BINS / len(u)
    drawn = rng.multinomial(len(u), np.full(BINS, 1 / BINS), 2000) * BINS / len(u)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    content = {"bin": np.arange(BINS) / BINS, "density": density, "low": low, "high": high}
    return pd.DataFrame(content).assign(misfit=np.abs(density - 1).mean(), expected=np.abs(drawn - 1).mean())
