"""The masked-reconstruction transformer of arXiv 2602.15253, and its losses. Needs torch alone.

A loss is a squared error on the log scale, or the bits of a raw count. A hidden count of a cell with library size l has
mean m = l / 10,000 exp(bounded first output) and variance m + m^2 / theta with theta = exp(bounded second output). The
bounds are smooth, so that no step can leave them: m / l x 10,000 stays within e^-12 to e^12, and theta within e^-6 to
e^6, where the negative binomial is all but Poisson.
"""

import math

import numpy as np
import torch
from torch import Tensor, lgamma, nn
from torch.nn.functional import dropout, gelu, linear, scaled_dot_product_attention, softplus

from lib.io import TARGET
from lib.model.sizes import Size

BOUNDS = {"mean": 12.0, "dispersion": 6.0}


class Block(nn.Module):
    """Pre-LayerNorm encoder block: multi-head attention with biases, then a GELU feed-forward layer."""

    def __init__(self, size: Size, probability: float):
        super().__init__()
        self.heads, self.probability = size.heads, probability
        self.norm1, self.norm2 = Norm(size.d), Norm(size.d)
        self.qkv = nn.Linear(size.d, 3 * size.d)
        self.out = nn.Linear(size.d, size.d)
        self.up = nn.Linear(size.d, size.ff_mult * size.d)
        self.down = nn.Linear(size.ff_mult * size.d, size.d)

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Transform `tokens` (cells, genes, d); with `positions` (cells, k) only those, which see all tokens.

        The last block needs no more than the positions that the loss sees, for the same answer.
        """
        chance = self.probability if self.training else 0.0
        normed = self.norm1(tokens)
        if positions is None:
            query, key, value = self.qkv(normed).chunk(3, dim=-1)
        else:
            d, at = tokens.shape[-1], positions.unsqueeze(-1)
            key, value = linear(normed, self.qkv.weight[d:], self.qkv.bias[d:]).chunk(2, dim=-1)
            query = linear(normed.take_along_dim(at, 1), self.qkv.weight[:d], self.qkv.bias[:d])
            tokens = tokens.take_along_dim(at, 1)
        by_head = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        seen = scaled_dot_product_attention(*by_head, dropout_p=chance).transpose(1, 2).flatten(-2)
        tokens = tokens + dropout(self.out(seen), chance)
        inner = dropout(gelu(self.up(self.norm2(tokens))), chance)
        return tokens + dropout(self.down(inner), chance)


class Norm(nn.LayerNorm):
    """LayerNorm over a token. One value has no spread: of width 1 only the bias is left, and only it is computed."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.bias.expand_as(tokens) if self.normalized_shape == (1,) else super().forward(tokens)


class Transformer(nn.Module):
    """Predicts the log-normalised expression of hidden genes from the visible ones.

    A token is a gene embedding plus a linear projection of the gene's expression; where a gene is hidden, one learned
    vector, the mask embedding, stands for the projection. No positional encoding, no final LayerNorm.

    `dropout` is on attention weights, and after attention and feed-forward. `embedding_scale` is the standard deviation
    of the initial gene and mask embeddings: the published 0.02 leaves genes nearly alike, so that a short run learns
    little but the overall mean. `outputs` are predicted for a gene: one, or two for mean and dispersion.
    """

    def __init__(
        self, size: Size, genes: int, dropout: float = 0.0, embedding_scale: float = 0.02, outputs: int = 1
    ) -> None:
        super().__init__()
        self.gene = nn.Parameter(torch.empty(genes, size.d).normal_(std=embedding_scale))
        self.hidden = nn.Parameter(torch.empty(size.d).normal_(std=embedding_scale))
        self.value = nn.Linear(1, size.d)
        self.blocks = nn.ModuleList(Block(size, dropout) for _ in range(size.layers))
        self.head = nn.Linear(size.d, outputs)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, expression: Tensor, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """Predicted expression (cells, k) at `positions` (cells, k), or (cells, genes) of all genes.

        `expression` (cells, genes) is log-normalised, and not looked at where `hidden` (cells, genes) is true. With
        several outputs the result has one more dimension for them.
        """
        with torch.autocast(expression.device.type, enabled=False):  # what passes from block to block stays float32
            tokens = self.embed(expression, hidden)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        tokens = self.blocks[-1](tokens, positions)
        with torch.autocast(expression.device.type, enabled=False):
            return self.head(tokens).squeeze(-1)

    def embed(self, expression: Tensor, hidden: Tensor) -> Tensor:
        """Tokens (cells, genes, d): visible values and mask embeddings, both in one small matrix product."""
        seen = torch.stack([expression.masked_fill(hidden, 0.0), hidden.to(expression.dtype)], dim=-1)
        ways = torch.stack([self.value.weight[:, 0], self.hidden - self.value.bias])
        genes = self.gene + self.value.bias
        return torch.baddbmm(genes.expand(len(seen), -1, -1), seen, ways.expand(len(seen), -1, -1))


def squared_error(predicted: Tensor, truth: Tensor, library: Tensor | None = None) -> Tensor:
    """(predicted - truth)^2 of log-normalised expression; the library size plays no part."""
    return (predicted - truth).square()


def negative_binomial(raw: Tensor, counts: Tensor, library: Tensor) -> Tensor:
    """Bits of counts (cells, k) under negative binomials; `raw` is (cells, k, 2), `library` (cells,)."""
    log_mean, log_theta = _log_mean(raw[..., 0], library), _bounded(raw[..., 1], "dispersion")
    theta, above = log_theta.exp(), log_mean - log_theta
    chosen = lgamma(counts + theta) - lgamma(theta) - lgamma(counts + 1)
    return (theta * softplus(above) + counts * softplus(-above) - chosen) / math.log(2)


LOSSES = {"mse": squared_error, "negative_binomial": negative_binomial}
"""The loss at each masked position, by objective: of raw outputs, truth and library sizes."""
UNITS = {"mse": "mse", "negative_binomial": "nll"}
"""How the columns of runs.csv name each loss: squared error, or bits per masked gene."""


@torch.no_grad()
def distribution(raw: Tensor, library: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Predicted mean and dispersion of counts, as float64 NumPy arrays (cells, k)."""
    mean, theta = _log_mean(raw[..., 0], library).exp(), _bounded(raw[..., 1], "dispersion").exp()
    return mean.double().cpu().numpy(), theta.double().cpu().numpy()


def hide(positions: Tensor, genes: int) -> Tensor:
    """Boolean masks (cells, genes) that are true at `positions` (cells, k)."""
    hidden = torch.zeros(len(positions), genes, dtype=torch.bool, device=positions.device)
    return hidden.scatter_(1, positions, True)


def _log_mean(raw: Tensor, library: Tensor) -> Tensor:
    return _bounded(raw, "mean") + (library / TARGET).log().unsqueeze(-1)


def _bounded(raw: Tensor, name: str) -> Tensor:
    return BOUNDS[name] * torch.tanh(raw / BOUNDS[name])
