"""What may befall a run: killed at any moment, memory or disk exhausted, odd panels, two at once, several processes."""

import errno
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reliability import fault

import lib.data.panel
from lib import io
from lib.io import InputError
from lib.model.sizes import PUBLISHED, Size
from lib.study import Train
from lib.train import checkpoint, loop, machine

SIZE = Size("small", 8, 1, 2, 2)
GENES, MASKED, CELLS = 16, 3, 60
EXACT = ("validation_mse", "test_mse", "validation_mse_half", "weights_sha256", "updates")


def panel(cells=CELLS, held_out=10, x=None):
    rng = np.random.default_rng(0)
    x = rng.random((cells + 2 * held_out, GENES), dtype=np.float32) if x is None else x
    masks = np.argsort(rng.random((held_out, 2, GENES)))[..., :MASKED]
    rows, validation, test = np.split(np.arange(len(x)), [cells, cells + held_out])
    return SimpleNamespace(
        x=x, counts=np.rint(3 * x).astype(np.int32), library=np.full(len(x), 1e4), train=rows,
        held={"validation": validation, "test": test}, masks={"validation": masks, "test": masks.copy()},
    )  # fmt: skip


def settings(**changes):
    return Train.model_validate({"cells_seen": 1600, "batch": 16, "evaluations": 6} | changes)


def run(data, folder, size=SIZE, **changes):
    return loop.train(data, size, 7, settings(**changes), folder)


PROGRAM = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_train_faults import panel, settings, SIZE
from lib import files, train
folder, data, chosen = Path({folder!r}), panel(), settings(cells_seen=6400, dropout=0.2)
loop.CHECKPOINT_SECONDS = 0.02
kills, chance = 0, random.Random(0)
while not (folder / "result.json").is_file():
    before, child = set(folder.glob("checkpoint-*")), os.fork()
    if not child:
        loop.train(data, SIZE, 7, chosen, folder)
        os._exit(0)
    while not set(folder.glob("checkpoint-*")) - before and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))
    if kills < 8:
        os.kill(child, signal.SIGKILL)
        kills += 1
    os.waitpid(child, 0)
print(kills)
"""


@fault("a training process is killed at a random moment", "run it again")
def test_a_run_killed_at_random_moments_ends_with_the_same_weights_and_losses(tmp_path):
    program = PROGRAM.format(tests=str(io.CODE / "tests"), folder=str(tmp_path / "killed"))
    (tmp_path / "killed").mkdir()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=io.CODE)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3, "the run was over before it could be killed"
    whole = run(panel(), tmp_path / "whole", cells_seen=6400, dropout=0.2)
    killed = io.read_json(tmp_path / "killed" / "result.json")
    assert [killed[name] for name in EXACT] == [whole[name] for name in EXACT]
    histories = [(tmp_path / name / "history.csv").read_text() for name in ("killed", "whole")]
    assert histories[0] == histories[1]
    return "it goes on from its last checkpoint, and ends with the same weights, losses and learning curve"


@fault("the last checkpoint is damaged", "nothing")
def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    data, whole = panel(), run(panel(), tmp_path / "whole")

    def stop(done, total, loss):
        if done == 60:
            raise SystemExit

    with pytest.raises(SystemExit):
        loop.train(data, SIZE, 7, settings(), tmp_path / "cut", stop)
    newest = max((tmp_path / "cut").glob("checkpoint-*.pt"))
    newest.write_bytes(newest.read_bytes()[:-50])
    with pytest.warns(UserWarning, match="damaged"):
        resumed = run(data, tmp_path / "cut")
    assert [resumed[name] for name in EXACT] == [whole[name] for name in EXACT]
    return "it says so, and goes on from the one before; training ends with the same weights"


@fault("two processes ask for the same training at the same time", "nothing")
def test_two_processes_that_ask_for_the_same_run_train_it_once(tmp_path):
    program = f"""
