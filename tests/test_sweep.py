"""Training away from the notebooks: a panel as a small file, many runs in one process, another machine."""

import csv
import json
import os
import shutil
import subprocess
import sys

import conftest
import numpy as np
import pytest
import yaml

from lib.data import compact, panel
from lib.fit import runs
from lib.io import InputError
from lib.run import cli as command
from lib.study import load_study
from lib.train import loop, scale, sweep

ABSENT = (
    "scanpy", "anndata", "h5py", "pandas", "scipy", "cellxgene_census", "tiledbsoma", "matplotlib", "lightning_fabric"
)  # fmt: skip
"""What a machine that is for training alone does not have."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with the tiny study and both forms of both panels, made once."""
    root = tmp_path_factory.mktemp("made")
    (root / "params").mkdir()
    (root / "params" / "tiny.yaml").write_text(yaml.safe_dump(conftest.TINY, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "ROOT", root)
        sweep.pack(load_study("tiny"))
    return root


@pytest.fixture
def packed(made, project):
    """The tiny study in a project of its own, with both forms of both panels."""
    shutil.copytree(made, project, dirs_exist_ok=True)
    return load_study("tiny")


def away(study, place, monkeypatch):
    """Move to another project folder that has the study file and the compact panels alone."""
    (place / "params").mkdir(parents=True)
    shutil.copy(io.ROOT / "params" / f"{study.name}.yaml", place / "params")
    for regime in study.regimes:
        target = place / study.folder(regime).relative_to(io.ROOT)
        target.mkdir(parents=True)
        shutil.copy(study.folder(regime) / compact.NAME, target)
    monkeypatch.setattr(io, "ROOT", place)
    return load_study(study.name)


def one(study, progress=lambda *state: None, size="small"):
    data, folder = sweep.arrays(study, "data-rich"), study.run_folder("data-rich", size, 7)
    return loop.train(data, study.size(size), 7, study.training("data-rich"), folder, progress)


def call(root, *words, blocked=()):
    blocked = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); "
    script = blocked + "from lib.run.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"SCALING_ROOT": str(root)}
    return subprocess.run([sys.executable, "-c", script, *words], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("regime", conftest.TINY["regimes"])
def test_a_compact_panel_holds_every_number_of_the_panel(packed, regime):
    whole = panel.arrays(panel.read(packed.folder(regime) / "panel.h5ad"))
    small = compact.read(packed.folder(regime) / compact.NAME, sweep.origin(packed, regime))
    for name in ("x", "counts", "library", "train"):
        ours, theirs = getattr(small, name), getattr(whole, name)
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs), name
    assert list(small.held) == list(whole.held) and list(small.masks) == list(whole.masks)
    for side in whole.held:
        assert np.array_equal(small.held[side], whole.held[side])
        assert small.masks[side].dtype == whole.masks[side].dtype
        assert np.array_equal(small.masks[side], whole.masks[side])
    assert (packed.folder(regime) / compact.NAME).stat().st_size < (whole.x.nbytes + whole.counts.nbytes) / 2


def test_counts_beyond_a_byte_and_cells_without_any_survive(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.1, 3000, (40, 6))).astype(np.int32)
    counts[5], counts[7, 0] = 0, 70_000
    masks = np.sort(rng.random((9, 2, 6)).argsort(-1)[..., :2]).astype(np.int32)
    x = panel.normalise(counts, counts.sum(1))
    data = compact.Arrays(x, counts, counts.sum(1, dtype=float), np.arange(31), {"test": np.arange(31, 40)},
                          {"test": masks})  # fmt: skip
    monkeypatch.setattr(compact, "ENTRIES", 300_000)  # so that there are several blocks
    compact.write(tmp_path / "a.npz", data, "here")
    again = compact.read(tmp_path / "a.npz", "here")
    assert np.array_equal(again.x, x) and np.array_equal(again.counts, counts)
    assert np.array_equal(again.masks["test"], masks)


def test_a_compact_panel_of_other_settings_or_a_damaged_one_is_refused(packed, study_file):
    packed.folder("data-rich").joinpath("panel.h5ad").unlink()
    with pytest.raises(InputError, match=r"data-rich/panel\.npz was made for other data or settings"):
        sweep.arrays(study_file(masking={"per_cell": 3}), "data-rich")
    path = packed.folder("data-rich") / compact.NAME
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"panel\.npz cannot be read .* python -m lib pack"):
        sweep.arrays(packed, "data-rich")


def test_training_needs_no_library_of_the_census_and_gives_the_same_weights(packed, tmp_path, monkeypatch):
    here = one(packed)
    elsewhere = away(packed, tmp_path / "elsewhere", monkeypatch)
    done = call(io.ROOT, "train", "tiny", "data-rich", "small", "--devices", "1", blocked=ABSENT)
    assert done.returncode == 0, done.stderr
    there = io.read_json(elsewhere.run_folder("data-rich", "small", 7) / "result.json")
    assert there["weights_sha256"] == here["weights_sha256"]
    assert there["fingerprint"] == here["fingerprint"]


