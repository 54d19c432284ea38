"""The text reward: quotes and distance in closed form, and rendered words read by the real models."""

from __future__ import annotations

import pytest

from helpers.plain_pictures import plain, written
from nft_pipeline.training.rewards import RewardError, load_reward
from nft_pipeline.training.rewards.kinds.ocr import edit_distance, quoted, similarity

WORDS = ["HELLO", "Coffee", "diffusion", "OPEN", "Reward", "guitar", "NFT 42", "Strength", "window", "2026"]


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ab", 0)],
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a sign that says "OPEN"', "OPEN"),
        ("a sign that says “Open now”", "Open now"),
        ("ein Schild „Offen“", "Offen"),
        ("it's a 'shop' sign", "shop"),
        ('"ONE" above "TWO"', "ONE TWO"),
        ("un panneau «ouvert»", "ouvert"),
    ],
)
def test_text_in_quotes(prompt: str, text: str) -> None:
    assert quoted(prompt) == text


@pytest.mark.parametrize("prompt", ["a sign that says OPEN", "it's a dog's life", 'a sign that says "!"'])
def test_a_prompt_without_text_in_quotes_is_named(prompt: str) -> None:
    with pytest.raises(RewardError, match="has no text in quotes; expected one such as"):
        quoted(prompt)


def test_similarity_ignores_case_spaces_and_punctuation() -> None:
    assert similarity("Hello, World!", "hello world") == 1
    assert similarity("abcd", "abxd") == 0.75
    assert similarity("ab", "something else altogether") == 0


def test_rendered_words_are_read() -> None:
    pytest.importorskip("rapidocr", reason="rapidocr is not installed: pip install '.[ocr]'")
    output = load_reward("ocr")(
        [*map(written, WORDS), plain("white", (64, 64)), written("OPEN")],
        [*(f'a sign that says "{word}"' for word in WORDS), '"OPEN"', '"SHUT"'],
    )
    scores = output.scores.tolist()
    print(dict(zip(WORDS, scores, strict=False)))
    assert sum(score == 1 for score in scores[: len(WORDS)]) >= 9
    assert scores[-2] == 0 and scores[-1] == 0
    assert output.details["text"][0] == "HELLO" and output.details["text"][-2] == ""
