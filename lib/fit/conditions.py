"""Conditions compared: training cells, held-out splits, donor splits, depth, protocols.

Each takes the table of runs and gives what its figure draws. `laws` is the content of laws.json, and `baselines` are
{regime: {split: {...}}}.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from lib.fit.intervals import columns_of, readable
from lib.fit.joint import frontier, joint_law, outlook
from lib.fit.law import Status
from lib.fit.runs import BASELINES, baseline_columns, headline, levels, of_metric, sees_context, usable
from lib.io import InputError
from lib.model.sizes import BUDGETS

METRIC = "validation_mse"
EQUAL = ["genes", "panel_of", "cells_seen", "protocol", "optimiser", "batch", "split_seed"]
"""Columns in which runs have to be equal to be compared along one axis."""
CONDITION = ["cells_train", "donors", "thin"]  # columns in which comparable regimes may differ


@dataclass(frozen=True, eq=False)
class Matched:
    """Everything equal but the training cells: does the gain from size vanish because cells are few?

    An additive joint law says by construction that size gains as much at any number of cells, so the claim is tested
    without it first: the loss that size saves at each number of cells. Every size has the loss of the best of its
    budgets: where cells are few, longer training undoes what size gains, and no joint law has that in it.
    """

    sentence: str
    all_donors: pd.DataFrame | None = None  # usable runs with a column `loss`, smallest first
    few_donors: pd.DataFrame | None = None
    gains: pd.DataFrame | None = None  # of `gains`, with the crossover of `joint.frontier`
    metric: str = METRIC
    outlook: str = ""  # what limits the largest run
    more: pd.DataFrame | None = None  # what more parameters or cells save it, of `joint.gains`


def matched(table: pd.DataFrame, seed: int = 0) -> Matched:
    """The matched data axis of a table of runs. Regimes with another objective than the first are left out."""
    objective, metric = table["objective"].fillna(""), next(iter(headline(table).values()))
    try:
        all_donors, few_donors = data_axis(table[objective == objective.iloc[0]], metric)
        law = joint_law(all_donors, seed=seed)
    except InputError as refusal:
        return Matched(f"No matched data axis: {refusal}")
    saved = gains(all_donors)
    saved["crossover"] = frontier(law, saved["cells_train"]) if law.status == Status.OK else np.nan
    few, many, change, reach = growth(saved)
    sentence = f"From {few:,} to {many:,} training cells what size saves changes by {change:+.4f}"
    sentence += "." if np.isnan(reach) else f" ({change - reach:+.4f} to {change + reach:+.4f})."
    return Matched(sentence, all_donors, few_donors, saved, metric, *outlook(law))


def data_axis(table: pd.DataFrame, metric: str = METRIC) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Usable runs of the matched axis, with a column `loss`: of all donors, then of few; InputError if not matched."""
    rows = usable(table, metric).assign(loss=lambda rows: at_best_budget(rows, metric))
    rows = _first_regimes(rows[sees_context(rows) & (rows["thin"].astype(float).fillna(1) == 1)])
    rows = rows.sort_values("parameters")
    for column in [*EQUAL, "objective"]:
        if rows[column].nunique(dropna=False) > 1:
            raise InputError(
                f"these runs are not matched: {column} has the values {', '.join(map(str, rows[column].unique()))}; "
                "compare regimes that differ in training cells alone (with genes_from and split.cells)."
            )
    few = rows["donors"].notna()
    return rows[~few], rows[few]


def at_best_budget(rows: pd.DataFrame, metric: str = METRIC) -> pd.Series:
    """Loss of each run at the best, in the mean over seeds, of the budgets at which all seeds of its size have one."""
    budgets = rows[[metric, *(f"{metric}_{name}" for name in BUDGETS)]].astype(float)
    by_size = budgets.fillna(np.inf).groupby([rows["regime"], rows["size"]])
    best = by_size.transform("mean").to_numpy().argmin(axis=1)
    return pd.Series(budgets.to_numpy()[np.arange(len(rows)), best], rows.index)


