"""The training loop: exact losses, exact resume, honest records."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib.model.sizes import PUBLISHED, Size
from lib.study import Train
from lib.train import loop

SIZE = Size("small", 8, 1, 2, 2)
GENES, MASKED = 16, 3


@pytest.fixture(scope="module")
def data():
    """Two hundred cells with two factors, so that context tells something about a hidden gene."""
    rng = np.random.default_rng(0)
    x = np.abs(rng.normal(size=(200, 2)) @ rng.normal(size=(2, GENES)) + 0.1 * rng.normal(size=(200, GENES)))
    rows = rng.permutation(200)

    def masks(cells):
        return np.stack([[np.sort(rng.choice(GENES, MASKED, replace=False)) for _ in range(2)] for _ in range(cells)])

    return SimpleNamespace(
        x=x.astype(np.float32), counts=np.rint(3 * x).astype(np.int32), library=np.full(200, 1e4), train=rows[60:],
        held={"validation": rows[:30], "test": rows[30:60]}, masks={"validation": masks(30), "test": masks(30)},
    )  # fmt: skip


def settings(**changes):
    return Train.model_validate({"cells_seen": 1600, "batch": 16, "evaluations": 6} | changes)


def run(data, folder, size=SIZE, seed=7, progress=lambda *state: None, **changes):
    return loop.train(data, size, seed, settings(**changes), folder, progress)


NUMBERS = ("validation_mse", "test_mse", "validation_mse_se", "updates", "cells_seen", "parameters")


def numbers(record):
    return {name: record[name] for name in NUMBERS}


def test_a_run_learns_from_context(data, tmp_path):
    record = run(data, tmp_path, cells_seen=16_000)
    gene_mean = np.square(data.x[data.held["validation"]] - data.x[data.train].mean(0)).mean()
    assert record["status"] == "ok"
    assert record["validation_mse"] < 0.6 * gene_mean


def test_a_model_that_sees_no_context_ends_at_the_gene_mean(data, tmp_path):
    record = run(data, tmp_path, size=PUBLISHED["XXS"], cells_seen=32_000)
    errors = np.square(data.x[data.held["validation"]] - data.x[data.train].mean(0))
    gene_mean = np.take_along_axis(errors[:, None], data.masks["validation"], axis=2).mean()
    assert record["validation_mse"] == pytest.approx(gene_mean, rel=0.02)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(data, tmp_path):
    one, two, other = run(data, tmp_path / "1"), run(data, tmp_path / "2"), run(data, tmp_path / "3", seed=8)
    assert numbers(one) == numbers(two)
    assert one["validation_mse"] != other["validation_mse"]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("stop_at, gentle", [(37, True), (61, False)])
def test_a_killed_run_ends_with_the_same_numbers(data, tmp_path, monkeypatch, dropout, stop_at, gentle):
    """Gently: the stop button, which saves. Otherwise: die without saving, and continue from the last checkpoint."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 1e9 if gentle else -1)
    whole = run(data, tmp_path / "whole", dropout=dropout)

    def stop(done, total, loss):
        if done == stop_at and not gentle:
            raise SystemExit
        if done == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt if gentle else SystemExit):
        run(data, tmp_path / "cut", progress=stop, dropout=dropout)
    assert not (tmp_path / "cut" / "result.json").exists()
    seen = []
    resumed = run(data, tmp_path / "cut", progress=lambda *s: seen.append(s[0]), dropout=dropout)
    assert numbers(resumed) == numbers(whole)
    assert seen[0] == (stop_at if gentle else stop_at - 1) + 1
    assert (tmp_path / "cut" / "history.csv").read_text() == (tmp_path / "whole" / "history.csv").read_text()


def test_a_finished_run_is_not_trained_again_unless_something_changed(data, tmp_path):
    first = run(data, tmp_path)
    updates = []
    assert run(data, tmp_path, progress=lambda *s: updates.append(s)) == first
    assert not updates
    assert run(data, tmp_path, learning_rate=1e-3)["fingerprint"] != first["fingerprint"]
    moved = SimpleNamespace(**{**vars(data), "x": data.x + 1})
    assert run(moved, tmp_path)["validation_mse"] != first["validation_mse"]


@pytest.mark.filterwarnings("error")
def test_a_run_that_diverges_says_so_and_carries_no_loss(data, tmp_path):
    record = run(data, tmp_path, learning_rate=1e30, clip=1e30)
    assert record["status"] == "diverged"
    assert record["validation_mse"] is None
    assert record["updates"] < 100
    json.dumps(record, allow_nan=False)


def test_the_recorded_loss_is_the_mean_over_every_masked_position(data, tmp_path):
    trained = loop.Run(data, SIZE, 7, settings(), tmp_path, "identity")
    trained.advance(lambda *state: None)
    squares = []
    for row, masks in zip(data.held["validation"], data.masks["validation"], strict=True):
        for mask in masks:
            x = torch.tensor(data.x[[row]])
            hidden = torch.zeros(1, GENES, dtype=torch.bool)
            hidden[0, mask] = True
            with torch.no_grad():
                squares.append((trained.model(x, hidden)[0, mask] - x[0, mask]).square().numpy())
    assert trained.record()["validation_mse"] == pytest.approx(np.mean(squares), rel=1e-5)


