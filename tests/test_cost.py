"""What training costs: FLOPs, the learning-rate rule, and the benchmarks that measure them, run in small."""

import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import rates
import scale
import train as speed

from lib.data import panel
from lib.model import sizes, transformer
from lib.model.sizes import Size
from lib.study import Train
from lib.train import loop


@pytest.mark.parametrize("protocol", ["tuned", "published"])
def test_the_flops_of_a_run_are_those_of_the_passes_that_it_makes(study_file, monkeypatch, protocol):
    study = study_file(
        train={"protocol": protocol, "cells_seen": 3200, "evaluations": 3},
        sizes=[{"name": "small", "d": 8, "layers": 1}],
        regimes={"data-rich": {"genes": 24, "cells": 500}},
        seeds=[7],
    )
    passes, forward = Counter(), transformer.Transformer.forward

    def counted(self, expression, *words):
        passes[self.training] += len(expression)
        return forward(self, expression, *words)

    monkeypatch.setattr(transformer.Transformer, "forward", counted)
    settings, size = study.training("data-rich"), study.size("small")
    data = panel.arrays(panel.read(panel.build(study, "data-rich")))
    loop.train(data, size, 7, settings, study.run_folder("data-rich", "small", 7))
    once, cost = size.forward_flops(24), scale.cost(study)
    assert size.training_flops(24, settings) == 3 * once * passes[True] == cost["training"]
    curve = 3 * min(loop.CURVE_CELLS, len(data.held["validation"])) if protocol == "tuned" else 0
    assert cost["evaluation"] / once == passes[False] - curve


def test_the_bill_of_a_large_model_is_six_flops_a_parameter_and_token():
    bill = scale.bill(Size("1B", 2048, 20, 16, 4), 512, 10**8)
    assert bill["flops"] == pytest.approx(6 * bill["parameters"] * 512 * 1e8, rel=0.1)
    assert bill["hours"] == [pytest.approx(bill["flops"] / 989.4e12 / share / 3600) for share in (0.2, 0.4)]


def test_the_benchmark_of_scale_measures_each_part(tmp_path, monkeypatch, capsys):
    for part in scale.PARTS.values():
        part(2000, tmp_path)
    monkeypatch.setattr(scale, "PARTS", {"order": scale.order})
    monkeypatch.setattr(sys, "argv", ["scale.py", "--rows", "20000"])
    monkeypatch.setattr(scale, "hashed", lambda: 1e9)
    monkeypatch.setattr(scale, "saved", lambda folder: 5e8)
    scale.main()
    printed = capsys.readouterr().out
    assert "20,000 cells:" in printed and "GPU hours" in printed


def test_the_benchmark_of_training_compares_equal_work(capsys):
    arrays = speed.data(cells=200, genes=24, masked=4)
    ratios = speed.main(["XXS"], arrays, rounds=1, least=0.01)
    assert len(ratios["XXS"]) == 3 and min(ratios["XXS"]) > 0
    lines = capsys.readouterr().out.splitlines()
    assert [float(line.split()[1].split("x")[0]) for line in lines[1:]] == pytest.approx(ratios["XXS"], abs=0.06)


def test_the_benchmark_of_learning_rates_brackets_each_best_one_and_reuses_runs(tmp_path, monkeypatch):
    data = speed.data(cells=300, genes=24, masked=4)
    plan = {Size("d2", 2, 1, 1, 1): (320, 640), Size("d4", 4, 1, 1, 1): (320,)}
    first = rates.sweep(data, Train(), tmp_path, plan)
    assert len(first.groupby(["size", "cells_seen"])) == 3
    for _, runs in first.groupby(["size", "cells_seen"]):
        assert 0 < runs["validation_mse"].to_numpy().argmin() < len(runs) - 1
    monkeypatch.setattr(loop.Run, "step", lambda self: pytest.fail("a finished run was trained again"))
    assert rates.sweep(data, Train(), tmp_path, plan).equals(first)
    assert set(rates.bracket(lambda rate: np.inf if rate > 0.01 else -rate, 0.008)) == {0.004, 0.008, 0.016}


def test_the_rule_is_the_power_behind_parabolas_and_is_not_fitted_to_held_out_sizes():
    def swept(base, held_out):
        rates = 0.008 * 2.0 ** np.arange(-6, 7)
        rows = [
            {"size": f"d{width}", "width": width, "layers": 1, "held_out": held_out, "cells_seen": 1000,
             "learning_rate": rate, "validation_mse": 1 + 0.05 * np.log(rate / base / (64 / width) ** 0.7) ** 2}
            for width in ((8, 128) if held_out else (4, 16, 64)) for rate in rates
        ]  # fmt: skip
        return pd.DataFrame(rows)

    table = pd.concat([swept(0.005, False), swept(0.02, True)], ignore_index=True)
    assert sizes.rule(table) == pytest.approx((0.005, 0.7), rel=1e-6)
    trial = sizes.trial(table, *sizes.rule(table)).set_index("held_out")
    fitted = trial.loc[False]
    assert fitted["best_rate"].to_numpy() == pytest.approx(fitted["rule_rate"].to_numpy())
    assert trial.loc[True, "cost"].min() > 0.05 > 0.015 > fitted["cost"].max()


def test_the_default_rule_is_that_of_the_committed_sweep_and_holds_on_the_held_out_sizes():
    """Rounded to two digits: the defaults of a study are no numbers of their own."""
    swept, default = sizes.read(), Train()
    base, exponent = sizes.rule(swept)
    assert (default.learning_rate, default.width_exponent) == (float(f"{base:.2g}"), float(f"{exponent:.2g}"))
    assert default.reference_width == sizes.REFERENCE
    for _, runs in swept.groupby(["size", "cells_seen"]):
        assert 0 < runs.sort_values("learning_rate")["validation_mse"].to_numpy().argmin() < len(runs) - 1
    trial = sizes.trial(swept, default.learning_rate, default.width_exponent)
    assert set(trial[trial["held_out"]]["size"]) == set(rates.HELD_OUT)
    assert trial[trial["held_out"]]["cost"].max() < 0.02 and trial["cost"].max() < 0.06
