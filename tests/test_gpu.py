"""One command for one GPU, on the CPU in small, with what a bare GPU machine lacks out of reach."""

import os
import subprocess
import sys

import gpu
import gpu_rates
import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lib import io
from lib.data import panel
from lib.model import transformer
from lib.model.sizes import PUBLISHED, Size
from lib.study import parse_study
from lib.train import loop, machine

SMALL = gpu.REHEARSAL | {
    "census": {"simulate": {"cells": 600, "genes": 60, "transcriptome": 120, "states": 4, "donors": 12}},
    "regimes": {"data-rich": {"genes": 16, "cells": 300}},
    "split": {"validation": 0.1, "test": 0.1, "cells": 40},
    "sizes": ["XXS", "TINY", {"name": "d4", "d": 4, "layers": machine.DEEP}], "seeds": [7],
    "train": {"cells_seen": 640, "batch": 32, "evaluations": 2},
}  # fmt: skip
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        lacking = "scanpy anndata cellxgene_census tiledbsoma snakemake papermill seaborn pydantic yaml"
        if name.partition(".")[0] in lacking.split():
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Blocker())
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
    assert (
        len(rates) == (2 + 2) * 2
        and set(rates["mode"]) == {"eager", "compiled"}
        and not of_rate.duplicated().any()
        and (rates["cells_per_second"] > 0).all()
    )
    runs = pd.read_csv(results / "runs.csv").set_index("size")
    assert list(runs.index) == ["XXS", "TINY", "d4"] and (runs["status"] == "ok").all()
    data, settings = panel.load(study.folder("data-rich")), study.training("data-rich")
    for size in study.sizes:  # 03_train finds these runs and would not train them again
        assert runs.loc[size.name, "fingerprint"] == loop.fingerprint(data, size, 7, settings)
    gpu.table(gpu.read_plan("small"), results)
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
