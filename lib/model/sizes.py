"""Model sizes: the published ladder, and exact counts of parameters and floating-point operations.

Standard library only, but for the table, so that a study file can be checked and a plan costed without torch.
"""

import os
from dataclasses import dataclass


def cores():
    """Cores that this process may use: those of its job, where a cluster gives it a part of a machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@dataclass(frozen=True)
class Size:
    """Shape of one transformer.

    Attributes
    ----------
    d : int
        Width of a token.
    layers, heads : int
        Encoder blocks, and attention heads in each (`d` is a multiple of `heads`).
    ff_mult : int
        Feed-forward width as a multiple of `d`.
    """

    name: str
    d: int
    layers: int
    heads: int
    ff_mult: int

    def parameters(self, genes, outputs=1):
        """Number of trainable parameters at `genes` genes.

        Gene embeddings (genes x d), expression projection (2d), mask vector (d), head (d + 1 for each output), and per
        block: attention 4d^2 + 4d, feed-forward 2 f d^2 + (f + 1) d, two LayerNorms 4d, with f = ff_mult.
        """
        d, f = self.d, self.ff_mult
        block = (4 + 2 * f) * d * d + (9 + f) * d
        return genes * d + 3 * d + outputs * (d + 1) + self.layers * block

    def threads(self, genes):
        """Threads that train one run: one for each 16,384 values of a cell's tokens, as far as there are cores.

        Two small runs beside each other are faster than one on two cores. The number decides the last digits of a
        result, so it must not depend on what else is running.
        """
        return min(cores(), max(1, self.d * genes // 16_384))

    def memory(self, genes, cells=1):
        """Bytes that training takes at least: weights, gradient, AdamW's two moments, activations of `cells` cells."""
        activations = self.layers * genes * self.d * (8 + 2 * self.ff_mult)
        return 4 * (4 * self.parameters(genes) + cells * activations)

    def forward_flops(self, genes):
        """Model FLOPs of one cell's forward pass: two per multiply-add of every matrix product over all `genes` tokens.

        Counts what the architecture asks for, not what an implementation saves. A training step costs three times this.
        """
        d, f = self.d, self.ff_mult
        block = genes * (4 + 2 * f) * d * d + 2 * genes * genes * d
        return 2 * (genes * d + self.layers * block + genes * d)


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


OUTPUTS = {"mse": 1, "poisson": 1, "negative_binomial": 2}
"""Numbers that a model predicts for each hidden gene, by the objective that it is trained for."""


def table(study):
    """One row per size and regime of a study: shape, parameters, FLOPs of one cell's forward pass.

    Returns
    -------
    DataFrame with columns size, regime, genes, d, layers, heads, ff_mult, parameters, flops_per_cell
    """
    import pandas as pd

    rows = [
        {"size": size.name, "regime": name, "genes": regime.genes, "d": size.d, "layers": size.layers,
         "heads": size.heads, "ff_mult": size.ff_mult,
         "parameters": size.parameters(regime.genes, OUTPUTS[study.training(name).objective]),
         "flops_per_cell": size.forward_flops(regime.genes)}
        for name, regime in study.regimes.items() for size in study.sizes
    ]  # fmt: skip
    return pd.DataFrame(rows)
