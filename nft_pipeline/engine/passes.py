"""The forwards of one denoiser: which LoRAs are on in them, on which rows, and in which branch of a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import GuidanceError
from ..families.family import Family
from ..families.forward_call import Inputs, call_arguments, output_tensors
from ..families.registry import unwrap_compiled
from .caching import CacheBranches
from .denoiser_call import DenoiserCall
from .injection import LoraSwitch
from .row_scale import RowScale
from .terms import Term

_SPLIT = ("unshard", "ds_inflight_param_registry")  # what FSDP and DeepSpeed give a module whose weights they split


class Passes:
    """Switches the terms' LoRAs on a denoiser, and runs further forwards of it.

    Args:
        denoiser: compiled or not, with the LoRAs injected.
        family: of the denoiser.
        terms: the adapters at work.

    Raises:
        AdapterError: a LoRA is gone, incomplete or fused.
        GuidanceError: a cache is on that mixes passes up.
    """

    def __init__(self, denoiser: nn.Module, family: Family, terms: Sequence[Term]) -> None:
        self.denoiser = unwrap_compiled(denoiser)
        self.within = False  # in a forward of our own, which the engine's hooks are not for
        self._outermost, self._family, self._terms = denoiser, family, terms
        self._cache = CacheBranches(self.denoiser)
        self._switch = LoraSwitch(self.denoiser, {name: n for term in terms for name, n in term.layers.items()})
        self._row_scales: dict[str, RowScale] = {}

    @property
    def compiled(self) -> bool:
        """Whether the denoiser as a whole is compiled: torch.compile(denoiser) or denoiser.compile(). Compiled blocks
        in it need none of this."""
        return self._outermost is not self.denoiser or self.denoiser._compiled_call_impl is not None

    def hook_rows(self) -> None:
        """Make ready for `on_rows`."""
        names = [name for term in self._terms for name in term.layers]
        self._row_scales = {name: RowScale(name, self._switch.inner(name)) for name in names}

    def base(self) -> None:
        """The next forward gives v_old."""
        self._only()

    def on(self, call: DenoiserCall, term: Term) -> None:
        """The pipeline's own forward gives this term's v_lora, in a branch of its own."""
        self._only(term, call_scale=self._call_scale(call.inputs))
        self._enter(call, term.lora_name)

    def on_rows(self, call: DenoiserCall, rows_on: Mapping[int, Tensor]) -> None:
        """The pipeline's own forward has each LoRA at a scale of its own on each row, in a branch of its own.

        Args:
            call: the forward.
            rows_on: by term, the scale on each row, (rows,); v_old's LoRA gets what is left of 1.

        Raises:
            GuidanceError: the call switches all LoRAs off.
        """
        names = {self._terms[k].lora_name: rows for k, rows in rows_on.items()}
        for k, rows in rows_on.items():
            old_name = self._terms[k].old_name
            if old_name is not None:
                names[old_name] = 1.0 - rows
        self._switch.only(*names, call_scale=self._call_scale(call.inputs))
        for name, rows in names.items():
            self._row_scales[name].set(rows)
        self._enter(call, "+".join([call.way, *(self._terms[k].lora_name for k in call.terms)]))

    def lora_pass(self, call: DenoiserCall, term: Term) -> list[Tensor]:
        """v_lora of the guided rows, in each of the denoiser's predictions: one more forward, on the same inputs with
        the term's LoRA on.

        Raises:
            GuidanceError: the call switches all LoRAs off.
        """
        inputs = call.inputs
        if call.guided != slice(0, call.rows):
            inputs = self._family.take_rows(inputs, range(call.rows)[call.guided])
        self._only(term, call_scale=self._call_scale(call.inputs))
        self._cache.enter(term.lora_name)
        try:
            return output_tensors(self._forward(inputs))
        finally:
            self._cache.leave()

    def end(self, call: DenoiserCall | None) -> None:
        """A call of the denoiser has ended, or none was under way: every switch back to what it was."""
        if call is not None:
            self._cache.end_step(base_ran=call.branch is None)
        for scale in self._row_scales.values():
            scale.set(None)
        self._switch.restore()

    def remove(self) -> None:
        """Take the hooks of `hook_rows` off, and forget what caches remember of guidance."""
        for scale in self._row_scales.values():
            scale.remove()
        self._row_scales = {}
        self._cache.forget()

    def _enter(self, call: DenoiserCall, branch: str) -> None:
        call.branch = branch
        self._cache.enter(branch)

    def _forward(self, inputs: Inputs) -> Any:
        """A forward of the denoiser besides the pipeline's own calls; it is compiled if those are.

        Split weights are gathered by hooks, which only a call has.
        """
        if not (self.compiled or any(hasattr(self.denoiser, mark) for mark in _SPLIT)):
            return self.denoiser.forward(**call_arguments(inputs))
        self.within = True
        try:
            return self._outermost(**call_arguments(inputs))
        finally:
            self.within = False

    def _only(self, term: Term | None = None, call_scale: float = 1.0) -> None:
        """The base pass, or one term's."""
        others = [other.old_name for other in self._terms if other is not term and other.old_name is not None]
        names = [*others, *([] if term is None else [term.lora_name])]
        self._switch.only(*names, call_scale=call_scale)

    def _call_scale(self, inputs: Inputs) -> float:
        name = self._family.lora_scale
        scale = (inputs.get(name) or {}).get("scale", 1.0)
        if scale == 0:
            raise GuidanceError(
                f'{name}={{"scale": 0}} switches every LoRA off, the nft one too. To run without your own LoRAs call '
                "disable_lora() on the pipeline; to run without guidance set nft_strength=0."
            )
        return float(scale)
