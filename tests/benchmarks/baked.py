"""The baked dial against the guidance it was baked from: rates and quality at each tilt, on the shapes model.

    python -m tests.benchmarks.baked --work runs/baked

Guidance is the odds law in two passes with shapes-warm. The baked LoRA is loaded by stock diffusers, at plain weight,
in one pass. Prompts are held out, and every row has the same noise. What was measured is kept in --work. Writes
docs/measured/baked.md.
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import date
from pathlib import Path

import torch

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import read_adapter
from nft_pipeline.training.demo.measure import Point, Workload, measure_base, measure_laws, measure_lora_weight
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.devices.precision import choose_precision
from nft_pipeline.training.rewards.find import find_prompts, find_reward
from nft_pipeline.training.run.bake import bake

TILTS = (-2.0, -1.0, 0.5, 1.0, 2.0, 4.0)
NOISE_SEED = 90_001
PAGE = Path(__file__).parents[2] / "docs" / "measured" / "baked.md"


def measured(n: int, seed: int, work: Path) -> dict:
    """Base, guidance and baked LoRA; from `work` where it was measured before."""
    source, folder = read_adapter("shapes-warm"), work / f"seed{seed}"
    guided = DiffusionNFTPipeline.from_pretrained("shapes")
    dtype, _ = choose_precision("auto", torch.device("cpu"))
    load = Workload(find_prompts("shapes_warm_held_out"), n, NOISE_SEED, 200, dict(guided.call_defaults), dtype)
    reward, teacher, done = find_reward("shapes_warm"), work / f"teacher_{n}.json", folder / f"measured_{n}.json"
    if not teacher.is_file():
        base = measure_base(guided.unwrap(), load, reward)
        guided.load_nft_adapter(source)
        points = [base, *measure_laws(guided, load, reward, base, TILTS, ["odds"])]
        teacher.parent.mkdir(parents=True, exist_ok=True)
        teacher.write_text(json.dumps([point.to_dict() for point in points]))
    base, *laws = [Point(**point) for point in json.loads(teacher.read_text())]
    if not done.is_file():
        baked = bake(source, folder / "adapter", seed=seed)
        stock = DiffusionNFTPipeline.from_pretrained("shapes").unwrap()
        weights = [tilt / baked.config.tilt for tilt in TILTS]
        rivals = measure_lora_weight(stock, folder / "adapter", load, reward, base, weights)[1:]
        done.write_text(json.dumps([point.to_dict() for point in rivals]))
    return {"base": base, "laws": laws, "baked": [Point(**point) for point in json.loads(done.read_text())]}


def report(found: dict, n: int, seed: int, tilt: float) -> str:
    """docs/measured/baked.md."""
    base = found["base"]
    rows = [
        [
            f"{law.setting:+g}",
            f"{baked.setting:+g}",
            f"{law.promise:.3f}",
            f"{law.rate:.3f}",
            f"{baked.rate:.3f}",
            f"{baked.rate - law.rate:+.3f}",
            f"{law.quality:.3f}",
            f"{baked.quality:.3f}",
        ]
        for law, baked in zip(found["laws"], found["baked"], strict=True)
    ]
    titles = [
        "tilt",
        "LoRA weight",
        "promised",
        "two passes",
        "baked",
        "apart",
        "quality, two passes",
        "quality, baked",
    ]
    return f"""# The baked dial

Made by `tests/benchmarks/baked.py` on {date.today().isoformat()} ({platform.machine()} CPU, torch {torch.__version__}),
training seed {seed}. `diffusion-nft export shapes-warm --baked` trained the dial of shapes-warm into one LoRA, whose
weight 1 stands for a tilt of {tilt:g}.

"Two passes" is guidance by the odds law with shapes-warm, which costs two forwards per step. "Baked" is the baked LoRA
in stock diffusers at that plain weight, which costs one. Entries are P(o=1), the share of pictures that the reward
likes, on held-out prompts, and the quality of the pictures (template overlap). n = {n} pictures of the same noise in
every row; the standard error of a rate is at most {0.5 / n**0.5:.3f}. The base model: {base.rate:.3f}, quality
{base.quality:.3f}. The promise is that the odds are multiplied by e^tilt.

{markdown(titles, rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/baked"), help="folder for adapters and measurements")
    parser.add_argument("--seed", type=int, default=0, help="training seed (default: 0)")
    parser.add_argument("--n", type=int, default=600, help="pictures a measurement (default: 600)")
    args = parser.parse_args()
    found = measured(args.n, args.seed, args.work)
    tilt = read_adapter(args.work / f"seed{args.seed}" / "adapter").config.tilt
    text = report(found, args.n, args.seed, tilt)
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
