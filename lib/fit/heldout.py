"""Does the law hold on other donors and other data sets, and what does a random split leak?

The same models are judged on every held-out side. Sides differ in how hard their cells are, so what is compared between
them is the share explained of each side's own reducible error: from its gene mean to its exact floor, or to zero.
"""

import numpy as np
import pandas as pd

from lib.fit.ladder import usable
from lib.fit.report import HEADLINE

SIDES = {"test_random": "cells of training donors", "validation": "other donors", "test": "other donors again",
         "test_dataset": "other data sets"}  # fmt: skip


def explained(runs, measured):
    """Share of each side's reducible squared error that every run explains.

    Parameters
    ----------
    measured : dict
        {regime: {side: baselines}}, as in baselines.json.

    Returns
    -------
    DataFrame
        regime, size, seed, parameters, side, cells (what they are), loss, explained, se (of explained, over cells).
    """
    rows = []
    for side, cells in SIDES.items():
        metric = f"{side}_mse"
        if metric not in runs:
            continue
        for run in usable(runs, metric).to_dict("records"):
            known = measured.get(run["regime"], {}).get(side)
            if known:
                reducible = known["gene_mean_mse"] - known.get("bayes_mse", 0.0)
                rows.append({
                    **{key: run[key] for key in ("regime", "size", "seed", "parameters")}, "side": side, "cells": cells,
                    "loss": run[metric], "explained": (known["gene_mean_mse"] - run[metric]) / reducible,
                    "se": (run.get(f"{metric}_se") or np.nan) / reducible,
                    "gaussian": (known["gene_mean_mse"] - known.get("gaussian_mse", np.nan)) / reducible,
                })  # fmt: skip
    return pd.DataFrame(rows)


def laws_by_side(laws):
    """One row per regime and side: the law of the squared error there, with the headline intervals."""
    rows = []
    for regime, by_metric in laws.items():
        for side, cells in SIDES.items():
            if law := by_metric.get(f"{side}_mse"):
                ends = law["intervals"].get(HEADLINE, {"alpha": [None, None], "c": [None, None]})
                rows.append({"regime": regime, "side": side, "cells": cells, "alpha": law["alpha"],
                             "alpha_low": ends["alpha"][0], "alpha_high": ends["alpha"][1], "c": law["c"],
                             "c_low": ends["c"][0], "c_high": ends["c"][1], "status": law["status"]})  # fmt: skip
    return pd.DataFrame(rows)


def leak(shares, of="test_random", against="test"):
    """What single cells of training donors make look better than other donors, per regime and size.

    Returns
    -------
    DataFrame
        regime, size, parameters, leak (explained share on `of` minus that on `against`), se (over the cells of both
        sides), gaussian: the same difference of the conditional Gaussian, which has the same training cells.
    """
    wide = shares[shares["side"].isin([of, against])]
    mean = wide.groupby(["regime", "size", "parameters", "side"], sort=False)[["explained", "se", "gaussian"]].mean()
    mean = mean.unstack("side").dropna()
    if mean.empty or of not in mean["explained"]:
        return pd.DataFrame(columns=["regime", "size", "parameters", "leak", "se", "gaussian"])
    table = pd.DataFrame({
        "leak": mean["explained"][of] - mean["explained"][against],
        "se": np.hypot(mean["se"][of], mean["se"][against]),
        "gaussian": mean["gaussian"][of] - mean["gaussian"][against],
    })  # fmt: skip
    return table.reset_index().sort_values(["regime", "parameters"], ignore_index=True)


def answer(table, regime):
    """How much of a random split's gain is leakage, in one sentence, for one regime's largest size."""
    of = table[table["regime"] == regime]
    if of.empty:
        return "No cells of training donors were held out, so that a random split's leak is not measured: split.random."
    last, reach = of.iloc[-1], 1.96 * of.iloc[-1]["se"]
    low, high = last["leak"] - reach, last["leak"] + reach
    way = "a leak is shown" if low > 0 else "no leak is shown" if high > 0 else "they are harder, not easier"
    return (
        f"{regime}: on held-out cells of donors that train, {last['size']} explains {last['leak']:+.1%} more of the "
        f"reducible error than on those of the test side ({low:+.1%} to {high:+.1%}): {way}. The conditional Gaussian, "
        f"fitted to the same training cells, explains {last['gaussian']:+.1%} more there."
    )


def view(runs, laws, measured):
    """Everything about the held-out sides, as `lib.figures.held_out` draws it, and in one sentence."""
    shares, regime = explained(runs, measured), runs["regime"].iloc[0]
    if shares.empty or shares["side"].nunique() < 2:
        return {"sentence": "These runs were judged on one side alone.", "laws": laws_by_side(laws)}
    table = leak(shares)
    said = answer(table, regime)
    return {"shares": shares, "leak": table, "regime": regime, "laws": laws_by_side(laws), "sentence": said}
