"""A ComfyUI workflow for an adapter as a picture: dropped onto ComfyUI's page, the PNG opens as the workflow it shows.

The workflow is the one of `example_workflows` for the adapter's base model, with the adapter's file, recommended
strength, CFG and size in it; ComfyUI reads it from the PNG's text chunk "workflow". The picture shows the graph. The
workflows of shipped models speak of adapters that ship in their note, ask for what one of them likes, and have a strip
of strengths. Here the note speaks of this adapter, the prompt is of its card, and the strip shows it.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from nft_pipeline.adapters.config import AdapterConfig
from nft_pipeline.families.registry import FAMILIES
from nft_pipeline.models import MODELS

# Beside this room in a checkout and in an installed package alike.
TEMPLATES = Path(__file__).resolve().parent.parent / "example_workflows"
_READY = "1-{}-ready-to-run"  # for a shipped model
_PROMPT = "Prompt"  # the title of its node in every template
_NOTE = """## {name}

What it likes: {likes}.

Put `{file}` into `models/loras`, press **r** to refresh the lists, and press **Run**. The model comes with a clone of \
the repository of diffusion-nft in `custom_nodes`.

The strip is one seed and one prompt at several strengths. Move **strength** on Reward Guidance and press Run again: 0 \
is the model alone, {strength:g} as the adapter's author recommends. The picture below the strip is the one that goes \
on into your graph."""
_SCALE = 0.6


def adapter_workflow(config: AdapterConfig, prompt: str) -> dict[str, Any] | None:
    """The workflow, in the form ComfyUI's page saves; None for a base model that no template is for.

    Args:
        config: the adapter's config.
        prompt: what the workflow of a shipped model asks for; the others keep the prompt of their template.
    """
    base, family = config.base_model.id, FAMILIES.get(config.denoiser)
    of_family = {} if family is None else family.workflows
    fitting = [template for part, template in of_family.items() if part in base.lower()]
    shipped = base in MODELS  # a family's templates load Hub models
    name = _READY.format(base) if shipped else next(iter(fitting), None)
    if name is None:
        return None
    workflow: dict[str, Any] = json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8"))
    file = f"{config.name}.safetensors"
    given = {
        "adapter": file,
        "strength": config.strength,
        "cfg": config.guidance_scale,
        "width": config.resolution[1],
        "height": config.resolution[0],
        "filename_prefix": config.name,
    }
    for node in workflow["nodes"]:
        values = node["widgets_values"]
        if shipped and node["type"] == "MarkdownNote":
            likes = config.reward["description"]
            values[0] = _NOTE.format(name=config.name, likes=likes, file=file, strength=config.strength)
        if shipped and node.get("title") == _PROMPT:
            values[0] = prompt
        for place, widget in enumerate(_widgets(node)):
            values[place] = given.get(widget, values[place])
    return workflow


def workflow_picture(config: AdapterConfig, prompt: str) -> bytes | None:
    """That workflow as a PNG that shows and carries it, or None."""
    workflow = adapter_workflow(config, prompt)
    if workflow is None:
        return None
    text, file = PngInfo(), io.BytesIO()
    text.add_text("workflow", json.dumps(workflow))
    _draw(workflow).save(file, "PNG", pnginfo=text, optimize=True)
    return file.getvalue()


def _widgets(node: dict[str, Any]) -> list[str]:
    """The names of a node's stored values in their order; "" for what a seed becomes after a run."""
    names = [entry["name"] for entry in node["inputs"] if "widget" in entry]
    if "seed" in names:
        names.insert(names.index("seed") + 1, "")
    return names


def _draw(workflow: dict[str, Any]) -> Image.Image:
    """Boxes with their titles and values, on their groups, joined by lines."""
    nodes = [node for node in workflow["nodes"] if node["type"] != "MarkdownNote"]
    groups = [group["bounding"] for group in workflow["groups"]]
    left, top = (min(box[i] for box in groups) - 20 for i in (0, 1))
    right, bottom = (max(box[i] + box[i + 2] for box in groups) + 20 for i in (0, 1))

    def at(x: float, y: float) -> tuple[float, float]:
        return (x - left) * _SCALE, (y - top) * _SCALE

    width, height = map(round, at(right, bottom))
    picture = Image.new("RGB", (width, height), "#1b1b1b")
    pen = ImageDraw.Draw(picture)
    for group, (x, y, width, height) in zip(workflow["groups"], groups, strict=True):
        pen.rectangle([at(x, y), at(x + width, y + height)], fill="#262b31", outline="#4a5563")
        pen.text(at(x + 10, y + 6), group["title"], fill="#9fb0c3")
    by_id = {node["id"]: node for node in workflow["nodes"]}
    for _, source, output, target, slot, _ in workflow["links"]:
        one, other = by_id[source], by_id[target]
        start = at(one["pos"][0] + one["size"][0], one["pos"][1] + 10 + 20 * output)
        end = at(other["pos"][0], other["pos"][1] + 10 + 20 * slot)
        pen.line([start, end], fill="#7d8ca0")
    for node in nodes:
        (x, y), (width, height) = node["pos"], node["size"]
        ours = node["type"].startswith("NFT")
        pen.rounded_rectangle(
            [at(x, y - 28), at(x + width, y + height)], 5, "#353535", "#d66026" if ours else "#555555"
        )
        pen.text(at(x + 12, y - 24), node.get("title", node["type"]), fill="#f2a679" if ours else "#e6e6e6")
        shown = [(name, value) for name, value in zip(_widgets(node), node["widgets_values"], strict=True) if name]
        for row, (name, value) in enumerate(shown):
            line = y + 14 + 22 * row
            if line + 20 < y + height:
                pen.text(at(x + 14, line), f"{name}  {value}"[: int(width / 10.5)], fill="#c8c8c8")
    return picture
