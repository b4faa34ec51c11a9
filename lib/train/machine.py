"""What the training loop stands on: device, precision, memory, checkpoints, the panel as tensors; and its hours."""

import copy
import hashlib
import math
import os
import time
import warnings
from contextlib import AbstractContextManager, nullcontext, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lib import io
from lib.io import InputError
from lib.model import transformer
from lib.model.sizes import OUTPUTS, Size

if TYPE_CHECKING:
    import pandas

CACHE = 8 * 2**20  # bytes of one layer's widest activations at once on a CPU, whose cache should hold them
CHECKPOINTS = 2  # checkpoints that stay: the last, and the one before it should the last be damaged
LONGEST = {"cpu": 5e10, "cuda": 1e14}  # FLOPs of a trial, two seconds at most; a size that takes more is not tried
DEEP = 6  # blocks from which compiling them pays on a GPU: it takes longer than a shallow model gains


def device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("highest")  # also in containers whose environment asks for less
    torch.backends.cuda.enable_cudnn_sdp(False)  # lengths such as 77 read past their end (PyTorch issue 169849)
    return torch.device("cuda")


def seed(number: int, kind: str) -> None:
    """Seed what training draws from. torch.manual_seed writes down the whole stack each time, for milliseconds."""
    torch.default_generator.manual_seed(number)
    if kind == "cuda":
        torch.cuda.manual_seed(number)


