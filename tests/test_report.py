"""The report: one page that holds the executed notebooks, without code, failures included."""

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lib.io import InputError
from lib.run import cli, workflow

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.mark.filterwarnings("error::nbformat.warnings.DuplicateCellId")
def test_a_page_holds_every_step_its_figures_and_failures_without_code(tiny, capsys):
    with pytest.raises(InputError, match="make run STUDY=tiny"):
        cli.report("tiny")
    picture = new_output("display_data", data={"image/png": PIXEL})
    error = new_output("error", ename="ValueError", evalue="no law", traceback=["ValueError: no law"])
    for step in workflow.steps(tiny):
        output = {"data": picture, "fit": error}.get(step.rule)
        code = new_code_cell("secret = 1", outputs=[output] if output else [], id="1")
        step.file(".ipynb").parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(
            new_notebook(cells=[new_markdown_cell(f"# Of {step.rule} {step.size}", id="0"), code]), step.file(".ipynb")
        )
    cli.report("tiny")
    assert capsys.readouterr().out == "figures/tiny/report.html\n"
    page = BeautifulSoup((tiny.figures / "report.html").read_text(), "html.parser")
    titles = [heading.get_text().strip("¶ ") for heading in page.find_all("h1")]
    assert titles == ["Of data", "Of model", "Of train small", "Of fit", "Of figures"]
    assert [image["src"] for image in page.find_all("img")] == [f"data:image/png;base64,{PIXEL}"]
    assert "secret" not in page.get_text() and "no law" in page.get_text()
