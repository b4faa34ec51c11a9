"""The transformer against torch's own."""

import pytest
import torch
from torch import nn

from lib.model import Transformer
from lib.sizes import PUBLISHED, Size

SIZE = Size("test", 12, 3, 3, 2)
GENES, MASKED = 20, 5


@pytest.fixture
def batch():
    torch.manual_seed(0)
    x = torch.rand(6, GENES, dtype=torch.float64)
    positions = torch.rand(6, GENES).topk(MASKED).indices
    return x, torch.zeros(6, GENES, dtype=torch.bool).scatter_(1, positions, True), positions


def reference_of(model, size):
    """torch's nn.TransformerEncoder with the same weights."""
    layer = nn.TransformerEncoderLayer(
        size.d, size.heads, size.ff_mult * size.d, 0.0, "gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    encoder = nn.TransformerEncoder(layer, size.layers, enable_nested_tensor=False)
    names = {"norm1": "norm1", "norm2": "norm2", "up": "linear1", "down": "linear2", "out": "self_attn.out_proj"}
    for block, theirs in zip(model.blocks, encoder.layers, strict=True):
        for ours, name in names.items():
            theirs.get_submodule(name).load_state_dict(getattr(block, ours).state_dict())
        theirs.self_attn.in_proj_weight.data.copy_(block.qkv.weight.data)
        theirs.self_attn.in_proj_bias.data.copy_(block.qkv.bias.data)
    return encoder


def test_outputs_and_gradients_equal_those_of_the_reference_encoder(batch):
    x, hidden, positions = batch
    model = Transformer(SIZE, GENES, embedding_scale=0.5).double()
    encoder = reference_of(model, SIZE)
    tokens = model.gene + torch.where(hidden[..., None], model.hidden, model.value(x[..., None]))
    expected = model.head(encoder(tokens)).squeeze(-1).gather(1, positions)
    ours = model(x, hidden, positions)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)

    shared = [model.gene, model.hidden, model.value.weight, model.value.bias, model.head.weight, model.head.bias]
    ours_of = torch.autograd.grad((ours - 1).square().mean(), [*shared, *(b.qkv.weight for b in model.blocks)])
    attention = [layer.self_attn.in_proj_weight for layer in encoder.layers]
    expected_of = torch.autograd.grad((expected - 1).square().mean(), [*shared, *attention])
    for one, other in zip(ours_of, expected_of, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_last_block_at_masked_positions_gives_what_all_positions_give(batch):
    x, hidden, positions = batch
    model = Transformer(SIZE, GENES, embedding_scale=0.5).double()
    everywhere = model(x, hidden).gather(1, positions)
    torch.testing.assert_close(model(x, hidden, positions), everywhere, rtol=1e-12, atol=1e-12)


def test_hidden_values_cannot_reach_a_prediction(batch):
    x, hidden, positions = batch
    model = Transformer(SIZE, GENES, embedding_scale=0.5).double()
    changed = torch.where(hidden, torch.full_like(x, torch.nan), x)
    assert torch.equal(model(x, hidden, positions), model(changed, hidden, positions))


def test_visible_values_reach_a_prediction_unless_the_width_is_one(batch):
    x, hidden, positions = batch
    changed = torch.where(hidden, x, x + 1)
    wide, narrow = (Transformer(size, GENES, embedding_scale=0.5).double() for size in (SIZE, PUBLISHED["XXS"]))
    assert not torch.allclose(wide(x, hidden, positions), wide(changed, hidden, positions))
    torch.testing.assert_close(narrow(x, hidden, positions), narrow(changed, hidden, positions))


def test_dropout_acts_in_training_only(batch):
    x, hidden, positions = batch
    model = Transformer(SIZE, GENES, dropout=0.5, embedding_scale=0.5).double()
    assert not torch.equal(model(x, hidden, positions), model(x, hidden, positions))
    model.eval()
    assert torch.equal(model(x, hidden, positions), model(x, hidden, positions))
