"""Sequential Monte Carlo with alpha as the twist: many noises of one prompt share their luck, and the law comes out.

The particles of a group follow the base model's own stochastic sampler, one pass per step and no LoRA. With the tilt
lambda, rho = e^lambda - 1 and one alpha per adapter, a noisy state is worth

    h(x_t) = prod_k (1 + rho_k alpha_k(x_t)),

and a particle's weight is multiplied by h after a step over h before it. Where the weights of a group have become
uneven, particles are drawn anew by them. The factors telescope, so the group is a sample of p_old(x_0) h(x_0) as it
grows, whatever alpha said on the way: a biased alpha costs particles and not truth, as long as it is right near the
picture. With several adapters the target is the true product, which sums of pushes are not (docs/theory.md, M14).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from ..dial.tilts import Tilt
from ..laws import odds_weight


def log_twist(alphas: Tensor, tilts: Sequence[Tilt]) -> Tensor:
    """log h of each sample, up to a constant that all samples share: shape (samples,), float64.

    Args:
        alphas: one row per adapter, (adapters, samples), in [0, 1].
        tilts: lambda of each adapter, for all samples or for each; any finite numbers, 0 leaves that adapter out. All
            samples of a group need one, for the group is a sample of one law.
    """
    alphas = alphas.double()
    of_samples = torch.stack([alphas.new_tensor(tilt).expand(alphas.shape[1]) for tilt in tilts])
    return odds_weight(alphas, of_samples).log().sum(0)


def effective(log_weights: Tensor) -> Tensor:
    """How many equal particles a group's weights are worth, 1 / sum W^2: (groups, particles) to (groups,)."""
    return 1 / torch.softmax(log_weights, 1).square().sum(1)


def systematic(log_weights: Tensor, generator: Generator | None = None) -> Tensor:
    """Which particle takes each place when a group is drawn anew by its weights: int64, (groups, particles).

    Systematic resampling: one random number per group, so a particle of weight W gets W times the group's size places,
    rounded down or up.

    Args:
        log_weights: (groups, particles); a constant per group changes nothing.
        generator: on the CPU; None is torch's own.
    """
    groups, size = log_weights.shape
    places = (torch.arange(size) + torch.rand(groups, 1, generator=generator, dtype=torch.float64)) / size
    up_to = torch.softmax(log_weights, 1).cpu().double().cumsum(1)
    return torch.searchsorted(up_to, places).clamp(max=size - 1)


def renoised(x: Tensor, v: Tensor, t: float, after: float, eta: float, noise: Tensor) -> Tensor:
    """A stochastic step of a flow-matching sampler: the state at the noise level `after`.

        x_after = (1 - after) x_0 + after (sqrt(1 - eta^2) eps + eta noise),

    where x_0 = x - t v and eps = x + (1 - t) v are what v says of the picture and of its noise. At eta 0 this is
    Euler's step. At any eta it keeps, in the limit of small steps, the base model's distribution at each noise level.

    Args:
        x: the state at t, any shape.
        v: the velocity there, an estimate of eps - x_0.
        t, after: noise levels in [0, 1], t above `after`.
        eta: the share of fresh noise, in [0, 1].
        noise: standard normal, of x's shape.
    """
    x_0, eps = x - t * v, x + (1 - t) * v
    return (1 - after) * x_0 + after * ((1 - eta * eta) ** 0.5 * eps + eta * noise)


class Particles:
    """The weights of groups of particles on their way, and which noise each of them comes from.

    Samples are counted group by group: sample g * size + i is particle i of group g.

    Args:
        groups: how many.
        size: particles per group, at least 2.
        generator: on the CPU, for drawing anew; None is torch's own.
    """

    def __init__(self, groups: int, size: int, generator: Generator | None = None) -> None:
        self.log_weights = torch.zeros(groups, size, dtype=torch.float64)
        self.ancestors = torch.arange(size).repeat(groups, 1)
        self._last = torch.zeros(groups, size, dtype=torch.float64)
        self._generator = generator

    @property
    def survivors(self) -> Tensor:
        """How many of the noises that a group began with have descendants: int64, (groups,)."""
        return torch.tensor([row.unique().numel() for row in self.ancestors])

    def weigh(self, twist: Tensor) -> Tensor:
        """Take the worth of the states that were reached, and draw the groups anew that have become uneven.

        Args:
            twist: `log_twist` of all samples, (samples,).

        Returns:
            Which sample takes each place, int64, (samples,): states and outputs are to be put in this order.
        """
        twist = twist.cpu().double().view_as(self.log_weights)
        self.log_weights = self.log_weights + twist - self._last
        self._last = twist
        return self._drawn(effective(self.log_weights) < self.log_weights.shape[1] / 2)

    def finish(self) -> Tensor:
        """Draw all groups anew whose weights differ, so that each sample counts alike; returns as `weigh`."""
        return self._drawn((self.log_weights != self.log_weights[:, :1]).any(1))

    def _drawn(self, uneven: Tensor) -> Tensor:
        groups, size = self.log_weights.shape
        index = torch.arange(size).repeat(groups, 1)
        if bool(uneven.any()):
            index[uneven] = systematic(self.log_weights[uneven], self._generator)
            self.log_weights = self.log_weights.masked_fill(uneven[:, None], 0.0)
            self.ancestors, self._last = self.ancestors.gather(1, index), self._last.gather(1, index)
        return (index + size * torch.arange(groups)[:, None]).flatten()
