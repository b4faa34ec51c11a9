"""Train one size with one seed, from a panel to an exact loss; and the optimisers that a study may ask for."""

import copy
import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import pad

from lib import io
from lib.io import InputError
from lib.model import transformer
from lib.model.sizes import BUDGETS, OUTPUTS, Size, recipe
from lib.train import machine

CURVE_CELLS = 256  # validation cells in each point of a learning curve; the loss that enters the law uses all
CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 20, 0.05  # least pause between two, and share of the time that saving may take
PROGRESS = ("seconds", "history", "losses_since", "trunk", "branch_losses")  # in a checkpoint, besides the state
MOMENTUM = 0.95
MUON_RATE = 0.4  # as a part of AdamW's, where both are the root mean square of an update's entries over 0.2
POLYNOMIAL, ROUNDS = (3.4445, -4.7750, 2.0315), 5  # K. Jordan et al. 2024, kellerjordan.github.io/posts/muon


def train(data, size: Size, seed: int, settings, folder: Path, progress: Callable = lambda *state: None) -> dict:
    """Train one run to its end, from its checkpoint if there is one, and return its record, as in result.json.

    A run that was stopped ends with the same numbers: batches, masks and dropout are drawn from (seed, update), so that
    no generator's state has to survive. `data` is a `lib.data.panel.Arrays` and `settings` a `lib.study.Train`;
    `folder` receives history.csv and checkpoints, and at the end result.json and weights.safetensors (the model's
    state_dict). `progress` is called with (updates done, all updates, loss) after every update.
    InputError: this size does not fit into this machine's memory, or memory or disk gave out; the run can go on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    identity, result = fingerprint(data, size, seed, settings), folder / "result.json"
    with FileLock(folder / ".lock"):
        if result.is_file() and io.read_json(result)["fingerprint"] == identity:
            machine.forget(folder)  # checkpoints, where the end of the run was cut short
            return io.read_json(result)
        machine.check_memory(size, data.x.shape[1], machine.device().type)
        for left in (result, *folder.glob(".partial-*")):  # of other settings; of processes that were killed
            io.remove(left)
        try:
            return Run(data, size, seed, settings, folder, identity).completed(progress)
        except (OSError, MemoryError, RuntimeError) as error:
            full = isinstance(error, OSError)
            if not (full or machine.out_of_memory(error)):
                raise
            advice = "make room on the disk, or make it writable" if full else "free some memory"
            advice += ", and run it again: it goes on from its last checkpoint"
            raise InputError(f"{size.name}, seed {seed}: stopped ({io.short(error)}); {advice}.") from None


def learning_rate(settings, width: int) -> float:
    """Peak rate: `learning_rate` times (reference_width / width)**width_exponent, and at most `highest_rate`."""
    rate = settings.learning_rate * (settings.reference_width / width) ** settings.width_exponent
    return min(rate, settings.highest_rate or math.inf)


def schedule(settings, update: int, end: int | None = None) -> float:
    """Share of the peak learning rate at an update: linear warm-up, a plateau, then a linear fall to `final_rate`.

    With `end` the fall comes early, so that training ends at that update instead of the last one.
    """
    warmup, end = round(settings.warmup * settings.updates), end or settings.updates
    fall = max(1, round(settings.decay * end))
    left = min(1.0, (end - update) / fall)
    return min((update + 1) / max(1, warmup), settings.final_rate + (1 - settings.final_rate) * left, 1.0)


def convergence(half: float | None, whole: float, tolerance: float) -> str | None:
    """`converged` where half the updates give a loss within `tolerance` of the whole run's, None where not known."""
    if half is None:
        return None
    return "converged" if abs(half - whole) / whole <= tolerance else "not converged"


