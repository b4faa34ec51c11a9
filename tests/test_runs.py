"""The table of runs, and what it says of them."""

import pandas as pd
import pytest

from lib.fit import runs
from lib.io import InputError
from lib.study import parse_study


def table(**columns):
    rows = {
        "regime": ["data-rich"] * 3, "size": ["b", "a", "c"], "parameters": [20, 10, 30], "status": ["ok"] * 3,
        "validation_mse": [1.0, 2.0, 3.0], "validation_mse_half": [1.02, 2.5, 3.0],
        "convergence": ["not converged", "not converged", "converged"],
    }  # fmt: skip
    return pd.DataFrame(rows | columns)


def test_sizes_that_still_move_are_named_with_how_much_they_moved():
    (said,) = runs.unconverged(table())
    assert said.startswith("data-rich: 2 of 3 runs have not converged (a, b): ")
    assert "by 2.0% to 25.0%" in said


def test_converged_and_given_runs_are_not_called_unconverged():
    assert runs.unconverged(table(convergence=["converged"] * 3)) == []
    assert runs.unconverged(table(convergence=[None] * 3)) == []
    assert runs.unconverged(table(status=["diverged"] * 3)) == []


ROWS = "regime,size,seed,parameters,validation_mse,status\n2000,d4,7,400,1.6451,finished\n2000,d8,7,1500,1.25,crashed\n"


@pytest.fixture
def given_table(project):
    """The runs of a study whose table holds `text`."""

    def read(text, **more):
        (project / "runs.csv").write_text(text, encoding="utf-8")
        return runs.given(parse_study({"runs": {"table": "runs.csv", **more}}, "mine"))

    return read


@pytest.mark.parametrize("text", [ROWS, "\ufeff" + ROWS, ROWS.replace(",", ";").replace(".", ",")])
def test_tables_of_spreadsheets_and_of_tracking_services_are_read(given_table, text):
    table = given_table(text)
    assert table["regime"].tolist() == ["2000", "2000"] and table["validation_mse"].tolist() == [1.6451, 1.25]
    assert table["parameters"].tolist() == [400, 1500] and table["status"].tolist() == ["ok", "interrupted"]


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("1500", '"1,500"', "line 3: parameters is '1,500'"),
        ("1500", "1.5k", "line 3: parameters is '1.5k'"),
        ("1.25", '"1,25"', "line 3: validation_mse is '1,25'"),
        ("1.25", "OOM", "line 3: validation_mse is 'OOM'"),
        ("crashed", "gone", "line 3: status is 'gone'"),
        ("size", "model", "no column size"),
    ],
)
def test_what_is_no_number_or_status_is_named_with_its_column_and_line(given_table, old, new, place):
    with pytest.raises(InputError, match=f"runs.csv.*{place}"):
        given_table(ROWS.replace(old, new))


def test_a_column_of_regimes_that_the_table_lacks_is_named(given_table):
    with pytest.raises(InputError, match="no column panel_size"):
        given_table(ROWS, regimes={"panel_size": {64: "small"}})
