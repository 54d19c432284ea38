"""A guided MODEL is a model for whatever stands around it: graphs on the FAKE of ComfyUI (helpers/fake_comfyui.py)."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers import fake_comfyui as fake
from helpers.comfyui_world import SIGMAS, STEPS, World, random_lora
from nft_pipeline.errors import GuidanceError
from nft_pipeline.guidance import law_scale


def guide_of(model: Any) -> Any:
    return list(model.attachments.values())[-1]


def wrapped(model: Any, kind: str, wrapper: Callable[..., Any]) -> Any:
    """A clone of a MODEL with one more wrapper, as another node adds it."""
    model = model.clone()
    model.add_wrapper_with_key(kind, uuid.uuid4().hex, wrapper)
    return model


def norms(args: dict[str, Any]) -> Tensor:
    """A rescaling of the result by the predictions' sizes, as many CFG nodes have it."""
    denoised: Tensor = args["denoised"]
    return denoised * args["cond_denoised"].std() / (denoised.std() + args["uncond_denoised"].std())


def with_norms(model: Any) -> Any:
    model = model.clone()
    model.set_model_sampler_post_cfg_function(norms)
    return model


class ThreePrompts(fake.CFGGuider):
    """Two scales, three prompts, and no linear CFG: the conditional prompt is the last of the lists."""

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None) -> Tensor:
        lists = [self.conds["negative"], self.conds["middle"], self.conds["positive"]]
        n, m, p = fake.calc_cond_batch(self.inner_model, lists, x, timestep, model_options)
        return n + 2.0 * (m - n) + 1.5 * (p - m).clamp(-0.1, 0.1)


def three_prompts(world: World, model: Any) -> Any:
    guider = ThreePrompts(model)
    guider.conds = {"positive": world.positive, "middle": fake.conditioning(8), "negative": world.negative}
    return guider


WAYS = pytest.mark.parametrize("values", [{}, {"cap": 1e3}, {"mode": "fast"}], ids=["exact", "two passes", "fast"])


@WAYS
def test_order_does_not_matter_to_what_is_done_after_cfg(world: World, values: dict[str, Any]) -> None:
    merged = fake.ModelPatcher(world.merged("policy"))
    expected = world.sample(with_norms(merged), 3.0)
    before, after = world.guided("policy", with_norms(world.model), **values), world.guided("policy", **values)
    for guided in (before, with_norms(after)):
        torch.testing.assert_close(world.sample(guided, 3.0), expected, rtol=1e-4, atol=1e-5)
    assert (world.sample(with_norms(world.model), 3.0) - expected).abs().max() > 1e-2


