"""image_reward on the package's real class: its own loader, small random weights, a forward by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, embedding, gelu, layer_norm, linear

from helpers.plain_pictures import noise, plain
from nft_pipeline.training.rewards import RewardError, load_reward
from nft_pipeline.training.rewards.models.model_reward import pixels_of
from nft_pipeline.training.rewards.pictures import to_tensor

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ImageReward") is None,
    reason="image-reward is not installed: pip install -c constraints.txt '.[image-reward]'",
)
WIDTH, DEPTH, HEADS = 64, 2, 4  # of the image encoder, ViT-L in the published model
TEXT_HEADS = 12
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "red", "ring", "two"]
PICTURES = [noise(0, 230), plain("red", (224, 300)), noise(2, 64)]
PROMPTS = ["a red ring", "two red", "ring " * 50]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model of the package's class, saved as the published one is: a state dict and two configs."""
    from nft_pipeline.training.rewards.models.image_reward_compat import import_image_reward, tokenizer_from

    path = tmp_path_factory.mktemp("image_reward")
    package = import_image_reward()
    (path / "vocab.txt").write_text("\n".join(WORDS))
    config = {
        "model_type": "bert",
        "hidden_size": 768,  # fixed by the package's last layers
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": TEXT_HEADS,
        "vocab_size": len(WORDS) + 2,  # and [DEC], [ENC]
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "pad_token_id": 0,
        "add_cross_attention": True,
    }
    (path / "med_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch, tokenizer_from(str(path)):
        _small_vit(patch)
        model = package.ImageReward(med_config=str(path / "med_config.json"))
    # As initialised, the last layers give every picture the same score.
    for name, weight in model.named_parameters():
        if name.startswith("mlp.") and name.endswith("weight"):
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        elif "visual_encoder" in name and name.endswith("weight") and weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
        elif "attention" in name and name.endswith("weight") and weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.05)
    torch.save(model.state_dict(), path / "ImageReward.pt")
    return path


def _small_vit(patch: pytest.MonkeyPatch) -> None:
    """ViT-L's sizes are fixed in the package's function; the class is the same."""
    from ImageReward.models.BLIP import blip_pretrain
    from ImageReward.models.BLIP.vit import VisionTransformer

    def create_vit(vit: str, size: int, *_: Any) -> tuple[Any, int]:
        model = VisionTransformer(img_size=size, patch_size=16, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS)
        return model, WIDTH

    patch.setattr(blip_pretrain, "create_vit", create_vit)


