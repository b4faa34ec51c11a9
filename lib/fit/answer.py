"""What all kept studies say together about the three claims of arXiv 2602.15253: power law, floor, data to parameters.

`make answer` reads data/results/*/{runs.csv, laws.json} and the published runs, draws figures/gallery/answer.svg and
writes data/results/answer.md. A study that is kept later enters by itself; no number in the text is typed.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib import fit, io
from lib.fit import replicate, runs
from lib.fit.report import HEADLINE, _between
from lib.study import load_study

TEXT, FIGURE = "answer.md", "answer"
SIDES = {"validation_mse": "held-out groups", "test_random_mse": "cells of training donors"}
"""Losses that are compared, and whose cells they are of."""
FLOOR = {"validation_mse": "bayes_mse"}
"""Where the exact floor of a loss stands in runs.csv."""
SHOWN = 3
"""Regimes drawn for a study of many: the most training cells, the fewest, and one between."""
MIDDLE = {"cells": "cells_train", "seen": "cells_seen", "genes": "genes"}
"""Columns of runs.csv of which a condition's median is told."""
AHEAD = 10
"""By how much of AICc another form has to lead to take the power law's place: odds of e^5."""


@dataclass(frozen=True, eq=False)
class Kept:
    """One study as it was kept: its name, what its cells are, its table of runs and its laws."""

    name: str
    cells: str
    runs: pd.DataFrame
    laws: dict


def kept(root=None):
    """All kept studies in order of their names, the published runs last.

    Parameters
    ----------
    root : Path, optional
        Folder of a project; the one that this code works in when left out.
    """
    found = []
    for path in sorted((root or io.ROOT).glob("data/results/*/laws.json")):
        laws, table = io.read_json(path), pd.read_csv(path.with_name("runs.csv"))
        census = next(law["provenance"] for of in laws.values() for law in of.values()).get("census", {})
        found.append(Kept(path.parent.name, "simulated" if "simulate" in census else "real", table, laws))
    return [*found, published()]


def side(study, metric):
    """Whose cells a loss is of; the published split is of single cells, all of which were trained on."""
    return SIDES["test_random_mse"] if study.cells == "published" else SIDES[metric]


def published():
    """The published runs and our laws of them; what the headline interval needs is no bootstrap, so few are drawn."""
    table = runs.given(load_study(fit.published.STUDY))
    return Kept("published runs", "published", table, fit.fit_laws(table, 100, 0, metrics=("validation_mse",)))


def axis(study):
    """What sets a study's regimes apart: their `cells`, their `budget` (cells seen) alone, or their `protocol`."""
    if study.cells == "published":
        return "cells"
    of_size = study.runs.groupby("size")
    if (of_size["learning_rate"].nunique() > 1).any():
        return "protocol"
    return "budget" if (of_size["cells_seen"].nunique() > 1).any() else "cells"


def conditions(study, metric):
    """The regimes of a study that were trained for squared errors on cells of all donors, most training cells first.

    Returns
    -------
    DataFrame, one row per regime
        regime, cells, seen (in training), genes, exact (the known floor, or NaN), and of its law of this loss: sizes,
        status, falls (whether the loss is shown to fall with size), alpha and c with their ends, form (the best one),
        behind (AICc of power + floor above the best form's), and law itself.
    """
    rows, table = [], study.runs
    for regime, by_metric in study.laws.items():
        of, law = table[table["regime"] == regime], by_metric.get(metric)
        few = "donors" in of and of["donors"].notna().any()
        if law is None or few or set(of.get("objective", pd.Series(dtype=str)).dropna()) - {"mse"}:
            continue
        exact = of[FLOOR[metric]].mean() if FLOOR.get(metric) in of else np.nan
        middle = {name: of[column].dropna().median() for name, column in MIDDLE.items()}
        rows.append({"study": study.name, "regime": regime, "side": side(study, metric), "exact": exact,
                     **middle, **_law(law)})  # fmt: skip
    table = pd.DataFrame(rows)
    return table.sort_values("cells", ascending=False, kind="stable", ignore_index=True) if rows else table


