"""The panel: who is held out, which genes, what values; the same again from the same study file."""

import itertools
import json
import shutil

import anndata
import gpu
import numpy as np
import pandas as pd
import pytest
from conftest import TINY, whole_census
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lib import io
from lib.data import census, panel, simulate, split
from lib.io import InputError
from lib.study import Masking, Split, parse_study
from lib.train import baselines

GENES = [1, 4, 5, 12, 15, 17, 23, 29, 33, 35, 41, 46, 52, 61, 62, 74, 76, 85, 89, 91, 98, 99, 113, 116]
GOLDEN = {(1, 1): (GENES, 195_493, 30538.7889)}
"""Genes of the tiny study's data-rich panel, sum of its counts, sum of x, by SIMULATE_NUMERICS and PANEL_NUMERICS."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """data/tiny with the Census and the data-rich panel of the tiny study."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "ROOT", tmp_path_factory.mktemp("made"))
        return panel.build(parse_study(TINY, "tiny"), "data-rich").parents[1]


@pytest.fixture
def rich(tiny, made):
    """The panel, in a project where it and its Census are built."""
    shutil.copytree(made, tiny.data)
    return panel.read(tiny.folder("data-rich") / "panel.h5ad")


def test_the_file_keeps_its_contract(rich, tiny):
    adata, _ = whole_census(tiny)
    shown = adata.X.astype(bool)
    assert adata.var["nnz"].tolist() == shown.getnnz(axis=0).tolist() and set(adata.var["n_measured_obs"]) == {600}
    assert adata.obs["nnz"].tolist() == shown.getnnz(axis=1).tolist()
    obs = adata.obs.iloc[rich.obs["soma_joinid"]]
    chosen = adata.X.toarray()[rich.obs["soma_joinid"]][:, rich.var["soma_joinid"]]
    assert rich.shape == (500, 24) and rich.X.dtype == np.float32
    assert np.issubdtype(rich.layers["counts"].dtype, np.integer) and np.array_equal(rich.layers["counts"], chosen)
    assert np.array_equal(rich.obs["total_counts"], obs["raw_sum"])
    assert np.allclose(rich.X, np.log1p(1e4 * chosen / obs["raw_sum"].to_numpy()[:, None]), rtol=1e-5)
    assert rich.obs["donor_id"].tolist() == obs["donor_id"].tolist()
    assert rich.obs["split"].value_counts().to_dict() == {"train": 400, "validation": 50, "test": 50}
    assert rich.var_names.tolist() == rich.var["feature_id"].tolist()
    assert rich.var["soma_joinid"].is_monotonic_increasing
    assert {"dataset_id", "donor_id", "total_counts", "soma_joinid"} <= set(rich.obs) and "feature_name" in rich.var


def test_arrays_are_those_of_the_file_and_of_a_packed_panel(rich, tiny):
    folder = tiny.folder("data-rich")
    data = panel.load(folder)
    assert np.array_equal(data.x, rich.X) and np.array_equal(data.counts, rich.layers["counts"])
    assert data.library.dtype == np.float64 and np.array_equal(data.library, rich.obs["total_counts"])
    donors = rich.obs["donor_id"].to_numpy()
    assert all((data.donor == data.donor[cell]).tolist() == (donors == donors[cell]).tolist() for cell in range(500))
    assert sorted(np.concatenate([data.train, *data.held.values()])) == list(range(500))
    assert (rich.obs["split"].to_numpy()[data.held["test"]] == "test").all()
    assert data.masks["validation"].shape == (50, 4, round(0.15 * 24)) == data.masks["test"].shape
    assert not np.array_equal(data.masks["validation"], data.masks["test"])
    gpu.pack(tiny, "data-rich")
    packed = gpu.load(folder)

    def flat(of):
        return [of.x, of.counts, of.library, of.donor, of.train, *of.held.values(), *of.masks.values()]

    for one, other in zip(flat(data), flat(packed), strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    assert list(packed.held) == list(data.held) == list(packed.masks) == ["validation", "test"]
    path = folder / "panel.h5ad"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="run 01_data again"):
        panel.load_current(tiny, "data-rich")
    path.unlink()
    with pytest.raises(InputError, match="01_data"):
        panel.load(folder)


