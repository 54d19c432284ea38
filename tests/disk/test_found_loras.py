"""LoRAs as people find them: musubi-tuner's and VideoX-Fun's for Wan, kohya's with text encoders, and LyCORIS.

Stock diffusers' load is the measure where it loads a file, and kohya's rule where it does not.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from helpers.foreign import assert_same_changes, change_of, kohya_tensors, pair, read_for, save, weights_of
from helpers.modular import IS_NEW
from helpers.one_file import whole_sdxl
from helpers.zoo import CASES, denoiser_of
from nft_pipeline.cli import main
from nft_pipeline.errors import AdapterError
from nft_pipeline.pipeline import DiffusionNFTPipeline

WAN, SDXL = CASES["WanPipeline"], CASES["StableDiffusionXLPipeline"]
LINEAR = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")
OUTSIDE = {
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "proj_out": "head.head",
}


def original(name: str) -> str:
    """What the original Wan calls a layer of diffusers'."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    name = name.replace("attn1", "self_attn").replace("attn2", "cross_attn").replace("to_out.0", "o")
    name = name.replace("add_k_proj", "k_img").replace("add_v_proj", "v_img").replace("net.0.proj", "0")
    return re.sub(r"to_([qkv])", r"\1", name).replace("net.2", "2")


def wan_file(
    path: Path, prefix: str, *, dotted: bool = False, outside: bool = False, case: Any = WAN
) -> tuple[Path, dict[str, Tensor]]:
    """A file for all linear layers of the blocks, each with an alpha; and the change of each layer."""
    pipe = case.pipe()
    weights = {n: w for n, w in weights_of(pipe.transformer, LINEAR).items() if n.startswith("blocks.")}
    if outside:
        weights |= {name: pipe.transformer.get_submodule(name).weight for name in OUTSIDE}
    spelled = {n: original(n) if dotted else original(n).replace(".", "_") for n in weights}
    tensors, expected = kohya_tensors({spelled[n]: w for n, w in weights.items()}, prefix=prefix)
    for key in [key for key in tensors if key.endswith("lora_down.weight")]:
        alpha = key.replace("lora_down.weight", "alpha")
        tensors.setdefault(alpha, torch.tensor(float(tensors[key].shape[0])))
    return save(path, tensors), {name: expected[spelled[name]] for name in weights}


def stock_changes(pipe: Any, file: Path) -> dict[str, Tensor]:
    """What stock diffusers adds to each weight of the denoiser."""
    pipe.load_lora_weights(str(file))
    added = {}
    for name, layer in denoiser_of(pipe).named_modules():
        if hasattr(layer, "lora_A"):
            [adapter] = layer.lora_A
            added[name] = layer.get_delta_weight(adapter).detach()
    return added


def test_a_musubi_lora_for_wan_is_stock_diffusers(tmp_path: Path) -> None:
    file, expected = wan_file(tmp_path / "musubi.safetensors", "lora_unet_")
    adapter = read_for(WAN.pipe(), file)
    assert_same_changes(adapter.lora, expected)
    assert_same_changes(adapter.lora, stock_changes(WAN.pipe(), file))


def test_a_musubi_lora_acts_as_in_stock_diffusers(tmp_path: Path) -> None:
    file, _ = wan_file(tmp_path / "musubi.safetensors", "lora_unet_")
    stock = WAN.pipe()
    stock.load_lora_weights(str(file))
    expected = WAN.sample(stock)
    guided = DiffusionNFTPipeline.from_pipe(WAN.pipe())
    guided.load_nft_adapter(file, kind="policy", beta=1.0)
    torch.testing.assert_close(WAN.sample(guided), expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    ("prefix", "dotted"),
    [("lora_unet__", False), ("diffusion_model.", True), ("lora_unet_", False), ("", True)],
    ids=["VideoX-Fun", "ComfyUI", "musubi", "bare"],
)
def test_the_original_names_of_wan_are_read_inside_and_outside_of_blocks(
    tmp_path: Path, prefix: str, dotted: bool
) -> None:
    """VideoX-Fun's (Wan-Fun's) reward LoRAs have two underscores; stock diffusers does not load them."""
    file, expected = wan_file(tmp_path / "x.safetensors", prefix, dotted=dotted, outside=True)
    assert_same_changes(read_for(WAN.pipe(), file).lora, expected)


