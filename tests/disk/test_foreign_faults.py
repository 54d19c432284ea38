"""Checkpoints of other tools that are not read: each fault of files, config and tensors with its sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.adapters import tiny_adapter as sd3_adapter
from helpers.foreign import (
    Q,
    edit,
    kohya_tensors,
    plain,
    read_for,
    save,
    weights_of,
)
from helpers.zoo import CASES
from nft_pipeline.adapter import AdapterError, write_adapter

SD1, SD3, FLUX = CASES["StableDiffusionPipeline"], CASES["StableDiffusion3Pipeline"], CASES["FluxPipeline"]


# Another base model.


def test_zero_matched_layers_names_both_sides(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        read_for(SD1.pipe(), checkpoint)
    text = str(caught.value)
    assert "0 of 15 LoRA layers match the loaded UNet2DConditionModel" in text
    assert "base_model.model.transformer_blocks.0.attn.to_q: the model has no such module" in text
    assert "linear layers and convolutions, such as" in text and "Load the base model the LoRA was trained on" in text
    tensors, _ = kohya_tensors({name.replace(".", "_"): w for name, w in weights_of(SD1.pipe().unet).items()})
    for other, model in ((SD3, "SD3Transformer2DModel"), (FLUX, "FluxTransformer2DModel")):
        with pytest.raises(AdapterError, match=rf"0 of \d+ LoRA layers match the loaded {model}"):
            read_for(other.pipe(), save(tmp_path / "x.safetensors", tensors))


def test_partly_matched_layers_name_each_that_is_not(tmp_path: Path, pipe: Any) -> None:
    tensors = plain((Q, "transformer_blocks.1.attn.to_k"))
    for i in range(30):
        tensors |= {key.replace("_blocks.0", f"_blocks.{i + 2}"): t for key, t in tensors.items() if "_blocks.0" in key}
    with pytest.raises(AdapterError, match="2 of 32 LoRA layers match") as caught:
        read_for(pipe, save(tmp_path / "x.safetensors", tensors))
    assert len(caught.value.faults) == 30
    assert "transformer.transformer_blocks.31.attn.to_q: the model has no such module" in caught.value.faults
    assert "... and 10 more" in str(caught.value)


def test_a_layer_that_a_converter_leaves_out_is_an_error(tmp_path: Path) -> None:
    """diffusers drops the original checkpoint's names where it also finds its own."""
    unet = SD1.pipe().unet
    ours, theirs = (
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "middle_block_1_transformer_blocks_0_attn1_to_k",
    )
    weights = {ours.replace(".", "_"): unet.get_submodule(ours).weight, theirs: unet.get_submodule(ours).weight}
    tensors, _ = kohya_tensors(weights)
    with pytest.raises(AdapterError, match=rf"1 of 2 LoRA layers match.*\n  - lora_unet_{theirs}:"):
        read_for(SD1.pipe(), save(tmp_path / "x.safetensors", tensors))


def test_one_layer_twice_is_an_error(tmp_path: Path, pipe: Any) -> None:
    tensors = plain()
    tensors |= {key.replace("transformer.", "diffusion_model.", 1): t for key, t in tensors.items()}
    with pytest.raises(AdapterError, match=rf"two layers of the file are {Q} of the model"):
        read_for(pipe, save(tmp_path / "x.safetensors", tensors))
    twice: dict[str, Tensor] = {}
    block = "joint_blocks.0.x_block.attn.qkv"
    for prefix, name in (("diffusion_model.", block), ("lora_unet_", block.replace(".", "_"))):
        twice |= kohya_tensors({name: torch.zeros(48, 16)}, prefix=prefix)[0]
    with pytest.raises(AdapterError, match=rf"are both {Q} of the model"):
        read_for(pipe, save(tmp_path / "y.safetensors", twice))


def test_shapes_that_do_not_fit(tmp_path: Path, pipe: Any) -> None:
    tensors = {f"{Q}.lora_A.weight": torch.ones(2, 5), f"{Q}.lora_B.weight": torch.ones(16, 2)}
    with pytest.raises(AdapterError, match=rf"do not fit the loaded SD3Transformer2DModel.*\n.*{Q}: A \(2, 5\)"):
        read_for(pipe, save(tmp_path / "x.safetensors", tensors))


