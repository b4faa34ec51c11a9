"""The README and docs/ are true: its results are those of the kept tables, its commands and links are there."""

import re
import textwrap
import tomllib

import numpy as np
import pandas as pd
import pytest
import scale
import yaml
from conftest import read_kept
from replicates import reliability
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from lib import io
from lib.data.user_files import survey
from lib.fit import conditions, published
from lib.fit.capacity import rising, standing
from lib.fit.runs import given, headline, of_metric, read
from lib.fit.summary import fit_laws
from lib.io import TARGET
from lib.model.sizes import Size, batch
from lib.study import Census, Masking, Train, load_study
from lib.train.optimiser import MOMENTUM, MUON_RATE

PAGES = {path: path.read_text() for path in [io.CODE / "README.md", *sorted((io.CODE / "docs").glob("*.md"))]}
README = PAGES[io.CODE / "README.md"]
TEXT = " ".join("\n".join(PAGES.values()).split())
COMPARED = ["gene_mean_mse", "pca_mse", "gaussian_mse"]
RESULTS, ADDED = io.CODE / "data" / "results", ["points", "points_low", "points_high"]
LAWS = {  # study, regime: cells, what they are
    ("ladder", "data-rich"): ("simulated", "held-out donors"),
    ("marrow", "data-rich"): ("real, 18 donors, 15 with leukaemia", "held-out donors"),
    ("pbmc-512", "data-rich"): ("real, nine data sets", "held-out data sets"),
    ("dimensions", "data-rich"): ("simulated", "held-out donors"),
}


def best_baseline(of):
    """The least squared error of the baselines, of one split in baselines.json."""
    return min(of["gaussian_mse"], of["pca_mse"])


def at_best_budget(runs):
    """Mean loss of every size of one regime at the best of its budgets."""
    return conditions.at_best_budget(runs).groupby(runs["size"]).mean()


def number(law, name, digits):
    """A number of a law with its interval; one that the runs do not determine is a word."""
    low, high = law["intervals"]["profile_size_means"][name]
    if low is None:
        return "not determined" if high is None else f"below {high:{digits}}"
    if high is None:
        return f"{law[name]:{digits}} ({low:{digits}} or more)"
    return f"{law[name]:{digits}} ({low:{digits}} to {high:{digits}})"


@pytest.mark.parametrize("study, regime", LAWS)
def test_the_table_of_laws_has_the_numbers_of_the_kept_studies(study, regime):
    law = io.read_json(RESULTS / study / "laws.json")[regime]["validation_mse"]
    runs = pd.read_csv(RESULTS / study / "runs.csv").query("regime == @regime")
    exact, linear = runs["bayes_mse"].mean(), runs[["gaussian_mse", "pca_mse"]].mean().min()
    largest = runs.loc[runs["parameters"] == runs["parameters"].max(), "validation_mse"].mean()
    numbers = [number(law, "alpha", ".2f"), number(law, "c", ".3f")] if law["status"] == "ok" else ["-", "-"]
    link, genes = f"[{study}](data/results/{study}/04_fit.ipynb)", f"{runs['genes'].iloc[0]}"
    ends = ["-" if pd.isna(loss) else f"{loss:.3f}" for loss in (exact, linear, largest)]
    words = [link, *LAWS[study, regime], genes, standing(law), *numbers, *ends]
    assert f"| {' | '.join(words)} |" in README


@pytest.mark.parametrize("study", ["ladder", "marrow-noise", "pbmc", "marrow"])
def test_the_table_of_what_more_would_buy_has_the_numbers_of_the_kept_studies(study):
    found = conditions.bought(read_kept(study))
    size, shares = re.search(r"size, (\w+), explains", found.sentence)[1], re.findall(r"([\d.]+)%", found.sentence)
    steps, exact = found.steps.set_index("twice_the")[ADDED], [] if len(shares) == 3 else ["-"]
    added = [
        "{:.2f} ({:z.2f} to {:.2f})".format(*steps.loc[name]) if name in steps.index else "-"
        for name in ("parameters", "updates", "training cells", "counts of a cell")
    ]
    assert f"| {' | '.join([f'{study}, {size}', *shares, *exact, *added])} |" in README
    clear = {"pbmc": {"updates"}, "marrow": set(), "ladder": {"parameters", "updates"}}
    clear["marrow-noise"] = {"parameters", "training cells", "counts of a cell"}
    assert {*steps.index[steps["points_low"] > 0]} == clear[study], "README: what limits"


def test_the_steps_in_size_on_test_donors_are_those_of_the_kept_studies_and_none_is_clear():
    steps = {}
    for study in ("marrow", "marrow-noise", "pbmc", "ladder"):
        runs, known = (read_kept(study), io.read_json(RESULTS / study / "baselines.json"))
        judged = {name: [known[of]["test"][name] for of in runs["regime"]] for name in COMPARED}
        on_test = conditions.bought(runs.assign(validation_mse=runs["test_mse"], **judged)).steps.set_index("twice_the")
        digits = 2 if study == "ladder" else 1
        steps[study] = "{0:.{3}f} ({1:.{3}f} to {2:.{3}f})".format(*on_test.loc["parameters", ADDED], digits)
        assert on_test.loc["parameters", "points_low"] < 0
    of = "adds {} points in marrow, {} in marrow-noise and {} in pbmc, in the ladder {}: no last step is clear."
    assert of.format(*steps.values()) in TEXT
    before, known = read_kept("marrow").query("size != 'XS'"), io.read_json(RESULTS / "marrow" / "baselines.json")
    of_test = {name: known["data-rich"]["test"][name] for name in COMPARED}
    both = before, before.assign(validation_mse=before["test_mse"], **of_test)
    found = [conditions.bought(runs).steps.set_index("twice_the").loc["parameters", ADDED] for runs in both]
    earlier = ["{:.1f} ({:.1f} to {:.1f})".format(*step) for step in found]
    said = "that from d48 to d64 adds {} points on validation donors, {} on test donors."
    assert said.format(*earlier) in TEXT and min(step["points_low"] for step in found) > 0
    said = "Larger models help up to d64 ({:.1f} points per doubling, {:.1f} to {:.1f}), XS clearly only on cells of"
    assert said.format(*found[0]) in TEXT


