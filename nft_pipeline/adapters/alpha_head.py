"""The alpha head: the probability that a noisy state ends in a picture the reward likes.

    alpha(x_t, c, t) = E[r | x_t, c]          (docs/theory.md, M1, expectation under the base model)

It reads what the base pass has computed anyway, the image tokens at one module of the denoiser, so at inference it
costs next to nothing. Two readings of the tokens are added up into one logit:

- *evidence*, a number per token, summed. At high noise every token holds a little independent evidence, and the exact
  posterior logit is a sum; this path can represent it.
- *attention*, a few learned queries that look at image tokens and text tokens together, for rewards that depend on
  what stands where, or on the prompt. (Mean pooling was at chance on those.)

Where the tokens come from a pass with the LoRA on, as in the one-pass mode, the head is told at which scale. It cannot
tell from the tokens: at high noise a LoRA that makes pictures redder moves the tokens just as a redder picture would. A
head that was trained on both without being told read too small an alpha with the LoRA off, too large a one with it on.

Torch only: ComfyUI, diffusers and the trainer use this same class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class AlphaHeadConfig:
    """Sizes of a head.

    Args:
        feature_dim: width of the image tokens at `tap`.
        text_dim: width of the text tokens the denoiser takes; None for a head that does not see the prompt.
        width: width of the head, default 128. Raise it for rewards that need more than colour and place.
        queries: learned queries of the attention path, default 8.
        layers: rounds of attention, default 2.
        heads: attention heads; must divide `width`, default 4.
        tap: the denoiser's module whose input tokens are read, default "norm_out".
    """

    feature_dim: int
    text_dim: int | None = None
    width: int = 128
    queries: int = 8
    layers: int = 2
    heads: int = 4
    tap: str = "norm_out"

    def __post_init__(self) -> None:
        for name in ("feature_dim", "width", "queries", "layers", "heads"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 65536:
                raise ValueError(f"alpha head config: {name} is {value!r}, expected a whole number from 1 to 65536")
        if self.text_dim is not None and (type(self.text_dim) is not int or not 1 <= self.text_dim <= 65536):
            raise ValueError(f"alpha head config: text_dim is {self.text_dim!r}, expected a whole number or null")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"alpha head config: width {self.width} must be even and a multiple of heads {self.heads}")
        if not isinstance(self.tap, str) or not self.tap:
            raise ValueError(f"alpha head config: tap is {self.tap!r}, expected the name of a module of the denoiser")

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for alpha_head/config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> AlphaHeadConfig:
        """Read from JSON, strictly. Keys that have a default may be missing; none may be unknown, since it would change
        what the head computes.

        Raises:
            ValueError: unknown or missing keys, all of them named, or a value out of range.
        """
        known = {field.name for field in fields(cls)}
        required = {field.name for field in fields(cls) if field.default is MISSING}
        unknown = sorted(set(mapping) - known)
        # Beside an unknown key, whatever is missing may be what it was meant to be.
        missing = sorted((known if unknown else required) - set(mapping))
        if unknown or missing:
            raise ValueError(
                f"alpha head config: unknown keys {unknown}, missing keys {missing}; expected {sorted(known)}"
            )
        return cls(**mapping)


def noise_level_features(noise_level: Tensor, width: int) -> Tensor:
    """Smooth features of t in [0, 1], shape (B,) -> (B, width): cosines of t and of its log-odds, low to high pitch."""
    t = noise_level.float().clamp(1e-4, 1 - 1e-4)
    log_odds = torch.log(t / (1 - t)) / math.log(1e4)  # in [-1, 1]
    pitch = math.pi * torch.exp2(torch.linspace(-1, 4, width // 4, device=t.device))
    phases = torch.cat([t[:, None] * pitch, log_odds[:, None] * pitch], dim=1)
    features = torch.cat([phases.cos(), phases.sin()], dim=1)
    return F.pad(features, (0, width - features.shape[1]))


class _Round(nn.Module):
    """One round of the queries: pre-norm cross attention to the tokens, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.norm_mlp = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(width, 2 * width)
        self.to_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(approximate="tanh"), nn.Linear(2 * width, width))

    def forward(self, queries: Tensor, tokens: Tensor, keep: Tensor) -> Tensor:
        q = self.to_q(self.norm_attention(queries)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :])
        queries = queries + self.to_out(seen.transpose(1, 2).flatten(-2))
        return queries + self.mlp(self.norm_mlp(queries))


