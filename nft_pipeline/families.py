"""What the engine must know about a denoiser class, and nothing about how it is guided.

A family is a row of facts keyed by the denoiser's class name: how the noise level t in [0, 1] is read from a forward
call, where the text tokens come in, which calls are extra ones of a step, which layers a LoRA is usually trained on.
The raw outputs need no facts at all: noise, x_0, VP velocity and flow models are combined alike (DESIGN M9).

    family = family_of(pipe.transformer)
    inputs = bind_inputs(pipe.transformer, args, kwargs)     # the call's arguments by name
    family.noise_level(inputs, pipe.scheduler)               # (B,), t in [0, 1]

To add a family, add a row to `FAMILIES` and a case to tests/helpers/zoo.py.
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
        noise_level: reads t = sigma in [0, 1] from the inputs of a call and the scheduler, shape (B,), fp32.
        state: name of the argument that holds x_t, whose first dimension is the batch.
        text: name of the argument that holds the text tokens, shape (B, L, D); None if there is none.
        lora_scale: name of the dict argument whose "scale" entry multiplies every active LoRA.
        lora_targets: layers a LoRA is trained on by default, as peft name suffixes.
        batched_cfg: whether classifier-free guidance is one call of [unconditional, conditional] rows. If not, it is
            two calls at the same x_t, the conditional one first.
        unbatched: names of the arguments whose Tensors have no dimension of rows.
        row_lists: names of the arguments that are lists with one entry a row.
        is_auxiliary: whether a call is an extra one of the step before it (skip-layer guidance), at the same x_t and t.
            It has the conditional rows only, and is given the alpha already found for them.
    """

    denoiser: str
    prediction: Prediction
    component: str
    noise_level: Callable[[Inputs, Any], Tensor]
    state: str
    text: str | None
    lora_scale: str
    lora_targets: tuple[str, ...]
    batched_cfg: bool = True
    unbatched: tuple[str, ...] = ()
    row_lists: tuple[str, ...] = ()
    is_auxiliary: Callable[[Inputs], bool] = lambda inputs: False

    def output(self, scheduler: Any) -> tuple[str, float]:
        """What the raw output is, and its sign. One UNet class predicts noise or velocity; its scheduler knows."""
        said = getattr(getattr(scheduler, "config", None), "prediction_type", None)
        if self.prediction == "flow" or said is None:
            return self.prediction, 1.0
        return {"v_prediction": "v"}.get(said, said), 1.0


def _timestep(inputs: Inputs, state: str) -> Tensor:
    """The timestep as passed, one a sample or one for all, as (B,) fp32."""
    return torch.as_tensor(inputs["timestep"], device=inputs[state].device).float().expand(inputs[state].shape[0])


def _flow_timestep(inputs: Inputs, scheduler: Any) -> Tensor:
    """timestep = 1000 t."""
    return _timestep(inputs, "hidden_states") / 1000.0


def _flow_fraction(inputs: Inputs, scheduler: Any) -> Tensor:
    """timestep = t: these pipelines divide by 1000 themselves."""
    return _timestep(inputs, "hidden_states")


def _variance_preserving(state: str) -> Callable[[Inputs, Any], Tensor]:
    """Of pipelines whose timestep is an index, whole or fractional, into the scheduler's alphas_cumprod.

    x = sqrt(a) x_0 + sqrt(1 - a) eps is a multiple of (1 - t) x_0 + t eps for t = sigma / (1 + sigma), with
    sigma = sqrt((1 - a) / a). Between two indices log sigma is linear, as Euler schedulers have it.
    """

    def noise_level(inputs: Inputs, scheduler: Any) -> Tensor:
        a = getattr(scheduler, "alphas_cumprod", None)
        if a is None:
            raise FamilyError(
                f"cannot tell the noise level of a timestep: the scheduler is a {type(scheduler).__name__}, expected "
                "one with alphas_cumprod, such as DDIMScheduler or EulerDiscreteScheduler. Set pipe.scheduler to one."
            )
        timestep = _timestep(inputs, state)
        # A schedule that ends in pure noise has a = 0 there, sigma infinite; t is 1 in fp32 long before.
        log_sigma = (0.5 * torch.log((1 - a) / a)).clamp(max=20.0).to(timestep.device, torch.float32)
        index = timestep.clamp(0, len(log_sigma) - 1)
        below = index.floor().long()
        above = (below + 1).clamp(max=len(log_sigma) - 1)
        # sigma / (1 + sigma) is the logistic function of log sigma.
        return torch.sigmoid(torch.lerp(log_sigma[below], log_sigma[above], index - below))

    return noise_level


