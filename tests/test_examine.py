"""A finished run read back: the same losses, gene by gene, in bits, and put to the test as a predictor of counts."""

import numpy as np
import pytest

from lib.data import panel, simulate
from lib.fit import runs
from lib.io import write_json
from lib.train import baselines, examine, loop


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A small study, one regime for squared error and one for counts, trained; with its truth."""
    import conftest

    from lib import io
    from lib.study import parse_study

    root, before = tmp_path_factory.mktemp("study"), io.ROOT
    io.ROOT = root
    regimes = {"squares": {"genes": 24, "cells": 500}}
    regimes["counts"] = regimes["squares"] | {"train": {"objective": "negative_binomial"}}
    study = parse_study(conftest.TINY | {"regimes": regimes, "genes_from": "squares", "seeds": [7]}, "tiny")
    truth = simulate.truth(study.census.simulate)
    panels = {regime: panel.read(panel.build(study, regime)) for regime in regimes}
    for regime, adata in panels.items():
        write_json(study.folder(regime) / "baselines.json", baselines.measure(adata, truth))
        for size in study.sizes:
            folder = study.run_folder(regime, size.name, 7)
            loop.train(panel.arrays(adata), size, 7, study.training(regime), folder)
    yield study, runs.collect(study), panels, truth
    io.ROOT = before


@pytest.mark.parametrize("regime", ["squares", "counts"])
def test_a_run_read_back_has_the_losses_of_its_record(done, regime):
    study, table, panels, _ = done
    data = panel.arrays(panels[regime])
    size, seed = examine.largest(table, regime)
    assert size == "small"
    found = examine.predictions(study, regime, size, seed, data)
    row = table[(table["regime"] == regime) & (table["size"] == size)].iloc[0]
    expression, counts = examine.hidden(data, found)
    assert ((expression - found.expression) ** 2).mean() == pytest.approx(row["validation_mse"], rel=1e-4)
    if regime == "counts":
        from lib.train import predictive

        assert predictive.bits(counts, found.mean, found.dispersion).mean() == pytest.approx(
            row["validation_nll"], rel=1e-4
        )
        assert row["validation_bits"] == row["validation_nll"]
    else:
        assert found.mean is None and np.isnan(row["validation_nll"])


def test_genes_add_up_to_the_loss_and_carry_all_of_it(done):
    study, table, _panels, _truth = done
    found = examine.view(study, table)
    genes = found["genes"]
    row = table[(table["regime"] == "counts") & (table["size"] == "small")].iloc[0]
    assert found["run"] == "small, seed 7, of counts"
    for column, whole in {"residual": "validation_mse", "nll": "validation_nll", "floor": "bayes_mse"}.items():
        assert np.average(genes[column], weights=genes["times"]) == pytest.approx(row[whole], rel=1e-4), column
    assert genes["share"].sum() == pytest.approx(1) and genes["floor_share"].sum() == pytest.approx(1)
    assert "genes carry half" in found["sentence"]


def test_rules_that_leave_out_less_cost_less_on_the_exact_posterior(done):
    study, table, _panels, _truth = done
    bits = examine.view(study, table)["bits"].set_index(["predictor", "rule"])["bits"]
    exact = bits["exact posterior"]
    assert exact["one Gaussian, of counts"] > exact["a Gaussian for each prediction, of counts"]
    assert exact["a Gaussian for each prediction, of counts"] > exact["exact mixture, these counts"]
    assert exact["exact mixture, these counts"] == pytest.approx(exact["exact entropy"], rel=0.1)
    ten = exact["the same at 1,000,000 counts a cell"] - exact["one Gaussian, differential"]
    assert ten > 0.5, "the differential entropy should move with the scale"
    assert bits["run"]["predicted counts"] > exact["exact mixture, these counts"]


def test_the_exact_posterior_is_calibrated(done):
    study, table, _panels, _truth = done
    found = examine.view(study, table)["calibration"].groupby(["predictor", "genes"])[["misfit", "expected"]].first()
    assert found.loc[("exact", "all"), "misfit"] < 2 * found.loc[("exact", "all"), "expected"]
    assert set(found.loc["run"].index) == {"all", "low", "middle", "high"}


def test_counts_have_probabilities_that_sum_to_one_under_the_discretised_gaussian():
    counts, library = np.arange(4000)[None, None, :], np.array([3000.0])[:, None, None]
    for mean, deviation in ((0.4, 0.3), (2.0, 1.0), (0.0, 0.05)):
        bits = baselines.normal_bits(counts, mean, deviation, library)
        assert (2.0**-bits).sum() == pytest.approx(1, abs=1e-6)
        low, high = baselines.normal_ends(counts, mean, deviation, library)
        assert (high - low)[0, 0, :50] == pytest.approx(2.0 ** -bits[0, 0, :50], abs=1e-9)


def test_hidden_genes_of_few_factors_are_reconstructed_down_to_the_noise():
    rng = np.random.default_rng(0)
    loadings, noise = rng.normal(size=(40, 3)), 0.5
    x = (rng.normal(size=(3000, 3)) @ loadings.T + noise * rng.normal(size=(3000, 40))).astype(np.float32)
    masks = np.sort(np.argsort(rng.random((500, 2, 40)))[..., :6], axis=-1).astype(np.int32)
    pca = baselines.choose_pca(x, np.arange(2500), masks)
    hidden = np.take_along_axis(x[2500:, None], masks, 2)
    gaussian = baselines.predict_gaussian(baselines.fit_gaussian(x, np.arange(2500)), x[2500:], masks)
    reached = ((hidden - baselines.predict_pca(pca, x[2500:], masks)) ** 2).mean()
    assert noise**2 < reached < 1.05 * ((hidden - gaussian) ** 2).mean() < 0.2 * hidden.var()


def test_a_study_without_a_finished_run_says_so(done):
    study, table, *_ = done
    assert "No run of counts" in examine.view(study, table.assign(status="diverged"))["sentence"]
