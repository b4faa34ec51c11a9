"""Bad input ends in one clear sentence, and leaves nothing half-written behind."""

import gzip
import subprocess
import sys

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from lib.data import census, user_files
from lib.io import InputError
from lib.study import Census


def refused(work, *parts):
    """Run `work`; it must end in one sentence with all of `parts`."""
    with pytest.raises(InputError) as caught:
        work()
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".") and len(sentence) < 500, sentence
    assert all(part in sentence for part in parts), sentence
    return sentence


@pytest.fixture
def refused_files(study_file, project):
    """Build the Census of `files`, by default of all in input/, of one donor: refused, with no path of this machine."""

    def check(*parts, files=None, **settings):
        study = study_file(census={"files": files or [{"path": "input/*", "donor_id": "A"}], **settings})
        sentence = refused(lambda: census.prepare(study), *parts)
        assert str(project) not in sentence
        left = [path.name for path in study.data.iterdir()] if study.data.exists() else []
        assert set(left) <= {".census.lock"}
        return sentence

    return check


def rewrite(path, **changed):
    """Write an .h5ad file again with some of its attributes replaced."""
    adata = anndata.read_h5ad(path)
    for name, value in changed.items():
        setattr(adata, name, value)
    adata.write_h5ad(path)


@pytest.mark.parametrize("value, layout", [
    (0.5, sparse.csr_matrix), (2 + 3e-7, np.asarray), (-1, sparse.csc_matrix), (np.nan, np.asarray), (2**25, "h5"),
    (-4, "mtx"),
])  # fmt: skip
def test_a_value_that_is_no_count_is_found_wherever_it_is(h5ad, tenx, refused_files, counts, value, layout):
    h5ad("good", counts)
    changed = counts.copy()
    changed[150, 7] = value
    if isinstance(layout, str):
        tenx("bad", changed, layout)
    else:
        rewrite(h5ad("bad", counts), X=layout(changed))
    said = refused_files("input/bad", "cell 150, gene G7 has", "no whole number from 0 to 16777216; raw UMI counts")
    assert "G7 has 2," not in said  # as 2.0000003 would be if it were rounded


def test_droplets_that_were_not_filtered(h5ad, refused_files, counts):
    counts[:101] = 0
    h5ad("bad", counts)
    refused_files("input/bad.h5ad: 101 of 200 cells have no count at all", "use the filtered matrix")


@pytest.fixture
def place(project):
    """The folder input/ of the project."""
    (project / "input").mkdir()
    return project / "input"


@pytest.mark.parametrize("name, content, parts", [
    ("bad.h5ad", b"gene,cell\n1,2\n", ("is no known kind of file", "give an .h5ad file, 10x's .h5, or a folder")),
    ("bad.h5ad.gz", b"\x1f\x8b", ("is no known kind of file", "unpacked")),
    ("a.h5mu", "obs var mod mod/rna", ("is a MuData file", "['rna'].write_h5ad")),
    ("molecule_info.h5", "barcodes barcode_idx features", ("10x's molecules", "filtered_feature_bc_matrix.h5")),
    ("empty", "readme.txt", ("is no known kind of file", "a folder with matrix.mtx")),
])  # fmt: skip
def test_other_kinds_are_named_with_the_step_that_makes_them_readable(place, refused_files, name, content, parts):
    if isinstance(content, bytes):
        (place / name).write_bytes(content)
    elif name.endswith((".h5", ".h5mu")):
        with h5py.File(place / name, "w") as h5:
            for group in content.split():
                h5.create_group(group)
    else:
        (place / name).mkdir()
        for file in content.split():
            (place / name / file).touch()
    refused_files(f"input/{name} ", *parts)


def test_a_file_that_another_program_holds_open_is_to_be_closed_there(h5ad, refused_files, counts):
    code = "import h5py, sys; h5 = h5py.File(sys.argv[1], 'r+'); print(flush=True); input()"
    call = [sys.executable, "-c", code, h5ad("open", counts)]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        refused_files("input/open.h5ad cannot be read", "it is open in another program")
        other.communicate(b"\n")


def test_a_file_of_before_anndata_0_7_is_to_be_written_again(place, refused_files):
    with h5py.File(place / "old.h5ad", "w") as h5:
        h5["obs"], h5["var"] = [np.array([(b"a",)], [("index", "S1")])] * 2
    refused_files("input/old.h5ad was written before anndata 0.7; read it with anndata, and write it again")


