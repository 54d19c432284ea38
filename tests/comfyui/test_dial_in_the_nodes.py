"""The measured dial on the FAKE of ComfyUI: which way is drawn, the rate that is asked for, and what a person reads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import fake_comfyui as fake
from helpers.comfyui_dials import RATE, dial, tilt_map
from helpers.comfyui_world import SIGMAS, STEPS, World
from nft_pipeline.adapter import AdapterConfig
from nft_pipeline.comfy_nodes.dial import forecast_line
from nft_pipeline.comfy_nodes.reward_file import describe, read_reward_file
from nft_pipeline.dial.scale import calibrated_scale
from nft_pipeline.errors import GuidanceError
from nft_pipeline.guidance import law_scale


@pytest.fixture
def world(world: World) -> World:
    world.add("dialled", "positive", 4, dial=dial(tilt_map("single", 0.5, 0.8), tilt_map("two_pass", 1.0, 0.9)))
    world.add("exact", "positive", 4, dial=dial(tilt_map("two_pass", 0.5, 0.8), tilt_map("two_pass", 0.5, 0.95, 3.0)))
    world.add("swung", "policy", 4, dial=dial(tilt_map("single", 0.0, 0.8), tilt_map("two_pass", 0.0, 0.9)))
    return world


def guide_of(model: Any) -> Any:
    return list(model.attachments.values())[-1]


def test_auto_is_what_the_calibration_found(world: World) -> None:
    guided = world.guided("dialled", strength=0.8)
    world.sample(guided)
    assert world.model.model.calls == STEPS  # one pass
    assert torch.equal(world.sample(guided), world.sample(world.guided("dialled", strength=0.8, mode="fast")))
    config, stats = world.adapters["dialled"].config, guide_of(guided).stats
    alpha = torch.cat([torch.full((1, 2), RATE), stats.alpha[:-1]])  # of the step before
    assert config.dial is not None
    for i in range(STEPS):
        expected = calibrated_scale(config.dial, config.dial.own, alpha[i], torch.full((2,), 1.6), stats.noise_level[i])
        torch.testing.assert_close(stats.scale[i], expected)


def test_in_exact_mode_the_map_of_two_passes_is_drawn(world: World) -> None:
    config = world.adapters["dialled"].config
    assert config.dial is not None

    def scale(alpha: Tensor, t: float) -> Tensor:
        return calibrated_scale(config.dial, config.dial.maps[1], alpha, torch.full((2,), 1.6), torch.full((2,), t))

    found = world.sample(world.guided("dialled", strength=0.8, mode="exact"))
    torch.testing.assert_close(found, world.by_hand(scale, "dialled", 1.0, "both"), rtol=1e-4, atol=1e-5)


def test_without_a_calibration_auto_is_the_odds_law_in_two_passes(world: World) -> None:
    found = world.sample(world.guided("liked", strength=0.8))
    expected = world.by_hand(lambda alpha, t: law_scale(alpha, 1.6, "odds"), "liked", 1.0, "both")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("values", [{"law": "nft"}, {"cap": 0.5}, {"guide": "cond"}])
def test_what_one_pass_cannot_do_makes_auto_exact(world: World, values: dict[str, Any]) -> None:
    world.sample(world.guided("dialled", **values))
    assert world.model.model.calls == 2 * STEPS


def test_a_law_that_was_asked_for_is_drawn_whatever_was_measured(world: World) -> None:
    found = world.sample(world.guided("dialled", strength=0.8, law="nft", mode="exact"))
    expected = world.by_hand(lambda alpha, t: 1.6 * alpha, "dialled", 1.0, "both")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["auto", "exact", "fast"])
def test_a_policy_goes_by_its_map(world: World, mode: str) -> None:
    """Its weight at tilt 2.5 lies between 0.7 and 1.3."""
    found = world.sample(world.guided("swung", strength=1.25, mode=mode))
    expected = world.sample(fake.ModelPatcher(world.merged("swung", 1.0)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_run_takes_the_map_of_its_own_cfg(world: World) -> None:
    config, guided = world.adapters["exact"].config, world.guided("exact", rate=0.75)
    assert config.dial is not None
    for cfg, entry in zip((1.0, 3.0), config.dial.maps, strict=True):
        tilt = float(np.interp(0.75, entry.rates, entry.tilts))

        def scale(alpha: Tensor, t: float, entry: Any = entry, tilt: float = tilt) -> Tensor:
            return calibrated_scale(config.dial, entry, alpha, torch.full((2,), tilt), torch.full((2,), t))

        expected = world.by_hand(scale, "exact", cfg, "both")
        torch.testing.assert_close(world.sample(guided, cfg), expected, rtol=1e-4, atol=1e-5)


def test_a_rate_is_the_strength_that_gives_it(world: World) -> None:
    by_rate, by_strength = world.guided("dialled", rate=0.7), world.guided("dialled", strength=1.0)
    assert torch.equal(world.sample(by_rate), world.sample(by_strength))
    odds = world.guided("liked", rate=0.6)
    assert math.isclose(guide_of(odds).plan.tilt, math.log(0.6 / 0.4) - math.log(0.31 / 0.69))


@pytest.mark.parametrize(
    ("adapter", "values", "fault"),
    [
        ("dialled", {"rate": 0.97}, r'reaches from 0.08 to 0.80 in mode "fast" at CFG 1'),
        ("dialled", {"rate": 0.85}, r'Mode "exact" reaches 0.85'),
        ("dialled", {"rate": 0.01}, "more is not to be had from this adapter"),
        ("policy", {"rate": 0.8}, r"nobody measured what 'policy' does in mode \"exact\""),
        ("dialled", {"rate": 0.7, "law": "odds"}, 'Set law to "auto", or rate to 0'),
        ("dialled", {"rate": 0.7, "strength": 2.0}, "strength is 2, but a rate finds the strength itself"),
        ("dialled", {"rate": 0.7, "beta": 1.0}, "beta is 1, but a rate finds the strength itself"),
        ("dialled", {"rate": 1.0}, "rate is 1, expected 0 \\(off\\) or the share"),
        ("dialled", {"rate": -0.1}, "rate is -0.1, expected 0"),
        ("dialled", {"rate": math.nan}, "rate is nan"),
    ],
)
def test_a_rate_that_cannot_be_had_ends_in_a_sentence_of_the_nodes(
    world: World, adapter: str, values: dict[str, Any], fault: str
) -> None:
    with pytest.raises(GuidanceError, match=fault) as caught:
        world.guided(adapter, **values)
    assert "nft_" not in str(caught.value)


def test_a_rate_that_the_cfg_of_a_run_does_not_reach_stops_the_run(world: World) -> None:
    with pytest.raises(GuidanceError, match=r'to 0\.80 in mode "exact" at CFG 1'):
        world.guided("exact", rate=0.97)
    guided = world.guided("exact", rate=0.9)  # CFG 3 reaches it
    assert world.texts[-1].startswith("34% liked becomes 90%")
    world.sample(guided, 3.0)
    with pytest.raises(GuidanceError, match=r'to 0\.80 in mode "exact" at CFG 1'):
        world.sample(guided, 1.0)


def test_the_guider_knows_its_cfg(world: World) -> None:
    (adapter,) = world.nodes.NFTLoadAdapter.execute("exact.safetensors").args
    execute, given = world.nodes.NFTGuider.execute, (world.model, adapter, world.positive, world.negative)
    guider, info = execute(*given, 3.0, strength=1.0, rate=0.9).args
    assert info.splitlines()[-1].startswith("34% liked becomes 90%")
    guider.sample(world.noise, SIGMAS)
    with pytest.raises(GuidanceError, match="at CFG 1"):
        execute(*given, 1.0, strength=1.0, rate=0.9)


def test_before_sampling_the_node_says_what_will_come_of_it(world: World) -> None:
    info = world.nodes.NFTRewardGuidance.execute(world.model, "dialled.safetensors", strength=1.0).args[1]
    assert "by what was measured, tilt 2, mode fast" in info
    assert info.splitlines()[-1] == world.texts[-1] == "34% liked becomes 70% ± 2%"
    world.guided("dialled", strength=9.0)
    assert world.texts[-1].startswith("34% liked becomes 80% ± 1%; more is not to be had from this adapter")
    world.guided("liked", strength=0.5)
    assert world.texts[-1].startswith("31% liked becomes 55% (not measured")
    world.guided("dialled", end_percent=0.5)
    assert world.texts[-1].startswith("guided in every step and without a cap: 34% liked becomes 70%")
    said = len(world.texts)
    for adapter, values in (("policy", {}), ("dialled", {"law": "nft"})):
        world.guided(adapter, **values)
    assert len(world.texts) == said  # nothing is known


def test_a_cached_node_says_it_when_sampling_starts_and_for_the_cfg_of_the_run(world: World) -> None:
    guided = world.guided("exact", strength=1.5)
    world.texts.clear()
    for cfg, start in ((1.0, "34% liked becomes 80%"), (3.0, "34% liked becomes 95%"), (4.0, "34% liked becomes 95%")):
        world.sample(guided, cfg)
        assert world.texts[0].startswith(start)
        assert world.texts[0].endswith("(measured at CFG 3)") == (cfg == 4.0)
        world.texts.clear()
    world.sample(world.guided("exact", guide="cond"), 4.0)
    assert any("not measured" in text for text in world.texts), "no map says what guide cond does under CFG"


def test_while_it_draws_the_node_says_how_each_picture_stands(world: World) -> None:
    guided = world.guided("liked", strength=0.8)
    world.texts.clear()
    world.sample(guided)
    _, *steps = world.texts
    stats = guide_of(guided).stats
    odds = stats.alpha * math.exp(1.6)
    torch.testing.assert_close(stats.forecast, odds / (1 - stats.alpha + odds))
    assert steps[-1].startswith("step 5/5  alpha 0.")
    assert f"\n{forecast_line(stats.forecast[-1])}" in steps[-1]
    assert "forecast: these pictures are liked with" in world.nodes.NFTAlphaPlot.execute({}, guided).args[2]
    world.noise = world.noise[:1]
    world.positive[0]["model_conds"]["c_crossattn"].cond = world.positive[0]["model_conds"]["c_crossattn"].cond[:1]
    world.sample(guided)
    assert world.texts[-1].endswith(
        f"\nthis picture will be liked with {float(guide_of(guided).stats.forecast[-1]):.0%}"
    )


def test_the_chances_of_several_pictures_are_one_number_where_they_are_the_same(world: World) -> None:
    assert forecast_line(torch.ones(5)) == "these 5 pictures will be liked with 100%"
    line = forecast_line(torch.tensor([0.2, 0.4]))
    assert line == "these 2 pictures will be liked with 20% to 40%, 30% on the average"


def test_where_guidance_has_ended_nothing_is_forecast(world: World) -> None:
    guided = world.guided("dialled", mode="exact", end_percent=0.5)
    world.sample(guided)
    forecast = guide_of(guided).stats.forecast.isfinite().all(1)
    assert forecast.tolist() == [True, True, True, False, False]
    world.sample(world.guided("dialled", law="nft"))
    assert "liked" not in world.texts[-1]


def test_the_inspection_node_shows_what_was_measured(world: World) -> None:
    text = world.nodes.NFTAdapterInfo.execute("dialled.safetensors").args[0]
    assert "measured by red: 34% ± 2% of pictures are liked without guidance (48 prompts, 512 pictures)" in text
    assert "mode fast (auto) at CFG 1, liked at strength -1: 8%, 0.5: 52%, 1: 70%, 1.5: 80%" in text
    assert "mode exact at CFG 1, liked at strength -1: 8%, 0.5: 52%, 1: 70%, 1.5: 90%" in text
    assert "Half of the prompts are the trainer's." in text


def test_without_its_head_an_adapter_keeps_the_maps_that_did_not_read_it(world: World) -> None:
    world.add("both", "positive", 4, dial=dial(tilt_map("two_pass", 0.7, 0.9), tilt_map("single", 0.0, 0.8)))
    config: AdapterConfig = read_reward_file(world.folder / "loras" / "both.safetensors", "policy").config
    assert config.dial is not None and [entry.mode for entry in config.dial.maps] == ["single"]
    headless = read_reward_file(world.folder / "loras" / "dialled.safetensors", "policy")
    assert headless.config.dial is None and "measured by" not in describe(headless)


def test_old_values_of_a_saved_workflow_are_still_taken(world: World) -> None:
    node = world.nodes.NFTRewardGuidance
    widgets = {entry.id: entry.facts for entry in node.define_schema().inputs}
    assert widgets["law"]["options"] == ["auto", "nft", "odds"] and widgets["law"]["default"] == "auto"
    assert widgets["mode"]["options"] == ["auto", "exact", "fast"] and widgets["mode"]["default"] == "auto"
    assert widgets["rate"]["optional"]
    world.sample(world.guided("dialled", law="nft", mode="exact"))
    assert world.model.model.calls == 2 * STEPS
    world.sample(world.guided("dialled", law="odds", mode="fast"))
    assert world.model.model.calls == 3 * STEPS


def test_auto_goes_on_in_two_passes_where_one_ends(world: World) -> None:
    one = {**tilt_map("single", 0.0, 0.8), "goes_on": True}
    two = {**tilt_map("two_pass", 0.0, 0.95), "tilts": [-2.0, 0.0, 2.0, 5.0], "weights": [-0.4, 0.0, 0.7, 2.0]}
    world.add("further", "policy", 4, dial=dial(one, two))
    for values, same, calls in (
        ({"strength": 1.5}, {"strength": 1.5, "mode": "fast"}, 1),
        ({"strength": 2.0}, {"strength": 2.0, "mode": "exact"}, 2),
        ({"rate": 0.75}, {"strength": 1.25, "mode": "fast"}, 1),
        ({"rate": 0.875}, {"strength": 2.0, "mode": "exact"}, 2),
    ):
        guided, before = world.guided("further", **values), world.model.model.calls
        drawn = world.sample(guided)
        assert world.model.model.calls - before == calls * STEPS, values
        torch.testing.assert_close(drawn, world.sample(world.guided("further", **same)))
        promised = guide_of(guided).promised(guide_of(guided).plan.tilt, guide_of(guided).plan.settings)
        rate = {1.5: 0.8, 2.0: 0.875}.get(values.get("strength"), values.get("rate"))
        assert promised.startswith(f"34% liked becomes {rate:.0%}"), values
    with pytest.raises(GuidanceError, match=r'from 0\.08 to 0\.95 in mode "fast" and then "exact" at CFG 1'):
        world.guided("further", rate=0.97)
    with pytest.raises(GuidanceError, match=r'from 0\.08 to 0\.80 in mode "fast" at CFG 1.* Mode "exact" reaches 0\.9'):
        world.guided("further", rate=0.9, mode="fast")
    text = describe(guide_of(guided).reward)
    assert "mode fast (auto) at CFG 1" in text and "mode exact (auto, beyond it) at CFG 1" in text
