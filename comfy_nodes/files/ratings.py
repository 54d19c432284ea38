"""Likes and dislikes of pictures, written as the trainer reads them: a folder of pictures and metadata.jsonl.

    {"image": "3f2a....png", "prompt": "a red cube", "liked": true, "seed": 7, "guidance_scale": 3.5, "model": "sd35m"}

One line per picture; instead of "liked" there may be a "score" in [0, 1], and a picture of a batch has its place in it,
"batch_index". Prompt, seed, cfg and model are looked up in
the graph that made the picture. A picture is called by its content, so rating it again replaces its line.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from nft_pipeline.errors import GuidanceError
from nft_pipeline.files.picture_list import PictureListError, add_pictures, picture_name

UNRATED = "not rated yet"
VERDICTS = (UNRATED, "like", "dislike", "score")
Graph = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """A picture that can be rated.

    Args:
        pixels: (H, W, 3) in [0, 255], uint8.
        facts: prompt, and what else is known of it.
    """

    pixels: Any
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of its file, by its content."""
        return picture_name(Image.fromarray(self.pixels))


def pictures_of(images: Tensor, facts: Mapping[str, Any], chosen: str = "") -> list[Picture]:
    """The pictures of a batch, each with its own facts.

    One seed draws all noises of a batch, one behind the other, so a picture's own noise is that seed's at its place in
    the batch: "batch_index", counted from 0, on from the one in the facts.

    Args:
        images: ComfyUI's IMAGE, (B, H, W, 3) in [0, 1].
        facts: of all of them.
        chosen: numbers of pictures counted from 1, with commas between; empty for all.

    Raises:
        GuidanceError: a number that is no picture's.
    """
    first, alone = int(facts.get("batch_index", 0)), len(images) == 1 and "batch_index" not in facts
    found = []
    for place in _places(chosen, len(images)):
        pixels = (images[place].detach().cpu().float().clamp(0, 1) * 255).round().numpy().astype(np.uint8)
        own = {} if alone or "seed" not in facts else {"batch_index": first + place}
        rest = {key: value for key, value in facts.items() if key != "batch_index"}
        found.append(Picture(pixels, {**rest, **own}))
    return found


def _places(chosen: str, number: int) -> list[int]:
    parts = [part.strip() for part in chosen.replace("\n", ",").split(",") if part.strip()]
    for part in parts:
        if not (part.isdecimal() and 1 <= int(part) <= number):
            raise GuidanceError(
                f"{part!r} in pictures is none of them. There are {number}: expected numbers from 1 to {number} with "
                "commas between, such as 1, 3, or nothing for all."
            )
    return [int(part) - 1 for part in parts] or list(range(number))


def rate_images(
    folder: Path, images: Tensor, verdict: str, score: float, facts: Mapping[str, Any], chosen: str = ""
) -> list[str]:
    """Save the pictures of a batch and what was thought of them. Arguments and errors as `pictures_of` and `rate`.

    Returns:
        The names of the files; none for those that are not rated yet.
    """
    pictures = pictures_of(images, facts, chosen)
    rate(folder, pictures, verdict, score)
    return [] if verdict == UNRATED else [picture.name for picture in pictures]


def rate(folder: Path, pictures: Sequence[Picture], verdict: str, score: float = 0.5) -> None:
    """Save pictures and what was thought of them.

    Args:
        folder: made when missing.
        pictures: see `pictures_of`.
        verdict: one of `VERDICTS`, for all of them; those that are not rated yet are not saved.
        score: in [0, 1], for "score".

    Raises:
        GuidanceError: no such verdict, a score out of range, no prompt, or a metadata.jsonl that is none.
    """
    if verdict not in VERDICTS:
        raise GuidanceError(f"verdict is {verdict!r}, expected one of {', '.join(map(repr, VERDICTS))}")
    if verdict == "score" and not (math.isfinite(score) and 0 <= score <= 1):
        raise GuidanceError(f"score is {score}, expected a number from 0 (bad) to 1 (good)")
    if verdict == UNRATED:
        return
    if not all(str(picture.facts.get("prompt", "")).strip() for picture in pictures):
        raise GuidanceError(
            "no prompt was found in the graph behind the images, and a rating without one cannot be trained on. Type "
            "it into the prompt input."
        )
    thought: dict[str, Any] = {"score": float(score)} if verdict == "score" else {"liked": verdict == "like"}
    try:
        add_pictures(
            folder,
            (
                (Image.fromarray(picture.pixels), {"prompt": picture.facts["prompt"], **thought, **picture.facts})
                for picture in pictures
            ),
        )
    except PictureListError as error:
        raise GuidanceError(
            f"{error}\nNothing was written. Mend or move the file, or choose another folder."
        ) from error


class Shown:
    """Pictures that are on a page and can be rated there, each by a button: the latest, at most `KEPT`."""

    KEPT = 256

    def __init__(self) -> None:
        self._pictures: OrderedDict[str, tuple[Path, Picture]] = OrderedDict()

    def show(self, folder: Path, pictures: Sequence[Picture]) -> None:
        """Keep pictures, and the folder that they are saved in when they are rated."""
        for picture in pictures:
            self._pictures.pop(picture.name, None)
            self._pictures[picture.name] = (folder, picture)
        while len(self._pictures) > self.KEPT:
            self._pictures.popitem(last=False)

    def rate(self, name: str, verdict: str) -> str:
        """Save one of them; the verdict comes back.

        Args:
            name: of the picture's file.
            verdict: "like" or "dislike".

        Raises:
            GuidanceError: the picture is not here any more, or as `rate`.
        """
        if name not in self._pictures:
            raise GuidanceError("This picture is not kept any more. Press Run, and rate it then.")
        folder, picture = self._pictures[name]
        rate(folder, [picture], verdict)
        return verdict


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
    """prompt, seed, batch_index, guidance_scale and model of what reaches a node, as far as the graph says.

    The nearest node upstream that has an input of the name counts: for the prompt the text that leads to a sampler's
    positive input.

    Args:
        graph: ComfyUI's prompt: {id: {"class_type": ..., "inputs": {...}}}.
        node_id: of the node that rates.
    """
    facts: dict[str, Any] = {}
    for inputs in _upstream(graph, node_id):
        seed = next((_whole(graph, inputs[name]) for name in ("seed", "noise_seed") if name in inputs), None)
        if "seed" not in facts and seed is not None:
            facts["seed"] = seed
        if "batch_index" not in facts and isinstance(inputs.get("batch_index"), int):  # Latent From Batch
            facts["batch_index"] = inputs["batch_index"]
        if "guidance_scale" not in facts and isinstance(inputs.get("cfg"), (int, float)):
            facts["guidance_scale"] = float(inputs["cfg"])
        if "prompt" not in facts and isinstance(inputs.get("positive"), list):
            text = _text(graph, str(inputs["positive"][0]))
            facts |= {} if text is None else {"prompt": text}
        model = next((inputs[name] for name in _MODELS if isinstance(inputs.get(name), str)), None)
        if "model" not in facts and model is not None:
            facts["model"] = model
    return facts


def _whole(graph: Graph, value: Any) -> int | None:
    """A whole number, or that of the node that it comes from."""
    if isinstance(value, list) and value:
        inputs = graph.get(str(value[0]), {}).get("inputs", {})
        value = next((inputs[name] for name in ("value", "seed", "noise_seed") if name in inputs), None)
    return value if isinstance(value, int) else None


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