@pytest.mark.parametrize("study", sorted(path.parent.name for path in RESULTS.glob("*/laws.json")))
def test_kept_laws_are_what_this_code_fits_to_the_kept_runs(study):
    table = read(RESULTS / study / "runs.csv")
    metrics = {*headline(table).values(), *(["test_mse"] if study in dict(LAWS) else [])}
    laws = fit_laws(table, 100, 0, tuple(sorted(metrics, reverse=True)), load_study(study).fit.errors)
    for regime, kept in io.read_json(RESULTS / study / "laws.json").items():
        for metric in metrics & set(kept):
            law, before = laws[regime][metric], kept[metric]
            assert law["status"] == before["status"], (regime, metric)
            ends, ends_before = (
                [end or 0 for of in each["intervals"].get("profile_size_means", {}).values() for end in of]
                for each in (law, before)
            )
            assert ends == pytest.approx(ends_before, rel=1e-5, abs=1e-9), (regime, metric)
            for name in ("alpha", "c", "r2", "a"):
                assert (law[name] or 0) == pytest.approx(before[name] or 0, rel=1e-6), (regime, metric, name)


def test_the_sentences_on_marrow_have_the_numbers_of_the_kept_study():
    law = io.read_json(RESULTS / "marrow" / "laws.json")["data-rich"]["validation_mse"]
    runs = pd.read_csv(RESULTS / "marrow" / "runs.csv")
    of_largest = runs[runs["parameters"] == runs["parameters"].max()]
    largest = of_largest.select_dtypes("number").mean()
    better = 100 * (1 - largest["validation_mse"] / largest["pca_mse"])
    seeing = runs[runs["width"] >= 4]
    moved = seeing[seeing["convergence"] != "converged"]
    worse = 100 * (moved["validation_mse"] / moved["validation_mse_half"] - 1).squeeze()
    ended = f"{len(seeing) - 1} of the {len(seeing)} runs that see context have converged, and one, of XS, got"
    assert list(moved["size"]) == ["XS"] and f"{ended} {worse:.1f} % worse." in TEXT
    assert f"(`marrow`). {len(seeing) - 1} of {len(seeing)} runs have converged; XS is" in TEXT
    assert tuple(largest[["validation_donors", "test_donors"]]) == (4, 5), "docs: four new donors, five test donors"
    of_split = io.read_json(RESULTS / "marrow" / "baselines.json")["data-rich"]
    best = best_baseline(of_split["test"])
    again = 100 * (1 - largest["test_mse"] / best)
    said = f"XS is {better:.0f} % better than the best baseline, {again:.0f} % on test donors. It lies below the fitted"
    assert said in TEXT and f"XS ends at {largest['validation_mse']:.3f}, and" in TEXT
    assert f"{again:.0f} % below ({largest['test_mse']:.3f} against {best:.3f})" in TEXT and law["status"] == "ok"
    over = f"{largest['validation_mse_donor_se']:.3f} over the donors and {largest['validation_mse_se']:.3f} over their"
    low, high = law["intervals"]["profile_size_means"]["c"]
    assert over in TEXT and f"no better than {low:.3f} to {high:.3f}" in TEXT
    assert f"XS lies {100 * (1 - largest['validation_mse'] / law['c']):.1f} % below the floor" in TEXT
    hangs = law["sensitivity"]
    without, others = hangs["smallest size left out"], number(hangs["parameters without embeddings"], "alpha", ".2f")
    below = number(without, "alpha", ".2f")
    assert f"the exponent is {number(law, 'alpha', '.2f')}, without d4 {below}, without embeddings {others}." in TEXT
    assert f"these {runs['cells_train'].max():,} training cells" in TEXT
    assert law["sensitivity"]["smallest size left out"]["status"] == "floor not identified"
    linear = f"(conditional Gaussian {largest['gaussian_mse']:.3f}, PCA {largest['pca_mse']:.3f}); XS"
    means = runs.groupby("width")["validation_mse"].mean()
    assert linear in TEXT and (means[means.index >= 8] < largest["pca_mse"]).all()
    assert (means[means.index < 8] > largest["pca_mse"]).all()
    same, new = (100 * (1 - largest[f"{split}_mse"] / of_split[split]["gene_mean_mse"])
                 for split in ("test_random", "test"))  # fmt: skip
    alike, other = (100 * (1 - of_split[split]["gaussian_mse"] / of_split[split]["gene_mean_mse"])
                    for split in ("test_random", "test"))  # fmt: skip
    both = f"{same:.0f} % of the gene mean's error and the linear model {alike:.0f} %, on test donors {new:.0f} % and"
    assert f"XS explains {both} {other:.0f} %" in TEXT
    d64 = runs[runs["size"] == "d64"]
    assert f"{d64['test_mse'].mean():.3f}" == f"{largest['test_mse']:.3f}", "docs: where d64 is as good"
    lower = {
        of: (of_largest[f"{of}_mse"].max() < d64[f"{of}_mse"].min()) for of in ("test_random", "validation", "test")
    }
    assert lower == {"test_random": True, "validation": False, "test": False}, (
        "README: to XS clearly only on training donors"
    )
    ends = largest["test_random_mse"], d64["test_random_mse"].mean()
    assert "below every seed of d64 ({:.3f} against {:.3f} in the mean)".format(*ends) in TEXT
    seeds = runs.query("width == 4")["validation_mse"]
    apart = f"{100 * (seeds.max() / seeds.min() - 1):.0f} %"
    assert f"without d4, whose seeds differ by {apart}, no floor is identified" in TEXT
    f1 = pd.read_csv(RESULTS / "marrow" / "probe.csv", comment="#").set_index("features")["f1"]
    assert f"rises from {f1['d4']:.2f} (d4) to {f1['d64']:.2f} (d64), and no further (XS {f1['XS']:.2f})" in TEXT
    assert f"principal components ({f1['principal components']:.2f}) match it within error" in TEXT


def test_the_first_sentence_of_the_answer_holds_on_the_real_cells_that_are_kept():
    better, regimes = (
        [],
        {"marrow": "data-rich", "pbmc-512": "data-rich", "pbmc": "data-rich", "marrow-noise": "all-counts"},
    )
    for study, regime in regimes.items():
        runs, known = (
            read_kept(study).query("regime == @regime"),
            io.read_json(RESULTS / study / "baselines.json")[regime],
        )
        largest = runs[runs["parameters"] == runs["parameters"].max()].mean(numeric_only=True)
        better += [100 * (1 - largest[f"{of}_mse"] / best_baseline(known[of])) for of in ("validation", "test")]
        laws = of_metric(io.read_json(RESULTS / study / "laws.json"))
        assert "ok" not in map(standing, laws.values()) and "ok, alpha not citable" not in map(standing, laws.values())
    assert f"largest models are {min(better):.0f} to {max(better):.0f} % better than linear baselines on new" in TEXT
    steps = [conditions.bought(read_kept(study)).steps.set_index("twice_the")["points_low"] for study in regimes]
    assert sum(of["updates"] > 0 for of in steps) == 1, "README: in one"
    assert sum(of["parameters"] > 0 for of in steps) == 1, "README: that of parameters in one"


