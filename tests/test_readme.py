"""The README and docs/ are true: tables and laws are those of what is kept, methods the defaults, links are there."""

import re
import textwrap
import tomllib

import pandas as pd
import pytest
import scale
import yaml
from conftest import read_kept
from pages import ADDED, PAGES, README, RESULTS, TEXT, at_largest, best_baseline, bought, estimate, kept, tells
from replicates import reliability
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from lib import io
from lib.data.user_files import survey
from lib.fit import conditions, published
from lib.fit.capacity import standing
from lib.fit.runs import given, headline, of_metric, read
from lib.fit.summary import fit_laws
from lib.io import TARGET
from lib.model.sizes import Size, batch
from lib.study import Census, Masking, Train, load_study
from lib.train.loop import MOMENTUM, MUON_RATE

LAWS = {  # study: cells, what they are
    "ladder": ("simulated", "held-out donors"),
    "marrow": ("real, 18 donors, 15 with leukaemia", "held-out donors"),
    "pbmc-512": ("real, nine data sets", "held-out data sets"),
    "dimensions": ("simulated", "held-out donors"),
}


def number(law, name, digits):
    """A number of a law with its interval, as the table has it."""
    return "{:{digits}} ({:{digits}} to {:{digits}})".format(*estimate(law, name), digits=digits)


@pytest.mark.parametrize("study", LAWS)
def test_the_table_of_laws_has_the_numbers_of_the_kept_studies(study):
    runs, laws, _ = kept(study, "data-rich")
    law, exact = laws["validation_mse"], runs["bayes_mse"].mean()
    linear, largest = runs[["gaussian_mse", "pca_mse"]].mean().min(), at_largest(runs)["validation_mse"]
    numbers = [number(law, "alpha", ".2f"), number(law, "c", ".3f")] if law["status"] == "ok" else ["-", "-"]
    words = [
        f"[{study}](data/results/{study}/04_fit.ipynb)", *LAWS[study], f"{runs['genes'].iloc[0]}", standing(law),
        *numbers, "-" if pd.isna(exact) else f"{exact:.3f}", f"{linear:.3f}", f"{largest:.3f}",
    ]  # fmt: skip
    assert f"| {' | '.join(words)} |" in README


@pytest.mark.parametrize("study, clear", [
    ("ladder", {"parameters", "updates"}), ("marrow-noise", {"parameters", "training cells", "counts of a cell"}),
    ("pbmc", {"updates"}), ("pbmc-512", set()), ("marrow", set()),
])  # fmt: skip
def test_the_table_of_what_more_would_buy_has_the_numbers_of_the_kept_studies(study, clear):
    found = conditions.bought(read_kept(study))
    size, shares = re.search(r"size, (\w+), explains", found.sentence)[1], re.findall(r"([\d.]+)%", found.sentence)
    steps, exact = found.steps.set_index("twice_the")[ADDED], [] if len(shares) == 3 else ["-"]
    added = [
        "{:.2f} ({:z.2f} to {:.2f})".format(*steps.loc[name]) if name in steps.index else "-"
        for name in ("parameters", "updates", "training cells", "counts of a cell")
    ]
    assert f"| {' | '.join([f'{study}, {size}', *shares, *exact, *added])} |" in README
    assert {*steps.index[steps["points_low"] > 0]} == clear, "README: what limits"


@pytest.mark.parametrize("study", sorted(path.parent.name for path in RESULTS.glob("*/laws.json")))
def test_kept_laws_are_what_this_code_fits_to_the_kept_runs(study):
    def numbers(law):
        return [law[name] or 0 for name in ("alpha", "c", "r2", "a")]

    def ends(law):
        return [end or 0 for of in law["intervals"].get("profile_size_means", {}).values() for end in of]

    table = read(RESULTS / study / "runs.csv")
    metrics = {*headline(table).values(), *(["test_mse"] if study in LAWS else [])}
    laws = fit_laws(table, 100, 0, tuple(sorted(metrics, reverse=True)), load_study(study).fit.errors)
    for regime, before in io.read_json(RESULTS / study / "laws.json").items():
        for metric in metrics & set(before):
            law = laws[regime][metric]
            assert law["status"] == before[metric]["status"], (regime, metric)
            assert numbers(law) == pytest.approx(numbers(before[metric]), rel=1e-6), (regime, metric)
            assert ends(law) == pytest.approx(ends(before[metric]), rel=1e-5, abs=1e-9), (regime, metric)


