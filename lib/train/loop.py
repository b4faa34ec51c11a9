"""Train one size with one seed, from a panel to an exact loss. Needs torch and NumPy alone."""

import hashlib
import math
import signal
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch.optim.adamw import adamw

from lib import io
from lib.io import InputError
from lib.model import transformer
from lib.model.sizes import OUTPUTS
from lib.train import checkpoint, machine

CURVE_CELLS = 256
"""Validation cells in each point of a learning curve; the loss that enters the law uses all of them."""
CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 20, 0.05
"""Pause between checkpoints, and the share of the time that saving them may take: large models pause longer."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
PROGRESS = ("seconds", "history", "losses_since", "left_at", "half_loss")
"""What a checkpoint keeps of a run besides its identity and its state."""
ALIGNED = 16
"""Every weight begins at a multiple of so many numbers, 64 bytes, in the one tensor that holds them all."""


def train(data, size, seed, settings, folder, progress=lambda done, total, loss: None, fabric=None):
    """Train one run to its end, or return the finished one.

    A run that was stopped, however, continues from its checkpoint and ends with the same numbers: batches, masks and
    dropout are drawn from (seed, update), so that no generator's state has to survive.

    Parameters
    ----------
    data : lib.data.panel.Arrays
        Panel as arrays: x, counts and library sizes, row numbers of all sides, and the fixed masks.
    size : lib.model.sizes.Size
    seed : int
    settings : lib.study.Train, or any object with its attributes
    folder : Path
        Receives history.csv and checkpoints while the run goes on, result.json and weights.safetensors (the model's
        state_dict) when it is done.
    progress : callable(done, total, loss)
        Called after every update.
    fabric : lightning.fabric.Fabric, optional
        Already launched; its processes share every batch. Only the first writes.

    Returns
    -------
    dict
        The run's record, as in result.json. Status `diverged` (the loss is not finite) and `interrupted` (memory or
        disk gave out) come without a loss and with a reason; an interrupted run leaves no result and may go on.

    Raises
    ------
    InputError
        This size does not fit into this machine's memory; nothing was started.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    identity = fingerprint(data, size, seed, settings)
    first = fabric is None or fabric.is_global_zero
    with FileLock(folder / ".lock") if first else nullcontext():
        finished = folder / "result.json"
        if finished.is_file() and io.read_json(finished)["fingerprint"] == identity:
            return io.read_json(finished)
        machine.check_room(size, data.x.shape[1], machine.device().type)
        run = Run(data, size, seed, settings, folder, identity, fabric)
        try:
            run.advance(progress)
            record = run.record()
            if first:
                with io.atomic(folder / "weights.safetensors") as partial:
                    save_file({name: weight.clone() for name, weight in run.model.state_dict().items()}, partial)
                io.write_json(finished, record)
                checkpoint.clear(folder)
        except (OSError, MemoryError, RuntimeError) as error:
            if not (isinstance(error, OSError | MemoryError) or _out_of_memory(error)):
                raise
            record = run.interrupted(error)
    if fabric is not None:
        fabric.barrier()
    return record


def finished(records):
    """The records of a size's runs, when all are finished.

    Raises
    ------
    InputError
        Naming the first that was interrupted, and why. The others are finished and are not trained again.
    """
    for record in records:
        if record["status"] == "interrupted":
            raise InputError(f"{record['size']}, seed {record['seed']}: {record['reason']}.")
    return records


def learning_rate(settings, width):
    """Peak rate: `learning_rate` times (reference_width / width)**width_exponent, and at most `highest_rate`."""
    rate = settings.learning_rate * (settings.reference_width / width) ** settings.width_exponent
    return min(rate, settings.highest_rate or math.inf)


def schedule(settings, update, total, end=None):
    """Share of the peak learning rate at an update: linear warm-up, a plateau, then a linear fall to `final_rate`.

    With `end` the fall comes early, so that training ends at that update instead of `total`.
    """
    warmup, end = round(settings.warmup * total), end or total
    fall = max(1, round(settings.decay * end))
    left = min(1.0, (end - update) / fall)
    return min((update + 1) / max(1, warmup), settings.final_rate + (1 - settings.final_rate) * left, 1.0)


