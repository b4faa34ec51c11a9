"""Conditions compared: training cells, held-out splits, protocols.

Each takes the table of runs and gives what its figure draws. `laws` is the content of laws.json, and `known` are the
baselines, {regime: {split: {...}}}.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from lib.fit.intervals import columns_of
from lib.fit.joint import frontier, joint_law, outlook
from lib.fit.runs import headline, usable
from lib.io import InputError

METRIC = "validation_mse"

# ---------------------------------------------------------------- training cells


@dataclass(frozen=True, eq=False)
class Matched:
    """Everything equal but the training cells: does the gain from size vanish because cells are few?

    An additive joint law says by construction that size gains as much at any number of cells, so the claim is tested
    without it first: the loss that size saves at each number of cells, and its trend.
    """

    sentence: str
    all_donors: pd.DataFrame | None = None  # usable runs with a column `loss`
    few_donors: pd.DataFrame | None = None
    gains: pd.DataFrame | None = None  # of `gains`, with the crossover of `joint.frontier`
    metric: str = METRIC
    outlook: str = ""  # what limits the largest run
    more: pd.DataFrame | None = None  # what more parameters or cells save it, of `joint.gains`


def matched(table: pd.DataFrame, seed: int = 0, level: float = 0.95) -> Matched:
    """The matched data axis of a table of runs. Regimes with another objective than the first are left out."""
    objective = table["objective"].fillna("")
    metric = next(iter(headline(table).values()))
    try:
        all_donors, few_donors = data_axis(table[objective == objective.iloc[0]], metric)
        law = joint_law(all_donors, seed=seed)
    except InputError as refusal:
        return Matched(f"No matched data axis: {refusal}")
    saved = gains(all_donors).assign(crossover=lambda table: frontier(law, table["cells_train"]))
    slope = trend(saved)
    sentence = (
        f"Per tenfold training cells what size saves changes by {slope['slope']:+.4f} "
        f"({slope['low']:+.4f} to {slope['high']:+.4f})."
    )
    return Matched(sentence, all_donors, few_donors, saved, metric, *outlook(law, level))


def data_axis(table: pd.DataFrame, metric: str = METRIC) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The usable runs of the matched axis, with the loss as a column: those of all donors, then those of few.

    Raises
    ------
    InputError
        The regimes differ in more than the training cells, or have fewer than three numbers of them.
    """
    rows = usable(table, metric).assign(loss=lambda rows: rows[metric].astype(float))
    for column in ("genes", "cells_seen", "objective", "protocol"):
        if column in rows and rows[column].nunique() > 1:
            raise InputError(
                f"these runs are not matched: {column} has the values {', '.join(map(str, rows[column].unique()))}; "
                "compare regimes that differ in training cells alone."
            )
    few = rows["donors"].notna() if "donors" in rows else pd.Series(False, rows.index)
    if rows.loc[~few, "cells_train"].nunique() < 3:
        raise InputError("a data axis takes three numbers of training cells at least; train more regimes.")
    return rows[~few], rows[few]


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """What size saves at each number of training cells.

    Returns
    -------
    DataFrame, one row per number of cells, fewest first
        cells_train; gain, the loss that the best size saves against the smallest one, with its standard error from the
        seeds; relative, the gain as a share of the smallest size's loss.
    """
    groups = rows.groupby(["cells_train", "parameters"])
    means = groups.agg(loss=("loss", "mean"), n=("loss", "size")).reset_index()
    free, squares = len(rows) - len(means), ((rows["loss"] - groups["loss"].transform("mean")) ** 2).sum()
    smallest = means.groupby("cells_train").first()
    best = means.loc[means.groupby("cells_train")["loss"].idxmin()].set_index("cells_train")
    gain = smallest["loss"] - best["loss"]
    se = np.sqrt(squares / max(free, 1) * (1 / smallest["n"] + 1 / best["n"]))
    return pd.DataFrame({"gain": gain, "se": se, "relative": gain / smallest["loss"]}).reset_index()


def trend(table: pd.DataFrame) -> dict[str, float]:
    """How the gain from size, of `gains`, changes per tenfold cells: least-squares slope with its 95 % interval."""
    line = stats.linregress(np.log10(table["cells_train"].astype(float)), table["gain"])
    reach = stats.t.ppf(0.975, len(table) - 2) * line.stderr
    return {"slope": line.slope, "low": line.slope - reach, "high": line.slope + reach}


