"""Who says how far the pictures of a calibration are liked: rewards, or the alpha head where no reward can be run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from nft_pipeline.families.forward_call import as_tokens, first_argument

from ..bases.base import rows_of
from ..bases.noising import interpolate
from ..data.optimality import at_of, of_all, unit
from ..data.pool import score
from ..rewards.contract import RewardError
from ..rewards.find import Scorer
from ..settings.choices import Method, Mix
from .draws import Drawn, Draws
from .liking import BaseScale

MISSING_LIMIT = 0.5  # of the scores; those that are there go on
LOW_NOISE = 0.05  # t at which alpha judges a finished picture


class RewardJudge:
    """Rewards as a judge; the base model's pictures, which have to come first, set the scale.

    Args:
        texts: the prompts by place.
        rewards: by name.
        weights: of each, by name.
        method: how a run turned their scores into r, its `optimality`; "raw" for rewards that give r themselves.
        at: for "threshold", "top" and "exponential".
        mix: how several r become one, as in `nft_pipeline.training.data.optimality`.
    """

    def __init__(
        self,
        texts: Sequence[str],
        rewards: Mapping[str, Scorer],
        weights: Mapping[str, float],
        method: Method = "raw",
        at: float | None = None,
        mix: Mix = "mean",
    ) -> None:
        self._texts, self._rewards, self._weights = texts, rewards, weights
        self._method, self._at, self._mix = method, at_of(method, at), mix
        self._scales: dict[str, BaseScale] = {}
        self._borders: dict[int, float] = {}

    def __call__(self, drawn: Drawn, prompts: Sequence[int]) -> np.ndarray:
        """r of pictures, (n,) in [0, 1]; NaN where a reward has no score.

        Raises:
            RewardError: scores of another number than pictures, or too many of them missing.
        """
        texts = [self._texts[prompt] for prompt in prompts]
        places, scored = np.asarray(prompts), {}
        for name, reward in self._rewards.items():
            scores = score(reward, name, drawn.pictures, texts)
            scored[name] = np.where(np.isfinite(scores), scores, np.nan)
            missing = int(np.isnan(scored[name]).sum())
            if missing > MISSING_LIMIT * len(scores):
                raise RewardError(
                    f"reward {name!r} has no score for {missing} of {len(scores)} held-out pictures, expected at most "
                    f"{MISSING_LIMIT:.0%}. Mend it, or calibrate with another one"
                )
        if not self._scales:
            if self._method != "exponential" and all(_is_binary(scores) for scores in scored.values()):
                self._method = "raw"  # scores of 0 and 1 say themselves what is liked, however a run compares them
            for name, scores in scored.items():
                self._scales[name] = BaseScale(scores, places, self._method, self._at)
        parts = [self._scales[name](scores, places) for name, scores in scored.items()]
        weights = [self._weights.get(name, 1.0) for name in scored]
        mixed = parts if self._mix == "product" else [np.average(parts, axis=0, weights=weights)]
        r = np.prod([self._r(part, place) for place, part in enumerate(mixed)], axis=0)
        return of_all(r, self._method, self._at)

    def _r(self, normalised: np.ndarray, place: int) -> np.ndarray:
        """r of normalised scores; `place` tells several of one call apart."""
        if self._method != "top":
            return unit(normalised, self._method)
        assert self._at is not None
        if place not in self._borders:
            self._borders[place] = float(np.nanquantile(normalised, 1 - self._at))
        return np.where(np.isfinite(normalised), (normalised >= self._borders[place]).astype(float), np.nan)


def _is_binary(scores: np.ndarray) -> bool:
    known = scores[np.isfinite(scores)]
    return bool(np.isin(known, (0.0, 1.0)).all())


class AlphaJudge:
    """alpha at low noise, read with the LoRA off: what the head thinks of a finished picture.

    It knows the pictures that it learned from best, so it is a worse judge than a reward or a person, and a calibration
    says which of them it had.
    """

    def __init__(self, draws: Draws) -> None:
        self._draws = draws

    def __call__(self, drawn: Drawn, prompts: Sequence[int]) -> np.ndarray:
        """alpha of pictures, (n,)."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(drawn.latents.shape, generator=generator)
        return read_noised(self._draws, drawn.latents, torch.tensor(list(prompts)), LOW_NOISE, noise)


@torch.no_grad()
def read_noised(
    draws: Draws, latents: torch.Tensor, prompts: torch.Tensor, level: float, noise: torch.Tensor
) -> np.ndarray:
    """alpha of pictures with noise of one level added, (n,), read from the base model.

    The adapter's LoRA is off, as it always is between two calls of the pipeline.

    Args:
        draws: has the base model and the adapter.
        latents: of the pictures, (n, ...).
        prompts: their places, (n,).
        level: t.
        noise: of the latents' shape.
    """
    base, head = draws.base, draws.head
    seen: list[torch.Tensor] = []
    handle = base.denoiser.get_submodule(head.config.tap).register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(first_argument(args, kwargs)), with_kwargs=True
    )

    def read(part: torch.Tensor) -> np.ndarray:
        seen.clear()
        t = torch.full((len(part),), level)
        conditions = rows_of(draws.conditions, prompts[part])
        base.predict(interpolate(latents[part], noise[part], t)[0], t, conditions)
        tokens = as_tokens(seen[-1])
        text = None if head.config.text_dim is None else base.text(conditions).to(tokens.device)
        return head.to(tokens.device).alpha(tokens, t.to(tokens.device), text).cpu().numpy()

    try:
        parts = base.fits.parts("reading alpha", torch.arange(len(latents)), draws.batch, read)
        alphas = np.concatenate([alpha for _, alpha in parts])
    finally:
        handle.remove()
    draws.forwards += len(latents)
    return alphas.astype(np.float64)
