"""The rooms: what may import what, how large they are, and that the map and the docstrings keep up."""

from __future__ import annotations

import re
from collections import defaultdict
from types import ModuleType

import pytest

from helpers.architecture_page import CATALOGUES, ORDER, PAGE, by_room, line_of, page
from helpers.modules import Module, imports, modules, public_definitions
from helpers.repository import ROOT, repository_files
from nft_pipeline.files.discovery import classes_in

MODULES = modules()
# The package's own door loads by name what it lists, so nothing is imported with it and it stands in no circle.
IMPORTS = {name: imports(module, MODULES) - {"nft_pipeline"} for name, module in MODULES.items()}
IMPORTS["nft_pipeline"] = set()
MOST_FILES = 14
ENOUGH_DOCSTRINGS = 0.95


def upwards(targets: dict[str, set[str]]) -> list[str]:
    return [
        f"{name} imports {target}, which stands above it in ORDER (tests/helpers/architecture_page.py)"
        for name, imported in targets.items()
        for target in sorted(imported)
        if ORDER.index(line_of(target)) > ORDER.index(line_of(name))
    ]


def circles(targets: dict[str, set[str]]) -> list[str]:
    """Modules that import themselves over others, one line for each of them."""
    found = []
    for start in targets:
        waiting, reached = list(targets[start]), set[str]()
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += targets[name]
        if start in reached:
            found.append(start)
    return found


def test_no_import_runs_up() -> None:
    assert not upwards(IMPORTS), "\n".join(upwards(IMPORTS))


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert not circles(IMPORTS)


def test_both_would_be_noticed() -> None:
    text = "from ..training.run import trainer\nimport nft_pipeline.pipeline\n"
    planted = Module("nft_pipeline.engine.planted", MODULES["nft_pipeline.engine"].path.with_name("planted.py"), text)
    targets = {planted.name: imports(planted, MODULES)}
    assert targets[planted.name] == {"nft_pipeline.training.run.trainer", "nft_pipeline.pipeline"}
    assert len(upwards(targets)) == 2
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_every_line_of_the_order_is_somewhere() -> None:
    gone = [line for line in ORDER if line not in MODULES]
    assert not gone, f"ORDER in tests/helpers/architecture_page.py has lines of nothing: {gone}"


@pytest.mark.parametrize("room", by_room(MODULES))
def test_a_room_is_small_and_described(room: str) -> None:
    files = [module for module in by_room(MODULES)[room] if not module.path.name.startswith("__")]
    assert len(files) <= MOST_FILES or room in CATALOGUES, f"{len(files)} files: give some of them a room of their own"
    nameless = [str(module.path) for module in by_room(MODULES)[room] if not module.first_line]
    assert not nameless, f"no first line that says what the module is: {nameless}"


def test_public_functions_have_docstrings() -> None:
    by_package = defaultdict[str, list[tuple[str, bool]]](list)
    for module, name, described in public_definitions(MODULES):
        by_package[module.package].append((f"{module.path}: {name}", described))
    bare = {}
    for room, definitions in by_package.items():
        without = [name for name, described in definitions if not described]
        if len(without) > (1 - ENOUGH_DOCSTRINGS) * len(definitions):
            bare[room] = without
    assert not bare, f"fewer than {ENOUGH_DOCSTRINGS:.0%} of the public functions have a docstring: {bare}"


def test_the_map_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "docs/architecture.md is stale: run make pages to make it again"


def texts() -> dict[str, str]:
    suffixes = {".py", ".md", ".yaml", ".toml", ".jinja"}
    paths = [path.relative_to(ROOT) for path in repository_files() if path.suffix in suffixes]
    return {str(path): (ROOT / path).read_text(encoding="utf-8") for path in paths}


def test_modules_that_docstrings_and_pages_name_exist() -> None:
    """A dotted name in back quotes that begins with the package is a module, or a name in one."""
    faults = []
    for path, text in texts().items():
        for dotted in sorted(set(re.findall(r"`(nft_pipeline(?:\.\w+)+)", text))):
            parts = dotted.split(".")
            module = next(name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in MODULES)
            rest = parts[len(module.split(".")) :]
            if rest and not re.search(rf"\b{rest[0]}\b", MODULES[module].text):
                faults.append(f"{path} names `{dotted}`, and there is no {rest[0]} in {module}")
    assert not faults, "\n".join(faults)


def test_what_is_cited_exists() -> None:
    """Pages of docs/ that code and pages name, and the statements M1, M2, ... of docs/theory.md."""
    statements = set(re.findall(r"^\| (M\d+) \|", (ROOT / "docs" / "theory.md").read_text(encoding="utf-8"), re.M))
    assert len(statements) >= 10
    faults = []
    for path, text in texts().items():
        if path.startswith("tests/house/"):
            continue  # tests of pages plant names of pages
        pages = set(re.findall(r"(?<![\w/])docs/[a-z0-9_/]+\.md\b", text))
        faults += [f"{path} cites {name}" for name in sorted(pages) if not (ROOT / name).is_file()]
        faults += [f"{path} cites {name}" for name in sorted(set(re.findall(r"\bM\d+\b", text)) - statements)]
        # A page of that name was never in the repository.
        faults += [f"{path} cites a page DESIGN" for _ in re.findall(r"\bDESIGN\b", text)]
    assert not faults, "\n".join(faults)


def test_what_only_calls_itself_a_class_is_none():
    module = ModuleType("module")
    vars(module).update(number=int, alias=list[int], text=str, flag=bool, one=1)
    assert classes_in(module, int) == [int, bool]