def test_the_sentences_on_laws_have_the_numbers_of_the_kept_studies():
    law = io.read_json(RESULTS / "ladder" / "laws.json")["data-rich"]["validation_mse"]
    names = ["validation_mse", "validation_mse_half", "bayes_mse", "validation_mse_se"]
    of = read_kept("ladder").groupby("size")[names].mean().astype(float)
    (smaller, _, exact, error), (loss, half, *_) = of.loc["d96"], of.loc["d128"]
    took, step = 100 * (half - loss) / (half - exact), 100 * (smaller - loss) / (smaller - exact)
    assert f"d128's updates removed {took:.0f} % of its excess over the exact floor, and the step" in TEXT
    assert f"the step from d96 to d128 only {step:.0f} %." in TEXT
    low, high = law["intervals"]["profile_size_means"]["c"]
    assert round(4 * 2 * 1.96 * error / (high - low)) == 3, "docs: three quarters"
    runs = pd.read_csv(RESULTS / "ladder" / "runs.csv").query("width >= 4")
    exact, (low, high) = runs["bayes_mse"].mean(), law["intervals"]["profile_size_means"]["c"]
    assert "eleven sizes" in TEXT and law["n_sizes"] == 11 and low < exact < high
    assert (runs.groupby("size")["validation_mse"].mean() < law["c"]).sum() == 2, "README: two sizes already lie below"
    without = number(law["sensitivity"]["smallest size left out"], "alpha", ".2f")
    assert f"(p = {law['lack_of_fit']['p']:.3f})" in TEXT and f"smallest size the exponent is {without}" in TEXT
    steps = conditions.bought(read_kept("ladder")).steps.set_index("twice_the")
    bought = f"still adds more ({steps.loc['updates', 'points']:.2f} points) than a doubling of the parameters"
    assert f"{bought} ({steps.loc['parameters', 'points']:.2f})." in TEXT
    means = runs.groupby(["parameters", "size"])[["validation_mse_half", "validation_mse"]].mean().reset_index()
    moved = 100 * (means["validation_mse_half"] / means["validation_mse"] - 1)
    assert f"of the training losses were {moved.min():.1f} to {moved.max():.1f} % higher" in TEXT and moved.max() < 1
    assert f"largest model here has {runs['parameters'].max() / 1e6:.1f} million parameters" in TEXT
    ok = runs["convergence"] == "converged"
    assert f"moved {ok.sum()} of {len(ok)} runs by less than 1 %" in TEXT
    assert law["budget"]["whole"]["intervals"]["profile_size_means"]["c"][0] > exact > low, "docs: missed from above"
    misses = [100 * (1 - row["observed"] / row["predicted"]) for row in law["rollout"]]
    assert f"larger ones end up to {max(misses):.1f} % below what smaller ones predict" in TEXT and min(misses) > 0
    laws = [law for path in RESULTS.glob("*/laws.json") for law in of_metric(io.read_json(path)).values()]
    several = [[row["miss"] for row in law["rollout"]] for law in laws if law["n_sizes"] >= 8]
    assert len(several) == 6 and max(map(max, several)) < 0, "docs: in each of the six laws of eight sizes or more"
    assert means["validation_mse"].iloc[-1] == means["validation_mse"].min(), "README: it still falls"


def test_the_account_of_the_ladder_on_test_donors_has_the_numbers_of_the_kept_study():
    laws = io.read_json(RESULTS / "ladder" / "laws.json")["data-rich"]
    known = io.read_json(RESULTS / "ladder" / "baselines.json")["data-rich"]
    above = [laws[f"{split}_mse"]["c"] - known[split]["bayes_realised_mse"] for split in ("validation", "test")]
    assert {f"{value:.3f}" for value in above} == {"0.018"} and "fitted floor is 0.018 above what the best" in TEXT
    law, of_test = laws["test_mse"], known["test"]
    low, high = law["intervals"]["profile_size_means"]["c"]
    exact, realised = of_test["bayes_mse"], of_test["bayes_realised_mse"]
    misses = f"does not hold the exact floor, {exact:.3f}, nor that of these cells, {realised:.3f}."
    assert f"test donors, {low:.3f} to {high:.3f}, is not" in TEXT and misses in TEXT and not law["budget"]
    assert low > realised > exact and law["status"] == "ok"


