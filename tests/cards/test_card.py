"""The card: what the Hub reads of it, what it says of numbers that are there and of those that are not."""

from __future__ import annotations

import ast
import functools
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from helpers.adapters import config_values
from helpers.cards import extra_files, full_report, shared_adapter
from helpers.dials import further_dial, measured_dial, unlearned_dial
from helpers.local_hub import LocalHub
from nft_pipeline.adapter import AdapterConfig, AdapterError
from nft_pipeline.files.versions import plain
from nft_pipeline.hub_cards.card import WORKFLOW_FILE, Card, render_card
from nft_pipeline.hub_cards.licence import Licence, as_licence, base_licence, card_licence
from nft_pipeline.hub_cards.push import make_card, write_card
from nft_pipeline.hub_cards.report import RunReport
from nft_pipeline.hub_cards.workflow import adapter_workflow
from nft_pipeline.models import ADAPTERS, MODELS, example_prompts

REPO = "someone/tiny-red"


@functools.cache  # its plots cost seconds
def full_card() -> Card:
    return card(full_report())


def card(report: RunReport, kind: str = "positive", **changed: Any) -> Card:
    config = AdapterConfig.from_dict(config_values(kind=kind, **changed))
    return render_card(config, report, extra_files(report), repo_id=REPO, licence=Licence("apache-2.0"))


def test_the_hub_reads_its_metadata() -> None:
    data = ModelCard(full_card().text, ignore_metadata_errors=False).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "diffusers", "text-to-image")
    assert data.base_model == "someone/tiny-sd3" and data.base_model_relation == "adapter"
    assert set(data.tags) == {"diffusion-nft", "lora", "comfyui", "text-to-image"}
    assert len(data.widget) == 10
    assert data.widget[2] == {"text": "a red ring (strength 1)", "output": {"url": "samples/0-2.png"}}


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_card_of_a_shipped_adapter_is_complete(name: str) -> None:
    made = make_card(name, REPO)
    for missing in ("not drawn", "Rewards at strength 0 and 1: not measured", "hacking:** not measured"):
        assert missing not in made.text
    assert "plots/strip.png" in made.plots and "plots/reward_light.png" in made.plots
    assert '"a photo of a cat"' not in made.text


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_workflow_of_a_shipped_adapter_asks_for_what_the_cards_example_asks_for(name: str) -> None:
    made = make_card(name, REPO)
    with Image.open(io.BytesIO(made.plots[WORKFLOW_FILE])) as picture:
        workflow = json.loads(picture.text["workflow"])  # type: ignore[attr-defined]
    (prompt,) = [node["widgets_values"][0] for node in workflow["nodes"] if node.get("title") == "Prompt"]
    assert json.dumps(prompt) in made.text


def test_the_example_asks_for_what_the_base_model_draws() -> None:
    base = {"id": "emoji", "revision": None, "fingerprint": "sha256:0123456789abcdef"}
    assert json.dumps(example_prompts("emoji")[0]) in card(RunReport(), base_model=base).text
    assert '"a photo of a cat"' in card(RunReport()).text


def test_it_says_what_was_measured() -> None:
    text = full_card().text
    for phrase in (
        "| red | trained on | 0.300 ± 0.020 | 0.500 ± 0.020 | +0.200 | 128 |",
        "| aesthetic | not trained on | 5.500 ± 0.050 | 5.400 ± 0.050 | -0.100 | 128 |",
        "red: 64 held-out prompts; ± is the standard error.",
        "**1.5 is what its author recommends**, and 0.5 to 2 is the useful range",
        "**Reward hacking:** none seen. the reward it was not trained on stays level",
        "| 0.9 | 0.780 | 0.070 | 1536 |",
        "| hours | 0.25 |",
        "| hardware | 2 CPU cores |",
        "comfyui/tiny-red.safetensors",
        "arXiv:2509.16117",
    ):
        assert phrase in text, phrase


