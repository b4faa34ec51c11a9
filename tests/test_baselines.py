"""Every baseline is the predictor that its name promises, measured as the transformers are."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from lib.data import census, panel, simulate
from lib.study import Simulation
from lib.train import baselines

PANEL, K = 48, 7


def panel_of(truth, columns, library_size="transcriptome", held_out=200):
    """A panel of the simulated census as lib.data.panel writes it: the last cells are held out, two masks each."""
    obs, counts = zip(*simulate.chunks(truth), strict=True)
    obs, counts = pd.concat(obs, ignore_index=True), sparse.vstack(counts).toarray()[:, columns].astype(np.int32)
    library = obs["raw_sum"].to_numpy() if library_size == "transcriptome" else counts.sum(axis=1).clip(1)
    obs.index = obs.index.astype(str)
    obs["total_counts"] = obs["raw_sum"].astype(float)
    names = ["train", "validation", "test"]
    obs["split"] = pd.Categorical(np.repeat(names, [len(obs) - 2 * held_out, held_out, held_out]), names)
    x = np.log1p(1e4 * counts / library[:, None]).astype(np.float32)
    genes = simulate.genes(truth).iloc[columns].assign(soma_joinid=columns).set_index("feature_id", drop=False)
    adata = anndata.AnnData(x, obs, genes)
    adata.layers["counts"] = counts
    masks = np.sort(np.argsort(np.random.default_rng(0).random((2, held_out, 2, len(columns))))[..., :K])
    adata.uns["masks"] = dict(zip(("validation", "test"), masks, strict=True))
    adata.uns["provenance"] = {"library_size": library_size}
    return adata


@pytest.fixture(scope="module")
def truth():
    return simulate.truth(Simulation(cells=4000, genes=300, transcriptome=300, states=40, donors=20, depth=800.0))


@pytest.fixture(scope="module")
def columns(truth):
    """The genes whose proportions differ most between states."""
    return np.sort(np.argsort(-np.log(truth.states).std(axis=0))[:PANEL])


@pytest.fixture(scope="module")
def adata(truth, columns):
    return panel_of(truth, columns)


@pytest.fixture(scope="module")
def losses(adata, truth):
    return baselines.measure(adata, truth)


def test_each_baseline_beats_the_one_below_and_none_beats_the_floor(losses):
    for split in losses.values():
        assert split["gene_mean_mse"] > 1.1 * split["gaussian_mse"] > 1.1 * 1.1 * split["bayes_mse"]
        assert split["gaussian_mse"] > split["bayes_realised_mse"]
        assert abs(split["bayes_realised_mse"] - split["bayes_mse"]) < 4 * split["bayes_realised_mse_se"]


def test_the_gene_mean_is_that_of_training_cells_at_masked_genes(adata, losses):
    x, masked = adata.X.astype(float), adata.uns["masks"]["test"]
    mean, squares = x[adata.obs["split"] == "train"].mean(axis=0), []
    for cell, row in enumerate(x[adata.obs["split"] == "test"]):
        squares.append(np.mean([np.square(row - mean)[mask].mean() for mask in masked[cell]]))
    assert losses["test"]["gene_mean_mse"] == pytest.approx(np.mean(squares))
    assert losses["test"]["gene_mean_mse_se"] == pytest.approx(np.std(squares, ddof=1) / np.sqrt(len(squares)))


def test_the_bits_of_baselines_are_those_of_what_was_fitted_to_training_cells(adata, losses):
    data, found = panel.arrays(adata), losses["test"]
    rows, masked = data.held["test"], data.masks["test"]
    counts = np.take_along_axis(data.counts[rows][:, None], masked, axis=2)
    library = data.library[rows][:, None, None]
    fitted = baselines.fit_negative_binomial(data.counts[data.train], data.library[data.train])
    share, theta = (of[masked] for of in fitted)
    expected = -stats.nbinom(theta, theta / (theta + library * share)).logpmf(counts).mean() / np.log(2)
    assert found["gene_nll"] == pytest.approx(expected)
    normal = baselines.predict_gaussian(baselines.fit_gaussian(data.x, data.train), data.x[rows], masked)
    assert found["gaussian_nll"] == pytest.approx(baselines.normal_bits(counts, *normal, library).mean())
    assert found["bayes_bits"] < min(found["gene_nll"], found["gaussian_nll"])


def test_without_a_truth_or_normalised_within_itself_a_panel_has_no_floor(adata, truth, columns, losses):
    for split, values in baselines.measure(adata).items():
        assert values == {name: value for name, value in losses[split].items() if not name.startswith("bayes")}
    found = baselines.measure(panel_of(truth, columns, library_size="panel"), truth)["test"]
    assert not [name for name in found if "bayes" in name or "nll" in name]


def test_the_prediction_is_the_regression_on_the_visible_genes():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 9)) @ rng.normal(size=(9, 9)) + rng.normal(size=9)
    gaussian = baselines.fit_gaussian(x, np.arange(300))
    covariance = np.linalg.inv(gaussian.precision)
    masked = np.sort(np.argsort(rng.random((100, 3, 9)))[..., :4])
    found = baselines.predict_gaussian(gaussian, x[300:], masked)[0]
    for cell, mask in np.ndindex(100, 3):
        m = masked[cell, mask]
        v = np.setdiff1d(np.arange(9), m)
        weights = np.linalg.solve(covariance[np.ix_(v, v)], covariance[np.ix_(v, m)])
        np.testing.assert_allclose(found[cell, mask], gaussian.mean[m] + (x[300 + cell] - gaussian.mean)[v] @ weights)


def test_shrinkage_is_that_of_ledoit_and_wolf_on_standardised_genes(adata):
    from sklearn.covariance import ledoit_wolf

    rows = np.arange(0, 3000, 25)
    x = adata.X[rows].astype(float)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    expected, weight = ledoit_wolf((x - mean) / deviation, assume_centered=True)
    assert weight > 0.05
    covariance = np.linalg.inv(baselines.fit_gaussian(adata.X, rows).precision)
    np.testing.assert_allclose(covariance, expected * np.outer(deviation, deviation), rtol=1e-5, atol=1e-9)


def test_blocks_of_cells_change_nothing(adata, monkeypatch):
    data = panel.arrays(adata)
    whole = baselines.measure(adata)
    monkeypatch.setattr(baselines, "ROWS", 700)
    monkeypatch.setattr(baselines, "WORKSPACE", 1)
    monkeypatch.setattr(baselines, "HELD_OUT", 7)
    in_blocks = baselines.measure(adata)
    assert len(data.train) % 700
    for split in whole:
        assert in_blocks[split] == pytest.approx(whole[split], rel=1e-6)


def test_a_gene_that_never_varies_in_training_is_predicted_by_its_mean():
    x = np.random.default_rng(3).normal(size=(200, 5)).astype(np.float32)
    x[:150, 2] = 0.7
    gaussian = baselines.fit_gaussian(x, np.arange(150))
    found = baselines.predict_gaussian(gaussian, x[150:], np.tile([[1, 2]], (50, 1, 1)))[0]
    np.testing.assert_allclose(found[..., 1], 0.7, rtol=1e-6)
    assert np.abs(found[..., 0] - gaussian.mean[1]).max() < 3


def test_counts_have_probabilities_that_sum_to_one_under_the_discretised_gaussian():
    counts, library = np.arange(4000)[None, None, :], np.array([3000.0])[:, None, None]
    for mean, deviation in ((0.4, 0.3), (2.0, 1.0), (0.0, 0.05)):
        bits = baselines.normal_bits(counts, mean, deviation, library)
        assert (2.0**-bits).sum() == pytest.approx(1, abs=1e-6)
        y = np.log1p(1e4 * np.arange(51) / 3000)
        ends = stats.norm.cdf([-np.inf, *(y[:-1] + y[1:]) / 2], mean, deviation)
        assert np.diff(ends) == pytest.approx(2.0 ** -bits[0, 0, :50], abs=1e-9)


def test_hidden_genes_of_few_factors_are_reconstructed_down_to_the_noise():
    rng = np.random.default_rng(0)
    loadings, noise = rng.normal(size=(40, 3)), 0.5
    x = (rng.normal(size=(3000, 3)) @ loadings.T + noise * rng.normal(size=(3000, 40))).astype(np.float32)
    masks = np.sort(np.argsort(rng.random((500, 2, 40)))[..., :6], axis=-1).astype(np.int32)
    pca = baselines.choose_pca(x, np.arange(2500), masks)
    hidden = np.take_along_axis(x[2500:, None], masks, 2)
    gaussian = baselines.predict_gaussian(baselines.fit_gaussian(x, np.arange(2500)), x[2500:], masks)[0]
    reached = ((hidden - baselines.predict_gaussian(pca, x[2500:], masks)[0]) ** 2).mean()
    assert noise**2 < reached < 1.05 * ((hidden - gaussian) ** 2).mean() < 0.2 * hidden.var()


def test_shares_and_dispersions_are_found_again():
    rng = np.random.default_rng(2)
    library = rng.lognormal(8, 0.4, 6000).round()
    share, dispersion = np.array([1e-4, 1e-3, 5e-3]), np.array([0.3, 2.0, 8.0])
    counts = baselines.distribution(library[:, None] * share, dispersion).rvs(random_state=rng)
    found = baselines.fit_negative_binomial(np.column_stack([counts, np.zeros(len(counts))]), library)
    assert found[0][:3] == pytest.approx(share, rel=0.06)
    assert found[1][:3] == pytest.approx(dispersion, rel=0.15)
    assert np.isfinite(found).all()


def test_real_files_hold_no_copies_share_their_known_genes_and_score_what_is_known_of_them(real_data, study_file):
    """19,003 cells x 512 genes, random split."""
    study = study_file(
        "real",
        census={"h5ad": [str(real_data / "*.h5ad")]},
        regimes={"all": {"genes": 512, "cells": 19_003}},
        split={"by": "random", "validation": 0.05, "test": 0.05},
        masking={"per_cell": 1},
    )
    data = panel.arrays(panel.read(panel.build(study, "all")))
    with census.open_census(study) as collection:
        report, genes = census.sources(collection).set_index("file"), census.describe(collection)["genes"]
    assert report["cells"].sum() == 19_003 and genes == 8047
    assert report.filter(like="pbmc3k", axis=0)["median_counts"].tolist() == [2197]
    x, masked = data.x[data.held["validation"]], data.masks["validation"]
    model, hidden = baselines.fit_gaussian(data.x, data.train), np.take_along_axis(x[:, None, :], masked, axis=2)
    assert ((hidden - model.mean[masked]) ** 2).mean() == pytest.approx(0.255, abs=0.02)
    assert ((hidden - baselines.predict_gaussian(model, x, masked)[0]) ** 2).mean() == pytest.approx(0.154, abs=0.012)
