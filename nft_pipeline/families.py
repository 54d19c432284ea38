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
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import noise_level as levels
from .forward_call import FamilyError as FamilyError
from .forward_call import Inputs as Inputs
from .forward_call import as_rows as as_rows
from .forward_call import as_text
from .forward_call import as_tokens as as_tokens
from .forward_call import bind_inputs as bind_inputs
from .forward_call import output_tensor as output_tensor
from .forward_call import replace_output as replace_output
from .forward_call import same_state as same_state

Prediction = Literal["flow", "epsilon", "v", "sample"]
Cfg = Literal["unconditional_first", "conditional_first", "two_calls", "unknown"]


@dataclass(frozen=True)
class Family:
    """Facts about one denoiser class.

    Args:
        denoiser: the class name in diffusers.
        prediction: what the network predicts; for checks and cards, the guidance formula is the same for all.
        component: the pipeline attribute that holds the denoiser.
        noise_level: reads t = sigma in [0, 1] from the inputs of a call and the scheduler, shape (rows,), fp32.
        state: name of the argument that holds x_t: a Tensor (rows, ...), or a list of one Tensor a row.
        text: name of the argument that holds the text tokens, (rows, L, D) or a list of (L, D); None if there is none.
        lora_scale: name of the dict argument whose "scale" entry multiplies every active LoRA; "" if there is none.
        lora_targets: layers a LoRA is trained on by default, as peft name suffixes.
        tap: the module whose input an alpha head can read: image tokens (rows, N, C) or feature maps.
        sign: +1, or -1 where the raw output is the negative of eps - x_0 (or of what `prediction` says).
        cfg: how classifier-free guidance comes. "unconditional_first": one call of [unconditional, conditional] rows;
            "conditional_first": of [conditional, unconditional] rows; "two_calls" at the same x_t, the conditional one
            first, as in every pipeline of diffusers that makes two; "unknown".
        skips_cfg: whether a step of a pipeline that uses classifier-free guidance is without it, from the inputs and
            the pipeline. For "unconditional_first" and "conditional_first" only.
        is_auxiliary: whether a call is an extra one of the step before it (skip-layer guidance), at the same x_t and t.
            It has the conditional rows only, and is given the alpha already found for them.
        unbatched: arguments that are the same for all rows, whatever their first dimension happens to be.
        row_lists: arguments that are lists of one entry a row. All other Tensors whose first dimension is the number of
            rows, alone or in lists, tuples and dicts, hold one entry a row.
        row_dims: arguments whose rows lie along another dimension than the first.
        listed: False for a family made from a signature.
    """

    denoiser: str
    prediction: Prediction
    component: str
    noise_level: Callable[[Inputs, Any], Tensor]
    state: str
    text: str | None
    lora_scale: str
    lora_targets: tuple[str, ...]
    tap: str = "norm_out"
    sign: Literal[1, -1] = 1
    cfg: Cfg = "unconditional_first"
    skips_cfg: Callable[[Inputs, Any], bool] = lambda inputs, pipe: False
    is_auxiliary: Callable[[Inputs], bool] = lambda inputs: False
    unbatched: frozenset[str] = frozenset()
    row_lists: frozenset[str] = frozenset()
    row_dims: Mapping[str, int] = field(default_factory=dict)
    listed: bool = True

    @property
    def batched_cfg(self) -> bool:
        """Whether classifier-free guidance is one call with twice the rows."""
        return self.cfg in ("unconditional_first", "conditional_first")

    def rows(self, inputs: Inputs) -> int:
        """The number of rows of a call."""
        return len(inputs[self.state])

    def conditional(self, rows: int, doubled: bool) -> slice:
        """Which of a call's rows are conditional: one a sample. `doubled`: the others are unconditional."""
        if not doubled or not self.batched_cfg:
            return slice(0, rows)
        return slice(rows // 2, rows) if self.cfg == "unconditional_first" else slice(0, rows // 2)

    def read_text(self, inputs: Inputs) -> Tensor | None:
        """The text tokens of a call, (rows, L, D), shorter ones padded with zeros; None where none are known."""
        return None if self.text is None else as_text(inputs[self.text])

    def take_rows(self, inputs: Inputs, index: Sequence[int]) -> dict[str, Any]:
        """The arguments of a call for some of its rows, in this order; a row may be taken twice.

        Args:
            inputs: from `bind_inputs`.
            index: of the rows, each in [0, rows).
        """
        rows = self.rows(inputs)

        def take(name: str, value: Any) -> Any:
            if name in self.unbatched:
                return value
            if name in self.row_lists and isinstance(value, (list, tuple)):
                return type(value)(value[i] for i in index)
            return _take(value, self.row_dims.get(name, 0), rows, index)

        return {name: take(name, value) for name, value in inputs.items()}

    def output(self, scheduler: Any) -> Prediction:
        """What the raw output is, up to `sign`. One class may predict noise or velocity; its scheduler knows."""
        said = getattr(getattr(scheduler, "config", None), "prediction_type", None)
        names: dict[Any, Prediction] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
        return self.prediction if self.prediction == "flow" else names.get(said, self.prediction)

    def check_rows_are_known(self, cfg: bool) -> None:
        """For a positive adapter, whose alpha is that of the conditional rows.

        Raises:
            FamilyError: classifier-free guidance is on, and nobody has said how its rows come.
        """
        if cfg and self.cfg == "unknown":
            raise FamilyError(
                f"classifier-free guidance is on, and {self.denoiser} has no row in nft_pipeline.families that says "
                "which rows are the conditional ones, from which alpha is read. Switch it off (guidance_scale=1, no "
                "negative prompt), use a policy adapter, or add the row."
            )


def _take(value: Any, dim: int, rows: int, index: Sequence[int]) -> Any:
    if isinstance(value, Tensor):
        if value.ndim <= dim or value.shape[dim] != rows:
            return value
        return value.index_select(dim, torch.tensor(index, device=value.device))
    if isinstance(value, dict):
        return {key: _take(item, dim, rows, index) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_take(item, dim, rows, index) for item in value)
    return value


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
    return FAMILIES[kind.__name__] if kind.__name__ in FAMILIES else _generic_family(kind)  # type: ignore[arg-type]


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
