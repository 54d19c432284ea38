"""Whole base models of published sizes with random weights, saved as folders that a run loads.

A folder has everything that a real one has but sense: denoiser, VAE and text encoders of the sizes in
tests/benchmarks/memory.py, and small tokenizers, whose padded prompts fill as many tokens as those of the real ones.
Tiny ones have the parts of the tests, so that whatever uses these models can be tried in seconds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from helpers.whole import CALLS, save_whole, tokenizer
from helpers.zoo import CASES
from tests.benchmarks.memory import ENCODERS, MODELS, NO_CHECKER, made
from tests.benchmarks.random_models import clip_tokenizer

BLOCK = 1_048_573  # random numbers that weights are filled with over and over; a prime, so that rows differ
SPREAD = 0.02
# The vision parts of encoders that read pictures too; runs never use them.
_VISION = {
    "Qwen2": {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 3584},
    "Mistral": {
        "model_type": "pixtral",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "head_dim": 16,
        "image_size": 28,
        "patch_size": 14,
    },
}
TOKENS = {"sd35_medium": 256, "qwen_image": 1024, "sana_600m": 300}  # that a tokenizer pads to; 512 for the others


def _clip(arguments: dict[str, Any], projects: bool) -> nn.Module:
    words = clip_tokenizer()
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    config = transformers.CLIPTextConfig(**{"projection_dim": arguments["hidden_size"], **arguments, **ends})
    return (transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel)(config)


def _encoder(name: str, arguments: dict[str, Any], projects: bool) -> nn.Module:
    """A text encoder as the pipelines want it; `projects` says whether a CLIP projects its pooled text."""
    if name == "CLIPText":
        return _clip(arguments, projects)
    if name == "Qwen2":
        heads = {"mrope_section": [16, 24, 24], "rope_type": "default", "rope_theta": 1e6}
        text = {**arguments, "rope_parameters": heads}
        config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=_VISION[name])
        return transformers.Qwen2_5_VLForConditionalGeneration(config)
    if name == "Mistral":
        text = {"model_type": "mistral", **arguments}
        return transformers.Mistral3ForConditionalGeneration(
            transformers.Mistral3Config(text_config=text, vision_config=_VISION[name])
        )
    kinds = {"T5": "T5EncoderModel", "UMT5": "UMT5EncoderModel", "Gemma2": "Gemma2Model"}
    return getattr(transformers, kinds[name])(getattr(transformers, f"{name}Config")(**arguments))


def _ddim() -> Any:
    """Stable Diffusion's noise schedule."""
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _parts(preset: str) -> dict[str, Callable[[], Any]]:
    """What makes each part of a full-size pipeline."""
    model = MODELS[preset]
    name = "unet" if "UNet" in model.denoiser[0] else "transformer"
    schedule = _ddim if name == "unet" else diffusers.FlowMatchEulerDiscreteScheduler
    parts: dict[str, Callable[[], Any]] = {
        name: lambda: made(model.denoiser),
        "vae": lambda: made(model.vae),
        "scheduler": schedule,
    }
    for place, (kind, arguments, _) in enumerate(ENCODERS[preset]):
        number = "" if place == 0 else f"_{place + 1}"
        is_clip, projects = kind == "CLIPText", preset == "sd35_medium" or place == 1
        if kind == "Qwen3":
            cls = transformers.Qwen3ForCausalLM if preset == "flux2_klein_4b" else transformers.Qwen3Model
            tied = {**arguments, "tie_word_embeddings": True}
            parts["text_encoder" + number] = lambda c=cls, a=tied: c(transformers.Qwen3Config(**a))
        else:
            parts["text_encoder" + number] = lambda k=kind, a=arguments, p=projects: _encoder(k, a, p)
        words = clip_tokenizer if is_clip else lambda: tokenizer(TOKENS.get(preset, 512))
        parts["tokenizer" + number] = words
    return parts


