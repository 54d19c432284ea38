"""Parts of pages that are made from the code: they stand between two comments, and the rest of the page is kept."""

from __future__ import annotations

from pathlib import Path


def with_parts(page: Path, **parts: str) -> str:
    """A page's text with what stands between `<!-- name -->` and `<!-- end of name -->` made anew, for each part.

    Args:
        page: the file.
        parts: by name; "_" stands for a space.

    Raises:
        ValueError: the page lacks one of the two comments, or has it twice.
    """
    text = page.read_text(encoding="utf-8")
    for key, part in parts.items():
        name = key.replace("_", " ")
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{page.name} needs the lines {begin.strip()} and {end.strip()}, once each")
        before, rest = text.split(begin)
        text = f"{before}{begin}{part}{end}{rest.split(end)[1]}"
    return text
