"""nft_config.json: what an adapter says about itself, checked field by field.

There is one frozen dataclass, in which every field has its check beside it. Making an `AdapterConfig`, from Python or
from a file, reports every fault in one `AdapterError`. The names of the fields are a contract: once released they are
never renamed. docs/adapter_format.md has the contract, and nft_pipeline/files/versions.py says how it grows. Standard
library only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any, Literal

from ..checks import Check, choice, key_faults, matching, number, optional, plain_json, text, value_faults, whole
from ..dial.measured import Dial, dial_faults, read_dial
from ..errors import AdapterError
from ..families.prediction import PREDICTIONS, Prediction
from ..files.versions import VERSION_KEY, Format, Part, VersionError, known_keys, plain, unknown_names
from .names import MAX_CONFIG_BYTES

# A new field with a default gets a row in `added`, any other change a migration: see nft_pipeline/files/versions.py.
FORMAT = Format(version=1, added={"dial": 1}, inside={"dial.maps.goes_on": (2, False)}, migrations={})
FORMAT_VERSION = FORMAT.version
KINDS = ("positive", "policy")
REWARD_KEYS = ("name", "description", "normaliser")
MAX_RANK = 4096
_MAX_DIGITS = 20  # a seed of 64 bits has that many
_MAX_LEVELS = 64
REWARD_CHECKS: dict[str, Check] = {"name": text(), "description": text()}
UNKNOWN = "unknown"  # what the config of somebody else's checkpoint says where the checkpoint says nothing


@dataclass(frozen=True)
class BaseModel(Part):
    """The model an adapter was trained on.

    Args:
        id: Hub id or shipped name, as a person would load it.
        revision: commit or tag on the Hub; None if unknown.
        fingerprint: "sha256:" and 16 hex digits over the names and shapes of the denoiser's tensors, see
            `nft_pipeline.adapter.fingerprint`. Fine-tunes of one model share it.
    """

    id: Annotated[str, Check(text().holds, "a Hub id or shipped name")]
    revision: Annotated[str | None, Check(optional(text()).holds, "a commit, a tag or null")]
    fingerprint: Annotated[str, matching(r"sha256:[0-9a-f]{16}", '"sha256:" and 16 hex digits')]


def _is_resolution(value: Any) -> bool:
    edge = whole(8, 16384)
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(edge.holds, value))


_POSITIVE = number(1e-6, 1e6)
_BASE_MODEL = Check(lambda value: isinstance(value, Mapping | BaseModel), 'an object {"id", "revision", "fingerprint"}')
_RESOLUTION = Check(_is_resolution, "two whole numbers [height, width] from 8 to 16384")
_PLAIN_NAME = matching(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}",
    'a plain name of at most 100 letters, digits, ".", "_" and "-", without slashes: it names a file',
)
_DIAL = Check(lambda value: value is None or isinstance(value, Mapping | Dial), "an object with named fields, or null")
_TRAINING = plain_json("a JSON object: text keys, lists (no tuples), finite numbers")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(Part):
    """Everything about an adapter that is not a tensor.

    Args:
        kind: "positive" (the LoRA is v_plus, an alpha head comes with it) or "policy" (the LoRA is v_theta, the
            trained optimum, and alpha is already inside). docs/adapter_format.md, "The two kinds".
        name: short plain name; it becomes comfyui/<name>.safetensors. Letters, digits, ".", "_", "-".
        beta: DiffusionNFT's beta at strength 1, > 0.
        tilt: 2 / beta, the tilt lambda at strength 1; stored too, so that the file is plain to a reader. For policies
            it is the measured shift of log-odds at strength 1 where the run measured one, else the accumulated tilt
            (docs/theory.md, M8).
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
        base_rate: mean of alpha over the pictures it learned from, in (0, 1), which is the base model's share of liked
            pictures where they were drawn as their prompts say; positive adapters only, None if not measured.
        dial: what a calibration found, see `nft_pipeline.dial.measured`; None if there was none.
        training: free summary of the run, plain JSON.
        format_version: of these files, always 1 so far.
        format_minor: the minor version of the file it was read from, default 0. A newer one than this version knows
            may come with fields that this version does not know, which are kept in `extra`.

    Raises:
        AdapterError: every field that is not as said above, in one report.
    """

    kind: Annotated[Literal["positive", "policy"], Check(choice(*KINDS).holds, 'one of "positive", "policy"')]
    name: Annotated[str, _PLAIN_NAME]
    beta: Annotated[float, _POSITIVE]
    tilt: Annotated[float, Check(_POSITIVE.holds, f"{_POSITIVE.expected}, equal to 2 / beta")]
    base_model: Annotated[BaseModel, _BASE_MODEL]
    denoiser: Annotated[str, matching(r"[A-Za-z_][A-Za-z0-9_]*", 'a class name such as "SD3Transformer2DModel"')]
    prediction: Annotated[Prediction, Check(choice(*PREDICTIONS).holds, f"one of {json.dumps(PREDICTIONS)[1:-1]}")]
    rank: Annotated[int, whole(1, MAX_RANK)]
    reward: Annotated[Mapping[str, Any], plain_json('a JSON object {"name", "description", "normaliser"}')]
    guidance_scale: Annotated[float, number(0, 100)]
    resolution: Annotated[tuple[int, int], _RESOLUTION]
    licence: Annotated[str, Check(text().holds, 'a licence id such as "apache-2.0"; never empty')]
    strength: Annotated[float, number(above=0, high=100)] = 1.0
    component: Annotated[
        str, matching(r"[A-Za-z_][A-Za-z0-9_]*", 'the name of a pipeline part such as "transformer" or "unet"')
    ] = "transformer"
    base_rate: Annotated[
        float | None, Check(optional(number(above=0, below=1)).holds, "a number between 0 and 1, or null")
    ] = None
    dial: Annotated[Dial | None, _DIAL] = None
    training: Annotated[Mapping[str, Any], _TRAINING] = field(default_factory=dict)
    format_version: Annotated[int, FORMAT.check] = FORMAT_VERSION
    format_minor: Annotated[int, whole(0)] = 0

    def __post_init__(self) -> None:
        faults = config_faults({**self.extra, **{name: getattr(self, name) for name in self.names()}})
        if faults:
            raise AdapterError("the adapter's config has faults", faults)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, in the order of the dataclass."""
        return FORMAT.with_version(
            plain(self), (name for name in FORMAT.added if getattr(self, name) == _default(name))
        )

    def to_json(self) -> str:
        """The text of nft_config.json."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any], source: str = "nft_config.json") -> AdapterConfig:
        """Read plain JSON values, strictly.

        Fields that have a default may be missing, all but format_version. Unknown keys are an error, except in a file
        of a newer minor version: there they are kept in `extra`, and a warning names them.

        Args:
            mapping: the parsed JSON.
            source: where it came from, for the error.

        Raises:
            AdapterError: a newer version made it; or all faults at once.
        """
        try:
            values = FORMAT.migrated(mapping)
        except VersionError as error:
            raise AdapterError(f"{source} has faults", [str(error)]) from None
        faults = config_faults(values)
        if faults:
            raise AdapterError(f"{source} has faults", faults)
        values["base_model"] = BaseModel.of(values["base_model"])
        values["resolution"] = tuple(values["resolution"])
        values["dial"] = read_dial(values.get("dial"))
        config = cls.of(values)
        in_reward = [f"reward.{key}" for key in config.reward if key not in REWARD_KEYS]
        FORMAT.warn(source, [*unknown_names(config), *in_reward], values)
        return config

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "nft_config.json") -> AdapterConfig:
        """Read the text of nft_config.json; see `from_dict`."""
        return cls.from_dict(parse_json(text, source), source)


def parse_json(text: str | bytes, source: str) -> dict[str, Any]:
    """A JSON object, strictly: UTF-8, no key twice, no NaN or Infinity, at most 1 MB.

    Nor are there whole numbers of more than 20 digits, fractions beyond what a float holds, halves of characters, or
    more than 64 levels: JSON allows them, and later something would stumble over them.

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

    def short(digits: str) -> int:
        if len(digits) > _MAX_DIGITS:
            raise ValueError(f"it holds a whole number of {len(digits)} digits, expected at most {_MAX_DIGITS}")
        return int(digits)

    def finite(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError(f"it holds the number {digits[:40]}, which is too large")
        return value

    try:
        parsed = json.loads(
            text, object_pairs_hook=once, parse_constant=no_constant, parse_int=short, parse_float=finite
        )
        if _levels(parsed) > _MAX_LEVELS:
            raise ValueError(f"its values stand in more than {_MAX_LEVELS} levels of lists and objects")
        json.dumps(parsed, ensure_ascii=False).encode()  # fails where half of a character stands alone
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            f"{source} is not valid JSON: {error}", advice="Download or write the adapter again."
        ) from None
    if not isinstance(parsed, dict):
        raise AdapterError(f"{source} holds a JSON {type(parsed).__name__}, expected an object with named fields")
    return parsed


