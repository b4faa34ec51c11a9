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
        if settings.optimiser == "muon":
            for name, weight in model.blocks.named_parameters():
                if weight.ndim == 2:
                    self._add(weight, 3 if name.endswith("qkv.weight") else 1)
        of_muon = {weight for of_shape in self.matrices.values() for weight, *_ in of_shape}
        others = [weight for weight in model.parameters() if weight not in of_muon]
        self.momentum = {
            shape: torch.zeros(len(of_shape), *shape, device=others[0].device)
            for shape, of_shape in self.matrices.items()
        }
        betas = 0.9, settings.beta2
        self.adamw = torch.optim.AdamW(others, lr=peak, betas=betas, weight_decay=self.decay, fused=True)

    def _add(self, weight, parts):
        """Note a weight's `parts` matrices by their shape, the shorter side first."""
        for part in range(parts):
            rows, columns = len(weight) // parts, weight.shape[1]
            shape = min(rows, columns), max(rows, columns)
            self.matrices.setdefault(shape, []).append((weight, part, parts, rows > columns))

    @torch.no_grad()
    def step(self, share: float) -> None:
        """Update the weights at this share of the peak learning rates."""
        for group in self.adamw.param_groups:
            group["lr"] = self.peak * share
        self.adamw.step()
        for shape, matrices in self.matrices.items():
            gradients = [_turned(weight.grad.chunk(parts)[part], turn) for weight, part, parts, turn in matrices]
            gradient, momentum = torch.stack(gradients), self.momentum[shape]
            momentum.lerp_(gradient, 1 - MOMENTUM)
            steps = orthogonal(torch.lerp(gradient, momentum, MOMENTUM)) * (0.2 * shape[1] ** 0.5)
            rate, weights = MUON_RATE * self.peak * share, [of.chunk(parts)[part] for of, part, parts, _ in matrices]
            torch._foreach_mul_(weights, 1 - rate * self.decay)
            along = [_turned(step, turn) for step, (*_, turn) in zip(steps, matrices, strict=True)]
            torch._foreach_add_(weights, along, alpha=-rate)

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


def _turned(matrix: Tensor, turn: bool) -> Tensor:
    return matrix.T if turn else matrix
