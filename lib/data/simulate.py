"""A census whose floor is known exactly.

- **States.** Expression is drawn down a tree (tissue > type > subtype > programme) whose branches each raise genes of
  their own. The leaves are the cell states; their frequencies follow Zipf's law, so that a model which can tell more
  states apart always has rarer ones left to find.
- **Batches.** Batch profiles, factors on the genes, have equal prior probability. A donor has one of them, and donors
  are nested in data sets. A mixture component is a pair (state, profile).
- **Counts.** A cell has a library size l, log-normal, rounded, and *recorded* as the obs column raw_sum. It counts a
  whole transcriptome, of which the census holds some genes, with the same share of the counts in every component. Given
  its component c the counts are independent negative binomials of mean m = l p_cg and variance m + m^2 / theta.

What makes the floor exact is that l is recorded and is not the realised sum of the counts, which would tie the genes of
a cell to each other. Hence the posterior of c given the visible genes is a softmax of sums of log-probabilities, and
every masked gene is a finite mixture of negative binomials, with a known mean, variance and entropy.

The floor is that of a predictor which knows this truth, the visible counts and l, but not whose cell it is. A model
sees log1p(1e4 x / l) only; the value that a count of one takes tells l too, unless all visible counts are zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import entr, softmax
from scipy.stats import nbinom

from lib.study import Simulation

SPREAD = 2.0  # standard deviation over genes of the log-proportion at the root; 1.7 to 2.2 in public 10x data sets
RAISED = (0.2, 0.15, 0.1, 0.08)  # share of the genes that a branch raises: tissue, type, subtype, programme
EFFECT = 2.5  # scale of the half-normal log-fold change of a raised gene
MARKERS = 2000  # genes to which that share applies at most: of a whole transcriptome, most mark no state
CEILING = 0.02  # share of the census' counts at which a gene saturates, so that none makes up a cell by itself
PER_DATA_SET = 8  # donors in one data set
BLOCK = 250  # cells drawn from one random stream; fixed, so that the census does not depend on the chunk size
WORKSPACE = 8_000_000  # numbers in the largest temporary array of the exact answers


@dataclass(frozen=True)
class Truth:
    """All that a simulated census is drawn from; the arrays of decimals are float64."""

    settings: Simulation
    states: np.ndarray  # (states, genes): expression of each state, before batch and normalisation
    profiles: np.ndarray  # (profiles, genes): factors of each batch profile on the genes
    total: np.ndarray  # (states, profiles): what turns their product into proportions of the whole transcriptome
    prior: np.ndarray  # (states,): frequency of each state
    tree: np.ndarray  # (states, 4) int64: number of the tissue, type, subtype and programme that a state belongs to
    donor_profile: np.ndarray  # (donors,) int64: batch profile of each donor

    def proportions(self, columns=slice(None)):
        """Proportions of the genes `columns`, (components, genes); the profile runs fastest over components."""
        joint = self.states[:, None, columns] * self.profiles[None, :, columns] / self.total[:, :, None]
        return joint.reshape(self.total.size, -1)


def truth(settings: Simulation) -> Truth:
    """Draw the truth from `settings.seed`; the number of cells plays no part in it."""
    rng = np.random.default_rng([settings.seed, 0])
    tree = _tree(settings.states)
    root = np.exp(rng.normal(0, SPREAD, settings.genes))
    states = root * np.exp(sum(_raised(rng, *level, settings.genes) for level in zip(tree.T, RAISED, strict=True)))
    states /= 1 + states / (CEILING * root.sum())
    profiles = np.exp(rng.normal(0, settings.profile_sd, (settings.profiles, settings.genes)))
    prior = rng.permutation(np.arange(1, settings.states + 1) ** -settings.zipf)
    donor_profile = rng.permutation(np.arange(settings.donors) % settings.profiles)
    total = states @ profiles.T / (settings.genes / settings.transcriptome)
    return Truth(settings, states, profiles, total, prior / prior.sum(), tree, donor_profile)


def _tree(states):
    """Node of each state at each level, (states, 4): about states^(j/4) nodes at level j, of nearly equal offspring."""
    lineage = [np.arange(states)]
    for below, above in pairwise(round(states ** (level / 4)) for level in (4, 3, 2, 1)):
        lineage.append(lineage[-1] * above // below)
    return np.stack(lineage[::-1], axis=1)


def _raised(rng, node_of_state, share, genes):
    """Log-fold change of every gene on the branch above each state's node, (states, genes)."""
    shape, share = (node_of_state.max() + 1, genes), share * min(1, MARKERS / genes)
    return (np.abs(rng.normal(0, EFFECT, shape)) * (rng.random(shape) < share))[node_of_state]


