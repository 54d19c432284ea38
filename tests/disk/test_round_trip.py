"""Written and read again: everything is equal, and the files are what other tools expect."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from helpers.adapters import assert_same, assert_same_tensors, random_head, tiny_adapter, tiny_sd3
from nft_pipeline.adapter import Adapter, read_adapter, write_adapter
from nft_pipeline.adapters.alpha_head import AlphaHeadConfig
from nft_pipeline.adapters.keys import comfyui_to_head, lora_modules
from nft_pipeline.adapters.single_file import read_single_file


def header_and_tensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(path, "pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["positive", "policy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_everything_comes_back(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    made = tiny_adapter(kind=kind)
    made = Adapter(made.config, {key: tensor.to(dtype) for key, tensor in made.lora.items()}, made.head)
    assert write_adapter(tmp_path / "new" / "adapter", made) == tmp_path / "new" / "adapter"
    assert_same(read_adapter(tmp_path / "new" / "adapter"), made)
    assert_same(read_adapter(str(tmp_path / "new"), subfolder="adapter"), made)


def test_the_head_computes_the_same(tmp_path: Path) -> None:
    made = tiny_adapter()
    head = read_adapter(write_adapter(tmp_path / "a", made)).head
    assert made.head is not None and head is not None and not head.training
    tokens, text = torch.randn(3, 5, 32), torch.randn(3, 7, 24)
    level = torch.tensor([0.1, 0.5, 0.95])
    alpha = head.alpha(tokens, level, text)
    assert torch.equal(alpha, made.head.alpha(tokens, level, text))
    assert alpha.std() > 1e-4
    on = torch.tensor([0.3, 1.0, -0.5])
    told = head.alpha(tokens, level, text, on)
    assert torch.equal(told, made.head.alpha(tokens, level, text, on)) and (told - alpha).abs().min() > 1e-4


def test_the_head_reads_the_lora_s_scale_as_0_when_off_and_no_further_than_1() -> None:
    head = tiny_adapter().head
    assert head is not None
    tokens, text, level = torch.randn(2, 5, 32), torch.randn(2, 7, 24), torch.tensor([0.5, 0.9])

    def alpha(scale: float) -> torch.Tensor:
        return head.alpha(tokens, level, text, torch.full((2,), scale))

    assert torch.equal(alpha(0.0), head.alpha(tokens, level, text))
    assert torch.equal(alpha(3.0), alpha(1.0)) and torch.equal(alpha(-3.0), alpha(-1.0))
    assert not torch.equal(alpha(1.0), alpha(-1.0))


def test_the_folder_holds_the_contract_and_the_extras(tmp_path: Path) -> None:
    extras = {"README.md": b"# card", "samples/0.png": b"\x89PNG", "plots/deep/curve.png": b"x", "metrics.csv": b"1"}
    write_adapter(tmp_path / "a", tiny_adapter(), extra_files=extras)
    assert files_in(tmp_path / "a") == set(extras) | {
        "nft_config.json",
        "pytorch_lora_weights.safetensors",
        "alpha_head/config.json",
        "alpha_head/diffusion_pytorch_model.safetensors",
        "comfyui/tiny-red.safetensors",
    }
    assert all((tmp_path / "a" / name).read_bytes() == data for name, data in extras.items())
    assert os.listdir(tmp_path) == ["a"]


def test_a_policy_has_no_head(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", tiny_adapter(kind="policy"))
    assert not (tmp_path / "a" / "alpha_head").exists()
    header, tensors = header_and_tensors(tmp_path / "a" / "comfyui" / "tiny-red.safetensors")
    assert "diffusion_nft_alpha_head" not in header and comfyui_to_head(tensors) == {}


def test_the_lora_header_tells_diffusers_the_scale(tmp_path: Path) -> None:
    made = tiny_adapter()
    write_adapter(tmp_path / "a", made)
    header, tensors = header_and_tensors(tmp_path / "a" / "pytorch_lora_weights.safetensors")
    assert header["format"] == "pt"
    said = json.loads(header["lora_adapter_metadata"])
    assert said["transformer.r"] == said["transformer.lora_alpha"] == made.config.rank
    assert said["transformer.target_modules"] == lora_modules(made.lora)
    assert_same_tensors(tensors, dict(made.lora))


def test_both_files_say_what_they_are(tmp_path: Path) -> None:
    """A file parted from its folder still names its base model, licence and config, and its content's hash."""
    write_adapter(tmp_path / "a", tiny_adapter())
    for name in ("pytorch_lora_weights.safetensors", "comfyui/tiny-red.safetensors"):
        header, _ = header_and_tensors(tmp_path / "a" / name)
        data = (tmp_path / "a" / name).read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        assert header["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data[start:]).hexdigest()
        assert header["diffusion_nft"] == (tmp_path / "a" / "nft_config.json").read_text()
        assert header["ss_base_model_version"] == "someone/tiny-sd3"
        required = ("sai_model_spec", "architecture", "implementation", "title")  # of ModelSpec 1.0
        assert all(header[f"modelspec.{field}"] for field in required)


def test_the_single_file_is_the_whole_adapter(tmp_path: Path) -> None:
    made = tiny_adapter()
    assert made.head is not None
    write_adapter(tmp_path / "a", made)
    header, tensors = header_and_tensors(tmp_path / "a" / "comfyui" / "tiny-red.safetensors")
    assert header["diffusion_nft"] == (tmp_path / "a" / "nft_config.json").read_text()
    assert AlphaHeadConfig.from_dict(json.loads(header["diffusion_nft_alpha_head"])) == made.head.config
    assert header["modelspec.sai_model_spec"] == "1.0.1" and header["modelspec.title"] == "tiny-red"
    assert header["modelspec.license"] == "apache-2.0" and header["modelspec.resolution"] == "48x64"
    assert header["ss_network_dim"] == header["ss_network_alpha"] == "4"
    assert_same_tensors(comfyui_to_head(tensors), made.head.state_dict())
    assert {key: tensors[key] for key in made.lora}.keys() == made.lora.keys()
    for module in lora_modules(made.lora):
        name = f"transformer.{module}"
        rank = tensors[f"{name}.lora_A.weight"].shape[0]
        assert tensors[f"{name}.alpha"].item() / rank == 1.0
        assert torch.equal(tensors[f"{name}.lora_B.weight"], made.lora[f"{name}.lora_B.weight"])
    rest = set(tensors) - set(made.lora) - {f"transformer.{module}.alpha" for module in lora_modules(made.lora)}
    assert all(key.startswith("alpha_head.") for key in rest)


def test_tensors_that_share_memory_or_train_are_written(tmp_path: Path) -> None:
    made = tiny_adapter(kind="policy")
    flat = torch.randn(sum(tensor.numel() for tensor in made.lora.values()), requires_grad=True)
    lora, at = {}, 0
    for key, tensor in made.lora.items():
        lora[key] = flat[at : at + tensor.numel()].view(tensor.shape)
        at += tensor.numel()
    key = next(key for key in lora if lora[key].ndim == 2)
    lora[key] = lora[key].t().contiguous().t()  # not contiguous
    read = read_adapter(write_adapter(tmp_path / "a", Adapter(made.config, lora)))
    assert_same_tensors(read.lora, {key: tensor.detach() for key, tensor in lora.items()})


def test_overwriting_replaces_everything(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", tiny_adapter(), {"samples/old.png": b"old"})
    policy = tiny_adapter(kind="policy", seed=7, name="other")
    write_adapter(tmp_path / "a", policy, {"samples/new.png": b"new"})
    assert_same(read_adapter(tmp_path / "a"), policy)
    assert files_in(tmp_path / "a") == {
        "nft_config.json",
        "pytorch_lora_weights.safetensors",
        "comfyui/other.safetensors",
        "samples/new.png",
    }


def test_reading_and_writing_leave_the_random_numbers_alone(tmp_path: Path) -> None:
    made = tiny_adapter()
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    read_adapter(write_adapter(tmp_path / "a", made))
    assert torch.equal(torch.randn(3), expected)


def test_what_was_read_does_not_need_the_folder(tmp_path: Path) -> None:
    made = tiny_adapter()
    read = read_adapter(write_adapter(tmp_path / "a", made))
    write_adapter(tmp_path / "a", tiny_adapter(seed=9))
    assert_same(read, made)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_heads_of_any_float_dtype_compute_in_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    head = random_head().to(dtype)
    made = tiny_adapter(tiny_sd3())
    folder = write_adapter(tmp_path / "a", Adapter(made.config, made.lora, head))
    expected = random_head().to(dtype).float()
    tokens, level, text = torch.randn(2, 5, 32), torch.tensor([0.2, 0.9]), torch.randn(2, 3, 24)
    for read in (read_adapter(folder), read_single_file(folder / "comfyui" / "tiny-red.safetensors")):
        assert read is not None and read.head is not None
        assert_same_tensors(read.head.state_dict(), expected.state_dict())
        assert torch.equal(
            read.head.alpha(tokens.to(dtype), level, text), expected.alpha(tokens.to(dtype), level, text)
        )


def test_the_same_adapter_is_the_same_files(tmp_path: Path) -> None:
    first, second = (write_adapter(tmp_path / name, tiny_adapter()) for name in "ab")
    for name in files_in(first):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    for name in ("pytorch_lora_weights.safetensors", "comfyui/tiny-red.safetensors"):
        assert int.from_bytes((first / name).read_bytes()[:8], "little") % 8 == 0