def _first_regimes(rows):
    """Of regimes with as many cells, donors and counts the first: others differ in what has no column."""
    return rows[rows["regime"] == rows.groupby(CONDITION, dropna=False)["regime"].transform("first")]


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """What size saves at each number of training cells, fewest first.

    Columns: cells_train; gain, the loss that the best size saves against the smallest one that ran at every number of
    cells, with reach, half its 95 % interval by Student's t from the seeds at this number; relative, the gain as a
    share of the smallest size's loss.
    """
    everywhere = rows.groupby("parameters")["cells_train"].nunique() == rows["cells_train"].nunique()
    smallest, table = next(iter(everywhere.index[everywhere]), None), []
    for cells, of in rows.groupby("cells_train"):
        mean, number = (of.groupby("parameters")["loss"].agg(how) for how in ("mean", "size"))
        first, best = mean.get(smallest, np.nan), mean.idxmin()
        reach = _reach(of, "loss", ["parameters"]) * np.sqrt(1 / number.get(smallest, np.nan) + 1 / number[best])
        gain = first - mean[best]
        table.append({"cells_train": cells, "gain": gain, "reach": reach, "relative": gain / first})
    return pd.DataFrame(table)


def _reach(rows, column, by):
    """Half the 95 % interval of one value, from the scatter of seeds within groups; NaN without a second seed."""
    groups = rows.groupby(by)[column]
    free = len(rows) - groups.ngroups
    squares = ((rows[column] - groups.transform("mean")) ** 2).sum()
    return stats.t.ppf(0.975, free) * np.sqrt(squares / free) if free else np.nan


def growth(table: pd.DataFrame) -> tuple[int, int, float, float]:
    """Fewest and most cells of `gains`, how the gain changes between them, and half the 95 % interval of that.

    Two ends and no line through all: the gain need not grow with the logarithm of the cells, and levels off.
    """
    few, many = table.iloc[0], table.iloc[-1]
    reach = np.hypot(few["reach"], many["reach"])
    return int(few["cells_train"]), int(many["cells_train"]), many["gain"] - few["gain"], reach


CELLS = {
    "test_random": "cells of training donors",
    "validation": "validation donors",
    "test": "test donors",
    "test_dataset": "other data sets",
}
"""Whose cells a held-out split has."""


def explained(table: pd.DataFrame, baselines: dict) -> pd.DataFrame:
    """Share of each split's reducible squared error that every run explains.

    Splits differ in how hard their cells are; what can be compared is the share of the error from each split's gene
    mean to its exact floor, or to zero. One split alone gives no rows. Columns: regime, size, seed, parameters, split,
    cells (whose they are), floor (exact, or NaN), explained, se (of explained, over cells), gaussian (what the
    conditional Gaussian explains).
    """
    parts = []
    for split, cells in CELLS.items():
        metric = f"{split}_mse"
        for regime, runs in usable(table, metric).groupby("regime", sort=False):
            if measured := baselines.get(regime, {}).get(split):
                gene_mean = measured["gene_mean_mse"]
                floor = float(measured.get("bayes_mse") or np.nan)
                reducible = gene_mean - np.nan_to_num(floor)
                parts.append(runs[["regime", "size", "seed", "parameters"]].assign(
                    split=split, cells=cells, floor=floor, explained=(gene_mean - runs[metric]) / reducible,
                    se=runs[f"{metric}_se"].astype(float) / reducible,
                    gaussian=(gene_mean - measured.get("gaussian_mse", np.nan)) / reducible,
                ))  # fmt: skip
    shares = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"split": []})
    return shares if shares["split"].nunique() > 1 else shares[:0]


def laws_by_split(laws: dict, baselines: dict) -> pd.DataFrame:
    """The law of the squared error on every split: regime, split, cells, alpha, c and their ends, exact_floor, status.

    No rows where there is one split alone, and none of a law without numbers.
    """
    rows = [
        {"regime": regime, "split": split, "cells": cells, **columns_of(law),
         "exact_floor": baselines.get(regime, {}).get(split, {}).get("bayes_mse"), "status": law["status"]}
        for regime, by_metric in laws.items()
        for split, cells in CELLS.items()
        if (law := by_metric.get(f"{split}_mse")) and law["sizes"]
    ]  # fmt: skip
    several = len({row["split"] for row in rows}) > 1
    return readable(pd.DataFrame(rows)).dropna(subset=["alpha", "c"], how="all") if several else pd.DataFrame()


