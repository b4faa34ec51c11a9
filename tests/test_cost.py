"""What training costs: FLOPs, the learning-rate rule, and the benchmarks that measure them, run in small."""

import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import recipe
import scale
import time_to_loss
import train as speed

from lib import io
from lib.data import panel
from lib.model import sizes, transformer
from lib.model.sizes import batch
from lib.study import Masking, Train
from lib.train import loop

SWEPT = pd.read_csv(io.CODE / "data" / "recipe.csv")


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


def test_the_benchmark_of_the_recipe_gives_every_trial_the_same_seconds_and_marks_the_rule(tmp_path, monkeypatch):
    census = recipe.simulated(cells=900, genes=24, transcriptome=200, states=4, donors=20)
    held = {"validation": 0.2, "test": 0.2, "cells": 100}
    monkeypatch.setattr(recipe, "PANELS", {"small": (census, 8, 400, held), "last": ()})
    trials = [recipe.Trial("small", 16, name, 64) for name in ("adamw", "muon", "soap")]
    usual = recipe.Trial("small", 16, recipe.RULE, batch(1))
    monkeypatch.setattr(recipe, "plan", lambda *panel: [*trials, usual])
    rows = pd.DataFrame(recipe.sweep("small", tmp_path, seconds=0.2))
    assert list(rows["rule"]) == [False, False, False, True] and not rows["held_out"].any()
    assert (rows["validation_mse"] < 5).all() and rows["validation_mse"].nunique() == 4
    assert set(rows) == set(SWEPT)


def test_the_default_recipe_is_that_of_the_committed_sweep_and_costs_little_where_it_was_not_chosen():
    swept, default = SWEPT, Train()
    assert {default.optimiser} == set(swept.loc[swept["rule"], "optimiser"])
    for genes, cells in swept[swept["rule"]][["genes", "batch"]].drop_duplicates().to_numpy():
        assert batch(Masking().genes(genes)) == cells
    cost = sizes.cost_of_rule(swept)
    assert {8, 64} <= set(cost[cost["held_out"]]["width"]) and cost["cost"].max() < 0.06


def test_the_benchmark_of_time_to_loss_stops_both_clocks_at_the_same_loss(tmp_path, monkeypatch, capsys):
    curve = np.array([[1.0, 0.9], [2.0, 0.7], [4.0, 0.5]])
    assert time_to_loss.seconds_to(0.6, curve) == pytest.approx(2 * 2**0.5)
    assert time_to_loss.seconds_to(0.4, curve) == np.inf
    census = recipe.simulated(cells=6000, genes=60, transcriptome=60, states=4, donors=30)
    monkeypatch.setattr(recipe, "HELD", {"validation": 0.1, "test": 0.1, "cells": 300})
    data = time_to_loss.arrays(tmp_path, census, genes=24, cells=3000)
    ratios = time_to_loss.main(("TINY",), data=data, rates=(1e-2,), doublings=3, shortest=50)
    assert list(ratios) == [("TINY", 0.5), ("TINY", 0.75)] and min(ratios.values()) > 0
    assert capsys.readouterr().out.count("x\n") == 2
