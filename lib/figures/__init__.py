"""Every figure of the study, one function each; they draw what they are given and compute no science."""

from lib.figures import tables
from lib.figures.answer import answer
from lib.figures.audit import criterion_curve, published_audit
from lib.figures.bits import by_gene, calibration, conversions
from lib.figures.compared import budget, held_out, matched, protocols, replicates
from lib.figures.inputs import panel_statistics, realism, sizes, splits
from lib.figures.look import Figure, use
from lib.figures.outlook import coverage, learning_rates, planner
from lib.figures.schematic import architecture
from lib.figures.shown import save
from lib.figures.study import cells_per_parameter, intervals, learning_curves, loss_against_parameters, profile

__all__ = [
    "Figure",
    "answer",
    "architecture",
    "budget",
    "by_gene",
    "calibration",
    "cells_per_parameter",
    "conversions",
    "coverage",
    "criterion_curve",
    "held_out",
    "intervals",
    "learning_curves",
    "learning_rates",
    "loss_against_parameters",
    "matched",
    "panel_statistics",
    "planner",
    "profile",
    "protocols",
    "published_audit",
    "realism",
    "replicates",
    "save",
    "sizes",
    "splits",
    "tables",
    "use",
]