import sys
sys.path.insert(0, {str(io.CODE / "tests")!r})
from pathlib import Path
from test_train_faults import panel, run
import lib.train
steps, step = [], lib.train.Run.step
lib.train.Run.step = lambda self: (steps.append(1), step(self))[1]
run(panel(), Path({str(tmp_path)!r}))
print(len(steps))
"""
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    steps = sorted(int(process.communicate()[0]) for process in both)
    assert steps[0] == 0 and steps[1] >= 100
    return "one trains; the other waits for its result"


def test_when_memory_gives_out_the_batch_is_split_and_training_goes_on(tmp_path, monkeypatch):
    whole, error = run(panel(), tmp_path / "whole"), loop.Run.masked_loss
    seen = []

    def small_memory(self, predict, rows, x, hidden, positions):
        seen.append(len(x))
        if len(x) > 4 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("out of memory")
        return error(self, predict, rows, x, hidden, positions)

    monkeypatch.setattr(loop.Run, "masked_loss", small_memory)
    split = run(panel(), tmp_path / "split")
    assert split["status"] == "ok" and max(seen) > 4
    assert split["validation_mse"] == pytest.approx(whole["validation_mse"], rel=1e-4)


@fault("memory gives out while a size is trained", "free some memory, and run it again")
def test_a_run_without_memory_for_one_cell_is_marked_and_says_so(tmp_path, monkeypatch):
    def no_memory(*inputs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(loop.Run, "masked_loss", no_memory)
    record = run(panel(), tmp_path)
    assert record["status"] == "interrupted" and not (tmp_path / "result.json").exists()
    with pytest.raises(InputError, match=r"small, seed 7: stopped .out of memory.; free some memory") as refusal:
        loop.finished([record])
    return f"batches are split; when that does not help, it says “{refusal.value}”"


def test_other_errors_are_not_taken_for_exhausted_memory(tmp_path, monkeypatch):
    def broken(*inputs):
        raise RuntimeError("a mistake in the code")

    monkeypatch.setattr(loop.Run, "masked_loss", broken)
    with pytest.raises(RuntimeError, match="a mistake"):
        run(panel(), tmp_path)


def test_a_full_disk_stops_one_run_with_a_sentence_and_loses_no_checkpoint(tmp_path, monkeypatch):
    data, whole = panel(), run(panel(), tmp_path / "whole")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    save, saved = checkpoint.save, []

    def full(folder, number, state):
        if number > 40:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        saved.append(number)
        save(folder, number, state)

    monkeypatch.setattr(checkpoint, "save", full)
    record = run(data, tmp_path / "full")
    assert record["status"] == "interrupted" and "No space left on device" in record["reason"]
    with pytest.raises(InputError, match="make room on the disk"):
        loop.finished([whole, record])
    assert len(list((tmp_path / "full").glob("checkpoint-*.pt"))) == 2
    monkeypatch.setattr(checkpoint, "save", save)
    resumed = run(data, tmp_path / "full")
    assert [resumed[name] for name in EXACT] == [whole[name] for name in EXACT]


@fault("a size does not fit into the memory of this machine", "leave it out, or take a larger machine")
def test_a_size_too_large_for_the_machine_is_refused_before_anything_is_allocated(tmp_path):
    giant = Size("GIANT", 2**20, 100, 16, 4)
    with pytest.raises(InputError, match=r"training GIANT on 16 genes takes at least [\d,.]+ GiB .* leave GIANT out"):
        run(panel(), tmp_path, size=giant)
    assert PUBLISHED["XL"].memory(512) < 12 * 2**30
    assert 100 * 2**20 < machine.memory("cpu") < 2**50
    return "it is refused in one sentence before anything is allocated"


@pytest.mark.parametrize(
    "odd", ["constant genes", "one training cell", "one validation cell", "batch larger than data"]
)
def test_odd_panels_are_trained_to_a_finite_loss(tmp_path, odd):
    data, changes = panel(), {}
    if odd == "constant genes":
        data.x[:, 3:] = 0
    if odd == "one training cell":
        data.train = data.train[:1]
    if odd == "one validation cell":
        data = panel(held_out=1)
    if odd == "batch larger than data":
        changes = {"batch": 500, "cells_seen": 5000}
    record = run(data, tmp_path, **changes)
    assert record["status"] == "ok" and np.isfinite(record["validation_mse"])
    json.dumps(record, allow_nan=False)


def test_exploding_gradients_are_clipped_to_the_stated_norm(tmp_path):
    data = panel(x=1e4 * np.random.default_rng(0).random((80, GENES), dtype=np.float32))
    run = loop.Run(data, SIZE, 7, settings(clip=0.5), tmp_path, "identity")
    run.step()
    assert run.weights.grad.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_the_half_way_loss_is_what_a_run_of_half_the_updates_would_give(tmp_path):
    """Up to the warm-up, which counts from the whole run: without it the two are the same run."""
    whole = run(panel(), tmp_path / "whole", warmup=0.0)
    half = run(panel(), tmp_path / "half", cells_seen=800, warmup=0.0)
    assert whole["validation_mse_half"] == half["validation_mse"]
    assert whole["validation_mse"] != half["validation_mse"]


def test_a_run_is_called_converged_only_when_half_its_updates_would_have_done(tmp_path):
    short = run(panel(), tmp_path / "short", cells_seen=160)
    loose = run(panel(), tmp_path / "loose", cells_seen=160, tolerance=10.0)
    assert (short["convergence"], loose["convergence"]) == ("not converged", "converged")
    moved = abs(short["validation_mse_half"] / short["validation_mse"] - 1)
    assert moved > settings().tolerance


def test_the_excursion_changes_nothing_of_the_run_itself(tmp_path, monkeypatch):
    plain = run(panel(), tmp_path / "plain")
    monkeypatch.setattr(loop.Run, "excursion", lambda self: None)
    without = run(panel(), tmp_path / "without")
    assert without["validation_mse_half"] is None
    assert without["weights_sha256"] == plain["weights_sha256"]


def test_two_processes_that_share_every_batch_follow_the_curve_of_one(tiny, tmp_path):
    pytest.importorskip("lightning_fabric")
    arrays = lib.data.panel.arrays(lib.data.panel.read(lib.data.panel.build(tiny, "data-rich")))
    loop.train(arrays, tiny.size("small"), 7, tiny.train, tmp_path / "one")
    command = [sys.executable, "-m", "lib", "train", "tiny", "data-rich", "small", "--devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=io.CODE, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "small, seed 7: ok" in done.stdout and "small, seed 8: ok" in done.stdout
    folders = tmp_path / "one", tiny.run_folder("data-rich", "small", 7)
    curves = [np.genfromtxt(folder / "history.csv", delimiter=",", names=True) for folder in folders]
    for name in ("train_mse", "validation_mse"):
        np.testing.assert_allclose(curves[1][name][1:], curves[0][name][1:], rtol=2e-5)


def test_a_model_that_cannot_be_compiled_on_a_gpu_is_trained_without(monkeypatch):
    def broken(model):
        def call(*inputs):
            raise RuntimeError("no compiler here")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    forward = machine.compiled(torch.nn.Identity(), "cuda")
    with pytest.warns(UserWarning, match="no compiler here"):
        assert forward(torch.tensor(3.0)) == 3.0
    assert forward(torch.tensor(4.0)) == 4.0  # and does not try again
