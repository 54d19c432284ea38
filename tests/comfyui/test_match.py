"""Layers find their weights under every tool's names, and a layer without one is an error that counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nft_pipeline.adapters.foreign.layers import Layer
from nft_pipeline.comfy_nodes.match import match_layers
from nft_pipeline.errors import AdapterError


class Model(nn.Module):
    """As ComfyUI names things: everything under diffusion_model."""

    def __init__(self) -> None:
        super().__init__()
        self.diffusion_model = nn.Module()
        self.diffusion_model.qkv = nn.Linear(4, 18)
        self.diffusion_model.conv = nn.Conv2d(3, 5, 3)
        self.diffusion_model.point = nn.Conv2d(3, 5, 1)
        self.diffusion_model.norm = nn.LayerNorm(4)


def swap(weight: Tensor) -> Tensor:
    return weight.roll(weight.shape[0] // 2, 0)


KEY_MAP: dict[str, Any] = {
    "transformer.block.to_q": ("diffusion_model.qkv.weight", (0, 0, 6)),
    "transformer.block.to_k": ("diffusion_model.qkv.weight", (0, 6, 6)),
    "transformer.norm_out": ("diffusion_model.qkv.weight", None, swap),
    "lora_unet_conv_in": "diffusion_model.conv.weight",
    "diffusion_model.point": "diffusion_model.point.weight",
    "transformer.norm": "diffusion_model.norm.weight",
    "transformer.gone": "diffusion_model.gone.weight",
    "transformer.columns": ("diffusion_model.qkv.weight", (1, 0, 2)),
}


def layer(out: int, *inside: int) -> Layer:
    generator = torch.Generator().manual_seed(out)
    return Layer(torch.randn(2, *inside, generator=generator), torch.randn(out, 2, generator=generator))


def match(layers: dict[str, Layer]) -> Any:
    return match_layers(layers, KEY_MAP, Model(), shown="the adapter 'x'", needs="some/base", loaded="a Flux model")


@pytest.mark.parametrize(
    "name", ["transformer.block.to_q", "base_model.model.block.to_q", "block.to_q", "diffusion_model.block.to_q"]
)
def test_a_layer_is_found_whatever_stands_before_its_name(name: str) -> None:
    (target,) = match({name: layer(6, 4)})
    assert (target.module, target.start, target.size, target.layer) == ("diffusion_model.qkv", 0, 6, name)


def test_kohyas_spelling_is_tried_too() -> None:
    (target,) = match({"unet.conv.in": layer(5, 3, 3, 3)})
    assert target.module == "diffusion_model.conv"
    assert target.b.shape == (5, 2, 1, 1)


def test_a_function_of_rows_is_applied_to_b() -> None:
    given = layer(18, 4)
    (target,) = match({"transformer.norm_out": given})
    assert torch.equal(target.b, swap(given.b))
    assert torch.equal(target.a, given.a)


def test_a_linear_layers_lora_fits_a_convolution_of_one_pixel() -> None:
    (target,) = match({"diffusion_model.point": layer(5, 3)})
    assert target.a.shape == (2, 3, 1, 1)


@pytest.mark.parametrize(
    ("layers", "fault"),
    [
        ({"transformer.other": layer(6, 4)}, "transformer.other: the model has no such layer"),
        ({"transformer.gone": layer(6, 4)}, "no layer of the loaded model"),
        ({"transformer.norm": layer(4, 4)}, "is a LayerNorm, expected a linear layer or a 2-D convolution"),
        ({"transformer.columns": layer(18, 2)}, "only parts of the first dimension"),
        ({"transformer.block.to_q": layer(7, 4)}, r"B \(7, 2\) do not fit, expected A \(rank, 4\) and B \(6, rank\)"),
        ({"transformer.block.to_q": layer(6, 5)}, r"A \(2, 5\) and B"),
        ({"block.to_q": layer(6, 4), "transformer.block.to_q": layer(6, 4)}, "is the same one of the model"),
    ],
)
def test_a_layer_that_does_not_fit_is_named(layers: dict[str, Layer], fault: str) -> None:
    with pytest.raises(AdapterError, match=fault):
        match(layers)


def test_the_wrong_base_is_one_sentence_with_a_count() -> None:
    with pytest.raises(AdapterError) as caught:
        match({"transformer.a": layer(6, 4), "transformer.b": layer(6, 4)})
    assert caught.value.what == (
        "the adapter 'x' is for some/base, and the loaded model is a Flux model: 0 of 2 LoRA layers fit"
    )


def test_layers_that_fit_are_counted_beside_those_that_do_not() -> None:
    with pytest.raises(AdapterError, match="1 of 2 LoRA layers fit"):
        match({"block.to_q": layer(6, 4), "transformer.b": layer(6, 4)})
