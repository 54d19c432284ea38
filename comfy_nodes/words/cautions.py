"""What may be wrong with a guided picture although it is drawn: a label for a badge on the node, and a sentence.

The sentence stands in the live text under the node too. What cannot be drawn at all is an error instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Caution(NamedTuple):
    """One thing to say.

    Args:
        label: a few words for a badge.
        text: a sentence or two: what it is, and what to do.
    """

    label: str
    text: str


LOADED_TWICE = Caution(
    "loaded twice",
    "WARNING: a LoRA loader or a hook has put this adapter's LoRA into the model already, so the base model contains "
    "it. Remove that node: guidance switches the LoRA itself.",
)
UNKNOWN_SCALE = Caution(
    "half strength?",
    "WARNING: no scale is recorded. Files from peft, DiffusionNFT's among them, were often trained at scale 2 "
    "(rank 32, lora_alpha 64) and then come out at half strength here and in any LoRA loader; keep "
    "adapter_config.json beside adapter_model.safetensors, or ask the author.",
)
FAST_IN_CHAIN = Caution(
    "fast in a chain",
    'WARNING: an adapter in mode "fast" leaves its LoRA on, so the others of this chain measure their pushes from the '
    'model with it. Set mode to "exact" in all of them to have each measured from your model alone.',
)
NOT_ASKED = Caution(
    "not guided",
    "guidance did not act: this sampler or guider asks the model for predictions in a way of its own",
)
NO_EFFECT = Caution("no effect", "guidance had no effect, the LoRA changed nothing in any step")


def text_left_out(layers: Mapping[str, int]) -> Caution:
    """That the layers of text encoders in a file do nothing.

    Args:
        layers: how many of them, by the name of the text encoder in the file.
    """
    counts = ", ".join(f"{number} of {part}" for part, number in layers.items())
    return Caution(
        "text encoder ignored",
        f"WARNING: the file's text-encoder layers ({counts}) are ignored, because the prompt is encoded once, with "
        "guidance and without. Pictures may differ from those of a LoRA loader, which uses them.",
    )
