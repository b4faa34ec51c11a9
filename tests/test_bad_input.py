"""Bad input ends in one clear sentence, and leaves nothing half-written behind."""

import gzip
import importlib.util
import os
import resource
import signal
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import bases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from lib import io
from lib.data import census, own, panel
from lib.io import InputError
from lib.study import Census


def is_sentence(text):
    return "\n" not in text and text.endswith(".") and len(text) < 500


def refused(work, *said):
    """Run `work`; it must end in one sentence that says all of `said`."""
    with pytest.raises(InputError) as caught:
        work()
    sentence = str(caught.value)
    assert is_sentence(sentence), sentence
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


@pytest.fixture
def refused_10x(study_file, project):
    """The same for paths and entries of census.files; by default for all that is in input/, of one donor."""

    def check(*said, files=None, **settings):
        given = [{"path": "input/*", "donor_id": "A"}] if files is None else files
        study = study_file(census={"files": given, **settings})
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


# ---------------------------------------------------------------- more of .h5ad


def test_a_pipe_in_place_of_a_file(refused_file, project):
    (project / "input").mkdir()
    os.mkfifo(project / "input" / "bad.h5ad")
    refused_file("input/bad.h5ad is neither a file nor a folder")


@pytest.mark.parametrize("dtype", ["S1", np.complex64])
def test_a_matrix_that_holds_no_numbers(h5ad, refused_file, counts, dtype):
    with h5py.File(h5ad("bad", counts), "r+") as h5:
        values = h5["X/data"][:].astype(dtype)
        del h5["X/data"]
        h5["X/data"] = values
    refused_file("input/bad.h5ad: its matrix (X) holds", "not numbers")


def test_a_file_of_zeros_alone(h5ad, refused_file, counts):
    h5ad("bad", np.zeros_like(counts))
    refused_file("input/bad.h5ad holds 200 cells and not a single count")


def test_droplets_that_were_not_filtered(h5ad, refused_file, counts):
    counts[:101] = 0
    h5ad("bad", counts)
    refused_file("input/bad.h5ad: 101 of 200 cells have no count at all", "use the filtered matrix")


def test_repeated_cell_names(h5ad, refused_file, counts):
    path = h5ad("bad", counts)
    adata = anndata.read_h5ad(path)
    adata.obs_names = [*adata.obs_names[:199], "bad-3"]
    adata.write_h5ad(path)
    refused_file("input/bad.h5ad names cell bad-3 more than once", "obs_names_make_unique")


