"""Your own files: all formats give the same counts in bounded memory, genes meet by id or symbol, copies are found."""

import itertools
import tracemalloc

import anndata
import numpy as np
import pandas as pd
import pytest
from conftest import bases, whole_census
from scipy import sparse

from lib import io as lib_io
from lib.data import census, panel, readers, split, user_files
from lib.io import InputError
from lib.run import cli as command
from lib.study import Census, parse_study


def everything(path):
    """The whole matrix of a file, dense."""
    with readers.opened(path) as file:
        return np.vstack([block.toarray() for _, block in file.blocks()])


@pytest.mark.parametrize("layout", ["h5", "mtx", "mtx.gz"])
def test_10x_output_is_read_as_scanpy_reads_it(tenx, counts, layout, monkeypatch):
    import scanpy

    monkeypatch.setattr(readers, "ENTRIES", 100)
    counts[40:44] = 0
    path = tenx("one", counts, layout)
    if layout == "mtx":  # scanpy knows it packed, or with the table of genes under its old name
        (path / "features.tsv").rename(path / "genes.tsv")
    theirs = scanpy.read_10x_mtx(path, make_unique=False) if path.is_dir() else scanpy.read_10x_h5(path)
    with readers.opened(path) as file:
        assert file.obs.index.tolist() == theirs.obs_names.tolist()
        assert file.var["gene_ids"].tolist() == theirs.var["gene_ids"].tolist()
        assert file.var.index.tolist() == theirs.var_names.tolist()
    assert np.array_equal(everything(path), theirs.X.toarray()) and np.array_equal(everything(path), counts)


def test_a_matrix_of_a_prefixed_geo_deposit_is_found_where_it_is_the_only_one(tenx, counts, project):
    folder = tenx("deposit", counts, "mtx.gz")
    for part in list(folder.iterdir()):
        part.rename(folder / f"GSM1_{part.name}")
    (folder / "._GSM1_matrix.mtx.gz").touch()  # macOS's own
    assert np.array_equal(everything(folder / "GSM1_matrix.mtx.gz"), counts)
    assert np.array_equal(everything(folder), counts)
    for part in tenx("other", counts + 1, "mtx.gz").iterdir():
        part.rename(folder / f"GSM2_{part.name}")
    with pytest.raises(InputError, match="GSM1_, GSM2_; name each"):
        everything(folder)


def test_antibodies_and_peaks_are_left_out_of_counts_and_totals_and_that_is_said(tenx, h5ad, study_file, counts):
    genes = np.resize([True, True, False], 30)
    types = np.where(genes, "Gene Expression", "Antibody Capture").tolist()
    paths = {layout: tenx(layout, counts, layout, types=types) for layout in ("h5", "mtx")}
    paths["h5ad"] = h5ad("a", counts, var={"feature_types": np.where(genes, "GEX", "ATAC")})  # not as 10x calls them
    for layout, path in paths.items():
        adata, report = whole_census(study_file(census={"files": [{"path": str(path), "donor_id": "a"}]}))
        assert np.array_equal(adata.X.toarray(), counts[:, genes])
        assert adata.obs["raw_sum"].tolist() == counts[:, genes].sum(axis=1).tolist()
        assert report["left_out"].tolist() == ["10 ATAC" if layout == "h5ad" else "10 Antibody Capture"]


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_every_layout_of_h5ad_gives_the_same_blocks_in_memory_bounded_by_one(project, layout, monkeypatch):
    rng = np.random.default_rng(0)
    matrix = sparse.random(2000, 2000, 0.1, "csr", random_state=rng, data_rvs=lambda size: rng.integers(1, 9, size))
    matrix[500:600] *= 0
    matrix.eliminate_zeros()
    stored = {"csr": matrix, "csc": matrix.tocsc(), "dense": matrix.toarray().astype(np.float32)}[layout]
    anndata.AnnData(stored).write_h5ad(project / "big.h5ad")
    size = stored.nbytes if layout == "dense" else 12 * matrix.nnz
    monkeypatch.setattr(readers, "ENTRIES", 20_000)
    monkeypatch.setattr(readers, "BY_GENE", 50_000)
    with readers.opened(project / "big.h5ad") as file:
        next(file.blocks())  # what is imported on the way is not counted
        tracemalloc.start()
        total = sum(block.sum() for _, block in file.blocks())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        starts, blocks = zip(*file.blocks(), strict=True)
    assert total == matrix.sum() and peak < 0.75 * size, f"{peak / 2**20:.1f} MiB of {size / 2**20:.1f} MiB"
    assert (sparse.vstack(blocks) != matrix).nnz == 0
    assert list(starts) == np.cumsum([0, *(block.shape[0] for block in blocks)])[:-1].tolist()