def genes(truth: Truth) -> pd.DataFrame:
    """The gene table, one row per column of the counts: feature_id and feature_name."""
    ids = [f"ENSGSIM{gene:011d}" for gene in range(1, truth.settings.genes + 1)]
    return pd.DataFrame({"feature_id": ids, "feature_name": _numbered("SIM", len(ids))})


def chunks(truth: Truth, size: int = 5000) -> Iterator[tuple[pd.DataFrame, sparse.csr_matrix]]:
    """Draw the census `size` cells at a time, a multiple of BLOCK: obs and counts, (cells, genes) float32.

    The same cells come whatever the size. Those of a donor, and of a data set, follow each other, as in the Census.
    """
    for start in range(0, truth.settings.cells, size):
        blocks = range(start // BLOCK, -(-min(start + size, truth.settings.cells) // BLOCK))
        state, library, counts = zip(*(_block(truth, block) for block in blocks), strict=True)
        state, library, counts = np.concatenate(state), np.concatenate(library), sparse.vstack(counts, format="csr")
        yield _obs(truth, start + np.arange(len(state)), state, library, counts), counts


def _block(truth, block):
    """Draw one block: state (cells,), recorded library size (cells,) int64, counts (cells, genes) csr."""
    settings = truth.settings
    rng = np.random.default_rng([settings.seed, 2, block])
    cell = np.arange(block * BLOCK, min((block + 1) * BLOCK, settings.cells))
    state = rng.choice(settings.states, len(cell), p=truth.prior)
    library = rng.lognormal(np.log(settings.depth), settings.depth_sd, len(cell)).round().clip(1)
    profile = truth.donor_profile[_donor(truth, cell)]
    mean = truth.states[state] * truth.profiles[profile] * (library / truth.total[state, profile])[:, None]
    mean *= rng.standard_gamma(settings.dispersion, mean.shape, dtype=np.float32)
    counts = rng.poisson(mean / settings.dispersion).astype(np.float32)
    return state, library.astype(np.int64), sparse.csr_matrix(counts)


def _donor(truth, cell):
    """Number of the donor of each cell: donors follow each other, with nearly the same number of cells."""
    return cell * truth.settings.donors // truth.settings.cells


def _obs(truth, cell, state, library, counts):
    """Census columns of the given cells; every chunk has the same categories."""
    donors, donor = truth.settings.donors, _donor(truth, cell)
    tissue, kind = truth.tree[state, :2].T
    tissues, kinds = truth.tree[-1, :2] + 1
    columns = {
        "dataset_id": (donor // PER_DATA_SET, _numbered("simulated ", -(-donors // PER_DATA_SET))),
        "cell_type": (kind, _numbered("type ", kinds)),
        "tissue": (tissue, _numbered("tissue ", tissues)),
        "tissue_general": (tissue, _numbered("tissue ", tissues)),
        "donor_id": (donor, _numbered("donor ", donors)),
    }
    obs = pd.DataFrame({name: pd.Categorical.from_codes(*column) for name, column in columns.items()})
    return obs.assign(is_primary_data=True, raw_sum=library, nnz=np.diff(counts.indptr).astype(np.int64))


def _numbered(stem, number):
    """Labels from 1 up, padded with zeros so that they sort in order."""
    return [f"{stem}{label:0{len(str(number))}d}" for label in range(1, number + 1)]


class Predictive(NamedTuple):
    """Mean and variance of log1p(scale x / l), entropy of the count x in bits; each (cells, masks, k) float64."""

    mean: np.ndarray
    variance: np.ndarray
    bits: np.ndarray


def predictive(truth, columns, counts, library, masked, scale=1e4, tolerance=1e-9):
    """What the visible genes of a cell say about its masked genes, exactly.

    The panel is `columns` (genes,) of the census, with `counts` (cells, genes), not looked at where masked, and the
    recorded library sizes, (cells,). `masked` (cells, masks, k) are positions in `columns`, and `scale` the counts per
    cell after normalisation. Components of joint posterior probability below `tolerance` are dropped, and a sum over
    counts ends where less probability is left: leaving out probability r changes the mean of y = log1p(scale x / l) by
    about r max(y), its second moment by r max(y)^2 and the entropy by r log2(1 / r).
    """
    proportions = truth.proportions(columns)
    batch = max(1, WORKSPACE // (len(proportions) * max(len(columns), masked[0].size)))
    parts = []
    for start in range(0, len(counts), batch):
        cells = slice(start, start + batch)
        weights = posterior(truth, columns, counts[cells], library[cells], masked[cells])
        mixtures = _mixtures(proportions, weights, library[cells], masked[cells], tolerance)
        parts.append(_moments(*mixtures, truth.settings.dispersion, scale, tolerance).reshape(3, *masked[cells].shape))
    return Predictive(*np.concatenate(parts, axis=1))


def posterior(truth, columns, counts, library, masked):
    """Probability of every component given the visible genes and the library size, (cells, masks, components).

    The log-probability of count x at mean m is x log p - (x + theta) log(m + theta), up to terms that are the same for
    all components; its sum over the visible genes is one matrix product for each cell.
    """
    proportions, dispersion = truth.proportions(columns).T, truth.settings.dispersion
    visible = np.ones((*masked.shape[:2], len(columns)))
    np.put_along_axis(visible, masked, 0, axis=2)
    counts = np.asarray(counts, dtype=np.float64)[:, None, :]
    log_mean = np.multiply.outer(np.asarray(library, dtype=np.float64), proportions)
    log_mean += dispersion
    np.log(log_mean, out=log_mean)
    likelihood = (visible * counts) @ np.log(proportions) - (visible * (counts + dispersion)) @ log_mean
    prior = np.repeat(truth.prior / len(truth.profiles), len(truth.profiles))
    return softmax(likelihood + np.log(prior), axis=2)


def probabilities(truth, columns, counts, library, masked, x):
    """Exact probability of counts x of the masked genes, given the visible ones, (cells, masks, k, counts asked).

    Arguments are those of `predictive`; x is (cells, masks, k, 1), or a range of counts.
    """
    weights, dispersion = posterior(truth, columns, counts, library, masked), truth.settings.dispersion
    total = 0.0
    for component, proportions in enumerate(truth.proportions(columns)):
        mean = (proportions[masked] * np.asarray(library)[:, None, None])[..., None]
        pmf = nbinom(dispersion, dispersion / (dispersion + mean)).pmf(x)
        total = total + weights[..., component, None, None] * pmf
    return total


def _mixtures(proportions, weights, library, masked, tolerance):
    """Mixture of each masked gene, end to end: number of components, their scaled weights, NB means, library size."""
    k, components = masked.shape[2], weights.shape[2]
    weights = weights.reshape(-1, components)
    kept = weights >= tolerance / components
    pair, component = np.nonzero(kept)
    weight = weights[kept] / np.where(kept, weights, 0).sum(axis=1)[pair]
    per_pair = kept.sum(axis=1)
    first, lengths = np.repeat(np.cumsum(per_pair) - per_pair, k), np.repeat(per_pair, k)
    entry = np.arange(lengths.sum()) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
    library = np.repeat(library, masked[0].size)
    mean = proportions[component[entry], np.repeat(masked.ravel(), lengths)] * np.repeat(library, lengths)
    return lengths, weight[entry], mean, library


def _moments(lengths, weight, mean, library, dispersion, scale, tolerance):
    """Mean and variance of log1p(scale x / l) and entropy of x in bits, (3, mixtures), summed over x = 0, 1, ..."""
    odds = np.log(mean / (mean + dispersion))
    log_term = np.log(weight) - dispersion * np.log1p(mean / dispersion)
    sums = np.zeros((4, len(lengths)))
    running, unfinished = np.arange(len(lengths)), np.ones(len(lengths), dtype=bool)
    for x in count():
        probability = np.add.reduceat(np.exp(log_term), np.cumsum(lengths) - lengths) * unfinished
        y = np.log1p(scale * x / library[running])
        sums[:, running] += probability, probability * y, probability * y**2, entr(probability)
        unfinished = sums[0, running] < 1 - tolerance
        if not unfinished.any():
            break
        if unfinished.mean() < 0.75:
            components = np.repeat(unfinished, lengths)
            odds, log_term = odds[components], log_term[components]
            lengths, running, unfinished = lengths[unfinished], running[unfinished], unfinished[unfinished]
        log_term += odds + np.log((x + dispersion) / (x + 1))
    _, first, second, nats = sums
    return np.stack([first, second - first**2, nats / np.log(2)])
