"""The comparison of simulated with real cells is measured as it says, and the simulator passes it."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import realism as measuring
from lib.data import panel, realism

STATISTICS = ["library", "zeros", "mean", "variance", "correlation"]


def test_the_statistics_are_those_of_the_counts():
    counts = np.array([[0, 4, 1], [2, 0, 1], [0, 4, 1], [2, 0, 1]])
    found = realism.marginals(counts, np.array([10, 20, 30, 40]), counts.astype(float))
    low, middle, high = found.iloc[0], found.iloc[12], found.iloc[-1]
    assert (low["quantile"], middle["quantile"], high["quantile"]) == (0.02, 0.5, 0.98)
    assert middle["library"] == 25 and middle["zeros"] == 0.5 and middle["mean"] == 1
    assert (found["correlation"] == -1).all()  # the third gene never varies and has no correlation
    assert low["variance"] in (0, 1) and high["variance"] == 4
    assert (found["sparsity"] == 4 / 12).all() and (found["cells"] == 4).all() and (found["genes"] == 3).all()


def test_a_panel_is_measured_on_evenly_spaced_cells_when_it_is_large(tiny, monkeypatch):
    adata = panel.read(panel.build(tiny, "data-rich"))
    whole = realism.of_panel(adata, "all")
    assert whole["cells"].iloc[0] == 500 and whole["source"].iloc[0] == "all"
    assert whole["sparsity"].iloc[0] == pytest.approx((adata.X == 0).mean())
    monkeypatch.setattr(realism, "CELLS", 100)
    fewer = realism.of_panel(adata, "some")
    assert fewer["cells"].iloc[0] == 100
    assert fewer["sparsity"].iloc[0] == pytest.approx(whole["sparsity"].iloc[0], abs=0.05)


def test_the_carried_table_is_what_the_simulator_gives_today():
    carried = realism.compared()
    carried = carried[carried["source"] == "simulated, 2,000 genes"].reset_index(drop=True)
    pd.testing.assert_frame_equal(measuring.simulated(2000).round(5), carried, rtol=1e-3, atol=1e-4, check_dtype=False)


def test_the_simulator_lies_among_the_real_data_sets():
    read = realism.summary(realism.compared())
    made = read.index.str.startswith("simulated")
    assert made.sum() == 2 and (~made).sum() == 9
    real = read[~made]
    for _, simulated in read[made].iterrows():
        assert 0.85 < simulated["sparsity"] < 0.95
        for name in ("median_library", "median_mean", "median_spread"):
            assert real[name].min() < simulated[name] < real[name].max(), name


def test_the_carried_table_is_that_of_the_real_files(real_data, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "SIMULATED", (2000,))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "10x_pbmc1k_v3.h5ad").symlink_to(real_data / "10x_pbmc1k_v3.h5ad")
    made = measuring.main(tmp_path / "data", tmp_path / "out.csv")
    made = made[~made["simulated"]].round(5)
    carried = realism.compared()
    carried = carried[carried["source"] == "10x_pbmc1k_v3"].reset_index(drop=True)
    pd.testing.assert_frame_equal(made, carried, rtol=1e-3, atol=1e-4, check_dtype=False)
    assert np.isfinite(realism.compared()[STATISTICS]).all(axis=None)
    assert (tmp_path / "out.csv").is_file()
