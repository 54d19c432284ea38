"""Cross-validation of the alpha head, for folders with too few pictures to keep some apart.

Beside the head that is exported, a few more learn from the same passes, so that no further forward of the denoiser is
needed. Each leaves out the pictures of its own fold. A picture is then judged by the head that has never seen it, and
all pictures say how good such a head is, where every tenth of forty pictures would be four.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nft_pipeline.adapters.alpha_head import AlphaHead

from ..settings.config import TrainConfig
from .objective import alpha_loss

COUNT = 5


def folds_of(r: Tensor) -> Tensor:
    """The fold of each picture, int64 (N,): by chance but always the same, liked ones spread evenly."""
    order = torch.randperm(len(r), generator=torch.Generator().manual_seed(0))
    order = order[torch.argsort(r[order], stable=True)]
    fold = torch.empty(len(r), dtype=torch.int64)
    fold[order] = torch.arange(len(r)) % COUNT
    return fold


class Folds:
    """The further heads.

    Args:
        fold: of each picture of the pool, see `folds_of`.
        make: makes a head with new weights.
        config: the run's settings.
    """

    def __init__(self, fold: Tensor, make: Callable[[], AlphaHead], config: TrainConfig) -> None:
        self.fold, self._lr = fold, config.head_lr
        with torch.random.fork_rng():
            torch.manual_seed(config.seed + 1)
            self.heads = [make() for _ in range(COUNT)]
        self.parameters: list[nn.Parameter] = [each for head in self.heads for each in head.parameters()]
        self._optimizer = torch.optim.AdamW(self.parameters, self._lr, weight_decay=config.weight_decay)

    def losses(self, rows: Tensor, r: Tensor, logit: Callable[[AlphaHead], Tensor]) -> tuple[Tensor, float]:
        """What the heads learn from states of the pictures `rows`, (B,), and how well they do on those they leave out.

        Args:
            rows: the pictures' places in the pool, (B,).
            r: theirs, (B,).
            logit: gives a head's logits, (B,).

        Returns:
            The sum of the losses to be lowered, and the sum of the losses of each picture's own head.
        """
        fold = self.fold[rows].to(r.device)
        learned, left_out = torch.zeros((), device=r.device), 0.0
        for number, head in enumerate(self.heads):
            loss = alpha_loss(logit(head), r)
            learned = learned + loss[fold != number].sum()
            left_out += float(loss[fold == number].detach().sum())
        return learned, left_out

    def step(self, scaler: torch.amp.GradScaler, factor: float) -> None:
        """An optimiser step with the gradients there are, at `factor` of the heads' learning rate."""
        scaler.unscale_(self._optimizer)
        for head in self.heads:
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        self._optimizer.param_groups[0]["lr"] = factor * self._lr
        scaler.step(self._optimizer)
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to go on from here, bit for bit."""
        return {"heads": [head.state_dict() for head in self.heads], "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for head, saved in zip(self.heads, state["heads"], strict=True):
            head.load_state_dict(saved)
        self._optimizer.load_state_dict(state["optimizer"])
