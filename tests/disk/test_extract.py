"""A LoRA out of a fully tuned model: exact where the change has the rank, and what it misses where it has not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from helpers.foreign import assert_same_changes, save
from helpers.zoo import CASES, denoiser_of
from nft_pipeline.adapter import fingerprint, read_adapter
from nft_pipeline.adapters import extract as extraction
from nft_pipeline.adapters.extract import extract
from nft_pipeline.adapters.weights import Weights, open_weights
from nft_pipeline.cli import main
from nft_pipeline.errors import AdapterError
from nft_pipeline.pipeline import DiffusionNFTPipeline

SD1, SD3 = CASES["StableDiffusionPipeline"], CASES["StableDiffusion3Pipeline"]

Q = "transformer_blocks.0.attn.to_q"


def changes_of(denoiser: nn.Module, rank: int, every: int = 2) -> dict[str, Tensor]:
    """A change of this rank for every second linear layer and convolution."""
    generator = torch.Generator().manual_seed(7)
    layers = {n: m for n, m in denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    made = {}
    for name, layer in list(layers.items())[::every]:
        out, *inside = layer.weight.shape
        size = torch.Size(inside).numel()
        product = torch.randn(out, rank, generator=generator) @ torch.randn(rank, size, generator=generator)
        made[name] = 0.2 * product.reshape(layer.weight.shape)
    return made


def tune(folder: Path, case: Any, changes: dict[str, Tensor], more: tuple[str, ...] = ()) -> tuple[str, str]:
    """Base and tuned model on disk; `more` are tensors that are tuned as a whole."""
    pipe = case.pipe()
    component = "unet" if hasattr(pipe, "unet") else "transformer"
    pipe.save_pretrained(folder / "base")
    with torch.no_grad():
        for name, change in changes.items():
            denoiser_of(pipe).get_submodule(name).weight += change
        for name in more:
            denoiser_of(pipe).get_parameter(name).add_(0.1)
    denoiser_of(pipe).save_pretrained(folder / "tuned" / component)
    return str(folder / "tuned"), str(folder / "base")


@pytest.mark.parametrize("case", [SD1, SD3], ids=["sd1", "sd3"])
def test_it_is_exact_where_the_change_has_that_rank(tmp_path: Path, case: Any) -> None:
    denoiser = denoiser_of(case.pipe())
    changes = changes_of(denoiser, 2)
    result = extract(*tune(tmp_path, case, changes), rank=2)
    assert_same_changes(result.adapter.lora, changes)
    assert result.errors.keys() == changes.keys() and max(result.errors.values()) < 1e-5
    assert result.facts["error"] < 1e-5 and not result.left_out and result.facts["share_left_out"] == 0
    layers = sum(isinstance(m, nn.Linear | nn.Conv2d) for m in denoiser.modules())
    assert result.facts["unchanged"] == layers - len(changes)
    config = result.adapter.config
    assert (config.kind, config.rank, config.base_model.fingerprint) == ("policy", 2, fingerprint(denoiser))
    assert config.prediction == ("epsilon" if case is SD1 else "flow")


def test_what_the_rank_misses_is_measured(tmp_path: Path) -> None:
    """By Eckart and Young: the singular values behind the rank."""
    changes = changes_of(denoiser_of(SD3.pipe()), 5)
    result = extract(*tune(tmp_path, SD3, changes), rank=3)
    lost, whole = 0.0, 0.0
    for name, change in changes.items():
        s = torch.linalg.svdvals(change.flatten(1).double())
        lost, whole = lost + s[3:].square().sum(), whole + s.square().sum()
        assert result.errors[name] == pytest.approx((s[3:].norm() / s.norm()).item(), rel=1e-3, abs=1e-5)
    assert result.facts["error"] == pytest.approx((lost / whole).sqrt().item(), rel=1e-3)
    assert result.facts["largest_error"] == max(result.errors.values()) > 0.1


def test_large_layers_by_their_largest_singular_values_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = changes_of(denoiser_of(SD3.pipe()), 2)
    tuned, base = tune(tmp_path, SD3, changes)
    monkeypatch.setattr(extraction, "EXACT_SVD", 4)
    monkeypatch.setattr(extraction, "_MORE", 3)
    state = torch.get_rng_state()
    result = extract(tuned, base, rank=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_changes(result.adapter.lora, changes)
    again = extract(tuned, base, rank=2).adapter.lora
    assert all(torch.equal(again[key], tensor) for key, tensor in result.adapter.lora.items())


def test_norms_and_biases_are_counted(tmp_path: Path) -> None:
    more = ("conv_in.bias", "conv_norm_out.weight", "conv_norm_out.bias")
    changes = changes_of(denoiser_of(SD1.pipe()), 2)
    result = extract(*tune(tmp_path, SD1, changes, more), rank=2)
    assert result.left_out.keys() == set(more)
    assert result.facts["left_out"] == {"biases": 2, "norms": 1}
    beside = sum(norm**2 for norm in result.left_out.values())
    assert result.left_out["conv_in.bias"] == pytest.approx(0.1 * 8**0.5, rel=1e-4)
    whole = beside + sum(change.double().square().sum().item() for change in changes.values())
    assert result.facts["share_left_out"] == pytest.approx(beside / whole, rel=1e-3)


def test_the_command_writes_an_adapter_that_is_dialled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned, base = tune(tmp_path, SD1, changes_of(denoiser_of(SD1.pipe()), 2), ("conv_norm_out.bias",))
    file = f"{tuned}/unet/diffusion_pytorch_model.safetensors"
    out = tmp_path / "out"
    call = ["extract", file, base, "--rank", "2", "--out", str(out), "--name", "srpo", "--device", "cpu"]
    assert main(call) == 0
    text = capsys.readouterr().out
    for phrase in ("layers at rank 2", "of the layers' change is missed", "left out: 1 biases", "conv_norm_out.bias"):
        assert phrase in text
    report = json.loads((out / "extract.json").read_text())
    assert report["layers"] == len(report["layer_errors"]) and report["norms_left_out"]["conv_norm_out.bias"] > 0
    assert main(["info", str(out)]) == 0 and "training share_left_out" in capsys.readouterr().out
    adapter = read_adapter(out)
    assert adapter.config.name == "srpo" and adapter.config.training["error"] == report["error"]
    tuned_pipe = SD1.pipe()
    state = load_file(file)
    state["conv_norm_out.bias"] = tuned_pipe.unet.state_dict()["conv_norm_out.bias"]
    tuned_pipe.unet.load_state_dict(state)
    expected = SD1.sample(tuned_pipe)
    guided = DiffusionNFTPipeline.from_pipe(SD1.pipe(), adapter)
    torch.testing.assert_close(SD1.sample(guided), expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
    assert torch.equal(SD1.sample(guided, nft_strength=0), SD1.sample(SD1.pipe()))
    assert main(call) == 0  # an adapter of an earlier run is replaced


def test_a_model_in_several_files(tmp_path: Path) -> None:
    changes = changes_of(denoiser_of(SD3.pipe()), 2)
    tuned, base = tune(tmp_path, SD3, changes)
    for folder, variant in ((tuned, None), (base, "fp16")):
        pipe_part = diffusers.SD3Transformer2DModel.from_pretrained(f"{folder}/transformer")
        shutil.rmtree(f"{folder}/transformer")
        pipe_part.save_pretrained(f"{folder}/transformer", max_shard_size="20KB", variant=variant)
        assert len(list(Path(folder, "transformer").glob("*.safetensors"))) > 1
    assert_same_changes(extract(tuned, base, rank=2).adapter.lora, changes)


def test_layers_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, base = tune(tmp_path, SD1, changes_of(denoiser_of(SD1.pipe()), 2))
    read: list[str] = []
    own = Weights.read
    monkeypatch.setattr(Weights, "read", lambda self, name: (read.append(name), own(self, name))[1])
    places: list[tuple[int, int]] = []
    extract(tuned, base, rank=2, progress=lambda module, done, count: places.append((done, len(read))))
    assert all(after == 2 * done for done, after in places) and len(places) > 10
    assert sorted(read) == sorted(2 * list(open_weights(Path(base))))


def test_rounding_is_no_tuning_and_small_tuning_is_not_rounded_away(tmp_path: Path) -> None:
    tuned, base = tune(tmp_path, SD3, {})
    name = "transformer/diffusion_pytorch_model.safetensors"
    state = load_file(f"{base}/{name}")
    save_file({key: tensor.bfloat16() for key, tensor in state.items()}, f"{tuned}/{name}")
    with pytest.raises(AdapterError, match="no linear layer or convolution differs"):
        extract(tuned, base)
    # The base in 16 bits and the tuned model, which began there, in 32: a change smaller than a 16-bit step counts.
    half = {key: tensor.bfloat16() for key, tensor in state.items()}
    save_file(half, f"{base}/{name}")
    key = "transformer_blocks.0.attn.to_q.weight"
    whole = {name: tensor.float() for name, tensor in half.items()}
    whole[key] = whole[key] * (1 + 2**-12)
    save_file(whole, f"{tuned}/{name}")
    result = extract(tuned, base, rank=16)
    assert list(result.errors) == [key.removesuffix(".weight")] and result.facts["error"] < 1e-4
    assert next(iter(result.adapter.lora.values())).dtype == torch.float32


def test_a_lora_of_16_bit_models_is_kept_in_16_bits(tmp_path: Path) -> None:
    changes = changes_of(denoiser_of(SD3.pipe()), 2)
    tuned, base = tune(tmp_path, SD3, changes)
    file = Path(tuned) / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({key: tensor.half() for key, tensor in load_file(file).items()}, file)
    result = extract(tuned, base, rank=2)
    assert {tensor.dtype for tensor in result.adapter.lora.values()} == {torch.float16}
    assert 1e-5 < result.facts["error"] < 5e-3  # rounding of the weights and of the LoRA is in it


def test_what_cannot_be_extracted_is_said(tmp_path: Path) -> None:
    tuned, base = tune(tmp_path / "a", SD3, changes_of(denoiser_of(SD3.pipe()), 1))
    _, other = tune(tmp_path / "b", SD1, {})
    with pytest.raises(AdapterError, match=r"not both a UNet2DConditionModel of this(.|\n)*lacks conv_in.weight"):
        extract(tuned, other)
    with pytest.raises(AdapterError, match="no linear layer or convolution differs"):
        extract(base, base)
    with pytest.raises(AdapterError, match="rank is 0, expected a whole number from 1 to 4096"):
        extract(tuned, base, rank=0)
    with pytest.raises(AdapterError, match=r"there is no .*gone, expected a folder"):
        extract(str(tmp_path / "gone"), base)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="holds no weights of a denoiser"):
        extract(str(tmp_path / "empty"), base)
    with pytest.raises(AdapterError, match=r"has neither transformer/config.json(.|\n)*save_pretrained"):
        extract(tuned, str(tmp_path / "empty"))
    civitai = save(tmp_path / "x.safetensors", {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1)})
    with pytest.raises(AdapterError, match=r"names of an original checkpoint(.|\n)*from_single_file"):
        extract(str(civitai), base)
    (tmp_path / "y.safetensors").write_bytes(b"nothing")
    with pytest.raises(AdapterError, match="cannot be read as safetensors"):
        extract(str(tmp_path / "y.safetensors"), base)
    file = Path(tuned) / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state[f"{Q}.weight"][0, 0] = float("nan")
    with pytest.raises(AdapterError, match=rf"{Q}.weight holds numbers that are NaN"):
        extract(str(save(tmp_path / "nan.safetensors", state)), base)
    for name in ("one", "two"):
        save(tmp_path / "many" / f"{name}.safetensors", {"x": torch.ones(1)})
    with pytest.raises(AdapterError, match=r"holds 2 \.safetensors files: one\.safetensors, two"):
        extract(str(tmp_path / "many"), base)
