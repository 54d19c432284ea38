"""What the nodes show on a FAKE of ComfyUI: the line of a step, marks and reports, plots, schedules and sweeps."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helpers import fake_comfyui as fake
from helpers.comfyui_world import SIGMAS, World, random_lora
from nft_pipeline.adapter import AdapterError
from nft_pipeline.comfy_nodes import live_text
from nft_pipeline.errors import GuidanceError


def steps_shown(world: World, pause: float, monkeypatch: pytest.MonkeyPatch, guided: Any) -> list[int]:
    """Which steps the node's line told of, in a run with this many seconds for each."""
    time = [0.0]
    monkeypatch.setattr(live_text, "monotonic", lambda: time[0])
    step = guided.model.apply_model

    def slow(*args: Any, **kwargs: Any) -> Any:
        time[0] += pause / 2  # two passes in each step
        return step(*args, **kwargs)

    world.texts.clear()
    with monkeypatch.context() as patched:
        patched.setattr(guided.model, "apply_model", slow)
        world.sample(guided)
    return [int(text.removeprefix("step ").partition("/")[0]) for text in world.texts]


def test_live_text_says_where_it_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    guided = world.guided(law="nft")
    assert steps_shown(world, 0.2, monkeypatch, guided) == [1, 2, 3, 4, 5]
    assert world.texts[2].startswith("step 3/5  alpha 0.") and world.texts[2].endswith("cost x2")


