"""What guidance did, step by step and sample by sample, to be read after a call as `pipe.nft_stats`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NFTStats:
    """A record of one guided call. A step is one call of the denoiser (with a second-order scheduler, half a step).

    All Tensors are fp32 on the CPU, shape (steps, samples), unless said otherwise.

    Args:
        noise_level: t in [0, 1].
        alpha: what the head read; NaN where it was not asked (no head, strength 0, outside the interval).
        scale: s in v_old + s (v_lora - v_old); 0 where there was no guidance.
        push: ||s (v_lora - v_old)|| / ||v_old||, of the conditional rows under classifier-free guidance. 1 means that
            guidance moves the prediction by as much as its own length: if pictures look burnt, look here first.
        passes: forwards of the denoiser spent, int64, shape (steps,).
    """

    noise_level: Tensor
    alpha: Tensor
    scale: Tensor
    push: Tensor
    passes: Tensor

    @property
    def steps(self) -> int:
        """Calls of the denoiser recorded."""
        return self.passes.shape[0]

    @property
    def forwards(self) -> int:
        """All forwards of the denoiser."""
        return int(self.passes.sum())

    def summary(self) -> str:
        """A table, one line a step, samples averaged."""
        lines = [
            f"{self.steps} steps, {self.noise_level.shape[1]} samples, {self.forwards} denoiser forwards",
            "step  noise level  alpha   scale    push   forwards",
        ]
        for i in range(self.steps):
            alpha = self.alpha[i].mean().item()
            lines.append(
                f"{i:4d}  {self.noise_level[i].mean().item():11.3f}  {'  -  ' if alpha != alpha else f'{alpha:5.3f}'}  "
                f"{self.scale[i].mean().item():6.3f}  {self.push[i].mean().item():6.3f}  {int(self.passes[i]):9d}"
            )
        return "\n".join(lines)

    __str__ = summary


class StatsRecorder:
    """Collects the rows of an `NFTStats` on the device, so that recording never makes a GPU wait."""

    def __init__(self) -> None:
        self._rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._passes: list[int] = []

    @property
    def steps(self) -> int:
        """Steps recorded so far."""
        return len(self._passes)

    def step(self, noise_level: Tensor, alpha: Tensor, scale: Tensor, push: Tensor, passes: int) -> None:
        """Add a step; the Tensors have shape (samples,)."""
        row = (noise_level, alpha, scale, push)
        self._rows.append(tuple(value.detach().float() for value in row))  # type: ignore[arg-type]
        self._passes.append(passes)

    def more_passes(self, passes: int) -> None:
        """Add forwards to the step recorded last."""
        self._passes[-1] += passes

    def stats(self) -> NFTStats:
        """The record so far."""
        columns = [torch.stack(list(column)).cpu() for column in zip(*self._rows, strict=True)]
        noise_level, alpha, scale, push = columns or [torch.zeros(0, 0)] * 4
        return NFTStats(noise_level, alpha, scale, push, torch.tensor(self._passes, dtype=torch.int64))
