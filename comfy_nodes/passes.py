"""One pass for lists of prompts, with the adapters of all guides: whose predictions are asked for, and what is added.

    x0 = x0_old + sum over adapters of s (x0_lora - x0_old)

An adapter whose scale is 0 asks for nothing, and one that gives the LoRA's own prediction asks for that alone. torch
only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nft_pipeline import guidance

from .run import Conds, Reading, Run

# The predictions of the lists of prompts with these numbers, under their own names or, with the LoRA on, under others.
Predict = Callable[[Sequence[int], "dict[Any, Any] | None"], list[Tensor]]


class Part:
    """What one adapter does in one pass: which lists of prompts it guides, and by which scale."""

    def __init__(
        self, run: Run, conds: Sequence[Conds | None], x: Tensor, t: Tensor, region: Tensor | None = None
    ) -> None:
        self.run, self.conds, self.x, self.t, self.region = run, conds, x, t, region
        self.lists = run.guided(conds)
        self.reading = run.reading_at(x)
        self.alpha: Tensor | None = None
        self.scale = run.scale_before(t) if self.reading is None else self.reading.scale
        self.relative: Tensor | None = None
        run.met = True

    @property
    def reads(self) -> bool:
        """Whether it wants the tokens of this pass."""
        return self.reading is None and self.run.needs_alpha(self.t)

    @property
    def exact(self) -> bool:
        """Whether it takes a pass of its own."""
        return not self.run.one_pass and bool(self.lists) and (self.scale is None or bool(self.scale.any()))

    @property
    def is_lora(self) -> bool:
        """Whether what it gives is the LoRA's own prediction: s is 1, and no push is to be measured."""
        whole = self.region is None and self.run.settings.cap is None
        return whole and self.scale is not None and bool((self.scale == 1).all())

    def read(self) -> None:
        """alpha and s from the pass that has just run."""
        if self.reading is None:
            self.alpha, self.scale = self.run.read(self.conds, self.t, self.scale)
        self.run.tokens = None

    def pushes(self, old: Sequence[Tensor], plus: Sequence[Tensor]) -> dict[int, Tensor]:
        """What it adds to the prediction of each of its lists."""
        run, scale = self.run, self.scale
        assert scale is not None
        run.compared = True
        run.moved = run.moved or not all(torch.equal(old[i], plus[i]) for i in self.lists)
        pushes = {i: guidance.total_push(old[i], [plus[i]], [scale]) for i in self.lists}
        if self.region is not None:
            pushes = {i: push * self.region for i, push in pushes.items()}
        measured = next((i for i in self.lists if run.is_positive(self.conds[i])), self.lists[0])
        # Denoised predictions: the push in x_0 itself.
        self.relative = guidance.relative_push(pushes[measured], old[measured], self.x, self.t, "sample")
        if run.settings.cap is None or self.reading is not None:
            return pushes
        factor = guidance.cap_factor(self.relative, run.settings.cap)
        self.scale, self.relative = scale * factor, self.relative * factor
        return {i: push * factor.reshape(-1, *[1] * (push.ndim - 1)) for i, push in pushes.items()}

    def note(self, extra: bool) -> None:
        """Add the pass to the evaluation; `extra` if it took one more."""
        evaluation, scale = self.run.evaluation, self.scale
        assert evaluation is not None and scale is not None
        evaluation.predictions += sum(cond is not None for cond in self.conds)
        evaluation.extra += len(self.lists) if extra else 0
        if self.reading is None and any(map(self.run.is_positive, self.conds)):
            unknown = torch.zeros_like(scale) if not bool(scale.any()) else torch.full_like(scale, math.nan)
            push = unknown if self.relative is None else self.relative
            evaluation.readings.append(Reading(self.x, self.t, self.alpha, scale, push))


def predictions(parts: Sequence[Part], predict: Predict, conds: Sequence[Conds | None]) -> list[Tensor]:
    """The guided predictions for lists of prompts, with the parts of all adapters."""
    lists = [i for i, cond in enumerate(conds) if cond is not None]
    exact = [part for part in parts if part.exact]
    with ExitStack() as stack:
        for part in parts:
            if part.run.one_pass:
                stack.enter_context(part.run.lora_at(part.scale))
        if len(exact) == 1 and exact[0].is_lora and not any(part.reads for part in parts):
            # The answer is the LoRA's own, so nobody has to know v_old.
            (whole,) = exact
            rest = [i for i in lists if i not in whole.lists]
            results = predict(rest, None) if rest else []
            with whole.run.lora_at(1.0):
                plus = predict(whole.lists, whole.run.names)
            for part in parts:
                part.note(extra=False)
            return [plus[i] if i in whole.lists or not rest else results[i] for i in range(len(conds))]
        for part in parts:
            part.run.tokens = {} if part.reads else None
        old = predict(lists, None)
        for part in parts:
            part.read()
        exact = [part for part in parts if part.exact]
        totals: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for part in exact:
            with part.run.lora_at(1.0):
                plus = predict(part.lists, part.run.names)
            for i, push in part.pushes(old, plus).items():
                assert part.scale is not None
                totals.setdefault(i, []).append((push, part.scale))
        for part in parts:
            part.note(extra=part in exact)
    return [_pushed(prediction, totals.get(i, [])) for i, prediction in enumerate(old)]


def _pushed(old: Tensor, pushes: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    if not pushes:
        return old
    total = torch.stack([push for push, _ in pushes]).sum(0)
    return guidance.add_push(old, total, [scale for _, scale in pushes])


def region_over(region: Tensor, x: Tensor) -> Tensor:
    """A region as what multiplies latents: each latent pixel takes the mean of the region over it.

    Args:
        region: (pictures or 1, height, width) in [0, 1], of any size; of another number of pictures they go round.
        x: latents (samples, ..., height, width).
    """
    sides = tuple(int(side) for side in x.shape[-2:])
    small = F.interpolate(region[:, None].to(x.device, torch.float32), sides, mode="bilinear", antialias=True)[:, 0]
    samples = x.shape[0]
    each = small.repeat(math.ceil(samples / len(small)), 1, 1)[:samples]
    return each.clamp(0, 1).reshape(samples, *[1] * (x.ndim - 3), *sides)
