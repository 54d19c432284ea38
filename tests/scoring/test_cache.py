"""The score cache: the same numbers, each computed once, and never a wrong one."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import torch

from helpers.my_rewards import Darkness
from helpers.plain_pictures import noise, plain
from nft_pipeline.training.rewards import RewardError, load_reward
from nft_pipeline.training.rewards.cache import CachedReward, ScoreCache, default_cache
from nft_pipeline.training.rewards.pictures import to_tensor


@pytest.fixture
def cache(tmp_path: Path) -> ScoreCache:
    return ScoreCache(tmp_path / "deep" / "scores.sqlite")


def test_each_picture_is_scored_once(cache: ScoreCache) -> None:
    pictures, prompts = [noise(i) for i in range(4)], ["a", "b", "c", "d"]
    reward = Darkness(batch=8)
    first = CachedReward(reward, cache)(pictures, prompts)
    assert torch.equal(first.scores, Darkness()(pictures, prompts).scores)
    again = CachedReward(reward, cache)
    mixed = again([*pictures[::-1], noise(9)], [*prompts[::-1], "e"])
    assert torch.equal(mixed.scores[:4], first.scores.flip(0))
    assert mixed.details["prompt"] == ["d", "c", "b", "a", "e"]
    assert reward.calls == [4, 1] and again.hits == 4


@pytest.mark.parametrize("changed", ["picture", "prompt", "version"])
def test_anything_else_is_scored_anew(cache: ScoreCache, changed: str) -> None:
    CachedReward(Darkness(), cache)([plain("red")], ["a"])
    reward = Darkness(version="2" if changed == "version" else "1")
    picture = plain("blue") if changed == "picture" else plain("red")
    CachedReward(reward, cache)([picture], ["b" if changed == "prompt" else "a"])
    assert reward.calls == [1]


def test_a_reward_without_a_version_is_not_cached(cache: ScoreCache) -> None:
    reward = Darkness(version="")
    for _ in range(2):
        CachedReward(reward, cache)([plain("red")], ["a"])
    assert reward.calls == [1, 1]
    assert not load_reward("helpers.my_rewards:redness").info.version and not load_reward("likes").info.version


def test_tensors_are_cached_and_gradients_pass_by(cache: ScoreCache) -> None:
    cached, x = CachedReward(Darkness(), cache), to_tensor([noise(0)])
    first = cached(x, ["a"]).scores
    assert torch.equal(cached(x, ["a"]).scores, first) and cached.hits == 1
    x.requires_grad_()
    cached(x, ["a"]).scores.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_what_fails_is_not_kept(cache: ScoreCache) -> None:
    class Spoilt(Darkness):
        def score(self, images, prompts, metadata):  # type: ignore[no-untyped-def]
            output = super().score(images, prompts, metadata)
            output.scores[-1] = float("nan")
            return output

    with pytest.raises(RewardError, match="NaN"):
        CachedReward(Spoilt(), cache)([noise(0), noise(1)], ["a", "b"])
    assert cache.file.execute("SELECT count(*) FROM scores").fetchone() == (0,)
    with pytest.raises(sqlite3.Error):
        cache.put({b"a": (1.0, {}), b"b": (None, {})})  # type: ignore[dict-item]
    assert cache.get([b"a"]) == {}


def test_two_processes_may_share_it(cache: ScoreCache) -> None:
    other = ScoreCache(cache.path)
    cache.put({b"a": (1.0, {"x": [1, "é"]})})
    other.put({b"a": (2.0, {}), b"b": (3.0, {})})
    assert cache.get([b"a", b"b", b"c"]) == {b"a": (2.0, {}), b"b": (3.0, {})}


def test_a_file_that_is_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "scores.sqlite").write_text("not a database, but long enough to be read as the head of one" * 20)
    with pytest.raises(RewardError, match=r"scores\.sqlite cannot be used as a score cache: .*Delete it"):
        ScoreCache(tmp_path / "scores.sqlite")


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "diffusion-nft" / "scores.sqlite"
