"""Conditions compared: training cells, held-out splits, protocols; on runs drawn from stated laws."""

import numpy as np
import pandas as pd
import pytest

from lib import figures
from lib.fit import conditions, runs
from lib.fit.summary import fit_laws

SIZES = {"XXS": 85, "d4": 517, "d8": 1417, "d16": 4369, "d32": 14881, "d64": 54337}
METRIC = "validation_mse"
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
    return pd.DataFrame(rows).reindex(columns=runs.COLUMNS)


def apart(N, D):
    return 0.13 + 0.3 * N**-0.3 + 0.4 * D**-0.5


def vanishing(N, D):
    """What size saves grows with the logarithm of the cells, from nothing at 200."""
    return 0.21 - 0.02 * np.log(N / 85) / np.log(640) * np.log10(D / 200)


def test_a_gain_that_vanishes_with_few_cells_is_found_and_an_equal_one_does_not_grow():
    equal = conditions.gains(conditions.data_axis(table(apart))[0])
    *_, change, reach = conditions.growth(equal)
    assert equal["gain"].std() < 3e-4 and abs(change) < reach
    gains = conditions.gains(conditions.data_axis(table(vanishing))[0])
    *ends, change, reach = conditions.growth(gains)
    assert ends == [CELLS[0], CELLS[-1]] and abs(change - 0.04) < 0.002 and 0 < reach < 0.002
    assert gains["gain"].iloc[0] == pytest.approx(0, abs=3e-4)
    assert reach == pytest.approx(np.hypot(*gains["reach"].iloc[[0, -1]]))


def test_runs_on_cells_of_few_donors_are_shown_apart():
    view = conditions.matched(pd.concat([table(apart), table(lambda N, D: apart(N, D) + 0.01, (500, 8000), donors=2)]))
    assert set(view.all_donors["cells_train"]) == set(CELLS) and set(view.few_donors["donors"]) == {2}
    assert "54,337 parameters and 20,000 training cells" in view.outlook and view.more["gain"].notna().all()


def test_runs_that_determine_no_joint_law_say_nothing_of_what_limits():
    view = conditions.matched(table(lambda N, D: 0.2))
    assert view.more is None and "%" not in view.outlook and view.gains["crossover"].isna().all()


def test_one_seed_of_each_size_gives_no_error_from_seeds():
    one = table(apart).drop_duplicates(["size", "cells_train"])
    assert conditions.matched(one).gains["reach"].isna().all()


def test_what_size_saves_is_asked_of_sizes_that_ran_at_every_number_of_cells_and_its_bars_hold_it():
    runs = table(apart)
    gains = conditions.gains(runs.assign(loss=runs[METRIC]))
    true = [apart(SIZES["XXS"], cells) - apart(SIZES["d64"], cells) for cells in CELLS]
    assert (np.abs(gains["gain"] - true) < gains["reach"]).mean() > 0.8  # of six bars
    one_everywhere = (runs["size"] == "d16") | (runs["cells_train"] < 20000)
    assert (conditions.gains(runs[one_everywhere].assign(loss=runs[METRIC]))["gain"].iloc[:-1] > 0.01).all()
    without = conditions.gains(runs[(runs["size"] != "XXS") | (runs["cells_train"] < 20000)].assign(loss=runs[METRIC]))
    true = [apart(SIZES["d4"], cells) - apart(SIZES["d64"], cells) for cells in CELLS]
    assert without["gain"].to_numpy() == pytest.approx(true, abs=1e-3)


@pytest.mark.parametrize("column", ["dropout", "panel_of"])
def test_regimes_that_differ_in_more_than_cells_do_not_pass_for_seeds(column):
    """Half as good: by a setting that no column tells, or on genes and held-out cells of their own."""
    runs = table(apart)
    worse = runs.assign(regime="worse", validation_mse=2 * runs["validation_mse"])
    if column == "panel_of":
        runs, worse = runs.assign(panel_of="all"), worse.assign(panel_of="worse", cells_train=runs["cells_train"] / 2)
    both = pd.concat([runs, worse], ignore_index=True)
    pd.testing.assert_frame_equal(conditions.bought(both).steps, conditions.bought(runs).steps)
    if column == "panel_of":
        assert "panel_of" in conditions.matched(both).sentence
    else:
        assert conditions.matched(both).gains.equals(conditions.matched(runs).gains)