def _law(law):
    """One entry of laws.json as columns."""
    ends = law["intervals"].get(HEADLINE, {"alpha": [None, None], "c": [None, None]})
    score = {form: row["aicc"] for form, row in law["comparison"].items() if row["aicc"] is not None}
    best = min(score, key=score.get) if score else None
    return {
        "sizes": law["n_sizes"], "status": law["status"], "falls": law["verdict"].startswith("Loss falls"),
        "alpha": law["alpha"], "alpha_ends": ends["alpha"], "c": law["c"], "c_ends": ends["c"], "form": best,
        "behind": score.get("power + floor", np.inf) - score[best] if best else np.nan, "law": law,
    }  # fmt: skip


def everything(studies):
    """The conditions of all studies that keep to one protocol, on every side that is compared; see `conditions`."""
    found = [conditions(study, metric) for study in studies if axis(study) != "protocol" for metric in SIDES]
    return pd.concat([table for table in found if len(table)], ignore_index=True)


def view(studies):
    """Panels for `lib.figures.answer`: one for each study and side, as keyword arguments of one panel."""
    return [
        _panel(study, metric, table)
        for study in studies if axis(study) != "protocol"
        for metric in SIDES
        if len(table := conditions(study, metric))
    ]  # fmt: skip


def _panel(study, metric, table):
    if len(table) > SHOWN:
        middle = np.sqrt(table["cells"].iloc[0] * table["cells"].iloc[-1])
        between = (np.log(table["cells"].iloc[1:-1]) - np.log(middle)).abs().idxmin()
        table = table.loc[[0, between, len(table) - 1]]
    named = {row.regime: {metric: row.law} for row in table.itertuples() if row.status == "ok" and row.falls}
    of = study.runs[study.runs["regime"].isin(table["regime"])]
    several = table["genes"].nunique() > 1
    said = {row.regime: f"{row.cells:,.0f} cells" + f", {row.genes:,.0f} genes" * several for row in table.itertuples()}
    if axis(study) == "budget":
        said = {row.regime: f"{row.seen:,.0f} cells seen" for row in table.itertuples()}
    first = of[of["regime"] == table["regime"].iloc[0]]
    names = {"gene_mean": "gene_mean_mse", "gaussian": "gaussian_mse", "bayes": "bayes_mse"}
    levels = {name: first[column].mean() for name, column in names.items() if column in first}
    return {
        "title": study.name if study.cells == "published" else f"{study.name} ({study.cells} cells)",
        "metric": metric, "side": f"judged on {side(study, metric)}", "labels": said,
        "runs": of[of["status"] == "ok"], "laws": {regime: by[metric] for regime, by in named.items()},
        "curves": fit.curves(named, metric),
        "levels": {name: value for name, value in levels.items() if metric in FLOOR and np.isfinite(value)},
    }  # fmt: skip


def text(studies):
    """The answer to the three claims, as Markdown: every number from the tables of these studies."""
    table = everything(studies)
    claims = [*power_law(table, studies), *floor(table, studies), *ratio(studies)]
    names = ", ".join(
        study.name if study.cells == "published" else f"{study.name} ({study.cells} cells)" for study in studies
    )
    head = ["# What the kept studies say about the three claims", "", f"Made by `make answer` from: {names}.", ""]
    return "\n".join([*head, *claims, "## All laws", "", *_rows(table), ""])


def power_law(table, studies):
    """Claim 1: the loss falls as a power law of the number of parameters."""
    named = table[(table["status"] == "ok") & table["falls"]]
    other = table[table["behind"] > AHEAD]
    said = f"{_verdict(len(named), len(table))} {len(named)} of {len(table)} conditions show a law that can be named"
    if len(named):
        said += (
            f"; its exponent is {named['alpha'].min():.2f} to {named['alpha'].max():.2f} in them, and the 95 % "
            f"intervals together reach {_reach(named['alpha_ends'])}"
        )
    said += "."
    return [
        "## 1. A power law?", "", f"{said} {_published_alpha(studies)} {_protocols(studies)}".strip(), "",
        f"What would change our mind: another form ahead of power + floor by more than {AHEAD} in AICc on a ladder of "
        f"converged sizes. It is in {len(other)} of {len(table)} conditions{_listed(other)}.", "",
    ]  # fmt: skip


