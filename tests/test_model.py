"""The transformer against torch's own, its losses against scipy's, its size and cost against torch's counts."""

import numpy as np
import pytest
import torch
from reference import Reference, adopt, own_name
from scipy import stats

from lib.io import TARGET
from lib.model import transformer
from lib.model.sizes import OUTPUTS, PUBLISHED, Size, cores
from lib.model.transformer import Transformer

SIZE = Size("test", 12, 3, 3, 2)
GENES, MASKED = 20, 5


@pytest.fixture
def batch():
    torch.manual_seed(0)
    x = torch.rand(6, GENES, dtype=torch.float64)
    positions = torch.rand(6, GENES).topk(MASKED).indices
    return x, torch.zeros(6, GENES, dtype=torch.bool).scatter_(1, positions, True), positions


@pytest.mark.parametrize("dtype, exact", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    "size", [PUBLISHED["XXS"], PUBLISHED["XS"], Size("wide heads", 40, 2, 2, 3)], ids=lambda size: size.name
)
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
    torch.testing.assert_close(ours(x, hidden), expected, rtol=exact, atol=exact)
    (predicted - x.gather(1, positions)).square().mean().backward()
    (expected - x)[hidden].square().mean().backward()
    gradients = {name: weight.grad for name, weight in ours.named_parameters()}
    largest = max(weight.grad.abs().max() for weight in theirs.parameters())
    for name, weight in theirs.named_parameters():
        own = gradients[own_name(name)]
        own = torch.zeros_like(weight) if own is None else own  # width 1: no gradient reaches the norm's weight
        assert (own - weight.grad).norm() <= exact * max(weight.grad.norm(), largest), name


def test_visible_values_reach_a_prediction_unless_the_width_is_one_and_hidden_values_cannot(batch):
    x, hidden, positions = batch
    changed = torch.where(hidden, torch.nan, x + 1)
    wide, narrow = (Transformer(size, GENES, embedding_scale=0.5).double() for size in (SIZE, PUBLISHED["XXS"]))
    assert torch.equal(wide(x, hidden, positions), wide(torch.where(hidden, torch.nan, x), hidden, positions))
    assert not torch.allclose(wide(x, hidden, positions), wide(changed, hidden, positions))
    torch.testing.assert_close(narrow(x, hidden, positions), narrow(changed, hidden, positions))


def test_dropout_acts_in_training_only(batch):
    x, hidden, positions = batch
    model = Transformer(SIZE, GENES, dropout=0.5, embedding_scale=0.5).double()
    assert not torch.equal(model(x, hidden, positions), model(x, hidden, positions))
    model.eval()
    assert torch.equal(model(x, hidden, positions), model(x, hidden, positions))


def test_what_passes_between_blocks_and_the_prediction_stay_float32_under_autocast(batch):
    x, hidden, positions = (part.float() if part.dtype == torch.float64 else part for part in batch)
    model = Transformer(Size("wide heads", 40, 2, 2, 3), GENES, embedding_scale=0.5)
    exact = model(x, hidden, positions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x, hidden, positions)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()


def raw_of(mean, theta, library):
    """Raw outputs that stand for a mean and a dispersion."""
    wide = transformer.BOUNDS
    first = wide["mean"] * np.arctanh(np.log(mean * TARGET / library) / wide["mean"])
    return np.stack([first, wide["dispersion"] * np.arctanh(np.log(theta) / wide["dispersion"])], -1)


@pytest.mark.parametrize("mean", [0.01, 1.0, 40.0, 900.0])
@pytest.mark.parametrize("theta", [0.05, 2.0, 200.0])
def test_bits_are_those_of_scipy_at_the_library_size_given(mean, theta):
    counts, library = np.array([[0, 1, 5, 1000]]), np.array([5000.0])
    expected = -stats.nbinom(theta, theta / (theta + mean)).logpmf(counts) / np.log(2)
    raw = torch.tensor(np.broadcast_to(raw_of(mean, theta, library[0]), (1, 4, 2)), dtype=torch.float32)
    found = transformer.negative_binomial(raw, torch.tensor(counts).float(), torch.tensor(library).float())
    assert found.numpy() == pytest.approx(expected, rel=2e-4, abs=2e-3)
    means, dispersions = transformer.distribution(raw, torch.tensor(library).float())
    assert means == pytest.approx(mean, rel=1e-4) and dispersions == pytest.approx(theta, rel=1e-4)


def test_nothing_overflows_whatever_the_outputs():
    raw = torch.tensor([[[-1e4, -1e4], [1e4, 1e4], [1e4, -1e4]]], requires_grad=True)
    cost = transformer.negative_binomial(raw, torch.tensor([[0.0, 3e4, 7.0]]), torch.tensor([1e5]))
    cost.sum().backward()
    assert torch.isfinite(cost).all() and torch.isfinite(raw.grad).all()


COUNTS = {
    "XXS": (533, 1_045), "TINY": (9_953, 18_145), "XS": (132_993, 165_761), "S": (859_137, 924_673),
    "M": (19_178_497, 19_440_641), "L": (100_510_801, 101_033_041), "XL": (340_770_817, 341_557_249),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("column, genes", [(0, 512), (1, 1024)])
def test_parameter_counts_are_the_published_ones(name, column, genes):
    size = PUBLISHED[name]
    with torch.device("meta"):
        model = Transformer(size, genes)
    assert sum(weight.numel() for weight in model.parameters()) == COUNTS[name][column]
    assert size.parameters(genes) == COUNTS[name][column]
    assert size.parameters(genes, OUTPUTS["negative_binomial"]) == COUNTS[name][column] + size.d + 1


@pytest.mark.parametrize("size", [PUBLISHED["XS"], Size("odd", 12, 3, 3, 2)])
def test_flops_are_those_that_torch_counts_for_a_full_forward_pass_of_the_plain_implementation(size):
    from torch.utils.flop_counter import FlopCounterMode

    genes = 40
    model = Reference(size, genes).eval()
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.zeros(1, genes), torch.zeros(1, genes, dtype=torch.bool))
    assert size.forward_flops(genes) == counter.get_total_flops()


@pytest.mark.parametrize("files, expected", [
    ({"cpu.max": "150000 100000"}, 1), ({"cpu.max": "50000 100000"}, 1), ({"cpu.max": "max 100000"}, None), ({}, None),
    ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
])  # fmt: skip
def test_cores_are_no_more_than_the_quota_of_a_container(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(8), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert cores(tmp_path) == (expected or 8)
