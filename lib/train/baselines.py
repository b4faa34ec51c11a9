"""What every transformer is compared with, in squared error and in bits.

Gene mean, PCA reconstruction, conditional Gaussian, and the Bayes optimum where the truth is known. A predicted count x
of mean m is negative binomial, of variance m + m^2 / theta.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import log_ndtr

from lib import io
from lib.data import panel, simulate
from lib.io import TARGET
from lib.study import Study

ROWS = 10_000  # training cells held in float64 at a time
HELD_OUT = 2000  # held-out cells whose errors at every masked gene are held at a time
WORKSPACE = 8_000_000  # numbers in the largest temporary array of a prediction
COMPONENTS = (1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 135, 200)  # numbers of principal components that are tried
DISPERSION_CELLS = 3000  # training cells, about, that the distribution of a gene's counts is fitted to
ASIDE, MOST_ASIDE = 0.2, 1000  # share of the training cells, and at most how many, on which that number is chosen


@dataclass(frozen=True)
class Gaussian:
    """Normal distribution fitted to training cells."""

    mean: np.ndarray  # (genes,)
    precision: np.ndarray  # (genes, genes): inverse of the covariance


def record(study: Study, regime: str, adata) -> dict[str, dict]:
    """What `measure` gives of a regime's panel, written to its baselines.json with the panel that it is of."""
    truth = simulate.truth(study.census.simulate) if study.census.simulate else None
    measured = measure(adata, truth)
    made = {"digest": panel.arrays(adata).digest, "study_settings": panel.settings_of(study, regime)}
    io.write_json(study.folder(regime) / "baselines.json", measured | {"panel": made})
    return measured


