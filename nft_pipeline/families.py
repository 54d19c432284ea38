"""What the engine must know about a denoiser class, and nothing about how it is guided.

A family is a row of facts keyed by the denoiser's class name: how the noise level t in [0, 1] is read from a forward
call, where the text tokens come in, which calls are extra ones of a step, which layers a LoRA is usually trained on.
The raw outputs need no facts at all: noise, x_0, VP velocity and flow models are combined alike (DESIGN M9).

    family = family_of(pipe.transformer)
    inputs = bind_inputs(pipe.transformer, args, kwargs)     # the call's arguments by name
    family.noise_level(inputs)                               # (B,), t in [0, 1]

To add a family, add a row to `FAMILIES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Inputs = Mapping[str, Any]
Prediction = Literal["flow", "epsilon", "v", "sample"]


class FamilyError(ValueError):
    """A denoiser that this version cannot guide, or a call of it that it cannot read."""


@dataclass(frozen=True)
class Family:
    """Facts about one denoiser class.

    Args:
        denoiser: the class name in diffusers.
        prediction: what the network predicts; for checks and cards, the guidance formula is the same for all.
        component: the pipeline attribute that holds the denoiser.
        noise_level: reads t = sigma in [0, 1] from the inputs of a call, shape (B,), fp32.
        state: name of the argument that holds x_t, whose first dimension is the batch.
        text: name of the argument that holds the text tokens, shape (B, L, D); None if there is none.
        lora_scale: name of the dict argument whose "scale" entry multiplies every active LoRA.
        lora_targets: layers a LoRA is trained on by default, as peft name suffixes.
        is_auxiliary: whether a call is an extra one of the step before it (skip-layer guidance), at the same x_t and t.
            It has the conditional rows only, and is given the alpha already found for them.
    """

    denoiser: str
    prediction: Prediction
    component: str
    noise_level: Callable[[Inputs], Tensor]
    state: str
    text: str | None
    lora_scale: str
    lora_targets: tuple[str, ...]
    is_auxiliary: Callable[[Inputs], bool]


def _flow_timestep(inputs: Inputs) -> Tensor:
    """Flow-match pipelines pass timestep = 1000 t, one a sample or one for all."""
    timestep = torch.as_tensor(inputs["timestep"], device=inputs["hidden_states"].device)
    return (timestep.float() / 1000.0).expand(inputs["hidden_states"].shape[0])


_SD3 = Family(
    denoiser="SD3Transformer2DModel",
    prediction="flow",
    component="transformer",
    noise_level=_flow_timestep,
    state="hidden_states",
    text="encoder_hidden_states",
    lora_scale="joint_attention_kwargs",
    lora_targets=(
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
    ),
    is_auxiliary=lambda inputs: inputs.get("skip_layers") is not None,
)

FAMILIES: dict[str, Family] = {family.denoiser: family for family in (_SD3,)}


def unwrap_compiled(denoiser: nn.Module) -> nn.Module:
    """The module itself where `torch.compile` put a wrapper around it: hooks belong on the module."""
    return getattr(denoiser, "_orig_mod", denoiser)


def family_of(denoiser: nn.Module) -> Family:
    """The facts about a denoiser.

    Raises:
        FamilyError: the class has no row in `FAMILIES`.
    """
    name = type(unwrap_compiled(denoiser)).__name__
    if name not in FAMILIES:
        raise FamilyError(
            f"the denoiser is a {name}, which this version cannot guide; it knows {', '.join(sorted(FAMILIES))}. "
            "Use a pipeline with one of these, for example StableDiffusion3Pipeline."
        )
    return FAMILIES[name]


def bind_inputs(denoiser: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A forward call's arguments by name, however they were passed.

    Raises:
        FamilyError: the arguments do not fit the denoiser's forward.
    """
    try:
        return dict(inspect.signature(type(denoiser).forward).bind(denoiser, *args, **kwargs).arguments)
    except TypeError as error:
        raise FamilyError(f"{type(denoiser).__name__} was called with arguments it does not take: {error}") from error


def output_tensor(output: Any) -> Tensor:
    """The prediction in what a denoiser returned: the first element of a tuple, or the model output's `sample`."""
    return output[0] if isinstance(output, tuple) else output.sample


def replace_output(output: Any, prediction: Tensor) -> Any:
    """The same output with another prediction; everything else stays the base pass's."""
    if isinstance(output, tuple):
        return (prediction, *output[1:])
    return type(output)(**{**output, "sample": prediction})
