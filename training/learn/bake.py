"""Baking: the guided field of a positive adapter distilled into one LoRA whose plain weight is the dial.

    teacher, at tilt l      v_old + s (v_plus - v_old),  s = teacher_scale(config, alpha, l, t)     two forwards
    student, at weight w    the base model with its LoRA at weight w, where l = w * ceiling         one forward

`ceiling` is the tilt that weight 1 stands for. The loss is the squared distance of the two raw outputs. Both are known
at every noisy state, so no reward is asked, no picture is scored, and no label adds noise.

States come from where the tilted model goes: picture i of the base model is drawn in proportion to 1 + rho alpha_i with
rho = e^l - 1, which makes it a picture of the odds law at tilt l (docs/theory.md, M10), and noise is added to it.
alpha_i is what the head says of the picture at hardly any noise.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from nft_pipeline.adapter import Adapter, AdapterConfig
from nft_pipeline.adapters.keys import SECOND, component_lora, lora_key, lora_modules
from nft_pipeline.dial.scale import calibrated_scale
from nft_pipeline.engine.injection import tuner_layers
from nft_pipeline.families.forward_call import as_tokens, first_argument
from nft_pipeline.guidance import combine, law_scale

from ..bases.base import Conditions, TrainBase, rows_of
from ..bases.noising import NoiseLaw, interpolate
from ..data.pool import Pool
from ..devices.quantised import make_optimizer
from ..errors import TrainingError
from ..settings.config import TrainConfig
from .roles import OLD, THETA, LoraRoles

PICTURE_LEVEL = 0.05  # the noise level at which the head is asked about a picture
ALPHA_RANGE = (1e-4, 1 - 1e-3)  # the scale of a negative tilt has no bound at alpha = 1


def teacher_scale(config: AdapterConfig, alpha: Tensor, tilt: Tensor, noise_level: Tensor) -> Tensor:
    """The scale s that the dial applies at a tilt in two passes: by the adapter's calibration, or by the odds law.

    Args:
        config: of the adapter that is baked.
        alpha: what the head says of each state, (B,).
        tilt: the tilt of each state, (B,).
        noise_level: t of each state, (B,), by which a calibration mends alpha.

    Returns:
        s, (B,).
    """
    tilt_map = None if config.dial is None else config.dial.map_for("two_pass")
    if config.dial is not None and tilt_map is not None:
        return calibrated_scale(config.dial, tilt_map, alpha, tilt, noise_level)
    return law_scale(alpha.clamp(*ALPHA_RANGE), tilt, "odds")


class Baker:
    """The teacher and the student on one base model, and the optimiser of the student.

    The student is the role `theta` of `LoraRoles` and starts as the adapter's LoRA; the adapter's LoRA itself is `old`.
    `remove` takes both out again.

    Args:
        base: the base model that the adapter was trained on.
        adapter: a positive adapter with its head.
        pool: pictures of the base model; their r is not read.
        settings: steps, batch, micro_batch, lr, rank, seed and their like; a rank is at least the adapter's.
        ceiling: the tilt that weight 1 stands for, above 0; weight -1 stands for its negative.

    Raises:
        TrainingError: the adapter cannot be baked, or the rank is too low.
    """

    def __init__(self, base: TrainBase, adapter: Adapter, pool: Pool, settings: TrainConfig, ceiling: float) -> None:
        check_bakeable(adapter, settings.rank)
        assert adapter.head is not None
        self.base, self.config, self.pool = base, adapter.config, pool
        self.settings, self.ceiling = settings, ceiling
        base.placement.bring_denoiser()
        torch.manual_seed(settings.seed)
        self.generator = torch.Generator().manual_seed(settings.seed)
        if settings.gradient_checkpointing:
            base.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        self.roles = LoraRoles(base.denoiser, base.family, settings.rank, lora_modules(adapter.lora), with_old=True)
        self._start_from(adapter)
        self.average = [parameter.detach().clone() for parameter in self.roles.parameters]
        groups = [{"params": self.roles.parameters, "lr": settings.lr}]
        self.optimizer = make_optimizer(settings.optimizer, groups, settings.weight_decay)
        self.scaler = torch.amp.GradScaler(base.device.type, enabled=base.dtype == torch.float16)
        self.law, self.step_number = NoiseLaw(settings.noise_shift), 0
        self.head = adapter.head.to(base.device).eval()
        self._tokens = torch.empty(0)
        tap = base.denoiser.get_submodule(self.head.config.tap)
        self._hook = tap.register_forward_pre_hook(self._keep_tokens, with_kwargs=True)
        self.liked = self._liked()

    @torch.no_grad()
    def _start_from(self, adapter: Adapter) -> None:
        """Both LoRAs become the adapter's. What a higher rank adds has no effect at first, because its B is zero."""
        rank = adapter.config.rank
        layers: dict[str, Any] = dict(tuner_layers(self.base.denoiser))
        for name, layer in layers.items():
            a, b = (adapter.lora[lora_key(adapter.config.component, name, side)] for side in "AB")
            for role in (OLD, THETA):
                layer.lora_A[role].weight[:rank] = a.to(self.base.device)
                layer.lora_B[role].weight[:, :rank] = b.to(self.base.device)

    def _keep_tokens(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._tokens = first_argument(args, kwargs)

    @torch.no_grad()
    def _liked(self) -> Tensor:
        """What the head says of every picture of the pool, (N,)."""
        parts = []
        for rows in self.pool.batches(self.settings.micro_batch or self.settings.batch):
            x_0, t = self.pool.x_0(rows), torch.full((len(rows),), PICTURE_LEVEL)
            x_t, _ = interpolate(x_0, torch.randn(x_0.shape, generator=self.generator), t)
            parts.append(self._old_and_alpha(x_t, t, self.pool.conditions_of(rows))[1].cpu())
        return torch.cat(parts)

    def _old_and_alpha(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        self.roles.use("base")
        v_old = self.base.predict(x_t, t, conditions)
        text = None if self.head.config.text_dim is None else self.base.text(conditions).to(self.base.device)
        return v_old.float(), self.head.alpha(as_tokens(self._tokens), t.to(self.base.device), text)

    @torch.no_grad()
    def teacher(self, x_t: Tensor, t: Tensor, conditions: Conditions, tilt: Tensor) -> Tensor:
        """What guidance in two passes gives at these tilts, (B,): the raw output, float32, of the shape of x_t."""
        v_old, alpha = self._old_and_alpha(x_t, t, conditions)
        self.roles.use("old")
        v_plus = self.base.predict(x_t, t, conditions).float()
        scale = teacher_scale(self.config, alpha, tilt.to(self.base.device), t.to(self.base.device))
        return combine(v_old, v_plus, scale)

    def student(self, x_t: Tensor, t: Tensor, conditions: Conditions, weight: Tensor) -> Tensor:
        """What the LoRA gives at these weights, (B,): the raw output, float32, of the shape of x_t."""
        with self.roles.theta_by_row(weight.to(self.base.device)):
            return self.base.predict(x_t, t, conditions).float()

    def draw(self, n: int) -> tuple[Tensor, Tensor, Conditions, Tensor]:
        """`n` states: x_t, t (n,), conditions, and a weight for each (n,), evenly from -1 to 1."""
        g = self.generator
        weight = 2 * (torch.randperm(n, generator=g) + torch.rand(n, generator=g)) / n - 1
        mass = 1 + torch.expm1(self.ceiling * weight)[:, None] * self.liked
        rows = torch.multinomial(mass, 1, generator=g).squeeze(1)
        low, high = self.base.noise_range()
        t = low + (high - low) * self.law.draw(n, g)[0]
        x_0 = self.pool.x_0(rows)
        x_t, _ = interpolate(x_0, torch.randn(x_0.shape, generator=g), t)
        return x_t, t, self.pool.conditions_of(rows), weight

    def step(self) -> float:
        """One optimiser step; returns the mean squared distance of student and teacher before it.

        Raises:
            TrainingError: it is not finite.
        """
        batch, distance = self.settings.batch, 0.0
        x_t, t, conditions, weight = self.draw(batch)
        for part in torch.arange(batch).split(self.settings.micro_batch or batch):
            state = x_t[part], t[part], rows_of(conditions, part)
            target = self.teacher(*state, self.ceiling * weight[part])
            with self.roles.theta_by_row(weight[part].to(self.base.device)):
                output = self.base.predict(*state).float()
                loss = (output - target).square().flatten(1).mean(1).sum() / batch
                # Inside, because gradient checkpointing runs forwards again.
                self.scaler.scale(loss).backward()
            distance += loss.item()
        if not math.isfinite(distance):
            raise TrainingError(f"the loss is not finite at step {self.step_number + 1}: {distance}. Lower lr")
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * self._rate()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.roles.parameters, 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_number += 1
        decay = min(self.settings.ema, self.step_number / (self.step_number + 10))
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.roles.parameters], 1 - decay)
        return distance

    def _rate(self) -> float:
        """The learning rate's share: it rises over the first twentieth and falls to zero along a cosine."""
        steps, step = self.settings.steps, self.step_number
        warmup = max(1, steps // 20)
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the running averages in the place of the weights, for measuring and exporting."""
        for parameter, average in zip(self.roles.parameters, self.average, strict=True):
            parameter.copy_(average)

    def remove(self) -> None:
        """Take the LoRAs and the hook out of the denoiser."""
        self._hook.remove()
        self.roles.remove()


def check_bakeable(adapter: Adapter, rank: int | None = None) -> None:
    """Raise unless there is a field to bake: a positive adapter with one LoRA on one denoiser.

    Args:
        adapter: the adapter.
        rank: of the LoRA to make; None is the adapter's own.

    Raises:
        TrainingError: what it lacks, or the rank is lower than the adapter's.
    """
    config = adapter.config
    if config.kind != "positive" or adapter.head is None:
        raise TrainingError(
            f'"{config.name}" is a {config.kind} adapter{"" if config.kind == "policy" else " without an alpha head"}, '
            "and what is baked is the field of a positive adapter, which its alpha head makes. The LoRA of a policy "
            "has alpha inside already: use it as it is, or export it as merged"
        )
    if adapter.old is not None or component_lora(adapter.lora, config.component + SECOND):
        raise TrainingError(
            f'"{config.name}" has more than one LoRA (for v_old, or for a second denoiser), and one LoRA is baked from '
            "one. There is no baked form of this adapter"
        )
    if rank is not None and rank < config.rank:
        raise TrainingError(
            f'the rank is {rank}, and the LoRA of "{config.name}", from which the baked one starts, has rank '
            f"{config.rank}. Give {config.rank} or more"
        )