def leak(shares: pd.DataFrame) -> pd.DataFrame:
    """What single cells of training donors make look better than those of test donors, per regime and size.

    Columns: regime, size, parameters, leak (explained share on test_random minus that on test), se (over the cells of
    both splits), gaussian: the same difference of the conditional Gaussian, which has the same training cells.
    """
    if shares.empty:
        return pd.DataFrame(columns=["regime", "size", "parameters", "leak", "se", "gaussian"])
    of_split = shares.groupby(["split", "regime", "size", "parameters"])[["explained", "se", "gaussian"]].mean()
    splits = of_split.index.get_level_values("split")
    random, test = (of_split[splits == name].droplevel("split") for name in ("test_random", "test"))
    table = (random - test).assign(se=np.hypot(random["se"], test["se"])).dropna()
    table = table.rename(columns={"explained": "leak"}).reset_index()
    return table.sort_values(["regime", "parameters"], ignore_index=True)


def donor_splits(table: pd.DataFrame) -> pd.DataFrame:
    """The same sizes on several splits of the donors: is the gain over the baselines one of these held-out people?

    The loss differs with the donors that are held out; what size gains on a baseline, which has the same cells, less.
    Empty for fewer than three splits, or without baselines. A row per size: splits; the mean loss and its spread, a
    standard deviation; below_baseline, the mean share by which the loss is below the best baseline's, with _low and
    _high, its 95 % interval over splits.
    """
    metric = next(iter(headline(table).values()))
    of_unit = baseline_columns(metric)
    untrained = [column for name, column in of_unit.items() if name != "floor" and column in table]
    rows = usable(table, metric)
    rows = rows[rows["cells_train"] == rows.groupby("split_seed")["cells_train"].transform("max")]
    equal = [name for name in EQUAL if name not in ("panel_of", "split_seed")]
    rows = _alike(rows, rows[:1], [*equal, "donors", "thin", "objective"])
    if rows["split_seed"].nunique() < 3 or rows[untrained].isna().all(axis=None):
        return pd.DataFrame()
    means = rows.groupby(["parameters", "size", "split_seed"])[[metric, *untrained]].mean().astype(float)
    means["below"] = 1 - means[metric] / means[untrained].min(axis=1)
    found = means.groupby(["parameters", "size"]).agg(
        splits=("below", "size"), loss=(metric, "mean"), spread=(metric, "std"), below_baseline=("below", "mean"),
        error=("below", "sem"),
    ).reset_index("size")  # fmt: skip
    reach = stats.t.ppf(0.975, found["splits"] - 1) * found.pop("error")
    below = found["below_baseline"]
    return found.assign(below_baseline_low=below - reach, below_baseline_high=below + reach).reset_index(drop=True)


@dataclass(frozen=True, eq=False)
class Depth:
    """The same cells with fewer counts: what would deeper sequencing buy, against a larger model and more cells?

    A loss at one depth cannot be compared with one at another, because each depth has other values to predict. The
    share explained of the gene mean's squared error can: it grows with each of the three.
    """

    runs: pd.DataFrame  # size, parameters, depth, loss, explained: means over seeds, of the largest number of cells
    levels: pd.DataFrame  # depth, its regime, and of the headline loss gene_mean, gaussian, floor; explained_ by those
    metric: str


