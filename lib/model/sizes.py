"""Model sizes: the published ladder, counts of parameters and floating-point operations, the sweep of the recipe.

Without torch, so that a study file can be checked and a plan costed before it is loaded.
"""

import hashlib
import math
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lib.io import InputError

if TYPE_CHECKING:
    import pandas


def cores(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: those of its job on a cluster, within its container's quota (cgroups 2 or 1)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with suppress(OSError, ValueError):  # none, or "max"
        two = groups / "cpu.max"
        files = [two] if two.is_file() else [groups / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period")]
        quota, period = map(int, " ".join(file.read_text() for file in files).split())
        if quota > 0:
            allowed = min(allowed, max(1, quota // period))
    return allowed


def recipe(size: "Size", settings) -> str:
    """Digest of all by which a run is trained, but its cells and its seed: shape, and settings (`lib.study.Train`)."""
    return hashlib.sha256(repr([asdict(size), sorted(vars(settings).items())]).encode()).hexdigest()


@dataclass(frozen=True)
class Size:
    """Shape of one transformer."""

    name: str
    d: int  # width of a token, a multiple of heads
    layers: int  # encoder blocks
    heads: int  # attention heads of each
    ff_mult: int  # feed-forward width as a multiple of d

    def parameters(self, genes: int, outputs: int = 1) -> int:
        """Trainable parameters: gene embeddings (genes x d), expression projection (2d), mask vector (d), head (d + 1
        for each output), and per block attention 4d^2 + 4d, feed-forward 2 f d^2 + (f + 1) d, two LayerNorms 4d.
        """
        d, f = self.d, self.ff_mult
        block = (4 + 2 * f) * d * d + (9 + f) * d
        return genes * d + 3 * d + outputs * (d + 1) + self.layers * block

    def threads(self, genes: int) -> int:
        """Threads that train one run: one for each 16,384 values of a cell's tokens, as far as there are cores.

        They decide the last digits of a result, so they must not depend on what else is running.
        """
        return min(cores(), max(1, self.d * genes // 16_384))

    def memory(self, genes: int) -> int:
        """Bytes that training takes at least: weights, gradient, AdamW's two moments, activations of a cell."""
        activations = self.layers * genes * self.d * (8 + 2 * self.ff_mult)
        return 4 * (4 * self.parameters(genes) + activations)

    def forward_flops(self, genes: int) -> int:
        """Model FLOPs of one cell's forward pass: two per multiply-add of every matrix product over all tokens."""
        d, f = self.d, self.ff_mult
        block = genes * (4 + 2 * f) * d * d + 2 * genes * genes * d
        return 2 * (genes * d + self.layers * block + genes * d)

    def training_flops_per_cell(self, genes: int) -> int:
        """Model FLOPs of training on one cell: the backward pass costs two forward passes."""
        return 3 * self.forward_flops(genes)

    def training_flops(self, genes: int, settings) -> int:
        """Model FLOPs of one run's updates by a `lib.study.Train`, those of its branches too, without evaluations."""
        updates = settings.updates + sum(ends - leaves for leaves, ends in settings.branches.values())
        return self.training_flops_per_cell(genes) * settings.batch * updates


PUBLISHED = {
    name: Size(name, *shape)
    for name, shape in {
        "XXS": (1, 1, 1, 1),
        "TINY": (16, 1, 1, 1),
        "XS": (64, 2, 4, 4),
        "S": (128, 4, 8, 4),
        "M": (512, 6, 8, 4),
        "L": (1020, 8, 12, 4),
        "XL": (1536, 12, 16, 4),
    }.items()
}
"""The seven sizes of arXiv 2602.15253."""

PUBLISHED_PROTOCOL = {
    "library_size": "panel", "statistics_from": "all", "train_on": "all", "masks": "bernoulli", "report": "best",
    "optimiser": "adamw", "batch": 32, "beta2": 0.999, "learning_rate": 3.125e-5, "width_exponent": 0.0,
    "highest_rate": None, "warmup": 0.0, "decay": 0.0, "final_rate": 1.0, "dropout": 0.1,
    "embedding_scale": 0.02, "cells_seen": 240_000, "evaluations": 61,
}  # fmt: skip
"""How it trains, fault by fault, by the keys of a study file."""
PUBLISHED_TISSUES = [
    "blood", "brain", "heart", "intestine", "kidney", "liver", "lung", "pancreas", "skin of body", "spleen",
]  # fmt: skip
"""Its ten tissues, as the Census labels them in tissue_general: its "skin" is "skin of body" there."""

BUDGETS = {"eighth": 8, "quarter": 4, "half": 2}  # earlier budgets of a run, by the part of its updates

OUTPUTS = {"mse": 1, "negative_binomial": 2}
"""Numbers that a model predicts for each hidden gene, by the objective that it is trained for."""


def batch(masked: int) -> int:
    """Cells of one update where the study file does not say: as many as hide about 512 genes, `masked` each.

    A power of two from 16 to 256. Below, an update is mostly overhead; above, cells teach less (data/recipe.csv).
    """
    return min(256, max(16, 2 ** round(math.log2(512 / masked))))


def table(study) -> "pandas.DataFrame":
    """The sizes of every regime: size, regime, genes, the shape, parameters, flops_per_cell (of one forward pass)."""
    import pandas as pd

    if not study.sizes:
        raise InputError(f"study {study.name} trains no size: its runs are given, in {study.runs.table}; open 04_fit.")
    rows = [
        {"size": size.name, "regime": name, "genes": regime.genes} | asdict(size)
        | {"parameters": size.parameters(regime.genes, OUTPUTS[study.training(name).objective]),
           "flops_per_cell": size.forward_flops(regime.genes)}
        for name, regime in study.regimes.items() for size in study.sizes
    ]  # fmt: skip
    return pd.DataFrame(rows).drop(columns="name")


def cost_of_rule(swept: "pandas.DataFrame") -> "pandas.DataFrame":
    """What the rule of all sizes costs, by the sweep of learning rates and the like in data/recipe.csv.

    There rule marks what a study gets, and held_out where the rule was not chosen; a trial that diverged has an
    infinite loss. The table has panel, width, held_out, the losses rule and best, and cost, rule / best - 1.
    """
    by = ["panel", "width"]
    rule = swept[swept["rule"]].drop_duplicates(by).set_index(by)
    best = swept.groupby(by)["validation_mse"].min()
    table = rule[["held_out"]].assign(rule=rule["validation_mse"], best=best)
    return table.assign(cost=table["rule"] / table["best"] - 1).reset_index()
