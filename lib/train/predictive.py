"""Predicted distributions of a count: their cost in bits, their moments on the log scale, how well they are calibrated.

A count x with predicted mean m is negative binomial, of variance m + m^2 / theta; with theta = inf it is Poisson.
Everything broadcasts over arrays of positions.
"""

import numpy as np
from scipy import stats

SCALE = 1e4
"""Counts that a cell is scaled to before the logarithm, as in `lib.data.panel`."""
EXACT = 64
"""Up to this mean the moments are summed count by count; above it over quantiles of the distribution."""
QUANTILES = 400
CHUNK = 200_000
"""Positions that are worked on at a time."""


def distribution(mean, dispersion):
    """The negative binomial as scipy has it. Where theta is infinite, or above 1e9, 1e9 stands for Poisson."""
    dispersion = np.minimum(dispersion, 1e9)
    return stats.nbinom(dispersion, dispersion / (dispersion + mean))


def bits(counts, mean, dispersion):
    """Minus the binary logarithm of the probability of each count: what it costs to be told it, in bits."""
    return -distribution(mean, dispersion).logpmf(counts) / np.log(2)


def moments(mean, dispersion, library, scale=SCALE, tolerance=1e-7):
    """Mean and variance of log1p(scale x / library) under the predicted distribution of each count x.

    Small means are summed count by count until less than `tolerance` of the probability is left. For large ones
    the sum is replaced by the mean over equally probable quantiles, of which the tests bound the error.

    Returns
    -------
    mean, variance : arrays of the broadcast shape
    """
    arrays = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (mean, np.minimum(dispersion, 1e9), library)))
    flat = [np.ravel(array) for array in arrays]
    found = np.empty((2, flat[0].size))
    for start in range(0, flat[0].size, CHUNK):
        part = slice(start, start + CHUNK)
        found[:, part] = _moments(*(array[part] for array in flat), scale, tolerance)
    first, second = found.reshape(2, *arrays[0].shape)
    return first, np.maximum(second - first**2, 0)


def _moments(mean, dispersion, library, scale, tolerance):
    """First and second moment, (2, positions)."""
    found = np.zeros((2, len(mean)))
    large = np.flatnonzero(mean > EXACT)
    for place in np.array_split(large, max(1, len(large) * QUANTILES // CHUNK)):
        middle = (np.arange(QUANTILES) + 0.5) / QUANTILES
        x = distribution(mean[place, None], dispersion[place, None]).ppf(middle)
        y = np.log1p(scale * x / library[place, None])
        found[:, place] = y.mean(1), (y**2).mean(1)
    running = np.flatnonzero(mean <= EXACT)
    m, theta, unit = mean[running], dispersion[running], scale / library[running]
    odds, probability = m / (m + theta), np.exp(-theta * np.log1p(m / theta))
    seen, x = np.zeros(len(running)), 0
    while len(running):
        y = np.log1p(unit * x)
        found[0, running] += probability * y
        found[1, running] += probability * y**2
        seen += probability
        probability = probability * odds * (x + theta) / (x + 1)
        x += 1
        left = 1 - seen > tolerance
        if left.mean() < 0.8:
            running, unit, odds, theta = running[left], unit[left], odds[left], theta[left]
            probability, seen = probability[left], seen[left]
    return found


def pit(counts, mean, dispersion, rng):
    """Randomised probability integral transform: uniform on 0 to 1 where the predicted distribution is the true one.

    u = F(x - 1) + v (F(x) - F(x - 1)) with v uniform (Czado, Gneiting & Held 2009, Biometrics 65:1254).
    """
    predicted = distribution(mean, dispersion)
    return between(predicted.cdf(np.asarray(counts) - 1), predicted.cdf(counts), rng)


def between(below, upto, rng):
    """A uniform draw between two arrays of cumulative probabilities."""
    return below + rng.random(np.shape(below)) * (upto - below)


def fit_negative_binomial(counts, library):
    """Maximum likelihood of every gene's share of the library and dispersion, from counts (cells, genes).

    The share is the method-of-moments one, total counts over total library, which for a Poisson count is the most
    likely; the dispersion maximises the likelihood at that share.

    Returns
    -------
    share, dispersion : (genes,) float64
        A gene without counts has the share of half a count; dispersion lies between 1e-3 and 1e6.
    """
    library = np.asarray(library, np.float64)
    share = np.maximum(counts.sum(axis=0, dtype=np.float64), 0.5) / library.sum()
    return share, best_dispersion(lambda log_dispersion: _cost(counts, share, log_dispersion, library), len(share))


def best_dispersion(cost, number, rounds=60):
    """Dispersions of least cost between 1e-3 and 1e6, (number,), by golden-section search in the logarithm.

    `cost` takes log-dispersions (number,) and gives the cost of each.
    """
    low, high = np.full((2, number), np.log([[1e-3], [1e6]]))
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(rounds):
        inner, outer = high - golden * (high - low), low + golden * (high - low)
        worse = cost(inner) > cost(outer)
        low, high = np.where(worse, inner, low), np.where(worse, high, outer)
        if (high - low).max() < 1e-3:
            break
    return np.exp((low + high) / 2)


def _cost(counts, share, log_dispersion, library):
    """Bits of each gene's counts, (genes,), summed over blocks of cells."""
    rows = max(1, 4_000_000 // len(share))
    return sum(
        bits(counts[at : at + rows], library[at : at + rows, None] * share, np.exp(log_dispersion)).sum(axis=0)
        for at in range(0, len(counts), rows)
    )
