"""Joint laws in (N, D) and the planner: recovery, closed forms, refusals, coverage."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares

from lib import fit
from lib.io import InputError

N, D = np.geomspace(1e4, 1e8, 6), np.geomspace(2e3, 2e5, 5)
E, A, a, B, b, SEEN = 0.4, 0.5, 0.35, 0.3, 0.45, 1e6


def loss(n, d):
    return E + A * (n / 1e4) ** -a + B * (d / 2e3) ** -b


def grid(noise=0.005, seed=0, formula=loss, by_size=0.0):
    """A table of the grid, with noise and optionally an error that all cells of a size share."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame([(n, d) for n in N for d in D], columns=["parameters", "cells_train"]).assign(cells_seen=SEEN)
    shared = by_size * np.repeat(rng.standard_normal(len(N)), len(D))
    clean = formula(table["parameters"], table["cells_train"])
    return table.assign(loss=clean + shared + noise * rng.standard_normal(len(table)))


def repeated(n, d, R=8.0):
    return loss(n, d * (1 + R * (1 - np.exp(-(SEEN / d - 1) / R))))


@pytest.fixture(scope="module")
def law():
    return fit.joint_law(grid(), resamples=200)


def test_joint_laws_without_noise_are_recovered():
    additive = fit.joint_law(grid(0), resamples=0)
    assert additive.theta == pytest.approx([a, b], rel=1e-6) and additive.linear == pytest.approx([E, A, B], rel=1e-6)
    again = fit.joint_law(grid(0, formula=repeated), "repeated data", resamples=0)
    assert again.theta == pytest.approx([a, b, 8.0], rel=1e-4) and again.rss < 1e-12
    crossed = fit.joint_law(
        grid(0, formula=lambda n, d: loss(n, d) + 0.2 * (n / 1e4) ** -a * (d / 2e3) ** -b), "interaction", 0
    )
    assert crossed.theta == pytest.approx([a, b], rel=1e-5) and crossed.linear[3] == pytest.approx(0.2, rel=1e-4)