def depth(table: pd.DataFrame) -> Depth | None:
    """The depths of a study's largest regimes; None where there is one."""
    metric, rows = next(iter(headline(table).values())), _like_the_largest(table)
    most = rows[rows["cells_train"] == rows["cells_train"].max()]
    if most["depth"].nunique() < 2:
        return None
    most = most.assign(loss=most[metric].astype(float))
    runs = most.groupby(["depth", "parameters", "size"])[["loss", "explained"]].mean().reset_index()
    columns = baseline_columns(metric)
    means = most.astype(dict.fromkeys(BASELINES, float)).groupby("depth")[BASELINES].mean()
    levels = pd.DataFrame({name: means[columns[name]] for name in ("gene_mean", "gaussian", "floor")})
    levels.insert(0, "regime", most.groupby("depth")["regime"].first())
    levels["explained_gaussian"] = 1 - means["gaussian_mse"] / means["gene_mean_mse"]
    levels["explained_floor"] = 1 - means["bayes_mse"] / means["gene_mean_mse"]
    return Depth(runs, levels.reset_index(), metric)


TWICE = {"parameters": "parameters", "cells_train": "training cells", "depth": "counts of a cell"}


@dataclass(frozen=True, eq=False)
class Bought:
    """What twice as much of one thing adds to the share of the gene mean's squared error that the largest run explains.

    The share can be compared where losses cannot: it grows with parameters, training cells, counts and updates. Each
    step is the last one that was measured, all else at its largest, divided by its doublings; at each number of cells
    or counts the best size counts, at the best of its budgets: overfitting few cells makes more of them look better.
    """

    sentence: str = (
        "Without the gene mean's error, or a regime of all donors, nothing can be said of what more would buy."
    )
    # twice_the, smaller, larger; points (percentage points), with _low and _high; baseline: those of the best baseline
    steps: pd.DataFrame | None = None

    @property
    def verdict(self) -> str:
        """Which steps are told from nothing, in one sentence; empty without steps."""
        if self.steps is None:
            return ""
        if self.steps["points_low"].isna().all():
            return "Without two seeds of a large size no step has an interval."
        names = self.steps["twice_the"]
        above, below = names[self.steps["points_low"] > 0], names[self.steps["points_high"] < 0]
        more = f", and below for: {', '.join(below)}" if len(below) else ""
        return f"The interval lies above 0 for: {', '.join(above) or 'none of them'}{more}."


def bought(table: pd.DataFrame) -> Bought:
    """What the last step of each bought per doubling, in the regimes that are like the largest in all else.

    Intervals are at 95 %, over seeds on the same held-out cells. Their variance is pooled over the larger half of the
    sizes at the levels compared, because small ones scatter more; with one seed of each there is none. The second half
    of a run's updates is compared with its own first half.
    """
    rows = _like_the_largest(table)
    if rows.empty:
        return Bought()
    same = rows[[*TWICE]] == rows[[*TWICE]].iloc[-1]
    largest, steps = rows[same.all(axis=1)], []
    for column, name in TWICE.items():
        sizes, beside = column == "parameters", same.drop(columns={column, "parameters"}).all(axis=1)
        line, of = (rows[beside], "explained") if sizes else (_best_sizes(rows[beside], column), "at_best")
        ends = line.groupby(column)[[of, "untrained"]].agg(["mean", "size"]).tail(2)
        if len(ends) == 2:
            compared = rows[beside & (sizes | rows[column].isin(ends.index))]
            reach = _reach(_larger(compared), of, [*TWICE]) * np.sqrt((1 / ends[of, "size"]).sum())
            gain, baseline = (ends[name, "mean"].diff().iloc[-1] for name in (of, "untrained"))
            steps.append((name, *ends.index, gain, reach, np.nan if sizes else baseline))
    if (second := largest["second_half"]).notna().all():
        most = largest["updates"].astype(float).fillna(1).max()  # a doubling, whatever the number
        beside = rows[same[["cells_train", "depth"]].all(axis=1)]
        reach = _reach(_larger(beside), "second_half", [*TWICE]) / np.sqrt(len(largest))
        steps.append(("updates", most / 2, most, second.mean(), reach, np.nan))
    if not steps:
        return Bought(_shares(largest))
    numbers = ["points", "reach", "baseline"]
    table = pd.DataFrame(steps, columns=["twice_the", "smaller", "larger", *numbers])
    table[numbers] = table[numbers].mul(100 / np.log2(table["larger"] / table["smaller"]), axis=0)
    ends = {"points_low": table["points"] - table["reach"], "points_high": table["points"] + table["reach"]}
    return Bought(_shares(largest), table.drop(columns="reach").assign(**ends))


