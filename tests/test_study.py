"""Study files: what is accepted, and the sentence that refuses the rest."""

import os

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lib import io
from lib.io import InputError
from lib.model.sizes import PUBLISHED
from lib.study import Train, load_study, parse_study

GOOD = {
    "census": {"simulate": {"cells": 1000}},
    "regimes": {"data-rich": {"genes": 20, "cells": 500}},
    "sizes": ["XXS", {"d": 32, "layers": 2, "heads": 4, "ff_mult": 4}],
    "seeds": [7, 8],
}


def study_with(text):
    """The good study with the keys of a piece of YAML in place of its own."""
    return parse_study(GOOD | io.parse_yaml(text), "mine")


LABELS = ["010", "10", "1_2", "12", "0x1F", "12:30", "12:30.5", "1_2.5", "2024-01-02", "2024-01-02 10:00:00"]
REFUSED = [
    ("train: {learning_rte: 1.0}", "train: learning_rte is not a known key (did you mean learning_rate?)"),
    ("census: {uri: a, files: [b.h5]}", "needs exactly one of simulate, version, uri, h5ad or files"),
    ("census: {}", "has none of them"),
    ("census: {uri: a, donor: patient}", "donor is of user files"),
    ("train: {objective: negative_binomial, library_size: panel}", "set library_size: transcriptome"),
    ("census: {version: latest}", "not a dated release"),
    ("census: {simulate: {cells: 600, genes: 60}, tissues: [lung]}", "its floor is that of all cells"),
    ("sizes: [XXL]", "'XXL' is not a size (did you mean XL?)"),
    ("sizes: [{d: 10, layers: 1, heads: 3}]", "not a multiple of heads = 3"),
    ("seeds: [-1]", "seeds.0: Input should be greater than or equal to 0, not -1"),
    ("seeds_of: {XSX: [7]}", "seeds_of names 'XSX', which is no size (did you mean XXS?)"),
    ("seeds_of: {XXS: [7, 7]}", "seeds_of.XXS lists 7 more than once"),
    ("regimes: {}", "regimes is missing or empty"),
    ("regimes: {rich: {genes: 20, cells: 500}, Rich: {genes: 20, cells: 50}}", "regimes lists rich more than once"),
    ("genes_from: data-rch", "which is no regime (did you mean data-rich?)"),
    ("split: {validation: 0.5, test: 0.5}", "leave no cells to train on"),
    ("split: {by: random, related: family}", "by: random holds out single cells"),
    ("{split: {random: 0.1}, regimes: {few: {genes: 20, cells: 500, donors: 3}}}", "few has a few; drop one"),
    ("split: {by: dataset_id, dataset: 0.1}", "drop dataset, or split by donor_id"),
    ("train: {protocol: tunde}", "'tuned' or 'published', not 'tunde'"),
    ("train: {learning_rate: .nan}", "finite number"),
    ("train: {protocol: published, objective: negative_binomial}", "set report: final"),
    (
        "{train: {protocol: published}, regimes: {a: {genes: 2, cells: 50, train: {objective: negative_binomial}}}}",
        "not negative_bin",
    ),
    ("runs: {table: data/mine.csv}", "keep one of the two"),
]


@pytest.mark.parametrize("text, expected", REFUSED)
def test_impossible_studies_are_refused_in_one_sentence(text, expected):
    with pytest.raises(InputError) as refusal:
        study_with(text)
    sentence = str(refusal.value)
    assert sentence.startswith("params/mine.yaml: ") and sentence.endswith(".") and "\n" not in sentence
    assert expected in sentence


def test_a_good_study_is_read_as_written():
    study = parse_study(GOOD, "mine")
    assert study.size("XXS") == PUBLISHED["XXS"]
    assert study.size("d32-l2-h4").parameters(20) == 20 * 32 + 3 * 32 + 33 + 2 * (12 * 32**2 + 13 * 32)
    assert study.run_folder("data-rich", "XXS", 7) == io.ROOT / "data/mine/data-rich/runs/XXS/seed-7"
    for unknown, nearest in ((study.folder, "data-rch"), "data-rich"), ((study.size, "XSS"), "XXS"):
        with pytest.raises(InputError, match=rf"did you mean {nearest}\?"):
            unknown[0](unknown[1])


