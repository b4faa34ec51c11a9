"""The law: global optimum, agreement with other solvers, invariances, refusals."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from lib.fit.law import Status, alpha_grid, fit_many, ladder, means_law, power_law, project, size_weights
from lib.fit.summary import runs_law


def power_floor(P, a, alpha, c):
    return a * P**-alpha + c


@settings(max_examples=60, deadline=None)
@given(
    alpha=st.floats(0.06, 1.5), amplitude=st.floats(0.05, 3), c=st.floats(-2, 3),
    sizes=st.integers(4, 12), smallest=st.floats(10, 1e6),
)  # fmt: skip
def test_a_law_without_noise_is_recovered(alpha, amplitude, c, sizes, smallest):
    P = np.geomspace(smallest, smallest * 1e5, sizes)
    law = power_law(P, amplitude * (P / smallest) ** -alpha + c)
    assert law.alpha == pytest.approx(alpha, rel=1e-5)
    assert law.c == pytest.approx(c, abs=1e-5)
    assert law.a == pytest.approx(amplitude * smallest**alpha, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(alpha=st.floats(0.1, 1), c=st.floats(-1, 2), noise=st.floats(0.001, 0.03), seed=st.integers(0, 10_000))
def test_the_fit_agrees_with_scipy_where_scipy_converges(alpha, c, noise, seed):
    rng = np.random.default_rng(seed)
    P = np.repeat(np.geomspace(500, 3e8, 7), 3)
    L, w = power_floor(P / 500, 0.6, alpha, c) + noise * rng.standard_normal(21), rng.uniform(0.5, 2, 21)
    law = power_law(P, L, w)
    try:
        with warnings.catch_warnings(action="ignore"):
            tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15, "maxfev": 4000}
            theirs, _ = curve_fit(power_floor, P / 500, L, p0=(0.6, alpha, c), sigma=w**-0.5, **tight)
    except RuntimeError:
        return
    rss = (w * (L - power_floor(P / 500, *theirs)) ** 2).sum()
    assert law.rss <= rss * (1 + 1e-9)
    if rss <= law.rss * (1 + 1e-12) and law.status == Status.OK:
        assert [law.coefficients[0], law.alpha, law.c] == pytest.approx(list(theirs), rel=1e-6, abs=1e-6)


def test_no_other_alpha_leaves_a_smaller_sum_of_squares():
    rng = np.random.default_rng(1)
    d = np.sort(rng.uniform(0, 12, 6))
    d -= d[0]
    y = rng.standard_normal((200, 6))
    w = rng.uniform(0.5, 2, y.shape)
    fits = fit_many(d, y, w)
    dense = np.geomspace(*alpha_grid(d)[[0, -1]], 4000)
    everywhere = project(d, y.T[:, None], w.T[:, None], dense[:, None]).rss.min(0)
    assert (fits.rss <= everywhere * (1 + 1e-9)).all()


def test_weights_of_equal_seeds_change_nothing_and_no_loss_bounds_the_floor(published_runs):
    runs = published_runs.query("regime == 'data-rich'")
    data = ladder(runs)
    law, over_runs = means_law(data), runs_law(data)
    assert over_runs.rss == pytest.approx(0.0036, abs=5e-5) and over_runs.alpha == pytest.approx(law.alpha, rel=1e-9)
    assert law.c > runs["validation_mse"].min(), "a floor bounded by the smallest loss would end below it"


def test_status_when_loss_rises_or_is_straight_in_log_p():
    P = np.geomspace(1e3, 1e8, 7)
    wobble = 0.001 * np.array([1, -1, 1, -1, 1, -1, 1])
    assert power_law(P, np.log(P) + wobble).status in (Status.INCREASING, Status.ALPHA_AT_EDGE)
    assert power_law(P, 2 - P**-0.3).status == Status.INCREASING
    assert power_law(P, 3 - 0.1 * np.log(P) + 20 * wobble).status in (Status.NO_FLOOR, Status.ALPHA_AT_EDGE)
    assert power_law(P[:3], [3, 2, 1.8]).status == Status.TOO_FEW_SIZES


def test_sizes_whose_seeds_scatter_more_weigh_less_once_there_are_seeds_to_tell():
    rng = np.random.default_rng(0)
    d, sd = np.linspace(0, 12, 7), np.geomspace(0.1, 0.01, 7)
    losses = 1.4 + 0.6 * np.exp(-0.5 * d)[:, None] + sd[:, None] * rng.standard_normal((7, 8))
    squares = ((losses - losses.mean(1, keepdims=True)) ** 2).sum(1)
    assert size_weights(d, losses.mean(1), squares, np.full(7, 8))[0, 0] < 0.7
    assert size_weights(d, losses.mean(1), squares, np.full(7, 3))[0] == pytest.approx(1)
