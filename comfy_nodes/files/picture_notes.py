"""What guided a picture, for the picture's own file: adapter, its hash, strength, law and the other settings.

ComfyUI's Save Image writes every entry of `extra_pnginfo` into the PNG as text. So an entry is added to each job when
it is queued, read off its graph; no node has to be connected for it, and nodes whose results are cached are in it too.

    {"reward_guidance": [{"node": "5", "adapter": "warm.safetensors", "sha256": "3f2a...", "strength": 1.0, ...}]}
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

KEY = "reward_guidance"
_OURS = "NFT"  # what the ids of all our nodes begin with
_STRENGTHS = ("strength", "strengths")  # whoever asks for an adapter and one of them guides
_LEFT_OUT = ("seed", "seeds", "prompts", "loaded")  # the first three are in ComfyUI's own entry
_VALUES = (str, int, float, bool)
Graph = Mapping[str, Any]


def add_notes(job: dict[str, Any], path_of: Callable[[str], str]) -> dict[str, Any]:
    """The job with an entry in its extra_pnginfo, if anything in its graph guides.

    Args:
        job: what the browser sends to ComfyUI's /prompt, changed in place.
        path_of: where a file of models/loras is; raises FileNotFoundError if it is gone.
    """
    notes = list(notes_of(job.get("prompt") or {}, path_of))
    if notes:
        data = job.setdefault("extra_data", {})
        data["extra_pnginfo"] = {**(data.get("extra_pnginfo") or {}), KEY: notes}
    return job


def notes_of(graph: Graph, path_of: Callable[[str], str]) -> Iterator[dict[str, Any]]:
    """One entry for each node that guides: its number, the adapter, the hash of its file, and what is set on it.

    What comes out of another node is noted if that node has it typed in; otherwise as the number of that node.
    """
    for number, node in graph.items():
        kind, inputs = str(node.get("class_type")), node.get("inputs", {})
        guides = "adapter" in inputs and any(name in inputs for name in _STRENGTHS)
        if not kind.startswith(_OURS) or not guides:
            continue
        given = {**inputs, "adapter": inputs.get("loaded", inputs.get("adapter"))}
        typed = {name: _typed(graph, name, value) for name, value in given.items() if name not in _LEFT_OUT}
        sha256 = _hash_of(str(typed["adapter"]), path_of)
        known = {name: value for name, value in typed.items() if value is not None}
        yield {"node": str(number), **known, **({"sha256": sha256} if sha256 else {})}


def _typed(graph: Graph, name: str, value: Any) -> Any:
    """The value of an input, if it is one that a person can type; of a connected one that of the node behind it."""
    if isinstance(value, _VALUES):
        return value
    if not (isinstance(value, list) and len(value) == 2):
        return None
    behind = graph.get(str(value[0]), {}).get("inputs", {})
    given = next((behind[key] for key in (name, f"{name}s", "value") if isinstance(behind.get(key), _VALUES)), None)
    return given if given is not None or name not in _STRENGTHS else f"from node {value[0]}"


def _hash_of(adapter: str, path_of: Callable[[str], str]) -> str | None:
    try:
        path = path_of(adapter)
        status = os.stat(path)
    except OSError:
        return None
    return _sha256(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _sha256(path: str, modified: int, size: int) -> str:
    """Of a file as it is now: once for each file and change, since a large one takes a second."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 24):
            sha256.update(part)
    return sha256.hexdigest()
