"""What docs/ say was found is what the kept studies show."""

import numpy as np
from conftest import read_kept
from pages import ADDED, RESULTS, at_largest, best_baseline, bought, estimate, kept, probe, tells

from lib.fit import conditions
from lib.fit.capacity import rising
from lib.fit.runs import given, of_metric, read
from lib.fit.summary import fit_laws
from lib.study import load_study


def at_best_budget(runs):
    """Mean loss of every size of one regime at the best of its budgets."""
    return conditions.at_best_budget(runs).groupby(runs["size"]).mean()


def on_test(study):
    """Runs of a kept study judged on its test cells, baselines too."""
    runs, _, known = kept(study)
    names = ["gene_mean_mse", "pca_mse", "gaussian_mse"]
    judged = {name: [known[of]["test"][name] for of in runs["regime"]] for name in names}
    return runs.assign(validation_mse=runs["test_mse"], **judged)


def test_the_last_steps_in_size_are_clear_on_no_test_donors_and_one_before_them_is():
    last = [bought(on_test(of)).loc["parameters", ADDED] for of in ("marrow", "marrow-noise", "pbmc", "ladder")]
    tells("On test donors the last step in size adds", *np.ravel(last))
    both = (runs[runs["size"] != "XS"] for runs in (read_kept("marrow"), on_test("marrow")))
    earlier = [bought(runs).loc["parameters", ADDED] for runs in both]
    tells("that from d48 to d64 adds", *np.ravel(earlier))
    assert max(step["points_low"] for step in last) < 0 < min(step["points_low"] for step in earlier)


def test_the_account_of_marrow_has_the_numbers_of_the_kept_study():
    runs, laws, known = kept("marrow", "data-rich")
    law, seeing, largest = laws["validation_mse"], runs[runs["width"] >= 4], at_largest(runs)
    xs, d64 = (runs[runs["size"] == size] for size in ("XS", "d64"))
    best, (moved,) = best_baseline(known["test"]), seeing[seeing["convergence"] != "converged"].to_dict("records")
    worse = 100 * (moved["validation_mse"] / moved["validation_mse_half"] - 1)
    again = 100 * (1 - largest["test_mse"] / best)
    better = 100 * (1 - largest["validation_mse"] / largest["pca_mse"])
    tells("(`marrow`).", len(seeing) - 1, len(seeing), better, again)
    tells("chemistry and 512 genes,", len(seeing) - 1, len(seeing), worse)
    means = runs.groupby("width")["validation_mse"].mean()
    assert moved["size"] == "XS" and set(means.index[means < largest["pca_mse"]]) == set(means.index[means.index >= 8])
    ends = largest["validation_mse"], again, largest["test_mse"], best
    tells("linear models (conditional Gaussian", largest["gaussian_mse"], largest["pca_mse"], *ends)
    assert f"{d64['test_mse'].mean():.3f}" == f"{largest['test_mse']:.3f}", "docs: where d64 is as good"
    assert (largest["validation_donors"], largest["test_donors"]) == (4, 5), "docs: four new donors, five test donors"
    seeds, (floor, low, high) = runs[runs["width"] == 4]["validation_mse"], estimate(law, "c")
    tells("But XS lies", 100 * (1 - largest["validation_mse"] / floor), 100 * (seeds.max() / seeds.min() - 1))
    without, others = (law["sensitivity"][of] for of in ("smallest size left out", "parameters without embeddings"))
    _, no_end, below = estimate(without, "alpha")
    tells(
        "the error of a loss is", largest["validation_mse_donor_se"], largest["validation_mse_se"], low, high,
        *estimate(law, "alpha"), below, *estimate(others, "alpha"), runs["cells_train"].max(),
    )  # fmt: skip
    assert law["status"] == "ok" and without["status"] == "floor not identified" and no_end is None
    shares = [
        100 * (1 - loss / known[split]["gene_mean_mse"])
        for split in ("test_random", "test")
        for loss in (largest[f"{split}_mse"], known[split]["gaussian_mse"])
    ]
    tells("donors that trained, XS explains", *shares)
    lower = {of: xs[f"{of}_mse"].max() < d64[f"{of}_mse"].min() for of in ("test_random", "validation", "test")}
    assert lower == {"test_random": True, "validation": False, "test": False}, "README: clearly only on training donors"
    tells("below every seed of d64 (", largest["test_random_mse"], d64["test_random_mse"].mean())
    tells("In `marrow` it rises from", *probe("marrow")["f1"][["d4", "d64", "XS", "principal components"]])