def test_a_part_of_wans_layers_is_enough(tmp_path: Path) -> None:
    """Stock diffusers' converter of musubi files wants all layers of a block."""
    weights = weights_of(WAN.pipe().transformer, ("attn1.to_q",))
    tensors, expected = kohya_tensors({original(n).replace(".", "_"): w for n, w in weights.items()})
    adapter = read_for(WAN.pipe(), save(tmp_path / "x.safetensors", tensors))
    assert_same_changes(adapter.lora, {n: expected[original(n).replace(".", "_")] for n in weights})


def test_an_unknown_layer_of_wan_is_named(tmp_path: Path) -> None:
    file, _ = wan_file(tmp_path / "x.safetensors", "lora_unet_")
    from safetensors.torch import load_file

    tensors = {key.replace("blocks_0_ffn_0", "blocks_0_ffn_1"): t for key, t in load_file(file).items()}
    with pytest.raises(AdapterError, match="lora_unet_blocks_0_ffn_1: the model has no such module"):
        read_for(WAN.pipe(), save(tmp_path / "y.safetensors", tensors))


# Other families, whose original names diffusers' own converters know; those of such files want an alpha.
KOHYA: dict[str, dict[str, tuple[str, ...]]] = {
    "Flux2Pipeline": {
        "double_blocks_0_img_attn_qkv": tuple(f"transformer_blocks.0.attn.to_{side}" for side in "qkv"),
        "double_blocks_0_img_attn_proj": ("transformer_blocks.0.attn.to_out.0",),
        "single_blocks_0_linear2": ("single_transformer_blocks.0.attn.to_out",),
    },
    "ZImagePipeline": {
        "layers_0_attention_qkv": tuple(f"layers.0.attention.to_{side}" for side in "qkv"),
        "layers_0_attention_out": ("layers.0.attention.to_out.0",),
    },
}


@pytest.mark.parametrize("name", KOHYA)
def test_kohya_files_of_other_families_are_stock_diffusers(tmp_path: Path, name: str) -> None:
    denoiser = denoiser_of(CASES[name].pipe())
    generator = torch.Generator().manual_seed(9)
    tensors: dict[str, Tensor] = {}
    for layer, modules in KOHYA[name].items():
        weight = torch.cat([denoiser.get_submodule(module).weight.detach() for module in modules])
        key = f"lora_unet_{layer}"
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = pair(weight, 2, generator)
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
    file = save(tmp_path / "x.safetensors", tensors)
    expected = stock_changes(CASES[name].pipe(), file)
    assert len(expected) == sum(map(len, KOHYA[name].values()))
    assert_same_changes(read_for(CASES[name].pipe(), file).lora, expected)


# Text encoders.


def kohya_sdxl(path: Path, pipe: Any) -> tuple[Path, dict[str, Tensor]]:
    """As kohya's sd-scripts write it by default: the UNet and both text encoders, one rank, one alpha.

    (Where ranks or alphas differ by layer, diffusers 0.42 loses the alphas of attention layers.)
    """
    generator = torch.Generator().manual_seed(5)
    tensors, expected = {}, {}
    for name, weight in weights_of(pipe.unet).items():
        down, up = pair(weight, 4, generator)
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
        expected[name] = change_of(down, up, 1.0)
    for part, encoder in (("te1", pipe.text_encoder), ("te2", pipe.text_encoder_2)):
        inside = {
            "text_model_" + n.removeprefix("text_model.").replace(".", "_"): m.weight
            for n, m in encoder.named_modules()
            if isinstance(m, nn.Linear) and n.endswith(("q_proj", "fc1"))
        }
        tensors |= kohya_tensors(inside, prefix=f"lora_{part}_")[0]
    return save(path, tensors), expected


