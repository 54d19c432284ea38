"""What drawing noise levels where a loss is noisiest could save, in closed form.

    PYTHONPATH=tests python tests/benchmarks/noise_levels.py

A squared error at its optimum has a gradient of variance s^2(t) = E |target - E[target | x_t]|^2 per sample. Drawn from
q(t) and weighted by p(t) / q(t), so that the objective stays the one under p, a sample has variance E_p[s^2 p / q],
least for q ~ p s, where it is (E_p[s])^2. The share of samples saved at equal error is 1 - (E_p[s])^2 / E_p[s^2]: no
adaptive law can save more. p is the shifted law that runs draw from. Prints a table.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from helpers.mixture import Mixture, cloud, ring
from nft_pipeline.training.demo.report import markdown

WORLDS = {"ring, 2 dimensions": ring(), "cloud, 16 dimensions": cloud(16)}
SHIFTS = (1.0, 2.0, 3.0, 4.0)


def variances(world: Mixture, t: float, count: int) -> Tensor:
    """s^2 at t of: positive, policy with half, policy with alpha, the head's Brier score."""
    x = world.samples(count, t, torch.Generator().manual_seed(1))
    p, r = world.posterior(x, 1 - t, t), world.rewards
    v_old, _, alpha = world.moments(x, t)
    mean_plus = ((p * r) @ world.points) / alpha[:, None].clamp(min=1e-300)  # 0 / 0 where no liked picture is possible

    def distance(picture: Tensor) -> Tensor:
        """|y_i - v|^2 for v = (x - picture) / t: (B, N)."""
        return torch.cdist(picture, world.points).square() / t**2

    delta = world.delta(x, t).square().sum(1)
    from_old = distance(x - t * v_old)
    found = [
        ((p * r * distance(mean_plus)).sum(1)).mean() / alpha.mean(),
        ((p * (r - 0.5).square() * from_old).sum(1) - delta).mean(),
        ((p * (r - alpha[:, None]).square() * from_old).sum(1) - delta).mean(),
        (p * (r - alpha[:, None]).square()).sum(1).mean(),
    ]
    return torch.stack(found).clamp(min=0)


def saved(world: Mixture, shift: float, levels: int, count: int) -> list[float]:
    u = (torch.arange(levels) + 0.5) / levels
    t = (shift * u / (1 + (shift - 1) * u)).tolist()
    s2 = torch.stack([variances(world, level, count) for level in t])
    return (1 - s2.sqrt().mean(0).square() / s2.mean(0)).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, default=24, help="noise levels (default: 24)")
    parser.add_argument("--samples", type=int, default=1000, help="noisy states at each (default: 1000)")
    args = parser.parse_args()
    rows = []
    for name, world in WORLDS.items():
        for shift in SHIFTS:
            shares = saved(world, shift, args.levels, args.samples)
            rows.append([name, f"{shift:g}", *(f"{100 * share:.0f} %" for share in shares)])
    print(markdown(["mixture", "noise_shift", "positive", "policy, half", "policy, alpha", "head"], rows))


if __name__ == "__main__":
    main()
