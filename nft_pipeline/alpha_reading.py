"""Asking an adapter's alpha head about one forward of the denoiser, and saying what is wrong when it cannot answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .engine import GuidanceError

if TYPE_CHECKING:
    from .adapter import Adapter


def read_alpha(adapter: Adapter, tokens: Tensor | None, noise_level: Tensor, text: Tensor | None) -> Tensor:
    """alpha(x_t, c, t) of each sample, fp32, shape (B,). The head moves to the tokens' device.

    Args:
        adapter: a positive one.
        tokens: what the module at the head's tap took in the base pass, shape (B, N, C); None if it did not run.
        noise_level: t in [0, 1], shape (B,).
        text: the text tokens of the same rows, shape (B, L, D); None if the denoiser takes none.

    Raises:
        GuidanceError: the adapter has no head, the tap did not run, or the head's answer is no number.
    """
    name, head = adapter.config.name, adapter.head
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
    alpha = head.to(tokens.device).alpha(tokens, noise_level, None if head.config.text_dim is None else text)
    if not bool(alpha.isfinite().all()):
        raise GuidanceError(
            f"the alpha head of {name!r} gave {_rounded(alpha)} at noise level {_rounded(noise_level)}, expected "
            "probabilities: the model's own features overflowed, or the head is damaged. Check that strength 0 gives a "
            "picture; if it does, download the adapter again."
        )
    return alpha


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.flatten()[:4].tolist()]