# ---------------------------------------------------------------- held-out splits

CELLS = {
    "test_random": "cells of training donors",
    "validation": "other donors",
    "test": "other donors again",
    "test_dataset": "other data sets",
}
"""Whose cells a held-out split has."""


def explained(table: pd.DataFrame, known: dict) -> pd.DataFrame:
    """Share of each split's reducible squared error that every run explains.

    Splits differ in how hard their cells are; what can be compared is the share of the error from each split's gene
    mean to its exact floor, or to zero. One split alone gives no rows.

    Returns
    -------
    DataFrame
        regime, size, seed, parameters, split, cells (whose they are), explained, se (of explained, over cells),
        gaussian (explained by the conditional Gaussian).
    """
    parts = []
    for split, cells in CELLS.items():
        metric = f"{split}_mse"
        for regime, runs in (usable(table, metric) if metric in table else table[:0]).groupby("regime", sort=False):
            if baselines := known.get(regime, {}).get(split):
                gene_mean = baselines["gene_mean_mse"]
                reducible = gene_mean - baselines.get("bayes_mse", 0.0)
                errors = runs[f"{metric}_se"].astype(float) if f"{metric}_se" in runs else np.nan
                parts.append(runs[["regime", "size", "seed", "parameters"]].assign(
                    split=split, cells=cells, explained=(gene_mean - runs[metric]) / reducible, se=errors / reducible,
                    gaussian=(gene_mean - baselines.get("gaussian_mse", np.nan)) / reducible,
                ))  # fmt: skip
    shares = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"split": []})
    return shares if shares["split"].nunique() > 1 else shares[:0]


def laws_by_split(laws: dict) -> pd.DataFrame:
    """The law of the squared error on every split: regime, split, cells, alpha, c and their ends, status.

    No rows where there is one split alone.
    """
    rows = [
        {"regime": regime, "split": split, "cells": cells, **columns_of(law), "status": law["status"]}
        for regime, by_metric in laws.items()
        for split, cells in CELLS.items()
        if (law := by_metric.get(f"{split}_mse"))
    ]
    return pd.DataFrame(rows if len({row["split"] for row in rows}) > 1 else [])


def leak(shares: pd.DataFrame) -> pd.DataFrame:
    """What single cells of training donors make look better than other donors, per regime and size.

    Returns
    -------
    DataFrame
        regime, size, parameters, leak (explained share on test_random minus that on test), se (over the cells of both
        splits), gaussian: the same difference of the conditional Gaussian, which has the same training cells.
    """
    of_split = shares.groupby(["split", "regime", "size", "parameters"])[["explained", "se", "gaussian"]].mean()
    random, test = (
        of_split[of_split.index.get_level_values(0) == name].droplevel(0) for name in ("test_random", "test")
    )
    table = (random - test).assign(se=np.hypot(random["se"], test["se"])).dropna()
    table = table.rename(columns={"explained": "leak"}).reset_index()
    return table.sort_values(["regime", "parameters"], ignore_index=True)


# ---------------------------------------------------------------- protocols


def protocols(table: pd.DataFrame, laws: dict, known: dict) -> pd.DataFrame:
    """From the published protocol to another, switch by switch: what does each do to the exponent and the floor?

    Regimes that normalise differently have losses of different units; relative to their gene mean they can be compared.

    Returns
    -------
    DataFrame, one row per regime in the order of the study
        regime; alpha and relative_c, each with _low and _high; status. Empty for a study of one protocol.
    """
    if table["protocol"].iloc[0] != "published" or table["regime"].nunique() < 2:
        return pd.DataFrame()
    ran = set(usable(table, METRIC)["regime"])
    rows = [
        {"regime": regime, **columns_of(by_metric[METRIC]), "status": by_metric[METRIC]["status"]}
        for regime, by_metric in laws.items()
        if regime in ran
    ]
    steps = pd.DataFrame(rows).rename(columns=lambda name: f"relative_{name}" if name[:2] in ("c", "c_") else name)
    unit = steps["regime"].map(lambda regime: known[regime]["validation"]["gene_mean_mse"])
    ends = [name for name in steps if name.startswith("relative_c")]
    return steps.assign(**steps[ends].astype(float).div(unit, axis=0))
