"""What the engine must know about a denoiser class, and nothing about how it is guided.

A family is a row of facts keyed by the denoiser's class name: how the noise level t in [0, 1] is read from a forward
call, where x_t and the text tokens come in, how classifier-free guidance arranges its rows, which layers a LoRA is
usually trained on. The raw outputs need no facts at all: noise, x_0, VP velocity and flow models are combined alike
(DESIGN M9).

    family = family_of(pipe.transformer)
    inputs = bind_inputs(pipe.transformer, args, kwargs)     # the call's arguments by name
    family.noise_level(inputs, pipe.scheduler)               # (rows,), t in [0, 1]

To add a family, add a row to `FAMILIES` and a case to tests/helpers/zoo.py. A denoiser without a row gets one made from
its forward's signature, with a warning that says what is assumed.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import FamilyError
from . import noise_level as levels
from .family import Family
from .forward_call import (
    Inputs,
)

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_JOINT_ATTENTION = (*_ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def _transformer(denoiser: str, noise_level: Callable[[Inputs, Any], Tensor], **facts: Any) -> Family:
    """A row of what most transformers have in common, but for the facts given."""
    common: dict[str, Any] = {
        "prediction": "flow",
        "component": "transformer",
        "state": "hidden_states",
        "text": "encoder_hidden_states",
        "lora_scale": "attention_kwargs",
        "lora_targets": _ATTENTION,
    }
    return Family(denoiser=denoiser, noise_level=noise_level, **{**common, **facts})


_IDS = frozenset({"img_ids", "txt_ids"})

_ROWS = (
    Family(  # Stable Diffusion 1 and 2 and SDXL; SD 2.1 predicts v, which nothing here depends on
        denoiser="UNet2DConditionModel",
        prediction="epsilon",
        component="unet",
        noise_level=levels.variance_preserving(state="sample"),
        state="sample",
        text="encoder_hidden_states",
        lora_scale="cross_attention_kwargs",
        lora_targets=_ATTENTION,
        tap="conv_norm_out",
    ),
    _transformer(
        "SD3Transformer2DModel",
        levels.flow(1000),
        lora_scale="joint_attention_kwargs",
        lora_targets=_JOINT_ATTENTION,
        is_auxiliary=lambda inputs: inputs.get("skip_layers") is not None,
    ),
    _transformer(
        "FluxTransformer2DModel",
        levels.flow(),
        lora_scale="joint_attention_kwargs",
        lora_targets=_JOINT_ATTENTION,
        cfg="two_calls",
        unbatched=_IDS,
    ),
    _transformer(
        "Flux2Transformer2DModel",
        levels.flow(),
        lora_scale="joint_attention_kwargs",
        lora_targets=(*_JOINT_ATTENTION, "to_qkv_mlp_proj"),
        cfg="two_calls",
    ),
    _transformer(
        "QwenImageTransformer2DModel",
        levels.flow(),
        lora_targets=_JOINT_ATTENTION,
        cfg="two_calls",
        row_lists=frozenset({"img_shapes", "txt_seq_lens"}),
    ),
    _transformer(
        "ZImageTransformer2DModel",
        levels.reversed_flow(state="x", timestep="t"),
        state="x",
        text="cap_feats",
        lora_scale="joint_attention_kwargs",
        tap="all_final_layer.2-1",
        sign=-1,
        cfg="conditional_first",
        # cfg_truncation: no classifier-free guidance where the model's own time, 1 - t, is above it.
        skips_cfg=lambda inputs, pipe: (
            getattr(pipe, "_cfg_truncation", None) is not None
            and float(pipe._cfg_truncation) <= 1
            and inputs["t"].max().item() > float(pipe._cfg_truncation)
        ),
        row_lists=frozenset({"x", "cap_feats", "siglip_feats", "image_noise_mask"}),
    ),
    _transformer("SanaTransformer2DModel", levels.sana),
    # The second half of PixArt's output may be a variance, which its pipelines drop; guiding it too does no harm.
    _transformer(
        "PixArtTransformer2DModel",
        levels.variance_preserving(),
        prediction="epsilon",
        lora_scale="cross_attention_kwargs",
    ),
    _transformer(
        "LuminaNextDiT2DModel",
        levels.reversed_flow(),
        lora_scale="cross_attention_kwargs",
        sign=-1,
        cfg="conditional_first",
        unbatched=frozenset({"image_rotary_emb"}),
    ),
    _transformer("Lumina2Transformer2DModel", levels.reversed_flow(), sign=-1, cfg="two_calls"),
    _transformer("AuraFlowTransformer2DModel", levels.flow(), lora_targets=_JOINT_ATTENTION),
    _transformer(
        "CogView4Transformer2DModel",
        levels.scheduled_flow,
        cfg="two_calls",
        unbatched=frozenset({"image_rotary_emb"}),
    ),
    _transformer(
        "ChromaTransformer2DModel",
        levels.flow(),
        lora_scale="joint_attention_kwargs",
        lora_targets=_JOINT_ATTENTION,
        cfg="two_calls",
        unbatched=_IDS,
    ),
    _transformer(
        "HiDreamImageTransformer2DModel",
        levels.flow(1000, timestep="timesteps"),
        text="encoder_hidden_states_t5",
        lora_targets=("to_q", "to_k", "to_v", "to_out", "to_q_t", "to_k_t", "to_v_t", "to_out_t"),
        tap="final_layer",
        sign=-1,
        row_lists=frozenset({"img_sizes"}),
        row_dims={"encoder_hidden_states_llama3": 1},
    ),
    _transformer(
        "Kandinsky5Transformer3DModel",
        levels.flow(1000),
        lora_scale="",
        lora_targets=("to_query", "to_key", "to_value"),
        tap="out_layer",
        cfg="two_calls",
        unbatched=frozenset({"visual_rope_pos", "text_rope_pos", "sparse_params"}),
    ),
    _transformer(
        "OvisImageTransformer2DModel",
        levels.flow(),
        lora_scale="joint_attention_kwargs",
        lora_targets=_JOINT_ATTENTION,
        cfg="two_calls",
        unbatched=_IDS,
    ),
    _transformer(
        "CosmosTransformer3DModel",
        levels.flow(),
        lora_scale="",
        cfg="two_calls",
        unbatched=frozenset({"padding_mask"}),
    ),
    _transformer("WanTransformer3DModel", levels.flow(1000), cfg="two_calls"),
    _transformer("LTXVideoTransformer3DModel", levels.flow(1000), unbatched=frozenset({"rope_interpolation_scale"})),
    _transformer("HunyuanVideoTransformer3DModel", levels.flow(1000), lora_targets=_JOINT_ATTENTION, cfg="two_calls"),
    _transformer("MochiTransformer3DModel", levels.reversed_flow(1000), lora_targets=_JOINT_ATTENTION, sign=-1),
    _transformer(
        "CogVideoXTransformer3DModel",
        levels.variance_preserving(),
        prediction="v",
        unbatched=frozenset({"image_rotary_emb"}),
    ),
)

FAMILIES: dict[str, Family] = {family.denoiser: family for family in _ROWS}


def unwrap_compiled(denoiser: nn.Module) -> nn.Module:
    """The module itself where `torch.compile` put a wrapper around it: hooks belong on the module."""
    return getattr(denoiser, "_orig_mod", denoiser)


def family_of(denoiser: nn.Module) -> Family:
    """The facts about a denoiser: its row in `FAMILIES`, or one made from its signature, with a warning.

    Raises:
        FamilyError: the class has no row and is no denoiser of diffusers, or its forward has no timestep.
    """
    kind = type(unwrap_compiled(denoiser))
    for ancestor in kind.__mro__:  # FSDP makes a subclass, as users may
        if ancestor.__name__ in FAMILIES:
            return FAMILIES[ancestor.__name__]
    return _generic_family(kind)  # type: ignore[arg-type]


_TIMESTEPS = ("timestep", "timesteps", "t")
_LORA_SCALES = ("joint_attention_kwargs", "attention_kwargs", "cross_attention_kwargs")


@functools.cache  # so that the warning comes once a class
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
        prediction="flow",
        component="unet" if "UNet" in kind.__name__ else "transformer",
        noise_level=levels.by_scheduler(state=names[0], timestep=timestep),
        state=names[0],
        text=None,
        lora_scale=next((name for name in _LORA_SCALES if name in names), ""),
        lora_targets=_ATTENTION,
        cfg="unknown",
        listed=False,
    )


# Arguments of calls whose batch has rows besides the conditional and the unconditional ones, and what they are for.
_ROWS_OF_THEIR_OWN = {
    "pag_scale": "its perturbed-attention guidance",
    "image_guidance_scale": "its image guidance",
    "img_guidance_scale": "its image guidance",
    "editing_prompt": "its editing guidance",
}


def check_pipeline(stock: Any, family: Family) -> None:
    """Can it be told, in a call, which rows of a batch belong to which sample?

    Args:
        stock: the pipeline class.
        family: of its denoiser.

    Raises:
        FamilyError: the batch has rows of other kinds, or the pipeline does not say whether it is doubled.
    """
    arguments = inspect.signature(stock.__call__).parameters
    others = [what for name, what in _ROWS_OF_THEIR_OWN.items() if name in arguments]
    if others:
        reason = f"{others[0]} adds rows of its own to the batch"
    elif family.batched_cfg and not hasattr(stock, "do_classifier_free_guidance") and "guidance_scale" not in arguments:
        reason = (
            "it does not say whether a batch holds unconditional rows (no do_classifier_free_guidance, no "
            "guidance_scale)"
        )
    else:
        return
    raise FamilyError(f"{stock.__name__} cannot be guided by this version: {reason}. Use the family's plain pipeline.")


def cfg_switch(family: Family, pipe: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[[Inputs], bool]:
    """Says of a forward's inputs whether classifier-free guidance has added rows to them (see `Family.cfg`).

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
