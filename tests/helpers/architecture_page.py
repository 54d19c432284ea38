"""The rooms in docs/architecture.md, made from the first lines of the modules, and the order of imports.

    make pages

writes them again. A test compares the two, and another holds the imports to `ORDER`.
"""

from __future__ import annotations

from helpers.made import with_parts
from helpers.modules import Module, modules
from helpers.repository import ROOT

PAGE = ROOT / "docs" / "architecture.md"

# Lowest first. A module may import from its own line and from lines above it. A line stands for a package with all
# inside it, or for one module; the longest line that fits a module is the module's.
ORDER = (
    "nft_pipeline",
    "nft_pipeline.laws",
    "nft_pipeline.modes",
    "nft_pipeline.checks",
    "nft_pipeline.tensors",
    "nft_pipeline.errors",
    "nft_pipeline.files",
    "nft_pipeline.torchvision_repair",
    "nft_pipeline.grid",
    "nft_pipeline.models",
    "nft_pipeline.families",
    "nft_pipeline.dial.measured",
    "nft_pipeline.adapters",
    "nft_pipeline.adapter",
    "nft_pipeline.guidance",
    "nft_pipeline.dial",
    "nft_pipeline.settings",
    "nft_pipeline.search",
    "nft_pipeline.engine",
    "nft_pipeline.call",
    "nft_pipeline.guiders",
    "nft_pipeline.pipeline",
    "nft_pipeline.guider",
    "nft_pipeline.comfy_nodes",
    "nft_pipeline.sampling",
    "nft_pipeline.play",
    "nft_pipeline.hub_cards",
    "nft_pipeline.training",
    "nft_pipeline.training.settings",
    "nft_pipeline.training.devices",
    "nft_pipeline.training.bases",
    "nft_pipeline.training.shapes",
    "nft_pipeline.training.emoji",
    "nft_pipeline.training.rewards",
    "nft_pipeline.training.rewards.kinds",
    "nft_pipeline.training.data",
    "nft_pipeline.training.show.picture_stats",
    "nft_pipeline.training.dial",
    "nft_pipeline.training.learn",
    "nft_pipeline.training.show",
    "nft_pipeline.training.run",
    "nft_pipeline.training.demo",
    "nft_pipeline.commands",
    "nft_pipeline.hub_cards.commands",
    "nft_pipeline.cli",
    "nft_pipeline.__main__",
)
# Rooms of one file for each thing there is; they may hold as many as there are things.
CATALOGUES = ("nft_pipeline.families.known", "nft_pipeline.training.bases.known", "nft_pipeline.training.rewards.kinds")


def line_of(name: str) -> str:
    """The line of `ORDER` that a module stands on; the bare package's only for the package itself."""
    fitting = [line for line in ORDER if f"{name}.".startswith(f"{line}.")]
    best = max(fitting, key=len)
    if best == "nft_pipeline" != name:
        raise AssertionError(f"{name} stands on no line of ORDER in tests/helpers/architecture_page.py; give it one")
    return best


def by_room(everything: dict[str, Module]) -> dict[str, list[Module]]:
    """The modules of each package, the packages in `ORDER`."""
    rooms: dict[str, list[Module]] = {}
    for module in everything.values():
        rooms.setdefault(module.package, []).append(module)
    return dict(sorted(rooms.items(), key=lambda room: (ORDER.index(line_of(room[0])), room[0])))


def rooms() -> str:
    """The generated part: one table a room, with one row for each module."""
    parts = []
    for room, inside in by_room(modules()).items():
        (door,) = [module for module in inside if module.name == room]
        parts.append(f"### {door.path.parent}/\n\n{door.first_line}\n\n")
        rows = [f"| `{module.path.name}` | {_cell(module.first_line)} |\n" for module in inside if module is not door]
        if rows:
            parts += ["| module | what it is |\n|---|---|\n", *rows, "\n"]
    return "".join(parts)


def _cell(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|")


def page() -> str:
    """The page as it should be: its text as it is, with the rooms made anew."""
    return with_parts(PAGE, rooms=f"\n{rooms()}")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
