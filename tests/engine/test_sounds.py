"""What is special about models of sounds: ACE-Step's steps without rows for no prompt, Stable Audio's time."""

from __future__ import annotations

import math
from types import SimpleNamespace

import diffusers
import pytest
import torch

from helpers.zoo import CASES, adapter_for
from nft_pipeline.commands.guided import check_stock_arguments
from nft_pipeline.errors import GuidanceError
from nft_pipeline.families.known.stable_audio import FAMILY as STABLE_AUDIO
from nft_pipeline.pipeline import DiffusionNFTPipeline
from nft_pipeline.sampling import draw

ACE_STEP = CASES["AceStepPipeline"]


def test_ace_steps_rows_are_known_where_its_own_guidance_is_off_for_some_steps() -> None:
    pipe = ACE_STEP.pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(ACE_STEP, pipe, tilt=4.0))
    call = {"cfg": True, "num_inference_steps": 4, "cfg_interval_start": 0.3}
    both = ACE_STEP.sample(guided, [0, 1], **call)
    stats = guided.nft_stats
    assert stats.alpha.shape == (4, 2)
    one = ACE_STEP.sample(guided, [1], **call)
    torch.testing.assert_close(guided.nft_stats.alpha[:, 0], stats.alpha[:, 1], atol=1e-4, rtol=0)
    torch.testing.assert_close(one, both[1:], atol=1e-4, rtol=0)
    ACE_STEP.sample(guided, [0, 1], num_inference_steps=4)  # none of it
    torch.testing.assert_close(guided.nft_stats.alpha[0], stats.alpha[0], atol=1e-5, rtol=0)


def test_what_shows_pictures_says_that_a_model_of_sounds_draws_none_and_has_no_size() -> None:
    pipe = ACE_STEP.pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(ACE_STEP, pipe))
    check_stock_arguments({"num_inference_steps": 2}, guided)
    with pytest.raises(ValueError, match="AceStepPipeline has no use for --width and --height; leave that out"):
        check_stock_arguments({"num_inference_steps": 2, "width": 8, "height": 8}, guided)
    with pytest.raises(GuidanceError, match="draws no pictures, and nothing else can be shown here"):
        draw(guided, [("0", 0)], [1.0], num_inference_steps=1, audio_duration=1.0, output_type="latent")


def test_stable_audios_time_is_read_under_both_schedulers_that_it_has() -> None:
    """The one it is published with needs the package torchsde; its timesteps are 2 / pi atan(sigma)."""
    edm = diffusers.EDMDPMSolverMultistepScheduler(sigma_min=0.3, sigma_max=500.0, sigma_data=1.0)
    edm.set_timesteps(6)
    cosine = SimpleNamespace(sigmas=edm.sigmas, timesteps=edm.sigmas[:-1].atan() / math.pi * 2)
    for scheduler in (edm, cosine):
        x = torch.zeros(2, 4, 16)
        levels = torch.stack(
            [
                STABLE_AUDIO.noise_level({"hidden_states": x, "timestep": t[None]}, scheduler)
                for t in scheduler.timesteps
            ]
        )
        sigmas = scheduler.sigmas[:-1]
        torch.testing.assert_close(levels, (sigmas / (1 + sigmas))[:, None].expand(-1, 2))
        assert levels[0, 0] > 0.99 and levels[-1, 0] < 0.25
