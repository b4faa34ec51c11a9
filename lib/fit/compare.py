"""Is there scaling, is there a floor, how well is it known: forms compared, lack of fit, roll-out, and the verdict."""

import numpy as np
from scipy import stats

from lib.fit.intervals import FEWEST_SIZES, profile
from lib.fit.law import PARAMETERS, power_law

MARGIN = 2.0
"""Least difference in AICc that counts as support."""


def compare_forms(ladder):
    """AICc over runs, and error in predicting the mean of a size left out, for every form.

    AICc = n log(RSS / n) + 2 k + 2 k (k + 1) / (n - k - 1), k counting the error variance too (Hurvich & Tsai 1989).
    It takes runs as independent; the leave-one-size-out error does not.

    Returns
    -------
    dict
        form -> {aicc, loso_rmse, parameters}, None where a number does not exist.
    """
    n = len(ladder.losses)
    rounding = n * (np.finfo(float).eps * abs(ladder.losses).max()) ** 2
    table = {}
    for form, own in PARAMETERS.items():
        aicc, k = None, own + 1
        if len(ladder.d) >= own and n - k - 1 > 0:
            rss = max(runs_law(ladder, form).rss, rounding, np.finfo(float).tiny)
            aicc = float(n * np.log(rss / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))
        table[form] = {"aicc": aicc, "loso_rmse": loso_rmse(ladder, form), "parameters": own}
    return table


def runs_law(ladder, form="power + floor"):
    """Unweighted least squares over the runs."""
    return power_law(ladder.parameters[ladder.index], ladder.losses, form=form)


def means_law(ladder, form="power + floor"):
    """Weighted least squares over the size means: the headline fit, the centre of the headline interval."""
    return power_law(ladder.parameters, ladder.means, ladder.weights, form)


def loso_rmse(ladder, form):
    """Root mean square error of predicting each size mean from the other sizes; None with too few of them."""
    m = len(ladder.d)
    if m - 1 < PARAMETERS[form]:
        return None
    misses = []
    for left_out in range(m):
        law = means_law(ladder.only(np.arange(m) != left_out), form)
        misses.append(law.predict(ladder.parameters[left_out]) - ladder.means[left_out])
    return float(np.sqrt(np.mean(np.square(misses))))


def lack_of_fit(ladder):
    """F test of the law against seed-to-seed (pure) error; None where there are no degrees of freedom for it."""
    m, n = len(ladder.d), len(ladder.losses)
    if m <= 3 or n <= m or ladder.within <= 0:
        return None
    F = (runs_law(ladder).rss - ladder.within) / (m - 3) / (ladder.within / (n - m))
    return {"F": float(F), "df": [m - 3, n - m], "p": float(stats.f.sf(F, m - 3, n - m))}


def rollout(ladder, level=0.95):
    """Fit without the largest sizes, then predict the mean loss of each of them, with a prediction interval.

    Returns
    -------
    list of dict
        held_out (labels), size, parameters, predicted, interval, observed (mean over seeds), miss (observed minus
        predicted). Empty below five sizes.
    """
    m, found = len(ladder.d), []
    for fewer in range(m - 1, FEWEST_SIZES - 1, -1):
        kept = ladder.only(np.arange(m) < fewer)
        law, region = means_law(kept), profile(kept.d, kept.means, kept.weights, fewer - 3, level=level)
        for size in range(fewer, m):
            low, high = predicted(region, ladder.d[size], noise=1 / ladder.weights[size])
            value = float(law.predict(ladder.parameters[size]))
            found.append({
                "held_out": list(ladder.labels[fewer:]), "size": ladder.labels[size],
                "parameters": float(ladder.parameters[size]), "predicted": value, "interval": [low, high],
                "observed": float(ladder.means[size]), "miss": float(ladder.means[size]) - value,
            })  # fmt: skip
    return found


def predicted(region, d, noise=None):
    """(low, high) of the expected loss at one d = log(P / smallest P), or of a new observation there with `noise`."""
    return tuple(float(end[0]) for end in region.interval(lambda alpha: np.exp(-alpha * d), noise))


def condition_number(law):
    """Of the Jacobian in (alpha, amplitude, c) with unit columns: free of the units of P and of the loss."""
    d = np.log(law.parameters / law.parameters.min())
    e = np.exp(-law.alpha * d)
    jacobian = np.stack([d * e, e, np.ones_like(d)], -1) * np.sqrt(law.weights)[:, None]
    return float(np.linalg.cond(jacobian / np.linalg.norm(jacobian, axis=0)))


def scaling_p(ladder):
    """p of the F test of power + floor against a constant over size means, F(2, sizes - 3); None below four sizes."""
    m = len(ladder.d)
    if m < FEWEST_SIZES:
        return None
    rss, constant = means_law(ladder).rss, means_law(ladder, "constant").rss
    return float(stats.f.sf((constant - rss) / 2 / (rss / (m - 3)), 2, m - 3)) if rss > 0 else 0.0


def verdict(law, comparison, c_interval, p_scaling, level):
    """Plain words: is there scaling, is there a floor, how well is it known.

    Each answer needs both judges: AICc over runs, and the F test over size means (for the floor: the headline interval
    excludes zero), which does not take seeds of one size for independent evidence.
    """
    score = {form: row["aicc"] for form, row in comparison.items()}
    if None in score.values() or p_scaling is None:
        return "Too few sizes or runs to say whether loss scales with model size."
    lead = score["constant"] - min(score["power"], score["power + floor"])
    if law.status == "increasing":
        return "Loss does not fall with model size."
    if lead < MARGIN or p_scaling > 1 - level:
        return f"No scaling shown: AICc gains {lead:.0f} over a constant, p = {p_scaling:.2g} over size means."
    words = f"Loss falls with model size (AICc gains {lead:.0f} over a constant, p = {p_scaling:.1g} over size means). "
    gain = score["power"] - score["power + floor"]
    low, high = c_interval
    if gain < MARGIN or not low > 0:
        reach = "and its interval reaches" if not low > 0 else "though its interval does not reach"
        return words + f"A floor is not shown: AICc gains {gain:.0f} by it, {reach} zero."
    if not np.isfinite(high):
        return words + f"There is a floor (AICc gains {gain:.0f} by it), but nothing bounds it from above."
    half = (high - low) / 2 / abs(law.c)
    return words + f"There is a floor (AICc gains {gain:.0f} by it), known to {half:.1%}."
