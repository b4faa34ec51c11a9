"""From one protocol to another, switch by switch: what does each do to the exponent and the floor?"""

import pandas as pd

from lib.fit.ladder import usable
from lib.fit.report import HEADLINE, _between


def switches(runs, laws, measured):
    """One row per regime, in the order of the study: its law, its losses relative to its own gene mean.

    Losses of regimes that normalise differently have different units; relative to their gene mean they can be compared.

    Returns
    -------
    DataFrame
        regime, alpha, alpha_low, alpha_high, relative_c (with low, high), smallest and largest (losses of these sizes
        relative to the gene mean), converged (share of runs), status, r2.
    """
    rows = []
    for regime, by_metric in laws.items():
        law, of = by_metric["validation_mse"], usable(runs[runs["regime"] == regime], "validation_mse")
        unit = measured[regime]["validation"]["gene_mean_mse"]
        ends = law["intervals"].get(HEADLINE, {"alpha": [None, None], "c": [None, None]})
        losses = of.groupby("parameters")["validation_mse"].mean() / unit
        if losses.empty:
            continue
        relative = {f"relative_c_{name}": None if end is None else end / unit
                    for name, end in zip(("low", "high"), ends["c"], strict=True)}  # fmt: skip
        rows.append({
            "regime": regime, "alpha": law["alpha"], "alpha_low": ends["alpha"][0], "alpha_high": ends["alpha"][1],
            "relative_c": law["c"] / unit if law["c"] is not None else None, **relative,
            "smallest": losses.iloc[0], "largest": losses.iloc[-1], "r2": law["r2"], "status": law["status"],
            "converged": (of["convergence"] == "converged").mean() if of["convergence"].notna().any() else None,
        })  # fmt: skip
    return pd.DataFrame(rows)


def answer(table):
    """How much of the first regime's law is its protocol's, in one sentence."""
    first, last = table.iloc[0], table.iloc[-1]
    ends = {row["regime"]: [None if pd.isna(row[f"alpha_{end}"]) else row[f"alpha_{end}"] for end in ("low", "high")]
            for row in (first, last)}  # fmt: skip
    alphas = [
        f"{row['regime']}: alpha {row['alpha']:.3f} ({_between(ends[row['regime']], '.3f')}), {row['status']}"
        for row in (first, last)
    ]
    reached = (1 - last["largest"]) and (1 - first["largest"]) / (1 - last["largest"])
    steps = (table["largest"].shift() - table["largest"]).iloc[1:]
    largest = table.loc[steps.idxmax(), "regime"]
    return (
        f"{'; '.join(alphas)}. Under the first protocol the largest size removes {1 - first['largest']:.0%} of its "
        f"gene mean's error, under the last {1 - last['largest']:.0%}: {reached:.0%} of what training can reach. The "
        f"switch that moves the largest size most is {largest} ({steps.max():+.0%} of the gene mean's error)."
    )


def view(runs, laws, measured):
    """The switches of a study that begins at the published protocol, as `lib.figures.protocols` draws them."""
    if runs["protocol"].iloc[0] != "published" or runs["regime"].nunique() < 2:
        return {
            "sentence": "This study has one protocol. `make run STUDY=protocol` goes from the published protocol to "
            "the tuned one, switch by switch."
        }
    table = switches(runs, laws, measured)
    return {"table": table, "runs": runs, "sentence": answer(table)}
