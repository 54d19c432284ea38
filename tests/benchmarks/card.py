"""Look at a card in a browser, as wide as the Hub shows it.

    diffusion-nft train shapes_warm --out runs/shapes-warm
    python tests/benchmarks/card.py --adapter runs/shapes-warm/adapter --out /tmp/card

Renders the card of an adapter from what its run has measured (run_report.json), as `diffusion-nft push` would, into
OUT/adapter, and photographs it into OUT/card_light.png and OUT/card_dark.png. Needs Chromium and markdown-it-py.
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
import subprocess
from pathlib import Path

from PIL import Image, ImageChops

from nft_pipeline.hub_cards.push import make_card, write_card

REPO = "someone/shapes-warm"
STYLE = """
body { margin: 0; padding: 24px; width: 752px; font: 16px/1.5 sans-serif; background: PAPER; color: INK; }
img { max-width: 100%; } table { border-collapse: collapse; font-size: 14px; }
td, th { border: 1px solid LINE; padding: 4px 10px; text-align: left; } a { color: #4a90e2; }
pre { background: CODE; padding: 12px; overflow-x: auto; font-size: 13px; } h2 { border-bottom: 1px solid LINE; }
"""
THEMES = {
    "light": {"PAPER": "#ffffff", "INK": "#24292f", "LINE": "#d0d7de", "CODE": "#f6f8fa"},
    "dark": {"PAPER": "#0d1117", "INK": "#e6edf3", "LINE": "#30363d", "CODE": "#161b22"},
}


def photograph(folder: Path, theme: str, out: Path) -> None:
    """The card as a browser shows it."""
    from markdown_it import MarkdownIt

    text = (folder / "README.md").read_text(encoding="utf-8")
    metadata, body = text.split("---\n", 2)[1:]
    # Chromium has no switch for a dark page, so the dark plot is chosen here as a dark page's reader would get it.
    if theme == "dark":
        body = re.sub(r'src="plots/reward_light.png"', 'src="plots/reward_dark.png"', body)
    body = re.sub(r"<source[^>]*>", "", body)
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    style = STYLE
    for name, colour in THEMES[theme].items():
        style = style.replace(name, colour)
    whole = f"<style>{style}</style><pre>{html.escape(metadata)}</pre>{page}"
    (folder / "card.html").write_text(f'<!doctype html><meta charset="utf-8">{whole}', encoding="utf-8")
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=800,6000"]
    address = (folder / "card.html").absolute().as_uri()
    subprocess.run([chromium, *options, f"--screenshot={out.absolute()}", address], check=True, timeout=300)
    (folder / "card.html").unlink()
    picture = Image.open(out).convert("RGB")
    empty = Image.new("RGB", picture.size, picture.getpixel((2, picture.height - 2)))
    _, _, _, bottom = ImageChops.difference(picture, empty).getbbox() or (0, 0, 0, picture.height)
    picture.crop((0, 0, picture.width, bottom + 24)).quantize(128).save(out, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="folder of an adapter with run_report.json")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    folder = args.out / "adapter"
    shutil.copytree(args.adapter, folder, dirs_exist_ok=True)
    write_card(folder, make_card(folder, REPO))
    for theme in THEMES:
        photograph(folder, theme, args.out / f"card_{theme}.png")


if __name__ == "__main__":
    main()