def test_the_account_of_the_replicates_has_their_numbers_and_their_intervals_hold_nine_floors_in_ten():
    replicates = pd.read_csv(io.CODE / "data" / "replicates.csv").query("objective in ('mse', 'negative_binomial')")
    ok, limit, bits, _ = reliability(replicates).to_dict("records")
    squares = replicates[replicates["objective"] == "mse"]
    number = squares["status"].value_counts()
    among = f"{number['budget-limited']} are budget-limited, {number['floor not identified']} identify no floor, and"
    assert f"Of {ok['replicates']} for the squared error {among} {ok['laws']} have a law of status ok" in TEXT
    wilson = ["{:.0f} to {:.0f}".format(100 * of["exact_low"], 100 * of["exact_high"]) for of in (ok, limit)]
    held = [round(of["exact"] * of["laws"]) for of in (ok, limit)]
    assert f"floor in {held[0]} ({wilson[0]} %). Extrapolated to infinite training {limit['laws']}," in TEXT
    assert (squares.loc[squares["status"] == "ok", "limit_status"] == "ok").all(), "docs: these among them"
    assert f"holds the floor in {held[1]} ({100 * limit['exact']:.0f} %, {wilson[1]})" in TEXT
    sound = squares[squares["status"] == "ok"]
    width = 100 * ((sound["high"] - sound["low"]) / sound["exact"]).median()
    above, on_cells = ((squares["c"] > squares[of]).sum() for of in ("exact", "realised"))
    median = 100 * (squares["c"] / squares["realised"] - 1).median()
    assert f"above the exact one in {above} of the {len(squares)}, and above what the best predictor scores" in TEXT
    assert f"on these very cells in {on_cells}, by {median:.1f} % in the median. In the median an interval of" in TEXT
    assert f"an interval of status ok is {width:.0f} % of the floor wide" in TEXT
    runs = pd.read_csv(io.CODE / "data" / "replicate_runs.csv").query("objective == 'mse' and size == 'd24'")
    of = squares[squares["limit_status"] == "ok"].merge(runs, on="replicate", suffixes=("", "_run"))
    part = 100 * (2 * 1.96 * of["loss_se"] / (of["limit_high"] - of["limit_low"])).median()
    alone = ((of["loss"] - of["exact"]).abs() <= 1.96 * of["loss_se"]).sum()
    assert f"the width of the {len(of)} extrapolated intervals {part:.0f} %, in the median, is the error over" in TEXT
    assert f"the loss of d24 with that error alone would hold the floor in {alone} of them" in TEXT
    assert f"Of {bits['replicates']} for bits {bits['laws']} have a law of status ok: its interval holds" in TEXT
    family, entropy = (round(bits[of] * bits["laws"]) for of in ("family", "exact"))
    low, high = (100 * end for end in proportion_confint(family, bits["laws"], method="wilson"))
    assert f"such a model, in {family} ({low:.0f} to {high:.0f} %), and the entropy itself, which" in TEXT
    rare = (
        f"{number['budget-limited']} were budget-limited; {ok['laws']} had a law of status ok, whose interval held the"
    )
    assert f"Of {ok['replicates']} whole simulated studies {rare} exact floor [each time]" in TEXT
    assert held[0] == ok["laws"] and f"[each time](docs/how-sure.md) (95 % interval of that: {wilson[0]} %)" in TEXT
    assert f"Fitted floors were above the exact one in {above} of the {len(squares)}." in TEXT
    assert f"which lies lower, in {entropy}." in TEXT
    assert ok["exact"] >= 0.9 and limit["exact"] >= 0.9 and bits["family"] >= 0.9


def test_the_account_of_coverage_and_of_the_sweep_has_the_numbers_of_their_tables():
    covered = 100 * pd.read_csv(io.CODE / "data" / "coverage.csv").set_index("method")[["alpha", "c"]]
    means, over_runs = covered.loc["profile_size_means"], covered.loc[["profile_runs", "bootstrap_runs"]].min(axis=None)
    held = f"in {means.min(axis=None):.0f} to {means.max(axis=None):.0f} % of the studies of every kind"
    within = covered.loc["bootstrap_within_sizes"].min(axis=None)
    said = f"{held}, those over runs in as few as {over_runs:.0f} %, the bootstrap within sizes in {within:.0f} %"
    assert said in TEXT
    swept = pd.read_csv(io.CODE / "data" / "recipe.csv").query("panel.str.startswith('marrow')")
    rule = swept[swept["rule"]].set_index("width")
    fast = swept.query("factor == 2 and optimiser == 'muon' and batch == 16").groupby("width")["validation_mse"].min()
    gains = 100 * (rule["validation_mse"] / fast - 1)
    assert f"twice the rate did up to {gains.max():.1f} % better" in TEXT and (gains > 0).all()


def test_the_account_of_finite_cells_has_the_numbers_of_the_pairs():
    runs = pd.read_csv(io.CODE / "data" / "replicate_runs.csv").query("size == 'd24'")
    pairs = runs.pivot(index="replicate", columns="objective", values="loss").dropna(subset="mse, fresh cells")
    cost = 100 * (pairs["mse, seen cells"] / pairs["mse, fresh cells"] - 1)
    reach = stats.t.ppf(0.975, len(cost) - 1) * cost.sem()
    said = f"{cost.mean():.2f} % ({cost.mean() - reach:.2f} to {cost.mean() + reach:.2f}) higher"
    assert f"In {len(cost)} pairs" in TEXT and f"d24 ends {said} with 18,000 training cells" in TEXT
    of_pairs = runs[runs["objective"].str.contains("cells")]
    assert (of_pairs.groupby("replicate")[["exact", "realised", "cells_seen"]].nunique() == 1).all(axis=None)
    above = 100 * (of_pairs["loss"] / of_pairs["realised"] - 1)
    assert f"both {above.min():.1f} to {above.max():.1f} % above" in TEXT
    assert set(of_pairs["cells_train"]) == {18_000, 1_024_000} == {18_000, of_pairs["cells_seen"].iloc[0]}


def test_the_account_of_donor_splits_has_the_numbers_of_the_kept_study():
    runs = read_kept("marrow-donors")
    splits = conditions.donor_splits(runs).set_index("size")
    ends = 100 * splits[["below_baseline", "below_baseline_low", "below_baseline_high"]]
    d16, d48 = ("{:.1f} % ({:.1f} to {:.1f})".format(*ends.loc[size]) for size in ("d16", "d48"))
    assert f"d48 is {d48} below the best baseline, and d16 {d16}, while" in TEXT
    assert f"Over five overlapping splits of these donors width 48 is {d48} better" in TEXT
    assert (splits["splits"] == 5).all()
    assert f"d48 has a standard deviation of {splits.loc['d48', 'spread']:.3f} over splits;" in TEXT
    of_d48 = runs[runs["size"] == "d48"]
    gained = 100 * (1 - of_d48["validation_mse"] / of_d48[["pca_mse", "gaussian_mse"]].min(axis=1))
    assert f"gains on a linear model, {gained.min():.1f} to {gained.max():.1f} % in the five, hardly does" in TEXT
    known = io.read_json(RESULTS / "marrow-donors" / "baselines.json")
    losses = of_d48.set_index("regime")["test_mse"].items()
    on_test = [100 * (1 - loss / best_baseline(known[of]["test"])) for of, loss in losses]
    assert f"five splits d48 is {min(on_test):.1f} to {max(on_test):.1f} % below." in TEXT and len(on_test) == 5
    whole = pd.read_csv(RESULTS / "marrow" / "runs.csv")["cells_seen"].max()
    assert (runs["convergence"] == "converged").all() and f"all {len(runs)} runs have converged" in TEXT
    assert runs["cells_seen"].max() == whole, "docs: as many cells seen"