def test_a_large_size_that_overfits_few_cells_does_not_make_more_of_them_look_better():
    runs = table(apart)
    overfits = (runs["size"] == "d64") & (runs["cells_train"] == 8000)
    spoiled = runs.assign(validation_mse=runs["validation_mse"] + 0.05 * overfits)
    points, of_d32 = (conditions.bought(of).steps.set_index("twice_the")["points"] for of in (spoiled, runs))
    best = runs[~overfits].groupby("cells_train")["validation_mse"].min()
    expected = 100 * (best[8000] - best[20000]) / 0.21 / np.log2(20 / 8)
    assert points["training cells"] == pytest.approx(expected, rel=0.05) and of_d32["training cells"] < expected


def test_sizes_that_longer_training_makes_worse_are_compared_at_their_best_budget():
    runs = table(apart)
    runs["validation_mse_half"] = runs[METRIC] + np.where(runs["cells_train"] < 1000, 0.0, 0.05)
    runs["validation_mse_eighth"] = runs[METRIC] + 0.1
    worse = np.where(runs["cells_train"] < 1000, 0.01, 0.0) * np.log(runs["parameters"])
    spoiled = runs.assign(validation_mse=runs[METRIC] + worse)
    pd.testing.assert_frame_equal(conditions.matched(spoiled).gains, conditions.matched(runs).gains)
    worse = np.where(runs["cells_train"] == 8000, 0.05, 0.0)
    spoiled = runs.assign(validation_mse=runs[METRIC] + worse, validation_mse_half=runs[METRIC] + 0.1 * (worse == 0))
    points, expected = (conditions.bought(of).steps.set_index("twice_the")["points"] for of in (spoiled, runs))
    assert points["training cells"] == pytest.approx(expected["training cells"])


def test_regimes_that_differ_in_more_than_cells_are_not_a_data_axis():
    unlike = pd.concat([table(apart, (200, 500)), table(apart, (3000,), genes=128)])
    assert "not matched: genes" in conditions.matched(unlike).sentence and conditions.matched(unlike).gains is None
    few = conditions.matched(table(apart, (200, 500)))
    assert "three numbers of training cells" in few.sentence and few.more is None


def splits(leak=0.0, se=0.0005):
    """Runs measured on three splits of unlike cells, and their baselines; cells of training donors gain `leak`."""
    known = {
        "validation": {"gene_mean_mse": 0.21, "gaussian_mse": 0.15, "bayes_mse": 0.13},
        "test": {"gene_mean_mse": 0.25, "gaussian_mse": 0.18, "bayes_mse": 0.15},
        "test_random": {"gene_mean_mse": 0.31, "gaussian_mse": 0.22, "bayes_mse": 0.19},
    }
    rows = table(lambda N, D: 0.13 + 0.08 * (1 - np.log(N / 85) / 8), (20000,), noise=0)
    share = (0.21 - rows["validation_mse"]) / 0.08
    for split in ("test", "test_random"):
        unit = known[split]["gene_mean_mse"] - known[split]["bayes_mse"]
        gained = leak * (split == "test_random") * (share > 0.5)
        rows[f"{split}_mse"] = known[split]["gene_mean_mse"] - unit * (share + gained)
        rows[f"{split}_mse_se"] = se
    return rows, dict.fromkeys(rows["regime"].unique(), known)


