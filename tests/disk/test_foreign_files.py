"""Checkpoints of other tools: what is found where, what the config says, and each refusal with its sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.adapters import tiny_adapter as sd3_adapter
from helpers.foreign import (
    assert_same_changes,
    kohya_tensors,
    official_checkpoint,
    peft_changes,
    peft_model,
    read_for,
    save,
    weights_of,
)
from helpers.zoo import CASES, adapter_for
from nft_pipeline.adapter import Adapter, AdapterError, fingerprint, read_adapter, write_adapter
from nft_pipeline.errors import FamilyError
from nft_pipeline.pipeline import DiffusionNFTPipeline

SD1, SD3, FLUX = CASES["StableDiffusionPipeline"], CASES["StableDiffusion3Pipeline"], CASES["FluxPipeline"]
Q = "transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return SD3.pipe()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """checkpoint-300, with an adapter called old."""
    return official_checkpoint(tmp_path, peft_model(SD3.pipe().transformer, old=True))


def edit(folder: Path, **changed: Any) -> None:
    """Change fields of adapter_config.json."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def plain(names: tuple[str, ...] = (Q,)) -> dict[str, Tensor]:
    """A LoRA file's tensors for a few layers of the tiny Stable Diffusion 3."""
    denoiser = SD3.pipe().transformer
    tensors, _ = kohya_tensors({name: denoiser.get_submodule(name).weight for name in names}, prefix="transformer.")
    return tensors


# What is read.


def test_the_config_says_what_is_known_and_what_is_not(checkpoint: Path, pipe: Any) -> None:
    edit(checkpoint / "lora", base_model_name_or_path="stabilityai/stable-diffusion-3.5-medium", revision="b940f67")
    config = read_for(pipe, checkpoint, beta=0.1).config
    assert (config.kind, config.beta, config.tilt, config.strength) == ("policy", 0.1, pytest.approx(20), 1.0)
    assert config.name == "checkpoint-300"
    assert config.base_model.id == "stabilityai/stable-diffusion-3.5-medium"
    assert config.base_model.revision == "b940f67"
    assert config.base_model.fingerprint == fingerprint(pipe.transformer)
    assert (config.denoiser, config.component, config.prediction) == ("SD3Transformer2DModel", "transformer", "flow")
    assert config.licence == config.reward["name"] == "unknown" and config.base_rate is None
    assert config.resolution == (8 * pipe.vae_scale_factor,) * 2
    assert config.training["read_from"] == "peft folder"
    assert set(config.training["not_recorded"]) == {"reward", "licence", "guidance_scale", "resolution"}


@pytest.mark.parametrize(("schedule", "prediction"), [("epsilon", "epsilon"), ("v_prediction", "v")])
def test_a_unets_prediction_is_its_schedulers(tmp_path: Path, schedule: str, prediction: str) -> None:
    unet = SD1.pipe()
    unet.scheduler.register_to_config(prediction_type=schedule)
    tensors, _ = kohya_tensors(weights_of(unet.unet), prefix="unet.")
    config = read_for(unet, save(tmp_path / "my lora (2).safetensors", tensors)).config
    assert (config.prediction, config.component, config.base_model.id) == (prediction, "unet", "unknown")
    assert config.name == "my-lora-2-"


def test_the_folder_the_file_and_what_lies_beside_it(tmp_path: Path, pipe: Any) -> None:
    file = save(tmp_path / "run" / "pytorch_lora_weights.safetensors", plain())
    (tmp_path / "run" / "optimizer.bin").write_bytes(b"never opened")
    save(tmp_path / "run" / "optimizer.safetensors", {"x": torch.ones(1)})
    save(tmp_path / "run" / "another.safetensors", {"x": torch.ones(1)})
    for source in (file, file.parent, str(file)):
        adapter = read_adapter(source, kind="policy", beta=1.0, pipe=pipe)
        assert [*adapter.lora] == [f"transformer.{Q}.lora_A.weight", f"transformer.{Q}.lora_B.weight"]
        assert adapter.config.name == "run"


def test_it_can_be_written_in_our_own_form(checkpoint: Path, pipe: Any, tmp_path: Path) -> None:
    adapter = read_for(pipe, checkpoint)
    again = read_adapter(write_adapter(tmp_path / "ours", adapter))
    assert again.config == adapter.config
    for key, tensor in adapter.lora.items():
        assert torch.equal(again.lora[key], tensor)


def test_reading_leaves_the_pipeline_alone(checkpoint: Path) -> None:
    fresh = SD3.pipe()
    names = [name for name, _ in fresh.transformer.named_modules()]
    read_for(fresh, checkpoint)
    assert names == [name for name, _ in fresh.transformer.named_modules()]


