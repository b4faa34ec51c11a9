"""The published study: its fitter reproduced, and what each of its choices changes."""

import pytest

from lib.fit import published, summary
from lib.fit.law import ladder
from lib.fit.runs import given
from lib.study import load_study


@pytest.fixture(scope="module")
def table():
    return given(load_study("published-runs"))


@pytest.fixture(scope="module")
def rich(table):
    return table[table["regime"] == "data-rich"]


def test_the_published_fit_is_reproduced(table):
    rich, limited = (row for _, row in published.fits(table).iterrows())
    assert rich["alpha"] == pytest.approx(0.26643, abs=1e-5) and rich["a"] == pytest.approx(2.15276, abs=1e-5)
    assert rich["c"] == pytest.approx(1.443758, abs=1e-6) and rich["r2"] == pytest.approx(0.85798, abs=1e-5)
    assert rich["c"] == pytest.approx(0.99 * 1.458341) and rich["c_at_edge"]
    assert rich["rss"] == pytest.approx(0.201, abs=5e-4)
    assert round(limited["alpha"], 3) == 0.009 and limited["printed_alpha"] == 0.009


def test_the_criterion_climbs_to_the_edge_and_no_law_on_it_is_near_least_squares(rich):
    curve = published.criterion(rich)
    assert len(curve) == 300 and curve["r2"].is_monotonic_increasing
    assert curve["rss"].min() > 50 * summary.runs_law(ladder(rich)).rss


def test_choices_change_the_law_as_stated(rich):
    refits = published.refits(rich).set_index("fit")
    assert round(refits.loc["without XXS", "alpha"], 2) == 0.42 and round(refits.loc["without XXS", "c"], 3) == 1.465
    assert round(refits.loc["c at the smallest loss", "alpha"], 3) == 0.493
    left_out = refits.loc[refits.index.str.startswith("without"), "alpha"]
    assert (round(left_out.min(), 2), round(left_out.max(), 2)) == (0.42, 0.55)
    assert refits.loc["final loss", "c"] > refits.loc["least squares", "c_high"]


def test_two_sizes_or_none_leave_the_tables_empty_rather_than_broken(table):
    two = table[table["size"].isin(["XXS", "M"])]
    laws = summary.fit_laws(two, 200, 0)
    assert summary.comparison_table(laws).empty and summary.curves(laws).empty and summary.rollout_table(laws).empty
    assert summary.intervals_table(laws).empty and len(published.fits(two)) == 2
    two = two[two["regime"] == "data-rich"]
    assert set(published.refits(two)["status"].dropna()) == {"too few sizes"} and published.both_fits(two).empty
    for runs in (two[two["size"] == "M"], table.assign(validation_mse=-1.0)):
        assert published.fits(runs).empty and published.refits(runs).empty and published.both_fits(runs).empty