def cells_at_once(size: Size, genes: int, batch: int, kind: str) -> int:
    """Cells of a batch that go through the model together: all on a GPU, on a CPU as many as its cache holds."""
    if kind == "cuda":
        return batch
    widest = 4 * genes * size.d * max(size.ff_mult, 3)
    return min(batch, 2 ** max(0, (CACHE // widest).bit_length() - 1))


def precision(kind: str) -> AbstractContextManager:
    """The context of training's forward pass: bf16 on a GPU, over weights that stay float32; float32 on a CPU."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if kind == "cuda" else nullcontext()


def compiled(model: torch.nn.Module, kind: str, least: int = DEEP) -> torch.nn.Module:
    """The model over the same weights, its blocks compiled by torch on a GPU; all but the last share one compilation.

    Where compiling fails torch says so, and runs them as they are.
    """
    if kind != "cuda" or len(model.blocks) < least:
        return model
    import torch._dynamo
    import torch._functorch.config

    torch._dynamo.reset()  # one code is compiled a few times at most: not for models of earlier runs
    torch._dynamo.config.suppress_errors = True
    torch._functorch.config.force_non_lazy_backward_lowering = True  # else the backward pass compiles, and fails, later
    fast = copy.copy(model)
    fast._modules = dict(model._modules)
    with suppress(RuntimeError):  # a Python that this torch cannot compile
        fast.blocks = torch.nn.ModuleList(torch.compile(block, dynamic=False) for block in model.blocks)
    return fast


def memory(kind: str, groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this process can have: the GPU's, or the machine's within its control group's limit."""
    if kind == "cuda":
        return torch.cuda.mem_get_info()[1]
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else []
    for limit in (groups / "memory.max", groups / "memory" / "memory.limit_in_bytes"):  # v2, v1
        if limit.is_file() and limit.read_text().strip().isdigit():
            limits.append(int(limit.read_text()))
    return min(limits, default=2**63)


def check_memory(size: Size, genes: int, kind: str) -> None:
    """Refuse a size that cannot be trained here, before anything is allocated."""
    needed, there = size.memory(genes) / 2**30, memory(kind) / 2**30
    if needed > there:
        takes = f"takes at least {needed:.1f} GiB of memory and this machine has {there:.1f}"
        advice = f"leave {size.name} out of the study, or train it on a larger machine"
        raise InputError(f"training {size.name} on {genes:,} genes {takes}; {advice}.")


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory gave out; torch's allocator on a CPU raises a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def save_checkpoint(folder: Path, number: int, state: dict) -> None:
    """Write checkpoint-<number>-<checksum>.pt of tensors and plain values, and remove all but the last CHECKPOINTS."""
    buffer = BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()[:16]
    with io.atomic(folder / f"checkpoint-{number:012d}-{digest}.pt") as partial:
        partial.write_bytes(buffer.getbuffer())
    for old in checkpoints(folder)[:-CHECKPOINTS]:
        io.remove(old)


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> dict | None:
    """The newest whole checkpoint in a folder, or None. A damaged one is reported, removed, and the one before used."""
    for path in reversed(checkpoints(folder)):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:16] == path.stem.rpartition("-")[2]:
            return torch.load(BytesIO(content), map_location=device, weights_only=True)
        warnings.warn(f"{path.parent.name}/{path.name} is damaged; the checkpoint before it is used.", stacklevel=2)
        io.remove(path)
    return None


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in a folder, the oldest first."""
    return sorted(folder.glob("checkpoint-*.pt"))


def forget(folder: Path) -> None:
    """Remove all checkpoints in a folder."""
    for path in checkpoints(folder):
        io.remove(path)


def errors_of_mean(losses: np.ndarray, donor: np.ndarray) -> tuple[float | None, float | None]:
    """Standard errors of the mean loss of cells, (cells,): over cells, and over their donors; None where there is one.

    The second, for new donors, is the cluster-robust one (Liang & Zeger 1986, Biometrika 73:13) with its correction for
    few donors, and no less than the first.
    """
    cells = len(losses)
    if cells < 2:
        return None, None
    over_cells = float(np.std(losses, ddof=1) / math.sqrt(cells))
    sums = np.bincount(np.unique(donor, return_inverse=True)[1], losses - losses.mean())
    if len(sums) < 2:
        return over_cells, None
    over_donors = math.sqrt(len(sums) / (len(sums) - 1) * float(sums @ sums)) / cells
    return over_cells, max(over_cells, over_donors)


class Cells:
    """A panel as tensors, and the order in which its training cells are seen."""

    def __init__(self, data, settings, seed: int, device: torch.device):
        self.settings, self.seed, self.device = settings, seed, device
        self.x = torch.as_tensor(np.asarray(data.x))
        self.counts = None if settings.objective == "mse" else torch.as_tensor(np.asarray(data.counts))
        if 4 * self.x.nbytes < memory(device.type):  # else batches come from where the panel lies
            self.x, self.counts = self.x.to(device), None if self.counts is None else self.counts.to(device)
        self.library = torch.as_tensor(np.asarray(data.library), dtype=torch.float32).to(self.x.device)
        self.masks = {name: torch.as_tensor(masks, dtype=torch.long) for name, masks in data.masks.items()}
        self.held = {name: torch.as_tensor(rows, device=self.x.device) for name, rows in data.held.items()}
        self.train = np.arange(len(data.x)) if settings.train_on == "all" else data.train
        self.order = (None, None)

    def batch(self, update: int) -> Tensor:
        """Rows of a batch. Each pass over the training cells is a new permutation; batches run across passes."""
        start, end, parts = update * self.settings.batch, (update + 1) * self.settings.batch, []
        while start < end:
            epoch, first = divmod(start, len(self.train))
            if self.order[0] != epoch:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.train)
                self.order = (epoch, torch.as_tensor(order, device=self.x.device))
            parts.append(self.order[1][first : first + end - start])
            start += len(parts[-1])
        return torch.cat(parts)

    def expression(self, rows: Tensor) -> Tensor:
        """Log-normalised expression (cells, genes) on the device."""
        return self.x[rows].to(self.device)


def hours(study) -> "pandas.DataFrame":
    """Hours that each size takes on this machine, all of its seeds one after another.

    The table has regime, size, seeds, cells_seen (of a run with its branches), parameters and hours; and measured:
    whether the size was tried here, or its hours follow from its operations at the rate of a smaller one.
    """
    import pandas as pd

    rows = []
    for regime in study.regimes:
        genes, settings, rate = study.regime(regime).genes, study.training(regime), None
        for size in sorted(study.sizes, key=lambda size: size.parameters(genes)):
            operations, work = size.training_flops_per_cell(genes), size.training_flops(genes, settings)
            cells = cells_at_once(size, genes, settings.batch, device().type)
            measured = rate is None or operations * cells < LONGEST[device().type]
            if measured:
                rate = _seconds(size, genes, study.masking.genes(genes), settings, cells) / (operations * cells)
            seeds = len(study.seeds_for(size.name))
            rows.append({
                "regime": regime, "size": size.name, "seeds": seeds, "cells_seen": round(work / operations),
                "parameters": size.parameters(genes, OUTPUTS[settings.objective]),
                "hours": seeds * work * rate / 3600, "measured": measured,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _seconds(size: Size, genes: int, masked: int, settings, cells: int) -> float:
    """Seconds of the forward and backward pass of so many cells of random values: the least of three."""
    torch.set_num_threads(size.threads(genes))
    on, outputs = device(), OUTPUTS[settings.objective]
    model = transformer.Transformer(size, genes, settings.dropout, outputs=outputs).to(on).train()
    x = torch.rand(cells, genes, device=on)
    positions = torch.rand(cells, genes, device=on).topk(masked, dim=1).indices
    hidden, least = transformer.hide(positions, genes), float("inf")
    positions = positions if settings.masks == "fixed" else None  # all genes are predicted where masks vary in number
    for _ in range(3):
        started = time.perf_counter()
        with precision(on.type):
            loss = model(x, hidden, positions).float().square().mean()
        loss.backward()
        loss.item()  # waits for a GPU
        least = min(least, time.perf_counter() - started)
    return least
