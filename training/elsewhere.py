"""What other trainers call a setting, and what does the same here: for the error that an unknown key gets."""

from __future__ import annotations

from collections.abc import Iterable

from nft_pipeline.checks import did_you_mean

_SAME = {
    "lr": ("learning_rate", "unet_lr"),
    "rank": ("network_dim", "lora_rank", "lora_dim", "lora_r", "r"),
    "steps": ("max_train_steps", "max_steps", "train_steps", "num_train_steps", "iterations"),
    "passes": ("epochs", "num_epochs", "max_train_epochs", "num_train_epochs"),
    "batch": ("train_batch_size", "batch_size", "effective_batch_size"),
    "micro_batch": ("per_device_train_batch_size", "micro_batch_size", "microbatch"),
    "checkpoint_every": ("checkpointing_steps", "save_every", "save_every_n_steps", "save_freq", "save_steps"),
    "samples_every": ("sample_every", "sample_every_n_steps", "validation_steps", "validation_epochs"),
    "sweep_every": ("eval_every", "eval_freq", "eval_steps"),
    "sample_prompts": ("validation_prompt", "validation_prompts"),
    "precision": ("mixed_precision", "dtype", "weight_dtype"),
    "base_model": ("model", "pretrained_model_name_or_path", "pretrained_model", "checkpoint"),
    "base_revision": ("revision",),
    "base_variant": ("variant",),
    "init_from": ("network_weights", "lora_path", "resume_lora"),
    "data": ("train_data_dir", "instance_data_dir", "dataset", "dataset_name", "image_dir"),
    "pool_steps": ("num_inference_steps", "num_steps", "sampling_steps", "sample_steps"),
    "guidance_scale": ("cfg", "cfg_scale", "guidance"),
    "group_size": ("num_image_per_prompt", "num_images_per_prompt", "num_generations"),
    "round_prompts": ("prompts_per_round", "num_prompts", "unique_prompts"),
    "round_steps": ("num_inner_epochs", "inner_steps"),
    "old": ("decay_type",),
    "ema": ("ema_decay",),
    "noise_shift": ("timestep_shift", "discrete_flow_shift", "flow_shift"),
    "noise_spread": ("logit_std",),
    "noise_within": ("timestep_range",),
    "quantise": ("quantize", "quantization", "fp8_base"),
    "resolution": ("height", "width", "image_size"),
    "trackers": ("report_to", "log_with"),
    "reward": ("reward_fn", "reward_function", "reward_model"),
}
_WORDS = {
    "beta": "tilt is 2 / beta: for a beta of 0.1 set tilt: 20",
    "kl": "the anchor to the base model is eta0",
    "kl_coef": "the anchor to the base model is eta0",
    "weighting_scheme": "set noise_spread: 1 for logit_normal; noise_shift alone is even in u",
    "logit_mean": "noise_shift is e to the power of it",
    "min_timestep": "noise_within is the range of noise levels, as two numbers from 0 to 1",
    "max_timestep": "noise_within is the range of noise levels, as two numbers from 0 to 1",
    "lora_alpha": "a LoRA's alpha is its rank here, so that its scale is 1; raise lr instead",
    "network_alpha": "a LoRA's alpha is its rank here, so that its scale is 1; raise lr instead",
    "gradient_accumulation_steps": "batch is what a step learns from, micro_batch how much of it is in memory at once",
    "max_grad_norm": "gradients are always clipped to a norm of 1",
    "lr_scheduler": "lr rises over the first twentieth, then falls along a cosine offline and stays online",
    "lr_warmup_steps": "lr rises over the first twentieth of the run",
    "use_8bit_adam": "set optimizer: adamw8bit",
    "output_dir": "the run's folder is given on the command line, as --out",
    "resume_from_checkpoint": "the same command goes on from where it stopped",
    "enable_xformers_memory_efficient_attention": "torch's own attention is used, which saves as much",
    "num_epochs_per_round": "round_steps is the number of steps per round",
}
_HINTS = {word: f"it is called {ours} here" for ours, words in _SAME.items() for word in words} | _WORDS


def hint_for(key: object, known: Iterable[str]) -> str:
    """What to say behind "... is not a setting": what it is called here, else the nearest known name, else nothing.

    Args:
        key: the unknown key.
        known: the names of all settings.
    """
    words = _HINTS.get(str(key).lower())
    return f"; {words}" if words else did_you_mean(key, known)
