"""Words that can be read: how they are learned, and what steering costs and keeps, on words never shown in training.

    python -m tests.benchmarks.words --write                        # the tables, of the shipped adapter
    python -m tests.benchmarks.words --train paper --seed 1         # a run of OBJECTIVES, into runs/words/paper-1
    python -m tests.benchmarks.words --curve runs/words/* --write   # how these runs learned

A picture is right if rapidocr reads exactly the word that its prompt has in quotes. The tables are drawn anew:
held-out words, the same prompts and noise in every row, guidance beside LoRA weight strength, classifier-free guidance,
and the best of several pictures. The curve is read from the records of the runs; runs that the page has already keep
their line. --write makes docs/measured/words.md and its pictures.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.grid import labelled_grid
from nft_pipeline.models import shipped_adapter
from nft_pipeline.sampling import draw
from nft_pipeline.training.demo.measure import Workload, with_lora
from nft_pipeline.training.demo.report import markdown, spread
from nft_pipeline.training.devices.precision import autocast, choose_precision
from nft_pipeline.training.emoji.contents import Contents, emoji_folder
from nft_pipeline.training.emoji.world import sign_prompt
from nft_pipeline.training.learn.objective import Objective
from nft_pipeline.training.rewards.kinds.ocr import OCR
from nft_pipeline.training.run.trainer import train
from nft_pipeline.training.settings.config import TrainConfig
from nft_pipeline.training.show.picture_stats import diversity, shrunk

DOCS = Path(__file__).parents[2] / "docs"
STRENGTHS = (0.0, 0.25, 0.5, 1.0)
FURTHER = (1.5, 2.0)  # by the law alone, in two passes
WEIGHTS = (0.5, 1.0, 1.5, 2.0)
SCALES = (1.5, 3.0)
BEST_OF = (2, 4)
GROUP = 8  # pictures of one word, whose variety is measured
GROUPS = 24
SHOWN = 8  # words in the picture
COLOURS = {"policy": "#2f6fde", "paper": "#d1653c", "positive": "#3f9b57"}  # of the curves; their lines are the seeds'
LINES = ("-", "--", ":")
# What is compared while it learns: the preset, and what another objective needs instead. All draw and read as many
# pictures and take as many steps. `paper` has the optimality and tilt that docs/measured/objectives.md gives it.
# `positive` is trained on whether the word is read exactly, because its rate is what is measured.
UNANCHORED: dict[str, Any] = {"eta0": None, "refit": 0.0, "self_normalise": False}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "policy": {},
    "paper": {**UNANCHORED, "objective": "paper", "optimality": "group", "tilt": 10.0},
    "positive": {
        **UNANCHORED,
        "objective": "positive",
        "optimality": "threshold",
        "optimality_at": 1.0,
        "rounds": 0,
        "sweep_every": 0,
        "keep_best": False,
        "pool_size": 4864,
        "held_out_size": 512,
        "steps": 112,
    },
}
HEAD = ["way", "forwards per step", "read exactly", "reward `ocr`", "variety"]
ADAPTER, SHIPPED = "emoji-words", "policy, seed 0"  # the shipped adapter, and the run that made it
SEEDS_HEAD = ["way", "runs", "read exactly", "reward `ocr`", "variety"]
CURVE_HEAD = ["run", "optimality", "eta0", "forwards", "pictures seen: reward"]
CANDIDATES, AFTER = 4, 2  # of early choice: noises tried for each picture, and the steps of each trial
PAGE = """# Words on signs

Made by `python -m tests.benchmarks.words --turns {turns} --write` on {date} ({machine} CPU,
{precision}, torch {torch}).
A picture of 64 x 64 pixels is right if rapidocr, which others trained, reads exactly the word that the prompt has in
quotes. The words have three or four letters and were on no sign that the base model or the adapter learned from:
{words} words, drawn {turns} times each, n = {n} pictures per row, with the same noise in every row. Errors are standard
errors over pictures. Variety is how unlike {group} pictures of one word are (root mean square of their difference in
[0, 1]), over {groups} words.

The adapter is `emoji-words`: {how}. Its calibration chose the mode {way};
strength goes through it, except where the law is named. Promised, as the mean reward: {promised}.

{table}

"Best of" draws that many pictures of the base model and keeps the one that rapidocr reads best, so it needs the
reader at every picture. A forward counts once for each row of the batch.

![The same noise at four strengths](../pictures/words_strengths.png)
"""
LEARNED_TITLE = "\n## While it learned\n"
LEARNED = (
    LEARNED_TITLE
    + """