@pytest.mark.parametrize("layout", [sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize(("place", "value"), [("indptr", 10**9), ("indptr", -1), ("indices", 10**6), ("indices", -1)])
def test_a_matrix_whose_parts_do_not_fit(h5ad, refused_file, counts, layout, place, value):
    with h5py.File(h5ad("bad", layout(counts)), "r+") as h5:
        h5["X"][place][5] = value
    refused_file("input/bad.h5ad cannot be read", "copy or download it again")


def test_genes_that_are_called_by_number(h5ad, refused_file, counts):
    h5ad("bad", counts, genes=[str(gene) for gene in range(30)])
    refused_file("input/bad.h5ad: gene 0 (of 30 like it) is called '0', which names no gene")


def test_genes_of_two_species(h5ad, refused_file, counts):
    h5ad("bad", counts, genes=[f"{kind}{gene:011d}" for kind in ("ENSG", "ENSMUSG") for gene in range(15)])
    refused_file("input/bad.h5ad has genes of 2 species (ENSG, ENSMUSG...)")


def test_versions_of_one_gene_are_one_gene_twice(h5ad, refused_file, counts):
    h5ad("bad", counts, genes=["ENSG01.1", "ENSG01.2", *(f"ENSG1{gene}" for gene in range(28))])
    refused_file("input/bad.h5ad names gene ENSG01.2 more than once", "{genes: {duplicates: sum}}")


def test_labels_of_another_length_than_the_cells(h5ad, refused_file, counts):
    with h5py.File(h5ad("bad", counts, tissue="lung"), "r+") as h5:
        codes = h5["obs/tissue/codes"][:100]
        del h5["obs/tissue/codes"]
        h5["obs/tissue/codes"] = codes
        h5["obs/tissue/codes"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    refused_file("input/bad.h5ad")


def test_two_files_that_would_be_one_data_set(h5ad, refused_10x, counts, project):
    for folder in ("one", "two"):
        (project / "input" / folder).mkdir(parents=True)
        h5ad("same", counts).rename(project / "input" / folder / "same.h5ad")
    refused_10x("input/one/same.h5ad and input/two/same.h5ad would both be called data set same", files=["input/*/*"])


def test_a_cell_that_is_in_two_files(h5ad, refused_file, counts):
    h5ad("a", counts)
    adata = anndata.read_h5ad(h5ad("b", counts + 1))
    adata = anndata.concat([adata, anndata.read_h5ad(h5ad("a", counts))[3:5]])
    adata.write_h5ad(h5ad("b", counts))
    refused_file("input/b.h5ad: cell a-3 has the same counts as cell a-3 of input/a.h5ad (and 1 more", "leave one out")


def test_a_file_that_may_not_be_read(h5ad, counts, monkeypatch):
    path = h5ad("bad", counts)
    path.chmod(0)
    if os.geteuid() == 0:  # root may read everything, and is told so here
        monkeypatch.setattr(os, "access", lambda *_: False)
    refused(lambda: own.survey(Census(h5ad=["input/bad.h5ad"])), "input/bad.h5ad may not be read")


def test_links_that_lead_in_a_circle_name_each_file_once(h5ad, counts, project):
    path = h5ad("good", counts)
    (path.parent / "again").symlink_to(path.parent)
    assert len(own.survey(Census(h5ad=["input/**/*.h5ad"])).sources) == 1


# ---------------------------------------------------------------- 10x output


def test_10x_output_without_a_donor(tenx, refused_10x, counts):
    tenx("bad", counts)
    refused_10x("input/bad.h5 names no donor", "{path: ..., donor_id: ...} under census.files", files=["input/*"])


def test_an_h5_file_that_is_no_10x_file(refused_10x, project):
    (project / "input").mkdir()
    with h5py.File(project / "input" / "bad.h5", "w") as h5:
        h5["other"] = 1
    refused_10x("input/bad.h5 has no X and no obs and no var")


def test_a_kind_of_file_that_is_not_known(refused_10x, project):
    (project / "input").mkdir()
    (project / "input" / "counts.txt").write_text("gene 1 2 3")
    refused_10x("input/counts.txt is not a known kind of file", "give an .h5ad file, or 10x output")


def test_a_10x_file_of_two_genomes(tenx, refused_10x, counts):
    with h5py.File(tenx("bad", counts, "v2"), "r+") as h5:
        h5.copy("GRCh38", "mm10")
    refused_10x("input/bad.h5 has cells of 2 genomes (GRCh38, mm10)")


def test_a_10x_file_of_antibodies_alone(tenx, refused_10x, counts):
    tenx("bad", counts, types=["Antibody Capture"] * 30)
    refused_10x("input/bad.h5 has no feature of type 'Gene Expression' (it has 'Antibody Capture')")


@pytest.mark.parametrize("layout", ["v2", "v3", "mtx", "mtx.gz"])
def test_repeated_barcodes(tenx, refused_10x, counts, layout):
    barcodes = bases(200)
    tenx("bad", counts, layout, barcodes=[*barcodes[:199], barcodes[7]])
    refused_10x(f"names cell {barcodes[7]} more than once")


@pytest.mark.parametrize("layout", ["v2", "v3"])
@pytest.mark.parametrize("lost", ["barcodes", "indptr", "data", "shape"])
def test_a_10x_file_that_lost_a_part(tenx, refused_10x, counts, layout, lost):
    with h5py.File(tenx("bad", counts, layout), "r+") as h5:
        group = h5["matrix" if layout == "v3" else "GRCh38"]
        values = group[lost][:-1]
        del group[lost]
        group[lost] = values
    refused_10x("input/bad.h5")


@pytest.mark.parametrize(("value", "said"), [(-4, "negative"), (2**25, "above 16777216")])
@pytest.mark.parametrize("layout", ["v2", "v3", "mtx", "mtx.gz"])
def test_a_value_that_is_no_count_in_10x_output(tenx, refused_10x, counts, layout, value, said):
    tenx("bad", with_value(counts, value), layout)
    refused_10x("input/bad", "cell 150, gene ENSG00000000007", said)


# ---------------------------------------------------------------- a matrix as text


@pytest.fixture
def folder(tenx, counts):
    """A good 10x folder, input/bad."""
    return tenx("bad", counts, "mtx")


def change(path, old, new, count=1):
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, count))


@pytest.mark.parametrize("part", ["matrix.mtx", "barcodes.tsv", "features.tsv"])
def test_a_10x_folder_that_lacks_a_file(folder, refused_10x, part):
    (folder / part).unlink()
    refused_10x("input/bad is no whole 10x matrix: there is no", f"{part}[.gz]")


def test_a_10x_folder_with_two_matrices(folder, refused_10x):
    (folder / "matrix.mtx.gz").write_bytes(b"")
    refused_10x("input/bad has both matrix.mtx and matrix.mtx.gz")


@pytest.mark.parametrize("part", ["matrix.mtx", "barcodes.tsv", "features.tsv"])
def test_an_empty_file_in_a_10x_folder(folder, refused_10x, part):
    (folder / part).write_bytes(b"")
    refused_10x(f"input/bad/{part} is an empty file (0 bytes)")


@pytest.mark.parametrize("part", ["barcodes.tsv", "features.tsv"])
def test_text_in_another_encoding(folder, refused_10x, part):
    (folder / part).write_bytes("é".encode("latin-1") + (folder / part).read_bytes())
    refused_10x(f"input/bad/{part} is not UTF-8 text (byte b'\\xe9')")


@pytest.mark.parametrize(("part", "kind"), [("barcodes.tsv", "cells"), ("features.tsv", "genes")])
def test_fewer_names_than_the_matrix_has(folder, refused_10x, part, kind):
    lines = (folder / part).read_text().splitlines()
    (folder / part).write_text("\n".join(lines[:-1]))
    refused_10x(f"input/bad: matrix.mtx and {part} have different numbers of {kind}")


def test_a_matrix_with_its_cells_down_the_rows(folder, refused_10x):
    change(folder / "matrix.mtx", "30 200 ", "200 30 ")
    refused_10x("input/bad: matrix.mtx and barcodes.tsv have different numbers of cells (30 and 200); it is transposed")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("%%MatrixMarket", "%MatrixMarket", "does not begin with '%%MatrixMarket matrix coordinate'"),
        ("coordinate", "array", "does not begin with"),
        ("general", "symmetric", "does not begin with"),
        ("integer", "pattern", "holds pattern values"),
        ("integer", "complex", "holds complex values"),
        ("30 200 ", "30 x ", "line 3: '30 x"),
        ("30 200 ", "", "line 3"),
        ("\n1 1 2\n", "\n0 1 2\n", "line 4: gene 0 is outside the 1 to 30"),
        ("\n1 1 2\n", "\n31 1 2\n", "line 4: gene 31 is outside the 1 to 30"),
        ("\n1 1 2\n", "\n1 201 2\n", "line 4: cell 201 is outside the 1 to 200"),
        ("\n1 1 2\n", "\n1 -1 2\n", "line 4: cell -1 is outside the 1 to 200"),
        ("\n1 1 2\n", "\n1 1.5 2\n", "line 4: '1 1.5 2' is not 'gene cell count'"),
        ("\n1 1 2\n", "\n99999999999999999999 1 2\n", "line 4"),
        ("\n1 1 2\n", "\none 1 2\n", "line 4: 'one 1 2' is not 'gene cell count'"),
        ("\n1 1 2\n", "\n1 1 two\n", "line 4: '1 1 two' is not 'gene cell count'"),
        ("\n1 1 2\n", "\n1 1 2 4\n", "line 4: '1 1 2 4' is not 'gene cell count'"),
        ("\n1 1 2\n", "\n1 1\n", "gene ENSG00000000000 has nan"),
        ("\n1 1 2\n", "\n1 1 nan\n", "gene ENSG00000000000 has nan"),
        ("\n1 1 2\n", "\n1 1 inf\n", "gene ENSG00000000000 has inf"),
        ("\n1 1 2\n", "\n1 1 0.5\n", "gene ENSG00000000000 has 0.5, which is not a whole number"),
        ("\n1 1 2\n", "\n1 1 1e300\n", "gene ENSG00000000000 has 1e+300, which is above"),
        ("\n1 1 2\n", "\n1 1 2\n1 1 2\n", "entries and its header says"),
        ("\n1 1 2\n", "\n", "entries and its header says"),
        ("\n1 1 2\n2 1 7\n", "\n1 1 2\n1 1 7\n", "gives the count of one cell and gene twice"),
    ],
)
def test_a_text_matrix_with_a_mistake(folder, refused_10x, old, new, said):
    change(folder / "matrix.mtx", old, new)
    refused_10x("input/bad", said)