def measure(adata, truth: simulate.Truth | None = None) -> dict[str, dict]:
    """Losses of the baselines on the fixed masks of a panel's held-out cells, {split: {name: loss}}.

    gene_mean_mse, pca_mse, gaussian_mse; in bits per masked gene gene_nll, a negative
    binomial of each gene whatever the cell, and gaussian_nll, the conditional Gaussian as a distribution of counts.
    With the `truth` that a simulated panel was drawn from also bayes_mse and bayes_bits, what the best predictor can
    expect, and bayes_realised_mse, its squared error on these very cells. `<name>_se` is the error over cells.
    A panel normalised within itself has no bits and no exact floor: its realised sum ties its genes to each other.
    """
    data = panel.arrays(adata)
    counted = adata.uns["provenance"]["library_size"] != "panel"
    gaussian, gene = fit_gaussian(data.x, data.train), None
    pca = choose_pca(data.x, data.train, data.masks["validation"])
    if counted:
        few = data.train[:: max(1, len(data.train) // DISPERSION_CELLS)]
        gene = fit_negative_binomial(data.counts[few], data.library[few])
    columns = adata.var["soma_joinid"].to_numpy() if truth is not None and counted else None
    losses = {}
    for split, cells in data.held.items():
        parts = []
        for start in range(0, len(cells), HELD_OUT):
            some, masked = cells[start : start + HELD_OUT], data.masks[split][start : start + HELD_OUT]
            errors = _errors(data, some, masked, gaussian, pca, gene)
            if columns is not None:
                seen = data.counts[some], data.library[some], masked
                exact = simulate.predictive(truth, columns, *seen, TARGET)
                realised = (_hidden(data.x[some], masked).astype(np.float64) - exact.mean) ** 2
                errors |= {"bayes_mse": exact.variance, "bayes_bits": exact.bits, "bayes_realised_mse": realised}
            parts.append(pd.DataFrame({name: error.mean(axis=(1, 2)) for name, error in errors.items()}))
        losses[split] = {}
        for name, errors in pd.concat(parts).items():  # cells are the independent unit
            spread = float(errors.std() / np.sqrt(len(errors))) if len(errors) > 1 else None
            losses[split] |= {name: float(errors.mean()), f"{name}_se": spread}
    return losses


def _hidden(values, masked):
    """Values (cells, genes) of the masked genes, (cells, masks, k)."""
    return np.take_along_axis(values[:, None, :], masked, axis=2)


def _errors(data, cells, masked, gaussian, pca, gene):
    """Error of each baseline on some held-out cells, {name: (cells, masks, k)}; without `gene` counts are left out."""
    x, library = data.x[cells], data.library[cells][:, None, None]
    hidden = _hidden(x, masked).astype(np.float64)
    predicted, deviation = predict_gaussian(gaussian, x, masked)
    errors = {
        "gene_mean_mse": (hidden - gaussian.mean[masked]) ** 2,
        "pca_mse": (hidden - predict_gaussian(pca, x, masked)[0]) ** 2,
        "gaussian_mse": (hidden - predicted) ** 2,
    }
    if gene is not None:
        counts, (share, dispersion) = _hidden(data.counts[cells], masked), gene
        errors["gene_nll"] = bits(counts, library * share[masked], dispersion[masked])
        errors["gaussian_nll"] = normal_bits(counts, predicted, deviation, library)
    return errors


def fit_gaussian(x: np.ndarray, rows: np.ndarray) -> Gaussian:
    """Mean and shrunken covariance of the training cells `rows` of x (cells, genes).

    Genes are standardised and their correlations shrunk by the weight of Ledoit & Wolf (2004, J. Multivar. Anal.
    88:365); scikit-learn would hold all cells in memory. A gene that never varies is predicted by its mean.
    """
    mean, deviation, correlation, fourth = _moments(x, rows)
    distance = ((correlation - np.eye(len(correlation))) ** 2).sum()
    error = (fourth - (correlation**2).sum()) / len(rows)  # squared sampling error, in Frobenius norm as the distance
    shrinkage = float(min(1, error / distance)) if distance > 0 else 1.0
    shrunk = (1 - shrinkage) * correlation
    shrunk[np.diag_indices_from(shrunk)] = 1
    return Gaussian(mean, np.linalg.inv(shrunk) / np.outer(deviation, deviation))


def _moments(x, rows):
    """Mean and deviation of every gene over `rows`, their correlations, and the mean fourth power of a cell's norm."""
    blocks = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
    mean = sum(x[block].sum(axis=0, dtype=np.float64) for block in blocks) / len(rows)
    deviation = np.sqrt(sum(((x[block] - mean) ** 2).sum(axis=0) for block in blocks) / len(rows))
    deviation[deviation < 1e-9] = 1
    correlation, fourth = 0, 0
    for block in blocks:
        z = (x[block] - mean) / deviation
        correlation = correlation + z.T @ z
        fourth += ((z * z).sum(axis=1) ** 2).sum()
    return mean, deviation, correlation / len(rows), fourth / len(rows)


def predict_gaussian(gaussian: Gaussian, x: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """Conditional mean and standard deviation of masked genes given the visible ones, (2, cells, masks, k) float64.

    With precision Q the mean is mu_m - inv(Q_mm) Q_mv (x_v - mu_v), and the covariance inv(Q_mm): one k x k system for
    each mask. `x` is (cells, genes), and its values at masked genes are not looked at; `masked` is (cells, masks, k).
    """
    parts = []
    batch = max(1, WORKSPACE // (masked.shape[1] * max(masked.shape[-1] ** 2, x.shape[1])))
    for start in range(0, len(x), batch):
        chosen = masked[start : start + batch]
        visible = np.repeat((x[start : start + batch] - gaussian.mean)[:, None], chosen.shape[1], axis=1)
        np.put_along_axis(visible, chosen, 0, axis=2)
        pull = np.take_along_axis(visible @ gaussian.precision, chosen, axis=2)
        covariance = np.linalg.inv(gaussian.precision[chosen[..., :, None], chosen[..., None, :]])
        mean = gaussian.mean[chosen] - (covariance @ pull[..., None])[..., 0]
        parts.append(np.stack([mean, np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))]))
    return np.concatenate(parts, axis=1)


def gaussian_bits(mse: float | None) -> float | None:
    """Differential entropy of a Gaussian of variance `mse`, `0.5 log2(2 pi e mse)`; None where that is not positive.

    As in arXiv 2602.15253; it changes with the scale of the input, and is not the information in a count.
    """
    return None if mse is None or mse <= 0 else float(0.5 * np.log2(2 * np.pi * np.e * mse))


def normal_bits(counts, mean, deviation, library) -> np.ndarray:
    """Bits of counts, if y = log1p(10,000 count / library) is normal and a count ends half-way to the next one's y."""
    y = [np.log1p(TARGET * np.maximum(counts + step, 0) / library) for step in (-1, 0, 1)]
    low = np.where(counts > 0, ((y[0] + y[1]) / 2 - mean) / deviation, -np.inf)
    high = ((y[1] + y[2]) / 2 - mean) / deviation
    beyond = low > 0  # the difference is taken in the tail where it does not cancel
    low, high = log_ndtr(np.where(beyond, -high, low)), log_ndtr(np.where(beyond, -low, high))
    return -(high + np.log1p(-np.exp(low - high))) / np.log(2)


def choose_pca(x: np.ndarray, rows: np.ndarray, masks: np.ndarray) -> Gaussian:
    """The principal components of all training cells, as many as reconstruct masked genes best, as a distribution.

    Its conditional mean is the reconstruction from the scores that the visible genes give. The number of components is
    chosen on training cells set aside, under `masks` (masks, per_cell, k) of held-out cells.
    """
    rows = np.random.default_rng(0).permutation(rows)
    aside = rows[: min(MOST_ASIDE, max(1, int(ASIDE * len(rows))), len(masks))]
    fitted = _correlations(x, np.sort(rows[len(aside) :]))
    masked = masks[: len(aside), :1]
    hidden = _hidden(x[aside], masked)

    def error(components):
        return ((hidden - predict_gaussian(_leading(*fitted, components), x[aside], masked)[0]) ** 2).mean()

    best = min((q for q in COMPONENTS if q < min(x.shape[1], len(rows))), key=error)
    return _leading(*_correlations(x, np.sort(rows)), best)


def _correlations(x, rows):
    """Means and standard deviations of the genes, eigenvalues (descending) and vectors of their correlations."""
    mean, deviation, correlation, _ = _moments(x, rows)
    values, vectors = np.linalg.eigh(correlation)
    return mean, deviation, values[::-1], vectors[:, ::-1]


def _leading(mean, deviation, values, vectors, components):
    """Probabilistic principal components (Tipping & Bishop 1999): all other variance is noise of all genes alike."""
    noise = max(values[components:].mean(), 1e-6)
    spread = np.where(np.arange(len(values)) < components, np.maximum(values, noise), noise)
    return Gaussian(mean, (vectors / spread) @ vectors.T / np.outer(deviation, deviation))


def distribution(mean, dispersion):
    """The negative binomial as scipy has it."""
    return stats.nbinom(dispersion, dispersion / (dispersion + mean))


def bits(counts, mean, dispersion) -> np.ndarray:
    """Minus the binary logarithm of the probability of each count; everything broadcasts."""
    return -distribution(mean, dispersion).logpmf(counts) / np.log(2)


def fit_negative_binomial(counts: np.ndarray, library: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every gene's share of the library and dispersion, each (genes,), from counts (cells, genes).

    The share is total counts (half a count at least) over total library; the dispersion is the most likely one at it.
    """
    library = np.asarray(library, np.float64)
    share = np.maximum(counts.sum(axis=0, dtype=np.float64), 0.5) / library.sum()
    mean = library[:, None] * share
    return share, best_dispersion(lambda log: bits(counts, mean, np.exp(log)).sum(axis=0), len(share))


def best_dispersion(cost: Callable[[np.ndarray], np.ndarray], number: int) -> np.ndarray:
    """Dispersions between 1e-3 and 1e6, (number,), of least `cost` of their logarithm, by golden-section search."""
    low, high = np.full((2, number), np.log([[1e-3], [1e6]]))
    golden = (np.sqrt(5) - 1) / 2
    while (high - low).max() >= 1e-3:
        inner, outer = high - golden * (high - low), low + golden * (high - low)
        worse = cost(inner) > cost(outer)
        low, high = np.where(worse, inner, low), np.where(worse, high, outer)
    return np.exp((low + high) / 2)


NAMES = {
    "gene mean": ("gene_mean_mse", "gene_nll"),
    "PCA": ("pca_mse", None),
    "conditional Gaussian": ("gaussian_mse", "gaussian_nll"),
    "Bayes-optimal, expected": ("bayes_mse", "bayes_bits"),
    "Bayes-optimal, on these cells": ("bayes_realised_mse", None),
}


def table(measured: Mapping[str, dict]) -> pd.DataFrame:
    """Result of `measure` as a table, one row per split and predictor: mse, its standard error, explained, bits.

    Explained is the share of what lies between the gene mean and the exact floor (or zero, where that is not known).
    """
    rows = []
    for split, losses in measured.items():
        floor = losses.get("bayes_mse", 0.0)
        for predictor, (mse, nll) in NAMES.items():
            if mse in losses:
                explained = (losses["gene_mean_mse"] - losses[mse]) / (losses["gene_mean_mse"] - floor)
                row = {"split": split, "predictor": predictor, "mse": losses[mse], "se": losses[f"{mse}_se"]}
                rows.append(row | {"explained": explained, "bits": losses.get(nll)})
    return pd.DataFrame(rows)
