"""Tiny pipelines of models that make sounds and music: ACE-Step, Stable Audio and Stable Audio 3."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from helpers.zoo_case import WIDTH, WORDS, Case, awake, embeds, rows

LENGTH, CHANNELS = 16, 4


class _Conditions(nn.Module):
    """In the place of ACE-Step's encoder of text, lyrics and timbre: the text as it is."""

    dtype, device = torch.float32, torch.device("cpu")  # which pipelines ask of their parts

    def __init__(self) -> None:
        super().__init__()
        self.null_condition_emb = nn.Parameter(rows([0], 1, WIDTH, seed=4))
        self.silence_latent = nn.Parameter(rows([0], LENGTH, CHANNELS, seed=3))

    def forward(self, text_hidden_states: Tensor, text_attention_mask: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        return text_hidden_states, text_attention_mask


class _Sizes(nn.Module):
    """In the place of Stable Audio 3's autoencoder: its sizes alone."""

    dtype, device = torch.float32, torch.device("cpu")
    config, downsampling_ratio = SimpleNamespace(sampling_rate=8, latent_dim=CHANNELS), 2


def _ace_step() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.AceStepTransformer1DModel(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        in_channels=3 * CHANNELS,
        audio_acoustic_hidden_dim=CHANNELS,
        sliding_window=4,
        encoder_hidden_size=WIDTH,
    )
    pipe = diffusers.AceStepPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=awake(transformer),
        condition_encoder=_Conditions(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )

    def encode_prompt(prompt: list[str], **_: Any) -> tuple[Tensor, ...]:
        text = rows([int(index) for index in prompt], WORDS, WIDTH, seed=2)
        mask = torch.ones(len(prompt), WORDS)
        return text, mask, text, mask

    pipe.encode_prompt = encode_prompt
    return pipe


def _stable_audio() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.StableAudioDiTModel(
        sample_size=LENGTH,
        in_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        out_channels=CHANNELS,
        cross_attention_dim=16,
        time_proj_dim=8,
        global_states_input_dim=2 * WIDTH,
        cross_attention_input_dim=WIDTH,
    )
    vae = diffusers.AutoencoderOobleck(
        encoder_hidden_size=4,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=CHANNELS,
        audio_channels=2,
        channel_multiples=[1, 2],
        sampling_rate=4,
    )
    text = diffusers.StableAudioProjectionModel(
        text_encoder_dim=WIDTH, conditioning_dim=WIDTH, min_value=0, max_value=32
    )
    return diffusers.StableAudioPipeline(
        vae=vae.eval(),
        text_encoder=None,
        projection_model=text.eval(),
        tokenizer=None,
        transformer=awake(transformer),
        scheduler=diffusers.EDMDPMSolverMultistepScheduler(
            solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_min=0.3, sigma_max=500.0
        ),
    )


def _stable_audio_3() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.StableAudio3DiTModel(
        io_channels=CHANNELS,
        embed_dim=16,
        depth=2,
        num_heads=2,
        cond_token_dim=WIDTH,
        global_cond_dim=WIDTH,
        num_memory_tokens=2,
    )
    return diffusers.StableAudio3Pipeline(
        vae=_Sizes(),
        text_encoder=None,
        tokenizer=None,
        duration_embedder=diffusers.StableAudio3DurationEmbedder(output_dim=WIDTH, fourier_dim=8).eval(),
        transformer=awake(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1),
    )


CASES: dict[str, Case] = {
    "AceStepPipeline": Case(
        _ace_step,
        conditions=lambda indices: {
            "prompt": [str(i) for i in indices],
            "audio_duration": LENGTH / 25,
            "guidance_scale": 1.0,
        },
        cfg=lambda indices: {"guidance_scale": 3.0},
        start=(LENGTH, CHANNELS),
    ),
    "StableAudioPipeline": Case(
        _stable_audio,
        conditions=lambda indices: {**embeds(indices), "guidance_scale": 1.0, "audio_end_in_s": 4.0},
        cfg=lambda indices: {**embeds(indices, negative=True), "guidance_scale": 3.0},
        start=(CHANNELS, LENGTH),
    ),
    "StableAudio3Pipeline": Case(
        _stable_audio_3,
        conditions=lambda indices: {**embeds(indices), "duration": LENGTH / 4},
        cfg=lambda indices: {**embeds(indices, negative=True), "guidance_scale": 3.0},
        start=(CHANNELS, LENGTH),
    ),
}