def test_a_protocol_fills_what_the_study_leaves_out_and_nothing_else():
    published = study_with("train: {protocol: published, dropout: 0.0}").train
    assert (published.learning_rate, published.cells_seen, published.train_on) == (3.125e-5, 240_000, "all")
    assert published.dropout == 0.0
    assert parse_study(GOOD, "mine").train.train_on == "train"


def test_values_that_yaml_takes_for_something_else_are_what_was_meant():
    assert study_with("census: {version: 2025-11-08}").census.version == "2025-11-08"
    assert study_with("train: {learning_rate: 4e-3, clip: 1e0}").train.learning_rate == 0.004
    files = study_with("census: {files: [" + ", ".join(f"{{path: a, donor_id: {label}}}" for label in LABELS) + "]}")
    assert [file.donor_id for file in files.census.files] == LABELS
    assert study_with("census: {uri: ~/soma}").census.uri == os.path.expanduser("~/soma")


def test_names_of_digits_only_are_names():
    study = study_with("""
        regimes: {2000: {genes: 20, cells: 500}, 200: {genes: 20, cells: 50}}
        genes_from: 2000
        sizes: [XXS, {name: 64, d: 64, layers: 1}]
        seeds_of: {64: [7]}""")
    assert list(study.regimes) == ["2000", "200"] and study.seeds_for("64") == [7]
    assert study.run_folder("2000", "64", 7) == io.ROOT / "data/mine/2000/runs/64/seed-7"
    for regime, size in (("200", "64"), (200, 64)):  # papermill gives them as numbers
        assert study.folder(regime).name == "200" and study.size(size).d == 64 and study.seeds_for(size) == [7]
        assert list(study.panel_settings(regime)["regimes"]) == ["200", "2000"]


def test_a_regime_trains_by_the_studys_settings_under_its_own():
    study = study_with("""
        train: {protocol: published, weight_decay: 0.5}
        regimes: {rich: {genes: 20, cells: 500, train: {protocol: tuned, dropout: 0.2}}}""")
    training = study.training("rich")
    found = training.weight_decay, training.dropout, training.masks, training.learning_rate, training.batch
    assert found == (0.5, 0.2, "fixed", Train().learning_rate, 128)


@pytest.mark.parametrize("name", sorted(file.stem for file in (io.CODE / "params").glob("*.yaml")))
def test_shipped_studies_are_valid(name):
    assert load_study(name).name == name


def test_a_missing_study_names_the_nearest_and_a_name_of_digits_only_is_one(project):
    (project / "params" / "2024.yaml").write_text(yaml.safe_dump(GOOD))
    assert load_study(2024).data == project / "data" / "2024"  # papermill gives it as a number
    with pytest.raises(InputError, match=r"did you mean 2024\?"):
        load_study("204")


NOT_A_STUDY = {
    "not YAML": ("seeds: [", "is not valid YAML"),
    "a key given twice": ("regimes:\n  a: {genes: 2}\n  a: {genes: 3}", "a is given twice in .*line 3"),
    "a program": ("seeds: !!python/object/apply:os.getpid []", "is not valid YAML"),
    "another encoding": ("filter: \udce9", "is not valid YAML"),
    "a list": ("- XS", "should hold keys such as census and sizes"),
    "nothing": ("", "should hold keys such as census and sizes"),
}


@pytest.mark.parametrize("kind", NOT_A_STUDY)
def test_a_file_that_is_no_study_is_refused_in_one_sentence(project, kind):
    text, expected = NOT_A_STUDY[kind]
    (project / "params" / "mine.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InputError, match=rf"^params/mine.yaml [^\n]*{expected}[^\n]*\.$"):
        load_study("mine")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([*GOOD, "split", "train", "fit", "masking"]), anything)
def test_any_value_anywhere_is_accepted_or_refused_with_a_sentence(key, value):
    for content in (GOOD | {key: value}, GOOD | {key: {"seed": value}}, {**GOOD, "census": {"simulate": value}}):
        try:
            assert parse_study(content, "mine").name == "mine"
        except InputError as refusal:
            assert str(refusal).endswith(".") and "\n" not in str(refusal)
