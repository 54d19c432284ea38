"""A case, as those of the zoo, made of a test of diffusers: its tiny parts, and its call for one sample or several."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from helpers.pipeline_classes import is_needed, pipeline_class, taken
from helpers.stand_ins import stand_ins
from helpers.stock_tests import per_sample
from helpers.zoo_case import awake

SCALES = ("guidance_scale", "true_cfg_scale")
_ENLARGE = {"use_resolution_binning"}  # what makes a tiny picture large
_DENOISERS = ("unet", "transformer", "transformer_2")


class StockCase:
    """What a `zoo_case.Case` is, of a pipeline class and one of its tests.

    Args:
        name: of the class.
        test: has `get_dummy_components` and `get_dummy_inputs`, and says which inputs there is one of for each sample.
    """

    def __init__(self, name: str, test: Any) -> None:
        self.cls, self._test = pipeline_class(name), test
        self.alone = False
        self.own_rows = True  # whether, without guidance, a sample of a batch is the same as alone
        self._settled: dict[str, Any] = {}
        module = sys.modules[self.cls.__module__]
        if hasattr(module, "calculate_dimensions"):  # Qwen-Image's way to make pictures a million pixels large
            few = len(module.calculate_dimensions(1, 1))
            module.calculate_dimensions = lambda area, ratio: (32, 32, None)[:few]  # type: ignore[attr-defined]
        arguments = inspect.signature(self.cls.__call__).parameters
        self._scales = {scale: arguments[scale].default for scale in SCALES if scale in arguments}

    def pipe(self) -> Any:
        with stand_ins():
            parts = self._test.get_dummy_components()
        kind = getattr(self._test, "pipeline_class", self.cls)
        parameters = taken(kind.__init__)
        parts = {name: part for name, part in parts.items() if name in parameters}
        needed = (name for name, part in parameters.items() if is_needed(part))
        absent = dict.fromkeys(name for name in needed if name not in (*_DENOISERS, "scheduler", "vae"))
        pipe = kind(**{**absent, **parts})
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module):
                awake(part) if name in _DENOISERS else _reads_all(part.eval())
        pipe.set_progress_bar_config(disable=True)
        getattr(self._test, "prepare", lambda pipe: None)(pipe)
        return pipe

    def settle(self, pipe: Any) -> None:
        """Find out how it is called: for latents if that goes, with two steps if they are enough, and for how many
        samples. Raises what the pipeline raises if it cannot be called at all."""
        inputs = self._inputs()
        steps = {"num_inference_steps": 2} if "num_inference_steps" in inputs else {}
        latent = {"output_type": "latent"} if "output_type" in inputs else {}
        more = {name: 6 for name in steps}  # some schedulers cannot do with fewer
        ways: list[dict[str, Any]] = [{**latent, **steps}, steps, latent, {}, more]
        failures: list[Exception] = []
        forwards: list[int] = []
        denoiser = next(part for part in (getattr(pipe, name, None) for name in _DENOISERS) if part is not None)
        denoiser.register_forward_hook(lambda *_: forwards.append(1))
        for self._settled in ways:
            try:
                one = self.sample(pipe, [1], cfg=True)
                if not forwards:
                    raise ValueError("its steps at the strength it has are none")
                break
            except Exception as error:
                failures.append(error)
        else:
            raise failures[0]
        try:
            both = self.sample(pipe, [0, 1], cfg=True)
        except Exception:
            self.alone = True
            return
        self.alone = both.shape[1:] != one.shape[1:]
        self.own_rows = not self.alone and _close(both[1:], one)

    def variants(self) -> list[bool]:
        """Whether with classifier-free guidance, as the test has it, and without."""
        inputs = self._inputs()
        values = [inputs.get(scale, default) for scale, default in self._scales.items()]
        return [True, False] if any(isinstance(value, (int, float)) and value > 1 for value in values) else [True]

    def sample(self, pipe: Any, indices: list[int] | None = None, *, cfg: bool = False, **kwargs: Any) -> Tensor:
        """All that a call with fixed noise gives, (samples, numbers)."""
        indices = [0] if indices is None else indices
        call = {**self._inputs(), **self._settled}
        many = per_sample(self._test)
        for name, value in call.items():
            if isinstance(value, str) and name.startswith("prompt"):
                call[name] = [_varied(value, i) for i in indices]
                call[name] = call[name] if len(indices) > 1 else call[name][0]
            elif name in ("mask", "mask_image"):
                call[name] = _half_masked(value) if len(indices) == 1 else _repeated(_half_masked(value), len(indices))
            elif name in many and len(indices) > 1 and value is not None:
                call[name] = _repeated(value, len(indices))
        generators = [torch.Generator().manual_seed(500 + i) for i in indices]
        if "generator" in call:
            call["generator"] = generators if len(indices) > 1 else generators[0]
        if not cfg:
            call.update(dict.fromkeys(self._scales, 1.0))
        torch.manual_seed(0)
        with torch.no_grad():
            result = pipe(**{**call, **kwargs})
        values = result.values() if isinstance(result, Mapping) else result if isinstance(result, tuple) else (result,)
        flat = [numbers for value in values for numbers in _numbers(value, len(indices))]
        return torch.cat(flat, dim=1)

    def _inputs(self) -> dict[str, Any]:
        wanted = inspect.signature(self._test.get_dummy_inputs).parameters
        inputs = self._test.get_dummy_inputs("cpu") if "device" in wanted else self._test.get_dummy_inputs()
        known = inspect.signature(self.cls.__call__).parameters
        inputs = {name: value for name, value in inputs.items() if name in known and name != "return_dict"}
        return {**inputs, **dict.fromkeys(_ENLARGE & known.keys(), False)}


def _reads_all(encoder: nn.Module) -> None:
    """Some tests' text encoders know fewer letters than there are: those beyond stand for others."""
    for module in encoder.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_pre_hook(lambda embedding, ids: (ids[0] % embedding.num_embeddings,))