def test_it_says_what_was_not_measured() -> None:
    found = card(RunReport())
    assert set(found.plots) == {WORKFLOW_FILE}
    for phrase in (
        "the useful range was not measured",
        "Pictures: not drawn.",
        "Rewards at strength 0 and 1: not measured.",
        "**Reward hacking:** not measured.",
        "### How good its alpha is\n\nNot measured.",
        "| hours | not recorded |",
    ):
        assert phrase in found.text, phrase
    only_trained = full_report(rewards=full_report().rewards[:1])
    assert "A reward that it was not trained on: not measured." in card(only_trained).text
    assert "widget" not in ModelCard(found.text).data.to_dict()


def test_it_says_what_each_strength_does() -> None:
    text = card(RunReport(), dial=plain(measured_dial())).text
    table = "| strength | -1 | -0.5 | 0 | 0.5 | 1 | 1.5 | 2 | 2.5 |\n|---|---|---|---|---|---|---|---|---|\n"
    assert f"### What a setting does\n\n{table}| share of liked pictures | 10% ± 1.0% | " in text
    assert "| 70% ± 2.0% | 77% ± 1.7% | 85% ± 1.3% | 92% ± 1.0% |\n\nThe adapter reaches 92% at strength 2.5" in text
    assert "Judged by the reward 'red', from 1500 pictures of 48 prompts; guidance scale 1 (single, two\\_pass)" in text
    assert "**1.5 is what its author recommends**" in text
    assert "Not calibrated: what a strength does" in card(RunReport()).text


def test_it_says_where_the_dial_goes_on_in_two_passes() -> None:
    text = card(RunReport(), dial=plain(further_dial()), format_minor=2).text
    assert "| strength | -1 | -0.5 | 0 | 0.5 | 1 | 1.5 | 2 | 3 | 4 |" in text
    assert "The adapter reaches 97% at strength 4 (beyond 2.5 in two passes), and 10% at -1" in text


def test_it_recommends_nothing_that_was_not_learned() -> None:
    text = card(full_report(), dial=plain(unlearned_dial())).text
    assert "recommends" not in text and "**no strength is recommended: not learnable from this: no weight" in text
    assert "Not learned: not learnable" in text and "| share of liked" not in text


def test_a_policy_has_no_alpha() -> None:
    text = card(RunReport(), kind="policy").text
    assert "How good its alpha is" not in text and "policy: the LoRA is the trained model" in text


def test_the_same_numbers_are_the_same_card() -> None:
    assert card(full_report()).files() == full_card().files()


def test_texts_of_others_cannot_break_out_of_their_place() -> None:
    evil = "x | y\n# Heading\n<script>alert(1)</script> [a](http://b)"
    text = card(RunReport(), reward={"name": evil, "description": evil, "normaliser": None}).text
    body = text.split("---\n", 2)[2]
    assert "<script>" not in body and "\n# Heading" not in body and "[a](http" not in body
    (line,) = [line for line in body.splitlines() if line.startswith("| reward | x")]
    assert line.count("|") - line.count(r"\|") == 3


def test_what_markdown_takes_for_html_is_text() -> None:
    licence = Licence("other", "x | <img src=http://y> [a](http://b)", None)
    evil = r"\<img src=http://x> \[a](http://b) &lt;img&gt; ~~x~~"
    config = AdapterConfig.from_dict(
        config_values(kind="positive", reward={"name": evil, "description": evil, "normaliser": None})
    )
    text = render_card(config, RunReport(), {}, repo_id=REPO, licence=licence).text
    marks = re.findall(r"(\\*)(<img|\[a|&lt;|~)", text.split("---\n", 2)[2])
    assert len(marks) > 12 and all(len(backslashes) % 2 for backslashes, _ in marks)


@pytest.mark.parametrize("prompt", ["a \U0001f98a fox", 'say "hi" \\ \n```\n', "a\u2028b\x85c"])
def test_the_snippet_runs_whatever_the_prompt_is(prompt: str) -> None:
    report = full_report()
    report = replace(report, samples=tuple(replace(sample, prompt=prompt) for sample in report.samples))
    text = card(report).text
    text.encode()
    snippet = next(block for block in re.findall(r"```python\n(.*?)```\n", text, re.S) if "nft_strength" in block)
    call = next(node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call) and node.args)
    values = [node.value for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Constant)]
    assert re.sub(r"[\u2028\x85]", "\ufffd", prompt) in values and call


