"""Every figure of the study, one function each; they draw what they are given and compute no science."""

from lib.figures.audit import criterion_curve, published_audit
from lib.figures.inputs import panel_statistics, realism, sizes, splits
from lib.figures.look import Figure, save, use
from lib.figures.outlook import coverage, learning_rates, planner
from lib.figures.schematic import architecture
from lib.figures.study import cells_per_parameter, intervals, learning_curves, loss_against_parameters, profile

__all__ = [
    "Figure",
    "architecture",
    "cells_per_parameter",
    "coverage",
    "criterion_curve",
    "intervals",
    "learning_curves",
    "learning_rates",
    "loss_against_parameters",
    "panel_statistics",
    "planner",
    "profile",
    "published_audit",
    "realism",
    "save",
    "sizes",
    "splits",
    "use",
]
