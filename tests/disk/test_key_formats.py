"""Each key format of the table is read: by diffusers' names, and by ComfyUI's map of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from helpers.adapters import tiny_adapter, tiny_sd3
from helpers.foreign import assert_same_changes, kohya_tensors, read_for, save, weights_of
from helpers.key_formats_page import PAGE, page
from nft_pipeline.adapters.foreign import key_formats
from nft_pipeline.adapters.foreign.key_formats import KEY_FORMATS, KeyFormat
from nft_pipeline.adapters.foreign.layers import read_layers
from nft_pipeline.adapters.foreign.rename import name_as_diffusers
from nft_pipeline.adapters.names import PEFT_PREFIX
from nft_pipeline.comfy_nodes.match import match_layers
from nft_pipeline.comfy_nodes.reward_file import read_reward_file
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


# A row of a tool that writes no more than "down" and "up", which older diffusers has behind "lora.".
ROW = KeyFormat("mytool", a="down", b="up", prefix="mytool.")


@pytest.mark.parametrize("form", [ROW, *KEY_FORMATS], ids=lambda form: form.tools)
def test_a_further_row_is_read_by_both_and_disturbs_no_other(
    form: KeyFormat, denoiser: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(key_formats, "KEY_FORMATS", (*KEY_FORMATS, ROW))
    names = {name.replace(".", "_") if form.underscored else name: name for name in weights_of(denoiser)}
    weights = {written: denoiser.get_submodule(name).weight for written, name in names.items()}
    tensors, expected = kohya_tensors(weights, prefix=form.prefix, names=(form.a, form.b))
    file = save(tmp_path / "it.safetensors", tensors)
    adapter = read_for(SimpleNamespace(transformer=denoiser), file)
    assert_same_changes(adapter.lora, {names[written]: change for written, change in expected.items()})
    key_map = {f"lora_transformer_{name.replace('.', '_')}": f"{name}.weight" for name in names.values()}
    key_map |= {f"lora_unet_{name.replace('.', '_')}": f"{name}.weight" for name in names.values()}
    targets = match_layers(read_reward_file(file).layers, key_map, denoiser, shown="it", needs="this", loaded="this")
    assert {target.module for target in targets} == set(names.values())


def test_a_layer_may_be_called_like_what_a_format_writes_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_formats, "KEY_FORMATS", (*KEY_FORMATS, ROW))
    tensors = {"mytool.down.down.weight": torch.ones(2, 6), "mytool.down.up.weight": torch.ones(4, 2)}
    assert list(read_layers(tensors)) == ["mytool.down"]


def test_the_error_names_what_every_format_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_formats, "KEY_FORMATS", (*KEY_FORMATS, ROW))
    with pytest.raises(AdapterError) as caught:
        read_layers({"epoch": torch.ones(1)})
    assert all(f'"....{form.a}.weight"' in str(caught.value) for form in (ROW, *KEY_FORMATS))


def test_the_page_lists_every_format() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it again: make pages"
