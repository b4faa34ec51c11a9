"""The report: one page that needs nothing but itself, shows what was run, and says what failed."""

import re

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lib import io
from lib.io import InputError
from lib.run import report
from lib.study import load_study

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
OTHER = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
EQUATIONS = r"""## Words

$$h_g = \begin{cases} m \\ x_g \end{cases}$$ and $\hat x$"""
TABLE = "<table><tr><td>0.1345</td></tr></table>"


def captioned(data, caption, **metadata):
    """The two outputs of a figure or table of lib.figures."""
    said = {"text/markdown": f"<small>{caption}</small>"}
    return [
        new_output("display_data", data=data, metadata=metadata),
        new_output("display_data", data=said, metadata={"caption": True}),
    ]


def figure(caption="Twelve runs.", png=PIXEL):
    shown = {"width": 860, "height": 300, "alt": caption}
    return captioned({"image/png": png, "text/plain": caption}, caption, **{"image/png": shown})


def notebook(title, *outputs, ended="2026-11-25T20:10:11.5", text="## In short"):
    """An executed notebook as papermill leaves it."""
    cells = [
        new_markdown_cell(
            f"# {title}\n\nSee [01_data](01_data.ipynb), [04_fit](04_fit.ipynb), [a page](https://example.org)."
        ),
        new_code_cell('study = "demo"', execution_count=1),
        new_markdown_cell(text),
        new_code_cell("figures.draw()", execution_count=2, outputs=list(outputs)),
    ]
    return new_notebook(cells=cells, metadata={"papermill": {"end_time": ended}})


@pytest.fixture
def run(tiny):
    """A study whose five steps were executed; `run(name=notebook)` replaces or adds some, None takes one away."""

    def write(**changed):
        kept = {
            "01_data-data-rich": notebook("What?", figure()[0]), "01_data-data-limited": notebook("What?"),
            "02_model": notebook("Which?", text=EQUATIONS),
            "03_train-data-rich-XXS": notebook("How well?"), "03_train-data-rich-small": notebook("How well?"),
            "04_fit": notebook("Is there a law?", *figure()), "05_figures": notebook("Show", *figure()),
        }  # fmt: skip
        for name, content in (kept | changed).items():
            if content is not None:
                place = tiny.data / "notebooks" / f"{name}.ipynb"
                place.parent.mkdir(parents=True, exist_ok=True)
                nbformat.write(content, place)
        return tiny

    return write


def page(study):
    return BeautifulSoup(report.write(study).read_text(), "html.parser")


def failing(name="ValueError", why="no cells"):
    error = new_output("error", ename=name, evalue=why, traceback=[f"{name}: {why}"])
    return notebook("How well?", error, ended=None)


def test_the_page_fetches_nothing(run):
    shown = page(run())
    fetched = [
        tag.get(key) for tag in shown.find_all(True) for key in ("src", "srcset", "data", "poster") if tag.get(key)
    ]
    assert fetched and all(address.startswith("data:") for address in fetched)
    assert not shown.find_all(["link", "iframe", "object", "embed"])
    written = " ".join(tag.string for tag in shown.find_all(["style", "script"]))
    assert not re.search(r"@import|url\(|https?:|fetch\(|import\s", written)
    assert "default-src 'none'" in shown.find("meta", {"http-equiv": True})["content"], "nor could it"


def test_links_between_notebooks_lead_to_their_place_in_the_page(run):
    shown = page(run())
    targets = {tag["id"] for tag in shown.find_all(id=True)}
    links = [tag["href"] for tag in shown.find_all("a")]
    assert "#04_fit" in links and "https://example.org" in links
    assert {link[1:] for link in links if link.startswith("#")} <= targets
    assert len(targets) == len(shown.find_all(id=True)), "an anchor is there twice"


def test_the_steps_stand_in_order_and_in_the_table_of_contents(run):
    shown = page(run())
    steps = [tag["id"] for tag in shown.find_all("h2") if tag.get("id")]
    assert steps == list(report.STEPS)
    assert [tag["href"][1:] for tag in shown.nav.select("ol > li > a")] == steps
    assert shown.nav.find("a", href="#02_model-words").text == "Words"


def test_equations_show_without_a_script_from_elsewhere(run):
    shown = page(run())
    block, inline = shown.find_all("math")
    assert block["display"] == "block" and block.find("mtable")
    assert inline.find("mover") and "$" not in shown.find("main").text


def test_code_is_folded(run):
    folded = page(run()).select("details.code")
    assert len(folded) == 10 and not any(code.has_attr("open") for code in folded)