def test_the_first_sentence_of_the_answer_holds_on_the_real_cells_that_are_kept():
    regimes = {"marrow": "data-rich", "pbmc-512": "data-rich", "pbmc": "data-rich", "marrow-noise": "all-counts"}
    better, stand = [], set()
    for study, regime in regimes.items():
        runs, _, known = kept(study, regime)
        largest = at_largest(runs)
        better += [100 * (1 - largest[f"{of}_mse"] / best_baseline(known[of])) for of in ("validation", "test")]
        stand |= {standing(law) for law in of_metric(kept(study)[1]).values()}
    tells("On real cells the largest models are", min(better), max(better))
    assert not stand & {"ok", "ok, alpha not citable"}, "README: no law can be cited"
    steps = [bought(read_kept(study))["points_low"] for study in regimes]
    assert sum(of["updates"] > 0 for of in steps) == 1, "README: in one"
    assert sum(of["parameters"] > 0 for of in steps) == 1, "README: that of parameters in one"


def test_the_account_of_the_ladder_has_the_numbers_of_the_kept_study():
    runs, laws, known = kept("ladder", "data-rich")
    runs, law = runs[runs["width"] >= 4], laws["validation_mse"]
    steps, converged = bought(read_kept("ladder"))["points"], (runs["convergence"] == "converged").sum()
    tells("half of training moved", converged, len(runs), 1, steps["updates"], steps["parameters"])
    assert steps["updates"] > steps["parameters"], "README: adds more"
    names = ["validation_mse", "validation_mse_half", "bayes_mse", "validation_mse_se"]
    means = runs.groupby("size")[names].mean().astype(float)
    (smaller, _, exact, error), (loss, half, *_) = means.loc["d96"], means.loc["d128"]
    took, step = 100 * (half - loss) / (half - exact), 100 * (smaller - loss) / (smaller - exact)
    tells("d128's updates removed", took, step)
    moved = 100 * (means["validation_mse_half"] / means["validation_mse"] - 1)
    tells("half of the training losses were", moved.min(), moved.max(), exact)
    assert moved.max() < 1
    floor, low, high = estimate(law, "c")
    assert round(4 * 2 * 1.96 * error / (high - low)) == 3, "docs: three quarters"
    assert low < exact < estimate(law["budget"]["whole"], "c")[1] and exact < high, "docs: missed from above"
    assert "eleven sizes" in TEXT and law["n_sizes"] == len(means) == 11
    assert (means["validation_mse"] < floor).sum() == 2, "README: two sizes already lie below"
    assert means["validation_mse"].idxmin() == "d128" == runs.loc[runs["parameters"].idxmax(), "size"], "it still falls"
    tells(
        "predict; without the smallest size the exponent is",
        *estimate(law["sensitivity"]["smallest size left out"], "alpha"),
    )
    misses = [100 * (1 - row["observed"] / row["predicted"]) for row in law["rollout"]]
    tells("beyond their seeds (p =", law["lack_of_fit"]["p"], max(misses))
    assert min(misses) > 0
    tells("The largest model here has", runs["parameters"].max() / 1e6)
    of_all = [law for path in RESULTS.glob("*/laws.json") for law in of_metric(io.read_json(path)).values()]
    several = [[row["miss"] for row in law["rollout"]] for law in of_all if law["n_sizes"] >= 8]
    assert len(several) == 6 and max(map(max, several)) < 0, "docs: in each of the six laws of eight sizes or more"
    for split in ("validation", "test"):
        tells("alike the fitted floor is", laws[f"{split}_mse"]["c"] - known[split]["bayes_realised_mse"])
    of_test, (_, low, high) = laws["test_mse"], estimate(laws["test_mse"], "c")
    exact, realised = known["test"]["bayes_mse"], known["test"]["bayes_realised_mse"]
    tells("The interval on test donors,", low, high, exact, realised)
    assert low > realised > exact and of_test["status"] == "ok" and not of_test["budget"]