def test_the_matrices_are_mapped_and_no_change_reaches_the_file(rich, tiny):
    data = panel.arrays(rich)
    assert isinstance(data.x, np.memmap) and isinstance(data.counts, np.memmap)
    before = float(rich.X[0, 0])
    rich.X[0, 0] = before + 1
    assert panel.read(tiny.folder("data-rich") / "panel.h5ad").X[0, 0] == before


def test_anndata_reads_the_same_panel_and_one_that_it_compressed_is_read_too(rich, tiny, project):
    theirs = anndata.read_h5ad(tiny.folder("data-rich") / "panel.h5ad")
    theirs.write_h5ad(project / "other.h5ad", compression="gzip")
    for other in (theirs, panel.read(project / "other.h5ad")):
        assert np.array_equal(other.X, rich.X) and np.array_equal(other.layers["counts"], rich.layers["counts"])
        assert other.obs.equals(rich.obs) and other.var.equals(rich.var)
        assert np.array_equal(other.uns["masks"]["test"], rich.uns["masks"]["test"])


def test_a_panel_built_in_blocks_is_the_one_built_at_once(rich, study_file, monkeypatch):
    study = study_file(train={"cells_seen": 320, "library_size": "panel"})
    whole = panel.build(study, "data-rich").read_bytes()
    io.remove(study.folder("data-rich"))
    monkeypatch.setattr(census, "CELLS", 11)
    done = []
    path = panel.build(study, "data-rich", lambda *at: done.append(at))
    assert path.read_bytes() == whole
    assert done[0][0] == 11 and done[-1][0] == done[-1][1] == 900
    adata = panel.read(path)
    counts = adata.layers["counts"]
    # Of a panel that is normalised by itself, values are relative to its own sums.
    assert np.allclose(np.expm1(adata.X.astype(np.float64)).sum(axis=1), 1e4, rtol=1e-4)
    assert (adata.obs["total_counts"] > counts.sum(axis=1)).all()


def test_the_same_study_gives_the_same_bytes_and_names_no_place_on_this_machine(rich, tiny, project):
    made = rich.uns["provenance"]
    said = json.dumps(made, default=lambda value: np.asarray(value).tolist())
    assert str(project) not in said and str(io.CODE) not in said and made["census"]["uri"] == "data/tiny/census"
    assert bool(made["census"]["simulated"]) and made["cells_available"] == 600
    first = (tiny.folder("data-rich") / "panel.h5ad").read_bytes()
    io.remove(tiny.data)
    assert panel.build(tiny, "data-rich").read_bytes() == first


def test_a_panel_is_kept_until_something_that_made_it_changes(rich, tiny, study_file):
    made = panel.build(tiny, "data-rich").stat().st_ino
    assert panel.build(tiny, "data-rich").stat().st_ino == made
    assert panel.build(study_file(seeds=[1, 2, 3]), "data-rich").stat().st_ino == made
    changed = study_file(masking={"seed": 9})
    with pytest.raises(InputError, match=r"data-rich/panel\.h5ad was made from another study file .* run 01_data"):
        panel.load_current(changed, "data-rich")
    assert panel.build(changed, "data-rich").stat().st_ino != made
    assert len(panel.load_current(changed, "data-rich").x) == 500


def test_no_cell_and_no_donor_is_on_two_sides_and_a_panel_that_leaks_is_not_written(rich, tiny, monkeypatch):
    donors = rich.obs.groupby("donor_id", observed=True)["split"].nunique()
    assert (donors == 1).all() and rich.obs["soma_joinid"].is_unique
    report = rich.uns["provenance"]["split"]
    assert set(report["donors"]["test"]) == set(rich.obs.query("split == 'test'")["donor_id"])
    io.remove(tiny.folder("data-rich"))
    monkeypatch.setattr(split, "assign", lambda cells, settings: np.digitize(np.arange(len(cells)) % 10, [8, 9]))
    with pytest.raises(AssertionError, match="leaks"):
        panel.build(tiny, "data-rich")
    assert [path.name for path in tiny.folder("data-rich").iterdir()] == [".panel.lock"]


