"""How good is alpha? Ranking (AUC) and reliability by noise level, on samples the head has never seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from ..bases.base import Conditions
from ..bases.noising import interpolate
from ..data.pool import Pool

NOISE_LEVELS = (0.2, 0.5, 0.8, 0.9, 0.95)
BINS = 10


@dataclass(frozen=True)
class Calibration:
    """The head at one noise level.

    Args:
        noise_level: t in [0, 1].
        n: number of pairs of sample and noise.
        auc: probability that alpha ranks a liked sample above a disliked one; 0.5 is chance, NaN if there is only one
            kind.
        mean_alpha: mean of alpha; a calibrated head has mean_alpha = mean_r.
        mean_r: mean reward.
        error: expected calibration error, the mean distance of alpha from the observed rate over ten bins of equal
            size, in [0, 1].
        bins: (mean alpha, mean reward) of each bin.
    """

    noise_level: float
    n: int
    auc: float
    mean_alpha: float
    mean_r: float
    error: float
    bins: tuple[tuple[float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as the run's report keeps them."""
        return asdict(self)


def auc(alpha: np.ndarray, liked: np.ndarray) -> float:
    """Area under the ROC curve of alpha against `liked` (bool). Ties count half; NaN if all are of one kind."""
    positives = int(liked.sum())
    negatives = len(liked) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    ranks = rankdata(alpha)
    return float((ranks[liked].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibrate_at(noise_level: float, alpha: np.ndarray, r: np.ndarray) -> Calibration:
    """Ranking and reliability of alpha (n,) against rewards r (n,) at one noise level."""
    order = np.argsort(alpha, kind="stable")
    bins = [(float(alpha[part].mean()), float(r[part].mean())) for part in np.array_split(order, BINS) if len(part)]
    error = float(np.mean([abs(a - b) for a, b in bins]))
    return Calibration(
        noise_level, len(r), auc(alpha, r > 0.5), float(alpha.mean()), float(r.mean()), error, tuple(bins)
    )


ReadAlpha = Callable[[Tensor, Tensor, Conditions], Tensor]


@torch.no_grad()
def calibrate(
    read_alpha: ReadAlpha,
    pool: Pool,
    *,
    noise_levels: Sequence[float] = NOISE_LEVELS,
    draws: int = 2,
    batch: int = 256,
    seed: int = 12345,
) -> list[Calibration]:
    """Measure a head on a held-out pool.

    Args:
        read_alpha: (x_t, t, conditions) -> alpha (B,).
        draws: number of noises per sample; more make the numbers more precise.
    """
    return calibrate_all([(read_alpha, pool)], noise_levels=noise_levels, draws=draws, batch=batch, seed=seed)


@torch.no_grad()
def calibrate_all(
    parts: Sequence[tuple[ReadAlpha, Pool]],
    *,
    noise_levels: Sequence[float] = NOISE_LEVELS,
    draws: int = 2,
    batch: int = 256,
    seed: int = 12345,
) -> list[Calibration]:
    """As `calibrate`, over several heads, each on a pool of its own: the folds of a cross-validation."""
    generator = torch.Generator().manual_seed(seed)
    results = []
    for level in noise_levels:
        alphas, rewards = [], []
        for read_alpha, pool, _ in ((*part, draw) for draw in range(draws) for part in parts):
            for rows in pool.batches(batch):
                x_0 = pool.x_0(rows)
                t = torch.full((len(rows),), level)
                x_t, _ = interpolate(x_0, torch.randn(x_0.shape, generator=generator), t)
                alphas.append(read_alpha(x_t, t, pool.conditions_of(rows)).float().cpu())
                rewards.append(pool.r[rows])
        results.append(calibrate_at(level, torch.cat(alphas).numpy().astype(np.float64), torch.cat(rewards).numpy()))
    return results


def calibration_table(results: Sequence[Calibration]) -> str:
    """A Markdown table."""
    lines = ["| noise level t | AUC | mean alpha | mean reward | calibration error | n |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {c.noise_level:g} | {c.auc:.3f} | {c.mean_alpha:.3f} | {c.mean_r:.3f} | {c.error:.3f} | {c.n} |"
        for c in results
    ]
    return "\n".join(lines)


def plot_reliability(results: Sequence[Calibration], file: Path | IO[bytes], title: str) -> None:
    """Plot reliability by noise level: mean reward over mean alpha in ten bins. A perfect head is on the diagonal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(results), 2.9))
    axes = figure.subplots(1, len(results), sharey=True, squeeze=False)
    for axis, c in zip(axes[0], results, strict=True):
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axis.plot(*zip(*c.bins, strict=True), marker="o", markersize=4, color="#2f6fde")
        axis.set(title=f"t = {c.noise_level:g}, AUC {c.auc:.3f}", xlabel="alpha", xlim=(0, 1), ylim=(0, 1))
        axis.title.set_fontsize(9)
    axes[0][0].set_ylabel("rate of liked samples")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=130, format="png")
