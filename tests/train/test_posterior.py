"""Means over the pictures a noisy state may have come from: exact sums, the same optimum, and less noise."""

import pytest
import torch

from nft_pipeline.families.prediction import PREDICTIONS
from nft_pipeline.training.bases.noising import interpolate, raw_target
from nft_pipeline.training.data.pool import Pool
from nft_pipeline.training.learn.objective import States
from nft_pipeline.training.learn.posterior import (
    BORDER,
    BORDER_OF_FEW,
    LEAST_LIKED,
    MANY_LIKED,
    borders,
    plus_mass,
    plus_weight,
    posterior,
    with_mean_target,
)

SHAPE = (2, 2, 2)


def pool_of(prompt, r, seed=0):
    latents = torch.randn(len(prompt), *SHAPE, generator=torch.Generator().manual_seed(seed)).half()
    return Pool.of(latents, torch.tensor(prompt), {"text": torch.zeros(4, 1, 1)}, torch.tensor(r))


def noised(pool, rows, t, seed=1, prediction="flow"):
    x_0, t = pool.x_0(rows), torch.as_tensor(t).expand(len(rows))
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed))
    y = raw_target(prediction, x_0, eps, t)
    return States(x_0, interpolate(x_0, eps, t)[0], y, t, pool.r[rows], prediction)


def test_the_means_are_the_exact_sums():
    pool = pool_of([0, 1, 0, 1, 0, 1], [1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    rows = torch.tensor([0, 1, 2, 3, 4])
    states = noised(pool, rows, torch.tensor([0.4, 0.6, 0.8, 0.9, 1.0]))
    x_0, alpha = posterior(pool, rows, states.x_t, states.t)
    for i, row in enumerate(rows.tolist()):
        t, total, liked, mean = float(states.t[i]), 0.0, 0.0, torch.zeros(SHAPE, dtype=torch.double)
        for j in range(6):
            if pool.prompt[j] == pool.prompt[row]:
                x_j = pool.buckets[0][j].double()
                weight = float((-(states.x_t[i].double() - (1 - t) * x_j).square().sum() / (2 * t * t)).exp())
                total, liked = total + weight, liked + weight * float(pool.r[j])
                mean += weight * float(pool.r[j]) * x_j
        torch.testing.assert_close(x_0[i], (mean / liked).float(), atol=1e-5, rtol=1e-5)
        assert float(alpha[i]) == pytest.approx(liked / total, abs=1e-5)


def test_at_low_noise_the_own_picture_is_the_only_one_possible():
    pool, rows = pool_of([0, 0, 0, 0], [1.0, 0.0, 1.0, 0.0]), torch.arange(4)
    states = noised(pool, rows, 0.005)
    x_0, alpha = posterior(pool, rows, states.x_t, states.t)
    assert torch.equal(x_0, pool.x_0(rows)) and alpha.tolist() == [1, 0, 1, 0]
    assert torch.equal(with_mean_target(states, x_0), states.y)


def test_only_prompts_with_enough_liked_pictures_are_drawn_evenly():
    few = pool_of([0, 0, 0, 0, 0, 1, 1], [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    border = borders(few)
    assert border.isfinite().tolist() == [True] * 5 + [False] * 2
    mass = plus_mass(few, border)
    assert mass[4] > 0 and mass[6] == 0 and mass[5] == pytest.approx(7 / 5)
    assert borders(pool_of([0] * 6, [1.0, 1.0, 1.0, 1.0, 0.5, 0.0])).isinf().all()  # graded


def test_the_border_is_low_where_many_pictures_of_a_prompt_are_liked():
    counts = (LEAST_LIKED - 1, LEAST_LIKED, MANY_LIKED - 1, MANY_LIKED)
    prompt = [place for place, count in enumerate(counts) for _ in range(count + 3)]
    r = [float(i < count) for count in counts for i in range(count + 3)]
    border = borders(pool_of(prompt, r))
    assert border[[prompt.index(place) for place in range(4)]].tolist() == pytest.approx(
        [torch.inf, BORDER_OF_FEW, BORDER_OF_FEW, BORDER]
    )
    alpha = torch.tensor([1.0, 0.5 * BORDER_OF_FEW, 0.5 * BORDER_OF_FEW, 0.5 * BORDER])
    drawn = (alpha / 0.3 + 1) / 2  # how often such states are drawn, relative to the others
    even = plus_weight(alpha, torch.tensor([BORDER_OF_FEW, BORDER_OF_FEW, BORDER, BORDER]), 0.3) * drawn
    assert even.tolist() == pytest.approx([1.0, 0.5, 1.0, 0.5])


def test_every_liked_picture_counts_the_same_at_low_noise():
    few = pool_of([0, 0, 0, 0, 0, 1, 1], [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    border = borders(few)
    share = plus_mass(few, border) * plus_weight(few.r, border, float(few.r.mean()))
    assert share.tolist() == pytest.approx(few.r.tolist())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_is_what_the_network_would_be_asked_for_with_that_picture(prediction):
    pool = pool_of([0, 0, 0], [1.0, 1.0, 1.0])
    states = noised(pool, torch.arange(3), torch.tensor([0.3, 0.7, 0.95]), prediction=prediction)
    other = pool.x_0(torch.tensor([1, 2, 0]))
    t = states.t.view(-1, 1, 1, 1)
    expected = raw_target(prediction, other, (states.x_t - (1 - t) * other) / t, states.t)
    torch.testing.assert_close(with_mean_target(states, other), expected, atol=1e-4, rtol=1e-4)


def test_the_optimum_at_states_of_liked_pictures_is_the_same_and_the_noise_is_less():
    pool, count = pool_of([0] * 8, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0]), 60_000
    rows = torch.multinomial(pool.r, count, True, generator=torch.Generator().manual_seed(2))
    states = noised(pool, rows, 0.9)
    smooth = with_mean_target(states, posterior(pool, rows, states.x_t, states.t)[0])
    # A gradient of the loss is (v - target) times a function of the state, here 1 and the state itself.
    for function in (torch.ones_like(states.x_t), states.x_t):
        drawn, mean = (states.y * function).flatten(1), (smooth * function).flatten(1)
        error = (drawn - mean).std(0) / count**0.5
        assert ((drawn.mean(0) - mean.mean(0)).abs() < 4.5 * error).all()
    assert smooth.var(0).sum() < 0.9 * states.y.var(0).sum()
