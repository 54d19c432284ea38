"""What the engine must know about a denoiser class, and nothing about how it is guided.

A family is a set of facts about one denoiser class: how the noise level t in [0, 1] is read from a forward call, where
x_t and the text tokens come in, how classifier-free guidance arranges its rows, which layers a LoRA is usually trained
on, what other tools call its layers. The raw outputs need no facts at all: noise, x_0, VP velocity and flow models are
combined alike (docs/theory.md, M9).

    family = family_of(pipe.transformer)
    inputs = bind_inputs(pipe.transformer, args, kwargs)     # the call's arguments by name
    family.noise_level(inputs, pipe.scheduler)               # (rows,), t in [0, 1]

To add a family, add one file to nft_pipeline/families/known and a case to `CASES` in tests/helpers: in
zoo_unets.py, zoo_images.py, zoo_other_images.py, zoo_videos.py or zoo_sounds.py. A denoiser without a file gets a
family made from its forward's signature, with a warning that says what is assumed.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import FamilyError
from ..files.discovery import modules_of
from . import known
from . import noise_level as levels
from .family import Family
from .forward_call import Inputs

# By the denoiser's class name.
FAMILIES: dict[str, Family] = {module.FAMILY.denoiser: module.FAMILY for module in modules_of(known)}


def unwrap_compiled(denoiser: nn.Module) -> nn.Module:
    """The module itself where `torch.compile` put a wrapper around it: hooks belong on the module."""
    return getattr(denoiser, "_orig_mod", denoiser)


def listed_family(denoiser: nn.Module) -> Family | None:
    """The facts about a denoiser from `FAMILIES`; None for a class without a file."""
    ancestors = type(unwrap_compiled(denoiser)).__mro__  # FSDP makes a subclass, as users may
    return next((FAMILIES[kind.__name__] for kind in ancestors if kind.__name__ in FAMILIES), None)


def family_of(denoiser: nn.Module) -> Family:
    """The facts about a denoiser: from `FAMILIES`, or made from its signature, with a warning.

    Raises:
        FamilyError: the class has no file and is no denoiser of diffusers, or its forward has no timestep.
    """
    return listed_family(denoiser) or _generic_family(type(unwrap_compiled(denoiser)))  # type: ignore[arg-type]


def draws_videos(denoiser: str) -> bool:
    """Whether a denoiser class of diffusers, by its name, draws videos: "text-to-video" on a card.

    Of a class without a file the name tells, which has 3DModel or Video in it.
    """
    family = FAMILIES.get(denoiser)
    return any(part in denoiser for part in ("3DModel", "Video")) if family is None else family.video


_TIMESTEPS = ("timestep", "timesteps", "t")
_LORA_SCALES = ("joint_attention_kwargs", "attention_kwargs", "cross_attention_kwargs")
# Places of tokens, which diffusers' denoisers take once for all rows. There may be as many tokens as rows.
_PLACES = ("img_ids", "txt_ids", "image_rotary_emb")


@functools.cache  # so that the warning comes once per class
def _generic_family(kind: type[nn.Module]) -> Family:
    from diffusers.models.modeling_utils import ModelMixin

    names = list(inspect.signature(kind.forward).parameters)[1:]
    timestep = next((name for name in _TIMESTEPS if name in names), None)
    if not issubclass(kind, ModelMixin) or timestep is None:
        what = (
            f"whose forward has no timestep: {', '.join(names)}" if issubclass(kind, ModelMixin) else "not diffusers'"
        )
        raise FamilyError(
            f"the denoiser is a {kind.__name__}, {what}, which this version cannot guide; it knows "
            f"{', '.join(sorted(FAMILIES))}. Use a pipeline with one of these (docs/pipelines.md), for example "
            "StableDiffusion3Pipeline."
        )
    warnings.warn(
        f"{kind.__name__} is not among the denoisers that are tested (docs/pipelines.md). Assumed: x_t is the argument "
        f"{names[0]!r}; {timestep!r} is 1000 t or t under a scheduler with flow sigmas, an index under one with "
        "alphas_cumprod; no text for the alpha head. Check that nft_stats.noise_level falls from 1 towards 0.",
        UserWarning,
        stacklevel=3,
    )
    return Family(
        denoiser=kind.__name__,
        noise_level=levels.by_scheduler(state=names[0], timestep=timestep),
        component="unet" if "UNet" in kind.__name__ else "transformer",
        state=names[0],
        text=None,
        lora_scale=next((name for name in _LORA_SCALES if name in names), ""),
        tap="conv_norm_out" if "UNet" in kind.__name__ else "norm_out",
        cfg="unknown",
        unbatched=frozenset(_PLACES),
    )


# Arguments of calls that cannot be guided, and why.
_OWN_ROWS = "adds rows of its own to the batch"
_OWN_MAPS = "reads attention maps inside the denoiser, which the passes of guidance would mix up"
_BEYOND = {
    "pag_scale": f"its perturbed-attention guidance {_OWN_ROWS}",
    "image_guidance_scale": f"its image guidance {_OWN_ROWS}",
    "img_guidance_scale": f"its image guidance {_OWN_ROWS}",
    "editing_prompt": f"its editing guidance {_OWN_ROWS}",
    "sag_scale": f"its self-attention guidance {_OWN_MAPS}",
    "max_iter_to_alter": f"its attention guidance {_OWN_MAPS}",
    "cross_attention_guidance_amount": f"its cross-attention guidance {_OWN_MAPS}",
}


def check_pipeline(stock: Any, family: Family) -> None:
    """Check that in a call the rows of each sample can be told apart.

    Args:
        stock: the pipeline class.
        family: of its denoiser.

    Raises:
        FamilyError: the batch has rows of other kinds, the pipeline reads the denoiser's inside, or it does not say
            whether the batch is doubled.
    """
    arguments = inspect.signature(stock.__call__).parameters
    reasons = [why for name, why in _BEYOND.items() if name in arguments]
    if reasons:
        reason = reasons[0]
    elif family.batched_cfg and not hasattr(stock, "do_classifier_free_guidance") and "guidance_scale" not in arguments:
        reason = (
            "it does not say whether a batch holds unconditional rows (no do_classifier_free_guidance, no "
            "guidance_scale)"
        )
    else:
        return
    raise FamilyError(f"{stock.__name__} cannot be guided by this version: {reason}. Use the family's plain pipeline.")


def cfg_switch(family: Family, pipe: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[[Inputs], bool]:
    """Says of a forward's inputs whether the pipeline uses classifier-free guidance in it (see `Family.cfg`).

    Pipelines tell by `do_classifier_free_guidance`; those without it switch it on by a guidance_scale above 1.

    Args:
        family: of the denoiser.
        pipe: the pipeline that is being called.
        args, kwargs: of the call.
    """
    if hasattr(pipe, "do_classifier_free_guidance"):
        return lambda inputs: bool(pipe.do_classifier_free_guidance) and not family.skips_cfg(inputs, pipe)
    call = inspect.signature(getattr(pipe, "_nft_stock_class", type(pipe)).__call__).parameters
    names = list(call)[1:]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    scale = given["guidance_scale"] if "guidance_scale" in given else getattr(call.get("guidance_scale"), "default", 0)
    return lambda inputs: scale is not None and scale > 1
