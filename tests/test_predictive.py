"""Predicted counts: probabilities, moments and calibration, against scipy and brute force."""

import numpy as np
import pytest
from scipy import stats

from lib.train import predictive


def test_bits_are_those_of_scipy_and_of_poisson_without_dispersion():
    counts = np.array([0, 1, 7, 900])
    assert predictive.bits(counts, 3.0, 2.0) == pytest.approx(-stats.nbinom(2, 2 / 5).logpmf(counts) / np.log(2))
    assert predictive.bits(counts, 3.0, np.inf) == pytest.approx(-stats.poisson(3).logpmf(counts) / np.log(2), rel=1e-5)


@pytest.mark.parametrize("mean", [1e-3, 0.4, 20, 63, 65, 4000])
@pytest.mark.parametrize("dispersion", [0.1, 2, 1e9])
def test_moments_on_the_log_scale_are_those_of_the_whole_sum(mean, dispersion):
    predicted = predictive.distribution(mean, dispersion)
    x = np.arange(int(predicted.ppf(1 - 1e-12)) + 2)
    y, weight = np.log1p(1e4 * x / 5000), predicted.pmf(x)
    first, variance = predictive.moments(mean, dispersion, 5000)
    assert first == pytest.approx((weight * y).sum(), abs=2e-3)
    assert variance == pytest.approx((weight * y**2).sum() - (weight * y).sum() ** 2, rel=0.02, abs=1e-6)


def test_moments_keep_the_shape_and_the_place_of_every_position(monkeypatch):
    monkeypatch.setattr(predictive, "CHUNK", 5)
    mean = np.random.default_rng(0).lognormal(2, 2, (4, 3))
    together, _ = predictive.moments(mean, 2.0, np.full((4, 1), 4000.0))
    alone = [[predictive.moments(m, 2.0, 4000.0)[0] for m in row] for row in mean]
    assert together == pytest.approx(np.array(alone))


def test_calibration_is_uniform_for_the_true_distribution_and_not_for_another():
    rng = np.random.default_rng(1)
    counts = predictive.distribution(3.0, 1.0).rvs(4000, random_state=rng)
    assert stats.kstest(predictive.pit(counts, 3.0, 1.0, rng), "uniform").pvalue > 0.01
    assert stats.kstest(predictive.pit(counts, 3.0, np.inf, rng), "uniform").pvalue < 1e-6


def test_shares_and_dispersions_are_found_again():
    rng = np.random.default_rng(2)
    library = rng.lognormal(8, 0.4, 6000).round()
    share, dispersion = np.array([1e-4, 1e-3, 5e-3]), np.array([0.3, 2.0, 8.0])
    counts = predictive.distribution(library[:, None] * share, dispersion).rvs(random_state=rng)
    found = predictive.fit_negative_binomial(np.column_stack([counts, np.zeros(len(counts))]), library)
    assert found[0][:3] == pytest.approx(share, rel=0.06)
    assert found[1][:3] == pytest.approx(dispersion, rel=0.15)
    assert np.isfinite(found).all()
