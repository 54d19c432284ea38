"""DiffusionNFTGuidance: the reward dial for diffusers' modular pipelines, as a guider.

    guider = DiffusionNFTGuidance("someone/adapter", nft_strength=1.0, guidance_scale=4.0)
    pipe.update_components(guider=guider)
    guider.load_nft_adapter(pipe)
    latents = pipe(prompt="a circle left of a cross", output="latents")
    print(guider.nft_stats)

It is another guider of diffusers over guided predictions: classifier-free guidance, or whatever is given as `guider`. A
modular pipeline asks its guider what to run, such as one forward of the denoiser for the prompt and one for the
negative prompt, and calls `prepare_models` before each and `cleanup_models` after. In between, hooks on the denoiser
turn the forward's v_old into

    v = v_old + s (v_lora - v_old)

with one more forward with the LoRA on, where s is not 0. So the pipeline and the other guider only ever see predictions
of a guided model, whatever they do with them (Z-Image negates, QwenImage rescales by the norm of the conditional one),
and with s = 0 this is the other guider bit for bit. s is found in the conditional forward, a step's first, and used for
all of the step's forwards, those with layers skipped too.

Source of the maths: `nft_pipeline.guidance`; DiffusionNFT, arXiv:2509.16117.
"""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from diffusers.configuration_utils import register_to_config
from diffusers.guiders import ClassifierFreeGuidance
from torch import nn

from .checks import is_number
from .dial.tilts import Tilt, tilts_of, tilts_of_rates
from .engine.engine import NFTEngine
from .engine.loading import LoadedAdapter, load_into, unload_from
from .engine.stats import NFTStats
from .engine.terms import Term
from .engine.trace import Trace
from .errors import GuidanceError
from .families.registry import unwrap_compiled
from .guiders.around import GuiderAround
from .guiders.one_forward import OneForward
from .guiders.other_guider import as_config, as_guider, is_plain
from .settings import GuidanceSettings, warn_of_weights

if TYPE_CHECKING:
    from .adapter import Adapter, AdapterConfig

_SOURCE = ("nft_adapter", "nft_revision", "nft_subfolder")
_SETTINGS = ("nft_law", "nft_interval", "nft_schedule", "nft_guide", "nft_cap", "nft_mode")
_ARGUMENTS = (*_SOURCE, "nft_strength", "nft_beta", "nft_rate", *_SETTINGS)
# The arguments of diffusers' ClassifierFreeGuidance that ours takes for it, and their defaults here.
_PLAIN = {
    "guidance_scale": 1.0,
    "guidance_rescale": 0.0,
    "use_original_formulation": False,
    "start": 0.0,
    "stop": 1.0,
    "enabled": True,
}


@dataclass(frozen=True)
class _Loaded:
    """An adapter on a denoiser, and the pipeline, if known, whose scheduler says what a timestep means."""

    entry: LoadedAdapter
    denoiser: nn.Module
    pipe: weakref.ref[Any] | None

    @property
    def config(self) -> AdapterConfig:
        return self.entry.adapter.config

    @property
    def scheduler(self) -> Any:
        return getattr(self.pipe() if self.pipe is not None else None, "scheduler", None)