def test_the_account_of_donor_splits_has_the_numbers_of_the_kept_study():
    runs, _, known = kept("marrow-donors")
    splits, of_d48 = conditions.donor_splits(runs).set_index("size"), runs[runs["size"] == "d48"]
    ends = 100 * splits[["below_baseline", "below_baseline_low", "below_baseline_high"]]
    gained = 100 * (1 - of_d48["validation_mse"] / of_d48[["pca_mse", "gaussian_mse"]].min(axis=1))
    losses = of_d48.set_index("regime")["test_mse"].items()
    tested = [100 * (1 - loss / best_baseline(known[of]["test"])) for of, loss in losses]
    tells(
        "(`marrow-donors`) d48 is", *ends.loc["d48"], *ends.loc["d16"], splits.loc["d48", "spread"], min(tested),
        max(tested), gained.min(), gained.max(), len(runs),
    )  # fmt: skip
    tells("donors width 48 is", *ends.loc["d48"])
    assert (splits["splits"] == 5).all() and len(tested) == 5
    assert (runs["convergence"] == "converged").all()
    assert runs["cells_seen"].max() == read_kept("marrow")["cells_seen"].max(), "docs: as many cells seen"


def test_the_account_of_the_recipe_has_the_numbers_of_the_kept_study():
    runs, laws, known = kept("protocol")
    runs, apparent = runs[runs["width"] >= 4], laws["initialisation"]["validation_mse"]
    means = runs.groupby(["regime", "size"])["test_mse"].mean().unstack()
    linear, exact = best_baseline(known["initialisation"]["test"]), known["initialisation"]["test"]["bayes_mse"]
    steps = ["library-size", "initialisation", "learning-rate", "optimiser", "updates"]
    small, untuned, tuned, muon, longer = means.loc[steps, "d64"]
    part = 100 * (untuned - tuned) / (untuned - exact)
    tells("below the linear model's", linear, small, untuned, tuned, part, exact, muon, longer)
    tells("published budget, test donors:", small, linear, tuned)
    assert longer < muon < tuned < linear < means.loc[steps[:2]].min(axis=None)
    for first in ("published", "split"):
        best = best_baseline(known[first]["test"])
        assert means.loc[first].min() > best > 10 * linear, "docs: nor in the first two steps"
    tells("The floor of", apparent["c"])
    assert apparent["status"] == "convergence not known"
    seen, updates = (runs.groupby("regime")[name].first() for name in ("cells_seen", "updates"))
    tells("simulated cells and at", seen["published"])
    assert 2 * updates["optimiser"] == updates["learning-rate"] and seen["updates"] == 4 * seen["published"]
    ends = [estimate(law["validation_mse"], "alpha")[1:] for law in list(laws.values())[2:]]
    assert max(low or 0 for low, _ in ends) < min(high or np.inf for _, high in ends), "docs: they overlap"


