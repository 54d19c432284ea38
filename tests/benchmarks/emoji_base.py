"""How far training takes the emoji model with combinations of a thing and a style that it was never shown.

    python -m tests.benchmarks.emoji_base new     --packages packages/ --work WORK   # from nothing
    python -m tests.benchmarks.emoji_base further --packages packages/ --work WORK   # from the shipped model
    python -m tests.benchmarks.emoji_base report  --work WORK --write

Each run takes about an hour of one core and goes on where it was stopped. What it has measured lies in WORK, one file
for each run. --write makes docs/measured/emoji_base.md and its picture.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch

from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.devices.precision import choose_precision
from nft_pipeline.training.emoji.contents import Contents, emoji_folder
from nft_pipeline.training.emoji.examples import EmojiTraining
from nft_pipeline.training.emoji.pictures import fetch
from nft_pipeline.training.emoji.prompts import Named
from nft_pipeline.training.emoji.train_base import train_base
from nft_pipeline.training.emoji.world import World

from .emoji import DOCS, Bench, named_prompts

SHIPPED = 826  # thousands of pictures that the shipped model learned from
RUNS = {"new": "from nothing", "further": "from the shipped model"}
NOISES = (101, 102)  # seeds; every prompt is drawn with both
GUIDED = 3.0  # scale of classifier-free guidance
PAGE = """# How far the emoji model gets by training

Made by `python -m tests.benchmarks.emoji_base report --write` on {date} ({device}).
The model ([emoji.md](emoji.md)) was never shown 72 of its 577 things in one of the three styles. How often do its
pictures of these combinations show the thing and the style that the prompt names, and does more training mend it? Two
runs: one from nothing, {new} thousand pictures with the schedule of the shipped model made shorter, and one from the
shipped model for {further} thousand pictures more, with a learning rate that rises and falls again. What is measured is
the running average of the weights, which follows about a hundred thousand pictures behind.

n = {n} pictures of combinations never shown, {n_shown} of those shown and {n_guided} under guidance: each combination
on four backgrounds with two noises, under guidance with one. They are judged as on the page of the model, where the
judge's own errors stand. Standard errors are at most {error:.3f}, and {error_guided:.3f} under guidance.

{table}

![What is right, by the pictures that were learned from](../pictures/emoji_base.png)

{why}

By kind of thing, the shipped model and the same after {further} thousand pictures more, combinations never shown. Eight
pictures are of one thing, so a kind with n = 16 is two things:

{kinds}
"""
WHY = """More training does not mend the style. It is right in {before:.3f} of the pictures of combinations never shown
and in {shown:.3f} of those shown, and after the further run in {after:.3f} and {shown_after:.3f}. The judge is not the
reason: it is right in nearly all true pictures of the same combinations. Guidance mends the thing ({thing:.3f} to
{guided:.3f}) and hardly the style ({guided_style:.3f}).