@pytest.mark.parametrize("lines", [1, 2, 3, 10])
def test_a_text_matrix_that_was_cut_short(folder, refused_10x, lines):
    content = (folder / "matrix.mtx").read_text().splitlines()
    (folder / "matrix.mtx").write_text("\n".join(content[:lines]) + "\n")
    refused_10x("input/bad/matrix.mtx", "cut short")


@pytest.mark.parametrize("part", ["matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_packed_text_that_was_cut_short(tenx, refused_10x, counts, part, kept):
    path = tenx("bad", counts, "mtx.gz") / part
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    refused_10x(f"input/bad/{part} cannot be read", "copy or download it again")


def test_text_that_is_called_packed_and_is_not(tenx, refused_10x, counts):
    path = tenx("bad", counts, "mtx.gz") / "matrix.mtx.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    refused_10x("input/bad/matrix.mtx.gz cannot be read")


TEXTS = st.sampled_from(["matrix.mtx", "barcodes.tsv", "features.tsv"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=TEXTS, at=st.floats(0, 1), new=st.binary(max_size=3), cut=st.integers(0, 3))
def test_any_small_damage_to_text_ends_in_a_pool_or_in_a_sentence(folder, part, at, new, cut):
    path = folder / part
    content = path.read_bytes()
    start = int(at * len(content))
    try:
        path.write_bytes(content[:start] + new + content[start + cut :])
        own.survey(Census(files=[{"path": "input/bad", "donor_id": "A"}]))
    except InputError as error:
        assert (
            "input/bad" in str(error) and "\n" not in str(error) and str(error).endswith(".") and len(str(error)) < 500
        )
    finally:
        path.write_bytes(content)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["v2", "v3", "h5ad"]), at=st.floats(0, 0.999))
def test_any_truncation_of_a_binary_file_ends_in_a_sentence(tenx, h5ad, counts, kind, at):
    path = h5ad("bad", counts) if kind == "h5ad" else tenx("bad", counts, kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(at * len(content))])
    survey = Census(files=[{"path": f"input/{path.name}", "donor_id": "A"}])
    refused(lambda: own.survey(survey), f"input/{path.name}")


