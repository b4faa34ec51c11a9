"""What README.md and docs/ say, and the kept studies that they say it of."""

import re

import pandas as pd
from conftest import read_kept

from lib import io
from lib.fit import conditions

PAGES = {path: path.read_text() for path in [io.CODE / "README.md", *sorted((io.CODE / "docs").glob("*.md"))]}
README, TEXT = PAGES[io.CODE / "README.md"], " ".join("\n".join(PAGES.values()).split())
RESULTS, ADDED = io.CODE / "data" / "results", ["points", "points_low", "points_high"]
NUMBER = re.compile(r"(?<![\w.,-])-?\d+(?:,\d{3})*(?:\.\d+)?")


def tells(begin, *values):
    """After these words, which stand in the pages once, these numbers follow, to the digits that the pages give."""
    _, *passages = TEXT.split(begin)
    assert len(passages) == 1, f"{len(passages)} passages begin with {begin!r}"
    printed = NUMBER.findall(passages[0])[: len(values)]
    digits = [len(number.partition(".")[2]) for number in printed]
    found = [f"{float(value):z,.{number}f}" for value, number in zip(values, digits, strict=True)]
    assert printed == found, f"{begin!r} is followed by {printed}, and the tables have {found}"


def kept(study, regime=None):
    """Runs, laws and baselines of data/results/<study>, or of one of its regimes."""
    laws, known = (io.read_json(RESULTS / study / f"{name}.json") for name in ("laws", "baselines"))
    runs = read_kept(study)
    return (runs, laws, known) if regime is None else (runs[runs["regime"] == regime], laws[regime], known[regime])


def probe(study):
    """The kept probe of a study, by features."""
    return pd.read_csv(RESULTS / study / "probe.csv", comment="#").set_index("features")


def estimate(law, name):
    """Alpha or c of a law, and the ends of its headline interval."""
    return law[name], *law["intervals"]["profile_size_means"][name]


def bought(runs):
    """What twice as much of each thing adds, by the thing."""
    return conditions.bought(runs).steps.set_index("twice_the")


def at_largest(runs):
    """Means of the numbers of the largest size's runs, of one regime."""
    return runs[runs["parameters"] == runs["parameters"].max()].mean(numeric_only=True)


def best_baseline(of):
    """The least squared error of the baselines, of one split in baselines.json."""
    return min(of["gaussian_mse"], of["pca_mse"])