def test_a_leak_between_cells_of_a_donor_is_found_and_sized():
    shares = conditions.explained(*splits()).pivot_table(index="parameters", columns="split", values="explained")
    assert np.ptp(shares.to_numpy(), axis=1).max() < 1e-9, "cells unlike each other, of which as much is explained"
    rows, known = splits(leak=0.1)
    leak = conditions.leak(conditions.explained(rows, known))
    assert leak["leak"].iloc[-1] == pytest.approx(0.1) and leak["leak"].iloc[0] == pytest.approx(0)
    assert leak["se"].iloc[-1] == pytest.approx(np.hypot(0.0005 / 0.12, 0.0005 / 0.10), rel=1e-6)
    assert conditions.laws_by_split(fit_laws(rows, 100, 0), known).empty, "none of these laws has a number"
    alone = rows.assign(test_mse=np.nan, test_random_mse=np.nan)
    assert conditions.explained(alone, known).empty and conditions.laws_by_split(fit_laws(alone, 100, 0), known).empty


def test_the_law_of_every_split_stands_beside_the_exact_floor_of_its_cells():
    rows = table(apart, (20000,))
    rows = rows.assign(test_mse=rows["validation_mse"] + 0.02, test_random_mse=rows["validation_mse"] - 0.01)
    found = conditions.laws_by_split(fit_laws(rows, 100, 0), splits()[1]).set_index("split")
    assert found["exact_floor"].to_dict() == {"validation": 0.13, "test": 0.15, "test_random": 0.19}
    assert found["c"]["test"] - found["c"]["test_random"] == pytest.approx(0.03, abs=1e-6)


def test_protocols_are_compared_by_what_they_leave_of_the_gene_mean():
    weak = table(lambda N, D: 0.215 - 0.0001 * np.log(N), (20000,), protocol="published").assign(regime="published")
    strong = table(apart, (20000,), protocol="published").assign(regime="updates")
    both = pd.concat([weak, strong.assign(cells_seen=192_000)], ignore_index=True)
    known = {regime: {"validation": {"gene_mean_mse": 0.21}} for regime in ("published", "updates")}
    laws = fit_laws(both, 100, 0)
    steps = conditions.protocols(both, laws, known)
    none = steps.assign(alpha=np.nan, alpha_low=np.nan, alpha_high=np.nan)  # of laws that are all budget-limited
    assert figures.protocols(none, both).axes[0].get_xlim()[0] == 0
    assert list(steps["regime"]) == ["published", "updates"]
    assert steps["relative_c"].iloc[1] == pytest.approx(laws["updates"]["validation_mse"]["c"] / 0.21)
    assert conditions.protocols(strong.assign(protocol="tuned"), laws, known).empty
    more_genes = both.assign(genes=both["regime"].map({name: 512 * (n + 1) for n, name in enumerate(laws)}))
    assert conditions.protocols(more_genes, laws, known).empty, "two panels are no two protocols"
    cells = table(apart, protocol="published")
    assert conditions.protocols(cells, laws, known).empty and "cells-20000" in conditions.bought(cells).sentence


def test_a_regime_trained_for_counts_has_its_law_in_bits_first_and_others_have_none():
    counted = table(apart, (20000,), objective="negative_binomial")
    counted = counted.assign(regime="counts", validation_nll=3 * counted["validation_mse"])
    rows = pd.concat([table(apart, (20000,)).assign(regime="squares"), counted])
    laws = fit_laws(rows, 100, 0)
    assert list(laws["counts"]) == ["validation_nll", "validation_mse"] and list(laws["squares"]) == ["validation_mse"]
    assert runs.headline(rows) == {"squares": "validation_mse", "counts": "validation_nll"}
    statuses = [laws["squares"]["validation_mse"]["status"], laws["counts"]["validation_mse"]["status"]]
    assert statuses == ["ok", "convergence not known"], "nobody asked whether the squared error still falls"
    bits = laws["counts"]["validation_nll"]
    assert bits["floor_bits"]["value"] == bits["c"]


