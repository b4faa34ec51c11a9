"""The published study audited, and its method on any runs.

I. Kendiukhov, "Scaling Laws for Masked-Reconstruction Transformers on Single-Cell Transcriptomics", arXiv 2602.15253
(16 Feb 2026; a revision is under review at TMLR, OpenReview a8rUQqionr). data/published_runs.csv holds the figures of
the 38 runs behind its two laws: 18 at 512 genes (data-rich) and 20 at 1,024 genes (data-limited).
"""

import numpy as np
import pandas as pd

from lib.fit.intervals import brief, columns_of, curve
from lib.fit.law import Status, ladder, means_law, power_law
from lib.fit.runs import usable

STUDY = "published-runs"
PRINTED = {
    "data-rich": {"alpha": 0.266, "c": 1.444, "r2": 0.858},
    "data-limited": {"alpha": 0.009, "c": 0.113, "r2": 0.017},
}
POINTS = 300  # of the grid of floors


def fits(table: pd.DataFrame) -> pd.DataFrame:
    """The published method on each regime, which keeps the floor of the largest R2 of a straight line in log(L - c).

    Floors are tried evenly from 0 to 0.99 times the smallest loss. Columns: regime, c, r2, alpha and a of the line, rss
    (residual sum of squares of the loss itself, which would have compared like with like), and c_at_edge, whether c is
    an end of that grid; beside the published runs the printed numbers. No rows for a regime of one size, or with a loss
    that is not above zero.
    """
    rows = []
    for regime, runs in table.groupby("regime", sort=False):
        runs = usable(runs, "validation_mse")
        if runs["parameters"].nunique() < 2 or runs["validation_mse"].min() <= 0:  # log-likelihoods can be negative
            continue
        x, losses = np.log(runs["parameters"].to_numpy(float)), runs["validation_mse"].to_numpy(float)
        tried = np.linspace(0, 0.99 * losses.min(), POINTS)
        y = np.log(losses - tried[:, None])
        slope, intercept = np.polyfit(x, y.T, 1)
        r2 = slope**2 * x.var() / y.var(1)
        best = int(r2.argmax())
        c, alpha, a = tried[best], -slope[best], np.exp(intercept[best])
        row = {"regime": regime, "c": c, "r2": r2[best], "alpha": alpha, "a": a}
        row |= {"rss": ((losses - a * np.exp(-alpha * x) - c) ** 2).sum(), "c_at_edge": best in (0, POINTS - 1)}
        if (table["study"] == STUDY).all():
            row |= {f"printed_{name}": value for name, value in PRINTED.get(regime, {}).items()}
        rows.append(row)
    return pd.DataFrame(rows)


def refits(runs: pd.DataFrame) -> pd.DataFrame:
    """Least squares on all sizes of one regime, beside the published method, and what each questionable choice changes.

    Columns: fit, alpha and c with the ends of their headline intervals at 95 %, status. No rows where the published
    method gives no law; see `fits`.
    """
    runs = usable(runs, "validation_mse")
    columns = ["fit", "alpha", "alpha_low", "alpha_high", "c", "c_low", "c_high", "status"]
    if (theirs := fits(runs)).empty:
        return pd.DataFrame(columns=columns)
    smallest = runs["validation_mse"].min()
    bounded = power_law(runs["parameters"], runs["validation_mse"] - smallest, form="power")
    choices = {"least squares": runs}
    if "final_val_mse" in runs:
        choices["final loss"] = runs.assign(validation_mse=runs["final_val_mse"])
    for size in runs.sort_values("parameters")["size"].unique():
        choices[f"without {size}"] = runs[runs["size"] != size]
    rows = [
        {"fit": "published method", **theirs.iloc[0][["alpha", "c"]]},
        {"fit": "c at the smallest loss", "alpha": bounded.alpha, "c": smallest},
    ]
    for name, of in choices.items():
        of = usable(of, "validation_mse")  # the final losses may be of some
        law = brief(ladder(of)) if of["parameters"].nunique() >= 3 else None
        numbers = columns_of(law) | {"status": law["status"]} if law else {"status": Status.TOO_FEW_SIZES}
        rows.append({"fit": name, **numbers})
    return pd.DataFrame(rows, columns=columns).replace([-np.inf, np.inf], np.nan)


def both_fits(runs: pd.DataFrame) -> pd.DataFrame:
    """Our law with its band and the published one over a regime's sizes, or no rows: fit, parameters, loss, lo, hi."""
    runs = usable(runs, "validation_mse")
    if runs["parameters"].nunique() < 3 or (theirs := fits(runs)).empty:
        return pd.DataFrame(columns=["fit", "parameters", "loss", "lo", "hi"])
    theirs, data = theirs.iloc[0], ladder(runs)
    grid = np.geomspace(data.parameters[0], data.parameters[-1], 200)
    drawn = theirs["a"] * grid ** -theirs["alpha"] + theirs["c"]
    published = pd.DataFrame({"fit": "published", "parameters": grid, "loss": drawn})
    ours = curve(means_law(data), grid, data.known_variance).assign(fit="ours")
    return pd.concat([ours, published], ignore_index=True)
