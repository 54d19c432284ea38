"""An adapter from 64 likes on the emoji model, the whole way that a person goes, and what its dial does.

    python -m tests.benchmarks.emoji_likes --work runs/emoji-likes --write
    python -m tests.benchmarks.shipped_cards emoji-likes --write

The commands are those of docs/training.md: `draw`, `train` on the folder, `calibrate --by-hand`. In the place of the
person on the page of `rate` there is a rule, given to the same code as the page's answers: `Person` likes a picture on
a black or blue background, and says the opposite of what it means once in ten times. Measured on held-out prompts with
other noise: how often the taste itself is met, which the adapter has never been told without the slips.

--write makes docs/measured/emoji_likes.md, and the adapter that ships; the second command draws its card.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import read_adapter, write_adapter
from nft_pipeline.adapters.names import COMFYUI_FOLDER
from nft_pipeline.cli import main as diffusion_nft
from nft_pipeline.training.demo.measure import Point, Workload, matched_quality, with_lora
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.demo.worlds import DEMOS
from nft_pipeline.training.devices.precision import choose_precision
from nft_pipeline.training.dial.by_hand import PICTURES
from nft_pipeline.training.emoji.judge import load_judge
from nft_pipeline.training.rewards.find import find_prompts
from nft_pipeline.training.rewards.folders.rating import Ratings

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "nft_pipeline/models/emoji-likes"
JUDGE = "a rule in the place of a person"
DARK = ("black", "blue")
SLIPS = 0.1  # the share of ratings that are the opposite of what is meant
COUNT = 64
STRENGTHS = (0.5, 1.0, 2.0)
WEIGHTS = (0.25, 0.5, 0.75, 1.0)
RUN = """\
preset: emoji_3d
name: emoji-likes
data: {pictures}
reward_description: liked by a rule in the place of a person, a black or blue background with one slip in ten
held_out_prompts: emoji_open_held_out
"""
PAGE = """# An adapter from 64 likes

Made by `python -m tests.benchmarks.emoji_likes --work WORK --write` on {date} ({machine} CPU, {precision}, torch
{torch}).
One training run, seed 0, {minutes:.0f} minutes on one core from the first picture to the calibrated adapter, which
ships as `emoji-likes`.

**No person rated these pictures.** A rule stands in for one: it likes a picture if the judge of the emoji model sees a
black or blue background, and each rating is turned into its opposite with a chance of {slips:.0%}, by a seeded draw.
The rest is the way of a person, with the commands themselves: `draw` made {count} pictures of {count} prompts that name
neither style nor background; the rule rated them through the code behind the page of `rate` ({liked} liked, {slipped}
of the ratings slips); `train` learned from the folder; `calibrate --by-hand` drew {hand} pictures more, which the rule
rated too ({hand_liked} liked).

Measured on {prompts} held-out prompts with noise of their own, n = {n} pictures per row, the same noise in every row.
P(taste) is the share on a black or blue background, without slips. Quality is the {quality}.
What the dial promises is about ratings, slips included: "as rated" is {slips:.1f} + {kept:.1f} P(taste). Errors are
standard errors over pictures.

{table}

{calibration}

