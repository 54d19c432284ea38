"""nft_config.json: what an adapter says about itself, checked field by field.

One frozen dataclass, one table of checks. Whoever makes an `AdapterConfig`, from Python or from a file, gets every
fault in one `AdapterError`. The names of the fields are a contract: once released they are never renamed
(DESIGN section 4). Standard library only.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeGuard

from ..errors import AdapterError

FORMAT_VERSION = 1
KINDS = ("positive", "policy")
PREDICTIONS = ("flow", "epsilon", "v", "sample")
REWARD_KEYS = ("name", "description", "normaliser")
MAX_CONFIG_BYTES = 1_000_000
MAX_RANK = 4096


@dataclass(frozen=True)
class BaseModel:
    """The model an adapter was trained on.

    Args:
        id: Hub id or shipped name, as a person would load it.
        revision: commit or tag on the Hub; None if unknown.
        fingerprint: "sha256:" and 16 hex digits over the names and shapes of the denoiser's tensors, see
            `nft_pipeline.adapter.fingerprint`. Fine-tunes of one model share it.
    """

    id: str
    revision: str | None
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Everything about an adapter that is not a tensor.

    Args:
        kind: "positive" (the LoRA is v_plus, an alpha head comes with it) or "policy" (the LoRA is v_theta, the
            trained optimum, and alpha is already inside). DESIGN section 3.
        name: short plain name; it becomes comfyui/<name>.safetensors. Letters, digits, ".", "_", "-".
        beta: DiffusionNFT's beta at strength 1, > 0.
        tilt: 2 / beta, the tilt lambda at strength 1; stored too, so that the file is plain to a reader. For policies
            trained in rounds it is the accumulated tilt (DESIGN M8).
        base_model: what it was trained on.
        denoiser: class name of the denoiser, such as "SD3Transformer2DModel".
        prediction: what the denoiser's output is: "flow", "epsilon", "v" or "sample".
        rank: the LoRA's rank, the same in every layer.
        reward: {"name", "description", "normaliser"}: what was rewarded, in words, and how scores became r in [0, 1].
        guidance_scale: the CFG scale the training pictures were sampled with; 1 (or 0) is without CFG.
        resolution: (height, width) of the training pictures in pixels.
        licence: the licence's id, such as "apache-2.0"; never guessed.
        strength: the strength the author recommends, default 1.
        component: the part of the pipeline the denoiser is, default "transformer".
        base_rate: mean of alpha under the base model, in (0, 1); positive adapters only, None if not measured.
        training: free summary of the run, plain JSON.
        format_version: of these files, always 1 so far.

    Raises:
        AdapterError: every field that is not as said above, in one report.
    """

    kind: Literal["positive", "policy"]
    name: str
    beta: float
    tilt: float
    base_model: BaseModel
    denoiser: str
    prediction: Literal["flow", "epsilon", "v", "sample"]
    rank: int
    reward: Mapping[str, Any]
    guidance_scale: float
    resolution: tuple[int, int]
    licence: str
    strength: float = 1.0
    component: str = "transformer"
    base_rate: float | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        faults = config_faults({entry.name: getattr(self, entry.name) for entry in fields(self)})
        if faults:
            raise AdapterError("the adapter's config has faults", faults)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, in the order of the dataclass."""
        return {**asdict(self), "resolution": list(self.resolution)}

    def to_json(self) -> str:
        """The text of nft_config.json."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any], source: str = "nft_config.json") -> AdapterConfig:
        """Read plain JSON values, strictly: every key must be there, none may be unknown.

        Args:
            mapping: the parsed JSON.
            source: where it came from, for the error.

        Raises:
            AdapterError: all faults at once.
        """
        faults = config_faults(mapping)
        if faults:
            raise AdapterError(f"{source} has faults", faults)
        values = dict(mapping)
        values["base_model"] = BaseModel(**values["base_model"])
        values["resolution"] = tuple(values["resolution"])
        return cls(**values)

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "nft_config.json") -> AdapterConfig:
        """Read the text of nft_config.json; see `from_dict`."""
        return cls.from_dict(parse_json(text, source), source)


