"""`likes`: a person's ratings as a reward. It knows the pictures that were rated and no others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from nft_pipeline.files.picture_list import read_rows
from nft_pipeline.files.pictures import read_picture

from ..contract import Reward, RewardError, RewardInfo, RewardOutput
from ..pictures import content_hash

REWARDS = {"likes": "Likes"}


class Likes(Reward):
    """1 for liked pictures, 0 for disliked ones.

    Args:
        folder: pictures rated with `diffusion-nft rate`, recognised by their pixels wherever they come from. Without
            it a picture's own metadata must have `liked`, as the lines of metadata.jsonl do.
    """

    info = RewardInfo(name="likes", licence="a person's ratings")

    def __init__(self, folder: str | None = None) -> None:
        self.liked: dict[str, bool] = {}
        for row in read_rows(Path(folder)) if folder is not None else []:
            if isinstance(row.get("liked"), bool):
                self.liked[content_hash(read_picture(Path(str(folder)) / row["image"]))] = row["liked"]

    def score(self, images: list[Image.Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """1 for a liked picture, 0 for a disliked one; one without a rating is a RewardError."""
        found = [
            known["liked"] if isinstance(known.get("liked"), bool) else self.liked.get(content_hash(image))
            for image, known in zip(images, metadata, strict=True)
        ]
        unrated = [i for i, liked in enumerate(found) if liked is None]
        if unrated:
            which = metadata[unrated[0]].get("image", f"number {unrated[0]}")
            raise RewardError(
                f"reward 'likes' has no rating for {len(unrated)} pictures of {len(found)}, the first is {which}; "
                "rate them with: diffusion-nft rate FOLDER"
            )
        return RewardOutput(torch.tensor([float(bool(liked)) for liked in found]))