def test_a_run_goes_on_in_another_place_from_the_checkpoint_it_was_given(packed, tmp_path, monkeypatch):
    whole = one(packed)
    shutil.rmtree(packed.folder("data-rich") / "runs")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)

    def die(done, total, loss):
        if done == 6:
            raise SystemExit

    with pytest.raises(SystemExit):
        one(packed, die)
    left = packed.run_folder("data-rich", "small", 7)
    elsewhere = away(packed, tmp_path / "elsewhere", monkeypatch)
    shutil.copytree(left, elsewhere.run_folder("data-rich", "small", 7))
    seen = []
    resumed = one(elsewhere, lambda *state: seen.append(state[0]))
    assert seen[0] == 6, "it began anew"
    assert resumed["weights_sha256"] == whole["weights_sha256"]


def test_a_machine_for_training_alone_says_what_it_lacks(packed, tmp_path, monkeypatch):
    elsewhere = away(packed, tmp_path / "elsewhere", monkeypatch)
    (elsewhere.folder("data-limited") / compact.NAME).unlink()
    done = call(io.ROOT, "sweep", "tiny", blocked=ABSENT)
    assert done.returncode == 2
    assert "data/tiny/data-limited/panel.npz is not there" in done.stderr and "lib pack tiny" in done.stderr
    assert not list(elsewhere.data.glob("*/runs")), "a run began before the panels were looked at"


def test_a_sweep_trains_every_run_once_with_the_seeds_of_its_size(study_file, monkeypatch, capsys):
    study = study_file(seeds_of={"small": [8]})
    assert command.main(["sweep", "tiny"]) == 0
    expected = {(regime, "XXS", seed) for regime in study.regimes for seed in (7, 8)}
    expected |= {(regime, "small", 8) for regime in study.regimes}
    rows = list(csv.DictReader((study.data / sweep.SPEED).open()))
    assert {(row["regime"], row["size"], int(row["seed"])) for row in rows} == expected
    assert len(rows) == len(expected) == len(capsys.readouterr().out.splitlines())
    monkeypatch.setattr(loop, "Run", None)  # a second sweep that trained would fail
    assert command.main(["sweep", "tiny"]) == 0
    for regime in study.regimes:
        io.write_json(study.folder(regime) / "baselines.json", {"validation": {}})
    table = runs.collect(study)
    assert set(zip(table["regime"], table["size"], table["seed"], strict=True)) == expected


def test_runs_beside_each_other_give_what_runs_one_by_one_give(packed, tmp_path, monkeypatch):
    alone = {run["fingerprint"]: run["weights_sha256"] for run in sweep.sweep(packed, tell=lambda said: None)}
    elsewhere = away(packed, tmp_path / "elsewhere", monkeypatch)
    done = call(io.ROOT, "sweep", "tiny", "--at-once", "2")
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in elsewhere.data.rglob("result.json")]
    assert {run["fingerprint"]: run["weights_sha256"] for run in results} == alone


def test_utilisation_is_model_flops_over_the_peak_that_is_named():
    size = params.PUBLISHED["XL"]
    record = {"size": "XL", "seed": 7, "parameters": 1, "genes": 512, "cells_per_second": 200.0}
    found = scale.speed(record | {"device": "NVIDIA H100 80GB HBM3"}, size)
    assert found["utilisation"] == pytest.approx(200 * 3 * size.forward_flops(512) / 989.4e12)
    assert "data sheet" in found["peak_from"]
    assert scale.peak("NVIDIA H100 PCIe")[0] < scale.peak("NVIDIA H100 80GB HBM3")[0]
    measured = scale.speed(record | {"device": "cpu"}, params.PUBLISHED["XXS"])
    assert 1e9 < measured["peak"] < 1e13 and "thread" in measured["peak_from"]


def test_the_command_of_the_papers_scale_packs_trains_fits_and_keeps_in_this_order():
    words = ["make", "-n", "-o", ".venv/installed", "paper-scale", "STUDIES=one two", "AT_ONCE=3"]
    told = subprocess.run(words, cwd=io.CODE, capture_output=True, text=True, check=True).stdout
    places = [told.index(part) for part in ("lib pack one two", "lib sweep one two --at-once 3", "lib run", "lib keep")]
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["tuned", "published", "tuned-pbmc", "rehearsal"])
def test_the_studies_of_the_papers_scale_are_the_published_ones(name):
    study = load_study(name)
    assert [size.name for size in study.sizes] == [*params.PUBLISHED] and study.seeds == [7, 8, 9]
    assert study.seeds_for("XL") == [7] and study.seeds_for("L") == [7, 8, 9]
    if name != "rehearsal":
        assert study.sizes == [*params.PUBLISHED.values()]
        assert {regime.genes for regime in study.regimes.values()} == {512, 1024}
        assert {study.training(regime).cells_seen for regime in study.regimes} == {240_000}
