"""The messages between client and server of a remote reward. Pictures travel as PNG in base64, so losslessly."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..contract import RewardInfo

TOKEN_VARIABLE = "DIFFUSION_NFT_REWARD_TOKEN"


class Strict(BaseModel):
    """No field but these, and infinite bounds as they are."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class ScoreRequest(Strict):
    """POST /score. As many prompts, and metadata if any, as pictures."""

    pictures: list[str] = Field(min_length=1, description="PNG files in base64")
    prompts: list[str]
    metadata: list[dict[str, Any]] | None = None


class ScoreAnswer(Strict):
    """Its answer: scores on the reward's own scale, and its details."""

    scores: list[float]
    details: dict[str, list[Any]] = {}


class Card(Strict):
    """GET /info: the reward's card, and what the server takes."""

    name: str
    low: float
    high: float
    larger_is_better: bool
    middle: float | None
    spread: float
    licence: str
    memory_gb: float
    version: str
    max_pictures: int
    max_bytes: int

    @classmethod
    def of(cls, info: RewardInfo, max_pictures: int, max_bytes: int) -> Card:
        """The card of a reward."""
        return cls(
            name=info.name,
            low=info.range[0],
            high=info.range[1],
            larger_is_better=info.larger_is_better,
            middle=info.middle,
            spread=info.spread,
            licence=info.licence,
            memory_gb=info.memory_gb,
            version=info.version,
            max_pictures=max_pictures,
            max_bytes=max_bytes,
        )

    def info(self) -> RewardInfo:
        """The reward's card, as its client shows it; the memory is needed over there."""
        return RewardInfo(
            name=self.name,
            range=(self.low, self.high),
            larger_is_better=self.larger_is_better,
            middle=self.middle,
            spread=self.spread,
            licence=self.licence,
            version=self.version,
        )


class Fault(Strict):
    """Every refusal: {"error": {"type": ..., "message": ...}}."""

    error: dict[str, str]

    @classmethod
    def of(cls, kind: str, message: str) -> Fault:
        """A refusal of the kind, in words."""
        return cls(error={"type": kind, "message": message})