@pytest.mark.parametrize("files, keys", [
    # Files with ids and files with symbols meet through one that knows both.
    (["a ENSG1 -, b ENSG2 -", "B - B, A - A, C - C", "A ENSG1 A, B ENSG2 B"],
     ["ENSG1 ENSG2", "ENSG2 ENSG1 C", "ENSG1 ENSG2"]),
    (["a ENSG1 -, b ENSG2 -", "B - B, A - A"], ["ENSG1 ENSG2", "B A"]),
    # A symbol of two ids is not guessed.
    (["A ENSG1 A", "A ENSG2 A", "A - A"], ["ENSG1", "ENSG2", "A"]),
    # An id of two symbols tells them not apart.
    (["A ENSG1 A, B ENSG1 B, C ENSG2 C"], ["A B ENSG2"]),
    # Two symbols of one file never become one gene by what other files say.
    (["OLD ENSG1 OLD", "NEW ENSG1 NEW", "OLD - OLD, NEW - NEW"], ["ENSG1", "ENSG1", "OLD NEW"]),
    (["OLD ENSG1 OLD", "NEW ENSG1 NEW", "OLD - OLD"], ["ENSG1", "ENSG1", "ENSG1"]),
])  # fmt: skip
def test_genes_of_several_files_meet_by_id_and_symbol(files, keys):
    rows = [[row.split() for row in text.split(", ")] for text in files]
    tables = [pd.DataFrame(each, columns=["name", "id", "symbol"], dtype=object).replace("-", None) for each in rows]
    assert [" ".join(key) for key in user_files.gene_keys(tables)] == keys


def test_ids_and_symbols_of_real_layouts_pool_to_the_same_counts(h5ad, tenx, study_file, counts):
    ids, symbols = [f"ENSG{gene:011d}" for gene in range(30)], [f"G{gene}" for gene in range(30)]
    versions = [f"GRCh38_{name}.{gene}" for gene, name in enumerate(ids)]
    h5ad("census", counts, genes=versions, var={"feature_name": symbols})
    h5ad("r", counts + 3, ("G",), genes=[str(gene) for gene in range(30)], var={"ID": ids, "Symbol": symbols})
    h5ad("scanpy", counts[:, ::-1] + 1, ("E",), genes=[f"{symbol} " for symbol in symbols[::-1]])
    path = tenx("cellranger", counts + 2)
    study = study_file(census={"files": ["input/*.h5ad", {"path": f"input/{path.name}", "donor_id": "F"}]})
    adata, report = whole_census(study)
    assert adata.var["feature_id"].tolist() == ids and adata.var["feature_name"].tolist() == symbols
    assert np.array_equal(adata.X.toarray(), np.vstack([counts + 2, counts, counts + 3, counts + 1]))
    assert set(report["genes_shared"]) == {30}


def test_repeated_genes_are_summed_when_that_is_asked(h5ad, study_file, counts):
    h5ad("one", counts, genes=["A", "B", "A", *(f"G{gene}" for gene in range(27))])
    adata, _ = whole_census(study_file(census={"h5ad": ["input/one.h5ad"], "genes": {"duplicates": "sum"}}))
    assert adata.var["feature_id"].tolist()[:3] == ["A", "B", "G0"]
    summed = np.column_stack([counts[:, 0] + counts[:, 2], counts[:, 1], counts[:, 3]])
    assert np.array_equal(adata.X.toarray()[:, :3], summed)


def test_a_sample_sheet_labels_files_and_globs_and_is_part_of_the_fingerprint(tenx, h5ad, project, study_file, counts):
    """Its labels go before those of a file; empty rows and columns, as spreadsheets write them, are no samples."""
    for number, name in enumerate(("s1", "s2")):
        tenx(name, counts + number, "mtx.gz")
    h5ad("s3", counts + 2, tissue="wrong")
    sheet, head = project / "input" / "samples.TSV", "\ufeffPath,Donor_ID,dataset_id,tissue,,Unnamed: 5\n,,,,,\n"
    rows = "input/s1,é,d1,blood,,\ninput/s[2],2,d2,,,\ninput/s3.h5ad,,d3,skin,,\n"
    sheet.write_bytes((head + rows).encode())
    study = study_file(census={"files": [{"path": "input/samples.TSV", "tissue": "lung"}]})
    adata, report = whole_census(study)
    labels = adata.obs[["donor_id", "dataset_id", "tissue", "tissue_general"]].drop_duplicates().to_numpy().tolist()
    assert labels[:2] == [["é", "d1", "blood", "blood"], ["2", "d2", "lung", "lung"]]
    assert labels[2:] == [[donor, "d3", "skin", "skin"] for donor in "ABCD"]
    assert report["median_counts"].tolist() == [np.median(counts.sum(axis=1)) + 30 * number for number in range(3)]
    before = user_files.made_from(study)
    assert user_files.made_from(study) == before
    sheet.write_text(sheet.read_text(encoding="utf-8-sig").replace("d2", "d4"), encoding="utf-8")
    assert user_files.made_from(study) != before
    read_from = {path.name for path in user_files.inputs(study.census)}
    assert read_from == {"samples.TSV", "matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz", "s3.h5ad"}


