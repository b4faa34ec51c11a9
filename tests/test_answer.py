"""The three claims: what the kept tables say, and that it is said of whatever tables there are."""

import itertools
import re
from functools import cache

import numpy as np
import pandas as pd
import pytest

from lib import figures, fit, io
from lib.fit import answer

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
TRUTHS = {
    "law": lambda p, cells: 0.1 + 0.8 * p**-0.3 + 4 * cells**-0.6,
    "no floor": lambda p, cells: 0.8 * p**-0.15 + 0 * cells,
    "no scaling": lambda p, cells: 0.3 + 0 * p + 4 * cells**-0.6,
    "ratio": lambda p, cells: 0.1 + (p**-0.25 + cells**-0.25) / 2,
}


def runs(truth, cells, seed=0):
    """A study of six sizes and two seeds with a known law."""
    rng, rows = np.random.default_rng(seed), []
    for number, parameters, run in itertools.product(cells, np.geomspace(100, 1e6, 6), (7, 8)):
        loss = TRUTHS[truth](parameters, number) * (1 + 2e-3 * rng.standard_normal())
        rows.append({
            "study": truth, "regime": f"cells-{number}", "size": f"{parameters:.0f}", "seed": run, "genes": 64,
            "parameters": parameters, "cells_train": number, "donors": np.nan, "cells_seen": 48_000, "updates": 1500,
            "learning_rate": 0.01, "protocol": "tuned", "objective": "mse", "validation_mse": loss, "bayes_mse": 0.1,
            "gene_mean_mse": 0.5, "gaussian_mse": 0.2, "status": "ok", "convergence": "converged",
        })  # fmt: skip
    return pd.DataFrame(rows)


@cache
def study(truth, cells=(20_000, 2000, 200)):
    table = runs(truth, cells)
    return answer.Kept(truth, "simulated", table, fit.fit_laws(table, 100, 0, metrics=("validation_mse",)))


def section(text, number):
    return text.split(f"## {number}.")[1].split("\n## ")[0]


def test_the_committed_answer_is_what_the_committed_tables_say():
    committed = (io.CODE / "data/results" / answer.TEXT).read_text()
    made = answer.text(answer.kept(io.CODE))
    assert NUMBER.sub("#", made) == NUMBER.sub("#", committed), "make answer, and commit what it writes"
    ours, theirs = ([float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (made, committed))
    assert ours == pytest.approx(theirs, rel=0.05, abs=0.01), "make answer, and commit what it writes"


def test_a_study_that_is_kept_later_enters_figure_and_text(tmp_path):
    later = study("law")
    place = tmp_path / "data/results/ladder-real"
    laws = {name: {key: law | {"provenance": {"census": {"h5ad": []}}} for key, law in by.items()}
            for name, by in later.laws.items()}  # fmt: skip
    io.write_json(place / "laws.json", laws)
    io.write_csv(place / "runs.csv", later.runs)
    studies = answer.kept(tmp_path)
    assert [(one.name, one.cells) for one in studies] == [("ladder-real", "real"), ("published runs", "published")]
    assert "| ladder-real | cells-20000 |" in answer.text(studies)
    panels = answer.view(studies)
    assert [panel["title"] for panel in panels] == ["ladder-real (real cells)", "published runs"]
    assert list(panels[0]["labels"].values()) == ["20,000 cells", "2,000 cells", "200 cells"]


@pytest.mark.parametrize(
    ("truth", "law", "floor"), [("law", "Yes", "Yes"), ("no scaling", "No", "Yes"), ("no floor", "", "No")]
)
def test_verdicts_are_those_of_the_truth(truth, law, floor):
    table = answer.everything([study(truth)])
    assert f"**{law}" in answer.power_law(table, [])[2]
    if truth != "no scaling":
        assert f"**{floor}.**" in answer.floor(table, [])[2]


def test_a_ratio_that_decides_is_not_refused_and_one_that_does_not_is():
    same, other = (study(truth, cells=(20_000, 5000, 1200, 300)) for truth in ("ratio", "law"))
    assert "**Perhaps.**" in section(answer.text([same]), 3)
    assert "**Not by the ratio alone.**" in section(answer.text([other]), 3)
    assert "**Not shown.**" in section(answer.text([study("law", cells=(200,))]), 3)


def test_an_open_end_of_an_interval_is_said_to_be_open():
    assert answer._reach([[0.1, 0.5], [None, 0.9]]) == "down without end to 0.90"
    assert answer._reach([[0.1, 0.5], [0.2, None]]) == "from 0.10 up without end"


def test_a_study_of_protocols_lends_its_exponents_and_no_panel():
    table = study("law").runs.copy()
    table.loc[table["regime"] == "cells-200", "learning_rate"] = 0.1
    mixed = answer.Kept("protocol", "simulated", table, study("law").laws)
    assert answer.view([mixed]) == []
    said = " ".join(answer.power_law(answer.everything([study("law")]), [mixed]))
    assert "The protocol alone moves it" in said and "cells-20000" in said and "cells-200" in said


def test_the_figure_draws_a_law_where_one_is_named_and_every_run_in_any_case():
    panels = answer.view([study("law"), study("no scaling")])
    figure = figures.answer(panels)
    with_law, without = figure.axes
    assert [len(axis.collections) > 0 for axis in (with_law, without)] == [True, True]
    solid = [[line for line in axis.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 50]
             for axis in (with_law, without)]  # fmt: skip
    assert [len(lines) for lines in solid] == [3, 0]
    drawn = [sum(len(line.get_xdata()) for line in axis.lines if line.get_alpha() == 0.35) for axis in figure.axes]
    assert drawn == [36, 36]


def test_a_study_of_budgets_says_how_its_law_moves_and_stands_in_no_other_comparison():
    parts = []
    for seen, lost in ((24_000, 0.2), (96_000, 0.05), (384_000, 0.0)):
        part = runs("law", (20_000,)).assign(regime=f"seen-{seen}", cells_seen=seen)
        parts.append(part.assign(validation_mse=part["validation_mse"] + lost, validation_mse_half=np.nan))
    table = pd.concat(parts, ignore_index=True)
    longer = answer.Kept("longer", "simulated", table, fit.fit_laws(table, 100, 0, metrics=("validation_mse",)))
    assert answer.axis(longer) == "budget"
    assert answer.view([longer])[0]["labels"]["seen-24000"] == "24,000 cells seen"
    assert "- longer: After 24,000 cells seen alpha" in section(answer.text([longer]), 2)
    assert "in 0 of 0 studies" in section(answer.text([longer]), 3)
    assert answer._protocols([longer]) == ""
