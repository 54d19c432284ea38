"""The nodes on a FAKE of ComfyUI (helpers/fake_comfyui.py), against runs computed by hand from merged weights."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import fake_comfyui as fake
from helpers.comfyui_world import SIGMAS, STEPS, World, words_of
from nft_pipeline.errors import GuidanceError
from nft_pipeline.guidance import law_scale
from nft_pipeline.laws import LAWS, Law


def replaced(model: Any) -> list[Any]:
    return [module for module in model.model.modules() if "forward" in module.__dict__]


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("guide", ["both", "cond"])
def test_a_positive_adapter_is_the_formula(world: World, law: str, cfg: float, guide: str) -> None:
    found = world.sample(world.guided("liked", strength=0.8, law=law, guide=guide), cfg)
    expected = world.by_hand(lambda alpha, t: law_scale(alpha, 0.8 * 2.0, law), "liked", cfg, guide)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - world.sample(world.model, cfg)).abs().max() > 1e-2


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_policy_is_the_share_of_the_way_to_its_lora(world: World, cfg: float) -> None:
    found = world.sample(world.guided("policy", strength=1.5), cfg)
    expected = world.by_hand(lambda alpha, t: torch.full((2,), 1.5), "policy", cfg, "both")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_kind_policy_pushes_every_picture_alike(world: World) -> None:
    found = world.sample(world.guided("liked", kind="policy"))
    torch.testing.assert_close(found, world.sample(world.guided("policy")))


def test_strength_0_is_the_model_itself_at_its_cost(world: World) -> None:
    plain = world.sample(world.model)
    calls = world.model.model.calls
    assert torch.equal(world.sample(world.guided(strength=0.0)), plain)
    assert world.model.model.calls == 2 * calls


def test_what_an_adapter_takes_is_a_model_that_comfyui_counts_and_moves(world: World) -> None:
    assert world.guided(strength=0.0).additional_models == {}
    world.model.model.manual_cast_dtype = torch.bfloat16
    halved = world.guided("policy")
    world.model.model.manual_cast_dtype = None
    guided = world.guided("liked")
    ((patcher,),) = guided.clone().additional_models.values()
    lora, head = world.adapters["liked"].lora, world.adapters["liked"].head
    expected = [*lora.values(), *head.parameters()]
    assert sum(p.numel() for p in patcher.model.parameters()) == sum(tensor.numel() for tensor in expected)
    ((half,),) = halved.additional_models.values()
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    # ComfyUI may put others in their place.
    plain, before = world.sample(world.model), world.sample(guided)
    for name, _ in list(patcher.model.up.named_parameters()):
        setattr(patcher.model.up, name, torch.nn.Parameter(torch.zeros_like(getattr(patcher.model.up, name))))
    assert torch.equal(world.sample(guided), plain) and not torch.equal(before, plain)


def test_guidance_costs_one_more_pass_where_it_acts(world: World) -> None:
    world.sample(world.guided(start_percent=0.3, end_percent=0.7))  # sigma 0.6 and 0.4
    assert world.model.model.calls == STEPS + 2


def test_the_interval_and_the_curve_are_shares_of_the_sampling(world: World) -> None:
    curve = ((0.0, 0.0), (0.5, 1.0), (1.0, 1.0))
    found = world.sample(world.guided(end_percent=0.7, schedule=curve, law="nft"))
    scale = lambda alpha, t: 2.0 * alpha * (t >= 0.3) * min(1.0, 2 * (1 - t))  # noqa: E731
    torch.testing.assert_close(found, world.by_hand(scale, "liked", 1.0, "both"), rtol=1e-4, atol=1e-5)


def test_fast_is_one_pass_at_the_alpha_of_the_step_before(world: World) -> None:
    found = world.sample(world.guided("policy", strength=0.7, mode="fast"))
    assert world.model.model.calls == STEPS
    model = fake.ModelPatcher(world.merged("policy", 0.7))
    torch.testing.assert_close(found, world.sample(model), rtol=1e-4, atol=1e-5)
    guided = world.guided("liked", mode="fast", law="nft")
    world.sample(guided)
    (guide,) = (g for key, g in guided.attachments.items())
    stats = guide.stats
    torch.testing.assert_close(stats.scale[0], torch.full((2,), 2.0 * 0.31))  # the base rate
    torch.testing.assert_close(stats.scale[1:], 2.0 * stats.alpha[:-1])


def test_a_cap_shortens_the_push(world: World) -> None:
    guided = world.guided("policy", strength=3.0, cap=0.02)
    world.sample(guided)
    (guide,) = guided.attachments.values()
    assert guide.stats.push.max() <= 0.02 * 1.0001
    assert guide.stats.scale.max() < 3.0


def test_a_picture_whose_scale_is_0_stays_the_models_own_bit_for_bit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the LoRA gives for it: 0 times infinity is not 0."""
    from nft_pipeline.comfy_nodes import run

    monkeypatch.setattr(run, "read_alpha", lambda *args: torch.tensor([0.0, 0.5]))
    guided = world.guided()
    (guide,) = guided.attachments.values()

    def broken_for_the_first(executor: Any, *args: Any) -> list[Tensor]:
        predictions: list[Tensor] = executor(*args)
        if guide.run.on is not None:
            for prediction in predictions:
                prediction[0] = torch.inf
        return predictions

    guided.add_wrapper_with_key("calc_cond_batch", "broken", broken_for_the_first)
    found, plain = world.sample(guided, cfg=3.0), world.sample(world.model, cfg=3.0)
    assert torch.equal(found[0].view(torch.int32), plain[0].view(torch.int32))
    assert not torch.equal(found[1], plain[1])