# Faults of peft's config.

PEFT_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "use_dora is True: it is a DoRA"),
    "another kind": ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    "biases": ({"bias": "lora_only"}, "bias is 'lora_only': biases of the base model were trained"),
    "whole modules": ({"modules_to_save": ["proj_out"]}, "modules_to_save is ['proj_out']: whole modules were trained"),
    "pissa": (
        {"init_lora_weights": "pissa_niter_4"},
        "init_lora_weights is 'pissa_niter_4': the LoRA fits base weights",
    ),
    "a field of tomorrow": ({"use_wonder": True}, "use_wonder is True: this version does not know"),
    "no rank": ({"r": 0}, "r is 0, expected a whole number"),
    "half a rank": ({"r": 4.5}, "r is 4.5, expected a whole number"),
    "no alpha": ({"lora_alpha": 0}, "lora_alpha is 0, expected a number above zero"),
    "alpha of text": ({"lora_alpha": "64"}, "lora_alpha is '64'"),
    "patterns of text": ({"alpha_pattern": {"to_q": "8"}}, "alpha_pattern is {'to_q': '8'}"),
    "a pattern that is none": ({"rank_pattern": {"(": 8}}, "its keys are no regular expressions"),
    "a pattern that matches for ever": ({"alpha_pattern": {"(.*)*x": 8}}, "its keys are no regular expressions"),
    "a flag in the middle": ({"rank_pattern": {"(?i)to_q": 8}}, "its keys are no regular expressions"),
    "a range backwards": ({"rank_pattern": {"[z-a]": 8}}, "its keys are no regular expressions"),
    "a number beyond floats": ({"alpha_pattern": {"to_q": 10**400}}, "it holds a whole number of 401 digits"),
    "another rank": ({"r": 32}, f"{Q} is of rank 4, its config says r = 32"),
    "another rank by pattern": ({"rank_pattern": {"to_q": 8}}, f"{Q} is of rank 4, its config says r = 8"),
}


@pytest.mark.parametrize("fault", PEFT_FAULTS)
def test_each_fault_of_a_peft_config_is_named(checkpoint: Path, pipe: Any, fault: str) -> None:
    changed, phrase = PEFT_FAULTS[fault]
    edit(checkpoint / "lora", **changed)
    with pytest.raises(AdapterError) as caught:
        read_for(pipe, checkpoint)
    assert phrase in str(caught.value) and str(checkpoint) in str(caught.value)


def test_the_header_of_a_diffusers_file_is_held_to_the_same(tmp_path: Path, pipe: Any) -> None:
    tensors = {key: t for key, t in plain().items() if "alpha" not in key}
    said = {"transformer.r": 2, "transformer.lora_alpha": 3, "transformer.use_dora": True}
    with pytest.raises(AdapterError, match="lora_adapter_metadata in the header: use_dora is True"):
        read_for(pipe, save(tmp_path / "x.safetensors", tensors, said))
    with pytest.raises(AdapterError, match=r"is for transformer, transformer_2; one is guided at a time"):
        read_for(pipe, save(tmp_path / "y.safetensors", tensors, {"transformer.r": 2, "transformer_2.r": 2}))


def test_two_scales_that_contradict_each_other(tmp_path: Path, pipe: Any) -> None:
    tensors = {f"{Q}.lora_A.weight": torch.ones(2, 16), f"{Q}.lora_B.weight": torch.ones(16, 2)}
    tensors[f"{Q}.alpha"] = torch.tensor(3.0)
    match = rf"scale of the LoRA is not certain:\n.*{Q} has two scales: 1.5 by its alpha tensor, 2 by its config"
    with pytest.raises(AdapterError, match=match):
        read_for(pipe, save(tmp_path / "x.safetensors", tensors, {"transformer.r": 2, "transformer.lora_alpha": 4}))
    read_for(pipe, save(tmp_path / "y.safetensors", tensors, {"transformer.r": 2, "transformer.lora_alpha": 3}))


# Faults of the tensors.

