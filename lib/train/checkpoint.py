"""Checkpoints: written whole or not at all, named by their checksum, loaded without pickle. Needs torch alone."""

import hashlib
import warnings
from io import BytesIO

import torch

from lib import io

KEPT = 2
"""The last and the one before it, should the last be damaged."""


def save(folder, number, state):
    """Write checkpoint-<number>-<checksum>.pt of tensors and plain values, and remove all but the last KEPT."""
    buffer = BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()[:16]
    with io.atomic(folder / f"checkpoint-{number:012d}-{digest}.pt") as partial:
        partial.write_bytes(buffer.getbuffer())
    for old in _found(folder)[:-KEPT]:
        io.remove(old)


def load(folder, device="cpu"):
    """The newest whole checkpoint in a folder, or None. A damaged one is reported, removed, and the one before used."""
    for path in reversed(_found(folder)):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:16] == path.stem.rpartition("-")[2]:
            return torch.load(BytesIO(content), map_location=device, weights_only=True)
        warnings.warn(f"{path.parent.name}/{path.name} is damaged; the checkpoint before it is used.", stacklevel=2)
        io.remove(path)
    return None


def clear(folder):
    for path in _found(folder):
        io.remove(path)


def _found(folder):
    return sorted(folder.glob("checkpoint-*.pt"))
