"""Graded rewards, with exact fields: which adapters draw the exponential tilt p_old e^{tilt r}?

    python -m tests.benchmarks.graded                 # a minute of one core; writes docs/measured/graded.md

For each tilt: the mean reward, and the total variation from the exponential tilt, of samples that followed the guided
ODE (Heun). The world is the one of 24 pictures, in which v_old, v_plus and alpha are finite sums. One adapter was
trained on r itself; others were trained on e^{kappa (r - 1)}, `optimality: exponential`.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.graded import by_law, drawn, tilts_of, together
from helpers.mixture import distance, ring
from nft_pipeline.errors import GuidanceError

ROOT = Path(__file__).resolve().parents[2]
TILTS = (-1.0, 0.5, 1.0, 2.0, 3.0, 4.0)
LADDERS = {"r and exponent 4": (None, 4.0), "exponents 2 and 4": (2.0, 4.0), "exponent 4 alone": (4.0,)}
TEXT = """\
# The exponential tilt of a graded reward

Made by `tests/benchmarks/graded.py` on {date} (CPU, {machine}, float64, torch {torch}).

The reward r is a number from 0 to 1, and what is wanted is p_old e^(λ r). The fields v_old, v_plus and α are exact
here: 24 pictures in the plane, where they are finite sums. An entry is the mean reward of {count} samples (evenly
spread noise, {steps} Heun steps), and in brackets the total variation from the exponential tilt. The base model's own
samples are {floor:.3f} away from p_old by the same measure, so differences of that size are those of the samples.

- **odds** and **nft**: one adapter that was trained on r (`optimality: raw`), under each law.
- **r and exponent 4** and the like: adapters that were trained on r or on e^(κ (r - 1))
  (`optimality: exponential`, with κ as `optimality_at`), at the tilts that
  `nft_pipeline.dial.exponential.exponential_strengths` gives them, with `nft_law="odds"` and `nft_combine="any"`. The
  last number says by how much the weight they draw is wrong at most, at any r. "-" is refused: more than 10 %.

{table}

So two adapters, one trained on the reward and one with exponent 4, draw every tilt from -1 to 4 to the accuracy of the
samples. One adapter alone draws it at its own exponent, and near 0. The odds law of r itself has a ceiling, the mean of
the pictures weighted by r, and the nft law crowds its samples onto fewer pictures. A reward of 0 or 1 needs none of
this: there the odds law is the exponential tilt. Each adapter costs a forward per step, so two take three forwards.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.graded", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=2048, help="per cell (512: a quick look)")
    parser.add_argument("--steps", type=int, default=40, help="Heun steps; raise to see that the errors stay")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/measured/graded.md", help="where the page goes")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    size, world = {"count": options.samples, "steps": options.steps}, ring()
    floor = distance(drawn(world, by_law("odds"), 0.0, **size), world.prior)
    ways = {"odds": by_law("odds"), "nft": by_law("nft"), **{name: together(kept) for name, kept in LADDERS.items()}}
    rows = [f"| λ | exact | {' | '.join(ways)} |", "|---|" + "---|" * (len(ways) + 1)]
    for tilt in TILTS:
        exact = world.exponential(tilt)
        cells = [f"{tilt:g}", f"{exact.mean_reward():.3f}"]
        for name, velocity in ways.items():
            try:
                wrong = f"; {tilts_of(LADDERS[name], tilt)[1]:.1%}" if name in LADDERS else ""
            except GuidanceError:
                cells.append("-")
                continue
            share = drawn(world, velocity, tilt, **size)
            cells.append(f"{float(share @ world.rewards):.3f} ({distance(share, exact.prior):.3f}){wrong}")
        rows.append(f"| {' | '.join(cells)} |")
    page = TEXT.format(
        date=datetime.date.today().isoformat(),
        machine=platform.machine(),
        torch=torch.__version__.split("+")[0],
        count=options.samples,
        steps=options.steps,
        floor=floor,
        table="\n".join(rows),
    )
    options.out.write_text(page, encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
