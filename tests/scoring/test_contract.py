"""The contract of a reward: cards, batches, tensors, and every fault named."""

from __future__ import annotations

import math

import pytest
import torch

from helpers.my_rewards import Darkness
from helpers.plain_pictures import noise, plain
from nft_pipeline.training.rewards import RewardError, RewardInfo, load_reward
from nft_pipeline.training.rewards.pictures import content_hash, to_pil, to_tensor


def test_probability_by_range_and_by_sigmoid() -> None:
    scores = torch.tensor([-1.0, 0.0, 5.0, 10.0, 11.0])
    by_range = RewardInfo(name="x", range=(0.0, 10.0)).probability(scores)
    assert by_range.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    less = RewardInfo(name="x", range=(0.0, 10.0), larger_is_better=False).probability(scores)
    assert torch.equal(less, 1 - by_range)
    sigmoid = RewardInfo(name="x", range=(-math.inf, math.inf), middle=5.0, spread=2.0).probability(scores)
    assert torch.allclose(sigmoid, 1 / (1 + torch.exp(-(scores - 5) / 2)))


@pytest.mark.parametrize(
    ("card", "phrase"),
    [
        ({"range": (1.0, 1.0)}, "expected (lowest, highest)"),
        ({"range": (0.0, math.inf)}, "`middle` (the score of an ordinary picture)"),
        ({"middle": 0.0, "spread": 0.0}, "spread is 0.0, expected a number above 0"),
    ],
)
def test_a_card_that_says_nothing_is_refused(card: dict, phrase: str) -> None:
    with pytest.raises(RewardError) as caught:
        RewardInfo(name="x", **card)
    assert phrase in str(caught.value)


def test_pictures_are_scored_in_batches_and_come_back_in_order() -> None:
    reward = Darkness(batch=2)
    pictures = [plain(f"rgb({i},{i},{i})") for i in range(5)]
    output = reward(pictures, [f"p{i}" for i in range(5)])
    assert reward.calls == [2, 2, 1]
    assert output.scores.tolist() == [0, 1, 2, 3, 4]
    assert output.details == {"prompt": ["p0", "p1", "p2", "p3", "p4"]}


def test_a_tensor_scores_like_pictures_and_gradients_reach_it() -> None:
    pictures = [noise(i) for i in range(3)]
    tensor = to_tensor(pictures).requires_grad_()
    output = Darkness()(tensor, [""] * 3)
    assert torch.allclose(output.scores, Darkness()(pictures, [""] * 3).scores, atol=1e-4)
    output.scores.sum().backward()
    assert tensor.grad is not None and torch.allclose(tensor.grad, torch.full_like(tensor, 255 / tensor[0].numel()))


def test_without_a_picture_there_is_no_score() -> None:
    assert Darkness()([], []).scores.shape == (0,)


def test_pictures_survive_the_way_to_a_tensor_and_back() -> None:
    picture = noise(0)
    (back,) = to_pil(to_tensor([picture]))
    assert back.tobytes() == picture.tobytes()
    assert content_hash(back) == content_hash(picture.convert("RGBA"))
    assert content_hash(plain("red", (2, 8))) != content_hash(plain("red", (8, 2)))


@pytest.mark.parametrize(
    ("name", "images", "phrase"),
    [
        ("helpers.my_rewards:redness", torch.zeros(2, 8, 8), "expected floats in [0, 1] of shape (B, 3,"),
        ("helpers.my_rewards:redness", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "torch.uint8 tensor"),
        ("jpeg_size", torch.zeros(2, 3, 8, 8, requires_grad=True), "has no gradient"),
        ("helpers.my_rewards:redness", [plain("red")], "1 pictures, 2 prompts and 1 metadata"),
        ("helpers.my_rewards:redness", ["a.png", "b.png"], "got a str, expected PIL pictures or a tensor"),
        ("helpers.my_rewards:broken", [plain("red")] * 2, "failed: ZeroDivisionError: division by zero"),
        ("helpers.my_rewards:too_large", [plain("red")] * 2, "7 to 7, outside its range 0 to 1"),
        ("helpers.my_rewards:words", [plain("red")] * 2, "returned str; expected 2 numbers"),
        ("helpers.my_rewards:too_few", [plain("red")] * 2, "scores of shape (1,) for 2 pictures"),
        ("helpers.my_rewards:spoilt", [plain("red")] * 2, "1 scores of 2 that are NaN or infinite, the first for"),
    ],
)
def test_faults_are_named(name: str, images: object, phrase: str) -> None:
    with pytest.raises(RewardError) as caught:
        load_reward(name)(images, ["good", "nan"])  # type: ignore[arg-type]
    assert phrase in str(caught.value)
