"""A world small enough to be solved: finitely many data points, so every expectation is a finite sum.

    p_old(x_0) = sum_i prior_i delta(x_0 - points_i),  x_t = a x_0 + s eps,  eps ~ N(0, I)

Given x_t, only N pictures are possible and their posterior is a softmax, so v_old, v_plus, alpha and Delta are exact.
The flow convention is a = 1 - t, s = t. Tilting the data changes the prior and nothing else, which gives every guided
law its exact counterpart to be compared with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """points (N, D), prior (N,) summing to 1, rewards (N,) in [0, 1]."""

    points: Tensor
    prior: Tensor
    rewards: Tensor

    def posterior(self, x: Tensor, a: float, s: float) -> Tensor:
        """p(x_0 = points_i | x), (B, N), for x = a x_0 + s eps of shape (B, D)."""
        return torch.softmax(self._log_joint(x, a, s), dim=-1)

    def log_density(self, x: Tensor, t: float) -> Tensor:
        """log p_t(x) up to a constant, (B,)."""
        return torch.logsumexp(self._log_joint(x, 1 - t, t), dim=-1)

    def _log_joint(self, x: Tensor, a: float, s: float) -> Tensor:
        # ||x - a x_i||^2 without the ||x||^2 that all points share: one matrix product, no (B, N, D) array.
        fit = a * x @ self.points.T - 0.5 * a * a * (self.points**2).sum(-1)
        return self.prior.log() + fit / (s * s)

    def moments(self, x: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """(v_old, v_plus, alpha) at x (B, D): shapes (B, D), (B, D), (B,)."""
        joint = self._log_joint(x, 1 - t, t)
        p = torch.softmax(joint, dim=-1)
        plus = torch.softmax(joint + self.rewards.log(), dim=-1)  # r-weighted, and no 0/0 where alpha underflows
        # y = eps - x_0 = (x_t - x_0) / t at fixed x_t
        return (x - p @ self.points) / t, (x - plus @ self.points) / t, p @ self.rewards

    def targets(self, x: Tensor, t: float) -> Tensor:
        """y of every possible picture at one x (D,): (N, D)."""
        return (x - self.points) / t

    def v_old(self, x: Tensor, t: float) -> Tensor:
        return self.moments(x, t)[0]

    def alpha(self, x: Tensor, t: float) -> Tensor:
        return self.moments(x, t)[2]

    def delta(self, x: Tensor, t: float) -> Tensor:
        """Cov(r, y | x_t), summed directly as E[(r - E r)(y - E y)]: (B, D)."""
        p = self.posterior(x, 1 - t, t)
        r = self.rewards - (p @ self.rewards)[:, None]
        y = (x[:, None, :] - self.points) / t
        return ((p * r)[..., None] * (y - (p[..., None] * y).sum(1, keepdim=True))).sum(1)

    def mean_reward(self) -> float:
        return float(self.prior @ self.rewards)

    def weighted(self, weights: Tensor) -> Mixture:
        """The same pictures with prior proportional to prior * weights."""
        prior = self.prior * weights
        return replace(self, prior=prior / prior.sum())

    def exponential(self, tilt: float) -> Mixture:
        """p_old exp(tilt r), M4's law at t = 0."""
        return self.weighted(torch.exp(tilt * (self.rewards - self.rewards.max())))

    def odds(self, tilt: float) -> Mixture:
        """p_old (1 + rho r), rho = e^tilt - 1, M10's law."""
        return self.weighted(1 + math.expm1(tilt) * self.rewards)

    def samples(self, count: int, t: float, generator: torch.Generator) -> Tensor:
        """x_t of `count` random pictures, (count, D)."""
        index = torch.multinomial(self.prior, count, replacement=True, generator=generator)
        eps = torch.randn(count, self.points.shape[1], generator=generator, dtype=self.points.dtype)
        return (1 - t) * self.points[index] + t * eps

    def landed(self, x: Tensor, t: float) -> Tensor:
        """Share of the samples x (B, D), left at a small noise level t, that belongs to each picture: (N,)."""
        return self.posterior(x, 1 - t, t).mean(0)


def ring(graded: bool = True, seed: int = 0) -> Mixture:
    """24 pictures on two uneven rings; the reward grows from left to right, or is 1 for the rightmost of them."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.arange(24, dtype=torch.float64) * (2 * math.pi / 24)
    radius = torch.where(torch.arange(24) % 2 == 0, 1.0, 1.7).double()
    jitter = 0.1 * torch.randn(24, 2, generator=generator, dtype=torch.float64)
    points = radius[:, None] * torch.stack((angle.cos(), angle.sin()), -1) + jitter
    prior = 0.3 + torch.rand(24, generator=generator, dtype=torch.float64)
    smooth = torch.sigmoid(2 * points[:, 0] + 0.8 * torch.sin(3 * points[:, 1]))
    rewards = smooth if graded else (smooth > 0.6).double()
    return Mixture(points, prior / prior.sum(), rewards)


def cloud(dimensions: int, count: int = 64, seed: int = 0) -> Mixture:
    """`count` pictures about 5 from the origin in any number of dimensions; the reward ranks their first coordinate."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, dimensions, generator=generator, dtype=torch.float64) * 5 / dimensions**0.5
    prior = torch.full((count,), 1 / count, dtype=torch.float64)
    return Mixture(points, prior, torch.linspace(0, 1, count, dtype=torch.float64)[points[:, 0].argsort().argsort()])


def noise_levels(steps: int, last: float = 5e-3) -> list[float]:
    """From 1 to `last`, closer together near the picture, where the velocity of a discrete law turns sharply."""
    return [float((1 - (1 - last**0.5) * k / steps) ** 2) for k in range(steps + 1)]


def solve_ode(velocity: Callable[[Tensor, float], Tensor], x: Tensor, levels: list[float]) -> Tensor:
    """Heun's method along dx/dt = velocity(x, t), from levels[0] down to levels[-1]."""
    for t, after in itertools.pairwise(levels):
        v = velocity(x, t)
        ahead = x + (after - t) * v
        x = x + (after - t) * 0.5 * (v + velocity(ahead, after))
    return x


def followed(world: Mixture, velocity: Callable[[Tensor, float], Tensor], x: Tensor, steps: int) -> Tensor:
    """The share of samples that lands on each picture when an ODE is followed from noise x (B, D), (N,)."""
    levels = noise_levels(steps)
    return world.landed(solve_ode(velocity, x, levels), levels[-1])


def distance(share: Tensor, law: Tensor) -> float:
    """Total variation between the shares of the samples and a law."""
    return float((share - law).abs().sum() / 2)


def spread_noise(count: int, seed: int = 0, dimensions: int = 2) -> Tensor:
    """Evenly spread Gaussian noise (scrambled Sobol points), (count, dimensions): far less error than random noise."""
    uniform = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=seed).draw(count, dtype=torch.float64)
    return torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))
