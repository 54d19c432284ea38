"""Every page and table of docs/ that is made from the code, written again: `make pages`.

A page's module has `page()`, which a test compares with the file, and writes it when it is run by itself.
"""

from __future__ import annotations

import runpy

MADE = (
    "architecture_page",
    "key_formats_page",
    "laws_page",
    "nodes_page",
    "pipelines_page",
    "readme_page",
    "rewards_page",
    "settings_page",
    "training_page",
)

if __name__ == "__main__":
    for name in MADE:
        runpy.run_module(f"helpers.{name}", run_name="__main__")
