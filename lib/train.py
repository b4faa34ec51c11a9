"""Train one size with one seed, from a panel to an exact loss. Needs torch and NumPy alone."""

import hashlib
import math
import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from lib import files, model

CURVE_CELLS = 256
"""Validation cells in each point of a learning curve; the loss that enters the law uses all of them."""
CHECKPOINT_SECONDS = 20
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def train(data, size, seed, settings, folder, progress=lambda done, total, loss: None):
    """Train one run to its end, or return the finished one.

    A run that was stopped continues from its checkpoint and ends with the same numbers: batches, masks and dropout are
    drawn from (seed, update), so that no generator's state has to survive.

    Parameters
    ----------
    data : lib.panel.Arrays
        Panel as arrays: x (cells, genes), row numbers train / validation / test, and the fixed masks.
    size : lib.sizes.Size
    seed : int
    settings : lib.params.Train, or any object with its attributes
    folder : Path
        Receives history.csv and checkpoint.pt while the run goes on, result.json when it is done.
    progress : callable(done, total, loss)
        Called after every update.

    Returns
    -------
    dict
        The run's record, as in result.json. A non-finite loss ends the run with status `diverged` and no loss.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    identity = fingerprint(data, size, seed, settings)
    with FileLock(folder / ".lock"):
        finished = folder / "result.json"
        if finished.is_file() and files.read_json(finished)["fingerprint"] == identity:
            return files.read_json(finished)
        run = Run(data, size, seed, settings, folder, identity)
        run.advance(progress)
        record = run.record()
        files.write_json(finished, record)
        files.remove(run.checkpoint)
        return record


def learning_rate(settings, width):
    """Peak rate at this width: the rate at `reference_width` times (reference_width / width)**width_exponent."""
    return settings.learning_rate * (settings.reference_width / width) ** settings.width_exponent


def schedule(settings, update, total):
    """Share of the peak learning rate at an update: linear warm-up, then a cosine down to `final_rate`."""
    warmup = round(settings.warmup * total)
    if update < warmup:
        return (update + 1) / warmup
    done = (update - warmup) / max(1, total - warmup)
    return settings.final_rate + (1 - settings.final_rate) * 0.5 * (1 + math.cos(math.pi * done))


def protocol(settings, size, cells):
    """How one size is trained, in words and numbers, for a table."""
    updates = math.ceil(settings.cells_seen / settings.batch)
    reference, exponent = settings.reference_width, settings.width_exponent
    return {
        "protocol": settings.protocol,
        "updates": f"{updates:,} of {settings.batch} cells",
        "passes over the training cells": f"{settings.cells_seen / cells:.2f}",
        "peak learning rate": f"{learning_rate(settings, size.d):.3g}",
        "learning-rate rule": f"{settings.learning_rate:g} x ({reference} / width)^{exponent:g}",
        "schedule": f"warm-up over {settings.warmup:.0%}, then a cosine to {settings.final_rate:.0%} of the peak",
        "dropout, weight decay, gradient clip": f"{settings.dropout:g}, {settings.weight_decay:g}, {settings.clip:g}",
        "initial gene embeddings": f"normal, standard deviation {settings.embedding_scale:g}",
    }


class Run:
    """One model, its optimiser and how far they have come."""

    def __init__(self, data, size, seed, settings, folder, identity):
        self.size, self.seed, self.settings, self.folder, self.identity = size, seed, settings, folder, identity
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(1 if size.d < 512 else os.cpu_count())
        self.x = torch.as_tensor(data.x, device=self.device)
        self.masks = {name: torch.as_tensor(masks, dtype=torch.long) for name, masks in data.masks.items()}
        self.rows = {"train": data.train, "validation": data.validation, "test": data.test}
        if settings.train_on == "all":
            self.rows["train"] = np.arange(len(data.x))
        self.genes, self.k = data.x.shape[1], data.masks["validation"].shape[-1]
        self.total = math.ceil(settings.cells_seen / settings.batch)
        torch.manual_seed(seed)
        self.model = model.Transformer(size, self.genes, settings.dropout, settings.embedding_scale).to(self.device)
        self.peak = learning_rate(settings, size.d)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=self.peak, weight_decay=settings.weight_decay, fused=True
        )
        self.update, self.seconds, self.history, self.losses_since, self.order = 0, 0.0, [], [], (None, None)
        self.checkpoint = folder / "checkpoint.pt"
        self.restore()

    def advance(self, progress):
        """Train from where the run stands to its last update, measuring the learning curve on the way.

        SIGINT (Jupyter's stop button) and SIGTERM save and stop between two updates, never inside one.
        """
        marks = {round(mark) for mark in np.linspace(0, self.total, self.settings.evaluations)}
        started, saved = time.monotonic() - self.seconds, time.monotonic()
        with _stop_signals() as asked_to_stop:
            while self.update < self.total and not self.diverged:
                if self.update == 0:
                    self.measure()
                self.losses_since.append(self.step())
                self.update += 1
                self.seconds = time.monotonic() - started
                if self.update in marks:
                    self.measure()
                progress(self.update, self.total, self.history[-1]["validation_mse"])
                stop = bool(asked_to_stop)
                if stop or time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self.save()
                    saved = time.monotonic()
                if stop:
                    raise KeyboardInterrupt

    @property
    def diverged(self):
        return bool(self.history) and not math.isfinite(self.history[-1]["validation_mse"])

    def step(self):
        """One update on one batch; returns its loss without waiting for the device."""
        torch.manual_seed(_stream(self.seed, self.update))
        for group in self.optimiser.param_groups:
            group["lr"] = self.peak * schedule(self.settings, self.update, self.total)
        self.model.train()
        x = self.x[torch.as_tensor(self.batch(), device=self.device)]
        loss = self.masked_error(x, *self.draw_masks(len(x))).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimiser.step()
        return loss.detach()

    def batch(self):
        """Rows of the next batch. Each pass over the training cells is a new permutation; batches run across passes."""
        rows, n = self.rows["train"], len(self.rows["train"])
        places = self.update * self.settings.batch + np.arange(self.settings.batch)
        chosen = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(places // n):
            if self.order[0] != epoch:
                self.order = (epoch, np.random.default_rng([self.seed, int(epoch)]).permutation(n))
            within = places // n == epoch
            chosen[within] = rows[self.order[1][places[within] % n]]
        return chosen

    def draw_masks(self, cells):
        """New masks: hidden (cells, genes) bool and, where their number is fixed, the k hidden positions (cells, k)."""
        chance = torch.rand(cells, self.genes, device=self.device)
        if self.settings.masks == "bernoulli":
            return chance < self.k / self.genes, None
        positions = chance.topk(self.k, dim=1).indices
        return _hidden(positions, self.genes), positions

    def masked_error(self, x, hidden, positions):
        """Squared errors at the masked positions: (cells, k), or one flat vector when their number varies by cell."""
        predicted = self.model(x, hidden, positions)
        if positions is None:
            return (predicted - x).square()[hidden]
        return (predicted - x.gather(1, positions)).square()

    def measure(self):
        """Add a point to the learning curve: the training loss since the last one, the validation loss now."""
        train_mse = torch.stack(self.losses_since).mean().item() if self.losses_since else math.nan
        self.losses_since.clear()
        if self.settings.report == "best":
            validation = self.noisy_loss()
        else:
            validation = self.losses("validation", cells=CURVE_CELLS, masks=1).mean()
        self.history.append(
            {
                "update": self.update, "cells_seen": self.update * self.settings.batch,
                "learning_rate": self.peak * schedule(self.settings, min(self.update, self.total - 1), self.total),
                "train_mse": train_mse, "validation_mse": float(validation),
            }
        )  # fmt: skip
        with files.atomic(self.folder / "history.csv") as partial:
            lines = [",".join(self.history[0])] + [",".join(f"{v!r}" for v in row.values()) for row in self.history]
            partial.write_text("\n".join(lines) + "\n")

    @torch.no_grad()
    def losses(self, part, cells=None, masks=None):
        """Mean squared error of each held-out cell over its fixed masks: float64 array (cells,).

        Evaluated in float32 without dropout, and summed in float64; `cells` and `masks` take the first few of each.
        """
        self.model.eval()
        rows, fixed, found = self.rows[part][:cells], self.masks[part][:cells, :masks], []
        for block in range(0, len(rows), CURVE_CELLS):
            x = self.x[torch.as_tensor(rows[block : block + CURVE_CELLS], device=self.device)]
            per_mask = [
                self.masked_error(x, _hidden(positions, self.genes), positions).double().mean(1)
                for positions in fixed[block : block + CURVE_CELLS].to(self.device).unbind(1)
            ]
            found.append(torch.stack(per_mask, 1).mean(1))
        return torch.cat(found).cpu().numpy()

    @torch.no_grad()
    def noisy_loss(self, batch=4):
        """The published evaluation: fresh Bernoulli masks each time, the mean of the means of batches of four cells."""
        self.model.eval()
        torch.manual_seed(_stream(self.seed, self.total + self.update))
        means = []
        for block in range(0, len(self.rows["validation"]), batch):
            x = self.x[torch.as_tensor(self.rows["validation"][block : block + batch], device=self.device)]
            means.append(self.masked_error(x, *self.draw_masks(len(x))).mean())
        return torch.stack(means).nanmean().item()

    def record(self):
        """Everything that is known of the finished run."""
        exact = {part: self.losses(part) for part in ("validation", "test")}
        validation = exact["validation"].mean()
        if self.settings.report == "best":
            validation = min(point["validation_mse"] for point in self.history)
        ok = not self.diverged and np.isfinite(validation) and np.isfinite(exact["test"].mean())
        return {
            "fingerprint": self.identity,
            "size": self.size.name,
            "seed": self.seed,
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "genes": self.genes,
            "cells_train": len(self.rows["train"]),
            "cells_seen": self.update * self.settings.batch,
            "updates": self.update,
            "learning_rate": self.peak,
            "protocol": self.settings.protocol,
            "objective": self.settings.objective,
            "validation_mse": float(validation) if ok else None,
            "test_mse": float(exact["test"].mean()) if ok else None,
            "validation_mse_se": _standard_error(exact["validation"]) if ok else None,
            "seconds": round(self.seconds, 3),
            "cells_per_second": round(self.update * self.settings.batch / self.seconds, 1),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "status": "ok" if ok else "diverged",
            "code_version": files.code_version(),
            "versions": files.versions(),
        }

    def save(self):
        with files.atomic(self.checkpoint) as partial:
            state = {
                "identity": self.identity, "update": self.update, "seconds": self.seconds, "history": self.history,
                "losses_since": self.losses_since,
                "model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(),
            }  # fmt: skip
            torch.save(state, partial)

    def restore(self):
        """Continue from the checkpoint, if there is one of this very run."""
        if not self.checkpoint.is_file():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["identity"] == self.identity:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            for name in ("update", "seconds", "history", "losses_since"):
                setattr(self, name, state[name])


def fingerprint(data, size, seed, settings):
    """Digest of all that decides a run's numbers: panel, split, masks, shape, seed, settings and this code."""
    digest = hashlib.sha256()
    for array in (data.x, data.train, data.validation, data.test, data.masks["validation"], data.masks["test"]):
        digest.update(np.ascontiguousarray(array))
    words = [asdict(size), seed, sorted(vars(settings).items()), torch.__version__]
    digest.update(repr(words).encode() + files.program(model.__file__).encode() + files.program(__file__).encode())
    return digest.hexdigest()


@contextmanager
def _stop_signals():
    """A list that is empty until SIGINT or SIGTERM arrives. Outside the main thread signals cannot be caught."""
    asked = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, lambda *event: asked.append(event)) for number in STOP_SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stream(seed, update):
    """One generator seed for each (seed, update)."""
    return int(np.random.SeedSequence([seed, update]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _hidden(positions, genes):
    """Boolean masks (cells, genes) that are true at `positions` (cells, k)."""
    hidden = torch.zeros(len(positions), genes, dtype=torch.bool, device=positions.device)
    return hidden.scatter_(1, positions, True)


def _standard_error(values):
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
