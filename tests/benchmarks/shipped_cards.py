"""What the cards of the shipped adapters are drawn from: sample pictures and run_report.json, measured anew.

    python -m tests.benchmarks.shipped_cards emoji-3d emoji-words --write

The packaged adapters leave out what their runs wrote beside them. This draws held-out prompts with each adapter as it
is shipped, at a few strengths from the same noise. It scores them with the reward that the adapter was trained on (or
with the taste behind its ratings) and with one that it was not, and writes run_report.json and samples/ into its
folder, so that `diffusion-nft push` has a whole card.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.files.atomic import atomic_write_bytes
from nft_pipeline.hub_cards.draw import sample_files
from nft_pipeline.hub_cards.report import REPORT_FILE, RunReport, Sample, Trained
from nft_pipeline.models import shipped_adapter
from nft_pipeline.sampling import draw
from nft_pipeline.training.demo.measure import Workload
from nft_pipeline.training.devices.precision import choose_precision
from nft_pipeline.training.rewards.find import Scorer, find_prompts, find_reward
from nft_pipeline.training.show.run_report import curve
from nft_pipeline.training.show.sweep import GROUP, Sweep, measure_sweep
from nft_pipeline.training.show.watch import choose_strength, hacking_verdict

from .emoji_likes import taste

SEED = 73_001


@dataclass(frozen=True)
class Shown:
    """What a card shows.

    Args:
        pictured: the prompts of the strip, all from one seed.
        watch: a reward that was not trained on, "" for none.
        seed: of the strip; not 0 where the base model's pictures of seed 0 are liked already.
        taste: what ratings were given by, in words and as scores; None for an adapter that was trained on a reward.
        strengths: 0 among them, none beyond what the adapter's calibration reaches; negative ones are only drawn.
    """

    pictured: tuple[str, ...]
    watch: str = ""
    strengths: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)
    seed: int = 0
    taste: tuple[str, Scorer] | None = None


CARDS: dict[str, Shown] = {
    "emoji-3d": Shown(
        ("grinning face", "dog face on white", "red heart", "automobile on yellow"),
        "emoji_right",
        (-1.0, 0.0, 0.5, 1.0, 2.0),
    ),
    "emoji-words": Shown(
        tuple(f'a sign that says "{word}"' for word in ("HAIL", "ART", "HOME", "CITY")), "", (0.0, 0.5, 1.0)
    ),
    "emoji-likes": Shown(
        ("grinning face", "cat face", "red heart", "bus"),
        "emoji_right",
        (0.0, 0.5, 1.0),
        seed=3,
        taste=("a black or blue background", lambda pictures, prompts: taste(pictures).astype(float)),
    ),
    "shapes-warm": Shown(("a square on white", "a large cross on white", "a large ring"), "shapes_eval"),
    "shapes-follow": Shown(
        ("a red circle left of a blue cross", "two small rings", "a square above a triangle"),
        strengths=(0.0, 0.5, 1.0, 1.35),
    ),
}


def measured(pipe: Any, name: str, n: int) -> Sweep:
    """Held-out prompts of the adapter's run at all strengths."""
    config = pipe.nft_config
    settings, watch = config.training["settings"], CARDS[name].watch
    reward, scorer = CARDS[name].taste or (config.reward["name"], find_reward(config.reward["name"]))
    every = find_prompts(settings["held_out_prompts"])
    places = np.linspace(0, len(every) - 1, min(len(every), n // GROUP)).round().astype(int)
    prompts = [every[place] for place in places]
    dtype, _ = choose_precision("auto", pipe.transformer.device)
    work = Workload(prompts, n, SEED, 102, dict(pipe.call_defaults), dtype)

    def drawn(rows: Sequence[tuple[int, int]], strength: float, label: str) -> np.ndarray:
        return work.pictures(pipe, f"{label}, strength {strength:g}", nft_strength=strength)

    rows = [(place % len(prompts), place) for place in range(n)]
    watched = (watch, find_reward(watch)) if watch else None
    said = f"{n} pictures of {len(prompts)} held-out prompts"
    strengths = [strength for strength in CARDS[name].strengths if strength >= 0]
    return measure_sweep(drawn, prompts, rows, strengths, {reward: scorer}, {reward: 1.0}, watched, said)


def pictured(pipe: Any, name: str) -> tuple[tuple[Sample, ...], dict[str, bytes]]:
    """The pictures of the strip, as the report lists them and by their files."""
    shown = CARDS[name]
    rows, strengths = [(prompt, shown.seed) for prompt in shown.pictured], shown.strengths
    with torch.inference_mode():
        columns, _ = draw(pipe, rows, strengths)
    files, samples = sample_files(rows, strengths, columns)
    return tuple(samples), files


def report_of(pipe: Any, name: str, n: int) -> RunReport:
    """The report of a shipped adapter, without pictures."""
    sweep, watch = measured(pipe, name, n), CARDS[name].watch
    training = pipe.nft_config.training
    settings, pool = training["settings"], training["pool"]
    trained = Trained(
        data=f"{pool['size']} rated pictures of a folder" if settings["data"] else None,
        rounds=settings["rounds"] or 1,
        anchor=f"eta0 {settings['eta0']:g}" if settings["eta0"] else "none",
    )
    curves = [curve(sweep, one, one in sweep.trained) for one in (*sweep.trained, *([watch] if watch else []))]
    return RunReport(tuple(curves), (), (), hacking_verdict(sweep), choose_strength(sweep).span, trained)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "adapters", nargs="*", default=list(CARDS), metavar="NAME", help="shipped adapters (default: all)"
    )
    parser.add_argument("--n", type=int, default=120, help="pictures per strength (default: 120)")
    parser.add_argument("--pictures", action="store_true", help="draw the pictures, and leave the numbers as they are")
    parser.add_argument("--write", action="store_true", help="write into the adapters' folders")
    args = parser.parse_args()
    for name in args.adapters:
        folder = shipped_adapter(name)
        assert folder is not None, name
        model = next(model for model in ("shapes", "emoji") if name.startswith(model))
        pipe = DiffusionNFTPipeline.from_pretrained(model, nft_adapter=name)
        pipe.set_progress_bar_config(disable=True)
        path = folder / REPORT_FILE
        report = RunReport.from_json(path.read_bytes()) if path.is_file() else RunReport()
        if not args.pictures:
            report = report_of(pipe, name, args.n)
        samples, files = pictured(pipe, name)
        report = replace(report, samples=samples)
        print(name, report.to_json())
        if args.write:
            shutil.rmtree(folder / "samples", ignore_errors=True)
            (folder / "samples").mkdir()
            for file, data in {**files, REPORT_FILE: report.to_json().encode()}.items():
                atomic_write_bytes(folder / file, data)


if __name__ == "__main__":
    main()