def test_a_third_law_of_the_table_is_offered_explained_and_obeyed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    law = Law(lambda alpha, tilt: tilt * alpha.sqrt(), formula="s = tilt sqrt(alpha)", help="only in this test")
    monkeypatch.setitem(LAWS, "root", law)
    schema = world.nodes.NFTRewardGuidance.define_schema()
    (widget,) = [entry for entry in schema.inputs if entry.id == "law"]
    assert widget.facts["options"] == ["auto", *LAWS] and "root" in LAWS
    assert "root: only in this test." in widget.tooltip
    found = world.sample(world.guided("liked", law="root"))
    expected = world.by_hand(lambda alpha, t: 2.0 * alpha.sqrt(), "liked", 1.0, "both")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(GuidanceError, match='law "root" needs a positive adapter'):
        world.guided("policy", law="root")
    with pytest.raises(GuidanceError, match="expected one of"):
        world.guided("liked", law="square")


def test_chained_adapters_are_each_measured_from_the_model(world: World) -> None:
    two = world.guided("other", world.guided("policy", strength=0.5), strength=0.8)
    found = world.sample(two)
    base, one, other = world.model.model, world.merged("policy"), world.merged("other")
    text, x = words_of(world.positive), world.noise
    for sigma, lower in pairwise(SIGMAS):
        v, v1, v2 = (m.diffusion_model(x, text) for m in (base, one, other))
        x = x + (v + 0.5 * (v1 - v) + 0.8 * (v2 - v)) * (lower - sigma)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)


def test_nothing_of_a_run_stays(world: World) -> None:
    plain, guided = world.sample(world.model), world.guided()
    first = world.sample(guided)
    assert replaced(world.model) == []
    assert torch.equal(world.sample(world.model), plain)
    assert torch.equal(world.sample(guided), first)
    assert world.model.attachments == {} and world.model.model_options["transformer_options"]["wrappers"] == {}


def test_an_error_in_the_middle_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    guided, plain = world.guided(), world.sample(world.model)
    (guide,) = guided.attachments.values()
    with monkeypatch.context() as patched:
        patched.setattr(guide.host, "noise_level", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.sample(guided)
    assert replaced(world.model) == []
    assert torch.equal(world.sample(world.model), plain)
    world.sample(guided)


def test_alpha_of_several_prompts_is_their_mean(world: World) -> None:
    guided = world.guided()
    seen = []
    for conds in (world.positive, world.negative, [*world.positive, *world.negative]):
        guider = fake.CFGGuider(guided)
        guider.set_conds(conds, None)
        guider.sample(world.noise, SIGMAS)
        (guide,) = guided.attachments.values()
        seen.append(guide.stats.alpha[0])
    torch.testing.assert_close(seen[2], (seen[0] + seen[1]) / 2)


def test_the_second_pass_has_names_of_its_own_for_caches(world: World) -> None:
    guided, names = world.guided(), []

    def spy(executor: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(args[5]["uuids"][0])
        return executor(*args, **kwargs)

    guided.add_wrapper_with_key("apply_model", "spy", spy)
    world.sample(guided)
    assert len(names) == 2 * STEPS and len(set(names)) == 2
    assert names[::2] == [world.positive[0]["uuid"]] * STEPS
