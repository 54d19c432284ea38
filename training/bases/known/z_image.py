"""Z-Image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base import Conditions, TrainBase


class ZImageBase(TrainBase):
    """Z-Image: lists with one picture and one text of its own length per row; time runs from noise to picture.

    Its pipeline counts guidance from 0: pos + scale (pos - neg), which is CFG at scale + 1.
    """

    pipeline_class = "ZImagePipeline"
    model = "Z-Image"
    note = (
        "`guidance_scale: 1` means no guidance, as for every other model. Z-Image's own pipeline calls that 0, "
        "and 0 is what the adapter stores."
    )
    patch = 2
    default_resolution = (1024, 1024)

    def prepare(self) -> None:
        """Counts guidance as the pipeline does: its scale is the usual one less 1."""
        self.call["guidance_scale"] = max(0.0, self.guidance_scale - 1)

    def _encode(self, prompts: list[str]) -> Conditions:
        texts, _ = self._encode_prompt(prompts, do_classifier_free_guidance=False)
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "text": pad(texts, batch_first=True),
            "mask": pad([torch.ones(len(text)) for text in texts], batch_first=True),
        }

    def _texts(self, conditions: Conditions) -> list[Tensor]:
        return [text[mask.bool()] for text, mask in zip(conditions["text"], conditions["mask"], strict=True)]

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        """Lists of one picture and one text per row, and the model's own time 1 - t."""
        return {"x": self.pack(x_t), "t": 1 - t, "cap_feats": self._texts(conditions)}

    def pack(self, latents: Tensor) -> list[Tensor]:
        """Latents (B, C, h, w) as a list of B pictures (C, 1, h, w)."""
        return list(latents.unsqueeze(2).unbind(0))

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        """The output without its frame axis."""
        return output.squeeze(2)

    def finish(self, output: Tensor, noise: Tensor) -> Tensor:
        """The latents as they come."""
        return output

    def call_conditions(self, conditions: Conditions) -> dict[str, Any]:
        """A list of texts, each of its own length."""
        return {"prompt_embeds": self._texts(conditions)}