def _varied(prompt: str, index: int) -> str:
    """A prompt of a sample's own; some are JSON, so the word goes inside."""
    words = prompt.split(" a ", 1)
    return f" a {'xyz'[index]} ".join(words) if len(words) > 1 else f"{prompt} {'xyz'[index]}"


def _half_masked(mask: Any) -> Any:
    """A mask whose right half is to be painted; in some tests there is nothing to paint."""
    if isinstance(mask, PIL.Image.Image):
        mask = mask.copy()
        mask.paste(PIL.Image.new(mask.mode, mask.size, "white"), (mask.width // 2, 0))
    if isinstance(mask, (Tensor, np.ndarray)) and mask.ndim >= 2:
        mask = mask.clone() if isinstance(mask, Tensor) else mask.copy()
        mask[..., mask.shape[-1] // 2 :] = 1
    return mask


def _repeated(value: Any, times: int) -> Any:
    if isinstance(value, Tensor):
        return torch.cat([value] * times) if value.ndim and len(value) == 1 else value
    if isinstance(value, np.ndarray):
        return np.concatenate([value] * times) if value.ndim and len(value) == 1 else value
    return [value] * times


def _numbers(value: Any, samples: int) -> Iterator[Tensor]:
    """What a pipeline gives, as (samples, numbers): Tensors, arrays, pictures, lists of these."""
    if isinstance(value, PIL.Image.Image):
        value = np.asarray(value)
    if isinstance(value, (list, tuple)) and value and not isinstance(value[0], (bool, str)) and value[0] is not None:
        rows = [torch.cat([n.flatten() for n in _numbers(item, 1)] or [torch.zeros(0)]) for item in value]
        if len({len(row) for row in rows}) == 1:
            value = torch.stack(rows)
    if isinstance(value, np.ndarray) and value.dtype != object:
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor) and value.dtype != torch.bool and value.numel() and value.numel() % samples == 0:
        yield value.detach().float().reshape(samples, -1)


def _close(ours: Tensor, expected: Tensor) -> bool:
    return float((ours - expected).abs().max() / expected.abs().max().clamp(min=1.0)) < 1e-3
