"""All runs of a study in one table."""

from pathlib import Path

import numpy as np
import pandas as pd

from lib import io
from lib.data import panel, readers
from lib.io import InputError
from lib.model.sizes import BUDGETS, PUBLISHED, recipe
from lib.study import SPLITS, Study

LOSSES = [f"{split}_{unit}" for unit in ("mse", "nll") for split in SPLITS[1:]]
"""Columns of the losses: squared error on the log scale, and bits per masked gene where counts are predicted."""
BASELINE_COLUMNS = {
    "mse": {"gene_mean": "gene_mean_mse", "pca": "pca_mse", "gaussian": "gaussian_mse", "floor": "bayes_mse"},
    "nll": {"gene_mean": "gene_nll", "gaussian": "gaussian_nll", "floor": "bayes_bits"},
}
"""Columns of the baselines by the unit of a loss."""
BASELINES = [column for unit in BASELINE_COLUMNS.values() for column in unit.values()]
COLUMNS = [
    "study", "regime", "size", "seed", "width", "parameters", "parameters_without_embeddings", "genes", "cells_train",
    "donors", "thin", "panel_of", "split_seed", "training_flops_per_cell", "cells_seen", "updates", "learning_rate",
    "optimiser", "batch", "protocol", "objective", *LOSSES,
    *(f"{loss}{error}" for error in ("_se", "_donor_se") for loss in LOSSES),
    *(f"{split}_donors" for split in SPLITS[1:]), *BASELINES,
    *(f"validation_{unit}_{budget}" for unit in ("mse", "nll") for budget in BUDGETS), "convergence", "seconds",
    "cells_per_second", "device", "status", "reason", "code_version",
]  # fmt: skip

WHOLE = ("parameters", "parameters_without_embeddings", "genes", "cells_train", "cells_seen", "updates")
"""Columns of whole numbers from 1."""
MEASURED = ("_mse", "_nll", "_bits", "_se", "_donors", *(f"_{budget}" for budget in BUDGETS))
"""How the columns end that were measured: losses, their errors, baselines, earlier budgets."""
STATES = {"ok": "ok", "finished": "ok", "completed": "ok", "diverged": "diverged"} | dict.fromkeys(
    ("interrupted", "crashed", "failed", "killed", "cancelled", "timeout", "preempted", "running"), "interrupted"
)
"""Our status, by what it and the states of services that track runs are called."""


def collect(study: Study) -> pd.DataFrame:
    """Every run of a study, finished or stopped (or given, or kept), as one row with the columns of `COLUMNS`.

    The baselines of a row are those of its regime's validation cells. A run that was started and has no result has
    status `interrupted` and no loss; a run that was never started has no row.
    """
    if study.runs:
        return given(study)
    if kept(study):
        return read(study.results / "runs.csv").reindex(columns=COLUMNS)
    trained = [(regime, size.name) for regime in study.regimes for size in study.sizes]
    rows = [_row(study, regime, size, seed) for regime, size in trained for seed in study.seeds_for(size)]
    if not any(rows):
        raise InputError(f"study {study.name} has no runs in {study.name}/*/runs yet; run notebook 03_train first.")
    return pd.DataFrame([row for row in rows if row]).reindex(columns=COLUMNS)


def kept(study: Study) -> str:
    """In one sentence, where the runs of a study are from that has none here and some in data/results; else empty."""
    if study.runs or any(study.data.glob("*/runs/*/*/history.csv")) or not (study.results / "runs.csv").is_file():
        return ""
    origin, place = io.read_json(study.results / "origin.json"), io.shown(study.results)
    return f"These runs were not trained here: they are those of {place} ({origin['date']}, commit {origin['commit']})."


def _row(study, regime, size, seed):
    folder, settings, shape = study.run_folder(regime, size, seed), study.regimes[regime], study.size(size)
    training = study.training(regime)
    asked = {
        "study": study.name, "regime": regime, "size": size, "seed": seed, "donors": settings.donors,
        "thin": settings.thin, "split_seed": study.split_of(regime).seed, "protocol": training.protocol,
        "objective": training.objective, "training_flops_per_cell": shape.training_flops_per_cell(settings.genes),
        # Panels with genes and held-out cells of their own are named apart.
        "panel_of": study.genes_from if study.genes_from and study.split.cells else regime,
    }  # fmt: skip
    record = io.read_json(folder / "result.json") if (folder / "result.json").is_file() else None
    if record is None:
        return {**asked, "status": "interrupted"} if (folder / "history.csv").is_file() else None
    measured = io.read_json(study.folder(regime) / "baselines.json")
    made, due = measured.get("panel", {}), {"recipe": recipe(shape, training)}
    current = made.get("study_settings") == panel.settings_of(study, regime)
    due["panel"] = made.get("digest") if current else None  # no run's
    if record["status"] == "ok" and not due.items() <= record.items():
        return {**asked, "status": "interrupted", "reason": "of another panel or version of the study file"}
    return {**record, **{name: measured["validation"].get(name) for name in BASELINES}, **asked}