def test_the_account_of_the_papers_dimensions_has_the_numbers_of_the_kept_study():
    runs, laws, _ = kept("dimensions")
    levels = dict.fromkeys(("bayes_mse", "gene_mean_mse"), float)
    runs = runs[runs["width"] >= 4].sort_values("parameters").astype(levels)
    published, runs = (runs[(runs["protocol"] == "published") == there] for there in (True, False))

    def way(losses, of):
        """Percent of the way from the gene mean to the exact floor that losses have come."""
        return 100 * (of["gene_mean_mse"].mean() - losses) / (of["gene_mean_mse"].mean() - of["bayes_mse"].mean())

    ends, reached, shares = [], [], []
    beaten = {"data-rich": ["d48", "d64", "XS"], "data-limited": ["d48", "d64"]}
    for regime, asked in list(load_study("dimensions").regimes.items())[:2]:
        of = runs[runs["regime"] == regime].set_index("size")
        best = of[["pca_mse", "gaussian_mse"]].min(axis=None)
        ends += [of["validation_mse"].iloc[-1], asked.genes, asked.cells, best, of["bayes_mse"].mean()]
        shares.append(way(of["validation_mse"], of))
        reached += [*shares[-1].iloc[[0, -1]], way(best, of)]
        assert list(of.index[of["validation_mse"] < best]) == beaten[regime]
        assert laws[regime]["validation_mse"]["status"] == "budget-limited", "docs: both"
    tells("cells seen, XS ends at", *ends)
    assert set(runs["width"]) == {4, 6, 8, 12, 16, 24, 32, 48, 64}
    tells("exact floor d4 has come", *reached, np.ceil((shares[0] - shares[1]).abs().max()))
    converged, xs = (runs["convergence"] == "converged").sum(), runs[runs["size"] == "XS"].iloc[0]
    theirs = given(load_study("published-runs")).query("regime == 'data-limited' and size != 'XXS'")["parameters"].min()
    ours = runs.loc[runs["regime"] == "data-limited", "parameters"].max()
    worse = 100 * (xs["validation_mse_half"] / xs["validation_mse"] - 1)
    tells("Size pays with", 10_000, round(ours, -3), round(theirs, -3), converged, len(runs), worse)
    tells("but after the paper's", 240_000, len(runs))
    assert runs["cells_seen"].eq(240_000).all() and converged == 0 and theirs > ours
    _, low, high = estimate(laws["data-rich"]["validation_mse"]["budget"]["limit"], "c")
    tells("the legend names,", low, high)
    assert low < 0, "docs: no floor is shown"

    rows, tuned = (of.set_index("size") for of in (published, runs[runs["regime"] == "data-rich"]))
    losses, come = rows["validation_mse"], way(rows["validation_mse"], rows)
    assert list(losses.index) == ["d4", "d6", "d8", "d12", "TINY", "d24", "d32", "d48", "d64"], "docs: up to d64"
    ends = [number for size in ("d32", "d64") for number in (come[size], losses[size])]
    of_tuned = way(tuned["validation_mse"], rows)["d64"], tuned.loc["d64", "validation_mse"]
    least = tuned.loc["d6", "validation_mse"]
    tells("as many cells seen no width up to", 16, np.ceil(come[:"TINY"].max()), *ends, *of_tuned, 6, least)
    tells("exact floor width 64 comes", come["d64"], of_tuned[0], reached[2])
    tells("of its updates leave d64", 100 * (rows["validation_mse_half"] / losses - 1)["d64"])
    assert losses.min() > least > tuned[["pca_mse", "gaussian_mse"]].min(axis=None), "docs: no size is below the linear"
    resting = come[rows["convergence"] == "converged"]
    assert list(resting.index) == ["d8", "d12"] and resting.max() < 2, "docs: d8 and d12 pass for converged"
    law = laws["published-recipe"]["validation_mse"]
    assert law["budget"]["whole"]["status"] == "alpha at grid edge" and law["c"] < 0, "docs: does not bend"