def test_a_leak_is_counted_from_the_table_and_not_taken_from_the_plan():
    cells = [(0, "a", "x", "train"), (1, "a", "x", "train"), (2, "b", "y", "validation"), (3, "c", "x", "test"),
             (4, "b", "y", "validation"), (4, "d", "z", "test")]  # fmt: skip
    obs = pd.DataFrame(cells, columns=["soma_joinid", "donor_id", "family", "split"])
    told = split.report(obs, Split(related="family"))
    assert (told["donors_in_two_splits"], told["cells_in_two_splits"], told["labels_in_two_splits"]) == (0, 1, 1)
    told = split.report(obs.assign(donor_id="a"), Split())
    assert (told["donors_in_two_splits"], told["labels_in_two_splits"]) == (1, 1)
    assert told["cells"] == {"train": 2, "validation": 2, "test": 2}


def test_a_small_regime_is_part_of_a_large_one_and_a_random_split_says_that_it_leaks(rich, tiny, study_file):
    small = panel.read(panel.build(tiny, "data-limited"))
    for side in ("train", "validation", "test"):
        few, many = (adata.obs[adata.obs["split"] == side] for adata in (small, rich))
        assert set(few["soma_joinid"]) <= set(many["soma_joinid"]) and len(few) < len(many)
    assert small.obs["split"].value_counts().to_dict() == {"train": 96, "validation": 12, "test": 12}
    study = study_file(split={"by": "random", "validation": 0.1, "test": 0.1})
    report = panel.read(panel.build(study, "data-rich")).uns["provenance"]["split"]
    assert report["cells_in_two_splits"] == 0 and report["donors_in_two_splits"] > 0


def test_cells_without_counts_are_left_out_and_counted(h5ad, study_file, counts):
    counts[::10] = 0
    h5ad("one", counts)
    study = study_file(census={"h5ad": ["input/one.h5ad"]}, regimes={"all": {"genes": 10, "cells": 120}})
    study = study.model_copy(update={"split": Split(validation=0.25, test=0.25)})
    adata = panel.read(panel.build(study, "all"))
    assert adata.uns["provenance"]["cells_without_counts"] == 20
    assert (adata.obs["total_counts"] > 0).all() and not set(adata.obs["soma_joinid"]) & set(range(0, 200, 10))


def test_equal_counts_under_two_data_sets_are_counted(rich, tiny, study_file):
    """As some cells of the public Census have them. The first and the last data set share 30 cells."""
    adata, _ = whole_census(tiny)
    obs, counts = adata.obs.drop(columns=["soma_joinid", "nnz"]).reset_index(drop=True), adata.X.toarray()
    counts[-30:], obs.loc[570:, "raw_sum"] = counts[:30], obs["raw_sum"].to_numpy()[:30]
    census.write(io.ROOT / "twice", adata.var[["feature_id", "feature_name"]], [(obs, sparse.csr_matrix(counts))], {})
    split = {"by": "random", "validation": 0.1, "test": 0.1}
    study = study_file(census={"uri": "twice"}, regimes={"all": {"genes": 40, "cells": 600}}, split=split)
    assert panel.read(panel.build(study, "all")).uns["provenance"]["cells_of_two_datasets"] == 60
    assert rich.uns["provenance"]["cells_of_two_datasets"] == 0


groups = st.lists(st.integers(1, 5000), min_size=3, max_size=40)
shares = st.tuples(st.floats(0.01, 0.4), st.floats(0.01, 0.4))


@settings(max_examples=30, deadline=None)
@given(groups, shares, st.integers(0, 9))
def test_every_side_gets_a_group_and_many_groups_come_near_the_shares(sizes, shares, seed):
    side = split.hold_out(np.array(sizes), shares, seed)
    assert set(side) == {0, 1, 2} and side[np.argmax(sizes)] == 0
    assert np.array_equal(side, split.hold_out(np.array(sizes), shares, seed))
    sizes = np.random.default_rng(seed).integers(100, 1000, 60)
    held = np.bincount(split.hold_out(sizes, (0.1, 0.05), seed), sizes) / sizes.sum()
    assert held[1:] == pytest.approx([0.1, 0.05], rel=0.2)


