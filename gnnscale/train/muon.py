"""Muon: momentum made orthogonal, for hidden matrices; AdamW for all else.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon). A step changes each singular direction of a matrix equally, so its
spectral norm is its rate, which is what has to stay fixed as the width grows (Bernstein and Newhouse, arXiv 2409.20325).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

A, B, C = 3.4445, -4.7750, 2.0315  # the quintic of the post: steepest at 0, singular values end in 0.7 to 1.2
NEWTON_SCHULZ_STEPS = 5
MOMENTUM = 0.95
# A step of the size that Adam's has at width 64: rms 0.2 of its elements (Liu et al. 2025, arXiv 2502.16982, section 2.2),
# so that learning_rate and weight_decay keep their meaning. Elements of an orthogonal matrix have rms 1/sqrt(width).
UPDATE_SCALE = 0.2 * math.sqrt(64)
BETAS = (0.9, 0.95)  # of AdamW, in all trainings


def orthogonal(matrix: Tensor) -> Tensor:
    """Return roughly the nearest matrix with all singular values 1, by Newton-Schulz."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def update_size(shape: tuple[int, ...]) -> float:
    """Return the singular values of the update of a matrix, per unit of learning rate."""
    rows, columns = shape
    return UPDATE_SCALE * math.sqrt(max(1.0, rows / columns))


def update_matrix(matrix: Tensor, grad: Tensor, momentum: Tensor, rate: float, weight_decay: float) -> None:
    """Take a step of one matrix, and of its momentum, in place."""
    momentum.lerp_(grad, 1 - MOMENTUM)
    ahead = grad.lerp(momentum, MOMENTUM)  # Nesterov
    matrix.mul_(1 - rate * weight_decay).add_(orthogonal(ahead), alpha=-rate * update_size(tuple(matrix.shape)))


class Muon(torch.optim.Optimizer):
    """The optimiser: groups with `muon` set hold matrices; AdamW with the betas of all trainings updates the others."""

    def __init__(self, groups: list[dict], weight_decay: float):
        super().__init__(groups, {"lr": 0.0, "weight_decay": weight_decay, "betas": BETAS, "eps": 1e-8, "muon": False})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override] # nobody here passes a closure
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if group["muon"]:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    update_matrix(p, p.grad, momentum, group["lr"], group["weight_decay"])
                else:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(self._adam(p, p.grad, group), alpha=-group["lr"])

    def _adam(self, p: Tensor, grad: Tensor, group: dict) -> Tensor:
        state, (b1, b2) = self.state[p], group["betas"]
        step = state.setdefault("step", torch.zeros((), dtype=torch.float32, device=p.device))
        mean = state.setdefault("exp_avg", torch.zeros_like(p)).lerp_(grad, 1 - b1)
        square = state.setdefault("exp_avg_sq", torch.zeros_like(p)).mul_(b2).addcmul_(grad, grad, value=1 - b2)
        step += 1
        return mean / (1 - b1**step) / ((square / (1 - b2**step)).sqrt_() + group["eps"])
