"""What `authors_trainer` sets, and where each key of the config of DiffusionNFT's authors is in a run's settings.

Theirs are config/base.py and config/nft.py of https://github.com/NVlabs/DiffusionNFT; numbers that their trainer has in
its code and not in a config stand under the names of its files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KL = 1e-4  # weight of |v - v_ref|^2, in velocity space, to the base model
BETAS = (0.9, 0.999)  # of AdamW
MOST_DECAY = 0.9  # of the average that is exported
LORA_SCALE = 2  # lora_alpha / rank
LEVELS_SHARE = 0.99  # of the sampler's noise levels, rounded down: on so many a picture is trained
TEXT_TOKENS = 128  # of the T5


@dataclass(frozen=True)
class Theirs:
    """One key of theirs.

    Args:
        key: its name, or where in their code the number stands.
        value: what they have there for SD 3.5 medium.
        setting: ours that holds it; "" if there is none.
        ours: what the preset `paper` has in that setting; None where that is yours to give.
        note: how ours differs, or what takes its place.
    """

    key: str
    value: str
    setting: str = ""
    ours: Any = None
    note: str = ""


_SWITCH = "authors_trainer"
_OF_TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
MAP = (
    Theirs("pretrained.model", "SD 3.5 medium", "base_model", "stabilityai/stable-diffusion-3.5-medium"),
    Theirs("resolution", "512", "resolution", 512),
    Theirs("seed", "42", "seed", 0, "The streams of random numbers are not theirs."),
    Theirs("num_epochs", "100000, ended by hand", "rounds", 300),
    Theirs("beta", "1.0; 0.1 for text and several rewards", "tilt", 2.0, "It is 2 / beta."),
    Theirs("decay_type", "1; 2 for text", "old", "ramp", "Their type 0 is `copy`, 1 is `ramp` and 2 is `late_ramp`."),
    Theirs("reward_fn", "names with weights", "rewards"),
    Theirs("dataset, prompt_fn", "a text file, or JSON lines with facts", "prompts"),
    Theirs("sample.num_steps", "10; 25 for several rewards", "pool_steps", 10),
    Theirs(
        "sample.eval_num_steps", "40", "sweep_steps", 40, "Of sweeps and grids; the dial is calibrated at `pool_steps`."
    ),
    Theirs("sample.guidance_scale", "1.0", "guidance_scale", 1.0),
    Theirs("sample.solver", "dpm2", _SWITCH, True, "The pipeline's own scheduler is used without it."),
    Theirs("sample.deterministic, sample.noise_level", "true; not read", note="Ours is always so."),
    Theirs("sample.num_image_per_prompt", "24", "group_size", 24),
    Theirs("num_groups (in config/nft.py)", "48", "round_prompts", 48, "Theirs may come twice in a round."),
    Theirs("sample.train_batch_size", "9", "pool_batch", 2, "It changes nothing but speed."),
    Theirs("sample.global_std, per_prompt_stat_tracking", "true", "optimality", "group"),
    Theirs("gradient_step_per_epoch", "1; 2 for text", "round_steps", 1),
    Theirs(
        "train.batch_size, train.gradient_accumulation_steps",
        "1152 pictures per step at 9 levels each",
        "batch",
        10368,
        "It is round_prompts x group_size / round_steps times the levels.",
    ),
    Theirs("train.timestep_fraction", "0.99", _SWITCH, True, "So 9 of 10 levels, of the sampler's own."),
    Theirs("train.num_inner_epochs", "1", "round_steps", 1, "More steps per round go through its pictures again."),
    Theirs("train.learning_rate", "3e-4", "lr", 3e-4),
    Theirs("train.adam_beta1, train.adam_beta2", "0.9, 0.999", _SWITCH, True),
    Theirs("train.adam_weight_decay", "1e-4", "weight_decay", 1e-4),
    Theirs("train.adam_epsilon", "1e-8", note="Ours is the same."),
    Theirs("train.max_grad_norm", "1.0", note="Ours is the same."),
    Theirs("train.adv_clip_max", "5", "optimality", "group"),
    Theirs("train.adv_mode", "all", note="Ours is always so. Their other four modes are not offered."),
    Theirs("train.beta", "1e-4", _SWITCH, True, "The velocity KL; a policy has `eta0` in its place."),
    Theirs("train.ema", "true, with decay 0.9", _SWITCH, True, "`ema` is not read then."),
    Theirs("train.lora_path", "none", "init_from"),
    Theirs("use_lora", "true", note="Ours is always so."),
    Theirs("LoraConfig (in train_nft_sd3.py): r", "32", "rank", 32),
    Theirs("LoraConfig: lora_alpha", "64", _SWITCH, True, "It is the rank without it."),
    Theirs("LoraConfig: init_lora_weights", "gaussian", note="Ours is the same."),
    Theirs(
        "LoraConfig: target_modules",
        "the attention's eight",
        "lora_targets",
        [
            f"attn.{n}"
            for n in ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
        ],
    ),
    Theirs("max_sequence_length (in train_nft_sd3.py)", "128", _SWITCH, True, "It is the pipeline's own without it."),
    Theirs("mixed_precision", "fp16", "precision", "auto", "bf16 where the hardware is fast in it."),
    Theirs(
        "save_freq",
        "30 rounds",
        "export_every",
        30,
        "In steps, of which a round has one. `checkpoint_every` is for going on.",
    ),
    Theirs("eval_freq", "10 rounds", "sweep_every", 0),
)