@torch.no_grad()
def fill(module: nn.Module, device: torch.device, seed: int = 0) -> nn.Module:
    """Give a module of the meta device random weights that keep activations at their size, in its own number format."""
    module.to_empty(device=device)
    noise = SPREAD * torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed)).to(device)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.ndim < 2 or not value.is_floating_point():
            value.fill_(1 if name.endswith(("weight", "running_var", "scale")) else 0)
            continue
        flat, offset = value.view(-1), len(name)
        for start in range(0, len(flat), BLOCK - offset):
            part = flat[start : start + BLOCK - offset]
            part.copy_(noise[offset : offset + len(part)])
    return module


def save(preset: str, folder: Path, device: torch.device | str = "cpu") -> Path:
    """Write the full-size model of a preset in bf16, one part after another, and return its folder."""
    parts: dict[str, Any] = {}
    device = torch.device(device)
    for name, make in _parts(preset).items():
        if name.startswith(("scheduler", "tokenizer")):
            parts[name] = make()
            parts[name].save_pretrained(folder / name)
            continue
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device("meta"):
                parts[name] = make()
        finally:
            torch.set_default_dtype(torch.float32)
        fill(parts[name], device)
        if hasattr(parts[name], "tie_weights"):  # to_empty parts what is one tensor
            parts[name].tie_weights()
        parts[name].save_pretrained(folder / name)
        parts[name].to("meta")
    name, more = MODELS[preset].pipe
    missing = {one: None for one in ("text_encoder_3", "tokenizer_3") if name.startswith("StableDiffusion3")}
    pipe = getattr(diffusers, name)(**{**missing, **parts, **more})
    pipe.save_config(folder)
    return folder


def _tiny_four(name: str, folder: Path) -> None:
    """A tiny pipeline of one of the four families whose text encoders the tests' own models do without."""
    torch.manual_seed(0)
    pipe = CASES[name].build()
    unet, sizes = hasattr(pipe, "unet"), (pipe.unet if hasattr(pipe, "unet") else pipe.transformer).config
    small = {"intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}

    def clip(width: int, projection: int, projects: bool) -> nn.Module:
        return _clip({"hidden_size": width, "projection_dim": projection, **small}, projects)

    parts: dict[str, Any] = {"tokenizer": clip_tokenizer()}
    if name == "FluxPipeline":
        t5 = {"d_model": sizes.joint_attention_dim, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
        parts["text_encoder"] = clip(sizes.pooled_projection_dim, 8, False)
        parts |= {"text_encoder_2": _encoder("T5", {**t5, "vocab_size": 64}, False), "tokenizer_2": tokenizer(8)}
    elif name == "StableDiffusionPipeline":
        parts["text_encoder"] = clip(sizes.cross_attention_dim, 8, False)
    else:
        width = sizes.cross_attention_dim if unet else sizes.joint_attention_dim
        pooled = sizes.projection_class_embeddings_input_dim - 6 * sizes.addition_time_embed_dim if unet else 0
        projection = pooled or sizes.pooled_projection_dim // 2
        parts["text_encoder"] = clip(width // 2, projection, not unet)
        parts |= {"text_encoder_2": clip(width // 2, projection, True), "tokenizer_2": clip_tokenizer()}
    more = NO_CHECKER if name == "StableDiffusionPipeline" else {}
    pipe = type(pipe)(**{**pipe.components, **parts, **more})
    pipe.save_pretrained(folder)
    call = {"height": 8, "width": 8, **({} if unet else {"max_sequence_length": 8})}
    (folder / "call_defaults.json").write_text(json.dumps(call))


def save_tiny(preset: str, folder: Path) -> Path:
    """Write a tiny model of the preset's family, and return its folder."""
    name = MODELS[preset].pipe[0]
    if name in CALLS:
        save_whole(name, folder)
    else:
        _tiny_four(name, folder)
    return folder


def weights(preset: str) -> dict[str, int]:
    """Bytes of the model's parts in bf16, by name."""
    found = {}
    with torch.device("meta"):
        for name, make in _parts(preset).items():
            if not name.startswith(("scheduler", "tokenizer")):
                found[name] = 2 * sum(value.numel() for value in make().parameters())
    return found


def free_disk(folder: Path) -> int:
    """Bytes that are free where the folder is."""
    return shutil.disk_usage(folder).free
