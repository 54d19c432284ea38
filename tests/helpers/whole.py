"""Tiny pipelines with everything a training run needs: those of the zoo with random text encoders, tokenizers and VAEs.

Texts are words of a small vocabulary; chat templates hand on what the user says and nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from helpers.zoo import CASES
from helpers.zoo_case import WIDTH, kl_vae
from helpers.zoo_videos import wan_vae

WORDS = ["<pad>", "<unk>", "</s>", "a", "cat", "dog", "cow", "red", "and", "two", "user", "assistant", "system"]
_CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{{ m['content'][0]['text'] }}{% endif %}"
    "{% endif %}{% endfor %}"
)
_TEXT: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
_VISION: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "image_size": 8}


def tokenizer(length: int) -> Any:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_max_length=length
    )
    made.chat_template = _CHAT
    return made


def _qwen_vl() -> Any:
    text = {**_TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": WIDTH}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _mistral() -> Any:
    vision = {"model_type": "pixtral", **_VISION, "patch_size": 4, "num_hidden_layers": 1, "head_dim": 4}
    text = {"model_type": "mistral", **_TEXT, "hidden_size": WIDTH // 2}
    config = transformers.Mistral3Config(text_config=text, vision_config=vision)
    return transformers.Mistral3ForConditionalGeneration(config)


def _umt5() -> Any:
    config = transformers.UMT5Config(
        vocab_size=len(WORDS), d_model=WIDTH, d_kv=8, d_ff=16, num_layers=2, num_heads=2, pad_token_id=0
    )
    return transformers.UMT5EncoderModel(config)


def _parts(name: str) -> dict[str, Any]:
    torch.manual_seed(11)
    if name.startswith("Flux2"):
        small = {**_TEXT, "hidden_size": WIDTH // 2}
        klein = name == "Flux2KleinPipeline"
        encoder = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**small)) if klein else _mistral()
        vae = CASES[name].build().vae
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2.0)
        return {"text_encoder": encoder, "tokenizer": tokenizer(8), "vae": vae}
    if name == "QwenImagePipeline":
        return {"text_encoder": _qwen_vl(), "tokenizer": tokenizer(64), "vae": _qwen_vae()}
    if name == "ZImagePipeline":
        encoder = transformers.Qwen3Model(transformers.Qwen3Config(**_TEXT))
        return {"text_encoder": encoder, "tokenizer": tokenizer(8), "vae": kl_vae()}
    if name == "SanaPipeline":
        encoder = transformers.Gemma2Model(transformers.Gemma2Config(**_TEXT))
        return {"text_encoder": encoder, "tokenizer": tokenizer(400), "vae": _dc_vae()}
    vae = wan_vae()
    vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.5, 2.0, 1.0])
    return {"text_encoder": _umt5(), "tokenizer": tokenizer(8), "vae": vae}


def _qwen_vae() -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
    ).eval()


def _dc_vae() -> Any:
    blocks = {"layers_per_block": (1, 1, 1), "block_out_channels": (4, 4, 8)}
    kinds = ("ResBlock", "ResBlock", "EfficientViTBlock")
    return diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=blocks["block_out_channels"],
        decoder_block_out_channels=blocks["block_out_channels"],
        encoder_layers_per_block=blocks["layers_per_block"],
        decoder_layers_per_block=blocks["layers_per_block"],
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41,
    ).eval()


# What each is called with, beside steps and guidance.
CALLS: dict[str, dict[str, Any]] = {
    "Flux2Pipeline": {"height": 8, "width": 8, "max_sequence_length": 6, "text_encoder_out_layers": [1, 2]},
    "Flux2KleinPipeline": {"height": 8, "width": 8, "max_sequence_length": 6, "text_encoder_out_layers": [1, 2]},
    "QwenImagePipeline": {"height": 16, "width": 16},
    "ZImagePipeline": {"height": 8, "width": 8, "max_sequence_length": 6},
    "SanaPipeline": {"height": 32, "width": 32, "max_sequence_length": 6},
    "WanPipeline": {"height": 32, "width": 32, "max_sequence_length": 6, "num_frames": 1},
}


def whole_pipe(name: str) -> Any:
    """A pipeline of `CALLS`, ready for prompts."""
    bare = CASES[name].build()
    pipe = type(bare)(**{**bare.components, **_parts(name)})
    for part in (pipe.text_encoder, pipe.vae):
        part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_whole(name: str, folder: Path) -> str:
    """Such a pipeline saved with its call defaults; its path."""
    whole_pipe(name).save_pretrained(folder)
    (folder / "call_defaults.json").write_text(json.dumps(CALLS[name]))
    return str(folder)