@WAYS
def test_every_prompt_of_a_guider_is_guided(world: World, values: dict[str, Any]) -> None:
    expected = three_prompts(world, fake.ModelPatcher(world.merged("policy"))).sample(world.noise, SIGMAS)
    found = three_prompts(world, world.guided("policy", **values)).sample(world.noise, SIGMAS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_alpha_is_that_of_the_conditional_prompt_wherever_it_stands(world: World) -> None:
    guided = world.guided("liked")
    three_prompts(world, guided).sample(world.noise, SIGMAS)
    alpha = guide_of(guided).stats.alpha[0]
    world.sample(guided)
    torch.testing.assert_close(alpha, guide_of(guided).stats.alpha[0])


@pytest.mark.parametrize(
    ("mode", "guide"), [("auto", "both"), ("exact", "both"), ("fast", "both"), ("auto", "cond"), ("exact", "cond")]
)
def test_a_policy_at_strength_1_costs_one_pass(world: World, mode: str, guide: str) -> None:
    guided = world.guided("policy", mode=mode, guide=guide)
    found = world.sample(guided)
    assert world.model.model.calls == STEPS
    expected = world.sample(fake.ModelPatcher(world.merged("policy")))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert world.texts[-1].endswith("cost x1")
    apart = world.sample(guided, 3.0)
    by_hand = world.by_hand(lambda alpha, t: torch.ones(2), "policy", 3.0, guide)
    torch.testing.assert_close(apart, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("values", [{"cap": 0.5}, {"strength": 0.5}])
def test_where_the_model_itself_is_needed_a_policy_costs_two(world: World, values: dict[str, Any]) -> None:
    world.sample(world.guided("policy", **values))
    assert world.model.model.calls == 2 * STEPS


def test_beside_another_exact_one_a_policy_at_strength_1_is_measured_from_the_model(world: World) -> None:
    world.sample(world.guided("liked", world.guided("policy")))
    assert world.model.model.calls == 3 * STEPS


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_alpha_is_never_that_of_another_nodes_perturbed_pass(world: World, before: bool, mode: str) -> None:
    """Such a node asks for the same prompt at the same x once more, with a part of the model changed."""
    perturbed: list[bool] = []

    def ask_again(args: dict[str, Any]) -> Tensor:
        perturbed.append(True)
        lists = [args["cond"]]
        (other,) = fake.calc_cond_batch(args["model"], lists, args["input"], args["sigma"], args["model_options"])
        perturbed.clear()
        result: Tensor = args["denoised"] + 0.1 * (args["cond_denoised"] - other)
        return result

    def change(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return executor(x + 1.0 if perturbed else x, *args, **kwargs)

    def with_perturbation(model: Any) -> Any:
        model = wrapped(model, "apply_model", change)
        model.set_model_sampler_post_cfg_function(ask_again)
        return model

    plain = world.guided("liked", mode=mode)
    world.sample(plain, 3.0)
    alone = guide_of(plain).stats
    guided = world.guided("liked", with_perturbation(world.model), mode=mode)
    guided = guided if before else with_perturbation(world.guided("liked", mode=mode))
    world.sample(guided, 3.0)
    stats = guide_of(guided).stats
    assert stats.steps == STEPS
    torch.testing.assert_close(stats.alpha[0], alone.alpha[0])
    torch.testing.assert_close(stats.scale[0], alone.scale[0])


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_where_a_step_cache_skips_the_model_the_last_alpha_is_kept(world: World, mode: str) -> None:
    kept: dict[Any, Tensor] = {}

    def skip(executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        name = tuple(args[3]["uuids"])
        if name not in kept or float(t[0]) > 0.7 or float(t[0]) < 0.3:
            kept[name] = executor(x, t, *args, **kwargs)
        return kept[name]

    guided = wrapped(world.guided("liked", mode=mode), "apply_model", skip)
    world.sample(guided)
    alpha = guide_of(guided).stats.alpha  # at noise levels 1, 0.8, 0.6, 0.4 and 0.2
    assert torch.equal(alpha[2], alpha[1]) and torch.equal(alpha[3], alpha[1])
    assert not torch.equal(alpha[4], alpha[1])


def test_alpha_that_was_never_read_stops_the_run(world: World) -> None:
    guided = wrapped(world.guided("liked"), "apply_model", lambda executor, x, *args, **kwargs: x)
    with pytest.raises(GuidanceError, match="did not run in the first step, so alpha is unknown"):
        world.sample(guided)


def test_an_area_of_another_list_does_not_lend_its_name_to_alpha(world: World) -> None:
    """ComfyUI adds an entry with the area's uuid to every other list, with that list's own words."""
    guided = world.guided("liked")
    world.sample(guided, 3.0)
    expected = guide_of(guided).stats.alpha[0]
    world.negative.append({**world.negative[0], "uuid": world.positive[0]["uuid"]})
    world.sample(guided, 3.0)
    torch.testing.assert_close(guide_of(guided).stats.alpha[0], expected)


def test_windows_of_a_picture_have_each_their_own_alpha(world: World) -> None:
    """A node that splits x asks for each part: the record of a step is their mean."""

    class Windows(fake.CFGGuider):
        def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None) -> Tensor:
            ask = super().predict_noise
            return torch.cat([ask(part, timestep, model_options, seed) for part in x.chunk(2, 1)], 1)

    alphas = []
    for noise, kind in ((world.noise, Windows), *((part, fake.CFGGuider) for part in world.noise.chunk(2, 1))):
        guided = world.guided("liked")
        guider = kind(guided)
        guider.set_conds(world.positive, None)
        guider.sample(noise, SIGMAS)
        alphas.append(guide_of(guided).stats.alpha[0])
    torch.testing.assert_close(alphas[0], (alphas[1] + alphas[2]) / 2)


@pytest.mark.parametrize("values", [{}, {"cap": 1e3}], ids=["one pass", "two passes"])
def test_another_model_of_the_same_guider_is_left_alone(world: World, values: dict[str, Any]) -> None:
    other = fake.BaseModel()
    with torch.no_grad():
        other.diffusion_model.final_layer.weight.mul_(0.5)

    class TwoModels(fake.CFGGuider):
        def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None) -> Tensor:
            (c,) = fake.calc_cond_batch(self.inner_model, [self.conds["positive"]], x, timestep, model_options)
            (u,) = fake.calc_cond_batch(other, [self.conds["negative"]], x, timestep, model_options)
            return u + 3.0 * (c - u)

    drawn = []
    for model in (world.guided("policy", **values), fake.ModelPatcher(world.merged("policy"))):
        guider = TwoModels(model)
        guider.set_conds(world.positive, world.negative)
        drawn.append(guider.sample(world.noise, SIGMAS))
    torch.testing.assert_close(*drawn, rtol=1e-4, atol=1e-5)


def test_the_capped_scale_is_that_of_every_list(world: World) -> None:
    guided = world.guided("liked", strength=3.0, cap=0.02)
    world.sample(guided, 3.0)
    stats = guide_of(guided).stats

    def scale(alpha: Tensor, t: float) -> Tensor:
        step = int((stats.noise_level[:, 0] - t).abs().argmin())
        return torch.minimum(stats.scale[step], law_scale(alpha, 6.0, "odds"))

    torch.testing.assert_close(
        world.sample(guided, 3.0), world.by_hand(scale, "liked", 3.0, "both"), rtol=1e-4, atol=1e-5
    )


def test_a_guider_that_never_asks_for_predictions_is_said(world: World) -> None:
    class Own(fake.CFGGuider):
        def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None) -> Tensor:
            return 0.5 * x

    guider = Own(world.guided("policy"))
    guider.set_conds(world.positive, world.negative)
    guider.sample(world.noise, SIGMAS)
    assert world.texts[-1].startswith("policy: guidance did not act")


def test_a_lora_loader_behind_the_node_is_noticed_when_sampling_starts(world: World) -> None:
    guided = world.guided("policy").clone()
    lora = world.adapters["policy"].lora
    down = lora["transformer.proj_out.lora_A.weight"]
    loaded = type("Patch", (), {"weights": (lora["transformer.proj_out.lora_B.weight"], down)})()
    guided.patches["diffusion_model.final_layer.weight"] = [(1.0, loaded)]
    world.sample(guided)
    assert "WARNING: a LoRA loader or a hook has put this adapter's LoRA into the model already" in world.texts[-1]
    assert "step 5/5" in world.texts[-1]


def test_a_file_without_a_recorded_scale_is_warned_of_on_the_node(world: World) -> None:
    save_file(random_lora(1), world.folder / "loras" / "peft.safetensors")
    guided = world.guided("peft")
    assert world.texts[-1].startswith("WARNING: no scale is recorded")
    world.sample(guided)
    assert "step 5/5" in world.texts[-1] and "come out at half strength" in world.texts[-1]