class Run:
    """One model, its optimiser and how far they have come.

    On its way the run makes branches (`settings.branches`): its learning rate falls as it would at the end, the loss is
    measured, and the run goes back to where it left the trunk. So it also knows the losses at earlier budgets.
    """

    def __init__(self, data, size: Size, seed: int, settings, folder: Path, identity: str):
        self.size, self.seed, self.settings, self.folder, self.identity = size, seed, settings, folder, identity
        self.device = machine.device()
        self.genes, self.k = data.x.shape[1], data.masks["validation"].shape[-1]
        torch.set_num_threads(size.threads(self.genes))
        self.data, self.cells = data, machine.Cells(data, settings, seed, self.device)
        self.unit, self.loss = transformer.UNITS[settings.objective], transformer.LOSSES[settings.objective]
        self.at_once = machine.cells_at_once(size, self.genes, settings.batch, self.device.type)
        torch.manual_seed(seed)
        outputs = OUTPUTS[settings.objective]
        self.model = transformer.Transformer(size, self.genes, settings.dropout, settings.embedding_scale, outputs)
        self.model.to(self.device)
        self.fast = machine.compiled(self.model, self.device.type)
        self.peak = learning_rate(settings, size.d)
        self.optimiser = Optimiser(self.model, settings, self.peak)
        self.update, self.seconds, self.history, self.losses_since = 0, 0.0, [], []
        self.branches = list(settings.branches.values())
        self.trunk, self.branch_losses = None, []
        self.saved, self.pause = time.monotonic(), CHECKPOINT_SECONDS
        self.restore()

    def completed(self, progress: Callable) -> dict:
        """Train to the end, and leave the record and the weights in place of the checkpoints."""
        self.advance(progress)
        record = self.record()
        with io.atomic(self.folder / "weights.safetensors") as partial:
            partial.write_bytes(save(self.model.state_dict()))
        io.write_json(self.folder / "result.json", record)
        machine.forget(self.folder)
        return record

    def advance(self, progress: Callable) -> None:
        """Train from where the run stands to its last update, measuring the learning curve on the way.

        SIGINT (Jupyter's stop button) and SIGTERM save and stop between two updates, never inside one.
        """
        points = {round(point) for point in np.linspace(0, self.settings.updates, self.settings.evaluations)}
        started = time.monotonic() - self.seconds
        with _stop_signals() as asked_to_stop:
            if self.update == 0:
                self.measure()
            while self.update < self.settings.updates and math.isfinite(self.last_loss):
                loss = self.step()
                if self.trunk is None:
                    self.losses_since.append(loss)
                    if self.update in points:
                        self.measure()
                self.branch()
                self.seconds = time.monotonic() - started
                progress(*self.progress(), self.last_loss)
                stop = bool(asked_to_stop)
                if stop or time.monotonic() - self.saved > self.pause:
                    self.save()
                if stop:
                    raise KeyboardInterrupt

    def step(self) -> Tensor:
        """One update on one batch; returns its loss without waiting for the device."""
        self.model.train()
        loss = self.gradient()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimiser.step(self.share())
        self.update += 1
        return loss

    def gradient(self) -> Tensor:
        """Gradient of the next batch's mean loss, into the weights; returns that loss.

        As many cells at once as the cache, or the memory, has room for: when memory gives out, half as many.
        """
        while True:
            self.model.zero_grad()
            try:
                return self.accumulated(self.cells.batch(self.update))
            except (MemoryError, RuntimeError) as error:
                if not machine.out_of_memory(error) or self.at_once == 1:
                    raise
            self.at_once //= 2

    def accumulated(self, rows: Tensor) -> Tensor:
        """Mean loss of a batch at masks drawn for this update; its gradient is added to the weights', lot by lot."""
        machine.seed(_stream(self.seed, self.update), self.device.type)
        x, total = self.cells.expression(rows), torch.zeros((), device=self.device)
        hidden, positions = self.draw_masks(len(x))
        masked = hidden.sum() if positions is None else positions.numel()
        for start in range(0, len(x), self.at_once):
            lot = slice(start, start + self.at_once)
            with machine.precision(self.device.type):
                chosen = None if positions is None else positions[lot]
                loss = self.masked_loss(self.fast, rows[lot], x[lot], hidden[lot], chosen).sum() / masked
            loss.backward()
            total += loss.detach()
        return total

    def draw_masks(self, cells: int) -> tuple[Tensor, Tensor | None]:
        """New masks: hidden (cells, genes) bool and, where their number is fixed, the k hidden positions (cells, k)."""
        chance = torch.rand(cells, self.genes, device=self.device)
        if self.settings.masks == "bernoulli":
            return chance < self.k / self.genes, None
        positions = chance.topk(self.k, dim=1).indices
        return transformer.hide(positions, self.genes), positions

    def masked_loss(self, predict, rows: Tensor, x: Tensor, hidden: Tensor, positions: Tensor | None) -> Tensor:
        """Loss at each masked position: (cells, k), or one flat vector when their number varies by cell."""
        predicted = predict(x, hidden, positions).float()
        if positions is None:
            return transformer.squared_error(predicted, x)[hidden]
        with torch.autocast(self.device.type, enabled=False):
            counts = self.cells.counts
            truth = x if counts is None else counts[rows].to(self.device).float()
            return self.loss(predicted, truth.gather(1, positions), self.cells.library[rows].to(self.device))

    def branch(self) -> None:
        """Leave the trunk for the next branch, or measure the loss at its end and come back, where it is time."""
        for leaves, ends in self.branches[len(self.branch_losses) :]:
            if self.trunk is None and self.update == leaves:
                self.trunk = self.state()
            if self.trunk is not None and self.update == ends:
                self.branch_losses.append(float(self.losses("validation").mean()))
                self.set_state(self.trunk)
                self.trunk = None

    def share(self) -> float:
        """Share of the peak learning rate at the next update: of the branch, or of the trunk."""
        end = None if self.trunk is None else self.branches[len(self.branch_losses)][1]
        return schedule(self.settings, self.update, end)

    def progress(self) -> tuple[int, int]:
        """Updates done and updates in all, those of the branches included."""
        extra = [ends - leaves for leaves, ends in self.branches]
        return self.update + sum(extra[: len(self.branch_losses)]), self.settings.updates + sum(extra)

    @property
    def last_loss(self) -> float:
        """Validation loss at the last point of the learning curve; NaN before the first."""
        return self.history[-1][f"validation_{self.unit}"] if self.history else math.nan

    def measure(self) -> None:
        """Add a point to the learning curve: the training loss since the last one, the validation loss now."""
        train = torch.stack(self.losses_since).mean().item() if self.losses_since else math.nan
        self.losses_since.clear()
        if self.settings.report == "best":
            validation = self.noisy_loss()
        else:
            validation = float(self.losses("validation", cells=CURVE_CELLS, masks=1).mean())
        now = {"update": self.update, "cells_seen": self.update * self.settings.batch}
        losses = {f"train_{self.unit}": train, f"validation_{self.unit}": validation}
        self.history.append(now | {"learning_rate": self.peak * self.share()} | losses)
        with io.atomic(self.folder / "history.csv") as partial:
            lines = [",".join(self.history[0])] + [",".join(f"{v!r}" for v in row.values()) for row in self.history]
            partial.write_text("\n".join(lines) + "\n")

    def losses(self, split: str, cells: int | None = None, masks: int | None = None) -> np.ndarray:
        """Mean loss of each held-out cell over its fixed masks, or a few of both: float64 array (cells,)."""
        return self.at_masks(split, self.masked_loss, cells, masks).double().mean(2).mean(1).numpy()

    def squared_errors(self, split: str) -> np.ndarray:
        """The same for the squared error of the log-normalised expression, whose mean follows from a count's."""
        from lib.train import evaluate  # needs SciPy

        rows, masks = self.cells.held[split], self.cells.masks[split]
        raw = self.at_masks(split, lambda predict, rows, *inputs: predict(*inputs))
        library = self.cells.library[rows].cpu()[:, None]
        mean = evaluate.mean_log1p(*transformer.distribution(raw, library), library.numpy()[..., None])
        truth = self.cells.x[rows].cpu()[:, None].expand(-1, masks.shape[1], -1).gather(2, masks)
        return (torch.as_tensor(mean) - truth).square().mean(2).mean(1).numpy()

    @torch.no_grad()
    def at_masks(self, split: str, measure: Callable, cells: int | None = None, masks: int | None = None) -> Tensor:
        """What `measure` gives at the fixed masks of each held-out cell: float32 tensor (cells, masks, k, ...)."""
        self.model.eval()
        step = self.at_once if self.device.type == "cpu" else 64
        number = len(self.cells.held[split])
        some = min(cells or number, number)
        spread = torch.arange(some) * number // some  # some of every donor, whose cells lie together
        held, fixed = (of[split][spread.to(of[split].device)] for of in (self.cells.held, self.cells.masks))
        fixed, measured = fixed[:, :masks], []
        for rows, masks in zip(held.split(step), fixed.split(step), strict=True):
            x, at = self.cells.expression(rows), masks.to(self.device).unbind(1)
            of_mask = [measure(self.model, rows, x, transformer.hide(one, self.genes), one).float() for one in at]
            measured.append(torch.stack(of_mask, 1).cpu())
        return torch.cat(measured)

    @torch.no_grad()
    def noisy_loss(self) -> float:
        """The published evaluation: fresh Bernoulli masks, the mean of the means of batches of four cells."""
        self.model.eval()
        machine.seed(_stream(self.seed, self.settings.updates + self.update), self.device.type)
        means = []
        for rows in self.cells.held["validation"].split(4):
            x = self.cells.expression(rows)
            means.append(self.masked_loss(self.model, rows, x, *self.draw_masks(len(x))).mean())
        return torch.stack(means).nanmean().item()

    def record(self) -> dict:
        """Everything that is known of the finished run."""
        exact = {f"{split}_{self.unit}": self.losses(split) for split in self.cells.held}
        if self.unit != "mse":
            exact |= {f"{split}_mse": self.squared_errors(split) for split in self.cells.held}
        means = {name: float(losses.mean()) for name, losses in exact.items()}
        if self.settings.report == "best":
            means["validation_mse"] = min(point["validation_mse"] for point in self.history)
        ok = math.isfinite(self.last_loss) and all(map(math.isfinite, means.values()))
        donors, errors = {split: self.data.donor[rows] for split, rows in self.data.held.items()}, {}
        for name, losses in exact.items():
            of = machine.errors_of_mean(losses, donors[name.rpartition("_")[0]])
            errors |= dict(zip((f"{name}_se", f"{name}_donor_se"), of, strict=True))
        loss, earlier = f"validation_{self.unit}", dict(zip(self.settings.branches, self.branch_losses, strict=False))
        earlier = {name: value if ok and math.isfinite(value) else None for name, value in earlier.items()}
        return {
            **self.origin(),
            **{name: value if ok else None for name, value in (means | errors).items()},
            **{f"{split}_donors": len(np.unique(of)) for split, of in donors.items()},
            **{f"{loss}_{name}": earlier.get(name) for name in BUDGETS},
            "weights_sha256": hashlib.sha256(save(self.model.state_dict())).hexdigest(),
            "convergence": convergence(earlier.get("half"), means[loss], self.settings.tolerance),
            "status": "ok" if ok else "diverged",
            "reason": "" if ok else f"its loss was no longer finite after {self.update:,} updates",
        }

    def origin(self) -> dict:
        """What was trained, how and where."""
        return {
            "fingerprint": self.identity,
            "panel": self.data.digest,
            "recipe": recipe(self.size, self.settings),
            "size": self.size.name,
            "seed": self.seed,
            "width": self.size.d,
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "parameters_without_embeddings": sum(w.numel() for w in self.model.parameters()) - self.model.gene.numel(),
            "genes": self.genes,
            "cells_train": len(self.cells.train),
            "cells_seen": self.update * self.settings.batch,
            "updates": self.update,
            "learning_rate": self.peak,
            **{name: getattr(self.settings, name) for name in ("optimiser", "batch", "protocol", "objective")},
            "seconds": round(self.seconds, 3),
            "cells_per_second": round(self.progress()[0] * self.settings.batch / max(self.seconds, 1e-9), 1),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "code_version": io.code_version(),
            "versions": io.versions(),
        }

    def state(self) -> dict:
        """A copy of where weights and optimiser stand."""
        moving = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        return copy.deepcopy({"update": self.update, **moving})

    def set_state(self, state: dict) -> None:
        """Go to where a state was copied; the optimiser takes its tensors over."""
        self.update = state["update"]
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])

    def save(self) -> None:
        """Write a checkpoint; the next comes when saving has had its share of the time."""
        started = time.monotonic()
        content = {name: getattr(self, name) for name in ("identity", *PROGRESS)}
        machine.save_checkpoint(self.folder, self.progress()[0], {**content, "state": self.state()})
        self.saved = time.monotonic()
        self.pause = max(CHECKPOINT_SECONDS, (self.saved - started) / CHECKPOINT_SHARE)

    def restore(self) -> None:
        """Continue from the newest whole checkpoint if it is one of this very run, else remove what another left.

        Checkpoints of a run with other settings may have higher numbers, and would pass for the newest ones.
        """
        saved = machine.load_checkpoint(self.folder, self.device)
        if saved and saved["identity"] != self.identity:
            machine.forget(self.folder)
        elif saved:
            self.set_state(saved["state"])
            for name in PROGRESS:
                setattr(self, name, saved[name])