def parse_json(text: str | bytes, source: str) -> dict[str, Any]:
    """A JSON object, strictly: UTF-8, no key twice, no NaN or Infinity, at most 1 MB.

    Raises:
        AdapterError: naming `source`.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise AdapterError(f"{source} is {len(text):,} bytes long, expected at most {MAX_CONFIG_BYTES:,}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"the key {key!r} stands there twice")
            found[key] = value
        return found

    def no_constant(constant: str) -> Any:
        raise ValueError(f"it holds the number {constant}, which is not JSON")

    try:
        parsed = json.loads(text, object_pairs_hook=once, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            f"{source} is not valid JSON: {error}", advice="Download or write the adapter again."
        ) from None
    if not isinstance(parsed, dict):
        raise AdapterError(f"{source} holds a JSON {type(parsed).__name__}, expected an object with named fields")
    return parsed


def key_faults(
    found: Sequence[Any], expected: Sequence[str], optional: Sequence[str] = (), where: str = ""
) -> list[str]:
    """One sentence for every missing and every unknown key, with the nearest known name."""
    faults = [f"{where}{key} is missing" for key in expected if key not in found and key not in optional]
    for key in found:
        if key not in expected:
            near = difflib.get_close_matches(str(key), expected, n=1)
            faults.append(f"{where}{key} is unknown" + (f"; did you mean {near[0]}?" if near else ""))
    return faults


def config_faults(values: Mapping[str, Any]) -> list[str]:
    """Every fault of a config, one sentence each; empty if it is sound.

    Args:
        values: fields by name, as parsed from JSON or as in the dataclass.
    """
    version = values.get("format_version")
    if _is_whole(version) and version != FORMAT_VERSION:
        newer = "update diffusion-nft" if version > FORMAT_VERSION else "the file is damaged"
        return [f"format_version is {version}, this version of diffusion-nft reads {FORMAT_VERSION}: {newer}"]
    faults = key_faults(list(values), [entry.name for entry in fields(AdapterConfig)])
    for name, (check, expected) in _CHECKS.items():
        if name in values and not check(values[name]):
            faults.append(f"{name} is {_shown(values[name])}, expected {expected}")
    return faults + _nested_faults(values) + _agreement_faults(values)


def _nested_faults(values: Mapping[str, Any]) -> list[str]:
    """Faults inside base_model and reward."""
    faults: list[str] = []
    base = values.get("base_model")
    if isinstance(base, BaseModel):
        base = asdict(base)
    if isinstance(base, Mapping):
        faults += key_faults(list(base), [entry.name for entry in fields(BaseModel)], where="base_model.")
        for name, (check, expected) in _BASE_CHECKS.items():
            if name in base and not check(base[name]):
                faults.append(f"base_model.{name} is {_shown(base[name])}, expected {expected}")
    reward = values.get("reward")
    if isinstance(reward, Mapping):
        faults += key_faults(list(reward), REWARD_KEYS, where="reward.")
        for name in ("name", "description"):
            if name in reward and not _is_text(reward[name]):
                faults.append(f"reward.{name} is {_shown(reward[name])}, expected a text that is not empty")
    return faults


def _agreement_faults(values: Mapping[str, Any]) -> list[str]:
    """Faults between fields that are sound one by one."""
    faults: list[str] = []
    beta, tilt = values.get("beta"), values.get("tilt")
    if _is_positive(beta) and _is_positive(tilt) and abs(tilt * beta - 2) > 1e-6:
        faults.append(
            f"beta {beta:g} and tilt {tilt:g} do not belong together: tilt * beta is {tilt * beta:g}, expected 2; "
            f"for this beta the tilt is {2 / beta:g}"
        )
    if values.get("kind") == "policy" and values.get("base_rate") is not None:
        faults.append("base_rate is given for a policy adapter; only positive adapters have an alpha, expected null")
    return faults


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_whole(value: Any) -> TypeGuard[int]:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _is_positive(value: Any) -> TypeGuard[float]:
    return _is_number(value) and 1e-6 <= value <= 1e6


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _matches(pattern: str) -> Callable[[Any], bool]:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _is_resolution(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(_is_whole(n) and 8 <= n <= 16384 for n in value)


def _is_json_object(value: Any) -> bool:
    try:
        return isinstance(value, Mapping) and json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError, RecursionError):
        return False


# name -> (is it sound?, what was expected). Checks must not raise, whatever JSON holds.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format_version": (lambda v: _is_whole(v), f"the whole number {FORMAT_VERSION}"),
    "kind": (lambda v: isinstance(v, str) and v in KINDS, 'one of "positive", "policy"'),
    "name": (
        _matches(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"),
        'a plain name of at most 100 letters, digits, ".", "_" and "-", without slashes: it names a file',
    ),
    "beta": (_is_positive, "a number from 1e-06 to 1e+06"),
    "tilt": (_is_positive, "a number from 1e-06 to 1e+06, equal to 2 / beta"),
    "strength": (lambda v: _is_number(v) and 0 < v <= 100, "a number above 0, at most 100"),
    "base_model": (
        lambda v: isinstance(v, Mapping | BaseModel),
        'an object {"id", "revision", "fingerprint"}',
    ),
    "component": (_matches(r"[A-Za-z_][A-Za-z0-9_]*"), 'the name of a pipeline part such as "transformer" or "unet"'),
    "denoiser": (_matches(r"[A-Za-z_][A-Za-z0-9_]*"), 'a class name such as "SD3Transformer2DModel"'),
    "prediction": (
        lambda v: isinstance(v, str) and v in PREDICTIONS,
        'one of "flow", "epsilon", "v", "sample"',
    ),
    "rank": (lambda v: _is_whole(v) and 1 <= v <= MAX_RANK, f"a whole number from 1 to {MAX_RANK}"),
    "reward": (_is_json_object, 'a JSON object {"name", "description", "normaliser"}'),
    "base_rate": (lambda v: v is None or (_is_number(v) and 0 < v < 1), "a number between 0 and 1, or null"),
    "guidance_scale": (lambda v: _is_number(v) and 0 <= v <= 100, "a number from 0 to 100"),
    "resolution": (_is_resolution, "two whole numbers [height, width] from 8 to 16384"),
    "training": (_is_json_object, "a JSON object: text keys, lists (no tuples), finite numbers"),
    "licence": (_is_text, 'a licence id such as "apache-2.0"; never empty'),
}
_BASE_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (_is_text, "a Hub id or shipped name"),
    "revision": (lambda v: v is None or _is_text(v), "a commit, a tag or null"),
    "fingerprint": (_matches(r"sha256:[0-9a-f]{16}"), '"sha256:" and 16 hex digits'),
}