def _reach(intervals):
    """From where to where intervals reach together; an open one takes its end from all."""
    low, high = zip(*intervals, strict=True)
    ends = None if None in low else min(low), None if None in high else max(high)
    said = ("from {:.2f}", "to {:.2f}"), ("down without end", "up without end")
    return " ".join(said[end is None][place].format(end) for place, end in enumerate(ends))


def _verdict(yes, of):
    return "**Yes.**" if yes == of else "**No.**" if not yes else "**In part.**"


def _published_alpha(studies):
    """What the published runs say of the exponent, and how much of it is their smallest size."""
    theirs = [study for study in studies if study.cells == "published"]
    if not theirs:
        return ""
    rich = theirs[0].runs[theirs[0].runs["regime"] == "data-rich"]
    larger = rich[rich["parameters"] > rich["parameters"].min()]
    cut = fit.fit_laws(larger, 100, 0, metrics=("validation_mse",))["data-rich"]
    law, cut = (
        f"{of['alpha']:.2f} ({_between(of['intervals'][HEADLINE]['alpha'], '.2f')})"
        for of in (by_metric["validation_mse"] for by_metric in (theirs[0].laws["data-rich"], cut))
    )
    return f"The published runs give {law}, and without their smallest size {cut}."


def _protocols(studies):
    """How far the protocol alone moves the exponent, where a study of its switches is kept."""
    switched = [study for study in studies if axis(study) == "protocol"]
    if not switched:
        return ""
    table = conditions(switched[0], "validation_mse").set_index("regime").loc[list(switched[0].laws)]
    ends = [f"{row['alpha']:.2f} ({_between(row['alpha_ends'], '.2f')}; {name})" for name, row in table.iterrows()]
    return f"The protocol alone moves it: on the same cells from {ends[0]} to {ends[-1]}."


def floor(table, studies):
    """Claim 2: there is a floor that no size gets below. Asked wherever the loss falls, a law being named or not."""
    named = table[table["falls"].astype(bool)]
    above = named[[ends[0] is not None and ends[0] > 0 for ends in named["c_ends"]]]
    known = above[np.isfinite(above["exact"].astype(float))]
    inside = [_inside(row.exact, row.c_ends) for row in known.itertuples()]
    said = (
        f"{_verdict(len(above), len(named))} The interval of c lies above zero in {len(above)} of the {len(named)} "
        "conditions in which the loss falls with size"
    )
    if len(known):
        off = known["c"].astype(float) / known["exact"] - 1
        said += (
            f"; where the exact floor is known it is inside in {sum(inside)} of {len(known)}, and c is "
            f"{off.min():+.0%} to {off.max():+.0%} off"
        )
    again = replicate.summary(replicate.read()).iloc[0]
    return [
        "## 2. A floor?", "",
        f"{said}. Replicated studies with a known floor say how far c is to be trusted: its interval held the floor in "
        f"{again['exact_held']:.0%} of them ({again['exact_low']:.0%} to {again['exact_high']:.0%}), with c "
        f"{again['bias']:+.0%} off at the median. What is measured is the floor of a budget.", "",
        *_budgets(studies),
        "What would change our mind: a larger size, or more updates, whose loss ends below the lower end of an "
        "interval of c; or replicates of which 95 % hold the floor, which would make c the floor of the data.", "",
    ]  # fmt: skip


def _budgets(studies):
    """How the floor moves with the budget, for every study that changes it alone."""
    found = [(study.name, fit.budget.view(study.runs)) for study in studies if axis(study) == "budget"]
    said = [f"- {name}: {seen['sentence']}" for name, seen in found]
    return ["With more updates and all else equal:", "", *said, ""] if said else []


def _inside(value, ends):
    low, high = ends
    return (low is None or low <= value) and (high is None or value <= high)


