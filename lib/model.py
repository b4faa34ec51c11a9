"""The masked-reconstruction transformer of arXiv 2602.15253. Needs torch alone."""

import torch
from torch import nn
from torch.nn.functional import linear

from lib.kernels import attention, dropout, gelu


class Block(nn.Module):
    """Pre-LayerNorm encoder block: multi-head attention with biases, then a GELU feed-forward layer."""

    def __init__(self, size, probability):
        super().__init__()
        self.heads, self.probability = size.heads, probability
        self.norm1, self.norm2 = Norm(size.d), Norm(size.d)
        self.qkv = nn.Linear(size.d, 3 * size.d)
        self.out = nn.Linear(size.d, size.d)
        self.up = nn.Linear(size.d, size.ff_mult * size.d)
        self.down = nn.Linear(size.ff_mult * size.d, size.d)

    def forward(self, tokens, queries=None):
        """Transform `tokens` (cells, genes, d); with `queries` (cells, k) only those positions, which see all tokens.

        The last block needs no more than the positions that the loss sees, for the same answer.
        """
        d, chance = tokens.shape[-1], self.probability if self.training else 0.0
        normed = self.norm1(tokens)
        pair = linear(normed, self.qkv.weight[d:], self.qkv.bias[d:])
        if queries is not None:
            normed, tokens = _take(normed, queries), _take(tokens, queries)
        query = linear(normed, self.qkv.weight[:d], self.qkv.bias[:d])
        tokens = tokens + dropout(self.out(attention(query, pair, self.heads, chance)), chance)
        inner = dropout(gelu(self.up(self.norm2(tokens))), chance)
        return tokens + dropout(self.down(inner), chance)


class Norm(nn.LayerNorm):
    """LayerNorm. One value has no spread, so that of width 1 only the bias is left, which is quicker said."""

    def forward(self, tokens):
        return self.bias.expand_as(tokens) if tokens.shape[-1] == 1 else super().forward(tokens)


class Transformer(nn.Module):
    """Predicts the log-normalised expression of hidden genes from the visible ones.

    A token is a gene embedding plus a linear projection of the gene's expression; where a gene is hidden, one learned
    vector stands for the projection. No positional encoding, no final LayerNorm.

    Parameters
    ----------
    size : lib.sizes.Size
    genes : int
        Genes of the panel; each has its own embedding.
    dropout : float
        On attention weights, and after attention and feed-forward.
    embedding_scale : float
        Standard deviation of the initial gene embeddings and mask vector. The published 0.02 leaves genes nearly
        alike, so that a short run learns little but the overall mean.
    """

    def __init__(self, size, genes, dropout=0.0, embedding_scale=0.02):
        super().__init__()
        self.gene = nn.Parameter(torch.empty(genes, size.d).normal_(std=embedding_scale))
        self.hidden = nn.Parameter(torch.empty(size.d).normal_(std=embedding_scale))
        self.value = nn.Linear(1, size.d)
        self.blocks = nn.ModuleList(Block(size, dropout) for _ in range(size.layers))
        self.head = nn.Linear(size.d, 1)
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
        Tensor (cells, k) or (cells, genes)
        """
        tokens = self.embed(expression, hidden)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        return self.head(self.blocks[-1](tokens, queries)).squeeze(-1)

    def embed(self, expression, hidden):
        """Tokens (cells, genes, d): what stands at visible and at hidden genes, both in one small matrix product."""
        seen = torch.stack([expression.masked_fill(hidden, 0.0), hidden.to(expression.dtype)], dim=-1)
        ways = torch.stack([self.value.weight[:, 0], self.hidden - self.value.bias])
        return torch.baddbmm(
            (self.gene + self.value.bias).expand(len(seen), -1, -1), seen, ways.expand(len(seen), -1, -1)
        )


def _take(tokens, positions):
    """Tokens (cells, genes, d) at `positions` (cells, k)."""
    return tokens.gather(1, positions.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