@pytest.mark.parametrize(("base", "shown"), [("shapes", "shapes (ships with"), ("./mine", "./mine (not on the Hub)")])
def test_a_base_model_that_is_not_on_the_hub_is_no_link(base: str, shown: str) -> None:
    found = card(RunReport(), base_model={"id": base, "revision": None, "fingerprint": "sha256:0123456789abcdef"})
    assert shown in found.text and "load_lora_weights" not in found.text
    assert ModelCard(found.text).data.base_model is None


def test_a_video_model_is_said_to_be_one() -> None:
    data = ModelCard(card(RunReport(), denoiser="WanTransformer3DModel").text).data
    assert data.pipeline_tag == "text-to-video"


def test_plots_are_sharp_at_twice_a_cards_width_and_differ_by_theme() -> None:
    plots = full_card().plots
    light, dark = (Image.open(io.BytesIO(plots[f"plots/reward_{theme}.png"])) for theme in ("light", "dark"))
    assert light.size == dark.size and light.width == 1500
    assert light.convert("L").getpixel((2, 2)) > 250 and dark.convert("L").getpixel((2, 2)) < 30
    strip = Image.open(io.BytesIO(plots["plots/strip.png"]))
    assert strip.width > 5 * 16 * 10  # five columns of small pictures, enlarged


def test_rows_of_the_strip_that_lack_a_strength_are_left_out() -> None:
    report = full_report()
    heights = []
    for samples in (report.samples, report.samples[:-1]):
        strip = card(RunReport(samples=samples)).plots["plots/strip.png"]
        heights.append(Image.open(io.BytesIO(strip)).height)
    assert heights[1] < heights[0]
    assert "plots/strip.png" not in card(RunReport(samples=report.samples[:1])).plots


def test_every_file_the_text_names_is_there() -> None:
    found = full_card()
    files = {**found.files(), **extra_files(full_report()), "comfyui/tiny-red.safetensors": b""}
    named = re.findall(r'(?:\]\(|src="|srcset="|url: )((?!http)[\w./-]+\.(?:png|safetensors))', found.text)
    assert len(named) >= 14 and set(named) <= set(files)


def test_a_card_is_put_into_the_folder(tmp_path: Path, hub: LocalHub) -> None:
    hub.add("someone/tiny-sd3", {"README.md": b"---\nlicense: apache-2.0\n---\n"})
    folder = shared_adapter(tmp_path / "a")
    made = make_card(folder, REPO)
    assert write_card(folder, made).read_text() == made.text
    assert (folder / "plots" / "strip.png").read_bytes() == made.plots["plots/strip.png"]
    (folder / "samples" / "0-0.png").unlink()
    with pytest.raises(AdapterError, match="names pictures that are not there") as caught:
        make_card(folder, REPO)
    assert "samples/0-0.png" in str(caught.value)
    with pytest.raises(AdapterError, match=r"has no nft_config.json, so it is no adapter"):
        make_card(tmp_path, REPO)


APACHE, STABILITY = Licence("apache-2.0"), Licence("other", "stabilityai-ai-community", "https://x.y/licence")


@pytest.mark.parametrize(
    ("config", "given", "base", "expected"),
    [
        ("apache-2.0", None, APACHE, APACHE),
        ("unknown", None, STABILITY, STABILITY),
        ("stabilityai-ai-community", None, STABILITY, STABILITY),
        ("unknown", "MIT", STABILITY, Licence("mit")),
        ("mit", None, None, Licence("mit")),
        ("my-own-1.0", None, None, Licence("other", "my-own-1.0")),
    ],
)
def test_the_licence(config: str, given: str | None, base: Licence | None, expected: Licence) -> None:
    assert card_licence("someone/base", config, given, base) == expected


