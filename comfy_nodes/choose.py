"""Early choice inside ComfyUI's sampling: a few steps of several noises, then the sampler's own run from the best.

It wraps one run of a sampler, inside the guides that were on the MODEL before it, so every sampler, guider and loader
of latents works with it. The noise that the sampler was given is the first candidate.

    each picture      every picture of the batch keeps the best of its own candidates
    the whole batch   the batch keeps the best of all candidates of all its pictures (a scout among seeds)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Generator, Tensor

from nft_pipeline.errors import GuidanceError
from nft_pipeline.search.choice import best, draw_seeds, judges, liking

from .guide import Guide, Host
from .words.errors import speaking_as_a_node

SHOWN = 4  # pictures whose candidate is named in the live text
EACH, WHOLE = AMONG = ("each picture", "the whole batch")


class Choice:
    """Candidates for the noise of each run of a sampler.

    Args:
        guides: the adapters on the MODEL.
        candidates: noises per picture, at least 1; 1 leaves every run as it is.
        after: the step after which they are compared, counted from 1.
        host: ComfyUI, or a stand-in for tests.
        node_id: under which node to show the live text.
        among: one of `AMONG`.

    Raises:
        GuidanceError: no adapter at work on the MODEL has an alpha head; or `among` is none of those.
    """

    def __init__(
        self,
        guides: Sequence[Guide],
        candidates: int,
        after: int,
        host: Host,
        node_id: str | None = None,
        among: str = EACH,
    ) -> None:
        if among not in AMONG:
            raise GuidanceError(f"among is {among!r}, expected one of {', '.join(map(repr, AMONG))}")
        if not guides:
            raise GuidanceError(
                "there is no reward adapter on this model. Connect the model that comes out of Reward Guidance."
            )
        by_name = {f"{guide.reward.config.name} ({i})": guide for i, guide in enumerate(guides, start=1)}
        with_head = [name for name, guide in by_name.items() if guide.tap is not None]
        asked = judges({name: guide.plan.tilt for name, guide in by_name.items()}, with_head)
        self.guides = [by_name[name] for name in asked]
        self.candidates, self.after, self.among = candidates, after, among
        self.host, self.node_id = host, node_id

    def __deepcopy__(self, memo: Any) -> Choice:
        return self  # as a Guide: ComfyUI copies options with each clone

    @speaking_as_a_node
    def around_sampling(
        self,
        executor: Any,
        guider: Any,
        sigmas: Tensor,
        extra_args: Any,
        callback: Any,
        noise: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Wraps the sampler: executor(guider, sigmas, extra_args, callback, noise, ...).

        Raises:
            GuidanceError: the run is shorter than a draft, or alpha was not read in its last step.
        """
        # A sampler that adds no noise, as in a second stage, has nothing to choose from.
        if self.candidates > 1 and bool(noise.any()):
            noise = self._choose(executor, guider, sigmas, extra_args, noise, args, kwargs)
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)

    def _choose(
        self, executor: Any, guider: Any, sigmas: Tensor, extra_args: Any, noise: Tensor, args: Any, kwargs: Any
    ) -> Tensor:
        if len(sigmas) <= self.after:
            raise GuidanceError(
                f"the choice is after step {self.after}, and the sampler takes {len(sigmas) - 1} steps. Choose earlier."
            )
        seed = (extra_args or {}).get("seed") or 0
        others = draw_seeds(Generator().manual_seed(seed), self.candidates - 1, 1)[:, 0].tolist()
        fresh = [torch.randn(noise.shape, generator=Generator().manual_seed(other)).to(noise) for other in others]
        noises = torch.stack([noise, *fresh])
        self._check_alike(args)
        likings, forwards = [], 0
        for tried in noises:
            with ExitStack() as stack:
                runs = [stack.enter_context(guide.draft(guider, self.after)) for guide in self.guides]
                executor(guider, sigmas[: self.after + 1], extra_args, None, tried.clone(), *args, **kwargs)
                records = [run.stats() for run in runs]
            alphas = torch.stack([stats.alphas[0, -1] for stats in records])
            if not bool(alphas.isfinite().all()):
                raise GuidanceError(
                    f"alpha was not read in step {self.after}, after which the noises are compared. Let guidance begin "
                    "at the first step (start_percent 0)."
                )
            likings.append(liking(alphas, [guide.plan.tilt for guide in self.guides]))
            forwards += max(int(stats.passes.sum()) for stats in records)
        kept = self._kept(torch.stack(likings))
        self._say(kept, [seed, *others], torch.stack(likings).exp(), forwards)
        return torch.stack([noises[c, i] for c, i in kept])

    def _check_alike(self, args: Any) -> None:
        """A noise may change places within the batch only if all pictures start from the same."""
        start = args[0] if args and isinstance(args[0], Tensor) else None
        if self.among == WHOLE and start is not None and not bool((start == start[:1]).all()):
            raise GuidanceError(
                f"the pictures of this batch start from different latents, so none can take another one's noise. Set "
                f'among to "{EACH}".'
            )

    def _kept(self, likings: Tensor) -> list[tuple[int, int]]:
        """(candidate, picture whose noise it is) for each picture, from likings (candidates, pictures)."""
        pictures = likings.shape[1]
        if self.among == EACH:
            return [(c, i) for i, c in enumerate(best(likings).tolist())]
        places = likings.flatten().argsort(descending=True, stable=True)[:pictures]
        return [divmod(place, pictures) for place in places.tolist()]

    def _say(self, kept: Sequence[tuple[int, int]], seeds: Sequence[int], chances: Tensor, forwards: int) -> None:
        """Which noises were kept, what that cost, and what alpha expects of it."""
        several = chances.shape[1] > 1
        names = ", ".join(
            f"{c + 1} (seed {seeds[c]}" + (f", picture {i + 1})" if self.among == WHOLE and several else ")")
            for c, i in kept[:SHOWN]
        )
        tried = chances.numel() if self.among == WHOLE else len(chances)
        mean_kept = torch.stack([chances[c, i] for c, i in kept]).mean()
        self.host.say(
            self.node_id,
            f"of {tried} noises kept: {names}{', ...' if len(kept) > SHOWN else ''}\n"
            f"alpha expects {mean_kept:.0%} of those kept to be liked, {chances.mean():.0%} of all; looking took "
            f"{forwards} forwards",
        )
