"""Base models in one file: loaded as what they are, sampled, trained on; and what is said where that cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.foreign import kohya_tensors, save, weights_of
from helpers.one_file import save_one_file, whole_sd, whole_sdxl
from helpers.tiny_run import SMALL
from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import fingerprint, read_adapter
from nft_pipeline.cli import main
from nft_pipeline.errors import GuidanceError
from nft_pipeline.models.single_file import is_single_file
from nft_pipeline.training.run.trainer import train
from nft_pipeline.training.settings.config import TrainConfig

WHOLE = {"StableDiffusionPipeline": whole_sd, "StableDiffusionXLPipeline": whole_sdxl}
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module", params=WHOLE)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    pipe = WHOLE[request.param]()
    pipe.set_progress_bar_config(disable=True)
    return pipe, save_one_file(pipe, tmp_path_factory.mktemp("models") / "my-model.v1.safetensors")


def picture(pipe: Any, **more: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "latent", **more}
    return pipe("a red cat", generator=torch.Generator().manual_seed(3), **call).images


def test_every_weight_arrives_and_the_picture_is_the_models(model: tuple[Any, Path]) -> None:
    pipe, file = model
    guided = DiffusionNFTPipeline.from_single_file(file)
    assert isinstance(guided, type(pipe))
    for name in PARTS:
        if hasattr(pipe, name):
            state, loaded = getattr(pipe, name).state_dict(), getattr(guided, name).state_dict()
            assert state.keys() == loaded.keys()
            assert all(torch.equal(state[key], loaded[key]) for key in state), name
    assert torch.equal(picture(guided), picture(pipe))


def test_a_lora_is_dialled_on_it(model: tuple[Any, Path], tmp_path: Path) -> None:
    pipe, file = model
    tensors, _ = kohya_tensors({n.replace(".", "_"): w for n, w in weights_of(pipe.unet).items()})
    lora = save(tmp_path / "style.safetensors", tensors)
    guided = DiffusionNFTPipeline.from_pretrained(str(file))
    guided.load_nft_adapter(lora, kind="policy", beta=1.0)
    assert torch.equal(picture(guided, nft_strength=0.0), picture(pipe))
    assert not torch.allclose(picture(guided, nft_strength=0.5), picture(pipe))


def test_it_is_a_base_model_of_the_trainer(model: tuple[Any, Path], tmp_path: Path) -> None:
    pipe, file = model
    fewer = {"pool_size": 8, "pool_batch": 8, "held_out_size": 4, "batch": 4, "head_batch": 4}
    config = TrainConfig(**{**SMALL, **fewer, "base_model": str(file), "resolution": 16})
    result = train(config, tmp_path / "run", say=lambda line: None, device="cpu")
    assert result.adapter.config.base_model.fingerprint == fingerprint(pipe.unet)
    assert result.adapter.config.base_model.id == str(file)
    guided = DiffusionNFTPipeline.from_single_file(file, read_adapter(result.folder))
    assert picture(guided, nft_strength=2.0).isfinite().all()


def test_the_command_line_takes_it(model: tuple[Any, Path], tmp_path: Path) -> None:
    pipe, file = model
    tensors, _ = kohya_tensors({n.replace(".", "_"): w for n, w in weights_of(pipe.unet).items()})
    tensors["lora_te_text_model_x.lora_up.weight"] = torch.ones(2, 2)
    lora = save(tmp_path / "style.safetensors", tensors)
    call = ["sample", "a cat", "--model", str(file), "--adapter", str(lora), "--kind", "policy", "--beta", "1"]
    call += ["--steps", "1", "--seeds", "0", "--strengths", "0", "1", "--out", str(tmp_path / "x.png")]
    assert main(call) == 2
    with pytest.warns(UserWarning, match="1 layers of text encoders are left out"):
        assert main([*call, "--without-text-encoder"]) == 0
    assert (tmp_path / "x.png").is_file()


def test_the_class_and_the_configs_may_be_given(model: tuple[Any, Path], tmp_path: Path) -> None:
    import diffusers

    _, file = model
    moved = shutil.copy(file, tmp_path / "alone.safetensors")
    configs = file.with_suffix("")
    guided = DiffusionNFTPipeline.from_single_file(moved, config=configs, vae=None)
    assert guided.vae is None
    wanted = getattr(diffusers, type(guided)._nft_stock_class.__name__.replace("Pipeline", "Img2ImgPipeline"))
    assert isinstance(DiffusionNFTPipeline.from_single_file(file, pipeline_class=wanted), wanted)


def test_marks_of_velocity_are_followed(tmp_path: Path) -> None:
    """NoobAI's v-prediction files hold these two keys; diffusers' configs of SDXL say epsilon."""
    marks = {"v_pred": torch.ones(1), "ztsnr": torch.ones(1)}
    file = save_one_file(whole_sdxl(), tmp_path / "noob.safetensors", marks)
    scheduler = DiffusionNFTPipeline.from_single_file(file).scheduler
    assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.rescale_betas_zero_snr
    mine = whole_sdxl().scheduler
    assert DiffusionNFTPipeline.from_single_file(file, scheduler=mine).scheduler is mine


def test_without_configs_it_says_where_they_may_be(model: tuple[Any, Path], tmp_path: Path) -> None:
    pipe, file = model
    moved = shutil.copy(file, tmp_path / "alone.safetensors")
    with pytest.raises(GuidanceError) as caught:
        DiffusionNFTPipeline.from_pretrained(moved)
    text = str(caught.value)
    home = "stable-diffusion-xl-base-1.0" if hasattr(pipe, "text_encoder_2") else "stable-diffusion-v1-5"
    for phrase in (home, "config=", "beside the file, under the name alone", "Go online once"):
        assert phrase in text


def test_what_is_no_base_model_is_refused(tmp_path: Path) -> None:
    lora = save(tmp_path / "lora.safetensors", {"lora_unet_x.lora_down.weight": torch.ones(2, 3)})
    with pytest.raises(GuidanceError, match=r"does not know which model .*lora_unet_x.*load_nft_adapter"):
        DiffusionNFTPipeline.from_pretrained(lora)
    with pytest.raises(GuidanceError, match=r"there is no file .*gone.safetensors"):
        DiffusionNFTPipeline.from_pretrained(str(tmp_path / "gone.safetensors"))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors")
    with pytest.raises(GuidanceError, match="could not be read as a checkpoint"):
        DiffusionNFTPipeline.from_pretrained(broken)


def test_a_part_that_the_file_lacks_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = save_one_file(whole_sd(), tmp_path / "unet.safetensors")
    save_file({k: t for k, t in load_file(file).items() if k.startswith("model.diffusion_model.")}, file)
    with pytest.raises(GuidanceError, match=r"denoiser alone needs the other parts.*text_encoder="):
        DiffusionNFTPipeline.from_single_file(file)


def test_what_counts_as_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").mkdir()
    assert is_single_file("https://huggingface.co/a/b/blob/main/c.safetensors") and is_single_file("x.safetensors")
    assert not is_single_file(tmp_path / "a.ckpt") and not is_single_file("owner/name") and not is_single_file("shapes")
