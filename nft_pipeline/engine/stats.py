"""What guidance did, step by step and sample by sample, to be read after a call as `pipe.nft_stats`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class NFTStats:
    """A record of one guided call. A step is one call of the denoiser (with a second-order scheduler, half a step).

    All Tensors are fp32 on the CPU, shape (steps, samples), unless said otherwise. Steps with fewer samples end in NaN.

    Args:
        noise_level: t in [0, 1].
        alphas: the alpha that each adapter's head computed, shape (adapters, steps, samples); NaN where it was not
            needed (no head, strength 0, outside the interval). In mode "single" it is used in the step after.
        scales: s in v_old + s (v_lora - v_old), shape (adapters, steps, samples); 0 where there was no guidance.
        push: how far guidance moved the predicted picture, as a fraction of its size (`guidance.relative_push`). Under
            classifier-free guidance it is that of the conditional rows. At 1 the picture moves by its whole size: if
            pictures look burnt, look here first. NaN where one forward was enough and v_old was not computed.
        passes: forwards of the denoiser spent, int64, shape (steps,). A batched one counts once.
        adapters: names, in the order of `alphas` and `scales`.
        forecasts: the chance that each picture will be liked, as it stood at each step, shape (adapters, steps,
            samples): e^tilt alpha / (1 - alpha + e^tilt alpha) (M12) at the strength that the call ended with, NaN
            where no head was asked. Under the odds law its mean over the samples stays the same over the steps. None if
            it was not worked out.
        tilts: lambda of each adapter and picture, shape (adapters, samples), as the call ended with it. None if it was
            not recorded.
        draft_forwards: forwards spent before the call on comparing candidates (nft_candidates); 0 without them.
        seeds: the seed of each sample's noise, int64, shape (samples,), where candidates were compared; None otherwise.
            `generator=[torch.Generator().manual_seed(seed) for seed in seeds.tolist()]` draws them again.
    """

    noise_level: Tensor
    alphas: Tensor
    scales: Tensor
    push: Tensor
    passes: Tensor
    adapters: tuple[str, ...] = ("default",)
    forecasts: Tensor | None = None
    tilts: Tensor | None = None
    draft_forwards: int = 0
    seeds: Tensor | None = None

    @property
    def forecast(self) -> Tensor:
        """`forecasts` of the one adapter, shape (steps, samples). Raises ValueError if there were several or none."""
        if self.forecasts is None:
            raise ValueError("there is no forecast: nothing was guided by an adapter with an alpha head.")
        return self.forecasts[self._only()]

    @property
    def alpha(self) -> Tensor:
        """`alphas` of the one adapter, shape (steps, samples). Raises ValueError if there were several."""
        return self.alphas[self._only()]

    @property
    def scale(self) -> Tensor:
        """`scales` of the one adapter, shape (steps, samples). Raises ValueError if there were several."""
        return self.scales[self._only()]

    @property
    def steps(self) -> int:
        """Calls of the denoiser recorded."""
        return self.passes.shape[0]

    @property
    def forwards(self) -> int:
        """All forwards of the denoiser, those of drafts included."""
        return int(self.passes.sum()) + self.draft_forwards

    def summary(self) -> str:
        """A table with one line per step; numbers are means over the samples."""
        names = [""] if len(self.adapters) == 1 else [f" {name}" for name in self.adapters]
        columns = "".join(f"  {'alpha' + name:>5}  {'scale' + name:>6}" for name in names)
        drafts = f", {self.draft_forwards} of them in drafts" if self.draft_forwards else ""
        lines = [
            f"{self.steps} steps, {self.noise_level.shape[1]} samples, {self.forwards} denoiser forwards{drafts}",
            f"step  noise level{columns}    push   forwards",
        ]
        for i in range(self.steps):
            cells = ""
            for name, alpha, scale in zip(
                names, self.alphas[:, i].nanmean(1), self.scales[:, i].nanmean(1), strict=True
            ):
                wide = 5 + len(name)
                cells += f"  {_number(alpha, 5):>{wide}}  {scale.item():{wide + 1}.3f}"
            push = _number(self.push[i].nanmean(), 6)
            lines.append(
                f"{i:4d}  {self.noise_level[i].nanmean().item():11.3f}{cells}  {push}  {int(self.passes[i]):9d}"
            )
        if self.forecasts is not None and self.steps:
            for name, last in zip(names, self.forecasts[:, -1], strict=True):
                if bool(last.isfinite().any()):
                    lines.append(f"forecast{name}: these pictures are liked with {last.nanmean():.0%}")
        return "\n".join(lines)

    __str__ = summary

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it: the fields by name, Tensors as nested lists, and None for NaN."""
        return {each.name: _as_json(getattr(self, each.name)) for each in fields(self)}

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """Alpha, scale and push over the noise level: the mean of the samples, and thin lines for the first 16.

        Args:
            path: where to save the picture (its ending names the format); None saves nothing.

        Returns:
            The matplotlib Figure.

        Raises:
            ImportError: matplotlib is missing; it comes with the extra "train".
            ValueError: nothing was recorded.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("a plot needs matplotlib: pip install matplotlib, or diffusion-nft[train].") from error
        if not self.steps:
            raise ValueError("nothing was recorded, so there is nothing to plot. Run the pipeline first.")
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        for k, name in enumerate(self.adapters):
            _lines(left, self.noise_level, self.alphas[k], f"C{k}", name)
            _lines(middle, self.noise_level, self.scales[k], f"C{k}", name)
        _lines(right, self.noise_level, self.push, "black", "push")
        left.set(ylabel="alpha", ylim=(-0.02, 1.02))
        middle.set(ylabel="scale s")
        right.set(ylabel="push, relative to the picture")
        for axes in (left, middle, right):
            axes.set(xlabel="noise level t", xlim=(1.02, -0.02))  # sampling goes from left to right
            axes.grid(alpha=0.3)
        if len(self.adapters) > 1:
            middle.legend()
        if path is not None:
            figure.savefig(path)
        return figure

    def _only(self) -> int:
        if len(self.adapters) > 1:
            raise ValueError(
                f"there were {len(self.adapters)} adapters ({', '.join(self.adapters)}), expected one. Use alphas[k] "
                "and scales[k], k the place in `adapters`."
            )
        return 0


def _as_json(value: Any) -> Any:
    if isinstance(value, Tensor | tuple | list):
        return [_as_json(each) for each in (value.tolist() if isinstance(value, Tensor) else value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Tensor, width: int) -> str:
    return f"{value.item():{width}.3f}" if bool(value.isfinite()) else f"{'-':^{width}}"


def _lines(axes: Any, noise_level: Tensor, values: Tensor, colour: str, label: str) -> None:
    axes.plot(noise_level[:, :16], values[:, :16], color=colour, alpha=0.25, linewidth=0.7)
    axes.plot(noise_level.nanmean(1), values.nanmean(1), color=colour, linewidth=2, label=label)


class StatsRecorder:
    """Collects the rows of an `NFTStats` on the device, so that recording never makes a GPU wait.

    Args:
        adapters: their names.
    """

    def __init__(self, adapters: Sequence[str] = ("default",)) -> None:
        self._adapters = tuple(adapters)
        self._rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._passes: list[int] = []

    @property
    def steps(self) -> int:
        """Steps recorded so far."""
        return len(self._passes)

    def step(self, noise_level: Tensor, alphas: Tensor, scales: Tensor, push: Tensor, passes: int) -> None:
        """Add a step; the Tensors have shape (samples,), alphas and scales (adapters, samples)."""
        row = (noise_level, alphas, scales, push)
        self._rows.append(tuple(value.detach().float() for value in row))  # type: ignore[arg-type]
        self._passes.append(passes)

    def more_passes(self, passes: int) -> None:
        """Add forwards to the step recorded last."""
        self._passes[-1] += passes

    def stats(self) -> NFTStats:
        """The record so far."""
        passes, count = torch.tensor(self._passes, dtype=torch.int64), len(self._adapters)
        if not self._rows:
            none, of_all = torch.zeros(0, 0), torch.zeros(count, 0, 0)
            return NFTStats(none, of_all, of_all, none, passes, self._adapters)
        noise_level, alphas, scales, push = (_stacked(column) for column in zip(*self._rows, strict=True))
        return NFTStats(noise_level, alphas.transpose(0, 1), scales.transpose(0, 1), push, passes, self._adapters)


def _stacked(of_steps: Sequence[Tensor]) -> Tensor:
    """One Tensor on the CPU of what each step recorded; steps with fewer samples than others are filled with NaN."""
    samples = max(value.shape[-1] for value in of_steps)
    return torch.stack([F.pad(value, (0, samples - value.shape[-1]), value=math.nan) for value in of_steps]).cpu()
