"""What damage and accidents end in: mutated adapters, mutated checkpoints, killed runs.

    PYTHONPATH=tests python tests/benchmarks/reliability.py --work runs/reliability

Ends with exit code 1 if anything was lost, or loaded with other numbers. What is done is noted in --work, so that this
script goes on where it was stopped. Writes docs/measured/reliability.md.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections import Counter
from datetime import date
from pathlib import Path

import torch

from benchmarks import kills
from helpers import mutants
from helpers.damaged_checkpoints import OUTCOMES, outcomes
from nft_pipeline.training.demo.report import markdown

PAGE = Path(__file__).parents[2] / "docs" / "measured" / "reliability.md"


def checkpoints(count: int, seed: int) -> dict[str, Counter[str]]:
    """What damaged checkpoints ended in, by the version that wrote them."""
    results = {}
    for name, hashed in (("today's, with a hash", True), ("the first version's, without", False)):
        with tempfile.TemporaryDirectory() as folder:
            results[name] = outcomes(Path(folder), count, seed, hashed)
    return results


def main() -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=5000, help="mutated adapters (default: %(default)s)")
    parser.add_argument("--checkpoints", type=int, default=1000, help="mutated checkpoints (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=200, help="kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all of them (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/reliability"), help="where what is done is noted")
    args = parser.parse_args()
    work = args.work.absolute()
    adapters = mutants.all_judged(args.mutants, args.seed, work / "mutants.jsonl")[: args.mutants]
    damaged = checkpoints(args.checkpoints, args.seed)
    kills.prepare()
    killed = kills.kill_runs(work / "kills", args.kills, args.seed)
    lost = [result for counts in damaged.values() for result in counts if result == OUTCOMES[-1]]
    rows = [[name, *(str(counts[outcome]) for outcome in OUTCOMES)] for name, counts in damaged.items()]
    options = f"--mutants {args.mutants} --checkpoints {args.checkpoints} --kills {args.kills} --seed {args.seed}"
    text = f"""# What damage and accidents end in

Made by `tests/benchmarks/reliability.py` on {date.today().isoformat()} ({platform.machine()} CPU, one thread, torch
{torch.__version__}):

    PYTHONPATH=tests python tests/benchmarks/reliability.py {options}

## Adapters

{len(adapters):,} copies of a small adapter, each with one thing changed at random: bits flipped, bytes zeroed, files
cut short or made huge, JSON replaced, values planted, tensors and headers forged, pipes, links and folders in the place
of files, cards, pictures and configs of other tools. Each copy was given to three readers, which had 20 seconds each.

{mutants.table(adapters)}

Legal are files that somebody could have written so, with a hash that fits; `verify` has nothing against them. A file of
another tool has no hash, and nothing says what its numbers should be. The last column has to be 0.

## Checkpoints

{args.checkpoints:,} copies each of a checkpoint, with the one before beside it: cut short, zeros or noise over up to
4 kB, a part twice, bits flipped.

{markdown(["checkpoint", *OUTCOMES], rows)}

The same numbers come of accidents outside of what is read, such as one in the hash's own mark. The last column, which
counts other numbers and other exceptions, has to be 0.

## Killed runs

Runs of `diffusion-nft train` on a tiny model of Stable Diffusion 3, killed at random moments and started again until
they were done: half of the kills are SIGKILL, a quarter SIGINT, a quarter SIGINT twice. After a quarter of the kills
the newest checkpoint or a pool was damaged as well. A twentieth of the starts were new processes of the executable; the
others were forked from a process that had imported what it imports, and called its `main`.

{kills.table(killed)}

Equal means: every file of the run but its logs for TensorBoard has the same bytes as that of a run left alone, except
for times and the memory in use. A damaged file that was not named is the pool of a round that was over by the time the
run went on, which is not read.
"""
    print(text)
    PAGE.write_text(text, encoding="utf-8")
    return 1 if mutants.failures(adapters) or lost or any(run.differing for run in killed) else 0


if __name__ == "__main__":
    raise SystemExit(main())