def ratio(studies):
    """Claim 3: the ratio of training cells to parameters decides whether scaling is seen."""
    axes = [(study.name, found) for study in studies if study.cells != "published"
            if axis(study) == "cells" and "turning" in (found := fit.matched.view(study.runs))]  # fmt: skip
    moved = [name for name, found in axes if _apart(_ratios(found["turning"]))]
    verdict = "**Not shown.**" if not axes else "**Not by the ratio alone.**" if moved else "**Perhaps.**"
    lines = ["## 3. Decided by the ratio of cells to parameters?", ""]
    lines.append(
        f"{verdict} If it were, size and cells would limit equally at one number of cells per parameter, however many "
        f"cells there are; in {len(moved)} of {len(axes)} studies of a matched axis that number moves by more than its "
        "intervals allow."
    )
    lines += ["", *(f"- {name}: {_matched(found)}" for name, found in axes), ""]
    lines += [
        "What would change our mind: balance points whose cells per parameter agree within their intervals over two "
        "decades of training cells.", "",
    ]  # fmt: skip
    return lines


def _ratios(turning):
    """Cells per parameter at which size and cells limit equally, where in reach: cells, value, low, high (or NaN)."""
    rows = turning[turning["parameters"].notna()]
    return pd.DataFrame({
        "cells": rows["cells"], "value": rows["cells_per_parameter"],
        "low": rows["cells"] / rows["high"], "high": rows["cells"] / rows["low"],
    })  # fmt: skip


def _apart(ratios):
    """Whether any two intervals do not overlap."""
    return bool(ratios["low"].max() > ratios["high"].min())


def _matched(found):
    """The gain from size at the most and the fewest cells, and the balance points at both ends of what is in reach."""
    gains, ratios = found["gains"].sort_values("cells_train"), _ratios(found["turning"])
    few, many = gains.iloc[0], gains.iloc[-1]
    said = ", ".join(
        f"{row.gain:.3f} ({row.gain - 1.96 * row.se:.3f} to {row.gain + 1.96 * row.se:.3f}) with "
        f"{row.cells_train:,.0f} training cells" for row in (many, few)
    )  # fmt: skip
    said = f"of the loss, size saves {said}."
    if len(ratios):
        ends = ratios.iloc[[0, -1]] if len(ratios) > 1 else ratios
        points = [
            f"{row.value:.2g} cells per parameter ({_between(_open(row.low, row.high), '.2g')}) at {row.cells:,.0f}"
            for row in ends.itertuples()
        ]
        said += f" They balance at {' and '.join(points)} cells."
    return said


def _open(low, high):
    return [None if np.isnan(end) else end for end in (low, high)]


def _listed(rows):
    names = [f"{row.study} {row.regime}, {row.side}: {row.form}" for row in rows.itertuples()]
    return f" ({'; '.join(names)})" if names else ""


def _rows(table):
    """All conditions as a Markdown table."""
    head = (
        "study", "regime", "judged on", "training cells", "cells seen", "sizes", "alpha", "c", "exact floor", "status"
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in table.itertuples():
        alpha, c = (
            "-" if value is None else f"{value:.3g} ({_between(ends, '.3g')})"
            for value, ends in ((row.alpha, row.alpha_ends), (row.c, row.c_ends))
        )
        exact = "-" if pd.isna(row.exact) else f"{row.exact:.3g}"
        status = row.status if row.falls else f"{row.status}; no scaling shown"
        cells, seen = ("-" if pd.isna(number) else f"{number:,.0f}" for number in (row.cells, row.seen))
        columns = (row.study, row.regime, row.side, cells, seen, row.sizes, alpha, c, exact, status)
        lines.append(f"| {' | '.join(map(str, columns))} |")
    return lines


def main():
    """Draw the figure, write the text; returns where both are."""
    from lib import figures

    studies, place = kept(), io.ROOT / "figures" / "gallery"
    figures.save(figures.answer(view(studies)), place, FIGURE, ("svg",))
    told = io.ROOT / "data" / "results" / TEXT
    with io.atomic(told) as partial:
        partial.write_text(text(studies))
    return [place / f"{FIGURE}.svg", told]
