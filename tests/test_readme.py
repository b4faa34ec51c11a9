"""The README says what the project does: its numbers are computed, its links lead somewhere."""

import re

import pandas as pd
import pytest

from lib import files, params, replicate
from lib.fit import fit_laws, matched, published
from lib.runs import given

README = (files.CODE / "README.md").read_text()


@pytest.fixture(scope="module")
def table():
    return given(params.load("published-runs"))


def test_the_account_of_the_published_runs_has_the_fitted_numbers(table):
    law = fit_laws(table, 100, 0, metrics=("validation_mse",))["data-rich"]["validation_mse"]
    ends = law["intervals"]["profile_size_means"]
    for name, value in (("alpha ", law["alpha"]), ("floor of ", law["c"])):
        low, high = ends[name.split()[0] if "alpha" in name else "c"]
        assert f"{name}{value:.3f} ({low:.3f} to {high:.3f})" in README
    fitted = published.fits(table).iloc[0]
    assert f"alpha {fitted['alpha']:.3f}, c {fitted['c']:.3f}, R² {fitted['r2']:.3f}" in README
    assert fitted["rss"] / law["rss"] > 50, "README: more than fifty times smaller"


def test_the_account_of_the_published_runs_has_their_other_facts(table):
    rich = table[table["regime"] == "data-rich"]
    assert f"best of {rich['evaluations'].min()} to {rich['evaluations'].max()} noisy" in README
    assert (rich["accumulation"] == 8).all(), "README: over-counted eightfold"
    refits = published.refits(table).set_index("fit")
    assert refits.loc["without XXS", "alpha_high"] is None or refits["alpha_high"].isna()["without XXS"]


def test_what_is_said_of_the_kept_studies_is_what_their_tables_say():
    kept = {study: files.CODE / "data" / "results" / study for study in ("pbmc", "matched", "protocol")}
    laws = files.read_json(kept["pbmc"] / "laws.json")["data-rich"]
    assert laws["test_random_mse"]["status"] == "ok", "README: a clean law on cells of training donors"
    assert laws["validation_mse"]["status"] != "ok" != laws["test_mse"]["status"], "README: none on other data sets"
    table = pd.read_csv(kept["matched"] / "runs.csv")
    gains = matched.gains(matched.matched(table)[0]).set_index("cells_train")
    assert (gains["gain"] > 3 * gains["se"]).all(), "README: scaling does not vanish because cells are few"
    assert gains.index[gains["largest_behind"] > 2 * gains["se"]].max() < 1000, "README: below a few hundred cells"
    ratio = matched.view(table)["turning"]["cells_per_parameter"].dropna()
    assert ratio.max() > 10 * ratio.min(), "README: cells per parameter are no constant"
    for place in kept.values():
        assert {"date", "commit", "machine"} <= set(files.read_json(place / "origin.json"))


def test_what_is_said_of_the_replicates_is_what_they_show():
    table = replicate.summary(replicate.read())
    assert (table["replicates"] >= 50).all(), "README: 50 whole small studies"
    assert (table["bias"] > 3 * table["bias_se"]).all(), "README: c comes out too high"
    assert (table["exact_high"] < 0.95).all(), "README: its interval misses the floor too often"


def test_links_and_pictures_are_there():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert len(links) > 8
    assert [link for link in links if not (files.CODE / link).exists()] == []


def test_make_targets_named_are_there():
    makefile = (files.CODE / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^)make ([a-z]+)\b", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
