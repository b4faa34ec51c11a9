"""Calibration: how often each interval of a law, as implemented, holds the truth.

`python benchmarks/interval_coverage.py` simulates studies from stated laws, writes data/coverage.csv and draws it in
figures/gallery (a few minutes). Sizes are spread evenly in log P over the published range. Every study has seed noise;
half of the kinds of study add a size effect, a deviation that all seeds of one size share, as real ladders have. Noise
and size effect are those of the published 512-gene runs.
"""

import itertools

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from lib import io
from lib.figures import style
from lib.fit.intervals import BOOTSTRAPS, HEADLINE, METHODS, fit_draws, percentile, resample
from lib.fit.law import LEVEL, Ladder, profile, size_weights

SHAPES = ((7, 3), (7, 7), (12, 3))
"""(sizes, seeds)"""

TRUTHS = {"floor": (0.53, 0.63, 1.47), "no floor": (0.08, 2.1, 0.0)}
"""name -> (alpha, amplitude at the smallest size, c)"""

SIZE_EFFECTS = (0.0, 0.012)
SEED_NOISE = 0.014
SMALLEST, LARGEST = 533, 340_770_817
PROMISED = (92, 98)
"""Shares of studies, %, whose truth the headline interval promises to hold."""
EFFECT = {False: style.PALETTE[4], True: "#7A0000"}
"""Colour of simulated studies without and with an effect that all seeds of a size share."""


def simulate(truth, sizes, seeds, size_effect, studies, rng):
    """Losses of simulated studies: parameters (sizes,), and losses (studies, sizes, seeds).

    `truth` is (alpha, amplitude, c); `size_effect` is the standard deviation of what the seeds of one size share.
    """
    alpha, amplitude, c = truth
    parameters = np.geomspace(SMALLEST, LARGEST, sizes)
    expected = c + amplitude * (parameters / SMALLEST) ** -alpha
    shared = size_effect * rng.standard_normal((studies, sizes, 1))
    return parameters, expected[:, None] + shared + SEED_NOISE * rng.standard_normal((studies, sizes, seeds))


def coverage(studies=300, resamples=400, seed=0):
    """Measure every interval in every kind of study.

    Returns
    -------
    DataFrame
        truth, sizes, seeds, size_effect, method, and for alpha and c: coverage (`alpha`, `c`), share of intervals with
        an open end, median width; studies, resamples, level.
    """
    cells = itertools.product(TRUTHS, SHAPES, SIZE_EFFECTS)
    tables = []
    for number, (truth, (sizes, seeds), size_effect) in enumerate(cells):
        rng = np.random.default_rng([seed, number])
        parameters, losses = simulate(TRUTHS[truth], sizes, seeds, size_effect, studies, rng)
        intervals = _intervals(parameters, losses, resamples, rng)
        rows = [{"method": method, **_score(ends, TRUTHS[truth])} for method, ends in intervals.items()]
        head = {"truth": truth, "sizes": sizes, "seeds": seeds, "size_effect": size_effect}
        tables.append(pd.DataFrame(rows).assign(**head)[[*head, *rows[0]]])
    return pd.concat(tables, ignore_index=True).assign(studies=studies, resamples=resamples, level=LEVEL)


def _intervals(parameters, losses, resamples, rng):
    """method -> ends (alpha or c, low or high, studies); every step is batched over the studies."""
    studies, sizes, seeds = losses.shape
    d, count = np.log(parameters / parameters[0]), np.full(sizes, seeds)
    means = losses.mean(-1)
    squares = ((losses - means[..., None]) ** 2).sum(-1)
    weights = size_weights(d, means, squares, count)
    variance = (squares.sum(1) / (sizes * (seeds - 1)) / seeds) if seeds > 1 else np.zeros(studies)
    over_means = profile(d, means, weights, sizes - 3, variance=variance)
    over_runs = profile(d, means, count, sizes * seeds - 3, squares.sum(1))
    intervals = {
        HEADLINE: np.array([over_means.alpha, over_means.interval()]),
        "profile_runs": np.array([over_runs.alpha, over_runs.interval()]),
    }
    labels, index = tuple(map(str, range(sizes))), np.repeat(np.arange(sizes), seeds)
    ladders = [
        Ladder(labels, parameters, *one, count, index, study.ravel(), np.zeros(sizes))
        for *one, study in zip(means, weights, losses, strict=True)
    ]
    for method in BOOTSTRAPS:
        drawn = [resample(data, method, resamples, rng) for data in ladders]
        draws = fit_draws(d, *map(np.concatenate, zip(*drawn, strict=True))).reshape(2, studies, -1)
        intervals[method] = np.swapaxes(percentile(draws), 0, 1)
    return intervals


