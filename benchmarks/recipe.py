"""The recipe: optimiser, rate, batch, beta2 and initial scale swept together, at equal seconds.

`python benchmarks/recipe.py` takes about half an hour of one core and writes data/recipe.csv; a panel that is in it is
not swept again. Every run of one panel and width has the same seconds: as many updates as fit into them at the seconds
per update that are measured first. What counts is the loss there, the exact mean over the fixed masks of the validation
cells. Sizes and panels that the rule was not chosen on are marked held_out; `rule` marks what a study gets by default.
"""

import itertools
import math
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from replicates import Aside

from lib import io
from lib.data import panel
from lib.model.sizes import Size, batch
from lib.study import Masking, Train
from lib.train import loop
from lib.train.loop import Optimiser

RULE = "muon"
"""The optimiser of the rule."""
SHARED = io.ROOT.parent / "shared" / "data"
"""Where real counts lie; panels of them are left out where it is missing."""


def simulated(**words):
    return {"simulate": {"cells": 60_000, "genes": 400, "depth": 6000, "donors": 60, **words}}


HELD = {"validation": 0.05, "test": 0.05, "cells": 1000}
PANELS = {
    "simulated, 16 genes": (simulated(transcriptome=2000, genes=100, states=256, depth=10_000), 16, 48_000, HELD),
    "simulated, 64 genes": (simulated(states=256), 64, 48_000, HELD),
    "marrow, 512 genes": ({"files": [str(SHARED / "marrow" / "*.h5ad")]}, 512, 8500,
                          HELD | {"validation": 0.15, "test": 0.15}),
    "nine data sets, 128 genes": ({"files": [str(SHARED / "*.h5ad")]}, 128, 12_000,
                                  HELD | {"by": "dataset_id", "validation": 0.1, "test": 0.1, "seed": 4}),
}  # fmt: skip
"""Panels: census, genes, training cells, split. The last is held out."""
SECONDS = {16: 6, 64: 10, 128: 12, 512: 16}
"""Of every run of width 16 or less, by genes; four times as long for width 64."""
FACTORS = (0.5, 1.0, 2.0)
"""Rates that are tried, as multiples of the rule's."""


@dataclass(frozen=True)
class Trial:
    """One run of the sweep."""

    panel: str
    width: int
    optimiser: str
    batch: int
    factor: float = 1.0
    beta2: float = 0.99
    embedding_scale: float = 0.5


