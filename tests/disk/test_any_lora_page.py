"""docs/any_lora.md to the letter: its lines run, over tiny models in folders and files of the names that it uses.

What is changed are devices, dtypes, sizes and the number of steps.
"""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from helpers.foreign import kohya_tensors, official_checkpoint, peft_model, save, weights_of
from helpers.one_file import save_one_file, whole_sdxl
from helpers.repository import ROOT
from helpers.tiny import random_lora, tiny_pipe
from helpers.whole import CALLS, save_whole, whole_pipe
from nft_pipeline.cli import main

PAGE = (ROOT / "docs" / "any_lora.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    *re.findall(r"`(diffusion-nft [^`]+)`", PAGE),
    *re.findall(r"^(diffusion-nft .*)$", PAGE, re.MULTILINE),
]
SD3, FLUX = "stabilityai/stable-diffusion-3.5-medium", "black-forest-labs/FLUX.1-dev"
WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
SMALL = {
    '.to("cuda")': "",
    "torch.bfloat16": "torch.float32",
    "torch.float16": "torch.float32",
    "num_frames=33": ", ".join(f"{name}={value}" for name, value in CALLS["WanPipeline"].items()),
    "nft_strength=": "num_inference_steps=2, nft_strength=",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small(code: str) -> str:
    for old, new in SMALL.items():
        code = code.replace(old, new)
    return code


def with_sd3(folder: Path) -> None:
    pipe = tiny_pipe()
    pipe.save_pretrained(folder / SD3)
    official_checkpoint(folder, peft_model(pipe.transformer)).rename(folder / "checkpoint-300")
    save(folder / "watercolour.safetensors", random_lora(pipe.transformer))


def kohya_file(pipe: Any, file: Path) -> None:
    """A style for the UNet and both text encoders."""
    tensors, _ = kohya_tensors({n.replace(".", "_"): w for n, w in weights_of(pipe.unet).items()})
    of_text, _ = kohya_tensors({"text_model_encoder_layers_0_mlp_fc1": torch.randn(16, 16)}, prefix="lora_te1_")
    save(file, tensors | of_text)


def test_every_block_of_the_page_is_run_here() -> None:
    assert len(PYTHON) == 4 and len(COMMANDS) == 5


def test_a_lora_trained_on_a_reward_and_a_style_in_some_steps(here: Path) -> None:
    with_sd3(here)
    names: dict[str, Any] = {"prompt": "a red cube"}
    exec(small(PYTHON[0]), names)
    drawn = [np.asarray(Image.open(f"{strength}.png")) for strength in (0.0, 0.5, 1.0, 1.5)]
    assert all((one != other).any() for one, other in itertools.pairwise(drawn))
    exec(small(PYTHON[1]), names)
    assert len({names[name].images[0].tobytes() for name in ("late", "fades", "mine")}) == 3
    pipe = names["pipe"]
    pipe.unload_nft_adapter()
    for name in ("style", "liked"):
        pipe.load_nft_adapter("watercolour.safetensors", kind="policy", beta=1.0, name=name)
    pipe("a", num_inference_steps=2, nft_strength={"style": 0.8, "liked": 1.2})
    assert main([*shlex.split(COMMANDS[0].replace("...", SD3))[1:], "--device", "cpu", "--out", "grid.png"]) == 0
    assert (here / "grid.png").is_file()


def test_a_lora_of_kohyas_scripts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = whole_sdxl()
    save_one_file(pipe, here / "illustriousXL.safetensors")
    kohya_file(pipe, here / "style.safetensors")
    names: dict[str, Any] = {"torch": torch}
    with pytest.warns(UserWarning, match="text encoder"):
        exec("from nft_pipeline import DiffusionNFTPipeline\n" + small(PYTHON[2]), names)
    assert names["image"].size == (16, 16)
    assert main(shlex.split(COMMANDS[1])[1:]) == 0
    assert "lora_te1" in capsys.readouterr().out


def test_a_wan_lora_of_other_tools(here: Path) -> None:
    save_whole("WanPipeline", here / WAN)
    of_attention = weights_of(whole_pipe("WanPipeline").transformer, ("attn1.to_q",))
    spelled = {n.replace("attn1.to_q", "self_attn.q").replace(".", "_"): w for n, w in of_attention.items()}
    save(here / "reward-lora.safetensors", kohya_tensors(spelled, prefix="lora_unet__")[0])
    names: dict[str, Any] = {"torch": torch}
    exec("from nft_pipeline import DiffusionNFTPipeline\n" + small(PYTHON[3]), names)
    assert len(names["frames"]) == 1


def test_a_model_that_was_tuned_as_a_whole(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tiny_pipe()
    pipe.save_pretrained(here / FLUX)
    tuned = {n: w + 0.1 * torch.randn_like(w) if w.ndim == 2 else w for n, w in pipe.transformer.state_dict().items()}
    (here / "SRPO").mkdir()
    save_file(tuned, here / "SRPO" / "diffusion_pytorch_model.safetensors")
    for command in COMMANDS[2:]:
        words = shlex.split(command)[1:]
        more = [] if words[0] == "info" else ["--device", "cpu"]
        assert main([*words, *more]) == 0, capsys.readouterr()
    assert (here / "srpo" / "extract.json").is_file()
