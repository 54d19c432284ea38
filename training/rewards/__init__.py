"""Rewards: what a run optimises. `load_rewards({"image_reward": 1.0, "ocr": 0.5})` gives one, ready to call.

    from nft_pipeline.training.rewards import load_rewards
    output = load_rewards({"ocr": 1.0, "jpeg_size": -0.1})(pictures, prompts)

Importing this loads torch and Pillow; a reward's own packages are imported when that reward is loaded.
"""

from .contract import Reward, RewardError, RewardInfo, RewardOutput
from .mix import RewardEntry, RewardMix, load_rewards, parse_rewards
from .registry import known_rewards, load_reward

__all__ = [
    "Reward",
    "RewardEntry",
    "RewardError",
    "RewardInfo",
    "RewardMix",
    "RewardOutput",
    "known_rewards",
    "load_reward",
    "load_rewards",
    "parse_rewards",
]