def test_the_account_of_the_replicates_has_their_numbers_and_their_intervals_hold_nine_floors_in_ten():
    replicates = pd.read_csv(io.CODE / "data" / "replicates.csv").query("objective in ('mse', 'negative_binomial')")
    ok, limit, bits, _ = reliability(replicates).to_dict("records")
    squares = replicates[replicates["objective"] == "mse"]
    states, sound = squares["status"].value_counts(), squares[squares["status"] == "ok"]
    held = [round(of["exact"] * of["laws"]) for of in (ok, limit)]
    wilson = [[100 * of["exact_low"], 100 * of["exact_high"]] for of in (ok, limit)]
    width = 100 * ((sound["high"] - sound["low"]) / sound["exact"]).median()
    above, on_cells = ((squares["c"] > squares[of]).sum() for of in ("exact", "realised"))
    runs = pd.read_csv(io.CODE / "data" / "replicate_runs.csv").query("objective == 'mse' and size == 'd24'")
    of = squares[squares["limit_status"] == "ok"].merge(runs, on="replicate", suffixes=("", "_run"))
    part = 100 * (2 * 1.96 * of["loss_se"] / (of["limit_high"] - of["limit_low"])).median()
    alone = ((of["loss"] - of["exact"]).abs() <= 1.96 * of["loss_se"]).sum()
    tells(
        "replicates.csv)). - Of", ok["replicates"], states["budget-limited"], states["floor not identified"],
        ok["laws"], held[0], *wilson[0], limit["laws"], held[1], 100 * limit["exact"], *wilson[1], above, len(squares),
        on_cells, 100 * (squares["c"] / squares["realised"] - 1).median(), width, len(of), part, alone,
    )  # fmt: skip
    assert (sound["limit_status"] == "ok").all(), "docs: these among them"
    readme = ok["replicates"], states["budget-limited"], ok["laws"], 95, *wilson[0], above, len(squares)
    tells("**How sure?** Of", *readme)
    family, entropy = (round(bits[of] * bits["laws"]) for of in ("family", "exact"))
    ends = (100 * end for end in proportion_confint(family, bits["laws"], method="wilson"))
    tells("- Of 50 for bits", bits["laws"], family, *ends, entropy)
    assert bits["replicates"] == 50 and held[0] == ok["laws"], "README: each time"
    assert ok["exact"] >= 0.9 and limit["exact"] >= 0.9 and bits["family"] >= 0.9


def test_the_account_of_finite_cells_has_the_numbers_of_the_pairs():
    runs = pd.read_csv(io.CODE / "data" / "replicate_runs.csv").query("size == 'd24'")
    pairs = runs.pivot(index="replicate", columns="objective", values="loss").dropna(subset="mse, fresh cells")
    cost = 100 * (pairs["mse, seen cells"] / pairs["mse, fresh cells"] - 1)
    reach = stats.t.ppf(0.975, len(cost) - 1) * cost.sem()
    of_pairs = runs[runs["objective"].str.contains("cells")]
    above = 100 * (of_pairs["loss"] / of_pairs["realised"] - 1)
    ends = cost.mean() - reach, cost.mean() + reach
    tells("updates, d24 ends", cost.mean(), *ends, 18_000, above.min(), above.max())
    assert len(cost) == 6, "docs: in six pairs"
    assert (of_pairs.groupby("replicate")[["exact", "realised", "cells_seen"]].nunique() == 1).all(axis=None)
    assert set(of_pairs["cells_train"]) == {18_000, 1_024_000} == {18_000, of_pairs["cells_seen"].iloc[0]}


