"""The scale that peft applies to a LoRA, read from the config beside its weights.

    scale = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora; r and lora_alpha may differ by layer
    (rank_pattern, alpha_pattern)

A LoRA of r 32 and lora_alpha 64 is half as strong to a reader who looks at its tensors alone: they do not hold the
scale. The config is `adapter_config.json` in a peft folder, and `lora_adapter_metadata` in the header of files that
diffusers wrote. Fields that change what a LoRA computes, and that this version does not know, are refused by name.
Source: peft's LoraConfig and LoraLayer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

# Fields that leave the change of a layer, scale * B @ A, as it is. Any other field must be empty, or is refused.
_HARMLESS = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
    *("loftq_config", "eva_config", "megatron_config", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
}
# Other ways to begin (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take a part out of the base weights, so the LoRA only fits
# weights that nobody else has.
_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# What layer names look like as regular expressions: signs of names, ".", "\.", "\d" and "[01]", each perhaps repeated.
_EXPRESSION = re.compile(r"\^?(?:(?:[\w-]|\\?\.|\\d|\[[\w-]+\])[*+]?)+\$?")
_REASONS = {
    "use_dora": "it is a DoRA, whose change is no plain B @ A",
    "modules_to_save": "whole modules were trained beside the LoRA",
    "lora_bias": "lora_B has biases",
}


def config_faults(config: Mapping[str, Any]) -> list[str]:
    """One sentence for every field that makes this more, or other, than a plain LoRA; empty if it is one.

    Args:
        config: the fields of a LoraConfig, as parsed JSON. Missing fields have peft's defaults.
    """
    faults = []
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        faults.append(f'peft_type is {kind!r}, expected "LORA"')
    if not _is_size(config.get("r", 8)) or config.get("r", 8) != int(config.get("r", 8)):
        faults.append(f"r is {config.get('r')!r}, expected a whole number above zero")
    if not _is_size(config.get("lora_alpha", 8)):
        faults.append(f"lora_alpha is {config.get('lora_alpha')!r}, expected a number above zero")
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(field) or {}
        if not isinstance(pattern, Mapping) or not all(_is_size(value) for value in pattern.values()):
            faults.append(f"{field} is {_shown(pattern)}, expected numbers above zero by layer name")
        elif not all(map(_is_expression, pattern)):
            faults.append(
                f"{field} is {_shown(pattern)}: its keys are no regular expressions made of layer names and at most "
                "two of the signs * and +; others may take for ever and are not read"
            )
    if config.get("bias", "none") != "none":
        faults.append(f'bias is {config["bias"]!r}: biases of the base model were trained, expected "none"')
    start = config.get("init_lora_weights", True)
    if start not in _HARMLESS_STARTS:
        faults.append(
            f"init_lora_weights is {start!r}: the LoRA fits base weights from which a part was taken out, not those of "
            "the model itself; convert it with peft's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    for field, value in config.items():
        if field not in _HARMLESS and value:
            reason = _REASONS.get(field, "this version does not know how that changes a LoRA")
            faults.append(f"{field} is {_shown(value)}: {reason}")
    return faults


def scale_of(config: Mapping[str, Any], module: str, rank: int) -> tuple[float, str | None]:
    """The scale of one layer, and a fault if the config and the tensors contradict each other.

    Args:
        config: without `config_faults`.
        module: the layer's name as peft knows it, without "base_model.model.".
        rank: the first dimension of its lora_A.
    """
    said = _by_pattern(config.get("rank_pattern") or {}, module, config.get("r", 8))
    alpha = _by_pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", 8))
    if said != rank:
        return 1.0, f"{module} is of rank {rank}, its config says r = {said}; which of them its scale needs is unknown"
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), None


def _by_pattern(pattern: Mapping[str, float], module: str, default: float) -> float:
    """peft's rule: the first key that, as a regular expression, is the name or its end behind a dot."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _is_size(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value) and value > 0
    except OverflowError:  # a whole number too large for a float
        return False


def _is_expression(text: str) -> bool:
    """Whether it can be matched in a bounded time: no groups, no alternatives, at most two repetitions."""
    return len(text) <= 256 and text.count("*") + text.count("+") <= 2 and _compiles(text)


def _compiles(text: str) -> bool:
    try:
        return _EXPRESSION.fullmatch(text) is not None and re.compile(text) is not None
    except re.error:  # such as the range [z-a]
        return False


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