def test_the_account_of_the_recipe_has_the_numbers_of_the_kept_study():
    runs = pd.read_csv(RESULTS / "protocol" / "runs.csv").query("width >= 4")
    means = runs.groupby(["regime", "size"])["test_mse"].mean().unstack()
    of = io.read_json(RESULTS / "protocol" / "baselines.json")["initialisation"]["test"]
    linear, exact, d64 = best_baseline(of), of["bayes_mse"], means["d64"]
    untuned, tuned = d64["initialisation"], d64["learning-rate"]
    assert means.loc["initialisation"].min() > linear and means.loc["library-size"].min() > linear
    small = d64["library-size"]  # by the published initialisation
    said = f"d64 ends at {small:.3f}, and at {untuned:.3f} with larger initial embeddings and no dropout. From there"
    assert f"linear model's {linear:.3f}: {said} tuned rates bring it to {tuned:.3f}" in TEXT and small > linear
    part = 100 * (untuned - tuned) / (untuned - exact)
    assert f"and remove {part:.0f} % of the excess over the exact floor, {exact:.3f}; then" in TEXT
    assert d64["updates"] < tuned < linear
    for first in ("published", "split"):
        of = io.read_json(RESULTS / "protocol" / "baselines.json")[first]["test"]
        assert means.loc[first].min() > best_baseline(of) > 10 * linear, "docs: nor in the first two steps"
    assert f"test donors: {small:.3f}, a linear model {linear:.3f}, tuned rates {tuned:.3f})" in TEXT
    apparent = io.read_json(RESULTS / "protocol" / "laws.json")["initialisation"]["validation_mse"]
    assert f"The floor of {apparent['c']:.3f} that" in TEXT and apparent["status"] == "convergence not known"
    muon, longer = d64["optimiser"], d64["updates"]
    said = f"Muon with half the updates brings it to {muon:.3f}, and four times the cells seen to {longer:.3f}"
    seen, updates = (runs.groupby("regime")[name].first() for name in ("cells_seen", "updates"))
    assert said in TEXT and muon < tuned and 2 * updates["optimiser"] == updates["learning-rate"]
    assert f"at {seen['published']:,} cells seen" in TEXT and seen["updates"] == 4 * seen["published"]
    laws = list(io.read_json(RESULTS / "protocol" / "laws.json").values())[2:]
    ends = [law["validation_mse"]["intervals"]["profile_size_means"]["alpha"] for law in laws]
    assert max(low or 0 for low, _ in ends) < min(high or np.inf for _, high in ends), "docs: they overlap"


def test_the_account_of_the_papers_dimensions_has_the_numbers_of_the_kept_study():
    runs, laws = read_kept("dimensions"), io.read_json(RESULTS / "dimensions" / "laws.json")
    runs, ends, reached = runs[runs["width"] >= 4].sort_values("parameters"), [], []
    published, runs = (runs[(runs["protocol"] == "published") == there] for there in (True, False))
    shares = {}
    for regime in ("data-rich", "data-limited"):
        of = runs[runs["regime"] == regime].astype(dict.fromkeys(("bayes_mse", "gene_mean_mse"), float))
        best, (exact, gene_mean) = (
            of[["pca_mse", "gaussian_mse"]].min(axis=None),
            of[["bayes_mse", "gene_mean_mse"]].mean(),
        )
        ends += [of["validation_mse"].iloc[-1], best, exact]
        shares[regime] = pd.Series((100 * (gene_mean - of["validation_mse"]) / (gene_mean - exact)).array, of["size"])
        reached += [*shares[regime].iloc[[0, -1]], 100 * (gene_mean - best) / (gene_mean - exact)]
        sizes = list(of.loc[of["validation_mse"] < best, "size"])
        assert sizes == {"data-rich": ["d48", "d64", "XS"], "data-limited": ["d48", "d64"]}[regime]
        assert laws[regime]["validation_mse"]["status"] == "budget-limited", "docs: both"
    said = "XS ends at {:.4f} on 512 genes and 200,000 cells (best baseline {:.4f}, exact floor {:.4f}), and "
    said += "d64 at {:.4f} on 1,024 genes and 10,000 cells ({:.4f}, {:.4f})"
    assert said.format(*ends) in TEXT and set(runs["width"]) == {4, 6, 8, 12, 16, 24, 32, 48, 64}
    said = "d4 has come {:.0f} % and XS {:.0f} % of the way in the first (the best baseline {:.0f} %), d4 {:.0f} % and "
    said += "d64 {:.0f} % in the second ({:.0f} %)"
    assert said.format(*reached) in TEXT
    apart = (shares["data-rich"] - shares["data-limited"]).abs().max()
    assert f"both have come equally far, to within {np.ceil(apart):.0f} points" in TEXT
    converged = (runs["convergence"] == "converged").sum()
    largest = runs[runs["size"] == "XS"].iloc[0]
    worse = 100 * (largest["validation_mse_half"] / largest["validation_mse"] - 1)
    assert f"{converged} of {len(runs)} runs have converged, half of its updates leave XS {worse:.1f} % worse" in TEXT
    assert f"none of {len(runs)} tuned runs [has converged]" in TEXT and not converged
    assert runs["cells_seen"].eq(240_000).all(), "README: the paper's 240,000 cells seen"
    low, high = laws["data-rich"]["validation_mse"]["budget"]["limit"]["intervals"]["profile_size_means"]["c"]
    assert f"{low:.3f} to {high:.3f}, includes 0: no floor is shown" in TEXT and low < 0
    theirs = given(load_study("published-runs")).query("regime == 'data-limited' and size != 'XXS'")["parameters"].min()
    ours = runs.loc[runs["regime"] == "data-limited", "parameters"].max()
    assert f"up to {round(ours, -3):,.0f} parameters" in TEXT
    assert f"no scaling there from {round(theirs, -3):,.0f} up" in TEXT and theirs > ours
    exact, gene_mean = published[["bayes_mse", "gene_mean_mse"]].astype(float).mean()
    of_size, tuned = (
        published.set_index("size")["validation_mse"],
        runs[runs["regime"] == "data-rich"].set_index("size"),
    )
    assert list(of_size.index) == ["d4", "d6", "d8", "d12", "TINY", "d24", "d32", "d48", "d64"], "docs: up to d64"
    way, tuned_way = (100 * (gene_mean - losses) / (gene_mean - exact) for losses in (of_size, tuned["validation_mse"]))
    said = "no width up to 16 has come more than {:.0f} % of the way from the gene mean to the exact floor, "
    said += "d32 {:.0f} % ({:.3f}), and d64 {:.0f} % ({:.3f}), where it comes {:.0f} % by the tuned recipe ({:.3f}), "
    said += "by which width 6 is lower already ({:.3f})."
    numbers = [np.ceil(way[:"TINY"].max())]
    for of in ("d32", "d64"):
        numbers += [way[of], of_size[of]]
    assert said.format(*numbers, tuned_way["d64"], *tuned.loc[["d64", "d6"], "validation_mse"]) in TEXT
    assert of_size.min() > tuned.loc["d6", "validation_mse"] > tuned[["pca_mse", "gaussian_mse"]].min(axis=None)
    rows = published.set_index("size")
    resting = way[rows["convergence"] == "converged"]
    assert list(resting.index) == ["d8", "d12"] and resting.max() < 2, "docs: d8 and d12 pass for converged"
    assert (
        f"leave d64 {100 * (rows['validation_mse_half'] / rows['validation_mse'] - 1)['d64']:.0f} % worse, and" in TEXT
    )
    law = laws["published-recipe"]["validation_mse"]
    assert law["budget"]["whole"]["status"] == "alpha at grid edge" and law["comparison"]["quadratic"]["aicc"] < min(
        of["aicc"] for form, of in law["comparison"].items() if form != "quadratic"
    ), "docs: away from any floor"
    ways = f"{way['d64']:.0f} % by the paper's own recipe and {tuned_way['d64']:.0f} % by the tuned one; a linear model"
    assert f"exact floor width 64 comes {ways} comes {reached[2]:.0f} %." in TEXT


