"""One optimiser step: it draws batches from a pool, runs each role's forward and the objective, and holds all state.

    positive            one forward without gradient for the head's tokens, and one with the LoRA on and with gradient
    policy, paper       one forward of `old`, whose tokens feed the head, one of the base if anchored, one of theta

In an offline run `old` is the base, so an anchor costs nothing. No text encoder, VAE or reward is called here.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nft_pipeline.adapters.alpha_head import AlphaHead

from .. import authors
from ..bases.base import Conditions, TrainBase
from ..bases.noising import NoiseLaw
from ..bases.second_order import sampler_levels
from ..data.pool import Pool
from ..devices import processes
from ..devices.memory import is_out_of_memory
from ..devices.quantised import make_optimizer
from ..errors import TrainingError
from ..settings.config import TrainConfig
from .batch import Batch, draw, draw_in_turn, fitted_to_means
from .folds import Folds
from .objective import Objective, alpha_loss
from .old_model import Tilt, average_decay, decay_after
from .posterior import borders, plus_mass
from .reader import Reader
from .roles import LoraRoles

BETAS = (0.9, 0.99)  # of AdamW


class Learner(Reader):
    """LoRA, head, their optimiser and their running averages on one base model.

    The base's own weights are frozen. `remove` takes the LoRAs out again.

    Args:
        base: the base model.
        conditions: those of at least one prompt; the head is built for text of their width.
        config: the run's settings.
        fold: of each picture of a pool on which a positive run's head is to be cross-validated, (N,); None for none.

    Attributes:
        facts: of the last step: its learning rate, the norm of the LoRA's gradient before it was clipped, the norm of
            the LoRA as a change of weights, and for a policy how far its outputs were from those of `old` or the base.
    """

    def __init__(
        self, base: TrainBase, conditions: Conditions, config: TrainConfig, fold: Tensor | None = None
    ) -> None:
        self.base, self.config, self.objective = base, config, Objective.of(config)
        base.placement.bring_denoiser()  # LoRAs begin where its weights are
        torch.manual_seed(config.seed)  # the initial LoRA and head
        self.generator = torch.Generator().manual_seed(config.seed)
        if config.gradient_checkpointing:
            base.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        scale = authors.LORA_SCALE if config.authors_trainer else 1
        self.roles = LoraRoles(base.denoiser, base.family, config.rank, config.lora_targets, config.online, scale)
        head_config = self.head_config(conditions) if self.objective.has_head else None
        self.head = None if head_config is None else AlphaHead(head_config).to(self.device)
        head_parameters = [] if self.head is None else list(self.head.parameters())
        self.parameters: list[nn.Parameter] = [*self.roles.parameters, *head_parameters]
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        groups = [{"params": self.roles.parameters, "lr": config.lr}]
        groups += [{"params": head_parameters, "lr": config.head_lr}] if head_parameters else []
        betas = authors.BETAS if config.authors_trainer else BETAS
        self.optimizer = make_optimizer(config.optimizer, groups, config.weight_decay, betas)
        self.folds: Folds | None = None
        if fold is not None and head_config is not None:
            self.folds = Folds(fold, lambda: AlphaHead(head_config).to(self.device), config)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._learning_rate)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=base.dtype == torch.float16)
        self.law = NoiseLaw(config.noise_shift, config.adaptive_noise, config.noise_spread, config.noise_within)
        one = {name: value[:1] for name, value in conditions.items()}
        self._levels = sampler_levels(base, one) if config.authors_trainer else None
        # For a positive adapter; for the others the head shares the LoRA's batch.
        self.head_law = NoiseLaw(config.head_noise_shift)
        self._met = torch.zeros(2, NoiseLaw.BINS, dtype=torch.float64)  # what this step has measured for the law
        self.step_number, self.round_number, self.tilt = 0, 0, Tilt()
        self.mean_r = 0.5  # of the last round
        self.facts: dict[str, float] = {}
        self._apart = 0.0  # what this step has measured of a policy's distance

    def _learning_rate(self, step: int) -> float:
        """It rises over the first twentieth. Then offline it falls to zero along a cosine; online it stays constant.

        The authors' trainer has the same rate in every step.
        """
        if self.config.authors_trainer:
            return 1.0
        total = self.config.total_steps
        warmup = max(1, total // 20)
        if step < warmup:
            return (step + 1) / warmup
        return 1.0 if self.config.online else 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    # The step.

    def draw(self, pool: Pool, n: int, law: NoiseLaw, mass: Tensor | None = None) -> Batch:
        """`n` states of samples drawn in proportion to `mass`, or evenly, at noise levels of `law`."""
        return draw(self.base, pool, n, law, self.generator, mass)

    def step(self, pool: Pool) -> dict[str, float]:
        """One optimiser step; returns the mean losses.

        Raises:
            TrainingError: a loss is not finite.
        """
        losses = self._accumulated(pool)
        losses = processes.sum_numbers({**losses, "apart": self._apart})
        apart = losses.pop("apart")
        if not all(math.isfinite(loss) for loss in losses.values()):
            raise TrainingError(
                f"a loss is not finite at step {self.step_number + 1}: {losses}. Lower lr or head_lr, or set "
                "precision: fp32"
            )
        if self.law.adaptive:
            self.law.meet(processes.summed(self._met))
            self._met.zero_()
        processes.sum_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.roles.parameters, 1.0)
        if self.head is not None:
            nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
        if self.folds is not None:
            processes.sum_gradients(self.folds.parameters)
            self.folds.step(self.scaler, self._learning_rate(self.step_number))
        self.facts = {"lr": self.optimizer.param_groups[0]["lr"], "gradient": float(norm), "lora": self.roles.norm()}
        if self.objective.kind != "positive":
            is_base = self.objective.needs_ref or not self.config.online
            self.facts["distance to base" if is_base else "distance to old"] = apart
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.step_number += 1
        decay = average_decay(self.step_number, self.config)
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1 - decay)
        return losses

    @property
    def micro_batch(self) -> int:
        """Samples that go through the model at a time: what was asked for, or less where less fits; 0 for all."""
        return self.base.fits.room.get("training", self.config.micro_batch)

    def _accumulated(self, pool: Pool) -> dict[str, float]:
        """The losses of a step, whose gradients are in the parameters.

        Where memory runs out the step begins again, with half as many samples at a time; several processes, which have
        to keep in step, do not.
        """
        state = self.generator.get_state()
        while True:
            self._apart = 0.0
            try:
                return self._positive(pool) if self.objective.kind == "positive" else self._policy(pool)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                size = self.micro_batch or max(self.config.batch, self.config.head_batch)
                if not is_out_of_memory(error) or size == 1 or processes.count() > 1:
                    raise
            self.base.fits.room["training"] = size // 2  # here the failed attempt has let go of its tensors
            for parameter in [*self.parameters, *([] if self.folds is None else self.folds.parameters)]:
                parameter.grad = None
            self.generator.set_state(state)
            self._met.zero_()
            self.base.placement.forget()

    def _positive(self, pool: Pool) -> dict[str, float]:
        """Gradients of v_plus, on samples drawn in proportion to r, and of alpha, on samples drawn evenly."""
        config, losses = self.config, {"v_plus": 0.0, "alpha": 0.0}
        if self.folds is not None:
            losses["alpha held out"] = 0.0
        batch = self.draw(pool, config.head_batch, self.head_law)
        # Half of the samples have the LoRA off, as two-pass mode reads them; half have it on, as one-pass mode does.
        on, scale = torch.rand(2, config.head_batch, generator=self.generator)
        scale = torch.where(on < 0.5, 0.0, 2 * scale - 1)
        for index, part in batch.parts(self.micro_batch):
            part, part_scale = part.to(self.device), scale[index].to(self.device)
            with self.roles.theta_by_row(part_scale):
                _, tokens = self.output_and_tokens(part)
            loss = alpha_loss(self.logit(part, tokens, part_scale), part.states.r).sum() / config.head_batch
            losses["alpha"] += self._backward(loss)
            if self.folds is not None:
                logit = partial(self.logit, part, tokens, part_scale)
                learned, left_out = self.folds.losses(part.rows, part.states.r, logit)
                self._backward(learned / config.head_batch)
                losses["alpha held out"] += left_out / config.head_batch
        for _, part in self._draw_plus(pool).parts(self.micro_batch):
            losses["v_plus"] += self._theta_loss(part.to(self.device))
        return losses

    def _draw_plus(self, pool: Pool) -> Batch:
        """The states that v_plus is fitted to."""
        border = borders(pool)
        return fitted_to_means(self.draw(pool, self.config.batch, self.law, plus_mass(pool, border)), pool, border)

    def _draw_policy(self, pool: Pool) -> Batch:
        """The states that a policy learns from."""
        config = self.config
        if self._levels is None:
            return self.draw(pool, config.batch, self.law)
        turn = self.step_number - self.round_number * config.round_steps
        seed = config.seed * 1_000_003 + 700_001 * (self.round_number + 1)
        return draw_in_turn(self.base, pool, config.batch, self._levels, turn, seed, self.generator)

    def _policy(self, pool: Pool) -> dict[str, float]:
        """Gradients of the policy (or the authors' loss) and, with baseline alpha, of the head it takes b from."""
        config, losses = self.config, {"policy": 0.0, **({} if self.head is None else {"alpha": 0.0})}
        mean = float(pool.r.mean())
        for _, part in self._draw_policy(pool).parts(self.micro_batch):
            part = part.to(self.device)
            self.roles.use("old")
            old, tokens = self.output_and_tokens(part)
            baseline: float | Tensor = 0.5 if self.objective.baseline == "half" else mean
            if self.head is not None:
                logit = self.logit(part, tokens)
                losses["alpha"] += self._backward((part.weight * alpha_loss(logit, part.states.r)).sum() / config.batch)
                baseline = torch.sigmoid(logit.detach())
            ref = old if self.objective.needs_ref else None
            if self.objective.needs_ref and config.online:
                self.roles.use("base")
                ref, _ = self.output_and_tokens(part)
            losses["policy"] += self._theta_loss(part, old=old, ref=ref, baseline=baseline, reached=self.tilt.old)
        return losses

    def _theta_loss(self, part: Batch, **others: Any) -> float:
        # The role stays theta's through the backward: gradient checkpointing runs forwards again there.
        self.roles.use("theta")
        output = self.base.predict(part.states.x_t, part.states.t, part.conditions)
        share = part.weight / self.config.batch
        if "old" in others:
            reference = others["old"] if others["ref"] is None else others["ref"]
            apart = (output.detach().float() - reference.float()).square().flatten(1).mean(1)
            self._apart += float(apart.sum()) / self.config.batch
        if self.law.adaptive:
            scale = share * self.scaler.get_scale()
            output.register_hook(lambda gradient: self._meet(gradient, scale, part.bin))
        return self._backward((share * self.objective.loss(output, part.states, **others)).sum())

    def _meet(self, gradient: Tensor, scale: Tensor, at: Tensor) -> None:
        """Add a step's |g|^2 and samples per bin, from gradients (B, ...) of `scale` (B,) times each sample's loss."""
        size = (gradient.float().flatten(1).square().sum(1) / scale.square()).double().cpu()
        finite = size.isfinite()  # fp16 overflows now and then, and the step is then left out
        self._met[0].index_add_(0, at[finite], size[finite])
        self._met[1].index_add_(0, at, finite.double())

    def _backward(self, loss: Tensor) -> float:
        self.scaler.scale(loss).backward()
        return loss.item()

    def finish_round(self) -> None:
        """`old` follows theta, and the tilt adds up."""
        decay = decay_after(self.config.old, self.step_number)
        self.roles.follow(decay)
        self.tilt = self.tilt.after_round(self.objective, decay)
        self.round_number += 1

    # State.

    def use_average(self) -> None:
        """Put the running averages in the place of the weights, for measuring and exporting."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.average, strict=True):
                parameter.copy_(average)

    def remove(self) -> None:
        """Take the LoRAs out of the denoiser."""
        self.roles.remove()

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to go on from here, bit for bit."""
        cuda = torch.cuda.get_rng_state_all() if self.device.type == "cuda" else []
        return {
            "parameters": [parameter.detach() for parameter in self.parameters],
            "old": [parameter.detach() for parameter in self.roles.old_parameters],
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generator": self.generator.get_state(),
            "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
            "step": self.step_number,
            "round": self.round_number,
            "mean_r": self.mean_r,
            "tilt": {"theta": self.tilt.theta, "old": self.tilt.old},
            "law": self.law.seen,
            **({} if self.folds is None else {"folds": self.folds.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        with torch.no_grad():
            for own, saved in (
                (self.parameters, state["parameters"]),
                (self.roles.old_parameters, state["old"]),
                (self.average, state["average"]),
            ):
                for parameter, value in zip(own, saved, strict=True):
                    parameter.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"]["cpu"])
        if state["rng"]["cuda"] and self.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])
        self.step_number, self.round_number = state["step"], state["round"]
        self.tilt, self.mean_r = Tilt(**state["tilt"]), state["mean_r"]
        self.law.seen.copy_(state["law"])
        if self.folds is not None and "folds" in state:
            self.folds.load_state_dict(state["folds"])
        for group, rate in zip(self.optimizer.param_groups, self.schedule.base_lrs, strict=True):
            group["lr"] = rate * self._learning_rate(self.schedule.last_epoch)  # a longer run has another one here
