"""Capacity or budget: laws at every budget, their limit, what a law hangs on, and how narrow an interval may be."""

import copy

import numpy as np
import pandas as pd
import pytest

from lib import io
from lib.fit import capacity
from lib.fit.intervals import HEADLINE
from lib.fit.law import Status
from lib.fit.summary import fit_laws, intervals_table, laws_table

FLOOR = 0.13
GOLDEN = [14, 1.4647, 1.3458, 1.4962, 1.4664, 0.1292, 0.1192, 0.1357]
"""FIT_NUMERICS; floors of the published runs with their interval, of the bounded form, and in the limit of budgets."""


def trained(fall=2e-2, power=0.5, noise=0.0, sizes=8, seeds=2, convergence="converged", error=1e-3):
    """Runs of one regime: 0.13 + 0.3 N^-0.3 and what a budget leaves, `fall` at the whole one."""
    rng, widths = np.random.default_rng(0), 4 * 2 ** np.arange(sizes)
    rows = []
    for width in widths:
        for seed in range(seeds):
            N = 10.0 * width**2
            row = {"regime": "r", "size": f"d{width}", "seed": seed, "width": width, "parameters": N, "status": "ok",
                   "cells_seen": 1000, "parameters_without_embeddings": 9.0 * width**2, "gene_mean_mse": 0.3,
                   "convergence": convergence, "validation_mse_se": error}  # fmt: skip
            for name, share in {"eighth": 1 / 8, "quarter": 1 / 4, "half": 1 / 2, "": 1.0}.items():
                loss = FLOOR + 0.3 * N**-0.3 + fall * share**-power + noise * rng.standard_normal()
                row[f"validation_mse_{name}".rstrip("_")] = loss
            rows.append(row)
    return pd.DataFrame(rows)


def law_of(table, errors="donors"):
    return fit_laws(table, 100, 0, errors=errors)["r"]["validation_mse"]


def test_every_budget_has_the_floor_of_its_law_and_the_interval_of_their_limit_holds_that_of_all():
    laws = law_of(trained())["budget"]
    for name, share in {"eighth": 1 / 8, "quarter": 1 / 4, "half": 1 / 2, "whole": 1.0}.items():
        assert laws[name]["c"] == pytest.approx(FLOOR + 2e-2 * share**-0.5, abs=1e-4)
    assert laws["limit"]["c"] == pytest.approx(FLOOR, abs=2e-3)
    laws = law_of(trained(noise=3e-4))["budget"]
    (low, high), (whole_low, whole_high) = (laws[name]["intervals"][HEADLINE]["c"] for name in ("limit", "whole"))
    assert low < FLOOR < high and high - low > whole_high - whole_low and not whole_low < FLOOR < whole_high


def test_runs_that_have_not_learned_give_no_number_but_the_limit():
    table = trained(noise=3e-4, convergence="not converged")
    laws, numbers = fit_laws(table, 100, 0), ["alpha", "c", "c_low", "c_high"]
    assert laws["r"]["validation_mse"]["status"] == Status.BUDGET and laws["r"]["validation_mse"]["intervals"]
    shown, choices = laws_table(laws, {}).iloc[0], capacity.sensitivity_table(laws).set_index("choice")
    assert shown[numbers].isna().all() and shown["limit"] == pytest.approx(FLOOR, abs=2e-3)
    assert len(choices) == 2 and choices.loc["headline", numbers].isna().all() and choices.iloc[1:]["c"].notna().all()
    assert intervals_table(laws).empty
    assert law_of(table.assign(convergence="converged"))["status"] == Status.OK


def test_runs_that_longer_training_makes_worse_are_not_called_budget_limited():
    table = trained(noise=3e-4)
    largest = table["width"] == table["width"].max()
    raised = table.assign(validation_mse_half=table["validation_mse"].where(~largest, table["validation_mse"] * 0.9))
    raised["convergence"] = np.where(largest, "not converged", "converged")
    laws = fit_laws(raised, 100, 0)
    assert laws["r"]["validation_mse"]["status"] == Status.OVERFITTED
    assert laws_table(laws, {}).iloc[0][["alpha", "c", "limit"]].isna().all() and intervals_table(laws).empty
    falls = raised.assign(convergence=np.where(table["width"] < 8, "not converged", raised["convergence"]))
    assert law_of(falls)["status"] == Status.OVERFITTED, "longer training would lower the smallest alone"


