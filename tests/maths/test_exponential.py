"""The exponential tilt of a graded reward: the tilts that draw it, that they draw it, and what is refused."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.adapters import config_values
from helpers.graded import by_law, drawn, together
from helpers.mixture import distance, ring
from helpers.tiny import sample, tiny_adapter, tiny_pipe
from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import AdapterConfig
from nft_pipeline.dial.exponential import WORST, exponential_strengths, exponential_tilts
from nft_pipeline.errors import GuidanceError
from nft_pipeline.guidance import combined_scales, law_scale

LADDERS = ((None,), (4.0,), (8.0,), (None, 4.0), (2.0, 4.0), (None, 6.0), (None, 2.0, 4.0), (None, 4.0, 8.0), (4, 4))
TILTS = (-8.0, -2.0, -1.0, -0.5, 1e-300, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
R = np.linspace(0, 1, 301)
ALPHAS = (torch.tensor([0.9, 0.3, 1e-3]), torch.tensor([0.8, 0.05, 1e-5]), torch.tensor([0.7, 0.01, 1e-6]))


def config(kind: str = "positive", tilt: float = 2.0, **settings: object) -> AdapterConfig:
    """An adapter whose run had these settings."""
    training = {"settings": settings} if settings else {}
    return AdapterConfig.from_dict(config_values(kind=kind, tilt=tilt, beta=2 / tilt, training=training))


@pytest.mark.parametrize("exponents", LADDERS, ids=str)
def test_the_tilts_draw_the_weight_within_the_error_that_is_said(exponents):
    found = 0
    for tilt in TILTS:
        try:
            tilts, error = exponential_tilts(exponents, tilt)
        except GuidanceError as refused:
            assert f"exponential tilt {tilt:g}" in str(refused) and "optimality: exponential" in str(refused)
            continue
        found += 1
        assert error <= WORST and sum(one < 0 for one in tilts) <= 1 and all(abs(one) < 15 for one in tilts)
        functions = [R if kappa is None else np.exp(kappa * (R - 1)) for kappa in exponents]
        weight = 1 + sum(math.expm1(one) * b for one, b in zip(tilts, functions, strict=True))
        wanted = np.exp(tilt * R)
        scale = (weight / wanted).max() + (weight / wanted).min()  # a weight's size is nothing: the middle of the error
        assert np.abs(2 * weight / wanted / scale - 1).max() <= error + 1e-3
        scales = combined_scales([law_scale(a, one, "odds") for a, one in zip(ALPHAS, tilts, strict=False)], "any")
        odds = [math.expm1(one) * a.double() for a, one in zip(ALPHAS, tilts, strict=False)]
        for scale, one in zip(scales, odds, strict=True):  # in float32, as heads give alpha
            torch.testing.assert_close(scale.double(), one / (1 + sum(odds)), rtol=0, atol=5e-3)
    assert found >= 3


def test_another_adapter_never_makes_it_worse():
    for tilt, few, more in itertools.product(TILTS, LADDERS, LADDERS):
        if set(few) < set(more):
            try:
                _, error = exponential_tilts(few, tilt)
            except GuidanceError:
                continue
            assert exponential_tilts(more, tilt)[1] < error + 1e-3, (tilt, few, more)


@pytest.mark.parametrize("kappa", [0.5, 2.0, 4.0, 6.0, 8.0])
def test_every_exponent_that_may_be_trained_draws_its_own_tilt(kappa):
    assert exponential_tilts((kappa,), kappa)[1] < 0.002


def test_one_for_the_reward_and_one_exponential_reach_every_tilt_between():
    errors = [exponential_tilts((None, 4.0), tilt)[1] for tilt in np.linspace(-1, 4, 41)]
    assert max(errors) < 0.05
    assert exponential_tilts((None, 4.0), 0.0) == ([0.0, 0.0], 0.0)
    assert exponential_tilts((None, 4.0), 4.0)[1] < 0.002, "the second alone is this tilt"


@pytest.mark.parametrize("tilt", [-1.0, 1.0, 2.0, 3.0, 4.0])
def test_together_they_arrive_at_the_exponential_tilt(tilt):
    world = ring()
    exact = world.exponential(tilt)
    share = drawn(world, together((None, 4.0)), tilt, count=1024, steps=30)
    floor = distance(drawn(world, by_law("odds"), 0.0, count=1024, steps=30), world.prior)
    assert distance(share, exact.prior) < floor + 0.02
    assert float(share @ world.rewards) == pytest.approx(exact.mean_reward(), abs=0.01)
    if tilt >= 2:
        assert distance(drawn(world, by_law("odds"), tilt, count=1024, steps=30), exact.prior) > floor + 0.03


def test_strengths_go_by_what_each_run_was_trained_on():
    plain, steep = config(tilt=2.0, optimality="raw"), config(tilt=3.0, optimality="exponential", optimality_at=None)
    tilts, _ = exponential_tilts((None, 4.0), 2.5)
    found = exponential_strengths({"mean": plain, "steep": steep}, 2.5)
    assert found == pytest.approx({"mean": tilts[0] / 2, "steep": tilts[1] / 3})
    six = config(optimality="exponential", optimality_at=6.0)
    assert exponential_strengths({"six": six}, 6.0)["six"] == pytest.approx(exponential_tilts((6.0,), 6.0)[0][0] / 2)


def test_a_pipeline_takes_the_strengths():
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, alpha=0.25))
    guided.load_nft_adapter(tiny_adapter(pipe.transformer, alpha=0.4, seed=8), name="steep")
    configs = {
        "default": config(tilt=2.0, optimality="likes"),
        "steep": config(tilt=2.0, optimality="exponential", optimality_at=4.0),
    }
    strengths = exponential_strengths(configs, 2.0)
    sample(guided, nft_strength=strengths, nft_law="odds", nft_combine="any")
    odds = [math.expm1(2 * strengths[name]) * alpha for name, alpha in (("default", 0.25), ("steep", 0.4))]
    for scales, one in zip(guided.nft_stats.scales, odds, strict=True):
        torch.testing.assert_close(scales, torch.full_like(scales, one / (1 + sum(odds))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("exponents", "tilt", "words"),
    [
        ((), 1.0, r"exponents are \[\], expected one for each of 1 to 6 adapters"),
        ((0.0,), 1.0, "a number above 0"),
        (("4",), 1.0, "a number above 0"),
        ((math.nan,), 1.0, "a number above 0"),
        ((None, 4.0), math.inf, "tilt is inf, expected a number from -8 to 8"),
        ((9.0,), 1.0, r"exponents are \[9.0\], expected one for each of 1 to 6 adapters: .* at most 8"),
        ((None,) * 7, 1.0, "1 to 6 adapters"),
        ((None, 4.0), True, "tilt is True"),
        ((None,), 4.0, r"the reward itself do not draw the exponential tilt 4: .* wrong by up to 68%"),
        ((None, 4.0), 6.0, "the reward itself, exponent 4 do not draw the exponential tilt 6"),
    ],
)
def test_what_has_no_such_tilts_is_refused(exponents, tilt, words):
    with pytest.raises(GuidanceError, match=words):
        exponential_tilts(exponents, tilt)


@pytest.mark.parametrize(
    "wrong",
    [
        config("policy", optimality="raw"),
        config(optimality="rank"),
        config(optimality="threshold", optimality_at=0.6),
        config(optimality="exponential", optimality_at="6"),
        config(),
        config(optimality=None),
    ],
)
def test_adapters_of_which_the_weight_is_not_known_are_refused(wrong):
    with pytest.raises(GuidanceError, match=r"the adapter 'mine' is (policy|positive) with optimality .*, expected a"):
        exponential_strengths({"mine": wrong}, 1.0)


def test_adapters_of_different_rewards_are_refused():
    one = config(optimality="raw", rewards={}, mix="mean")
    others = [
        replace(one, reward={**one.reward, "name": "blue"}),
        config(optimality="exponential", rewards={}, mix="product"),
        config(optimality="exponential", rewards={"red": 2.0, "blue": 1.0}, mix="mean"),
    ]
    for other in others:
        with pytest.raises(GuidanceError, match=r"were trained on different rewards .'one' on 'red', 'other' on"):
            exponential_strengths({"one": one, "other": other}, 2.0)


def test_numbers_of_numpy_and_torch_are_numbers():
    assert exponential_tilts(np.array([2.0, 4.0]), np.float32(3)) == exponential_tilts([2.0, 4.0], 3.0)
    assert exponential_tilts([None, torch.tensor(4.0)], torch.tensor(2.0)) == exponential_tilts([None, 4.0], 2.0)


def test_the_order_of_the_adapters_does_not_matter():
    for tilt in (0.5, 2.0, 3.5):
        forth, back = exponential_tilts((None, 4.0), tilt)[0], exponential_tilts((4.0, None), tilt)[0]
        assert forth == pytest.approx(back[::-1], rel=1e-6)
    for a, b in itertools.pairwise(np.linspace(0, 3.9, 40)):
        assert exponential_tilts((None, 4.0), b)[0][1] > exponential_tilts((None, 4.0), a)[0][1]