def test_the_panel_has_the_genes_that_the_client_selects_on_training_cells(rich, tiny, study_file, monkeypatch):
    counts = whole_census(tiny)[0].X.toarray()
    train = rich.obs["split"] == "train"
    assert np.allclose(rich.var["means"], rich.layers["counts"][train].mean(axis=0))
    io.remove(tiny.folder("data-rich"))
    with monkeypatch.context() as patch:
        patch.setattr(panel, "IN_MEMORY", 0)  # then the client streams the counts
        assert panel.read(panel.build(tiny, "data-rich")).var_names.tolist() == rich.var_names.tolist()
    study = study_file(train={"cells_seen": 320, "statistics_from": "all"})
    leaky = panel.read(panel.build(study, "data-rich"))
    rows = counts[leaky.obs["soma_joinid"]][:, leaky.var["soma_joinid"]]
    assert np.allclose(leaky.var["means"], rows.mean(axis=0))


@given(st.integers(1, 2100), st.integers(2, 40), st.floats(0.05, 0.9), st.integers(1, 5), st.integers(0, 3))
def test_masks_are_sorted_sets_of_the_stated_size(cells, genes, share, per_cell, seed):
    masking = Masking(share=share, per_cell=per_cell, seed=seed)
    masks = panel.draw_masks(cells, genes, masking, 1)
    assert masks.shape == (cells, per_cell, max(1, round(share * genes)))
    assert (np.diff(masks, axis=-1) > 0).all() and masks.min() >= 0 and masks.max() < genes
    fewer = panel.draw_masks(max(1, cells // 2), genes, masking, 1)
    assert np.array_equal(fewer, masks[: len(fewer)])  # the masks of a cell do not depend on how many follow it


def test_genes_of_equal_means_are_chosen_and_the_same_ones_again():
    counts = np.tile(np.eye(20, dtype=np.float32), (5, 4))  # 80 genes of one mean: the plain fit is singular
    counts[:, :40] *= 2
    found = panel.variability(sparse.csr_matrix(counts))
    assert np.isfinite(found[["means", "variances", "variances_norm"]].to_numpy()).all()
    assert found.equals(panel.variability(sparse.csr_matrix(counts)))


def test_another_number_is_needed_when_a_panel_changes(rich):
    """Whoever changes these raises PANEL_NUMERICS (or SIMULATE_NUMERICS) in lib/io.py, and writes the new ones here."""
    genes, counts, x = GOLDEN[io.SIMULATE_NUMERICS, io.PANEL_NUMERICS]
    assert [int(name[-4:]) for name in rich.var_names] == genes
    assert int(rich.layers["counts"].sum()) == counts
    assert float(rich.X.sum(dtype=np.float64)) == pytest.approx(x, rel=1e-6)


@pytest.mark.parametrize("changed, said", [
    ({"regimes": {"data-rich": {"genes": 121, "cells": 500}}}, "121 genes are asked for"),
    ({"regimes": {"data-rich": {"genes": 20, "cells": 601}}}, "60 cells are asked for validation, which has"),
    ({"split": {"by": "batch"}}, "no obs column 'batch'; it has soma_joinid, dataset_id"),
    ({"split": {"by": "assay"}}, "form 1, of 12 donor"),
])  # fmt: skip
def test_a_panel_that_cannot_be_made_is_refused(rich, study_file, changed, said):
    study = study_file(**changed)
    io.remove(study.folder("data-rich"))
    with pytest.raises(InputError) as caught:
        panel.build(study, "data-rich")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in study.folder("data-rich").iterdir()] == [".panel.lock"]


def test_thinned_cells_are_the_same_cells_with_fewer_counts_and_an_exact_floor_of_their_own(study_file):
    regimes = {"whole": {"genes": 24, "cells": 2000}, "quarter": {"genes": 24, "cells": 2000, "thin": 0.25}}
    study = study_file(census={"simulate": TINY["census"]["simulate"] | {"cells": 3000}}, regimes=regimes)
    whole, quarter = (panel.read(panel.build(study, name)) for name in regimes)
    assert whole.obs_names.equals(quarter.obs_names) and whole.var_names.equals(quarter.var_names)
    assert np.array_equal(quarter.obs["total_counts"], whole.obs["total_counts"] / 4)
    before, after = whole.layers["counts"], quarter.layers["counts"]
    assert (after <= before).all() and after.sum() == pytest.approx(before.sum() / 4, rel=0.01)
    truth = simulate.truth(study.census.simulate)
    deep, shallow = (baselines.measure(each, truth)["validation"] for each in (whole, quarter))
    assert deep["bayes_bits"] > shallow["bayes_bits"] + 0.5  # fewer counts, less to know
    for losses in (deep, shallow):
        assert abs(losses["bayes_realised_mse"] - losses["bayes_mse"]) < 4 * losses["bayes_realised_mse_se"]


def test_the_library_of_a_measured_cell_is_thinned_with_its_genes():
    counts = np.random.default_rng(0).poisson(3.0, (400, 20))
    thin, library = panel.thinned(counts, counts.sum(1) + 1000.0, 0.5, 0, simulated=False)
    assert (library >= thin.sum(1)).all() and library.mean() == pytest.approx(530, rel=0.01)


def test_a_regime_with_a_split_seed_holds_out_other_donors_and_only_there(study_file):
    regimes = {"first": {"genes": 24, "cells": 500}, "second": {"genes": 24, "cells": 500, "split_seed": 5}}
    study = study_file(regimes=regimes)
    tables = [panel.read(panel.build(study, name)).obs for name in regimes]
    first, second = (set(obs.loc[obs["split"] == "test", "donor_id"]) for obs in tables)
    assert first and first != second
    with pytest.raises(InputError, match="split_seed"):
        study_file("leaky", regimes=regimes, genes_from="first")


REGIMES = {"rich": {"genes": 24, "cells": 300}, "limited": {"genes": 24, "cells": 40}}
SAME = {"regimes": REGIMES, "split": {"validation": 0.1, "test": 0.1, "cells": 30}, "genes_from": "rich"}
"""Two regimes that are judged on the same cells, genes and masks."""


def built(study, regime):
    return panel.read(panel.build(study, regime))


def held(adata, name):
    return adata[adata.obs["split"] == name]


def donors(adata, name="train"):
    return set(held(adata, name).obs["donor_id"])


def test_the_genes_are_those_that_the_named_regime_would_have_alone(study_file):
    alone = study_file(**SAME | {"genes_from": None})
    own = {regime: built(alone, regime).var_names.tolist() for regime in SAME["regimes"]}
    assert own["rich"] != own["limited"]
    for source, regime in itertools.product(SAME["regimes"], repeat=2):
        adata = built(study_file(**SAME | {"genes_from": source}), regime)
        assert adata.var_names.tolist() == own[source]
        assert adata.uns["provenance"]["statistics_cells"] == SAME["regimes"][source]["cells"]


def test_shared_genes_are_measured_in_the_data_sets_of_every_regime(h5ad, study_file, counts):
    """The small regime draws from one data set, and would choose genes that the other has not measured."""
    names = np.array([f"G{gene}" for gene in range(30)])
    h5ad("a", counts[:, :25], genes=names[:25], dataset_id="x")
    h5ad("b", counts[:, 5:] + 1, genes=names[5:], dataset_id="y", donors=tuple("EFGH"))
    study = study_file(
        census={"h5ad": ["input/*.h5ad"], "genes": {"pool": "union"}},
        regimes={"rich": {"genes": 15, "cells": 200}, "limited": {"genes": 15, "cells": 20}},
        split={"validation": 0.2, "test": 0.2, "cells": 20}, genes_from="limited",
    )  # fmt: skip
    rich, limited = built(study, "rich"), built(study, "limited")
    assert rich.var_names.tolist() == limited.var_names.tolist()
    assert set(rich.var_names) <= set(names[5:25])


def test_cells_of_few_donors_are_drawn_from_them_alone_and_the_held_out_cells_stay(study_file):
    regimes = {f"of-{n}": {"genes": 24, "cells": 90, "donors": n} for n in (2, 4, 8)}
    regimes["of-all"] = {"genes": 24, "cells": 90}
    study = study_file(**SAME | {"regimes": regimes, "genes_from": "of-all"})
    panels = {name: built(study, name) for name in regimes}
    assert [len(donors(adata)) for adata in panels.values()] == [2, 4, 8, 10]
    assert donors(panels["of-2"]) < donors(panels["of-4"]) < donors(panels["of-8"]) < donors(panels["of-all"])
    for adata in panels.values():
        assert (adata.obs["split"] == "train").sum() == 90
        for name in ("validation", "test"):
            assert held(adata, name).obs_names.tolist() == held(panels["of-all"], name).obs_names.tolist()
    assert len(panels["of-4"].uns["provenance"]["split"]["donors"]["train"]) == 4


def test_every_held_out_split_is_the_same_cells_in_every_regime_and_each_has_masks_of_its_own(study_file):
    eight_data_sets = {"simulate": TINY["census"]["simulate"] | {"donors": 60}}
    held_out = {"validation": 0.1, "test": 0.1, "dataset": 0.15, "random": 0.1, "cells": 20}
    regimes = {"rich": {"genes": 24, "cells": 200}, "limited": {"genes": 24, "cells": 40}}
    four = study_file(census=eight_data_sets, split=held_out, regimes=regimes, genes_from="rich")
    rich, limited = (panel.arrays(built(four, regime)) for regime in ("rich", "limited"))
    assert list(rich.held) == list(split.SPLITS[1:]) == list(limited.held) and set(rich.masks) == set(rich.held)
    for name in split.SPLITS[1:]:
        for values in ("x", "counts"):
            one, other = (getattr(panel_of, values)[panel_of.held[name]] for panel_of in (rich, limited))
            assert np.array_equal(one, other)
        assert np.array_equal(rich.masks[name], limited.masks[name]) and len(rich.masks[name]) == 20
    assert len({masks.tobytes() for masks in rich.masks.values()}) == 4
    assert list(baselines.measure(built(four, "limited"))) == list(split.SPLITS[1:])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), min_size=20, max_size=150),
    st.none() | st.floats(0.05, 0.3), st.none() | st.floats(0.05, 0.3), st.integers(0, 9),
)  # fmt: skip
def test_no_donor_and_no_data_set_that_is_set_aside_is_in_two_splits(pairs, dataset, random, seed):
    cells = pd.DataFrame(pairs, columns=["dataset_id", "donor_id"]).astype(str)
    try:
        side = split.assign(cells, Split(validation=0.1, test=0.1, dataset=dataset, random=random, seed=seed))
    except InputError as error:
        assert "split" in str(error)
        return
    names = np.array(split.SPLITS)[side]
    together = pd.Series(np.where(names == "test_random", "train", names))
    assert together.groupby(cells["donor_id"]).nunique().max() == 1
    assert (together == "test_dataset").groupby(cells["dataset_id"]).nunique().max() == 1
    assert {"train", "validation", "test"} <= set(together)
    assert (dataset is not None) == ("test_dataset" in names)
    asked = round((random or 0) * len(cells))
    assert (names == "test_random").sum() == min(asked, (side % 4 == 0).sum())


def test_the_benchmark_of_panels_builds_the_same_panel_by_both_routes(project, monkeypatch, capsys):
    from benchmarks import panel as benchmark

    for name, value in {"PANEL": 12, "ROUNDS": 1, "SMALLEST": 300, "GROWTH_GENES": 30}.items():
        monkeypatch.setattr(benchmark, name, value)

    def run(part, cells, genes):
        benchmark.PARTS[part](benchmark.study(cells, genes))
        return {"seconds": 1.0, "memory": 1.0}

    benchmark.against_plain(run, 400, 60)  # which compares the panels
    benchmark.growth(run, 300)
    assert capsys.readouterr().out.count("1.0x") == 2
