"""One file in, one adapter out: our own single file as strictly as the folder, and other people's plain LoRAs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.adapters import assert_same, tiny_adapter
from nft_pipeline.adapter import Adapter, AdapterError, write_adapter
from nft_pipeline.adapters.single_file import read_single_file
from nft_pipeline.comfy_nodes.reward_file import describe, needed_base, read_reward_file
from nft_pipeline.files.strict import read_safetensors


@pytest.fixture(scope="module")
def positive() -> Adapter:
    return tiny_adapter()


@pytest.fixture(scope="module")
def single(positive: Adapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_adapter(tmp_path_factory.mktemp("adapter") / "tiny", positive)
    return folder / "comfyui" / "tiny-red.safetensors"


def rewritten(single: Path, path: Path, change: Any = None, header: Mapping[str, str | None] | None = None) -> Path:
    file = read_safetensors(single, "it", 10**9)
    tensors, texts = dict(file.tensors), dict(file.header)
    for key, value in (header or {}).items():
        texts.pop(key)
        texts |= {} if value is None else {key: value}
    if change is not None:
        change(tensors)
    save_file(tensors, path, texts)
    return path


def test_the_single_file_is_the_folder(positive: Adapter, single: Path) -> None:
    found = read_single_file(single)
    assert found is not None
    assert_same(found, positive)


def test_a_folders_lora_is_read_with_all_that_is_in_the_folder(positive: Adapter, single: Path, tmp_path: Path) -> None:
    folder = single.parent.parent
    found, same = read_reward_file(folder / "pytorch_lora_weights.safetensors"), read_reward_file(single)
    assert found.config == same.config == positive.config and found.layers.keys() == same.layers.keys()
    assert all(torch.equal(layer.b, same.layers[path].b) for path, layer in found.layers.items())
    assert found.head is not None and same.head is not None
    weights = same.head.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in found.head.state_dict().items())
    alone = tmp_path / "pytorch_lora_weights.safetensors"
    alone.write_bytes((folder / "pytorch_lora_weights.safetensors").read_bytes())
    with pytest.raises(AdapterError, match="has faults"):  # the LoRA alone is not the adapter
        read_reward_file(alone)


def test_as_the_nodes_see_it(positive: Adapter, single: Path) -> None:
    reward = read_reward_file(single)
    assert reward.head is not None and reward.config == positive.config and reward.form is None
    assert 2 * len(reward.layers) == len(positive.lora)
    for path, layer in reward.layers.items():
        assert torch.equal(layer.a, positive.lora[f"{path}.lora_A.weight"])
        assert torch.equal(layer.b, positive.lora[f"{path}.lora_B.weight"])
    text = describe(reward)
    for part in ("tiny-red: positive", "the object is red", "someone/tiny-sd3", "strength 1.5", "31% of pictures"):
        assert part in text
    assert needed_base(reward) == "someone/tiny-sd3 (SD3Transformer2DModel)"


def test_kind_policy_leaves_the_head_out(single: Path) -> None:
    reward = read_reward_file(single, "policy")
    assert reward.head is None and reward.config.kind == "policy" and reward.config.base_rate is None


def without(key: str) -> Any:
    return lambda tensors: tensors.pop(key)


def doubled(key: str) -> Any:
    return lambda tensors: tensors.update({key: 2 * tensors[key]})


def spoilt(key: str) -> Any:
    return lambda tensors: tensors.update({key: torch.full_like(tensors[key], float("nan"))})


PATCH = "transformer.pos_embed.proj"


@pytest.mark.parametrize(
    ("change", "header", "fault"),
    [
        (without(f"{PATCH}.alpha"), {}, f"{PATCH} has no alpha tensor, expected one equal to the rank 4"),
        (doubled(f"{PATCH}.alpha"), {}, r"alpha is \[8.0\], expected the rank 4"),
        (without(f"{PATCH}.lora_A.weight"), {}, "no lora_A"),
        (spoilt(f"{PATCH}.lora_B.weight"), {}, "NaN or infinite"),
        (without("alpha_head.no_text"), {}, "alpha_head: no_text is missing"),
        (spoilt("alpha_head.no_text"), {}, "NaN or infinite"),
        (None, {"diffusion_nft_alpha_head": None}, "diffusion_nft_alpha_head in the header is not valid JSON"),
        (None, {"diffusion_nft": '{"kind": "positive"}'}, "beta is missing"),
        (None, {"diffusion_nft": "{"}, "not valid JSON"),
    ],
)
def test_a_single_file_with_a_fault(
    single: Path, tmp_path: Path, change: Any, header: dict[str, str | None], fault: str
) -> None:
    path = rewritten(single, tmp_path / "x.safetensors", change, header)
    with pytest.raises(AdapterError, match=fault):
        read_reward_file(path)


def pair(rank: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rank, 4, generator=generator), torch.randn(6, rank, generator=generator)


A, B = pair()
KOHYA = {
    "lora_unet_block_0_to_q.lora_down.weight": A,
    "lora_unet_block_0_to_q.lora_up.weight": B,
    "lora_unet_block_0_to_q.alpha": torch.tensor(4.0),
}
PLAIN = {"transformer.block.0.to_q.lora_A.weight": A, "transformer.block.0.to_q.lora_B.weight": B}


def test_kohyas_alpha_is_the_scale(tmp_path: Path) -> None:
    save_file(KOHYA, tmp_path / "k.safetensors")
    reward = read_reward_file(tmp_path / "k.safetensors")
    (layer,) = reward.layers.values()
    torch.testing.assert_close(layer.b, 2 * B)
    assert (reward.config.kind, reward.scales, reward.scale_recorded) == ("policy", (2.0,), True)


def test_pefts_config_beside_the_file_is_the_scale(tmp_path: Path) -> None:
    tensors = {f"base_model.model.{k.removeprefix('transformer.')}": t for k, t in PLAIN.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "someone/base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    reward = read_reward_file(tmp_path / "adapter_model.safetensors")
    (layer,) = reward.layers.values()
    torch.testing.assert_close(layer.b, 2 * B)
    assert needed_base(reward) == "someone/base"


def test_a_header_of_diffusers_is_the_scale(tmp_path: Path) -> None:
    said = json.dumps({"transformer.r": 2, "transformer.lora_alpha": 6})
    save_file(PLAIN, tmp_path / "d.safetensors", {"lora_adapter_metadata": said})
    (layer,) = read_reward_file(tmp_path / "d.safetensors").layers.values()
    torch.testing.assert_close(layer.b, 3 * B)


def test_a_lora_without_a_scale_warns_of_half_strength(tmp_path: Path) -> None:
    save_file(PLAIN, tmp_path / "p.safetensors")
    text = describe(read_reward_file(tmp_path / "p.safetensors"))
    assert "WARNING: no scale is recorded" in text and "half strength" in text


def write(path: Path, data: bytes | dict[str, Tensor]) -> Path:
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        save_file({key: tensor.clone() for key, tensor in data.items()}, path)
    return path


NAME = "transformer.block.0.to_q"


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({f"{NAME}.hada_w1_a": A}, "LyCORIS adapter"),
        ({f"{NAME}.lokr_w1": A}, "LyCORIS adapter"),
        ({**PLAIN, f"{NAME}.dora_scale": A}, "a DoRA"),
        ({**PLAIN, f"{NAME}.diff_b": A}, "trained weight or bias"),
        ({**PLAIN, "lora_te1_text_model.lora_down.weight": A}, "text encoder"),
        ({f"{NAME}.lora_A.weight": A}, "no B; the file is incomplete"),
        ({k: t * float("nan") for k, t in PLAIN.items()}, "NaN or infinite"),
        ({"model.weight": A}, "no part of a LoRA"),
        (b"PK\x03\x04" + bytes(60), "is a pickle"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"\x10\x27\x00\x00\x00\x00\x00\x00{}", "truncated"),
        (b"", "truncated"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(tmp_path: Path, data: Any, fault: str) -> None:
    with pytest.raises(AdapterError, match=fault):
        read_reward_file(write(tmp_path / "x.safetensors", data))


def test_a_pickle_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="never loaded"):
        read_reward_file(write(tmp_path / "x.ckpt", b"anything"))


def test_a_truncated_single_file(single: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="truncated or damaged"):
        read_reward_file(write(tmp_path / "x.safetensors", single.read_bytes()[:-100]))


def test_positive_insists_on_a_head(tmp_path: Path) -> None:
    save_file(PLAIN, tmp_path / "p.safetensors")
    with pytest.raises(AdapterError, match='cannot be used as kind "positive"'):
        read_reward_file(tmp_path / "p.safetensors", "positive")
    with pytest.raises(AdapterError, match="kind is 'good', expected one of"):
        read_reward_file(tmp_path / "p.safetensors", "good")


def test_the_shipped_single_file() -> None:
    import nft_pipeline.models

    folder = Path(nft_pipeline.models.__file__).parent / "shapes-warm"
    reward = read_reward_file(folder / "comfyui" / "shapes-warm.safetensors")
    ours = load_file(folder / "pytorch_lora_weights.safetensors")
    assert 2 * len(reward.layers) == len(ours)