_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_JOINT_ATTENTION = (*_ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

_SD3 = Family(
    denoiser="SD3Transformer2DModel",
    prediction="flow",
    component="transformer",
    noise_level=_flow_timestep,
    state="hidden_states",
    text="encoder_hidden_states",
    lora_scale="joint_attention_kwargs",
    lora_targets=_JOINT_ATTENTION,
    is_auxiliary=lambda inputs: inputs.get("skip_layers") is not None,
)
_FLUX = Family(
    denoiser="FluxTransformer2DModel",
    prediction="flow",
    component="transformer",
    noise_level=_flow_fraction,
    state="hidden_states",
    text="encoder_hidden_states",
    lora_scale="joint_attention_kwargs",
    lora_targets=_JOINT_ATTENTION,
    batched_cfg=False,
    unbatched=("img_ids", "txt_ids"),
)
_QWEN_IMAGE = Family(
    denoiser="QwenImageTransformer2DModel",
    prediction="flow",
    component="transformer",
    noise_level=_flow_fraction,
    state="hidden_states",
    text="encoder_hidden_states",
    lora_scale="attention_kwargs",
    lora_targets=_JOINT_ATTENTION,
    batched_cfg=False,
    row_lists=("img_shapes", "txt_seq_lens"),
)
_UNET = Family(  # Stable Diffusion 1 and 2 and SDXL; SD 2.1 predicts v, which nothing here depends on
    denoiser="UNet2DConditionModel",
    prediction="epsilon",
    component="unet",
    noise_level=_variance_preserving("sample"),
    state="sample",
    text="encoder_hidden_states",
    lora_scale="cross_attention_kwargs",
    lora_targets=_ATTENTION,
)

FAMILIES: dict[str, Family] = {family.denoiser: family for family in (_SD3, _FLUX, _QWEN_IMAGE, _UNET)}


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
            "Use a pipeline with one of these (docs/pipelines.md), for example StableDiffusion3Pipeline."
        )
    return FAMILIES[name]


def bind_inputs(denoiser: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A forward call's arguments by name, however they were passed.

    Raises:
        FamilyError: the arguments do not fit the denoiser's forward.
    """
    try:
        signature = inspect.signature(type(denoiser).forward)
        bound = dict(signature.bind(denoiser, *args, **kwargs).arguments)
    except TypeError as error:
        raise FamilyError(f"{type(denoiser).__name__} was called with arguments it does not take: {error}") from error
    del bound[next(iter(signature.parameters))]  # self
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            bound.update(bound.pop(name, {}))
    return bound


def as_tokens(features: Tensor) -> Tensor:
    """What an alpha head reads, as tokens (B, N, C): a UNet's feature maps (B, C, H, W) become one token a place."""
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features


def output_tensor(output: Any) -> Tensor:
    """The prediction in what a denoiser returned: the first element of a tuple, or the model output's `sample`."""
    return output[0] if isinstance(output, tuple) else output.sample


def replace_output(output: Any, prediction: Tensor) -> Any:
    """The same output with another prediction; everything else stays the base pass's."""
    if isinstance(output, tuple):
        return (prediction, *output[1:])
    return type(output)(**{**output, "sample": prediction})
