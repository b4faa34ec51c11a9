"""What training costs, by FLOPs and by benchmarks run in small; one command for one GPU, where little is installed."""

import os
import subprocess
import sys
from collections import Counter

import gpu
import gpu_rates
import numpy as np
import pandas as pd
import pytest
import recipe
import scale
import time_to_loss
import torch
import train as speed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lib import io
from lib.data import panel
from lib.model import sizes, transformer
from lib.model.sizes import PUBLISHED, Size, batch
from lib.study import Masking, Train, parse_study
from lib.train import loop, machine

SWEPT = pd.read_csv(io.CODE / "data" / "recipe.csv")


@pytest.mark.parametrize("protocol", ["tuned", "published"])
def test_the_flops_of_a_run_are_those_of_the_passes_that_it_makes(study_file, monkeypatch, protocol):
    trained = {"train": {"protocol": protocol, "cells_seen": 3200, "evaluations": 3}, "seeds": [7]}
    sizes, regimes = [{"name": "small", "d": 8, "layers": 1}], {"data-rich": {"genes": 24, "cells": 500}}
    study = study_file(**trained, sizes=sizes, regimes=regimes)
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
    one = scale.measured("order", 2000, tmp_path)  # in a process of its own
    monkeypatch.setattr(scale, "measured", lambda *part: one)
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


SMALL = gpu.REHEARSAL | {
    "census": {"simulate": {"cells": 600, "genes": 60, "transcriptome": 120, "states": 4, "donors": 12}},
    "regimes": {"data-rich": {"genes": 16, "cells": 300}},
    "split": {"validation": 0.1, "test": 0.1, "cells": 40},
    "sizes": ["TINY", {"name": "d4", "d": 4, "layers": 1}], "seeds": [7],
    "train": {"cells_seen": 640, "batch": 32, "evaluations": 2},
}  # fmt: skip
BLOCKER = """
import sys
absent = "scanpy anndata cellxgene_census tiledbsoma snakemake papermill seaborn matplotlib pandas scipy pydantic yaml"
sys.modules.update(dict.fromkeys(absent.split()))
"""
RUN = """
import gpu, gpu_rates, sys
gpu_rates.UPDATES = 10
plan = gpu.read_plan("small")
gpu.run(plan, plan["folder"] / "results", budget=float(sys.argv[1]), seconds=0.01, n=64)
"""


def test_a_bare_machine_trains_goes_on_and_its_laws_are_fitted_elsewhere(project):
    study = parse_study(SMALL, "small")
    gpu.panels(study)
    for regime in study.regimes:
        io.remove(study.folder(regime) / "panel.h5ad")
    (project / "sitecustomize.py").write_text(BLOCKER)
    path = os.pathsep.join(map(str, (project, io.CODE, io.CODE / "benchmarks")))

    def call(budget):
        words = [sys.executable, "-c", RUN, str(budget)]
        environment = os.environ | {"PYTHONPATH": path}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    results = study.data / "results"
    assert "no run has finished" in call(0.01) and [file.name for file in results.iterdir()] == ["correctness.json"]
    assert "laws.json and loss.svg were not made" in call(400)
    rates = pd.read_csv(results / "rates.csv")
    of_rate = rates[["size", "batch", "mode"]]
    assert len(rates) == 2 * 2 * 2 and not of_rate.duplicated().any() and (rates["cells_per_second"] > 0).all()
    runs = pd.read_csv(results / "runs.csv").set_index("size")
    assert list(runs.index) == ["TINY", "d4"] and (runs["status"] == "ok").all()
    data, settings = gpu.load(study.folder("data-rich")), study.training("data-rich")
    for size in study.sizes:  # 03_train finds these runs and would not train them again
        assert runs.loc[size.name, "fingerprint"] == loop.fingerprint(data, size, 7, settings)
    plan = gpu.read_plan("small")
    gpu.table(plan, results)
    assert all(gpu.finished(plan, *run) for run in plan["runs"])
    part = plan["regimes"]["data-rich"]
    rate = part["train"] | {"learning_rate": 2 * part["train"]["learning_rate"]}
    for other in ({"train": rate}, {"panel": "another"}):
        later = plan | {"regimes": {"data-rich": part | other}}
        assert not any(gpu.finished(later, *run) for run in plan["runs"]), "runs of an earlier plan pass for new"
    with pytest.raises(io.InputError, match="copy both again"):
        gpu.train(later, *plan["runs"][0])
    laws = io.read_json(results / "laws.json")
    assert laws["data-rich"]["validation_mse"]["status"] == "too few sizes" and (results / "loss.svg").is_file()


def test_a_device_that_rounds_is_refused(monkeypatch, tmp_path):
    """bf16 in the place of float32 stands for a GPU whose float32 is TF32."""
    cpu, forward = torch.device("cpu"), transformer.Block.forward
    assert gpu_rates.agreement(Size("padded", 1020, 1, 12, 4), cpu) < gpu_rates.TOLERANCE

    def rounded(self, tokens, positions=None):
        return forward(self, tokens.bfloat16().to(tokens.dtype) if tokens.dtype == torch.float32 else tokens, positions)

    monkeypatch.setattr(transformer.Block, "forward", rounded)
    with pytest.raises(io.InputError, match="nothing was run"):
        gpu_rates.correctness({}, tmp_path / "correctness.json", cpu)


def test_computed_flops_are_those_that_torch_counts():
    size, genes, masked = PUBLISHED["S"], 32, 5
    model, x = transformer.Transformer(size, genes), torch.rand(1, genes)
    positions = x.topk(masked).indices
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(x, transformer.hide(positions, genes), positions)
    assert counter.get_total_flops() == gpu_rates.computed_flops(size, genes, masked)


def test_blocks_are_compiled_once_for_all_layers_and_share_the_weights(monkeypatch):
    compile_, graphs = torch.compile, []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda block, **words: compile_(block, backend=backend, **words))
    torch.manual_seed(0)
    model = transformer.Transformer(Size("deep", 8, machine.DEEP, 2, 1), 12, embedding_scale=0.5)
    fast, x = machine.compiled(model, "cuda"), torch.rand(3, 12)
    positions = x.topk(4).indices
    inputs = x, transformer.hide(positions, 12), positions
    for _ in range(2):
        np.testing.assert_array_equal(fast(*inputs).detach(), model(*inputs).detach())
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.5)
    assert len(graphs) == 2 and all(type(block) is transformer.Block for block in model.blocks)