def given(study: Study) -> pd.DataFrame:
    """The table of runs that a study names instead of training them, with the columns of `COLUMNS` first.

    Semicolons between columns may go with decimal commas, as spreadsheets write them in much of Europe.
    InputError: it lacks a column or value that the fit needs, or has something else where a number or status belongs.
    """
    source, here = study.runs, f"params/{study.name}.yaml"
    written = readers.table(io.ROOT / source.table)
    table = written.rename(columns={"State": "status", "state": "status"} | source.columns)
    readers.check_once(f"{source.table} has column", table.columns, table.columns.duplicated(), "rename or drop one")
    needed = {*(source.regimes or ["regime"]), "size", "seed", "parameters", "validation_mse"}
    if missing := sorted({*source.columns} - {*written}) or sorted(needed - {*table}):
        raise InputError(
            f"{source.table} has no column {', '.join(missing)} with values (it has: {', '.join(written)}); name it "
            f"under runs.columns in {here}."
        )
    for column, names in source.regimes.items():
        table["regime"] = table[column].map({str(value): name for value, name in names.items()})
        _refuse(source.table, table[column], table["regime"].isna(), f"none of runs.regimes in {here}; add it there")
    for column in sorted(needed - {"validation_mse"}):
        _refuse(source.table, table[column], table[column].isna(), "which every run needs; fill it in")
    table = table if "status" in table else table.assign(status="ok")
    status = table["status"].str.lower().map(STATES)
    _refuse(source.table, table["status"], status.isna(), f"no status; write one of {', '.join(STATES)}")
    if "convergence" in table:
        known = table["convergence"].str.strip().str.lower()
        unknown = known.notna() & ~known.isin(("converged", "not converged"))
        _refuse(source.table, table["convergence"], unknown, "which is neither converged nor not converged")
        table["convergence"] = known
    table = _numbers(table, source.table, written.attrs["separator"] == ";").assign(study=study.name, status=status)
    if usable(table, "validation_mse").empty:
        raise InputError(f"{source.table} has no run of status ok with a finite validation_mse; add some.")
    if "width" not in table:
        table["width"] = [_width(run) for run in table.to_dict("records")]
    if unknown := sorted({*source.gene_mean_mse} - {*table["regime"]}):
        has = ", ".join(table["regime"].unique())
        raise InputError(f"{here}: runs.gene_mean_mse names {unknown[0]}, no regime of {source.table} (it has: {has}).")
    if source.gene_mean_mse:
        table["gene_mean_mse"] = table["regime"].map(source.gene_mean_mse)
    extra = [column for column in table if column not in COLUMNS]
    return table.reindex(columns=[*COLUMNS, *extra]).reset_index(drop=True)


def _width(run):
    """Width of a published size; unknown where a run of that name has not its number of parameters."""
    size, genes = PUBLISHED.get(run["size"]), run.get("genes")
    counts = [run["parameters"]] if pd.isna(genes) or not size else [size.parameters(int(genes), n) for n in (1, 2)]
    return size.d if size and run["parameters"] in counts else np.nan


def _numbers(table, name, commas):
    """The table with numbers for text; `commas`: its decimals may have them, and if one has, a point is no decimal."""
    others = ("thin", "training_flops_per_cell")
    read = [column for column in COLUMNS if column in (*WHOLE, *others) or column.endswith(MEASURED)]
    strict = table.columns.intersection(read)
    commas = commas and any(table[column].str.contains(",").any() for column in strict)
    for column in table.columns.difference(["regime", "size", "status"]):
        written = table[column].str.translate(str.maketrans(",.", ".,")) if commas else table[column]
        numbers = pd.to_numeric(written, errors="coerce")
        words = table[column].notna() & numbers.isna()
        if column in WHOLE:
            words |= numbers.notna() & ~((numbers > 0) & (numbers < np.inf) & (numbers % 1 == 0))
        if column in strict:
            kind = "a whole number from 1" if column in WHOLE else "a number"
            advice = "write it as 24000 or 0.125, and leave the loss of a run without one empty"
            _refuse(name, table[column], words, f"not {kind}; {advice}")
        if not words.any():
            table = table.assign(**{column: numbers})
    return table


def _refuse(name, values, wrong, why):
    """Refuse the first value that is wrong, (rows,) bool, by its line and column."""
    for line in values.index[wrong][:1]:
        value = "empty" if pd.isna(values[line]) else repr(values[line])
        raise InputError(f"{name}, line {line}: {values.name} is {value}, {why}.")


def read(path: Path) -> pd.DataFrame:
    """A table that a notebook wrote, runs.csv or sizes.csv; names of digits alone stay text."""
    if not path.is_file():
        raise InputError(f"{io.shown(path)} is missing; run notebook 04_fit first.")
    return pd.read_csv(path, dtype=dict.fromkeys(("study", "regime", "size"), str))