def test_a_figure_has_its_caption_and_is_opened_by_keyboard(run):
    shown = page(run(**{"05_figures": notebook("Show", *figure("Seven runs.", OTHER))}))
    figures = shown.select("figure")
    assert [tag["id"] for tag in figures] == ["figure-1", "figure-2", "figure-3"][: len(figures)]
    last = figures[-1]
    assert last.figcaption.text.endswith("Seven runs.") and last.img["alt"] == "Seven runs."
    assert last.img.parent.name == "button"
    assert "<small>" not in str(shown)


def test_what_is_shown_twice_is_shown_once_and_linked(run):
    table = captioned({"text/html": TABLE, "text/plain": "0.1345"}, "The law.")
    both = {name: notebook("Law", *figure(), *table) for name in ("04_fit", "05_figures")}
    shown = page(run(**both))
    assert len(shown.find_all("img", src=re.compile(PIXEL[:40].replace("+", r"\+")))) == 1
    assert len(shown.select("figure.table")) == 1
    assert "Shown above: Table 1." in shown.find("main").text


def test_wide_tables_scroll_in_their_own_box(run):
    shown = page(run(**{"04_fit": notebook("Law", new_output("execute_result", data={"text/html": TABLE}))}))
    assert shown.table.parent["class"] == ["scroll"] and shown.table.parent["tabindex"] == "0"


def test_of_many_trainings_the_largest_of_the_first_regime_is_shown_and_the_rest_counted(run):
    assert "Shown for data-rich, small. 1 more notebooks of this step lie in data/tiny/notebooks/." in page(run()).text


def test_a_failed_notebook_is_shown_as_failed_in_place_of_its_like(run):
    shown = page(run(**{"03_train-data-rich-XXS": failing(), "04_fit": None, "05_figures": None}))
    said = [tag.text for tag in shown.select("p.failed")]
    assert "03_train for data-rich, XXS failed. cell [2]: ValueError: no cells" in said[0]
    assert "Not run: 04_fit, 05_figures." in said[1]
    assert shown.nav.find("strong").text == "failed" and "ValueError" in shown.find("pre", class_="failed").text


def test_a_notebook_that_was_killed_is_not_taken_for_a_finished_one(run):
    shown = page(run(**{"04_fit": notebook("Law", ended=None)}))
    assert "04_fit failed. it was not executed to its end" in shown.find("p", class_="failed").text


def test_a_study_that_was_not_run_is_refused_in_one_sentence(tiny):
    with pytest.raises(
        InputError, match=r"study tiny has no executed notebooks yet; run it first: make run STUDY=tiny\."
    ):
        report.write(tiny)
    assert not tiny.figures.exists()


def test_runs_that_were_trained_elsewhere_have_a_page_of_their_law_alone(run, project):
    study = load_study(run().name)
    table = study.data / "given.csv"
    table.write_text("regime,size,seed,parameters,validation_mse\n")
    content = f"runs: {{table: {table.relative_to(project)}}}\n"
    (project / "params" / "given.yaml").write_text(content)
    given = load_study("given")
    (given.data / "notebooks").mkdir(parents=True)
    nbformat.write(notebook("Is there a law?"), given.data / "notebooks" / "04_fit.ipynb")
    shown = page(given)
    assert [tag["id"] for tag in shown.find_all("h2") if tag.get("id")] == ["04_fit"]
    assert not shown.select("p.failed") and not shown.find("a", href="#01_data")


def test_a_damaged_notebook_is_named(run):
    study = run()
    (study.data / "notebooks" / "04_fit.ipynb").write_text("{")
    with pytest.raises(InputError, match=r"data/tiny/notebooks/04_fit\.ipynb cannot be read"):
        report.write(study)


def test_the_same_notebooks_give_the_same_bytes(run):
    study = run()
    first = report.write(study).read_bytes()
    assert report.write(study).read_bytes() == first


def test_the_footer_says_where_it_comes_from(run):
    study = run()
    made = {
        "census": {"version": "2025-11-08"},
        "seeds": [7, 8],
        "code_version": "abc123",
        "versions": {"torch": "2.13"},
    }
    io.write_json(study.data / "laws.json", {"data-rich": {"validation_mse": {"provenance": made}}})
    said = page(study).footer.text
    for fact in ("params/tiny.yaml", "2025-11-08", "[7, 8]", "abc123", "2026-11-25 20:10 UTC", "2.13"):
        assert fact in said
