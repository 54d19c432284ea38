"""One optimiser step of the `positive` objective: the LoRA learns v_plus, the head learns alpha.

A step is two forwards and one backward of the denoiser: a base forward without gradient for the head's tokens, and a
forward with the LoRA on that is differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from nft_pipeline.adapter import AdapterError
from nft_pipeline.alpha_head import AlphaHead, AlphaHeadConfig
from nft_pipeline.families import Family, family_of
from nft_pipeline.injection import LoraSwitch, tuner_layers
from nft_pipeline.keys import lora_from_peft

from .config import TrainConfig
from .noising import interpolate, noise_levels
from .objective import alpha_loss, positive_loss
from .pool import Pool
from .precision import autocast

ADAPTER = "nft"


@contextmanager
def tapped(denoiser: nn.Module, tap: str) -> Iterator[list[Tensor]]:
    """Collects the input of the module `tap` in every forward within, newest last."""
    tokens: list[Tensor] = []
    handle = denoiser.get_submodule(tap).register_forward_pre_hook(lambda module, args: tokens.append(args[0]))
    try:
        yield tokens
    finally:
        handle.remove()


class Learner:
    """LoRA, head, their optimiser and their running averages on one denoiser.

    The denoiser's own weights are frozen. `remove` takes the LoRA out again.
    """

    def __init__(self, denoiser: nn.Module, text_dim: int, config: TrainConfig, dtype: torch.dtype) -> None:
        self.denoiser, self.config, self.dtype = denoiser, config, dtype
        self.family: Family = family_of(denoiser)
        self.device = next(denoiser.parameters()).device
        torch.manual_seed(config.seed)  # the initial LoRA and head
        self.generator = torch.Generator().manual_seed(config.seed)
        denoiser.requires_grad_(False)
        targets = config.lora_targets or list(self.family.lora_targets)
        lora = LoraConfig(r=config.rank, lora_alpha=config.rank, init_lora_weights="gaussian", target_modules=targets)
        denoiser.add_adapter(lora, adapter_name=ADAPTER)  # type: ignore[operator]
        self.switch = LoraSwitch(denoiser, {ADAPTER: len(tuner_layers(denoiser))})
        self.head = AlphaHead(
            AlphaHeadConfig(
                feature_dim=_tap_width(denoiser),
                text_dim=text_dim,
                width=config.head_width,
                queries=config.head_queries,
                layers=config.head_layers,
            )
        ).to(self.device)
        self.lora_parameters = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
        self.parameters = [*self.lora_parameters, *self.head.parameters()]
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.lora_parameters, "lr": config.lr},
                {"params": list(self.head.parameters()), "lr": config.head_lr},
            ],
            weight_decay=config.weight_decay,
            betas=(0.9, 0.99),
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._learning_rate)
        self.step_number = 0

    def _learning_rate(self, step: int) -> float:
        """Up over the first twentieth, then down to zero along a cosine."""
        warmup = max(1, self.config.steps // 20)
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.config.steps - warmup)))

    def velocity(self, x_t: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """The denoiser's output, LoRA as switched, under autocast."""
        with autocast(self.device, self.dtype):
            return self.denoiser(
                hidden_states=x_t.to(self.device),
                timestep=1000 * t.to(self.device),
                encoder_hidden_states=text.to(self.device),
                pooled_projections=pooled.to(self.device),
                return_dict=False,
            )[0]

    @torch.no_grad()
    def base_tokens(self, x_t: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """What the head reads: tokens of the base pass."""
        self.switch.only()
        try:
            with tapped(self.denoiser, self.head.config.tap) as tokens:
                self.velocity(x_t, t, text, pooled)
        finally:
            self.switch.restore()
        return tokens[-1]

    @torch.no_grad()
    def alpha(self, x_t: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """alpha(x_t, c, t), shape (B,)."""
        tokens = self.base_tokens(x_t, t, text, pooled)
        return self.head.alpha(tokens, t.to(self.device), text.to(self.device))

    def _draw(self, pool: Pool, n: int, shift: float, liked: bool) -> tuple[Tensor, ...]:
        """Rows, x_t, y, t, text, pooled; rows in proportion to r if `liked`, else evenly."""
        g = self.generator
        if liked:
            rows = torch.multinomial(pool.r, n, replacement=True, generator=g)
        else:
            rows = torch.randint(len(pool), (n,), generator=g)
        t = noise_levels(n, shift, g)
        x_0 = pool.latents[rows].float()
        x_t, y = interpolate(x_0, torch.randn(x_0.shape, generator=g), t)
        return rows, x_t, y, t, pool.text[pool.prompt[rows]], pool.pooled[pool.prompt[rows]]

    def step(self, pool: Pool) -> dict[str, float]:
        """One optimiser step; returns the two losses."""
        config = self.config
        rows, x_t, _, t, text, pooled = self._draw(pool, config.head_batch, config.head_noise_shift, liked=False)
        tokens = self.base_tokens(x_t, t, text, pooled)
        loss_alpha = alpha_loss(
            self.head(tokens, t.to(self.device), text.to(self.device)), pool.r[rows].to(self.device)
        ).mean()
        loss_alpha.backward()

        _, x_t, y, t, text, pooled = self._draw(pool, config.batch, config.noise_shift, liked=True)
        loss_plus = positive_loss(self.velocity(x_t, t, text, pooled), y.to(self.device)).mean()
        loss_plus.backward()

        losses = {"v_plus": loss_plus.item(), "alpha": loss_alpha.item()}
        if not all(math.isfinite(loss) for loss in losses.values()):
            raise TrainingError(
                f"a loss is not finite at step {self.step_number + 1}: {losses}. Lower lr or head_lr, or set "
                "precision: fp32"
            )
        nn.utils.clip_grad_norm_(self.lora_parameters, 1.0)
        nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.step_number += 1
        # The average starts as a plain mean, so that a short run is not an average of its random start.
        decay = min(config.ema, self.step_number / (self.step_number + 10))
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1 - decay)
        return losses

    def use_average(self) -> None:
        """Put the running averages in the place of the weights, for measuring and exporting."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.average, strict=True):
                parameter.copy_(average)

    def lora(self) -> dict[str, Tensor]:
        """The LoRA under diffusers' keys, its scale baked into B."""
        state = get_peft_model_state_dict(self.denoiser, adapter_name=ADAPTER)
        return lora_from_peft(state, alpha=self.config.rank, rank=self.config.rank, component=self.family.component)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here, bit for bit."""
        return {
            "parameters": [parameter.detach() for parameter in self.parameters],
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step_number,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        with torch.no_grad():
            for parameter, saved in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(saved)
            for average, saved in zip(self.average, state["average"], strict=True):
                average.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        self.step_number = state["step"]


class TrainingError(RuntimeError):
    """Training cannot go on."""


def _tap_width(denoiser: nn.Module) -> int:
    """Width of the tokens at "norm_out"."""
    norm = getattr(denoiser.get_submodule(AlphaHeadConfig.tap), "norm", None)
    shape = getattr(norm, "normalized_shape", None)
    if not shape:
        raise AdapterError(
            f"cannot tell the width of the tokens at {AlphaHeadConfig.tap!r} of {type(denoiser).__name__}; the trainer "
            "supports StableDiffusion3Pipeline so far"
        )
    return int(shape[-1])
