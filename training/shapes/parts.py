"""The parts of the shapes model, untrained: one function each, every size in `Sizes`.

The transformer keeps the proportions every loader of SD3 files expects (16 latent channels, 64 channels per head, as
many heads as layers), so tools that read the architecture off the tensor shapes accept it. The picture is 8 x 8 latents
with patch 2, that is 16 tokens of 64 numbers: few tokens make training on a laptop possible, and a width of 192 is
well above the patch's 64 numbers, without which the network cannot even carry the noise it has to predict.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from .world import BACKGROUNDS, COLOURS, COUNTS, PLURALS, RADII, RELATIONS, SHAPES


@dataclass(frozen=True)
class Sizes:
    """Sizes of the shipped model. `depth` fixes the width: 64 channels per head, `depth` heads, `depth` blocks."""

    depth: int = 2
    text_tokens: int = 14  # begin, 12 words (the longest prompt of the grammar), end
    text_width: int = 64  # of each of the two text encoders
    text_layers: int = 3  # the pipeline reads the last but one
    vae_channels: tuple[int, ...] = (8, 16, 32, 64)
    latent_channels: int = 16

    @property
    def width(self) -> int:
        """Channels of the denoiser."""
        return 64 * self.depth


def vocabulary() -> list[str]:
    """Every word of the prompt grammar."""
    words = [*COUNTS.values(), "an", *RADII, *COLOURS, *SHAPES, *PLURALS.values(), *BACKGROUNDS, "and", "on"]
    return sorted({*words, *(word for relation in RELATIONS for word in relation.split())})


def build_tokenizer(sizes: Sizes, words: list[str], marks: str = "") -> CLIPTokenizer:
    """A CLIP tokenizer whose byte pairs make every one of `words` one token.

    Letters spell any other word; each of `marks` (digits, quotes) is a token of its own.
    """
    letters = [*(chr(c) for c in range(ord("a"), ord("z") + 1)), *marks]
    vocab = ["<|startoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in sorted(words, key=len):
        pieces = [*word[:-1], word[-1] + "</w>"]
        # Play back the merges so far in rank order, as the tokenizer will, then join what they leave from the left.
        for left, right in merges:
            i = 0
            while i < len(pieces) - 1:
                if (pieces[i], pieces[i + 1]) == (left, right):
                    pieces[i : i + 2] = [left + right]
                i += 1
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
    vocab += [piece for piece in dict.fromkeys(left + right for left, right in merges) if piece not in vocab]
    vocab.append("<|endoftext|>")
    tokenizer = CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(vocab)}, merges=merges, model_max_length=sizes.text_tokens
    )
    for word in words:
        ids = tokenizer(word).input_ids
        if len(ids) != 3:
            raise AssertionError(
                f"{word!r} takes {len(ids) - 2} tokens, expected one: {tokenizer.convert_ids_to_tokens(ids)}"
            )
    return tokenizer


def build_text_encoder(sizes: Sizes, tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """A small CLIP text encoder that pools at the end-of-text token."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=sizes.text_width,
            intermediate_size=2 * sizes.text_width,
            projection_dim=sizes.text_width,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=2,
            max_position_embeddings=sizes.text_tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_vae(sizes: Sizes) -> AutoencoderKL:
    """A small VAE, 64 x 64 x 3 to 8 x 8 x 16, with SD3's scaling so that SD3 tools read its latents."""
    levels = len(sizes.vae_channels)
    return AutoencoderKL(
        block_out_channels=sizes.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=sizes.latent_channels,
        norm_num_groups=2,  # one channel per group would be instance norm, which cannot carry flat colours
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=8 * 2 ** (levels - 1),
        scaling_factor=1.5305,
        shift_factor=0.0609,
    )


def build_transformer(sizes: Sizes) -> SD3Transformer2DModel:
    """The denoiser, with the modulation and the output layer starting at zero (as DiT does)."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=sizes.latent_channels,
        out_channels=sizes.latent_channels,
        num_layers=sizes.depth,
        num_attention_heads=sizes.depth,
        attention_head_dim=64,
        caption_projection_dim=sizes.width,
        joint_attention_dim=2 * sizes.text_width,
        pooled_projection_dim=2 * sizes.text_width,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    zeroed: list[nn.Linear] = [transformer.proj_out, transformer.norm_out.linear]
    for block in transformer.transformer_blocks:
        zeroed += [block.norm1.linear, block.norm1_context.linear]
    for layer in zeroed:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Rectified flow with SD3's shift of 3: most steps at high noise, where compositions are decided."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def tokenize(prompts: list[str], tokenizer: CLIPTokenizer) -> torch.Tensor:
    """Token ids (B, L), padded to the model's length."""
    return tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def embed_ids(
    ids: list[torch.Tensor], encoders: list[CLIPTextModelWithProjection]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B, L, 2 x text_width) and pooled (B, 2 x text_width), as SD3's pipeline makes them without T5."""
    outputs = [encoder(i, output_hidden_states=True) for i, encoder in zip(ids, encoders, strict=True)]
    tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return tokens, torch.cat([output.text_embeds for output in outputs], dim=-1)
