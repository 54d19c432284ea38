"""`diffusion-nft info ADAPTER`: what an adapter is, from its own config and tensors; no base model is loaded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..dial.words import UNCALIBRATED, judged, promises, reach, reach_words, scales, share

if TYPE_CHECKING:
    from ..adapter import Adapter
    from ..adapters.config import AdapterConfig

HELP = """\
Say what an adapter is: which kind, for which base model, trained on which reward, under which licence, and what each
strength does to the share of liked pictures if it was calibrated.
Reads the adapter alone (a few MB); the base model is not loaded. Look here first when an adapter will not load or does
too much or too little. Of a LoRA that another tool made (a DiffusionNFT checkpoint, a kohya file) it says what is
known: form, ranks and the scale that its tool applies."""

KINDS = {
    "positive": "positive (LoRA is v_plus, with an alpha head)",
    "policy": "policy (LoRA is v_theta, alpha already inside)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft info`."""
    parser.add_argument(
        "adapter",
        metavar="ADAPTER",
        help="a folder, a shipped name (shapes-warm), a Hub id (user/name), or a .safetensors file of another tool",
    )
    parser.add_argument(
        "--revision",
        metavar="REV",
        help="Hub only: branch, tag or commit (default: the newest of the main branch). Give a commit when a result "
        "has to be reproducible",
    )
    parser.add_argument(
        "--subfolder",
        metavar="NAME",
        help="folder inside the source that holds the adapter (default: the source itself). Give it when one "
        "repository holds several adapters",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts (default: a table)")


def run(args: argparse.Namespace) -> int:
    """Read the adapter and print the table."""
    from ..adapter import read_adapter
    from ..adapters.foreign.adapter import describe_foreign
    from ..adapters.read import is_foreign, locate

    where = {"revision": args.revision, "subfolder": args.subfolder}
    path = locate(args.adapter, **where)
    if is_foreign(path):
        facts = describe_foreign(path)
        rows = list(foreign_table(facts))
    else:
        adapter = read_adapter(args.adapter, **where)
        facts = adapter.config.to_dict() | sizes(adapter)
        rows = list(table(adapter))
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0


def sizes(adapter: Adapter) -> dict[str, int]:
    """Counts read from the tensors: `lora_layers`, `lora_parameters`, `alpha_head_parameters` (0 without a head)."""
    head = adapter.head.parameters() if adapter.head is not None else ()
    return {
        "lora_layers": sum(key.endswith(".lora_A.weight") for key in adapter.lora),
        "lora_parameters": sum(tensor.numel() for tensor in adapter.lora.values()),
        "alpha_head_parameters": sum(parameter.numel() for parameter in head),
    }


def table(adapter: Adapter) -> Iterator[tuple[str, str]]:
    """The rows of the table, label and text."""
    config, count = adapter.config, sizes(adapter)
    base = config.base_model
    yield "name", config.name
    yield "kind", KINDS[config.kind]
    yield "base model", base.id + (f" at {base.revision}" if base.revision else "")
    yield "fingerprint", base.fingerprint
    yield "denoiser", f"{config.denoiser} ({config.component}, predicts {config.prediction})"
    # A policy's tilt adds up over rounds as if each had converged, which few do.
    meaning = "at most, by M8: as if every round had converged" if config.kind == "policy" else "what strength 1 means"
    yield "beta, tilt", f"{config.beta:g}, {config.tilt:g} (tilt = 2/beta: {meaning})"
    tilt = "" if config.kind == "policy" else f", so a tilt of {config.tilt * config.strength:g}"
    learned = config.dial is None or config.dial.own.rises
    yield "strength", (f"{config.strength:g} recommended{tilt}" if learned else "none recommended") + "; 0 is the base"
    yield from dial_rows(config)
    for key, value in _flat(config.reward):
        yield f"reward {key}", value
    if config.base_rate is not None:
        yield "base rate", f"{config.base_rate:.3f} (mean alpha over the pictures it learned from)"
    yield "LoRA", f"rank {config.rank}, {count['lora_layers']} layers, {count['lora_parameters']:,} parameters"
    if adapter.head is not None:
        head = adapter.head.config
        sees = "sees the prompt" if head.text_dim is not None else "does not see the prompt"
        yield "alpha head", f"{count['alpha_head_parameters']:,} parameters, reads {head.tap!r}, {sees}"
    height, width = config.resolution
    yield "made at", f"{height} x {width} px (height x width), guidance scale {config.guidance_scale:g}"
    for key, value in _flat(config.training):
        yield f"training {key}", value
    yield "licence", config.licence


def dial_rows(config: AdapterConfig) -> Iterator[tuple[str, str]]:
    """What each strength does, as it was measured."""
    dial = config.dial
    if dial is None:
        yield "dial", UNCALIBRATED
        return
    yield "dial", f"{dial.rate:.0%} ± {dial.rate_error:.1%} liked without guidance, judged by {judged(dial)}"
    for strength, value in promises(config):
        yield f"  strength {strength:.2g}", f"{share(value)} liked"
    yield "  reach", reach(config)
    modes = " and then ".join(entry.mode for entry in dial.own_reach.maps)
    yield "  drawn in", f"{reach_words(dial.own_reach, config.tilt)} (mode {modes}) unless a mode is asked for"
    yield "  measured at", f"guidance scale {scales(dial)}, {dial.steps} steps"
    yield "  alpha", f"trusted by {dial.slope:.2f}, where 1 is fully and 0 not at all"
    if dial.note:
        yield "  note", dial.note


def foreign_table(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The rows for somebody else's checkpoint, from `describe_foreign`."""
    yield "form", f"{facts['form']}, not an adapter of this package: kind and beta are for you to say"
    yield "file", facts["file"]
    yield "base model", facts["base_model"] or "not recorded"
    ranks, scales = (", ".join(f"{value:g}" for value in facts[name]) for name in ("ranks", "scales"))
    yield "LoRA", f"rank {ranks}, {facts['layers']} layers, {facts['parameters']:,} parameters"
    yield "scale", f"{scales} (multiplied into the LoRA on loading)"
    if facts["old"]:
        yield "v_old", "the base model; with use_old=True (sample: --use-old) the adapter called old beside it"
    if facts["text_encoders"]:
        parts = ", ".join(f"{part}: {count} layers" for part, count in facts["text_encoders"].items())
        yield "text encoders", f"{parts}; they cannot be dialled: without_text_encoder=True leaves them out"
    yield "to load it", 'pipe.load_nft_adapter(..., kind="policy", beta=...), or sample --kind policy --beta ...'


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as dotted names; long values cut, the whole is in --json."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
            continue
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        yield f"{prefix}{key}", text if len(text) <= 100 else f"{text[:97]}..."
