"""A calibrated adapter in the pipeline: which map it is drawn by, rates that are asked for, and what the stats say."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.dialled import a_dial, tilt_map
from helpers.tiny import counted_forwards, sample, tiny_adapter, tiny_pipe
from nft_pipeline.dial.promise import odds_rate
from nft_pipeline.dial.scale import calibrated_scale, gated, weight_scale
from nft_pipeline.errors import GuidanceError
from nft_pipeline.pipeline import DiffusionNFTPipeline

CFG: dict[str, Any] = {"guidance_scale": 4.0, "negative_prompt": "a dog"}
ONE: dict[str, Any] = {"num_inference_steps": 1}
NO_OFFSETS = a_dial(offsets=(), slope=1.0)


def adapter(pipe: Any, dial: Any = NO_OFFSETS, base_rate: float | None = None, **made: Any) -> Any:
    """A tiny adapter with a dial."""
    plain = tiny_adapter(pipe.transformer, **made)
    return replace(plain, config=replace(plain.config, dial=dial, base_rate=base_rate))


def guided(dial: Any = NO_OFFSETS, **made: Any) -> Any:
    pipe = tiny_pipe()
    return DiffusionNFTPipeline.from_pipe(pipe, adapter(pipe, dial, **made))


def expected(alpha: float, weight: float, slope: float = 0.5, rate: float = 0.4) -> float:
    """s at alpha by the map of `helpers.dialled.tilt_map`."""
    return float(weight_scale(gated(torch.tensor([alpha]), rate, slope), weight, rate))


def test_left_out_mode_and_law_are_those_of_the_calibration() -> None:
    pipe = guided(alpha=0.6)
    with counted_forwards(pipe.transformer) as forwards:
        picture = sample(pipe, nft_strength=0.5, num_inference_steps=3)
    assert forwards == [3], "its map is of one pass"
    scale = pipe.nft_stats.scale[:, 0].tolist()
    assert scale == pytest.approx([0.5, expected(0.6, 0.5), expected(0.6, 0.5)]), "the first step takes the base rate"
    assert torch.equal(picture, sample(pipe, nft_strength=0.5, num_inference_steps=3, nft_mode="single"))


def test_an_adapter_without_a_dial_is_drawn_by_its_law_in_two_passes() -> None:
    for kind, law in (("positive", "odds"), ("policy", "nft")):
        pipe = guided(None, kind=kind)
        with counted_forwards(pipe.transformer) as forwards:
            picture = sample(pipe, nft_strength=0.5, **ONE)
        assert forwards == [2]
        assert torch.equal(picture, sample(pipe, nft_strength=0.5, nft_law=law, nft_mode="two_pass", **ONE))


def test_a_mode_that_was_not_calibrated_is_drawn_by_the_law() -> None:
    pipe = guided(alpha=0.6)
    picture = sample(pipe, nft_mode="two_pass", **ONE)
    assert torch.equal(picture, sample(pipe, nft_mode="two_pass", nft_law="odds", **ONE))
    rho = math.expm1(2.0)
    assert float(pipe.nft_stats.scale) == pytest.approx(rho * 0.6 / (1 + rho * 0.6))


@pytest.mark.parametrize("mode", ["two_pass", "single"])
def test_a_law_that_is_asked_for_does_not_look_at_the_dial(mode: str) -> None:
    with_dial, without = guided(base_rate=0.4), guided(None, base_rate=0.4)
    for law in ("nft", "odds"):
        call = {"nft_law": law, "nft_mode": mode, "num_inference_steps": 2}
        assert torch.equal(sample(with_dial, **call), sample(without, **call))
    with counted_forwards(with_dial.transformer) as forwards:
        sample(with_dial, nft_law="odds", **ONE)
    assert forwards == [2], "with a law alone it is two passes, as without a dial"


def test_a_cap_takes_the_two_passes_that_it_needs() -> None:
    two = tilt_map(mode="two_pass", slope=0.0)
    pipe = guided(a_dial(tilt_map(), two))
    with counted_forwards(pipe.transformer) as forwards:
        sample(pipe, nft_cap=100.0, nft_strength=0.5, **ONE)
    assert forwards == [2] and float(pipe.nft_stats.scale) == pytest.approx(0.5), "by the map of two passes"


@pytest.mark.parametrize(("scale", "weight"), [(1.0, 0.5), (2.4, 0.5), (2.6, 0.25), (4.0, 0.25), (9.0, 0.25)])
def test_the_map_is_that_of_the_nearest_guidance_scale(scale: float, weight: float) -> None:
    strong = tilt_map(guidance_scale=4.0, weights=(-0.5, 0.0, 0.25, 1.0), slope=0.0)
    pipe = guided(a_dial(tilt_map(slope=0.0), strong))
    sample(pipe, nft_strength=0.5, **{**CFG, "guidance_scale": scale}, **ONE)
    assert float(pipe.nft_stats.scale) == pytest.approx(weight)


def test_a_policy_is_drawn_by_its_map() -> None:
    dial = a_dial(tilt_map(weights=(-1.0, 0.0, 0.7, 1.0)), offsets=(), slope=1.0)
    pipe = guided(dial, kind="policy", tilt=4.0)
    one = sample(pipe, **ONE)
    assert float(pipe.nft_stats.scale) == 1.0 and pipe.nft_stats.forwards == 1
    assert torch.equal(one, sample(guided(None, kind="policy", tilt=4.0), **ONE)), "strength 1 is the LoRA itself"
    sample(pipe, nft_strength=0.25, **ONE)
    assert float(pipe.nft_stats.scale) == pytest.approx(0.7)
    assert pipe.nft_stats.forecasts is None
    with pytest.raises(ValueError, match="there is no forecast: nothing was guided by an adapter with an alpha head"):
        _ = pipe.nft_stats.forecast


@pytest.mark.parametrize("call", [{}, CFG], ids=["cfg_free", "cfg"])
@pytest.mark.parametrize("mode", [None, "single", "two_pass", "batched"])
def test_strength_0_is_the_base_model_bit_for_bit(mode: str | None, call: dict) -> None:
    stock = sample(tiny_pipe(), **call)
    dial = a_dial(tilt_map(), tilt_map(mode="two_pass"))
    assert torch.equal(sample(guided(dial), nft_strength=0, nft_mode=mode, **call), stock)
    assert torch.equal(sample(guided(dial, kind="policy"), nft_strength=0, nft_mode=mode, **call), stock)


# --- an own way that goes on in two passes ---

TWO_PASSES = tilt_map(
    mode="two_pass",
    slope=0.0,
    tilts=(-2.0, 0.0, 4.5, 6.0),
    weights=(-1.0, 0.0, 1.5, 3.0),
    rates=(0.1, 0.4, 0.92, 0.96),
    errors=(0.01,) * 4,
)
GOES_ON = a_dial(tilt_map(slope=0.0, goes_on=True), TWO_PASSES)


@pytest.mark.parametrize("kind", ["positive", "policy"])
def test_the_mode_goes_by_the_tilt_that_is_asked_for(kind: str) -> None:
    pipe = guided(GOES_ON, kind=kind)
    per_one = 4.0 / pipe.nft_config.tilt  # the strength at which one pass ends
    for share, mode, scale, forwards in ((0.25, "single", 0.5, 1), (1.0, "single", 2.0, 1), (1.5, "two_pass", 3.0, 2)):
        with counted_forwards(pipe.transformer) as counted:
            own = sample(pipe, nft_strength=share * per_one, **ONE)
        assert counted == [forwards] and float(pipe.nft_stats.scale) == pytest.approx(scale)
        asked = sample(pipe, nft_strength=share * per_one, nft_mode=mode, **ONE)
        assert torch.equal(own, asked), "as the mode draws that is asked for by name"
        assert pipe.promise(strength=share * per_one).mode == mode


def test_a_mode_that_is_asked_for_ends_where_it_ends() -> None:
    pipe = guided(GOES_ON)
    end = sample(pipe, nft_strength=2.0, nft_mode="single", **ONE)
    assert torch.equal(sample(pipe, nft_strength=3.0, nft_mode="single", **ONE), end)
    promised = pipe.promise(strength=3.0, mode="single")
    assert promised.rate == pytest.approx(0.9) and promised.mode == "single"
    assert "mode two_pass reaches 96%" in pipe.promise(strength=9.0, mode="single").limit
    assert "it reaches 96% at strength 3" in pipe.promise(strength=9.0).limit


def test_pictures_of_several_strengths_are_drawn_in_the_way_of_the_furthest() -> None:
    pipe = guided(GOES_ON)
    with counted_forwards(pipe.transformer) as counted:
        sample(pipe, nft_strength=[0.5, 3.0], num_images_per_prompt=2, **ONE)
    assert counted == [2] and pipe.nft_stats.scale[0].tolist() == pytest.approx([1 / 3, 3.0])
    with counted_forwards(pipe.transformer) as counted:
        sample(pipe, nft_strength=[0.5, 2.0], num_images_per_prompt=2, **ONE)
    assert counted == [1] and pipe.nft_stats.scale[0].tolist() == pytest.approx([0.5, 2.0])


def test_a_rate_beyond_one_pass_is_drawn_in_two() -> None:
    pipe = guided(GOES_ON)
    for rate, forwards, strength in ((0.6, 1, 0.5), (0.9, 1, 2.0), (0.94, 2, 2.625)):
        with counted_forwards(pipe.transformer) as counted:
            drawn = sample(pipe, nft_rate=rate, **ONE)
        assert counted == [forwards], rate
        assert torch.equal(drawn, sample(pipe, nft_strength=strength, **ONE)), rate
        assert pipe.promise(strength=strength).rate == pytest.approx(rate)
    with pytest.raises(GuidanceError, match=r"from 0\.10 to 0\.96 in the mode single and then two_pass"):
        sample(pipe, nft_rate=0.97)
    with pytest.raises(GuidanceError, match=r"from 0\.10 to 0\.90 in the mode single"):
        sample(pipe, nft_rate=0.94, nft_mode="single")


def test_a_law_or_a_cap_is_drawn_in_two_passes_whatever_the_tilt() -> None:
    pipe = guided(GOES_ON, alpha=0.6)
    for call in ({"nft_law": "odds"}, {"nft_cap": 0.9}):
        with counted_forwards(pipe.transformer) as counted:
            sample(pipe, nft_strength=0.5, **call, **ONE)
        assert counted == [2], call


def test_where_no_map_covers_the_call_the_mode_is_that_of_small_tilts() -> None:
    pipe = guided(GOES_ON, alpha=0.6)
    call = {**CFG, "nft_guide": "cond", "nft_strength": 3.0, **ONE}
    assert torch.equal(sample(pipe, **call), sample(pipe, nft_mode="single", **call))


def test_a_strength_that_changes_on_the_way_stays_in_the_mode_of_the_call() -> None:
    pipe = guided(GOES_ON)

    def more(pipeline: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipeline.set_nft_strength(3.0)
        return kwargs

    sample(pipe, nft_strength=0.5, num_inference_steps=2, callback_on_step_end=more)
    assert pipe.nft_stats.scale[:, 0].tolist() == pytest.approx([0.5, 2.0]), "as far as one pass goes"


def test_of_two_adapters_the_further_one_decides() -> None:
    pipe = tiny_pipe()
    goes_on, ends = adapter(pipe, GOES_ON, alpha=0.6), adapter(pipe, a_dial(tilt_map(slope=0.0)), alpha=0.25, seed=8)
    both = DiffusionNFTPipeline.from_pipe(pipe, {"a": goes_on, "b": ends})
    with counted_forwards(pipe.transformer) as counted:
        sample(both, nft_strength={"a": 1.0, "b": 1.0}, **ONE)
    assert counted == [1]
    with counted_forwards(pipe.transformer) as counted:
        sample(both, nft_strength={"a": 3.0, "b": 1.0}, **ONE)
    assert counted == [3]


# --- asking for a rate ---


def test_a_rate_draws_what_its_strength_draws() -> None:
    pipe = guided()
    for rate, strength in ((0.6, 0.5), (0.75, 1.25), (0.1, -1.0), (0.4, 0.0)):
        assert torch.equal(sample(pipe, nft_rate=rate, **ONE), sample(pipe, nft_strength=strength, **ONE)), rate
    named = sample(pipe, nft_rate={"default": 0.6}, **ONE)
    assert torch.equal(named, sample(pipe, nft_strength=0.5, **ONE))


def test_a_rate_goes_through_the_map_of_the_mode_that_is_asked_for() -> None:
    pipe = guided(a_dial(tilt_map(), tilt_map(mode="two_pass", slope=0.0, rates=(0.1, 0.4, 0.5, 0.6))))
    sample(pipe, nft_rate=0.5, nft_mode="two_pass", **ONE)
    assert float(pipe.nft_stats.scale) == pytest.approx(0.5)
    with pytest.raises(GuidanceError, match=r"reaches shares from 0\.10 to 0\.60 in the mode two_pass"):
        sample(pipe, nft_rate=0.8, nft_mode="two_pass")


def test_a_rate_of_an_adapter_that_only_knows_its_base_rate_is_the_odds_law_s() -> None:
    pipe = guided(None, base_rate=0.3)
    picture = sample(pipe, nft_rate=0.6, **ONE)
    tilt = math.log(0.6 / 0.4) - math.log(0.3 / 0.7)
    assert torch.equal(picture, sample(pipe, nft_strength=tilt / 2, **ONE))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "out of reach": ({"nft_rate": 0.95}, r"nft_rate is 0.95, and 'tiny' reaches shares from 0\.10 to 0\.90"),
    "out of range": ({"nft_rate": 1.0}, "nft_rate is 1.0, expected a number between 0 and 1"),
    "a text": ({"nft_rate": "0.5"}, "nft_rate is '0.5', expected a number"),
    "a truth": ({"nft_rate": True}, "nft_rate is True, expected a number"),
    "with strength": ({"nft_rate": 0.5, "nft_strength": 1.0}, "nft_rate=0.5 and nft_strength were both given"),
    "with beta": ({"nft_rate": 0.5, "nft_beta": 1.0}, "nft_rate=0.5 and nft_beta were both given"),
    "with law": ({"nft_rate": 0.5, "nft_law": "odds"}, "nft_rate=0.5 and nft_law were both given"),
    "unknown": ({"nft_rate": {"defualt": 0.5}}, "nft_rate names the adapter 'defualt'.*Did you mean \"default\""),
    "named, wrong": ({"nft_rate": {"default": 2}}, "nft_rate is 2, expected a number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_rate_that_cannot_be_is_refused_before_anything_runs(case: str) -> None:
    pipe, (call, message) = guided(), REFUSED[case]
    with counted_forwards(pipe.transformer) as forwards, pytest.raises(GuidanceError, match=message):
        sample(pipe, **call)
    assert forwards == [0]


def test_a_rate_without_a_calibration_says_how_to_get_one() -> None:
    for pipe in (guided(None), guided(None, kind="policy")):
        with pytest.raises(GuidanceError, match=r"'tiny' does, and it was never calibrated\. Run diffusion-nft"):
            sample(pipe, nft_rate=0.5)


# --- what was drawn ---


def test_the_forecast_is_alpha_mended_at_the_tilt() -> None:
    pipe = guided(alpha=0.6)
    sample(pipe, nft_strength=1.25, num_images_per_prompt=2, num_inference_steps=3)
    torch.testing.assert_close(pipe.nft_stats.forecast, torch.full((3, 2), odds_rate(0.6, 2.5)))
    assert "forecast: these pictures are liked with 95%" in str(pipe.nft_stats)
    sample(pipe, nft_strength=50.0, **ONE)
    assert float(pipe.nft_stats.forecast) == pytest.approx(odds_rate(0.6, 4.0)), "no more than the map reaches"
    law = guided(None, alpha=0.6)
    sample(law, nft_strength=1.5, **ONE)
    assert float(law.nft_stats.forecast) == pytest.approx(odds_rate(0.6, 3.0))


def test_a_strength_that_changes_on_the_way_goes_through_the_map() -> None:
    pipe = guided(a_dial(tilt_map(slope=0.0), offsets=(), slope=1.0), alpha=0.6)

    def more(pipeline: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            pipeline.set_nft_strength(2.0)
        return kwargs

    sample(pipe, nft_strength=0.5, num_inference_steps=4, callback_on_step_end=more)
    assert pipe.nft_stats.scale[:, 0].tolist() == pytest.approx([0.5, 0.5, 2.0, 2.0])
    torch.testing.assert_close(pipe.nft_stats.forecast[-1], torch.tensor([odds_rate(0.6, 4.0)]))


def test_a_schedule_multiplies_the_tilt_before_the_map() -> None:
    pipe = guided(a_dial(tilt_map(slope=0.0)))
    sample(pipe, nft_strength=1.0, nft_schedule=[(0.0, 0.25), (1.0, 0.25)], **ONE)
    assert float(pipe.nft_stats.scale) == pytest.approx(0.25)


def test_offsets_of_the_noise_level_go_into_the_gate() -> None:
    dial = a_dial()
    pipe = guided(a_dial(tilt_map(mode="two_pass")), alpha=0.6)
    sample(pipe, nft_strength=0.5, num_inference_steps=4)
    stats = pipe.nft_stats
    tilt, alpha = torch.ones(4), torch.full((4,), 0.6)
    by_hand = calibrated_scale(dial, dial.own, alpha, tilt, stats.noise_level[:, 0])
    torch.testing.assert_close(stats.scale[:, 0], by_hand)
    assert stats.scale[0] > stats.scale[-1], "the offset is that of high noise"


def test_of_several_adapters_each_goes_its_own_way() -> None:
    pipe = tiny_pipe()
    dialled = adapter(pipe, a_dial(tilt_map(mode="two_pass", slope=0.0)), alpha=0.6)
    plain = adapter(pipe, None, alpha=0.25, seed=8)
    both = DiffusionNFTPipeline.from_pipe(pipe, {"a": dialled, "b": plain})
    sample(both, nft_strength={"a": 0.5, "b": 1.0}, **ONE)
    rho = math.expm1(2.0)
    assert both.nft_stats.scales[:, 0, 0].tolist() == pytest.approx([0.5, rho * 0.25 / (1 + rho * 0.25)])
    forecasts = both.nft_stats.forecasts[:, 0, 0].tolist()
    assert forecasts[1] == pytest.approx(odds_rate(0.25, 2.0)) and forecasts[0] != pytest.approx(odds_rate(0.6, 1.0))
    sample(both, nft_rate={"a": 0.6}, **ONE)
    assert both.nft_stats.scales[:, 0, 0].tolist() == pytest.approx([0.5, 0.0])
    with pytest.raises(GuidanceError, match="'tiny' does, and it was never calibrated"):
        sample(both, nft_rate=0.6)


def test_adapters_whose_modes_differ_are_drawn_in_two_passes() -> None:
    pipe = tiny_pipe()
    one = adapter(pipe, a_dial(tilt_map()), alpha=0.6)
    other = adapter(pipe, None, alpha=0.25, seed=8)
    both = DiffusionNFTPipeline.from_pipe(pipe, {"a": one, "b": other})
    with counted_forwards(pipe.transformer) as forwards:
        sample(both, **ONE)
    assert forwards == [3]
