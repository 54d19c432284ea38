"""The card: README.md and its pictures, rendered from nft_config.json and run_report.json, never by hand.

The text is `card.md.jinja`; this module prepares the values for it. The metadata on top is made with huggingface_hub's
`ModelCardData`, so that the Hub reads what its own library wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nft_pipeline.adapters.config import AdapterConfig
from nft_pipeline.adapters.read import is_hub_id
from nft_pipeline.dial.words import judged, promises, reach, scales, share
from nft_pipeline.families.registry import draws_videos
from nft_pipeline.models import MODELS, example_prompts

from .licence import Licence
from .plots import THEMES, reward_plot, strip
from .report import Curve, Point, RunReport, Trained
from .workflow import workflow_picture

CARD_FILE = "README.md"
STRIP_FILE = "plots/strip.png"
WORKFLOW_FILE = "plots/comfyui_workflow.png"
TAGS = ("diffusion-nft", "lora", "comfyui", "text-to-image")
GALLERY = 12
_VERDICTS = {
    "none seen": "none seen.",
    "suspected": "**suspected.**",
    "seen": "**seen: at high strength the reward rises by a trick.**",
}


@dataclass(frozen=True)
class Card:
    """A rendered card: the text, and its plots by the paths they have in the repository."""

    text: str
    plots: dict[str, bytes]

    def files(self) -> dict[str, bytes]:
        """All of it by path."""
        return {CARD_FILE: self.text.encode(), **self.plots}


def render_card(
    config: AdapterConfig, report: RunReport, pictures: dict[str, bytes], *, repo_id: str, licence: Licence
) -> Card:
    """The card of one adapter.

    Args:
        config: the adapter's config.
        report: what its run measured; `RunReport()` if it measured nothing.
        pictures: the PNGs of `report.samples`, by file.
        repo_id: where the adapter will be, "owner/name"; the snippets name it.
        licence: see `hub_cards.licence.card_licence`.

    Returns:
        The same card for the same input.
    """
    plots: dict[str, bytes] = {}
    shown = strip(report.samples, pictures)
    if shown is not None:
        plots[STRIP_FILE] = shown
    baked = _baked_from(config)
    base = config.base_model.id
    prompt = _example(base, report)
    workflow = None if baked else workflow_picture(config, prompt)  # a baked adapter needs no node of ours
    if workflow is not None:
        plots[WORKFLOW_FILE] = workflow
    if report.rewards:
        for theme in THEMES:
            plot = reward_plot(report.rewards, theme, config.strength, report.strength_range)
            plots[f"plots/reward_{theme}.png"] = plot
    learned = config.dial is None or config.dial.own.rises
    hub_base = is_hub_id(base)
    text = _template().render(
        metadata=card_metadata(config, report, licence),
        config=config,
        report=report,
        has_report=any((report.rewards, report.samples, report.hacking, report.trained != Trained())),
        licence=licence,
        repo_id=repo_id,
        prompt=prompt,
        base_link=_base_link(base),
        hub_base=hub_base,
        strip=shown is not None,
        workflow=workflow is not None,
        plot=bool(report.rewards),
        rows=[_row(curve) for curve in report.rewards],
        notes=[note for curve in report.rewards if (note := _note(curve))],
        held_out=any(not curve.trained for curve in report.rewards),
        verdict=_VERDICTS[report.hacking.verdict] if report.hacking else "",
        training=list(_training(config, report)),
        baked=baked,
        learned=learned,
        promised=[(strength, share(value)) for strength, value in promises(config)] if learned else [],
        reach=reach(config),
        judged="" if config.dial is None else judged(config.dial),
        scales="" if config.dial is None else scales(config.dial),
    )
    return Card(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", plots)


def card_metadata(config: AdapterConfig, report: RunReport, licence: Licence) -> str:
    """The YAML on top of the card, without its fences."""
    from huggingface_hub import ModelCardData

    base = config.base_model.id
    facts: dict[str, Any] = {"license": licence.id, "library_name": "diffusers", "tags": list(TAGS)}
    facts["pipeline_tag"] = "text-to-video" if draws_videos(config.denoiser) else "text-to-image"
    if licence.id == "other":
        facts |= {"license_name": licence.name, "license_link": licence.link}
    if is_hub_id(base):  # the Hub takes only ids of its own for a base model
        facts |= {"base_model": base, "base_model_relation": "adapter"}
    if report.samples:
        facts["widget"] = [
            {"text": f"{sample.prompt} (strength {sample.strength:g})", "output": {"url": sample.file}}
            for sample in report.samples[: _gallery(report)]
        ]
    return ModelCardData(**facts).to_yaml().strip()


def _example(base: str, report: RunReport) -> str:
    """A prompt that the base model can draw: of a sample, or one that a shipped model brings."""
    known = [sample.prompt for sample in report.samples] or (example_prompts(base) if base in MODELS else [])
    return known[0] if known else "a photo of a cat"


def _gallery(report: RunReport) -> int:
    """How many samples: as many whole rows of strengths as `GALLERY` holds."""
    row = len({sample.strength for sample in report.samples})
    return GALLERY // row * row if row <= GALLERY else GALLERY


def _base_link(base: str) -> str:
    if is_hub_id(base):
        return f"[{base}](https://huggingface.co/{base})"
    return f"{_one_line(base)} ({'ships with diffusion-nft' if base in MODELS else 'not on the Hub'})"


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    # No HTML escaping: this is Markdown. Texts that others wrote go through `one_line`, `cell` or `literal`.
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"one_line": _one_line, "cell": _cell, "literal": _literal}
    return environment.from_string((Path(__file__).parent / "card.md.jinja").read_text(encoding="utf-8"))


def _literal(text: str) -> str:
    """The text as Python and JSON both read it; what no file or terminal takes becomes a question mark in a box."""
    return re.sub(r"[\ud800-\udfff\u2028\u2029\x7f-\x9f]", "\ufffd", json.dumps(text, ensure_ascii=False))


def _one_line(text: Any) -> str:
    """The text in one line, changed so that it starts no heading, list, HTML or table."""
    return re.sub(r"([\\<>`*_\[\]#|&~])", r"\\\1", " ".join(str(text).split()))


def _cell(text: Any) -> str:
    plain = _one_line(text)
    return plain if len(plain) <= 400 else f"{plain[:397]}..."


def _row(curve: Curve) -> dict[str, Any]:
    """A line of the table of rewards; where the run measured nothing, the line says so."""
    base, one = curve.at(0), curve.at(1)
    change = "not measured" if base is None or one is None else f"{one.mean - base.mean:+.3f}"
    counts = sorted({point.n for point in (base, one) if point is not None})
    return {
        "name": curve.name,
        "trained": curve.trained,
        "base": _value(base),
        "one": _value(one),
        "change": change,
        "n": " and ".join(map(str, counts)) or "-",
    }


def _value(point: Point | None) -> str:
    if point is None:
        return "not measured"
    return f"{point.mean:.3f}" + ("" if point.spread is None else f" ± {point.spread:.3f}")


def _note(curve: Curve) -> str:
    """Which pictures the numbers of a line are means over, and what its ± means."""
    parts = [part for part in (curve.prompts, curve.spread and f"± is the {curve.spread}") if part]
    return f"{_one_line(curve.name)}: {_one_line('; '.join(parts))}." if parts else ""


def _baked_from(config: AdapterConfig) -> str | None:
    """The name of the adapter that this one was baked from (training/run/bake.py); None if it was not baked."""
    source = config.training.get("baked_from")
    return str(source.get("name")) if isinstance(source, dict) else None


def _training(config: AdapterConfig, report: RunReport) -> Iterator[tuple[str, Any]]:
    """What the adapter was trained on and how; from the trainer's summary in the config if the report says nothing."""
    said: dict[str, Any] = dict(config.training)
    settings: dict[str, Any] = said["settings"] if isinstance(said.get("settings"), dict) else {}
    pool: dict[str, Any] = said["pool"] if isinstance(said.get("pool"), dict) else {}
    data, passes = report.trained.data, report.trained.passes
    if data is None and pool:
        data = f"{pool.get('size', '?')} pictures, {pool.get('source', 'source not recorded')}"
    if passes is None and isinstance(said.get("pairs"), int) and isinstance(pool.get("size"), int) and pool["size"]:
        passes = said["pairs"] / pool["size"]
    facts = {
        "objective": said.get("objective"),
        **({} if (source := _baked_from(config)) is None else {"baked from": source}),
        "beta, tilt": f"{config.beta:g}, {config.tilt:g}",
        "data": data,
        "prompts": settings.get("prompts"),
        "rounds": report.trained.rounds,
        "passes over the data": None if passes is None else f"{passes:.3g}",
        "anchor": report.trained.anchor,
        "steps, batch": f"{settings['steps']}, {settings['batch']}" if {"steps", "batch"} <= settings.keys() else None,
        "seed": settings.get("seed"),
        "hardware": report.trained.hardware,
        "hours": None if report.trained.hours is None else f"{report.trained.hours:.3g}",
    }
    for name, value in facts.items():
        yield name, "not recorded" if value is None else value
