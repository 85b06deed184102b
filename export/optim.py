"""Muon for wide convolutions: momentum orthogonalised by Newton-Schulz (Jordan et al., 2024)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from export.precision import fast_bfloat16


def orthogonalise(matrices: Tensor, steps: int) -> Tensor:
    """About the nearest semi-orthogonal ones to [N, R, C], by quintic Newton-Schulz steps.

    In bfloat16 where that is fast.
    """
    x = matrices.bfloat16() if fast_bfloat16() else matrices
    transpose = x.shape[1] > x.shape[2]
    if transpose:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if transpose else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum SGD whose update of each weight, seen as [cout, cin*k*k], is orthogonalised.

    `decay` is decoupled: it bounds the spectral norm of a weight by 1 / decay.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        steps: int = 4,
        decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "steps": steps, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            updates: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                m = state["momentum"]
                m.mul_(group["momentum"]).add_(p.grad)
                update = p.grad.add(m, alpha=group["momentum"]).flatten(1)
                updates.setdefault(update.shape, []).append((p, update))
            for (rows, columns), pairs in updates.items():  # in one product each: many are small
                found = orthogonalise(torch.stack([u for _, u in pairs]), group["steps"])
                found = found * (group["lr"] * max(1.0, rows / columns) ** 0.5)
                for (p, _), u in zip(pairs, found, strict=True):
                    p.mul_(1 - group["lr"] * group["decay"]).sub_(u.view_as(p))
