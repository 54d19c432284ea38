"""The nodes on a FAKE of ComfyUI (helpers/fake_comfyui.py), against runs computed by hand from merged weights."""

from __future__ import annotations

import json
import sys
import threading
import warnings
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers import fake_comfyui as fake
from helpers import nodes_page
from helpers.comfyui_contract import contract_faults
from helpers.comfyui_world import SIGMAS, STEPS, World, random_lora, words_of
from helpers.repository import ROOT
from nft_pipeline.adapter import AdapterError
from nft_pipeline.comfy_nodes import live_text
from nft_pipeline.errors import GuidanceError
from nft_pipeline.files.picture_list import ratings_lock
from nft_pipeline.guidance import law_scale
from nft_pipeline.laws import LAWS, Law
from nft_pipeline.training.data.folder import read_folder

HELP = ROOT / "comfy_nodes" / "web" / "docs"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    return World(tmp_path, fake.install(monkeypatch, tmp_path))


def replaced(model: Any) -> list[Any]:
    return [module for module in model.model.modules() if "forward" in module.__dict__]


def test_the_fake_has_what_the_contract_names(world: World) -> None:
    assert contract_faults() == []


def test_a_contract_that_is_not_kept_is_noticed(world: World) -> None:
    broken = {
        "names": ["comfy.samplers.Nothing"],
        "callables": {"comfy.samplers.calc_cond_batch": ["model", "x_in", "conds"], "comfy.nosuch.f": []},
    }
    assert len(contract_faults(broken)) == 3


def test_every_input_and_output_is_explained(world: World) -> None:
    for node in world.nodes.NODES:
        schema = node.define_schema()
        assert schema.description
        assert [entry.id for entry in [*schema.inputs, *schema.outputs] if not entry.tooltip] == []


def test_every_node_has_a_help_page_and_every_help_page_a_node(world: World) -> None:
    # ComfyUI's frontend looks for docs/ID/LANGUAGE.md and then for docs/ID.md, which is therefore the English page.
    pages = {path.stem: path for path in HELP.glob("*.md")}
    assert set(pages) == {node.define_schema().node_id for node in world.nodes.NODES}
    assert all(path.read_text(encoding="utf-8").startswith("# ") for path in pages.values())
    assert {path.parent.name for path in HELP.glob("*/*.md")} <= set(pages)


def test_a_translation_says_nothing_of_what_there_is_not(world: World) -> None:
    """What a translation lacks is shown in English, by the node's own texts; so that is a warning and no fault."""
    schemas = {node.define_schema().node_id: node.define_schema() for node in world.nodes.NODES}
    for path in sorted((ROOT / "locales").glob("*/main.json")):
        language = path.parent.name
        translated = json.loads(path.read_text(encoding="utf-8"))["nodeDefs"]
        there = {page.parent.name for page in HELP.glob(f"*/{language}.md")}
        missing = [f"{name}: the help page" for name in schemas if name not in there]
        for name, schema in schemas.items():
            known = {
                "inputs": [entry.id for entry in schema.inputs],
                "outputs": [str(i) for i in range(len(schema.outputs))],
            }
            for part, keys in known.items():
                entries = translated.get(name, {}).get(part, {})
                assert set(entries) <= set(keys), (path, name, part)
                assert all(text for entry in entries.values() for text in entry.values())
                missing += [f"{name}: {part} {key}" for key in keys if key not in entries]
        assert set(translated) <= set(schemas), path
        if missing:
            warnings.warn(f"locales/{language} lacks, and shows in English: {'; '.join(missing)}", stacklevel=1)


def test_nodes_that_were_released_stay_as_they_are(world: World) -> None:
    """Workflows store ids, and widgets by position: new inputs and outputs go to the end, nothing else may change."""
    released = json.loads(Path(__file__).with_name("released_nodes.json").read_text(encoding="utf-8"))
    schemas = {node.define_schema().node_id: node.define_schema() for node in world.nodes.NODES}
    for name, entry in released.items():
        schema = schemas[name]
        assert [schema.display_name, schema.category] == [entry["display_name"], entry["category"]]
        inputs = [[widget.id, widget.io_type] for widget in schema.inputs]
        outputs = [[socket.facts["display_name"], socket.io_type] for socket in schema.outputs]
        assert inputs[: len(entry["inputs"])] == entry["inputs"], name
        assert outputs[: len(entry["outputs"])] == entry["outputs"], name


def test_the_page_lists_every_node(world: World) -> None:
    remedy = "write the table of docs/comfyui.md again: make pages"
    assert nodes_page.page(world.nodes.NODES) == nodes_page.PAGE.read_text(encoding="utf-8"), remedy


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


def test_ratings_are_what_the_trainer_reads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd35m.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red cube", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}},
        "4": {"class_type": "KSampler", "inputs": {
            "model": ["1", 0], "seed": 7, "cfg": 3.5, "positive": ["2", 0], "negative": ["3", 0]}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "7": {"class_type": "NFTRateImages", "inputs": {"images": ["5", 0]}},
    }  # fmt: skip
    monkeypatch.setattr(fake.ComfyNode.hidden, "prompt", graph)
    images = torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(1))
    rate = world.nodes.NFTRateImages.execute
    rate(images, "like", 0.5, "ratings", "")
    rate(images, "score", 0.25, "ratings", "another prompt", "1")
    folder = world.folder / "output" / "ratings"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    facts = {"seed": 7, "guidance_scale": 3.5, "model": "sd35m.safetensors"}
    first = {"prompt": "another prompt", "score": 0.25, "batch_index": 0}
    assert rows[0] == {"image": rows[0]["image"], **first, **facts}
    assert rows[1] == {"image": rows[1]["image"], "prompt": "a red cube", "liked": True, "batch_index": 1, **facts}
    assert sorted(p.name for p in folder.glob("*.png")) == sorted(row["image"] for row in rows)


