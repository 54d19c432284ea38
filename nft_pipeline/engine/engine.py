"""Reward guidance as torch hooks on a denoiser: more forwards with LoRAs on, combined with the base's output.

    v = v_old + s (v_lora - v_old)

Around each forward of the denoiser the engine

1. switches the nft LoRA off and leaves every other LoRA alone, so that the forward gives v_old;
2. reads, on the way, the image tokens the alpha head was trained on;
3. finds s, one a sample: `law_scale(alpha, tilt, law)` for a positive adapter, `policy_scale` for a policy one,
   and stops here where s is 0;
4. switches the LoRA on, runs the module's forward once more on the same inputs, combines in fp32, switches back.

With several adapters step 4 is done for each and the pushes are added. The other modes spend the forwards otherwise:
"batched" runs them as one forward of a larger batch in which each row has its own LoRA scale, "single" runs one forward
whose LoRA scale is s itself, from the alpha of the step before. A policy adapter at strength 1 is one forward in any
mode: the LoRA on.

Under classifier-free guidance the batch has unconditional and conditional rows, or the two come in calls one after the
other, the conditional first; a family says which (`nft_pipeline.families.family`). With guide="both" both are guided,
with one s per sample, found on the conditional rows: then guidance and classifier-free guidance commute, and alpha is
not amplified by the guidance scale.

Hooks are the mechanism because they survive CPU offloading, which replaces `module.forward`, and because the module
keeps its class and config. torch.compile must not look into them: they decide by numbers, and would break its graph. So
on a compiled denoiser they are kept out of it, and further forwards go through the compiled one again.

Source of the maths: `nft_pipeline.guidance`; DiffusionNFT, arXiv:2509.16117.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from .. import guidance
from ..errors import GuidanceError
from ..families.forward_call import Inputs, as_rows, bind_inputs, call_arguments, output_tensor, replace_output
from ..families.registry import family_of, unwrap_compiled
from ..settings import GuidanceSettings
from .caching import CacheBranches
from .denoiser_call import CallReader, DenoiserCall
from .injection import LoraSwitch
from .row_scale import RowScale
from .stats import NFTStats, StatsRecorder
from .terms import Term, find_tap

# Denoisers that an engine is on at the moment, of all threads.
_GUIDED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_GUIDED_LOCK = threading.Lock()
_SPLIT = ("unshard", "ds_inflight_param_registry")  # what FSDP and DeepSpeed give a module whose weights they split


@dataclass
class Trace:
    """What lives as long as a call of the pipeline: the record, and the alpha of the step before by adapter name.

    A pipeline with two denoisers, one for high and one for low noise, has one trace and two engines.
    """

    recorder: StatsRecorder = field(default_factory=StatsRecorder)
    alphas: dict[str, Tensor] = field(default_factory=dict)


class NFTEngine:
    """Guides one denoiser while installed; a context manager.

    Args:
        denoiser: a module of a family (`nft_pipeline.families.registry`), with the adapters' LoRAs injected; compiled
            or not.
        terms: the adapters at work, at least one. Their tilts may be changed between forwards.
        settings: law, interval, schedule, guided rows, cap and mode.
        scheduler: the pipeline's; says what noise level a timestep is where the denoiser's family needs to be told.
        doubled: says of a forward's inputs whether classifier-free guidance has added rows to them
            (`families.cfg_switch`).
        unconditional: says, at the time of a forward, whether it is the unconditional one of its step; None to find out
            from what the family's pipelines do.
        trace: to be shared by the engines of one call; a new one by default.

    Raises:
        FamilyError: the denoiser is none that can be guided.
        AdapterError: a LoRA is gone, incomplete or fused.
        GuidanceError: a head's tap is missing, a cache is on that mixes passes up, or (on install) the denoiser is
            being guided already.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        terms: Sequence[Term],
        settings: GuidanceSettings,
        *,
        scheduler: Any = None,
        doubled: Callable[[Inputs], bool] = lambda inputs: False,
        unconditional: Callable[[], bool] | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.denoiser = unwrap_compiled(denoiser)
        self._outermost = denoiser
        self.terms, self.settings = list(terms), settings
        self.trace = trace or Trace()
        self._cache = CacheBranches(self.denoiser)
        self._scheduler = scheduler
        self._family = family_of(self.denoiser)
        self._reader = CallReader(self._family, self.terms, settings, scheduler, doubled, unconditional)
        self._switch = LoraSwitch(self.denoiser, {name: n for term in terms for name, n in term.layers.items()})
        self._taps = [find_tap(self.denoiser, term.adapter) for term in self.terms]
        self._hooks: list[Any] = []
        self._installed = False
        self._within = False  # in a forward of our own, which the two hooks are not for
        self._row_scales: dict[str, RowScale] = {}
        self._call: DenoiserCall | None = None
        self._scales: list[Tensor] | None = None  # of the step's main call, for its auxiliary ones

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
            taps = [term.listen(tap) for term, tap in zip(self.terms, self._taps, strict=True) if tap is not None]
            if self.settings.mode != "two_pass":
                names = [name for term in self.terms for name in term.layers]
                self._row_scales = {name: RowScale(name, self._switch.inner(name)) for name in names}
            before, after = self._before, self._after
            if self._compiled:
                before, after = torch.compiler.disable(before), torch.compiler.disable(after)
            self._hooks = [
                self.denoiser.register_forward_pre_hook(before, with_kwargs=True),
                self.denoiser.register_forward_hook(after, with_kwargs=True, always_call=True),
                *taps,
                *self._row_scales.values(),
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
        self._hooks, self._row_scales = [], {}
        self._end_call()
        self._cache.forget()

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
        if self._within or not self._hooks or kwargs is None:
            return None
        self._only()
        for term in self.terms:
            term.forget()
        call = self._call = self._reader.read(bind_inputs(module, args, kwargs))
        if call.way == "on":
            term = self.terms[call.terms[0]]
            self._only(term, call=call)
            self._cache.enter(term.lora_name)
        elif call.way == "single":
            self._scales = self._single_scales(call)
            self._scale_rows(call, self._scales)
            self._cache.enter(self._branch(call))
        elif call.way == "batched":
            self._indicate_rows(call)
            self._cache.enter(self._branch(call))
            rows = range(call.rows)
            index = [*rows, *list(rows[call.guided]) * len(call.terms)]
            return (), call_arguments(self._family.take_rows(call.inputs, index))
        return None

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self._within:
            return None
        try:
            call = self._call
            if output is None or call is None:  # the base pass raised; only the switches are left to put back
                return None
            if call.way in ("two_pass", "batched"):
                return self._guide(call, output)
            scales = self._scales if call.way == "single" else None
            alphas = self._keep_alphas(call, scales) if self.settings.mode == "single" else None
            if call.way == "single":
                self._record(call, alphas, scales or [], math.nan, passes=1)
            else:  # one pass, of v_old or of v_lora
                known = [torch.full_like(call.noise_level, float(call.way == "on"))] * len(call.terms)
                scales = self._of_all_terms(call, known)
                self._record(call, alphas, scales, math.nan if call.way == "on" else 0.0, passes=1)
            return None  # the module's own output, bit for bit
        finally:
            self._end_call()

    # Two passes, one after the other or in one batch.

    def _guide(self, call: DenoiserCall, output: Any) -> Any:
        all_rows = output_tensor(output)
        v_old = all_rows[: call.rows]
        alphas, scales = self._find_scales(call)
        terms = [k for k in call.terms if bool(scales[k].any())]
        if call.way == "batched":
            parts = dict(zip(call.terms, all_rows[call.rows :].chunk(len(call.terms)), strict=True))
            v_loras = [parts[k] for k in terms]
        elif not terms:
            self._record(call, alphas, scales, 0.0, passes=1)
            return None
        else:
            v_loras = [self._lora_pass(call, self.terms[k]) for k in terms]
        push = self._push(call, v_old, v_loras, [scales[k] for k in terms])
        if self.settings.cap is not None and not call.auxiliary:
            shorten = (self.settings.cap / push.clamp(min=1e-12)).clamp(max=1.0)
            scales, push = [scale * shorten for scale in scales], push * shorten
        if not call.auxiliary:
            self._scales = scales
        self._record(call, alphas, scales, push, passes=1 if call.way == "batched" else 1 + len(terms))
        repeated = [scales[k].repeat(call.repeats) for k in terms]
        guided = guidance.combine_all(v_old[call.guided], v_loras, repeated)
        if call.guided != slice(0, call.rows):
            alone, guided = guided, v_old.clone()
            guided[call.guided] = alone
        return replace_output(output, guided)

    def _lora_pass(self, call: DenoiserCall, term: Term) -> Tensor:
        inputs = call.inputs
        if call.guided != slice(0, call.rows):
            inputs = self._family.take_rows(inputs, range(call.rows)[call.guided])
        self._only(term, call=call)
        self._cache.enter(term.lora_name)
        try:
            return output_tensor(self._forward(inputs))
        finally:
            self._cache.leave()

    @property
    def _compiled(self) -> bool:
        """Whether the denoiser as a whole is: torch.compile(denoiser) or denoiser.compile(). Compiled blocks inside it
        need nothing of what follows."""
        return self._outermost is not self.denoiser or self.denoiser._compiled_call_impl is not None

    def _forward(self, inputs: Inputs) -> Any:
        """A forward of the denoiser that is not a call of the pipeline's, compiled if those are.

        Split weights are gathered by hooks, which only a call has.
        """
        if not (self._compiled or any(hasattr(self.denoiser, mark) for mark in _SPLIT)):
            return self.denoiser.forward(**call_arguments(inputs))
        self._within = True
        try:
            return self._outermost(**call_arguments(inputs))
        finally:
            self._within = False

    def _find_scales(self, call: DenoiserCall) -> tuple[list[Tensor | None] | None, list[Tensor]]:
        """alpha (None where nobody asked) and s of each term, both of shape (samples,)."""
        if call.auxiliary and self._scales is not None:
            return None, self._scales
        alphas = {k: self._alpha(call, self.terms[k]) for k in call.terms if self.terms[k].needs_alpha}
        found = [self.terms[k].scale(alphas.get(k), call.factor, self.settings) for k in call.terms]
        return [alphas.get(k) for k in range(len(self.terms))], self._of_all_terms(call, found)

    def _of_all_terms(self, call: DenoiserCall, scales: list[Tensor]) -> list[Tensor]:
        """Scales of the terms at work, with zeros for the others."""
        found = dict(zip(call.terms, scales, strict=True))
        return [found.get(k, torch.zeros_like(call.noise_level)) for k in range(len(self.terms))]

    def _alpha(self, call: DenoiserCall, term: Term, lora_scale: Tensor | None = None) -> Tensor:
        text = self._family.read_text(call.inputs)
        if text is not None:  # one prompt for all samples may come as one row, which the denoiser broadcasts
            text = text.expand(call.rows, -1, -1)[call.samples] if text.shape[0] == 1 else text[call.samples]
        return term.alpha(call.noise_level, call.samples, text, lora_scale)

    def _push(self, call: DenoiserCall, v_old: Tensor, v_loras: list[Tensor], scales: list[Tensor]) -> Tensor:
        """How far the samples' predicted pictures move, shape (samples,)."""
        if not v_loras:
            return torch.zeros_like(call.noise_level)
        family = self._family
        old, x_t = v_old[call.samples], as_rows(call.inputs[family.state])[call.samples]
        among_guided = slice(None) if call.guided == call.samples else call.samples
        push = guidance.total_push(old, [v_lora[among_guided] for v_lora in v_loras], scales)
        # Models that see more than x_t (a mask, a picture to edit) or predict more than its velocity (a variance)
        # have it behind: the common part is x_t's own.
        common = tuple(slice(0, min(sizes)) for sizes in zip(push.shape, x_t.shape, strict=True))
        prediction = family.output(self._scheduler)
        return guidance.relative_push(push[common], old[common], x_t[common], call.noise_level, prediction, family.sign)

    # Batched and single: scales of rows.

    def _branch(self, call: DenoiserCall) -> str:
        return "+".join([call.way, *(self.terms[k].lora_name for k in call.terms)])

    def _indicate_rows(self, call: DenoiserCall) -> None:
        """The batch is [all rows, the guided rows with the first LoRA on, with the second, ...]."""
        size, on = call.guided.stop - call.guided.start, {}
        for i, k in enumerate(call.terms):
            rows = torch.zeros(call.rows + len(call.terms) * size, device=call.noise_level.device)
            rows[call.rows + i * size : call.rows + (i + 1) * size] = 1.0
            on[k] = rows
        self._scale_loras(call, on)

    def _scale_rows(self, call: DenoiserCall, scales: list[Tensor]) -> None:
        """Each LoRA at s on the guided rows, off on the others."""
        on = {}
        for k in call.terms:
            on[k] = scales[k].new_zeros(call.rows)
            on[k][call.guided] = scales[k].repeat(call.repeats)
        self._scale_loras(call, on)

    def _scale_loras(self, call: DenoiserCall, on: dict[int, Tensor]) -> None:
        """Each term's LoRA at its own scale on each row, and v_old's at what is left of 1."""
        names = {self.terms[k].lora_name: rows for k, rows in on.items()}
        for k, rows in on.items():
            old_name = self.terms[k].old_name
            if old_name is not None:
                names[old_name] = 1.0 - rows
        self._switch.only(*names, call_scale=self._call_scale(call.inputs))
        for name, rows in names.items():
            self._row_scales[name].set(rows)

    def _single_scales(self, call: DenoiserCall) -> list[Tensor]:
        if call.auxiliary and self._scales is not None:
            return self._scales
        scales = []
        for term in (self.terms[k] for k in call.terms):
            alpha = None
            if term.needs_alpha:
                alpha = self.trace.alphas.get(term.name)
                if alpha is None or alpha.shape != call.noise_level.shape:
                    alpha = torch.full_like(call.noise_level, term.adapter.config.base_rate or 0.0)
            scales.append(term.scale(alpha, call.factor, self.settings))
        return self._of_all_terms(call, scales)

    def _keep_alphas(self, call: DenoiserCall, scales: list[Tensor] | None) -> list[Tensor | None]:
        """What the heads say now, with the LoRAs at these scales or off, for the next step."""
        alphas: list[Tensor | None] = [None] * len(self.terms)
        for k in call.terms:
            if self.terms[k].needs_alpha and not call.auxiliary:
                on = None if scales is None else scales[k]
                alphas[k] = self.trace.alphas[self.terms[k].name] = self._alpha(call, self.terms[k], on)
        return alphas

    # Switches and records.

    def _only(self, term: Term | None = None, *, call: DenoiserCall | None = None) -> None:
        """The base pass, or one term's pass."""
        others = [other.old_name for other in self.terms if other is not term and other.old_name is not None]
        names = [*others, *([] if term is None else [term.lora_name])]
        self._switch.only(*names, call_scale=1.0 if call is None else self._call_scale(call.inputs))

    def _call_scale(self, inputs: Inputs) -> float:
        name = self._family.lora_scale
        scale = (inputs.get(name) or {}).get("scale", 1.0)
        if scale == 0:
            raise GuidanceError(
                f'{name}={{"scale": 0}} switches every LoRA off, the nft one too. To run without your own LoRAs call '
                "disable_lora() on the pipeline; to run without guidance set nft_strength=0."
            )
        return float(scale)

    def _record(
        self,
        call: DenoiserCall,
        alphas: list[Tensor | None] | None,
        scales: list[Tensor],
        push: Tensor | float,
        passes: int,
    ) -> None:
        recorder = self.trace.recorder
        if call.auxiliary and recorder.steps:
            recorder.more_passes(passes)
            return
        nan = torch.full_like(call.noise_level, math.nan)
        read = [nan if alpha is None else alpha for alpha in alphas or [None] * len(scales)]
        pushes = push if isinstance(push, Tensor) else torch.full_like(call.noise_level, push)
        recorder.step(call.noise_level, torch.stack(read), torch.stack(scales), pushes, passes)

    def _end_call(self) -> None:
        if self._call is not None:
            self._cache.end_step(base_ran=self._call.way in ("off", "two_pass"))
        self._call = None
        for scale in self._row_scales.values():
            scale.set(None)
        self._switch.restore()
