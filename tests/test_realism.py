"""The comparison of simulated with real cells is measured as it says, and the simulator passes it."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import realism as measuring
from lib.data import panel


@pytest.fixture
def beside(tiny, monkeypatch):
    """The carried marginals, and those of 100 cells of the tiny study's panel."""
    adata = panel.read(panel.build(tiny, "data-rich"))
    with monkeypatch.context() as patch:
        patch.setattr(panel, "DESCRIBED", 100)
        references, this = panel.beside_references(adata, "this")
    assert this["cells"].iloc[0] == 100 and this["source"].iloc[0] == "this"
    assert this["sparsity"].iloc[0] == pytest.approx((adata.X == 0).mean(), abs=0.05)
    return references, this


def test_the_statistics_are_those_of_the_counts():
    counts = np.array([[0, 4, 1], [2, 0, 1], [0, 4, 1], [2, 0, 1]])
    found = panel.marginals(counts, np.array([10, 20, 30, 40]), counts.astype(float))
    low, middle, high = found.iloc[0], found.iloc[12], found.iloc[-1]
    assert (low["quantile"], middle["quantile"], high["quantile"]) == (0.02, 0.5, 0.98)
    assert middle["library"] == 25 and middle["zeros"] == 0.5 and middle["mean"] == 1
    assert (found["correlation"] == -1).all()  # the third gene never varies and has no correlation
    assert low["variance"] in (0, 1) and high["variance"] == 4
    assert (found["sparsity"] == 4 / 12).all() and (found["cells"] == 4).all() and (found["genes"] == 3).all()


def test_the_simulator_lies_among_the_real_data_sets_and_the_carried_table_is_what_it_gives_today(beside):
    references, this = beside
    carried = references[references["source"] == "simulated, 2,000 genes"].reset_index(drop=True)
    pd.testing.assert_frame_equal(measuring.simulated(2000).round(5), carried, rtol=1e-3, atol=1e-4, check_dtype=False)
    rows = panel.typical(pd.concat([references, this]))
    made, real = rows[rows.index.str.startswith("simulated")], rows[:9]
    assert len(made) == 2 and rows.index[-1] == "this"
    assert made["sparsity"].between(0.85, 0.95).all()
    for name in ("median_library", "median_mean", "median_spread"):
        assert made[name].between(real[name].min(), real[name].max()).all(), name


def test_the_carried_table_is_that_of_the_real_files(real_data, beside, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "SIMULATED", [])
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "10x_pbmc1k_v3.h5ad").symlink_to(real_data / "10x_pbmc1k_v3.h5ad")
    made = measuring.main(tmp_path / "real", tmp_path / "out.csv").round(5)
    carried = beside[0].query("source == '10x_pbmc1k_v3'").reset_index(drop=True)
    pd.testing.assert_frame_equal(made, carried, rtol=1e-3, atol=1e-4, check_dtype=False)
    assert (tmp_path / "out.csv").is_file()
