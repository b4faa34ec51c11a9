"""The compiled kernels against torch's own functions, and life without a compiler."""

import pytest
import torch
from torch.nn import functional

from lib.model import kernels

needs_compiler = pytest.mark.skipif(
    not kernels.available(), reason="NO C COMPILER: the compiled kernels were not tested"
)
EXACT = {torch.float64: 1e-12, torch.float32: 3e-6}


def near(ours, expected):
    exact = EXACT[ours.dtype]
    torch.testing.assert_close(ours, expected, rtol=exact, atol=exact * max(1.0, float(expected.detach().abs().max())))


def torchs_attention(query, pair, heads):
    parts = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, *pair.chunk(2, dim=-1)))
    return functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(-2)


@needs_compiler
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("heads, width", [(1, 1), (2, 3), (3, 8), (1, 16), (4, 16)])
@pytest.mark.parametrize("queries, keys", [(1, 1), (5, 33), (40, 17)])
def test_attention_and_its_gradients_equal_torchs(dtype, heads, width, queries, keys):
    torch.manual_seed(0)
    query = 3 * torch.randn(2, queries, heads * width, dtype=dtype)
    pair, weight = torch.randn(2, keys, 2 * heads * width, dtype=dtype), torch.randn_like(query)
    found = []
    for compute in (kernels.attention, torchs_attention):
        inputs = query.clone().requires_grad_(), pair.clone().requires_grad_()
        out = compute(*inputs, heads)
        found.append((out, *torch.autograd.grad((out * weight).sum(), inputs)))
    assert type(found[0][0].grad_fn).__name__ == "_AttentionBackward"  # the compiled code, not torch's
    for ours, expected in zip(*found, strict=True):
        near(ours, expected)


@needs_compiler
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("values", [1, 7, 16, 1000])
def test_gelu_and_its_derivative_equal_torchs(dtype, values):
    x = torch.linspace(-12, 12, values, dtype=dtype)
    found = []
    for compute in (kernels.gelu, functional.gelu):
        inputs = x.clone().requires_grad_()
        out = compute(inputs)
        found.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for ours, expected in zip(*found, strict=True):
        near(ours, expected)


@needs_compiler
def test_far_scores_neither_overflow_nor_lose_the_only_key_that_counts():
    query, pair = torch.full((1, 1, 4), 1e4), torch.zeros(1, 3, 8)
    pair[0, :, :4] = torch.tensor([[-1e4], [1e4], [0.0]])
    pair[0, :, 4:] = torch.tensor([[1.0], [2.0], [3.0]])
    assert kernels.attention(query, pair, 1).tolist() == [[[2.0] * 4]]


@needs_compiler
def test_dropped_attention_weights_are_gone_in_both_directions():
    """With uniform scores the output counts the kept keys; a value's gradient is its key's weight in the output."""
    keys, probability = 400, 0.3
    pair = torch.zeros(50, keys, 32)
    pair[..., 16:] = 1.0
    pair.requires_grad_()
    torch.manual_seed(1)
    out = kernels.attention(torch.zeros(50, 1, 16), pair, 1, probability)
    (change,) = torch.autograd.grad(out.sum(), pair)
    weights = change[:, :, 16]
    torch.testing.assert_close(weights.sum(1), out[:, 0, 0].detach(), rtol=1e-5, atol=0)
    assert weights.unique().numel() == 2 and weights.min() == 0
    share = (weights == 0).double().mean().item()
    assert abs(share - probability) < 5 * (probability * (1 - probability) / weights.numel()) ** 0.5
    assert abs(out.mean().item() - 1) < 0.02
    spread = out[:, 0, 0].std().item() * keys**0.5 / (probability / (1 - probability)) ** 0.5
    assert 0.7 < spread < 1.35, "keys are not dropped independently"


@needs_compiler
def test_gradients_under_dropout_are_those_of_the_same_draw():
    torch.manual_seed(2)
    query = torch.randn(1, 3, 8, dtype=torch.float64, requires_grad=True)
    pair = torch.randn(1, 20, 16, dtype=torch.float64, requires_grad=True)

    def once(query, pair):
        torch.manual_seed(5)
        return kernels.dropout(kernels.attention(query, pair, 2, 0.4), 0.2)

    assert torch.autograd.gradcheck(once, (query, pair))


@needs_compiler
@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(probability):
    torch.manual_seed(3)
    x = torch.ones(1001, 101)
    out = kernels.dropout(x, probability)
    share = (out == 0).double().mean().item()
    assert abs(share - probability) < 5 * (probability * (1 - probability) / x.numel()) ** 0.5
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - probability)], rel=1e-4)
    neighbours = ((out[:, 1:] == 0) & (out[:, :-1] == 0)).double().mean().item()
    assert neighbours == pytest.approx(probability**2, rel=0.1), "neighbours are not dropped independently"
    assert not torch.equal(out, kernels.dropout(x, probability))
    assert torch.equal(kernels.dropout(x, 0.0), x)


@needs_compiler
@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_nothing(threads, monkeypatch):
    query, pair = torch.randn(3, 9, 8), torch.randn(3, 11, 16)
    one = kernels.attention(query, pair, 2), kernels.gelu(query)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(kernels.attention(query, pair, 2), one[0])
    assert torch.equal(kernels.gelu(query), one[1])


@pytest.mark.parametrize("trouble", ["no compiler", "a compiler that fails", "nowhere to write"])
def test_without_a_compiler_torch_computes_the_same(trouble, monkeypatch, tmp_path):
    query, pair = torch.randn(2, 5, 8), torch.randn(2, 7, 16)
    before = kernels.attention(query, pair, 2), kernels.gelu(query)
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked if trouble == "nowhere to write" else tmp_path))
    monkeypatch.setenv("CC", {"no compiler": "no-such-compiler", "a compiler that fails": "false"}.get(trouble, "cc"))
    kernels.compiled.cache_clear()
    try:
        assert not kernels.available()
        near(kernels.attention(query, pair, 2), before[0])
        near(kernels.gelu(query), before[1])
        assert (kernels.dropout(query, 0.5) == 0).any()
    finally:
        monkeypatch.undo()
        kernels.compiled.cache_clear()
