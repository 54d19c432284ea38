"""Hooks of `mkdocs build`: what the site has beyond docs/, and links that read on GitHub and on the site alike.

A page here links to files outside docs/ as GitHub wants it (`../README.md`). On the site README.md is the first page,
other Markdown and pictures outside docs/ are taken along when a page links to them, and a link to a module goes to its
place in the reference, which has one page for each room, made from the docstrings.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / ".venv" / "tree"  # tests/helpers/one_tree.py makes it: there a path is an import
HOME = "README.md"
TAKEN_ALONG = (".md", ".jpg", ".png", ".cff", "LICENSE")
LINK = re.compile(r"""(?<=\]\()[^)\s]+|(?<=\s(?:src|ref)=")[^"]+|(?<=\ssrcset=")[^"]+""")
LOG = logging.getLogger("mkdocs.hooks.make_site")


def site_path(path: str) -> str:
    """Where a file of the repository stands among the site's sources; a module: its place in the reference.

    Args:
        path: From the repository's root.
    """
    if path == HOME:
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith(".py"):
        inside = path if path.startswith("nft_pipeline/") else f"nft_pipeline/{path}"
        module = inside.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        return f"{_reference_page(module)}#{module}"
    return f"repository/{path}"


def repository_path(source: str) -> str:
    """The other way for a page: the file of the repository that it is made from."""
    if source == "index.md":
        return HOME
    return source.removeprefix("repository/") if source.startswith("repository/") else f"docs/{source}"


def links(text: str, change: Callable[[str], str]) -> str:
    """`text` with every link outside code blocks passed through `change`."""
    parts = re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(lambda m: change(m.group()), part) for part in parts)


def target_of(page: str, link: str) -> str:
    """The repository's file that a link on the page made from `page` names, or nothing for addresses and anchors."""
    target = link.partition("#")[0]
    if not target or ":" in target:
        return ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def rewritten(page: str, link: str) -> str:
    """A link as the site needs it.

    Args:
        page: The file it stands in, from the repository's root.
        link: As it is written there.
    """
    target = target_of(page, link)
    if not target:
        return link
    new, _, anchor = site_path(target).partition("#")
    anchor = link.partition("#")[2] or anchor
    here = posixpath.dirname(site_path(page))
    return posixpath.relpath(new, here or ".") + (f"#{anchor}" if anchor else "")


def rooms() -> dict[str, list[str]]:
    """The modules of each room of the reference; the command line has its own help and is left out."""
    modules: dict[str, list[str]] = {}
    for path in sorted(TREE.rglob("*.py")):
        module = ".".join(path.relative_to(TREE).with_suffix("").parts).removesuffix(".__init__")
        if not re.search(r"\.(commands|__main__|cli)\b", module):
            modules.setdefault(_room(module), []).append(module)
    return modules


def on_files(files: Any, config: Any) -> Any:
    """Add README.md, what pages link to outside docs/, and the reference."""
    from mkdocs.structure.files import File

    waiting = [HOME, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    added: set[str] = set()
    while waiting:
        page = waiting.pop()
        if not page.startswith("docs/"):
            files.append(File.generated(config, site_path(page), abs_src_path=str(ROOT / page)))
        if not page.endswith(".md"):
            continue

        def follow(link: str, page: str = page) -> str:
            target = target_of(page, link)
            outside = not target.startswith("docs/") and target.endswith(TAKEN_ALONG)
            if outside and target not in {HOME, *added} and (ROOT / target).is_file():
                added.add(target)
                waiting.append(target)
            return link

        links((ROOT / page).read_text(encoding="utf-8"), follow)
    for room, modules in rooms().items():
        text = f"# {room}\n\n" + "".join(f"::: {module}\n\n" for module in modules)
        files.append(File.generated(config, _reference_page(room), content=text))
    return files


def on_config(config: Any) -> Any:
    """Name the reference's pages in the navigation."""
    if not TREE.is_dir():
        raise FileNotFoundError(f"{TREE} is missing; `make docs` makes it before it builds the site")
    config.nav.append({"Reference": [{room: _reference_page(room)} for room in rooms()]})
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the page's links; one that leads nowhere is a warning, which `--strict` makes an error."""
    source = page.file.src_uri
    if source.startswith("reference/"):
        return markdown
    origin = repository_path(source)

    def change(link: str) -> str:
        target = target_of(origin, link)
        if target and not (ROOT / target).exists():
            LOG.warning(f"{origin} links to {link}, and there is no {target}")
        return rewritten(origin, link)

    return links(markdown, change)


def _room(module: str) -> str:
    """The package a module stands in; a package stands in itself."""
    inside = TREE.joinpath(*module.split("."))
    return module if inside.is_dir() else module.rpartition(".")[0]


def _reference_page(module: str) -> str:
    return f"reference/{_room(module)}.md"
