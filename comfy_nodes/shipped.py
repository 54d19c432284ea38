"""The shipped models' text encoders and VAEs as ComfyUI uses them, and the sizes that they can draw.

Their transformers need ComfyUI's loader only.
ComfyUI's own loaders recognise text encoders by their sizes and a VAE by its channels; these are too small to be
recognised. So this module has a CLIP and a VAE with all that the nodes need which encode a prompt, decode and encode.
The first uses transformers and tokenizers, which ComfyUI ships, the second uses torch. Both are small and run on the
CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from nft_pipeline.errors import GuidanceError

SIDE, LARGEST = 64, 128  # pixels: what they were trained on, and what they have positions for
WEIGHTS = "diffusion_pytorch_model.safetensors"
_ENCODERS = ("text_encoder", "text_encoder_2")
_GROUPS = 2  # norm_num_groups of both VAEs' configs
_BLOCKS = 4


def refuse_large_pictures(
    executor: Any,
    guider: Any,
    sigmas: Tensor,
    extra_args: Any,
    callback: Any,
    noise: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wraps the sampler: executor(guider, sigmas, extra_args, callback, noise, ...).

    Raises:
        GuidanceError: the latents, (B, 16, h, w), are of a picture that is larger than the model can draw.
    """
    height, width = (8 * side for side in noise.shape[-2:])
    if max(height, width) > LARGEST:
        raise GuidanceError(
            f"this small model draws pictures of {SIDE} x {SIDE} pixels, at most {LARGEST} x {LARGEST}, and was asked "
            f"for {width} x {height}. Set width and height of the empty latent to {SIDE}."
        )
    return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)


class ShippedText:
    """A CLIP: words to conditioning, as StableDiffusion3Pipeline makes it without its third text encoder.

    Args:
        folder: of a shipped model.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer
        from transformers import CLIPTextModelWithProjection

        self._encoders = [CLIPTextModelWithProjection.from_pretrained(folder / name).eval() for name in _ENCODERS]
        config = self._encoders[0].config
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
        self._tokenizer.enable_truncation(config.max_position_embeddings)
        self._tokenizer.enable_padding(length=config.max_position_embeddings, pad_id=config.pad_token_id)

    def tokenize(self, text: str, **options: Any) -> Tensor:
        """Token numbers, (1, as many as the model takes); what is longer is cut off."""
        return torch.tensor([self._tokenizer.encode(text).ids])

    def encode_from_tokens_scheduled(self, tokens: Tensor, **options: Any) -> list[Any]:
        """CONDITIONING: words (1, tokens, width) from the layers before the last, and both poolings (1, width), where
        width is that of both encoders together."""
        with torch.no_grad():
            found = [encoder(tokens, output_hidden_states=True) for encoder in self._encoders]
        words = torch.cat([one.hidden_states[-2] for one in found], -1)
        return [[words, {"pooled_output": torch.cat([one.text_embeds for one in found], -1)}]]


class ShippedVAE:
    """A VAE: latents (B, 16, h, w) to pictures (B, 8 h, 8 w, 3) in [0, 1], and back.

    Args:
        folder: of a shipped model.
    """

    def __init__(self, folder: Path) -> None:
        self._weights = {key: tensor.float() for key, tensor in load_file(folder / "vae" / WEIGHTS).items()}

    def decode(self, samples: Tensor, **options: Any) -> Tensor:
        """Pictures of latents."""
        h = self._middle(self._conv(samples.cpu().float(), "decoder.conv_in"), "decoder")
        for i in range(_BLOCKS):
            for j in range(2):
                h = self._resnet(h, f"decoder.up_blocks.{i}.resnets.{j}")
            if i < _BLOCKS - 1:
                h = self._conv(F.interpolate(h, scale_factor=2.0), f"decoder.up_blocks.{i}.upsamplers.0.conv")
        return (self._out(h, "decoder") / 2 + 0.5).clamp(0, 1).movedim(1, -1)

    def encode(self, pixels: Tensor, **options: Any) -> Tensor:
        """Latents of pictures, the mean of what they could be; sides are cut to multiples of 8."""
        height, width = (side // 8 * 8 for side in pixels.shape[1:3])
        x = pixels[:, :height, :width, :3].cpu().float().movedim(-1, 1) * 2 - 1
        h = self._conv(x, "encoder.conv_in")
        for i in range(_BLOCKS):
            h = self._resnet(h, f"encoder.down_blocks.{i}.resnets.0")
            if i < _BLOCKS - 1:
                h = self._conv(F.pad(h, (0, 1, 0, 1)), f"encoder.down_blocks.{i}.downsamplers.0.conv", 2, 0)
        return self._out(self._middle(h, "encoder"), "encoder").chunk(2, 1)[0]

    def _conv(self, x: Tensor, name: str, stride: int = 1, padding: int | None = None) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2 if padding is None else padding)

    def _activated(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.silu(F.group_norm(x, _GROUPS, weight, bias, eps=1e-6))

    def _resnet(self, x: Tensor, name: str) -> Tensor:
        h = self._conv(self._activated(x, f"{name}.norm1"), f"{name}.conv1")
        h = self._conv(self._activated(h, f"{name}.norm2"), f"{name}.conv2")
        shortcut = f"{name}.conv_shortcut"
        return h + (self._conv(x, shortcut) if f"{shortcut}.weight" in self._weights else x)

    def _middle(self, h: Tensor, side: str) -> Tensor:
        for j in range(2):
            h = self._resnet(h, f"{side}.mid_block.resnets.{j}")
        return h

    def _out(self, h: Tensor, side: str) -> Tensor:
        return self._conv(self._activated(h, f"{side}.conv_norm_out"), f"{side}.conv_out")
