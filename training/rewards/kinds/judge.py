"""`vlm_judge`: a vision-language model scores the picture, through any endpoint that speaks OpenAI's chat API.

vLLM, SGLang, llama.cpp, Ollama and the commercial services do. UnifiedReward and the like are used this way too.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from PIL.Image import Image

from ..contract import Reward, RewardError, RewardInfo, RewardOutput
from ..server.caller import Caller

REWARDS = {"vlm_judge": "VLMJudge"}
NEEDS = {"requests": "train"}
TEMPLATE = """\
Judge a picture that a model made for this prompt:

{prompt}

How well does the picture show what the prompt asks for, and how good is it as a picture? Think in a sentence or two,
then end with one line, from 0 (not at all) to 10 (perfectly): "Score: N\""""

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_SCORE = re.compile(
    rf"^[ \t*_#>-]*score[ \t*_]*[:=][ \t*_]*{_NUMBER}[ \t]*(?:/[ \t]*{_NUMBER})?[ \t*_.]*$",
    re.IGNORECASE | re.MULTILINE,
)


class VLMJudge(Reward):
    """The number a model ends its judgement with.

    Exactly one line of the answer must be "Score: N", with N in the range; another answer is asked for up to `tries`
    times, and then it is an error: a score is never guessed. Details: `answer`, the whole of it.

    Args:
        model: the model's name at the endpoint.
        endpoint: its base address, which ends in /v1.
        template: what it is asked; {prompt} stands for the prompt.
        low, high: the range the template names.
        key_variable: environment variable that holds the API key; none is sent if it is empty.
        tries: how often it may answer something else.
        max_tokens: of its answer.
        concurrency: requests at once.
        timeout, patience: seconds for one answer, and that the server may stay away.
    """

    info = RewardInfo(name="vlm_judge", range=(0.0, 10.0), licence="that of the model")

    def __init__(
        self,
        model: str,
        endpoint: str = "http://127.0.0.1:8000/v1",
        template: str = TEMPLATE,
        low: float = 0.0,
        high: float = 10.0,
        key_variable: str = "OPENAI_API_KEY",
        tries: int = 3,
        max_tokens: int = 300,
        concurrency: int = 8,
        timeout: float = 120.0,
        patience: float = 1800.0,
    ) -> None:
        if "{prompt}" not in template:
            raise RewardError("reward 'vlm_judge': the template has no {prompt}, so the judge knows no prompt")
        asked = hashlib.sha256(f"{endpoint} {model} {template} {max_tokens}".encode()).hexdigest()[:16]
        self.info = replace(self.info, range=(low, high), licence=f"that of {model}", version=f"1 {model} {asked}")
        self.model, self.template, self.tries, self.max_tokens = model, template, tries, max_tokens
        self.batch = self.concurrency = concurrency
        key = os.environ.get(key_variable)
        self.caller = Caller(endpoint, key, health="/models", timeout=timeout, patience=patience)

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """The number that ends the judge's answer, from `low` to `high`."""
        judged = self.caller.map(self._judge, images, prompts, concurrency=self.concurrency)
        return RewardOutput(torch.tensor([score for score, _ in judged]), {"answer": [answer for _, answer in judged]})

    def _judge(self, image: Image, prompt: str) -> tuple[float, str]:
        question = [
            {"type": "text", "text": self.template.replace("{prompt}", prompt)},
            {"type": "image_url", "image_url": {"url": data_url(image)}},
        ]
        payload = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        answer = ""
        for again in range(self.tries):
            # At temperature 0 the same question gets the same answer.
            answer = _text(self.caller.post("/chat/completions", {**payload, "temperature": 0.7 if again else 0}))
            score = parse_score(answer, self.info.range)
            if score is not None:
                return score, answer
        low, high = self.info.range
        raise RewardError(
            f"reward 'vlm_judge': {self.model} gave no score in {self.tries} tries; expected one line 'Score: N' with "
            f"N from {low:g} to {high:g}, got {answer[-300:]!r}. Raise max_tokens if it was cut off"
        )


def parse_score(answer: str, between: tuple[float, float]) -> float | None:
    """The one score in an answer; None if there is none, more than one, or one out of range."""
    found = _SCORE.findall(answer)
    if len(found) != 1:
        return None
    number, of = found[0]
    low, high = between
    return float(number) if low <= float(number) <= high and (not of or float(of) == high) else None


def data_url(image: Image) -> str:
    """The picture as a PNG in a data: URL."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _text(answer: Any) -> str:
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise RewardError(f"reward 'vlm_judge': got {str(answer)[:300]}, which is no chat completion") from error
    return text if isinstance(text, str) else ""
