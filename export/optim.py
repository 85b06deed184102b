"""Muon for wide convolutions: momentum orthogonalised by Newton-Schulz (Jordan et al., 2024)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from export.precision import FAST_BFLOAT16


def orthogonalise(matrix: Tensor, steps: int) -> Tensor:
    """About the nearest semi-orthogonal matrix, by quintic Newton-Schulz steps.

    In bfloat16 where that is fast.
    """
    x = matrix.bfloat16() if FAST_BFLOAT16 else matrix
    transpose = x.shape[0] > x.shape[1]
    if transpose:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.T if transpose else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum SGD whose update of each weight, seen as [cout, cin*k*k], is orthogonalised.

    `decay` is decoupled: it bounds the spectral norm of a weight by 1 / decay.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        steps: int = 4,
        decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "steps": steps, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                m = state["momentum"]
                m.mul_(group["momentum"]).add_(p.grad)
                update = p.grad.add(m, alpha=group["momentum"]).flatten(1)
                u = orthogonalise(update, group["steps"])
                u.mul_(max(1.0, u.shape[0] / u.shape[1]) ** 0.5)
                p.mul_(1 - group["lr"] * group["decay"]).add_(u.view_as(p), alpha=-group["lr"])