@pytest.fixture(scope="module")
def reward(folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        from nft_pipeline.training.rewards.models.image_reward_compat import import_image_reward

        import_image_reward()
        _small_vit(patch)
        return load_reward("image_reward", weights=str(folder), tokenizer=str(folder), batch=2)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return ((weights if mask is None else weights + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)


def by_hand(w: dict[str, Tensor], ids: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
    """The score from nothing but the tensors in the file."""

    def dense(x: Tensor, name: str) -> Tensor:
        return linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    vit = "blip.visual_encoder"
    patches = conv2d(pixels, w[f"{vit}.patch_embed.proj.weight"], w[f"{vit}.patch_embed.proj.bias"], stride=16)
    x = torch.cat([w[f"{vit}.cls_token"].expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    x = x + w[f"{vit}.pos_embed"]
    for i in range(DEPTH):
        block = f"{vit}.blocks.{i}"
        q, k, v = dense(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, dim=-1)
        x = x + dense(attend(q, k, v, HEADS), f"{block}.attn.proj")
        x = x + dense(gelu(dense(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    seen = norm(x, f"{vit}.norm", 1e-6)

    bert = "blip.text_encoder"
    h = embedding(ids, w[f"{bert}.embeddings.word_embeddings.weight"])
    h = h + w[f"{bert}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    h = norm(h, f"{bert}.embeddings.LayerNorm", 1e-12)
    hidden = (1.0 - mask[:, None, None, :].float()) * -10000.0
    for i in range(2):
        layer = f"{bert}.encoder.layer.{i}"
        for part, source, hide in (("attention", None, hidden), ("crossattention", seen, None)):
            keys = h if source is None else source
            q = dense(h, f"{layer}.{part}.self.query")
            k, v = (dense(keys, f"{layer}.{part}.self.{name}") for name in ("key", "value"))
            out = dense(attend(q, k, v, TEXT_HEADS, hide), f"{layer}.{part}.output.dense")
            h = norm(out + h, f"{layer}.{part}.output.LayerNorm", 1e-12)
        out = dense(gelu(dense(h, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        h = norm(out + h, f"{layer}.output.LayerNorm", 1e-12)
    y = h[:, 0]
    for i in (0, 2, 4, 6, 7):
        y = dense(y, f"mlp.layers.{i}")
    return (y[:, 0] - 0.16717362830052426) / 1.0333394966054072


def test_scores_are_those_of_a_forward_by_hand(folder: Path, reward: Any) -> None:
    scores = reward(PICTURES, PROMPTS).scores
    tokens = reward.model.blip.tokenizer(
        PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    weights = torch.load(folder / "ImageReward.pt")
    expected = by_hand(weights, tokens.input_ids, tokens.attention_mask, pixels_of(PICTURES, 224))
    print(f"image_reward, seed 0: ours {scores.tolist()}, by hand {expected.tolist()}")
    assert torch.allclose(scores, expected, rtol=0, atol=1e-6)
    assert scores.std() > 0.1


def test_scores_are_those_of_the_packages_own_score(reward: Any) -> None:
    with torch.no_grad():
        alone = [reward.model.score(prompt, picture) for prompt, picture in zip(PROMPTS, PICTURES, strict=True)]
    assert reward(PICTURES, PROMPTS).scores.tolist() == pytest.approx(alone, abs=1e-5)


def test_gradients_are_those_of_finite_differences(reward: Any) -> None:
    x = (0.25 + 0.5 * to_tensor([noise(5, 224)])).requires_grad_()
    reward(x, ["a red ring"]).scores.sum().backward()
    assert x.grad is not None
    along = x.grad / x.grad.norm()
    with torch.no_grad():
        up, down = (reward(x + sign * 0.005 * along, ["a red ring"]).scores for sign in (1, -1))
    assert (up - down).item() / 0.01 == pytest.approx(x.grad.norm().item(), rel=0.05)
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())


def test_a_tensor_that_the_file_lacks_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _small_vit(monkeypatch)
    weights = torch.load(folder / "ImageReward.pt")
    del weights["mlp.layers.4.bias"]
    torch.save(weights, tmp_path / "ImageReward.pt")
    options = {"med_config": str(folder), "tokenizer": str(folder)}
    with pytest.raises(RewardError, match=r"1 missing tensors, such as mlp\.layers\.4\.bias"):
        load_reward("image_reward", weights=str(tmp_path), **options)
    weights["mlp.layers.4.bias"] = torch.zeros(3)
    torch.save(weights, tmp_path / "ImageReward.pt")
    with pytest.raises(RewardError, match=r"does not fit med_config\.json: size mismatch for mlp"):
        load_reward("image_reward", weights=str(tmp_path / "ImageReward.pt"), **options)


def test_weights_and_tokenizer_that_are_not_there_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _small_vit(monkeypatch)
    with pytest.raises(RewardError, match="weights 'nobody/nothing' cannot be loaded"):
        load_reward("image_reward", weights="nobody/nothing")
    with pytest.raises(RewardError, match=r"the tokenizer 'nobody/words' has \d+ tokens, expected 36"):
        load_reward("image_reward", weights=str(folder), tokenizer="nobody/words")


def test_nothing_is_left_behind_in_other_packages(reward: Any) -> None:
    import transformers
    import transformers.modeling_utils as modeling
    from ImageReward.models.BLIP import blip_pretrain

    assert getattr(sys.modules.get("clip"), "__file__", "a real one") is not None
    assert not hasattr(modeling, "find_pruneable_heads_and_indices")
    assert transformers.logging.get_verbosity() != transformers.logging.ERROR
    assert blip_pretrain.init_tokenizer.__module__.startswith("ImageReward")