def _levels(value: Any) -> int:
    """How deep lists and objects are inside one another, counted to one more than is allowed."""
    levels, layer = 0, [value]
    while layer and levels <= _MAX_LEVELS:
        inner = [part for part in layer if isinstance(part, dict | list)]
        layer = [value for part in inner for value in (part.values() if isinstance(part, dict) else part)]
        levels += bool(inner)
    return levels


def plain_name(text: str, otherwise: str) -> str:
    """A text as the name of an adapter, which names a file; `otherwise` where nothing is left of it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:100] or otherwise


def unrecorded(where: str) -> dict[str, Any]:
    """The fields of an `AdapterConfig` that other tools do not record; `where` is a word for what they wrote."""
    reward = {"name": UNKNOWN, "description": f"not recorded in the {where}", "normaliser": None}
    return {"reward": reward, "guidance_scale": 1.0, "licence": UNKNOWN}


def config_faults(values: Mapping[str, Any]) -> list[str]:
    """Every fault of a config of this version, one sentence each; empty if it is sound.

    Args:
        values: fields by name, as parsed from JSON or as in the dataclass.
    """
    newer = FORMAT.is_newer(values)
    names = AdapterConfig.names()
    may_miss = [name for name in names if _default(name) is not MISSING and name != VERSION_KEY]
    faults = key_faults(known_keys(values, names, newer), names, may_miss)
    faults += value_faults(values, AdapterConfig.checks)
    faults += _nested_faults(values, newer) + dial_faults(values.get("dial"), newer)
    return faults + _agreement_faults(values)


def _default(name: str) -> Any:
    """The default of a field; MISSING if it has none."""
    entry = next(entry for entry in fields(AdapterConfig) if entry.name == name)
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def _nested_faults(values: Mapping[str, Any], newer: bool) -> list[str]:
    """Faults inside base_model and reward."""
    faults: list[str] = []
    for part, names, checks in (
        ("base_model", BaseModel.names(), BaseModel.checks),
        ("reward", REWARD_KEYS, REWARD_CHECKS),
    ):
        inside = plain(values.get(part))
        if isinstance(inside, Mapping):
            faults += key_faults(known_keys(inside, names, newer), names, where=f"{part}.")
            faults += value_faults(inside, checks, f"{part}.")
    return faults


def _agreement_faults(values: Mapping[str, Any]) -> list[str]:
    """Faults between fields that are sound one by one."""
    faults: list[str] = []
    beta: Any = values.get("beta")
    tilt: Any = values.get("tilt")
    if _POSITIVE.holds(beta) and _POSITIVE.holds(tilt) and abs(tilt * beta - 2) > 1e-6:
        faults.append(
            f"beta {beta:g} and tilt {tilt:g} do not belong together: tilt * beta is {tilt * beta:g}, expected 2; "
            f"for this beta the tilt is {2 / beta:g}"
        )
    if values.get("kind") == "policy" and values.get("base_rate") is not None:
        faults.append("base_rate is given for a policy adapter; only positive adapters have an alpha, expected null")
    return faults