def test_the_account_of_pbmc_has_the_numbers_of_the_kept_study():
    runs, known = read_kept("pbmc"), io.read_json(RESULTS / "pbmc" / "baselines.json")
    means = runs.query("width >= 4").groupby(["regime", "size"])["validation_mse"].mean().unstack()
    best = {name: best_baseline(of["validation"]) for name, of in known.items()}
    rich, fewer, few = means.loc["data-rich"], means.loc["cells-3000"], means.loc["cells-800"]
    ends = f"12,000 training cells d64 ends at {rich['d64']:.3f}, with 3,000 at {fewer['d64']:.3f}"
    assert f"{ends}, where the best baselines have {best['data-rich']:.3f} and {best['cells-3000']:.3f}" in TEXT
    pays = runs.query("size == 'd64'").groupby("regime")["validation_mse"]
    assert pays.max()["data-rich"] < pays.min()["cells-3000"], "README: four times the cells did pay"
    of_few = f"({few.min():.3f}, baseline {best['cells-800']:.3f})"
    assert f"With 800 {few.idxmin()} ends lowest {of_few}" in TEXT
    gene_mean = known["data-limited"]["validation"]["gene_mean_mse"]
    assert f"no size is below the gene mean's {gene_mean:.3f}" in TEXT
    few_cells = runs[(runs["regime"] == "data-limited") & (runs["width"] >= 16)]
    assert rising(few_cells).all() and "with 200 those from d16 on are overfitted" in TEXT
    assert runs.query("regime == 'data-limited'")["validation_mse"].min() > gene_mean
    test = runs.query("regime == 'data-rich' and size == 'd64'")["test_mse"].mean()
    of_test = known["data-rich"]["test"]
    below = 100 * (1 - test / best_baseline(of_test))
    fewer, of_fewer = (
        runs.query("regime == 'cells-3000'").groupby("size")["test_mse"].mean(),
        known["cells-3000"]["test"],
    )
    none = fewer.min(), best_baseline(of_fewer)
    said = "sets d64 is {:.1f} % below the best baseline with 12,000 training cells; "
    said += "with 3,000 no size is ({:.3f}, {:.3f})"
    assert said.format(below, *none) in TEXT and none[0] > none[1]
    again = read(RESULTS / "pbmc" / "runs_again.csv")
    moved = (again["validation_mse"] / runs["validation_mse"] - 1).abs()
    assert again[["regime", "size", "seed"]].equals(read(RESULTS / "pbmc" / "runs.csv")[["regime", "size", "seed"]])
    assert (
        f"to {100 * moved.max():.1f} % (half of them by less than 0.25 %)" in TEXT
        and moved[runs["width"] >= 4].median() < 0.0025
    )
    statuses = ["budget-limited"] * 3 + ["overfitted"] * 2
    found = [law["status"] for law in of_metric(fit_laws(again, 100, 0)).values()]
    assert found == statuses, "docs: none of the statuses of its five laws"
    gains = conditions.matched(runs).gains
    saved = gains.set_index("cells_train")["gain"]
    grows = f"from {saved[200]:.3f} with 200 cells through {saved[800]:.3f} with 800 to {saved[12000]:.3f} with 12,000"
    assert grows in TEXT
    of_d8 = [at_best_budget(runs[runs["regime"] == name]) for name in ("data-rich", "cells-800")]
    of_d8 = "saves {:.3f} there, and {:.3f} with 800".format(*(of["d8"] - of.min() for of in of_d8))
    assert f"against d8 the best size {of_d8}" in TEXT
    assert rich["d4"] > known["data-rich"]["validation"]["gene_mean_mse"], "docs: no better"
    early = runs[runs["width"] >= 4]
    few, fewer = (at_best_budget(early[early["regime"] == of]) for of in ("cells-800", "data-limited"))
    said = f"falls from {few['d4']:.3f} (d4) to {few['d64']:.3f} (d32 and d64); with 200 from {fewer['d4']:.3f} to"
    assert f"{said} {fewer['d64']:.3f}, still no better than the gene mean" in TEXT and fewer["d64"] > gene_mean
    assert f"{few['d32']:.3f}" == f"{few['d64']:.3f}" == f"{few.min():.3f}" and fewer.idxmin() == "d64"
    *_, more, reach = conditions.growth(gains)
    assert f"to {saved[12000]:.3f} with 12,000: {more:.3f} ({more - reach:.3f} to {more + reach:.3f}) more." in TEXT
    laws = of_metric(io.read_json(RESULTS / "pbmc" / "laws.json")).values()
    assert [law["status"] for law in laws] == statuses
    assert (runs["convergence"] == "not converged").mean() > 0.5


