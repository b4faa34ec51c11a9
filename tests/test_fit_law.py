"""The law: global optimum, agreement with other solvers, invariances, refusals."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit, minimize

from lib import fit
from lib.fit.compare import means_law, runs_law
from lib.fit.projection import alpha_grid, fit_many, project
from lib.fit.runs import given as given_runs
from lib.io import InputError
from lib.study import load_study


@pytest.fixture(scope="module")
def runs():
    return given_runs(load_study("published-runs")).query("regime == 'data-rich'")


def power_floor(P, a, alpha, c):
    return a * P**-alpha + c


@settings(max_examples=60, deadline=None)
@given(
    alpha=st.floats(0.06, 1.5), amplitude=st.floats(0.05, 3), c=st.floats(-2, 3),
    sizes=st.integers(4, 12), smallest=st.floats(10, 1e6),
)  # fmt: skip
def test_a_law_without_noise_is_recovered(alpha, amplitude, c, sizes, smallest):
    P = np.geomspace(smallest, smallest * 1e5, sizes)
    law = fit.power_law(P, amplitude * (P / smallest) ** -alpha + c)
    assert law.alpha == pytest.approx(alpha, rel=1e-5)
    assert law.c == pytest.approx(c, abs=1e-5)
    assert law.a == pytest.approx(amplitude * smallest**alpha, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(alpha=st.floats(0.1, 1), c=st.floats(-1, 2), noise=st.floats(0.001, 0.03), seed=st.integers(0, 10_000))
def test_the_fit_agrees_with_scipy_where_scipy_converges(alpha, c, noise, seed):
    rng = np.random.default_rng(seed)
    P = np.repeat(np.geomspace(500, 3e8, 7), 3)
    L, w = power_floor(P / 500, 0.6, alpha, c) + noise * rng.standard_normal(21), rng.uniform(0.5, 2, 21)
    law = fit.power_law(P, L, w)
    try:
        with warnings.catch_warnings(action="ignore"):
            tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15, "maxfev": 4000}
            theirs, _ = curve_fit(power_floor, P / 500, L, p0=(0.6, alpha, c), sigma=w**-0.5, **tight)
    except RuntimeError:
        return
    rss = (w * (L - power_floor(P / 500, *theirs)) ** 2).sum()
    assert law.rss <= rss * (1 + 1e-9)
    if rss <= law.rss * (1 + 1e-12) and law.status == "ok":
        assert [law.coefficients[0], law.alpha, law.c] == pytest.approx(list(theirs), rel=1e-6, abs=1e-6)


def test_no_other_alpha_leaves_a_smaller_sum_of_squares():
    rng = np.random.default_rng(1)
    d = np.sort(rng.uniform(0, 12, 6))
    d -= d[0]
    y = rng.standard_normal((200, 6))
    fits = fit_many(d, y, np.ones_like(y))
    dense = np.geomspace(*alpha_grid(d)[[0, -1]], 4000)
    everywhere = project(d, y.T[:, None], np.ones((6, 1, 1)), dense[:, None]).rss.min(0)
    assert (fits.rss <= everywhere * (1 + 1e-9)).all()


def test_a_published_number_that_moved_would_be_a_wrong_fit(runs):
    data = fit.ladder(runs)
    law = means_law(data)
    assert (round(law.alpha, 3), round(law.c, 3), law.status) == (0.529, 1.470, "ok")
    over_runs = runs_law(data)
    assert over_runs.rss == pytest.approx(0.0036, abs=5e-5)
    assert over_runs.r2 == pytest.approx(0.996, abs=5e-4)
    assert over_runs.alpha == pytest.approx(law.alpha, rel=1e-9)
    assert law.c > runs["validation_mse"].min(), "a floor bounded by the smallest loss would end below it"


def test_units_of_parameters_and_of_loss_do_not_matter(runs):
    P, L = runs["parameters"].to_numpy(float), runs["validation_mse"].to_numpy()
    law = fit.power_law(P, L)
    other = fit.power_law(P / 1e6, 1000 * L - 7)
    assert other.alpha == pytest.approx(law.alpha, rel=1e-8)
    assert other.c == pytest.approx(1000 * law.c - 7, rel=1e-8)
    assert other.a == pytest.approx(1000 * law.a * 1e6**-law.alpha, rel=1e-6)
    assert other.predict(P / 1e6) == pytest.approx(1000 * law.predict(P) - 7, rel=1e-8)


def test_negative_losses_are_fitted_but_have_no_logarithm():
    P = np.geomspace(1e3, 1e8, 7)
    L = power_floor(P / 1e3, 0.8, 0.4, -0.5)
    assert fit.power_law(P, L).c == pytest.approx(-0.5, abs=1e-6)
    assert fit.huber_law(P, L) is None


def test_every_form_recovers_itself_and_predicts():
    P = np.geomspace(1e3, 1e8, 8)
    x = np.log(P)
    truths = {
        "power": 3 * P**-0.1,
        "log-linear": 2 - 0.05 * x,
        "quadratic": 2 - 0.05 * x + 0.01 * x**2,
        "constant": 2 + 0 * x,
    }
    for form, L in truths.items():
        law = fit.power_law(P, L, form=form)
        assert law.predict(P) == pytest.approx(L, rel=1e-8), form
        assert form.split()[0] in str(law) or "P^-" in str(law)


def test_status_says_when_loss_rises_or_is_straight_in_log_p():
    P = np.geomspace(1e3, 1e8, 7)
    wobble = 0.001 * np.array([1, -1, 1, -1, 1, -1, 1])
    assert fit.power_law(P, np.log(P) + wobble).status in ("increasing", "alpha at grid edge")
    assert fit.power_law(P, 2 - P**-0.3).status == "increasing"
    assert fit.power_law(P, 3 - 0.1 * np.log(P) + 20 * wobble).status in ("floor not identified", "alpha at grid edge")
    assert fit.power_law(P[:3], [3, 2, 1.8]).status == "too few sizes"


def test_one_or_two_sizes_are_refused_with_the_reason():
    for P in ([1e3] * 5, [1e3, 1e6] * 3):
        with pytest.raises(InputError, match="parameters and there are only"):
            fit.power_law(P, np.linspace(2, 1, len(P)))


@pytest.mark.parametrize(
    ("P", "L", "w", "said"),
    [
        ([1, 2, 3, 4], [1, np.nan, 1, 1], None, "losses holds nan at row 1"),
        ([1, 2, -3, 4], [1, 1, 1, 1], None, "parameters holds -3"),
        ([1, 2, 3, 4], [1, 1, 1, 1], [1, 1, 1, 0], "weights holds 0"),
        ([1, 2, 3], [1, 1, 1, 1], None, "3 parameter counts, 4 losses"),
    ],
)
def test_bad_values_are_named(P, L, w, said):
    with pytest.raises(InputError, match=said):
        fit.power_law(P, L, w)
    with pytest.raises(InputError, match="no form"):
        fit.power_law([1, 2, 3], [3, 2, 1], form="cubic")


def test_weights_are_inverse_variances():
    P = np.geomspace(1e3, 1e8, 7)
    L = power_floor(P / 1e3, 0.6, 0.4, 1.4) + np.array([0, 0.01, -0.01, 0.02, 0, 0.01, -0.02])
    w = np.array([1, 2, 1, 3, 1, 2, 1])
    assert fit.power_law(P, L, w).alpha == pytest.approx(
        fit.power_law(np.repeat(P, w), np.repeat(L, w)).alpha, rel=1e-9
    )


def test_huber_reaches_the_optimum_of_its_loss_and_ignores_a_failed_run(runs):
    P, L = runs["parameters"].to_numpy(float), runs["validation_mse"].to_numpy()

    def loss(q):
        r = abs(np.log(L) - np.log(np.exp(q[0]) * (P / P.min()) ** -q[1] + q[2]))
        return np.where(r < 1e-3, r * r / 2, 1e-3 * (r - 5e-4)).sum()

    law = fit.huber_law(P, L)
    options = {"xatol": 1e-10, "fatol": 1e-16, "maxiter": 4000}
    best = min(
        minimize(loss, [-0.5, a, c], method="Nelder-Mead", options=options).fun for a in (0.3, 0.7) for c in (1.4, 1.48)
    )
    assert loss([np.log(law.coefficients[0]), law.alpha, law.c]) <= best * 1.001
    spoilt = L.copy()
    spoilt[4] += 1
    assert abs(fit.huber_law(P, spoilt).alpha - law.alpha) < 0.05
    assert abs(fit.power_law(P, spoilt).alpha - law.alpha) > 0.1


def test_ten_thousand_runs_and_ten_thousand_sizes_fit():
    rng = np.random.default_rng(0)
    P = rng.uniform(1e3, 1e8, 10_000)
    L = power_floor(P / 1e3, 0.6, 0.4, 1.4) + 0.01 * rng.standard_normal(10_000)
    assert fit.power_law(P, L).c == pytest.approx(1.4, abs=0.005)
    few = np.resize(np.geomspace(1e3, 1e8, 9), 10_000)
    noisy = power_floor(few / 1e3, 0.6, 0.4, 1.4) + 0.01 * rng.standard_normal(10_000)
    assert fit.power_law(few, noisy).alpha == pytest.approx(0.4, abs=0.01)


def test_memory_stays_bounded_because_fits_run_in_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    d = np.linspace(0, 12, 7)
    y = 1.4 + 0.6 * np.exp(-0.5 * d) + 0.01 * rng.standard_normal((500, 7))
    whole = fit_many(d, y, np.ones_like(y))
    monkeypatch.setattr("lib.fit.projection.CHUNK_NUMBERS", 2000)
    assert fit_many(d, y, np.ones_like(y)).alpha == pytest.approx(whole.alpha, rel=1e-12)


def test_the_order_of_rows_decides_nothing(runs):
    shuffled = runs.sample(frac=1, random_state=3)
    one, other = (fit.fit_laws(pd.DataFrame(t), 200, 0) for t in (runs, shuffled))
    assert one == other