def _best_sizes(rows, column):
    """Of every value of `column` the runs of the size that explains most."""
    means = rows.groupby([column, "parameters"])["at_best"].mean()
    best = means.groupby(column).idxmax()
    return rows[pd.MultiIndex.from_frame(rows[[column, "parameters"]]).isin(best)]


def _larger(rows):
    """Runs of the larger half of the sizes, whose seeds scatter less."""
    return rows[rows["parameters"] >= rows["parameters"].median()]


def _like_the_largest(table):
    """Usable runs of the regimes that differ from that of most counts and cells in nothing else, the largest last."""
    if _switches(table):
        table = table[table["regime"] == table["regime"].iloc[-1]]
    rows = usable(table[table["donors"].isna()], METRIC)
    rows = _first_regimes(rows[rows["objective"].fillna("") == table["objective"].fillna("").iloc[0]])
    rows = rows.assign(
        depth=rows["thin"].astype(float).fillna(1), cells_train=rows["cells_train"].astype(float).fillna(1),
        explained=1 - (rows[METRIC] / rows["gene_mean_mse"]).astype(float),
        at_best=1 - at_best_budget(rows) / rows["gene_mean_mse"].astype(float),
        untrained=1 - rows[["pca_mse", "gaussian_mse"]].astype(float).min(axis=1) / rows["gene_mean_mse"].astype(float),
        second_half=((rows[f"{METRIC}_half"] - rows[METRIC]) / rows["gene_mean_mse"]).astype(float),
    ).dropna(subset="explained").sort_values([*TWICE][::-1], kind="stable")  # fmt: skip
    if rows.empty:
        return rows
    largest = (rows[[*TWICE]] == rows[[*TWICE]].iloc[-1]).all(axis=1)  # of several regimes the first counts
    return _alike(rows, rows[largest][:1], EQUAL)


def _alike(rows, one, columns):
    """The rows that have in these columns what one of them has."""
    return rows[(rows[columns].astype(str) == one[columns].astype(str).to_numpy()).all(axis=1)]


def _shares(largest):
    """What the largest size explains, and what a baseline and the exact floor would."""
    means = largest[["explained", "untrained", "gene_mean_mse", "bayes_mse"]].astype(float).mean()
    exact = 1 - means["bayes_mse"] / means["gene_mean_mse"]
    shares = {"the best baseline": means["untrained"], "the exact floor": exact}
    others = "".join(f", {name} {share:.1%}" for name, share in shares.items() if not np.isnan(share))
    regime, size = largest[["regime", "size"]].iloc[0]
    ours = f"the largest size, {size}, explains {means['explained']:.1%}"
    return f"Of the gene mean's squared error in {regime}, {ours}{others}."


def _switches(table):
    """Whether the regimes go from the published protocol to another, on as many genes: they train otherwise."""
    ways = table.groupby("size")[["learning_rate", "optimiser", "batch", "cells_seen"]].nunique().gt(1).any(axis=None)
    return ways and table["protocol"].iloc[0] == "published" and table["genes"].nunique() == 1


def protocols(table: pd.DataFrame, laws: dict, baselines: dict) -> pd.DataFrame:
    """From the published protocol to another, switch by switch: what does each do to the exponent and the floor?

    Regimes that normalise differently have losses of different units; relative to their gene mean they can be compared.
    A row per regime: `readable` alpha and relative_c, each with _low and _high; status. Empty for one protocol.
    """
    if not _switches(table):
        return pd.DataFrame()
    ran, of_law = set(usable(table, METRIC)["regime"]), of_metric(laws, METRIC)
    rows = [{"regime": name, **columns_of(of), "status": of["status"]} for name, of in of_law.items() if name in ran]
    names = {name: f"relative_{name}" for name in ("c", "c_low", "c_high")}
    steps = readable(pd.DataFrame(rows)).rename(columns=names)
    unit = steps["regime"].map(lambda regime: levels(baselines, regime, METRIC)["gene_mean"]).astype(float)
    return steps.assign(**steps[[*names.values()]].div(unit, axis=0))
