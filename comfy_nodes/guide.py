"""Reward guidance inside ComfyUI's sampling, apart from ComfyUI: torch only.

    x0 = x0_old + s (x0_lora - x0_old)        added to what classifier-free guidance gave

ComfyUI's samplers work on denoised predictions, x0 = x - sigma v for flow models. At one x and sigma x0 is an affine
map of the network's output, so this is the velocity's formula for every prediction type (M9). In fp32.

A `Guide` gives ComfyUI three functions, which only add to lists that other nodes add to as well:

    around_sampling   installs the LoRA on the modules for one run of the sampler, takes it out, and keeps the record:
                      a MODEL is cached between prompts, so nothing of a run may stay in it
    around_model      keeps the tokens that the alpha head reads in the base pass; in mode "fast" sets the LoRA's scale
    after_cfg         finds s, runs the model once more with the LoRA on, adds the push

Under classifier-free guidance both predictions are guided, with the conditional one's alpha, and cfg times the push of
the conditional one plus (1 - cfg) times that of the unconditional one is added: the picture that the guided model would
give at this cfg. (guide="cond" guides the conditional one alone, which cfg then amplifies.) The same as
DiffusionNFTPipeline's nft_guide.
"""

from __future__ import annotations

import copy
import logging
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nft_pipeline import guidance
from nft_pipeline.adapters.alpha_head import AlphaHead
from nft_pipeline.engine.stats import NFTStats, StatsRecorder
from nft_pipeline.engine.terms import alpha_before, read_alpha, term_scale
from nft_pipeline.errors import GuidanceError
from nft_pipeline.families.forward_call import as_tokens
from nft_pipeline.families.registry import FAMILIES
from nft_pipeline.modes import MODES
from nft_pipeline.settings import GuidanceSettings

from .delta import Listener, Switch, Target, install
from .dial import chances, forecast_line, promise_line, tilt_of_rate
from .reward_file import RewardFile

SECOND_PASS = "nft_second_pass"  # marks, in transformer_options, the forwards that guidance itself asks for
Conds = Sequence[Mapping[str, Any]]


class Host(Protocol):
    """What a guide needs of ComfyUI."""

    def predict(self, model: Any, conds: list[Any], x: Tensor, sigma: Tensor, options: Mapping[str, Any]) -> list[Any]:
        """The denoised prediction for each list of conds."""

    def noise_level(self, model: Any, sigma: Tensor) -> Tensor:
        """t in [0, 1] of sigmas."""

    def level_at(self, model: Any, percent: float) -> float:
        """t at a share of the sampling: 1 at 0, 0 at 1."""

    def say(self, node_id: str | None, text: str) -> None:
        """Show a line under a node."""


@dataclass(frozen=True)
class Plan:
    """What a person has set, checked.

    Args:
        tilt: lambda = 2 / beta, the strength in natural units; 0 is off.
        settings: law, cap, mode and guided rows; its interval and schedule are set when sampling starts.
        start, end: share of the sampling where guidance begins and ends, 0 being the first step.
        curve: points (share of the sampling, factor of the tilt); empty for 1 everywhere.
        rate: the share of liked pictures that the tilt was found for; 0 if none was asked for. At the CFG of a run it
            is found again.
    """

    tilt: float
    settings: GuidanceSettings
    start: float = 0.0
    end: float = 1.0
    curve: tuple[tuple[float, float], ...] = ()
    rate: float = 0.0

    @property
    def partial(self) -> bool:
        """Whether less is done than the tilt says: not in every step, not at its full size, or with a cap."""
        return (self.start, self.end) != (0.0, 1.0) or bool(self.curve) or self.settings.cap is not None

    def settle(self, level_at: Callable[[float], float], guidance_scale: float | None = None) -> GuidanceSettings:
        """The settings in noise levels, for a model whose sampling goes through t = level_at(share), at a CFG."""
        low, high = level_at(self.end), level_at(self.start)
        points = {level_at(share): factor for share, factor in self.curve}
        return replace(
            self.settings,
            interval=(low, high),
            schedule=sorted(points.items()) if points else None,
            guidance_scale=self.settings.guidance_scale if guidance_scale is None else guidance_scale,
        )