Each line is a training run, held-out words at strength 1 after so many pictures, by the runs' own sweeps of {sweep}
pictures. The reward of a sweep is 1 less the share of letters that are wrong, which is above the share read exactly.
All runs draw and read as many pictures and learn from as many pairs of picture and noise. A forward is one row of a
batch in sampling or training; backward passes, one for each pair, come on top.

{curve}

![The curve of learning](../pictures/words_curve.png)
{ends}
For comparison only: at full size, on Stable Diffusion 3.5 medium, the authors of DiffusionNFT report that OCR
accuracy rose from .59 to .91 (arXiv:2509.16117). It is another model, other words and another reader.
"""
)
ENDS = """
What the runs end with, drawn anew as in the first table ({n} pictures per row, but for variety):

{table}

Over seeds, the mean with the lowest and the highest:

{seeds}

`policy`, seed 0, is the shipped emoji-words. "Early choice" tries {candidates} noises for {after} steps each and draws
the one of the highest alpha; its forwards are counted.
"""


class Bench:
    """Draws signs with held-out words, the same with the same noise for whatever is to be read."""

    def __init__(self, turns: int, call: dict[str, Any], dtype: torch.dtype) -> None:
        self.words = Contents.read(emoji_folder()).held_out_words
        prompts = [sign_prompt(word) for word in self.words]
        self.work = Workload(prompts, n=turns * len(prompts), seed=31, batch=128, call=call, dtype=dtype)
        self.groups = Workload(prompts[:GROUPS], n=GROUPS * GROUP, seed=32, batch=128, call=call, dtype=dtype)
        self.reader = OCR()

    def scores(self, pictures: np.ndarray) -> np.ndarray:
        """The reward of each picture of `work`; 1 is read exactly."""
        images = [Image.fromarray(picture) for picture in pictures]
        return self.reader.score(images, self.work.texts(), [{}] * len(images)).scores.numpy()

    def row(self, name: str, forwards: float, pipe: Any, **steering: Any) -> list[str]:
        """What is read of a way of steering, and what it keeps of the variety."""
        return self._row(name, forwards, lambda work: work.pictures(pipe, name, **steering))

    def early_choice(self, name: str, pipe: Any, strength: float) -> list[str]:
        """A row of pictures whose noise alpha chooses; its noises are seeds, since early choice draws its own."""

        def chosen(work: Workload) -> np.ndarray:
            rows = [(text, work.seed * 10_000 + place) for place, text in enumerate(work.texts())]
            with torch.inference_mode(), autocast(pipe.transformer.device, work.dtype):
                options = {"nft_candidates": CANDIDATES, "nft_choose_after": AFTER, **work.call}
                columns, _ = draw(pipe, rows, [strength], batch=work.batch, **options)
            return np.stack([np.asarray(picture) for picture in columns[0]])

        steps = self.work.call["num_inference_steps"]
        return self._row(name, (steps + CANDIDATES * AFTER) / steps, chosen)

    def _row(self, name: str, forwards: float, pictures: Callable[[Workload], np.ndarray]) -> list[str]:
        scores, groups = self.scores(pictures(self.work)), shrunk(pictures(self.groups))
        variety = float(diversity(groups, np.arange(len(groups)) % GROUPS).mean())
        return [name, f"{forwards:.3g}", *_share(scores), f"{variety:.3f}"]

    def best_of(self, k: int, pipe: Any) -> list[str]:
        """The best of k pictures for each prompt, by the reader itself."""
        work, call = self.work, dict(self.work.call)
        every = [
            self.scores(Workload(work.prompts, work.n, work.seed + 100 * i, 128, call, work.dtype).pictures(pipe))
            for i in range(k)
        ]
        return [f"base, best of {k}", f"{k}", *_share(np.max(every, 0)), "-"]


def _share(scores: np.ndarray) -> list[str]:
    exact, n = float((scores == 1).mean()), len(scores)
    return [f"{exact:.3f} ± {(exact * (1 - exact) / n) ** 0.5:.3f}", f"{scores.mean():.3f}"]


def settings_of(name: str, seed: int) -> TrainConfig:
    """One of OBJECTIVES."""
    return TrainConfig.from_yaml("emoji_words", {**OBJECTIVES[name], "seed": seed})


def pictures_of(config: TrainConfig) -> int:
    """How many pictures a run draws and reads."""
    if config.online:
        return config.rounds * config.round_prompts * config.group_size
    return config.pool_size + config.held_out_size


def forwards_of(config: TrainConfig) -> int:
    """Forwards of the denoiser that a run spends on drawing and on learning, per row of a batch."""
    learning = config.total_steps * config.batch * Objective.of(config).passes(config.online)[0]
    return pictures_of(config) * config.pool_steps + learning


def curve_row(run: Path) -> list[str]:
    """A row of the table: the reward of held-out words at strength 1, by pictures seen."""
    config = TrainConfig.from_yaml(run / "settings.yaml")
    sweeps = [json.loads(line) for line in (run / "sweeps.jsonl").read_text(encoding="utf-8").splitlines()]
    start = next(line["ocr"] for line in sweeps if line["strength"] == 0)
    at_1 = [line for line in sweeps if line["strength"] == 1]
    seen = [0, *(line["step"] * pictures_of(config) // config.total_steps for line in at_1)]
    points = ", ".join(f"{n:,}: {value:.3f}" for n, value in zip(seen, [start, *(x["ocr"] for x in at_1)], strict=True))
    anchor = f"{config.eta0:g}" if config.eta0 else "none"
    return [f"{config.kind}, seed {config.seed}", config.optimality, anchor, f"{forwards_of(config):,}", points]


def rows_on(page: str, head: Sequence[str]) -> dict[str, list[str]]:
    """The rows below a head that how runs learned has on the page already, by their first cell."""
    below = page.partition(LEARNED_TITLE)[2].partition(markdown(head, []))[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in below.splitlines() if line]
    return {row[0]: row for row in rows}


def points_of(row: Sequence[str]) -> tuple[list[int], list[float]]:
    """Pictures seen and rewards, as a row says them."""
    found = re.findall(r"([\d,]+): ([\d.]+)", row[-1])
    return [int(n.replace(",", "")) for n, _ in found], [float(value) for _, value in found]


def ends(bench: Bench, runs: Sequence[Path]) -> list[list[str]]:
    """What the runs' adapters draw, and the shipped one."""
    rows = []
    for name, adapter in {SHIPPED: ADAPTER, **{curve_row(run)[0]: str(run / "adapter") for run in runs}}.items():
        pipe = DiffusionNFTPipeline.from_pretrained("emoji", nft_adapter=adapter)
        mode = pipe.promise(strength=1).mode
        rows.append(bench.row(f"{name}, strength 1", 1 if mode == "single" else 2, pipe, nft_strength=1.0))
        if pipe.nft_config.kind == "positive":
            for strength in (0.0, 1.0):
                rows.append(bench.early_choice(f"{name}, strength {strength:g}, early choice", pipe, strength))
    return rows


