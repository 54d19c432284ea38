"""Several adapters: "any of" and the product with a joint adapter are exact, plain sums of pushes are not."""

import math

import pytest
import torch

from helpers.mixture import distance
from helpers.pairs import drawn, joint_alone, pairs, sums, with_the_joint
from nft_pipeline.guidance import combined_scales, law_scale, product_scales

PAIRS = pairs()
FOUR = (4.0, 4.0)
QUICK = {"count": 1024, "steps": 30}
# Total variation of the plain sum of odds pushes from the product at tilts 4 and 4, from docs/measured/several.md.
SUM_ERROR = {"overlapping": 0.16, "independent in the mean only": 0.27, "nearly the same": 0.10, "opposed": 0.31}


def scales_by_hand(alphas: list[float], tilts: list[float]) -> list[float]:
    weights = [math.expm1(tilt) * alpha for alpha, tilt in zip(alphas, tilts, strict=True)]
    return [weight / (1 + sum(weights)) for weight in weights]


def odds(alphas: list[float], tilts: list[float]) -> list[torch.Tensor]:
    exact = torch.tensor(alphas, dtype=torch.float64)
    return [law_scale(alpha, tilt, "odds") for alpha, tilt in zip(exact, tilts, strict=True)]


@pytest.mark.parametrize(
    ("alphas", "tilts"),
    [
        ([0.3, 0.7], [4.0, 4.0]),
        ([0.3, 0.7], [-2.0, 1.0]),
        ([0.5, 0.99], [3.0, -8.0]),
        ([0.1, 0.2, 0.6], [2.0, 0.0, 5.0]),
    ],
)
def test_any_shares_one_denominator(alphas, tilts):
    combined = combined_scales(odds(alphas, tilts), "any")
    assert [float(s) for s in combined] == pytest.approx(scales_by_hand(alphas, tilts), rel=1e-6)


@pytest.mark.parametrize("alone", [-5.0, 0.0, 0.4, 1.0, 1.3])
def test_one_adapter_in_any_company_that_is_off_keeps_its_scale(alone):
    scale, off = torch.tensor([alone]), torch.zeros(1)
    for combined, at in (
        (combined_scales([scale], "any"), 0),
        (combined_scales([scale, off], "any"), 0),
        (combined_scales([off, scale, off], "any"), 1),
    ):
        assert torch.equal(combined[at], scale)
        assert all(bool(s == 0) for k, s in enumerate(combined) if k != at)


def test_any_has_limits():
    both = combined_scales(odds([0.3, 0.7], [math.inf, math.inf]), "any")
    assert sum(float(s) for s in both) == pytest.approx(1.0, abs=1e-6)
    one, other = combined_scales(odds([0.3, 0.7], [math.inf, 2.0]), "any")
    assert float(one) == pytest.approx(1.0, abs=1e-6) and float(other) == pytest.approx(0.0, abs=1e-6)
    past = combined_scales([torch.tensor([1.25]), torch.tensor([0.5])], "any")
    assert float(sum(past)) == pytest.approx(1.25, abs=1e-6)
    huge = combined_scales([torch.tensor([-1e9]), torch.tensor([0.0]), torch.tensor([0.5])], "any")
    assert all(bool(s.isfinite()) for s in huge)


def test_any_refuses_two_negative_scales_of_one_sample_and_allows_them_in_two():
    kept = combined_scales([torch.tensor([-0.5, 0.5]), torch.tensor([0.5, -0.5])], "any")
    assert all(bool(s.isfinite().all()) for s in kept)
    with pytest.raises(ValueError, match=r'"any" got 2 scales .* negative for the same sample'):
        combined_scales([torch.tensor([-0.5, 0.5]), torch.tensor([-0.1, 0.5])], "any")


