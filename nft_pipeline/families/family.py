"""What a family of denoisers is: facts about one denoiser class, and a forward call of it read by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import FamilyError
from .forward_call import Inputs, as_text
from .layer_names import LayerNames
from .prediction import Prediction

Cfg = Literal["unconditional_first", "conditional_first", "two_calls", "unknown"]


# Layers of attention, as diffusers names them: of one stream of tokens, and of pictures and text side by side.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
JOINT_ATTENTION = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


@dataclass(frozen=True)
class Family:
    """All facts about one denoiser class. The defaults are what most transformers of diffusers have in common.

    Args:
        denoiser: the class name in diffusers.
        noise_level: reads t = sigma in [0, 1] from the inputs of a call and the scheduler, shape (rows,), fp32; see
            `nft_pipeline.families.noise_level` for readers.
        prediction: what the network predicts; for checks and cards, the guidance formula is the same for all. Default
            "flow"; of the others the pipeline's scheduler has the last word.
        component: the pipeline attribute that holds the denoiser.
        state: name of the argument that holds x_t: a Tensor (rows, ...), or a list of one Tensor per row.
        text: name of the argument that holds the text tokens, (rows, L, D) or a list of (L, D); None if there is none.
        lora_scale: name of the dict argument whose "scale" entry multiplies every active LoRA; "" if there is none.
        lora_targets: layers a LoRA is trained on by default, as peft name suffixes.
        tap: the module whose input an alpha head can read: image tokens (rows, N, C) or feature maps.
        sign: +1, or -1 where the raw output is the negative of eps - x_0 (or of what `prediction` says).
        cfg: how classifier-free guidance comes. "unconditional_first": one call of [unconditional, conditional] rows;
            "conditional_first": of [conditional, unconditional] rows; "two_calls" at the same x_t, the conditional one
            first, as in every pipeline of diffusers that makes two; "unknown".
        skips_cfg: whether a step of a pipeline that uses classifier-free guidance is without it, from the inputs and
            the pipeline. For "unconditional_first" and "conditional_first" only. Default: no step is.
        is_auxiliary: whether a call is an extra one that belongs to the step before it (skip-layer guidance), at the
            same x_t and t. It has only the conditional rows, and it uses the alpha already found for them. Default: no
            call is.
        unbatched: arguments that are the same for all rows, whatever their first dimension happens to be.
        row_lists: arguments that are lists of one entry per row. All other Tensors whose first dimension is the number
            of rows, alone or in lists, tuples and dicts, hold one entry per row.
        row_dims: arguments whose rows lie along another dimension than the first.
        comfyui_tap: the module of ComfyUI's model, relative to its MODEL, that has the same input as `tap`. Default
            None: nobody has found it, and ComfyUI uses adapters for this class as policies only.
        layer_names: what other tools call the layers. Default: diffusers' names alone.
        workflows: templates in example_workflows, by a part of the base model's id in lower case; the first that fits
            is the one a card shows. "" fits every base model. Default: none.
        video: whether cards say that the class draws videos; False (default) also for one that draws both.
    """

    denoiser: str
    noise_level: Callable[[Inputs, Any], Tensor]
    prediction: Prediction = "flow"
    component: str = "transformer"
    state: str = "hidden_states"
    text: str | None = "encoder_hidden_states"
    lora_scale: str = "attention_kwargs"
    lora_targets: tuple[str, ...] = ATTENTION
    tap: str = "norm_out"
    sign: Literal[1, -1] = 1
    cfg: Cfg = "unconditional_first"
    skips_cfg: Callable[[Inputs, Any], bool] = lambda inputs, pipe: False
    is_auxiliary: Callable[[Inputs], bool] = lambda inputs: False
    unbatched: frozenset[str] = frozenset()
    row_lists: frozenset[str] = frozenset()
    row_dims: Mapping[str, int] = field(default_factory=dict)
    comfyui_tap: str | None = None
    layer_names: LayerNames = LayerNames()  # noqa: RUF009  frozen
    workflows: Mapping[str, str] = field(default_factory=dict)
    video: bool = False

    @property
    def batched_cfg(self) -> bool:
        """Whether classifier-free guidance is one call with twice the rows."""
        return self.cfg in ("unconditional_first", "conditional_first")

    def rows(self, inputs: Inputs) -> int:
        """The number of rows of a call."""
        return len(inputs[self.state])

    def conditional(self, rows: int, doubled: bool) -> slice:
        """The conditional rows of a call, one per sample. `doubled`: whether the other rows are unconditional."""
        if not doubled or not self.batched_cfg:
            return slice(0, rows)
        return slice(rows // 2, rows) if self.cfg == "unconditional_first" else slice(0, rows // 2)

    def read_text(self, inputs: Inputs) -> Tensor | None:
        """The text tokens of a call, (rows, L, D), shorter ones padded with zeros; None where none are known, or the
        pipeline gives none (AudioLDM's text is a class label)."""
        text = None if self.text is None else inputs.get(self.text)
        return None if text is None else as_text(text)

    def take_rows(self, inputs: Inputs, index: Sequence[int]) -> dict[str, Any]:
        """The arguments of a call for some of its rows, in this order; a row may be taken twice.

        Args:
            inputs: from `bind_inputs`.
            index: of the rows, each in [0, rows).
        """
        rows = self.rows(inputs)

        def take(name: str, value: Any) -> Any:
            if name == "self" or name in self.unbatched:
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

    def check_rows_are_known(self, rows: int, cfg: bool | None) -> None:
        """For a positive adapter, whose alpha is that of the conditional rows.

        Args:
            rows: of the batch.
            cfg: whether it has to do with classifier-free guidance; None if its rows are neither one nor two for each
                sample.

        Raises:
            FamilyError: nobody knows how the rows are arranged.
        """
        if cfg and self.cfg == "unknown":
            raise FamilyError(
                f"classifier-free guidance is on, and {self.denoiser} has no entry in nft_pipeline/families that says "
                "which rows are the conditional ones, from which alpha is read. Switch it off (guidance_scale=1, no "
                "negative prompt), use a policy adapter, or add the family."
            )
        if cfg is None:
            raise FamilyError(
                f"the pipeline gave {self.denoiser} a batch of {rows} rows, which are neither one for each sample that "
                "the call asks for nor two as its classifier-free guidance would need, so nobody knows from which rows "
                "alpha is to be read. Switch classifier-free guidance off (guidance_scale=1), use a policy adapter "
                'with nft_guide="both", or use the family\'s plain pipeline.'
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
