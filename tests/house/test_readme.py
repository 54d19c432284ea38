"""The README and docs/ keep their word: snippet, commands, links, symbols, numbers and lists are those of the code."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import fake_comfyui, training_page
from helpers.repository import ROOT
from helpers.zoo import CASES
from nft_pipeline.call.guided_call import GUIDANCE_ARGUMENTS
from nft_pipeline.families.registry import FAMILIES
from nft_pipeline.training.bases.registry import TRAINABLE
from nft_pipeline.training.rewards.registry import built_in
from nft_pipeline.training.settings.file import PRESETS
from nft_pipeline.training.shapes import world

README = (ROOT / "README.md").read_text(encoding="utf-8")


PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
WORDS = {
    "StableDiffusion3Pipeline": r"Stable Diffusion (3|1 to 3)",
    "StableDiffusionPipeline": r"Stable Diffusion 1",
    "StableDiffusionXLPipeline": r"SDXL|and XL",
    "FluxPipeline": r"FLUX\.1",
    "Flux2Pipeline": r"FLUX\.2|FLUX\.1 and 2",
    "Flux2KleinPipeline": r"FLUX\.2|FLUX\.1 and 2",
    "QwenImagePipeline": r"Qwen-Image",
    "ZImagePipeline": r"Z-Image",
    "SanaPipeline": r"Sana",
    "WanPipeline": r"Wan",
}
REWARDS = {
    "ImageReward": "image_reward",
    "PickScore": "pickscore",
    "HPS": "hps_v2",
    "CLIP": "clip_score",
    "OCR": "ocr",
    "a vision-language model": "vlm_judge",
}


def node_names(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """The display names of the ComfyUI nodes."""
    fake_comfyui.install(monkeypatch, folder)
    from nft_pipeline.comfy_nodes import nodes

    return [node.define_schema().display_name for node in nodes.NODES]


def family_presets() -> list[str]:
    """Presets that are a family's: those that begin with large_model."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml") if "\npreset: large_model\n" in path.read_text())


def python_versions() -> list[int]:
    """The minor versions of Python 3 that pyproject.toml names, ascending."""
    text = (ROOT / "pyproject.toml").read_text()
    minors = sorted(int(minor) for minor in re.findall(r"Programming Language :: Python :: 3\.(\d+)", text))
    assert f'requires-python = ">=3.{minors[0]}"' in text
    return minors


# What a page may count, each from the code.
FACTS: dict[str, Callable[[pytest.FixtureRequest], int]] = {
    "families": lambda _: len(FAMILIES),
    "pipeline classes": lambda _: len({name.partition(",")[0] for name in CASES}),
    "call arguments": lambda _: len(GUIDANCE_ARGUMENTS),
    "templates": lambda _: len(list((ROOT / "example_workflows").glob("*.json"))),
    "oldest Python": lambda _: python_versions()[0],
    "newest Python": lambda _: python_versions()[-1],
    "steps of the shapes model": lambda _: json.loads(
        (ROOT / "nft_pipeline/models/shapes/call_defaults.json").read_text()
    )["num_inference_steps"],
    "shapes": lambda _: len(world.SHAPES),
    "colours": lambda _: len(world.COLOURS),
    "backgrounds": lambda _: len(world.BACKGROUNDS),
}
# (page, sentence with its numbers as groups, the fact behind each group); the sentence may be broken into lines.
NUMBERS: list[tuple[str, str, list[str]]] = [
    ("README.md", r"(\w+) pipeline classes over (\w+) families", ["pipeline classes", "families"]),
    ("README.md", r"takes (\w+) more arguments", ["call arguments"]),
    ("README.md", r"Of the (\w+) templates", ["templates"]),
    ("README.md", r"Python 3\.(\d+) to 3\.(\d+)", ["oldest Python", "newest Python"]),
    ("README.md", r"the sampler's (\w+) steps", ["steps of the shapes model"]),
    ("docs/shapes.md", r"(\w+) shapes \(", ["shapes"]),
    ("docs/shapes.md", r"(\w+) colours \(", ["colours"]),
    ("docs/shapes.md", r"(\w+) backgrounds \(", ["backgrounds"]),
    ("docs/shapes.md", r"classifier-free guidance, (\d+) steps", ["steps of the shapes model"]),
]
IN_WORDS = re.findall(
    r"\w+", "no one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
)


def number_fault(text: str, pattern: str, expected: list[int]) -> str:
    """What is wrong with the numbers that a page gives in a sentence; "" if nothing is."""
    match = re.search(pattern, re.sub(r"\s+", " ", text))
    if match is None:
        return f"no sentence matches {pattern!r}; if it was reworded, change the pattern in this test"
    words = [word.lower() for word in match.groups()]
    numbers = [int(word) if word.isdigit() else IN_WORDS.index(word) for word in words]
    if numbers == expected:
        return ""
    return f"says {numbers} in {match.group()!r}; the code has {expected}; run make pages, or correct it"


def _formulas(text: str) -> list[tuple[int, set[str]]]:
    """Where each block of formulas begins (a fenced block without a language), and the symbols in it."""
    formulas = []
    for fence in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if not fence[1]:
            block = re.sub(r"^(nft|odds) ", "", fence[2], flags=re.MULTILINE)  # the laws' names before their formulas
            formulas.append((fence.start(), set(re.findall(r"[^\W\d]\w*", block))))
    return formulas


