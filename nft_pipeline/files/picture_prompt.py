"""The prompt that a picture was drawn with, as ComfyUI and A1111's web UI write it into their PNG files.

A1111, Forge and others write one text, "parameters": the prompt, then "Negative prompt: ...", then a line of settings.
ComfyUI writes its graph as JSON, "prompt". There the prompt is the text behind the input "positive" of a sampler,
however many nodes lie between.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

_END = re.compile(r"\n(?:Negative prompt|Steps): ")
_TEXTS = ("text", "text_g", "clip_l", "t5xxl", "string", "value", "prompt")  # inputs of nodes that hold a prompt
_LARGEST = 4_000_000  # characters of a graph


def prompt_in(source: str | os.PathLike[str]) -> str | None:
    """The prompt in a picture file; None if it says none, is no PNG, or cannot be read."""
    try:
        with Image.open(source, formats=("PNG",)) as file:
            texts = {name: text for name, text in file.info.items() if isinstance(text, str)}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if "parameters" in texts:
        return _END.split(f"\n{texts['parameters']}", maxsplit=1)[0].strip() or None
    return _of_graph(texts["prompt"]) if len(texts.get("prompt", "")) in range(1, _LARGEST) else None


def _of_graph(text: str) -> str | None:
    """The prompt in a graph of ComfyUI's."""
    try:
        graph = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(graph, dict):
        return None
    nodes = {name: node["inputs"] for name, node in graph.items() if _is_node(node)}
    for inputs in nodes.values():
        # Samplers have `positive`, guiders of newer graphs `conditioning`.
        for name in ("positive", "conditioning"):
            found = _behind(inputs.get(name), nodes, set())
            if found:
                return found
    return None


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("inputs"), dict)


def _behind(link: Any, nodes: Mapping[str, Mapping[str, Any]], met: set[str]) -> str | None:
    """The first text behind a link, ["node", output]; None if there is none."""
    name = str(link[0]) if isinstance(link, list) and link else None
    if name is None or name in met or name not in nodes:
        return None
    met.add(name)
    inputs = nodes[name]
    for key in _TEXTS:
        value = inputs.get(key)
        if isinstance(value, str) and value.strip():
            return value.strip()
    # A text may come from a node of its own; what is negative stays out.
    for key, value in inputs.items():
        if key != "negative" and (found := _behind(value, nodes, met)):
            return found
    return None
