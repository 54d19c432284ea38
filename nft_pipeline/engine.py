"""Reward guidance as torch hooks on a denoiser: one more forward with the LoRA on, combined with the base's output.

    v = v_old + s (v_lora - v_old)

Around each forward of the denoiser the engine

1. switches the nft LoRA off and leaves every other LoRA alone, so that the forward gives v_old;
2. reads, on the way, the image tokens the alpha head was trained on;
3. finds s, one a sample: `law_scale(alpha, tilt, law)` for a positive adapter, `policy_scale` for a policy one (DESIGN
   section 3), and stops here where s is 0;
4. switches the LoRA on, runs the module's forward once more on the same inputs, combines in fp32, switches back.

Under classifier-free guidance the batch is [unconditional, conditional], or the two come one after the other, the
conditional call first. Both are guided, with one s a sample, found on the conditional rows: then guidance and
classifier-free guidance commute, and alpha is not amplified by the guidance scale.

Hooks are the mechanism because they survive CPU offloading, which replaces `module.forward`, and because the module
keeps its class and config. Source of the maths: `nft_pipeline.guidance`; DiffusionNFT, arXiv:2509.16117.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import guidance
from .families import (
    Inputs,
    as_tokens,
    bind_inputs,
    family_of,
    output_tensor,
    replace_output,
    same_state,
    unwrap_compiled,
)
from .injection import LoraSwitch
from .keys import lora_modules
from .stats import NFTStats, StatsRecorder

if TYPE_CHECKING:
    from .adapter import Adapter
    from .adapter_config import AdapterConfig


class GuidanceError(ValueError):
    """Guidance was asked for in a way that cannot be done, or found something it must not work with."""


@dataclass(frozen=True)
class GuidanceSettings:
    """How far to go, by which law, and where along the path.

    Args:
        tilt: lambda = 2 / beta; 0 is the base, negative goes away from the reward.
        law: "nft", linear in the tilt, or "odds", exact and never past v_plus (positive adapters only).
        interval: closed range of noise levels t in [0, 1] that are guided; 1 is pure noise.
    """

    tilt: float
    law: str = "nft"
    interval: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def for_adapter(
        cls,
        config: AdapterConfig,
        *,
        strength: float | None = None,
        beta: float | None = None,
        law: str | None = None,
        interval: Sequence[float] | None = None,
    ) -> GuidanceSettings:
        """Settings from what a person asked for; None means the default.

        Args:
            config: of the adapter in use.
            strength: 0 is the base, 1 (default) as the author shipped it; any finite number, linear in the tilt.
            beta: an absolute beta instead of a strength, tilt = 2 / beta.
            law: "nft" (default) or "odds".
            interval: (low, high) with 0 <= low <= high <= 1, default (0, 1).

        Raises:
            GuidanceError: a value out of range, both strength and beta, or the odds law with a policy adapter.
        """
        if strength is not None and beta is not None:
            raise GuidanceError(
                f"nft_strength={strength} and nft_beta={beta} were both given, but they set the same thing "
                f"(beta = {2 / config.tilt:g} is strength 1 here). Give one of them."
            )
        law = "nft" if law is None else law
        if law not in guidance.LAWS:
            close = difflib.get_close_matches(str(law), guidance.LAWS, n=1)
            hint = f' Did you mean "{close[0]}"?' if close else ""
            raise GuidanceError(f"nft_law is {law!r}, expected one of {', '.join(map(repr, guidance.LAWS))}.{hint}")
        if law == "odds" and config.kind != "positive":
            raise GuidanceError(
                f'nft_law="odds" needs a positive adapter, which has an alpha head; {config.name!r} is a {config.kind} '
                'adapter, whose alpha is inside its weights. Use nft_law="nft".'
            )
        return cls(_tilt(config, strength, beta), law, _interval((0.0, 1.0) if interval is None else interval))


def _tilt(config: AdapterConfig, strength: float | None, beta: float | None) -> float:
    if beta is not None:
        if not _is_number(beta) or not math.isfinite(beta) or beta <= 0:
            raise GuidanceError(
                f"nft_beta is {beta!r}, expected a finite number above 0 (tilt = 2 / beta). For no guidance or a "
                "negative one use nft_strength, 0 or below."
            )
        return guidance.tilt_from_beta(float(beta))
    strength = 1.0 if strength is None else strength
    if not _is_number(strength) or not math.isfinite(strength):
        raise GuidanceError(
            f"nft_strength is {strength!r}, expected a finite number: 0 is the base model, 1 the adapter as shipped."
        )
    return guidance.tilt_from_strength(float(strength), config.tilt)


def _interval(interval: Sequence[float]) -> tuple[float, float]:
    pair = tuple(interval) if isinstance(interval, Sequence) and not isinstance(interval, str) else ()
    if len(pair) != 2 or not all(_is_number(t) for t in pair) or not 0 <= pair[0] <= pair[1] <= 1:
        raise GuidanceError(
            f"nft_interval is {interval!r}, expected (low, high) with 0 <= low <= high <= 1, in noise level: 1 is pure "
            "noise, where sampling starts, 0 the finished picture."
        )
    return float(pair[0]), float(pair[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def find_tap(denoiser: nn.Module, adapter: Adapter) -> nn.Module | None:
    """The module whose input the adapter's alpha head reads; None for an adapter without a head.

    Raises:
        GuidanceError: the denoiser has no such module.
    """
    if adapter.head is None:
        return None
    name = adapter.head.config.tap
    try:
        return unwrap_compiled(denoiser).get_submodule(name)
    except AttributeError:
        raise GuidanceError(
            f"the alpha head of {adapter.config.name!r} reads the module {name!r}, which {type(denoiser).__name__} "
            "does not have. The adapter was made for another base model."
        ) from None


@dataclass
class _Call:
    """One forward of the denoiser, between its two hooks. Samples are the conditional rows of the batch."""

    inputs: Inputs
    samples: slice
    repeats: int  # rows of the batch that belong to one sample: 2 under classifier-free guidance
    noise_level: Tensor
    inside: Tensor | None  # which samples are in the interval; None for all
    auxiliary: bool
    guided: bool


class NFTEngine:
    """Guides one denoiser while installed; a context manager.

    Args:
        denoiser: a module of a known family (`nft_pipeline.families`), with the adapter's LoRA injected.
        adapter: the adapter; its head moves to the denoiser's device.
        lora_name: the name the LoRA was injected under.
        settings: tilt, law and interval.
        scheduler: the pipeline's; says what noise level a timestep is where the denoiser's family needs to be told.
        doubled: says of a forward's inputs whether classifier-free guidance is on (`families.cfg_switch`).

    Raises:
        FamilyError: the denoiser's class is not known.
        AdapterError: the LoRA is gone, incomplete or fused.
        GuidanceError: the head's tap is missing, or (on install) the denoiser is being guided already.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        adapter: Adapter,
        lora_name: str,
        settings: GuidanceSettings,
        *,
        scheduler: Any = None,
        doubled: Callable[[Inputs], bool] = lambda inputs: False,
    ) -> None:
        self.denoiser = unwrap_compiled(denoiser)
        self._scheduler = scheduler
        self.adapter = adapter
        self.settings = settings
        self._family = family_of(self.denoiser)
        self._tap = find_tap(self.denoiser, adapter)
        self._switch = LoraSwitch(self.denoiser, lora_name, len(lora_modules(adapter.lora)))
        self._doubled = doubled
        self._hooks: list[Any] = []
        self._recorder = StatsRecorder()
        self._call: _Call | None = None
        self._tokens: Tensor | None = None
        self._scale: Tensor | None = None  # of the step's main call, for its auxiliary ones
        self._main: tuple[Any, Tensor] | None = None  # x_t and t of the step's main call

    def install(self) -> None:
        """Add the hooks. Raises GuidanceError if another engine's are there: the push would be applied twice."""
        hooks = self.denoiser._forward_hooks.values()
        if any(isinstance(getattr(hook, "__self__", None), NFTEngine) for hook in hooks):
            raise GuidanceError(
                "this denoiser is being guided by another call that has not ended, so the push would be applied twice. "
                "Run the calls one after the other, or load the model a second time."
            )
        self._hooks = [
            self.denoiser.register_forward_pre_hook(self._before, with_kwargs=True),
            self.denoiser.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        if self._tap is not None:
            self._hooks.append(self._tap.register_forward_pre_hook(self._read_tokens, with_kwargs=True))

    def remove(self) -> None:
        """Take the hooks off and put every switch back, also after a KeyboardInterrupt inside a forward."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._main = self._scale = None
        self._end_call()

    def __enter__(self) -> NFTEngine:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def stats(self) -> NFTStats:
        """What has been done since the engine was made."""
        return self._recorder.stats()

    # The hooks, in the order they run.

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._switch.off()
        inputs = bind_inputs(module, args, kwargs)
        family, state = self._family, inputs[self._family.state]
        noise_level = family.noise_level(inputs, self._scheduler)
        second = self._is_second_of_step(state, noise_level)
        auxiliary = family.is_auxiliary(inputs) or second
        doubled = not auxiliary and self._doubled(inputs)
        repeats = 2 if family.batched_cfg and doubled else 1
        samples = family.conditional(family.rows(inputs), doubled)
        noise_level = noise_level[samples]
        inside = None
        if self.settings.interval != (0.0, 1.0):
            inside = guidance.in_interval(noise_level, self.settings.interval)
        guided = self.settings.tilt != 0 and (inside is None or bool(inside.any()))
        if guided and self.adapter.config.kind == "positive":
            family.check_rows_are_known(doubled or second)
        self._call = _Call(inputs, samples, repeats, noise_level, inside, auxiliary, guided)

    def _is_second_of_step(self, state: Any, noise_level: Tensor) -> bool:
        """Whether this call is at the very x_t and t of the main one, as the unconditional call of a pipeline is that
        makes two. Any other call is remembered as a step's main one."""
        if not self._family.batched_cfg and self._main is not None:
            x_t, t = self._main
            if torch.equal(t, noise_level) and same_state(x_t, state):
                return True
        self._main = (state, noise_level)
        return False

    def _read_tokens(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self._call
        # Only in the base pass: with the LoRA on, the tokens are not those the head was trained on.
        if call is not None and call.guided and self._tokens is None:
            self._tokens = as_tokens(args[0] if args else next(iter(kwargs.values())))

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        try:
            if output is None or self._call is None:  # the base pass raised; only the switches are left to put back
                return None
            return self._guide(self._call, module, args, kwargs, output)
        finally:
            self._end_call()

    def _guide(self, call: _Call, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        alpha, scale = self._find_scale(call)
        if not call.guided or not bool(scale.any()):
            self._record(call, alpha, scale, torch.zeros_like(scale), passes=1)
            return None  # the base's own output, bit for bit
        self._switch.on(self._call_scale(call.inputs))
        v_old = output_tensor(output)
        v_lora = output_tensor(module.forward(*args, **kwargs))
        push = (v_lora[call.samples].float() - v_old[call.samples].float()).flatten(1).norm(dim=1) * scale.abs()
        push = push / v_old[call.samples].float().flatten(1).norm(dim=1).clamp(min=1e-12)
        self._record(call, alpha, scale, push, passes=2)
        return replace_output(output, guidance.combine(v_old, v_lora, scale.repeat(call.repeats)))

    def _find_scale(self, call: _Call) -> tuple[Tensor, Tensor]:
        """alpha (NaN where nobody asked) and s, both of shape (samples,)."""
        alpha = torch.full_like(call.noise_level, math.nan)
        if not call.guided:
            return alpha, torch.zeros_like(alpha)
        config = self.adapter.config
        if call.auxiliary and self._scale is not None:
            scale = self._scale
        elif config.kind == "policy":
            scale = torch.full_like(alpha, guidance.policy_scale(self.settings.tilt, config.tilt))
        else:
            alpha = self._read_alpha(call)
            scale = guidance.law_scale(alpha, self.settings.tilt, self.settings.law)
        if call.inside is not None:
            scale = torch.where(call.inside, scale, torch.zeros_like(scale))
        self._scale = scale
        return alpha, scale

    def _read_alpha(self, call: _Call) -> Tensor:
        head, tokens = self.adapter.head, self._tokens
        if head is None:
            raise GuidanceError(
                f"adapter {self.adapter.config.name!r} is positive but has no alpha head, so its scale is unknown. "
                "Load the whole adapter folder, with alpha_head/ in it."
            )
        if tokens is None:
            raise GuidanceError(
                f"the module {head.config.tap!r}, which the alpha head of {self.adapter.config.name!r} reads, did not "
                f"run at noise level {_rounded(call.noise_level)}, so alpha is unknown. Switch caching "
                "of the denoiser off."
            )
        head = head.to(tokens.device)
        text = self._family.read_text(call.inputs) if head.config.text_dim is not None else None
        text = None if text is None else text[call.samples]
        alpha = head.alpha(tokens[call.samples], call.noise_level, text)
        if not bool(alpha.isfinite().all()):
            raise GuidanceError(
                f"the alpha head of {self.adapter.config.name!r} gave {_rounded(alpha)} at noise level "
                f"{_rounded(call.noise_level)}, expected probabilities: the model's own features overflowed, or the "
                "head is damaged. Check that strength 0 gives a picture; if it does, download the adapter again."
            )
        return alpha

    def _call_scale(self, inputs: Inputs) -> float:
        name = self._family.lora_scale
        scale = (inputs.get(name) or {}).get("scale", 1.0)
        if scale == 0:
            raise GuidanceError(
                f'{name}={{"scale": 0}} switches every LoRA off, the nft one too. To run without your own LoRAs call '
                "disable_lora() on the pipeline; to run without guidance set nft_strength=0."
            )
        return float(scale)

    def _record(self, call: _Call, alpha: Tensor, scale: Tensor, push: Tensor, passes: int) -> None:
        if call.auxiliary and self._recorder.steps:
            self._recorder.more_passes(passes)
        else:
            self._recorder.step(call.noise_level, alpha, scale, push, passes)

    def _end_call(self) -> None:
        self._call = self._tokens = None
        self._switch.restore()


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.flatten()[:4].tolist()]