def test_text_encoders_are_left_out_by_choice_and_counted(tmp_path: Path) -> None:
    pipe = whole_sdxl()
    file, expected = kohya_sdxl(tmp_path / "style.safetensors", pipe)
    with pytest.raises(AdapterError, match=r"belongs to a text encoder(.|\n)*pass without_text_encoder=True"):
        read_for(pipe, file)
    with pytest.warns(UserWarning, match=r"24 layers of text encoders are left out \(lora_te1: 4, lora_te2: 20\)"):
        adapter = read_for(pipe, file, without_text_encoder=True)
    assert adapter.config.training["left_out"] == {"lora_te1": 4, "lora_te2": 20}
    assert_same_changes(adapter.lora, expected)
    assert_same_changes(adapter.lora, stock_changes(whole_sdxl(), file))
    guided = DiffusionNFTPipeline.from_pipe(pipe)
    with pytest.warns(UserWarning, match="24 layers"):
        guided.load_nft_adapter(file, kind="policy", beta=1.0, without_text_encoder=True)
    assert guided.nft_config.training["left_out"]["lora_te2"] == 20


def test_nothing_is_said_where_there_is_no_text_encoder(tmp_path: Path) -> None:
    file, _ = wan_file(tmp_path / "x.safetensors", "lora_unet_")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapter = read_for(WAN.pipe(), file, without_text_encoder=True)
    assert "left_out" not in adapter.config.training


def test_info_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, expected = kohya_sdxl(tmp_path / "style.safetensors", whole_sdxl())
    assert main(["info", str(file)]) == 0
    assert "lora_te1: 4 layers, lora_te2: 20 layers; they cannot be dialled" in capsys.readouterr().out
    assert main(["info", str(file), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["text_encoders"] == {"lora_te1": 4, "lora_te2": 20} and facts["layers"] == len(expected)


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("text_encoder_2.text_model.x.lora_A.weight", "text_encoder_2"),
        ("text_encoders.clip_l.transformer.x.lora_up.weight", "text_encoders.clip_l"),
        ("te1_x.lora_up.weight", "te1"),
        ("lora_te_text_model_x.alpha", "lora_te"),
    ],
)
def test_each_spelling_of_a_text_encoder_is_counted(tmp_path: Path, key: str, part: str) -> None:
    tensors, _ = kohya_tensors({n.replace(".", "_"): w for n, w in weights_of(SDXL.pipe().unet).items()})
    file = save(tmp_path / "x.safetensors", tensors | {key: torch.ones(2, 2)})
    with pytest.warns(UserWarning, match=rf"\({part}: 1\)"):
        read_for(SDXL.pipe(), file, without_text_encoder=True)


# LyCORIS: what is B @ A in other clothes, and what is none.

Dressed = tuple[dict[str, Tensor], dict[str, Tensor]]


def lycoris(kind: str, weights: dict[str, Tensor]) -> Dressed:
    """Tensors of a file of that kind, each layer with an alpha; and what each layer adds, as LyCORIS computes it."""
    generator = torch.Generator().manual_seed(5)
    tensors, expected = {}, {}
    for name, weight in weights.items():
        out, inside = weight.shape

        def drawn(*shape: int) -> Tensor:
            return 0.3 * torch.randn(*shape, generator=generator)

        if kind == "LoHa":
            made = {
                f"hada_w{i}_{side}": drawn(*((out, 3) if side == "a" else (3, inside))) for i in "12" for side in "ab"
            }
            change = (made["hada_w1_a"] @ made["hada_w1_b"]) * (made["hada_w2_a"] @ made["hada_w2_b"])
        else:
            made = {"lokr_w2_a": drawn(out // 4, 3), "lokr_w2_b": drawn(3, inside // 4)}
            made |= {"lokr_w1": drawn(4, 4)} if kind == "LoKr" else {"lokr_w1_a": drawn(4, 3), "lokr_w1_b": drawn(3, 4)}
            first = made["lokr_w1"] if kind == "LoKr" else made["lokr_w1_a"] @ made["lokr_w1_b"]
            change = torch.kron(first, made["lokr_w2_a"] @ made["lokr_w2_b"])
        tensors |= {f"{name}.{part}": tensor for part, tensor in made.items()} | {f"{name}.alpha": torch.tensor(1.5)}
        expected[name] = change * 1.5 / 3
    return tensors, expected


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "LoKr, both split"])
def test_lycoris_that_is_a_lora_in_other_clothes_is_one(tmp_path: Path, kind: str) -> None:
    weights = {n: w for n, w in weights_of(WAN.pipe().transformer, LINEAR).items() if n.startswith("blocks.")}
    weights = {name: weight for name, weight in weights.items() if all(edge % 4 == 0 for edge in weight.shape)}
    tensors, expected = lycoris(kind, weights)
    spelled = {original(name).replace(".", "_"): name for name in weights}
    by_name = {name: f"lora_unet_{spelling}" for spelling, name in spelled.items()}
    renamed = {f"{by_name[path]}.{part}": t for key, t in tensors.items() for path, _, part in [key.rpartition(".")]}
    adapter = read_for(WAN.pipe(), save(tmp_path / "x.safetensors", renamed))
    assert_same_changes(adapter.lora, expected)
    dotted = {f"diffusion_model.{key}": tensor for key, tensor in tensors.items()}
    assert_same_changes(read_for(WAN.pipe(), save(tmp_path / "y.safetensors", dotted)).lora, expected)