def rows_of(world: World) -> list[dict[str, Any]]:
    path = world.folder / "output" / "ratings" / "metadata.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_a_first_run_rates_nothing_and_buttons_rate_single_pictures(world: World) -> None:
    node = world.nodes.NFTRateImages
    (verdict,) = [entry for entry in node.define_schema().inputs if entry.id == "verdict"]
    assert verdict.facts["default"] == "not rated yet"
    shown = node.execute(torch.rand(3, 8, 8, 3), verdict.facts["default"], 0.5, "ratings", "a cube").ui["rated"]
    assert [entry["verdict"] for entry in shown] == ["not rated yet"] * 3
    assert rows_of(world) == [] and not (world.folder / "output").exists()
    button = sys.modules[node.__module__].SHOWN.rate
    assert button(shown[1]["name"], "like") == "like" and button(shown[2]["name"], "dislike") == "dislike"
    assert [(row["image"], row["liked"]) for row in rows_of(world)] == [
        (shown[1]["name"], True),
        (shown[2]["name"], False),
    ]
    button(shown[1]["name"], "dislike")
    assert [row["liked"] for row in rows_of(world)] == [False, False]
    with pytest.raises(GuidanceError, match="not kept any more"):
        button("nosuch.png", "like")


def test_each_picture_has_its_own_seed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed may come over a link; a picture of a batch is drawn from the seed at its place in it."""
    graph = {
        "1": {"class_type": "PrimitiveInt", "inputs": {"value": 11}},
        "2": {"class_type": "KSampler", "inputs": {"seed": ["1", 0], "cfg": 1.0}},
        "3": {"class_type": "LatentFromBatch", "inputs": {"samples": ["2", 0], "batch_index": 2, "length": 2}},
        "4": {"class_type": "NFTRateImages", "inputs": {"images": ["3", 0]}},
        "7": {"class_type": "NFTRateImages", "inputs": {"images": ["2", 0]}},
    }
    hidden = fake.ComfyNode.hidden
    monkeypatch.setattr(hidden, "prompt", graph)
    rate = world.nodes.NFTRateImages.execute
    rate(torch.rand(1, 8, 8, 3), "like", 0.5, "ratings", "a cube")
    monkeypatch.setattr(hidden, "unique_id", "4")
    rate(torch.rand(2, 8, 8, 3), "like", 0.5, "ratings", "a cube")
    assert [(row["seed"], row.get("batch_index")) for row in rows_of(world)] == [(11, None), (11, 2), (11, 3)]
    assert len(read_folder(world.folder / "output" / "ratings").pictures) == 3


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"verdict": "meh"}, "verdict is 'meh'"),
        ({"verdict": "score", "score": float("nan")}, "score is nan"),
        ({"folder": "../x"}, "expected one inside ComfyUI's output folder"),
        ({"folder": ""}, "expected one inside ComfyUI's output folder"),
        ({"prompt": " "}, "no prompt was found"),
        ({"pictures": "2"}, "'2' in pictures is none of them"),
    ],
)
def test_a_rating_with_a_fault_writes_nothing(world: World, values: dict[str, Any], fault: str) -> None:
    given = {"verdict": "like", "score": 0.5, "folder": "ratings", "prompt": "a cube", **values}
    with pytest.raises(GuidanceError, match=fault):
        world.nodes.NFTRateImages.execute(torch.rand(1, 4, 4, 3), **given)
    assert not (world.folder / "output").exists()


def test_a_damaged_list_of_ratings_is_left_alone(world: World) -> None:
    folder = world.folder / "output" / "ratings"
    folder.mkdir(parents=True)
    (folder / "metadata.jsonl").write_text("no json\n")
    with pytest.raises(GuidanceError, match="line 1 is no JSON"):
        world.nodes.NFTRateImages.execute(torch.rand(1, 4, 4, 3), "like", 0.5, "ratings", "a cube")
    assert (folder / "metadata.jsonl").read_text() == "no json\n" and not list(folder.glob("*.png"))


def test_a_rating_waits_for_the_trainers_tools(world: World) -> None:
    folder = world.folder / "output" / "ratings"
    arguments = (torch.rand(1, 4, 4, 3), "like", 0.5, "ratings", "a cube")
    with ratings_lock(folder):
        rating = threading.Thread(target=world.nodes.NFTRateImages.execute, args=arguments)
        rating.start()
        rating.join(0.3)
        assert rating.is_alive() and not (folder / "metadata.jsonl").exists()
        (folder / "metadata.jsonl").write_text('{"image": "other.png", "prompt": "a ring", "liked": false}\n')
    rating.join(60)
    assert [json.loads(line)["liked"] for line in (folder / "metadata.jsonl").read_text().splitlines()] == [False, True]


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
