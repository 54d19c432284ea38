"""Muon in a chosen precision: momentum whose matrix is made orthogonal before it is applied (Jordan et al., 2024).

torch.optim.Muon iterates in bfloat16, which a CPU without bf16 units only emulates: there it took seven times as long
as forward and backward together. On a CPU that has them, float32 takes as long as forward and backward together. The
rule is the same, with the step size of AdamW (2502.16982): 0.2 sqrt(max(m, n)).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)  # steep at 0, so that five rounds bring every singular value near 1


def orthogonalise(matrices: Tensor, rounds: int = 5) -> Tensor:
    """The nearest orthogonal matrices, roughly: singular values between about 0.7 and 1.2. Shape (K, m, n) kept."""
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for 2-D parameters. Like shapes are done in one go."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step of the optimiser; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                alike[parameter.shape].append((parameter, update))
            for shape, pairs in alike.items():
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                updates = orthogonalise(torch.stack([update for _, update in pairs]).to(self.dtype)).float()
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=size)