@pytest.mark.parametrize(
    "layout, part, value", [(sparse.csr_matrix, "indptr", 10**9), (sparse.csc_matrix, "indices", -1)]
)
def test_a_matrix_whose_parts_do_not_fit(h5ad, refused_files, counts, layout, part, value):
    with h5py.File(h5ad("bad", layout(counts)), "r+") as h5:
        h5["X"][part][5] = value
    refused_files("input/bad.h5ad cannot be read", "see that it is whole")


@pytest.mark.parametrize("cells, genes", [(0, 30), (200, 0)])
def test_a_file_without_cells_or_genes_or_counts(h5ad, refused_files, counts, cells, genes):
    path = h5ad("bad", counts[:cells, :genes], donors=("A",), genes=[f"G{gene}" for gene in range(genes)])
    refused_files(f"input/bad.h5ad holds {cells} cells x {genes} genes")
    with h5py.File(path, "r+") as h5:
        del h5["X"]
    refused_files("input/bad.h5ad has no counts: neither X nor raw.X nor layers['counts']")


def test_a_path_that_leads_to_nothing(place, refused_files):
    (place / "bad.h5ad").symlink_to("gone.h5ad")
    refused_files("input/bad.h5ad is not there, or is no file")
    refused_files("'nowhere/*.h5ad' matches no file", files=["nowhere/*.h5ad"])
    refused_files("gone.csv is not there", files=["gone.csv"])


# ---------------------------------------------------------------- cells and genes


@pytest.mark.parametrize("setting", ["donor", "dataset", "tissue"])
def test_a_missing_column_names_those_that_are_there(h5ad, refused_files, counts, setting):
    h5ad("bad", counts, organ="lung")
    parts = "input/bad.h5ad has no obs column 'misspelt' (it has: donor_id, organ)", f"census.{setting}", "{path: ..."
    refused_files(*parts, files=["input/*"], **{setting: "misspelt"})


@pytest.mark.parametrize("donor", [None, np.nan, "", "NA", " ", "Unknown", "unassigned", "Negative", "-"])
def test_cells_whose_donor_is_missing_or_not_known_are_refused_by_their_number(h5ad, refused_files, counts, donor):
    h5ad("bad", counts, donors=None, donor_id=pd.Categorical(["A", donor] * 100))
    said = refused_files("input/bad.h5ad: ", "100 cells", files=["input/*"])
    assert "the donor of" in said or "obs column 'donor_id' is empty" in said


@pytest.mark.parametrize("other", ["PT_1", "pt 01", "Pt-1"])
def test_one_person_in_two_spellings_is_not_trained_on_and_held_out(h5ad, refused_files, counts, other):
    h5ad("a", counts, donors=("pt_1", "pt_2"))
    h5ad("b", counts + 1, donors=(other, "pt_3"))
    refused_files(f"input/b.h5ad has donor {other!r} and input/a.h5ad 'pt_1'", files=["input/*"])


def test_repeated_cell_names(h5ad, refused_files, counts):
    path = h5ad("bad", counts)
    rewrite(path, obs_names=[*anndata.read_h5ad(path).obs_names[:199], "bad-3"])
    refused_files("input/bad.h5ad names cell bad-3 more than once", "obs_names_make_unique")


@pytest.mark.parametrize("genes, part", [
    (["CD8A"] * 3 + [f"G{gene}" for gene in range(27)], "names gene CD8A more than once; add their counts up"),
    (["ENSG01.1", "ENSG01.2", *(f"ENSG1{gene}" for gene in range(28))], "ENSG01.2 more than once"),
    ([f"{gene}.0" for gene in range(30)], "gene 0 (of 30 like it) is called '0.0', which names no gene"),
    ([str(gene) for gene in range(30)], "gene 0 (of 30 like it) is called '0', which names no gene"),
    ([f"{kind}{gene}" for kind in ("ENSG", "ENSMUSG") for gene in range(15)], "2 species (ENSG, ENSMUSG)"),
    ([f"G{gene}" if gene < 2 else f"ENSG{gene}" for gene in range(30)], "shares 2 of its 30 genes with the files"),
])  # fmt: skip
def test_genes_that_cannot_be_used(h5ad, refused_files, counts, genes, part):
    h5ad("a", counts)
    h5ad("bad", counts + 1, genes=genes)
    refused_files("input/bad.h5ad", part)


