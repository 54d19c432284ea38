"""Exported files give the change of each layer that they promise, to the tools that read them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn

from helpers.adapters import random_lora, tiny_adapter, tiny_sd3
from helpers.cards import light_adapter
from helpers.dialled import a_dial, tilt_map
from nft_pipeline.adapter import Adapter, AdapterError, write_adapter
from nft_pipeline.adapters.foreign.adapter import read_foreign
from nft_pipeline.adapters.keys import lora_modules
from nft_pipeline.guidance import law_scale
from nft_pipeline.hub_cards.export import export


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_sd3()


def changes(adapter: Adapter) -> dict[str, Tensor]:
    """B @ A of every layer."""
    found = {}
    for module in lora_modules(adapter.lora):
        a, b = (adapter.lora[f"transformer.{module}.lora_{side}.weight"] for side in "AB")
        found[module] = (b.flatten(1) @ a.flatten(1)).reshape(b.shape[0], *a.shape[1:])
    return found


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_comfyui_is_the_file_in_the_folder(tmp_path: Path) -> None:
    adapter = light_adapter()
    folder = write_adapter(tmp_path / "a", adapter)
    assert export(adapter, "comfyui") == {
        "tiny-red.safetensors": (folder / "comfyui" / "tiny-red.safetensors").read_bytes()
    }


@pytest.mark.parametrize("form", ["kohya", "merged", "peft"])
def test_our_own_reader_finds_the_same_change(form: str, model: nn.Module, tmp_path: Path) -> None:
    adapter = tiny_adapter(model, "policy")
    files = export(adapter, form, **({"strength": 0.5} if form == "merged" else {}))
    folder = put(tmp_path, files)
    source = folder if form == "peft" else folder / next(iter(files))
    found = changes(read_foreign(source, kind="policy", beta=1.0, denoiser=model))
    for module, change in changes(adapter).items():
        torch.testing.assert_close(found[module], change * (0.5 if form == "merged" else 1), msg=module)


def test_peft_itself_finds_it_and_no_other_layer(model: nn.Module, tmp_path: Path) -> None:
    """proj_out is also the end of other layers' names; a LoRA on the outermost alone must not spread."""
    lora = {key: tensor for key, tensor in random_lora(model).items() if "blocks.0.attn.to_q" in key}
    lora["transformer.proj_out.lora_A.weight"] = torch.randn(4, model.proj_out.in_features)
    lora["transformer.proj_out.lora_B.weight"] = torch.randn(model.proj_out.out_features, 4)
    adapter = Adapter(tiny_adapter(model, "policy").config, lora)
    wrapped = PeftModel.from_pretrained(tiny_sd3(), put(tmp_path, export(adapter, "peft")))
    carrying = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default")
        for name, module in wrapped.named_modules()
        if "default" in getattr(module, "lora_A", {})
    }
    expected = changes(adapter)
    assert sorted(carrying) == sorted(expected)
    for name, change in expected.items():
        torch.testing.assert_close(carrying[name], change, msg=name)


@pytest.mark.parametrize(("law", "alpha"), [("nft", None), ("odds", None), ("nft", 0.6)])
def test_merged_scales_by_the_law_with_one_alpha(law: str, alpha: float | None) -> None:
    adapter = light_adapter()
    ((name, data),) = export(adapter, "merged", strength=2.0, law=law, alpha=alpha).items()
    assert name == "tiny-red-strength-2.safetensors"
    tensors = safetensors.torch.load(data)
    scale = law_scale(alpha or 0.31, 2.0 * 2.0, law).item()  # base_rate 0.31, tilt 2
    key = "transformer.blocks.0.attn.to_q.lora_B.weight"
    torch.testing.assert_close(tensors[key], adapter.lora[key] * scale)
    assert set(tensors) == set(adapter.lora)


def test_merged_takes_the_weight_that_the_calibration_found() -> None:
    plain = light_adapter()
    dial = a_dial(tilt_map(tilts=(-2.0, 0.0, 4.0), weights=(-0.5, 0.0, 1.0), rates=(0.1, 0.4, 0.9), errors=(0.0,) * 3))
    adapter = replace(plain, config=replace(plain.config, dial=dial))
    strength = 2.0 / adapter.config.tilt
    ((_, data),) = export(adapter, "merged", strength=strength).items()
    key = next(key for key in adapter.lora if key.endswith("lora_B.weight"))
    torch.testing.assert_close(safetensors.torch.load(data)[key], adapter.lora[key] * 0.5)
    ((_, by_law),) = export(adapter, "merged", strength=strength, law="odds", alpha=0.3).items()
    assert not torch.equal(safetensors.torch.load(by_law)[key], safetensors.torch.load(data)[key])