class AlphaHead(nn.Module):
    """alpha(x_t, c, t) from the image tokens of the base pass, the noise level and, where there is one, the text.

    Always computes in fp32, whatever the denoiser's dtype: alpha multiplies the whole push.
    """

    def __init__(self, config: AlphaHeadConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.noise_level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.lora_scale = nn.Linear(1, width, bias=False)
        self.tokens_in = nn.Linear(config.feature_dim, width)
        self.text_in = None if config.text_dim is None else nn.Linear(config.text_dim, width)
        self.no_text = nn.Parameter(torch.zeros(width))
        self.queries = nn.Parameter(torch.randn(config.queries, width))
        self.rounds = nn.ModuleList(_Round(width, config.heads) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(width)
        self.attention_out = nn.Linear(width, 1)
        self.evidence = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU())
        self.evidence_gate = nn.Linear(width, width)
        self.evidence_out = nn.Linear(width, 1, bias=False)
        for layer in (self.attention_out, self.evidence_out):  # start at logit 0, alpha 1/2
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.attention_out.bias)

    def forward(
        self, tokens: Tensor, noise_level: Tensor, text: Tensor | None = None, lora_scale: Tensor | None = None
    ) -> Tensor:
        """The logit of alpha.

        Args:
            tokens: image tokens at the tap, shape (B, N, feature_dim), any float dtype.
            noise_level: t = sigma in [0, 1], shape (B,) or ().
            text: text tokens, shape (B, L, text_dim); required if the head was made with `text_dim`. Tokens that are
                exactly zero are padding (SD3 without T5 pads with zeros) and are not looked at.
            lora_scale: the scale of the adapter's LoRA while the tokens were computed, shape (B,); None is off, which
                is 0. Heads are trained from -1 to 1; a scale beyond is read as the nearer of the two.

        Returns:
            Logits, fp32, shape (B,).

        Raises:
            ValueError: tokens or text of another width than the head was trained for.
        """
        config = self.config
        if tokens.ndim != 3 or tokens.shape[-1] != config.feature_dim:
            raise ValueError(
                f"alpha head: image tokens have shape {tuple(tokens.shape)}, expected (B, N, {config.feature_dim}); "
                "the head belongs to another base model"
            )
        if config.text_dim is not None and (text is None or text.ndim != 3 or text.shape[-1] != config.text_dim):
            seen = None if text is None else tuple(text.shape)
            raise ValueError(f"alpha head: text tokens have shape {seen}, expected (B, L, {config.text_dim})")
        with torch.autocast(tokens.device.type, enabled=False):
            features = noise_level_features(noise_level.expand(tokens.shape[0]), config.width)
            if lora_scale is not None:
                features = features + self.lora_scale(lora_scale.float().clamp(-1, 1)[:, None])
            return self._logit(tokens.float(), self.noise_level(features), text)

    def _logit(self, tokens: Tensor, level: Tensor, text: Tensor | None) -> Tensor:
        # The size of the tokens differs by orders of magnitude between models; their direction is the message.
        image = self.tokens_in(F.layer_norm(tokens, tokens.shape[-1:])) + level[:, None]
        none = self.no_text.expand(image.shape[0], 1, -1)
        keep = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)
        seen, text_mean = [image, none], self.no_text.expand(image.shape[0], -1)
        if self.text_in is not None and text is not None:
            said = text.ne(0).any(-1)
            words = self.text_in(F.layer_norm(text.float(), text.shape[-1:]))
            text_mean = (words * said[..., None]).sum(1) / said.sum(1, keepdim=True).clamp(min=1)
            seen.append(words)
            keep = torch.cat([keep, keep.new_ones(keep.shape[0], 1), said], dim=1)
        else:
            keep = torch.cat([keep, keep.new_ones(keep.shape[0], 1)], dim=1)
        everything = torch.cat(seen, dim=1)
        queries = self.queries + level[:, None]
        for look in self.rounds:
            queries = look(queries, everything, keep)
        attention = self.attention_out(self.norm_out(queries).mean(1)).squeeze(-1)
        gate = self.evidence_gate(F.silu(level + text_mean))
        evidence = self.evidence_out(self.evidence(image) * gate[:, None]).squeeze(-1).sum(1)
        return attention + evidence / math.sqrt(image.shape[1])

    def alpha(
        self, tokens: Tensor, noise_level: Tensor, text: Tensor | None = None, lora_scale: Tensor | None = None
    ) -> Tensor:
        """alpha in (0, 1), fp32, shape (B,): the sigmoid of `forward`, same arguments and errors."""
        return torch.sigmoid(self(tokens, noise_level, text, lora_scale))