The style comes right most often for {alike},
least for {unlike} (the table below). Faces and hearts look much alike within their kind, and
clothes and buildings do not, so it seems that the model has learned pictures of things more than styles. Whether more
things would mend that was not tried."""
HEAD = (
    "run",
    "thousand pictures",
    "never shown: thing",
    "style",
    "both",
    "shown: thing",
    "style",
    "both",
    "never shown, CFG 3: thing",
    "style",
    "both",
)


@dataclass(frozen=True)
class Stage:
    """What a run had learned at one saving.

    Args:
        pictures: learned from in this run.
        right: for each set of pictures the shares (thing, style, both) that are right.
        n: pictures in each set.
        kinds: of the combinations never shown, the share whose style is right and the number, by kind of thing.
    """

    pictures: int
    right: dict[str, tuple[float, float, float]]
    n: dict[str, int]
    kinds: dict[str, tuple[float, int]]


def measure(model: Path, pictures: int) -> Stage:
    """What the model in a folder draws of combinations shown and never shown."""
    bench = Bench(choose_precision("auto", torch.device("cpu"))[0], str(model))
    contents = Contents.read(emoji_folder())
    right, n, kinds = {}, {}, {}
    for name, held_out, scale, noises in (
        ("never", True, 1.0, NOISES),
        ("shown", False, 1.0, NOISES),
        ("never guided", True, GUIDED, NOISES[:1]),
    ):
        prompts = named_prompts(contents, held_out)
        drawn = np.concatenate([bench.draw(prompts, noise, name, guidance_scale=scale) for noise in noises])
        named = [Named.of(prompt) for prompt in prompts] * len(noises)
        pairs = list(zip(named, bench.judge.look(drawn), strict=True))
        hits = np.array([(one.thing == saw.thing, one.style == saw.style) for one, saw in pairs])
        thing, style = hits.mean(0).tolist()
        right[name], n[name] = (thing, style, float(hits.all(1).mean())), len(pairs)
        if name == "never":
            of = np.array([contents.things[one.thing] for one in named])
            kinds = {kind: (float(hits[of == kind, 1].mean()), int((of == kind).sum())) for kind in sorted(set(of))}
    return Stage(pictures, right, n, kinds)


def learn(run: str, steps: int, packages: Path, work: Path) -> None:
    """Train a run and measure it at every saving."""
    settings = EmojiTraining(steps=steps, misspelt_more=0.4 if run == "further" else 0.0)
    out = work / run
    start = emoji_folder() if run == "further" else None
    stages = stages_of(work, run)
    if start is not None and not stages:
        stages.append(measure(start, 0))

    def saved(step: int) -> None:
        stages.append(measure(out, step * settings.batch))
        (work / f"{run}.json").write_text(json.dumps([asdict(stage) for stage in stages], indent=1), encoding="utf-8")
        print(f"{run}, step {step}: {stages[-1].right}", flush=True)

    work.mkdir(parents=True, exist_ok=True)
    train_base(World.of(fetch(packages)), emoji_folder() / "vae", settings, out, start, saved=saved)


def stages_of(work: Path, run: str) -> list[Stage]:
    """What was measured of a run so far."""
    file = work / f"{run}.json"
    return [Stage(**stage) for stage in json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else []


def row(run: str, stage: Stage) -> list[str]:
    """A line of the table."""
    before = SHIPPED if run == "further" else 0
    shares = [f"{share:.3f}" for name in ("never", "shown", "never guided") for share in stage.right[name]]
    return [RUNS[run], f"{before + stage.pictures / 1000:.0f}", *shares]


def plot(runs: dict[str, list[Stage]], path: Path) -> None:
    """What is right by the pictures that were learned from."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    lines = (("shown", 1, "shown: style", "#3f9b57"), ("never", 0, "never shown: thing", "#2f6fde"))
    lines += (
        ("never", 1, "never shown: style", "#d1653c"),
        ("never guided", 1, "never shown, CFG 3: style", "#a77bc9"),
    )
    for run, stages in runs.items():
        before = SHIPPED if run == "further" else 0
        at = [before + stage.pictures / 1000 for stage in stages]
        for name, which, label, colour in lines:
            values = [stage.right[name][which] for stage in stages]
            axes.plot(at, values, "o-", markersize=3, color=colour, label=label if run == "further" else None)
    axes.axvline(SHIPPED, color="0.6", linewidth=0.8, linestyle=":")
    axes.set(xlabel="thousand pictures learned from", ylabel="share right", ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def page(runs: dict[str, list[Stage]], device: str) -> str:
    """docs/measured/emoji_base.md."""
    first, last = runs["further"][0], runs["further"][-1]
    kinds = [
        [kind, str(n), f"{share:.2f}", f"{last.kinds[kind][0]:.2f}"]
        for kind, (share, n) in sorted(first.kinds.items(), key=lambda one: -one[1][0])
    ]
    return PAGE.format(
        date=date.today(),
        device=device,
        new=f"{runs['new'][-1].pictures / 1000:.0f}",
        further=f"{last.pictures / 1000:.0f}",
        n=first.n["never"],
        n_shown=first.n["shown"],
        n_guided=first.n["never guided"],
        error=0.5 / first.n["never"] ** 0.5,
        error_guided=0.5 / first.n["never guided"] ** 0.5,
        table=markdown(HEAD, [row(run, stage) for run, stages in runs.items() for stage in stages]),
        why=WHY.format(
            before=first.right["never"][1],
            after=last.right["never"][1],
            shown=first.right["shown"][1],
            shown_after=last.right["shown"][1],
            guided=first.right["never guided"][0],
            guided_style=first.right["never guided"][1],
            thing=first.right["never"][0],
            alike=", ".join(f"{kind} {share}" for kind, _, share, _ in kinds[:3]),
            unlike=", ".join(f"{kind} {share}" for kind, _, share, _ in kinds[-3:]),
        ),
        kinds=markdown(["kind", "n", "style, shipped", "style, further"], kinds),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*RUNS, "report"])
    parser.add_argument("--packages", type=Path, help="folder of the npm packages; what is missing is fetched")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs and of what was measured")
    parser.add_argument("--steps", type=int, default=2000, help="of the run (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write the page and its picture")
    args = parser.parse_args(arguments)
    if args.what in RUNS:
        if args.packages is None:
            parser.error("a run needs --packages")
        learn(args.what, args.steps, args.packages, args.work)
        return
    runs = {run: stages_of(args.work, run) for run in RUNS}
    _, why = choose_precision("auto", torch.device("cpu"))
    text = page(runs, f"{platform.machine()} CPU, {why.partition(':')[0]}, torch {torch.__version__}")
    print(text)
    if args.write:
        plot(runs, DOCS / "pictures/emoji_base.png")
        (DOCS / "measured/emoji_base.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
