"""What the emoji model draws, and how well: its judge and a third-party reader of text look at fresh pictures.

    python tests/benchmarks/emoji.py --packages packages/ --write

The packages are those that the model was trained on (training/emoji/pictures.py); they are fetched where they are
missing. --write makes docs/measured/emoji.md and the pictures of docs/emoji.md.
"""

from __future__ import annotations

import argparse
import itertools
import platform
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.grid import labelled_grid
from nft_pipeline.training.demo.measure import Workload
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.devices.precision import choose_precision
from nft_pipeline.training.emoji.contents import Contents, emoji_folder
from nft_pipeline.training.emoji.judge import as_input, load_judge
from nft_pipeline.training.emoji.pictures import STYLES, fetch
from nft_pipeline.training.emoji.prompts import Named
from nft_pipeline.training.emoji.world import BACKGROUNDS, World, compose, sign_prompt, thing_prompt
from nft_pipeline.training.rewards.kinds.ocr import OCR
from nft_pipeline.training.show.picture_stats import diversity, shrunk

DOCS = Path(__file__).parents[2] / "docs"
PAGE = """# What the emoji model draws

The pictures are judged by `training/emoji/judge.py` and read by rapidocr on a picture enlarged to 256 px. The call is
the model's own: {call}.
Errors are standard errors.

## The judge

It learned from true pictures of all combinations, also of those that the model was never shown. What it sees in true
pictures, as they are and as the model's VAE gives them back, which is what a perfect denoiser would draw:

{judge}

## What the prompt names

{named}

With classifier-free guidance, which takes two forwards per step, combinations never shown:

{guided}

## Words on signs

{read}

## What the prompt leaves open

Of {open} pictures of one thing each, with no style and no background named:
{styles}; {backgrounds}.

Of 200 pictures of "face", the judge sees {faces} different things, and {are_faces} are faces.

Eight pictures of one prompt are {variety:.3f} apart on average (root mean square of the difference of two pictures
in [0, 1]).

"""
NAMED = ("n", "thing", "style", "background", "all of it")
SCALES = (2.0, 3.0, 5.0)  # of classifier-free guidance
SHEET = ("grinning face", "cat face", "dog face", "red heart", "pizza", "rocket", "fire", "owl")