def test_the_account_of_pbmc_has_the_numbers_of_the_kept_study():
    runs, laws, known = kept("pbmc")
    seeing = runs[runs["width"] >= 4]
    losses = seeing.groupby(["regime", "size"])[["validation_mse", "test_mse"]].mean()
    validated, tested = (losses[f"{of}_mse"].unstack() for of in ("validation", "test"))
    best, best_on_test = (
        {name: best_baseline(of[split]) for name, of in known.items()} for split in ("validation", "test")
    )
    rich, fewer, few = (validated.loc[name] for name in ("data-rich", "cells-3000", "cells-800"))
    none, below = tested.loc["cells-3000"].min(), 100 * (1 - tested.loc["data-rich", "d64"] / best_on_test["data-rich"])
    tells(
        "- With 12,000 training cells d64 ends at", rich["d64"], 3000, fewer["d64"], best["data-rich"],
        best["cells-3000"], below, 12_000, 3000, none, best_on_test["cells-3000"],
    )  # fmt: skip
    assert none > best_on_test["cells-3000"], "docs: no size is"
    gene_mean = known["data-limited"]["validation"]["gene_mean_mse"]
    early = {name: at_best_budget(of) for name, of in seeing.groupby("regime")}
    of_800, of_200 = early["cells-800"], early["data-limited"]
    tells(
        "- With 800 d16 ends lowest (", few.min(), best["cells-800"], 200, gene_mean, 800, of_800["d4"],
        of_800["d64"], 200, of_200["d4"], of_200["d64"],
    )  # fmt: skip
    least = runs[runs["regime"] == "data-limited"]["validation_mse"].min()
    assert few.idxmin() == "d16" and least > gene_mean < of_200["d64"]
    assert f"{of_800['d32']:.3f}" == f"{of_800['d64']:.3f}" == f"{of_800.min():.3f}" and of_200.idxmin() == "d64"
    assert rising(runs[(runs["regime"] == "data-limited") & (runs["width"] >= 16)]).all(), "docs: from d16 on"
    gains = conditions.matched(runs).gains
    saved, (*_, more, reach) = gains.set_index("cells_train")["gain"], conditions.growth(gains)
    against_d8 = [early[name]["d8"] - early[name].min() for name in ("data-rich", "cells-800")]
    tells(
        "saves, against d4, from", saved[200], 200, saved[800], 800, saved[12000], 12_000, more, more - reach,
        more + reach, 12_000, *against_d8, 800,
    )  # fmt: skip
    assert rich["d4"] > known["data-rich"]["validation"]["gene_mean_mse"], "docs: no better"
    statuses = ["budget-limited"] * 3 + ["overfitted"] * 2
    assert [law["status"] for law in of_metric(laws).values()] == statuses
    assert (runs["convergence"] == "not converged").mean() > 0.5

    again, run = read(RESULTS / "pbmc" / "runs_again.csv"), ["regime", "size", "seed"]
    moved = (again["validation_mse"] / runs["validation_mse"] - 1).abs()
    tells("single losses by up to", 100 * moved.max())
    assert again[run].equals(runs[run]) and moved[runs["width"] >= 4].median() < 0.0025
    found = [law["status"] for law in of_metric(fit_laws(again, 100, 0)).values()]
    assert found == statuses, "docs: none of the statuses of its five laws"


def test_the_account_of_pbmc_at_512_genes_has_the_numbers_of_the_kept_study():
    runs, _, known = kept("pbmc-512", "data-rich")
    largest, ends = at_largest(runs), []
    for split in ("validation", "test"):
        ends += [largest[f"{split}_mse"], best_baseline(known[split])]
    steps, converged = bought(runs)[ADDED], (runs["convergence"] == "converged").sum()
    tells("(`pbmc-512`) d64 ends at", *ends, converged, len(runs), *steps.loc["parameters"], *steps.loc["updates"])
    assert largest["validation_donors"] == largest["test_donors"] == 1
    moving = (runs["convergence"] == "not converged").groupby(runs["size"]).mean()
    assert set(moving.index[moving > 0.5]) == {"d4", "d64"}
    as_in = ["cells_seen", "genes"]
    assert (runs[as_in].iloc[0] == read_kept("marrow")[as_in].iloc[0]).all()
    assert runs["cells_seen"].max() == 3 * read_kept("pbmc")["cells_seen"].max(), "docs: three times the cells seen"


