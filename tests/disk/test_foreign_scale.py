"""Checkpoints of other tools: the change of every layer is the one that the tool itself makes, to the number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from peft import get_peft_model_state_dict
from torch import Tensor

from helpers.foreign import (
    add_to_weights,
    assert_same_changes,
    changes,
    kohya_tensors,
    official_checkpoint,
    peft_changes,
    peft_model,
    read_for,
    save,
    weights_of,
)
from helpers.zoo import CASES, denoiser_of
from nft_pipeline.adapters.foreign.adapter import read_foreign
from nft_pipeline.errors import GuidanceError
from nft_pipeline.pipeline import DiffusionNFTPipeline

SD1, SDXL = CASES["StableDiffusionPipeline"], CASES["StableDiffusionXLPipeline"]
SD3, FLUX, QWEN = CASES["StableDiffusion3Pipeline"], CASES["FluxPipeline"], CASES["QwenImagePipeline"]
PEFT_RULES: dict[str, dict[str, Any]] = {
    "alpha is twice r": {},
    "patterns": {
        "rank_pattern": {"to_q": 6, r"transformer_blocks\.0\.attn\.to_k": 3},
        "alpha_pattern": {"attn.to_q": 2, "to_v": 5},
    },
    "rslora": {"use_rslora": True},
    "rslora and patterns": {"use_rslora": True, "rank_pattern": {"to_k": 9}, "alpha_pattern": {"to_k": 7}},
}


@pytest.mark.parametrize("rule", PEFT_RULES.values(), ids=PEFT_RULES)
@pytest.mark.parametrize("case", [SD3, FLUX], ids=["sd3", "flux"])
def test_a_peft_folder_by_pefts_own_numbers(tmp_path: Path, case: Any, rule: dict[str, Any]) -> None:
    model = peft_model(denoiser_of(case.pipe()), **rule)
    root = official_checkpoint(tmp_path, model)
    adapter = read_for(case.pipe(), root / "lora")
    assert_same_changes(adapter.lora, peft_changes(model))
    assert {t.shape[0] for key, t in adapter.lora.items() if "lora_A" in key} == {adapter.config.rank}
    assert adapter.old is None


@pytest.mark.parametrize("case", [SD3, FLUX], ids=["sd3", "flux"])
def test_strength_1_is_the_peft_model(tmp_path: Path, case: Any) -> None:
    pipe = case.pipe()
    stock = case.sample(pipe)
    pipe.transformer = peft_model(pipe.transformer)
    root = official_checkpoint(tmp_path, pipe.transformer)
    expected = case.sample(pipe)
    guided = DiffusionNFTPipeline.from_pipe(case.pipe())
    guided.load_nft_adapter(root, kind="policy", beta=0.1)
    assert guided.nft_config.tilt == pytest.approx(20.0)
    torch.testing.assert_close(case.sample(guided), expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
    assert torch.equal(case.sample(guided, nft_strength=0), stock)
    assert (expected - stock).abs().max() > 0.01 * stock.abs().max()


def test_old_beside_it_is_v_old_or_not(tmp_path: Path) -> None:
    model = peft_model(SD3.pipe().transformer, old=True)
    root = official_checkpoint(tmp_path, model)
    assert (root / "lora" / "old" / "adapter_config.json").is_file()
    adapter = read_for(SD3.pipe(), root, use_old=True)
    assert adapter.old is not None
    assert_same_changes(adapter.lora, peft_changes(model))
    assert_same_changes(adapter.old, peft_changes(model, "old"))
    assert adapter.config.training["v_old"] == "the adapter old beside it"
    alone = read_for(SD3.pipe(), root)
    assert alone.old is None and alone.config.training["v_old"] == "the base model"
    as_policy = read_for(SD3.pipe(), root, subfolder="lora/old")
    assert_same_changes(as_policy.lora, peft_changes(model, "old"))


def test_with_old_the_dial_goes_from_one_peft_model_to_the_other(tmp_path: Path) -> None:
    model = peft_model(SD3.pipe().transformer, old=True)
    root = official_checkpoint(tmp_path, model)
    expected = {}
    for name in ("old", "default"):
        pipe = SD3.pipe()
        pipe.transformer = model
        model.set_adapter(name)
        expected[name] = SD3.sample(pipe)
    guided = DiffusionNFTPipeline.from_pipe(SD3.pipe())
    guided.load_nft_adapter(root, kind="policy", beta=0.1, use_old=True)
    for strength, name in ((0, "old"), (1, "default")):
        torch.testing.assert_close(SD3.sample(guided, nft_strength=strength), expected[name], atol=1e-4, rtol=0)
    assert (expected["old"] - expected["default"]).abs().max() > 1e-2
    with pytest.raises(GuidanceError, match="'default' has a LoRA for v_old, and the adapter's format has no place"):
        guided.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_flow_factorys_folder_for_each_part(tmp_path: Path) -> None:
    model = peft_model(SD3.pipe().transformer)
    model.save_pretrained(str(tmp_path / "checkpoint-10" / "transformer"))
    assert_same_changes(read_for(SD3.pipe(), tmp_path / "checkpoint-10").lora, peft_changes(model))
    model.save_pretrained(str(tmp_path / "single" / "checkpoint-10"))  # and its form for one part alone
    assert_same_changes(read_for(SD3.pipe(), tmp_path / "single" / "checkpoint-10").lora, peft_changes(model))


def test_peft_keys_with_the_adapters_name_in_a_single_file(tmp_path: Path) -> None:
    """What flow_grpo's and Flow-Factory's raw state dicts look like: no config, hence scale 1."""
    model = peft_model(SD3.pipe().transformer, lora_alpha=4)
    state = {key: value for key, value in model.state_dict().items() if "lora_" in key}
    assert any(".lora_A.default.weight" in key for key in state)
    assert_same_changes(read_for(SD3.pipe(), save(tmp_path / "x.safetensors", state)).lora, peft_changes(model))


@pytest.mark.parametrize("metadata", [True, False], ids=["with_metadata", "without"])
def test_a_file_that_diffusers_wrote(tmp_path: Path, metadata: bool) -> None:
    model = peft_model(SD3.pipe().transformer)
    diffusers.StableDiffusion3Pipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(model.base_model.model, adapter_name="default"),
        transformer_lora_adapter_metadata=model.peft_config["default"].to_dict() if metadata else None,
    )
    pipe = SD3.pipe()
    pipe.load_lora_weights(str(tmp_path))
    expected = SD3.sample(pipe)
    guided = DiffusionNFTPipeline.from_pipe(SD3.pipe())
    guided.load_nft_adapter(tmp_path, kind="policy", beta=1.0)
    torch.testing.assert_close(SD3.sample(guided), expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
    scale = 1 if metadata else 0.5  # alpha 8 of rank 4 is 2; nobody can know it without the metadata
    assert_same_changes(guided.nft_adapters["default"].lora, {k: scale * v for k, v in peft_changes(model).items()})


@pytest.mark.parametrize("prefix", ["transformer.", "", "diffusion_model.", "base_model.model.transformer."])
@pytest.mark.parametrize("names", [("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up")])
def test_diffusers_names_in_any_dress_with_alpha(tmp_path: Path, prefix: str, names: tuple[str, str]) -> None:
    tensors, expected = kohya_tensors(weights_of(QWEN.pipe().transformer), prefix=prefix, names=names)
    assert_same_changes(read_for(QWEN.pipe(), save(tmp_path / "x.safetensors", tensors)).lora, expected)


@pytest.mark.parametrize("case", [SD1, SDXL, QWEN, SD3], ids=["sd1", "sdxl", "qwen", "sd3"])
@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_transformer_"])
def test_names_with_underscores(tmp_path: Path, case: Any, prefix: str) -> None:
    """kohya for Stable Diffusion 1 and 2 and Qwen-Image; OneTrainer."""
    weights = weights_of(
        denoiser_of(case.pipe()), ("to_q", "to_out.0", "net.0.proj", "conv1", "proj_in", "time_emb_proj")
    )
    names = {name.replace(".", "_"): name for name in weights}
    tensors, expected = kohya_tensors({flat: weights[name] for flat, name in names.items()}, prefix=prefix)
    adapter = read_for(case.pipe(), save(tmp_path / "x.safetensors", tensors))
    assert_same_changes(adapter.lora, {names[flat]: change for flat, change in expected.items()})


SGM = {
    "input_blocks_0_0": "conv_in",
    "time_embed_0": "time_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_2_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_3_0_emb_layers_1": "down_blocks.1.resnets.0.time_emb_proj",
    "input_blocks_3_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks_3_1_proj_in": "down_blocks.1.attentions.0.proj_in",
    "input_blocks_3_1_transformer_blocks_0_attn1_to_q": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "input_blocks_3_1_transformer_blocks_0_attn2_to_out_0": (
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0"
    ),
    "middle_block_0_out_layers_3": "mid_block.resnets.0.conv2",
    "middle_block_1_transformer_blocks_0_ff_net_0_proj": "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "output_blocks_0_1_transformer_blocks_0_attn1_to_k": "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k",
    "output_blocks_1_1_transformer_blocks_0_attn2_to_v": "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_v",
    "output_blocks_2_0_in_layers_2": "up_blocks.1.resnets.0.conv1",
}


def sdxl_of_two_levels() -> Any:
    """The zoo's SDXL with a UNet that has the layers named above."""
    pipe = SDXL.pipe()
    levels = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    torch.manual_seed(0)
    pipe.unet = diffusers.UNet2DConditionModel.from_config({**pipe.unet.config, **levels}).eval()
    return pipe


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
def test_sdxl_by_the_names_of_the_original_checkpoint(tmp_path: Path, form: str) -> None:
    """Also end to end: strength 1 is the pipeline whose weights are W + alpha / rank * up @ down."""
    pipe = sdxl_of_two_levels()
    names, prefix = dict(SGM), "lora_unet_"
    if form == "comfyui":
        dotted = {"_0": ".0", "_1": ".1", "_2": ".2", "_3": ".3"}
        for old, new in {**dotted, "_attn": ".attn", "_to_": ".to_", "_transformer": ".transformer"}.items():
            names = {key.replace(old, new): module for key, module in names.items()}
        prefix = "diffusion_model."
    weights = {key: pipe.unet.get_submodule(module).weight.detach() for key, module in names.items()}
    tensors, expected = kohya_tensors(weights, prefix=prefix)
    expected = {names[key]: change for key, change in expected.items()}
    file = save(tmp_path / "liked.safetensors", tensors)
    assert_same_changes(read_for(pipe, file).lora, expected)
    guided = DiffusionNFTPipeline.from_pipe(sdxl_of_two_levels())
    guided.load_nft_adapter(file, kind="policy", beta=1.0)
    stock = SDXL.sample(pipe, cfg=True)
    add_to_weights(pipe.unet, expected)
    changed = SDXL.sample(pipe, cfg=True)
    torch.testing.assert_close(SDXL.sample(guided, cfg=True), changed, atol=1e-4 * changed.abs().max().item(), rtol=0)
    assert (changed - stock).abs().max() > 0.01 * stock.abs().max()