@pytest.mark.parametrize("column", ["family", "sex"])  # the second is one that a Census has, if a file has it
def test_donors_of_one_label_of_a_users_column_are_never_in_two_splits(h5ad, project, counts, column):
    families = np.resize([f"F{donor // 2}" for donor in range(8)], 200)
    h5ad("a", counts, [f"D{donor}" for donor in range(8)], **{column: families})
    regimes = {"r": {"genes": 5, "cells": 100}}
    content = {"census": {"h5ad": ["input/*.h5ad"]}, "regimes": regimes, "sizes": ["XXS"], "seeds": [7]}
    study = parse_study(content | {"split": {"related": column, "validation": 0.2, "test": 0.2}}, "families")
    cells = panel.read(panel.build(study, "r")).obs
    assert cells["donor_id"].nunique() == 8 and cells.groupby(column, observed=True)["split"].nunique().max() == 1
    h5ad("b", counts + 1, ["E1", "E2"])
    with pytest.raises(InputError, match=rf"b\.h5ad has no obs column '{column}'"):
        panel.build(study, "r")


def test_one_donor_is_one_however_its_number_was_stored(h5ad, tenx, project, counts):
    donors = np.resize(np.arange(1, 9), 200)
    kinds = {"a": donors, "b": donors.astype(float), "c": donors.astype(str), "d": pd.Categorical(donors.astype(float))}
    paths = [h5ad(name, counts + at, None, donor_id=kind) for at, (name, kind) in enumerate(kinds.items())]
    (project / "sheet.csv").write_text(f"path,donor_id\n{tenx('e', counts + 9)},1.0\n")
    pool = user_files.survey(Census(files=[*map(str, paths), "sheet.csv"]))
    assert {donor for obs in pool.obs for donor in obs["donor_id"]} == set("12345678")


PLACES = ["raw/X", "layers/counts", "layers/UMI_counts"]
CHANGES = [np.log1p, lambda x: (x > 0).astype(np.float32)]


@pytest.mark.parametrize("where, change", [*itertools.product(PLACES, CHANGES), ("raw/X", np.array)])
def test_counts_in_raw_or_a_layer_go_before_an_x_that_was_logged_made_binary_or_narrowed(h5ad, counts, where, change):
    path = h5ad("a", counts)
    adata = whole = anndata.read_h5ad(path)
    if where == "raw/X":
        adata = whole[:, :20].copy()
        adata.raw = whole
    else:
        adata.layers[where.removeprefix("layers/")] = adata.X.copy()
        adata.layers["spliced"] = adata.X * 2
    adata.X = change(adata.X.toarray())
    adata.write_h5ad(path)
    report = user_files.survey(Census(h5ad=["input/*"])).report
    assert report["counts_in"].tolist() == [where] and report["genes"].tolist() == [30]
    assert report["median_counts"].tolist() == [np.median(counts.sum(axis=1))]


@pytest.mark.parametrize("layout", ["h5", "mtx"])
def test_identifiers_of_a_pipeline_do_not_go_before_symbols(tenx, counts, layout):
    symbols = [f"GENE{gene}" for gene in range(30)]
    tenx("a", counts, layout, ids=[f"unknown_{gene:05}" for gene in range(30)], symbols=symbols)
    tenx("b", counts[:, 5:] + 1, layout, ids=[f"unknown_{gene:05}" for gene in range(25)], symbols=symbols[5:])
    pool = user_files.survey(Census(files=[{"path": "input/*", "donor_id": "D"}]))
    assert pool.var["feature_id"].tolist() == symbols[5:] and pool.report["ensembl_ids"].tolist() == [0, 0]
    assert pool.obs[0]["raw_sum"].tolist() == counts.sum(axis=1).tolist()  # of all its genes, also those not shared