def test_a_lokr_acts_as_in_stock_diffusers(tmp_path: Path) -> None:
    """peft has LoKr itself, and diffusers converts such files for some models."""
    if not IS_NEW:
        pytest.skip(f"diffusers {diffusers.__version__} cannot load a LoKr, 0.42 can")
    case = CASES["ZImagePipeline"]
    weights = {n: w for n, w in weights_of(case.pipe().transformer, ("to_q", "to_v")).items() if "layers.0" in n}
    tensors, _ = lycoris("LoKr", weights)
    file = save(tmp_path / "x.safetensors", {f"diffusion_model.{key}": tensor for key, tensor in tensors.items()})
    stock = case.pipe()
    stock.load_lora_weights(str(file))
    expected = case.sample(stock)
    guided = DiffusionNFTPipeline.from_pipe(case.pipe())
    guided.load_nft_adapter(file, kind="policy", beta=1.0)
    torch.testing.assert_close(case.sample(guided), expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    assert not torch.allclose(expected, case.sample(case.pipe()), atol=1e-3)


Q = "lora_unet_blocks_0_self_attn_q"
LYCORIS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "half a LoHa": ({"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2)}, r"LyCORIS.*\(LoHa\)"),
    "LoKr, not split": ({"lokr_w1": (2, 2), "lokr_w2": (4, 4)}, r"LyCORIS.*\(LoKr\)"),
    "LoKr, too large": ({"lokr_w1": (2, 20), "lokr_w2_a": (4, 20), "lokr_w2_b": (20, 4)}, r"LyCORIS.*\(LoKr\)"),
    "OFT": ({"oft_blocks": (2, 4, 4)}, r"LyCORIS.*\(OFT\)"),
    "Tucker": ({"lora_mid.weight": (2, 2, 3, 3)}, r"LyCORIS.*\(Tucker\)"),
    "GLoRA": ({"a1.weight": (2, 8), "b1.weight": (2, 8)}, r"LyCORIS.*\(GLoRA\)"),
    "DoRA": ({"dora_scale": (8, 1)}, "a DoRA"),
    "full": ({"diff": (8, 8)}, "a trained weight or bias"),
    "bias": ({"diff_b": (8,)}, "a trained weight or bias"),
}


@pytest.mark.parametrize("kind", LYCORIS)
def test_lycoris_is_refused_by_its_own_name(tmp_path: Path, kind: str) -> None:
    """It says so once for each tensor and nothing about alphas; and it says what to do."""
    shapes, phrase = LYCORIS[kind]
    tensors = {f"{Q}.{name}": torch.ones(shape) for name, shape in shapes.items()}
    file = save(tmp_path / "x.safetensors", {**tensors, f"{Q}.alpha": torch.tensor(2.0)})
    with pytest.raises(AdapterError, match=rf"{phrase}(.|\n)*diffusion-nft extract") as caught:
        read_for(WAN.pipe(), file)
    assert len(caught.value.faults) == len(tensors)
