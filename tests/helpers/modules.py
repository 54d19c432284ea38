"""What the package's sources say about themselves, read without importing: modules, docstrings, imports by room."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeGuard

from helpers.repository import ROOMS, ROOT, repository_files


@dataclass(frozen=True)
class Module:
    """One module.

    Args:
        name: as it is imported, such as "nft_pipeline.training.run.trainer".
        path: from the repository's root.
        text: its source.
    """

    name: str
    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def package(self) -> str:
        """The package its relative imports start from."""
        return self.name if self.is_package else self.name.rpartition(".")[0]

    @property
    def first_line(self) -> str:
        """The first line of its docstring."""
        return (ast.get_docstring(self.tree) or "").partition("\n")[0]


def modules() -> dict[str, Module]:
    """Every module of the package by its import name, in the order of their paths."""
    everything = {}
    for path in sorted(file.relative_to(ROOT) for file in repository_files() if file.suffix == ".py"):
        room, *rest = path.parts
        if room in ROOMS and rest:
            name = ".".join([ROOMS[room], *rest]).removesuffix(".py").removesuffix(".__init__")
            everything[name] = Module(name, path, (ROOT / path).read_text(encoding="utf-8"))
    return everything


def imports(module: Module, everything: dict[str, Module]) -> set[str]:
    """The package's modules that a module imports anywhere in its code, by name.

    What stands under `if TYPE_CHECKING:` counts as well; what a package's `__getattr__` loads by name does not.
    """
    targets = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = module.package.split(".")[: len(module.package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            members = [f"{source}.{alias.name}" for alias in node.names]
            names = [member if member in everything else source for member in members]
        else:
            continue
        targets.update(name for name in names if name in everything and name != module.name)
    return targets


def public_definitions(everything: dict[str, Module]) -> Iterator[tuple[Module, str, bool]]:
    """(module, name, whether it is described) of all public functions, classes and public methods of public classes.

    A method that overrides one with a docstring is described by it, as `help()` does; torch's own (`forward`, `step`)
    count as described.
    """
    classes = {node.name: node for module in everything.values() for node in module.tree.body if _is_class(node)}

    def inherited(owner: ast.ClassDef, method: str) -> bool:
        bases = [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in owner.bases]
        return any(
            base not in classes if method in _TORCH else base in classes and described(classes[base], method)
            for base in bases
        )

    def described(owner: ast.ClassDef, method: str) -> bool:
        own = next((node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == method), None)
        return bool(own and ast.get_docstring(own)) or inherited(owner, method)

    for module in everything.values():
        for node in module.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                yield module, node.name, ast.get_docstring(node) is not None
                for inner in node.body if isinstance(node, ast.ClassDef) else ():
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                        yield module, f"{node.name}.{inner.name}", described(node, inner.name)


_TORCH = {"forward", "step"}


def _is_class(node: ast.stmt) -> TypeGuard[ast.ClassDef]:
    return isinstance(node, ast.ClassDef)
