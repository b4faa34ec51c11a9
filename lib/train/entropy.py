"""Loss floors to bits per masked gene."""

import numpy as np
import pandas as pd

GAUSSIAN = "Gaussian differential entropy, depends on the scale of the input"
LIKELIHOOD = "negative log-likelihood: an upper bound on H(count | visible genes)"
UNCONVERTED = "no conversion to bits for this metric"


def gaussian_bits(mse):
    """Differential entropy of a Gaussian of variance `mse`, `0.5 log2(2 pi e mse)`, in bits.

    It is what arXiv 2602.15253 prints. It changes with the scale of the input and can be negative: it is not the
    information in a count. Takes a number, an array or a Series, and gives the same; NaN where `mse` is not positive.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = 0.5 * np.log2(2 * np.pi * np.e * mse)
    bits = bits * np.where(np.isfinite(bits), 1, np.nan)
    return bits if np.ndim(mse) else float(bits)


def floor_bits(metric, floor, interval):
    """Bits of a fitted floor, its interval carried over end by end (the conversion is increasing).

    Parameters
    ----------
    metric : str
        Column of runs.csv: one with `mse` in its name is converted as a Gaussian, one with `nll` already is in bits.
    floor : float or None
    interval : pair of float or None
        None is an open end; an end at or below zero has no Gaussian bits and is open too.

    Returns
    -------
    dict with value, interval, kind.
    """

    def convert(x):
        bits = np.nan if x is None else x if "nll" in metric else gaussian_bits(x)
        return float(bits) if np.isfinite(bits) else None

    if "nll" not in metric and "mse" not in metric:
        return {"value": None, "interval": [None, None], "kind": UNCONVERTED}
    kind = LIKELIHOOD if "nll" in metric else GAUSSIAN
    return {"value": convert(floor), "interval": [convert(end) for end in interval], "kind": kind}


def compare(laws, measured, metric="validation_mse"):
    """The fitted floor's Gaussian bits beside the exact entropy of a hidden count, where the truth is known.

    Parameters
    ----------
    laws : dict
        Content of laws.json.
    measured : dict
        {regime: {split: {bayes_mse, bayes_bits, ...}}}, as in baselines.json.

    Returns
    -------
    DataFrame, one row per regime
    """
    rows = []
    for regime, by_metric in ((regime, of) for regime, of in laws.items() if metric in of):
        exact = measured.get(regime, {}).get(metric.rsplit("_", 1)[0], {})
        bits, floor = by_metric[metric]["floor_bits"], exact.get("bayes_mse")
        low, high = bits["interval"]
        rows.append({
            "regime": regime, "gaussian_bits_of_fitted_floor": bits["value"], "low": low, "high": high,
            "gaussian_bits_of_exact_floor": None if floor is None else gaussian_bits(floor),
            "exact_bits_of_the_count": exact.get("bayes_bits"),
        })  # fmt: skip
    return pd.DataFrame(rows)