def test_the_account_of_coverage_and_of_the_sweep_has_the_numbers_of_their_tables():
    covered = 100 * pd.read_csv(io.CODE / "data" / "coverage.csv").set_index("method")[["alpha", "c"]]
    least, most = (covered.groupby("method").agg(how).agg(how, axis=1) for how in ("min", "max"))
    means, over_runs = "profile_size_means", min(least["profile_runs"], least["bootstrap_runs"])
    tells("held either constant in", least[means], most[means], over_runs, least["bootstrap_within_sizes"])
    swept = pd.read_csv(io.CODE / "data" / "recipe.csv").query("panel.str.startswith('marrow')")
    rule = swept[swept["rule"]].set_index("width")
    fast = swept.query("factor == 2 and optimiser == 'muon' and batch == 16").groupby("width")["validation_mse"].min()
    gains = 100 * (rule["validation_mse"] / fast - 1)
    tells("twice the rate did up to", gains.max())
    assert (gains > 0).all()


def test_the_account_of_the_published_runs_has_the_fitted_numbers():
    table = given(load_study("published-runs"))
    seeing, law = (
        fit_laws(of, 100, 0, metrics=("validation_mse",))["data-rich"]["validation_mse"]
        for of in (table, table.drop(columns="width"))
    )
    alpha, low, high = estimate(seeing, "alpha")
    fitted, other = published.fits(table.drop(columns="width")).to_dict("records")
    tells("to every digit (alpha", fitted["alpha"], fitted["c"], law["alpha"], alpha, low)
    tells("leaves it out) alpha is", alpha, 95, low)
    assert high is None, "docs: without an upper end"
    tells("data-rich regime (alpha", *(fitted[name] for name in ("alpha", "c", "r2")))
    assert fitted["c_at_edge"], "docs: the last point of the grid"
    assert all(round(fitted[name], 3) == fitted[f"printed_{name}"] for name in ("alpha", "c", "r2")), "every digit"
    tells("In the other regime alpha (", *(other[name] for name in ("alpha", "c", "r2", "printed_c", "printed_r2")))
    tells("same 18 runs gives alpha", *estimate(law, "alpha"), *estimate(law, "c"))
    assert fitted["rss"] / law["rss"] > 50, "docs: more than fifty times smaller"
    evaluations = pd.read_csv(io.CODE / "data" / "published_runs.csv")["evaluations"]
    tells("losses are the best of", evaluations.min(), evaluations.max())


def test_the_methods_are_the_defaults():
    of, masking = Train(), Masking()
    assert of.optimiser == "muon" and of.objective == "mse" and of.dropout == 0
    tells("a count n enters as log(1 +", TARGET, 100 * masking.share, masking.per_cell)
    tells(
        "batches that hide about", 16 * batch(16), batch(10**6), batch(1), MOMENTUM, 0.9, of.beta2, of.weight_decay,
        of.clip, of.embedding_scale, of.learning_rate, of.reference_width, of.width_exponent, of.highest_rate,
        MUON_RATE, 100 * of.warmup, of.final_rate, 100 * of.decay,
    )  # fmt: skip


def test_what_the_whole_census_and_the_papers_scale_would_take_is_what_the_bill_says():
    bill = scale.bill(Size("1B", 2048, 20, 16, 4), 512, 1e8)
    most, least = bill["hours"]
    tells("Making such a panel still takes", bill["labels"] / 1e9, bill["panel"] / 1e9, 512)
    tells("10^9 parameters is", bill["flops"] / 1e20, least, most)
    tells("of its peak. About", bill["network"] / 1e12, 32, bill["gradient"] / 1e9)
    ours, published_runs = scale.cost(load_study("tuned")), {"training": scale.of_published_runs()}
    tells("assumed rates, `tuned` takes", *scale.hours(**ours), 38, *scale.hours(**published_runs))


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