def fingerprint(data, size: Size, seed: int, settings) -> str:
    """Digest of all that decides a run's numbers: panel, recipe, seed, TRAIN_NUMERICS."""
    torch_version = torch.__version__.partition("+")[0]  # without its build: a run may go on or be fitted elsewhere
    words = [io.TRAIN_NUMERICS, data.digest, recipe(size, settings), seed, torch_version]
    return hashlib.sha256(repr(words).encode()).hexdigest()


@contextmanager
def _stop_signals() -> Iterator[list]:
    """A list that is empty until SIGINT or SIGTERM arrives."""
    asked, numbers = [], (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *event: asked.append(event)) for number in numbers]
    try:
        yield asked
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _stream(*numbers: int) -> int:
    """One generator seed for each combination of numbers, such as (seed, update)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Optimiser:
    """AdamW, and Muon if asked for, over one model at rates that follow one schedule.

    `settings` are a `lib.study.Train`, and `peak` is the largest learning rate of AdamW. Muon steps along the
    orthogonalised momentum of a matrix; queries, keys and values are three. Matrices of one shape go through the
    iteration together, in float32 on a CPU: torch.optim.Muon takes them one by one and in bfloat16, and narrow sizes,
    whose updates are mostly overhead, train on a CPU.
    """

    def __init__(self, model: nn.Module, settings, peak: float) -> None:
        self.peak, self.decay, self.matrices = peak, settings.weight_decay, {}
        blocks = model.blocks.named_parameters() if settings.optimiser == "muon" else ()
        of_muon = {weight: name for name, weight in blocks if weight.ndim == 2}
        for weight, name in of_muon.items():
            parts = 3 if name.endswith("qkv.weight") else 1
            rows, columns = len(weight) // parts, weight.shape[1]
            of_shape = self.matrices.setdefault((min(rows, columns), max(rows, columns)), [])
            of_shape += [(weight, part, parts, rows > columns) for part in range(parts)]
        others = [weight for weight in model.parameters() if weight not in of_muon]
        device, betas = others[0].device, (0.9, settings.beta2)
        self.momentum = {shape: torch.zeros(len(of), *shape, device=device) for shape, of in self.matrices.items()}
        self.adamw = torch.optim.AdamW(others, lr=peak, betas=betas, weight_decay=self.decay, fused=True)

    @torch.no_grad()
    def step(self, share: float) -> None:
        """Update the weights at this share of the peak learning rates."""
        for group in self.adamw.param_groups:
            group["lr"] = self.peak * share
        self.adamw.step()
        for shape, matrices in self.matrices.items():
            gradient = torch.stack([_part(weight.grad, *at) for weight, *at in matrices])
            momentum = self.momentum[shape].lerp_(gradient, 1 - MOMENTUM)
            steps = orthogonal(torch.lerp(gradient, momentum, MOMENTUM)) * (0.2 * shape[1] ** 0.5)
            rate, weights = MUON_RATE * self.peak * share, [_part(weight, *at) for weight, *at in matrices]
            torch._foreach_mul_(weights, 1 - rate * self.decay)
            torch._foreach_add_(weights, list(steps), alpha=-rate)

    def state_dict(self) -> dict:
        """All that changes as steps are taken."""
        return {"adamw": self.adamw.state_dict(), "momentum": list(self.momentum.values())}

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave."""
        self.adamw.load_state_dict(state["adamw"])
        for momentum, saved in zip(self.momentum.values(), state["momentum"], strict=True):
            momentum.copy_(saved)


def orthogonal(matrices: Tensor) -> Tensor:
    """About U V^T of every matrix U S V^T, (n, rows, columns) with rows <= columns; in bfloat16 on a GPU."""
    (a, b, c), (rows, columns), x = POLYNOMIAL, matrices.shape[1:], matrices
    if x.is_cuda:  # of sizes that its fast products take; zeros stay zeros
        x = pad(x.bfloat16(), (0, -columns % 8, 0, -rows % 8))
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x[:, :rows, :columns].to(matrices.dtype)


def _part(matrix: Tensor, part: int, parts: int, turn: bool) -> Tensor:
    """One of so many matrices below each other, its shorter side first."""
    return matrix.chunk(parts)[part].T if turn else matrix.chunk(parts)[part]
