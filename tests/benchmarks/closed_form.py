"""How far can the guided ODE be trusted? Both laws in a world where the right answer is a finite sum.

    python -m tests.benchmarks.closed_form            # about a minute of one core: figure, and table on stdout

For each tilt: the exact mean reward of the exponential tilt p_old exp(tilt r) and of the odds law p_old (1 + rho r),
beside the mean reward of samples that followed the guided ODE (Heun) with exact v_old, v_plus and alpha, and of samples
that also took two Langevin steps a level along the nft law's score. What is left is the law's own error.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.mixture import Mixture, noise_levels, ring, solve_ode
from nft_pipeline.guidance import combine, law_scale

ROOT = Path(__file__).resolve().parents[2]
TILTS = (-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
METHODS = ("nft", "nft+langevin", "odds")
BINARY_TILTS = (1.0, 2.0, 4.0)
LIKED = {"1 of 24, base rate 0.02": (0.02, 1), "8 of 24, base rate 0.3": (0.3, 8)}


@dataclass(frozen=True)
class Result:
    """One method at one tilt: mean reward (mean and half range over seeds), total variation from its own exact law."""

    mean: float
    spread: float
    exact: float
    distance: float


def velocity(world: Mixture, law: str, tilt: float, x: Tensor, t: float) -> Tensor:
    v_old, v_plus, alpha = world.moments(x, t)
    return combine(v_old, v_plus, law_scale(alpha, tilt, law))


def corrected(world: Mixture, tilt: float, x: Tensor, levels: list[float], generator: torch.Generator) -> Tensor:
    """Heun along the nft law, and two Langevin steps x += h score + sqrt(2 h) z at each level, h = 0.1 t^2."""
    for t, after in itertools.pairwise(levels):
        x = solve_ode(lambda state, level: velocity(world, "nft", tilt, state, level), x, [t, after])
        for _ in range(2):
            v = velocity(world, "nft", tilt, x, after)
            score = -(x + (1 - after) * v) / after
            h = 0.1 * after**2
            x = x + h * score + (2 * h) ** 0.5 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x


def measure(world: Mixture, method: str, tilt: float, count: int, steps: int, seeds: int) -> Result:
    levels, law = noise_levels(steps), method.split("+")[0]
    exact = world.odds(tilt) if law == "odds" else world.exponential(tilt)
    shares = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        landed = []
        for x in torch.randn(count, 2, generator=generator, dtype=torch.float64).split(1000):  # fits a cache
            if method == "nft+langevin":
                x = corrected(world, tilt, x, levels, generator)
            else:
                x = solve_ode(lambda state, t: velocity(world, law, tilt, state, t), x, levels)
            landed.append(world.landed(x, levels[-1]) * len(x) / count)
        shares.append(torch.stack(landed).sum(0))
    rewards = [float(share @ world.rewards) for share in shares]
    pooled = torch.stack(shares).mean(0)
    return Result(
        mean=sum(rewards) / seeds,
        spread=(max(rewards) - min(rewards)) / 2,
        exact=exact.mean_reward(),
        distance=float((pooled - exact.prior).abs().sum() / 2),
    )


def sampling_floor(world: Mixture, count: int) -> float:
    """Expected total variation of `count` independent exact draws: what no method can be seen to beat."""
    return float(0.5 * (2 * world.prior * (1 - world.prior) / (torch.pi * count)).sqrt().sum())


def table(results: dict[tuple[str, float], Result]) -> str:
    rows = [
        "| tilt | exponential tilt, exact | `nft` ODE | `nft` ODE + 2 Langevin | odds law, exact | `odds` ODE |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for tilt in TILTS:
        nft, langevin, odds = (results[method, tilt] for method in METHODS)
        cells = [f"{r.mean:.3f} ± {r.spread:.3f} ({r.distance:.3f})" for r in (nft, langevin, odds)]
        rows.append(f"| {tilt:g} | {nft.exact:.3f} | {cells[0]} | {cells[1]} | {odds.exact:.3f} | {cells[2]} |")
    return "\n".join(rows)


def with_likes(world: Mixture, rate: float, liked: int) -> Mixture:
    """The same points, of which every so many is liked, with a reward of 0 or 1 and this base rate."""
    rewards = torch.zeros_like(world.rewards)
    rewards[:: len(rewards) // liked] = 1.0
    prior = torch.where(rewards == 1, rate / rewards.sum(), (1 - rate) / (1 - rewards).sum())
    return replace(world, rewards=rewards, prior=prior)


def binary_table(count: int, steps: int, seeds: int) -> str:
    """Both laws where the reward is 0 or 1 and both aim at the exponential tilt."""
    rows = ["| liked points | tilt | promised | `nft` ODE | `odds` ODE |", "|---|---:|---:|---:|---:|"]
    for words, (rate, liked) in LIKED.items():
        world = with_likes(ring(), rate, liked)
        for tilt in BINARY_TILTS:
            nft, odds = (measure(world, law, tilt, count, steps, seeds) for law in ("nft", "odds"))
            cells = [f"{result.mean:.3f} ± {result.spread:.3f}" for result in (nft, odds)]
            rows.append(f"| {words} | {tilt:g} | {odds.exact:.3f} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)


def draw(world: Mixture, results: dict[tuple[str, float], Result], floor: float, path: Path) -> None:
    """The figure. It brings its own paper-coloured ground, so that it reads alike on light and dark pages."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ink, paper = "#222222", "#fbfaf7"
    look = {  # Okabe-Ito colours, and a marker each, so that colour is never the only sign
        "nft": ("#d55e00", "o", "nft law, ODE"),
        "nft+langevin": ("#0072b2", "s", "nft law, ODE + 2 Langevin steps"),
        "odds": ("#007a5a", "D", "odds law, ODE"),
    }
    with plt.rc_context({"font.size": 11, "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": "#888888",
                         "xtick.color": ink, "ytick.color": ink, "axes.spines.top": False,
                         "axes.spines.right": False}):  # fmt: skip
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), facecolor=paper, layout="constrained")
        fine = torch.linspace(TILTS[0], TILTS[-1], 200).tolist()
        left.plot(
            fine, [world.exponential(x).mean_reward() for x in fine], color=ink, lw=1.6, label="exponential tilt, exact"
        )
        left.plot(
            fine, [world.odds(x).mean_reward() for x in fine], color=ink, lw=1.6, ls="--", label="odds law, exact"
        )
        for method, (colour, marker, label) in look.items():
            mine = [results[method, tilt] for tilt in TILTS]
            left.plot(TILTS, [r.mean for r in mine], marker, color=colour, ms=7, mec=paper, mew=0.8, label=label)
            right.plot(
                TILTS,
                [r.distance for r in mine],
                "-",
                marker=marker,
                color=colour,
                ms=7,
                mec=paper,
                mew=0.8,
                label=label,
            )
        right.axhline(floor, color="#777777", lw=1.2, ls=":", label="as many exact draws")
        left.set(xlabel="tilt  λ = 2/β", ylabel="mean reward of the samples", title="Mean reward")
        right.set(
            xlabel="tilt  λ = 2/β",
            ylabel="total variation",
            title="Distance from the law each one aims at",
            ylim=(0, None),
        )
        left.legend(frameon=False, loc="lower right")
        right.legend(frameon=False, loc="upper left")
        for axis in (left, right):
            axis.set_facecolor(paper)
            axis.grid(color="#dddddd", lw=0.7)
            axis.set_axisbelow(True)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, facecolor=paper)
        plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.closed_form",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=7_000, help="per seed, method and tilt (1000: a quick look)")
    parser.add_argument(
        "--seeds", type=int, default=3, help="independent repeats; their half range is the spread printed"
    )
    parser.add_argument("--steps", type=int, default=60, help="Heun steps; raise to see that the errors stay (they do)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs/pictures/closed_form_laws.png", help="where the figure goes"
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    world, results = ring(), {}
    for tilt in TILTS:
        for method in METHODS:
            print(f"\rtilt {tilt:g}, {method:12s}", end="", file=sys.stderr, flush=True)
            results[method, tilt] = measure(world, method, tilt, options.samples, options.steps, options.seeds)
    print("\r" + " " * 30 + "\r", end="", file=sys.stderr)
    floor = sampling_floor(world, options.samples * options.seeds)
    draw(world, results, floor, options.out)
    print(table(results))
    print(
        f"\nMean reward ± half range over {options.seeds} seeds of {options.samples} samples, {options.steps} Heun "
        f"steps; in brackets the total variation from the exact law ({floor:.3f} for as many exact draws). "
        f"Untilted E[r] = {world.mean_reward():.3f}. CPU ({platform.machine()}), one thread, float64, "
        f"torch {torch.__version__.split('+')[0]}."
    )
    print("\nRewards of 0 and 1, where both laws aim at the same rate:\n")
    print(binary_table(options.samples, options.steps, options.seeds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
