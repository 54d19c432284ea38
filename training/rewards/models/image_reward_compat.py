"""Makes image-reward 1.5, unchanged, run on transformers 5. Applied when its reward is loaded, not before.

The package was written for transformers 4.27 and breaks on 5 in five places:

1. it imports `clip`, which it does not declare and calls only in scorers we do not use;
2. it imports three helpers from transformers.modeling_utils; two live elsewhere now, one (head pruning) is gone;
3. its tokenizer reads an attribute that is gone, `additional_special_tokens_ids`;
4. its BERT lacks an attribute that every model has now, `all_tied_weights_keys`;
5. its BERT calls two methods that models lost, `get_head_mask` and `invert_attention_mask`.

With these mended, scores are those of the old libraries to the last digit.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def import_image_reward() -> Any:
    """The package `ImageReward`, imported and mended.

    Raises:
        ImportError: it is not installed, or needs a package that is not.
    """
    from transformers import logging

    loudness = logging.get_verbosity()
    with _clip_stub(), _old_names():
        import ImageReward
        from ImageReward.models.BLIP import med

        base = med.BertPreTrainedModel
    logging.set_verbosity(loudness)  # the package silences transformers for everybody
    for name, value in (
        ("all_tied_weights_keys", {}),
        ("get_head_mask", _get_head_mask),
        ("invert_attention_mask", _invert_attention_mask),
    ):
        if not hasattr(base, name):
            setattr(base, name, value)
    return ImageReward


@contextlib.contextmanager
def tokenizer_from(source: str) -> Iterator[None]:
    """Within it, models the package makes get their tokenizer from `source`, a folder or a Hub id."""
    from ImageReward.models.BLIP import blip_pretrain
    from transformers import BertTokenizer

    def init_tokenizer() -> Any:
        tokenizer = BertTokenizer.from_pretrained(source)
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
        tokenizer.add_tokens(["[ENC]"], special_tokens=True)
        tokenizer.enc_token_id = tokenizer.convert_tokens_to_ids("[ENC]")
        return tokenizer

    original, blip_pretrain.init_tokenizer = blip_pretrain.init_tokenizer, init_tokenizer
    try:
        yield
    finally:
        blip_pretrain.init_tokenizer = original


@contextlib.contextmanager
def _clip_stub() -> Iterator[None]:
    if "clip" in sys.modules or importlib.util.find_spec("clip") is not None:
        yield
        return
    sys.modules["clip"] = ModuleType("clip")
    try:
        yield
    finally:
        del sys.modules["clip"]


@contextlib.contextmanager
def _old_names() -> Iterator[None]:
    """The three helpers where the package looks for them, while it is imported."""
    import transformers.modeling_utils as modeling
    from transformers import pytorch_utils

    names = ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer")
    lent = [name for name in names if not hasattr(modeling, name)]
    for name in lent:
        setattr(modeling, name, getattr(pytorch_utils, name, _gone))
    try:
        yield
    finally:
        for name in lent:
            delattr(modeling, name)


def _gone(*arguments: Any, **options: Any) -> Any:
    """Stands for helpers of head pruning that transformers 5 removed: the package imports them, scoring calls none."""
    raise NotImplementedError("transformers 5 cannot prune attention heads; scoring does not need it")


def _get_head_mask(self: Any, head_mask: None, layers: int, *_: Any) -> list[None]:
    return [None] * layers


def _invert_attention_mask(self: Any, mask: Tensor) -> Tensor:
    """1 for what may be attended to becomes 0, 0 the most negative number; (B, L) or (B, M, L) to (B, 1, 1 or M, L)."""
    wide = mask[:, None, :, :] if mask.dim() == 3 else mask[:, None, None, :]
    return (1.0 - wide.to(self.dtype)) * torch.finfo(self.dtype).min
