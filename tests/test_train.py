"""The training loop: exact losses, exact resume, honest records, and what may befall a run."""

import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY

from lib import io
from lib.data import panel as panels
from lib.io import InputError
from lib.model.sizes import PUBLISHED, Size
from lib.study import Train, parse_study
from lib.train import baselines, loop, machine

SIZE = Size("small", 8, 1, 2, 2)
GENES, MASKED = 16, 3
EXACT = ("validation_mse", "test_mse", "validation_mse_se", "validation_mse_half", "weights_sha256", "updates")


def panel(cells=140, held_out=30):
    """Cells of two factors, so that context tells something about a hidden gene."""
    rng, number = np.random.default_rng(0), cells + 2 * held_out
    x = np.abs(rng.normal(size=(number, 2)) @ rng.normal(size=(2, GENES)) + 0.1 * rng.normal(size=(number, GENES)))
    rows, validation, test = np.split(rng.permutation(number), [cells, cells + held_out])
    masks = np.sort(np.argsort(rng.random((2, held_out, 2, GENES)))[..., :MASKED])
    held = {"validation": validation, "test": test}
    counts, library, donor = np.rint(3 * x).astype(np.int32), np.full(number, 1e4), np.arange(number) % 10
    return panels.Arrays(x.astype(np.float32), counts, library, donor, rows, held, dict(zip(held, masks, strict=True)))


@pytest.fixture(scope="module")
def data():
    return panel()


def settings(**changes):
    return Train.model_validate({"cells_seen": 1600, "batch": 16, "evaluations": 6} | changes)


def run(data, folder, size=SIZE, seed=7, progress=lambda *state: None, **changes):
    return loop.train(data, size, seed, settings(**changes), folder, progress)


def started(data, folder, size=SIZE, **changes):
    return loop.Run(data, size, 7, settings(**changes), folder, "identity")


def exact(record):
    return [record[name] for name in EXACT]


GOLDEN = {"numerics": 3, "mse": (0.98659638, 1.18472583), "negative_binomial": (3.40595492, 3.64336563)}
"""TRAIN_NUMERICS, and validation losses of twenty updates and of half of them."""


@pytest.mark.parametrize("objective, unit, highest", [("mse", "mse", 0.02), ("negative_binomial", "nll", None)])
def test_the_number_of_training_is_raised_when_its_results_change(data, tmp_path, objective, unit, highest):
    """Every part of the schedule acts here: the rate of the width, its cap, warm-up and fall; and so does clipping."""
    schedule = {"warmup": 0.2, "final_rate": 0.25, "highest_rate": highest}
    record = run(data, tmp_path, cells_seen=320, objective=objective, **schedule)
    assert GOLDEN["numerics"] == io.TRAIN_NUMERICS
    found = record[f"validation_{unit}"], record[f"validation_{unit}_half"]
    assert found == pytest.approx(GOLDEN[objective], rel=1e-6), "raise TRAIN_NUMERICS in lib/io.py, and these numbers"


def test_a_run_learns_from_context_and_one_that_sees_none_ends_at_the_gene_mean(data, tmp_path):
    errors = np.square(data.x[data.held["validation"]] - data.x[data.train].mean(0))
    gene_mean = np.take_along_axis(errors[:, None], data.masks["validation"], axis=2).mean()
    record = run(data, tmp_path / "small", cells_seen=4_000)
    assert record["status"] == "ok" and record["validation_mse"] < 0.6 * gene_mean
    blind = run(data, tmp_path / "XXS", size=PUBLISHED["XXS"], cells_seen=8_000)
    assert blind["validation_mse"] == pytest.approx(gene_mean, rel=0.02)


@pytest.mark.parametrize("stop_at", [37, 45])
def test_a_run_that_was_stopped_on_the_trunk_or_a_branch_ends_with_the_same_numbers(data, tmp_path, stop_at):
    whole = run(data, tmp_path / "whole", dropout=0.3)

    def stop(done, total, loss):
        if done == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "cut", progress=stop, dropout=0.3)
    assert not (tmp_path / "cut" / "result.json").exists()
    seen = []
    resumed = run(data, tmp_path / "cut", progress=lambda *s: seen.append(s[0]), dropout=0.3)
    assert exact(resumed) == exact(whole) and seen[0] == stop_at + 1
    assert (tmp_path / "cut" / "history.csv").read_text() == (tmp_path / "whole" / "history.csv").read_text()


