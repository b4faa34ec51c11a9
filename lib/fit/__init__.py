"""Scaling laws fitted to runs; here are the names that the notebooks use."""

from lib.fit import published
from lib.fit.conditions import budget, confounds, held_out, matched, protocols
from lib.fit.joint import outlook
from lib.fit.summary import bits_table, comparison_table, curves, fit_laws, kept, laws_table, of_metric, rollout_table

__all__ = [
    "bits_table", "budget", "comparison_table", "confounds", "curves", "fit_laws", "held_out", "kept", "laws_table",
    "matched", "of_metric", "outlook", "protocols", "published", "rollout_table",
]  # fmt: skip
