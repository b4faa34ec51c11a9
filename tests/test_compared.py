"""Conditions compared: training cells, held-out sides, protocols, replicates; on runs drawn from stated laws."""

import numpy as np
import pandas as pd
import pytest

from lib import fit
from lib.fit import budget, heldout, matched, protocols, replicate, runs
from lib.io import InputError

SIZES = {"XXS": 85, "d4": 517, "d8": 1417, "d16": 4369, "d32": 14881, "d64": 54337}
CELLS = (200, 500, 1200, 3000, 8000, 20000)


def table(law, cells=CELLS, donors=None, noise=1e-4, seed=0, **more):
    """Runs of every size and number of cells, two seeds each: loss = law(parameters, cells) and seed noise."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "study": "t", "regime": f"cells-{D}-{donors}", "size": size, "seed": s, "parameters": N, "genes": 64,
            "cells_train": D, "donors": donors, "cells_seen": 48_000, "updates": 1500, "objective": "mse",
            "protocol": "tuned", "status": "ok", "convergence": "converged", "gene_mean_mse": 0.21,
            "gaussian_mse": 0.15, "bayes_mse": 0.13, "validation_mse": law(N, D) + noise * rng.standard_normal(),
        }
        | more
        for D in cells for size, N in SIZES.items() for s in (7, 8)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def apart(N, D):
    return 0.13 + 0.3 * N**-0.3 + 0.4 * D**-0.5


def vanishing(N, D):
    """What size saves grows with the logarithm of the cells, from nothing at 200."""
    return 0.21 - 0.02 * np.log(N / 85) / np.log(640) * np.log10(D / 200)


def test_size_that_gains_equally_everywhere_shows_no_trend_and_is_additive():
    rows, few = matched.matched(table(apart))
    assert len(few) == 0 and matched.gains(rows)["gain"].std() < 3e-4
    low, high = matched.trend(rows)["interval"]
    assert low < 0 < high and matched.additive_p(rows) > 0.01
    assert "No trend" in matched.answer(rows) or "p = 0.0" in matched.answer(rows)


def test_a_gain_that_vanishes_with_few_cells_is_found():
    rows, _ = matched.matched(table(vanishing))
    found, gains = matched.trend(rows), matched.gains(rows)
    assert found["slope"] == pytest.approx(0.02, rel=0.05) and found["p"] < 1e-4
    assert gains["gain"].iloc[0] == pytest.approx(0, abs=3e-4) and gains["gain"].iloc[-1] == pytest.approx(
        0.04, rel=0.05
    )
    assert matched.additive_p(rows) < 1e-4 and "grows with cells" in matched.answer(rows)
    assert "saves no more than seeds differ by" in matched.answer(rows)


def test_a_size_too_large_for_its_cells_is_named():
    def overfitting(N, D):
        return apart(N, D) + (0.05 if D <= 500 and N > 50_000 else 0)

    rows, _ = matched.matched(table(overfitting))
    assert "Up to 500 training cells the largest size is worse" in matched.answer(rows)
    assert matched.gains(rows).set_index("cells_train")["best"].to_dict()[200] == "d32"


def test_few_donors_are_compared_with_all_at_equal_cells():
    both = pd.concat([table(apart), table(lambda N, D: apart(N, D) + 0.01, (500, 8000), donors=2)])
    rows, few = matched.matched(both)
    assert set(rows["cells_train"]) == set(CELLS) and set(few["donors"]) == {2}
    found = matched.donors(rows, few)
    assert found["difference"].to_numpy() == pytest.approx(0.01, abs=2e-4) and (found["low"] > 0).all()


def test_regimes_that_differ_in_more_than_cells_are_not_a_data_axis():
    unlike = pd.concat([table(apart, (200, 500)), table(apart, (3000,), genes=128)])
    with pytest.raises(InputError, match="not matched: genes"):
        matched.matched(unlike)
    assert "No matched data axis" in matched.view(unlike)["sentence"]
    with pytest.raises(InputError, match="three numbers of training cells"):
        matched.matched(table(apart, (200, 500)))
    told = matched.confounds(unlike.assign(regime=unlike["genes"].map("of {}".format))).set_index("setting")
    assert told["differs"].to_dict()["genes of the panel"] and not told["differs"].to_dict()["updates"]


def test_the_turning_point_follows_the_cells():
    law = matched.turning(matched.matched(table(apart))[0], "additive")
    inside = law.dropna(subset="parameters")
    assert len(inside) >= 2 and inside["parameters"].is_monotonic_increasing


def sides(leak=0.0, se=0.0005):
    """Runs judged on three sides of unlike cells, and their baselines; training donors gain `leak` of what there is."""
    known = {
        "validation": {"gene_mean_mse": 0.21, "gaussian_mse": 0.15, "bayes_mse": 0.13},
        "test": {"gene_mean_mse": 0.25, "gaussian_mse": 0.18, "bayes_mse": 0.15},
        "test_random": {"gene_mean_mse": 0.31, "gaussian_mse": 0.22, "bayes_mse": 0.19},
    }
    rows = table(lambda N, D: 0.13 + 0.08 * (1 - np.log(N / 85) / 8), (20000,), noise=0)
    share = (0.21 - rows["validation_mse"]) / 0.08
    for side in ("test", "test_random"):
        unit = known[side]["gene_mean_mse"] - known[side]["bayes_mse"]
        rows[f"{side}_mse"] = known[side]["gene_mean_mse"] - unit * (
            share + leak * (side == "test_random") * (share > 0.5)
        )
        rows[f"{side}_mse_se"] = se
    return rows, dict.fromkeys(rows["regime"].unique(), known)


def test_sides_of_unlike_cells_are_compared_by_what_they_could_explain():
    rows, known = sides()
    shares = heldout.explained(rows, known)
    wide = shares.pivot_table(index="parameters", columns="side", values="explained")
    assert np.ptp(wide.to_numpy(), axis=1).max() < 1e-9
    assert "no leak is shown" in heldout.answer(heldout.leak(shares), rows["regime"].iloc[0])


def test_a_leak_between_cells_of_a_donor_is_found_and_sized():
    rows, known = sides(leak=0.1)
    found = heldout.leak(heldout.explained(rows, known))
    assert found["leak"].iloc[-1] == pytest.approx(0.1) and found["leak"].iloc[0] == pytest.approx(0)
    assert found["se"].iloc[-1] == pytest.approx(np.hypot(0.0005 / 0.12, 0.0005 / 0.10), rel=1e-6)
    assert "a leak is shown" in heldout.answer(found, rows["regime"].iloc[0])
    assert "not measured" in heldout.answer(found, "another")


def test_a_protocol_that_does_not_train_is_told_by_what_it_leaves():
    weak = table(lambda N, D: 0.215 - 0.0001 * np.log(N), (20000,), protocol="published").assign(regime="published")
    strong = table(apart, (20000,), protocol="published").assign(regime="updates")
    both = pd.concat([weak, strong], ignore_index=True)
    known = {regime: {"validation": {"gene_mean_mse": 0.21}} for regime in ("published", "updates")}
    laws = fit.fit_laws(both, 100, 0)
    found = protocols.view(both, laws, known)
    assert list(found["table"]["regime"]) == ["published", "updates"]
    assert found["table"]["largest"].iloc[1] == pytest.approx(apart(54337, 20000) / 0.21, rel=1e-2)
    assert "moves the largest size most is updates" in found["sentence"]
    assert "one protocol" in protocols.view(strong.assign(protocol="tuned"), laws, known)["sentence"]


def test_a_regime_trained_for_counts_has_its_law_in_bits_first_and_others_have_none():
    counted = table(apart, (20000,), objective="negative_binomial")
    counted = counted.assign(regime="counts", validation_nll=3 * counted["validation_mse"])
    rows = pd.concat([table(apart, (20000,)).assign(regime="squares"), counted])
    laws = fit.fit_laws(rows, 100, 0)
    assert list(laws["counts"]) == ["validation_nll", "validation_mse"] and list(laws["squares"]) == ["validation_mse"]
    assert runs.headline(rows) == {"squares": "validation_mse", "counts": "validation_nll"}
    bits = laws["counts"]["validation_nll"]
    assert bits["floor_bits"]["value"] == bits["c"] and "bits per masked gene" in fit.answer(laws)[1]
    known = {"counts": {"validation": {"bayes_bits": 0.39, "bayes_mse": 0.13}}}
    assert runs.known_floors(known, runs.headline(rows)) == {"squares": None, "counts": 0.39}


REPLICATES = pd.DataFrame({
    "replicate": [0, 1, 2, 3], "objective": "mse", "status": ["ok", "ok", "ok", "floor not identified"],
    "c": [1.0, 1.1, 1.2, 1.3], "low": [0.9, 1.05, 1.1, np.nan], "high": [1.05, 1.2, 1.3, 1.4],
    "exact": 1.0, "realised": 1.1, "family": 1.0, "half": [1.1, 1.2, 1.3, 1.4], "best": 1.2, "converged": 0.5,
})  # fmt: skip


def test_replicates_count_which_intervals_hold_the_floor():
    row = replicate.summary(REPLICATES).iloc[0]
    assert row["exact_held"] == 0.5 and row["realised_held"] == 0.75 and row["named_held"] == pytest.approx(1 / 3)
    assert row["bias"] == pytest.approx(0.15) and row["half_to_whole"] == pytest.approx(0.1)
    assert row["exact_low"] < 0.5 < row["exact_high"] and row["open"] == 0.25
    assert "held the exact floor 50%" in replicate.said(REPLICATES)[0]


def test_the_best_negative_binomial_costs_nothing_beyond_one_and_something_beyond_a_mixture():
    from scipy import stats

    x = np.arange(400)
    one = stats.nbinom(2, 2 / 7).pmf(x)
    mixture = 0.5 * stats.nbinom(2, 2 / 3).pmf(x) + 0.5 * stats.nbinom(2, 2 / 42).pmf(x)
    excess = replicate.family_excess(np.stack([one, mixture]), x)
    assert excess[0] == pytest.approx(0, abs=1e-4) and 0.01 < excess[1] < 0.5


def test_replicates_resume_and_are_the_same_again(tmp_path, monkeypatch):
    from lib import io

    monkeypatch.setattr(io, "ROOT", tmp_path)
    monkeypatch.setattr(replicate, "WIDTHS", (4,))
    small = replicate.CONTENT | {
        "regimes": {"known": {"genes": 8, "cells": 300}}, "split": {"validation": 0.2, "test": 0.2, "cells": 100},
        "sizes": [{"name": f"d{width}", "d": width, "layers": 1} for width in (2, 3, 4, 5)],
        "train": {"cells_seen": 640, "evaluations": 2},
    }  # fmt: skip
    monkeypatch.setattr(replicate, "CONTENT", small)
    monkeypatch.setattr(replicate, "CENSUS", replicate.CENSUS | {"cells": 1000, "donors": 10, "genes": 30, "states": 4})
    first, again = replicate.replicate(3), replicate.replicate(3)
    assert [row["objective"] for row in first] == ["mse", "negative_binomial"]
    keys = ("c", "low", "high", "exact", "realised", "family", "half")
    assert [[row[key] for key in keys] for row in first] == [[row[key] for key in keys] for row in again]
    for row in first:
        assert 0.7 * row["exact"] < row["realised"] < 1.4 * row["exact"] and row["family"] >= row["exact"] - 1e-6


def test_the_floor_is_followed_from_budget_to_budget_to_where_both_are_large():
    def law(N, seen):
        return 0.13 + 0.3 * N**-0.3 + 8 * seen**-0.5

    rows = [
        table(lambda N, D, seen=seen: law(N, seen), cells=(8000,), seed=seen, regime=f"seen-{seen}", cells_seen=seen,
              learning_rate=0.01)
        for seen in (24_000, 96_000, 384_000)
    ]  # fmt: skip
    rows = pd.concat(rows, ignore_index=True)
    rows["validation_mse_half"] = law(rows["parameters"], rows["cells_seen"] / 2)
    seen = budget.view(rows)
    assert list(seen["table"]["cells_seen"]) == [12_000, 24_000, 48_000, 96_000, 192_000, 384_000]
    true = [0.13 + 8 * cells**-0.5 for cells in seen["table"]["cells_seen"]]
    assert seen["table"]["c"].astype(float).to_numpy() == pytest.approx(true, abs=2e-3)
    assert seen["joint"]["low"] < 0.13 < seen["joint"]["high"] and seen["joint"]["status"] == "ok"
    assert seen["exact"] == 0.13 and "the exact floor is 0.130" in seen["sentence"]


@pytest.mark.parametrize(
    "changed, said",
    [
        ({}, "one budget"),
        ({"cells_train": [500, 8000]}, "cells_train"),
        ({"learning_rate": [0.01, 0.02]}, "learning_rate"),
    ],
)
def test_budgets_are_not_compared_where_there_is_one_or_something_else_changes_too(changed, said):
    rows = table(apart, cells=(8000, 8000), learning_rate=0.01, validation_mse_half=0.2)
    for column, values in changed.items():
        rows[column] = np.repeat(values, len(rows) // 2)
        rows["cells_seen"] = np.repeat([24_000, 48_000], len(rows) // 2)
    assert said in budget.view(rows)["sentence"]
