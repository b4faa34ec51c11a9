"""The learning-rate sweep and its rule."""

import numpy as np
import pandas as pd
import pytest

from lib import io
from lib.data import panel
from lib.model.sizes import Size
from lib.study import Train
from lib.train import loop, rates


def table(base, exponent, widths=(4, 16, 64, 8, 128), best_loss=1.0, bend=0.05):
    """Losses that are parabolas in log rate around base x (64 / width)^exponent; the last two widths are held out."""
    rows = []
    for place, width in enumerate(widths):
        best = base * (64 / width) ** exponent
        for rate in 0.008 * 2.0 ** np.arange(-6, 7):
            loss = best_loss * (1 + bend * np.log(rate / best) ** 2)
            rows.append({"size": f"d{width}", "width": width, "layers": 1, "held_out": place >= len(widths) - 2,
                         "cells_seen": 1000, "learning_rate": rate, "validation_mse": loss})  # fmt: skip
    return pd.DataFrame(rows)


def test_the_search_ends_with_a_worse_rate_on_either_side_of_the_best():
    def loss(rate):
        tried.append(rate)
        return abs(np.log(rate / 0.001))

    tried = []
    known = rates.bracket(loss, 0.008)
    least = min(known, key=known.get)
    assert least == 0.001
    assert {least / 2, 2 * least} <= known.keys()
    assert len(tried) == len(known) == 5  # no rate is tried twice, and only one step beyond the turn


def test_a_rate_that_diverges_bounds_the_search():
    known = rates.bracket(lambda rate: np.inf if rate > 0.01 else -rate, 0.008)
    assert set(known) == {0.004, 0.008, 0.016}


def test_the_rule_finds_the_power_behind_parabolas_and_costs_the_held_out_sizes_nothing():
    swept = table(0.005, 0.7)
    base, exponent = rates.rule(swept)
    assert (base, exponent) == pytest.approx((0.005, 0.7), rel=1e-6)
    tried = rates.trial(swept, base, exponent)
    assert tried["best_rate"].to_numpy() == pytest.approx(tried["rule_rate"].to_numpy())
    assert tried["cost"].max() < 0.015  # read off between rates a factor of two apart


def test_held_out_sizes_do_not_enter_the_rule_and_show_what_it_costs_them():
    swept = table(0.005, 0.7)
    other = table(0.02, 0.7)
    held = swept["held_out"]
    swept.loc[held, "validation_mse"] = other.loc[held, "validation_mse"]
    assert rates.rule(swept) == pytest.approx((0.005, 0.7), rel=1e-6)
    tried = rates.trial(swept, *rates.rule(swept))
    assert tried[tried["held_out"]]["cost"].min() > 0.05 > tried[~tried["held_out"]]["cost"].max()


def test_a_sweep_trains_each_size_and_budget_and_reuses_what_is_there(tiny, tmp_path, monkeypatch):
    from lib.train import loop

    data = panel.arrays(panel.read(panel.build(tiny, "data-rich")))
    plan = {Size("d2", 2, 1, 1, 1): (320, 640), Size("d4", 4, 1, 1, 1): (320,)}
    first = rates.sweep(data, tiny.train, tmp_path, plan)
    assert first.groupby(["size", "cells_seen"], sort=False).size().index.tolist() == [
        ("d2", 320),
        ("d2", 640),
        ("d4", 320),
    ]
    for _, runs in first.groupby(["size", "cells_seen"]):
        assert 0 < runs["validation_mse"].to_numpy().argmin() < len(runs) - 1
    monkeypatch.setattr(loop.Run, "step", lambda self: pytest.fail("a finished run was trained again"))
    assert rates.sweep(data, tiny.train, tmp_path, plan).equals(first)


def test_the_default_rule_is_the_one_that_the_committed_sweep_gives():
    """Rounded to two digits: the defaults of a study are no numbers of their own."""
    base, exponent = rates.rule(rates.read())
    assert Train().learning_rate == float(f"{base:.2g}")
    assert Train().width_exponent == float(f"{exponent:.2g}")
    assert Train().reference_width == rates.REFERENCE


def test_the_committed_sweep_is_bracketed_and_the_rule_holds_on_the_held_out_sizes():
    swept = rates.read()
    for _, runs in swept.groupby(["size", "cells_seen"]):
        assert 0 < runs.sort_values("learning_rate")["validation_mse"].to_numpy().argmin() < len(runs) - 1
    tried = rates.trial(swept, Train().learning_rate, Train().width_exponent)
    assert set(tried[tried["held_out"]]["size"]) == set(rates.HELD_OUT)
    assert tried[tried["held_out"]]["cost"].max() < 0.02
    assert tried["cost"].max() < 0.06
    assert (io.CODE / "data" / rates.TABLE).is_file()


def test_narrow_sizes_share_the_highest_rate_and_wide_ones_follow_the_rule():
    settings = Train(learning_rate=0.005, width_exponent=1.0, highest_rate=0.014)
    assert [loop.learning_rate(settings, width) for width in (1, 16, 64, 128)] == [0.014, 0.014, 0.005, 0.0025]
    free = Train(learning_rate=0.005, width_exponent=1.0)
    assert loop.learning_rate(free, 16) == pytest.approx(0.02)