def learned(page: str, curves: Sequence[list[str]], drawn: Sequence[list[str]], n: int) -> str:
    """The section of the page on how runs learned: the rows that it has, with these in the place of their older ones.

    Args:
        page: as it is.
        curves: rows below CURVE_HEAD.
        drawn: rows below HEAD, of n pictures each.
    """
    curve, ends_rows = (
        sorted({**rows_on(page, head), **{row[0]: row for row in rows}}.values(), key=lambda row: run_of(row[0]))
        for head, rows in ((CURVE_HEAD, curves), (HEAD, drawn))
    )
    below = ENDS.format(
        n=n,
        table=markdown(HEAD, ends_rows),
        seeds=markdown(SEEDS_HEAD, over_seeds(ends_rows)),
        candidates=CANDIDATES,
        after=AFTER,
    )
    sweep = TrainConfig.from_yaml("emoji_words").sweep_size
    return LEARNED.format(sweep=sweep, curve=markdown(CURVE_HEAD, curve), ends=below)


def run_of(cell: str) -> tuple[str, int, str]:
    """Objective, seed and what was drawn, of a row's first cell: "paper, seed 1, strength 1"."""
    objective, _, rest = cell.partition(", seed ")
    seed, _, what = rest.partition(", ")
    return objective, int(seed), what


