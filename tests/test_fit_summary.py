"""The table of runs, laws.json and the tables read from it; the published study's fitter and its choices."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from lib import io
from lib.fit import published, runs, summary
from lib.fit.intervals import HEADLINE
from lib.fit.summary import fit_laws, floor_bits, gaussian_bits, laws_table
from lib.io import InputError
from lib.run import cli
from lib.study import load_study, parse_study


@pytest.fixture(scope="module")
def table(published_runs):
    """The published runs, as if every size saw context; the study leaves XXS out."""
    return published_runs.drop(columns="width")


@pytest.fixture(scope="module")
def laws(table):
    return fit_laws(table, 500, 0)


def simulated(loss, seeds=3, sizes=7, seed=0):
    """Runs of one regime with `loss` a function of P and noise of 0.01."""
    P = np.repeat(np.geomspace(1e3, 1e8, sizes), seeds)
    losses = loss(P) + 0.01 * np.random.default_rng(seed).standard_normal(len(P))
    return pd.DataFrame({"regime": "r", "size": [f"{p:.0f}" for p in P], "parameters": P, "validation_mse": losses})


def law_of(table):
    return fit_laws(table, 200, 0)["r"]["validation_mse"]


def test_golden_numbers_of_the_published_runs(laws):
    """When these change, raise io.FIT_NUMERICS."""
    law = laws["data-rich"]["validation_mse"]
    assert round(law["r2"], 3) == 0.996
    aicc = {"power + floor": -142, "quadratic": -94, "power": -66, "log-linear": -64, "constant": -49}
    assert {form: round(law["comparison"][form]["aicc"]) for form in aicc} == aicc
    assert law["lack_of_fit"]["df"] == [3, 12]
    assert (round(law["lack_of_fit"]["F"], 2), round(law["lack_of_fit"]["p"], 2)) == (1.21, 0.35)
    shown = summary.comparison_table(laws).loc["data-rich", "lack_of_fit"].dropna()
    assert shown.round(2).to_dict() == {"power + floor": 0.35}
    predicted = next(row for row in law["rollout"] if row["held_out"] == ["M", "L"] and row["size"] == "M")
    assert predicted["predicted"] == pytest.approx(1.479, abs=5e-4)
    assert laws["data-limited"]["validation_mse"]["status"] == "alpha at grid edge"


def test_failed_copied_and_shuffled_rows_change_nothing_but_the_count(table):
    rich = table[table["regime"] == "data-rich"]
    failed = rich.head(1).assign(status="diverged", validation_mse=99.0)
    tables = {
        "clean": rich, "shuffled": rich.sample(frac=1, random_state=3), "twice": pd.concat([rich, rich]),
        "failed": pd.concat([rich, failed, rich.head(2).assign(validation_mse=np.nan)]),
    }  # fmt: skip
    found = {name: fit_laws(rows, 200, 0)["data-rich"]["validation_mse"] for name, rows in tables.items()}
    left_out = {name: law.pop("n_left_out") for name, law in found.items()}
    assert left_out == {"clean": 0, "shuffled": 0, "twice": 18, "failed": 3}
    assert all(law == found["clean"] for law in found.values())
    means = [runs.summary(rows)["loss"].to_numpy() for rows in tables.values()]
    assert all(np.allclose(of, means[0]) for of in means), "what is printed is what is fitted"


def test_a_regime_with_too_few_sizes_does_not_take_the_others_with_it(table):
    few = table[(table["regime"] == "data-rich") | (table["size"] == "M")]
    none = few.assign(status=np.where(few["regime"] == "data-limited", "diverged", "ok"))
    for rows, sizes in ((few, 1), (none, 0)):
        laws = fit_laws(rows, 200, 0)
        assert laws["data-rich"]["validation_mse"]["status"] == "convergence not known", "the best of noisy evaluations"
        lone = laws["data-limited"]["validation_mse"]
        assert (lone["status"], lone["n_sizes"], lone["alpha"]) == ("too few sizes", sizes, None)
        assert set(lone) == set(laws["data-rich"]["validation_mse"])
        shown = laws_table(laws, {}).set_index("regime")
        assert shown["status"].to_dict() == {"data-rich": "convergence not known", "data-limited": "too few sizes"}
        assert shown.loc["data-rich", "alpha":"c_high"].notna().all()
        assert shown.loc["data-limited", "alpha":"baseline"].isna().all()
        json.dumps(laws, allow_nan=False)
        assert set(summary.curves(laws)["regime"]) == set(summary.rollout_table(laws)["regime"]) == {"data-rich"}


def test_three_sizes_give_a_law_without_an_interval_and_without_a_band():
    of_three = simulated(lambda P: 1 + P**-0.3, sizes=3).assign(study="mine")
    law = law_of(of_three)
    assert law["status"] == "too few sizes" and law["alpha"] is not None and law["intervals"] == {}
    ours = published.both_fits(of_three).query("fit == 'ours'")
    assert ours["loss"].notna().all() and ours[["lo", "hi"]].isna().all(axis=None)


@pytest.mark.parametrize("loss, scaling, floor", [
    (lambda P: 1.4 + 0.6 * (P / 1e3) ** -0.5, True, True), (lambda P: 2.0 * (P / 1e3) ** -0.2, True, False),
    (lambda P: 1.5 + 0 * P, False, None),
])  # fmt: skip
def test_scaling_and_floor_are_seen_where_they_are(loss, scaling, floor):
    law = law_of(simulated(loss))
    aicc = {form: of["aicc"] for form, of in law["comparison"].items()}
    assert (aicc["constant"] - aicc["power + floor"] > 2) == scaling
    if floor is not None:
        assert (law["intervals"][HEADLINE]["c"][0] > 0) == floor
        assert (aicc["power"] - aicc["power + floor"] > 2) == floor


def test_tables_that_hold_no_law_are_refused(table):
    with pytest.raises(InputError, match="no run has status ok"):
        fit_laws(table.assign(status="diverged"), 200, 0)


def test_the_curve_of_a_law_is_that_of_its_numbers_inside_its_band(laws):
    law, curve = laws["data-rich"]["validation_mse"], summary.curves(laws).query("regime == 'data-rich'")
    expected = law["a"] * curve["parameters"].to_numpy() ** -law["alpha"] + law["c"]
    assert curve["loss"].to_numpy() == pytest.approx(expected)
    assert curve["loss"].between(curve["lo"], curve["hi"], inclusive="neither").all()


def test_the_table_of_laws_has_the_exact_floor_and_the_best_baseline_of_the_headline_loss(laws):
    bits = {"counts": {"validation_nll": laws["data-rich"]["validation_mse"], "validation_mse": None}}
    known = {
        "data-rich": {"validation": {"bayes_mse": 1.46, "gene_mean_mse": 1.9, "pca_mse": 1.6, "gaussian_mse": 1.7}},
        "counts": {"validation": {"bayes_bits": 0.39, "gene_nll": 0.5, "gaussian_nll": 0.6, "bayes_mse": 9.0}},
    }
    rich, limited, counts = laws_table(laws | bits, known).to_dict("records")
    assert (rich["exact_floor"], rich["baseline"], counts["exact_floor"], counts["baseline"]) == (1.46, 1.6, 0.39, 0.5)
    assert [rich[key] for key in ("c", "c_low", "c_high")] == pytest.approx([1.470, 1.450, 1.489], abs=5e-4)
    intervals = summary.intervals_table(laws).query("regime == 'data-rich'")
    assert len(intervals) == 7 and intervals.iloc[0]["c_high"] == rich["c_high"] and intervals["c"].nunique() == 1
    assert np.isnan(limited["exact_floor"])
    assert rich["largest"] == laws["data-rich"]["validation_mse"]["sizes"]["mean"][-1] < rich["baseline"]


@pytest.mark.parametrize("status, alpha, c, shown", [
    ("ok", (0.5, 0.4, 0.6), (-0.1, -0.3, 0.1), (0.5, -0.1)),
    ("floor not identified", (0.1, None, 0.3), (0.2, None, 0.4), (0.1, 0.2)),
    ("floor not identified", (0.1, None, 0.3), (0.2, None, None), (0.1, None)),
    ("alpha at grid edge", (0.001, None, 0.3), (-15.3, None, 0.4), (None, None)),
    ("increasing", (0.9, 0.8, 1.0), (0.5, 0.49, 0.51), (None, None)),
])  # fmt: skip
def test_what_the_runs_do_not_determine_is_no_number_in_the_table_of_laws(status, alpha, c, shown):
    ends = {HEADLINE: {"alpha": alpha[1:], "c": c[1:]}}
    law = {"alpha": alpha[0], "c": c[0], "status": status, "intervals": ends, "budget": {}, "sizes": None}
    law["sensitivity"] = {f"{end} size left out": dict(law) for end in ("smallest", "largest")}
    (row,) = laws_table({"rich": {"validation_mse": law}}, {}).to_dict("records")
    assert [None if np.isnan(row[name]) else row[name] for name in ("alpha", "c")] == list(shown)


def test_gaussian_bits_are_those_of_the_paper_and_a_floor_is_converted_end_by_end():
    assert gaussian_bits(1.443758) == pytest.approx(2.312, abs=5e-4)
    assert gaussian_bits(4 * 0.3) - gaussian_bits(0.3) == pytest.approx(1), "they depend on the scale"
    assert floor_bits("validation_mse", 1.47, [None, 1.49])["interval"] == [None, pytest.approx(gaussian_bits(1.49))]
    assert floor_bits("test_mse", -0.1, [-0.5, 0.2])["interval"][0] is None
    bits = floor_bits("validation_nll", 2.1, [2.0, 2.2])
    assert (bits["value"], bits["interval"]) == (2.1, [2.0, 2.2])


@pytest.fixture(scope="module")
def rich(table):
    return table[table["regime"] == "data-rich"]


def test_the_published_fit_is_reproduced(table):
    rich, limited = (row for _, row in published.fits(table).iterrows())
    assert rich["alpha"] == pytest.approx(0.26643, abs=1e-5) and rich["a"] == pytest.approx(2.15276, abs=1e-5)
    assert rich["c"] == pytest.approx(1.443758, abs=1e-6) and rich["r2"] == pytest.approx(0.85798, abs=1e-5)
    assert rich["c"] == pytest.approx(0.99 * 1.458341) and rich["c_at_edge"]
    assert rich["rss"] == pytest.approx(0.201, abs=5e-4)
    assert round(limited["alpha"], 3) == 0.009 and limited["printed_alpha"] == 0.009


def test_choices_change_the_law_as_stated(rich):
    refits = published.refits(rich).set_index("fit")
    assert round(refits.loc["without XXS", "alpha"], 2) == 0.42 and round(refits.loc["without XXS", "c"], 3) == 1.465
    assert round(refits.loc["c at the smallest loss", "alpha"], 3) == 0.493
    left_out = refits.loc[refits.index.str.startswith("without"), "alpha"]
    assert (round(left_out.min(), 2), round(left_out.max(), 2)) == (0.42, 0.55)
    assert refits.loc["final loss", "c"] > refits.loc["least squares", "c_high"]
    few = rich.assign(final_val_mse=rich["final_val_mse"].where(rich["size"].isin(["XS", "S"])))
    assert published.refits(few).set_index("fit").loc["final loss", "status"] == "too few sizes"


def test_two_sizes_or_none_leave_the_tables_empty_rather_than_broken(table):
    two = table[table["size"].isin(["XXS", "M"])]
    laws = summary.fit_laws(two, 200, 0)
    assert summary.comparison_table(laws).empty and summary.curves(laws).empty and summary.rollout_table(laws).empty
    assert summary.intervals_table(laws).empty and len(published.fits(two)) == 2
    two = two[two["regime"] == "data-rich"]
    assert set(published.refits(two)["status"].dropna()) == {"too few sizes"} and published.both_fits(two).empty
    for none in (two[two["size"] == "M"], table.assign(validation_mse=-1.0)):
        assert published.fits(none).empty and published.refits(none).empty and published.both_fits(none).empty


ROWS = "regime,size,seed,parameters,validation_mse,status\n2000,d4,7,400,1.6451,finished\n2000,d8,7,1500,1.25,crashed\n"


@pytest.fixture
def given_table(project):
    """The runs of a study whose table holds `text`."""

    def read(text, **more):
        (project / "runs.csv").write_text(text, encoding="utf-8")
        return runs.given(parse_study({"runs": {"table": "runs.csv", **more}}, "mine"))

    return read


FORMS = [
    ROWS, "\ufeff" + ROWS, ROWS.replace(",", "\t"), ROWS.replace(",", ", "), ROWS + ",,,,,\n",
    ROWS.replace("\n", ",,\n"), ROWS.replace(",", ";"), ROWS.replace(",", ";").replace(".", ","),
    ROWS.replace("2000", "2000.0"),
    ROWS.replace("status", "State").replace("finished", "FINISHED"), ROWS.replace("crashed", "running "),
]  # fmt: skip


def test_runs_of_ones_own_come_before_kept_ones(tmp_path, monkeypatch):
    study = load_study("marrow-donors")
    kept, known = pd.read_csv(study.results / "runs.csv"), io.read_json(study.results / "baselines.json")
    assert runs.kept(study) and len(runs.collect(study)) == len(kept) and runs.baselines(study) == known
    monkeypatch.setattr(io, "ROOT", tmp_path)
    with pytest.raises(InputError, match="run notebook 03_train first"):
        runs.collect(study)
    with pytest.raises(InputError, match="run notebook 04_fit first"):
        runs.read(study.data / "runs.csv")
    shutil.copytree(io.CODE / "data" / "results" / "marrow-donors", study.results)
    started = study.run_folder(next(iter(study.regimes)), study.sizes[0].name, study.seeds[0]) / "history.csv"
    started.parent.mkdir(parents=True)
    started.touch()
    assert not runs.kept(study) and list(runs.collect(study)["status"]) == ["interrupted"]


def test_a_size_that_has_but_the_name_of_a_published_one_is_not_left_out_of_the_law(given_table):
    rows = "regime,genes,size,seed,parameters,validation_mse\nr,512,XXS,7,533,1.9\nr,512,XXS,8,2000,1.6\n"
    assert list(runs.sees_context(given_table(rows))) == [False, True]


@pytest.mark.parametrize("text", FORMS)
def test_tables_of_spreadsheets_and_of_tracking_services_are_read(given_table, text):
    table = given_table(text)
    assert table["regime"].tolist() == ["2000", "2000"] and table["validation_mse"].tolist() == [1.6451, 1.25]
    assert table["parameters"].tolist() == [400, 1500] and table["status"].tolist() == ["ok", "interrupted"]


@pytest.mark.parametrize("old, new, place", [
    ("1500", '"1,500"', "line 3: parameters is '1,500'"), ("1500", "1.5k", "line 3: parameters is '1.5k'"),
    ("1.25", '"1,25"', "line 3: validation_mse is '1,25'"), ("1.25", "OOM", "line 3: validation_mse is 'OOM'"),
    ("1500", "inf", "line 3: parameters is 'inf', not a whole number"),
    ("1500", "1.5", "line 3: parameters is '1.5'"),
    ("d8,7", "d8,", "line 3: seed is empty"), ("2000,d8", ",d8", "line 3: regime is empty"),
    ("1.25", "1,25", "line 3 has more values than there are columns"),
    ("crashed", "gone", "line 3: status is 'gone'"), ("1.6451", "inf", "has no run of status ok"),
    ("size", "model", "no column size"), ("status", "gene_mean_mse", "line 2: gene_mean_mse is 'finished'"),
    ("status", "convergence", "line 2: convergence is 'finished'"), ("status", "seed", "column seed more than once"),
    (ROWS.partition("\n")[2], "", "no row"),
])  # fmt: skip
def test_what_is_no_number_or_status_is_named_with_its_column_and_line(given_table, old, new, place):
    with pytest.raises(InputError, match=f"runs.csv.*{place}"):
        given_table(ROWS.replace(old, new))


def test_columns_that_the_table_lacks_and_regimes_that_the_study_lacks_are_named(given_table):
    with pytest.raises(InputError, match="no column panel_size"):
        given_table(ROWS, regimes={"panel_size": {64: "small"}})
    with pytest.raises(InputError, match="no column val_loss"):
        given_table(ROWS, columns={"val_loss": "validation_mse"})
    with pytest.raises(InputError, match="line 3: parameters is '1500', none of"):
        given_table(ROWS, regimes={"parameters": {400: "small"}})
    for thousands in ("1.500", "1.000"):
        with pytest.raises(InputError, match=f"line 3: parameters is '{thousands}', not a whole number"):
            given_table(ROWS.replace(",", ";").replace("1.25", "1,25").replace("1500", thousands))
    with pytest.raises(InputError, match="names poor, no regime"):
        given_table(ROWS, gene_mean_mse={"poor": 2.0})


def test_check_says_which_runs_of_a_table_have_a_loss_and_finds_its_faults(given_table, project, capsys):
    (project / "params" / "mine.yaml").write_text("runs: {table: runs.csv}")
    given_table(ROWS.replace("2000,d8", "2000,d4,7,400,1.7,ok\n2000,d8"))
    assert cli.main(["check", "mine"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "of 3, and sizes by parameters: runs sizes regime 2000 2 1 " in said and said.endswith("as a further run: 1")
    (project / "runs.csv").write_text(ROWS.replace("1500", "1.5k"))
    assert cli.main(["check", "mine"]) == 2 and "line 3: parameters is '1.5k'" in capsys.readouterr().err
    assert cli.main(["run", "mine"]) == 2 and "line 3" in capsys.readouterr().err
    assert not (project / "data").exists(), "nothing is begun"


def test_a_kept_study_is_its_tables_and_where_it_ran_and_needs_a_commit(study_file, monkeypatch):
    study = study_file("mine")
    texts = {"laws.json": "{}", "probe.csv": "f1\n", "notebooks/04_fit.ipynb": "[a](03_train.ipynb)",
             "runs.csv": "code_version,device,seconds\nabc,cpu,7200\n"}  # fmt: skip
    for name, text in texts.items():
        (study.data / name).parent.mkdir(parents=True, exist_ok=True)
        (study.data / name).write_text(text)
    for version, code in (("abc-modified", 2), ("abc", 0)):
        monkeypatch.setattr(io, "code_version", lambda version=version: version)
        assert cli.main(["keep", "mine"]) == code and study.results.exists() == (code == 0)
    names = {"laws.json", "probe.csv", "runs.csv", "04_fit.ipynb", "origin.json", "baselines.json"}
    assert {path.name for path in study.results.iterdir()} == names
    origin = io.read_json(study.results / "origin.json")
    assert (origin["commit"], origin["hours"], origin["machine"]["devices"]) == ("abc", 2.0, ["cpu"])
    assert "(../../../notebooks/03_train.ipynb)" in (study.results / "04_fit.ipynb").read_text()
