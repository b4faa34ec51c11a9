"""What training costs, and what 10^8 cells would break first."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from lib.data import panel, split
from lib.model import transformer
from lib.model.sizes import PUBLISHED, Size
from lib.train import loop, scale, sweep


def test_a_panel_read_without_labels_is_the_one_read_with_them(tiny):
    path = panel.build(tiny, "data-rich")
    whole, bare = panel.arrays(panel.read(path)), panel.load(path)
    size, settings = tiny.sizes[0], tiny.training("data-rich")
    assert loop.fingerprint(bare, size, 7, settings) == loop.fingerprint(whole, size, 7, settings)
    for name in ("counts", "library"):
        ours, theirs = getattr(bare, name), getattr(whole, name)
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    assert isinstance(bare.x, np.memmap), "all values were read at once"


def test_a_split_works_on_combinations_of_labels_and_not_on_cells(monkeypatch):
    made, real = [], scipy.sparse.coo_matrix
    monkeypatch.setattr(
        scipy.sparse, "coo_matrix", lambda *words, **more: made.append(real(*words, **more)) or made[-1]
    )
    donor = np.repeat(np.arange(40), 500)
    group = split.related(pd.Series(donor), pd.Series(donor // 2), pd.Series(donor % 2))
    assert len(np.unique(group)) == 1
    assert made[0].nnz <= 3 * 40


@pytest.mark.parametrize("protocol", ["tuned", "published"])
def test_the_flops_of_a_run_are_those_of_the_passes_that_it_makes(study_file, monkeypatch, protocol):
    study = study_file(train={"protocol": protocol, "cells_seen": 3200, "evaluations": 3})
    passes, forward = Counter(), transformer.Transformer.forward

    def counted(self, expression, *words):
        passes[self.training] += len(expression)
        return forward(self, expression, *words)

    monkeypatch.setattr(transformer.Transformer, "forward", counted)
    data = sweep.arrays(study, "data-rich")
    loop.train(data, study.size("small"), 7, study.training("data-rich"), study.run_folder("data-rich", "small", 7))
    training, evaluation = scale.flops(study, "data-rich", "small")
    once = study.size("small").forward_flops(24)
    curve = 3 * min(loop.CURVE_CELLS, len(data.held["validation"])) if protocol == "tuned" else 0
    assert training / once / scale.TRAINING == pytest.approx(passes[True], rel=0.01)
    assert evaluation / once == passes[False] - curve


def test_the_bill_of_a_large_model_is_six_flops_a_parameter_and_token():
    large = Size("1B", 2048, 20, 16, 4)
    found = scale.bill(large, 512, 10**8)
    assert found["flops"] == pytest.approx(6 * found["parameters"] * 512 * 1e8, rel=0.1)
    assert found["hours"] == [pytest.approx(found["flops"] / 989.4e12 / share / 3600) for share in (0.2, 0.4)]
    twice = scale.bill(large, 512, 2 * 10**8, rates={"order": 32})
    assert twice["hours"][0] == pytest.approx(2 * found["hours"][0]) and twice["order"] == 4 * found["order"]


def test_small_runs_are_those_that_leave_the_device_idle(study_file):
    study = study_file(sizes=["XXS", "S", "M", "XL"], regimes={"data-rich": {"genes": 512, "cells": 500}})
    assert [scale.is_small(study, "data-rich", name, "cuda") for name in ("XXS", "S", "M", "XL")] == [1, 1, 0, 0]
    cost = scale.of_study(study)
    by_hand = [scale.flops(study, "data-rich", size.name) for size in study.sizes]
    assert cost["training"] == pytest.approx(2 * sum(training for training, _ in by_hand))
    assert cost["small_updates"] == 2 * 2 * 10  # sizes, seeds, updates
    assert PUBLISHED["XXS"].threads(512) == 1 and scale.is_small(study, "data-rich", "XXS", "cpu")
