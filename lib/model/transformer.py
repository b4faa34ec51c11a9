"""The masked-reconstruction transformer of arXiv 2602.15253. Needs torch alone."""

from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import linear, pad

from lib.model.kernels import attention, dropout, gelu


class Block(nn.Module):
    """Pre-LayerNorm encoder block: multi-head attention with biases, then a GELU feed-forward layer."""

    def __init__(self, size, probability):
        super().__init__()
        self.d, self.heads, self.probability = size.d, size.heads, probability
        self.norm1, self.norm2 = Norm(size.d), Norm(size.d)
        self.qkv = nn.Linear(size.d, 3 * size.d)
        self.out = nn.Linear(size.d, size.d)
        self.up = nn.Linear(size.d, size.ff_mult * size.d)
        self.down = nn.Linear(size.ff_mult * size.d, size.d)

    def forward(self, tokens, queries=None, multiple=1):
        """Transform `tokens` (cells, genes, d); with `queries` (cells, k) only those positions, which see all tokens.

        The last block needs no more than the positions that the loss sees, for the same answer. With `multiple`, tokens
        and heads are as wide as the next multiple of it, and what is added is zero and stays zero: GPUs are slow at
        widths such as L's 1,020 and its heads' 85.
        """
        chance = self.probability if self.training else 0.0
        qkv, bias, out = self.attention_weights(multiple)
        up, down = (_grown(part.weight, _up(part.weight.shape, multiple)) for part in (self.up, self.down))
        third = len(bias) // 3
        normed = self.norm1(tokens)
        pair = linear(normed, qkv[third:], bias[third:])
        if queries is not None:
            normed, tokens = _take(normed, queries), _take(tokens, queries)
        seen = attention(linear(normed, qkv[:third], bias[:third]), pair, self.heads, chance, self.d // self.heads)
        tokens = tokens + dropout(linear(seen, out, _grown(self.out.bias, out.shape[:1])), chance)
        inner = dropout(gelu(linear(self.norm2(tokens), up, _grown(self.up.bias, up.shape[:1]))), chance)
        return tokens + dropout(linear(inner, down, _grown(self.down.bias, down.shape[:1])), chance)

    def attention_weights(self, multiple):
        """Weight and bias into queries, keys and values, and weight out, each head as wide as a multiple."""
        by_head = 3, self.heads, self.d // self.heads
        _, _, wide = grown = 3, self.heads, _up(by_head, multiple)[2]
        full = _up((self.d,), multiple)[0]
        qkv = _grown(self.qkv.weight.view(*by_head, self.d), (*grown, full)).flatten(0, 2)
        out = _grown(self.out.weight.view(self.d, *by_head[1:]), (full, self.heads, wide)).flatten(1)
        return qkv, _grown(self.qkv.bias.view(by_head), grown).flatten(), out


class Norm(nn.LayerNorm):
    """LayerNorm over the first `d` values of a token; what follows them is zero before and after.

    One value has no spread, so that of width 1 only the bias is left, which is quicker said.
    """

    def forward(self, tokens):
        (d,), full = self.normalized_shape, tokens.shape[-1:]
        if d == 1:
            return self.bias.expand_as(tokens)
        if full == (d,):
            return super().forward(tokens)
        away = (tokens - tokens.sum(-1, keepdim=True) / d) * (torch.arange(full[0], device=tokens.device) < d)
        spread = (away.square().sum(-1, keepdim=True) / d + self.eps).rsqrt()
        return away * spread * _grown(self.weight, full) + _grown(self.bias, full)


class Transformer(nn.Module):
    """Predicts the log-normalised expression of hidden genes from the visible ones.

    A token is a gene embedding plus a linear projection of the gene's expression; where a gene is hidden, one learned
    vector stands for the projection. No positional encoding, no final LayerNorm.

    Parameters
    ----------
    size : lib.model.sizes.Size
    genes : int
        Genes of the panel; each has its own embedding.
    dropout : float
        On attention weights, and after attention and feed-forward.
    outputs : int
        Numbers predicted for a gene: one, or two for a distribution of mean and dispersion.
    embedding_scale : float
        Standard deviation of the initial gene embeddings and mask vector. The published 0.02 leaves genes nearly
        alike, so that a short run learns little but the overall mean.
    """

    multiple: ClassVar = {"cpu": 1, "cuda": 8}
    """Widths are raised to a multiple of it inside, exactly: tensor cores and fused attention want multiples of 8."""

    def __init__(self, size, genes, dropout=0.0, embedding_scale=0.02, outputs=1):
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

    def forward(self, expression, hidden, queries=None):
        """Predicted expression.

        Parameters
        ----------
        expression : Tensor (cells, genes)
            Log-normalised expression; the values at hidden genes are not looked at.
        hidden : bool Tensor (cells, genes)
        queries : int Tensor (cells, k), optional
            Genes to predict; all of them when left out.

        Returns
        -------
        Tensor (cells, k) or (cells, genes); with several outputs one more dimension for them
        """
        multiple = self.multiple[expression.device.type]
        with torch.autocast(expression.device.type, enabled=False):  # what passes from block to block stays float32
            tokens = self.embed(expression, hidden, multiple)
        for block in self.blocks[:-1]:
            tokens = block(tokens, multiple=multiple)
        tokens = self.blocks[-1](tokens, queries, multiple)
        with torch.autocast(expression.device.type, enabled=False):
            head = _grown(self.head.weight, (self.head.out_features, tokens.shape[-1]))
            return linear(tokens, head, self.head.bias).squeeze(-1)

    def embed(self, expression, hidden, multiple):
        """Tokens (cells, genes, d): what stands at visible and at hidden genes, both in one small matrix product."""
        seen = torch.stack([expression.masked_fill(hidden, 0.0), hidden.to(expression.dtype)], dim=-1)
        ways = torch.stack([self.value.weight[:, 0], self.hidden - self.value.bias])
        genes = self.gene + self.value.bias
        genes, ways = (_grown(part, (len(part), *_up(part.shape[1:], multiple))) for part in (genes, ways))
        return torch.baddbmm(genes.expand(len(seen), -1, -1), seen, ways.expand(len(seen), -1, -1))


def _up(shape, multiple):
    """Each length raised to a multiple."""
    return tuple(-(-length // multiple) * multiple for length in shape)


def _grown(weight, shape):
    """`weight` with zeros after its values in every dimension, up to `shape`."""
    room = [(0, new - old) for old, new in zip(weight.shape, shape, strict=True)]
    return weight if weight.shape == tuple(shape) else pad(weight, [number for pair in room[::-1] for number in pair])


def _take(tokens, positions):
    """Tokens (cells, genes, d) at `positions` (cells, k)."""
    return tokens.gather(1, positions.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