def test_a_hub_snapshot_has_the_repositorys_name(
    checkpoint: Path, pipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from nft_pipeline.adapters import read as adapter_read

    monkeypatch.setattr(adapter_read, "fetch", lambda repo, revision, inner, access: checkpoint / "lora")
    monkeypatch.chdir(tmp_path)
    adapter = read_adapter("someone/SD3.5M-DiffusionNFT", kind="policy", beta=0.1, pipe=pipe)
    assert adapter.config.name == "SD3.5M-DiffusionNFT"


# Adapter.old.


def test_old_is_checked_like_the_lora_and_its_rank_is_its_own(checkpoint: Path, pipe: Any) -> None:
    adapter = read_for(pipe, checkpoint, use_old=True)
    assert adapter.old is not None and adapter.config.rank == 4
    assert {t.shape[0] for key, t in adapter.old.items() if "lora_A" in key} == {2}
    adapter.check()
    half = {key: tensor for key, tensor in adapter.old.items() if key != f"transformer.{Q}.lora_B.weight"}
    half[f"transformer.{Q}.lora_A.weight"] = torch.full((2, 16), float("nan"))
    with pytest.raises(AdapterError, match=rf"old: {Q} has lora_A but no lora_B") as caught:
        Adapter(adapter.config, adapter.lora, old=half).check()
    assert "NaN" in str(caught.value)
    with pytest.raises(AdapterError, match="old: there is no LoRA layer"):
        Adapter(adapter.config, adapter.lora, old={}).check()


def test_an_adapter_with_old_is_not_written(checkpoint: Path, pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"not written: it has a LoRA for v_old \(Adapter.old\).*\n.*use_old=False"):
        write_adapter(tmp_path / "ours", read_for(pipe, checkpoint, use_old=True))
    assert not (tmp_path / "ours").exists()


def test_old_that_is_the_adapter_itself_is_an_error(checkpoint: Path, pipe: Any) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (checkpoint / "lora" / "old" / name).write_bytes((checkpoint / "lora" / name).read_bytes())
    with pytest.raises(AdapterError, match=r"are the same, so v_lora - v_old is zero everywhere\n.*use_old=False"):
        read_for(pipe, checkpoint, use_old=True)
    read_for(pipe, checkpoint)


def test_old_that_is_asked_for_and_not_there(checkpoint: Path, pipe: Any) -> None:
    shutil.rmtree(checkpoint / "lora" / "old")
    with pytest.raises(AdapterError, match=r"use_old=True, but no adapter called old lies beside it"):
        read_for(pipe, checkpoint, use_old=True)


def test_a_fault_in_old_is_named_as_such(checkpoint: Path, pipe: Any) -> None:
    edit(checkpoint / "lora" / "old", use_dora=True)
    with pytest.raises(AdapterError, match=r"its adapter old: .*\n.*it is a DoRA"):
        read_for(pipe, checkpoint, use_old=True)


def test_default_and_old_side_by_side(tmp_path: Path, pipe: Any) -> None:
    model = peft_model(SD3.pipe().transformer, old=True)
    model.save_pretrained(str(tmp_path / "x"))
    (tmp_path / "y").mkdir()
    (tmp_path / "x" / "old").rename(tmp_path / "y" / "old")
    (tmp_path / "x").rename(tmp_path / "y" / "default")
    adapter = read_for(pipe, tmp_path / "y", use_old=True)
    assert adapter.old is not None
    assert_same_changes(adapter.old, peft_changes(model, "old"))
    assert_same_changes(adapter.lora, peft_changes(model))


# kind and beta.


@pytest.mark.parametrize(
    ("given", "phrases"),
    [
        (
            {},
            [
                "not given: kind and beta",
                "checkpoint-300 has no nft_config.json and looks like a peft folder",
                "config.beta",
                "0.1 for OCR",
            ],
        ),
        ({"kind": "policy"}, ["not given: beta"]),
        ({"beta": 1.0}, ["not given: kind", 'kind="policy"']),
        ({"kind": "positive", "beta": 1.0}, ["needs an alpha head, and there is none in it", 'Pass kind="policy"']),
        ({"kind": "polciy", "beta": 1.0}, ["kind is 'polciy', expected \"policy\""]),
        ({"kind": "policy", "beta": 0.0}, ["beta is 0.0, expected a number from 1e-06"]),
        ({"kind": "policy", "beta": float("nan")}, ["beta is nan"]),
        ({"kind": "policy", "beta": True}, ["beta is True"]),
    ],
)
def test_kind_and_beta_come_from_the_caller(
    checkpoint: Path, pipe: Any, given: dict[str, Any], phrases: list[str]
) -> None:
    with pytest.raises(AdapterError) as caught:
        read_adapter(checkpoint, pipe=pipe, **given)
    for phrase in phrases:
        assert phrase in str(caught.value)


@pytest.mark.parametrize("given", [{"kind": "positive"}, {"beta": 0.5}, {"kind": "policy", "beta": 1.0}])
def test_an_adapter_that_says_them_itself_takes_neither(tmp_path: Path, given: dict[str, Any]) -> None:
    ours = write_adapter(tmp_path / "ours", sd3_adapter())
    with pytest.raises(AdapterError, match=r"was given for .*, which says its kind and beta itself"):
        read_adapter(ours, **given)
    loaded = SD3.pipe()
    with pytest.raises(AdapterError, match="says its kind and beta itself"):
        DiffusionNFTPipeline.from_pipe(loaded).load_nft_adapter(adapter_for(SD3, loaded), **given)


def test_without_a_pipeline_it_says_how_to_give_one(checkpoint: Path) -> None:
    with pytest.raises(
        AdapterError, match=r"only the model it is for can say .*\n.*pipe.load_nft_adapter\(.*pipe=pipe"
    ):
        read_adapter(checkpoint, kind="policy", beta=1.0)


def test_a_pipeline_without_a_denoiser_we_know(checkpoint: Path) -> None:
    with pytest.raises(AdapterError, match="object has none of transformer, unet"):
        read_adapter(checkpoint, kind="policy", beta=1.0, pipe=object())
    other = type("Pipe", (), {"transformer": torch.nn.Linear(2, 2)})()
    with pytest.raises(FamilyError, match="the denoiser is a Linear"):
        read_adapter(checkpoint, kind="policy", beta=1.0, pipe=other)


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