def test_a_licence_nobody_knows_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"neither the adapter says it nor a card .* someone/base") as caught:
        card_licence("someone/base", "unknown", None, None)
    assert "--licence" in str(caught.value)


def test_a_licence_that_contradicts_the_base_models_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"its licence is mit, but the card of its base model x/y says stability"):
        card_licence("x/y", "mit", None, STABILITY)


@pytest.mark.parametrize("text", ["unknown", "", "two words", "x" * 99])
def test_what_is_no_licence(text: str) -> None:
    with pytest.raises(AdapterError, match=r"expected an id such as apache-2\.0"):
        as_licence(text)


def test_the_licence_of_the_base_models_card(hub: LocalHub) -> None:
    hub.add("a/free", {"README.md": b"---\nlicense: mit\n---\n# free"})
    own = b"---\nlicense: other\nlicense_name: own-1\nlicense_link: https://x.y/l\n---\n"
    hub.add("a/own", {"README.md": own})
    hub.add("a/silent", {"README.md": b"# nothing"})
    hub.add("a/bare", {"x.json": b"{}"})
    assert base_licence("a/free") == Licence("mit")
    assert base_licence("a/own") == Licence("other", "own-1", "https://x.y/l")
    assert [base_licence(name) for name in ("a/silent", "a/bare", "a/nothing", "not an id at all")] == [None] * 4
    assert base_licence("shapes") == APACHE


def test_a_picture_carries_the_workflow_with_the_adapter_in_it() -> None:
    with Image.open(io.BytesIO(full_card().plots[WORKFLOW_FILE])) as picture:
        workflow = json.loads(picture.text["workflow"])  # type: ignore[attr-defined]
        assert picture.width > 1000
    by_type = {node["type"]: node["widgets_values"] for node in workflow["nodes"]}
    config = AdapterConfig.from_dict(config_values(kind="positive"))
    assert by_type["NFTRewardGuidance"][:2] == ["tiny-red.safetensors", config.strength]
    assert by_type["KSampler"][3] == config.guidance_scale
    assert by_type["EmptySD3LatentImage"][:2] == [config.resolution[1], config.resolution[0]]
    assert f"]({'/'.join(WORKFLOW_FILE.split('/'))})" in full_card().text


@pytest.mark.parametrize(
    ("denoiser", "base", "loader"),
    [
        ("FluxTransformer2DModel", "someone/flux", "UNETLoader"),
        ("UNet2DConditionModel", "someone/sdxl-tuned", "CheckpointLoaderSimple"),
        ("ZImageTransformer2DModel", "someone/z", "CLIPLoader"),
        ("SD3Transformer2DModel", "shapes", "NFTShapesModel"),
        ("UNet2DConditionModel", "someone/sd15", None),
        ("QwenImageTransformer2DModel", "someone/qwen", None),
    ],
)
def test_the_workflow_is_for_the_adapters_base_model(denoiser: str, base: str, loader: str | None) -> None:
    config = AdapterConfig.from_dict(config_values(kind="policy", denoiser=denoiser))
    workflow = adapter_workflow(replace(config, base_model=replace(config.base_model, id=base)), "a red ring")
    assert (workflow is None) == (loader is None)
    assert workflow is None or loader in {node["type"] for node in workflow["nodes"]}


@pytest.mark.parametrize("model", MODELS)
def test_the_workflow_of_a_shipped_model_loads_it_and_shows_this_adapter_alone(model: str) -> None:
    config = AdapterConfig.from_dict(config_values(kind="policy", denoiser="SD3Transformer2DModel"))
    workflow = adapter_workflow(replace(config, base_model=replace(config.base_model, id=model)), "a red ring")
    assert workflow is not None
    by_type = {node["type"]: node["widgets_values"] for node in workflow["nodes"]}
    assert by_type["NFTShapesModel"] == [model]
    assert by_type["NFTStrengthGrid"][0] == by_type["NFTRewardGuidance"][0] == "tiny-red.safetensors"
    (note,) = by_type["MarkdownNote"]
    assert config.name in note and config.reward["description"] in note
    assert not any(name in json.dumps(workflow) for name in ADAPTERS)
