"""The optimisers that a study may ask for: AdamW, or Muon for the matrices of the blocks and AdamW for all else."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

MOMENTUM = 0.95
MUON_RATE = 0.4  # as a part of AdamW's, where both are the root mean square of an update's entries over 0.2
POLYNOMIAL, ROUNDS = (3.4445, -4.7750, 2.0315), 5  # K. Jordan et al. 2024, kellerjordan.github.io/posts/muon


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