def test_the_account_of_pbmc_at_512_genes_has_the_numbers_of_the_kept_study():
    runs, known = read_kept("pbmc-512"), io.read_json(RESULTS / "pbmc-512" / "baselines.json")["data-rich"]
    largest, rows = runs.loc[runs["parameters"].idxmax()], []
    for split in ("validation", "test"):
        rows += [largest[f"{split}_mse"], best_baseline(known[split])]
    said = "d64 ends at {:.3f} and the best baseline at {:.3f}, on the test data sets at {:.3f} and {:.3f};"
    assert said.format(*rows) in TEXT
    better = "The largest is {:.0f} % better than the best baseline on one donor, {:.0f} % on another"
    assert largest["validation_donors"] == largest["test_donors"] == 1
    assert better.format(*(100 * (1 - rows[n] / rows[n + 1]) for n in (0, 2))) in TEXT
    moving = runs.groupby("size")["convergence"].agg(lambda of: (of == "not converged").mean())
    assert (
        f"{(runs['convergence'] == 'converged').sum()} of {len(runs)} runs have converged, none of d4 and d64" in TEXT
    )
    assert set(moving.index[moving > 0.5]) == {"d4", "d64"}
    steps = conditions.bought(runs).steps.set_index("twice_the")[ADDED]
    said = ("{:.1f}, {:.1f} to {:.1f}".format(*steps.loc[name]) for name in ("parameters", "updates"))
    assert "({} points, and {})".format(*said) in TEXT
    marrow = read_kept("marrow")
    assert (runs[["cells_seen", "genes"]].iloc[0] == marrow[["cells_seen", "genes"]].iloc[0]).all()
    assert runs["cells_seen"].max() == 3 * read_kept("pbmc")["cells_seen"].max(), "docs: three times the cells seen"


def test_the_account_of_cells_depth_and_probe_has_the_numbers_of_the_kept_studies():
    matched = pd.read_csv(RESULTS / "matched" / "runs.csv").query("donors != donors")
    means = matched.groupby(["cells_train", "parameters"])["validation_mse"].mean().unstack()
    linear, largest = matched.groupby("cells_train")["gaussian_mse"].mean(), means.iloc[:, -1]
    assert f"ends at {largest[40000]:.3f} with 40,000 training cells and at {largest[12000]:.3f} with 12,000" in TEXT
    early, last = matched[matched["cells_train"] == 400], matched["size"].iloc[matched["parameters"].argmax()]
    best = at_best_budget(early[early["width"] >= 4])
    assert f"beats the linear model's {linear[400]:.3f} at any budget. There the largest is the best after an" in TEXT
    assert f"eighth of its updates ({best[last]:.3f}) and the worst at the end ({largest[400]:.3f})" in TEXT
    assert best[last] == best.min() == early.query("size == @last")["validation_mse_eighth"].mean() > linear[400]
    assert largest[400] == means.loc[400].max()
    gains = conditions.matched(read_kept("matched")).gains
    saved, (*_, more, reach) = gains.set_index("cells_train")["gain"], conditions.growth(gains)
    assert f"the best size saves {saved[400]:.3f} against the smallest with 400 cells, each" in TEXT
    grown = f"{saved[40000]:.3f} with 40,000, which is {more:.3f} ({more - reach:.3f} to {more + reach:.3f}) more"
    assert f"{grown}; 4,000 are enough for that ({saved[4000]:.3f})" in TEXT
    bought = conditions.bought(read_kept("noise")).steps.set_index("twice_the")
    parameters, cells, counts = ("{:.1f} ({:z.1f} to {:.1f})".format(*row) for row in bought[ADDED].to_numpy())
    more = f"twice the counts of every cell add {counts} points", f"cells {cells}, twice the parameters {parameters}"
    assert all(words in TEXT for words in more)
    more, baseline = bought.loc["counts of a cell", ["points", "baseline"]]
    depths = pd.read_csv(RESULTS / "noise" / "runs.csv").groupby("regime")[["bayes_mse", "gene_mean_mse"]].first()
    exact = 100 * (1 - depths["bayes_mse"] / depths["gene_mean_mse"])
    floor = f"and {exact['all-counts'] - exact['half']:.1f} to the exact floor"
    assert f"adds {baseline:.1f} points to the best baseline {floor}" in TEXT
    f1 = pd.read_csv(RESULTS / "noise" / "probe.csv", comment="#").set_index("features")["f1"]
    assert f"rises from {f1['d4']:.2f} (d4) to {f1['d32']:.2f} (d32)" in TEXT
    assert f"principal components of the same cells, {f1['principal components']:.2f}." in TEXT


def test_the_account_of_bits_and_of_the_probes_has_the_numbers_of_the_kept_studies():
    noise, laws = read_kept("noise"), io.read_json(RESULTS / "noise" / "laws.json")
    runs, counts = noise[noise["regime"] == "all-counts"], read_kept("pbmc").query("regime == 'counts'")
    said = "In `noise` d32 ends at {:.2f} bits (exact entropy {:.2f}, a negative binomial of each gene {:.2f}), on real"
    ends = [of.groupby("size")["validation_nll"].mean()[size] for of, size in ((runs, "d32"), (counts, "d64"))]
    assert said.format(ends[0], *runs[["bayes_bits", "gene_nll"]].mean()) in TEXT
    assert (
        f"d64 at {ends[1]:.2f} (negative binomial {counts['gene_nll'].mean():.2f}); neither regime has converged"
        in TEXT
    )
    of_pbmc = io.read_json(RESULTS / "pbmc" / "laws.json")["counts"]["validation_nll"]
    assert laws["all-counts"]["validation_nll"]["status"] == of_pbmc["status"] == "budget-limited"
    ladder = io.read_json(RESULTS / "ladder" / "laws.json")["data-rich"]["validation_mse"]["floor_bits"]["value"]
    exact = io.read_json(RESULTS / "ladder" / "baselines.json")["data-rich"]["validation"]["bayes_bits"]
    assert f"it makes {ladder:.2f} bits, where the exact entropy is {exact:.2f}" in TEXT
    probes = {path.parent.name: pd.read_csv(path, comment="#") for path in RESULTS.glob("*/probe.csv")}
    assert len(probes) == 8, "docs: eight kept probes"
    for probe in probes.values():
        of = probe.set_index("features")
        assert (of["low"].iloc[2:] <= of.loc["principal components", "high"]).all()
    of = probes["protocol"].set_index("features")["f1"]
    assert f"the largest is below ({of['d64']:.2f}, {of['principal components']:.2f})" in TEXT


