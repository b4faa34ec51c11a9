"""Finished runs looked at closely: read back from their weights, by gene, in bits, and by what their features hold.

`examine` and `probe` run models once, and keep what they find in data/<study>/examined.json and probe.csv.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lib import io
from lib.data import panel, simulate
from lib.io import TARGET
from lib.model.sizes import OUTPUTS
from lib.train import baselines
from lib.train.baselines import bits, distribution

STEP = 64  # cells that a model reads at a time
CHUNK = 200_000  # positions that are worked on at a time
SUMMED, QUANTILES = 64, 400  # above this mean an expectation is over quantiles, up to it summed count by count
TRAINED, FEWEST = 2000, 10  # cells at most that train a probe; held-out cells that a cell type must have to count
COMPONENTS, RESAMPLES = 50, 400  # principal components at most beside the models; bootstraps over held-out donors
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
    """One run of a study, examined."""

    run: str  # its name
    genes: pd.DataFrame  # `by_gene`
    bits: pd.DataFrame  # `conversions`


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


def examine(study, runs: pd.DataFrame) -> Examination | None:
    """Examine the largest run of the first regime that predicts counts, or of the first, if that has not been done.

    `runs` is the table of `lib.fit.runs.collect`. None where no such run has ended, or its weights are not here.
    """
    if study.runs:
        return None
    counted = [name for name in study.regimes if study.training(name).objective != "mse"]
    regime = (counted or list(study.regimes))[0]
    done = runs[(runs["regime"] == regime) & (runs["status"] == "ok")]
    if done.empty:
        return None
    best = done[done["parameters"] == done["parameters"].max()].sort_values("seed").iloc[0]
    run, path = (regime, best["size"], int(best["seed"])), study.data / "examined.json"
    if not _weights(study, *run).is_file():
        return None
    key = [io.FIT_NUMERICS, io.read_json(study.run_folder(*run) / "result.json")["fingerprint"]]
    if not path.is_file() or io.read_json(path)["key"] != key:
        io.write_json(path, {"key": key, **_examined(study, *run)})
    content = io.read_json(path)
    bits = pd.DataFrame(content["bits"])
    bits["rule"] = pd.Categorical(bits["rule"], [rule for rule in RULES if rule in set(bits["rule"])])
    return Examination(content["run"], pd.DataFrame(content["genes"]), bits)


def _examined(study, regime, size, seed):
    adata = panel.read(study.folder(regime) / "panel.h5ad")
    data, source = panel.arrays(adata), study.census.simulate
    found = predictions(study, regime, size, seed, data)
    if source and study.training(regime).library_size != "panel":
        truth, rows = simulate.truth(source), found.rows
        seen = adata.var["soma_joinid"].to_numpy(), data.counts[rows], data.library[rows], found.masked
        found = replace(found, truth=(truth, *seen), exact=simulate.predictive(truth, *seen, TARGET))
    genes, bits = by_gene(adata, data, found), conversions(found)
    return {"run": f"{size}, seed {seed}, of {regime}", "genes": genes.to_dict("list"), "bits": bits.to_dict("list")}


def network(study, regime: str, size: str, seed: int, genes: int):
    """The model of a finished run, from the weights that it left."""
    from safetensors.torch import load_file

    from lib.model import transformer

    outputs = OUTPUTS[study.training(regime).objective]
    model = transformer.Transformer(study.size(size), genes, outputs=outputs).eval()
    model.load_state_dict(load_file(_weights(study, regime, size, seed)))
    return model


def _weights(study, regime, size, seed):
    return study.run_folder(regime, size, int(seed)) / "weights.safetensors"


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
    return Predictions(rows, masked, library, *measured, mean_log1p(*counts, library), *counts)


def by_gene(adata, data, found: Predictions) -> pd.DataFrame:
    """What each gene of the panel adds to the loss that is left, over the masked positions of the validation cells.

    A row has feature_name; mean (log-normalised expression of training cells); variance, the squared error of that
    mean; residual, that of the run, and its share of all; with a truth floor and floor_share.
    """
    mean = np.asarray(data.x[data.train]).mean(axis=0, dtype=np.float64)
    squares = {
        "variance": (found.expression - mean[found.masked]) ** 2,
        "residual": (found.expression - found.predicted) ** 2,
        **({} if found.exact is None else {"floor": found.exact.variance}),
    }
    of_gene = pd.DataFrame({name: value.ravel() for name, value in squares.items()}).groupby(found.masked.ravel())
    means, sums = (of.reindex(range(adata.n_vars), fill_value=0) for of in (of_gene.mean(), of_gene.sum()))
    shares = (sums / sums.sum()).drop(columns="variance").rename(columns={"residual": "share", "floor": "floor_share"})
    table = pd.DataFrame({"feature_name": adata.var["feature_name"].astype(str).to_numpy(), "mean": mean})
    return pd.concat([table, means, shares], axis=1)


def conversions(found: Predictions) -> pd.DataFrame:
    """The same predictions turned into bits: predictor (run, or exact posterior with a truth), rule, bits."""
    of = {"run": _gaussian_rules(found, found.predicted, (found.expression - found.predicted) ** 2)}
    if found.mean is not None:
        of["run"]["predicted counts"] = bits(found.counts, found.mean, found.dispersion).mean()
    if (best := found.exact) is not None:
        each = baselines.normal_bits(found.counts, best.mean, np.sqrt(best.variance), found.library)
        mixture = simulate.probabilities(*found.truth, found.counts[..., None])
        finer = simulate.predictive(*found.truth, 1e6).variance
        of["exact posterior"] = _gaussian_rules(found, best.mean, best.variance) | {
            "the same at 1,000,000 counts a cell": baselines.gaussian_bits(finer.mean()),
            "a Gaussian for each prediction, of counts": each.mean(),
            "exact mixture, these counts": -np.log2(mixture).mean(),
            "exact entropy": best.bits.mean(),
        }
    rows = [(predictor, rule, float(rules[rule])) for predictor, rules in of.items() for rule in RULES if rule in rules]
    return pd.DataFrame(rows, columns=["predictor", "rule", "bits"])


def _gaussian_rules(found, mean, squares):
    """Bits by the rules that take a mean and an average squared error, pooled or of each gene."""

    def of_counts(deviation):
        return baselines.normal_bits(found.counts, mean, deviation, found.library).mean()

    genes = found.masked.ravel()
    of_gene = np.bincount(genes, squares.ravel()) / np.maximum(np.bincount(genes), 1)
    return {
        "one Gaussian, differential": baselines.gaussian_bits(squares.mean()),
        "one Gaussian, of counts": of_counts(np.sqrt(squares.mean())),
        "a Gaussian for each gene, of counts": of_counts(np.sqrt(np.maximum(of_gene, 1e-6))[found.masked]),
    }


def mean_log1p(mean: np.ndarray, dispersion: np.ndarray, library: np.ndarray) -> np.ndarray:
    """Mean of log1p(10,000 x / library) under the predicted distribution of each count x; everything broadcasts.

    Small means are summed count by count until less than 1e-7 of the probability is left, large ones over quantiles.
    """
    arrays = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (mean, dispersion, library)))
    flat = [np.ravel(array) for array in arrays]
    parts = (slice(start, start + CHUNK) for start in range(0, flat[0].size, CHUNK))
    return np.concatenate([_mean_log1p(*(array[part] for array in flat)) for part in parts]).reshape(arrays[0].shape)


def _mean_log1p(mean, dispersion, library):
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


def probe(study, runs: pd.DataFrame) -> pd.DataFrame | None:
    """Macro F1 of cell types, by logistic regression on features of cells, on the validation and test donors.

    Of the study's first regime in `runs`, the table of `lib.fit.runs.collect`; a model's features are the mean of its
    last tokens with no gene hidden. The table has features (a size, `principal components` or `all genes`), parameters
    and loss (validation MSE) of a size, f1, and low and high, its 95 % interval over held-out donors (percentiles of a
    bootstrap; NaN for one donor). None where fewer than two labels of cells are known, or that regime has no finished
    run here.
    """
    regime = next(iter(study.regimes), None)
    done = runs[(runs["regime"] == regime) & (runs["status"] == "ok")].sort_values(["parameters", "seed"])
    done = done.drop_duplicates("size")
    if done.empty:
        return None
    losses = done["validation_mse"].map("{:.9g}".format)  # as they are in a table that has been read, too
    made = panel.made_by(study.folder(regime) / "panel.h5ad")  # with other cell types it is another
    key = f"# {io.FIT_NUMERICS} {made} {' '.join(done['size'] + ' ' + losses)}\n"
    path, largest = study.data / "probe.csv", done.iloc[-1]
    if not _weights(study, regime, largest["size"], largest["seed"]).is_file():
        path = study.results / "probe.csv"  # of runs that are kept without their weights
    elif not path.is_file() or not path.read_text().startswith(key):
        table = _probed(study, regime, done)
        if table is None:
            return None
        with io.atomic(path) as partial:
            partial.write_text(key + table.to_csv(index=False))
    return pd.read_csv(path, comment="#") if path.is_file() else None


def _probed(study, regime, runs):
    adata = panel.read(study.folder(regime) / "panel.h5ad")
    labels, splits = adata.obs["cell_type"].astype(str), adata.obs["split"].astype(str)
    trained = np.flatnonzero((splits == "train") & (labels != "unknown"))
    trained = np.random.default_rng(0).permutation(trained)[:TRAINED]
    tested = np.flatnonzero(splits.isin(("validation", "test")) & (labels != "unknown"))
    number = labels.iloc[tested].value_counts()
    types = sorted(set(labels.iloc[trained].unique()) & set(number.index[number >= FEWEST]))
    if len(types) < 2:
        return None
    both, donor = np.concatenate([trained, tested]), adata.obs["donor_id"].to_numpy()[tested]

    def score(values):
        return _score(values, labels.to_numpy()[both], len(trained), types, donor)

    centred = np.asarray(adata.X[both]) - np.asarray(adata.X[trained]).mean(0)
    axes = np.linalg.svd(centred[: len(trained)], full_matrices=False)[2][:COMPONENTS]
    rows = [{"features": "principal components"} | score(centred @ axes.T), {"features": "all genes"} | score(centred)]
    for run in runs.to_dict("records"):
        scores = score(embeddings(study, regime, run["size"], int(run["seed"]), adata.X[both]))
        rows.append({"features": run["size"], "parameters": run["parameters"], "loss": run["validation_mse"]} | scores)
    return pd.DataFrame(rows)[["features", "parameters", "loss", "f1", "low", "high"]]


def embeddings(study, regime: str, size: str, seed: int, x: np.ndarray) -> np.ndarray:
    """Mean of the last tokens of a finished run, (cells, d) float32, for cells x, (cells, genes), no gene hidden."""
    import torch

    model, means = network(study, regime, size, seed, x.shape[1]), []
    model.head.register_forward_pre_hook(lambda module, tokens: means.append(tokens[0].mean(1)))
    with torch.no_grad():
        for cells in torch.as_tensor(np.ascontiguousarray(x)).split(STEP):
            model(cells, torch.zeros_like(cells, dtype=torch.bool))
    return torch.cat(means).numpy()


def _score(values, labels, trained, types, donor):
    """F1 with its interval, of a logistic regression on standardised values, of which the first so many are trained."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-3))
    model.fit(values[:trained], labels[:trained])
    both = labels[trained:], model.predict(values[trained:])
    true, predicted = (pd.Index(types).get_indexer(each) for each in both)  # -1, the last, is every other type
    donors, of = np.unique(donor, return_inverse=True)
    confusion = np.zeros((len(donors), len(types) + 1, len(types) + 1))
    np.add.at(confusion, (of, true, predicted), 1)
    times = np.random.default_rng(0).multinomial(len(donors), [1 / len(donors)] * len(donors), RESAMPLES)
    low, high = np.quantile(macro_f1(np.tensordot(times, confusion, 1)), (0.025, 0.975))
    if len(donors) < 2:
        low = high = np.nan
    return {"f1": float(macro_f1(confusion.sum(0))), "low": low, "high": high}


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Mean F1 of all types but the last, from counts (..., true type, predicted type); absent types do not count."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)[..., :-1]
    of_type = confusion.sum(-1)[..., :-1]
    both = of_type + confusion.sum(-2)[..., :-1]
    with np.errstate(invalid="ignore"):
        return np.nanmean(np.where(of_type > 0, 2 * right / both, np.nan), axis=-1)
