"""Scaling laws fitted to runs."""

from lib.fit.summary import fit_laws

__all__ = ["fit_laws"]
