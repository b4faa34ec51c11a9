"""Every figure and table of the study, one function each; they draw what they are given and compute no science."""

from lib.figures import tables
from lib.figures.conditions import (
    budget, by_gene, compute, conversions, depth, held_out, matched, probe, protocols, published_audit,
)  # fmt: skip
from lib.figures.inputs import architecture, realism, recipe, splits
from lib.figures.study import closeness, learning_curves, loss_against_parameters
from lib.figures.style import Figure, save, section, use