class DiffusionNFTGuidance(GuiderAround):
    """Reward guidance for modular pipelines, with classifier-free guidance or any other guider of diffusers.

    Args:
        nft_adapter (`str`, *optional*):
            Where the adapter is: a shipped name, a folder or a Hub id. Kept in guider_config.json and loaded by
            `load_nft_adapter`, not before.
        nft_strength (`float`, *optional*, 1.0 if none of it, nft_beta and nft_rate is given):
            0 is the base model bit for bit, 1 is the adapter as its author shipped it; any number, linear in the tilt.
            A negative number seeks what the reward dislikes. This is not a LoRA weight.
        nft_beta (`float`, *optional*):
            DiffusionNFT's beta, given instead of a strength: tilt = 2 / beta. Above 0; smaller is stronger.
        nft_rate (`float`, *optional*):
            The share of liked pictures that is wanted, given instead of a strength, as in DiffusionNFTPipeline.
        nft_law (`str`, *optional*):
            How the tilt and alpha become the scale s, as in DiffusionNFTPipeline. None is the adapter's own way.
        nft_interval (`tuple[float, float]`, defaults to (0.0, 1.0)):
            The noise levels t that the reward guides, where 1 is pure noise. Outside, a step is the stock guider's.
        nft_schedule (`list[tuple[float, float]]` or a callable, *optional*):
            The factor of the tilt at noise level t: points (t, factor) with straight lines between them, or a function
            of t, which cannot be saved.
        nft_guide (`str`, defaults to "both"):
            "both" guides the conditional and the unconditional prediction alike, and any other the guider asks for, so
            that a policy adapter at strength 1 is the LoRA on. "cond" guides the conditional one alone. It costs one
            forward less per step, and the push is multiplied by guidance_scale.
        nft_cap (`float`, *optional*):
            The largest fraction of its size by which guidance may move the predicted picture in a step.
        nft_mode (`str`, *optional*):
            How the forwards are spent, as in DiffusionNFTPipeline. None is what the adapter's calibration found best.
        guidance_scale (`float`, defaults to 1.0):
            The scale of classifier-free guidance; 1 is none.
        guidance_rescale, use_original_formulation, start, stop:
            The arguments of diffusers' ClassifierFreeGuidance; see there. start and stop are fractions of the steps and
            bound classifier-free guidance alone; nft_interval bounds the reward's.
        enabled (`bool`, defaults to `True`):
            `False` is the conditional prediction of the base, with guidance of neither kind.
        nft_revision, nft_subfolder (`str`, *optional*):
            Revision and subfolder of an adapter on the Hub.
        guider (a guider of diffusers, *optional*):
            What combines the guided predictions, such as `AdaptiveProjectedGuidance(guidance_scale=4.0)`. Given instead
            of guidance_scale to enabled, which make a `ClassifierFreeGuidance`. All that it has can be read and set
            here too: `guider.guidance_scale = 5.0`.

    The attributes of these names may be set between calls and steps; `save_pretrained` and `new` use their values.

    Raises:
        GuidanceError: `guider` is none of diffusers', or was given together with an argument that is meant for it.
    """

    @register_to_config
    def __init__(
        self,
        nft_adapter: str | None = None,
        nft_strength: float | None = None,
        nft_beta: float | None = None,
        nft_rate: float | None = None,
        nft_law: str | None = None,
        nft_interval: Sequence[float] = (0.0, 1.0),
        nft_schedule: Any = None,
        nft_guide: str = "both",
        nft_cap: float | None = None,
        nft_mode: str | None = None,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        use_original_formulation: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
        nft_revision: str | None = None,
        nft_subfolder: str | None = None,
        guider: Any = None,
    ) -> None:
        plain = {
            "guidance_scale": guidance_scale,
            "guidance_rescale": guidance_rescale,
            "use_original_formulation": use_original_formulation,
            "start": start,
            "stop": stop,
            "enabled": enabled,
        }
        given = [name for name, value in plain.items() if value != _PLAIN[name]]
        if guider is not None and given:
            raise GuidanceError(
                f"{', '.join(given)} and guider={type(guider).__name__}(...) were both given. What the other guider "
                "does is set on it: give it the argument."
            )
        self.guider = ClassifierFreeGuidance(**plain) if guider is None else as_guider(guider)
        self.nft_adapter = nft_adapter
        self.nft_strength = nft_strength
        self.nft_beta = nft_beta
        self.nft_rate = nft_rate
        self.nft_law = nft_law
        self.nft_interval = nft_interval
        self.nft_schedule = nft_schedule
        self.nft_guide = nft_guide
        self.nft_cap = nft_cap
        self.nft_mode = nft_mode
        self.nft_revision = nft_revision
        self.nft_subfolder = nft_subfolder
        self._loaded: _Loaded | None = None
        self._trace: Trace | None = None
        self._engine: NFTEngine | None = None  # of the present step; None for the stock guider's
        self._forward: OneForward | None = None
        self._forwards = 0  # of the present step
        self._prepared: nn.Module | None = None  # what the other guider has put its hooks on

    @property
    def nft_stats(self) -> NFTStats | None:
        """What happened in the last call, also after an error; None before the first one with an adapter."""
        return None if self._trace is None else self._trace.recorder.stats()

    @property
    def nft_config(self) -> AdapterConfig | None:
        """The loaded adapter's config, None without one."""
        return None if self._loaded is None else self._loaded.config

    def load_nft_adapter(
        self,
        target: Any,
        source: str | PathLike[str] | Adapter | None = None,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
    ) -> None:
        """Load an adapter. It replaces the present one, if any. It is checked first; on an error nothing changes.

        Args:
            target: the modular pipeline, or the denoiser itself. A UNet needs the pipeline: its scheduler says which
                noise level a timestep is.
            source: a shipped adapter's name, a folder, a Hub id, or an `Adapter`; None for `nft_adapter` with its
                revision and subfolder.
            revision, subfolder: of a Hub repository.

        Raises:
            AdapterError: the adapter is faulty, or made for another base model.
            GuidanceError: there is no source, the pipeline asks no guider, the target has no such denoiser, the head's
                tap is missing, or the settings are not possible with this adapter.
            FamilyError: a denoiser this version cannot guide.
        """
        from .adapter import Adapter, read_adapter

        if source is None:
            source, revision, subfolder = self.nft_adapter, self.nft_revision, self.nft_subfolder
        if source is None:
            raise GuidanceError(
                "load_nft_adapter got no source, and this guider was made without nft_adapter. Give a folder, a Hub id "
                'or an Adapter: guider.load_nft_adapter(pipe, "someone/adapter").'
            )
        specs = getattr(target, "_component_specs", None)
        if specs is not None and not any("guider" in name for name in specs):
            raise GuidanceError(
                f"this {type(target).__name__} asks no guider what to run, so none can guide it: it has "
                f"{', '.join(specs)}. Where diffusers has an ordinary pipeline of the model, as FluxPipeline, use "
                "DiffusionNFTPipeline (docs/modular.md)."
            )
        adapter = (
            source if isinstance(source, Adapter) else read_adapter(source, revision=revision, subfolder=subfolder)
        )
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
        denoisers = {adapter.config.component: denoiser}
        entry = load_into(denoisers, adapter, pipe=pipe)
        before = self._loaded
        if before is not None and before.denoiser is denoiser and before.entry.loras == entry.loras:
            self._loaded = None  # the name was free: someone has unloaded the old LoRA already
        try:
            self.unload_nft_adapter()
        except BaseException:
            unload_from(denoisers, entry)
            raise
        self._loaded = _Loaded(entry, denoiser, None if pipe is None else weakref.ref(pipe))
        self.nft_adapter = None if isinstance(source, Adapter) else _as_source(source)
        self.nft_revision, self.nft_subfolder = revision, subfolder

    def unload_nft_adapter(self) -> None:
        """Take the adapter out of the denoiser, which is then as it was before.

        Raises:
            AdapterError: the adapter's LoRA is fused into the weights.
        """
        self._release()
        if self._loaded is not None:
            unload_from({self._loaded.config.component: self._loaded.denoiser}, self._loaded.entry)
        self._loaded = self._engine = None

    def new(self, **kwargs: Any) -> DiffusionNFTGuidance:
        """A guider with the present settings, changed by `kwargs`, and the same adapter loaded.

        The two share the LoRA on the denoiser: unloading one leaves the other without. With another source among the
        kwargs none is loaded.
        """
        present = self._arguments()
        if kwargs.get("guider") is not None:
            present = {name: value for name, value in present.items() if name not in _PLAIN}
        elif not is_plain(self.guider):
            changed = {name: kwargs.pop(name) for name in list(kwargs) if name in self.guider.config}
            present["guider"] = self.guider.new(**changed) if changed else copy.copy(self.guider)
        other = type(self)(**{**present, **kwargs})
        if all(getattr(other, name) == getattr(self, name) for name in _SOURCE):
            other._loaded = self._loaded
        return other

    def save_pretrained(self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write guider_config.json: the present settings and the adapter's source, not the adapter itself.

        Raises:
            GuidanceError: a setting cannot be written: nft_schedule is a function, or the other guider is a class of
                your own.
        """
        if callable(self.nft_schedule):
            raise GuidanceError(
                f"nft_schedule is {self.nft_schedule!r}, and a function cannot be saved. Give it as points (t, factor)."
            )
        inner = None if is_plain(self.guider) else as_config(self.guider)
        self.register_to_config(**self._arguments(), guider=inner)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _arguments(self) -> dict[str, Any]:
        """The constructor's arguments that make this guider as it is now, without another guider than the plain one."""
        own = {name: getattr(self, name) for name in _ARGUMENTS}
        if not is_plain(self.guider):
            return own
        plain = {name: getattr(self.guider, name) for name in list(_PLAIN)[:3]}
        return {**own, **plain, "start": self._start, "stop": self._stop, "enabled": self._enabled}

    # What is ours in a guider's contract with the pipeline, in the order of a step.

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """A step begins. Raises GuidanceError for settings that are not possible, or without an adapter."""
        self._release()  # what a step that raised has left
        if self._step is None or step <= self._step:  # a call begins
            self._trace = self._engine = None
        self.guider.set_state(step, num_inference_steps, timestep)
        self._forwards = 0
        loaded = self._loaded
        if not self._enabled or loaded is None:
            self._engine = None
            self._refuse_without_adapter()
            return
        tilt, settings = self._settings_for(loaded.config)
        if self._engine is not None and self._engine.settings == settings:
            self._engine.terms[0].tilt = tilt
            return
        self._trace = self._trace or Trace()
        lora_name, old_name = (names.get(loaded.config.component) for names in (loaded.entry.loras, loaded.entry.old))
        self._engine = NFTEngine(
            loaded.denoiser,
            [Term(loaded.entry.adapter, str(lora_name), tilt, old_name=old_name)],
            settings,
            scheduler=loaded.scheduler,
            unconditional=lambda: self._forwards > 1,
            trace=self._trace,
        )

    def prepare_models(self, denoiser: nn.Module) -> None:
        """A forward follows: put the hooks on.

        Raises:
            GuidanceError: the denoiser is another one than the adapter's, or the passes cannot be told apart from what
                the other guider does at random.
            AdapterError: the adapter's LoRA was unloaded or fused by someone else.
        """
        self._release()
        self.guider.prepare_models(denoiser)
        self._prepared = denoiser
        self._forwards += 1
        if self._engine is None or self._loaded is None:
            return
        try:
            self._refuse_another(unwrap_compiled(denoiser), self._engine, self._loaded.config.name)
            self._forward = OneForward(self._engine, self._release)
        except BaseException:
            self._release()
            raise

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """The forward is over. What was put on for it went when it ended; this is for a pipeline that skipped it."""
        self._release()

    def _refuse_another(self, module: nn.Module, engine: NFTEngine, name: str) -> None:
        if module is not engine.denoiser:
            raise GuidanceError(
                f"this pipeline runs a {type(module).__name__} that does not carry the adapter {name!r}: it was loaded "
                f"into another {type(engine.denoiser).__name__} object. "
                "Call guider.load_nft_adapter(pipe) again; each pipeline needs a guider of its own."
            )

    def _refuse_without_adapter(self) -> None:
        if not self._enabled or (self.nft_strength == 0 and self.nft_beta is None):
            return
        wanted = "" if self.nft_adapter is None else f"; it wants {self.nft_adapter!r}"
        source = ', "someone/adapter"' if self.nft_adapter is None else ""
        raise GuidanceError(
            f"this DiffusionNFTGuidance has no adapter loaded{wanted}. Call guider.load_nft_adapter(pipe{source}) "
            "first, or set guider.nft_strength = 0 to sample with classifier-free guidance alone."
        )

    def _settings_for(self, config: AdapterConfig) -> tuple[Tilt, GuidanceSettings]:
        named = {name.removeprefix("nft_"): getattr(self, name) for name in _SETTINGS}
        scale: Any = getattr(self.guider, "guidance_scale", None)
        number = float(scale) if is_number(scale) else None
        settings = GuidanceSettings.of_call([config], **named, guidance_scale=number)
        if self.nft_rate is None:
            asked = tilts_of({config.name: config}, self.nft_strength, self.nft_beta)
        else:
            asked = tilts_of_rates(
                {config.name: config},
                self.nft_rate,
                mode=None if settings.own_way else settings.mode,
                guidance_scale=settings.guidance_scale,
                strength=self.nft_strength,
                beta=self.nft_beta,
                law=settings.law,
            )
        settings = settings.for_tilts({config.name: config}, asked)
        warn_of_weights({config.name: config}, asked, {config.name: settings})
        return asked[config.name], settings

    def _release(self) -> None:
        """The denoiser as it was before `prepare_models`."""
        forward, self._forward = self._forward, None
        prepared, self._prepared = self._prepared, None
        if forward is not None:
            forward.remove()
        if prepared is not None:
            self.guider.cleanup_models(prepared)


def _as_source(source: str | PathLike[str]) -> str:
    """A source as text. A path stays a path: a plain name would mean a shipped adapter."""
    text = os.fspath(source)
    return text if isinstance(source, str) or os.path.dirname(text) else os.path.join(".", text)
