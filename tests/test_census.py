"""A local Census: what is written comes back through the unmodified client, and is built once."""

import os

import cellxgene_census
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from lib import io
from lib.data import census
from lib.io import InputError

HUMAN = "homo_sapiens"


def test_counts_and_categories_come_back_through_the_client_and_survive_a_move(tmp_path, counts):
    donors, datasets = np.repeat(["B", "A", "C"], [90, 60, 50]), np.repeat(["y", "x"], 100)
    obs = pd.DataFrame({"donor_id": donors, "dataset_id": datasets})
    genes = pd.DataFrame({"feature_id": [f"ENSG{gene:011d}" for gene in range(counts.shape[1])]})
    pieces = [slice(0, 1), slice(1, 77), slice(77, 200)]
    written = ((obs.iloc[rows], sparse.csr_matrix(counts[rows])) for rows in pieces)
    census.write(tmp_path / "soma", genes.assign(feature_name="same"), written, {})
    (tmp_path / "soma").rename(tmp_path / "elsewhere")
    with cellxgene_census.open_soma(uri=str(tmp_path / "elsewhere")) as collection:
        adata = cellxgene_census.get_anndata(collection, "Homo sapiens", var_coords=list(range(4, 20)))
        var = cellxgene_census.get_var(collection, HUMAN)
        obs = cellxgene_census.get_obs(collection, HUMAN, value_filter="donor_id == 'A' and dataset_id == 'x'")
    assert np.array_equal(adata.X.toarray(), counts[:, 4:20])
    assert adata.obs["raw_sum"].tolist() == counts.sum(axis=1).tolist()
    assert adata.obs["nnz"].tolist() == (counts > 0).sum(axis=1).tolist()
    assert var["nnz"].tolist() == (counts > 0).sum(axis=0).tolist()
    assert set(var["n_measured_obs"]) == {200}
    assert obs["soma_joinid"].tolist() == list(range(100, 150)) and obs["donor_id"].unique().tolist() == ["A"]


def test_a_census_is_built_again_only_when_what_made_it_changed(tiny, study_file, h5ad, counts):
    folder = io.ROOT / census.prepare(tiny)
    made = folder.stat().st_ino
    census.prepare(tiny)
    assert folder.stat().st_ino == made
    simulate = {**tiny.census.simulate.model_dump(), "seed": 5}
    census.prepare(study_file(census={"simulate": simulate}))
    assert folder.stat().st_ino != made
    with census.open_census(tiny) as collection:  # opening builds it back
        assert census.describe(collection)["simulated"]
    path, study = h5ad("one", counts), study_file(census={"h5ad": ["input/*.h5ad"]})
    for cells in (200, 100):
        h5ad("one", counts[:cells])
        os.utime(path, ns=(0, cells))
        with census.open_census(study) as collection:
            assert census.describe(collection)["cells"] == cells


def unavailable(study):
    with pytest.raises(InputError) as caught, census.open_census(study):
        pass
    return str(caught.value)


def test_what_is_no_census_is_refused(study_file, project):
    import tiledbsoma

    said = unavailable(study_file(census={"uri": "data/absent"}))
    assert "data/absent" in said and "census.uri" in said
    tiledbsoma.Collection.create(str(project / "other")).close()
    assert "no readable Census of human cells at other" in unavailable(study_file(census={"uri": "other"}))


def test_named_columns_are_read_as_donor_data_set_and_tissue(h5ad, study_file, counts):
    columns = {"patient": np.resize([1, 2, 3], 200), "batch": np.repeat(["p", "q"], 100), "organ": "skin"}
    h5ad("a", counts, donors=None, **columns, is_primary_data=np.arange(200) > 49)
    study = study_file(census={"h5ad": ["input/a.h5ad"], "donor": "patient", "dataset": "batch", "tissue": "organ"})
    with census.open_census(study) as collection:
        obs = cellxgene_census.get_obs(collection, HUMAN, value_filter="is_primary_data == True and donor_id == '2'")
    assert len(obs) == 50 and set(obs["tissue"]) == {"skin"} and obs["dataset_id"].tolist() == ["p"] * 16 + ["q"] * 34