def test_what_a_doubling_of_depth_cells_size_or_updates_buys_is_what_the_law_says():
    """Explained error with a known gain per doubling of each; thinned regimes are no part of the data axis."""

    def explained(depth, cells, N):
        return 0.3 + 0.05 * np.log2(depth) + 0.02 * np.log2(cells / 20000) + 0.01 * np.log2(N / SIZES["d64"])

    parts = [
        table(lambda N, D, depth=depth: 0.21 * (1 - explained(depth, D, N)), [cells], seed=cells, thin=thin)
        for cells, depth, thin in ((20000, 1.0, np.nan), (20000, 0.25, 0.25), (8000, 1.0, np.nan), (3000, 1.0, np.nan))
    ]
    runs = pd.concat(parts, ignore_index=True)
    runs["validation_mse_half"] = runs["validation_mse"] + np.random.default_rng(0).normal(0.21 * 0.03, 1e-4, len(runs))
    other = [runs.assign(regime="other genes", genes=7, cells_train=1e3), runs.assign(regime="counts", objective="x")]
    other.append(runs.assign(regime="worse", optimiser="adamw", validation_mse=runs["validation_mse"] + 0.05))
    found = conditions.bought(pd.concat([runs, *other], ignore_index=True))
    bought = found.steps.set_index("twice_the")
    expected = {"counts of a cell": 5, "training cells": 2, "parameters": 1, "updates": 3}
    assert bought["points"].to_dict() == pytest.approx(expected, abs=0.2) and "d64, explains 30" in found.sentence
    assert (bought["points_low"] < bought["points"]).all() and (bought["points"] < bought["points_high"]).all()
    assert all(name in found.verdict for name in expected)
    given = conditions.bought(runs.assign(updates=np.nan)).steps.set_index("twice_the")
    assert given.loc["updates", "points"] == bought.loc["updates", "points"], "a doubling, whatever the number"
    steps = found.steps.assign(points_low=-3.0, points_high=[-1.0, 1.0, 1.0, 1.0])
    assert conditions.Bought("", steps).verdict.endswith("none of them, and below for: parameters.")
    assert "two seeds" in conditions.Bought("", steps.assign(points_low=np.nan, points_high=np.nan)).verdict
    assert conditions.bought(runs.assign(gene_mean_mse=np.nan)).steps is None
    one = runs[runs["size"] == "d64"].assign(validation_mse_half=np.nan)
    assert conditions.bought(one[one["regime"] == one["regime"].iloc[-1]]).steps is None
    diverged = (runs["size"] == "d64") & (runs["cells_train"] == 20000) & runs["thin"].isna()
    assert "d32, explains 28" in conditions.bought(runs[~diverged]).sentence
    view = conditions.depth(
        pd.concat([runs, runs.assign(objective="negative_binomial", parameters=runs["parameters"] + 5)])
    )
    assert (view.levels["depth"] == [0.25, 1]).all() and len(view.runs) == 2 * len(SIZES)
    axis, _ = conditions.data_axis(runs)
    assert axis["thin"].isna().all() and axis["cells_train"].nunique() == 3
    assert conditions.depth(parts[0]) is None


def test_donor_splits_part_the_people_from_what_size_gains():
    """Splits whose people differ much, and a gain over the best baseline of a tenth on all of them."""
    rng, parts = np.random.default_rng(0), []
    for seed in range(5):
        hard = rng.uniform(0.5, 2)
        known = {"gene_mean_mse": 2 * hard, "gaussian_mse": 1.1 * hard, "pca_mse": hard}
        parts.append(table(lambda N, D, hard=hard: 0.9 * hard, [200], split_seed=seed, noise=1e-3, **known))
    found = conditions.donor_splits(pd.concat(parts)).iloc[0]
    assert found["splits"] == 5 and found["spread"] > 0.1
    assert found["below_baseline"] == pytest.approx(0.1, abs=1e-3)
    assert 0 < found["below_baseline_high"] - found["below_baseline_low"] < 0.01 * found["spread"]
    half = parts[0].assign(cells_train=100, validation_mse=2 * parts[0]["validation_mse"])
    thin = parts[1].assign(thin=0.5, validation_mse=2 * parts[1]["validation_mse"])
    assert conditions.donor_splits(pd.concat([*parts, half, thin])).iloc[0].equals(found)
    assert conditions.donor_splits(pd.concat(parts[:2])).empty
