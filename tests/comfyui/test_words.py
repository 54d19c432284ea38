"""Errors of the nodes in the words of the nodes, and the family that a wrong file looks like; on the FAKE ComfyUI."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helpers import fake_comfyui as fake
from helpers.comfyui_world import SIGMAS, World, random_lora
from nft_pipeline.adapters.foreign.layers import Layer
from nft_pipeline.comfy_nodes.match import tap_in_comfyui
from nft_pipeline.comfy_nodes.words.errors import in_node_words
from nft_pipeline.comfy_nodes.words.looks import family_of
from nft_pipeline.errors import AdapterError, GuidanceError
from nft_pipeline.families.registry import FAMILIES
from nft_pipeline.laws import LAWS

TRIES = 40  # of bad values for each node
BAD_NUMBERS = (math.nan, math.inf, -math.inf, -1.0, 1e9, 0.0, 0.5, 1.0)
BAD_TEXTS = ("", "nosuch", "x, y", "../x", "0: 1, 0: 2", "1, 99")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('nft_law="odds" needs a head. Use nft_law="nft".', 'law "odds" needs a head. Use law "nft".'),
        ('Use nft_mode="two_pass", or leave nft_cap out.', 'Use mode "exact", or leave cap out.'),
        ('nft_mode="single" begins', 'mode "fast" begins'),
        ("nft_interval is 3", "start_percent and end_percent is 3"),
        ("(base_rate in nft_config.json)", "(base_rate in the adapter's config)"),
        ("nft_pipeline has it", "nft_pipeline has it"),
    ],
)
def test_arguments_become_widgets(text: str, expected: str) -> None:
    assert in_node_words(text) == expected


def bad_value(widget: Any, chance: random.Random) -> Any:
    if widget.io_type == "COMBO":
        return chance.choice([*widget.facts["options"], "nosuch"])
    if widget.io_type in ("FLOAT", "INT"):
        return chance.choice([*BAD_NUMBERS, widget.facts["default"]])
    return chance.choice([*BAD_TEXTS, widget.facts["default"]])


def test_no_error_of_any_node_names_an_argument_of_python(world: World) -> None:
    """Every node with values drawn at random, many of them bad; what is guided then is sampled too."""
    bare = world.adapters["liked"]
    world.add("baseless", "positive", 6, base_rate=None)
    (adapter,) = world.nodes.NFTLoadAdapter.execute("baseless.safetensors").args
    sockets = {
        "MODEL": world.model,
        "NFT_ADAPTER": adapter,
        "CONDITIONING": world.positive,
        "IMAGE": torch.rand(2, 4, 4, 3),
        "LATENT": {"samples": torch.zeros(1)},
    }
    chance, errors = random.Random(1), []
    for node in world.nodes.NODES:
        inputs = node.define_schema().inputs
        if any(entry.io_type not in sockets and "options" not in entry.facts and "default" not in entry.facts
               and not entry.optional for entry in inputs):  # fmt: skip
            continue
        for _ in range(TRIES):
            values: dict[str, Any] = {}
            for entry in inputs:
                if entry.io_type in sockets:
                    values[entry.id] = sockets[entry.io_type]
                elif "default" in entry.facts or "options" in entry.facts:
                    values[entry.id] = bad_value(entry, chance)
            try:
                for given in node.execute(**values).args:
                    if isinstance(given, fake.ModelPatcher):
                        world.sample(given)
                    elif isinstance(given, fake.CFGGuider):
                        given.sample(world.noise, SIGMAS)
            except (GuidanceError, AdapterError, FileNotFoundError) as error:
                errors.append(f"{node.__name__}: {error}")
    assert bare is not None and len(errors) > 5 * TRIES
    assert [text for text in errors if "nft_" in text or "two_pass" in text or "single" in text] == []


@pytest.mark.parametrize("law", LAWS)
def test_with_law_auto_no_adapter_is_refused_whatever_was_chosen_before(world: World, law: str) -> None:
    for adapter in ("liked", "policy", "other"):
        world.sample(world.guided(adapter))
    if "policy" not in LAWS[law].kinds:
        with pytest.raises(GuidanceError, match=f'^law "{law}" needs a positive adapter') as caught:
            world.guided("policy", law=law)
        assert 'Use law "nft".' in str(caught.value)


LOOKS = {
    "SDXL": [
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", 640),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 2048),
    ],
    "Stable Diffusion 1.5": [("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 768)],
    "Stable Diffusion 2": [("unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v", 1024)],
    "FLUX.1": [
        ("transformer.single_transformer_blocks.3.attn.to_q", 3072),
        ("lora_unet_double_blocks_0_img_attn_qkv", 3072),
        ("transformer.transformer_blocks.3.attn.add_q_proj", 3072),
    ],
    "FLUX.2": [
        ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 6144),
        ("diffusion_model.double_blocks.0.img_attn.qkv", 6144),
    ],
    "Stable Diffusion 3 or 3.5 medium": [("transformer.transformer_blocks.0.attn.add_q_proj", 1536)],
    "Stable Diffusion 3.5 large": [("transformer.transformer_blocks.30.attn.add_k_proj", 2432)],
    "Qwen-Image": [("transformer.transformer_blocks.0.img_mlp.net.2", 12288)],
    "Wan": [("lora_unet__blocks_0_cross_attn_k", 1536), ("diffusion_model.blocks.0.self_attn.q", 5120)],
    "Z-Image or Lumina 2": [("diffusion_model.layers.0.attention.to_q", 3840)],
    "": [("something.else", 4)],
}


@pytest.mark.parametrize(("family", "name", "width"), [(f, *row) for f, rows in LOOKS.items() for row in rows])
def test_a_files_family_is_known_by_its_layers(family: str, name: str, width: int) -> None:
    assert family_of({name: Layer(torch.zeros(2, width), torch.zeros(4, 2))}) == family


def test_a_wrong_file_is_named_in_the_first_sentence(world: World) -> None:
    name = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
    save_file(
        {f"{name}.lora_down.weight": torch.ones(2, 640), f"{name}.lora_up.weight": torch.ones(640, 2)},
        world.folder / "loras" / "style.safetensors",
    )
    with pytest.raises(AdapterError) as caught:
        world.guided("style")
    first = str(caught.value).split("\n")[0]
    assert "'style' is for SDXL" in first and "0 of 1 LoRA layers fit" in first


def with_text_layers(world: World) -> None:
    tensors = random_lora(4)
    for side, shape in (("down", (2, 8)), ("up", (8, 2))):
        tensors[f"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_{side}.weight"] = torch.ones(shape)
    save_file(tensors, world.folder / "loras" / "both.safetensors")


def test_text_encoder_layers_are_refused_with_the_choice_to_ignore_them(world: World) -> None:
    with_text_layers(world)
    with pytest.raises(AdapterError, match='Set text_encoder to "ignore"') as caught:
        world.guided("both")
    assert "1 of lora_te1" in str(caught.value).split("\n")[0]
    with pytest.raises(AdapterError, match="text_encoder is 'maybe'"):
        world.guided("both", text_encoder="maybe")


def test_ignored_text_encoder_layers_change_nothing_and_are_warned_of(world: World) -> None:
    with_text_layers(world)
    ignored = world.sample(world.guided("both", text_encoder="ignore", strength=0.7))
    assert "text-encoder layers (1 of lora_te1) are ignored" in world.texts[-1]
    torch.testing.assert_close(ignored, world.sample(world.guided("policy", strength=0.7)))
    (adapter,) = world.nodes.NFTLoadAdapter.execute("both.safetensors", text_encoder="ignore").args
    assert adapter.left_out == {"lora_te1": 1}
    assert "are ignored" in world.nodes.NFTAdapterInfo.execute("both.safetensors").args[0]


def test_comfyui_is_asked_first_what_a_files_keys_mean(world: World) -> None:
    tensors = {key.replace("transformer.", "core_writes_it_so."): value for key, value in random_lora(4).items()}
    save_file(tensors, world.folder / "loras" / "new.safetensors")
    found = world.sample(world.guided("new", strength=0.7))
    torch.testing.assert_close(found, world.sample(world.guided("policy", strength=0.7)))


def test_a_guided_model_is_refused_as_the_second_of_a_merge(world: World) -> None:
    guided = world.guided()
    for model in (guided, guided.clone(), guided.clone().clone()):
        with pytest.raises(GuidanceError, match="A guided model cannot be merged into another one"):
            model.get_key_patches("diffusion_model.")
        assert set(model.get_key_patches()) == set(world.model.get_key_patches())  # what hooks ask for
    assert world.model.get_key_patches("diffusion_model.")


@pytest.mark.parametrize("denoiser", ["FluxTransformer2DModel", "Flux2Transformer2DModel"])
def test_where_comfyui_computes_what_a_head_of_flux_reads_is_known(world: World, denoiser: str) -> None:
    tap = FAMILIES[denoiser].tap
    head = SimpleNamespace(config=SimpleNamespace(tap=tap))
    reward: Any = SimpleNamespace(head=head, config=SimpleNamespace(denoiser=denoiser, name="it"))
    assert tap_in_comfyui(reward, world.model.model) == "diffusion_model.final_layer"
    reward.head.config.tap = "elsewhere"
    with pytest.raises(GuidanceError, match="does not know where ComfyUI computes that"):
        tap_in_comfyui(reward, world.model.model)
