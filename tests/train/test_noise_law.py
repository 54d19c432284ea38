"""How noise levels are drawn: the shifted law, the logit-normal one, and a range."""

from __future__ import annotations

import math

import pytest
import torch

from helpers.tiny_run import config
from nft_pipeline.training.bases.noising import NoiseLaw
from nft_pipeline.training.errors import ConfigError


def drawn(n=40_000, **law):
    t, weight, at = NoiseLaw(**law).draw(n, torch.Generator().manual_seed(0))
    assert weight.eq(1).all() and at.min() == 0 and at.max() == NoiseLaw.BINS - 1
    return t.double()


def test_without_spread_and_range_levels_are_what_they_were_bit_for_bit():
    for shift in (1.0, 2.0, 3.3):
        g = torch.Generator().manual_seed(0)
        u = (torch.randperm(999, generator=g) + torch.rand(999, generator=g)) / 999
        t, _, _ = NoiseLaw(shift).draw(999, torch.Generator().manual_seed(0))
        assert torch.equal(t, shift * u / (1 + (shift - 1) * u))


@pytest.mark.parametrize(("shift", "spread"), [(1.0, 1.0), (3.0, 0.5)])
def test_the_logit_is_normal(shift, spread):
    logit = torch.logit(drawn(shift=shift, spread=spread))
    assert float(logit.mean()) == pytest.approx(math.log(shift), abs=0.002)
    assert float(logit.std()) == pytest.approx(spread, rel=0.005)
    assert float((logit < math.log(shift) - spread).double().mean()) == pytest.approx(0.1587, abs=0.001)


@pytest.mark.parametrize("spread", [None, 0.8])
def test_levels_in_a_range_keep_their_proportions(spread):
    low, high, middle = 0.3, 0.8, 0.5
    t = drawn(shift=2.0, spread=spread, within=(low, high))
    assert low - 1e-6 <= t.min() < low + 0.01 and high - 0.01 < t.max() <= high + 1e-6
    everywhere = drawn(shift=2.0, spread=spread)
    inside = everywhere[(everywhere > low) & (everywhere < high)]
    share, expected = (t < middle).double().mean(), (inside < middle).double().mean()
    assert float(share) == pytest.approx(float(expected), abs=0.002)


def test_an_adaptive_law_keeps_the_mean_of_a_range():
    law = NoiseLaw(2.0, adaptive=True, spread=1.0, within=(0.2, 0.6))
    law.seen[:] = torch.stack([torch.arange(1.0, 13) ** 4, torch.ones(12), 9 * torch.ones(12)])
    t, weight, _ = law.draw(40_000, torch.Generator().manual_seed(0))
    plain = drawn(shift=2.0, spread=1.0, within=(0.2, 0.6))
    assert t.min() >= 0.2 - 1e-6 and t.max() <= 0.6 + 1e-6 and weight.std() > 0.1
    assert float((weight * t).mean()) == pytest.approx(float(plain.mean()), abs=0.002)


@pytest.mark.parametrize("within", [[0.5], [0.5, 0.5], [0.8, 0.2], [0, 1.5], "all", [0, 0.5, 1]])
def test_a_range_is_two_numbers_in_order(within):
    with pytest.raises(ConfigError, match="two numbers from 0 to 1, the smaller one first"):
        config(noise_within=within)
    settings = config(noise_within=[0, 0.5], noise_spread=1.0)
    assert settings.noise_within == [0, 0.5]
