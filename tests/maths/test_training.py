"""M5 to M8 of docs/theory.md and the authors' own loss, against exact posterior sums in float64."""

import math

import pytest
import torch

from helpers.mixture import Mixture, cloud, ring
from nft_pipeline.training.learn.maths import (
    accumulated_tilt,
    anchor_kappa,
    anchor_weight,
    anchored_target,
    nft_loss,
    paper_loss,
    regression_target,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 3.0])
def test_the_two_branch_loss_is_a_regression_up_to_a_constant_in_v(beta):  # M5
    v_old, y = random(6, 3, 4, seed=1), random(6, 3, 4, seed=2)
    r = torch.rand(6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    target = regression_target(v_old, y, r, 2 / beta, 0.5)
    gaps, losses = [], []
    for seed in range(10, 15):
        v = 3 * random(6, 3, 4, seed=seed)
        losses.append(nft_loss(v, v_old, y, r, beta))
        gaps.append(losses[-1] - beta**2 * ((v - target) ** 2).mean((1, 2)))
    for gap in gaps[1:]:
        close(gap, gaps[0])
    assert (losses[1] - losses[0]).abs().min() > 1e-3


def test_the_losses_send_no_gradient_into_v_old():
    v_theta, v_old = random(4, 2, seed=1).requires_grad_(), random(4, 2, seed=2).requires_grad_()
    y, r, t = random(4, 2, seed=3), torch.tensor([0.0, 0.2, 0.7, 1.0]).double(), torch.full((4,), 0.5).double()
    loss = nft_loss(v_theta, v_old, y, r, 0.5) + paper_loss(v_theta, v_old, 0.5 * y, 0 * y, t, r, 0.5)
    loss.sum().backward()
    assert v_old.grad is None
    assert v_theta.grad.abs().min() > 0
    assert loss.shape == (4,)
    assert not regression_target(v_old, y, r, 2.0, 0.5).requires_grad


def conditional_moments(world: Mixture, x, t, v_old, tilt, baseline, refit=0.0):
    """Exact mean (2,) and total variance of the regression target given x_t = x (2,)."""
    p = world.posterior(x[None], 1 - t, t)[0]
    y = world.targets(x, t)
    target = regression_target(v_old.expand_as(y), y, world.rewards, tilt, baseline, refit)
    mean = p @ target
    return mean, float(p @ ((target - mean) ** 2).sum(-1))


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_the_baseline_alpha_is_unbiased_if_either_v_old_or_alpha_is_right(t):  # M6
    world, tilt = ring(), 2.0
    for x in world.samples(8, t, torch.Generator().manual_seed(5)):
        v_old, alpha = world.v_old(x[None], t)[0], float(world.alpha(x[None], t))
        delta = world.delta(x[None], t)[0]
        v_wrong, alpha_wrong = v_old + torch.tensor([0.4, -0.7]).double(), 0.8 * alpha + 0.15

        def bias(v, b, x=x, delta=delta):
            return conditional_moments(world, x, t, v, tilt, b)[0] - (v + tilt * delta)

        close(bias(v_old, alpha), torch.zeros(2).double())
        close(bias(v_old, alpha_wrong), torch.zeros(2).double())
        close(bias(v_old, 0.5), torch.zeros(2).double())
        close(bias(v_wrong, alpha), torch.zeros(2).double())
        # Both wrong: the bias is the product of the two errors, so it is there and it is second order.
        close(bias(v_wrong, alpha_wrong), tilt * (alpha - alpha_wrong) * (v_old - v_wrong))
        assert bias(v_wrong, 0.5).norm() == pytest.approx(tilt * abs(alpha - 0.5) * 0.65**0.5, abs=1e-6)


@pytest.mark.parametrize("refit", [0.0, 0.3, 1.0])
def test_refit_takes_its_share_of_an_error_of_v_old_out_of_the_target(refit):
    world, tilt, t = ring(), 2.0, 0.6
    for x in world.samples(8, t, torch.Generator().manual_seed(6)):
        v_old, alpha = world.v_old(x[None], t)[0], float(world.alpha(x[None], t))
        wrong = torch.tensor([0.4, -0.7]).double()
        mean, _ = conditional_moments(world, x, t, v_old + wrong, tilt, alpha, refit)
        close(mean - (v_old + tilt * world.delta(x[None], t)[0]), (1 - refit) * wrong)
        close(conditional_moments(world, x, t, v_old, tilt, alpha, refit)[0], v_old + tilt * world.delta(x[None], t)[0])


def variance_ratio(world: Mixture, t: float, count: int = 400) -> float:
    """Mean conditional variance with b = 1/2 over that with b = alpha."""
    half = exact = 0.0
    for x in world.samples(count, t, torch.Generator().manual_seed(7)):
        v_old, alpha = world.v_old(x[None], t)[0], float(world.alpha(x[None], t))
        half += conditional_moments(world, x, t, v_old, 2.0, 0.5)[1]
        exact += conditional_moments(world, x, t, v_old, 2.0, alpha)[1]
    return half / exact


def test_the_baseline_alpha_varies_less_at_low_noise_and_alike_at_high_noise():  # M6
    graded, binary = ring(), ring(graded=False)
    assert variance_ratio(graded, 0.2) == pytest.approx(5.6, abs=0.3)  # docs/theory.md quotes these
    assert variance_ratio(binary, 0.2) == pytest.approx(3.7, abs=0.3)
    for t in (0.6, 0.9):
        assert 0.9 < variance_ratio(graded, t) < 1.0  # b = 1/2 is even slightly ahead


def test_the_anchored_target_minimises_the_anchored_objective():  # M7
    target, v_ref, eta0, eta1 = random(5, 3, seed=1), random(5, 3, seed=2), 6.0, 2.0
    best = anchored_target(target, v_ref, anchor_weight(eta0, eta1)).requires_grad_()
    loss = ((best - target) ** 2).sum() + anchor_kappa(eta0, eta1) * ((best - v_ref) ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, best)
    close(gradient, torch.zeros_like(gradient))
    assert anchor_weight(eta0, eta1) == pytest.approx(0.75)
    assert anchor_kappa(eta0, eta1) == pytest.approx(1 / 3)
    assert anchor_weight(math.inf, eta1) == 1.0
    assert torch.equal(anchored_target(target, v_ref, 1.0), target)
    assert torch.equal(anchored_target(target, v_ref, 0.0), v_ref)


@pytest.mark.parametrize("eta1", [0.3, 2.0, 20.0])
@pytest.mark.parametrize("eta0", [None, 0.5, 5.0])
def test_the_anchored_steps_accumulate_the_tilt_they_promise(eta0, eta1):  # M7, M8
    weight = 1.0 if eta0 is None else anchor_weight(eta0, eta1)
    v_ref, delta = random(1, 3, seed=1), random(1, 3, seed=2)
    v, tilt = v_ref, 0.0
    for k in range(1, 400):
        v = anchored_target(v + eta1 * delta, v_ref, weight)
        tilt = weight * (tilt + eta1)
        assert accumulated_tilt(eta1, k, eta0) == pytest.approx(tilt, rel=1e-10)
        close(v, v_ref + accumulated_tilt(eta1, k, eta0) * delta, 1e-8)
    assert accumulated_tilt(eta1, 0, eta0) == 0.0
    if eta0 is None:
        assert accumulated_tilt(eta1, 400) == pytest.approx(400 * eta1)
        assert accumulated_tilt(eta1, 400, math.inf) == accumulated_tilt(eta1, 400)
    else:
        assert accumulated_tilt(eta1, 10_000, eta0) == pytest.approx(eta0, rel=1e-9)  # whatever eta1 is


@pytest.mark.parametrize("eta1", [0.5, 3.0])
def test_the_kl_anchored_update_of_the_pictures_themselves_accumulates_the_same_tilt(eta1):  # M8
    """Geometric mixing of whole laws: p_{k+1} ~ (p_k exp(eta1 r))^w p_ref^(1-w) is p_ref exp(L_k r), exactly."""
    world, eta0 = ring(), 4.0
    weight, log_p = anchor_weight(eta0, eta1), world.prior.log()
    for k in range(1, 60):
        log_p = torch.log_softmax(weight * (log_p + eta1 * world.rewards) + (1 - weight) * world.prior.log(), dim=0)
        close(log_p.exp(), world.exponential(accumulated_tilt(eta1, k, eta0)).prior)
    close(log_p.exp(), world.exponential(eta0).prior, 1e-3)


def paper_optimum(world: Mixture, t: float, beta: float, floor: float = 1e-5, seed: int = 3):
    """Descend the exact expectation of `paper_loss` over a free v at one x_t; returns (v - v_old, (2 / beta) Delta)."""
    x = world.samples(1, t, torch.Generator().manual_seed(seed))[0]
    p = world.posterior(x[None], 1 - t, t)[0]
    v_old, delta = world.v_old(x[None], t), world.delta(x[None], t)
    count, dimensions = world.points.shape
    v = v_old.clone().requires_grad_()

    def gradient() -> torch.Tensor:
        old, noisy, noise = v_old.expand(count, -1), x.expand(count, -1), torch.tensor(t, dtype=torch.float64)
        loss = paper_loss(v.expand(count, -1), old, noisy, world.points, noise, world.rewards, beta, weight_floor=floor)
        return torch.autograd.grad(p @ loss, v)[0]

    first = gradient().norm()
    m = (x - t * v_old - world.points).abs().mean(-1).clamp(min=floor)
    step = dimensions / (2 * 5 * beta * t * t * float(p @ (1 / m)))  # one over the curvature
    for _ in range(300):
        v.data -= 0.7 * step * gradient()
    assert gradient().norm() < 1e-8 * first
    return (v.detach() - v_old)[0], (2 / beta * delta)[0]


def along(got: torch.Tensor, promised: torch.Tensor) -> float:
    return float(got @ promised / (promised @ promised))


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_without_its_weight_the_authors_loss_lands_exactly_on_the_promised_velocity(beta):  # M4
    for seed in range(4):  # a floor above every m makes the weight the same for all pictures
        got, promised = paper_optimum(ring(), 0.5, beta, floor=1e3, seed=seed)
        assert promised.norm() > 1e-3
        close(got, promised, 1e-7)


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_the_authors_weight_hardly_matters_where_many_pictures_are_possible(beta):  # M4
    for seed in range(3, 6):
        got, promised = paper_optimum(cloud(256), 0.9, beta, seed=seed)
        assert float((got - promised).norm() / promised.norm()) < 0.08
        assert along(got, promised) == pytest.approx(1, abs=0.05)


def test_the_authors_weight_bends_the_optimum_where_few_pictures_are_possible():  # M4
    """1 / m favours pictures near the prediction: right in direction, off in size, alike at every beta."""
    for seed in (0, 1, 2, 4):
        got, promised = paper_optimum(ring(), 0.8, 1.0, seed=seed)
        assert torch.nn.functional.cosine_similarity(got, promised, dim=0) > 0.98
        assert 1.1 < along(got, promised) < 1.25
        got_sharp, promised_sharp = paper_optimum(ring(), 0.8, 0.1, seed=seed)
        assert along(got_sharp, promised_sharp) == pytest.approx(along(got, promised), rel=1e-6)


def test_paper_loss_is_the_authors_formula_written_out_by_hand():
    v, old, x_t, x_0 = (random(3, 2, 2, seed=seed) for seed in range(4))
    t, r, beta = [0.1, 0.5, 0.9], [0.0, 0.3, 1.0], 0.4
    x_0[0] = x_t[0] - t[0] * (1.4 * old[0] - 0.4 * v[0]) + 1e-7  # the negative branch is nearly right: the floor acts
    noise, liked = torch.tensor(t, dtype=torch.float64), torch.tensor(r, dtype=torch.float64)
    got = paper_loss(v, old, x_t, x_0, noise, liked, beta, adv_clip_max=2.5)
    for i in range(3):
        branches = []
        for sign in (1, -1):
            error = [
                float(a - t[i] * ((1 - sign * beta) * b + sign * beta * c) - d)
                for a, b, c, d in zip(x_t[i].flatten(), old[i].flatten(), v[i].flatten(), x_0[i].flatten(), strict=True)
            ]
            size = max(sum(map(abs, error)) / 4, 1e-5)
            branches.append(sum(e * e for e in error) / 4 / size)
        assert float(got[i]) == pytest.approx(2.5 * (r[i] * branches[0] + (1 - r[i]) * branches[1]) / beta, rel=1e-9)


def test_half_precision_inputs_are_worked_on_in_float32():
    v, old, y = (random(4, 8, seed=seed).bfloat16() for seed in range(3))
    r = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert nft_loss(v, old, y, r, 0.1).dtype == torch.float32
    assert torch.equal(nft_loss(v, old, y, r, 0.1), nft_loss(v.float(), old.float(), y.float(), r, 0.1))
    assert torch.equal(regression_target(old, y, r, 20.0, 0.5), regression_target(old.float(), y.float(), r, 20.0, 0.5))


# errors: what happened, the value seen, what was expected

X = torch.zeros(2, 3)
R = torch.tensor([0.0, 1.0])
ERRORS = {
    "eta0": (lambda: anchor_weight(0.0, 1.0), r"eta0 must be above 0, got 0\.0"),
    "eta0 NaN": (lambda: accumulated_tilt(1.0, 2, math.nan), r"eta0 must be above 0, got nan"),
    "eta1": (lambda: anchor_kappa(1.0, -1.0), r"eta1 must be a finite number above 0, got -1"),
    "rounds": (lambda: accumulated_tilt(1.0, -3), r"rounds must be a whole number, 0 or more, got -3"),
    "rounds type": (lambda: accumulated_tilt(1.0, 2.5), r"rounds must be a whole number, 0 or more, got 2\.5"),
    "weight": (lambda: anchored_target(X, X, 1.5), r"weight must lie in \[0, 1\], got 1\.5.*anchor_weight"),
    "target r": (lambda: regression_target(X, X, 2 * R, 1.0, 0.5), r"r must lie in \[0, 1\], got 2"),
    "target b": (lambda: regression_target(X, X, R, 1.0, -0.1), r"baseline must lie in \[0, 1\], got -0\.1"),
    "target refit": (lambda: regression_target(X, X, R, 1.0, 0.5, 1.5), r"refit must lie in \[0, 1\], got 1\.5"),
    "target tilt": (lambda: regression_target(X, X, R, math.inf, 0.5), r"tilt must be a finite number, got inf"),
    "target batch": (lambda: regression_target(X, X, torch.ones(5), 1.0, 0.5), r"r has shape \(5,\)"),
    "nft beta": (lambda: nft_loss(X, X, X, R, 0.0), r"beta must be a finite number above 0, got 0"),
    "nft shapes": (lambda: nft_loss(X, X, X[:, :2], R, 1.0), r"v_theta \(2, 3\), v_old \(2, 3\), y \(2, 2\)"),
    "paper t": (lambda: paper_loss(X, X, X, X, 1000 * R, R, 1.0), r"t must lie in \[0, 1\], got 1000"),
    "paper clip": (lambda: paper_loss(X, X, X, X, R, R, 1.0, adv_clip_max=0.0), r"adv_clip_max must be .* above 0"),
    "paper floor": (lambda: paper_loss(X, X, X, X, R, R, 1.0, weight_floor=0.0), r"weight_floor must be .* above 0"),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_the_value_and_the_way_out(call, message):
    with pytest.raises(ValueError, match=message):
        call()
