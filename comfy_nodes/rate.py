"""Likes and dislikes of pictures, written as the trainer reads them: a folder of pictures and metadata.jsonl.

    {"image": "3f2a....png", "prompt": "a red cube", "liked": true, "seed": 7, "guidance_scale": 3.5, "model": "sd35m"}

One line per picture; instead of "liked" there may be a "score" in [0, 1]. Prompt, seed, cfg and model are looked up in
the graph that made the picture. A picture is called by its content, so rating it again replaces its line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from nft_pipeline.errors import GuidanceError
from nft_pipeline.files.picture_list import PictureListError, add_pictures

VERDICTS = ("like", "dislike", "score")
Graph = Mapping[str, Any]


def rate_images(folder: Path, images: Tensor, verdict: str, score: float, facts: Mapping[str, Any]) -> list[str]:
    """Save pictures and what was thought of them.

    Args:
        folder: made when missing.
        images: ComfyUI's IMAGE, (B, H, W, 3) in [0, 1].
        verdict: one of `VERDICTS`, for all of them.
        score: in [0, 1], for "score".
        facts: prompt, and what else is known.

    Returns:
        The names of the files.

    Raises:
        GuidanceError: no such verdict, a score out of range, no prompt, or a metadata.jsonl that is none.
    """
    if verdict not in VERDICTS:
        raise GuidanceError(f"verdict is {verdict!r}, expected one of {', '.join(map(repr, VERDICTS))}")
    if verdict == "score" and not (math.isfinite(score) and 0 <= score <= 1):
        raise GuidanceError(f"score is {score}, expected a number from 0 (bad) to 1 (good)")
    if not str(facts.get("prompt", "")).strip():
        raise GuidanceError(
            "no prompt was found in the graph behind the images, and a rating without one cannot be trained on. Type "
            "it into the prompt input."
        )
    thought: dict[str, Any] = {"score": float(score)} if verdict == "score" else {"liked": verdict == "like"}
    pixels = [(image.detach().cpu().float().clamp(0, 1) * 255).round().numpy().astype(np.uint8) for image in images]
    try:
        return add_pictures(folder, map(Image.fromarray, pixels), {"prompt": facts["prompt"], **thought, **facts})
    except PictureListError as error:
        raise GuidanceError(
            f"{error}\nNothing was written. Mend or move the file, or choose another folder."
        ) from error


def rating_folder(output: str, folder: str) -> Path:
    """The folder inside ComfyUI's output folder.

    Raises:
        GuidanceError: a path that leaves it.
    """
    name = folder.strip()
    parts = name.replace("\\", "/").split("/")
    if not name or ".." in parts or ":" in name or name.startswith(("/", "\\", "~")) or "\0" in name:
        raise GuidanceError(f"folder is {folder!r}, expected one inside ComfyUI's output folder, such as 'ratings'")
    return Path(output, *parts)


_MODELS = ("ckpt_name", "unet_name", "model_name")


def facts_of_graph(graph: Graph, node_id: str) -> dict[str, Any]:
    """prompt, seed, guidance_scale and model of what reaches a node, as far as the graph says.

    The nearest node upstream that has an input of the name counts: for the prompt the text that leads to a sampler's
    positive input.

    Args:
        graph: ComfyUI's prompt: {id: {"class_type": ..., "inputs": {...}}}.
        node_id: of the node that rates.
    """
    facts: dict[str, Any] = {}
    for inputs in _upstream(graph, node_id):
        seed = next((inputs[name] for name in ("seed", "noise_seed") if name in inputs), None)
        if "seed" not in facts and isinstance(seed, int):
            facts["seed"] = seed
        if "guidance_scale" not in facts and isinstance(inputs.get("cfg"), (int, float)):
            facts["guidance_scale"] = float(inputs["cfg"])
        if "prompt" not in facts and isinstance(inputs.get("positive"), list):
            text = _text(graph, str(inputs["positive"][0]))
            facts |= {} if text is None else {"prompt": text}
        model = next((inputs[name] for name in _MODELS if isinstance(inputs.get(name), str)), None)
        if "model" not in facts and model is not None:
            facts["model"] = model
    return facts


def _text(graph: Graph, node_id: str) -> str | None:
    """The first text at or behind a node that makes conditioning."""
    own = [graph.get(node_id, {}).get("inputs", {}), *_upstream(graph, node_id)]
    for inputs in own:
        for name in ("text", "prompt", "t5xxl", "clip_l"):
            if isinstance(inputs.get(name), str) and inputs[name].strip():
                return str(inputs[name])
    return None


def _upstream(graph: Graph, node_id: str) -> Iterator[Mapping[str, Any]]:
    """The inputs of all nodes behind a node, nearest first."""
    waiting, seen = [node_id], {node_id}
    while waiting:
        inputs = graph.get(waiting.pop(0), {}).get("inputs", {})
        for value in inputs.values():
            behind = str(value[0]) if isinstance(value, list) and len(value) == 2 else None
            if behind is not None and behind in graph and behind not in seen:
                seen.add(behind)
                waiting.append(behind)
                yield graph[behind].get("inputs", {})