def over_seeds(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """What runs of one objective end with, below SEEDS_HEAD, from rows below HEAD."""
    ways: dict[str, list[list[float]]] = {}
    for way, _, *values in rows:
        objective, _, what = run_of(way)
        ways.setdefault(f"{objective}, {what}", []).append([float(value.split(" ")[0]) for value in values])
    return [[way, f"{len(found)}", *map(spread, zip(*found, strict=True))] for way, found in sorted(ways.items())]


def bench_of(turns: int) -> tuple[Bench, str]:
    """The bench on this machine, and its precision in words."""
    pipe = DiffusionNFTPipeline.from_pretrained("emoji")
    dtype, precision = choose_precision("auto", pipe.transformer.device)
    return Bench(turns, dict(pipe.call_defaults), dtype), precision.partition(":")[0]


def plot(rows: Sequence[Sequence[str]], path: Path) -> None:
    """The curves of the runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 4.0))
    axes = figure.subplots()
    for row in rows:
        objective, seed, _ = run_of(row[0])
        look = {"color": COLOURS[objective], "linestyle": LINES[seed % len(LINES)]}
        axes.plot(*points_of(row), marker="o", markersize=4, label=row[0], **look)
    axes.set(xlabel="pictures sampled and read", ylabel="reward `ocr`, held-out words", ylim=(0.7, 1))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper left", ncols=3, fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def strip(pipe: Any, words: list[str]) -> Image.Image:
    """One row per word, one column per strength, the same noise along a row."""
    pipe.set_progress_bar_config(disable=True)
    columns = []
    for strength in STRENGTHS:
        noise = [torch.Generator().manual_seed(500 + i) for i in range(len(words))]
        columns.append(pipe([sign_prompt(word) for word in words], nft_strength=strength, generator=noise).images)
    rows = [[column[i] for column in columns] for i in range(len(words))]
    return labelled_grid(rows, words, [f"strength {strength:g}" for strength in STRENGTHS], scale=2)


def tables(turns: int) -> tuple[str, Image.Image]:
    """The page about the shipped adapter, without how it learned, and its picture."""
    bench, precision = bench_of(turns)
    adapter = shipped_adapter(ADAPTER)
    assert adapter is not None
    pipe = DiffusionNFTPipeline.from_pretrained("emoji", nft_adapter=ADAPTER)
    rows = [bench.row(f"strength {s:g}", 1, pipe, nft_strength=s) for s in STRENGTHS]
    alone = {"nft_law": "nft", "nft_mode": "two_pass"}
    rows += [bench.row(f"strength {s:g}, nft law alone", 2, pipe, nft_strength=s, **alone) for s in FURTHER]
    mode = pipe.promise(strength=1).mode
    promised = ", ".join(f"{pipe.promise(strength=s).rate:.2f} at {s:g}" for s in STRENGTHS)
    picture, said = strip(pipe, bench.words[:SHOWN]), pipe.nft_config.training["settings"]
    stock = pipe.unwrap()
    with with_lora(stock, adapter) as name:
        for weight in WEIGHTS:
            stock.set_adapters(name, weight)
            rows.append(bench.row(f"LoRA weight {weight:g}", 1, stock))
    rows += [bench.row(f"CFG {scale:g}, base", 2, stock, guidance_scale=scale) for scale in SCALES]
    rows += [bench.best_of(k, stock) for k in BEST_OF]
    how = (
        f"online, objective {said['objective']} with baseline {said['baseline']}, optimality {said['optimality']}, "
        f"{said['rounds']} rounds of {said['round_prompts']} words with {said['group_size']} pictures each, "
        f"anchor eta0 {said['eta0']:g}, seed {said['seed']}"
    )
    text = PAGE.format(
        date=date.today().isoformat(),
        machine=platform.machine(),
        precision=precision,
        torch=torch.__version__,
        words=len(bench.words),
        turns=turns,
        n=bench.work.n,
        group=GROUP,
        groups=GROUPS,
        how=how,
        way=f"`{mode}`",
        promised=promised,
        table=markdown(HEAD, rows),
    )
    return text, picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--train", choices=OBJECTIVES, help="train one of these, and measure nothing")
    what.add_argument("--curve", type=Path, nargs="+", metavar="RUN", help="finished runs: how they learned")
    parser.add_argument("--seed", type=int, default=0, help="with --train: the seed (default: 0)")
    parser.add_argument("--work", type=Path, default=Path("runs/words"), help="with --train: where the run goes")
    parser.add_argument("--turns", type=int, default=4, help="pictures of each word (default: 4)")
    parser.add_argument("--write", action="store_true", help="write the page and its pictures")
    args = parser.parse_args()
    if args.train:
        train(settings_of(args.train, args.seed), args.work / f"{args.train}-{args.seed}")
        return
    path = DOCS / "measured/words.md"
    before, title, after = path.read_text(encoding="utf-8").partition(LEARNED_TITLE)
    if args.curve:
        bench, _ = bench_of(args.turns)
        section = learned(title + after, [curve_row(run) for run in args.curve], ends(bench, args.curve), bench.work.n)
        print(section)
        text = before + section
    else:
        tables_text, picture = tables(args.turns)
        print(tables_text)
        text = tables_text + title + after
    if args.write:
        path.write_text(text, encoding="utf-8")
        if args.curve:
            plot(list(rows_on(section, CURVE_HEAD).values()), DOCS / "pictures/words_curve.png")
        else:
            picture.save(DOCS / "pictures/words_strengths.png", optimize=True)


if __name__ == "__main__":
    main()
