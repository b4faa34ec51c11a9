"""The published protocol as one would write it down first: the baseline of `train.py`, and what ours must equal.

torch's own encoder, a DataLoader over cells whose masks are drawn in `__getitem__`, micro-batches of 4 cells, an update
every 8 of them, AdamW, one head over all genes of which the loss takes the masked ones.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

MICRO_BATCH, ACCUMULATION = 4, 8


class Reference(nn.Module):
    """The transformer of arXiv 2602.15253 made of torch's own layers; predicts every gene of every cell."""

    def __init__(self, size, genes, dropout=0.1):
        super().__init__()
        self.gene = nn.Embedding(genes, size.d)
        self.value = nn.Linear(1, size.d)
        self.hidden = nn.Parameter(torch.empty(size.d).normal_(std=0.02))
        block = nn.TransformerEncoderLayer(
            size.d, size.heads, size.ff_mult * size.d, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(block, size.layers, enable_nested_tensor=False)
        self.head = nn.Linear(size.d, 1)

    def forward(self, expression, hidden):
        """Predicted expression (cells, genes); `hidden` (cells, genes) bool says which values are not to be seen."""
        visible = self.value(expression.unsqueeze(-1))
        tokens = torch.where(hidden.unsqueeze(-1), self.hidden, visible) + self.gene.weight
        return self.head(self.encoder(tokens)).squeeze(-1)


class Cells(Dataset):
    """Cells with as many masked genes as ours, drawn anew at every visit."""

    def __init__(self, x, masked):
        self.x, self.masked = torch.as_tensor(x), masked

    def __len__(self):
        return len(self.x)

    def __getitem__(self, cell):
        hidden = torch.zeros(self.x.shape[1], dtype=torch.bool)
        hidden[torch.randperm(self.x.shape[1])[: self.masked]] = True
        return self.x[cell], hidden


def train(model, cells, updates, optimiser=None):
    """Train for some updates of MICRO_BATCH x ACCUMULATION cells; returns the mean loss of the last one."""
    optimiser = optimiser or torch.optim.AdamW(model.parameters(), lr=3.125e-5, weight_decay=0.01)
    model.train()
    batches = iter(DataLoader(cells, MICRO_BATCH, sampler=_endless(len(cells))))
    for _ in range(updates):
        total = 0.0
        for _ in range(ACCUMULATION):
            x, hidden = next(batches)
            loss = (model(x, hidden) - x)[hidden].square().mean() / ACCUMULATION
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return total


def _endless(cells):
    while True:
        yield from torch.randperm(cells).tolist()


def adopt(reference, ours):
    """Give the reference the weights of a `lib.model.Transformer`."""
    weights = ours.state_dict()
    reference.load_state_dict({name: weights[own_name(name)] for name in reference.state_dict()})


def own_name(name):
    """What `lib.model` calls a weight of the reference."""
    if not name.startswith("encoder.layers."):
        return "gene" if name == "gene.weight" else name
    layer, rest = name.removeprefix("encoder.layers.").split(".", 1)
    rest = rest.replace("self_attn.in_proj_", "qkv.").replace("self_attn.out_proj", "out")
    return f"blocks.{layer}.{rest.replace('linear1', 'up').replace('linear2', 'down')}"
