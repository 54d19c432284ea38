"""What the emoji model has that the shapes model has not: more of everything, and letters that are read one by one."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken
from transformers import CLIPTokenizer

from ..shapes.parts import Sizes, build_tokenizer
from ..shapes.train_base import TextAndDenoiser
from .pictures import Thing
from .world import vocabulary

SIZES = Sizes(depth=4, text_tokens=16, text_width=96, text_layers=2, vae_channels=(16, 32, 64, 96))
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def build_emoji_tokenizer(things: list[Thing]) -> CLIPTokenizer:
    """Every word of the prompts is one token, and so is every capital letter: "CAT" is C, A, T and cat is a cat.

    A word that only begins with a capital, as sentences do, is a token of its own whose meaning is the word's
    (`copy_capitalised`).
    """
    words = vocabulary(things)
    tokenizer = build_tokenizer(SIZES, words, marks='",0123456789')
    capitalised = [word.capitalize() for word in words if len(word) > 1]
    tokenizer.add_tokens(
        [
            *(AddedToken(letter, normalized=False) for letter in LETTERS),
            *(AddedToken(word, normalized=False, single_word=True) for word in capitalised),
        ]
    )
    return tokenizer


@torch.no_grad()
def copy_capitalised(model: TextAndDenoiser) -> None:
    """Give every capitalised word the embedding of the word."""
    numbers = model.tokenizer.get_vocab()
    pairs = [
        (number, numbers[f"{token.lower()}</w>"])
        for token, number in numbers.items()
        if len(token) > 1 and token[0].isupper()
    ]
    to, source = (torch.tensor(column) for column in zip(*pairs, strict=True))
    encoders: Any = model.encoders
    for encoder in encoders:
        table = encoder.get_input_embeddings().weight
        table[to] = table[source]
