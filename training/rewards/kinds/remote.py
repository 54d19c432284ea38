"""`remote:URL`: a reward that another machine serves with `diffusion-nft reward serve`."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from typing import Any

import torch
from PIL.Image import Image
from pydantic import ValidationError

from nft_pipeline.files.private import Secret, without_password

from ..contract import Reward, RewardError, RewardOutput
from ..server.caller import Caller, ServerError
from ..server.wire import TOKEN_VARIABLE, Card, ScoreAnswer

REWARDS = {"remote:URL": "RemoteReward"}
NEEDS = {"requests": "train", "pydantic": "train"}


class RemoteReward(Reward):
    """The reward at an address. Its card is the served reward's; it cannot be differentiated.

    Args:
        url: http://host:port.
        token: the server's (default: the environment's DIFFUSION_NFT_REWARD_TOKEN; a token in a settings file is a
            token that is copied around).
        per_request: pictures in a request, at most; the server's limits come on top.
        concurrency: requests at once.
        timeout: seconds for one answer.
        retries, patience: as `Caller`: how a server that is gone for a while is waited for.
    """

    def __init__(
        self,
        url: str,
        token: str | Secret | None = None,
        per_request: int = 8,
        concurrency: int = 4,
        timeout: float = 120.0,
        retries: int = 4,
        patience: float = 1800.0,
    ) -> None:
        token = token or os.environ.get(TOKEN_VARIABLE) or None
        self.caller = Caller(url, token, timeout=timeout, retries=retries, patience=patience)
        try:
            card = Card.model_validate(self.caller.get("/info"))
        except ValidationError as error:
            raise RewardError(
                f"{without_password(url)} is no reward server of this version: {error.errors()[0]['msg']}"
            ) from error
        self.info = card.info()
        self.per_request, self.max_bytes = min(per_request, card.max_pictures), card.max_bytes
        self.concurrency, self.batch = concurrency, self.per_request * concurrency

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """What the server answers, in as few requests as its limits allow."""
        requests = self._requests(images, prompts, metadata)
        answers = self.caller.map(self._ask, requests, concurrency=self.concurrency)
        names = dict.fromkeys(name for answer in answers for name in answer.details)
        return RewardOutput(
            torch.tensor([score for answer in answers for score in answer.scores]),
            {
                name: [value for answer in answers for value in answer.details.get(name, [None] * len(answer.scores))]
                for name in names
            },
        )

    def _requests(
        self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """The pictures in as few requests as their number and size allow, in order."""
        requests: list[dict[str, Any]] = []
        room = 0
        for image, prompt, known in zip(images, prompts, metadata, strict=True):
            picture = _png(image)
            size = len(picture) + len(prompt.encode()) + 1000
            if not requests or size > room or len(requests[-1]["pictures"]) == self.per_request:
                requests.append({"pictures": [], "prompts": [], "metadata": []})
                room = self.max_bytes
            room -= size
            for name, value in (("pictures", picture), ("prompts", prompt), ("metadata", dict(known))):
                requests[-1][name].append(value)
        return requests

    def _ask(self, request: dict[str, Any]) -> ScoreAnswer:
        try:
            answer = ScoreAnswer.model_validate(self.caller.post("/score", request))
        except ValidationError as error:
            raise ServerError(f"{self.caller.shown} gave no scores: {error.errors()[0]['msg']}", "no_scores") from error
        if len(answer.scores) != len(request["pictures"]):
            raise ServerError(
                f"{self.caller.shown} gave {len(answer.scores)} scores for {len(request['pictures'])} pictures",
                "no_scores",
            )
        return answer


def _png(image: Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)  # the network is faster than zlib at its best
    return base64.b64encode(buffer.getvalue()).decode()
