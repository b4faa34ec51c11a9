"""Does a lower loss buy anything? A linear probe of cell types, on people whom neither model nor probe has seen."""

import numpy as np
import pandas as pd

from lib import io
from lib.data import panel

TRAINED, FEWEST = 2000, 10
"""Cells at most that a probe is trained on; held-out cells that a cell type must have to count."""
COMPONENTS = 50
"""Principal components, at most, beside the models."""
RESAMPLES = 400
"""Bootstraps over the held-out donors."""
STEP = 64
"""Cells that a model reads at a time."""


def probe(study, runs: pd.DataFrame) -> pd.DataFrame | None:
    """Macro F1 of cell types, by logistic regression on features of cells, on the validation and test donors.

    Of the first regime; a model's features are the mean of its last tokens with no gene hidden. The result stays in
    data/<study>/probe.csv until its runs change.

    Parameters
    ----------
    runs : DataFrame
        The table of `lib.fit.runs.collect`.

    Returns
    -------
    DataFrame or None
        features (a size, `principal components` or `all genes`), parameters, loss (validation MSE; both NaN for the
        last two), f1, and low and high, its 95 % interval over held-out donors. None where fewer than two labels of
        cells are known, or no run is here.
    """
    if study.runs or not (runs["status"] == "ok").any():
        return None
    regime, path = next(iter(study.regimes)), study.data / "probe.csv"
    done = runs[(runs["regime"] == regime) & (runs["status"] == "ok")].sort_values(["parameters", "seed"])
    done = done.drop_duplicates("size")
    losses = done["validation_mse"].map("{:.9g}".format)  # as they are in a table that has been read, too
    key = f"# {io.FIT_NUMERICS} {' '.join(done['size'] + ' ' + losses)}\n"
    if not path.is_file() or path.read_text().split("\n")[0] + "\n" != key:
        table = _measured(study, regime, done)
        if table is None:
            return None
        with io.atomic(path) as partial:
            partial.write_text(key + table.to_csv(index=False))
    return pd.read_csv(path, comment="#")


def _measured(study, regime, runs):
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

    from lib.train.evaluate import network

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

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-3)).fit(
        values[:trained], labels[:trained]
    )
    code = dict(zip(types, range(len(types)), strict=True))  # one more stands for every other type
    true, predicted = ([code.get(label, len(types)) for label in each]
                       for each in (labels[trained:], model.predict(values[trained:])))  # fmt: skip
    donors, of = np.unique(donor, return_inverse=True)
    confusion = np.zeros((len(donors), len(types) + 1, len(types) + 1))
    np.add.at(confusion, (of, true, predicted), 1)
    times = np.random.default_rng(0).multinomial(len(donors), [1 / len(donors)] * len(donors), RESAMPLES)
    low, high = np.quantile(macro_f1(np.tensordot(times, confusion, 1)), (0.025, 0.975))
    return {"f1": float(macro_f1(confusion.sum(0))), "low": low, "high": high}


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Mean F1 of all types but the last, from counts (..., true type, predicted type); absent types do not count."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)[..., :-1]
    of_type = confusion.sum(-1)[..., :-1]
    both = of_type + confusion.sum(-2)[..., :-1]
    with np.errstate(invalid="ignore"):
        return np.nanmean(np.where(of_type > 0, 2 * right / both, np.nan), axis=-1)
