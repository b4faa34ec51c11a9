"""laws.json and what is read from it: contract, comparison, verdict, sentences."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from lib import fit, io
from lib.fit.compare import condition_number, runs_law, scaling_p
from lib.fit.runs import given as given_runs
from lib.io import InputError
from lib.study import load_study


@pytest.fixture(scope="module")
def table():
    return given_runs(load_study("published-runs"))


@pytest.fixture(scope="module")
def laws(table):
    return fit.fit_laws(table, 500, 0)


def simulated(loss, seeds=3, sizes=7, seed=0):
    """Runs of one regime with `loss` a function of P and noise of 0.01."""
    P = np.repeat(np.geomspace(1e3, 1e8, sizes), seeds)
    noise = 0.01 * np.random.default_rng(seed).standard_normal(len(P))
    return pd.DataFrame(
        {"regime": "r", "size": [f"{p:.0f}" for p in P], "parameters": P, "validation_mse": loss(P) + noise}
    )


def test_the_content_is_json_and_keeps_the_contract(laws):
    assert json.loads(json.dumps(laws, allow_nan=False)) == laws
    assert list(laws) == ["data-rich", "data-limited"]
    assert list(laws["data-rich"]) == ["validation_mse"]
    contract = {
        "form", "alpha", "a", "c", "r2", "n_sizes", "n_runs", "status", "intervals", "level", "floor_bits",
        "comparison", "lack_of_fit", "rollout", "condition_number", "huber", "verdict", "profile",
    }  # fmt: skip
    for by_metric in laws.values():
        assert contract <= set(by_metric["validation_mse"])


def test_known_answers_of_the_published_runs(laws):
    law = laws["data-rich"]["validation_mse"]
    assert (round(law["alpha"], 3), round(law["c"], 3), round(law["r2"], 3)) == (0.529, 1.470, 0.996)
    aicc = {"power + floor": -142, "quadratic": -94, "power": -66, "log-linear": -64, "constant": -49}
    assert {form: round(law["comparison"][form]["aicc"]) for form in aicc} == aicc
    assert law["lack_of_fit"]["df"] == [3, 12]
    assert (round(law["lack_of_fit"]["F"], 2), round(law["lack_of_fit"]["p"], 2)) == (1.21, 0.35)
    predicted = next(row for row in law["rollout"] if row["held_out"] == ["M", "L"] and row["size"] == "M")
    assert predicted["predicted"] == pytest.approx(1.479, abs=5e-4)
    assert predicted["miss"] == pytest.approx(predicted["observed"] - predicted["predicted"])
    bits = [law["floor_bits"]["value"], *law["floor_bits"]["interval"]]
    assert bits == pytest.approx(
        0.5 * np.log2(2 * np.pi * np.e * np.array([law["c"], *law["intervals"]["profile_size_means"]["c"]]))
    )
    assert "There is a floor" in law["verdict"]
    assert "No scaling shown" in laws["data-limited"]["validation_mse"]["verdict"]
    assert laws["data-limited"]["validation_mse"]["status"] == "alpha at grid edge"


def test_the_profile_curve_crosses_its_threshold_at_the_interval(laws):
    curve = laws["data-rich"]["validation_mse"]["profile"]
    low, high = laws["data-rich"]["validation_mse"]["intervals"]["profile_size_means"]["c"]
    inside = np.array(curve["c"])[np.array(curve["relative_rss"]) < curve["threshold"]]
    step = curve["c"][1] - curve["c"][0]
    assert inside.min() == pytest.approx(low, abs=step) and inside.max() == pytest.approx(high, abs=step)
    assert min(curve["relative_rss"]) == pytest.approx(1, abs=0.05)


def test_runs_that_failed_enter_no_fit_and_are_counted(table):
    rich = table[table["regime"] == "data-rich"]
    bad = pd.concat(
        [rich, rich.head(1).assign(status="diverged", validation_mse=99.0), rich.head(2).assign(validation_mse=np.nan)]
    )
    law, clean = (fit.fit_laws(t, 200, 0)["data-rich"]["validation_mse"] for t in (bad, rich))
    assert law.pop("n_left_out") == 3 and clean.pop("n_left_out") == 0
    assert law == clean


def test_a_run_listed_twice_counts_once(table):
    once, twice = (fit.fit_laws(t, 200, 0) for t in (table, pd.concat([table, table])))
    for regime in once:
        left_out = twice[regime]["validation_mse"].pop("n_left_out")
        assert left_out == once[regime]["validation_mse"].pop("n_left_out") + once[regime]["validation_mse"]["n_runs"]
    assert once == twice


def test_a_regime_with_too_few_sizes_does_not_take_the_others_with_it(table):
    few = table[(table["regime"] == "data-rich") | (table["size"] == "M")]
    none = few.assign(status=np.where(few["regime"] == "data-limited", "diverged", "ok"))
    for given, sizes in ((few, 1), (none, 0)):
        laws = fit.fit_laws(given, 200, 0)
        assert laws["data-rich"]["validation_mse"]["status"] == "ok"
        lone = laws["data-limited"]["validation_mse"]
        assert (lone["status"], lone["n_sizes"], lone["alpha"]) == ("too few sizes", sizes, None)
        assert set(lone) == set(laws["data-rich"]["validation_mse"])
        assert len(fit.laws_table(laws)) == 2 and "No law" in fit.answer(laws)[1]
        json.dumps(laws, allow_nan=False)
        fit.curves(laws), fit.comparison_table(laws), fit.rollout_table(laws)


def test_three_sizes_give_a_law_without_an_interval():
    law = fit.fit_laws(simulated(lambda P: 1 + P**-0.3, sizes=3), 200, 0)["r"]["validation_mse"]
    assert law["status"] == "too few sizes" and law["alpha"] is not None and law["intervals"] == {}
    assert np.isnan(fit.band(law, [1e4])[0]).all()


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda P: 1.4 + 0.6 * (P / 1e3) ** -0.5, "There is a floor"),
        (lambda P: 2.0 * (P / 1e3) ** -0.2, "A floor is not shown"),
        (lambda P: 1.5 + 0 * P, "No scaling shown|does not fall"),
        (lambda P: 1.5 + 0.1 * np.log10(P), "does not fall"),
    ],
)
def test_the_verdict_says_what_the_truth_is(loss, said):
    assert re.search(said, fit.fit_laws(simulated(loss), 200, 0)["r"]["validation_mse"]["verdict"])


def test_a_floor_that_is_not_shown_is_not_said_to_reach_zero_when_it_does_not():
    runs = pd.read_csv(io.CODE / "data" / "results" / "protocol" / "runs.csv")
    laws = [law["validation_mse"] for law in fit.fit_laws(runs, 100, 0).values()]
    said = {}
    for law in (law for law in laws if "A floor is not shown" in law["verdict"]):
        low = law["intervals"]["profile_size_means"]["c"][0]
        said.setdefault("its interval reaches zero" in law["verdict"], []).append(low)
    assert all(low is None or low <= 0 for low in said[True])
    assert all(low > 0 for low in said[False])


def test_scaling_is_seldom_seen_where_there_is_none():
    found = [scaling_p(fit.ladder(simulated(lambda P: 1.5 + 0 * P, seed=seed))) < 0.05 for seed in range(200)]
    assert np.mean(found) < 0.12


def test_missing_columns_and_empty_tables_are_named(table):
    with pytest.raises(InputError, match="no column 'regime'"):
        fit.fit_laws(table.drop(columns="regime"), 200, 0)
    with pytest.raises(InputError, match="no run has status ok"):
        fit.fit_laws(table.assign(status="diverged"), 200, 0)
    with pytest.raises(InputError, match="no column 'parameters'"):
        fit.ladder(table.drop(columns="parameters"))
    with pytest.raises(InputError, match="not positive"):
        fit.ladder(table.assign(parameters=0))


def test_losses_that_are_all_equal_do_not_crash():
    law = fit.fit_laws(simulated(lambda P: 0 * P).assign(validation_mse=1.0), 200, 0)["r"]["validation_mse"]
    json.dumps(law, allow_nan=False)
    assert law["status"] != "ok"


def test_the_answer_puts_the_exact_floor_beside_the_fitted_one(laws):
    rich, limited = fit.answer(laws, {"data-rich": 1.46, "data-limited": None})
    assert "alpha = 0.529 (0.447 to 0.639)" in rich and "1.460, lies inside" in rich
    assert "lies outside" in fit.answer(laws, {"data-rich": 1.2})[0]
    assert "no law can be named" in limited


def test_a_law_is_restored_from_its_entry(laws, table):
    law = fit.restore(laws["data-rich"]["validation_mse"])
    assert (law.alpha, law.c) == pytest.approx(
        (laws["data-rich"]["validation_mse"]["alpha"], laws["data-rich"]["validation_mse"]["c"])
    )
    low, high = fit.band(laws["data-rich"]["validation_mse"], law.parameters)
    assert (low < law.predict(law.parameters)).all() and (high > law.predict(law.parameters)).all()
    assert fit.restore(law) is law


def test_condition_number_is_free_of_units(table):
    data = fit.ladder(table[table["regime"] == "data-rich"])
    law = runs_law(data)
    other = fit.power_law(law.parameters * 1e3, law.losses * 50)
    assert condition_number(other) == pytest.approx(condition_number(law), rel=1e-6)
