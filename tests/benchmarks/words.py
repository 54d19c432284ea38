"""Words that can be read: how they are learned, and what steering costs and keeps, on words never shown in training.

    diffusion-nft train emoji_words --out runs/emoji-words
    diffusion-nft train emoji_words --out runs/paper --set objective=paper
    python tests/benchmarks/words.py --run runs/emoji-words --others runs/paper --write

A picture is right if rapidocr reads exactly the word that its prompt has in quotes. The curve is read from the
records of the runs. The tables are drawn anew: held-out words, the same prompts and noise in every row, guidance
beside LoRA weight strength, classifier-free guidance, and the best of several pictures. --write makes
docs/measured/words.md and its pictures.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.grid import labelled_grid
from nft_pipeline.training.demo.measure import Workload, with_lora
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.devices.precision import choose_precision
from nft_pipeline.training.emoji.contents import Contents, emoji_folder
from nft_pipeline.training.emoji.world import sign_prompt
from nft_pipeline.training.rewards.kinds.ocr import OCR
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
PAGE = """# Words on signs

Made by `python tests/benchmarks/words.py --run RUN --turns {turns} --write` on {date} ({machine} CPU,
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

## While it learned

Each line is a training run, held-out words at strength 1 after so many pictures, by the runs' own sweeps of {sweep}
pictures. The reward of a sweep is 1 less the share of letters that are wrong, which is above the share read exactly.

{curve}

![The curve of learning](../pictures/words_curve.png)

For comparison only: at full size, on Stable Diffusion 3.5 medium, the authors of DiffusionNFT report that OCR
accuracy rose from .59 to .91 (arXiv:2509.16117). It is another model, other words and another reader.
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
        scores = self.scores(self.work.pictures(pipe, name, **steering))
        pictures = shrunk(self.groups.pictures(pipe, **steering))
        variety = float(diversity(pictures, np.arange(len(pictures)) % GROUPS).mean())
        return [name, f"{forwards:g}", *_share(scores), f"{variety:.3f}"]

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


def curves(runs: Sequence[Path]) -> tuple[list[list[str]], dict[str, tuple[list[int], list[float]]]]:
    """A row and a curve for each run: the reward of held-out words at strength 1, by pictures seen."""
    rows, lines = [], {}
    for run in runs:
        config = TrainConfig.from_yaml(run / "settings.yaml")
        a_round = config.round_prompts * config.group_size
        sweeps = [json.loads(line) for line in (run / "sweeps.jsonl").read_text(encoding="utf-8").splitlines()]
        start = next(line["ocr"] for line in sweeps if line["strength"] == 0)
        at_1 = [line for line in sweeps if line["strength"] == 1]
        seen = [0, *(line["step"] // config.round_steps * a_round for line in at_1)]
        reward = [start, *(line["ocr"] for line in at_1)]
        name = f"{config.objective}, seed {config.seed}"
        lines[name] = (seen, reward)
        some = ", ".join(f"{n:,}: {value:.3f}" for n, value in zip(seen, reward, strict=True))
        rows.append([name, f"{config.optimality}", f"{config.eta0:g}" if config.eta0 else "none", some])
    return rows, lines


def plot(lines: dict[str, tuple[list[int], list[float]]], path: Path) -> None:
    """The curves of the runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 4.0))
    axes = figure.subplots()
    for name, (seen, reward) in lines.items():
        axes.plot(seen, reward, marker="o", markersize=4, label=name)
    axes.set(xlabel="pictures sampled and read", ylabel="reward `ocr`, held-out words", ylim=(0, 1))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run of the preset emoji_words")
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="folders of runs with other settings")
    parser.add_argument("--turns", type=int, default=4, help="pictures of each word (default: 4)")
    parser.add_argument("--write", action="store_true", help="write the page and its pictures")
    args = parser.parse_args()
    config = TrainConfig.from_yaml(args.run / "settings.yaml")
    adapter = args.run / "adapter"
    pipe = DiffusionNFTPipeline.from_pretrained("emoji", nft_adapter=str(adapter))
    dtype, precision = choose_precision("auto", pipe.transformer.device)
    bench = Bench(args.turns, dict(pipe.call_defaults), dtype)
    rows = [bench.row(f"strength {s:g}", 1, pipe, nft_strength=s) for s in STRENGTHS]
    alone = {"nft_law": "nft", "nft_mode": "two_pass"}
    rows += [bench.row(f"strength {s:g}, nft law alone", 2, pipe, nft_strength=s, **alone) for s in FURTHER]
    mode = pipe.promise(strength=1).mode
    promised = ", ".join(f"{pipe.promise(strength=s).rate:.2f} at {s:g}" for s in STRENGTHS)
    picture = strip(pipe, bench.words[:SHOWN])
    stock = pipe.unwrap()
    with with_lora(stock, adapter) as name:
        for weight in WEIGHTS:
            stock.set_adapters(name, weight)
            rows.append(bench.row(f"LoRA weight {weight:g}", 1, stock))
    rows += [bench.row(f"CFG {scale:g}, base", 2, stock, guidance_scale=scale) for scale in SCALES]
    rows += [bench.best_of(k, stock) for k in BEST_OF]
    curve_rows, lines = curves([args.run, *args.others])
    how = (
        f"online, objective {config.objective} with baseline {config.baseline}, optimality {config.optimality}, "
        f"{config.rounds} rounds of {config.round_prompts} words with {config.group_size} pictures each, "
        f"anchor eta0 {config.eta0:g}, seed {config.seed}"
    )
    text = PAGE.format(
        date=date.today().isoformat(),
        machine=platform.machine(),
        precision=precision.partition(":")[0],
        torch=torch.__version__,
        words=len(bench.words),
        turns=args.turns,
        n=bench.work.n,
        group=GROUP,
        groups=GROUPS,
        how=how,
        way=f"`{mode}`",
        promised=promised,
        table=markdown(["way", "forwards per step", "read exactly", "reward `ocr`", "variety"], rows),
        sweep=config.sweep_size,
        curve=markdown(["objective", "optimality", "eta0", "pictures seen: reward"], curve_rows),
    )
    print(text)
    if args.write:
        (DOCS / "measured/words.md").write_text(text, encoding="utf-8")
        plot(lines, DOCS / "pictures/words_curve.png")
        picture.save(DOCS / "pictures/words_strengths.png", optimize=True)


if __name__ == "__main__":
    main()
