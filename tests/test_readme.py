"""The README says what the project does: its numbers are computed, its links lead somewhere."""

import re
import tomllib

import pandas as pd
import pytest
import scale

from lib import io, plain
from lib.fit import budget, fit_laws, matched, published, replicate
from lib.fit.runs import given
from lib.model.sizes import Size
from lib.study import load_study

README = (io.CODE / "README.md").read_text()


@pytest.fixture(scope="module")
def table():
    return given(load_study("published-runs"))


def test_the_account_of_the_published_runs_has_the_fitted_numbers(table):
    law = fit_laws(table, 100, 0, metrics=("validation_mse",))["data-rich"]["validation_mse"]
    ends = law["intervals"]["profile_size_means"]
    for name, value in (("alpha ", law["alpha"]), ("floor of ", law["c"])):
        low, high = ends[name.split()[0] if "alpha" in name else "c"]
        assert f"{name}{value:.3f} ({low:.3f} to {high:.3f})" in README
    fitted = published.fits(table).iloc[0]
    assert f"alpha {fitted['alpha']:.3f}, c {fitted['c']:.3f}, R² {fitted['r2']:.3f}" in README
    assert fitted["rss"] / law["rss"] > 50, "README: more than fifty times smaller"
    assert law["alpha"] / fitted["alpha"] == pytest.approx(2, abs=0.05), "README: twice that by least squares"


def test_the_account_of_the_published_runs_has_their_other_facts(table):
    rich = table[table["regime"] == "data-rich"]
    assert f"best of {rich['evaluations'].min()} to {rich['evaluations'].max()} noisy" in README
    assert (rich["accumulation"] == 8).all(), "README: over-counted eightfold"
    refits = published.refits(table).set_index("fit")
    assert refits.loc["without XXS", "alpha_high"] is None or refits["alpha_high"].isna()["without XXS"]


def told(law, name, digits):
    """A number of a law with its interval, as the page has it."""
    low, high = law["intervals"]["profile_size_means"][name]
    return f"{law[name]:{digits}} ({low:{digits}} to {high:{digits}})"


def test_what_is_said_of_the_kept_studies_is_what_their_tables_say():
    kept = {
        study: io.CODE / "data" / "results" / study
        for study in ("pbmc", "matched", "budget", "protocol", "ladder", "ladder-pbmc")
    }
    laws = io.read_json(kept["pbmc"] / "laws.json")["data-rich"]
    assert laws["test_random_mse"]["status"] == "ok", "README: a clean law on cells of training donors"
    assert laws["validation_mse"]["status"] != "ok" != laws["test_mse"]["status"], "README: none on other data sets"
    largest = io.read_json(kept["matched"] / "laws.json")["cells-20000"]["validation_mse"]
    assert largest["status"] == "ok" and "There is a floor" in largest["verdict"], "README: a power law to a floor"
    real = io.read_json(kept["ladder-pbmc"] / "laws.json")["data-rich"]
    leaked, other = real["test_random_mse"], real["validation_mse"]
    assert leaked["status"] == "ok" and len(leaked["sizes"]["size"]) == 12, "README: a law on cells of training donors"
    alpha = told(leaked, "alpha", ".2f")
    assert f"with alpha {alpha} and a floor of {told(leaked, 'c', '.3f')}" in " ".join(README.split())
    assert f"would have it at {alpha}" in README
    for side in (other, real["test_mse"]):
        assert side["verdict"].startswith("Loss falls") and "A floor is not shown" in side["verdict"], (
            "README: no floor"
        )
    high = other["intervals"]["profile_size_means"]["alpha"][1]
    assert f"the exponent is below {high:.2f}" in README and other["comparison"]["power + floor"]["aicc"] > min(
        other["comparison"][form]["aicc"] for form in ("log-linear", "power")
    ), "README: a straight line in log P"
    ladder = io.read_json(kept["ladder"] / "laws.json")["data-rich"]["validation_mse"]
    assert f"five decades give an exponent of {told(ladder, 'alpha', '.2f')}" in README
    exact = pd.read_csv(kept["ladder"] / "runs.csv")["bayes_mse"].mean()
    assert f"a floor of {told(ladder, 'c', '.3f')}; the exact one is {exact:.3f}" in README
    ahead = ladder["comparison"]["power + floor"]["aicc"] - ladder["comparison"]["quadratic"]["aicc"]
    assert f"A parabola in log P fits them slightly better (by {ahead:.0f} in AICc)" in README
    sizes = ladder["sizes"]["parameters"]
    assert len(sizes) == 12 and sizes[-1] > 1e5 * sizes[0]
    longer = budget.view(pd.read_csv(kept["budget"] / "runs.csv"))
    first, last = longer["table"].iloc[0], longer["table"].iloc[-1]
    assert first["cells_seen"] == 24_000 and first["status"] != "ok", "README: nine sizes name no law"
    said = {name: f"{last[name]:{digits}} ({last[f'{name}_low']:{digits}} to {last[f'{name}_high']:{digits}})"
            for name, digits in (("alpha", ".2f"), ("c", ".3f"))}  # fmt: skip
    text = " ".join(README.split())
    assert f"an exponent of {said['alpha']} and a floor of {said['c']}, where the exact one" in text
    assert f"where the exact one is {longer['exact']:.3f}" in text
    table = pd.read_csv(kept["matched"] / "runs.csv")
    gains = matched.gains(matched.matched(table)[0]).set_index("cells_train")
    assert (gains["gain"] > 3 * gains["se"]).all(), "README: scaling does not vanish because cells are few"
    assert gains.index[gains["largest_behind"] > 2 * gains["se"]].max() < 1000, "README: below a few hundred cells"
    ratio = matched.view(table)["turning"]["cells_per_parameter"].dropna()
    assert ratio.max() > 10 * ratio.min(), "README: cells per parameter are no constant"
    for place in kept.values():
        assert {"date", "commit", "machine"} <= set(io.read_json(place / "origin.json"))