def test_sizes_that_see_no_context_are_left_out_of_the_law_and_their_pull_is_shown():
    table = trained()
    blind = table.head(1).assign(width=1, size="XXS", parameters=40.0, parameters_without_embeddings=8.0)
    blind["validation_mse"] = 0.3
    law = law_of(pd.concat([table, blind]))
    assert law["c"] == law_of(table)["c"] and law["n_sizes"] == 8
    pulled = law["sensitivity"]["with sizes that see no context"]
    assert pulled["c"] != pytest.approx(law["c"], abs=1e-4)


def test_the_number_of_fits_is_raised_when_their_results_change(published_runs):
    law = fit_laws(published_runs, 100, 0)["data-rich"]["validation_mse"]
    of, ends = law["sensitivity"]["bounded by the gene mean"], law["intervals"][HEADLINE]["c"]
    limit = law_of(trained(noise=3e-4))["budget"]["limit"]
    numbers = [law["c"], *ends, of["c"], limit["c"], *limit["intervals"][HEADLINE]["c"]]
    assert [io.FIT_NUMERICS, *(round(number, 4) for number in numbers)] == GOLDEN, "raise FIT_NUMERICS in lib/io.py"


def test_a_law_hangs_on_every_choice_as_little_as_it_was_drawn_to():
    choices = law_of(trained())["sensitivity"]
    assert set(choices) == {
        "smallest size left out", "largest size left out", "parameters without embeddings", "bounded by the gene mean",
    }  # fmt: skip
    for name in set(choices) - {"bounded by the gene mean"}:  # another form, which has a test of its own
        assert choices[name]["c"] == pytest.approx(FLOOR + 2e-2, abs=1e-3), name


def test_the_bounded_form_finds_its_own_floor():
    table = trained(fall=0.0)
    h = 2.0 * table["parameters"] ** -0.4
    for column in [name for name in table if name.startswith("validation_mse") and not name.endswith("se_se")]:
        table[column] = FLOOR + (0.3 - FLOOR) * h / (1 + h)
    found = law_of(table)["sensitivity"]["bounded by the gene mean"]
    assert found["c"] == pytest.approx(FLOOR, abs=1e-4) and found["alpha"] == pytest.approx(0.4, abs=1e-2)


@pytest.mark.parametrize("error", ["cells", "donors", "budget", "seeds"])
def test_no_interval_is_narrower_than_what_is_known_of_the_losses(error):
    """Sizes on a perfect line: with few degrees of freedom a residual can be small by luck."""
    table = trained(sizes=5, fall=0.0, error=0.0)
    low, high = law_of(table)["intervals"][HEADLINE]["c"]
    assert FLOOR - 1e-4 < low < high < FLOOR + 1e-4
    if error == "cells":
        table = table.assign(validation_mse_se=1e-3)
    if error == "donors":  # of three donors 5e-4 is known to 4.3 times that
        table = table.assign(validation_mse_donor_se=5e-4, validation_donors=3)
    if error == "budget":
        for name, left in {"eighth": 14e-3, "quarter": 6e-3, "half": 2e-3}.items():
            table[f"validation_mse_{name}"] = table["validation_mse"] + left
    if error == "seeds":
        table["validation_mse"] += np.where(table["seed"] == 0, 1e-3, -1e-3)
    low, high = law_of(table)["intervals"][HEADLINE]["c"]
    assert low < FLOOR - 1e-3 < FLOOR + 1e-3 < high
    if error == "donors":  # who differ by nothing else, the study may say
        low, high = law_of(table, errors="cells")["intervals"][HEADLINE]["c"]
        assert FLOOR - 1e-4 < low < high < FLOOR + 1e-4
        nobody_counted = law_of(table.drop(columns="validation_donors"))["intervals"][HEADLINE]["c"]
        assert nobody_counted == pytest.approx([FLOOR - 1.96 * 5e-4, FLOOR + 1.96 * 5e-4], abs=1e-4)


