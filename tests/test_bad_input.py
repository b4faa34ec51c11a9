"""Bad input ends in one clear sentence, and leaves nothing half-written behind."""

import importlib.util
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from lib import census, panel, params
from lib.errors import InputError


def refused(work, *said):
    """Run `work`; it must end in one sentence that says all of `said`."""
    with pytest.raises(InputError) as caught:
        work()
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".") and len(sentence) < 500, sentence
    for part in said:
        assert part in sentence, sentence
    return sentence


@pytest.fixture
def refused_file(study_file, project):
    """Build the Census of input/*.h5ad; it must be refused with a sentence, naming no place on this machine."""

    def check(*said, **settings):
        study = study_file(census={"h5ad": ["input/*.h5ad"], **settings})
        sentence = refused(lambda: census.prepare(study), *said)
        assert str(project) not in sentence
        left = [path.name for path in study.data.iterdir()] if study.data.exists() else []
        assert set(left) <= {".census.lock"}

    return check


def with_value(counts, value):
    counts = counts.copy()
    counts[150, 7] = value
    return counts


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.5, "has 0.5, which is not a whole number"),
        (-1, "has -1, which is negative"),
        (np.nan, "has nan, which is not a number to count with"),
        (np.inf, "has inf, which is not a number to count with"),
        (2**25, "which is above 16777216"),
    ],
)
@pytest.mark.parametrize("layout", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_a_value_that_is_no_count_is_found_wherever_it_is(h5ad, refused_file, counts, value, said, layout):
    path = h5ad("good", counts)
    path = h5ad("bad", counts)
    adata = anndata.read_h5ad(path)
    adata.X = layout(with_value(counts, value))
    adata.write_h5ad(path)
    refused_file("input/bad.h5ad: cell 150, gene G7", said, "raw UMI counts")


def test_normalised_values_are_recognised(h5ad, refused_file, counts):
    h5ad("bad", np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4))
    refused_file("input/bad.h5ad: cell 0", "as in normalised data")