class Bench:
    """Draws prompts and has them looked at; every column of a table has its own noise."""

    def __init__(self, dtype: torch.dtype, model: str = "emoji") -> None:
        self.guided = DiffusionNFTPipeline.from_pretrained(model)
        self.dtype, self.judge = dtype, load_judge()

    def draw(self, prompts: list[str], seed: int, label: str = "", **changed: Any) -> np.ndarray:
        """One picture for each prompt, uint8 (N, 64, 64, 3), with the model's own call but for what is changed."""
        call = {**self.guided.call_defaults, **changed}
        return Workload(prompts, len(prompts), seed, 128, call, self.dtype).pictures(self.guided.unwrap(), label)

    @torch.no_grad()
    def through_vae(self, pictures: np.ndarray, batch: int = 64) -> np.ndarray:
        """Pictures, uint8 (N, 64, 64, 3), as the model's VAE gives them back."""
        vae = self.guided.unwrap().vae
        parts = [pictures[i : i + batch] for i in range(0, len(pictures), batch)]
        decoded = torch.cat([vae.decode(vae.encode(as_input(part)).latent_dist.mode()).sample for part in parts])
        return ((decoded.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)

    def right(self, prompts: list[str], seed: int, label: str, **changed: Any) -> list[str]:
        """A row: how often thing, style, background and all of them are what the prompt names."""
        return self.seen(prompts, self.draw(prompts, seed, label, **changed), label)

    def seen(self, prompts: list[str], pictures: np.ndarray, label: str) -> list[str]:
        """A row: in how many pictures the judge sees thing, style, background and all of them as the prompt names."""
        shown = self.judge.look(pictures)
        named = [Named.of(prompt) for prompt in prompts]
        pairs = list(zip(named, shown, strict=True))
        things = [one.thing in (saw.thing, saw.kind) for one, saw in pairs]
        styles = [one.style == saw.style for one, saw in pairs if one.style]
        grounds = [one.background == saw.background for one, saw in pairs if one.background]
        every = [one.agrees(saw) for one, saw in pairs]
        return [label, str(len(prompts)), *(share(values) for values in (things, styles, grounds, every))]


def share(values: list[bool]) -> str:
    """A share with its standard error; a dash where there is nothing."""
    if not values:
        return "-"
    p, n = float(np.mean(values)), len(values)
    return f"{p:.3f} ± {max(p * (1 - p), 0.25 / n) ** 0.5 / n**0.5:.3f}"


def combinations(contents: Contents, held_out: bool) -> list[tuple[str, str]]:
    """(thing, style) of the held-out combinations, or as many of the others."""
    if held_out:
        return list(contents.held_out.items())
    names = list(contents.things)
    return [(name, list(STYLES)[i % len(STYLES)]) for i, name in enumerate(names) if name not in contents.held_out][::7]


def named_prompts(contents: Contents, held_out: bool) -> list[str]:
    """Each combination on four backgrounds."""
    grounds = list(BACKGROUNDS)
    return [
        thing_prompt(name, style, grounds[(i + turn) % len(grounds)])
        for turn in range(4)
        for i, (name, style) in enumerate(combinations(contents, held_out))
    ]


def named_pictures(contents: Contents, world: World, held_out: bool) -> np.ndarray:
    """The true pictures for `named_prompts`, uint8 (N, 64, 64, 3)."""
    numbers, styles = {thing.name: i for i, thing in enumerate(world.things)}, list(STYLES)
    named = [Named.of(prompt) for prompt in named_prompts(contents, held_out)]
    return np.stack(
        [compose(world.opaque[numbers[one.thing], styles.index(one.style)], one.background) for one in named]
    )


def judge_rows(bench: Bench, contents: Contents, world: World) -> list[list[str]]:
    """What the judge sees in true pictures."""
    rows = []
    for held_out, label in ((True, "combinations never shown"), (False, "combinations shown")):
        prompts, pictures = named_prompts(contents, held_out), named_pictures(contents, world, held_out)
        rows.append(bench.seen(prompts, pictures, f"{label}, true"))
        rows.append(bench.seen(prompts, bench.through_vae(pictures), f"{label}, through the VAE"))
    return rows


def read_words(bench: Bench, reader: OCR, words: list[str], seed: int, label: str) -> list[str]:
    """A row: how often rapidocr reads exactly the word, and the mean of the reward `ocr`."""
    prompts = [sign_prompt(word) for word in words]
    pictures = [Image.fromarray(picture).resize((256, 256)) for picture in bench.draw(prompts, seed, label)]
    scored = reader.score(pictures, prompts, [{}] * len(prompts))
    exact = [float(score) == 1.0 for score in scored.scores]
    return [label, str(len(words)), share(exact), f"{scored.scores.mean():.3f}"]


def spread(bench: Bench, prompts: list[str], seed: int) -> tuple[Counter[str], Counter[str]]:
    """Styles and backgrounds of pictures whose prompts leave both open."""
    shown = bench.judge.look(bench.draw(prompts, seed, "open prompts"))
    return Counter(one.style for one in shown), Counter(one.background for one in shown)


def nearest(world: World, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each picture the true one that is nearest, and the root mean square distance to it in [0, 1]."""
    every = itertools.product(range(len(world.things)), range(len(STYLES)), BACKGROUNDS)
    true = np.stack([compose(world.opaque[thing, style], ground) for thing, style, ground in every])
    small = torch.from_numpy(true[:, ::4, ::4].reshape(len(true), -1).astype(np.float32))
    chosen = []
    for picture in pictures:
        apart = (small - torch.from_numpy(picture[::4, ::4].reshape(-1).astype(np.float32))).square().mean(1)
        some = apart.topk(40, largest=False).indices.numpy()
        exact = np.square(true[some].astype(np.float32) - picture).mean((1, 2, 3))
        chosen.append((true[some[exact.argmin()]], float(exact.min()) ** 0.5 / 255))
    return np.stack([one for one, _ in chosen]), np.array([apart for _, apart in chosen])


def sheets(bench: Bench, contents: Contents, world: World) -> str:
    """Write the pictures of docs/emoji.md; a line about the nearest true pictures."""
    patterns = {"no style named": "{}", **{style: f"{style} {{}}" for style in STYLES}, "on pink": "{} on pink"}
    rows = [(label, bench.draw([pattern.format(name) for name in SHEET], 11)) for label, pattern in patterns.items()]
    words = contents.held_out_words[: len(SHEET)]
    rows.append(("words never shown", bench.draw([sign_prompt(word) for word in words], 11)))
    labelled_grid(
        [[Image.fromarray(picture) for picture in pictures] for _, pictures in rows],
        [label for label, _ in rows],
        list(SHEET),
    ).save(DOCS / "pictures/emoji_samples.png", optimize=True)
    rng = np.random.default_rng(5)
    names = list(contents.things)
    random = [
        sign_prompt(contents.held_out_words[i // 5]) if i % 5 == 4 else thing_prompt(names[rng.integers(len(names))])
        for i in range(100)
    ]
    plain_sheet(bench.draw(random, 12), 20).save(DOCS / "pictures/emoji_random.png", optimize=True)
    pairs = combinations(contents, held_out=True)[:20]
    drawn = bench.draw([thing_prompt(name, style, "white") for name, style in pairs], 13)
    close, apart = nearest(world, drawn)
    both = np.concatenate([drawn[:10], close[:10], drawn[10:], close[10:]])
    plain_sheet(both, 10).save(DOCS / "pictures/emoji_nearest.png", optimize=True)
    return f"{apart.mean():.3f} (least {apart.min():.3f}, most {apart.max():.3f})"


def plain_sheet(pictures: np.ndarray, columns: int) -> Image.Image:
    """Pictures row by row, without gaps, at their own size."""
    lines = [np.concatenate(list(pictures[i : i + columns]), 1) for i in range(0, len(pictures), columns)]
    return Image.fromarray(np.concatenate(lines, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the npm packages")
    parser.add_argument("--write", action="store_true", help="write the page and its pictures")
    args = parser.parse_args()
    dtype, why = choose_precision("auto", torch.device("cpu"))
    bench, contents, reader = Bench(dtype), Contents.read(emoji_folder()), OCR()
    world = World.of(fetch(args.packages))
    unseen, seen = (named_prompts(contents, held_out) for held_out in (True, False))
    named = [bench.right(unseen, 1, "combinations never shown"), bench.right(seen, 2, "combinations shown")]
    guided = [bench.right(unseen, 1, f"guidance_scale {scale:g}", guidance_scale=scale) for scale in SCALES]
    read = [
        read_words(bench, reader, contents.held_out_words * 2, 3, "words never shown"),
        read_words(bench, reader, contents.words[:174], 4, "words shown"),
    ]
    names = [name for name in contents.things if name not in contents.held_out]
    styles, backgrounds = spread(bench, [thing_prompt(name) for name in names], 5)
    faces = bench.judge.look(bench.draw(["face"] * 200, 6))
    groups = np.repeat(np.arange(25), 8)
    drawn = bench.draw([thing_prompt(name) for name in names[::20][:25] for _ in range(8)], 7)
    page = PAGE.format(
        call=", ".join(f"{key} {value}" for key, value in bench.guided.call_defaults.items()),
        judge=markdown(["pictures", *NAMED], judge_rows(bench, contents, world)),
        named=markdown(["prompts", *NAMED], named),
        guided=markdown(["drawn with", *NAMED], guided),
        read=markdown(["words", "n", "read exactly", "reward `ocr`"], read),
        open=len(names),
        styles=counts(styles),
        backgrounds=counts(backgrounds),
        faces=len({one.thing for one in faces}),
        are_faces=share([one.kind == "face" for one in faces]),
        variety=float(diversity(shrunk(drawn), groups).mean()),
    )
    device = f"*{platform.machine()} CPU, {why.partition(':')[0]}, torch {torch.__version__}, {date.today()}.*"
    if args.write:
        apart = sheets(bench, contents, world)
        page += (
            "## Not from memory\n\nTwenty combinations of thing and style that were never shown lie "
            f"{apart} from the nearest of all true pictures, in the same units.\n\n{device}\n"
        )
        (DOCS / "measured/emoji.md").write_text(page, encoding="utf-8")
    print(page)


def counts(counter: Counter[str]) -> str:
    """ "3d .34, flat .33, ...": shares, the largest first."""
    total = sum(counter.values())
    return ", ".join(f"{name} {number / total:.2f}" for name, number in counter.most_common())


if __name__ == "__main__":
    main()
