"""docs/settings.md, made from what stands beside and under the trainer's settings.

    make pages

writes it again. A test compares the two.
"""

from __future__ import annotations

from helpers.repository import ROOT
from nft_pipeline.training.settings.explain import Explained, ExplainedSection, explained_sections

PAGE = ROOT / "docs" / "settings.md"
HEAD = """# Settings of a training run

These are all settings that a run's YAML file may have. The file is flat: the sections below only group the settings
here. Besides them it may have the line `preset: NAME`; a setting that the file lacks is then the preset's.
[training.md](training.md) describes a run as a whole, and the presets in `training/presets` are files to begin with.
`diffusion-nft train --explain NAME` prints one of these texts, and `diffusion-nft train --explain` lists them all.

A setting that has a default may be left out of the file. Where it is said to be left out by default, its line may also
hold `null`, which means the same.

A run that was stopped goes on only with the settings it began with; those that may change say so.

"""
TAIL = """<!-- Made from training/settings: make pages -->
"""


def page() -> str:
    """The page as it should be."""
    sections = explained_sections()
    index = "".join(f"- [{section.title}](#{_anchor(section.title)}): {_links(section)}\n" for section in sections)
    return HEAD + index + "\n" + "".join(map(_section, sections)) + TAIL


def _section(section: ExplainedSection) -> str:
    return f"## {section.title}\n\n{section.text}\n\n" + "".join(map(_setting, section.settings))


def _setting(setting: Explained) -> str:
    return "\n\n".join([f"### `{setting.name}`", f"*{setting.facts}*", *setting.paragraphs]) + "\n\n"


def _links(section: ExplainedSection) -> str:
    return ", ".join(f"[{setting.name}](#{setting.name})" for setting in section.settings)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-").replace(",", "")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