# ---------------------------------------------------------------- sample sheets, and the study file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,doner_id\ninput/bad,A\n", "an unknown column 'doner_id'"),
        ("path;donor_id\ninput/bad;A\n", "an unknown column 'path;donor_id'"),
        ("donor_id\nA\n", "no column 'path'"),
        ("path,donor_id\ninput/bad,A\n,B\n", "line 3: the path is empty"),
        ("path,donor_id\ninput/bad,A\ninput/gone,B\n", "line 3: 'input/gone' matches no file"),
        ("path,donor_id\ninput/bad,A\ninput/b*,B\n", "line 3: input/bad is named twice, with different labels"),
        ("path,donor_id\ninput/bad,\n", "input/bad names no donor"),
        ("path,donor_id\n", "name no file"),
        ("", "is an empty file (0 bytes)"),
        ("path,donor_id\ninput/bad,J\xe9\n", "is not UTF-8 text (byte b'\\xe9')"),
    ],
)
def test_a_sample_sheet_with_a_mistake(folder, refused_10x, project, text, said):
    (project / "sheet.csv").write_bytes(text.encode("latin-1"))
    refused_10x(said, files=["sheet.csv"])


def test_a_sample_sheet_that_is_not_there(refused_10x):
    refused_10x("there is no sample sheet gone.csv", files=["gone.csv"])


@pytest.mark.parametrize(
    ("donors", "regime", "said"),
    [
        (("A",), {"genes": 10, "cells": 100}, "form 1, of 1 donor"),
        (("A", "B"), {"genes": 10, "cells": 100}, "form 2, of 2 donor"),
        (tuple("ABCDEFGH"), {"genes": 31, "cells": 100}, "31 genes are asked for, and 30"),
        (
            tuple("ABCDEFGH"),
            {"genes": 10, "cells": 201},
            "201 cells are asked for, and census.filter and census.sample leave 200",
        ),
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


# ---------------------------------------------------------------- where the Census is written


def test_a_place_that_may_not_be_written(h5ad, study_file, project, counts):
    h5ad("good", counts)
    study = study_file(census={"h5ad": ["input/good.h5ad"]})
    (project / "data").write_text("a file where the folder should be")
    refused(lambda: census.prepare(study), "data/tiny/census cannot be written", "take a folder that may be written")


def test_a_full_disk_leaves_nothing_behind(h5ad, study_file, counts):
    h5ad("good", np.tile(counts, (20, 1)))
    study = study_file(census={"h5ad": ["input/good.h5ad"]})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # no file may be larger than this: the nearest that a test can come to a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        refused(lambda: census.prepare(study), "data/tiny/census cannot be written (", "free space")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in study.data.iterdir()] == [".census.lock"]


def test_no_room_for_sorting_is_not_said_to_be_a_damaged_file(h5ad, counts, monkeypatch):
    class Full(BytesIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    h5ad("good", sparse.csc_matrix(counts))
    survey = Census(h5ad=["input/good.h5ad"])
    refused(lambda: own.survey(survey), "the counts of input/good.h5ad cannot be sorted in", "No space left", "TMPDIR")


def test_what_a_killed_build_left_behind_is_removed_by_the_next(tiny, project):
    code = """
import os, signal
from lib.data import census
from lib.study import load_study
census._write_table = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
census.prepare(load_study("tiny"))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=io.CODE).returncode == -signal.SIGKILL
    left = [path.name for path in tiny.data.glob(".partial-*")]
    assert len(left) == 1
    other = tiny.data / left[0].replace("census", "other")
    other.touch()
    census.prepare(tiny)
    assert {path.name for path in tiny.data.iterdir()} == {".census.lock", "census", other.name}
