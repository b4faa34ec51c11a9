"""One law of loss against model size: several forms, fitted by weighted least squares to the loss itself."""

from dataclasses import dataclass, replace

import numpy as np

from lib.fit.intervals import FEWEST_SIZES, profile
from lib.fit.projection import fit_many
from lib.io import InputError

FORMS = {
    "power + floor": lambda d, alpha: [np.exp(-alpha * d), np.ones_like(d)],
    "power": lambda d, alpha: [np.exp(-alpha * d)],
    "log-linear": lambda d, alpha: [np.ones_like(d), d],
    "quadratic": lambda d, alpha: [np.ones_like(d), d, d**2],
    "constant": lambda d, alpha: [np.ones_like(d)],
}
"""form -> columns that are linear in its coefficients, at d = log(P / smallest P). Only a `power` has an alpha."""

PARAMETERS = {form: len(columns(np.ones(1), 1.0)) + form.startswith("power") for form, columns in FORMS.items()}
"""form -> number of its coefficients, with the exponent of a power."""


@dataclass(frozen=True, eq=False)
class Law:
    """A fitted law and the data it saw.

    Attributes
    ----------
    form : str
        A key of `FORMS`.
    alpha : float or None
        Exponent of a power form.
    coefficients : ndarray
        Of the columns of the form, with P measured in units of the smallest P.
    parameters, losses, weights : (n,)
        What was fitted.
    rss, r2 : float
        Weighted residual sum of squares, and R2 about the weighted mean, both of the loss itself.
    status : str
        "ok", "too few sizes" (no error can be given), "increasing", "alpha at grid edge" or "floor not identified" (the
        95 % region of the law reaches an infinite floor).
    """

    form: str
    alpha: float | None
    coefficients: np.ndarray
    parameters: np.ndarray
    losses: np.ndarray
    weights: np.ndarray
    rss: float
    r2: float
    status: str

    @property
    def a(self):
        """Amplitude of a power form, `a P**-alpha`, with P a plain count (inf where that overflows)."""
        if self.alpha is None:
            return None
        with np.errstate(over="ignore"):
            return float(self.coefficients[0] * np.exp(self.alpha * np.log(self.parameters.min())))

    @property
    def c(self):
        """Floor; None for a form without one."""
        return float(self.coefficients[1]) if self.form == "power + floor" else None

    def predict(self, parameters):
        """Expected loss at these parameter counts (any shape)."""
        d = np.log(np.asarray(parameters, float) / self.parameters.min())
        return sum(k * column for k, column in zip(self.coefficients, FORMS[self.form](d, self.alpha), strict=True))

    def __str__(self):
        formula = {
            "power + floor": f"L(P) = {self.a or 0:.4g} P^-{self.alpha or 0:.4g} + {self.c or 0:.4g}",
            "power": f"L(P) = {self.a or 0:.4g} P^-{self.alpha or 0:.4g}",
        }.get(self.form, f"L(P), {self.form} in log P")
        sizes = len(np.unique(self.parameters))
        return f"{formula}\n{len(self.losses)} losses of {sizes} sizes, R2 {self.r2:.4f}, status: {self.status}"


def power_law(parameters, losses, weights=None, form="power + floor"):
    """Fit one law at its global least-squares optimum.

    Parameters
    ----------
    parameters, losses : (n,)
        Parameter count and loss of each observation: runs, or size means.
    weights : (n,), optional
        Inverse variances (`curve_fit` wants standard deviations instead). Equal by default.
    form : str
        A key of `FORMS`.

    Raises
    ------
    InputError
        For values that are not finite, counts or weights that are not positive, or fewer sizes than parameters.
    """
    P, L, w = _checked(parameters, losses, weights, form)
    sizes, index = np.unique(P, return_inverse=True)
    if len(sizes) < PARAMETERS[form]:
        needed = f"{form!r} has {PARAMETERS[form]} parameters and there are only {len(sizes)} model sizes"
        raise InputError(f"{needed}: train more sizes")
    alpha, status = None, "ok"
    if form.startswith("power"):
        d, weight = np.log(sizes / sizes[0]), np.bincount(index, w)
        means = np.bincount(index, w * L) / weight
        fits = fit_many(d, means, weight, floor=form == "power + floor")
        alpha, status = float(fits.alpha[0]), _status(form, fits, d, means, weight)
    return _at(alpha, P, L, w, form, status)


def _at(alpha, P, L, w, form, status):
    """The law of that form whose exponent is already known."""
    root = np.sqrt(w)
    design = np.stack(FORMS[form](np.log(P / P.min()), alpha), -1)
    coefficients = np.linalg.lstsq(design * root[:, None], L * root, rcond=None)[0]
    rss = float((w * (L - design @ coefficients) ** 2).sum())
    total = float((w * (L - np.average(L, weights=w)) ** 2).sum())
    return Law(form, alpha, coefficients, P, L, w, rss, 1 - rss / total if total > 0 else 0.0, status)


def _checked(parameters, losses, weights, form):
    if form not in FORMS:
        raise InputError(f"there is no form {form!r} of the law: choose one of {', '.join(FORMS)}")
    P, L = np.asarray(parameters, float).ravel(), np.asarray(losses, float).ravel()
    w = np.ones_like(L) if weights is None else np.asarray(weights, float).ravel()
    if not len(P) == len(L) == len(w):
        raise InputError(f"{len(P)} parameter counts, {len(L)} losses and {len(w)} weights: give as many of each")
    for name, values in (("parameters", P), ("losses", L), ("weights", w)):
        good = np.isfinite(values) & ((values > 0) | (name == "losses"))
        if not good.all():
            row = np.flatnonzero(~good)[0]
            raise InputError(f"{name} holds {values[row]} at row {row}: leave the row out or correct it")
    return P, L, w


def _status(form, fits, d, means, weights):
    if fits.amplitude[0] * fits.alpha[0] <= 0:
        return "increasing"
    if fits.edge[0]:
        return "alpha at grid edge"
    if form == "power":
        return "ok"
    if len(d) < FEWEST_SIZES:
        return "too few sizes"
    identified = np.isfinite(profile(d, means, weights, len(d) - 3).interval()).all()
    return "ok" if identified else "floor not identified"


def huber_law(parameters, losses, delta=1e-3, rounds=300):
    """Power + floor under a Huber loss on residuals of log-loss: a sensitivity check against runs that went wrong.

    At the delta of Hoffmann et al. (2022), 1e-3, it is close to least absolute deviations. Iteratively reweighted
    variable projection: each round linearises log L about the current law and reweights, so each is a global fit.

    Returns
    -------
    Law, or None where a loss or a fitted loss is not positive.
    """
    P, L, w = _checked(parameters, losses, None, "power + floor")
    law = power_law(P, L)
    sizes, index = np.unique(P, return_inverse=True)
    for _ in range(rounds):
        fitted = law.predict(P)
        if (L <= 0).any() or (fitted <= 0).any():
            return None
        residual = np.log(L / fitted)
        w = np.minimum(1, delta / np.maximum(abs(residual), 1e-12)) / fitted**2
        weight, target = np.bincount(index, w), fitted * (1 + residual)
        means = np.bincount(index, w * target) / weight
        alpha = float(fit_many(np.log(sizes / sizes[0]), means, weight).alpha[0])
        previous, law = law, _at(alpha, P, target, w, law.form, law.status)
        if abs(law.alpha - previous.alpha) < 1e-7 * law.alpha:
            break
    return replace(law, losses=L)
