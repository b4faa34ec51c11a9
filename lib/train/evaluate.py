"""A finished run looked at closely: read back from its weights, by gene and in bits.

`examine` runs a model once, and keeps what it finds in data/<study>/examined.json.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from lib import io
from lib.data import panel, simulate
from lib.io import TARGET
from lib.train import baselines
from lib.train.baselines import bits, distribution

STEP = 64
"""Cells that a model predicts at a time."""
SUMMED, QUANTILES = 64, 400
"""Up to this mean an expectation over counts is summed count by count; above it over quantiles of its distribution."""
CHUNK = 200_000
"""Positions that are worked on at a time."""
RULES = (
    "one Gaussian, differential",  # published: depends on the scale of the input, takes counts for a continuum
    "the same at 1,000,000 counts a cell",  # another scale of the same counts, and other bits
    "one Gaussian, of counts",  # a code for counts, with one spread for all genes and cells
    "a Gaussian for each gene, of counts",  # spreads of genes, but none that changes from cell to cell
    "a Gaussian for each prediction, of counts",  # the right mean and spread of each prediction, the wrong shape
    "predicted counts",  # nothing is left out but what the model has not learned
    "exact mixture, these counts",  # what these very counts cost who knows the truth
    "exact entropy",  # what a count costs on average: the floor in bits
)
"""How squared errors, or distributions, become bits per masked gene, leaving out less and less."""


@dataclass(frozen=True)
class Examination:
    """One run of a study, examined; without a run to examine the sentence says why, and the rest is None."""

    sentence: str
    run: str | None = None  # its name
    genes: pd.DataFrame | None = None  # `by_gene`
    bits: pd.DataFrame | None = None  # `conversions`


@dataclass(frozen=True)
class Predictions:
    """Hidden values of validation cells and what one run predicts for them, each (cells, masks, k)."""

    rows: np.ndarray  # (cells,): row numbers of the panel
    masked: np.ndarray  # genes
    library: np.ndarray  # (cells, 1, 1)
    expression: np.ndarray  # log-normalised, as measured
    counts: np.ndarray  # as measured
    predicted: np.ndarray  # mean of the log-normalised expression
    mean: np.ndarray | None = None  # of the count, and its dispersion; None for a run trained for squared error
    dispersion: np.ndarray | None = None
    truth: tuple | None = None  # with a known truth the first arguments of `simulate.predictive`, and what it gives
    exact: simulate.Predictive | None = None


def examine(study, runs: pd.DataFrame) -> Examination:
    """Examine the largest run of the first regime that predicts counts, or of the first, if that has not been done.

    `runs` is the table of `lib.fit.runs.collect`.
    """
    run, path = _to_examine(study, runs), study.data / "examined.json"
    if isinstance(run, str):
        return Examination(run)
    key = [io.FIT_NUMERICS, io.read_json(study.run_folder(*run) / "result.json")["fingerprint"]]
    if path.is_file() and (content := io.read_json(path)).pop("key") == key:
        tables = {name: pd.DataFrame(content[name]) for name in ("genes", "bits")}
        tables["bits"]["rule"] = _in_order(tables["bits"]["rule"])
        return Examination(content["sentence"], content["run"], **tables)
    examination = _examined(study, *run)
    content = dict(vars(examination))
    for name, table in content.items():
        if isinstance(table, pd.DataFrame):
            content[name] = table.astype(object).where(table.notna(), None).to_dict("list")  # NaN is not JSON
    io.write_json(path, {"key": key, **content})
    return examination


def _to_examine(study, runs):
    """Regime, size and seed of the run that `examine` takes, or a sentence that says why there is none."""
    if study.runs:
        return "These runs were trained elsewhere; their weights are not here to be examined."
    counted = [name for name in study.regimes if study.training(name).objective != "mse"]
    regime = (counted or list(study.regimes))[0]
    done = runs[(runs["regime"] == regime) & (runs["status"] == "ok")]
    if done.empty:
        return f"No run of {regime} has ended with a loss; there is none to examine."
    best = done[done["parameters"] == done["parameters"].max()].sort_values("seed").iloc[0]
    return regime, best["size"], int(best["seed"])


def _examined(study, regime, size, seed):
    adata = panel.read(study.folder(regime) / "panel.h5ad")
    data, source = panel.arrays(adata), study.census.simulate
    found = predictions(study, regime, size, seed, data)
    if source and study.training(regime).library_size != "panel":
        truth, rows = simulate.truth(source), found.rows
        seen = baselines.census_columns(adata, truth), data.counts[rows], data.library[rows], found.masked
        found = replace(found, truth=(truth, *seen), exact=simulate.predictive(truth, *seen, TARGET))
    genes = by_gene(adata, data, found)
    tables = {"genes": genes, "bits": conversions(found)}
    return Examination(concentration(genes), f"{size}, seed {seed}, of {regime}", **tables)


def network(study, regime: str, size: str, seed: int, genes: int):
    """The model of a finished run, from the weights that it left."""
    from safetensors.torch import load_file

    from lib.model import transformer
    from lib.model.sizes import OUTPUTS

    outputs = OUTPUTS[study.training(regime).objective]
    model = transformer.Transformer(study.size(size), genes, outputs=outputs).eval()
    model.load_state_dict(load_file(study.run_folder(regime, size, seed) / "weights.safetensors"))
    return model


def predictions(study, regime: str, size: str, seed: int, data) -> Predictions:
    """Predict the fixed masked genes of validation cells with the weights that a finished run left."""
    import torch

    from lib.model import transformer

    objective, model = study.training(regime).objective, network(study, regime, size, seed, data.x.shape[1])
    rows, masked, raw = data.held["validation"], data.masks["validation"], []
    with torch.no_grad():
        for start in range(0, len(rows), STEP):
            x = torch.as_tensor(np.asarray(data.x[rows[start : start + STEP]]))
            each = torch.as_tensor(masked[start : start + STEP], dtype=torch.long).unbind(1)
            raw.append(torch.stack([model(x, transformer.hide(one, x.shape[1]), one) for one in each], 1))
    raw, library = torch.cat(raw), data.library[rows][:, None, None]
    measured = [np.take_along_axis(part[rows][:, None, :], masked, axis=2) for part in (data.x, data.counts)]
    if objective == "mse":
        return Predictions(rows, masked, library, *measured, raw.numpy().astype(np.float64))
    counts = transformer.distribution(raw, torch.as_tensor(library[..., 0], dtype=torch.float32))
    return Predictions(rows, masked, library, *measured, log_mean(*counts, library), *counts)


def by_gene(adata, data, found: Predictions) -> pd.DataFrame:
    """What each gene adds to the loss that is left, over the masked positions of the validation cells.

    Returns
    -------
    DataFrame, one row per gene of the panel
        feature_name; times (it was masked); mean (log-normalised expression of training cells); variance, the squared
        error of that mean; residual, that of the run; share of all residuals summed; with a truth floor, the exact
        variance, and floor_share.
    """
    mean = np.asarray(data.x[data.train]).mean(axis=0, dtype=np.float64)
    squares = {
        "variance": (found.expression - mean[found.masked]) ** 2,
        "residual": (found.expression - found.predicted) ** 2,
        **({} if found.exact is None else {"floor": found.exact.variance}),
    }
    genes = found.masked.ravel()
    times = np.bincount(genes, minlength=adata.n_vars)
    table = pd.DataFrame({"feature_name": adata.var["feature_name"].astype(str).to_numpy(), "times": times})
    table["mean"] = mean
    for name, value in squares.items():
        summed = np.bincount(genes, value.ravel(), adata.n_vars)
        table[name] = summed / np.maximum(times, 1)
        if name != "variance":
            table["share" if name == "residual" else "floor_share"] = summed / summed.sum()
    return table


def concentration(genes: pd.DataFrame) -> str:
    """Which genes carry the loss, in one sentence."""
    ordered = genes.sort_values("share", ascending=False)
    half = int((ordered["share"].cumsum() < 0.5).sum()) + 1
    top = ", ".join(ordered["feature_name"].head(3))
    rank = genes[["residual", "mean"]].corr("spearman").iloc[0, 1]
    return (
        f"{half} of {len(genes)} genes carry half of what is left of the squared error (most of all {top}); the "
        f"residual variance of a gene goes with its mean expression (rank correlation {rank:.2f})."
    )


def conversions(found: Predictions) -> pd.DataFrame:
    """The same predictions turned into bits: predictor (run, or exact posterior with a truth), rule, bits."""
    of = {"run": _gaussian_rules(found, found.predicted, (found.expression - found.predicted) ** 2)}
    if found.mean is not None:
        of["run"]["predicted counts"] = bits(found.counts, found.mean, found.dispersion).mean()
    if (best := found.exact) is not None:
        each = baselines.normal_bits(found.counts, best.mean, np.sqrt(best.variance), found.library)
        mixture = simulate.probabilities(*found.truth, found.counts[..., None])
        of["exact posterior"] = _gaussian_rules(found, best.mean, best.variance) | {
            "the same at 1,000,000 counts a cell": _differential(
                simulate.predictive(*found.truth, 1e6).variance.mean()
            ),
            "a Gaussian for each prediction, of counts": each.mean(),
            "exact mixture, these counts": -np.log2(mixture).mean(),
            "exact entropy": best.bits.mean(),
        }
    rows = [(predictor, rule, float(rules[rule])) for predictor, rules in of.items() for rule in RULES if rule in rules]
    table = pd.DataFrame(rows, columns=["predictor", "rule", "bits"])
    return table.assign(rule=_in_order(table["rule"]))


def _in_order(rules):
    return pd.Categorical(rules, [rule for rule in RULES if rule in set(rules)])


def _gaussian_rules(found, mean, squares):
    """Bits by the rules that take a mean and an average squared error, pooled or of each gene."""

    def of_counts(deviation):
        return baselines.normal_bits(found.counts, mean, deviation, found.library).mean()

    genes = found.masked.ravel()
    of_gene = np.bincount(genes, squares.ravel()) / np.maximum(np.bincount(genes), 1)
    return {
        "one Gaussian, differential": _differential(squares.mean()),
        "one Gaussian, of counts": of_counts(np.sqrt(squares.mean())),
        "a Gaussian for each gene, of counts": of_counts(np.sqrt(np.maximum(of_gene, 1e-6))[found.masked]),
    }


def _differential(variance):
    """Differential entropy of a Gaussian, in bits."""
    return stats.norm.entropy(scale=np.sqrt(variance)) / np.log(2)


def log_mean(mean: np.ndarray, dispersion: np.ndarray, library: np.ndarray) -> np.ndarray:
    """Mean of log1p(10,000 x / library) under the predicted distribution of each count x.

    Everything broadcasts. Small means are summed count by count until less than 1e-7 of the probability is left. For
    large ones the sum is replaced by the mean over equally probable quantiles, of which the tests bound the error.
    """
    arrays = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (mean, dispersion, library)))
    flat = [np.ravel(array) for array in arrays]
    parts = (slice(start, start + CHUNK) for start in range(0, flat[0].size, CHUNK))
    return np.concatenate([_log_mean(*(array[part] for array in flat)) for part in parts]).reshape(arrays[0].shape)


def _log_mean(mean, dispersion, library):
    found = np.zeros(len(mean))
    large = np.flatnonzero(mean > SUMMED)
    for some in np.array_split(large, max(1, len(large) * QUANTILES // CHUNK)):
        middle = (np.arange(QUANTILES) + 0.5) / QUANTILES
        x = distribution(mean[some, None], dispersion[some, None]).ppf(middle)
        found[some] = np.log1p(TARGET * x / library[some, None]).mean(1)
    running = np.flatnonzero(mean <= SUMMED)
    m, theta, unit = mean[running], dispersion[running], TARGET / library[running]
    odds, probability = m / (m + theta), np.exp(-theta * np.log1p(m / theta))
    seen, x = np.zeros(len(running)), 0
    while len(running):
        found[running] += probability * np.log1p(unit * x)
        seen += probability
        probability = probability * odds * (x + theta) / (x + 1)
        x += 1
        left = 1 - seen > 1e-7
        if left.mean() < 0.8:
            running, unit, odds, theta = running[left], unit[left], odds[left], theta[left]
            probability, seen = probability[left], seen[left]
    return found