def test_the_joint_fit_agrees_with_scipy():
    table = grid(0.01, seed=4)
    ours = fit.joint_law(table, resamples=0)

    def miss(q):
        return (
            q[0]
            + q[1] * (table["parameters"] / 1e4) ** -q[3]
            + q[2] * (table["cells_train"] / 2e3) ** -q[4]
            - table["loss"]
        )

    theirs = least_squares(miss, [E, A, B, a, b], xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert ours.rss == pytest.approx(2 * theirs.cost, rel=1e-9)
    assert [*ours.linear, *ours.theta] == pytest.approx(list(theirs.x), rel=1e-5)


def test_held_out_prediction_prefers_the_true_form():
    table = fit.compare_joint(grid(0.001, formula=repeated)).set_index("form")
    assert table["rmse_largest_D"].idxmin() == "repeated data"
    assert table.loc["repeated data", "aicc"] < table.loc["additive", "aicc"]


def test_grids_that_determine_no_joint_law_are_refused():
    with pytest.raises(InputError, match="three model sizes"):
        fit.joint_law(grid().query("parameters < 1e5"))
    with pytest.raises(InputError, match="three numbers of training cells"):
        fit.joint_law(grid().query("cells_train < 1e4"))
    with pytest.raises(InputError, match="no column 'loss'"):
        fit.joint_law(grid().drop(columns="loss"))
    with pytest.raises(InputError, match="no joint law"):
        fit.joint_law(grid(), "multiplicative")


def test_the_plan_finds_the_closed_form_turning_point_and_budget_optimum():
    exact = fit.joint_law(grid(1e-7), resamples=50)
    plan = fit.plan(exact, 1e6, 2e4, flops=1e10, flops_per_cell_parameter=1.0)
    turning = 1e4 * (a * A / (b * B * (2e4 / 2e3) ** -b)) ** (1 / a)
    assert plan["turning_point"]["parameters"]["value"] == pytest.approx(turning, rel=1e-3)
    assert plan["turning_point"]["cells_per_parameter"]["value"] == pytest.approx(2e4 / turning, rel=1e-3)
    trial = np.geomspace(1e5, 1e7, 20_001)
    best = trial[np.argmin(loss(trial, 1e10 / trial))]
    assert plan["best"]["parameters"]["value"] == pytest.approx(best, rel=2e-3)
    assert plan["best"]["cells"] * plan["best"]["parameters"]["value"] == pytest.approx(1e10)
    gains = fit.gains_table(plan).set_index(["of", "factor"])["gain"]
    assert gains["parameters", 2] == pytest.approx(loss(1e6, 2e4) - loss(2e6, 2e4), rel=1e-3)
    assert gains["cells", 10] == pytest.approx(loss(1e6, 2e4) - loss(1e6, 2e5), rel=1e-3)


def test_the_plan_tells_capacity_from_data(law):
    assert fit.plan(law, 1e4, 2e5)["limited_by"] == "capacity"
    assert fit.plan(law, 1e8, 2e3)["limited_by"] == "data"
    turning = fit.plan(law, 1e6, 2e4)["turning_point"]["parameters"]["value"]
    assert fit.plan(law, turning, 2e4)["limited_by"] == "not resolved"
    json.dumps(fit.plan(law, 1e6, 2e4, 1e10, 1.0), allow_nan=False)
    assert (fit.frontier(law, D)["parameters"].diff().dropna() > 0).all()


def test_extrapolation_beyond_the_reach_is_refused(law):
    with pytest.raises(InputError, match="times outside the fitted range"):
        fit.plan(law, 1e10, 2e4)
    with pytest.raises(InputError, match="needs flops_per_cell_parameter"):
        fit.plan(law, 1e6, 2e4, flops=1e15)
    with pytest.raises(InputError, match="no draws"):
        fit.plan(fit.joint_law(grid(), resamples=0), 1e6, 2e4)
    gains = fit.gains_table(fit.plan(law, 5e8, 2e4))
    assert gains["refused"].notna().tolist() == [False, True, False, False]
    assert "refused" in fit.plan(law, 1e6, 2e4, flops=1e30, flops_per_cell_parameter=1.0)["best"]


@pytest.mark.parametrize("by_size", [0.0, 0.005])
def test_draws_hold_the_truth_even_when_a_size_shares_an_error(by_size):
    truth = loss(1e6, 2e4) - loss(2e6, 2e4)
    held = []
    for seed in range(40):
        draws = fit.joint_law(grid(seed=seed, by_size=by_size), resamples=100, seed=seed).draws
        low, high = np.quantile(draws.predict(1e6, 2e4) - draws.predict(2e6, 2e4), [0.025, 0.975])
        held.append(low <= truth <= high)
    assert np.mean(held) >= 0.87


def as_runs(table, **columns):
    return table.rename(columns={"loss": "validation_mse"}).assign(status="ok", genes=512, size="x", **columns)


def test_the_outlook_plans_from_the_largest_run_and_says_so_in_words():
    found = fit.outlook(as_runs(grid()), resamples=100)
    assert (found["plan"]["parameters"], found["plan"]["cells"]) == pytest.approx((N[-1], D[-1]))
    limit = found["plan"]["limited_by"]
    assert ("neither" if limit == "not resolved" else f"limited by {limit}") in found["sentence"]
    assert "lies more than 10 times beyond" not in found["sentence"], "ten times the largest run is within reach"
    assert set(found["comparison"]["form"]) == {"additive", "repeated data", "interaction"}


def test_runs_with_fewer_than_three_numbers_of_cells_get_a_sentence_instead_of_a_plan():
    two = as_runs(grid()).query("cells_train < 1e4 and cells_train > 0")
    two = two[two["cells_train"].isin(sorted(two["cells_train"].unique())[:2])]
    found = fit.outlook(two)
    assert list(found) == ["sentence"] and "at least three numbers of training cells" in found["sentence"]


def test_panels_of_different_genes_are_not_one_grid():
    mixed = as_runs(grid())
    mixed["genes"] = np.where(mixed["cells_train"] > 1e5, 1024, 512)
    found = fit.outlook(mixed, resamples=50)
    assert found["grid"]["cells_train"].max() < 1e5
