"""Early choice inside ComfyUI's sampling: a few steps of several noises, then the sampler's own run from the best.

It wraps one run of a sampler, inside the guides that were on the MODEL before it, so every sampler, guider and loader
of latents works with it. The noise that the sampler was given is the first candidate.
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


class Choice:
    """Candidates for the noise of each run of a sampler.

    Args:
        guides: the adapters on the MODEL.
        candidates: noises per picture, at least 1; 1 leaves every run as it is.
        after: the step after which they are compared, counted from 1.
        host: ComfyUI, or a stand-in for tests.
        node_id: under which node to show the live text.

    Raises:
        GuidanceError: no adapter at work on the MODEL has an alpha head.
    """

    def __init__(
        self, guides: Sequence[Guide], candidates: int, after: int, host: Host, node_id: str | None = None
    ) -> None:
        if not guides:
            raise GuidanceError(
                "there is no reward adapter on this model. Connect the model that comes out of Reward Guidance."
            )
        by_name = {f"{guide.reward.config.name} ({i})": guide for i, guide in enumerate(guides, start=1)}
        with_head = [name for name, guide in by_name.items() if guide.tap is not None]
        asked = judges({name: guide.plan.tilt for name, guide in by_name.items()}, with_head)
        self.guides = [by_name[name] for name in asked]
        self.candidates, self.after, self.host, self.node_id = candidates, after, host, node_id

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
        likings = []
        for tried in noises:
            with ExitStack() as stack:
                runs = [stack.enter_context(guide.draft(guider, self.after)) for guide in self.guides]
                executor(guider, sigmas[: self.after + 1], extra_args, None, tried.clone(), *args, **kwargs)
                alphas = torch.stack([run.stats().alphas[0, -1] for run in runs])
            if not bool(alphas.isfinite().all()):
                raise GuidanceError(
                    f"alpha was not read in step {self.after}, after which the noises are compared. Let guidance begin "
                    "at the first step (start_percent 0)."
                )
            likings.append(liking(alphas, [guide.plan.tilt for guide in self.guides]))
        kept = best(torch.stack(likings)).tolist()
        seeds = [seed, *others]
        names = ", ".join(f"{c + 1} (seed {seeds[c]})" for c in kept[:SHOWN]) + (", ..." if len(kept) > SHOWN else "")
        self.host.say(self.node_id, f"of {self.candidates} noises kept: {names}")
        return torch.stack([noises[c, i] for i, c in enumerate(kept)])
