"""Tiny random pipelines of every family the engine knows, each through its real diffusers class, and adapters for them.

The cases stand in zoo_unets, zoo_images, zoo_other_images, zoo_videos, zoo_sounds, zoo_today, zoo_odd and zoo_siblings;
what a case is, in zoo_case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import repeat
from typing import Any

from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from helpers import zoo_images, zoo_odd, zoo_other_images, zoo_siblings, zoo_sounds, zoo_today, zoo_unets, zoo_videos
from helpers.tiny import random_head, random_lora
from helpers.zoo_case import WIDTH, Case
from helpers.zoo_case import denoiser_of as denoiser_of
from nft_pipeline.adapter import Adapter, AdapterConfig, BaseModel, fingerprint
from nft_pipeline.families.forward_call import as_tokens, first_argument
from nft_pipeline.families.registry import family_of, listed_family

CASES: dict[str, Case] = {
    **zoo_unets.CASES,
    **zoo_images.CASES,
    **zoo_other_images.CASES,
    **zoo_videos.CASES,
    **zoo_sounds.CASES,
    **zoo_today.CASES,
    **zoo_odd.CASES,
}
# Made of the parts of these, and tested for what has to hold on every pipeline alone.
SIBLINGS: dict[str, Case] = zoo_siblings.CASES
# Over denoisers that have no file in nft_pipeline/families/known.
GENERIC: dict[str, Case] = {**zoo_other_images.GENERIC, **zoo_odd.GENERIC}


def lora_for(pipe: Any, *, seed: int = 7) -> dict[str, Tensor]:
    """A random LoRA on the layers the pipeline's family trains, or on all linear ones where some of these names are of
    none."""
    denoiser = denoiser_of(pipe)
    family = family_of(denoiser)
    names = [name for name, _ in denoiser.named_modules()]
    usual = listed_family(denoiser) or all(any(map(str.endswith, names, repeat(t))) for t in family.lora_targets)
    targets = family.lora_targets if usual else ("",)
    return random_lora(denoiser, seed=seed, component=family.component, targets=targets)


def adapter_for(case: Case, pipe: Any, *, kind: Any = "positive", tilt: float = 2.0, text: bool = True) -> Adapter:
    """A random adapter for a case's pipeline, with a head whose alpha depends on sample, noise level and text."""
    denoiser = denoiser_of(pipe)
    family = family_of(denoiser)
    head = None
    if kind == "positive":
        tap, features = _tapped(denoiser, family.tap, lambda: case.sample(pipe))
        head = random_head(as_tokens(features).shape[-1], text_dim=WIDTH if text and family.text is not None else None)
        head.config = replace(head.config, tap=tap)
    config = AdapterConfig(
        kind=kind,
        name="tiny",
        beta=2 / tilt,
        tilt=tilt,
        base_model=BaseModel(id="tiny/zoo", revision=None, fingerprint=fingerprint(denoiser)),
        denoiser=family.denoiser,
        prediction=family.prediction,
        component=family.component,
        rank=2,
        reward={"name": "nothing", "description": "random weights", "normaliser": "none"},
        guidance_scale=1.0,
        resolution=(8, 8),
        licence="apache-2.0",
    )
    return Adapter(config=config, lora=lora_for(pipe), head=head)


def _tapped(denoiser: Any, tap: str, run: Callable[[], Any]) -> tuple[str, Tensor]:
    """A module for a head to read, and what it reads: the family's, or the last one before the output where there is
    none of that name."""
    read: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            features = first_argument(args, kwargs) if args or kwargs else None
            if isinstance(features, Tensor) and features.is_floating_point() and features.ndim >= 3:
                read.pop(name, None)
                read[name] = features

        return hook

    modules = {name: module for name, module in denoiser.named_modules() if name}
    if tap in modules:
        modules = {tap: modules[tap]}
    hooks = [module.register_forward_pre_hook(keep(name), with_kwargs=True) for name, module in modules.items()]
    run()
    for hook in hooks:
        hook.remove()
    return list(read.items())[-1]


def load_ordinarily(pipe: Any, lora: dict[str, Tensor], name: str, active: list[str]) -> None:
    """What a user does with a LoRA of their own, through diffusers and peft."""
    denoiser: Any = denoiser_of(pipe)
    component = family_of(denoiser).component
    if hasattr(denoiser, "load_lora_adapter"):
        denoiser.load_lora_adapter(dict(lora), prefix=component, adapter_name=name)
        denoiser.set_adapters(active)
        return
    targets = [key.removeprefix(f"{component}.").removesuffix(".lora_A.weight") for key in lora if ".lora_A." in key]
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=targets), denoiser, adapter_name=name)
    set_peft_model_state_dict(denoiser, {key.removeprefix(f"{component}."): t for key, t in lora.items()}, name)
    for layer in denoiser.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_adapter(active)


def sample_by_name(name: str, pipe: Any, **kwargs: Any) -> Tensor:
    """As `Case.sample`, for another process, into which a case's functions do not pickle."""
    return CASES[name].sample(pipe, **kwargs)
