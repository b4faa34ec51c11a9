"""The table of runs, and what it says of them."""

import pandas as pd

from lib.fit import runs


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