@pytest.fixture
def folder(tenx, counts):
    """A good 10x folder, input/bad."""
    return tenx("bad", counts, "mtx")


PARTS = ["matrix.mtx", "barcodes.tsv", "features.tsv"]


@pytest.mark.parametrize("part", PARTS)
def test_a_10x_folder_with_a_part_missing_empty_packed_or_unpacked_unlike_its_name(folder, refused_files, part):
    content = (folder / part).read_bytes()
    (folder / part).write_bytes(gzip.compress(content))
    refused_files(f"input/bad/{part} cannot be read", "packed where its name ends in .gz and only there")
    (folder / part).write_bytes(b"")
    refused_files(f"input/bad/{part} is an empty file (0 bytes)")
    (folder / part).unlink()
    refused_files("input/bad ")
    (folder / f"{part}.gz").write_bytes(content)
    refused_files(f"input/bad/{part}.gz cannot be read", "packed where its name ends in .gz and only there")


@pytest.mark.parametrize("part, old, new, said", [
    *((part, b"", "é".encode("latin-1"), "that text is UTF-8") for part in PARTS[1:]),
    *((part, b"", b"a header\n", "without a header (the first line is 'a header')") for part in PARTS[1:]),
    ("matrix.mtx", b"%%MatrixMarket", b"%%Matrix", ""),
    ("matrix.mtx", b"30 200 ", b"200 30 ", "its rows are cells, and should be genes"),
    ("matrix.mtx", b"\n1 1 2\n", b"\n31 1 2\n", ""),
    ("matrix.mtx", b"\n1 1 2\n", b"\n", "entries and its header says"),
])  # fmt: skip
def test_a_10x_folder_with_a_mistake_in_a_part(folder, refused_files, part, old, new, said):
    content = (folder / part).read_bytes()
    assert old in content
    (folder / part).write_bytes(content.replace(old, new, 1))
    refused_files("input/bad", said)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.sampled_from(PARTS), at=st.floats(0, 1), new=st.binary(max_size=3), cut=st.integers(0, 3))
def test_any_small_damage_to_text_ends_in_a_pool_or_in_a_sentence(folder, part, at, new, cut):
    path = folder / part
    content = path.read_bytes()
    start = int(at * len(content))
    try:
        path.write_bytes(content[:start] + new + content[start + cut :])
        user_files.survey(Census(files=[{"path": "input/bad", "donor_id": "A"}]))
    except InputError as error:
        assert "input/bad" in str(error) and "\n" not in str(error) and str(error).endswith(".")
    finally:
        path.write_bytes(content)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["h5", "h5ad"]), at=st.floats(0, 0.999))
def test_any_truncation_of_a_binary_file_ends_in_a_sentence(tenx, h5ad, counts, kind, at):
    path = h5ad("bad", counts) if kind == "h5ad" else tenx("bad", counts, kind)
    path.write_bytes(path.read_bytes()[: int(at * path.stat().st_size)])
    settings = Census(files=[{"path": f"input/{path.name}", "donor_id": "A"}])
    refused(lambda: user_files.survey(settings), f"input/{path.name}")


@pytest.mark.parametrize("text, part", [
    ("path,doner_id\ninput/bad,A\n", "sheet.csv, line 2: doner_id is not a known key (did you mean donor_id?)"),
    ("path,donor_id\ninput/bad,A\n,B\n", "sheet.csv, line 3: 'path'"),
    ("path,donor_id\ninput/bad,A\n\ninput/gone,B\n", "line 4: 'input/gone' matches no file"),
    ("path,donor_id\ninput/bad,A\ninput/b*,B\n", "line 3: input/bad is named twice, with different labels"),
    ("path,donor_id\ninput/bad,\n", "input/bad has no obs column 'donor_id' (it has: none)"),
    ("path,donor_id\n", "sheet.csv has no row below the names of its columns"),
    ("path,donor_id\ninput/bad,Smith, J\n", "sheet.csv, line 2 has more values than there are columns"),
    ("path,donor_id,donor_id\ninput/bad,A,B\n", "sheet.csv names column donor_id more than once"),
    ("", "is an empty file (0 bytes)"),
    ("path,donor_id\ninput/bad,J\xe9\n", "that text is UTF-8"),
])  # fmt: skip
def test_a_sample_sheet_with_a_mistake(folder, refused_files, project, text, part):
    (project / "sheet.csv").write_bytes(text.encode("latin-1"))
    refused_files(part, files=["sheet.csv"])
