"""The README keeps its word: its snippet runs, its commands and files exist."""

from __future__ import annotations

import contextlib
import io
import re

from helpers.repository import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_snippet_runs() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(snippet, "README.md", "exec"), names)
    assert type(names["image"]).__name__ == "Image" and names["image"].size == (64, 64)  # type: ignore[attr-defined]
    assert type(names["stock"]).__name__ == "StableDiffusion3Pipeline"
    assert "denoiser forwards" in printed.getvalue()


def test_every_make_command_it_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z]+)", README))
    assert {"demo", "test"} <= named <= targets


def test_every_file_it_points_to_exists() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).resolve().is_file(), f"{page.name} points to {target}"


def test_every_command_it_names_is_one() -> None:
    from nft_pipeline.cli import COMMANDS

    named = set(re.findall(r"diffusion-nft ([a-z]+)", README))
    assert named and named <= set(COMMANDS)
