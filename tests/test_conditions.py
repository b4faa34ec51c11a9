"""What may differ between the regimes of a study, on panels: genes from one regime, donors, further held-out splits."""

import itertools

import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data import panel, simulate, split
from lib.io import InputError
from lib.study import Split
from lib.train import baselines, loop

SAME = {
    "regimes": {"rich": {"genes": 24, "cells": 300}, "limited": {"genes": 24, "cells": 40}},
    "split": {"validation": 0.1, "test": 0.1, "cells": 30},
    "genes_from": "rich",
}
"""Two regimes that are judged on the same cells, genes and masks."""
MANY = {"simulate": TINY["census"]["simulate"] | {"donors": 60}}
"""Eight data sets of several donors each."""
SPLITS = {"validation": 0.1, "test": 0.1, "dataset": 0.15, "random": 0.1}


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


@pytest.fixture
def four(study_file):
    """A study with all four held-out splits, 20 cells each."""
    regimes = {"rich": {"genes": 24, "cells": 200}, "limited": {"genes": 24, "cells": 40}}
    return study_file(census=MANY, split=SPLITS | {"cells": 20}, regimes=regimes, genes_from="rich")


def test_every_held_out_split_is_the_same_cells_in_every_regime_and_each_has_masks_of_its_own(four):
    rich, limited = (panel.arrays(built(four, regime)) for regime in ("rich", "limited"))
    assert list(rich.held) == list(split.SPLITS[1:]) == list(limited.held) and set(rich.masks) == set(rich.held)
    for name in split.SPLITS[1:]:
        for values in ("x", "counts"):
            one, other = (getattr(panel_of, values)[panel_of.held[name]] for panel_of in (rich, limited))
            assert np.array_equal(one, other)
        assert np.array_equal(rich.masks[name], limited.masks[name]) and len(rich.masks[name]) == 20
    assert len({masks.tobytes() for masks in rich.masks.values()}) == 4


def test_without_further_splits_cells_are_drawn_as_they_always_were(tiny):
    """Golden values: who is held out, and the first cells of each split, of the study of the tests."""
    obs = built(tiny, "data-rich").obs
    first = {name: ids.head(4).tolist() for name, ids in obs.groupby("split", observed=False)["soma_joinid"]}
    assert first == {"train": [0, 2, 3, 4], "validation": [400, 401, 402, 403], "test": [550, 551, 552, 553]}


def test_training_and_baselines_measure_every_held_out_split(four, tmp_path):
    adata = built(four, "limited")
    found = baselines.measure(adata, simulate.truth(four.census.simulate))
    assert list(found) == list(split.SPLITS[1:])
    record = loop.train(panel.arrays(adata), four.size("XXS"), 7, four.training("limited"), tmp_path)
    for name in split.SPLITS[1:]:
        assert found[name]["bayes_mse"] > 0 and record[f"{name}_mse"] > 0 and record[f"{name}_mse_se"] > 0


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