The promise is off by {off} at the strengths of the table. It rests on 16 ratings at each of four weights.
"""
CALIBRATED = """\
The calibration by hand draws in one pass at one weight for all, so a row of the dial draws what LoRA weight draws at
some weight: what it adds is the promise. The row of the odds law is two passes, gated by alpha."""
NOT_LEARNED = """\
The calibration could not tell from its ratings that any weight raises the share of liked pictures, so the dial
recommends no strength."""


class Person:
    """Likes a black or blue background, and slips.

    Args:
        seed: of the slips.
    """

    def __init__(self, seed: int) -> None:
        self.rng, self.slips = np.random.default_rng(seed), 0

    def rate(self, folder: Path) -> int:
        """Rate every picture of a folder that is not rated yet; returns how many of all are then liked."""
        ratings = Ratings(folder)
        for name in ratings.pictures:
            if ratings.liked[name] is None:
                slip = bool(self.rng.random() < SLIPS)
                self.slips += slip
                ratings.rate(name, bool(taste(np.asarray(Image.open(folder / name).convert("RGB"))[None])[0]) != slip)
        return sum(liked is True for liked in ratings.liked.values())


def taste(pictures: np.ndarray) -> np.ndarray:
    """Whether each picture, uint8 (n, 64, 64, 3), is on a black or blue background."""
    return np.array([seen.background in DARK for seen in load_judge().look(pictures)])


def make(work: Path) -> dict[str, int]:
    """Draw, rate, train, calibrate: an adapter in work/run/adapter, and what was rated."""
    pictures, hand, run = work / "pictures", work / "by_hand", work / "likes.yaml"
    work.mkdir(parents=True)
    run.write_text(RUN.format(pictures=pictures), encoding="utf-8")
    prompts = np.random.default_rng(0).permutation(find_prompts("emoji_open"))[:COUNT]
    (work / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    person = Person(seed=1)
    _command("draw", run, pictures, "--count", COUNT, "--prompts", work / "prompts.txt")
    liked = person.rate(pictures)
    slipped = person.slips
    _command("train", run, "--out", work / "run")
    calibrate = ("calibrate", work / "run/adapter", "--by-hand", hand)
    _command(*calibrate)
    return {
        "liked": liked,
        "slipped": slipped,
        "hand_liked": person.rate(hand),
        "hand": PICTURES,
        "rc": _command(*calibrate),
    }


def ship(adapter: Path, folder: Path = SHIPPED) -> None:
    """Put the adapter into the package: with the words of who rated, which `calibrate` takes for a person, and without
    the file for ComfyUI, as all adapters of the emoji model."""
    made = read_adapter(adapter)
    assert made.config.dial is not None
    write_adapter(folder, replace(made, config=replace(made.config, dial=replace(made.config.dial, judge=JUDGE))))
    shutil.rmtree(folder / COMFYUI_FOLDER)


def _command(*words: Any) -> int:
    print("$ diffusion-nft", *words, flush=True)
    return diffusion_nft([str(word) for word in words])


def measure(pipe: Any, adapter: Path, work: Workload) -> Iterator[tuple[str, str, int, Point]]:
    """(way, setting, forwards per step, point) of each way of steering; the point's rate is P(taste)."""

    def point(method: str, setting: float, drawing: Any, promise: float | None = None, **steering: Any) -> Point:
        pictures = work.pictures(drawing, f"{method} {setting:g}", **steering)
        rate = float(taste(pictures).mean())
        return Point(method, setting, work.n, rate, work.quality(pictures, work.texts()), promise)

    yield "base", "", 1, point("base", 0.0, pipe, nft_strength=0.0)
    for strength in STRENGTHS:
        promised = pipe.promise(strength=strength).rate
        yield "dial", f"strength {strength:g}", 1, point("dial", strength, pipe, promised, nft_strength=strength)
    law = {"nft_strength": 1.0, "nft_law": "odds", "nft_mode": "two_pass"}
    yield "odds law, by alpha", "strength 1", 2, point("odds", 1.0, pipe, **law)
    stock = pipe.unwrap()
    with with_lora(stock, adapter) as name:
        for weight in WEIGHTS:
            stock.set_adapters(name, weight)
            yield "LoRA weight", f"{weight:g}", 1, point("lora weight", weight, stock)


def table(found: list[tuple[str, str, int, Point]]) -> str:
    """The table of the page."""
    head = ["way", "setting", "forwards per step", "promised, as rated", "as rated", "P(taste)", "quality"]
    head.append("LoRA weight at the same P(taste): quality")
    rivals = [point for way, _, _, point in found if way in ("base", "LoRA weight")]
    rows = []
    for way, setting, forwards, point in found:
        rated = SLIPS + (1 - 2 * SLIPS) * point.rate
        rival = matched_quality(rivals, point.rate)
        at_equal = "" if way in ("base", "LoRA weight") else "out of its reach" if rival is None else f"{rival:.3f}"
        promised = "" if point.promise is None else f"{point.promise:.3f}"
        shares = [promised, f"{rated:.3f}", f"{point.rate:.3f} ± {point.error:.3f}", f"{point.quality:.3f}"]
        rows.append([way, setting, str(forwards), *shares, at_equal])
    return markdown(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a new folder for pictures, run and adapter")
    parser.add_argument("--n", type=int, default=204, help="pictures per row (default: 204)")
    parser.add_argument("--write", action="store_true", help="write the page and the adapter that ships")
    args = parser.parse_args()
    facts_file = args.work / "facts.json"
    if not facts_file.is_file():
        started = time.monotonic()
        facts = make(args.work.absolute())
        facts_file.write_text(json.dumps({**facts, "minutes": (time.monotonic() - started) / 60}))
    facts = json.loads(facts_file.read_text())
    pipe = DiffusionNFTPipeline.from_pretrained("emoji", nft_adapter=str(args.work / "run/adapter"))
    dtype, precision = choose_precision("auto", pipe.transformer.device)
    prompts, world = find_prompts("emoji_open_held_out"), DEMOS["emoji"]
    work = Workload(prompts, args.n, 71_001, 102, dict(pipe.call_defaults), dtype, world.quality)
    found = list(measure(pipe, args.work / "run/adapter", work))
    promised = [point for _, _, _, point in found if point.promise is not None]
    text = PAGE.format(
        off=", ".join(f"{SLIPS + (1 - 2 * SLIPS) * point.rate - point.promise:+.2f}" for point in promised),
        date=date.today().isoformat(),
        machine=platform.machine(),
        precision=precision.partition(":")[0],
        torch=torch.__version__,
        slips=SLIPS,
        kept=1 - 2 * SLIPS,
        count=COUNT,
        prompts=len(prompts),
        n=args.n,
        quality=world.quality_words,
        table=table(found),
        calibration=CALIBRATED if facts["rc"] == 0 else NOT_LEARNED,
        **{name: facts[name] for name in ("minutes", "liked", "slipped", "hand", "hand_liked")},
    )
    print(text)
    if args.write:
        ship(args.work / "run/adapter")
        (ROOT / "docs/measured/emoji_likes.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