def test_the_account_of_cells_and_of_depth_has_the_numbers_of_the_kept_studies():
    runs = read_kept("matched")
    all_donors = runs[runs["donors"].isna()]
    means = all_donors.groupby(["cells_train", "parameters"])["validation_mse"].mean().unstack()
    early, largest = all_donors[all_donors["cells_train"] == 400], means.iloc[:, -1]
    last, linear = all_donors["size"].iloc[all_donors["parameters"].argmax()], early["gaussian_mse"].mean()
    best = at_best_budget(early[early["width"] >= 4])
    numbers = largest[40000], 40_000, largest[12000], 12_000, 400, linear, best[last], largest[400]
    tells("`matched` the largest size ends at", *numbers)
    eighth = early[early["size"] == last]["validation_mse_eighth"].mean()
    assert best[last] == best.min() == eighth > linear and largest[400] == means.loc[400].max()
    gains = conditions.matched(runs).gains
    saved, (*_, more, reach) = gains.set_index("cells_train")["gain"], conditions.growth(gains)
    numbers = saved[400], 400, saved[40000], 40_000, more, more - reach, more + reach, 4000, saved[4000]
    tells("halve what size gains: the best size saves", *numbers)
    noise, steps = read_kept("noise"), bought(read_kept("noise"))
    depths = noise.groupby("regime")[["bayes_mse", "gene_mean_mse"]].first()
    exact = 100 * (1 - depths["bayes_mse"] / depths["gene_mean_mse"])
    in_order = steps.loc[["counts of a cell", "training cells", "parameters"], ADDED]
    floor = exact["all-counts"] - exact["half"]
    added = *np.ravel(in_order), steps.loc["counts of a cell", "baseline"], floor
    tells("of `noise`, twice the counts of every cell add", *added)


def test_the_account_of_bits_and_of_the_probes_has_the_numbers_of_the_kept_studies():
    (noise, of_noise, _), (pbmc, of_pbmc, _) = kept("noise", "all-counts"), kept("pbmc", "counts")
    ends = [runs[runs["size"] == size]["validation_nll"].mean() for runs, size in ((noise, "d32"), (pbmc, "d64"))]
    known = [noise["bayes_bits"].mean(), noise["gene_nll"].mean()]
    tells("In `noise` d32 ends at", ends[0], *known, ends[1], pbmc["gene_nll"].mean())
    assert of_noise["validation_nll"]["status"] == of_pbmc["validation_nll"]["status"] == "budget-limited"
    _, laws, baselines = kept("ladder", "data-rich")
    exact = baselines["validation"]["bayes_bits"]
    tells("ladder's floor it makes", laws["validation_mse"]["floor_bits"]["value"], exact)
    probes = {path.parent.name: probe(path.parent.name) for path in RESULTS.glob("*/probe.csv")}
    assert len(probes) == 8, "docs: eight kept probes"
    for of in probes.values():
        assert (of["low"].iloc[2:] <= of.loc["principal components", "high"]).all()
    tells("macro F1 rises from", *probes["noise"]["f1"][["d4", "d32", "principal components"]])
    tells("the largest is below (", *probes["protocol"]["f1"][["d64", "principal components"]])


def test_the_account_of_depth_on_real_cells_has_the_numbers_of_the_kept_study():
    runs, laws, _ = kept("marrow-noise")
    steps = bought(runs)
    counts, cells = (steps.loc[name] for name in ("counts of a cell", "training cells"))
    shares = (1 - runs["validation_mse"] / runs["gene_mean_mse"]).groupby([runs["regime"], runs["size"]]).mean()
    numbers = runs.groupby("regime")["cells_train"].first()
    doublings = np.log2(numbers["all-counts"] / numbers["cells-2000"])
    same_size = 100 * (shares["all-counts"] - shares["cells-2000"])["d32"] / doublings
    tells(
        "four new donors) it adds", *counts[ADDED], counts["baseline"], *cells[ADDED], cells["baseline"], same_size,
        *steps.loc["parameters", ADDED], *steps.loc["updates", ADDED], len(runs),
        (runs["convergence"] == "converged").sum(),
    )  # fmt: skip
    tells("In `marrow-noise` twice the counts add", counts["points"], counts["baseline"])
    assert all(law["status"] != "ok" for law in of_metric(laws).values())
