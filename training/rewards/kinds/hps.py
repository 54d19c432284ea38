"""`hps_v2`: the Human Preference Score v2 and v2.1 (2306.09341), a CLIP-H tuned on people's choices, by open_clip.

open_clip and image-reward ask for different versions of timm, which neither needs here. pip therefore does not install
both in one run: install the extra `hps` by itself, or serve this reward from an environment of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..contract import RewardError, RewardInfo
from ..models.model_reward import ModelReward
from ..models.weights import check_keys, float_type, identity, locate_file

REWARDS = {"hps_v2": "HPSv2"}
NEEDS = {"open_clip": "hps"}


class HPSv2(ModelReward):
    """cos(picture, prompt) of a CLIP-H tuned on people's choices, about 0.2 to 0.35.

    Args:
        weights: the checkpoint: a file, or a folder or Hub id that has `HPS_v2.1_compressed.pt`.
        model: open_clip's name of the architecture.
        device, dtype: where and in what it is computed.
        batch: pictures at once; fewer need less memory.
    """

    info = RewardInfo(name="hps_v2", range=(-1.0, 1.0), middle=0.27, spread=0.02, licence="Apache-2.0", memory_gb=4.0)

    def __init__(
        self,
        weights: str = "xswu/HPSv2",
        model: str = "ViT-H-14",
        device: str = "cpu",
        dtype: str = "float32",
        batch: int = 16,
    ) -> None:
        import open_clip

        self.device, self.batch, self.dtype = torch.device(device), batch, float_type(dtype)
        if model not in open_clip.list_models():
            raise RewardError(f"reward 'hps_v2': open_clip has no model {model!r}; the published weights are ViT-H-14")
        file = locate_file(weights, "HPS_v2.1_compressed.pt")
        self.model: Any = open_clip.create_model(model)
        state = torch.load(file, map_location="cpu", weights_only=True)
        missing, unexpected = self.model.load_state_dict(state.get("state_dict", state), strict=False)
        # open_clip once kept a buffer of positions in the file.
        check_keys(missing, [key for key in unexpected if "position_ids" not in key], f"the tensors of {file.name}")
        self.model.to(self.device, self.dtype).eval().requires_grad_(False)
        self.tokenizer = open_clip.get_tokenizer(model)
        side = self.model.visual.image_size
        self.size = side[0] if isinstance(side, tuple | list) else side
        self.info = replace(self.info, version=f"1 {identity(str(file))} {dtype}")

    def score_pixels(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """cos(picture, prompt), about 0.2 to 0.35."""
        with torch.no_grad():
            text = self.model.encode_text(self.tokenizer(prompts).to(self.device)).float()
        seen = self.model.encode_image(pixels.to(self.dtype)).float()
        return (normalize(seen, dim=-1) * normalize(text, dim=-1)).sum(dim=-1)
