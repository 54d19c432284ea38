"""Rewards on CLIP: pickscore, clip_score and aesthetic, through transformers' CLIPModel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..contract import RewardInfo
from ..models.model_reward import ModelReward
from ..models.weights import check_keys, from_hub, identity, locate_file, pretrained

REWARDS = {"pickscore": "PickScore", "clip_score": "ClipScore", "aesthetic": "Aesthetic"}


class _Clip(ModelReward):
    """A CLIP model and its tokenizer, from a folder or the Hub."""

    def __init__(self, weights: str, tokenizer: str | None, device: str, dtype: str, batch: int) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self.device, self.batch = torch.device(device), batch
        self.model = pretrained(CLIPModel, weights, dtype).to(self.device)
        words = tokenizer or weights
        self.tokenizer: Any = from_hub(words, lambda: AutoTokenizer.from_pretrained(words))
        self.size = self.model.config.vision_config.image_size
        self.version = identity(weights, getattr(self.model.config, "_commit_hash", None)) + f" {dtype}"

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Unit vectors, float32 (B, D)."""
        seen = self.model.vision_model(pixel_values=pixels.to(self.model.dtype)).pooler_output
        return normalize(self.model.visual_projection(seen).float(), dim=-1)

    def embed_prompts(self, prompts: list[str]) -> Tensor:
        """Unit vectors, float32 (B, D); a prompt longer than the model's 77 tokens is cut."""
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(prompts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        read = self.model.text_model(
            input_ids=tokens.input_ids.to(self.device), attention_mask=tokens.attention_mask.to(self.device)
        ).pooler_output
        return normalize(self.model.text_projection(read).float(), dim=-1)

    def cosine(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """cos(picture, prompt), shape (B,)."""
        with torch.no_grad():
            text = self.embed_prompts(prompts)
        return (self.embed_pixels(pixels) * text).sum(dim=-1)


class ClipScore(_Clip):
    """100 cos(picture, prompt) (2104.08718, without its factor 2.5 and the cut at 0): does the picture fit the words?

    Args:
        weights: a CLIP model, a folder or a Hub id.
        device, dtype: where and in what it is computed.
        batch: pictures at once; fewer need less memory.
    """

    info = RewardInfo(name="clip_score", range=(-100.0, 100.0), middle=25.0, spread=3.0, licence="MIT", memory_gb=1.8)

    def __init__(
        self,
        weights: str = "openai/clip-vit-large-patch14",
        device: str = "cpu",
        dtype: str = "float32",
        batch: int = 32,
    ) -> None:
        super().__init__(weights, None, device, dtype, batch)
        self.info = replace(self.info, version=f"1 {self.version}")

    def score_pixels(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """100 cos(picture, prompt), at most 100."""
        return 100 * self.cosine(pixels, prompts)


class PickScore(_Clip):
    """exp(logit scale) cos(picture, prompt) of a CLIP-H tuned on half a million choices of people (2305.01569).

    Args:
        weights: the PickScore model, a folder or a Hub id.
        tokenizer: where its tokenizer is (default: that of the model it was tuned from, on the Hub; with a folder as
            `weights`, that folder).
        device, dtype: where and in what it is computed.
        batch: pictures at once; fewer need less memory.
    """

    info = RewardInfo(name="pickscore", range=(-100.0, 100.0), middle=21.0, spread=1.0, licence="MIT", memory_gb=4.0)

    def __init__(
        self,
        weights: str = "yuvalkirstain/PickScore_v1",
        tokenizer: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        batch: int = 16,
    ) -> None:
        if tokenizer is None and weights == "yuvalkirstain/PickScore_v1":
            tokenizer = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
        super().__init__(weights, tokenizer, device, dtype, batch)
        self.info = replace(self.info, version=f"1 {self.version}")

    def score_pixels(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """exp(logit scale) cos(picture, prompt), about 20."""
        return self.model.logit_scale.float().exp() * self.cosine(pixels, prompts)


class Aesthetic(_Clip):
    """LAION's improved aesthetic predictor: a small network on CLIP ViT-L/14, from 1 (ugly) to 10; blind to the prompt.

    Args:
        weights: the CLIP model, a folder or a Hub id.
        head: the predictor's weights (`.pth` or `.safetensors`), a file, or a Hub id or folder that has
            aesthetic-model.pth.
        device, dtype: where and in what CLIP is computed; the head is computed in float32.
        batch: pictures at once; fewer need less memory.
    """

    info = RewardInfo(
        name="aesthetic",
        range=(1.0, 10.0),
        middle=5.5,
        spread=0.75,
        licence="MIT (CLIP), Apache-2.0 (head)",
        memory_gb=1.8,
    )

    def __init__(
        self,
        weights: str = "openai/clip-vit-large-patch14",
        head: str = "trl-lib/ddpo-aesthetic-predictor",
        device: str = "cpu",
        dtype: str = "float32",
        batch: int = 32,
    ) -> None:
        super().__init__(weights, None, device, dtype, batch)
        self.head = AestheticHead(self.model.config.projection_dim)
        file = locate_file(head, "aesthetic-model.pth")
        state = _read_tensors(file)
        missing, unexpected = self.head.load_state_dict(state, strict=False)
        check_keys(missing, unexpected, f"the tensors of {file.name}")
        self.head.to(self.device).eval().requires_grad_(False)
        self.info = replace(self.info, version=f"1 {self.version} {identity(str(file))}")

    def score_pixels(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """The predictor's mark, from 1 to 10."""
        return self.head(self.embed_pixels(pixels)).squeeze(-1)


class AestheticHead(nn.Module):
    """Five linear layers with nothing between them but, in training, dropout; (B, D) unit vectors to (B, 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, embedding: Tensor) -> Tensor:
        """Marks (B, 1) of unit vectors (B, D)."""
        return self.layers(embedding)


def _read_tensors(file: Any) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)
