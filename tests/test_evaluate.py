"""A finished run read back: the same losses, gene by gene and in bits."""

from dataclasses import replace

import conftest
import numpy as np
import pandas as pd
import pytest

from lib import io
from lib.data import panel
from lib.fit import runs
from lib.io import write_json
from lib.run.workflow import Step
from lib.study import parse_study
from lib.train import baselines, evaluate, loop


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A small study, one regime for squared error and one for counts, trained; and its table of runs."""
    patch = pytest.MonkeyPatch()
    patch.setattr(io, "ROOT", tmp_path_factory.mktemp("study"))
    regimes = {"squares": {"genes": 24, "cells": 500}}
    regimes["counts"] = regimes["squares"] | {"train": {"objective": "negative_binomial"}}
    study = parse_study(conftest.TINY | {"regimes": regimes, "genes_from": "squares", "seeds": [7]}, "tiny")
    for regime in regimes:
        adata = panel.read(panel.build(study, regime))
        baselines.record(study, regime, adata)
        for size in study.sizes:
            folder = study.run_folder(regime, size.name, 7)
            loop.train(panel.arrays(adata), size, 7, study.training(regime), folder)
    yield study, runs.collect(study)
    patch.undo()


def test_a_result_of_another_version_of_the_study_file_is_not_taken_for_one_of_this(done):
    study, table = done
    assert (table["status"] == "ok").all() and set(table["panel_of"]) == {"squares", "counts"}
    assert set(table["split_seed"]) == {study.split.seed}
    for change in ({"cells_seen": 10**6}, {"learning_rate": 1e-4}, {"dropout": 0.5}):
        edited = study.model_copy(update={"train": study.train.model_copy(update=change)})
        assert set(runs.collect(edited)["status"]) == {"interrupted"}
        states = [Step(of, "train", "counts", "small").state for of in (study, edited)]
        assert states == ["done", "not yet"], "make status"
    heads = study.model_copy(update={"sizes": [replace(size, heads=4) for size in study.sizes]})
    assert set(runs.collect(heads)["status"]) == {"interrupted"}
    simulated = study.census.simulate.model_copy(update={"seed": 9})
    census = study.census.model_copy(update={"simulate": simulated})
    assert set(runs.collect(study.model_copy(update={"census": census}))["status"]) == {"interrupted"}
    thinned = study.regimes | {"counts": study.regimes["counts"].model_copy(update={"thin": 0.5})}
    states = runs.collect(study.model_copy(update={"regimes": thinned})).groupby("regime")["status"].agg(set)
    assert dict(states) == {"squares": {"ok"}, "counts": {"interrupted"}}


def test_results_on_an_earlier_panel_are_not_compared_with_baselines_of_the_present_one(done):
    study, _ = done
    path = study.folder("counts") / "baselines.json"
    content = io.read_json(path)
    write_json(path, content | {"panel": content["panel"] | {"digest": "of other cells"}})
    states = runs.collect(study).groupby("regime")["status"].agg(set)
    write_json(path, content)
    assert dict(states) == {"squares": {"ok"}, "counts": {"interrupted"}}


@pytest.fixture(scope="module")
def examined(done):
    return evaluate.examine(*done)


@pytest.mark.parametrize("regime", ["squares", "counts"])
def test_a_run_read_back_has_the_losses_of_its_record(done, regime):
    study, table = done
    data = panel.arrays(panel.read(study.folder(regime) / "panel.h5ad"))
    found = evaluate.predictions(study, regime, "small", 7, data)
    row = table[(table["regime"] == regime) & (table["size"] == "small")].iloc[0]
    assert ((found.expression - found.predicted) ** 2).mean() == pytest.approx(row["validation_mse"], rel=1e-5)
    assert (found.mean is None) == np.isnan(row["validation_nll"]) == (regime == "squares")
    if regime == "counts":
        bits = baselines.bits(found.counts, found.mean, found.dispersion).mean()
        assert bits == pytest.approx(row["validation_nll"], rel=1e-4)


def test_genes_add_up_to_the_loss_and_carry_all_of_it(done, examined):
    genes, table = examined.genes, done[1]
    row = table[(table["regime"] == "counts") & (table["size"] == "small")].iloc[0]
    assert examined.run == "small, seed 7, of counts"
    data = panel.arrays(panel.read(done[0].folder("counts") / "panel.h5ad"))
    times = np.bincount(data.masks["validation"].ravel(), minlength=len(genes))
    for column, whole in {"residual": "validation_mse", "floor": "bayes_mse"}.items():
        assert np.average(genes[column], weights=times) == pytest.approx(row[whole], rel=1e-4), column
    assert genes["share"].sum() == pytest.approx(1) and genes["floor_share"].sum() == pytest.approx(1)


def test_rules_that_leave_out_less_cost_less_on_the_exact_posterior(examined):
    bits = examined.bits.set_index(["predictor", "rule"])["bits"]
    exact = bits["exact posterior"]
    assert exact["one Gaussian, of counts"] > exact["a Gaussian for each prediction, of counts"]
    assert exact["a Gaussian for each prediction, of counts"] > exact["exact mixture, these counts"]
    assert exact["exact mixture, these counts"] == pytest.approx(exact["exact entropy"], rel=0.1)
    ten = exact["the same at 1,000,000 counts a cell"] - exact["one Gaussian, differential"]
    assert ten > 0.5, "the differential entropy should move with the scale"
    assert bits["run"]["predicted counts"] > exact["exact mixture, these counts"]


def test_an_examination_is_made_once(done, examined, monkeypatch):
    study, table = done
    monkeypatch.setattr(evaluate, "_examined", lambda *run: pytest.fail("a run was examined twice"))
    pd.testing.assert_frame_equal(evaluate.examine(study, table).genes, examined.genes)
    none = evaluate.examine(study, table.assign(status="diverged"))
    assert none is None


def test_the_mean_on_the_log_scale_is_that_of_the_whole_sum(monkeypatch):
    monkeypatch.setattr(evaluate, "CHUNK", 5)
    means, dispersions = np.array([[1e-3], [0.4], [20], [63], [65], [4000]]), np.array([0.1, 2, 1e6])
    found = evaluate.mean_log1p(means, dispersions, 5000)
    for at, mean in np.ndenumerate(np.broadcast_to(means, found.shape)):
        predicted = baselines.distribution(mean, dispersions[at[1]])
        x = np.arange(int(predicted.ppf(1 - 1e-12)) + 2)
        assert found[at] == pytest.approx((predicted.pmf(x) * np.log1p(1e4 * x / 5000)).sum(), abs=2e-3), at


def test_a_probe_finds_cell_types_on_new_donors_and_scores_them_as_scikit_learn_does(done):
    from sklearn.metrics import f1_score

    study, table = done
    found = evaluate.probe(study, table).set_index("features")
    assert found.index.tolist() == ["principal components", "all genes", "XXS", "small"]
    assert (found["low"] <= found["f1"]).all() and (found["f1"] <= found["high"]).all()
    assert found.loc["all genes", "f1"] > found.loc["XXS", "f1"]  # one value for each cell
    data = panel.arrays(panel.read(study.folder("squares") / "panel.h5ad"))
    assert evaluate.embeddings(study, "squares", "small", 7, data.x[:70]).shape == (70, 8)
    true, predicted = np.random.default_rng(0).integers(0, 4, (2, 200))
    confusion = np.zeros((5, 5))
    np.add.at(confusion, (true, predicted), 1)
    assert evaluate.macro_f1(confusion) == pytest.approx(f1_score(true, predicted, average="macro"))
    values, labels = np.arange(40.0)[:, None], np.array(["a", "b"]).repeat(20)
    one = evaluate._score(np.tile(values, (2, 1)), np.tile(labels, 2), 40, ["a", "b"], np.zeros(40))
    assert one["f1"] > 0.9 and np.isnan([one["low"], one["high"]]).all(), "one donor says nothing about others"
