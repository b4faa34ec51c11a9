"""Scaling laws fitted to runs: the law, its intervals, the forms compared, the joint law and its planner."""

from lib.fit import budget, heldout, matched, protocols, published
from lib.fit.bayes import bayes_law
from lib.fit.compare import compare_forms, lack_of_fit, rollout
from lib.fit.joint import Joint, compare_joint, joint_law
from lib.fit.ladder import Ladder, ladder
from lib.fit.law import Law, huber_law, power_law
from lib.fit.laws import fit_laws, profile_curve
from lib.fit.outlook import outlook
from lib.fit.planner import frontier, gains_table, plan
from lib.fit.report import answer, band, comparison_table, curves, laws_table, of_metric, restore, rollout_table

__all__ = [
    "Joint", "Ladder", "Law", "answer", "band", "bayes_law", "budget", "compare_forms", "compare_joint",
    "comparison_table", "curves", "fit_laws", "frontier", "gains_table", "heldout", "huber_law", "joint_law",
    "lack_of_fit", "ladder", "laws_table", "matched", "of_metric", "outlook", "plan", "power_law",
    "profile_curve", "protocols", "published", "restore", "rollout", "rollout_table",
]  # fmt: skip
