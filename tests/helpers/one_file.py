"""Tiny Stable Diffusion 1.5 and SDXL, whole, and written into one file under the names of the original code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from helpers.whole import WORDS, tokenizer

WIDTHS = (16, 32)  # of the two text encoders
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def _clip(width: int, layers: int, projected: bool) -> Any:
    cls = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    config = transformers.CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=16,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=8,
        eos_token_id=2,
    )
    return cls(config).eval()


def _vae() -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
    ).eval()


def _unet(width: int, **more: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=width,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **more,
    ).eval()


def whole_sd() -> Any:
    """Stable Diffusion 1.5, with text encoder, tokenizer and VAE."""
    torch.manual_seed(1)
    return diffusers.StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip(WIDTHS[0], 2, False),
        tokenizer=tokenizer(8),
        unet=_unet(WIDTHS[0]),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def whole_sdxl() -> Any:
    """SDXL. diffusers knows it by the tenth layer of its second text encoder."""
    torch.manual_seed(2)
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_clip(WIDTHS[0], 2, False),
        text_encoder_2=_clip(WIDTHS[1], 10, True),
        tokenizer=tokenizer(8),
        tokenizer_2=tokenizer(8),
        unet=_unet(
            sum(WIDTHS),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTHS[1],
        ),
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


def save_one_file(pipe: Any, file: Path, more: dict[str, Tensor] | None = None) -> Path:
    """The pipeline's weights in one file, and beside it, under its name, a folder with configs and no weights."""
    tensors = {f"model.diffusion_model.{name}": w for name, w in _unet_names(pipe.unet).items()}
    tensors |= {f"first_stage_model.{name}": w for name, w in _vae_names(pipe.vae).items()}
    first = {f"text_model.{n.removeprefix('text_model.')}": w for n, w in pipe.text_encoder.state_dict().items()}
    if hasattr(pipe, "text_encoder_2"):
        tensors |= {f"conditioner.embedders.0.transformer.{name}": w for name, w in first.items()}
        second = _open_clip_names(pipe.text_encoder_2.state_dict())
        tensors |= {f"conditioner.embedders.1.model.{name}": w for name, w in second.items()}
    else:
        tensors |= {f"cond_stage_model.transformer.{name}": w for name, w in first.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: w.contiguous().clone() for name, w in (tensors | (more or {})).items()}, file)
    configs = file.with_suffix("")
    pipe.save_pretrained(configs)
    for weights in configs.glob("*/*.safetensors"):
        weights.unlink()
    return file


def _unet_names(unet: Any) -> dict[str, Tensor]:
    places = dict(_UNET)
    at = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            places[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{at}.0"
            places[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{at}.1"
            at += 1
        if block.downsamplers:
            places[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{at}.0.op"
            at += 1
    at = 0
    for i, block in enumerate(unet.up_blocks):
        for j in range(len(block.resnets)):
            places[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{at}.0"
            places[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{at}.1"
            at += 1
        behind = 2 if hasattr(block, "attentions") else 1
        places[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{at - 1}.{behind}.conv"
    middle = ("resnets.0", "attentions.0", "resnets.1")
    places |= {f"mid_block.{name}": f"middle_block.{k}" for k, name in enumerate(middle)}
    return _renamed(unet.state_dict(), places, _RESNET)


def _vae_names(vae: Any) -> dict[str, Tensor]:
    places = {f"{half}.conv_norm_out": f"{half}.norm_out" for half in ("encoder", "decoder")}
    blocks = len(vae.encoder.down_blocks)
    for i in range(blocks):
        places[f"encoder.down_blocks.{i}.resnets"] = f"encoder.down.{i}.block"
        places[f"encoder.down_blocks.{i}.downsamplers.0"] = f"encoder.down.{i}.downsample"
        places[f"decoder.up_blocks.{i}.resnets"] = f"decoder.up.{blocks - 1 - i}.block"
        places[f"decoder.up_blocks.{i}.upsamplers.0"] = f"decoder.up.{blocks - 1 - i}.upsample"
    for half in ("encoder", "decoder"):
        places |= {f"{half}.mid_block.resnets.{k}": f"{half}.mid.block_{k + 1}" for k in (0, 1)}
        inside = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
        places |= {f"{half}.mid_block.attentions.0.{ours}": f"{half}.mid.attn_1.{t}" for ours, t in inside.items()}
    tensors = _renamed(vae.state_dict(), places, {"conv_shortcut": "nin_shortcut"})
    # Attention is of convolutions there.
    return {n: w[:, :, None, None] if ".attn_1." in n and w.ndim == 2 else w for n, w in tensors.items()}


def _open_clip_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {
        "text_projection": state["text_projection.weight"].T,
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "ln_final.weight": state["text_model.final_layer_norm.weight"],
        "ln_final.bias": state["text_model.final_layer_norm.bias"],
    }
    inside = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    inside["self_attn.out_proj"] = "attn.out_proj"
    layers = {name.split(".")[3] for name in state if ".layers." in name}
    for layer in layers:
        ours, theirs = f"text_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for end in ("weight", "bias"):
            tensors |= {f"{theirs}.{new}.{end}": state[f"{ours}.{old}.{end}"] for old, new in inside.items()}
            fused = [state[f"{ours}.self_attn.{side}_proj.{end}"] for side in "qkv"]
            tensors[f"{theirs}.attn.in_proj_{end}"] = torch.cat(fused)
    return tensors


def _renamed(state: dict[str, Tensor], places: dict[str, str], inside: dict[str, str]) -> dict[str, Tensor]:
    """Each name's beginning by `places`, and of a resnet what is inside by `inside`."""
    tensors = {}
    for name, weight in state.items():
        start = max((place for place in places if name.startswith(f"{place}.")), key=len, default="")
        end = name[len(start) :]
        if "resnets" in start:
            for ours, theirs in inside.items():
                end = end.replace(f".{ours}.", f".{theirs}.")
        tensors[places.get(start, "") + end] = weight
    return tensors