def test_sd1_from_kohya_end_to_end(tmp_path: Path) -> None:
    pipe = SD1.pipe()
    weights = {name.replace(".", "_"): weight for name, weight in weights_of(pipe.unet).items()}
    modules = {name.replace(".", "_"): name for name in weights_of(pipe.unet)}
    tensors, expected = kohya_tensors(weights)
    guided = DiffusionNFTPipeline.from_pipe(SD1.pipe())
    guided.load_nft_adapter(save(tmp_path / "x.safetensors", tensors), kind="policy", beta=1.0)
    stock = SD1.sample(pipe, cfg=True)
    add_to_weights(pipe.unet, {modules[key]: change for key, change in expected.items()})
    changed = SD1.sample(pipe, cfg=True)
    torch.testing.assert_close(SD1.sample(guided, cfg=True), changed, atol=1e-4 * changed.abs().max().item(), rtol=0)
    assert (changed - stock).abs().max() > 0.01 * stock.abs().max()


@pytest.mark.parametrize("form", ["kohya", "comfyui", "comfyui, A and B"])
def test_flux_by_the_names_of_the_original_checkpoint(tmp_path: Path, form: str) -> None:
    """At the real width, on the meta device: diffusers' converter knows no other. q, k, v, mlp are one matrix there."""
    width = 3072
    with torch.device("meta"):
        denoiser: Any = diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    sizes = {
        "double_blocks.0.img_attn.qkv": (3 * width, width),
        "double_blocks.0.txt_attn.proj": (width, width),
        "double_blocks.0.img_mod.lin": (6 * width, width),
        "single_blocks.0.linear1": (7 * width, width),
        "single_blocks.0.linear2": (width, 5 * width),
        "img_in": (width, 64),
        "final_layer.linear": (64, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    spell = str if form != "kohya" else lambda name: name.replace(".", "_")
    tensors, _ = kohya_tensors(
        {spell(name): torch.empty(size, device="meta") for name, size in sizes.items()},
        prefix="lora_unet_" if form == "kohya" else "diffusion_model.",
        names=("lora_A", "lora_B") if form.endswith("B") else ("lora_down", "lora_up"),
    )
    generator = torch.Generator().manual_seed(1)
    x = {n: torch.randn(n, generator=generator, dtype=torch.float64) for n in (64, width, 5 * width)}

    def applied(name: str) -> Tensor:
        """The change, applied to a vector: whole matrices of this width would be large."""
        key = ("lora_unet_" if form == "kohya" else "diffusion_model.") + spell(name)
        down, up = (t for k, t in tensors.items() if k.startswith(f"{key}.") and t.ndim == 2)
        alpha = tensors.get(f"{key}.alpha")
        scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
        return scale * (up.double() @ (down.double() @ x[down.shape[1]]))

    qkv = applied("double_blocks.0.img_attn.qkv").chunk(3)
    linear1 = applied("single_blocks.0.linear1").split([width, width, width, 4 * width])
    shift, scale = applied("final_layer.adaLN_modulation.1").chunk(2)
    expected = {
        **{f"transformer_blocks.0.attn.to_{n}": part for n, part in zip("qkv", qkv, strict=True)},
        "transformer_blocks.0.attn.to_add_out": applied("double_blocks.0.txt_attn.proj"),
        "transformer_blocks.0.norm1.linear": applied("double_blocks.0.img_mod.lin"),
        **{f"single_transformer_blocks.0.attn.to_{n}": part for n, part in zip("qkv", linear1[:3], strict=True)},
        "single_transformer_blocks.0.proj_mlp": linear1[3],
        "single_transformer_blocks.0.proj_out": applied("single_blocks.0.linear2"),
        "x_embedder": applied("img_in"),
        "proj_out": applied("final_layer.linear"),
        "norm_out.linear": torch.cat([scale, shift]),
    }
    adapter = read_foreign(save(tmp_path / "x.safetensors", tensors), kind="policy", beta=1.0, denoiser=denoiser)
    lora = adapter.lora
    found = {key.removeprefix("transformer.").removesuffix(".lora_A.weight") for key in lora if "lora_A" in key}
    assert found == set(expected)
    for name, value in expected.items():
        a, b = (lora[f"transformer.{name}.lora_{side}.weight"].double() for side in "AB")
        torch.testing.assert_close(
            b @ (a @ x[a.shape[1]]), value, atol=1e-3, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_flux_qkv_of_three_loras_in_one(tmp_path: Path) -> None:
    """Where up is block-diagonal, diffusers takes the blocks apart, and ranks differ from the alphas' afterwards."""
    denoiser = FLUX.pipe().transformer
    width = denoiser.config.num_attention_heads * denoiser.config.attention_head_dim
    down = torch.randn(6, width, generator=torch.Generator().manual_seed(0))
    up = torch.block_diag(*torch.randn(3, width, 2, generator=torch.Generator().manual_seed(1)))
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(3.0)}
    adapter = read_for(FLUX.pipe(), save(tmp_path / "x.safetensors", tensors))
    assert adapter.config.rank == 2
    expected = (0.5 * up @ down).chunk(3)
    assert_same_changes(
        adapter.lora, {f"transformer_blocks.0.attn.to_{n}": e for n, e in zip("qkv", expected, strict=True)}
    )


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
def test_sd3_by_the_names_of_the_original_checkpoint(tmp_path: Path, form: str) -> None:
    """Against diffusers' converter of whole checkpoints: the changes go through it as if they were the weights."""
    torch.manual_seed(0)
    denoiser = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=16,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=8,
        caption_projection_dim=16,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        dual_attention_layers=(0,),
        pos_embed_max_size=8,
    )
    w = 16
    sizes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj": (w, 16, 2, 2),
        "context_embedder": (w, 24),
        **{f"t_embedder.mlp.{i}": (w, 256 if i == 0 else w) for i in (0, 2)},
        **{f"y_embedder.mlp.{i}": (w, 20 if i == 0 else w) for i in (0, 2)},
        "final_layer.linear": (64, w),
        "final_layer.adaLN_modulation.1": (2 * w, w),
    }
    for i in range(3):
        for side, chunks in (("x", 9 if i == 0 else 6), ("context", 6 if i < 2 else 2)):
            block = f"joint_blocks.{i}.{side}_block"
            sizes |= {f"{block}.attn.qkv": (3 * w, w), f"{block}.adaLN_modulation.1": (chunks * w, w)}
            if side == "x" or i < 2:
                sizes |= {f"{block}.attn.proj": (w, w), f"{block}.mlp.fc1": (4 * w, w), f"{block}.mlp.fc2": (w, 4 * w)}
    sizes |= {"joint_blocks.0.x_block.attn2.qkv": (3 * w, w), "joint_blocks.0.x_block.attn2.proj": (w, w)}
    spell = str if form == "comfyui" else lambda name: name.replace(".", "_")
    tensors, made = kohya_tensors(
        {spell(name): torch.zeros(size) for name, size in sizes.items()},
        prefix="diffusion_model." if form == "comfyui" else "lora_unet_",
    )
    checkpoint = {f"{name}.weight": made[spell(name)] for name in sizes}
    checkpoint |= {f"{name}.bias": torch.zeros(size[0]) for name, size in sizes.items()}
    whole = convert_sd3_transformer_checkpoint_to_diffusers({**checkpoint, "pos_embed": torch.zeros(1, 64, w)})
    expected = {key.removesuffix(".weight"): value for key, value in whole.items() if key.endswith(".weight")}
    adapter = read_foreign(save(tmp_path / "x.safetensors", tensors), kind="policy", beta=1.0, denoiser=denoiser)
    assert_same_changes(adapter.lora, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_a_small_scale_does_not_drown_in_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    name = "transformer_blocks.0.attn.to_q"
    weight = SD3.pipe().transformer.get_submodule(name).weight
    a = torch.randn(16, weight.shape[1]).to(dtype)
    b = (1e-5 * torch.randn(weight.shape[0], 16)).to(dtype)
    tensors = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b, f"{name}.alpha": torch.tensor(0.01)}
    lora = read_for(SD3.pipe(), save(tmp_path / "x.safetensors", tensors)).lora
    exact = 0.01 / 16 * (b.double() @ a.double())
    torch.testing.assert_close(changes(lora)[name], exact, atol=0, rtol=1e-4)


def test_a_denoiser_that_carries_other_loras(tmp_path: Path) -> None:
    """And one that is compiled: names are those of the plain model."""
    model = peft_model(SD3.pipe().transformer)
    root = official_checkpoint(tmp_path, model)
    pipe = SD3.pipe()
    pipe.transformer.add_adapter(peft_model(SD3.pipe().transformer).peft_config["default"], "style")
    for denoiser in (pipe.transformer, torch.compile(pipe.transformer)):
        adapter = read_foreign(root, kind="policy", beta=1.0, denoiser=denoiser)
        assert_same_changes(adapter.lora, peft_changes(model))
        assert adapter.config.base_model.fingerprint == read_for(SD3.pipe(), root).config.base_model.fingerprint