def histories(study: Study, regime: str) -> pd.DataFrame:
    """Learning curves of one regime: size, seed and the columns of history.csv, one row per measurement."""
    runs = [(size.name, seed) for size in study.sizes for seed in study.seeds_for(size.name)]
    paths = {run: study.run_folder(regime, *run) / "history.csv" for run in runs}
    curves = [pd.read_csv(path).assign(size=size, seed=seed) for (size, seed), path in paths.items() if path.is_file()]
    if not curves:
        raise InputError(f"study {study.name} has no learning curves in {regime}/runs; run notebook 03_train first.")
    return pd.concat(curves, ignore_index=True)


def baselines(study: Study) -> dict:
    """What 01_data measured, {regime: {split: {...}}}, under `panel` of what; of given runs what the file says."""
    if study.runs:
        return {regime: {"validation": {"gene_mean_mse": loss}} for regime, loss in study.runs.gene_mean_mse.items()}
    if kept(study):
        return io.read_json(study.results / "baselines.json")
    paths = {regime: study.folder(regime) / "baselines.json" for regime in study.regimes}
    return {regime: io.read_json(path) for regime, path in paths.items() if path.is_file()}


def headline(table: pd.DataFrame) -> dict[str, str]:
    """{regime: the loss that its models were trained for}: validation_nll, bits of a count, or validation_mse."""
    counts = table.dropna(subset="validation_nll")["regime"].unique() if "validation_nll" in table else ()
    return {name: "validation_nll" if name in counts else "validation_mse" for name in table["regime"].unique()}


def baseline_columns(metric: str) -> dict[str, str]:
    """{baseline: its column in runs.csv and baselines.json}, in the unit of a metric."""
    return BASELINE_COLUMNS[metric.rpartition("_")[2]]


def levels(baselines: dict, regime: str, metric: str) -> dict[str, float | None]:
    """{baseline: its loss, on the split and in the unit of a metric}; all of them are of the function `baselines`."""
    measured = baselines.get(regime, {}).get(metric.rpartition("_")[0], {})
    return {name: measured.get(column) for name, column in baseline_columns(metric).items()}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row per regime and size: seeds, mean losses, and the share explained of the reducible loss.

    The reducible loss lies between the gene mean (for bits, a negative binomial of each gene) and the exact floor;
    where no floor is known, the share is of the gene mean's whole loss. The baselines' shares stand beside it.
    """
    parts = []
    for regime, metric in headline(table).items():
        rows = usable(table[table["regime"] == regime], metric)
        by_size = rows.groupby(["regime", "parameters", "size"], sort=True)
        test = metric.replace("validation", "test")
        part = by_size.agg(seeds=("seed", "nunique"), loss=(metric, "mean"), test=(test, "mean"))
        part.insert(1, "metric", metric)
        untrained = {name: by_size[column].mean().astype(float) for name, column in baseline_columns(metric).items()}
        reducible = untrained["gene_mean"] - untrained["floor"].fillna(0)
        part["explained"] = (untrained["gene_mean"] - part["loss"]) / reducible
        for name in ("pca", "gaussian"):
            if name in untrained:
                part[f"explained_by_{name}"] = (untrained["gene_mean"] - untrained[name]) / reducible
        parts.append(part.reset_index())
    return pd.concat(parts, ignore_index=True)


def of_metric(laws: dict, metric: str | None = None) -> dict[str, dict]:
    """{regime: its law for a metric, or its headline law}; regimes without one are left out."""
    chosen = {regime: metric or next(iter(by_metric)) for regime, by_metric in laws.items()}
    return {regime: laws[regime][name] for regime, name in chosen.items() if name in laws[regime]}


def with_provenance(laws: dict, study: Study) -> dict:
    """The laws, each with where it comes from: study, code, libraries and, for trained runs, the census."""
    origin = {"study": study.name, "code_version": io.code_version(), "versions": io.versions()}
    if study.census:
        origin["census"] = study.census.model_dump(mode="json", exclude_none=True)
        origin["split"], origin["seeds"] = study.split.model_dump(mode="json"), study.seeds
        origin["errors"] = study.fit.errors
    return {regime: {metric: law | {"provenance": origin} for metric, law in of.items()} for regime, of in laws.items()}


CONTEXT = 4
"""Least width that sees context: LayerNorm leaves nothing of one value, and one bit of two. Narrower sizes sit on the
gene mean and would lever every fit: they are drawn, not fitted."""


def sees_context(runs: pd.DataFrame) -> pd.Series:
    """Whether each run's size sees the other genes of a cell; true where its width is not known."""
    width = runs["width"] if "width" in runs else pd.Series(np.nan, runs.index)
    return ~(pd.to_numeric(width, errors="coerce") < CONTEXT)


def usable(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows that may enter a fit: status ok, a finite loss, and, where there are seeds, no exact copy of another row."""
    good = np.isfinite(pd.to_numeric(runs[metric], errors="coerce"))
    if "status" in runs:
        good &= runs["status"] == "ok"
    if "seed" in runs:
        good &= ~runs.duplicated()
    return runs[good]
