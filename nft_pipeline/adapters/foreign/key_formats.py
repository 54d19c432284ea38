"""Key formats: how tools write the keys of a LoRA's tensors. A further tool's format is a further row of `KEY_FORMATS`.

    <prefix><name of the layer>.<a or b>.weight        lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight

Before the prefix may stand peft's "base_model.model.", and for the prefix the name of the pipeline's part, such as
"transformer.". The name of the layer is diffusers' or that of the original checkpoint; rename.py tells them apart.
Standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class KeyFormat:
    """How one kind of tools writes the keys of a LoRA.

    Args:
        tools: whose format it is, in words.
        a: what the key of A (rank, in) has behind the name of the layer, without the dot and ".weight".
        b: the same for B (out, rank).
        prefix: what stands before the name of the layer, default "".
        underscored: whether the dots in the name of the layer are underscores, default False.
        names_adapter: whether a name of the adapter may stand behind `a` and `b`, as ".default"; default False.
    """

    tools: str
    a: str
    b: str
    prefix: str = ""
    underscored: bool = False
    names_adapter: bool = False


KEY_FORMATS = (
    KeyFormat("peft and diffusers", a="lora_A", b="lora_B", names_adapter=True),
    KeyFormat("diffusers before it used peft", a="lora.down", b="lora.up"),
    KeyFormat("ComfyUI and ai-toolkit", a="lora_A", b="lora_B", prefix="diffusion_model.", names_adapter=True),
    # Before kohya's, which its prefix begins with.
    KeyFormat("VideoX-Fun", a="lora_down", b="lora_up", prefix="lora_unet__", underscored=True),
    KeyFormat("kohya and musubi-tuner", a="lora_down", b="lora_up", prefix="lora_unet_", underscored=True),
    KeyFormat("OneTrainer", a="lora_down", b="lora_up", prefix="lora_transformer_", underscored=True),
)


def sides() -> dict[str, str]:
    """ "A" or "B" by what a key has behind the name of the layer."""
    return {form.a: "A" for form in KEY_FORMATS} | {form.b: "B" for form in KEY_FORMATS}


def key_pattern() -> re.Pattern[str]:
    """A whole key: of A or B with the groups `path` and `part`, or `path`, `named` and `adapter`; else with `alpha`.

    The path is the shortest that fits, so that "x.lora.down.weight" is the layer x also where a format writes "down".
    """
    part = "|".join(map(re.escape, sides()))
    named = "|".join(re.escape(end) for form in KEY_FORMATS if form.names_adapter for end in (form.a, form.b))
    pair = rf"(?P<path>.+?)\.(?:(?P<part>{part})|(?P<named>{named})\.(?P<adapter>[^.]+))\.weight"
    return re.compile(rf"{pair}|(?P<alpha>.+)\.alpha")


def dotted_prefixes() -> tuple[str, ...]:
    """What stands before the name of a layer that is written with dots."""
    return tuple(form.prefix for form in KEY_FORMATS if form.prefix and not form.underscored)


def underscored_prefixes() -> tuple[str, ...]:
    """What stands before the name of a layer whose dots are underscores."""
    return tuple(form.prefix for form in KEY_FORMATS if form.underscored)


def written_as(path: str) -> KeyFormat:
    """The format that writes layers so: the one whose prefix the path begins with, else the first."""
    return next((form for form in KEY_FORMATS if form.prefix and path.startswith(form.prefix)), KEY_FORMATS[0])
