"""The simulated census is what it says and is like real cells, and its floor is exact."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import nbinom

from benchmarks import realism
from lib import io
from lib.data import simulate
from lib.io import InputError
from lib.study import Simulation, parse_study

SMALL = Simulation(
    cells=1200, genes=60, transcriptome=60, states=12, donors=18, profiles=3, profile_sd=0.4, depth=400.0
)


@pytest.fixture(scope="module")
def truth():
    return simulate.truth(SMALL)


@pytest.fixture(scope="module")
def census(truth):
    """obs and dense counts of the small census."""
    ((obs, counts),) = simulate.chunks(truth, SMALL.cells)
    return obs, counts.toarray().astype(int)


def by_hand(proportions, dispersion):
    """A truth of one profile with these proportions (states, genes) and prior 1/3, 2/3, ..."""
    states = len(proportions)
    made = simulate.truth(Simulation(cells=100, genes=10, states=states, profiles=1, donors=2, dispersion=dispersion))
    prior = np.arange(1, states + 1) / np.arange(1, states + 1).sum()
    ones = np.ones((1, proportions.shape[1]))
    return replace(made, states=proportions, profiles=ones, total=np.ones((states, 1)), prior=prior)


def pmf(x, mean, dispersion):
    return nbinom.pmf(x, dispersion, dispersion / (dispersion + mean))


def direct(truth, counts, library, masked, gene, limit=4000):
    """Mean and variance of log1p(1e4 x / l) and bits of one masked gene, straight from Bayes' rule."""
    visible = np.setdiff1d(np.arange(len(counts)), masked)
    means, theta = library * truth.proportions(), truth.settings.dispersion
    joint = np.repeat(truth.prior, len(truth.profiles)) * pmf(counts[visible], means[:, visible], theta).prod(axis=1)
    chance = joint / joint.sum() @ pmf(np.arange(limit)[None, :], means[:, [gene]], theta)
    y, seen = np.log1p(1e4 * np.arange(limit) / library), chance > 0
    return chance @ y, chance @ (y - chance @ y) ** 2, -(chance[seen] * np.log2(chance[seen])).sum()


def test_mean_variance_and_bits_equal_an_enumeration_of_every_count(monkeypatch):
    monkeypatch.setattr(simulate, "WORKSPACE", 1)  # one cell in each batch
    truth = by_hand(np.array([[0.2, 0.05, 0.01], [0.02, 0.3, 0.04]]), dispersion=1.5)
    counts, library = np.array([[3, 0, 1], [0, 4, 0]]), np.array([20, 35])
    masked = np.array([[[0, 2], [1, 2]], [[0, 1], [0, 2]]])
    exact = simulate.predictive(truth, np.arange(3), counts, library, masked, tolerance=1e-13)
    for cell, mask, position in product(range(2), repeat=3):
        hidden = masked[cell, mask]
        expected = direct(truth, counts[cell], library[cell], hidden, hidden[position])
        assert [of[cell, mask, position] for of in exact] == pytest.approx(expected, rel=1e-9)


def test_the_best_predictor_makes_the_error_it_expects_and_no_wrong_belief_does_better(truth, census):
    obs, counts = census
    library = obs["raw_sum"].to_numpy()
    rng = np.random.default_rng(0)
    masked = np.sort(np.argsort(rng.random((SMALL.cells, 1, 60)))[..., :15])
    y = np.take_along_axis(np.log1p(1e4 * counts / library[:, None])[:, None], masked, axis=2)

    def predicted(believed):
        exact = simulate.predictive(believed, np.arange(60), counts, library, masked)
        return ((y - exact.mean) ** 2).mean(axis=(1, 2)), exact.variance.mean(axis=(1, 2))

    error, expected = predicted(truth)
    difference = error - expected
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(SMALL.cells)
    beliefs = {
        "prior": replace(truth, prior=truth.prior[::-1]),
        "dispersion": replace(truth, settings=SMALL.model_copy(update={"dispersion": 0.5})),
        "states": replace(truth, states=truth.states[::-1], total=truth.total[::-1]),
    }
    for name, believed in beliefs.items():
        assert predicted(believed)[0].mean() > error.mean(), name


def test_genes_outside_the_panel_play_no_part(truth, census):
    obs, counts = census
    library = obs["raw_sum"].to_numpy()[:30]
    columns = np.array([50, 3, 17, 40])
    elsewhere = np.setdiff1d(np.arange(60), columns[[0, 2]])
    panel = simulate.predictive(truth, columns, counts[:30, columns], library, np.tile([1, 3], (30, 1, 1)))
    whole = simulate.predictive(truth, np.arange(60), counts[:30], library, np.tile(elsewhere, (30, 1, 1)))
    np.testing.assert_allclose(panel.mean, whole.mean[..., np.searchsorted(elsewhere, [3, 40])], rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16), log_dispersion=st.floats(-0.7, 9), library=st.floats(1, 20_000), genes=st.integers(2, 4)
)
def test_any_dispersion_and_depth_gives_the_direct_answer(seed, log_dispersion, library, genes):
    rng, dispersion = np.random.default_rng(seed), 10**log_dispersion
    truth = by_hand(rng.dirichlet(np.full(genes + 1, 0.5), 3)[:, :genes] * 0.05 + 1e-6, dispersion)
    counts = rng.poisson(library * truth.states[rng.integers(3)])
    exact = simulate.predictive(truth, np.arange(genes), counts[None], [library], np.array([[[0]]]))
    expected = direct(truth, counts, library, [0], 0, limit=int(60 * library * 0.05 + 1000))
    assert [of.item() for of in exact] == pytest.approx(expected, abs=1e-4)


