"""What this machine offers to training: a device, threads, precision, memory. Needs torch alone."""

import ctypes
import os
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch

from lib.io import InputError

CACHE = 8 * 2**20
"""Bytes of one layer's widest activations that are worked on at once by a CPU: they should stay in its cache."""
KEPT = {-3: 2**30, -1: 2**31 - 1}
"""mallopt: M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, so that freed tensors are used again instead of given back."""


def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare(size, genes):
    """Set up the process for training: threads, and glibc's memory kept from one update to the next."""
    torch.set_num_threads(size.threads(genes))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    for option, value in KEPT.items() if mallopt else ():
        mallopt(option, value)


def seed(number, kind):
    """Seed the generators that training draws from. torch.manual_seed writes down the whole stack, for milliseconds."""
    torch.default_generator.manual_seed(number)
    if kind == "cuda":
        torch.cuda.manual_seed(number)


def cells_at_once(size, genes, batch, kind):
    """Cells of a batch that go through the model together: all on a GPU, on a CPU as many as its cache holds."""
    if kind == "cuda":
        return batch
    widest = 4 * genes * size.d * max(size.ff_mult, 3)
    return min(batch, 2 ** max(0, (CACHE // widest).bit_length() - 1))


def precision(kind):
    """The context of training's forward pass: bf16 on a GPU, over weights that stay float32; float32 on a CPU."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if kind == "cuda" else nullcontext()


def compiled(model, kind):
    """The model, compiled by torch on a GPU; itself on a CPU (which has its kernels), and when compiling fails."""
    if kind != "cuda":
        return model
    fast, failed = torch.compile(model), []

    def forward(*inputs):
        if not failed:
            try:
                return fast(*inputs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                failed.append(error)
                said = " ".join(str(error).split())[:200]
                warnings.warn(f"torch.compile failed ({said}); training goes on without it, slower.", stacklevel=2)
        return model(*inputs)

    return forward


def memory(kind):
    """Bytes of memory that this process can have: the GPU's, or the machine's within its control group's limit."""
    if kind == "cuda":
        return torch.cuda.mem_get_info()[1]
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else []
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and limit.read_text().strip().isdigit():
        limits.append(int(limit.read_text()))
    return min(limits, default=2**63)


def check_room(size, genes, kind):
    """Refuse a size that cannot be trained here, before anything is allocated."""
    needed, there = size.memory(genes), memory(kind)
    if needed > there:
        raise InputError(
            f"training {size.name} on {genes:,} genes takes at least {needed / 2**30:.1f} GiB of memory and this "
            f"machine has {there / 2**30:.1f}; leave {size.name} out of the study, or train it on a larger machine."
        )
