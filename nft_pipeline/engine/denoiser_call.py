"""What one forward of a denoiser is in its sampling step: which rows belong to which sample, which are guided, and how.

A step is one forward, or two where a pipeline runs the unconditional branch of classifier-free guidance in a call of
its own, or more where a family makes auxiliary ones. The engine (`nft_pipeline.engine.engine`) asks here and then acts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..dial.tilts import is_off
from ..errors import FamilyError, GuidanceError
from ..families.family import Family
from ..families.forward_call import Inputs, same_state
from ..modes import MODES
from ..settings import GuidanceSettings
from .caching import own_kv_cache
from .terms import Term


@dataclass
class DenoiserCall:
    """One forward of the denoiser, between its two hooks.

    Args:
        inputs: the call's arguments by name.
        rows: the number of rows of the batch.
        samples: the conditional rows, one per sample.
        guided: the rows that are pushed; empty for an unconditional call that is not guided.
        repeats: how many guided rows belong to one sample.
        noise_level: t in [0, 1], shape (samples,).
        factor: the factor of the tilts at t, shape (samples,), from the interval and the schedule.
        auxiliary: whether it follows a main call of the same step and takes its scales over.
        terms: the indices of the terms whose tilt is not 0.
        way: a module of `nft_pipeline.engine.modes`: "off", "on" (known to be v_lora itself), or a mode.
        branch: of a cache, that the forward itself runs in; None for the pipeline's own, as v_old does.
        forward_rows: the rows of the forward itself, where a mode has added some; 0 where it has not.
    """

    inputs: Inputs
    rows: int
    samples: slice
    guided: slice
    repeats: int
    noise_level: Tensor
    factor: Tensor
    auxiliary: bool
    terms: list[int]
    way: str = "off"
    branch: str | None = None
    forward_rows: int = 0


class CallReader:
    """Reads the forwards of one pipeline call, in the order they come. Arguments as `engine.NFTEngine`."""

    def __init__(
        self,
        family: Family,
        terms: Sequence[Term],
        settings: GuidanceSettings,
        scheduler: Any,
        doubled: Callable[[Inputs], bool | None],
        unconditional: Callable[[], bool] | None,
        watch: bool = False,
    ) -> None:
        self._family, self._terms, self._settings, self._scheduler = family, terms, settings, scheduler
        self._doubled, self._unconditional, self._watch = doubled, unconditional, watch
        self._main: tuple[Any, Tensor] | None = None  # x_t and t of the step's main call
        self._cached_way: str | None = None  # of the forwards before, where the pipeline keeps keys and values

    def read(self, inputs: Inputs) -> DenoiserCall:
        """What a forward on `inputs` is.

        Raises:
            FamilyError: the rows of a sample cannot be told from those of classifier-free guidance, or may belong
                together where a mode adds rows.
            GuidanceError: the pipeline keeps keys and values of its own, which further passes would mix up.
        """
        family, settings = self._family, self._settings
        rows = family.rows(inputs)
        noise_level = family.noise_level(inputs, self._scheduler)
        second = self._is_second_of_step(inputs[family.state], noise_level)
        auxiliary = second or family.is_auxiliary(inputs)
        doubled = False if auxiliary else self._doubled(inputs)
        repeats = 2 if doubled and family.batched_cfg else 1
        samples = family.conditional(rows, bool(doubled))
        noise_level = noise_level[samples]
        guided = slice(0, rows)
        if settings.guide == "cond":
            guided, repeats = (slice(0, 0) if second else samples), 1
        factor = settings.multiplier(noise_level)
        terms = [k for k, term in enumerate(self._terms) if not is_off(term.tilt)]
        call = DenoiserCall(inputs, rows, samples, guided, repeats, noise_level, factor, auxiliary, terms)
        call.way = self._way(call)
        # Alpha, and a tilt for each picture, belong to a sample's rows.
        by_sample = any(self._terms[k].needs_alpha or isinstance(self._terms[k].tilt, tuple) for k in terms)
        if self._watch or (call.way != "off" and (settings.guide == "cond" or by_sample)):
            # A call of its own is not the conditional one.
            family.check_rows_are_known(rows, False if second else doubled)
        if doubled is None and call.way in MODES and MODES[call.way].adds_rows:
            raise FamilyError(
                f"the pipeline gave {family.denoiser} a batch of {rows} rows, which are not one or two for each sample "
                "that the call asks for. So they may belong together, as the frames of a video do, and no others can "
                'stand beside them. Use nft_mode="two_pass".'
            )
        self._check_kv_cache(call)
        return call

    def _check_kv_cache(self, call: DenoiserCall) -> None:
        """Refuse the pipeline's own cache of keys and values, unless all steps are one kind of pass."""
        name = own_kv_cache(call.inputs)
        if name is None:
            return
        one_way = not call.terms or (call.way == "on" and self._everywhere)
        if not one_way or self._cached_way not in (None, call.way):
            raise GuidanceError(
                f"the pipeline keeps keys and values in a cache of its own ({name}), and one pass of guidance would "
                "read those of another. Switch it off (use_kv_cache=False, where the pipeline takes that) or use the "
                "family's plain pipeline. nft_strength=0 and a policy adapter at strength 1 are one pass and right."
            )
        self._cached_way = call.way

    @property
    def _everywhere(self) -> bool:
        """Whether every noise level is guided alike."""
        return self._settings.interval == (0.0, 1.0) and self._settings.schedule is None

    def _is_second_of_step(self, state: Any, noise_level: Tensor) -> bool:
        """Whether this is the unconditional call of a pipeline that makes two: the one at the very x_t and t of the
        main one. Any other call is remembered as a step's main one."""
        if self._unconditional is not None:
            return self._unconditional()
        if not self._family.batched_cfg and self._main is not None:
            x_t, t = self._main
            if torch.equal(t, noise_level) and same_state(x_t, state):
                return True
        self._main = (state, noise_level)
        return False

    def _way(self, call: DenoiserCall) -> str:
        """How this forward is to be guided, as far as it can be known before it."""
        settings = self._settings
        if call.guided.start == call.guided.stop or not call.terms or not (self._everywhere or bool(call.factor.any())):
            return "off"
        term = self._terms[call.terms[0]]
        known = len(call.terms) == 1 and not term.needs_alpha and settings.cap is None
        known = known and call.guided == slice(0, call.rows)
        if known and bool((term.scale(None, call.factor, call.noise_level, settings) == 1).all()):
            return "on"
        return settings.mode
