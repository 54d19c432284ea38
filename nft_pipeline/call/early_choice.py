"""Early choice in a guided call: drafts that stop after a few steps, then the call itself from the noises kept.

A noise is a seed: each draft gets a list of generators, one per picture, and the call gets those whose alpha was
highest. So any pipeline that takes a list of generators can do it, whatever its latents look like, and the picture that
is kept is the one the pipeline draws from that seed without a choice. The steps of the draft are computed again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from ..checks import is_whole
from ..dial.tilts import Tilt
from ..engine.stats import StatsRecorder
from ..engine.trace import DraftDone, Trace
from ..errors import GuidanceError
from ..families.batch import prompts_and_images
from ..search.choice import EarlyChoice, best, draw_seeds, liking

Run = Callable[[Mapping[str, Any], Trace], Any]


def steps_of(stock_call: Callable[..., Any], call: Mapping[str, Any]) -> int | None:
    """The steps a call is to take, as far as its arguments say; None where they do not.

    Args:
        stock_call: the stock pipeline's `__call__`.
        call: its arguments by name.
    """
    for name in ("sigmas", "timesteps"):
        if call.get(name) is not None:
            return len(call[name])
    steps = call.get("num_inference_steps", _default(stock_call, "num_inference_steps"))
    return int(steps) if is_whole(steps) else None


def refuse_rows_of_several(tilts: Mapping[str, Tilt]) -> None:
    """Raise GuidanceError for several adapters with a tilt for each picture: each picture would have its own judges."""
    if len(tilts) > 1 and any(isinstance(tilt, tuple) for tilt in tilts.values()):
        raise GuidanceError(
            "nft_candidates with several adapters needs strengths that are the same for all pictures: whose alpha "
            "decides would differ between them. Give one number for each adapter, or one call for each strength."
        )


def run_with_choice(
    pipe: Any,
    run: Run,
    call: Mapping[str, Any],
    choice: EarlyChoice,
    *,
    names: Sequence[str],
    tilts: Mapping[str, Tilt],
    asked: Sequence[str],
) -> Any:
    """What the call draws from the best of its candidates; `pipe.nft_stats` then says which seeds were kept.

    Args:
        pipe: the guided pipeline.
        run: makes the call with engines on: from its arguments by name, and a trace.
        call: the stock call's arguments by name.
        choice: how many candidates, and after which step.
        names: of all adapters, in the order of the record.
        tilts: of all adapters, for all pictures or for each.
        asked: the adapters whose alpha decides.

    Raises:
        GuidanceError: the noises are not the call's to choose, or the call has fewer steps than a draft.
    """
    stock_call = pipe._nft_stock_class.__call__
    generator = call.get("generator")
    seeds = draw_seeds(generator, choice.candidates, _count(stock_call, call))
    first = generator[0] if isinstance(generator, Sequence) else generator
    device = "cpu" if first is None else first.device
    places, wanted = [list(names).index(name) for name in asked], [tilts[name] for name in asked]
    likings, forwards = [], 0
    with _without_bar(pipe):
        for row in seeds:
            trace = Trace(StatsRecorder(names), watch=True, stop_after=choice.after)
            try:
                run({**call, "generator": _generators(row, device)}, trace)
            except DraftDone:
                pipe.maybe_free_model_hooks()  # what a call does at its end, which the draft never reached
            else:
                raise GuidanceError(
                    f"a call of {trace.recorder.steps} steps ended before step {choice.after}, after which "
                    "nft_candidates was to choose. Give a smaller nft_choose_after, or more steps."
                )
            stats = trace.recorder.stats()
            likings.append(liking(stats.alphas[places, -1], wanted))
            forwards += stats.forwards
    kept = seeds.gather(0, best(torch.stack(likings))[None])[0]
    try:
        return run({**call, "generator": _generators(kept, device)}, Trace(StatsRecorder(names)))
    finally:
        if pipe.nft_stats is not None:
            pipe.nft_stats = replace(pipe.nft_stats, draft_forwards=forwards, seeds=kept)


def _count(stock_call: Callable[..., Any], call: Mapping[str, Any]) -> int:
    """How many pictures a call draws.

    Raises:
        GuidanceError: it takes no generator, its noise is given, or its arguments do not say how many.
    """
    if "generator" not in inspect.signature(stock_call).parameters:
        raise GuidanceError("nft_candidates needs a pipeline whose call takes a generator, and this one takes none.")
    if call.get("latents") is not None:
        raise GuidanceError(
            "nft_candidates starts from noises of its own, and latents gives the noise. Leave one of them out; a "
            "generator, or a list of one per picture, makes the candidates the same in every call."
        )
    if isinstance(call.get("generator"), Sequence):
        return len(call["generator"])
    batch = prompts_and_images(stock_call, call)
    if batch is None:
        raise GuidanceError(
            "nft_candidates needs to know how many pictures the call draws, and it has neither prompt nor "
            "prompt_embeds. Give generator=[...], one per picture."
        )
    return batch[0] * batch[1]


def _generators(seeds: Tensor, device: Any) -> list[Generator]:
    return [Generator(device).manual_seed(seed) for seed in seeds.tolist()]


def _default(call: Callable[..., Any], name: str) -> Any:
    parameter = inspect.signature(call).parameters.get(name)
    return None if parameter is None else parameter.default


@contextmanager
def _without_bar(pipe: Any) -> Iterator[None]:
    """Within it the pipeline shows no progress: a bar per draft, each broken off, tells nobody anything."""
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe._progress_bar_config = {**before, "disable": True}
    try:
        yield
    finally:
        pipe._progress_bar_config = before
