"""A file of models/loras as a reward adapter: our own single file or folder, or anybody's plain LoRA.

reward = read_reward_file(path)               # LoRA at scale 1, head, config
print(describe(reward))
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nft_pipeline.adapters.alpha_head import AlphaHead
from nft_pipeline.adapters.config import UNKNOWN, AdapterConfig, BaseModel, plain_name, unrecorded
from nft_pipeline.adapters.foreign.files import (
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    PICKLES,
    Convert,
    ForeignFiles,
    peft_folder,
    read_lora,
)
from nft_pipeline.adapters.foreign.layers import Layer, bake, scales_of
from nft_pipeline.adapters.names import CONFIG_FILE, LORA_FILE
from nft_pipeline.adapters.read import read_adapter
from nft_pipeline.adapters.single_file import read_single_file
from nft_pipeline.dial.measured import Dial
from nft_pipeline.errors import AdapterError

from .dial import dial_lines
from .words.cautions import UNKNOWN_SCALE, Caution, text_left_out
from .words.looks import family_of

KINDS = ("auto", "positive", "policy")
TEXT_ENCODER = ("refuse", "ignore")


@dataclass(frozen=True)
class RewardFile:
    """An adapter as the nodes use it.

    Args:
        config: the adapter's; of a plain LoRA, one that says "unknown" where the file says nothing.
        layers: scale baked in, under the names of the file.
        head: alpha; None where alpha is not used.
        form: None for our own adapters, else what the file is, for people.
        scales: every factor by which the LoRA's tool multiplies B A; (1,) for our own files.
        scale_recorded: whether the file records the factor; if not, 1 was assumed.
        left_out: how many layers of each text encoder are in the file and not used.
    """

    config: AdapterConfig
    layers: Mapping[str, Layer]
    head: AlphaHead | None
    form: str | None = None
    scales: tuple[float, ...] = (1.0,)
    scale_recorded: bool = True
    left_out: Mapping[str, int] = field(default_factory=dict)


def read_reward_file(
    path: str | os.PathLike[str], kind: str = "auto", text_encoder: str = "refuse", convert: Convert | None = None
) -> RewardFile:
    """Read a file, checking all of it.

    Args:
        path: a .safetensors file. One called adapter_model.safetensors is read with the adapter_config.json beside it,
            and an adapter's pytorch_lora_weights.safetensors with all that is in its folder.
        kind: "auto" reads it as what it says it is, and a plain LoRA as a policy. "policy" leaves an alpha head out, so
            that the push is the same for every picture. "positive" insists on a head.
        text_encoder: what to do with a plain LoRA that has layers of a text encoder, one of `TEXT_ENCODER`: "refuse"
            it, or "ignore" these layers.
        convert: see `foreign.files.read_lora`.

    Raises:
        AdapterError: the file is damaged, a pickle, no plain LoRA, or not of that kind; or it has layers of a text
            encoder, which are not to be ignored.
    """
    path = Path(path)
    if kind not in KINDS:
        raise AdapterError(f"kind is {kind!r}, expected one of {', '.join(map(repr, KINDS))}")
    if text_encoder not in TEXT_ENCODER:
        raise AdapterError(f"text_encoder is {text_encoder!r}, expected one of {', '.join(map(repr, TEXT_ENCODER))}")
    if path.suffix in PICKLES:
        raise AdapterError(
            f"{path.name} is a pickle, which can run code and is never loaded; ask its author for safetensors"
        )
    in_folder = path.name == LORA_FILE and (path.parent / CONFIG_FILE).is_file()
    adapter = read_adapter(path.parent) if in_folder else read_single_file(path)
    if adapter is None:
        return _read_plain(path, kind, text_encoder, convert)
    layers = {
        key.removesuffix(".lora_A.weight"): Layer(a, adapter.lora[key.replace(".lora_A.", ".lora_B.")])
        for key, a in adapter.lora.items()
        if key.endswith(".lora_A.weight")
    }
    if kind == "positive" and adapter.head is None:
        raise _no_head(path)
    if kind == "policy" and adapter.head is not None:
        config = replace(adapter.config, kind="policy", base_rate=None, dial=_without_head(adapter.config.dial))
        return RewardFile(config, layers, None)
    return RewardFile(adapter.config, layers, adapter.head)


def _without_head(dial: Dial | None) -> Dial | None:
    """The dial with those of its maps that were measured without a look at alpha; None if there are none."""
    maps = () if dial is None else tuple(entry for entry in dial.maps if entry.slope == 0)
    return replace(dial, maps=maps) if dial is not None and maps else None


def _read_plain(path: Path, kind: str, text_encoder: str, convert: Convert | None) -> RewardFile:
    if kind == "positive":
        raise _no_head(path)
    beside = path.name == PEFT_WEIGHTS and (path.parent / PEFT_CONFIG).is_file()
    files = peft_folder(path.parent) if beside else ForeignFiles("plain LoRA file", path)
    found = read_lora(files, leave_out_text=True, convert=convert)
    if found.left_out and text_encoder != "ignore":
        counts = ", ".join(f"{number} of {part}" for part, number in found.left_out.items())
        raise AdapterError(
            f"{path.name} has layers of a text encoder ({counts}), and a reward adapter cannot use them: the prompt is "
            "encoded once, with guidance and without.",
            advice='Set text_encoder to "ignore" (among the advanced inputs) to load its other layers alone.',
        )
    scales = scales_of(found.layers, found.peft_config)
    layers = bake(found.layers, found.peft_config)
    said = (found.peft_config or {}).get("base_model_name_or_path")
    base = said if isinstance(said, str) and said.strip() else UNKNOWN
    config = AdapterConfig(
        **unrecorded("file"),
        kind="policy",
        name=plain_name(path.stem, "lora"),
        beta=1.0,
        tilt=2.0,
        base_model=BaseModel(base, None, "sha256:" + "0" * 16),
        denoiser=UNKNOWN,
        prediction="flow",
        rank=max(layer.rank for layer in layers.values()),
        resolution=(1024, 1024),
    )
    recorded = found.peft_config is not None or any(layer.alpha is not None for layer in found.layers.values())
    return RewardFile(config, layers, None, files.form, tuple(sorted(set(scales.values()))), recorded, found.left_out)


def _no_head(path: Path) -> AdapterError:
    return AdapterError(
        f'{path.name} cannot be used as kind "positive": such an adapter has an alpha head, and there is none in it',
        advice='Set kind to "auto" or "policy": the LoRA alone is then what strength 1 gives.',
    )


def needed_base(reward: RewardFile) -> str:
    """The base model an adapter is for, in words."""
    config = reward.config
    if reward.form is None:
        return f"{config.base_model.id} ({config.denoiser})"
    if config.base_model.id != UNKNOWN:
        return config.base_model.id
    family, example = family_of(reward.layers), f"layers such as {next(iter(reward.layers))}"
    return f"{family}, by its names of {example}" if family else f"a model with {example}"


def cautions_of_file(reward: RewardFile) -> list[Caution]:
    """What may be wrong with a file, whatever the model."""
    # A file that records no scale may come out at half of what it was trained at.
    cautions = [UNKNOWN_SCALE] if reward.form is not None and not reward.scale_recorded else []
    return [*cautions, text_left_out(reward.left_out)] if reward.left_out else cautions


def describe(reward: RewardFile) -> str:
    """What a file is, in a few lines."""
    config = reward.config
    parameters = sum(layer.a.numel() + layer.b.numel() for layer in reward.layers.values())
    ranks = sorted({layer.rank for layer in reward.layers.values()})
    lines = [f"{config.name}: {config.kind}, {_kind_in_words(reward)}"]
    if reward.form is None:
        lines += [
            f"reward: {config.reward['description']}",
            f"base model: {config.base_model.id} ({config.denoiser}, {config.prediction})",
            f"strength 1 is beta {config.beta:g}, tilt {config.tilt:g}; recommended strength {config.strength:g}",
            f"made at CFG {config.guidance_scale:g}, {config.resolution[1]} x {config.resolution[0]} px; "
            f"licence {config.licence}",
        ]
        if config.dial is None and config.base_rate is not None:
            lines.append(f"without guidance {config.base_rate:.0%} of pictures are liked")
    else:
        scales = ", ".join(f"{scale:g}" for scale in reward.scales)
        lines += [
            f"{reward.form}; it says nothing about reward or beta, so strength is the share of the way to the LoRA",
            f"base model: {config.base_model.id}",
            f"LoRA scale alpha / rank: {scales}" + ("" if reward.scale_recorded else ", assumed"),
        ]
        lines += [caution.text for caution in cautions_of_file(reward)]
    head = "" if reward.head is None else f"; alpha head {sum(p.numel() for p in reward.head.parameters()):,}"
    lines += dial_lines(config)
    lines.append(f"{len(reward.layers)} LoRA layers, rank {', '.join(map(str, ranks))}, {parameters:,} numbers{head}")
    return "\n".join(lines)


def _kind_in_words(reward: RewardFile) -> str:
    if reward.head is not None:
        return "the LoRA draws what is liked, and a head says how likely that is already"
    return "the LoRA is the trained model itself"
