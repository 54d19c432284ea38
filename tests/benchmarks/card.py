"""Measure the shipped adapter, render its card, and look at it in a browser.

    python tests/benchmarks/card.py --out /tmp/card --n 60

Writes the adapter with run_report.json, README.md and its pictures into OUT/adapter, and the card as a headless
Chromium shows it, about as wide as the Hub does, into OUT/card_light.png and OUT/card_dark.png. n pictures a strength,
on the held-out prompts and the same noise at every strength. Needs Chromium and markdown-it-py.
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops

from nft_pipeline import DiffusionNFTPipeline, read_adapter, write_adapter
from nft_pipeline.hub_cards.draw import draw_samples
from nft_pipeline.hub_cards.push import make_card, write_card
from nft_pipeline.hub_cards.report import Curve, Point, RunReport
from nft_pipeline.training.shapes.rewards import warm, warm_prompts_held_out
from nft_pipeline.training.shapes.score import judge
from nft_pipeline.training.shapes.world import Prompt

STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
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


def measure(n: int) -> RunReport:
    """Both rewards over strength: the trained one, and the template overlap, which was not trained on."""
    pipe = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter="shapes-warm")
    pipe.set_progress_bar_config(disable=True)
    known = warm_prompts_held_out()
    prompts = [known[i % len(known)] for i in range(n)]
    points: dict[str, list[Point]] = {"warm": [], "overlap": []}
    for strength in STRENGTHS:
        pictures = []
        for start in range(0, n, 32):
            part = range(start, min(start + 32, n))
            made = pipe(
                prompt=[prompts[i] for i in part],
                generator=[torch.Generator().manual_seed(1000 + i) for i in part],
                nft_strength=strength,
            )
            pictures += [np.asarray(image.convert("RGB")) for image in made.images]
        liked = warm(np.stack(pictures), prompts)
        overlap = [judge(picture, Prompt.parse(text)).quality for picture, text in zip(pictures, prompts, strict=True)]
        for name, values in (("warm", liked), ("overlap", np.array(overlap))):
            points[name].append(Point(strength, float(values.mean()), float(values.std() / n**0.5), n))
        print(f"strength {strength:g}: warm {liked.mean():.3f}, overlap {np.mean(overlap):.3f}")
    where = f"{len(known)} held-out prompts"
    return RunReport(
        rewards=(
            Curve("shapes_warm", True, tuple(points["warm"]), where, "standard error"),
            Curve("template overlap", False, tuple(points["overlap"]), where, "standard error"),
        )
    )


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=300)
    args = parser.parse_args()
    report = measure(args.n)
    folder = args.out / "adapter"
    write_adapter(folder, read_adapter("shapes-warm"), {"run_report.json": report.to_json().encode()})
    draw_samples(folder, ["a small ring", "a large circle on black"], [0, 1], STRENGTHS)
    write_card(folder, make_card(folder, REPO))
    for theme in THEMES:
        photograph(folder, theme, args.out / f"card_{theme}.png")


if __name__ == "__main__":
    main()