def test_tables_of_10x_folders_with_quotes_uneven_rows_or_other_columns(tenx, counts):
    path = tenx("quoted", counts, "mtx")
    for name in ("features.tsv", "barcodes.tsv"):
        lines = (path / name).read_text().splitlines()
        (path / name).write_text("\n".join(f'"{line}"' for line in lines))
    path = tenx("uneven", counts + 1, "mtx", types=[*["Gene Expression"] * 25, *["Peaks"] * 5])
    lines = (path / "features.tsv").read_text().splitlines()
    (path / "features.tsv").write_text("\n".join(line + "\tchr1\t4\t13" * (at > 2) for at, line in enumerate(lines)))
    path = tenx("untyped", counts + 2, "mtx", types=["1"] * 30)  # a chromosome stands where 10x has the type
    pool = user_files.survey(Census(files=[{"path": "input/*", "donor_id": "D"}]))
    assert pool.report["genes"].tolist() == [30, 25, 30] and pool.report["ensembl_ids"].tolist() == [30, 25, 30]
    assert pool.report["left_out"].tolist() == ["nothing", "5 Peaks", "nothing"]


def test_names_with_brackets_and_columns_with_slashes_are_found(h5ad, project, counts, monkeypatch):
    inner = project / "[2024] study"
    inner.mkdir()
    path = h5ad("one", counts, donors=None, **{"Patient/Sample": np.resize(list("AB"), 200)})
    path.rename(inner / "[1] one.h5ad")
    monkeypatch.setattr(lib_io, "ROOT", inner)
    for name in ("[1] one.h5ad", "*.h5ad", str(inner / "[1] one.h5ad")):
        pool = user_files.survey(Census(h5ad=[name], donor="Patient/Sample"))
        assert pool.report["file"].tolist() == ["[1] one.h5ad"] and pool.report["donors"].tolist() == [2]


def test_what_has_no_data_set_is_one_called_like_its_file_or_its_folder(h5ad, tenx, project, counts):
    for number, folder in enumerate(("one", "two")):
        (project / "input" / folder).mkdir(parents=True)
        h5ad("same", counts + number).rename(project / "input" / folder / "same.h5ad")
    pool = user_files.survey(Census(h5ad=["input/*/*"]))
    assert [*pool.presence] == ["input/one/same.h5ad", "input/two/same.h5ad"]
    tenx("mod", counts, "mtx.gz")  # as a group of a MuData file is called
    pool = user_files.survey(Census(files=[{"path": "input/mod", "donor_id": "A"}]))
    assert [*pool.presence] == ["mod"]
    pool = user_files.survey(Census(files=[{"path": "input/mod/matrix.mtx.gz", "donor_id": "A"}]))
    assert [*pool.presence] == ["input/mod/matrix.mtx.gz"]


def test_what_should_be_looked_at_is_said(tenx, h5ad, counts):
    barcodes = [f"{name[:-2]}-{1 + at % 4}" for at, name in enumerate(bases(200))]
    path = tenx("aggr", counts, barcodes=barcodes)
    h5ad("copy", counts + 1, is_primary_data=False)
    pool = user_files.survey(Census(files=[{"path": str(path), "donor_id": "A"}, "input/copy.h5ad"]))
    h5ad("cpm", np.rint(counts / counts.sum(axis=1, keepdims=True) * 1e6))
    _, normalised, few = user_files.overview(user_files.survey(Census(h5ad=["input/cpm.h5ad"]))).splitlines()
    assert normalised == "input/cpm.h5ad: most cells have 1,000,000 counts; were they normalised?"
    assert few.startswith("input/cpm.h5ad: 30 genes; library sizes lack all others")
    _, libraries, _, primary, _ = user_files.overview(pool).splitlines()
    assert libraries == "input/aggr.h5: barcodes of 4 libraries, and one donor; is that one person?"
    assert primary.startswith("input/copy.h5ad: no cell is primary data; a census.filter")


WIDE = np.random.default_rng(5).poisson(1.5, (60, 200)).astype(np.float32)
"""Cells that show about 155 genes."""


def surveyed(*paths):
    return user_files.survey(Census(files=[{"path": str(path), "donor_id": "D"} for path in paths]))