def test_what_is_said_of_the_replicates_is_what_they_show():
    table = replicate.summary(replicate.read())
    assert (table["replicates"] >= 50).all(), "README: 50 whole small studies"
    assert (table["bias"] > 3 * table["bias_se"]).all(), "README: c comes out too high"
    assert (table["exact_high"] < 0.95).all(), "README: its interval misses the floor too often"


def test_what_the_whole_census_would_take_is_what_the_bill_says():
    bill = scale.bill(Size("1B", 2048, 20, 16, 4), 512, 1e8)
    most, least = bill["hours"]
    assert f"{bill['flops']:.1e} FLOPs: {least:.0f} to {most:.0f} hours".replace("e+", "e") in " ".join(README.split())
    assert f"a file of {bill['panel'] / 1e9:.0f} GB" in README and f"exchange {bill['gradient'] / 1e9:.0f} GB" in README
    assert (
        f"About {bill['network'] / 1e12:.0f} TB comes" in README
        and f"{bill['labels'] / 1e9:.0f} GB of memory" in README
    )


def test_what_the_papers_scale_would_take_is_what_its_flops_say():
    tuned, theirs = scale.cost(load_study("tuned")), {"training": scale.of_published_runs()}
    ours, published = ("{:.1f} to {:.1f}".format(*scale.hours(**flops)) for flops in (tuned, theirs))
    assert f"`tuned` takes {ours} hours of one H100, and the 38 published runs {published}" in " ".join(README.split())


def test_links_and_pictures_are_there():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    places = {"#" + re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert len(links) > 8
    assert [link for link in links if link not in places and not (io.CODE / link).exists()] == []


PARTS = [
    "The answer", "Two commands", "Bring your own data", "Read", "Run at scale", "Reproduce the published study",
    "Map", "Contribute", "Without make", "Cite", "Licence",
]  # fmt: skip


def test_the_page_has_its_parts_in_order():
    assert re.findall(r"^## (.+)$", README, re.MULTILINE) == PARTS


def test_every_module_and_study_has_its_place_on_the_map():
    rooms = re.search(r"^\| room of `lib/`.*\n\|---.*\n((?:\|.*\n)+)", README, re.MULTILINE)[1]
    named = {name for row in rooms.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    modules = {path.stem for path in (io.CODE / "lib").glob("*.py")} - {"__init__", "__main__"}
    folders = {f"{path.parent.name}/" for path in (io.CODE / "lib").glob("*/__init__.py")}
    assert modules | folders == named
    studies = re.search(r"^params/ .*?: (.*?)^\w+/ ", README, re.MULTILINE | re.DOTALL)[1]
    studies = re.sub(r"and for a GPU ", "", " ".join(studies.split())).split(", ")
    assert sorted(studies) == sorted(path.stem for path in (io.CODE / "params").glob("*.yaml"))


def test_the_citation_has_the_keys_that_the_format_requires_and_the_version_and_licence_of_the_project():
    citation = plain.read(io.CODE / "CITATION.cff")
    project = tomllib.loads((io.CODE / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", project["version"])
    assert citation["license"] == project["license"] and citation["title"] == README.splitlines()[0].removeprefix("# ")
    for entry in (citation, *citation["references"]):
        assert entry["title"] and all("name" in author or "family-names" in author for author in entry["authors"])
    assert citation["references"][0]["url"] in README


def test_make_targets_named_are_there():
    makefile = (io.CODE / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
