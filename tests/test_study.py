"""Study files: what is accepted, and the sentence that refuses the rest."""

import copy
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lib import io
from lib.io import InputError
from lib.model.sizes import PUBLISHED
from lib.study import load_study, parse_study

GOOD = {
    "census": {"simulate": {"cells": 1000}},
    "regimes": {"data-rich": {"genes": 20, "cells": 500}},
    "sizes": ["XXS", {"d": 32, "layers": 2, "heads": 4, "ff_mult": 4}],
    "seeds": [7, 8],
}


def changed(path, value):
    content = copy.deepcopy(GOOD)
    *above, last = path.split(".")
    inner = content
    for key in above:
        inner = inner.setdefault(key, {})
    inner[last] = value
    return content


REFUSED = {
    "unknown key": ("trian", {}, "trian is not a known key (did you mean train?)"),
    "unknown nested key": ("train.learning_rte", 1.0, "did you mean learning_rate?"),
    "a typo in a required key": ("regimes.data-rich", {"gense": 20, "cells": 500}, "gense is not a known key"),
    "unknown key of a file": ("census", {"files": [{"path": "a", "doner_id": "b"}]}, "census.files.0: doner_id is not"),
    "a file without its path": ("census", {"files": [{"donor_id": "b"}]}, "census.files.0.path: Field required"),
    "unknown size": ("sizes", ["XXL"], "did you mean XL?"),
    "unknown size key": (
        "sizes",
        [{"d": 8, "layer": 1, "layers": 1}],
        "layer is not a known key (did you mean layers?)",
    ),
    "width not divisible by heads": ("sizes", [{"d": 10, "layers": 1, "heads": 3}], "not a multiple of heads = 3"),
    "no sizes": ("sizes", [], "sizes"),
    "repeated seed": ("seeds", [7, 7], "seeds lists 7 more than once"),
    "repeated size": ("sizes", ["XS", "XS"], "sizes lists xs more than once"),
    "seeds of a size that is not there": ("seeds_of", {"XSX": [7]}, "which is no size (did you mean"),
    "no seeds for a size": ("seeds_of", {"XXS": []}, "seeds_of.XXS"),
    "repeated seed of a size": ("seeds_of", {"XXS": [7, 7]}, "seeds_of.XXS lists 7 more than once"),
    "negative seed": ("seeds", [-1], "greater than or equal to 0"),
    "true is not a number": ("seeds", [True], "valid integer"),
    "words for numbers": (
        "regimes.data-rich.genes",
        "many",
        "regimes.data-rich.genes: Input should be a valid integer",
    ),
    "no regimes": ("regimes", {}, "regimes"),
    "regime name with a slash": ("regimes", {"../up": {"genes": 20, "cells": 500}}, "../up"),
    "two sources": ("census.uri", "somewhere", "exactly one of simulate, version, uri, h5ad or files"),
    "no source": ("census", {}, "exactly one of simulate, version, uri, h5ad or files"),
    "moving version": ("census", {"version": "latest"}, "not a dated release"),
    "nothing left to train on": ("split", {"validation": 0.5, "test": 0.5}, "leave no cells to train on"),
    "share above one": ("masking.share", 1.5, "less than 1"),
    "unknown protocol": ("train.protocol", "tunde", "'tuned' or 'published'"),
    "nan learning rate": ("train.learning_rate", math.nan, "learning_rate"),
    "runs given and runs to train": ("runs", {"table": "data/mine.csv"}, "keep one of the two"),
    "list for a section": ("train", [1], "train"),
    "regimes that are one folder on some disks": (
        "regimes",
        {name: {"genes": 20, "cells": 500} for name in ("rich", "Rich")},
        "regimes lists rich more than once",
    ),
    "genes of a regime that is not there": ("genes_from", "data-rch", "which is no regime (did you mean data-rich?)"),
    "bits with noisy masks": ("train", {"protocol": "published", "objective": "poisson"}, "set report: final"),
    "bits with noisy masks in a regime": (
        "regimes.data-rich.train",
        {"protocol": "published", "objective": "poisson"},
        "set report: final",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_studies_are_refused_in_one_sentence(name):
    path, value, expected = REFUSED[name]
    with pytest.raises(InputError) as refusal:
        parse_study(changed(path, value), "mine")
    sentence = str(refusal.value)
    assert sentence.startswith("params/mine.yaml: ")
    assert expected in sentence
    assert "\n" not in sentence


def test_a_good_study_is_read_as_written():
    study = parse_study(GOOD, "mine")
    assert study.size("XXS") == PUBLISHED["XXS"]
    assert study.size("d32-l2-h4-f4").parameters(20) == 20 * 32 + 3 * 32 + 33 + 2 * (12 * 32**2 + 13 * 32)
    assert study.run_folder("data-rich", "XXS", 7) == io.ROOT / "data/mine/data-rich/runs/XXS/seed-7"


def test_a_protocol_fills_what_the_study_leaves_out_and_nothing_else():
    published = parse_study(changed("train", {"protocol": "published", "dropout": 0.0}), "mine").train
    assert (published.learning_rate, published.cells_seen, published.train_on) == (3.125e-5, 240_000, "all")
    assert published.dropout == 0.0
    assert parse_study(GOOD, "mine").train.train_on == "train"


@pytest.mark.parametrize("written", ["2025-11-08", "'2025-11-08'"])
def test_a_census_date_is_a_version_whether_or_not_it_is_quoted(written):
    census = yaml.safe_load(f"version: {written}")
    assert parse_study(changed("census", census), "mine").census.version == "2025-11-08"


def test_numbers_in_scientific_notation_without_a_point_are_numbers():
    content = changed("train", yaml.safe_load("{learning_rate: 4e-3, clip: 1e0}"))
    assert parse_study(content, "mine").train.learning_rate == 0.004


def test_names_of_digits_only_are_names():
    content = GOOD | yaml.safe_load("""
        regimes: {2000: {genes: 20, cells: 500}, 200: {genes: 20, cells: 50}}
        genes_from: 2000
        sizes: [XXS, {name: 64, d: 64, layers: 1}]
        seeds_of: {64: [7]}""")
    study = parse_study(content, "2024")
    assert list(study.regimes) == ["2000", "200"] and study.seeds_for("64") == [7]
    assert study.run_folder("2000", "64", 7) == io.ROOT / "data/2024/2000/runs/64/seed-7"
    for regime, size in (("200", "64"), (200, 64)):  # papermill gives them as numbers
        assert study.folder(regime).name == "200" and study.size(size).d == 64 and study.seeds_for(size) == [7]
        assert list(study.panel_settings(regime)["regimes"]) == ["200", "2000"]


def test_a_last_batch_that_is_not_full_is_an_update():
    train = parse_study(changed("train", {"cells_seen": 100, "batch": 32}), "mine").train
    assert train.updates == 4


def test_a_regime_trains_by_the_studys_settings_under_its_own():
    content = changed("regimes.data-rich.train", {"protocol": "tuned", "dropout": 0.2})
    training = parse_study(content | {"train": {"protocol": "published", "batch": 8}}, "mine").training("data-rich")
    assert (training.batch, training.dropout, training.masks, training.learning_rate) == (8, 0.2, "fixed", 0.0098)


def test_unknown_regimes_and_sizes_name_the_nearest():
    study = parse_study(GOOD, "mine")
    with pytest.raises(InputError, match=r"did you mean data-rich\?"):
        study.folder("data-rch")
    with pytest.raises(InputError, match=r"did you mean XXS\?"):
        study.size("XSS")


@pytest.mark.parametrize("name", sorted(file.stem for file in (io.CODE / "params").glob("*.yaml")))
def test_shipped_studies_are_valid(name):
    assert load_study(name).name == name


def test_a_missing_study_names_those_that_are_there(project):
    (project / "params" / "demo.yaml").touch()
    with pytest.raises(InputError, match=r"did you mean demo\?"):
        load_study("dem")


NOT_A_STUDY = {
    "not YAML": ("seeds: [", "is not valid YAML"),
    "a key given twice": ("regimes:\n  a: {genes: 2}\n  a: {genes: 3}", "a is given twice in .*line 3"),
    "no date": ("version: 2025-13-08", "is not valid YAML"),
    "another encoding": ("filter: \udce9", "is not valid YAML"),
    "a list": ("- XS", "should hold keys such as census and sizes, and holds list"),
    "nothing": ("", "holds NoneType"),
}


@pytest.mark.parametrize("kind", NOT_A_STUDY)
def test_a_file_that_is_no_study_is_refused_in_one_sentence(project, kind):
    text, expected = NOT_A_STUDY[kind]
    (project / "params" / "mine.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InputError, match=rf"^params/mine.yaml [^\n]*{expected}[^\n]*\.$"):
        load_study("mine")


def test_keys_that_come_by_an_anchor_may_be_given_again(project):
    text = "a: &a {x: {<<: {genes: 1}, genes: 2}}\nb: {<<: *a, x: 3}\nc: &c {k: 1, <<: *a}\nd: {<<: *c, k: 2}"
    (project / "params" / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match="a is not a known key"):  # and not: given twice
        load_study("mine")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([*GOOD, "split", "train", "fit", "masking", "census.simulate", "regimes.data-rich"]), anything)
def test_any_value_anywhere_is_accepted_or_refused_with_a_sentence(path, value):
    try:
        study = parse_study(changed(path, value), "mine")
    except InputError as refusal:
        assert str(refusal).endswith(".") and "\n" not in str(refusal)
    else:
        assert study.name == "mine"
