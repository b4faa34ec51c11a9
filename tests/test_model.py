"""The transformer against torch's own."""

import pytest
import torch
from reference import Reference, adopt, own_name

from lib.model.sizes import PUBLISHED, Size
from lib.model.transformer import Transformer

SIZE = Size("test", 12, 3, 3, 2)
GENES, MASKED = 20, 5


@pytest.fixture
def batch():
    torch.manual_seed(0)
    x = torch.rand(6, GENES, dtype=torch.float64)
    positions = torch.rand(6, GENES).topk(MASKED).indices
    return x, torch.zeros(6, GENES, dtype=torch.bool).scatter_(1, positions, True), positions


NARROW = [PUBLISHED["XXS"], PUBLISHED["TINY"], PUBLISHED["XS"], PUBLISHED["S"]]


@pytest.mark.parametrize("dtype, exact", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("size", [*NARROW, Size("wide heads", 40, 2, 2, 3)], ids=lambda size: size.name)
def test_outputs_and_all_gradients_equal_those_of_the_plain_implementation(size, dtype, exact):
    """The reference of the benchmark: torch's own encoder over all genes, with the same weights and masks."""
    torch.manual_seed(0)
    ours = Transformer(size, 64, embedding_scale=0.5).to(dtype)
    for weight in ours.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    theirs = Reference(size, 64, dropout=0.0).to(dtype)
    adopt(theirs, ours)
    x, positions = 4 * torch.rand(5, 64, dtype=dtype), torch.rand(5, 64).topk(10).indices
    hidden = torch.zeros(5, 64, dtype=torch.bool).scatter_(1, positions, True)
    predicted, expected = ours(x, hidden, positions), theirs(x, hidden)
    torch.testing.assert_close(predicted, expected.gather(1, positions), rtol=exact, atol=exact)
    (predicted - x.gather(1, positions)).square().mean().backward()
    (expected - x)[hidden].square().mean().backward()
    gradients = {name: weight.grad for name, weight in ours.named_parameters()}
    largest = max(weight.grad.abs().max() for weight in theirs.parameters())
    for name, weight in theirs.named_parameters():
        own = gradients[own_name(name)]
        own = torch.zeros_like(weight) if own is None else own  # width 1: no gradient reaches the norm's weight
        assert (own - weight.grad).norm() <= exact * max(weight.grad.norm(), largest), name


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


@pytest.mark.parametrize("size", [Size("odd", 15, 3, 3, 3), Size("L-like", 20, 2, 4, 4)], ids=lambda size: size.name)
def test_widths_raised_to_multiples_of_eight_change_neither_outputs_nor_gradients(batch, size, monkeypatch):
    x, hidden, positions = batch
    model, found = Transformer(size, GENES, embedding_scale=0.5).double(), []
    for multiple in (1, 8):
        monkeypatch.setattr(Transformer, "multiple", {"cpu": multiple})
        out = model(x, hidden, positions)
        found.append((out, *torch.autograd.grad(out.square().sum(), model.parameters())))
    for plain, raised in zip(*found, strict=True):
        torch.testing.assert_close(raised, plain, rtol=1e-9, atol=1e-10)


def test_what_passes_between_blocks_and_the_prediction_stay_float32_under_autocast(batch):
    x, hidden, positions = (part.float() if part.dtype == torch.float64 else part for part in batch)
    model = Transformer(Size("wide heads", 40, 2, 2, 3), GENES, embedding_scale=0.5)
    exact = model(x, hidden, positions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x, hidden, positions)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()
