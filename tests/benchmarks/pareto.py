"""What the forwards of a picture buy: rate, quality and variety of every way to draw, by forwards per kept picture.

    python tests/benchmarks/pareto.py --work runs/pareto                 # n = 1020 pictures per point
    python tests/benchmarks/pareto.py --work runs/pareto --pictures 240  # a look

Held-out prompts of shapes-warm and the same seeds for every way. What is measured is kept in --work, so a stopped run
goes on where it was. Writes docs/measured/pareto.md and docs/pictures/pareto.png, or, with --no-docs, both into --work.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.call.particles import draw_particles
from nft_pipeline.files.atomic import atomic_write_bytes
from nft_pipeline.training.demo.measure import measure_pictures, with_lora
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.devices.precision import autocast, choose_precision
from nft_pipeline.training.rewards.find import find_prompts, find_reward
from nft_pipeline.training.show.picture_stats import diversity, shrunk

ADAPTER = Path(__file__).parents[2] / "nft_pipeline" / "models" / "shapes-warm"
DOCS = Path(__file__).parents[2] / "docs"
SEED, BATCH = 95_000, 240
TILTS = (0.5, 1.0, 2.0, 4.0)
WEIGHTS = (0.25, 0.5, 0.75, 1.0)
BAKED = (0.125, 0.25, 0.5, 1.0)
CFG = (2.0, 3.0)
CANDIDATES, AFTER = (2, 4, 8), (1, 2, 3, 4)
MIXED_TILTS = (0.5, 1.0, 2.0)  # of early choice with one-pass guidance
PARTICLES = 16
STYLES = {
    "plain": ("black", "*"),
    "best of N, finished": ("#8a5bb5", "D"),
    "early choice": ("#3f9b57", "o"),
    "SMC": ("#c29a1c", "P"),
    "two passes": ("#2f6fde", "s"),
    "one pass": ("#d1653c", "v"),
    "one pass + early choice": ("#9c1f4a", "X"),
    "LoRA weight": ("#7a7a80", "^"),
    "CFG": ("#37b1bd", "<"),
    "baked": ("#5d4037", ">"),
}


@dataclass(frozen=True)
class Row:
    """One setting of one way to draw.

    Args:
        way: a key of STYLES.
        setting: what is set, in words.
        n: pictures kept.
        forwards: of the denoiser per kept picture; classifier-free guidance has two per step.
        rate: share of pictures with o = 1.
        quality: mean template overlap.
        variety: mean distance of two pictures of a prompt; with SMC of two that were drawn together.
    """

    way: str
    setting: str
    n: int
    forwards: float
    rate: float
    quality: float
    variety: float

    @property
    def error(self) -> float:
        """Standard error of the rate, as of independent pictures."""
        return float((self.rate * (1 - self.rate) / self.n) ** 0.5)


class Bench:
    """Draws the workload, measures what was drawn, and keeps it in a file.

    Args:
        n: pictures per point.
        path: the file.
    """

    def __init__(self, n: int, path: Path) -> None:
        self.n, self._path = n, path
        self.prompts, self.reward = find_prompts("shapes_warm_held_out"), find_reward("shapes_warm")
        self.texts = [self.prompts[i % len(self.prompts)] for i in range(n)]
        self.rows = {key: Row(**row) for key, row in json.loads(path.read_text()).items()} if path.is_file() else {}
        self.dtype, self.precision = choose_precision("auto", torch.device("cpu"))

    def add(self, way: str, setting: str, draw: Callable[[], tuple[np.ndarray, float]], groups: Any = None) -> None:
        """Draw and measure a point, unless that was done before.

        Args:
            draw: gives pictures and forwards per kept picture.
            groups: which pictures variety is measured among; None are those of one prompt.
        """
        key = f"{way}, {setting}"
        if key in self.rows:
            return
        pictures, forwards = draw()
        self.rows[key] = self.measured(way, setting, pictures, forwards, groups)
        content = {name: asdict(row) for name, row in self.rows.items()}
        atomic_write_bytes(self._path, json.dumps(content, indent=1).encode())
        row = self.rows[key]
        print(f"{key}: {row.forwards:.1f} forwards, rate {row.rate:.3f}, quality {row.quality:.3f}", flush=True)

    def measured(self, way: str, setting: str, pictures: np.ndarray, forwards: float, groups: Any) -> Row:
        """The row of these pictures, whose prompts are those of the workload."""
        texts = self.texts if groups is None else [self.prompts[g % len(self.prompts)] for g in groups]
        rate, quality = measure_pictures(pictures, texts, self.reward)
        groups = np.arange(len(pictures)) % len(self.prompts) if groups is None else np.array(groups)
        variety = float(np.nanmean(diversity(shrunk(pictures), groups)))
        return Row(way, setting, len(pictures), forwards, rate, quality, variety)

    def pictures(self, pipe: Any, first: int = SEED, **call: Any) -> tuple[np.ndarray, float]:
        """Pictures of the workload, uint8 (n, H, W, 3), and forwards per picture; picture i has the seed first + i."""
        parts = []
        with forwards_counted(pipe) as counted:
            for start in range(0, self.n, BATCH):
                rows = range(start, min(start + BATCH, self.n))
                noises = [torch.Generator().manual_seed(first + i) for i in rows]
                with autocast(torch.device("cpu"), self.dtype):
                    result = pipe(prompt=[self.texts[i] for i in rows], generator=noises, output_type="np", **call)
                parts.append((result.images * 255).round().astype(np.uint8))
        return np.concatenate(parts), counted[0] / self.n

    def particles(self, pipe: Any, tilt: float) -> tuple[np.ndarray, float]:
        """As `pictures`, in groups of particles of one prompt each; all prompts in turn."""
        parts, groups = [], self.n // PARTICLES
        with forwards_counted(pipe) as counted:
            for start in range(0, groups, BATCH // PARTICLES):
                rows = range(start, min(start + BATCH // PARTICLES, groups))
                with autocast(torch.device("cpu"), self.dtype):
                    result = draw_particles(
                        pipe,
                        [self.prompts[g % len(self.prompts)] for g in rows],
                        particles=PARTICLES,
                        strength=tilt / pipe.nft_config.tilt,
                        generator=torch.Generator().manual_seed(SEED + start),
                        output_type="np",
                    )
                parts.append((result.output.images * 255).round().astype(np.uint8))
        return np.concatenate(parts), counted[0] / (groups * PARTICLES)


@contextmanager
def forwards_counted(pipe: Any) -> Iterator[list[int]]:
    """Counts the rows that go through the denoiser, so that a batch of two predictions counts as two."""
    count = [0]

    def tick(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        count[0] += len(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    hook = pipe.transformer.transformer_blocks[0].register_forward_pre_hook(tick, with_kwargs=True)
    try:
        yield count
    finally:
        hook.remove()


def best_finished(bench: Bench, pipe: Any) -> None:
    """The reward as judge of finished pictures: a liked one of k, the first of them, or the first."""
    if all(f"best of N, finished, N {k}" in bench.rows for k in CANDIDATES):
        return
    drawn = [bench.pictures(pipe, SEED + c * bench.n, nft_strength=0) for c in range(max(CANDIDATES))]
    liked = np.stack([bench.reward(pictures, bench.texts) > 0.5 for pictures, _ in drawn])
    for k in CANDIDATES:
        first = liked[:k].argmax(0)
        kept = np.stack([drawn[c][0][i] for i, c in enumerate(first)])
        forwards = sum(spent for _, spent in drawn[:k])
        bench.add("best of N, finished", f"N {k}", lambda kept=kept, forwards=forwards: (kept, forwards))


def measure(bench: Bench, baked: Path | None) -> None:
    """All points that are not there yet."""
    guided = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter="shapes-warm")
    guided.set_progress_bar_config(disable=True)
    own = guided.nft_config.tilt

    def add(way: str, setting: str, **call: Any) -> None:
        bench.add(way, setting, lambda: bench.pictures(guided, **call))

    add("plain", "strength 0", nft_strength=0)
    for k in CANDIDATES:
        for j in AFTER:
            add("early choice", f"best of {k} after step {j}", nft_strength=0, nft_candidates=k, nft_choose_after=j)
    odds = {"nft_law": "odds"}
    for tilt in TILTS:
        add("two passes", f"tilt {tilt:g}", nft_strength=tilt / own, **odds)
        add("one pass", f"tilt {tilt:g}", nft_strength=tilt / own, nft_mode="single", **odds)
        groups = [i // PARTICLES for i in range(bench.n // PARTICLES * PARTICLES)]
        bench.add("SMC", f"tilt {tilt:g}", lambda tilt=tilt: bench.particles(guided, tilt), groups)
    for tilt in MIXED_TILTS:
        for k, j in ((2, 2), (4, 2), (2, 3), (4, 3)):
            call = {"nft_strength": tilt / own, "nft_mode": "single", "nft_candidates": k, "nft_choose_after": j}
            add("one pass + early choice", f"tilt {tilt:g}, best of {k} after step {j}", **call, **odds)
    for scale in CFG:
        add("CFG", f"scale {scale:g}", nft_strength=0, guidance_scale=scale)
    best_finished(bench, guided)
    stock, defaults = guided.unwrap(), dict(guided.call_defaults)
    rivals = [("LoRA weight", ADAPTER, WEIGHTS), *([("baked", baked, BAKED)] if baked else [])]
    for way, folder, weights in rivals:
        with with_lora(stock, folder) as name:
            for weight in weights:
                stock.set_adapters(name, weight)
                bench.add(way, f"weight {weight:g}", lambda: bench.pictures(stock, **defaults))


def plot(rows: list[Row], path: Path) -> None:
    """Rate over forwards; quality and variety over rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(15, 4.6))
    for way, (colour, mark) in STYLES.items():
        some = [row for row in rows if row.way == way]
        if not some:
            continue
        style: dict[str, Any] = {"color": colour, "marker": mark, "s": 34, "label": way}
        panels[0].scatter([row.forwards for row in some], [row.rate for row in some], **style)
        panels[1].scatter([row.rate for row in some], [row.quality for row in some], **style)
        panels[2].scatter([row.rate for row in some], [row.variety for row in some], **style)
    steps = min(row.forwards for row in rows)
    ticks = [steps * factor for factor in (1, 2, 4, 8)]
    panels[0].set(xlabel="forwards per kept picture", ylabel="P(o = 1)", xscale="log")
    panels[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panels[0].set_xticks([], minor=True)
    panels[1].set(xlabel="P(o = 1)", ylabel="picture quality (template overlap)")
    panels[2].set(xlabel="P(o = 1)", ylabel="variety within a prompt")
    for axes in panels:
        axes.grid(alpha=0.25)
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def front(rows: list[Row]) -> list[Row]:
    """The points that no other one beats: none has a higher rate for as many forwards or fewer."""
    ordered = sorted(rows, key=lambda row: (row.forwards, -row.rate))
    return [row for i, row in enumerate(ordered) if all(row.rate > other.rate for other in ordered[:i])]


def table(rows: list[Row]) -> str:
    """A Markdown table of points."""
    head = ["way", "setting", "forwards per picture", "P(o=1)", "quality", "variety"]
    cells = [
        [
            row.way,
            row.setting,
            f"{row.forwards:.1f}",
            f"{row.rate:.3f} ± {row.error:.3f}",
            f"{row.quality:.3f}",
            f"{row.variety:.4f}",
        ]
        for row in rows
    ]
    return markdown(head, cells)


def report(rows: list[Row], n: int, precision: str) -> str:
    """The page."""
    device = f"{platform.machine()} CPU, {precision.partition(':')[0]}, torch {torch.__version__}"
    return f"""# What the forwards of a picture buy

Made by `tests/benchmarks/pareto.py` on {date.today().isoformat()} ({device}). The model is shapes with shapes-warm,
with {n} pictures of held-out prompts per row, the same seeds in every row, and 14 steps. o = 1 means that everything
drawn is red or orange. Quality is the overlap with drawn templates. Variety is the mean distance of two pictures of one
prompt, with SMC of two that were drawn together. A forward is one picture through the denoiser once, so classifier-free
guidance has two per step. [search.md](../search.md) says what early choice and SMC are.

![Rate, quality and variety by forwards per kept picture](../pictures/pareto.png)

The points that no other one beats, which means that none has a higher rate for as many forwards or fewer:

{table(front(rows))}

All points:

{table(sorted(rows, key=lambda row: list(STYLES).index(row.way)))}

"best of N, finished" draws N pictures and lets the reward itself judge them; all others never see the reward. The error
of a rate is that of independent pictures. With SMC the {PARTICLES} pictures of a group are not independent, and its
error is larger.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/pareto"), help="folder of what was measured")
    parser.add_argument("--pictures", type=int, default=1020, help="pictures per point (default: 1020)")
    parser.add_argument("--baked", type=Path, help="a folder with a baked LoRA, pytorch_lora_weights.safetensors")
    parser.add_argument("--no-docs", action="store_true", help="write the page and its picture into --work")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.pictures, args.work / f"pareto_{args.pictures}.json")
    measure(bench, args.baked)
    rows = list(bench.rows.values())
    pictures, measured = (args.work, args.work) if args.no_docs else (DOCS / "pictures", DOCS / "measured")
    plot(rows, pictures / "pareto.png")
    text = report(rows, args.pictures, bench.precision)
    (measured / "pareto.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