def test_the_headline_interval_reaches_from_the_law_of_the_budget_to_its_limit():
    """The last half of the updates moves all losses by half a percent, and the limit lies one percent below them."""
    table = trained(fall=1e-2)
    losses = [name for name in table if name.startswith("validation_mse") and not name.endswith("_se")]
    law = law_of(table.assign(**(table[losses] + 0.7)))
    ends = (of["intervals"][HEADLINE]["c"] for of in (law, law["budget"]["whole"], law["budget"]["limit"]))
    (low, high), (whole_low, whole_high), (limit_low, _) = ends
    assert low == limit_low < 0.7 + FLOOR < whole_low < whole_high == high


def test_budgets_that_fall_in_no_power_determine_no_limit_and_the_law_no_floor():
    table = trained()
    for name, step in {"eighth": 3, "quarter": 2, "half": 1}.items():  # as much at every doubling, without an end
        table[f"validation_mse_{name}"] = table["validation_mse"] + 1e-2 * step
    law = law_of(table)
    limit, (low, _) = law["budget"]["limit"], law["intervals"][HEADLINE]["c"]
    assert limit["status"] == Status.EXPONENT_AT_EDGE and limit["b"] == pytest.approx(capacity.DECAYS[0])
    assert law["status"] == Status.NO_FLOOR and low is None, "else the grid of b would give the end"
    wobble = 2e-4 * np.where(np.arange(len(table)) // 2 % 2, 1, -1)  # of every other size
    for name, step in {"eighth": 3.3, "quarter": 2.1, "half": 1}.items():  # a power fits, and no power is excluded
        table[f"validation_mse_{name}"] = table["validation_mse"] + 1e-3 * step + wobble * (name == "half")
    law = law_of(table)
    assert law["budget"]["limit"]["b"] > 0.1 and law["intervals"][HEADLINE]["c"][0] is None


def test_a_law_that_hangs_on_an_end_of_its_sizes_cannot_be_cited_and_one_of_too_few_sizes_can():
    law = law_of(trained())
    assert capacity.standing(law) == "ok" and capacity.standing(law | {"status": "increasing"}) == "increasing"
    for end in ("smallest size left out", "largest size left out"):
        for change, standing in (
            ({"status": Status.TOO_FEW_SIZES}, "ok"), ({"status": Status.NO_FLOOR}, "ok, not citable"),
            ({"alpha": 9.0}, "ok, alpha not citable"),
        ):  # fmt: skip
            changed = copy.deepcopy(law)
            changed["sensitivity"][end] |= change
            assert capacity.standing(changed) == standing


def test_a_law_is_judged_by_runs_of_every_size_or_its_convergence_is_not_known():
    runs = pd.DataFrame({"parameters": [1, 1, 2, 2], "validation_mse": 1.0})
    for states, status in (
        (["converged", None, "converged", None], "ok"), (["converged", None, None, None], "convergence not known"),
        (["not converged", None, None, None], "budget-limited"), ([None] * 4, "convergence not known"),
        (["not converged", *["converged"] * 3], "budget-limited"),  # half of a size's runs are not most
    ):  # fmt: skip
        assert capacity.judged(runs.assign(convergence=states), "ok") == status


def test_the_frontier_holds_the_runs_that_no_cheaper_one_reaches():
    runs = pd.DataFrame({"size": list("aabb"), "parameters": [1, 1, 2, 2], "cells_seen": [1, 2, 1, 2]})
    runs = runs.assign(flops=[1.0, 2.0, 3.0, 4.0], loss=[0.9, 0.8, 0.85, 0.7])
    found = capacity.Budgets("r", "validation_mse", runs, pd.DataFrame(), None).frontier
    assert found["flops"].tolist() == [1, 2, 4]
