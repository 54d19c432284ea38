"""Reward guidance as torch hooks on a denoiser: more forwards with LoRAs on, combined with the base's output.

    v = v_old + s (v_lora - v_old)

Around each forward of the denoiser the engine

1. switches the nft LoRA off and leaves every other LoRA alone, so that the forward gives v_old;
2. reads, on the way, the image tokens the alpha head was trained on;
3. finds s per sample: `law_scale(alpha, tilt, law)` for a positive adapter, `policy_scale` for a policy one,
   and stops here where s is 0;
4. switches the LoRA on, runs the module's forward once more on the same inputs, combines in fp32, switches back.

With several adapters step 4 is done for each and the pushes are added. That is the mode "two_pass"; the other modes
spend the forwards otherwise, and each is a module of `nft_pipeline.engine.modes`. A policy adapter at strength 1 is one
forward in any mode: the LoRA on.

Under classifier-free guidance the batch has unconditional and conditional rows, or the two come in calls one after the
other, the conditional first; a family says which (`nft_pipeline.families.family`). With guide="both" both are guided,
with one s per sample, found on the conditional rows: then guidance and classifier-free guidance commute, and alpha is
not amplified by the guidance scale.

Hooks are the mechanism because they survive CPU offloading, which replaces `module.forward`, and because the module
keeps its class and config. torch.compile must not trace them: they branch on numbers, which would break its graph. So
on a compiled denoiser they are kept out of the graph, and further forwards go through the compiled one again.

Source of the maths: `nft_pipeline.guidance`; DiffusionNFT, arXiv:2509.16117.
"""

from __future__ import annotations

import importlib
import threading
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, cast

import torch
from torch import nn

from ..errors import GuidanceError
from ..families.forward_call import Inputs, bind_inputs
from ..families.ranks import token_gatherer
from ..families.registry import family_of, unwrap_compiled
from ..modes import MODES
from ..settings import GuidanceSettings
from .denoiser_call import CallReader, DenoiserCall
from .passes import Passes
from .scales import ScaleFinder
from .stats import NFTStats
from .terms import Term, find_tap
from .trace import Trace
from .work import Work

# Denoisers that an engine is on at the moment, of all threads.
_GUIDED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_GUIDED_LOCK = threading.Lock()


class Way(Protocol):
    """A module of `nft_pipeline.engine.modes`: how a step's forwards are spent."""

    def before(self, work: Work, call: DenoiserCall) -> Any:
        """Before the denoiser's forward; gives other arguments (args, kwargs) for it, or None."""

    def after(self, work: Work, call: DenoiserCall, output: Any) -> Any:
        """After it; gives another output, or None to leave the module's own, bit for bit."""


def _way(name: str) -> Way:
    return cast(Way, importlib.import_module(f".modes.{name}", __package__))


class NFTEngine:
    """Guides one denoiser while installed; a context manager.

    Args:
        denoiser: a module of a family (`nft_pipeline.families.registry`), with the adapters' LoRAs injected; compiled
            or not.
        terms: the adapters at work, at least one. Their tilts may be changed between forwards.
        settings: law, interval, schedule, guided rows, cap and mode.
        scheduler: the pipeline's scheduler, which gives the noise level of a timestep for families that need it.
        doubled: says of a forward's inputs whether classifier-free guidance has added rows to them, None where the
            rows are of another kind (`nft_pipeline.families.batch.batch_reader`).
        unconditional: returns, during a forward, whether it is the unconditional one of its step; None to infer it from
            what the family's pipelines do.
        trace: to be shared by the engines of one call; a new one by default.

    Raises:
        FamilyError: the denoiser cannot be guided.
        AdapterError: a LoRA is gone, incomplete or fused.
        GuidanceError: a head's tap is missing, a cache is on that would mix passes, or (on install) the denoiser is
            already guided.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        terms: Sequence[Term],
        settings: GuidanceSettings,
        *,
        scheduler: Any = None,
        doubled: Callable[[Inputs], bool | None] = lambda inputs: False,
        unconditional: Callable[[], bool] | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.terms, self.settings, self.trace = list(terms), settings, trace or Trace()
        self._family = family_of(unwrap_compiled(denoiser))
        self._passes = Passes(denoiser, self._family, self.terms)
        self.denoiser = self._passes.denoiser
        scales = ScaleFinder(self._family, self.terms, settings, self.trace)
        self._work = Work(self._family, self.terms, settings, scheduler, self._passes, scales, self.trace)
        watch = self.trace.watch
        self._reader = CallReader(self._family, self.terms, settings, scheduler, doubled, unconditional, watch)
        self._ways = {name: _way(name) for name in ("off", "on", settings.mode)}
        self._taps = [find_tap(self.denoiser, term.adapter) for term in self.terms]
        self._hooks: list[Any] = []
        self._installed = False
        self._call: DenoiserCall | None = None

    def install(self) -> None:
        """Add the hooks. Raises GuidanceError if another engine is on the denoiser: the push would be applied twice."""
        with _GUIDED_LOCK:
            if self.denoiser in _GUIDED:
                raise GuidanceError(
                    "this denoiser is being guided by another call that has not ended, so the push would be applied "
                    "twice. Run the calls one after the other, or load the model a second time."
                )
            _GUIDED.add(self.denoiser)
        self._installed = True
        try:
            gather = token_gatherer(self.denoiser)
            pairs = zip(self.terms, self._taps, strict=True)
            taps = [term.listen(tap, gather) for term, tap in pairs if tap is not None]
            if MODES[self.settings.mode].scales_rows:
                self._passes.hook_rows()
            before, after = self._before, self._after
            if self._passes.compiled:
                before, after = torch.compiler.disable(before), torch.compiler.disable(after)
            self._hooks = [
                self.denoiser.register_forward_pre_hook(before, with_kwargs=True),
                self.denoiser.register_forward_hook(after, with_kwargs=True, always_call=True),
                *taps,
            ]
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take the hooks off and put every switch back, also after a KeyboardInterrupt inside a forward."""
        for hook in self._hooks:
            hook.remove()
        if self._installed:
            _GUIDED.discard(self.denoiser)
        self._installed = False
        self._hooks = []
        self._end_call()
        self._passes.remove()

    def __enter__(self) -> NFTEngine:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def stats(self) -> NFTStats:
        """What has been done since the engine was made."""
        return self.trace.recorder.stats()

    # The two hooks on the denoiser.

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        # A hook before this one may have taken it off; torch then passes no kwargs.
        if self._passes.within or not self._hooks or kwargs is None:
            return None
        self._passes.base()
        for term in self.terms:
            term.forget()
        call = self._call = self._reader.read(bind_inputs(module, args, kwargs))
        return self._ways[call.way].before(self._work, call)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self._passes.within:
            return None
        try:
            if output is None or self._call is None:  # the base pass raised; only the switches are left to put back
                return None
            return self._ways[self._call.way].after(self._work, self._call, output)
        finally:
            self._end_call()

    def _end_call(self) -> None:
        self._passes.end(self._call)
        self._call = None
