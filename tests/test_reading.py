"""The five notebooks as they lie in the repository: a paper that can be read from its beginning, in any order."""

import itertools
import re

import nbformat
import pytest

from lib import io
from lib.run import workflow

NOTEBOOKS = {name: nbformat.read(io.CODE / "notebooks" / f"{name}.ipynb", 4) for name in workflow.NOTEBOOKS.values()}


def texts(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_came_out_is_said_first_and_once(name):
    headings = re.findall(r"(?m)^## (.+)$", "\n".join(texts(NOTEBOOKS[name])))
    assert headings[0] == "In short"
    assert not {"Takeaways", "Summary", "Conclusions"} & set(headings)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_sentences_said_first_are_computed_in_their_cell(name):
    cells = NOTEBOOKS[name].cells
    said = cells[[cell.source for cell in cells].index("## In short") + 1]
    assert said.cell_type == "code" and "Markdown(" in said.source
    typed = re.sub(r"\{[^{}]*\}", "", "".join(re.findall(r'f?"([^"]*)"', said.source)))
    assert not re.findall(r"\d+\.\d+", typed), "a result is typed"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_links_to_every_other(name):
    links = set(re.findall(r"\]\((\w+)\.ipynb\)", texts(NOTEBOOKS[name])[0]))
    assert links == set(NOTEBOOKS) - {name}


def test_words_are_explained_where_reading_begins():
    glossary = next(text for text in texts(NOTEBOOKS["01_data"]) if text.startswith("## Words used"))
    words = [word.lower() for word in re.findall(r"(?m)^- \*\*(.+?)\*\*", glossary)]
    assert words == ["panel", "masked", "floor", "cells seen", "size mean"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_code_fits_a_laptop_screen(name):
    lines = itertools.chain.from_iterable(c.source.splitlines() for c in NOTEBOOKS[name].cells if c.cell_type == "code")
    assert max(map(len, lines)) <= 108