def test_merged_holds_the_strength_that_its_name_says_or_none() -> None:
    """Beyond the end of one pass a single weight reaches no further, whatever the dial does there in two."""
    plain = light_adapter()
    one = tilt_map(tilts=(-2.0, 0.0, 3.0), weights=(-0.5, 0.0, 1.0), rates=(0.1, 0.4, 0.9), errors=(0.0,) * 3)
    two = replace(one, mode="two_pass", tilts=(-2.0, 0.0, 8.0), rates=(0.1, 0.4, 0.97))
    config = replace(plain.config, dial=a_dial(replace(one, goes_on=True), two), strength=3.0)
    adapter, end = replace(plain, config=config), 3.0 / config.tilt
    ((name, data),) = export(adapter, "merged").items()  # the recommended strength is beyond that end
    assert name == f"{config.name}-strength-{end:g}.safetensors"
    ((same, there),) = export(adapter, "merged", strength=end).items()
    assert (same, there) == (name, data)
    for beyond, said in ((end + 0.1, "1.5"), (-2.0, "-1")):
        with pytest.raises(
            AdapterError, match=rf"one pass of this adapter .* from -1 to 1\.5, .* {beyond:g}"
        ) as caught:
            export(adapter, "merged", strength=beyond)
        assert f"--strength {said}" in caught.value.advice


def test_merged_at_strength_nought_changes_nothing(tmp_path: Path) -> None:
    (data,) = export(light_adapter(), "merged", strength=0.0).values()
    assert all(not t.any() for key, t in safetensors.torch.load(data).items() if "lora_B" in key)


def test_its_header_says_what_it_is_and_that_it_is_no_adapter(tmp_path: Path) -> None:
    (data,) = export(light_adapter(), "merged").values()
    (tmp_path / "x.safetensors").write_bytes(data)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        header = file.metadata()
    assert "diffusion_nft" not in header
    said = json.loads(header["diffusion_nft_export"])
    assert said["strength"] == 1.5 and said["alpha"] == 0.31 and said["form"] == "merged"
    assert json.loads(header["lora_adapter_metadata"])["transformer.lora_alpha"] == 4


@pytest.mark.parametrize(
    ("form", "options", "phrase"),
    [
        ("gguf", {}, "expected one of comfyui, kohya, peft, merged"),
        ("peft", {"strength": 1.0}, "strength and alpha are for the form merged"),
    ],
)
def test_what_is_refused(form: str, options: dict[str, float], phrase: str) -> None:
    with pytest.raises(AdapterError, match=phrase):
        export(light_adapter(), form, **options)  # type: ignore[arg-type]


def test_without_a_base_rate_alpha_must_be_given() -> None:
    with pytest.raises(AdapterError, match=r"does not say its base_rate(.|\n)*--alpha"):
        export(light_adapter(base_rate=None), "merged")


def test_two_denoisers_do_not_fit_into_one_kohya_file() -> None:
    adapter = light_adapter("policy")
    lora = {**adapter.lora, **{key.replace("transformer.", "transformer_2."): t for key, t in adapter.lora.items()}}
    both = Adapter(adapter.config, lora)
    with pytest.raises(AdapterError, match="the adapter changes two denoisers"):
        export(both, "kohya")
    assert sorted(export(both, "peft")) == [
        f"{component}/adapter_{name}"
        for component in ("transformer", "transformer_2")
        for name in ("config.json", "model.safetensors")
    ]


def test_kohya_has_no_names_for_other_denoisers() -> None:
    adapter = light_adapter()
    other = Adapter(replace(adapter.config, denoiser="QwenImageTransformer2DModel"), adapter.lora, adapter.head)
    with pytest.raises(AdapterError, match="this adapter is for QwenImageTransformer2DModel") as caught:
        export(other, "kohya")
    assert "Export as comfyui or peft" in str(caught.value)
