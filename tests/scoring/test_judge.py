"""The judge against a local HTTP server: what it asks, what it accepts, what it does when the server fails."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import pytest
from PIL import Image

from helpers.chat_server import chat_server, says
from helpers.plain_pictures import noise, plain
from nft_pipeline.training.rewards import RewardError, load_reward
from nft_pipeline.training.rewards.kinds.judge import parse_score
from nft_pipeline.training.rewards.pictures import content_hash
from nft_pipeline.training.rewards.server.caller import ServerError


def judge(url: str, **options: Any) -> Any:
    reward = load_reward("vlm_judge", model="seer", endpoint=url, **options)
    reward.caller.backoff, reward.caller.probe_every = 0.01, 0.05
    return reward


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("A red ring, as asked.\nScore: 7", 7.0),
        ("score = 6.5", 6.5),
        ("**Score: 8/10**", 8.0),
        ("- Score: 3.", 3.0),
        ("The score: 7 is what I would give", None),
        ("Score: 7\nScore: 8", None),
        ("Score: 11", None),
        ("Score: 4/5", None),
        ("Score: -1", None),
        ("Score: seven", None),
        ("7", None),
        ("", None),
    ],
)
def test_scores_are_parsed_strictly(answer: str, score: float | None) -> None:
    assert parse_score(answer, (0.0, 10.0)) == score


def test_it_sends_picture_and_prompt_and_keeps_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    pictures, prompts = [noise(i) for i in range(12)], [f"picture number {i}." for i in range(12)]
    keys = set()

    def answer(count: int, request: dict[str, Any], headers: dict[str, str]) -> tuple[int, Any]:
        keys.add(headers["Authorization"])
        text, image = request["messages"][0]["content"]
        head, _, data = image["image_url"]["url"].partition(",")
        number = prompts.index(text["text"].splitlines()[2])
        shown = Image.open(io.BytesIO(base64.b64decode(data)))
        assert head == "data:image/png;base64" and content_hash(shown) == content_hash(pictures[number])
        time.sleep(0.05 * (count % 3))
        return 200, says(f"Fine.\nScore: {number / 2}")

    with chat_server(answer) as (url, requests):
        output = judge(url, key_variable="MY_KEY", concurrency=4)(pictures, prompts)
    assert output.scores.tolist() == [i / 2 for i in range(12)]
    assert output.details["answer"][3] == "Fine.\nScore: 1.5"
    assert keys == {"Bearer secret"} and requests[0]["model"] == "seer" and requests[0]["temperature"] == 0


def test_another_answer_is_asked_for_and_then_an_error() -> None:
    def answer(count: int, *_: Any) -> tuple[int, Any]:
        return 200, says("Score: 4" if count == 3 else "I like it.")

    with chat_server(answer) as (url, requests):
        reward = judge(url)
        assert reward([plain("red")], ["x"]).scores.tolist() == [4.0]
        assert [request["temperature"] for request in requests] == [0, 0.7, 0.7]
        with pytest.raises(RewardError, match="gave no score in 3 tries; expected one line 'Score: N' with N from 0"):
            reward([plain("red")], ["x"])


def test_a_busy_server_is_asked_again() -> None:
    def answer(count: int, *_: Any) -> tuple[int, Any]:
        return (200, says("Score: 5")) if count > 3 else ((429, 503, 502)[count - 1], {"error": "busy"})

    with chat_server(answer) as (url, requests):
        assert judge(url)([plain("red")], ["x"]).scores.tolist() == [5.0]
    assert len(requests) == 4


def test_a_server_that_fails_on_pauses_the_run_and_says_so() -> None:
    said: list[str] = []

    def answer(count: int, *_: Any) -> tuple[int, Any]:
        return (200, says("Score: 5")) if count > 8 else (503, {})

    with chat_server(answer) as (url, _):
        reward = judge(url)
        reward.caller.say = said.append
        assert reward([plain("red")], ["x"]).scores.tolist() == [5.0]
    assert "The run is paused and nothing is lost" in said[0] and "is back after" in said[1]


@pytest.mark.parametrize(
    ("status", "body", "phrase"),
    [
        (401, {"error": {"type": "invalid_key", "message": "who are you"}}, r"refused \(invalid_key\): who are you"),
        (404, {"error": "no such model"}, r"refused \(http_404\): no such model"),
        (200, b"<html>", "'<html>', expected JSON; is it a reward server"),
        (200, {"choices": []}, "no chat completion"),
    ],
)
def test_refusals_are_final_and_named(status: int, body: Any, phrase: str) -> None:
    with chat_server(lambda *_: (status, body)) as (url, requests):
        with pytest.raises(RewardError, match=phrase):
            judge(url)([plain("red")], ["x"])
        assert len(requests) == 1


def test_a_server_that_stays_away_ends_the_run() -> None:
    reward = judge("http://127.0.0.1:9", patience=0.1)  # the port of "discard", where nobody listens
    reward.caller.say = lambda text: None
    with pytest.raises(ServerError, match=r"stayed away for 0\.1 s .*what was scored before is kept") as caught:
        reward([plain("red")] * 3, ["x"] * 3)
    assert caught.value.kind == "gone"


def test_settings_that_cannot_work_are_named() -> None:
    with pytest.raises(RewardError, match=r"the template has no \{prompt\}"):
        load_reward("vlm_judge", model="m", template="Is it good?")
    with pytest.raises(RewardError, match="expected one that begins with http://"):
        load_reward("vlm_judge", model="m", endpoint="localhost:8000")
    with pytest.raises(RewardError, match="required positional argument: 'model'"):
        load_reward("vlm_judge")