def protocol(settings, size, cells):
    """How one size is trained, in words and numbers, for a table."""
    updates = math.ceil(settings.cells_seen / settings.batch)
    reference, exponent = settings.reference_width, settings.width_exponent
    fall = f"over the last {settings.decay:.0%} down to {settings.final_rate:.0%} of the peak"
    most = f", at most {settings.highest_rate:g}" if settings.highest_rate else ""
    return {
        "protocol": settings.protocol,
        "updates": f"{updates:,} of {settings.batch} cells",
        "passes over the training cells": f"{settings.cells_seen / cells:.2f}",
        "peak learning rate": f"{learning_rate(settings, size.d):.3g}",
        "learning-rate rule": f"{settings.learning_rate:g} x ({reference} / width)^{exponent:g}{most}",
        "schedule": f"warm-up over {settings.warmup:.0%}, a plateau, {fall}",
        "dropout, weight decay, gradient clip": f"{settings.dropout:g}, {settings.weight_decay:g}, {settings.clip:g}",
        "initial gene embeddings": f"normal, standard deviation {settings.embedding_scale:g}",
        "converged": f"when half the updates give a loss within {settings.tolerance:.1%}",
    }


class Run:
    """One model, its optimiser and how far they have come.

    Half-way the run makes an excursion: its learning rate falls as it would at the end, the loss is measured, and the
    run goes on from where it left. So every run also knows the loss that half its updates would have given.
    """

    def __init__(self, data, size, seed, settings, folder, identity, fabric=None):
        self.size, self.seed, self.settings, self.folder, self.identity = size, seed, settings, folder, identity
        self.fabric, self.device = fabric, fabric.device if fabric else machine.device()
        self.rank, self.world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
        machine.prepare(size, data.x.shape[1])
        self.x = torch.as_tensor(np.asarray(data.x))
        if 2 * self.x.nbytes < machine.memory(self.device.type):  # else batches come from where the panel lies
            self.x = self.x.to(self.device)
        self.unit, self.cost = transformer.UNITS[settings.objective], transformer.LOSSES[settings.objective]
        self.counts = None if self.unit == "mse" else torch.as_tensor(np.asarray(data.counts))
        self.library = torch.as_tensor(np.asarray(data.library), dtype=torch.float32).to(self.x.device)
        self.masks = {name: torch.as_tensor(masks, dtype=torch.long) for name, masks in data.masks.items()}
        self.rows = {"train": data.train} | data.held
        if settings.train_on == "all":
            self.rows["train"] = np.arange(len(data.x))
        self.genes, self.k = data.x.shape[1], data.masks["validation"].shape[-1]
        self.total = math.ceil(settings.cells_seen / settings.batch)
        self.half = self.total // 2
        self.leaves = self.half - round(settings.decay * self.half)
        self.at_once = machine.cells_at_once(size, self.genes, settings.batch, self.device.type)
        torch.manual_seed(seed)
        outputs = OUTPUTS[settings.objective]
        self.model = transformer.Transformer(size, self.genes, settings.dropout, settings.embedding_scale, outputs)
        self.model.to(self.device)
        self.fast = machine.compiled(self.model, self.device.type)
        self.weights = _in_one(self.model)
        self.peak = learning_rate(settings, size.d)
        self.moments = {name: torch.zeros_like(self.weights.detach()) for name in ("mean", "square")}
        self.moments["steps"] = torch.zeros((), device=self.device)
        self.update, self.seconds, self.history, self.losses_since = 0, 0.0, [], []
        self.left_at, self.half_loss, self.order = None, None, (None, None)
        self.restore()

    def advance(self, progress):
        """Train from where the run stands to its last update, measuring the learning curve on the way.

        SIGINT (Jupyter's stop button) and SIGTERM save and stop between two updates, never inside one.
        """
        marks = {round(mark) for mark in np.linspace(0, self.total, self.settings.evaluations)}
        started, saved, pause = time.monotonic() - self.seconds, time.monotonic(), CHECKPOINT_SECONDS
        with _stop_signals() as asked_to_stop:
            while self.update < self.total and not self.diverged:
                if self.update == 0:
                    self.measure()
                loss = self.step()
                self.update += 1
                self.seconds = time.monotonic() - started
                if self.left_at is None:
                    self.losses_since.append(loss)
                    if self.update in marks:
                        self.measure()
                self.excursion()
                progress(*self.progress(), self.last_loss)
                stop = bool(asked_to_stop)
                if stop or time.monotonic() - saved > pause:
                    before, _ = time.monotonic(), self.save()
                    saved = time.monotonic()
                    pause = max(pause, (saved - before) / CHECKPOINT_SHARE) if pause > 0 else pause
                if stop:
                    raise KeyboardInterrupt

    def excursion(self):
        """Leave for the half-way measurement, or come back from it, where it is time."""
        if self.settings.report == "best":
            return
        if self.update == self.leaves and self.half_loss is None and self.left_at is None:
            self.left_at = self.state()
        if self.update == self.half and self.left_at is not None:
            self.half_loss = float(self.losses("validation").mean())
            self.set_state(self.left_at)
            self.left_at = None

    def progress(self):
        """Updates done and updates in all, those of the excursion included."""
        extra = 0 if self.settings.report == "best" else self.half - self.leaves
        return self.update + (extra if self.half_loss is not None else 0), self.total + extra

    @property
    def last_loss(self):
        """Validation loss at the last point of the learning curve."""
        return self.history[-1][f"validation_{self.unit}"]

    @property
    def diverged(self):
        return bool(self.history) and not math.isfinite(self.last_loss)

    def rate(self):
        """Learning rate of the next update."""
        end = self.half if self.left_at is not None else self.total
        return self.peak * schedule(self.settings, self.update, self.total, end)

    def step(self):
        """One update on one batch; returns its loss without waiting for the device."""
        if not self.model.training:
            self.model.train()
        loss = self.gradient()
        gradient = self.weights.grad
        if self.fabric is not None:
            gradient.copy_(self.fabric.all_reduce(gradient, reduce_op="sum"))
            loss = self.fabric.all_reduce(loss, reduce_op="sum")
        gradient.mul_((self.settings.clip / (gradient.norm() + 1e-6)).clamp(max=1.0))
        self.descend()
        return loss

    @torch.no_grad()
    def descend(self):
        """AdamW on all weights at once: the function behind torch's optimiser, which itself would load a compiler."""
        moments = [[self.moments[name]] for name in ("mean", "square", "steps")]
        adamw(
            [self.weights], [self.weights.grad], *moments[:2], [], moments[2], fused=True, amsgrad=False,
            beta1=0.9, beta2=0.999, eps=1e-8, lr=self.rate(), weight_decay=self.settings.weight_decay, maximize=False,
        )  # fmt: skip

    def gradient(self):
        """Gradient of the next batch's mean loss at its masked positions, into `weights.grad`; returns that loss.

        As many cells at once as the cache, or the memory, has room for: when memory gives out, half as many.
        """
        while True:
            machine.seed(_stream(self.seed, self.update), self.device.type)
            rows = self.batch()
            x = self.x[rows].to(self.device)
            hidden, positions = self.draw_masks(len(x))
            masked = hidden.sum() if positions is None else positions.numel()
            if self.fabric is not None:
                machine.seed(_stream(self.seed, self.update, self.rank), self.device.type)
            self.weights.grad.zero_()
            loss = torch.zeros((), device=self.device)
            try:
                for part in torch.arange(len(x)).tensor_split(self.world)[self.rank].split(self.at_once):
                    cells = slice(part[0], part[-1] + 1)
                    with machine.precision(self.device.type):
                        chosen = None if positions is None else positions[cells]
                        cost = self.masked_loss(self.fast, rows[cells], x[cells], hidden[cells], chosen).sum() / masked
                    cost.backward()
                    loss += cost.detach()
                return loss
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or self.at_once == 1:
                    raise
            self.at_once //= 2

    def batch(self):
        """Rows of the next batch. Each pass over the training cells is a new permutation; batches run across passes."""
        place, end, parts = self.update * self.settings.batch, (self.update + 1) * self.settings.batch, []
        while place < end:
            epoch, start = divmod(place, len(self.rows["train"]))
            parts.append(self.permuted(epoch)[start : start + end - place])
            place += len(parts[-1])
        return torch.cat(parts)

    def permuted(self, epoch):
        """Training rows in the order of one pass."""
        if self.order[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.rows["train"])
            self.order = (epoch, torch.as_tensor(order, device=self.x.device))
        return self.order[1]

    def draw_masks(self, cells):
        """New masks: hidden (cells, genes) bool and, where their number is fixed, the k hidden positions (cells, k)."""
        chance = torch.rand(cells, self.genes, device=self.device)
        if self.settings.masks == "bernoulli":
            return chance < self.k / self.genes, None
        positions = chance.topk(self.k, dim=1).indices
        return _hidden(positions, self.genes), positions

    def masked_loss(self, predict, rows, x, hidden, positions):
        """Loss at each masked position: (cells, k), or one flat vector when their number varies by cell."""
        predicted = predict(x, hidden, positions).float()
        if positions is None:
            return transformer.squared_error(predicted, x)[hidden]
        truth = x if self.counts is None else self.counts[rows.to(self.counts.device)].to(self.device).float()
        with torch.autocast(self.device.type, enabled=False):
            return self.cost(predicted, truth.gather(1, positions), self.library[rows].to(self.device))

    def measure(self):
        """Add a point to the learning curve: the training loss since the last one, the validation loss now."""
        train = torch.stack(self.losses_since).mean().item() if self.losses_since else math.nan
        self.losses_since.clear()
        if self.settings.report == "best":
            validation = self.noisy_loss()
        else:
            validation = self.losses("validation", cells=CURVE_CELLS, masks=1).mean()
        self.history.append(
            {
                "update": self.update, "cells_seen": self.update * self.settings.batch,
                "learning_rate": self.rate(),
                f"train_{self.unit}": train, f"validation_{self.unit}": float(validation),
            }
        )  # fmt: skip
        with io.atomic(self.folder / "history.csv") as partial:
            lines = [",".join(self.history[0])] + [",".join(f"{v!r}" for v in row.values()) for row in self.history]
            partial.write_text("\n".join(lines) + "\n")

    def losses(self, part, cells=None, masks=None):
        """Mean loss of each held-out cell over its fixed masks: float64 array (cells,).

        Evaluated in float32 without dropout, and summed in float64; `cells` and `masks` take the first few of each.
        """
        return self.at_masks(part, self.masked_loss, cells, masks).double().mean(2).mean(1).numpy()

    def squared_errors(self, part):
        """The same for the squared error of the log-normalised expression, of which counts predict the mean.

        That mean is of log1p(10,000 count / library) under the predicted distribution of the count.
        """
        if self.counts is None:
            return self.losses(part)
        from lib.train import predictive  # needs SciPy

        rows, masks = torch.as_tensor(self.rows[part], device=self.x.device), self.masks[part]
        raw = self.at_masks(part, lambda predict, rows, *inputs: predict(*inputs))
        library, truth = self.library[rows].cpu()[:, None], self.x[rows].cpu()[:, None].expand(-1, masks.shape[1], -1)
        counts = transformer.distribution(raw, library, self.settings.objective)
        mean, _ = predictive.moments(*counts, library.numpy()[..., None])
        return (torch.as_tensor(mean) - truth.gather(2, masks)).square().mean(2).mean(1).numpy()

    @torch.no_grad()
    def at_masks(self, part, measure, cells=None, masks=None):
        """What `measure` finds at the fixed masks of each held-out cell: float32 tensor (cells, masks, k, ...)."""
        self.model.eval()
        rows, fixed, found = self.rows[part][:cells], self.masks[part][:cells, :masks], []
        step = self.at_once if self.device.type == "cpu" else CURVE_CELLS
        for block in range(0, len(rows), step):
            some = torch.as_tensor(rows[block : block + step], device=self.x.device)
            x = self.x[some].to(self.device)
            per_mask = [
                measure(self.model, some, x, _hidden(positions, self.genes), positions).float()
                for positions in fixed[block : block + step].to(self.device).unbind(1)
            ]
            found.append(torch.stack(per_mask, 1))
        return torch.cat(found).cpu()

    @torch.no_grad()
    def noisy_loss(self, batch=4):
        """The published evaluation: fresh Bernoulli masks each time, the mean of the means of batches of four cells."""
        self.model.eval()
        machine.seed(_stream(self.seed, self.total + self.update), self.device.type)
        means = []
        for block in range(0, len(self.rows["validation"]), batch):
            x = self.x[torch.as_tensor(self.rows["validation"][block : block + batch], device=self.x.device)]
            x = x.to(self.device)
            means.append(self.masked_loss(self.model, None, x, *self.draw_masks(len(x))).mean())
        return torch.stack(means).nanmean().item()

    def record(self):
        """Everything that is known of the finished run."""
        sides = [side for side in self.rows if side != "train"]
        exact = {f"{side}_mse": self.squared_errors(side) for side in sides}
        if self.unit != "mse":
            exact |= {f"{side}_{self.unit}": self.losses(side) for side in sides}
        found = {name: float(losses.mean()) for name, losses in exact.items()}
        if self.settings.report == "best":
            found["validation_mse"] = min(point["validation_mse"] for point in self.history)
        ok = not self.diverged and all(map(math.isfinite, found.values()))
        found |= {f"{name}_se": _standard_error(losses) for name, losses in exact.items()}
        loss, half = f"validation_{self.unit}", self.half_loss
        moved = abs(half - found[loss]) / found[loss] if ok and half is not None else None
        return {
            **self.origin(),
            **{name: value if ok else None for name, value in found.items()},
            f"{loss}_half": half if ok else None,
            "weights_sha256": hashlib.sha256(self.weights.detach().cpu().numpy()).hexdigest(),
            "convergence": None if moved is None else _converged(moved, self.settings.tolerance),
            "status": "ok" if ok else "diverged",
            "reason": "" if ok else f"its loss was no longer finite after {self.update:,} updates",
        }

    def interrupted(self, error):
        """Record of a run that memory or disk stopped."""
        reason = " ".join(str(error).split())[:200]
        advice = "free some memory and run it again"
        if isinstance(error, OSError):
            advice = "make room on the disk, or make it writable, and run it again: it goes on from its last checkpoint"
        return {**self.origin(), "status": "interrupted", "reason": f"stopped ({reason}); {advice}"}

    def origin(self):
        """What was trained, how and where."""
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
            "seconds": round(self.seconds, 3),
            "cells_per_second": round(self.progress()[0] * self.settings.batch / max(self.seconds, 1e-9), 1),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "code_version": io.code_version(),
            "versions": io.versions(),
        }

    def state(self):
        """Where weights and optimiser stand: copies."""
        moving = {"weights": self.weights.detach(), **self.moments}
        return {"update": self.update, **{name: tensor.clone() for name, tensor in moving.items()}}

    def set_state(self, state):
        self.update = state["update"]
        for name, tensor in {"weights": self.weights.detach(), **self.moments}.items():
            tensor.copy_(state[name])

    def save(self):
        if self.rank == 0:
            kept = {name: getattr(self, name) for name in ("identity", *PROGRESS)}
            checkpoint.save(self.folder, self.progress()[0], {**kept, "state": self.state()})

    def restore(self):
        """Continue from the newest whole checkpoint, if it is one of this very run."""
        saved = checkpoint.load(self.folder, self.device)
        if saved and saved["identity"] == self.identity:
            self.set_state(saved["state"])
            for name in PROGRESS:
                setattr(self, name, saved[name])


