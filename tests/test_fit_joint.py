"""Joint laws in (N, D) and the plan for the next run: recovery, closed forms, refusals, coverage."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares

from lib.fit.joint import capacity_share, frontier, gains, joint_law
from lib.io import InputError

N, D = np.geomspace(1e4, 1e8, 6), np.geomspace(2e3, 2e5, 5)
E, A, a, B, b = 0.4, 0.5, 0.35, 0.3, 0.45


def loss(n, d):
    return E + A * (n / 1e4) ** -a + B * (d / 2e3) ** -b


def grid(noise=0.005, seed=0, by_size=0.0):
    """A table of the grid, with noise and optionally an error that all cells of a size share."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame([(n, d) for n in N for d in D], columns=["parameters", "cells_train"])
    shared = by_size * np.repeat(rng.standard_normal(len(N)), len(D))
    clean = loss(table["parameters"], table["cells_train"])
    return table.assign(loss=clean + shared + noise * rng.standard_normal(len(table)))


@pytest.fixture(scope="module")
def law():
    return joint_law(grid(), resamples=200)


def test_the_joint_fit_agrees_with_scipy():
    table = grid(0.01, seed=4)
    ours = joint_law(table, resamples=1)
    n, d = table["parameters"] / 1e4, table["cells_train"] / 2e3

    def miss(q):
        return q[0] + q[1] * n ** -q[3] + q[2] * d ** -q[4] - table["loss"]

    theirs = least_squares(miss, [E, A, B, a, b], xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert ours.rss == pytest.approx(2 * theirs.cost, rel=1e-9)
    assert [*ours.linear, *ours.theta] == pytest.approx(list(theirs.x), rel=1e-5)


@pytest.mark.parametrize("table, said", [
    (grid().query("parameters < 1e5"), "three model sizes"),
    (grid().query("cells_train < 1e4"), "three numbers of training cells"),
    (grid().iloc[[0, 6, 12, 18, 24]], "needs 6 cells of the grid"),
], ids=["sizes", "cells", "freedom"])  # fmt: skip
def test_grids_that_determine_no_joint_law_are_refused(table, said):
    with pytest.raises(InputError, match=said):
        joint_law(table)


def test_the_crossover_and_what_more_would_save_have_closed_forms():
    law = joint_law(grid(1e-7), resamples=50)
    crossover = 1e4 * (a * A / (b * B * (2e4 / 2e3) ** -b)) ** (1 / a)
    assert frontier(law, [2e4]).item() == pytest.approx(crossover, rel=1e-3)
    saved = gains(law, 1e6, 2e4).set_index(["of", "factor"])["gain"]
    assert saved["parameters", 2] == pytest.approx(loss(1e6, 2e4) - loss(2e6, 2e4), rel=1e-3)
    assert saved["cells", 10] == pytest.approx(loss(1e6, 2e4) - loss(1e6, 2e5), rel=1e-3)


def test_capacity_is_told_from_data(law):
    assert capacity_share(law, 1e4, 2e5) == 1 and capacity_share(law, 1e8, 2e3) == 0
    crossings = frontier(law, D)
    assert (np.diff(crossings) > 0).all() and 0.1 < capacity_share(law, crossings[2], D[2]) < 0.9


def test_what_lies_beyond_the_reach_has_no_number(law):
    assert gains(law, 5e8, 2e4)["gain"].isna().tolist() == [False, True, False, False]
    assert np.isnan(frontier(law, [2e9])).all()


def test_draws_hold_the_truth_even_when_a_size_shares_an_error():
    truth = loss(1e6, 2e4) - loss(2e6, 2e4)
    held = []
    for seed in range(20):
        draws = joint_law(grid(seed=seed, by_size=0.005), resamples=100, seed=seed).draws
        low, high = np.quantile(draws.predict(1e6, 2e4) - draws.predict(2e6, 2e4), [0.025, 0.975])
        held.append(low <= truth <= high)
    assert np.mean(held) >= 0.85
