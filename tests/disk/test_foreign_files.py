"""Checkpoints of other tools: what is found where, what the config says, and each refusal with its sentence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.adapters import tiny_adapter as sd3_adapter
from helpers.foreign import (
    Q,
    assert_same_changes,
    edit,
    kohya_tensors,
    peft_changes,
    peft_model,
    plain,
    read_for,
    save,
    weights_of,
)
from helpers.zoo import CASES, adapter_for
from nft_pipeline.adapter import Adapter, AdapterError, fingerprint, read_adapter, write_adapter
from nft_pipeline.errors import FamilyError
from nft_pipeline.pipeline import DiffusionNFTPipeline

SD1, SD3, FLUX = CASES["StableDiffusionPipeline"], CASES["StableDiffusion3Pipeline"], CASES["FluxPipeline"]


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
