"""Known truth: the whole pipeline run again and again on simulated censuses, and its intervals held to the exact floor.

Each replicate is a small study of its own: a census with a new truth, a panel, a ladder of sizes trained for squared
error or for bits; or a pair, of the same genes and held-out cells, trained on few cells and on cells that are never
seen twice. A law for each. `python benchmarks/replicates.py [REPLICATES [JOBS [KIND ...]]]` writes every run to
data/replicate_runs.csv (two minutes or three for a replicate, eight for a pair; those of the same settings are not run
again) and a row for each law to data/replicates.csv. Three questions are asked apart: does the headline interval of c
hold

- *exact*: the floor of infinitely many cells;
- *realised*: what the best predictor scores on these very validation cells, a little off it, as all sizes are with it;
- *family*: the least that one negative binomial can cost, where the truth is a mixture of them.

What finite training cells cost is the difference within pairs.
"""

import concurrent.futures
import hashlib
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from lib import io
from lib.data import panel, simulate
from lib.fit.intervals import columns_of
from lib.fit.law import Status
from lib.fit.summary import fit_laws
from lib.model.sizes import BUDGETS
from lib.study import Study
from lib.train import baselines, loop

WIDTHS = {4: 1, 6: 2, 8: 2, 12: 3, 16: 4, 24: 6}
"""Widths and their heads."""
CENSUS = {
    "cells": 24_000, "genes": 100, "transcriptome": 2000, "depth": 10_000, "dispersion": 0.5, "states": 8,
    "profiles": 2, "donors": 40,
}  # fmt: skip
CONTENT = {
    "split": {"validation": 0.1, "test": 0.1, "cells": 2000},
    "regimes": {"known": {"genes": 16, "cells": 18_000}},
    "sizes": [{"name": f"d{width}", "d": width, "layers": 1, "heads": heads} for width, heads in WIDTHS.items()],
    "seeds": [7],
    "train": {"cells_seen": 1_024_000, "evaluations": 2},
}
"""The study file of every replicate, but for its census' seed."""
PAIR = {"seen": {"genes": 16, "cells": 18_000}, "fresh": {"genes": 16, "cells": 1_024_000}}
KINDS = {
    "mse": ("mse", {}, {}),
    "negative_binomial": ("negative_binomial", {}, {}),
    "pair": ("mse", {"cells": 1_400_000}, {"regimes": PAIR, "genes_from": "seen"}),
}
"""Kinds of a replicate: objective, and what changes of census and study. The regimes of a pair have a law each."""
UNIT = {"mse": "validation_mse", "negative_binomial": "validation_nll"}
FAMILY_CELLS = 150
"""Validation cells on which the best negative binomial is looked for."""


class Aside(Study):
    """A study whose files lie in a folder of their own."""

    root: Path

    @property
    def data(self):
        return self.root


def replicate(number, kind, root, census=CENSUS, content=CONTENT):
    """Train one replicate's ladders in the folder `root`: a row for each run, with the floors of its panel."""
    objective, of_census, of_study = KINDS[kind]
    source = {"simulate": census | of_census | {"seed": 1000 + number}}
    study = Aside(name=f"replicate-{number}", root=root, census=source, **content | of_study)
    truth, rows = simulate.truth(study.census.simulate), []
    for regime in study.regimes:
        adata = panel.read(panel.build(study, regime))
        data = panel.arrays(adata)
        of_law = {"replicate": number, "objective": f"{objective}, {regime} cells" if regime in PAIR else kind}
        floors = exact(data, truth, adata.var["soma_joinid"].to_numpy(), objective)
        settings = study.training(regime).model_copy(update={"objective": objective})
        for size in study.sizes:
            rows.append(of_law | _run(data, size, study.seeds[0], settings, root / regime / size.name) | floors)
    return rows


def _run(data, size, seed, settings, folder):
    """What one run gives its row."""
    started, metric = time.monotonic(), UNIT[settings.objective]
    run = loop.train(data, size, seed, settings, folder)
    keys = ("width", "parameters", "parameters_without_embeddings", "cells_train", "cells_seen", "convergence",
            "status", "code_version")  # fmt: skip
    losses = {name: run[f"{metric}{end}"] for name, end in LOSSES.items()}
    seconds = round(time.monotonic() - started, 1)
    return {"size": size.name, **{key: run[key] for key in keys}, **losses, "seconds": seconds}


LOSSES = {"loss": "", "loss_se": "_se", **{name: f"_{name}" for name in BUDGETS}}
"""Columns of the losses of a run, and what their names end with in its record."""


def law(runs):
    """What the runs of one law say: c with its interval, c at half the updates and in the limit of the budget."""
    kind = runs["objective"].iloc[0]
    metric = UNIT[kind.split(",")[0]]
    table = runs.rename(columns={name: f"{metric}{end}" for name, end in LOSSES.items()}).assign(regime="known")
    fitted = fit_laws(table, 100, 0, metrics=(metric,))["known"][metric]
    limit, first = fitted["budget"].get("limit", {}), runs.iloc[0]
    ends, of_limit = columns_of(fitted), columns_of(limit) if limit else {}
    return {
        "replicate": first["replicate"], "objective": kind, "code_version": first["code_version"],
        "status": fitted["status"], "alpha": fitted["alpha"], "c": fitted["c"], "low": ends["c_low"],
        "high": ends["c_high"],
        "half": fitted["budget"].get("half", {}).get("c"), "limit": limit.get("c"), "limit_status": limit.get("status"),
        "limit_low": of_limit.get("c_low"), "limit_high": of_limit.get("c_high"), "best": runs["loss"].min(),
        "converged": (runs["convergence"] == "converged").mean(),
        **first[["exact", "realised", "family", "cells_train"]], "seconds": runs["seconds"].sum(),
    }  # fmt: skip