@pytest.mark.parametrize("protocol, cells", [("tuned", 140), ("published", 200)])
def test_each_pass_visits_every_training_cell_once_and_held_out_cells_only_as_published(
    data, tmp_path, protocol, cells
):
    run = loop.Run(data, SIZE, 7, settings(protocol=protocol, batch=20), tmp_path, "identity")
    visited = []
    for run.update in range(2 * cells // 20):
        visited.extend(run.batch())
    first, second = sorted(visited[:cells]), sorted(visited[cells:])
    assert first == second == sorted(data.train if protocol == "tuned" else range(200))
    assert visited[:cells] != visited[cells:]


def test_a_batch_larger_than_the_data_runs_across_passes(data, tmp_path):
    run = loop.Run(data, SIZE, 7, settings(batch=500), tmp_path, "identity")
    counts = np.bincount(run.batch(), minlength=200)[data.train]
    assert set(counts) == {3, 4}


def test_masks_hide_exactly_k_genes_of_each_cell(data, tmp_path):
    run = loop.Run(data, SIZE, 7, settings(), tmp_path, "identity")
    hidden, positions = run.draw_masks(50)
    assert hidden.sum(1).tolist() == [MASKED] * 50
    assert torch.equal(hidden.nonzero()[:, 1].reshape(50, MASKED), positions.sort(1).values)


def test_the_published_protocol_reports_the_best_of_many_evaluations(data, tmp_path):
    record = run(data, tmp_path, protocol="published", learning_rate=1e-2)
    curve = np.genfromtxt(tmp_path / "history.csv", delimiter=",", names=True)
    assert len(curve) == 6
    assert record["validation_mse"] == pytest.approx(curve["validation_mse"].min())
    assert set(curve["learning_rate"]) == {1e-2}


def test_warm_up_and_decay_follow_the_stated_schedule():
    tuned = settings(warmup=0.1, final_rate=0.25)
    shares = [loop.schedule(tuned, update, 100) for update in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == shares[10] == shares[80] == 1.0
    assert shares[90] == pytest.approx(0.625)
    assert shares[99] == pytest.approx(0.25 + 0.75 / 20)
    assert np.all(np.diff(shares[10:]) <= 0)
    halfway = [loop.schedule(tuned, update, 100, 50) for update in range(50)]
    assert halfway[:40] == shares[:40]
    assert halfway[45] == pytest.approx(0.625)
    published = settings(protocol="published")
    assert {loop.schedule(published, update, 100) for update in range(100)} == {1.0}


def test_training_runs_on_a_machine_with_torch_and_numpy_alone(data, tmp_path):
    np.savez(tmp_path / "panel.npz", x=data.x, library=data.library, train=data.train, held=data.held["validation"],
             masks=data.masks["validation"])  # fmt: skip
    script = f"""
import sys
for name in ("scanpy", "anndata", "pandas", "pydantic", "cellxgene_census", "tiledbsoma", "matplotlib", "yaml"):
    sys.modules[name] = None
from types import SimpleNamespace
import numpy as np
from lib import train
from lib.model.sizes import PUBLISHED
arrays = dict(np.load({str(tmp_path / "panel.npz")!r}))
held, masks = arrays.pop("held"), arrays.pop("masks")
data = SimpleNamespace(**arrays, held=dict(validation=held, test=held), masks=dict(validation=masks, test=masks))
settings = SimpleNamespace(**{vars(settings())!r})
print(loop.train(data, PUBLISHED["TINY"], 7, settings, {str(tmp_path / "run")!r})["status"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "ok", done.stderr


def test_an_update_is_that_of_torchs_own_optimiser_and_clipping(data, tmp_path):
    run = loop.Run(data, SIZE, 7, settings(warmup=0.0, clip=0.1), tmp_path, "identity")
    twin = torch.nn.Parameter(run.weights.detach().clone())
    optimiser = torch.optim.AdamW([twin], lr=run.peak, weight_decay=run.settings.weight_decay)
    for _ in range(3):
        run.gradient()
        twin.grad = run.weights.grad.clone()
        torch.nn.utils.clip_grad_norm_([twin], 0.1)
        optimiser.step()
        run.step()
        torch.testing.assert_close(run.weights, twin, rtol=1e-6, atol=1e-7)
        run.update += 1


def test_cells_in_small_lots_give_the_gradient_of_the_whole_batch(data, tmp_path):
    run = loop.Run(data, SIZE, 7, settings(), tmp_path, "identity")
    found = []
    for run.at_once in (16, 5, 1):
        found.append((run.gradient(), run.weights.grad.clone()))
    for loss, gradient in found[1:]:
        torch.testing.assert_close(loss, found[0][0])
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-5, atol=1e-6)