def _score(ends, truth):
    alpha, _, c = truth
    score = {}
    for (low, high), name, value in zip(ends, ("alpha", "c"), (alpha, c), strict=True):
        width = high - low
        score |= {
            name: np.mean((low <= value) & (value <= high)),
            f"{name}_open": np.mean(~np.isfinite(width)),
            f"{name}_median_width": np.median(width) if np.isfinite(np.median(width)) else None,
        }
    return score


def draw(table):
    """How often each interval of data/coverage.csv held the truth, and the shares that the headline promises."""
    methods = [name for name in METHODS if name in set(table["method"])]
    figure, axes = style.panels(2, 25 + 10 * len(methods))
    cells = table.assign(design=[f"{row.sizes} × {row.seeds}" for row in table.itertuples()])
    cells["cell"] = cells.groupby(["size_effect", "design", "truth"]).ngroup()
    marker = dict(zip(dict.fromkeys(cells["design"]), style.MARKERS, strict=False))
    for axis, name, what in zip(axes, ("alpha", "c"), ("exponent", "floor"), strict=True):
        axis.axvspan(*PROMISED, color=style.GREY, alpha=0.15, linewidth=0)
        axis.axvline(100 * table["level"].iloc[0], color=style.GREY, linewidth=0.8, linestyle="--")
        _shares(axis, cells.dropna(subset=[name]), name, methods, marker)
        style.listed(axis, [METHODS[method] for method in methods], shown=name == "alpha")
        axis.set(xlim=(min(PROMISED[0] - 4, axis.get_xlim()[0]), 100.5),
                 xlabel=f"studies whose interval held the {what} (%)")  # fmt: skip
    axes[0].set_ylabel("interval (by method)")
    axes[0].get_yticklabels()[0].set_fontweight("bold" if methods[0] == HEADLINE else "normal")
    grey = {"color": style.GREY, "linestyle": "", "markersize": 4}
    keys = {design: style.key(marker=shape, **grey) for design, shape in marker.items()} | {
        "seed noise": style.key(color=EFFECT[False], linewidth=3),
        "size effect, too": style.key(color=EFFECT[True], linewidth=3),
        "filled: a law with a floor": style.key(linestyle=""),
        "open: without": style.key(linestyle=""),
    }
    return style.settle(
        figure,
        f"How often each interval held the truth in {cells['cell'].nunique()} kinds of simulated study, "
        f"{cells['studies'].min():,} or more of each. Bars: 95 % binomial; dashed: what is promised; strip: "
        f"{PROMISED[0]} to {PROMISED[1]} %.",
        keys,
    )


def _shares(axis, cells, name, methods, marker):
    """One dot per simulated cell, below each other within their method."""
    for row in cells.itertuples():
        y = methods.index(row.method) + 0.8 * ((row.cell + 0.5) / (cells["cell"].max() + 1) - 0.5)
        share, colour = getattr(row, name), EFFECT[row.size_effect > 0]
        low, high = proportion_confint(round(share * row.studies), row.studies, method="wilson")
        axis.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=0.6)
        axis.plot(100 * share, y, marker[row.design], color=colour, markersize=3.5, markeredgewidth=0.7, zorder=4,
                  markerfacecolor="white" if row.truth == "no floor" else colour)  # fmt: skip


def main():
    """Measure the coverage, write data/coverage.csv and draw it."""
    table = coverage()
    io.write_csv(io.ROOT / "data" / "coverage.csv", table.round(4))
    style.save(draw(table), io.ROOT / "figures" / "gallery", "coverage")
    for method, of in table.groupby("method", sort=False):
        for name in ("alpha", "c"):
            held, studies = round((of[name] * of["studies"]).sum()), of["studies"].sum()
            low, high = proportion_confint(held, studies, method="wilson")
            worst = f"{of[name].min():.1%} where it does worst"
            print(f"{method}: {name} held in {held / studies:.1%} ({low:.1%} to {high:.1%}) of the studies, {worst}")


if __name__ == "__main__":
    main()