def test_scaled_values_of_scanpys_own_data_set_are_recognised(refused_file, project):
    shipped = Path(importlib.util.find_spec("scanpy").origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
    (project / "input").mkdir()
    (project / "input" / "pbmc68k_reduced.h5ad").write_bytes(shipped.read_bytes())
    refused_file("input/pbmc68k_reduced.h5ad: cell 0, gene", "raw UMI counts")


def test_that_data_set_is_also_recognised_when_written_again(refused_file, project):
    import scanpy

    adata = scanpy.datasets.pbmc68k_reduced()
    (project / "input").mkdir()
    adata.write_h5ad(project / "input" / "again.h5ad")
    refused_file("input/again.h5ad: cell 0, gene", "raw UMI counts", donor="bulk_labels")


def test_repeated_gene_names(h5ad, refused_file, counts):
    h5ad("bad", counts, genes=["CD8A"] * 3 + [f"G{gene}" for gene in range(27)])
    refused_file("input/bad.h5ad names gene CD8A more than once", "var_names_make_unique")


def test_an_empty_file(h5ad, refused_file, counts):
    h5ad("bad", counts).write_bytes(b"")
    refused_file("input/bad.h5ad is an empty file (0 bytes)")


def test_a_file_that_is_no_h5ad(h5ad, refused_file, counts):
    h5ad("bad", counts).write_text("gene,cell\n1,2\n")
    refused_file("input/bad.h5ad is not an .h5ad file")


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file(h5ad, refused_file, counts, kept):
    path = h5ad("bad", counts)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    refused_file("input/bad.h5ad cannot be read", "copy or download it again")


def test_a_file_damaged_inside_its_counts(h5ad, refused_file, counts):
    path = h5ad("bad", counts)
    adata = anndata.read_h5ad(path)
    adata.write_h5ad(path, compression="gzip")
    with h5py.File(path) as h5:
        start = h5["X/data"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[start + 40 : start + 80] = b"\0" * 40
    path.write_bytes(content)
    refused_file("input/bad.h5ad cannot be read")


def test_gene_numbers_beyond_the_gene_table(h5ad, refused_file, counts):
    path = h5ad("bad", counts)
    with h5py.File(path, "r+") as h5:
        h5["X/indices"][12] = 30
    refused_file("input/bad.h5ad cannot be read")


def test_a_folder_in_place_of_a_file(refused_file, project):
    (project / "input" / "bad.h5ad").mkdir(parents=True)
    refused_file("input/bad.h5ad is not an .h5ad file")


@pytest.mark.parametrize("cells, genes", [(0, 30), (200, 0)])
def test_a_file_without_cells_or_genes(h5ad, refused_file, counts, cells, genes):
    h5ad("bad", counts[:cells, :genes], donors=("A",), genes=[f"G{gene}" for gene in range(genes)])
    refused_file(f"input/bad.h5ad holds {cells} cells x {genes} genes")


def test_a_file_without_counts(h5ad, refused_file, counts):
    with h5py.File(h5ad("bad", counts), "r+") as h5:
        del h5["X"]
    refused_file("input/bad.h5ad has no X")


def test_a_missing_donor_column_names_those_that_are_there(h5ad, refused_file, counts):
    h5ad("bad", counts, donors=None, patient="x", organ="lung")
    refused_file("input/bad.h5ad has no obs column 'donor_id' (it has: organ, patient)", "census.donor")


@pytest.mark.parametrize("setting", ["donor", "dataset", "tissue"])
def test_a_named_column_must_be_there(h5ad, refused_file, counts, setting):
    h5ad("bad", counts)
    refused_file("no obs column 'misspelt'", f"census.{setting}", **{setting: "misspelt"})


def test_cells_without_a_donor(h5ad, refused_file, counts):
    h5ad("bad", counts, donors=None, donor_id=pd.Categorical(["A", None] * 100))
    refused_file("input/bad.h5ad: obs column 'donor_id' is empty for 100 cells")


def test_primary_data_given_as_text(h5ad, refused_file, counts):
    h5ad("bad", counts, is_primary_data="False")
    refused_file("input/bad.h5ad: obs column is_primary_data", "not booleans")


def test_files_that_share_no_gene(h5ad, refused_file, counts):
    h5ad("a", counts)
    h5ad("b", counts, genes=[f"ENSG{gene}" for gene in range(30)])
    refused_file("input/b.h5ad shares no gene with the files before it (it has ENSG0, they have G0)")


def test_a_glob_that_matches_nothing(study_file, project):
    study = study_file(census={"h5ad": ["nowhere/*.h5ad"]})
    refused(lambda: census.prepare(study), "'nowhere/*.h5ad' matches no file")
    assert not study.data.exists()


@pytest.mark.parametrize("target", ["gone.h5ad", "bad.h5ad"])
def test_a_link_to_nothing_or_to_itself(refused_file, project, target):
    (project / "input").mkdir()
    (project / "input" / "bad.h5ad").symlink_to(target)
    refused_file("input/bad.h5ad is a link to a file that is not there")


def test_labels_of_fewer_cells_than_counts(h5ad, refused_file, counts):
    with h5py.File(h5ad("bad", counts), "r+") as h5:
        for key in ("_index", "donor_id/codes"):
            values = h5["obs"][key][:150]
            attributes = dict(h5["obs"][key].attrs)
            del h5["obs"][key]
            h5["obs"][key] = values
            h5["obs"][key].attrs.update(attributes)
    refused_file("input/bad.h5ad: X and obs have different numbers of cells")


def test_a_good_file_beside_a_bad_one_is_not_half_used(h5ad, refused_file, counts):
    h5ad("a", counts)
    h5ad("b", with_value(counts, -3))
    refused_file("input/b.h5ad", "negative")


@pytest.mark.parametrize(
    ("donors", "regime", "said"),
    [
        (("A",), {"genes": 10, "cells": 100}, "form 1, of 1 donor"),
        (("A", "B"), {"genes": 10, "cells": 100}, "form 2, of 2 donor"),
        (tuple("ABCDEFGH"), {"genes": 31, "cells": 100}, "31 genes are asked for, and 30"),
        (tuple("ABCDEFGH"), {"genes": 10, "cells": 201}, "201 cells are asked for, and 200"),
    ],
)
def test_too_little_for_what_is_asked(h5ad, study_file, counts, donors, regime, said):
    h5ad("small", counts, donors=donors)
    study = study_file(census={"h5ad": ["input/small.h5ad"]}, regimes={"only": regime})
    refused(lambda: panel.build(study, "only"), said)
    assert [path.name for path in study.folder("only").iterdir()] == [".panel.lock"]


def test_a_census_that_is_not_there(study_file):
    study = study_file(census={"uri": "data/nowhere"})
    refused(lambda: panel.build(study, "data-rich"), "no readable Census at data/nowhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sises: [XS]", "sises is not a known key (did you mean sizes?)"),
        ("sizes: [{d: 10, heads: 3, layers: 1}]", "d = 10 is not a multiple of heads = 3"),
        ("sizes: [SX]", "'SX' is not a size"),
        ("seeds: []", "seeds"),
        ("census: {uri: a, version: 2025-11-08}", "exactly one of simulate, version, uri, h5ad or files"),
        ("census: {version: latest}", "not a dated release"),
        ("census: {version: stable}", "not a dated release"),
        ("census: {simulate: {cells: 1000, donor: 3}}", "did you mean donors?"),
    ],
)
def test_a_study_file_with_a_mistake(project, text, said):
    good = {"census": "census: {uri: a}", "regimes": "regimes: {r: {genes: 10, cells: 20}}", "sizes": "sizes: [XS]"}
    lines = good | {"seeds": "seeds: [1]"} | {text.split(":")[0]: text}
    (project / "params" / "bad.yaml").write_text("\n".join(lines.values()))
    refused(lambda: params.load("bad"), "params/bad.yaml", said)
