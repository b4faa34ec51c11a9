"""Every figure and table of the study, one function each; they draw what they are given and compute no science."""

from lib.figures import tables
from lib.figures.conditions import budget, held_out, matched, protocols, replicates
from lib.figures.inputs import architecture, learning_rates, panel_statistics, realism, sizes, splits
from lib.figures.method import by_gene, calibration, conversions, coverage, criterion_curve, planner, published_audit
from lib.figures.study import cells_per_parameter, intervals, learning_curves, loss_against_parameters, profile
from lib.figures.style import Figure, save, use

__all__ = [
    "Figure", "architecture", "budget", "by_gene", "calibration", "cells_per_parameter", "conversions", "coverage",
    "criterion_curve", "held_out", "intervals", "learning_curves", "learning_rates", "loss_against_parameters",
    "matched", "panel_statistics", "planner", "profile", "protocols", "published_audit", "realism", "replicates",
    "save", "sizes", "splits", "tables", "use",
]  # fmt: skip
