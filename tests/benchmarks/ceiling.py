"""How much of what can be known does the demo's alpha head know? Against a far larger head trained far longer.

    python tests/benchmarks/ceiling.py --run runs/tilt/seed0    # after tests/benchmarks/tilt.py

Nobody knows the best possible AUC at a noise level. This trains a head several times as large for four times as
many steps on the same pool, with noise levels drawn where it is hard, and takes the best of its checkpoints by
held-out AUC at t = 0.95 as the ceiling: a choice that favours the ceiling. Prints a table; --write puts it into
docs/measured.
"""

from __future__ import annotations

import argparse
import copy
from datetime import date
from pathlib import Path

import torch
from safetensors import safe_open
from tqdm import tqdm

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import read_adapter
from nft_pipeline.adapters.alpha_head import AlphaHead
from nft_pipeline.training.bases.registry import train_base
from nft_pipeline.training.data.pool import Pool, load_pool
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.devices.precision import choose_precision
from nft_pipeline.training.learn.calibration import calibrate
from nft_pipeline.training.learn.learner import Learner
from nft_pipeline.training.learn.objective import alpha_loss
from nft_pipeline.training.settings.config import TrainConfig

LEVELS = (0.2, 0.5, 0.8, 0.9, 0.95)
DOCS = Path(__file__).parents[2] / "docs"


def pool_of(path: Path) -> Pool:
    with safe_open(path, "pt") as file:
        key = file.metadata()["pool_key"]
    pool = load_pool(path, key)
    if pool is None:
        raise SystemExit(f"{path} is no pool; run tests/benchmarks/tilt.py first")
    return pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished shapes_warm run, with its pools")
    parser.add_argument("--factor", type=int, default=4, help="how many times longer to train (default: 4)")
    parser.add_argument("--write", action="store_true", help="write docs/measured/alpha_ceiling.md")
    args = parser.parse_args()
    pool, held_out = pool_of(args.run / "pool.safetensors"), pool_of(args.run / "held_out.safetensors")
    adapter = read_adapter(args.run / "adapter")
    pipe = DiffusionNFTPipeline.from_pretrained("shapes").unwrap()
    dtype, _ = choose_precision("auto", torch.device("cpu"))
    base = train_base(pipe, dtype=dtype)
    small = TrainConfig.from_yaml("shapes_warm")
    config = TrainConfig.from_yaml(
        "shapes_warm",
        {
            "head_width": 256,
            "head_queries": 16,
            "head_layers": 3,
            "steps": small.steps * args.factor,
            "head_lr": 7e-4,
            "head_noise_shift": 6.0,
        },
    )
    learner = Learner(base, pool.conditions, config)
    large = learner.head
    assert large is not None
    best, highest, at = {}, 0.0, 0
    for step in tqdm(range(config.steps), desc="larger head"):
        batch = learner.draw(pool, config.head_batch, learner.head_law)
        learner.roles.use("base")
        _, tokens = learner.output_and_tokens(batch)
        loss = alpha_loss(learner.logit(batch, tokens), batch.states.r).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(large.parameters(), 1.0)
        learner.optimizer.step()
        learner.optimizer.zero_grad(set_to_none=True)
        learner.schedule.step()
        if (step + 1) % (config.steps // 8) == 0:
            (hard,) = calibrate(learner.alpha, held_out, noise_levels=LEVELS[-1:], draws=6)
            if hard.auc > highest:
                best, highest, at = copy.deepcopy(large.state_dict()), hard.auc, step + 1
    large.load_state_dict(best)
    reached = calibrate(learner.alpha, held_out, noise_levels=LEVELS, draws=6)
    assert isinstance(adapter.head, AlphaHead)
    learner.head = adapter.head.eval()
    shipped = calibrate(learner.alpha, held_out, noise_levels=LEVELS, draws=6)
    size = [sum(p.numel() for p in head.parameters()) for head in (adapter.head, large)]
    rows_out = [
        [f"{a.noise_level:g}", f"{a.auc:.3f}", f"{b.auc:.3f}", f"{a.auc - b.auc:+.3f}"]
        for a, b in zip(shipped, reached, strict=True)
    ]
    table = markdown(["noise level t", "demo's head, AUC", "larger head, AUC", "difference"], rows_out)
    text = f"""# The ceiling of alpha

Made by `tests/benchmarks/ceiling.py` on {date.today().isoformat()}, CPU. The demo's head ({size[0]:,} parameters,
{small.steps} steps) and a larger one ({size[1]:,} parameters, {config.steps} steps, best checkpoint at {at}) on the
same pool of {len(pool)} samples, measured on {len(held_out)} held-out samples with six noises each.

{table}
"""
    print(text)
    if args.write:
        (DOCS / "measured").mkdir(parents=True, exist_ok=True)
        (DOCS / "measured" / "alpha_ceiling.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