def test_the_account_of_depth_on_real_cells_has_the_numbers_of_the_kept_study():
    runs = read_kept("marrow-noise")
    steps = conditions.bought(runs).steps.set_index("twice_the")
    added = {name: "{:.1f} ({:z.1f} to {:.1f})".format(*row) for name, row in steps[ADDED].iterrows()}
    counts, cells = (steps.loc[name, ["points", "baseline"]] for name in ("counts of a cell", "training cells"))
    assert f"it adds {added['counts of a cell']} points, {counts['baseline']:.1f} to the best baseline; twice" in TEXT
    assert f"cells {added['training cells']}, {cells['baseline']:.1f} to the baseline (with d32" in TEXT
    assert f"parameters {added['parameters']} and twice the updates {added['updates']}." in TEXT
    assert "twice the counts add {:.1f} points, and {:.1f} to the baseline; twice".format(*counts) in TEXT
    shares = (1 - runs["validation_mse"] / runs["gene_mean_mse"]).groupby([runs["regime"], runs["size"]]).mean()
    numbers = runs.groupby("regime")["cells_train"].first()
    doublings = np.log2(numbers["all-counts"] / numbers["cells-2000"])
    same_size = 100 * (shares["all-counts"] - shares["cells-2000"])["d32"] / doublings
    assert (
        "twice the cells {:.1f} ({:.1f} at width 32), and {:.1f} to the baseline.".format(
            cells["points"], same_size, cells["baseline"]
        )
        in TEXT
    )
    assert f"(with d32 at both numbers of cells {same_size:.1f}); twice the parameters" in TEXT
    converged = (runs["convergence"] == "converged").sum()
    assert f"Of its {len(runs)} runs {converged} have converged, and no law is named" in TEXT
    laws = io.read_json(RESULTS / "marrow-noise" / "laws.json").values()
    assert all(next(iter(law.values()))["status"] != "ok" for law in laws)


def test_the_account_of_the_published_runs_has_the_fitted_numbers():
    table = given(load_study("published-runs"))
    headline = fit_laws(table, 100, 0, metrics=("validation_mse",))["data-rich"]["validation_mse"]
    low, high = headline["intervals"]["profile_size_means"]["alpha"]
    assert f"gives 0.529, without XXS {headline['alpha']:.2f} ({low:.2f} or more)" in TEXT
    open_end = f"alpha is {headline['alpha']:.2f} and its 95 % interval goes from {low:.2f} without an upper end"
    assert open_end in TEXT and high is None
    table = table.drop(columns="width")
    law = fit_laws(table, 100, 0, metrics=("validation_mse",))["data-rich"]["validation_mse"]
    assert f"alpha {number(law, 'alpha', '.3f')} and a floor of {number(law, 'c', '.3f')}" in TEXT
    fitted, other = published.fits(table).to_dict("records")
    assert f"alpha {fitted['alpha']:.3f}, c {fitted['c']:.3f}, R² {fitted['r2']:.3f}" in TEXT
    assert fitted["rss"] / law["rss"] > 50, "README: more than fifty times smaller"
    again = f"alpha ({other['alpha']:.3f}) is reproduced, but with c = {other['c']:.3f} and R² {other['r2']:.3f}: the"
    assert f"{again} printed c of {other['printed_c']:.3f} and R² of {other['printed_r2']:.3f} do not follow" in TEXT
    evaluations = pd.read_csv(io.CODE / "data" / "published_runs.csv")["evaluations"]
    assert f"the best of {evaluations.min()} to {evaluations.max():,} noisy evaluations" in TEXT


def test_the_methods_are_the_defaults():
    of, masking = Train(), Masking()
    assert of.optimiser == "muon" and of.objective == "mse" and of.final_rate == of.dropout == 0
    hidden = f"{100 * masking.share:.0f} % of the genes are hidden, drawn anew at every update, in held-out cells by"
    rate = (
        f"peak rate is {of.learning_rate} ({of.reference_width} / d)^{of.width_exponent} and at most {of.highest_rate};"
    )
    said = [
        f"{hidden} {masking.per_cell} fixed masks", f"log(1 + {TARGET:,.0f} n / l)", f"Muon (momentum {MOMENTUM})",
        f"AdamW (beta 0.9 and {of.beta2}), with weight decay {of.weight_decay}, gradients clipped at a norm of "
        f"{of.clip:g}, initial embeddings of standard deviation {of.embedding_scale}, and no dropout", rate,
        f"rescaled to the size of AdamW's, take {MUON_RATE} of it. The rate rises over the first "
        f"{100 * of.warmup:.0f} % of the updates, and falls linearly to 0 over the last {100 * of.decay:.0f} %.",
        f"about {16 * batch(16)} genes ({batch(10**6)} to {batch(1)} cells)",
    ]  # fmt: skip
    assert [words for words in said if words not in TEXT] == []


def test_what_the_whole_census_would_take_is_what_the_bill_says():
    bill = scale.bill(Size("1B", 2048, 20, 16, 4), 512, 1e8)
    most, least = bill["hours"]
    assert f"{bill['flops']:.1e} FLOPs: {least:.0f} to {most:.0f} hours".replace("e+", "e") in TEXT
    assert f"a file of {bill['panel'] / 1e9:.0f} GB" in TEXT and f"exchange {bill['gradient'] / 1e9:.0f} GB" in TEXT
    assert f"About {bill['network'] / 1e12:.0f} TB comes" in TEXT and f"{bill['labels'] / 1e9:.0f} GB of memory" in TEXT


def test_what_the_papers_scale_would_take_is_what_its_flops_say():
    tuned, theirs = scale.cost(load_study("tuned")), {"training": scale.of_published_runs()}
    ours, published = ("{:.1f} to {:.1f}".format(*scale.hours(**flops)) for flops in (tuned, theirs))
    assert f"`tuned` takes {ours} hours of one H100, and the 38 published runs {published}" in TEXT


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    text = PAGES[page]
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {"#" + re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert links and [link for link in links if link not in anchors and not (page.parent / link).exists()] == []


def test_the_citation_has_the_keys_that_the_format_requires_and_the_version_and_licence_of_the_project():
    citation = yaml.safe_load((io.CODE / "CITATION.cff").read_text())
    project = tomllib.loads((io.CODE / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", project["version"])
    assert citation["license"] == project["license"]


def test_the_example_of_10x_output_and_a_sample_sheet_is_read(project, tenx, counts):
    example = next(text for text in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "samples.csv" in text)
    content = io.parse_yaml(textwrap.dedent(example).replace("run1/filtered_feature_bc_matrix.h5", "input/run1.h5"))
    tenx("run1", counts)
    tenx("run2", counts + 1, "mtx.gz")
    (project / "samples.csv").write_text("path,donor_id,dataset_id,tissue\ninput/run2,D2,run2,blood\n")
    pool = survey(Census.model_validate(content["census"]))
    assert [set(obs["donor_id"]) for obs in pool.obs] == [{"D1"}, {"D2"}] and set(pool.presence) == {"run1", "run2"}