def fingerprint(data, size, seed, settings):
    """Digest of all that decides a run's numbers: panel, split, masks, shape, seed, settings, TRAIN_NUMERICS."""
    digest = hashlib.sha256()
    truth = () if settings.objective == "mse" else (data.counts, data.library)
    for array in (data.x, *truth, data.train, *data.held.values(), *data.masks.values()):
        digest.update(np.ascontiguousarray(array))
    torch_version = torch.__version__.partition("+")[0]  # without its build: a run may go on or be fitted elsewhere
    words = [io.TRAIN_NUMERICS, asdict(size), seed, sorted(vars(settings).items()), torch_version]
    digest.update(repr(words).encode())
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


def _in_one(network):
    """All weights as one tensor, of which the network's become parts, gradients too: one kernel updates them all."""
    weights = list(network.parameters())
    starts = np.cumsum([0, *(-(-weight.numel() // ALIGNED) * ALIGNED for weight in weights)])
    whole = torch.nn.Parameter(weights[0].new_zeros(int(starts[-1])))
    whole.grad = torch.zeros_like(whole)
    for weight, start in zip(weights, starts[:-1], strict=True):
        place = slice(start, start + weight.numel())
        whole.data[place] = weight.data.reshape(-1)
        weight.data, weight.grad = whole.data[place].view_as(weight), whole.grad[place].view_as(weight)
    return whole


def _out_of_memory(error):
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _converged(moved, tolerance):
    return "converged" if moved <= tolerance else "not converged"


def _stream(*numbers):
    """One generator seed for each combination of numbers, such as (seed, update)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _hidden(positions, genes):
    """Boolean masks (cells, genes) that are true at `positions` (cells, k)."""
    hidden = torch.zeros(len(positions), genes, dtype=torch.bool, device=positions.device)
    return hidden.scatter_(1, positions, True)


def _standard_error(values):
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