def test_live_text_comes_ten_times_per_second_at_most_and_the_last_step_is_shown(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    guided = world.guided(law="nft")
    assert steps_shown(world, 0.06, monkeypatch, guided) == [1, 3, 5]
    assert steps_shown(world, 0.001, monkeypatch, guided) == [1, 5]


def test_the_last_step_is_shown_of_a_job_that_is_cancelled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    guided = world.guided(law="nft")
    step, passes = guided.model.apply_model, iter(range(100))

    def cancelled(*args: Any, **kwargs: Any) -> Any:
        if next(passes) == 6:
            raise InterruptedError("cancelled")
        return step(*args, **kwargs)

    monkeypatch.setattr(live_text, "monotonic", lambda: 0.0)
    monkeypatch.setattr(guided.model, "apply_model", cancelled)
    world.texts.clear()
    with pytest.raises(InterruptedError):
        world.sample(guided)
    assert [text.partition("  ")[0] for text in world.texts] == ["step 1/5", "step 3/5"]


def labels(world: World) -> list[list[str]]:
    """Of the badges that were sent to the node, in order."""
    sent = [data for event, data in sys.modules["server"].PromptServer.messages if event == "diffusion-nft.cautions"]
    assert {data["node"] for data in sent} <= {"7"}
    return [[caution["label"] for caution in data["cautions"]] for data in sent]


def loaded(world: World, model: Any, adapter: str, way: str) -> Any:
    """As from a LoRA loader, a hook or a bypass loader of core: the adapter's own matrices on a layer of the MODEL."""
    patched, lora = model.clone(), world.adapters[adapter].lora
    up, down = (lora[f"transformer.proj_out.lora_{side}.weight"] for side in "BA")
    weights = SimpleNamespace(weights=(up, down, None, None, None, None))
    patches = {"diffusion_model.final_layer.weight": [(1.0, weights, 1.0, None, None)]}
    if way == "loader":
        patched.patches |= patches
    elif way == "hook":
        patched.hook_patches["a hook"] = patches
    else:
        weights.weights = (up.bfloat16(), down.bfloat16(), None, None, None, None)  # as it casts them to the model's
        layer = patched.model.get_submodule("diffusion_model.final_layer")
        patched.injections["bypass_lora"] = fake.BypassInjectionManager(layer, weights).create_injections()
    return patched


@pytest.mark.parametrize("way", ["loader", "hook", "bypass"])
@pytest.mark.parametrize("behind", [False, True])
def test_a_lora_that_is_loaded_too_before_or_behind_the_node_is_marked_on_it(
    world: World, behind: bool, way: str
) -> None:
    world.sample(world.guided("policy"))
    assert labels(world) == [[], []]
    world.sample(world.guided("policy", loaded(world, world.model, "other", way)))
    assert labels(world)[-1] == []
    if behind:
        model = loaded(world, world.guided("policy"), "policy", way)
    else:
        model = world.guided("policy", loaded(world, world.model, "policy", way))
    world.sample(model)
    assert labels(world)[-1] == ["loaded twice"]
    assert "a LoRA loader or a hook has put this adapter's LoRA into the model already" in world.texts[-1]
    world.sample(world.guided("policy"))
    assert labels(world)[-1] == []


def test_a_file_without_a_scale_is_marked_on_the_node(world: World) -> None:
    save_file(random_lora(4), world.folder / "loras" / "bare.safetensors")
    guided = world.guided("bare")
    assert labels(world) == [["half strength?"]] and "no scale is recorded" in world.texts[-1]
    world.sample(guided)
    assert "no scale is recorded" in world.texts[-1]


def test_fast_in_a_chain_is_marked_on_the_node(world: World) -> None:
    world.guided("other", world.guided("policy", mode="fast"), mode="exact")
    assert labels(world) == [[], ["fast in a chain"]]


def test_a_lora_that_changes_nothing_is_reported(world: World) -> None:
    tensors = {key: torch.zeros_like(t) if ".lora_B." in key else t for key, t in random_lora(1).items()}
    save_file(tensors, world.folder / "loras" / "nothing.safetensors")
    world.sample(world.guided("nothing", strength=0.5))  # at 1 nothing is compared with the model itself
    assert world.texts[-1] == "nothing: guidance had no effect, the LoRA changed nothing in any step"
    assert labels(world)[-1][0] == "no effect"


def test_the_info_counts_layers(world: World) -> None:
    info = world.nodes.NFTRewardGuidance.execute(world.model, "liked.safetensors", strength=1.0).args[1]
    assert "3 of 3 LoRA layers active on a BaseModel model" in info
    assert "alpha is read at the input of diffusion_model.final_layer" in info


def test_a_base_whose_head_nobody_can_read_is_refused(world: World) -> None:
    del world.model.model.diffusion_model.final_layer
    world.model.model.diffusion_model.final_layer = torch.nn.Identity()
    with pytest.raises(AdapterError, match="2 of 3 LoRA layers fit"):
        world.guided()


def test_loader_chain_and_guider_are_the_one_node(world: World) -> None:
    expected = world.sample(world.guided("liked", strength=0.5), 3.0)
    (adapter,) = world.nodes.NFTLoadAdapter.execute("liked.safetensors").args
    applied = world.nodes.NFTApplyAdapter.execute(world.model, adapter, strength=0.5).args[0]
    assert torch.equal(world.sample(applied, 3.0), expected)
    guider, info = world.nodes.NFTGuider.execute(
        world.model, adapter, world.positive, world.negative, 3.0, strength=0.5
    ).args
    assert torch.equal(guider.sample(world.noise, SIGMAS), expected)
    assert "liked: positive" in info


def test_a_plot_comes_after_a_run(world: World) -> None:
    plot, guided = world.nodes.NFTAlphaPlot.execute, world.guided("other", world.guided("liked"))
    world.sample(guided)
    latent, picture, table = plot({"samples": 0}, guided).args
    assert latent == {"samples": 0}
    assert picture.shape == (2, 320, 640, 3) and picture.min() >= 0 and picture.max() <= 1
    assert "liked\n5 steps, 2 samples, 10 denoiser forwards" in table


def test_a_plot_of_a_run_that_was_not_guided_is_empty_and_says_why(world: World) -> None:
    """So that strength 0, alone or in a sweep, draws its pictures."""
    plot, off = world.nodes.NFTAlphaPlot.execute, world.guided("liked", strength=0.0)
    world.sample(off)
    latent, picture, sentence = plot({"samples": 0}, off).args
    assert latent == {"samples": 0} and picture.shape == (1, 320, 640, 3)
    assert sentence.startswith("No step was guided: strength is 0")
    bare = plot({"samples": 0}, world.model).args
    assert bare[1].shape == picture.shape and "no reward adapter on this model" in bare[2]
    assert not torch.equal(bare[1], picture)  # the sentence is in it


def test_a_schedule_and_its_picture(world: World) -> None:
    points, picture = world.nodes.NFTStrengthSchedule.execute("fade out", 0.2, 1.0, 1.0, "").args
    assert points[0] == (0.0, 1.0) and points[-1] == (1.0, pytest.approx(0.2))
    assert picture.shape == (1, 320, 640, 3)


@pytest.mark.parametrize(
    ("text", "fault"),
    [("", "the curve has no points"), ("0.5", "is no point"), ("2: 1", "is no point"), ("0: 1, 0: 2", "is no point")],
)
def test_a_curve_with_a_fault(world: World, text: str, fault: str) -> None:
    with pytest.raises(GuidanceError, match=fault):
        world.nodes.NFTStrengthSchedule.execute("custom", 0.0, 1.0, 1.0, text)
    with pytest.raises(GuidanceError, match="shape is 'zigzag'"):
        world.nodes.NFTStrengthSchedule.execute("zigzag", 0.0, 1.0, 1.0, text)
    with pytest.raises(GuidanceError, match="power is 0"):
        world.nodes.NFTStrengthSchedule.execute("middle", 0.0, 1.0, 0.0, text)


def test_a_sweep_is_a_list_with_labels(world: World) -> None:
    sweep = world.nodes.NFTStrengthSweep.execute
    assert sweep(" 0, 0.5,\n2 ").args == ([0.0, 0.5, 2.0], ["strength 0", "strength 0.5", "strength 2"])
    for text, fault in (("", "strengths is empty"), ("1, x", "'x' in strengths"), ("nan", "no finite number")):
        with pytest.raises(GuidanceError, match=fault):
            sweep(text)


def test_a_file_that_changed_is_read_again(world: World) -> None:
    fingerprint = world.nodes.NFTRewardGuidance.fingerprint_inputs
    before = fingerprint(adapter="liked.safetensors", strength=1.0)
    save_file(random_lora(9), world.folder / "loras" / "liked.safetensors")
    assert fingerprint(adapter="liked.safetensors", strength=1.0) != before
    assert "nosuch" in fingerprint(adapter="nosuch.safetensors")


def test_info_reads_a_file_alone(world: World) -> None:
    assert "the object is red" in world.nodes.NFTAdapterInfo.execute("liked.safetensors").args[0]