def test_the_same_settings_draw_the_same_census_whatever_the_chunks_and_another_seed_another(truth, census):
    obs, counts = census
    for size in (250, 1000):
        parts = list(simulate.chunks(simulate.truth(SMALL), size))
        assert max(len(part) for part, _ in parts) <= size
        np.testing.assert_array_equal(np.vstack([part.toarray() for _, part in parts]), counts)
        for column in obs:
            assert [value for part, _ in parts for value in part[column]] == obs[column].tolist(), column
        assert all(part.dtypes.equals(obs.dtypes) for part, _ in parts)
    assert not np.allclose(simulate.truth(SMALL.model_copy(update={"seed": 1})).states, truth.states)
    np.testing.assert_array_equal(simulate.truth(SMALL.model_copy(update={"cells": 9999})).states, truth.states)


def test_counts_have_the_stated_mean_variance_and_zeros(truth, census):
    """Each count's own component is known here, so that its mean, variance and chance of a zero are too."""
    obs, counts = census
    state = np.concatenate([simulate._block(truth, block)[0] for block in range(5)])
    profile = truth.donor_profile[obs["donor_id"].cat.codes]
    mean = truth.proportions()[state * 3 + profile] * obs["raw_sum"].to_numpy()[:, None]
    variance = mean + mean**2 / SMALL.dispersion
    zero = pmf(0, mean, SMALL.dispersion)
    # Sums over cells, for each gene and batch, in units of their standard deviation: none of 180 may be far out.
    for batch in range(3):
        here = profile == batch
        assert np.abs((counts - mean)[here].sum(axis=0) / np.sqrt(variance[here].sum(axis=0))).max() < 4.5
        assert abs((counts - mean)[here].sum()) / np.sqrt(variance[here].sum()) < 4.5
    assert np.abs(((counts == 0) - zero).sum(axis=0) / np.sqrt((zero * (1 - zero)).sum(axis=0))).max() < 4.5
    standard = (counts - mean)[mean > 0.5] ** 2 / variance[mean > 0.5]
    assert standard.mean() == pytest.approx(1, abs=4 * standard.std() / np.sqrt(standard.size))


def test_the_census_holds_its_share_of_the_transcriptome_in_every_component():
    truth = simulate.truth(Simulation(cells=1000, genes=500, transcriptome=2000))
    np.testing.assert_allclose(truth.proportions().sum(axis=1), 500 / 2000)
    ((obs, counts),) = simulate.chunks(truth)
    assert counts.sum() / obs["raw_sum"].sum() == pytest.approx(0.25, rel=0.02)
    with pytest.raises(InputError, match=r"simulate: genes is 500, above the 499 of transcriptome"):
        parse_study({"census": {"simulate": {"cells": 100, "genes": 500, "transcriptome": 499}}}, "x")


def test_the_simulator_lies_among_the_real_data_sets_and_the_carried_table_is_what_it_gives_today():
    carried = pd.read_csv(io.CODE / "data" / "realism.csv", keep_default_na=False)
    made = carried[carried["source"] == "simulated, 2,000 genes"].reset_index(drop=True)
    pd.testing.assert_frame_equal(realism.simulated(2000).round(5), made, rtol=1e-3, atol=1e-4, check_dtype=False)
    rows = realism.typical(carried)
    made, real = rows[rows.index.str.startswith("simulated")], rows[:9]
    assert len(made) == 2 and made["sparsity"].between(0.85, 0.95).all()
    for name in ("median_library", "median_mean", "median_spread"):
        assert made[name].between(real[name].min(), real[name].max()).all(), name


def test_the_benchmark_measures_a_real_file_as_the_table_has_it(real_data, tmp_path, monkeypatch):
    monkeypatch.setattr(realism, "SIMULATED", [])
    (tmp_path / "10x_pbmc1k_v3.h5ad").symlink_to(real_data / "10x_pbmc1k_v3.h5ad")
    made = realism.main(tmp_path, tmp_path / "out.csv").round(5)
    carried = pd.read_csv(io.CODE / "data" / "realism.csv", keep_default_na=False)
    carried = carried[carried["source"] == "10x_pbmc1k_v3"].reset_index(drop=True)
    pd.testing.assert_frame_equal(made, carried, rtol=1e-3, atol=1e-4, check_dtype=False)