def exact(data, truth, columns, objective):
    """The floors of a panel's validation cells: exact (an expectation), realised, and of the family.

    The family's is the exact one and what a negative binomial costs beyond it, measured on the first FAMILY_CELLS.
    """
    rows, masked = data.held["validation"], data.masks["validation"]
    known = data.counts[rows], data.library[rows], masked
    best = simulate.predictive(truth, columns, *known, panel.TARGET)
    if objective == "mse":
        hidden = np.take_along_axis(data.x[rows][:, None, :], masked, axis=2)
        mse = best.variance.mean()
        return {"exact": mse, "realised": ((hidden - best.mean) ** 2).mean(), "family": mse}
    counts = np.take_along_axis(known[0][:, None, :], masked, axis=2)
    cost = -np.log2(simulate.probabilities(truth, columns, *known, counts[..., None]))
    few = [part[:FAMILY_CELLS] for part in known]
    x = np.arange(int(4 * counts.max()) + 50)
    excess = family_excess(simulate.probabilities(truth, columns, *few, x), x)
    bits = best.bits.mean()
    return {"exact": bits, "realised": cost.mean(), "family": bits + excess.mean()}


def family_excess(probability, x):
    """Bits that the best negative binomial costs beyond the entropy of each distribution of a count, one after another.

    `probability` is (..., counts), of the counts `x`, (counts,). For any dispersion the best mean is that of the
    distribution.
    """
    probability = probability.reshape(-1, len(x)) / probability.reshape(-1, len(x)).sum(1, keepdims=True)
    mean = (probability * x).sum(1, keepdims=True)

    def cost(log_dispersion):
        return (probability * baselines.bits(x, mean, np.exp(log_dispersion)[:, None])).sum(1)

    return cost(np.log(baselines.best_dispersion(cost, len(probability)))) - stats.entropy(probability, base=2, axis=1)


def fingerprint(kind):
    """Digest of what the replicates of a kind are and of the numbers of the code that trains them, 16 digits."""
    numerics = [io.SIMULATE_NUMERICS, io.PANEL_NUMERICS, io.TRAIN_NUMERICS]
    return hashlib.sha256(repr([CENSUS, CONTENT, KINDS[kind], *numerics]).encode()).hexdigest()[:16]


def _aside(number, kind):
    """One replicate in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        return [row | {"fingerprint": fingerprint(kind)} for row in replicate(number, kind, Path(folder))]


def fit(runs):
    """A row for each law of the replicated runs."""
    return pd.DataFrame([law(of) for _, of in runs.groupby(["objective", "replicate"], sort=False)])


def reliability(replicates: pd.DataFrame) -> pd.DataFrame:
    """How often the interval of c held the floor in replicated studies whose law lets c into a headline.

    A row per objective and claim (the headline law of status ok, or the law in the limit of the budget): replicates;
    laws, the number of them with that claim; bias, the median of c relative to the exact floor; exact, the share of
    intervals that hold the floor of infinitely many cells, with its 95 % interval (Wilson); family, the share that
    holds what the best model of this kind can reach (for bits the least that one negative binomial can cost, above the
    entropy of a mixture of them); realised, the share that holds the floor of the very cells.
    """
    rows, claims = [], {"law of status ok": "", "limit of the budget": "limit_"}
    for objective, of in replicates.groupby("objective", sort=False):
        for claim, prefix in claims.items():
            named = of[of[f"{prefix}status"] == Status.OK]
            ends = named[f"{prefix}low"], named[f"{prefix}high"]
            held = named["exact"].between(*ends)
            low, high = proportion_confint(held.sum(), max(1, len(named)), method="wilson")
            c = named[prefix.rstrip("_") or "c"]
            rows.append({
                "objective": objective, "claim": claim, "replicates": len(of), "laws": len(named),
                "bias": (c / named["exact"] - 1).median(), "exact": held.mean(), "exact_low": low, "exact_high": high,
                "family": named["family"].between(*ends).mean(), "realised": named["realised"].between(*ends).mean(),
            })  # fmt: skip
    return pd.DataFrame(rows)


def main(replicates=50, jobs=2, kinds=tuple(KINDS)):
    """Run what data/replicate_runs.csv lacks, row by row into it, and fit every law."""
    path, codes = io.ROOT / "data" / "replicate_runs.csv", {kind: fingerprint(kind) for kind in KINDS}
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    rows = [row for row in rows if row["fingerprint"] in codes.values()]
    done = {(row["replicate"], row["fingerprint"]) for row in rows}
    missing = [(number, kind) for number in range(replicates) for kind in kinds if (number, codes[kind]) not in done]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for future in concurrent.futures.as_completed([pool.submit(_aside, *pair) for pair in missing]):
            rows += future.result()
            table = pd.DataFrame(rows).sort_values(["objective", "replicate", "width"])
            io.write_csv(path, table)
            print(f"replicate {rows[-1]['replicate']}, {rows[-1]['objective']}", flush=True)
    if rows:
        laws = fit(pd.DataFrame(rows))
        io.write_csv(io.ROOT / "data" / "replicates.csv", laws)
        print(reliability(laws).to_string(index=False))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *([tuple(sys.argv[3:])] if sys.argv[3:] else []))