def plan(name, genes, held_out=False):
    """What is tried on one panel: optimisers, batches and rates together, then what else the rule says.

    On a panel, or for a width, that is held out only the rule is tried, between half its rate and twice it.
    """
    usual, trials = batch(Masking().genes(genes)), []
    if not held_out:
        trials += [Trial(name, 16, *tried) for tried in itertools.product(("adamw", "muon", "soap"), [usual], FACTORS)]
        trials += [
            Trial(name, 16, *tried)
            for tried in itertools.product(("adamw", RULE), [usual // 4, 4 * usual], FACTORS[1:])
        ]
        trials += [Trial(name, 16, RULE, usual, beta2=beta2) for beta2 in (0.95, 0.999)]
        trials += [Trial(name, 16, RULE, usual, embedding_scale=scale) for scale in (0.2, 1.0)]
    widths = (16,) if held_out else (8, 64)
    return trials + [Trial(name, width, RULE, usual, factor) for width in widths for factor in FACTORS]


def started(trial, data, updates, folder, seed=7):
    """The run of a trial, before its first update."""
    usual = Train()
    size = Size(f"d{trial.width}", trial.width, 1, max(1, trial.width // 4), 4)
    settings = usual.model_copy(update={
        "optimiser": "adamw" if trial.optimiser == "soap" else trial.optimiser, "batch": trial.batch,
        "cells_seen": updates * trial.batch, "learning_rate": trial.factor * usual.learning_rate,
        "beta2": trial.beta2, "embedding_scale": trial.embedding_scale, "evaluations": 2,
    })  # fmt: skip
    with using(Soap if trial.optimiser == "soap" else Optimiser):
        return loop.Run(data, size, seed, settings, folder, "trial")


def loss(run):
    """The validation loss at the end of a run; infinite where it diverged."""
    for _ in range(run.settings.updates):
        run.step()
    value = float(run.losses("validation").mean())
    return value if math.isfinite(value) else math.inf


@contextmanager
def using(kind):
    """Let runs be trained by another optimiser than those a study may ask for."""
    loop.Optimiser, usual = kind, loop.Optimiser
    try:
        yield
    finally:
        loop.Optimiser = usual


class Soap(Optimiser):
    """SOAP (Vyas et al. 2024) for the blocks' matrices, AdamW else: Adam in the eigenbasis of Shampoo's factors."""

    BETA, EVERY, RATE = 0.95, 10, 0.3

    def __init__(self, model, settings, peak):
        super().__init__(model, settings.model_copy(update={"optimiser": "muon"}), peak)
        self.rate, self.updates, self.states = self.RATE * peak, 0, []
        for weight, part, parts, _ in itertools.chain(*self.matrices.values()):
            matrix = weight.detach().chunk(parts)[part]
            left, right = (torch.zeros(side, side) for side in matrix.shape)
            mean, square = torch.zeros_like(matrix), torch.zeros_like(matrix)
            self.states.append({"left": left, "right": right, "mean": mean, "square": square})
        self.weights, self.matrices = list(itertools.chain(*self.matrices.values())), {}

    @torch.no_grad()
    def step(self, share):
        super().step(share)
        for (weight, part, parts, _), state in zip(self.weights, self.states, strict=True):
            self._step(weight.chunk(parts)[part], weight.grad.chunk(parts)[part], state, share)
        self.updates += 1

    def _step(self, matrix, gradient, state, share):
        keep = 1 - self.BETA
        state["left"].lerp_(gradient @ gradient.T, keep)
        state["right"].lerp_(gradient.T @ gradient, keep)
        state["mean"].lerp_(gradient, keep)
        if self.updates == 0:
            for side in ("left", "right"):
                state[f"basis {side}"] = torch.linalg.eigh(state[side])[1]
            return
        left, right = state["basis left"], state["basis right"]
        state["square"].lerp_((left.T @ gradient @ right).square(), keep)
        turned = left.T @ state["mean"] @ right / (1 - self.BETA ** (self.updates + 1))
        root = (state["square"] / (1 - self.BETA**self.updates)).sqrt() + 1e-8
        matrix.sub_(left @ (turned / root) @ right.T, alpha=self.rate * share)
        if self.updates % self.EVERY == 0:
            for side in ("left", "right"):
                state[f"basis {side}"] = torch.linalg.qr(state[side] @ state[f"basis {side}"])[0]


def seconds_per_update(trials, data, folder, rounds=8, updates=8):
    """Seconds of one update on one core, {(width, optimiser, batch): s}: the least of rounds that kinds take in turns.

    Of the processor's time, which goes on only while this process runs: the machine may be busy with other things.
    """
    kinds = sorted({(trial.width, trial.optimiser, trial.batch) for trial in trials})
    runs = {kind: started(Trial("", *kind), data, 10**6, folder) for kind in kinds}
    taken = dict.fromkeys(kinds, math.inf)
    for _ in range(rounds):
        for kind, run in runs.items():
            torch.set_num_threads(1)
            since = time.process_time()
            for _ in range(updates):
                run.step()
            taken[kind] = min(taken[kind], (time.process_time() - since) / updates)
    return taken


def sweep(name, folder, seconds=None):
    """Rows of one panel: the trial, its updates and seconds, its loss, whether it is held out and is the rule."""
    census, genes, cells, split = PANELS[name]
    held_out = name == list(PANELS)[-1]
    content = {"split": split, "regimes": {"panel": {"genes": genes, "cells": cells}}, "sizes": ["TINY"], "seeds": [7]}
    study = Aside(name="sweep", root=folder, census=census, **content)
    data, trials = panel.arrays(panel.read(panel.build(study, "panel"))), plan(name, genes, held_out)
    costs = seconds_per_update(trials, data, folder)
    for trial in trials:
        lasting = (seconds or SECONDS[genes]) * (4 if trial.width > 16 else 1)
        updates = max(8, round(lasting / costs[trial.width, trial.optimiser, trial.batch]))
        row = {**asdict(trial), "genes": genes, "updates": updates, "seconds": lasting}
        row["validation_mse"] = loss(started(trial, data, updates, folder))
        row["held_out"] = held_out or trial.width != 16
        row["rule"] = trial == Trial(name, trial.width, RULE, batch(Masking().genes(genes)))
        print(row, flush=True)
        yield row


def main(names=tuple(PANELS)):
    """Sweep the panels that data/recipe.csv lacks, and write its rows panel by panel."""
    path = io.ROOT / "data" / "recipe.csv"
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    for name in names:
        if name in {row["panel"] for row in rows} or ("simulated" not in name and not SHARED.is_dir()):
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows += list(sweep(name, Path(folder)))
        io.write_csv(path, pd.DataFrame(rows).round(6))


if __name__ == "__main__":
    main(*([sys.argv[1:]] if sys.argv[1:] else []))
