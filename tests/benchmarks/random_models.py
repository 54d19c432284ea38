"""Random models for measuring time and memory, where only shapes matter: a small SD3, full-size ones for a GPU."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from nft_pipeline.adapter import Adapter, AdapterConfig, BaseModel, fingerprint
from nft_pipeline.adapters.alpha_head import AlphaHead, AlphaHeadConfig
from nft_pipeline.families.registry import family_of

TEXT = 64  # width of the small text encoders


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """A small random CLIP text encoder."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT,
        intermediate_size=2 * TEXT,
        projection_dim=TEXT,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config).eval()


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that spells every word letter by letter; 77 tokens, as CLIP has them."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = ["<|startoftext|>", *letters, *(letter + "</w>" for letter in letters), "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77)


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    )


def small_sd3(heads: int, depth: int, **more: Any) -> StableDiffusion3Pipeline:
    """A random SD3 whose width is 64 times its heads, with `depth` blocks and small text encoders."""
    tokenizer = clip_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=depth,
        attention_head_dim=64,
        num_attention_heads=heads,
        caption_projection_dim=64 * heads,
        joint_attention_dim=2 * TEXT,
        pooled_projection_dim=2 * TEXT,
        **more,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.eval().requires_grad_(False),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae().eval(),
        text_encoder=text_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder(tokenizer),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def _flux() -> FluxPipeline:
    """FLUX.1-dev's transformer; the text comes as embeddings."""
    transformer = FluxTransformer2DModel(guidance_embeds=True)
    return FluxPipeline(
        transformer=transformer.eval().requires_grad_(False),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae().eval(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )


def build(model: str, device: str, dtype: torch.dtype) -> Any:
    """A random pipeline: "small" (31 M weights), "wide" (SD3.5-medium's width, two blocks), "sd3.5-medium" or
    "flux.1-dev"."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            if model == "flux.1-dev":
                pipe: Any = _flux()
            elif model == "sd3.5-medium":
                layers = tuple(range(13))
                pipe = small_sd3(24, 24, pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=layers)
            else:
                pipe = small_sd3(*((24, 2) if model == "wide" else (6, 6)), pos_embed_max_size=64)
    finally:
        torch.set_default_dtype(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, dtype)


def random_adapter(transformer: Any, rank: int, kind: Any = "positive") -> Adapter:
    """An adapter on the family's default layers; a positive one has the default alpha head."""
    family, config = family_of(transformer), transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    lora = {}
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith(family.lora_targets):
            lora[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, module.in_features) * 0.05
            lora[f"transformer.{name}.lora_B.weight"] = torch.randn(module.out_features, rank) * 0.05
    facts = AdapterConfig(
        kind=kind,
        name="random",
        beta=1.0,
        tilt=2.0,
        base_model=BaseModel(id="random", revision=None, fingerprint=fingerprint(transformer)),
        denoiser=type(transformer).__name__,
        prediction="flow",
        rank=rank,
        reward={"name": "nothing", "description": "random weights", "normaliser": "none"},
        guidance_scale=1.0,
        resolution=(256, 256),
        licence="apache-2.0",
        base_rate=0.4 if kind == "positive" else None,
    )
    if kind == "policy":
        return Adapter(facts, lora)
    text_dim = config.joint_attention_dim
    return Adapter(facts, lora, AlphaHead(AlphaHeadConfig(feature_dim=width, text_dim=text_dim)).eval())