def test_all_leaves_scales_as_they_are_and_unknown_names_are_told():
    scale = torch.tensor([-0.5, 3.0])
    assert torch.equal(combined_scales([scale, scale])[1], scale)
    assert combined_scales([1, 2.5])[1].item() == 2.5
    with pytest.raises(ValueError, match=r"unknown combination 'anny'\. Did you mean 'any'\?"):
        combined_scales([scale], "anny")
    with pytest.raises(ValueError, match="got no scales"):
        combined_scales([], "any")


def test_product_scales_by_hand():
    a, b, both = (torch.tensor([value], dtype=torch.float64) for value in (0.3, 0.7, 0.25))
    for tilts in ((4.0, 2.0), (4.0, -4.0), (-1.0, -2.0), (0.0, 3.0)):
        rho_1, rho_2 = map(math.expm1, tilts)
        weights = (rho_1 * 0.3, rho_2 * 0.7, rho_1 * rho_2 * 0.25)
        expected = [weight / (1 + sum(weights)) for weight in weights]
        assert [float(s) for s in product_scales((a, b), both, tilts)] == pytest.approx(expected)
    assert all(bool(s.isfinite()) for s in product_scales((a, b), both, (800.0, -30.0)))


def test_product_scales_mends_heads_that_contradict_each_other_and_names_what_it_cannot():
    a, b = torch.tensor([0.3]), torch.tensor([0.4])
    assert torch.equal(
        torch.stack(product_scales((a, b), torch.tensor([0.9]), FOUR)), torch.stack(product_scales((a, b), a, FOUR))
    )
    with pytest.raises(ValueError, match="alpha must lie in"):
        product_scales((a, b), torch.tensor([1.5]), FOUR)
    with pytest.raises(ValueError, match="tilt must be a finite number"):
        product_scales((a, b), a, (math.inf, 1.0))
    with pytest.raises(ValueError, match="no weight is left at alpha_1 = 1"):
        product_scales((torch.ones(1), b), b, (-1000.0, 0.0))


@pytest.mark.parametrize(
    ("name", "tilts"), [*((name, FOUR) for name in PAIRS), ("nearly the same", (4.0, -4.0))], ids=str
)
def test_any_arrives_at_its_law(name, tilts):
    pair = PAIRS[name]
    share = drawn(pair, sums("odds", "any"), tilts, **QUICK)
    assert distance(share, pair.any(tilts)) < 0.05
    assert distance(share, pair.world.prior) > 0.1 or name == "opposed"  # "opposed": nearly all are liked already


@pytest.mark.parametrize("name", PAIRS)
def test_a_joint_adapter_arrives_at_the_product_and_alone_at_its_own_law(name):
    pair = PAIRS[name]
    assert distance(drawn(pair, with_the_joint, FOUR, **QUICK), pair.product(FOUR)) < 0.06
    assert distance(drawn(pair, joint_alone, FOUR, **QUICK), pair.joint(4.0)) < 0.06


@pytest.mark.parametrize("name", PAIRS)
def test_the_sum_of_odds_pushes_is_the_product_only_where_the_rewards_are_independent_given_the_state(name):
    pair = PAIRS[name]
    error = distance(drawn(pair, sums("odds"), FOUR, **QUICK), pair.product(FOUR))
    if name in SUM_ERROR:
        assert error == pytest.approx(SUM_ERROR[name], abs=0.05)
    else:
        assert error < 0.05


def test_the_sum_of_odds_pushes_is_the_product_if_the_mean_of_the_product_is_the_product_of_the_means():
    """M14 without sampling: at single states the velocities agree exactly where E[r_1 r_2 | x_t] = alpha_1 alpha_2."""
    x = torch.randn(64, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    apart = {}
    for name, pair in PAIRS.items():
        summed, exact = sums("odds")(pair, FOUR, x, 0.6), with_the_joint(pair, FOUR, x, 0.6)
        apart[name] = float((summed - exact).abs().max())
    assert apart.pop("independent coordinates") < 1e-9
    assert min(apart.values()) > 0.1
