"""What the dial of shapes-follow promises, and what is then drawn: one pass as far as it goes, two passes beyond.

    python -m tests.benchmarks.follow_dial --work runs/follow-dial --write

A calibration on one half of the held-out prompts is measured on the other half, with other noise, because ShapesEval
has too few texts of some categories for a new list. The calibration that ships is one on all of them, by the command

    diffusion-nft calibrate shapes-follow --reward shapes_eval --pictures 6000 --batch 128 --out FOLDER

and is measured with other noise alone. What is drawn already is kept in the work folder.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import write_adapter
from nft_pipeline.dial.promise import tilt_for_rate
from nft_pipeline.models import shipped_adapter
from nft_pipeline.training.demo.measure import Workload, with_lora
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.devices.precision import choose_precision
from nft_pipeline.training.dial.curve import rate_between_prompts
from nft_pipeline.training.dial.measure_adapter import Judging, calibrate_adapter
from nft_pipeline.training.rewards.find import find_reward
from nft_pipeline.training.shapes.prompts import HELD_OUT_SEED
from nft_pipeline.training.shapes.score import shapes_eval_prompts

DOCS = Path(__file__).parents[2] / "docs"
NAME, PICTURES, SHIPPED, SEED = "shapes-follow", 4000, 6000, 61_001
TILTS = (-2.0, -1.0, 0.5, 1.0, 2.0)
RATES = (0.5, 0.7, 0.8)
WEIGHTS = (1.0, 1.25, 2.0)
ALLOWED = 0.03  # off the promise, beyond one standard error
GOES_ON = "This calibration goes on in two passes where one ends."
ENDS = """\
This calibration could not tell surely that two passes get further than one, so its own way ends with one pass."""


def halves() -> tuple[list[str], list[str]]:
    """The texts of the held-out prompts, every category in two halves, each text in one of them; a category's texts are
    taken in turn, the categories too, so that each counts alike."""
    texts: dict[str, dict[str, None]] = {}
    for category, prompt in shapes_eval_prompts(600, seed=HELD_OUT_SEED):
        texts.setdefault(category, {})[prompt.text()] = None
    found = []
    for half in (0, 1):
        of_half = [list(each)[half::2] for each in texts.values()]
        found.append([each[i % len(each)] for i in range(50) for each in of_half])
    return found[0], found[1]


class Bench:
    """Draws the same prompts with the same noise whatever is to be measured, and keeps what was measured.

    Args:
        work: folder of what is kept.
        name: of the part.
        texts: the prompts.
        n: pictures per point.
        call: of the pipeline.
    """

    def __init__(self, work: Path, name: str, texts: Sequence[str], n: int, call: dict[str, Any]) -> None:
        dtype, self.precision = choose_precision("auto", torch.device("cpu"))
        self.file, self.reward = work / f"{name}.json", find_reward("shapes_eval")
        self.work = Workload(texts, n, SEED, 126, call, dtype)
        self.found = json.loads(self.file.read_text()) if self.file.is_file() else {}

    def rate(self, label: str, draw: Callable[[str], np.ndarray]) -> tuple[float, float]:
        """(the share in which all is right, its standard error over prompts)."""
        if label not in self.found:
            texts = self.work.texts()
            r = np.asarray(self.reward(draw(label), texts) > 0.5, dtype=np.float64)
            self.found[label] = rate_between_prompts(r, np.array(texts))[:2]
            self.file.write_text(json.dumps(self.found))
        rate, error = self.found[label]
        return rate, error

    def dial(self, pipe: Any, mode: str | None = None) -> list[list[str]]:
        """A row for each tilt, and for each share that is asked for, as far as a mode reaches; None is the own way."""
        config = pipe.nft_config
        reach = config.dial.reach(mode)
        ends = {entry.highest for entry in reach.maps}
        tilts = sorted({max(TILTS[0], reach.lowest), *(tilt for tilt in TILTS[1:] if tilt < reach.highest), *ends})
        asked: list[tuple[str, float, dict[str, Any]]] = []
        for tilt in tilts:
            asked.append((f"tilt {tilt:+.2f}", tilt / config.tilt, {"nft_strength": tilt / config.tilt}))
        for rate in RATES:
            if reach.gives(rate):
                asked.append(
                    (f"rate {rate:g}", tilt_for_rate(config, rate, mode=mode) / config.tilt, {"nft_rate": rate})
                )
        rows = []
        for label, strength, how in asked:
            promised, named = pipe.promise(strength=strength, mode=mode), label if mode is None else f"{mode} {label}"
            rate, error = self.rate(named, partial(self.work.pictures, pipe, nft_mode=mode, **how))
            off = rate - promised.rate
            kept = "yes" if abs(off) - error <= ALLOWED else "no"
            shares = [f"{promised.rate:.3f} ± {promised.error:.3f}", f"{rate:.3f} ± {error:.3f}", f"{off:+.3f}", kept]
            rows.append([label, f"{strength:.2f}", "1" if promised.mode == "single" else "2", *shares])
        return rows

    def rivals(self, stock: Any, folder: Path) -> list[list[str]]:
        """A row for each LoRA weight."""
        rows = []
        with with_lora(stock, folder) as name:
            for weight in WEIGHTS:
                stock.set_adapters(name, weight)
                rate, error = self.rate(f"lora {weight:g}", partial(self.work.pictures, stock))
                rows.append([f"{weight:g}", "1", f"{rate:.3f} ± {error:.3f}"])
        return rows


def calibrated(work: Path, texts: Sequence[str]) -> Path:
    """The adapter with a calibration on these prompts, in a folder."""
    folder = work / "half"
    if not (folder / "nft_config.json").is_file():
        pipe = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter=NAME)
        reward = {"shapes_eval": find_reward("shapes_eval")}
        adapter, found = calibrate_adapter(pipe, "default", texts, Judging(reward, {}), pictures=PICTURES, batch=128)
        print(found.reason, flush=True)
        write_adapter(folder, adapter)
    return folder


HEAD = ["asked for", "strength", "forwards per step", "promised", "measured", "off", "within 0.03"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for what is made")
    parser.add_argument("--adapter", default=NAME, help="the calibration on all prompts (default: the shipped adapter)")
    parser.add_argument("--n", type=int, default=504, help="pictures per point (default: 504)")
    parser.add_argument("--write", action="store_true", help="write docs/measured/follow_dial.md")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    one, other = halves()
    whole = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter=args.adapter)
    texts = [prompt.text() for _, prompt in shapes_eval_prompts(600, seed=HELD_OUT_SEED)]
    shipped = Bench(args.work, "whole", texts, args.n, dict(whole.call_defaults)).dial(whole)
    half = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter=str(calibrated(args.work, one)))
    bench = Bench(args.work, "other-half", other, args.n, dict(half.call_defaults))
    own, two = bench.dial(half), bench.dial(half, "two_pass")
    further = GOES_ON if half.nft_config.dial.own.goes_on else ENDS
    rivals = bench.rivals(half.unwrap(), shipped_adapter(NAME))
    text = f"""# What the dial of shapes-follow promises, and what is drawn

Made by `python -m tests.benchmarks.follow_dial --work WORK --write` on {date.today().isoformat()}
({platform.machine()} CPU, {bench.precision.partition(":")[0]}, torch {torch.__version__}). The shares are ShapesEval:
that of the pictures in which everything that the prompt says is right. n = {args.n} pictures per row, 14 steps, the
same prompts and noise in every row of a table; standard errors are over prompts. "Within {ALLOWED:g}" is beyond one
standard error. One pass is LoRA weight, at its price. Where it ends, the dial goes on in two.

## Prompts that the calibration never saw

A calibration of {PICTURES:,} pictures on one half of the held-out prompts, measured on the other half, with other
noise:

{markdown(HEAD, own)}

{further}

The same in two passes at every strength, asked for by name:

{markdown(HEAD, two)}

The rival, the same LoRA in one pass at these weights, on the same prompts and noise:

{markdown(["LoRA weight", "forwards per step", "ShapesEval"], rivals)}

## The calibration that ships

It is one of {SHIPPED:,} pictures on all {whole.nft_config.dial.prompts} held-out prompts. Here only the noise is new:

{markdown(HEAD, shipped)}
"""
    print(text)
    if args.write:
        (DOCS / "measured" / "follow_dial.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
