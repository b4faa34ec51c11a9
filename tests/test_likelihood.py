"""The bits of a count, from torch: values, gradients, and what training on them finds."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from lib.data import panel
from lib.model import likelihood
from lib.model.sizes import OUTPUTS, PUBLISHED, Size
from lib.study import Masking, Train
from lib.train import loop, predictive


def raw_of(mean, theta, library):
    """Raw outputs that stand for a mean and a dispersion."""
    wide = likelihood.WIDEST
    first = wide["mean"] * np.arctanh(np.log(mean * likelihood.SCALE / library) / wide["mean"])
    return np.stack([first, wide["dispersion"] * np.arctanh(np.log(theta) / wide["dispersion"])], -1)


@pytest.mark.parametrize("mean", [0.01, 1.0, 40.0, 900.0])
@pytest.mark.parametrize("theta", [0.05, 2.0, 200.0])
def test_bits_are_those_of_scipy_at_the_library_size_given(mean, theta):
    counts, library = np.array([[0, 1, 5, 1000]]), np.array([5000.0])
    expected = -stats.nbinom(theta, theta / (theta + mean)).logpmf(counts) / np.log(2)
    raw = torch.tensor(np.broadcast_to(raw_of(mean, theta, library[0]), (1, 4, 2)), dtype=torch.float32)
    found = likelihood.negative_binomial(raw, torch.tensor(counts).float(), torch.tensor(library).float())
    assert found.numpy() == pytest.approx(expected, rel=2e-4, abs=2e-3)
    poisson = likelihood.poisson(raw[..., 0], torch.tensor(counts).float(), torch.tensor(library).float())
    assert poisson.numpy() == pytest.approx(-stats.poisson(mean).logpmf(counts) / np.log(2), rel=1e-3, abs=2e-3)
    means, dispersions = likelihood.distribution(raw, torch.tensor(library).float(), "negative_binomial")
    assert means == pytest.approx(mean, rel=1e-4) and dispersions == pytest.approx(theta, rel=1e-4)


@pytest.mark.parametrize("objective", ["poisson", "negative_binomial"])
def test_gradients_are_those_of_finite_differences(objective):
    torch.manual_seed(0)
    shape = (3, 4, 2) if objective == "negative_binomial" else (3, 4)
    raw = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    counts, library = torch.randint(0, 9, (3, 4)).double(), torch.tensor([900.0, 5e3, 4e4]).double()
    assert torch.autograd.gradcheck(lambda raw: likelihood.COSTS[objective](raw, counts, library), raw)


def test_nothing_overflows_whatever_the_outputs():
    raw = torch.tensor([[[-1e4, -1e4], [1e4, 1e4], [1e4, -1e4]]], requires_grad=True)
    cost = likelihood.negative_binomial(raw, torch.tensor([[0.0, 3e4, 7.0]]), torch.tensor([1e5]))
    cost.sum().backward()
    assert torch.isfinite(cost).all() and torch.isfinite(raw.grad).all()


def test_each_objective_has_its_outputs_counted():
    size = PUBLISHED["TINY"]
    assert size.parameters(512, OUTPUTS["mse"]) == 9953
    assert size.parameters(512, OUTPUTS["negative_binomial"]) == 9953 + 17


def drawn(cells=900, genes=12, seed=0):
    """A panel of independent genes: counts, and the share and dispersion of each that they were drawn from."""
    rng = np.random.default_rng(seed)
    library = rng.lognormal(8, 0.4, cells).round()
    share, theta = rng.lognormal(-8, 1, genes), rng.uniform(0.5, 4, genes)
    counts = predictive.distribution(library[:, None] * share, theta).rvs(random_state=rng).astype(np.int32)
    held = {"validation": np.arange(600, 750), "test": np.arange(750, 900), "test_random": np.arange(0, 50)}
    masking = Masking(share=0.25, per_cell=2)
    masks = {side: panel.draw_masks(len(rows), genes, masking, 1) for side, rows in held.items()}
    data = panel.Arrays(panel.normalise(counts, library), counts, library, np.arange(50, 600), held, masks)
    return data, share, theta


def settings(**changed):
    return Train(cells_seen=24_000, evaluations=2, learning_rate=0.02, objective="negative_binomial", **changed)


def test_counts_of_independent_genes_cost_what_their_own_distribution_costs(tmp_path):
    data, share, theta = drawn()
    record = loop.train(data, Size("XXS", 1, 1, 1, 1), 7, settings(), tmp_path)
    for side, rows in data.held.items():
        counts = np.take_along_axis(data.counts[rows][:, None, :], data.masks[side], axis=2)
        mean = data.library[rows, None, None] * share[data.masks[side]]
        true = predictive.bits(counts, mean, theta[data.masks[side]])
        assert record[f"{side}_nll"] == pytest.approx(true.mean(), abs=0.05), side
        assert record[f"{side}_nll_se"] > 0 and record[f"{side}_mse"] > 0
    assert record["convergence"] in ("converged", "not converged") and record["validation_nll_half"] > 0
    header = (tmp_path / "history.csv").read_text().splitlines()[0]
    assert "validation_nll" in header and "mse" not in header


def test_a_stopped_run_ends_with_the_same_bits(tmp_path):
    data, *_ = drawn()
    size = Size("d4", 4, 1, 1, 4)
    whole = loop.train(data, size, 7, settings(), tmp_path / "whole")

    def stop(done, total, loss):
        if done == 400:
            raise KeyboardInterrupt

    run = loop.Run(data, size, 7, settings(), tmp_path / "part", loop.fingerprint(data, size, 7, settings()))
    (tmp_path / "part").mkdir()
    with pytest.raises(KeyboardInterrupt):
        run.advance(stop)
    run.save()
    again = loop.train(data, size, 7, settings(), tmp_path / "part")
    assert again["weights_sha256"] == whole["weights_sha256"] and again["validation_nll"] == whole["validation_nll"]


def test_counts_and_library_sizes_decide_which_run_it_is_only_where_they_are_predicted():
    data, *_ = drawn()
    other = panel.Arrays(data.x, data.counts + 1, data.library, data.train, data.held, data.masks)
    size, counted, squared = (
        Size("d4", 4, 1, 1, 4),
        settings(),
        SimpleNamespace(**vars(settings()) | {"objective": "mse"}),
    )
    assert loop.fingerprint(data, size, 7, counted) != loop.fingerprint(other, size, 7, counted)
    assert loop.fingerprint(data, size, 7, squared) == loop.fingerprint(other, size, 7, squared)
