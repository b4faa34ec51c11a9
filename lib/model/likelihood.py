"""What a prediction costs: a squared error on the log scale, or the bits of a raw count. Needs torch alone.

The costs of counts take two raw outputs, or one. A hidden count of a cell with library size l has mean
m = l / 10,000 exp(bounded first output) and, where it is negative binomial, variance m + m^2 / theta with
theta = exp(bounded second output). The bounds are smooth, so that no step can leave them: m / l x 10,000 stays within
e^-12 to e^12, and theta within e^-6 to e^6, where the negative binomial is all but Poisson.
"""

import math

import torch
from torch import lgamma
from torch.nn.functional import softplus

SCALE = 1e4
WIDEST = {"mean": 12.0, "dispersion": 6.0}


def squared_error(predicted, truth, library):
    """(predicted - truth)^2 of log-normalised expression; the library size plays no part."""
    return (predicted - truth).square()


def poisson(raw, counts, library):
    """Bits of counts (cells, k) under Poisson means; `raw` (cells, k), `library` (cells,)."""
    log_mean = _log_mean(raw, library)
    return (log_mean.exp() - counts * log_mean + lgamma(counts + 1)) / math.log(2)


def negative_binomial(raw, counts, library):
    """Bits of counts (cells, k) under negative binomials; `raw` is (cells, k, 2), `library` (cells,)."""
    log_mean, log_theta = _log_mean(raw[..., 0], library), _bounded(raw[..., 1], "dispersion")
    theta, above = log_theta.exp(), log_mean - log_theta
    chosen = lgamma(counts + theta) - lgamma(theta) - lgamma(counts + 1)
    return (theta * softplus(above) + counts * softplus(-above) - chosen) / math.log(2)


COSTS = {"mse": squared_error, "poisson": poisson, "negative_binomial": negative_binomial}
UNITS = {"mse": "mse", "poisson": "nll", "negative_binomial": "nll"}
"""How the columns of runs.csv name each cost: squared error, or bits per masked gene."""


@torch.no_grad()
def distribution(raw, library, objective):
    """Predicted mean and dispersion of counts, as float64 NumPy arrays (cells, k); the dispersion of Poisson is inf."""
    if objective == "poisson":
        mean = _log_mean(raw, library).exp().double().cpu().numpy()
        return mean, mean + math.inf
    mean, theta = _log_mean(raw[..., 0], library).exp(), _bounded(raw[..., 1], "dispersion").exp()
    return mean.double().cpu().numpy(), theta.double().cpu().numpy()


def _log_mean(raw, library):
    return _bounded(raw, "mean") + (library / SCALE).log().unsqueeze(-1)


def _bounded(raw, name):
    return WIDEST[name] * torch.tanh(raw / WIDEST[name])
