"""The positive objective lands on v_plus and alpha, in a world where both are known sums."""

import pytest
import torch

from helpers.mixture import ring
from nft_pipeline.training.bases.noising import NoiseLaw, interpolate
from nft_pipeline.training.learn.objective import alpha_loss, positive_loss


@pytest.mark.parametrize("t", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("graded", [True, False])
def test_minimisers_at_one_noisy_state_are_v_plus_and_alpha(t, graded):
    mixture = ring(graded)
    x = mixture.samples(1, t, torch.Generator().manual_seed(0))
    p = mixture.posterior(x, 1 - t, t)[0]
    y, r = mixture.targets(x[0], t), mixture.rewards
    _, v_plus, alpha = mixture.moments(x, t)

    # The loss over all possible pictures, each weighed by its posterior: an exact expectation.
    v = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    (p * positive_loss(v.expand(len(p), 2), y, weight=r)).sum().backward()
    # E[r |v - y|^2] is a parabola with curvature E[r]: one Newton step from anywhere is the minimiser.
    found = v.detach() - v.grad / (p @ r)
    assert torch.allclose(found, v_plus[0], atol=1e-5)

    logit = torch.logit(alpha).clone().requires_grad_(True)
    (p * alpha_loss(logit.expand(len(p)), r)).sum().backward()
    assert logit.grad.abs().item() < 1e-6


def test_drawing_in_proportion_to_r_is_weighing_by_r():
    generator = torch.Generator().manual_seed(1)
    r, errors = torch.rand(50, generator=generator), torch.rand(50, 3, generator=generator)
    weighed = positive_loss(errors, torch.zeros_like(errors), weight=r / r.mean()).mean()
    rows = torch.multinomial(r, 200_000, replacement=True, generator=generator)
    drawn = positive_loss(errors[rows], torch.zeros(len(rows), 3)).mean()
    assert drawn.item() == pytest.approx(weighed.item(), rel=0.01)


def test_noise_levels_are_stratified_and_shifted():
    generator = torch.Generator().manual_seed(0)
    even, weight, _ = NoiseLaw(1.0).draw(1000, generator)
    assert (even.sort().values - (torch.arange(1000) + 0.5) / 1000).abs().max() <= 0.5e-3 + 1e-6
    assert torch.equal(weight, torch.ones(1000))
    high, _, _ = NoiseLaw(4.0).draw(1000, generator)
    assert high.min() > 0 and high.max() < 1
    assert (high > 0.8).float().mean().item() == pytest.approx(0.5, abs=0.01)  # u > 1/2 is t > 4/5 at shift 4


@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_an_adaptive_law_draws_where_gradients_are_noisy_and_its_weights_keep_the_expectation(shift):
    generator = torch.Generator().manual_seed(0)
    law, known = NoiseLaw(shift, adaptive=True), NoiseLaw(shift)
    assert law.draw(12, generator)[1].eq(1).all()  # it has met nothing yet
    norm = torch.linspace(0, 3, NoiseLaw.BINS, dtype=torch.float64)  # of a gradient in each bin
    for _ in range(20):
        _, _, at = law.draw(96, generator)
        met = torch.bincount(at, minlength=NoiseLaw.BINS).double()
        law.meet(torch.stack([norm.square() * met, met]))
    density = law.density()
    assert density.mean() == pytest.approx(1) and torch.allclose(density, 0.25 + 0.75 * norm / norm.mean())

    (t, weight, at), (even, _, _) = law.draw(200_000, generator), known.draw(200_000, generator)
    assert torch.bincount(at, minlength=12) / 200_000 == pytest.approx((density / 12).numpy(), abs=1e-4)
    assert weight.max() <= 4 and weight.mean().item() == pytest.approx(1, abs=1e-3)
    u = t / (shift - (shift - 1) * t)
    assert torch.equal((u * 12).long().clamp(max=11)[(u * 12 % 1) > 1e-4], at[(u * 12 % 1) > 1e-4])
    for power in (1, 2, 5):  # the expectation of anything is the one without adapting
        assert (weight * t**power).mean().item() == pytest.approx((even**power).mean().item(), abs=1e-3)

    # The noise of a gradient of this norm is less than from even draws, and near the least there can be.
    sizes = (weight.double() * norm[at]).square().mean(), norm.square().mean(), norm.mean().square()
    assert sizes[2] <= sizes[0] < 1.08 * sizes[2] < 0.85 * sizes[1]


def test_interpolation_ends_at_picture_and_noise():
    x_0, eps = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    x_t, y = interpolate(x_0, eps, torch.tensor([0.0, 1.0, 0.25]))
    assert torch.equal(x_t[0], x_0[0]) and torch.equal(x_t[1], eps[1])
    assert torch.allclose(x_t[2], 0.75 * x_0[2] + 0.25 * eps[2])
    assert torch.equal(y, eps - x_0)
