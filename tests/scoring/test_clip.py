"""CLIP rewards on the real classes, with small random weights saved to and loaded from disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import ImageFilter
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from helpers.plain_pictures import noise, plain
from helpers.tiny import clip_tokenizer
from nft_pipeline.training.rewards import RewardError, load_reward
from nft_pipeline.training.rewards.kinds.clip import AestheticHead
from nft_pipeline.training.rewards.models.model_reward import pixels_of
from nft_pipeline.training.rewards.pictures import to_tensor

PICTURES = [noise(0, 48), plain("red", (40, 64)), noise(2, 33)]
PROMPTS = ["a red ring", "two", "a longer prompt with far too many words for it"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of two layers with its tokenizer, and a random aesthetic head for it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip")
    tokenizer = clip_tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**tower, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 12, "projection_dim": 16}
    vision = {**tower, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16, logit_scale_init_value=3.0))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    torch.save(AestheticHead(16).state_dict(), path / "aesthetic-model.pth")
    return path


def by_hand(folder: Path) -> tuple[Tensor, Tensor, CLIPModel]:
    """Unit vectors of pictures and prompts, by the whole model's own forward."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), clip_tokenizer()
    tokens = tokenizer(PROMPTS, padding=True, truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens, pixel_values=pixels_of(PICTURES, 32))
    return output.image_embeds, output.text_embeds, model


def test_pixels_are_those_of_the_models_own_processor() -> None:
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    theirs = processor(images=PICTURES, return_tensors="pt").pixel_values
    assert torch.allclose(pixels_of(PICTURES, 32), theirs, atol=1e-5)


def test_pixels_of_a_tensor_differ_by_grey_levels_only() -> None:
    picture = noise(3, 48).filter(ImageFilter.GaussianBlur(2))  # of raw noise Pillow cuts off what overshoots
    difference = (pixels_of(to_tensor([picture]), 32) - pixels_of([picture], 32)).abs() * 0.27 * 255
    assert difference.max() < 2


def test_scores_are_those_of_the_models_own_forward(folder: Path) -> None:
    image, text, model = by_hand(folder)
    cosine = (image * text).sum(-1)
    pick = load_reward("pickscore", weights=str(folder), batch=2)(PICTURES, PROMPTS).scores
    assert torch.allclose(pick, model.logit_scale.exp() * cosine, atol=1e-5)
    clip = load_reward("clip_score", weights=str(folder))(PICTURES, PROMPTS).scores
    assert torch.allclose(clip, 100 * cosine, atol=1e-4)
    head = AestheticHead(16)
    head.load_state_dict(torch.load(folder / "aesthetic-model.pth"))
    with torch.no_grad():
        expected = head.eval()(image)[:, 0]
    beauty = load_reward("aesthetic", weights=str(folder), head=str(folder))(PICTURES, PROMPTS).scores
    assert torch.allclose(beauty, expected, atol=1e-5)
    assert pick.std() > 0 and clip.std() > 0 and beauty.std() > 0


@pytest.mark.parametrize("name", ["pickscore", "clip_score", "aesthetic"])
def test_gradients_are_those_of_finite_differences(folder: Path, name: str) -> None:
    options = {"head": str(folder)} if name == "aesthetic" else {}
    reward = load_reward(name, weights=str(folder), **options)
    x = (0.2 + 0.6 * to_tensor([noise(5, 48)])).requires_grad_()
    reward(x, ["a red ring"]).scores.sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0
    along = x.grad / x.grad.norm()
    step = 0.02
    with torch.no_grad():
        up, down = (reward(x + sign * step * along, ["a red ring"]).scores for sign in (1, -1))
    assert (up - down).item() / (2 * step) == pytest.approx(x.grad.norm().item(), rel=0.03)


def test_half_precision_stays_close(folder: Path) -> None:
    full, half = (load_reward("clip_score", weights=str(folder), dtype=d) for d in ("float32", "bfloat16"))
    assert torch.allclose(full(PICTURES, PROMPTS).scores, half(PICTURES, PROMPTS).scores, atol=2.0)
    assert full.info.version != half.info.version


def test_weights_that_do_not_fit_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="'nobody/nothing' cannot be loaded"):
        load_reward("pickscore", weights="nobody/nothing")
    with pytest.raises(RewardError, match=r"has no aesthetic-model\.pth"):
        load_reward("aesthetic", weights=str(folder), head=str(tmp_path))
    state = AestheticHead(16).state_dict()
    del state["layers.7.bias"]
    torch.save({**state, "other": torch.zeros(1)}, tmp_path / "head.pth")
    with pytest.raises(RewardError, match=r"1 missing tensors, such as layers.7.bias and 1 unexpected tensors"):
        load_reward("aesthetic", weights=str(folder), head=str(tmp_path / "head.pth"))
    with pytest.raises(RewardError, match="dtype is 'int8', expected one of float32"):
        load_reward("clip_score", weights=str(folder), dtype="int8")


def test_a_model_with_a_tensor_missing_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardError, match=r"1 missing tensors, such as visual_projection\.weight"):
        load_reward("clip_score", weights=str(tmp_path))


def test_other_weights_are_another_version(folder: Path, tmp_path: Path) -> None:
    first = load_reward("clip_score", weights=str(folder)).info.version
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert load_reward("clip_score", weights=str(folder)).info.version == first
    assert load_reward("clip_score", weights=str(tmp_path)).info.version != first


def test_hps_scores_are_those_of_the_models_own_forward(tmp_path: Path) -> None:
    open_clip = pytest.importorskip(
        "open_clip", reason="open_clip is not installed: pip install '.[hps]', in an environment without image-reward"
    )
    tower = {"width": 32, "layers": 1}
    config = {
        "embed_dim": 16,
        "vision_cfg": {**tower, "image_size": 32, "patch_size": 8, "head_width": 8},
        "text_cfg": {**tower, "context_length": 77, "vocab_size": 49408, "heads": 4},
    }
    (tmp_path / "tiny-hps.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-hps.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-hps").eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "HPS_v2.1_compressed.pt")
    reward = load_reward("hps_v2", weights=str(tmp_path), model="tiny-hps", batch=2)
    with torch.no_grad():
        tokens = open_clip.get_tokenizer("tiny-hps")(PROMPTS)
        image, text, _ = model(pixels_of(PICTURES, 32), tokens)
    assert torch.allclose(reward(PICTURES, PROMPTS).scores, (image * text).sum(-1), atol=1e-5)
    x = to_tensor([noise(1, 32)]).requires_grad_()
    reward(x, ["a"]).scores.sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0
    torch.save({"visual.proj": model.visual.proj}, tmp_path / "half.pt")
    with pytest.raises(RewardError, match="missing tensors, such as"):
        load_reward("hps_v2", weights=str(tmp_path / "half.pt"), model="tiny-hps")
    with pytest.raises(RewardError, match="open_clip has no model 'ViT-none'"):
        load_reward("hps_v2", weights=str(tmp_path), model="ViT-none")