def formula_symbols(text: str) -> set[str]:
    """All symbols in a page's formulas."""
    return set().union(*(symbols for _, symbols in _formulas(text)))


def undefined_symbols(text: str) -> list[str]:
    """Symbols of a page's formulas without a line "- `symbol` is ..." above the formula."""
    faults: set[str] = set()
    for start, symbols in _formulas(text):
        faults |= symbols - set(re.findall(r"^- `(\w+)` is ", text[:start], re.MULTILINE))
    return sorted(faults)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links of a page whose file or heading does not exist."""
    faults = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        goal = (page.parent / file).resolve() if file else page
        if not goal.is_file() or (heading and heading not in anchors(goal)):
            faults.append(target)
    return faults


def test_the_snippet_runs() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(snippet, "README.md", "exec"), names)
    assert type(names["image"]).__name__ == "Image" and names["image"].size == (64, 64)  # type: ignore[attr-defined]
    assert type(names["stock"]).__name__ == "StableDiffusion3Pipeline"
    assert "denoiser forwards" in printed.getvalue()


def test_every_make_command_it_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z]+)", README))
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_and_heading_it_points_to_exists(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


def test_broken_links_are_noticed() -> None:
    text = (
        "[a](docs/nowhere.md) [b](docs/api.md#nowhere) [c](#nowhere) [d](docs/api.md#the-call) [e](https://x.org/y#z)"
    )
    assert broken_links(ROOT / "README.md", text) == ["docs/nowhere.md", "docs/api.md#nowhere", "#nowhere"]


def test_every_symbol_of_a_formula_is_defined_above_it() -> None:
    assert formula_symbols(README) >= {"v", "v_old", "v_plus", "alpha", "beta", "x_t", "c", "t", "s"}
    assert undefined_symbols(README) == []


def test_a_symbol_that_is_not_defined_above_is_noticed() -> None:
    without = re.sub(r"^- `v_plus` is .*\n", "", README, flags=re.MULTILINE)
    assert undefined_symbols(without) == ["v_plus"]
    assert undefined_symbols(f"{without}\n- `v_plus` is too late here.\n") == ["v_plus"]


@pytest.mark.parametrize(("page", "pattern", "values"), NUMBERS, ids=[pattern for _, pattern, _ in NUMBERS])
def test_its_numbers_are_those_of_the_code(
    page: str, pattern: str, values: list[str], request: pytest.FixtureRequest
) -> None:
    expected = [FACTS[name](request) for name in values]
    assert number_fault((ROOT / page).read_text(encoding="utf-8"), pattern, expected) == "", page


def test_a_wrong_number_and_a_reworded_sentence_are_noticed() -> None:
    pattern = r"[Tt]here are (\w+) nodes"
    assert number_fault("There are ten nodes", pattern, [10]) == ""
    assert "says [10]" in number_fault("There are ten nodes", pattern, [11])
    assert "no sentence" in number_fault("We have ten nodes", pattern, [10])


def test_the_arguments_it_lists_are_those_of_the_call() -> None:
    assert re.findall(r"^\| `(nft_\w+)` \|", README, re.MULTILINE) == list(GUIDANCE_ARGUMENTS)


def test_the_rewards_it_names_are_built_in() -> None:
    (sentence,) = re.findall(r"The reward can be (.*?) or your own", README.replace("\n", " "))
    assert {REWARDS[name] for name in sentence.split(", ")} <= set(built_in())


def test_the_pages_name_the_pipelines_that_can_be_trained() -> None:
    """The pages' lists are made from TRAINABLE; the README names the best known of them, and none besides."""
    assert training_page.page() == training_page.PAGE.read_text(encoding="utf-8"), "docs/training.md: run make pages"
    pipelines = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^## Trained\n(.*?)\n## |^## Trained\n(.*)", pipelines, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"\w+Pipeline\b", "".join(listed))) == set(TRAINABLE)
    assert set(WORDS) <= set(TRAINABLE)
    (bullet,) = re.findall(r"^- \*\*Training\*\* covers (.*?), with presets", README, re.MULTILINE | re.DOTALL)
    for pipeline, word in WORDS.items():
        assert re.search(word, bullet), f"the README's line on training does not name {pipeline} ({word!r})"


def test_every_preset_of_a_family_is_in_the_table_of_memory() -> None:
    names = re.sub(r"\(.*?\)", "", ",".join(row.split("|")[2] for row in training_page.presets().splitlines()[2:]))
    assert sorted(name.strip() for name in names.split(",")) == family_presets()


def test_the_nodes_it_lists_are_those_of_the_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "comfyui.md").read_text(encoding="utf-8")
    (rows,) = re.findall(r"^\| node \|.*\n\|---\|---\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    listed = [name.strip() for row in rows.splitlines() for name in row.split("|")[1].split(",")]
    assert sorted(listed) == sorted(node_names(monkeypatch, tmp_path))


def test_every_command_it_names_is_one() -> None:
    from nft_pipeline.cli import COMMANDS

    named = set(re.findall(r"diffusion-nft ([a-z]+)", README))
    assert named and named <= set(COMMANDS)
