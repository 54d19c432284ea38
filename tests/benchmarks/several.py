"""Two adapters at once, with exact fields: what do sums of pushes draw, and what do the exact laws of several draw?

    python -m tests.benchmarks.several                # a few minutes of one core; writes docs/measured/several.md

For each pair of rewards and of tilts: the total variation between samples that followed the guided ODE (Heun) and the
law that is meant. The pairs are worlds of 40 or 56 pictures in five dimensions, in which v_old, v_plus and alpha are
finite sums, so what is left is the error of the combination.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.mixture import distance
from helpers.pairs import drawn, joint_alone, pairs, sums, with_the_joint

ROOT = Path(__file__).resolve().parents[2]
TILTS = ((2.0, 2.0), (4.0, 4.0), (4.0, -4.0))
HEAD = (
    "| rewards | tilts | sum, `nft` | sum, `odds` | with a joint adapter | both liked: sum, `odds` / exact |"
    " `any`, `odds` | either liked: `any` / exact | joint adapter alone |\n|---|---|---|---|---|---|---|---|---|"
)
TEXT = """\
# Several adapters at once

Made by `tests/benchmarks/several.py` on {date} (CPU, {machine}, float64, torch {torch}).

Two adapters with tilts λ₁ and λ₂ guide together. The fields v_old, v_plus and α are exact here: each pair of 0/1
rewards lives on 40 or 56 pictures in five dimensions, where they are finite sums. What is left is the error of
combining them. An entry is the total variation between {count} samples (evenly spread noise, {steps} Heun steps)
and the law that is meant. The base model's own samples are {floor_low:.3f} to {floor_high:.3f} away from p_old by the
same measure: differences of that size are those of the samples.

- **Sums** (`nft_combine="all"`) are held against the product p_old (1 + ρ₁ r₁)(1 + ρ₂ r₂), ρ = e^λ - 1, which for 0/1
  rewards is p_old exp(λ₁ r₁ + λ₂ r₂).
- **With a joint adapter**, one more adapter that was trained on r₁ r₂, the same product is exact
  (`guidance.product_scales`).
- **`any`** (`nft_combine="any"`, at tilts of which one may be negative) is held against p_old (1 + ρ₁ r₁ + ρ₂ r₂).
- **The joint adapter alone** at tilt λ₁ is held against p_old (1 + ρ₁ r₁ r₂), which is one adapter under the odds law.

{head}
{rows}

Adding the odds law's pushes is exact only if E[r₁ r₂ given x_t] = α₁ α₂ at every noisy state, as with rewards on
coordinates that know nothing of each other. Rewards that are independent only in the mean over all pictures do not have
it. At tilts 4 and 4 the sum is then up to {worst:.2f} away from the product, and in the worst case pictures that both
rewards like are {lowest:.2f} of the samples where {right:.2f} is exact. "Opposed" rewards never like the same picture:
there "any of" and the product are one law.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.several",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=2048, help="per cell (512: a quick look)")
    parser.add_argument("--steps", type=int, default=40, help="Heun steps; raise to see that the errors stay")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/measured/several.md", help="where the page goes")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    size = {"count": options.samples, "steps": options.steps}
    rows, floors, errors, shares = [], [], {}, {}
    for name, pair in pairs().items():
        floors.append(distance(drawn(pair, sums("odds"), (0.0, 0.0), **size), pair.world.prior))
        for tilts in TILTS:
            print(f"\r{name}, {tilts}          ", end="", file=sys.stderr, flush=True)
            nft, odds, joint, either = (
                drawn(pair, velocity, tilts, **size)
                for velocity in (sums("nft"), sums("odds"), with_the_joint, sums("odds", "any"))
            )
            product, any_law = pair.product(tilts), pair.any(tilts)
            alone = "-"
            if tilts[0] == tilts[1]:
                alone = f"{distance(drawn(pair, joint_alone, tilts, **size), pair.joint(tilts[0])):.3f}"
            if tilts == (4.0, 4.0):
                errors[name] = distance(odds, product)
                shares[name] = (pair.both(odds), pair.both(product))
            cells = [name, f"{tilts[0]:g}, {tilts[1]:g}"]
            cells += [f"{distance(share, product):.3f}" for share in (nft, odds, joint)]
            cells += [f"{pair.both(odds):.2f} / {pair.both(product):.2f}", f"{distance(either, any_law):.3f}"]
            cells += [f"{pair.either(either):.2f} / {pair.either(any_law):.2f}", alone]
            rows.append(f"| {' | '.join(cells)} |")
    print("\r" + " " * 60 + "\r", end="", file=sys.stderr)
    lowest, right = max(shares.values(), key=lambda pair: pair[1] - pair[0])
    page = TEXT.format(
        date=datetime.date.today().isoformat(),
        machine=platform.machine(),
        torch=torch.__version__.split("+")[0],
        count=options.samples,
        steps=options.steps,
        floor_low=min(floors),
        floor_high=max(floors),
        head=HEAD,
        rows="\n".join(rows),
        worst=max(errors.values()),
        lowest=lowest,
        right=right,
    )
    options.out.write_text(page, encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
