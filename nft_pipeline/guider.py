"""DiffusionNFTGuidance: the reward dial for diffusers' modular pipelines, as a guider.

    guider = DiffusionNFTGuidance("someone/adapter", nft_strength=1.0, guidance_scale=4.0)
    pipe.update_components(guider=guider)
    guider.load_nft_adapter(pipe)
    latents = pipe(prompt="a circle left of a cross", output="latents")
    print(guider.nft_stats)

It is diffusers' classifier-free guidance over guided predictions. A modular pipeline asks its guider what to run, one
forward of the denoiser for the prompt and one for the negative prompt, and calls `prepare_models` before each and
`cleanup_models` after. In between, hooks on the denoiser turn the forward's v_old into

    v = v_old + s (v_lora - v_old)

with one more forward with the LoRA on, where s is not 0. So the pipeline and the stock formula only ever see guided
predictions, whatever they do with them (Z-Image negates, QwenImage rescales by the norm of the conditional one), and
with s = 0 this is the stock guider bit for bit. s is found in the conditional forward and used for both.

Source of the maths: `nft_pipeline.guidance`; DiffusionNFT, arXiv:2509.16117.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import ClassifierFreeGuidance
from torch import Tensor, nn

from . import guidance
from .alpha_reading import read_alpha
from .engine import GuidanceError, GuidanceSettings, find_tap
from .families import Family, Inputs, as_tokens, bind_inputs, family_of, output_tensor, replace_output, unwrap_compiled
from .injection import LoraSwitch, inject_lora, remove_lora
from .keys import lora_modules
from .stats import NFTStats, StatsRecorder

if TYPE_CHECKING:
    from .adapter import Adapter, AdapterConfig

GUIDES = ("both", "cond")
_SOURCE = ("nft_adapter", "nft_revision", "nft_subfolder")
_ARGUMENTS = (
    *_SOURCE,
    "nft_strength",
    "nft_beta",
    "nft_law",
    "nft_interval",
    "guide",
    "guidance_scale",
    "guidance_rescale",
    "use_original_formulation",
)


@dataclass(frozen=True)
class _Loaded:
    """An adapter on a denoiser, and the pipeline, if known, whose scheduler says what a timestep means."""

    adapter: Adapter
    denoiser: nn.Module
    lora_name: str
    family: Family
    tap: nn.Module | None
    pipe: weakref.ref[Any] | None

    @property
    def scheduler(self) -> Any:
        return getattr(self.pipe() if self.pipe is not None else None, "scheduler", None)


@dataclass(frozen=True)
class _Forward:
    """What is known when a forward of the denoiser begins."""

    inputs: Inputs
    noise_level: Tensor  # t in [0, 1], shape (B,)
    inside: Tensor  # bool, (B,): which samples are in the interval
    guided: bool


class DiffusionNFTGuidance(ClassifierFreeGuidance):
    """Reward guidance and classifier-free guidance for modular pipelines.

    Args:
        nft_adapter (`str`, *optional*):
            Where the adapter is: a shipped name, a folder or a Hub id. Kept in guider_config.json and loaded by
            `load_nft_adapter`, not before.
        nft_strength (`float`, *optional*, 1.0 if neither it nor nft_beta is given):
            0 is the base model bit for bit, 1 the adapter as its author shipped it; any number, linear in the tilt;
            negative seeks what the reward dislikes. Not a LoRA weight.
        nft_beta (`float`, *optional*):
            DiffusionNFT's beta instead of a strength: tilt = 2 / beta, above 0; smaller is stronger.
        nft_law (`str`, defaults to "nft"):
            "nft": s = tilt * alpha. "odds": exact and never past v_plus; positive adapters only.
        nft_interval (`tuple[float, float]`, defaults to (0.0, 1.0)):
            Noise levels t that are guided by the reward, 1 being pure noise. Outside it a step is the stock guider's.
        guide (`str`, defaults to "both"):
            "both" guides the conditional and the unconditional prediction alike, so that a policy adapter at strength 1
            is the LoRA on. "cond" leaves the unconditional one as the base has it: a forward less a step, and the push
            is multiplied by guidance_scale.
        guidance_scale (`float`, defaults to 1.0):
            Of classifier-free guidance; 1 is none.
        guidance_rescale, use_original_formulation, start, stop:
            Of diffusers' ClassifierFreeGuidance, which see. start and stop are fractions of the steps and bound
            classifier-free guidance alone; nft_interval bounds the reward's.
        enabled (`bool`, defaults to `True`):
            `False` is the conditional prediction of the base, with guidance of neither kind.
        nft_revision, nft_subfolder (`str`, *optional*):
            Of an adapter on the Hub.

    The attributes of these names may be set between calls and steps; `save_pretrained` and `new` go by their values.
    """

    _input_predictions = ["pred_cond", "pred_uncond"]  # noqa: RUF012  (diffusers' own form)

    @register_to_config
    def __init__(
        self,
        nft_adapter: str | None = None,
        nft_strength: float | None = None,
        nft_beta: float | None = None,
        nft_law: str = "nft",
        nft_interval: Sequence[float] = (0.0, 1.0),
        guide: str = "both",
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        use_original_formulation: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
        nft_revision: str | None = None,
        nft_subfolder: str | None = None,
    ) -> None:
        super().__init__(
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            use_original_formulation=use_original_formulation,
            start=start,
            stop=stop,
            enabled=enabled,
        )
        self.nft_adapter = nft_adapter
        self.nft_strength = nft_strength
        self.nft_beta = nft_beta
        self.nft_law = nft_law
        self.nft_interval = nft_interval
        self.guide = guide
        self.nft_revision = nft_revision
        self.nft_subfolder = nft_subfolder
        self._loaded: _Loaded | None = None
        self._settings: GuidanceSettings | None = None  # of the present step; None for the stock guider's
        self._recorder: StatsRecorder | None = None
        self._switch: LoraSwitch | None = None
        self._scale: Tensor | None = None  # s of the present step, shape (B,), found in its conditional forward
        self._hooks: list[Any] = []
        self._running: _Forward | None = None
        self._tokens: Tensor | None = None

    @property
    def nft_stats(self) -> NFTStats | None:
        """What happened in the last call, also after an error; None before the first one with an adapter."""
        return None if self._recorder is None else self._recorder.stats()

    @property
    def nft_config(self) -> AdapterConfig | None:
        """The loaded adapter's config, None without one."""
        return None if self._loaded is None else self._loaded.adapter.config

    def load_nft_adapter(
        self,
        target: Any,
        source: str | PathLike[str] | Adapter | None = None,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
    ) -> None:
        """Load an adapter in the place of the present one, if any. It is checked first; on an error nothing changes.

        Args:
            target: the modular pipeline, or the denoiser itself. A UNet needs the pipeline: its scheduler says which
                noise level a timestep is.
            source: a shipped adapter's name, a folder, a Hub id, or an `Adapter`; None for `nft_adapter` with its
                revision and subfolder.
            revision, subfolder: of a Hub repository.

        Raises:
            AdapterError: the adapter is faulty, or made for another base model.
            GuidanceError: there is no source, the target has no such denoiser, the head's tap is missing, or the
                settings are not possible with this adapter.
            FamilyError: a denoiser this version cannot guide.
        """
        from .adapter import Adapter, check_base, read_adapter

        if source is None:
            source, revision, subfolder = self.nft_adapter, self.nft_revision, self.nft_subfolder
        if source is None:
            raise GuidanceError(
                "load_nft_adapter got no source, and this guider was made without nft_adapter. Give a folder, a Hub id "
                'or an Adapter: guider.load_nft_adapter(pipe, "someone/adapter").'
            )
        adapter = (
            source if isinstance(source, Adapter) else read_adapter(source, revision=revision, subfolder=subfolder)
        )
        adapter.check(f'the adapter "{adapter.config.name}"')
        self._settings_for(adapter.config)
        pipe = None if isinstance(target, nn.Module) else target
        denoiser = target if pipe is None else getattr(pipe, adapter.config.component, None)
        if not isinstance(denoiser, nn.Module):
            raise GuidanceError(
                f"the adapter {adapter.config.name!r} is for the pipeline's {adapter.config.component!r}, and this "
                f"{type(target).__name__} has none loaded. Load the pipeline's components first "
                "(pipe.load_components() or pipe.update_components(...)), or pass the denoiser itself."
            )
        denoiser = unwrap_compiled(denoiser)
        family = family_of(denoiser)
        check_base(adapter.config, denoiser, adapter.lora)
        tap = find_tap(denoiser, adapter)
        name = inject_lora(denoiser, adapter.lora, adapter.config.component, pipe=pipe)
        if self._loaded is not None and (self._loaded.denoiser, self._loaded.lora_name) == (denoiser, name):
            self._loaded = None  # the name was free: someone has unloaded the old LoRA already
        try:
            self.unload_nft_adapter()
        except BaseException:
            remove_lora(denoiser, name)
            raise
        self._loaded = _Loaded(adapter, denoiser, name, family, tap, None if pipe is None else weakref.ref(pipe))
        self.nft_adapter = None if isinstance(source, Adapter) else _as_source(source)
        self.nft_revision, self.nft_subfolder = revision, subfolder

    def unload_nft_adapter(self) -> None:
        """Take the adapter out of the denoiser, which is then as it was before.

        Raises:
            AdapterError: the adapter's LoRA is fused into the weights.
        """
        self._release()
        if self._loaded is not None:
            remove_lora(self._loaded.denoiser, self._loaded.lora_name)
        self._loaded = self._switch = None

    def new(self, **kwargs: Any) -> DiffusionNFTGuidance:
        """A guider with the present settings, changed by `kwargs`, and the same adapter loaded.

        The two share the LoRA on the denoiser: unloading one leaves the other without. With another source among the
        kwargs none is loaded.
        """
        other = type(self)(**{**self._arguments(), **kwargs})
        if all(getattr(other, name) == getattr(self, name) for name in _SOURCE):
            other._loaded = self._loaded
        return other

    def save_pretrained(self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write guider_config.json: the present settings and the adapter's source, not the adapter itself."""
        self.register_to_config(**self._arguments())
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _arguments(self) -> dict[str, Any]:
        """The constructor's arguments that make this guider as it is now."""
        own = {name: getattr(self, name) for name in _ARGUMENTS}
        return {**own, "start": self._start, "stop": self._stop, "enabled": self._enabled}

    # The guider's contract with the pipeline, in the order of a step.

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """A step begins. Raises GuidanceError for settings that are not possible, or without an adapter."""
        self._release()  # what a step that raised has left
        if self._step is None or step <= self._step:  # a call begins
            self._recorder = self._switch = None
        super().set_state(step, num_inference_steps, timestep)
        self._scale = None
        self._settings = self._settings_now()
        if self._settings is not None and self._recorder is None:
            self._recorder = StatsRecorder()

    def prepare_models(self, denoiser: nn.Module) -> None:
        """A forward follows: put the hooks on.

        Raises:
            GuidanceError: the denoiser is another one than the adapter's.
            AdapterError: the adapter's LoRA was unloaded or fused by someone else.
        """
        super().prepare_models(denoiser)
        self._release()
        loaded = self._loaded
        if self._settings is None or loaded is None:
            return
        module = unwrap_compiled(denoiser)
        if module is not loaded.denoiser:
            raise GuidanceError(
                f"this pipeline runs a {type(module).__name__} that does not carry the adapter "
                f"{loaded.adapter.config.name!r}: it was loaded into another {type(loaded.denoiser).__name__} object. "
                "Call guider.load_nft_adapter(pipe) again; each pipeline needs a guider of its own."
            )
        if self._switch is None:
            self._switch = LoraSwitch(module, loaded.lora_name, len(lora_modules(loaded.adapter.lora)))
        self._hooks = [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        if loaded.tap is not None and self.is_conditional:
            self._hooks.append(loaded.tap.register_forward_pre_hook(self._read_tokens, with_kwargs=True))

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """The forward is over. The hooks went when it ended; this is for a pipeline that skipped it."""
        self._release()
        super().cleanup_models(denoiser)

    def _settings_now(self) -> GuidanceSettings | None:
        if not self._enabled:
            return None
        if self._loaded is not None:
            return self._settings_for(self._loaded.adapter.config)
        if self.nft_strength == 0 and self.nft_beta is None:
            return None
        wanted = "" if self.nft_adapter is None else f"; it wants {self.nft_adapter!r}"
        source = ', "someone/adapter"' if self.nft_adapter is None else ""
        raise GuidanceError(
            f"this DiffusionNFTGuidance has no adapter loaded{wanted}. Call guider.load_nft_adapter(pipe{source}) "
            "first, or set guider.nft_strength = 0 to sample with classifier-free guidance alone."
        )

    def _settings_for(self, config: AdapterConfig) -> GuidanceSettings:
        if self.guide not in GUIDES:
            raise GuidanceError(
                f'guide is {self.guide!r}, expected "both" (the conditional and the unconditional prediction) or '
                '"cond" (the conditional one alone).'
            )
        return GuidanceSettings.for_adapter(
            config, strength=self.nft_strength, beta=self.nft_beta, law=self.nft_law, interval=self.nft_interval
        )

    # The hooks, in the order they run in a forward.

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        loaded, settings, switch = self._loaded, self._settings, self._switch
        if self._running is not None or loaded is None or settings is None or switch is None:
            self._release()  # left by a forward that was interrupted by the keyboard; this one is somebody else's
            return
        switch.off()
        inputs = bind_inputs(module, args, kwargs)
        noise_level = loaded.family.noise_level(inputs, loaded.scheduler)
        inside = torch.ones_like(noise_level, dtype=torch.bool)
        if settings.interval != (0.0, 1.0):
            inside = guidance.in_interval(noise_level, settings.interval)
        self._running = _Forward(inputs, noise_level, inside, settings.tilt != 0 and bool(inside.any()))

    def _read_tokens(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Only in the base pass: with the LoRA on, the tokens are not those the head was trained on.
        if self._running is not None and self._running.guided and self._tokens is None:
            self._tokens = as_tokens(args[0] if args else next(iter(kwargs.values())))

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        try:
            if output is None or self._running is None:  # the forward raised; the denoiser is only to be put back
                return None
            return self._guide(self._running, module, args, kwargs, output)
        finally:
            self._release()

    def _guide(
        self, forward: _Forward, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        loaded, switch, recorder = self._loaded, self._switch, self._recorder
        assert loaded is not None and switch is not None and recorder is not None  # else there were no hooks
        alpha = torch.full_like(forward.noise_level, math.nan)
        if self.is_conditional or self._scale is None:
            alpha, self._scale = self._find_scale(forward, alpha)
        scale = self._scale
        if not self.is_conditional and self.guide == "cond":
            scale = torch.zeros_like(scale)
        push, guided, passes = torch.zeros_like(scale), None, 1
        if bool(scale.any()):
            switch.on(_call_scale(loaded.family, forward.inputs))
            old, lora = output_tensor(output), output_tensor(module.forward(*args, **kwargs))
            v_old, v_lora = _stacked(old), _stacked(lora)
            push, passes = guidance.relative_push(v_old, v_lora, scale), 2
            v = guidance.combine(v_old, v_lora, scale)
            guided = replace_output(output, list(v) if isinstance(old, list) else v)
        if self.is_conditional or not recorder.steps:
            recorder.step(forward.noise_level, alpha, scale, push, passes)
        else:
            recorder.more_passes(passes)
        return guided  # None leaves the base's own output, bit for bit

    def _find_scale(self, forward: _Forward, unknown: Tensor) -> tuple[Tensor, Tensor]:
        """alpha (`unknown` where nobody asked) and s, both of shape (B,)."""
        loaded, settings = self._loaded, self._settings
        assert loaded is not None and settings is not None
        if not forward.guided:
            return unknown, torch.zeros_like(unknown)
        config = loaded.adapter.config
        if config.kind == "policy":
            alpha, scale = unknown, torch.full_like(unknown, guidance.policy_scale(settings.tilt, config.tilt))
        else:
            text = None if loaded.family.text is None else forward.inputs[loaded.family.text]
            alpha = read_alpha(loaded.adapter, self._tokens, forward.noise_level, text)
            scale = guidance.law_scale(alpha, settings.tilt, settings.law)
        return alpha, torch.where(forward.inside, scale, torch.zeros_like(scale))

    def _release(self) -> None:
        """The denoiser as it was before `prepare_models`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._running = self._tokens = None
        if self._switch is not None:
            self._switch.restore()


def _call_scale(family: Family, inputs: Inputs) -> float:
    """What diffusers multiplies every active LoRA's scale by in this forward."""
    scale = (inputs.get(family.lora_scale) or {}).get("scale", 1.0)
    if scale == 0:
        raise GuidanceError(
            f'{family.lora_scale}={{"scale": 0}} switches every LoRA off, the nft one too. To run without your own '
            "LoRAs call disable_lora() on the pipeline; to run without guidance set nft_strength=0."
        )
    return float(scale)


def _stacked(prediction: Any) -> Tensor:
    """A prediction as (B, ...), also where the denoiser returns a list, one Tensor a sample."""
    return torch.stack(prediction) if isinstance(prediction, list) else prediction


def _as_source(source: str | PathLike[str]) -> str:
    """A source as text. A path stays a path: a plain name would mean a shipped adapter."""
    text = os.fspath(source)
    return text if isinstance(source, str) or os.path.dirname(text) else os.path.join(".", text)