def test_a_cell_of_two_files_is_found_whatever_its_barcode_is_dressed_in(tenx, h5ad):
    narrow = WIDE[:, :60]  # too few genes to be known without their barcode
    first = tenx("a", narrow[:40], "mtx")
    path = h5ad("b", narrow[30:, ::-1], genes=[f"G{gene}" for gene in range(60)][::-1])
    adata = anndata.read_h5ad(path)
    adata.obs_names = [f"lung_{name[:-2]}-7" for name in bases(40)[30:] + bases(60)[40:]]
    adata.write_h5ad(path)
    with pytest.raises(InputError, match=r"b\.h5ad: cell lung_[ACGT]+-7 has the same counts as cell [ACGT]+-1 of .*"):
        surveyed(first, path)
    adata[10:].write_h5ad(path)
    assert surveyed(first, path).report["cells"].tolist() == [40, 20]


def test_copies_are_found_over_the_genes_that_files_share_and_in_one_file(h5ad):
    first, second = h5ad("a", WIDE), h5ad("b", WIDE[:, 20:], genes=[f"G{gene}" for gene in range(20, 200)])
    with pytest.raises(InputError, match="and 59 more cells like it"):
        surveyed(first, second)
    with pytest.raises(InputError, match=r"c\.h5ad: cell c-60 has the same counts as cell c-3 of"):
        surveyed(h5ad("c", WIDE[[*range(60), 3]]))


def test_equal_barcodes_or_equal_poor_cells_or_what_is_no_primary_data_are_no_copies(tenx, h5ad, counts):
    assert len(surveyed(tenx("a", counts), tenx("b", counts + 1)).report) == 2  # same barcodes, other counts
    poor = np.zeros((50, 30), np.float32)
    poor[:, :9] = 1
    assert len(surveyed(tenx("c", poor), tenx("d", poor)).report) == 2  # nine genes are no fingerprint
    marked = h5ad("e", WIDE), h5ad("f", WIDE, is_primary_data="False")
    assert surveyed(*marked).report["primary_cells"].tolist() == [60, 0]


def test_the_command_says_what_files_hold_and_writes_nothing(h5ad, study_file, counts, project, capsys):
    files, split = {"h5ad": ["input/bad.h5ad"]}, {"validation": 0.25, "test": 0.25}
    h5ad("bad", counts - 1)
    study_file("mine", census=files)
    assert command.main(["check", "mine"]) == 2
    assert "input/bad.h5ad: cell 0, gene" in capsys.readouterr().err
    h5ad("bad", counts, is_primary_data=np.arange(200) < 160)
    study_file("mine", census=files, split=split, regimes={"all": {"genes": 24, "cells": 120}})
    assert command.main(["check", "mine"]) == 0
    said = capsys.readouterr().out
    assert "pass 'is_primary_data == True': 160\n" in said
    assert "all 24 60 (2 donors) 30 (1 donors) 30 (1 donors)" in " ".join(said.split())
    assert "Fewest donors in a held-out split: 1" in said
    study_file("mine", census=files | {"filter": "nnz > 20"}, split=split, regimes={"all": {"genes": 24, "cells": 40}})
    assert command.main(["check", "mine"]) == 0
    passing = ((counts[:160] > 0).sum(axis=1) > 20).sum()  # what is no primary data stays out
    assert f"pass '(nnz > 20) and (is_primary_data == True)': {passing}\n" in capsys.readouterr().out
    h5ad("bad", counts, lane=np.resize(list("11112222"), len(counts)), is_primary_data=np.arange(len(counts)) >= 40)
    passing = "attr('lane') == '2' and is_primary_data == True"  # on a column that the Census does not know
    of_one = files | {"filter": passing}
    study_file("mine", census=of_one, split=split, regimes={"all": {"genes": 24, "cells": 24}})
    assert command.main(["check", "mine"]) == 0 and f"pass {passing!r}: 80\n" in capsys.readouterr().out
    study_file("mine", census=files | {"filter": "attr('lane') != '3'"}, split=split)  # else all cells would pass
    assert command.main(["check", "mine"]) == 2 and "has no lane '3'" in capsys.readouterr().err
    study_file("mine", census=files, split=split, regimes={"all": {"genes": 31, "cells": 120}})
    assert command.main(["check", "mine"]) == 2
    assert "all asks for 31 genes" in capsys.readouterr().err and not (project / "data").exists()
    study_file("simulated")
    assert command.main(["check", "simulated"]) == 0 and not (project / "data").exists()


def test_a_filter_that_is_added_later_finds_its_column_in_the_files(h5ad, study_file, counts):
    h5ad("a", counts, lane=np.resize(list("1122"), 200))
    for condition, cells in ((None, 200), ("lane == '2'", 100)):
        study = study_file(census={"h5ad": ["input/a.h5ad"], "filter": condition})
        with census.open_census(study) as collection:
            assert len(split.cells(collection, study)[0]) == cells