@dataclass
class _Run:
    """What lives as long as one run of a sampler."""

    tilt: float
    settings: GuidanceSettings
    recorder: StatsRecorder
    head: AlphaHead | None  # a copy, on the device of the tokens once it is known
    steps: int
    tokens: dict[Any, Tensor] = field(default_factory=dict)  # of the base pass, by the conds' uuid
    names: dict[Any, Any] = field(default_factory=dict)  # uuids of the second pass, by those of the first
    alpha: Tensor | None = None  # of the step before, for "fast"
    chances: list[Tensor] = field(default_factory=list)  # of being liked, (samples,) of each step, NaN if not known
    pushed: bool = False  # any second pass was made
    moved: bool = False  # and differed from the first


class Guide:
    """One adapter at work on one MODEL.

    Args:
        reward: the adapter.
        targets: its layers in the model, see `match.match_layers`.
        plan: strength, law and the rest.
        host: ComfyUI, or a stand-in for tests.
        tap: the module whose input the head reads, relative to the model; None without a head.
        node_id: under which node to show the live text.
    """

    def __init__(
        self,
        reward: RewardFile,
        targets: Sequence[Target],
        plan: Plan,
        host: Host,
        *,
        tap: str | None = None,
        node_id: str | None = None,
    ) -> None:
        self.reward, self.targets, self.plan, self.host, self.tap = reward, targets, plan, host, tap
        self.node_id = node_id
        self.stats: NFTStats | None = None
        self._switch, self._listener = Switch(), Listener()
        self._run: _Run | None = None

    def __deepcopy__(self, memo: Any) -> Guide:
        # ComfyUI deep-copies a MODEL's options with each clone, and with them the guide behind `after_cfg`: it would no
        # longer be the one behind the two wrappers, and the LoRA would be held twice.
        return self

    # Around one run of a sampler.

    def around_sampling(self, executor: Any, guider: Any, sigmas: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Wraps the sampler: executor(guider, sigmas, ...)."""
        if self.plan.tilt == 0 and not self.plan.rate:
            return executor(guider, sigmas, *args, **kwargs)
        model = guider.inner_model
        outer = self._run
        # A guider with two scales of classifier-free guidance has no `cfg`.
        run = self._run = self._begin(model, len(sigmas) - 1, getattr(guider, "cfg", None))
        try:
            with self._installed(model):
                return executor(guider, sigmas, *args, **kwargs)
        finally:
            self._run = outer
            self.stats = _stats(run)
            if run.pushed and not run.moved:
                text = f"{self.reward.config.name}: guidance had no effect, the LoRA changed nothing in any step"
                logging.warning(text)
                self.host.say(self.node_id, text)

    @contextmanager
    def draft(self, model: Any, steps: int) -> Iterator[StatsRecorder]:
        """Steps that are tried and thrown away, inside a run of the sampler: with a record of their own, and with alpha
        read at strength 0 too, where nothing else is under way."""
        outer = self._run
        scale = None if outer is None else outer.settings.guidance_scale
        run = self._run = self._begin(model, steps, scale)
        try:
            with self._installed(model) if outer is None else nullcontext():
                yield run.recorder
        finally:
            self._run = outer

    @contextmanager
    def _installed(self, model: Any) -> Iterator[None]:
        listeners = {} if self.tap is None else {self.tap: self._listener}
        try:
            with install(self.targets, model, self._switch, listeners):
                yield
        finally:
            self._switch.scale = self._listener.seen = None

    def _begin(self, model: Any, steps: int, guidance_scale: float | None) -> _Run:
        plan, config = self.plan, self.reward.config
        settings = plan.settle(lambda share: self.host.level_at(model, share), guidance_scale)
        tilt = tilt_of_rate(config, plan.rate, settings) if plan.rate else plan.tilt
        promised = self.promised(tilt, settings)
        if promised:
            self.host.say(self.node_id, promised)
        return _Run(tilt, settings, StatsRecorder([config.name]), copy.deepcopy(self.reward.head), steps)

    def promised(self, tilt: float, settings: GuidanceSettings) -> str:
        """What the tilt will do to the share of liked pictures, in a line; "" where nothing is known."""
        line = promise_line(self.reward.config, tilt, settings)
        return f"guided in every step and without a cap: {line}" if line and self.plan.partial else line

    # Around one forward of the model.

    def around_model(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Wraps BaseModel.apply_model: x and t hold one part for each of transformer_options["uuids"]."""
        run, options = self._run, transformer_options or {}
        arguments = (x, t, c_concat, c_crossattn, control, options)
        names = options.get("uuids", [])
        if run is None:
            return executor(*arguments, **kwargs)
        if MODES[run.settings.mode].one_pass:
            # In another guide's second pass too: to that one this LoRA is a part of the base model.
            rows = x.shape[0] // max(1, len(names))
            scale = self._fast_scale(run, self.host.noise_level(executor.class_obj, t[:rows]))
            on = scale.repeat(x.shape[0] // len(scale)) if bool(scale.any()) else None
            with self._switch.at(on):
                out = executor(*arguments, **kwargs)
        else:
            out = executor(*arguments, **kwargs)
        tokens = self._listener.take()
        if tokens is not None and names and SECOND_PASS not in options:
            run.tokens.update(zip(names, as_tokens(tokens).chunk(len(names)), strict=True))
        return out

    def _fast_scale(self, run: _Run, noise_level: Tensor) -> Tensor:
        """s from the alpha of the step before, or from the adapter's base rate in the first."""
        factor, alpha = run.settings.multiplier(noise_level), None
        if self.tap is not None:
            alpha = alpha_before(self.reward.config, run.alpha, noise_level)
        return term_scale(self.reward.config, run.tilt, alpha, factor, noise_level, run.settings)

    # After classifier-free guidance.

    def after_cfg(self, args: Mapping[str, Any]) -> Tensor:
        """The guided prediction of a step; a function of ComfyUI's sampler_post_cfg_function list."""
        run, cond, denoised = self._run, args["cond"], args["denoised"]
        if run is None or cond is None:  # DualCFGGuider at cfg 1 has no cond
            return denoised
        try:
            noise_level = self.host.noise_level(args["model"], args["sigma"].expand(denoised.shape[0]))
            return self._step(run, args, noise_level)
        finally:
            run.tokens.clear()

    def _step(self, run: _Run, args: Mapping[str, Any], t: Tensor) -> Tensor:
        settings, denoised = run.settings, args["denoised"]
        factor = settings.multiplier(t)
        zero = torch.zeros_like(t)
        if not bool(factor.any()):
            self._record(run, t, None, zero, zero, 1.0)
            return denoised
        scale = self._fast_scale(run, t) if MODES[settings.mode].one_pass else None
        alpha = None if self.tap is None else self._alpha(run, args["cond"], t, scale)
        if scale is not None:
            run.alpha = alpha
            self._record(run, t, alpha, scale, torch.full_like(t, math.nan), 1.0)
            return denoised
        scale = term_scale(self.reward.config, run.tilt, alpha, factor, t, settings)
        if not bool(scale.any()):
            self._record(run, t, alpha, zero, zero, 1.0)
            return denoised
        conds, olds, weights = _guided_conds(args, settings.guide)
        plus = self._second_pass(run, args, conds)
        run.pushed = True
        run.moved = run.moved or not all(torch.equal(*pair) for pair in zip(olds, plus, strict=True))
        pushes = [guidance.total_push(old, [new], [scale]) for old, new in zip(olds, plus, strict=True)]
        # Denoised predictions: the push in x_0 itself.
        relative = guidance.relative_push(pushes[0], olds[0], args["input"], t, "sample")
        if settings.cap is not None:
            factor = guidance.cap_factor(relative, settings.cap)
            scale, relative = scale * factor, relative * factor
            pushes = [push * factor.reshape(-1, *[1] * (push.ndim - 1)) for push in pushes]
        given = 1 if args["uncond"] is None else 2
        self._record(run, t, alpha, scale, relative, 1 + len(conds) / given)
        total = torch.zeros_like(pushes[0])
        for weight, push in zip(weights, pushes, strict=True):
            total = total + weight * push
        return guidance.add_push(denoised, total, [scale])

    def _second_pass(self, run: _Run, args: Mapping[str, Any], conds: Sequence[Conds]) -> list[Tensor]:
        """The predictions with the LoRA on."""
        # Caches of other nodes (EasyCache) go by uuid: the two models must not share an entry.
        named = [[{**c, "uuid": run.names.setdefault(c["uuid"], uuid.uuid4())} for c in cond] for cond in conds]
        options = dict(args["model_options"])
        options["transformer_options"] = {**options.get("transformer_options", {}), SECOND_PASS: True}
        with self._switch.at(1.0):
            return self.host.predict(args["model"], named, args["input"], args["sigma"], options)

    def _alpha(self, run: _Run, cond: Conds, t: Tensor, lora_scale: Tensor | None) -> Tensor:
        """alpha of the pass whose tokens were kept, (samples,); of several prompts at once, such as regional ones,
        their mean. `lora_scale` is the LoRA's in it, (samples,), None for off."""
        alphas = []
        for entry in cond:
            tokens = run.tokens.get(entry["uuid"])
            if tokens is None:  # a prompt that is not used at this point of the sampling
                continue
            if run.head is None or next(run.head.parameters()).device != tokens.device:
                run.head = copy.deepcopy(self.reward.head).to(tokens.device)  # type: ignore[union-attr]
            text = entry["model_conds"].get("c_crossattn")
            words = None if text is None else text.cond.to(tokens.device).expand(len(t), -1, -1)
            on = None if lora_scale is None else lora_scale.to(tokens.device)
            alphas.append(read_alpha(run.head, self.reward.config.name, tokens, t.to(tokens.device), words, on))
        if not alphas:
            raise GuidanceError(
                f"the module {self.tap!r}, which the alpha head of {self.reward.config.name!r} reads, did not run in "
                "this step, so alpha is unknown. Bypass nodes that skip steps of the model (EasyCache, TeaCache), or "
                'set kind to "policy", which needs no head.'
            )
        return torch.stack(alphas).mean(0).to(t.device)

    def _record(self, run: _Run, t: Tensor, alpha: Tensor | None, scale: Tensor, push: Tensor, cost: float) -> None:
        nan = torch.full_like(t, math.nan)
        read = nan if alpha is None else alpha
        run.recorder.step(t, read[None], scale[None], push, 1 if cost == 1 else 2)
        line = [f"step {run.recorder.steps}/{run.steps}"]
        line += [f"alpha {alpha.mean():.2f}"] if alpha is not None else []
        line += [f"scale {scale.mean():.2f}"]
        line += [f"push {push.mean():.1%}"] if bool(push.isfinite().all()) else []
        text = "  ".join([*line, f"cost x{cost:.2g}"])
        liked = None
        if alpha is not None:
            tilt = run.tilt * float(run.settings.multiplier(t).mean())
            liked = chances(self.reward.config, alpha, tilt, t, run.settings)
        run.chances.append(nan if liked is None else liked)
        self.host.say(self.node_id, text if liked is None else f"{text}\n{forecast_line(liked)}")


def _stats(run: _Run) -> NFTStats:
    stats = run.recorder.stats()
    known = any(bool(chance.isfinite().any()) for chance in run.chances)
    return replace(stats, forecasts=torch.stack(run.chances)[None].float().cpu()) if known else stats


def _guided_conds(args: Mapping[str, Any], guide: str) -> tuple[list[Conds], list[Tensor], list[float]]:
    """The conds to predict once more, their predictions, and the weight of each in the result of CFG."""
    cfg, uncond = args["cond_scale"], args["uncond"]
    conds, olds, weights = [args["cond"]], [args["cond_denoised"]], [float(cfg)]
    if uncond is None:
        weights = [1.0]
    elif guide == "both" and cfg != 1:
        conds.append(uncond)
        olds.append(args["uncond_denoised"])
        weights.append(1.0 - float(cfg))
    return conds, olds, weights


def tap_in_comfyui(reward: RewardFile, model: nn.Module) -> str | None:
    """The module of a ComfyUI model whose input the adapter's head reads; None for an adapter without a head.

    Raises:
        GuidanceError: it is not known where ComfyUI computes what this head reads.
    """
    if reward.head is None:
        return None
    denoiser, tap = reward.config.denoiser, reward.head.config.tap
    family = FAMILIES.get(denoiser)
    if family is not None and family.comfyui_tap is not None and family.tap == tap:
        try:
            model.get_submodule(family.comfyui_tap)
            return family.comfyui_tap
        except AttributeError:
            pass
    known = ", ".join(sorted(f"{kind.tap} of {kind.denoiser}" for kind in FAMILIES.values() if kind.comfyui_tap))
    raise GuidanceError(
        f"the alpha head of {reward.config.name!r} reads {tap!r} of {denoiser}, and this version does not know "
        f'where ComfyUI computes that; it knows {known}. Set kind to "policy" to use the LoRA without its head.'
    )