Spoil = Callable[[dict[str, Tensor]], Any]
KEY = f"transformer.{Q}"
TENSOR_FAULTS: dict[str, tuple[Spoil, str]] = {
    "kohya's text encoder": (
        lambda t: t.update({"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(2, 2)}),
        "belongs to a text encoder: the prompt is encoded once for both passes",
    ),
    "diffusers' text encoder": (
        lambda t: t.update({"text_encoder.x.lora_A.weight": torch.ones(2, 2)}),
        "text_encoder.x.lora_A.weight belongs to a text encoder",
    ),
    "comfyui's text encoder": (
        lambda t: t.update({"text_encoders.clip_l.transformer.x.lora_up.weight": torch.ones(2, 2)}),
        "belongs to a text encoder",
    ),
    "kohya's dora": (lambda t: t.update({f"{KEY}.dora_scale": torch.ones(2)}), "is a DoRA"),
    "peft's dora": (lambda t: t.update({f"{KEY}.lora_magnitude_vector": torch.ones(2)}), "is a DoRA"),
    "loha": (lambda t: t.update({f"{KEY}.hada_w1_a": torch.ones(2, 2)}), "is a LyCORIS adapter"),
    "lokr": (lambda t: t.update({f"{KEY}.lokr_w1": torch.ones(2, 2)}), "is a LyCORIS adapter"),
    "tucker": (lambda t: t.update({f"{KEY}.lora_mid.weight": torch.ones(2, 2)}), "is a LyCORIS adapter"),
    "a changed weight": (lambda t: t.update({f"{KEY}.diff": torch.ones(2, 2)}), "is a trained weight or bias"),
    "a changed bias": (lambda t: t.update({f"{KEY}.diff_b": torch.ones(2)}), "is a trained weight or bias"),
    "something else": (lambda t: t.update({"epoch": torch.ones(1)}), "epoch is no part of a LoRA, expected"),
    "half a pair": (
        lambda t: t.pop(f"{KEY}.lora_up.weight"),
        f"{KEY} has A and alpha but no B; the file is incomplete",
    ),
    "an alpha alone": (lambda t: t.update({"x.alpha": torch.tensor(1.0)}), "x has alpha but no A and no B"),
    "alpha zero": (
        lambda t: t.update({f"{KEY}.alpha": torch.tensor(0.0)}),
        f"{KEY}.alpha is [0.0], expected one number",
    ),
    "many alphas": (lambda t: t.update({f"{KEY}.alpha": torch.ones(3)}), f"{KEY}.alpha is [1.0, 1.0, 1.0]"),
    "alpha nan": (lambda t: t.update({f"{KEY}.alpha": torch.tensor(float("nan"))}), f"{KEY}.alpha is [nan]"),
    "three dimensions": (
        lambda t: t.update({f"{KEY}.lora_up.weight": torch.ones(2, 2, 2)}),
        f"{KEY} has A (2, 16) and B (2, 2, 2)",
    ),
    "two ranks in a pair": (
        lambda t: t.update({f"{KEY}.lora_up.weight": torch.ones(16, 3)}),
        f"{KEY} has A (2, 16) and B (16, 3), expected (rank, in) and (out, rank)",
    ),
    "nan": (
        lambda t: t.update({f"{KEY}.lora_up.weight": torch.full((16, 2), float("nan"))}),
        "x.safetensors: transformer.transformer_blocks.0.attn.to_q.lora_up.weight holds 32 of 32 numbers that are NaN",
    ),
    "whole numbers": (
        lambda t: t.update({f"{KEY}.lora_up.weight": torch.ones(16, 2, dtype=torch.int8)}),
        "has dtype torch.int8",
    ),
    "two adapters": (
        lambda t: t.update({f"{Q}.lora_{s}.{n}.weight": torch.ones(2, 2) for s in "AB" for n in ("default", "old")}),
        "it holds the adapters default, old; give a file with one of them",
    ),
}


@pytest.mark.parametrize("fault", TENSOR_FAULTS)
def test_each_fault_of_the_tensors_is_named(tmp_path: Path, pipe: Any, fault: str) -> None:
    spoil, phrase = TENSOR_FAULTS[fault]
    tensors = plain()
    spoil(tensors)
    file = save(tmp_path / "x.safetensors", tensors)
    with pytest.raises(AdapterError) as caught:
        read_for(pipe, file)
    assert phrase in str(caught.value) and str(file) in str(caught.value)


def test_a_whole_model_is_no_lora(tmp_path: Path, pipe: Any) -> None:
    file = save(tmp_path / "x.safetensors", dict(SD3.pipe().transformer.state_dict()))
    with pytest.raises(AdapterError, match=r"\(0 LoRA layers among \d+ tensors\)"):
        read_for(pipe, file)


# Faults of the files.


def _cut(folder: Path) -> None:
    file = folder / "lora" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _pickle(folder: Path) -> None:
    (folder / "lora" / "adapter_model.safetensors").rename(folder / "lora" / "adapter_model.bin")


def _disguised(folder: Path) -> None:
    (folder / "lora" / "adapter_model.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))


def _two(folder: Path) -> None:
    (folder / "lora").rename(folder / "transformer")
    (folder / "transformer_2").mkdir()
    (folder / "transformer_2" / "adapter_config.json").write_text("{}")


FILE_FAULTS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "truncated": (_cut, ["adapter_model.safetensors is truncated or damaged"]),
    "a pickle": (_pickle, ["has its weights in adapter_model.bin, a pickle, which can run code", "weights_only=True"]),
    "a pickle under another name": (_disguised, ["is a pickle (a torch.save file under another name)"]),
    "no weights": (
        lambda f: (f / "lora" / "adapter_model.safetensors").unlink(),
        ["has adapter_config.json but no adapter_model.safetensors"],
    ),
    "no json": (
        lambda f: (f / "lora" / "adapter_config.json").write_text("{"),
        ["adapter_config.json is not valid JSON"],
    ),
    "two parts": (
        _two,
        ["holds several LoRAs: transformer, transformer_2", "Give one of them: subfolder='transformer'"],
    ),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_each_fault_of_the_files_is_named(checkpoint: Path, pipe: Any, fault: str) -> None:
    plant, phrases = FILE_FAULTS[fault]
    plant(checkpoint)
    with pytest.raises(AdapterError) as caught:
        read_for(pipe, checkpoint)
    for phrase in (str(checkpoint), *phrases):
        assert phrase in str(caught.value)


def test_folders_with_nothing_several_things_or_only_pickles(tmp_path: Path, checkpoint: Path, pipe: Any) -> None:
    with pytest.raises(AdapterError, match=r"holds no LoRA; found .*\n.*checkpoint-300/lora"):
        read_for(pipe, checkpoint.parent)
    save(tmp_path / "many" / "a.safetensors", plain())
    save(tmp_path / "many" / "b.safetensors", plain())
    with pytest.raises(AdapterError, match=r"2 .safetensors files: a.safetensors, b.safetensors\n.*the one you mean"):
        read_for(pipe, tmp_path / "many")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pytorch_lora_weights.bin").write_bytes(b"x")
    for source in (tmp_path / "old", tmp_path / "old" / "pytorch_lora_weights.bin"):
        with pytest.raises(AdapterError, match=r"in pytorch_lora_weights.bin, a pickle, which can run code"):
            read_for(pipe, source)


def test_a_file_takes_no_subfolder_and_other_files_are_no_adapters(tmp_path: Path, pipe: Any) -> None:
    file = save(tmp_path / "x.safetensors", plain())
    with pytest.raises(AdapterError, match="has neither a subfolder"):
        read_for(pipe, file, subfolder="lora")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(AdapterError, match=r"is a file, expected the adapter's folder or a .safetensors file"):
        read_for(pipe, tmp_path / "x.txt")


def test_our_own_file_for_comfyui_is_sent_back_to_its_folder(tmp_path: Path, pipe: Any) -> None:
    ours = write_adapter(tmp_path / "ours", sd3_adapter(kind="policy"))
    with pytest.raises(AdapterError, match=r"is a file out of an adapter of this package\n.*it says its kind and beta"):
        read_for(pipe, ours / "comfyui" / "tiny-red.safetensors")
