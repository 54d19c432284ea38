"""`image_reward`: the reward model of ImageReward (2304.05977), by the package image-reward itself."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..contract import RewardError, RewardInfo
from ..models.image_reward_compat import import_image_reward, tokenizer_from
from ..models.model_reward import ModelReward
from ..models.weights import check_keys, identity, locate_file

REWARDS = {"image_reward": "ImageReward"}
NEEDS = {"ImageReward": "image-reward"}
_LONGEST = 35  # tokens of the prompt; the model was trained with this length, padding included


class ImageReward(ModelReward):
    """How well people would like a picture for its prompt; about normally distributed, mean 0 and deviation 1.

    Unlike the package's own `score` it takes many pictures in one forward, and its scores can be differentiated with
    respect to a tensor of pictures.

    Args:
        weights: the checkpoint: a file, or a folder or Hub id that has ImageReward.pt.
        med_config: the text encoder's configuration: a file, or a folder or Hub id that has med_config.json (default:
            where `weights` is).
        tokenizer: BERT's tokenizer, a folder or a Hub id.
        device: where it is computed.
        batch: pictures at once; fewer need less memory.
    """

    info = RewardInfo(
        name="image_reward",
        range=(-float("inf"), float("inf")),
        middle=0.0,
        spread=1.0,
        licence="Apache-2.0",
        memory_gb=1.9,
    )

    def __init__(
        self,
        weights: str = "THUDM/ImageReward",
        med_config: str | None = None,
        tokenizer: str = "bert-base-uncased",
        device: str = "cpu",
        batch: int = 16,
    ) -> None:
        package = import_image_reward()
        self.device, self.batch = torch.device(device), batch
        file = locate_file(weights, "ImageReward.pt")
        beside = str(file.parent) if weights == str(file) else weights
        config = locate_file(med_config or beside, "med_config.json")
        said = io.StringIO()  # the loader prints
        with tokenizer_from(tokenizer), contextlib.redirect_stdout(said):
            try:
                self.model: Any = package.load(str(file), device=device, med_config=str(config))
            except RuntimeError as error:  # load_state_dict: a tensor of another shape
                faults = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
                raise RewardError(
                    f"{file.name} does not fit {config.name}: {faults[0] if faults else error}"
                    + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else "")
                ) from error
        # The package loads with strict=False and says nothing of what the file lacks.
        check_keys(sorted(set(self.model.state_dict()) - _keys(str(file))), (), f"the tensors of {file.name}")
        words, known = len(self.model.blip.tokenizer), self.model.blip.text_encoder.config.vocab_size
        if words != known:  # where it finds no files, transformers makes a tokenizer that knows no word
            raise RewardError(
                f"the tokenizer {tokenizer!r} has {words} tokens, expected {known}: give the path of a folder with "
                "BERT's vocab.txt, or a Hub id while the network is there"
            )
        self.model.requires_grad_(False)
        self.info = replace(self.info, version=f"1 {identity(str(file))}")

    def score_pixels(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """ImageReward's score, about normally distributed with mean 0 and deviation 1."""
        tokens = self.model.blip.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=_LONGEST, return_tensors="pt"
        ).to(self.device)
        return self.model.score_gard(tokens.input_ids, tokens.attention_mask, pixels).squeeze(-1)


def _keys(file: str) -> set[str]:
    try:
        return set(torch.load(file, map_location="cpu", weights_only=True, mmap=True))
    except RuntimeError:  # a file of the format before torch 1.6, which cannot be mapped
        return set(torch.load(file, map_location="cpu", weights_only=True))
