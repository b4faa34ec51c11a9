"""Intervals: exact answers, open ends, resampling, measured coverage; the benchmarks of the fit in small."""

import interval_coverage
import numpy as np
import pandas as pd
import pytest
import replicates
from interval_coverage import TRUTHS, coverage, simulate
from scipy import stats
from scipy.optimize import minimize

from lib import io
from lib.fit.intervals import all_intervals, resample
from lib.fit.law import ladder, profile, size_weights


@pytest.fixture(scope="module")
def runs(published_runs):
    return published_runs[published_runs["regime"] == "data-rich"]


@pytest.fixture(scope="module")
def data(runs):
    return ladder(runs)


def test_the_closed_form_rim_is_where_a_direct_profile_crosses_the_threshold(data):
    region = profile(data.d, data.means, data.weights, 3)
    best = region.fits.rss[0]

    def rss(c):
        def miss(q):
            return 1e4 * (data.weights * (data.means - c - q[0] * np.exp(-q[1] * data.d)) ** 2).sum()

        return minimize(miss, [0.63, 0.53], method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-12}).fun / 1e4

    for end in np.ravel(region.interval()):
        assert 3 * (rss(end) - best) / best == pytest.approx(stats.f.ppf(0.95, 1, 3), rel=1e-3)


def test_ends_that_do_not_exist_are_open():
    P = np.geomspace(1e3, 1e8, 7)
    straight = 3 - 0.1 * np.log(P) + 0.01 * np.array([1, -1, 1, -1, 1, -1, 1])
    region = profile(np.log(P / P[0]), straight, np.ones(7), 4)
    assert np.isneginf(region.alpha[0]) and np.isneginf(region.interval()[0])
    assert np.isfinite(region.interval()[1])


def test_each_bootstrap_draws_what_it_says(data):
    rng = np.random.default_rng(0)
    y, w = resample(data, "bootstrap_sizes", 50, rng)
    assert (y == data.means).all() and (w.sum(1) == pytest.approx(data.weights.sum())) and len(np.unique(w)) > 2
    y, w = resample(data, "bootstrap_within_sizes", 50, rng)
    assert (w == data.weights).all() and (y.std(0) > 0).all()
    y, w = resample(data, "bootstrap_runs", 50, rng)
    assert (w.sum(1) == len(data.losses)).all()
    y, w = resample(data, "two_stage", 50, rng)
    assert (w.sum(1) == pytest.approx(data.weights.sum())) and (y[w > 0] > 1.4).all() and (y[w == 0] == 0).all()


def test_copied_seeds_do_not_sharpen_the_headline(runs, data):
    runs = runs.drop(columns="seed")
    once = all_intervals(data, 300, np.random.default_rng(0))
    twice = all_intervals(ladder(runs.loc[runs.index.repeat(2)]), 300, np.random.default_rng(0))
    headline = [np.ravel(list(found["profile_size_means"].values())) for found in (once, twice)]
    assert headline[0] == pytest.approx(headline[1], abs=0.005)
    width = [np.ptp(found["profile_runs"]["alpha"]) for found in (once, twice)]
    assert width[1] < 0.8 * width[0], "an interval over runs believes that a copied run is new evidence"


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("size_effect", [0.0, 0.012])
@pytest.mark.parametrize(("sizes", "seeds"), [(7, 3), (7, 7), (12, 3)])
def test_the_headline_interval_holds_the_truth_as_often_as_promised(truth, size_effect, sizes, seeds):
    P, losses = simulate(TRUTHS[truth], sizes, seeds, size_effect, 600, np.random.default_rng(11))
    d, means = np.log(P / P[0]), losses.mean(-1)
    squares = losses.var(-1) * seeds
    region = profile(d, means, size_weights(d, means, squares, np.full(sizes, seeds)), sizes - 3)
    alpha, _, c = TRUTHS[truth]
    for (low, high), value in ((region.alpha, alpha), (region.interval(), c)):
        assert 0.92 <= np.mean((low <= value) & (value <= high)) <= 0.98


def test_the_benchmark_of_coverage_shows_intervals_over_runs_failing_under_a_size_effect(monkeypatch):
    monkeypatch.setattr(interval_coverage, "SHAPES", ((7, 7),))
    monkeypatch.setattr(interval_coverage, "SIZE_EFFECTS", (0.012,))
    table, committed = coverage(studies=40, resamples=60), pd.read_csv(io.CODE / "data" / "coverage.csv")
    assert list(table) == list(committed) and (len(table), len(committed)) == (2 * 6, 12 * 6)
    for shares in (table, committed):
        effect = shares[(shares["size_effect"] > 0) & (shares["seeds"] == 7)].set_index(["method", "truth"])["alpha"]
        for truth in TRUTHS:
            assert max(effect["profile_runs", truth], effect["bootstrap_runs", truth]) < 0.85
            assert effect["profile_size_means", truth] > 0.85


SMALL = replicates.CENSUS | {"cells": 1000, "donors": 10, "genes": 30, "states": 4}, replicates.CONTENT | {
    "regimes": {"known": {"genes": 8, "cells": 300}}, "split": {"validation": 0.2, "test": 0.2, "cells": 100},
    "sizes": [{"name": f"d{width}", "d": width, "layers": 1} for width in (4, 5, 6, 7)],
    "train": {"cells_seen": 640, "batch": 32, "evaluations": 2},
}  # fmt: skip
"""Census and study of a replicate of seconds."""


def test_a_replicate_measures_its_floors_beside_its_law(tmp_path):
    first = pd.DataFrame(replicates.replicate(3, "negative_binomial", tmp_path, *SMALL))
    row, law = first.iloc[0], replicates.law(first)
    assert 0.7 * row["exact"] < row["realised"] < 1.4 * row["exact"] and row["family"] >= row["exact"] - 1e-6
    assert law["best"] == first["loss"].min() and set(law) == set(pd.read_csv(io.CODE / "data/replicates.csv"))
