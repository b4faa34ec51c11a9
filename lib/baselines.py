"""What every transformer is compared with: gene mean, conditional Gaussian, Bayes optimum where the truth is known."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib import panel, simulate
from lib.errors import InputError

ROWS = 10_000  # training cells held in float64 at a time
HELD_OUT = 2000  # held-out cells whose errors at every masked gene are held at a time
WORKSPACE = 8_000_000  # numbers in the largest temporary array of a prediction


@dataclass(frozen=True)
class Gaussian:
    """Normal distribution fitted to training cells."""

    mean: np.ndarray  # (genes,)
    precision: np.ndarray  # (genes, genes): inverse of the shrunken covariance
    shrinkage: float  # weight of uncorrelated genes, from 0 (sample covariance) to 1


def measure(adata, truth=None):
    """Mean squared errors of the baselines on the fixed masks of a panel's held-out cells.

    Parameters
    ----------
    adata : AnnData, a panel of `lib.panel`
    truth : lib.simulate.Truth, optional
        What a simulated panel was drawn from. There is no exact floor, and none is given, for a panel normalised
        within itself: dividing by the realised sum of the panel ties its genes to each other.

    Returns
    -------
    dict
        For every held-out side: gene_mean_mse and gaussian_mse; with a truth also bayes_mse and bayes_bits, what
        the best predictor can expect, and bayes_realised_mse, its squared error on these very cells, which shares
        their noise with every model measured on them. `<name>_se` is the standard error over cells, None for one cell.
    """
    data = panel.arrays(adata)
    gaussian = fit_gaussian(data.x, data.train)
    known = truth is not None and adata.uns["provenance"]["library_size"] != "panel"
    columns = census_columns(adata, truth) if known else None
    losses = {}
    for split, cells in data.held.items():
        masked = data.masks[split]
        blocks = [slice(start, start + HELD_OUT) for start in range(0, len(cells), HELD_OUT)]
        parts = [_errors(data, cells[block], masked[block], gaussian, truth, columns) for block in blocks]
        losses[split] = {}
        for name in parts[0]:
            losses[split] |= _over_cells(name, np.concatenate([part[name] for part in parts]))
    return losses


def _errors(data, cells, masked, gaussian, truth, columns):
    """Error of each baseline on each of some held-out cells: {name: (cells,)}; `columns` is None without a floor."""
    x = data.x[cells]
    hidden = np.take_along_axis(x[:, None, :], masked, axis=2).astype(np.float64)
    errors = {
        "gene_mean_mse": (hidden - gaussian.mean[masked]) ** 2,
        "gaussian_mse": (hidden - predict_gaussian(gaussian, x, masked)) ** 2,
    }
    if columns is not None:
        exact = simulate.predictive(truth, columns, data.counts[cells], data.library[cells], masked, panel.TARGET)
        errors["bayes_mse"], errors["bayes_bits"] = exact.variance, exact.bits
        errors["bayes_realised_mse"] = (hidden - exact.mean) ** 2
    return {name: error.mean(axis=(1, 2)) for name, error in errors.items()}


def census_columns(adata, truth):
    """Census column of every gene of the panel."""
    columns = pd.Index(simulate.genes(truth)["feature_id"]).get_indexer(adata.var["feature_id"])
    if (columns < 0).any():
        unknown = adata.var["feature_id"].iloc[np.argmin(columns)]
        raise InputError(f"the panel's gene {unknown} is not in this simulated census; give the truth it came from.")
    return columns


def _over_cells(name, per_cell):
    """Mean of the errors of cells, (cells,), and its standard error: cells are the independent unit."""
    spread = float(per_cell.std(ddof=1) / np.sqrt(len(per_cell))) if len(per_cell) > 1 else None
    return {name: float(per_cell.mean()), f"{name}_se": spread}


def fit_gaussian(x, rows):
    """Mean and shrunken covariance of the training cells `rows` of x (cells, genes).

    Genes are standardised and their correlations shrunk towards zero by the closed-form weight of Ledoit & Wolf (2004,
    J. Multivar. Anal. 88:365). Shrunk covariances would pull quiet and loud genes towards one common variance, and
    predict held-out cells worse the fewer cells there are. A gene that never varies is predicted by its mean.
    """
    blocks = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
    mean = sum(x[block].sum(axis=0, dtype=np.float64) for block in blocks) / len(rows)
    deviation = np.sqrt(sum(((x[block] - mean) ** 2).sum(axis=0) for block in blocks) / len(rows))
    deviation[deviation < 1e-9] = 1
    correlation, fourth = 0, 0
    for block in blocks:
        z = (x[block] - mean) / deviation
        correlation = correlation + z.T @ z
        fourth += ((z * z).sum(axis=1) ** 2).sum()
    correlation /= len(rows)
    shrinkage = _ledoit_wolf(correlation, fourth / len(rows), len(rows))
    shrunk = (1 - shrinkage) * correlation
    shrunk[np.diag_indices_from(shrunk)] = 1
    return Gaussian(mean, np.linalg.inv(shrunk) / np.outer(deviation, deviation), shrinkage)


def _ledoit_wolf(correlation, fourth, cells):
    """Weight of the identity: squared sampling error of the correlations over their squared distance from it.

    Both in Frobenius norm; `fourth` is the mean over cells of the fourth power of a standardised cell's norm.
    """
    distance = ((correlation - np.eye(len(correlation))) ** 2).sum()
    error = (fourth - (correlation**2).sum()) / cells
    return float(min(1, error / distance)) if distance > 0 else 1.0


def predict_gaussian(gaussian, x, masked):
    """Conditional mean of the masked genes given the visible ones, (cells, masks, k) float64.

    With precision Q it is mu_m - inv(Q_mm) Q_mv (x_v - mu_v): one k x k system for each mask. `x` is (cells, genes),
    and its values at masked genes are not looked at; `masked` is (cells, masks, k).
    """
    _, masks, k = masked.shape
    batch = max(1, WORKSPACE // (masks * max(k * k, x.shape[1])))
    parts = []
    for start in range(0, len(x), batch):
        chosen = masked[start : start + batch]
        visible = np.repeat((x[start : start + batch] - gaussian.mean)[:, None, :], masks, axis=1)
        np.put_along_axis(visible, chosen, 0, axis=2)
        pull = np.take_along_axis(visible @ gaussian.precision, chosen, axis=2)
        block = gaussian.precision[chosen[..., :, None], chosen[..., None, :]]
        parts.append(gaussian.mean[chosen] - np.linalg.solve(block, pull[..., None])[..., 0])
    return np.concatenate(parts)


NAMES = {"gene_mean": "gene mean", "gaussian": "conditional Gaussian", "bayes": "Bayes-optimal, expected",
         "bayes_realised": "Bayes-optimal, on these cells"}  # fmt: skip


def table(measured):
    """Result of `measure` as a table: a row per split and predictor with its mean squared error and standard error."""
    rows = [
        {"split": name, "predictor": label, "mse": losses[f"{key}_mse"], "se": losses[f"{key}_mse_se"]}
        for name, losses in measured.items()
        for key, label in NAMES.items()
        if f"{key}_mse" in losses
    ]
    return pd.DataFrame(rows)
