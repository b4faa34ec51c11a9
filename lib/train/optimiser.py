"""The optimisers that a study may ask for: AdamW, or Muon for the matrices of the blocks and AdamW for all else."""

import torch
from torch import Tensor, nn

MUON_RATE = 0.4
"""Muon's rate as a part of AdamW's, both as root mean square of an update's entries: the best of the sweep."""


class Optimiser:
    """torch's optimisers over one model, at rates that follow one schedule.

    Muon (K. Jordan et al. 2024) orthogonalises the momentum of each matrix; queries, keys and values are three.

    Parameters
    ----------
    model : lib.model.transformer.Transformer
    settings : lib.study.Train
    peak : float
        Largest learning rate of AdamW.
    """

    def __init__(self, model: nn.Module, settings, peak: float) -> None:
        self.views = {}
        if settings.optimiser == "muon":
            blocks = [(name, weight) for name, weight in model.blocks.named_parameters() if weight.ndim == 2]
            self.views = {weight: [nn.Parameter(part) for part in _parts(name, weight.data)] for name, weight in blocks}
        others = [weight for weight in model.parameters() if weight not in self.views]
        decay = {"weight_decay": settings.weight_decay}
        adamw = torch.optim.AdamW(others, lr=peak, betas=(0.9, settings.beta2), fused=True, **decay)
        self.parts = [(adamw, peak)]
        if self.views:
            views = [view for parts in self.views.values() for view in parts]
            rate = MUON_RATE * peak
            self.parts.append((torch.optim.Muon(views, lr=rate, adjust_lr_fn="match_rms_adamw", **decay), rate))

    def step(self, share: float) -> None:
        """Update the weights at this share of the peak learning rates."""
        for weight, parts in self.views.items():
            for part, gradient in zip(parts, weight.grad.chunk(len(parts)), strict=True):
                part.grad = gradient
        for optimiser, peak in self.parts:
            for group in optimiser.param_groups:
                group["lr"] = peak * share
            optimiser.step()

    def state_dict(self) -> list[dict]:
        """The states of torch's optimisers."""
        return [optimiser.state_dict() for optimiser, _ in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        """Take over what `state_dict` gave."""
        for (optimiser, _), state in zip(self.parts, states, strict=True):
            optimiser.load_state_dict(state)


def _parts(name: str, weight: Tensor) -> tuple[Tensor, ...]:
    """Views of a block's matrix: three where it holds those of queries, keys and values."""
    return weight.chunk(3 if name.endswith("qkv.weight") else 1)
