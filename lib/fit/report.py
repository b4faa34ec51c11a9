"""Laws for a reader: bands, tables, plain sentences."""

import numpy as np
import pandas as pd

from lib.fit.intervals import FEWEST_SIZES, HEADLINE, profile
from lib.fit.law import Law, power_law
from lib.io import InputError
from lib.train import entropy


def restore(law):
    """The `Law` behind an entry of laws.json, fitted again to the size means it carries (or the Law itself)."""
    if isinstance(law, Law):
        return law
    if not law["sizes"]:
        raise InputError(f"this law was not fitted (status: {law['status']}): there is nothing to draw")
    return power_law(law["sizes"]["parameters"], law["sizes"]["mean"], law["sizes"]["weight"])


def band(law, grid, level=0.95, new=False):
    """Pointwise band of the law at parameter counts `grid`: (low, high), NaN below four sizes.

    It is the range, over all laws in the profile-likelihood region behind the headline interval, of the expected loss;
    with `new`, of the mean loss of a further size with as many seeds as those seen.

    Parameters
    ----------
    law : Law or dict
        A fit to size means, or an entry of laws.json.
    """
    law = restore(law)
    sizes, index = np.unique(law.parameters, return_inverse=True)
    grid = np.asarray(grid, float)
    if len(sizes) < FEWEST_SIZES:
        return np.full(grid.shape, np.nan), np.full(grid.shape, np.nan)
    weights = np.bincount(index, law.weights)
    means = np.bincount(index, law.weights * law.losses) / weights
    region = profile(np.log(sizes / sizes[0]), means, weights, len(sizes) - 3, level=level)
    d = np.log(grid / sizes[0])
    return region.interval(lambda alpha: np.exp(-alpha * d), noise=1 / weights.mean() if new else None)


def of_metric(laws, metric=None):
    """{regime: its law for a metric, or its headline law}; regimes without one are left out."""
    chosen = {regime: metric or next(iter(by_metric)) for regime, by_metric in laws.items()}
    return {regime: laws[regime][name] for regime, name in chosen.items() if name in laws[regime]}


def curves(laws, metric=None, points=120):
    """Every fitted law with its pointwise band, ready to draw: regime, parameters, loss, lo, hi.

    Of one metric, or of each regime's headline one.

    Each law is drawn over the sizes that it was fitted to, and a factor of two beyond them.
    """
    parts = []
    for regime, law in of_metric(laws, metric).items():
        if law["sizes"]:
            seen = law["sizes"]["parameters"]
            grid = np.geomspace(min(seen) / 2, max(seen) * 2, points)
            low, high = band(law, grid, law["level"])
            parts.append(pd.DataFrame({
                "regime": regime, "parameters": grid, "loss": restore(law).predict(grid), "lo": low, "hi": high,
            }))  # fmt: skip
    return pd.concat(parts) if parts else pd.DataFrame(columns=["regime", "parameters", "loss", "lo", "hi"])


def comparison_table(laws, metric=None):
    """Every form against every regime: AICc above the best form's, leave-one-size-out error, number of parameters."""
    fitted = {regime: law["comparison"] for regime, law in of_metric(laws, metric).items()}
    tables = {regime: pd.DataFrame(comparison).T for regime, comparison in fitted.items() if comparison}
    if not tables:
        return pd.DataFrame(columns=["delta_aicc", "aicc", "loso_rmse", "parameters"])
    table = pd.concat(tables, names=["regime", "form"])
    table.insert(0, "delta_aicc", table["aicc"] - table["aicc"].groupby("regime").transform("min"))
    return table


def rollout_table(laws, metric=None):
    """What the smaller sizes predict for the largest ones, and what was seen there."""
    fitted = of_metric(laws, metric)
    return pd.DataFrame([{"regime": regime, **row} for regime, law in fitted.items() for row in law["rollout"]])


def laws_table(laws):
    """One row per regime and metric: the numbers a reader wants first."""
    rows = []
    for regime, by_metric in laws.items():
        for metric, law in by_metric.items():
            ends = law["intervals"].get(HEADLINE, {"alpha": [None, None], "c": [None, None]})
            rows.append({
                "regime": regime, "metric": metric, "sizes": law["n_sizes"], "runs": law["n_runs"],
                "alpha": law["alpha"], "alpha_low": ends["alpha"][0], "alpha_high": ends["alpha"][1],
                "c": law["c"], "c_low": ends["c"][0], "c_high": ends["c"][1],
                "bits": law["floor_bits"]["value"], "r2": law["r2"], "status": law["status"],
            })  # fmt: skip
    return pd.DataFrame(rows)


def answer(laws, floors=None):
    """One plain sentence per regime, from its first metric.

    Parameters
    ----------
    floors : dict, optional
        regime -> exactly known floor of that metric, or None.
    """
    sentences = []
    for regime, by_metric in laws.items():
        law = next(iter(by_metric.values()))
        ends, bits = law["intervals"].get(HEADLINE), law["floor_bits"]
        if law["alpha"] is None or ends is None:
            sentences.append(f"{regime}: {law['verdict']}")
            continue
        numbers = f"alpha = {law['alpha']:.3f} ({_between(ends['alpha'], '.3f')}), "
        counted = bits["kind"] == entropy.LIKELIHOOD
        digits = _decimals(law["c"])
        numbers += f"c = {law['c']:{digits}}{' bits per masked gene' * counted} ({_between(ends['c'], digits)})"
        if law["status"] != "ok":
            sentences.append(f"{regime}: no law can be named ({law['status']}: {numbers}). {law['verdict']}")
            continue
        if bits["value"] is not None and not counted:
            numbers += f", {bits['value']:.2f} Gaussian bits ({_between(bits['interval'], '.2f')})"
        known = (floors or {}).get(regime)
        if known is not None:
            low, high = (sign * np.inf if end is None else end for end, sign in zip(ends["c"], (-1, 1), strict=True))
            place = "inside" if low <= known <= high else "outside"
            numbers += f"; the exact floor, {known:{digits}}, lies {place} the interval of c"
        sentences.append(f"{regime}: {numbers}; {law['level']:.0%} intervals. {law['verdict']}")
    return sentences


def _decimals(value):
    """Format of a number and its interval: as many decimals as four significant digits of the number have."""
    return f".{min(6, max(0, 3 - int(np.floor(np.log10(abs(value) or 1)))))}f"


def _between(ends, digits=".4g"):
    low, high = ends
    if low is None and high is None:
        return "not bounded by these runs"
    if low is None or high is None:
        return f"below {high:{digits}}" if low is None else f"above {low:{digits}}"
    return f"{low:{digits}} to {high:{digits}}"
