"""The table of key formats in docs/other_checkpoints.md, made from `KEY_FORMATS`.

    make pages

writes it again. A test compares the two.
"""

from __future__ import annotations

from helpers.made import with_parts
from helpers.repository import ROOT
from nft_pipeline.adapters.foreign.key_formats import KEY_FORMATS, KeyFormat

PAGE = ROOT / "docs" / "other_checkpoints.md"


def _row(form: KeyFormat) -> str:
    layer = form.prefix + ("transformer_blocks_0_attn_to_q" if form.underscored else "transformer_blocks.0.attn.to_q")
    return f"| {form.tools} | `{layer}.{form.a}.weight` | `{layer}.{form.b}.weight` |\n"


def table() -> str:
    """The keys of one layer in every format."""
    head = "| written by | A (rank, in) | B (out, rank) |\n|---|---|---|\n"
    return head + "".join(map(_row, KEY_FORMATS))


def page() -> str:
    """The page as it should be: its text as it is, with the table made anew."""
    return with_parts(PAGE, key_formats=table())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