def test_a_finished_run_is_not_trained_again_unless_something_changed(data, tmp_path):
    first, updates = run(data, tmp_path), []
    (tmp_path / "checkpoint-000000000009-of-it.pt").touch()  # it was killed at its very end
    assert run(data, tmp_path, progress=lambda *s: updates.append(s)) == first and not updates
    assert not list(tmp_path.glob("checkpoint-*"))
    assert run(data, tmp_path, learning_rate=1e-3)["fingerprint"] != first["fingerprint"]
    assert run(data, tmp_path, seed=8)["validation_mse"] != first["validation_mse"]
    other = replace(data, x=data.x + 1, counts=data.counts + 1)
    assert run(other, tmp_path)["validation_mse"] != first["validation_mse"]
    merged = replace(data, donor=data.donor // 2)  # of which the errors over donors are made
    assert loop.fingerprint(data, SIZE, 7, settings()) != loop.fingerprint(merged, SIZE, 7, settings())
    rounded = replace(data, x=np.nextafter(data.x, np.float32(9)))  # of the same counts on another machine
    assert loop.fingerprint(data, SIZE, 7, settings()) == loop.fingerprint(rounded, SIZE, 7, settings())


@pytest.mark.filterwarnings("error")
def test_a_run_that_diverges_says_so_and_carries_no_loss(data, tmp_path):
    record = run(data, tmp_path, learning_rate=1e30, highest_rate=None, clip=1e30)
    assert record["status"] == "diverged" and record["validation_mse"] is None and record["updates"] < 100
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("protocol, cells", [("tuned", 140), ("published", 200)])
def test_each_pass_visits_every_training_cell_once_and_others_only_as_published(data, tmp_path, protocol, cells):
    run = started(data, tmp_path, protocol=protocol, batch=20)
    visited = [row.item() for update in range(2 * cells // 20) for row in run.cells.batch(update)]
    first, second = sorted(visited[:cells]), sorted(visited[cells:])
    assert first == second == sorted(data.train if protocol == "tuned" else range(200))
    assert visited[:cells] != visited[cells:]
    large = started(data, tmp_path, batch=500).cells.batch(0)
    assert set(np.bincount(large, minlength=200)[data.train]) == {3, 4}


def test_the_published_protocol_reports_the_best_of_many_evaluations(data, tmp_path):
    record = run(data, tmp_path, protocol="published", learning_rate=1e-2)
    curve = np.genfromtxt(tmp_path / "history.csv", delimiter=",", names=True)
    assert len(curve) == 6 and set(curve["learning_rate"]) == {1e-2}
    assert record["validation_mse"] == pytest.approx(curve["validation_mse"].min())
    assert record["validation_mse_half"] is None and record["convergence"] is None


def test_the_half_way_loss_is_what_a_run_of_half_the_updates_would_give(data, tmp_path, monkeypatch):
    """Up to the warm-up, which counts from the whole run: without it the two are the same run."""
    whole = run(data, tmp_path / "whole", warmup=0.0)
    half = run(data, tmp_path / "half", cells_seen=800, warmup=0.0)
    assert whole["validation_mse_half"] == half["validation_mse"] != whole["validation_mse"]
    monkeypatch.setattr(Train, "branches", {})
    without = run(data, tmp_path / "without", warmup=0.0)
    assert without["validation_mse_half"] is None and without["weights_sha256"] == whole["weights_sha256"]


def test_a_run_is_called_converged_only_when_half_its_updates_would_have_done(data, tmp_path):
    short = run(data, tmp_path / "short", cells_seen=160)
    loose = run(data, tmp_path / "loose", cells_seen=160, tolerance=10.0)
    assert (short["convergence"], loose["convergence"]) == ("not converged", "converged")
    assert abs(short["validation_mse_half"] / short["validation_mse"] - 1) > settings().tolerance


def drawn(cells=900, genes=12, seed=0):
    """A panel of independent genes: counts, and the share and dispersion of each that they were drawn from."""
    rng = np.random.default_rng(seed)
    library = rng.lognormal(8, 0.4, cells).round()
    share, theta = rng.lognormal(-8, 1, genes), rng.uniform(0.5, 4, genes)
    counts = baselines.distribution(library[:, None] * share, theta).rvs(random_state=rng).astype(np.int32)
    held = {"validation": np.arange(600, 750), "test": np.arange(750, 900), "test_random": np.arange(0, 50)}
    masks = {split: np.sort(np.argsort(rng.random((len(rows), 2, genes)))[..., :3]) for split, rows in held.items()}
    x = np.log1p(1e4 * counts / library[:, None]).astype(np.float32)
    return panels.Arrays(x, counts, library, np.arange(cells) // 100, np.arange(50, 600), held, masks), share, theta


def test_counts_of_independent_genes_cost_what_their_own_distribution_costs(tmp_path):
    data, share, theta = drawn()
    counted = Train(cells_seen=12_000, batch=32, evaluations=2, learning_rate=0.02, objective="negative_binomial")
    record = loop.train(data, Size("XXS", 1, 1, 1, 1), 7, counted, tmp_path)
    for split, rows in data.held.items():
        counts = np.take_along_axis(data.counts[rows][:, None, :], data.masks[split], axis=2)
        mean = data.library[rows, None, None] * share[data.masks[split]]
        true = baselines.bits(counts, mean, theta[data.masks[split]])
        assert record[f"{split}_nll"] == pytest.approx(true.mean(), abs=0.05 if len(rows) > 100 else 0.1), split
        assert record[f"{split}_nll_se"] > 0 and record[f"{split}_mse"] > 0
    assert record["validation_nll_half"] > 0
    header = (tmp_path / "history.csv").read_text().splitlines()[0]
    assert "validation_nll" in header and "mse" not in header


PROGRAM = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_train import panel, settings, SIZE
from lib.train import loop
folder, data, chosen = Path({folder!r}), panel(), settings(dropout=0.2)
loop.CHECKPOINT_SECONDS, loop.CHECKPOINT_SHARE = 0, float("inf")
kills, chance = 0, random.Random(0)
while not (folder / "result.json").is_file():
    before, child = set(folder.glob("checkpoint-*")), os.fork()
    if not child:
        loop.train(data, SIZE, 7, chosen, folder)
        os._exit(0)
    while not set(folder.glob("checkpoint-*")) - before and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))
    if kills < 4:
        os.kill(child, signal.SIGKILL)
        kills += 1
    os.waitpid(child, 0)
print(kills, flush=True)
steps, step, other = [], loop.Run.step, os.fork()
loop.Run.step = lambda self: (steps.append(1), step(self))[1]
loop.train(data, SIZE, 7, chosen, folder / "twice")
print(len(steps), flush=True)
os.wait() if other else os._exit(0)
"""


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    """The folder of PROGRAM's runs, and the numbers that it said."""
    folder = tmp_path_factory.mktemp("forked")
    program = PROGRAM.format(folder=str(folder), tests=str(io.CODE / "tests"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=io.CODE)
    assert done.returncode == 0, done.stderr
    return folder, [int(number) for number in done.stdout.split()]


def test_a_run_killed_at_random_moments_ends_with_the_same_weights_and_losses(data, tmp_path, forked):
    folder, (kills, *_) = forked
    assert kills >= 3, "the run was over before it could be killed"
    whole = run(data, tmp_path, dropout=0.2)
    assert exact(io.read_json(folder / "result.json")) == exact(whole)
    assert (folder / "history.csv").read_text() == (tmp_path / "history.csv").read_text()


def test_two_processes_that_ask_for_the_same_run_train_it_once(forked):
    _, (_, *both) = forked
    assert min(both) == 0 and max(both) >= 100 and len(both) == 2


@pytest.fixture
def cut(data, monkeypatch):
    """Start a run that writes a checkpoint after every update, and stop it after so many."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(loop, "CHECKPOINT_SHARE", np.inf)

    def start(folder, updates, **changes):
        def stop(done, total, loss):
            if done == updates:
                raise SystemExit

        with pytest.raises(SystemExit):
            run(data, folder, progress=stop, **changes)

    return start


def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before(data, tmp_path, cut):
    whole = run(data, tmp_path / "whole")
    cut(tmp_path / "cut", 60)
    newest = max((tmp_path / "cut").glob("checkpoint-*.pt"))
    newest.write_bytes(newest.read_bytes()[:-50])
    with pytest.warns(UserWarning, match="damaged"):
        resumed = run(data, tmp_path / "cut")
    assert exact(resumed) == exact(whole)


def test_checkpoints_of_other_settings_do_not_cost_a_stopped_run_its_own(data, tmp_path, cut):
    for updates, cells in ((60, 1600), (30, 1200)):
        cut(tmp_path, updates, cells_seen=cells)
    seen = []
    run(data, tmp_path, progress=lambda done, *state: seen.append(done), cells_seen=1200)
    assert seen[0] > 25


def test_a_full_disk_is_named_and_costs_no_checkpoint(data, tmp_path, cut, monkeypatch):
    whole, seen = run(data, tmp_path / "whole"), []
    cut(tmp_path / "cut", 60)

    def refuse(path, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("pathlib.Path.write_bytes", refuse)
        with pytest.raises(InputError, match=r"small, seed 7: stopped .*No space left.*make room on the disk"):
            run(data, tmp_path / "cut")
    resumed = run(data, tmp_path / "cut", progress=lambda done, *state: seen.append(done))
    assert exact(resumed) == exact(whole) and seen[0] > 50


def test_when_memory_gives_out_the_batch_is_split_and_training_goes_on(data, tmp_path, monkeypatch):
    slow = {"optimiser": "adamw", "learning_rate": 1e-3}  # else rounding grows
    whole, loss, refused = run(data, tmp_path / "whole", **slow), loop.Run.masked_loss, []

    def small_memory(self, predict, rows, x, hidden, positions):
        if len(x) > 4 and torch.is_grad_enabled():
            refused.append(len(x))
            raise torch.OutOfMemoryError("out of memory")
        return loss(self, predict, rows, x, hidden, positions)

    monkeypatch.setattr(loop.Run, "masked_loss", small_memory)
    split = run(data, tmp_path / "split", **slow)
    assert split["status"] == "ok" and refused == [16, 8]
    assert split["validation_mse"] == pytest.approx(whole["validation_mse"], rel=1e-4)


def test_a_run_without_memory_for_one_cell_is_marked_and_says_so(data, tmp_path, monkeypatch):
    def broken(*inputs):
        raise error

    monkeypatch.setattr(loop.Run, "masked_loss", broken)
    error = RuntimeError("a mistake in the code")
    with pytest.raises(RuntimeError, match="a mistake"):
        run(data, tmp_path)
    error = torch.OutOfMemoryError("out of memory")
    with pytest.raises(InputError, match=r"small, seed 7: stopped .OutOfMemoryError: out of memory.; free some memory"):
        run(data, tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_a_size_too_large_for_the_machine_is_refused_before_anything_is_allocated(data, tmp_path):
    giant = Size("GIANT", 2**20, 100, 16, 4)
    with pytest.raises(InputError, match=r"training GIANT on 16 genes takes at least [\d,.]+ GiB .* leave GIANT out"):
        run(data, tmp_path, size=giant)
    assert PUBLISHED["XL"].memory(512) < 12 * 2**30
    assert 100 * 2**20 < machine.memory("cpu") < 2**50


@pytest.mark.parametrize("file", ["memory.max", "memory/memory.limit_in_bytes"])
@pytest.mark.parametrize(("text", "limited"), [("104857600", True), ("max", False), ("9223372036854771712", False)])
def test_memory_is_no_more_than_the_limit_of_a_container(tmp_path, file, text, limited):
    (tmp_path / "memory").mkdir()
    (tmp_path / file).write_text(f"{text}\n")
    assert machine.memory("cpu", tmp_path) == (100 * 2**20 if limited else machine.memory("cpu", tmp_path / "none"))


def test_a_checkpoint_that_hides_a_pickled_program_is_refused(tmp_path):
    class Program:
        def __reduce__(self):
            return (print, ("executed",))

    machine.save_checkpoint(tmp_path, 1, {"number": Program()})
    with pytest.raises(pickle.UnpicklingError):
        machine.load_checkpoint(tmp_path)


def test_the_error_over_donors_is_that_of_their_means_and_never_less_than_over_cells():
    losses = np.repeat([1.0, 2.0, 4.0], 5)
    over_cells, over_donors = machine.errors_of_mean(losses, np.repeat([3, 7, 9], 5))
    assert over_cells == pytest.approx(losses.std(ddof=1) / np.sqrt(15))
    assert over_donors == pytest.approx(np.std([1, 2, 4], ddof=1) / np.sqrt(3))
    of_equal_donors = machine.errors_of_mean(np.tile([1.0, 3.0], 4), np.repeat([0, 1, 2, 3], 2))[1]
    assert of_equal_donors == pytest.approx(1 / np.sqrt(7))
    assert machine.errors_of_mean(losses, np.zeros(15))[1] is None


def test_the_error_over_donors_in_a_record_is_that_of_its_held_out_donors(data, tmp_path):
    trained = started(data, tmp_path)
    trained.advance(lambda *state: None)
    losses, donor = trained.losses("validation"), np.zeros(len(data.x), int)
    donor[data.held["validation"][np.argsort(losses)]] = np.arange(len(losses)) // 10  # donors differ
    trained.data = replace(data, donor=donor)
    record, over = trained.record(), machine.errors_of_mean(losses, donor[data.held["validation"]])
    assert [record["validation_mse_se"], record["validation_mse_donor_se"]] == pytest.approx(over)
    assert over[1] > 1.5 * over[0] and record["validation_donors"] == 3


def test_the_hours_of_a_size_are_those_of_all_its_seeds_updates_and_branches(monkeypatch):
    monkeypatch.setattr(machine, "_seconds", lambda size, genes, masked, settings, cells: (
        1e-9 * size.training_flops_per_cell(genes) * cells
    ))  # fmt: skip
    monkeypatch.setattr(machine, "LONGEST", {"cpu": 0, "cuda": 0})  # only the smallest is tried
    study = parse_study(TINY | {"seeds_of": {"small": [1, 2, 3]}}, "tiny")
    for row in machine.hours(study).to_dict("records"):
        genes, chosen = study.regime(row["regime"]).genes, study.training(row["regime"])
        flops = len(study.seeds_for(row["size"])) * study.size(row["size"]).training_flops(genes, chosen)
        assert row["hours"] == pytest.approx(1e-9 * flops / 3600) and row["measured"] == (row["size"] == "XXS")
