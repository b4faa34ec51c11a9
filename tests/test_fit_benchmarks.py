"""The benchmarks of the fit in small: its speed, and replicates of whole studies (coverage: test_fit_intervals)."""

import fit
import numpy as np
import pandas as pd
import pytest
import replicates
from scipy import stats

from lib import io


def test_the_best_negative_binomial_costs_nothing_beyond_one_and_something_beyond_a_mixture():
    x = np.arange(400)
    one = stats.nbinom(2, 2 / 7).pmf(x)
    mixture = 0.5 * stats.nbinom(2, 2 / 3).pmf(x) + 0.5 * stats.nbinom(2, 2 / 42).pmf(x)
    excess = replicates.family_excess(np.stack([one, mixture]), x)
    assert excess[0] == pytest.approx(0, abs=1e-4) and 0.01 < excess[1] < 0.5


def test_a_replicate_is_the_same_again_and_leaves_the_project_alone(tmp_path):
    content = replicates.CONTENT | {
        "regimes": {"known": {"genes": 8, "cells": 300}}, "split": {"validation": 0.2, "test": 0.2, "cells": 100},
        "sizes": [{"name": f"d{width}", "d": width, "layers": 1} for width in (4, 5, 6, 7)],
        "train": {"cells_seen": 640, "batch": 32, "evaluations": 2},
    }  # fmt: skip
    census = replicates.CENSUS | {"cells": 1000, "donors": 10, "genes": 30, "states": 4}
    root = io.ROOT
    for kind in ("mse", "negative_binomial"):
        first, again = (pd.DataFrame(replicates.replicate(3, kind, tmp_path / f"{name}-{kind}", census, content))
                        for name in ("one", "other"))  # fmt: skip
        assert first.drop(columns="seconds").equals(again.drop(columns="seconds")) and root == io.ROOT
        row = first.iloc[0]
        assert 0.7 * row["exact"] < row["realised"] < 1.4 * row["exact"] and row["family"] >= row["exact"] - 1e-6
        law = replicates.law(first)
        assert law["objective"] == kind and law["best"] == first["loss"].min() and law["status"]
        assert set(law) == set(pd.read_csv(io.CODE / "data/replicates.csv"))


def test_the_speed_of_the_fit_is_compared_with_scipy(monkeypatch, capsys):
    for name, value in {"ROUNDS": 1, "FITS": 200, "SCIPY_FITS": 3, "MANY": (100,)}.items():
        monkeypatch.setattr(fit, name, value)
    fit.main()
    assert capsys.readouterr().out.count("as many resamples per second as curve_fit") == len(fit.STARTS)
