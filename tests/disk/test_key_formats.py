"""Each key format of the table is read: by diffusers' names, and by ComfyUI's map of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers.adapters import tiny_adapter, tiny_sd3
from nft_pipeline.adapters.foreign.key_formats import KEY_FORMATS, KeyFormat
from nft_pipeline.adapters.foreign.layers import read_layers
from nft_pipeline.adapters.foreign.rename import name_as_diffusers
from nft_pipeline.adapters.names import PEFT_PREFIX
from nft_pipeline.comfy_nodes.match import match_layers
from nft_pipeline.errors import AdapterError


def spelled(form: KeyFormat, module: str, adapter: str = "") -> dict[str, str]:
    """The keys of A and B of a layer in this format, by side."""
    path = form.prefix + (module.replace(".", "_") if form.underscored else module)
    return {"A": f"{path}.{form.a}{adapter}.weight", "B": f"{path}.{form.b}{adapter}.weight"}


@pytest.fixture(scope="module")
def denoiser() -> nn.Module:
    return tiny_sd3()


@pytest.mark.parametrize("form", KEY_FORMATS, ids=lambda form: form.tools)
def test_a_format_of_the_table_is_read(form: KeyFormat, denoiser: nn.Module) -> None:
    lora = dict(tiny_adapter(denoiser).lora)
    written: dict[str, Tensor] = {}
    for key, tensor in lora.items():
        module, _, side = key.removeprefix("transformer.").removesuffix(".weight").rpartition(".lora_")
        written[spelled(form, module)[side]] = tensor
    named = name_as_diffusers(read_layers(written), denoiser, "transformer")
    assert named.keys() == lora.keys() and all(torch.equal(named[key], lora[key]) for key in lora)
    wrapped = {PEFT_PREFIX + key: tensor for key, tensor in written.items()}
    if not form.underscored:
        assert name_as_diffusers(read_layers(wrapped), denoiser, "transformer").keys() == lora.keys()


@pytest.mark.parametrize("form", KEY_FORMATS, ids=lambda form: form.tools)
def test_a_format_of_the_table_is_found_in_comfyuis_map(form: KeyFormat) -> None:
    model = nn.ModuleDict({"block": nn.ModuleDict({"to_q": nn.Linear(6, 4)})})
    keys = spelled(form, "block.to_q")
    layers = read_layers({keys["A"]: torch.ones(2, 6), keys["B"]: torch.ones(4, 2)})
    facts = {"shown": "the file", "needs": "a model", "loaded": "this one"}
    # Underscores cannot be made dots again: of such a format the map has the very name.
    names = [f"{form.prefix}block_to_q"] if form.underscored else ["diffusion_model.block.to_q", "lora_unet_block_to_q"]
    for name in names:
        [target] = match_layers(layers, {name: "block.to_q.weight"}, model, **facts)
        assert target.module == "block.to_q"


@pytest.mark.parametrize("form", KEY_FORMATS, ids=lambda form: form.tools)
def test_the_name_of_an_adapter_stands_where_the_format_has_one(form: KeyFormat) -> None:
    keys = spelled(form, "block.to_q", adapter=".default")
    tensors = {keys["A"]: torch.ones(2, 6), keys["B"]: torch.ones(4, 2)}
    if form.names_adapter:
        assert len(read_layers(tensors)) == 1
    else:
        with pytest.raises(AdapterError, match="no part of a LoRA"):
            read_layers(tensors)
