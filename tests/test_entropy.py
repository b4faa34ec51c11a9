"""Bits: the published conversion, and when there is none."""

import numpy as np
import pandas as pd
import pytest

from lib.train import entropy


def test_the_published_conversion():
    assert entropy.gaussian_bits(1.443758) == pytest.approx(2.312, abs=5e-4)
    assert entropy.gaussian_bits(1 / (2 * np.pi * np.e)) == pytest.approx(0)
    assert entropy.gaussian_bits(0.01) < 0, "a differential entropy may be negative"


def test_a_loss_that_is_not_positive_has_no_bits():
    assert np.isnan(entropy.gaussian_bits(0.0)) and np.isnan(entropy.gaussian_bits(-1.0))
    series = entropy.gaussian_bits(pd.Series([1.0, 0.0, np.nan]))
    assert isinstance(series, pd.Series) and series.isna().tolist() == [False, True, True]


def test_scaling_the_input_shifts_gaussian_bits():
    assert entropy.gaussian_bits(4 * 0.3) - entropy.gaussian_bits(0.3) == pytest.approx(1)


def test_an_interval_is_carried_over_end_by_end():
    bits = entropy.floor_bits("validation_mse", 1.47, [None, 1.49])
    assert bits["interval"] == [None, pytest.approx(entropy.gaussian_bits(1.49))] and "scale" in bits["kind"]
    assert entropy.floor_bits("test_mse", -0.1, [-0.5, 0.2])["interval"][0] is None


def test_a_likelihood_is_in_bits_already_and_other_metrics_have_none():
    bits = entropy.floor_bits("validation_bits_nll", 2.1, [2.0, 2.2])
    assert (bits["value"], bits["interval"]) == (2.1, [2.0, 2.2]) and "upper bound" in bits["kind"]
    assert entropy.floor_bits("validation_mae", 2.1, [2.0, 2.2])["value"] is None


def test_fitted_and_exact_floors_stand_side_by_side():
    law = {"floor_bits": {"value": 1.0, "interval": [0.9, None]}}
    table = entropy.compare(
        {"r": {"validation_mse": law}}, {"r": {"validation": {"bayes_mse": 0.1, "bayes_bits": 2.5}}}
    )
    assert table.loc[0, "exact_bits_of_the_count"] == 2.5
    assert table.loc[0, "gaussian_bits_of_exact_floor"] == pytest.approx(entropy.gaussian_bits(0.1))
    assert len(entropy.compare({"r": {"validation_mse": law}}, {})) == 1
