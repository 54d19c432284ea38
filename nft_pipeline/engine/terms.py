"""One term s (v_lora - v_old) of guidance: an adapter on a denoiser, its tilt, and how its alpha is read.

v = v_old + sum over terms of s (v_lora - v_old)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import guidance
from ..adapters.keys import component_lora
from ..dial.promise import base_rate
from ..dial.scale import calibrated_scale
from ..dial.tilts import Tilt, of_samples
from ..errors import GuidanceError
from ..families.forward_call import as_tokens, first_argument
from ..families.registry import unwrap_compiled
from ..settings import GuidanceSettings

if TYPE_CHECKING:
    from ..adapter import Adapter, AdapterConfig
    from ..adapters.alpha_head import AlphaHead


def find_tap(denoiser: nn.Module, adapter: Adapter) -> nn.Module | None:
    """The module whose input the adapter's alpha head reads; None for an adapter without a head.

    Raises:
        GuidanceError: the denoiser has no such module.
    """
    if adapter.head is None:
        return None
    name = adapter.head.config.tap
    try:
        return unwrap_compiled(denoiser).get_submodule(name)
    except AttributeError:
        raise GuidanceError(
            f"the alpha head of {adapter.config.name!r} reads the module {name!r}, which {type(denoiser).__name__} "
            "does not have. The adapter was made for another base model."
        ) from None


class Term:
    """One adapter at work on one denoiser.

    Args:
        adapter: the adapter; its head moves to the device of the tokens it reads.
        lora_name: the name its LoRA was injected under.
        tilt: lambda = 2 / beta, for all samples or for each; 0 is off, negative goes away from the reward. May be
            changed between forwards.
        name: what the person calls the adapter.
        old_name: the name the LoRA of v_old was injected under, for an adapter that has one.
        component: the part of the pipeline the denoiser is.
        own: the adapter's own law and interval; None for those of the call.
    """

    def __init__(
        self,
        adapter: Adapter,
        lora_name: str,
        tilt: Tilt,
        *,
        name: str = "default",
        old_name: str | None = None,
        component: str | None = None,
        own: GuidanceSettings | None = None,
    ) -> None:
        self.adapter, self.lora_name, self.tilt, self.name, self.old_name = adapter, lora_name, tilt, name, old_name
        component = component or adapter.config.component
        self.layers = {lora_name: len(component_lora(adapter.lora, component)) // 2}
        if old_name is not None and adapter.old is not None:
            self.layers[old_name] = len(component_lora(adapter.old, component)) // 2
        self._own = own
        self._tokens: Tensor | None = None
        self._gather: Callable[[Tensor], Tensor] = lambda tokens: tokens

    @property
    def needs_alpha(self) -> bool:
        """Whether s depends on what a head reads."""
        return self.adapter.config.kind == "positive"

    def listen(self, tap: nn.Module, gather: Callable[[Tensor], Tensor] = lambda tokens: tokens) -> Any:
        """Add a hook that keeps the first tokens the head would read; the handle to take it off.

        Args:
            tap: the module they go into.
            gather: brings those of all processes together (`nft_pipeline.families.ranks`).
        """
        self._gather = gather
        return tap.register_forward_pre_hook(self._read_tokens, with_kwargs=True)

    def forget(self) -> None:
        """Make ready for the next forward."""
        self._tokens = None

    def _read_tokens(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # The first pass only: in a later one the LoRA is on, and the tokens are not those the head was trained on.
        if self._tokens is None:
            self._tokens = self._gather(as_tokens(first_argument(args, kwargs)))

    def alpha(
        self, noise_level: Tensor, rows: int, samples: slice, text: Tensor | None, lora_scale: Tensor | None = None
    ) -> Tensor:
        """The head's alpha for the forward that has just run.

        Args:
            noise_level: t of the samples, shape (samples,).
            rows: the number of rows that the forward had.
            samples: which of them are the samples.
            text: text tokens of the samples, (samples, L, D), None where the family has none.
            lora_scale: the scale of this term's LoRA in that forward, (samples,); None if it was off.

        Returns:
            Probabilities, shape (samples,).

        Raises:
            GuidanceError: no head, no tokens, tokens of other rows, or no probabilities.
        """
        head, tokens, name = self.adapter.head, self._tokens, self.adapter.config.name
        if head is None:
            raise GuidanceError(
                f"adapter {name!r} is positive but has no alpha head, so its scale is unknown. Load the whole adapter "
                "folder, with alpha_head/ in it."
            )
        if tokens is None:
            raise GuidanceError(
                f"the module {head.config.tap!r}, which the alpha head of {name!r} reads, did not run at noise level "
                f"{_rounded(noise_level)}, so alpha is unknown. Switch caching of the denoiser off."
            )
        if len(tokens) != rows:
            raise GuidanceError(
                f"the module {head.config.tap!r}, which the alpha head of {name!r} reads, sees {len(tokens)} rows "
                f"where the batch has {rows}: this model folds the batch into another dimension, so nobody knows which "
                "tokens belong to which sample. Use a policy adapter."
            )
        return read_alpha(head.to(tokens.device), name, tokens[samples], noise_level, text, lora_scale)

    def scale(self, alpha: Tensor | None, factor: Tensor, noise_level: Tensor, settings: GuidanceSettings) -> Tensor:
        """s for each sample: from alpha by the law, or a policy's scale, whose alpha is inside its weights.

        Args:
            alpha: probabilities, (samples,); None for a policy.
            factor: what the tilt is multiplied by, (samples,).
            noise_level: t, (samples,).
            settings: choose the calibration's map, or the law.
        """
        own = self._own or settings
        if own.interval != settings.interval:
            factor = factor * guidance.in_interval(noise_level, own.interval)
        return term_scale(self.adapter.config, self.tilt, alpha, factor, noise_level, own)


def read_alpha(
    head: AlphaHead,
    name: str,
    tokens: Tensor,
    noise_level: Tensor,
    text: Tensor | None,
    lora_scale: Tensor | None = None,
) -> Tensor:
    """alpha of samples whose tokens were read at the head's tap.

    Args:
        head: on the tokens' device.
        name: the adapter's, for the error.
        tokens: (samples, N, C).
        noise_level: t, (samples,).
        text: text tokens, (samples, L, D); not looked at by a head without text.
        lora_scale: at which scale the adapter's LoRA was on, (samples,); None for off.

    Returns:
        Probabilities, (samples,), fp32.

    Raises:
        GuidanceError: the head gave no probabilities.
    """
    alpha = head.alpha(tokens, noise_level, text if head.config.text_dim is not None else None, lora_scale)
    if not bool(alpha.isfinite().all()):
        raise GuidanceError(
            f"the alpha head of {name!r} gave {_rounded(alpha)} at noise level {_rounded(noise_level)}, expected "
            "probabilities: the model's own features overflowed, or the head is damaged. Check that strength 0 "
            "gives a picture; if it does, download the adapter again."
        )
    return alpha


def term_scale(
    config: AdapterConfig,
    tilt: Tilt,
    alpha: Tensor | None,
    factor: Tensor,
    noise_level: Tensor,
    settings: GuidanceSettings,
) -> Tensor:
    """s of a term, (samples,): by the map of the adapter's calibration, or from alpha by a law, or, with alpha None, a
    policy's, whose alpha is in its weights.

    Args:
        config: the adapter's.
        tilt: lambda = 2 / beta, for all samples or for each.
        alpha: probabilities, (samples,), or None.
        factor: what the tilt is multiplied by, (samples,).
        noise_level: t, (samples,).
        settings: choose the map, or the law.

    Raises:
        GuidanceError: the tilts are not as many as the samples.
    """
    tilt_map = settings.map_for(config)
    if tilt_map is not None and config.dial is not None:
        return calibrated_scale(config.dial, tilt_map, alpha, of_samples(tilt, factor) * factor, noise_level)
    if alpha is None:
        each = tilt if isinstance(tilt, tuple) else (tilt,)
        shares = tuple(guidance.policy_scale(one, config.tilt) for one in each)
        return of_samples(shares if isinstance(tilt, tuple) else shares[0], factor) * factor
    return guidance.law_scale(alpha, of_samples(tilt, factor) * factor, settings.law_for(config))


def alpha_before(config: AdapterConfig, last: Tensor | None, noise_level: Tensor) -> Tensor:
    """alpha to guide a step by before it has run: that of the step before, or the adapter's base rate in the first.

    Args:
        config: the adapter's.
        last: alpha of the step before, (samples,), None if there was none; of another number of samples it is another
            picture's.
        noise_level: t of the step, (samples,).
    """
    if last is None or last.shape != noise_level.shape:
        return torch.full_like(noise_level, base_rate(config) or 0.0)
    return last


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.flatten()[:4].tolist()]
