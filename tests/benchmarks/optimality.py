"""How far does each way of turning scores into r let a positive adapter go? On drawn scores, with numpy alone.

    PYTHONPATH=tests python tests/benchmarks/optimality.py --write

Scores of pictures are normal, half of their variance between prompts and half within them. v_plus draws a prompt's
pictures in proportion to r, so the farthest that the dial can go within a prompt is

    shift = E[r d] / E[r],   d = score - mean of its prompt, in standard deviations of all scores

A pool of N pictures estimates v_plus as well as N e pictures that are all liked, with e = (sum r)^2 / (N sum r^2), so
`shift sqrt(e)` says how many standard errors of a field that is learned from a given pool the shift is worth. The head
is a logistic regression of r on 64 features: one is the score with as much variance of noise added, one is the
prompt's mean, as a head reads the prompt, and the others are noise. `head` is the correlation of its logit with d on
fresh pictures of the pool's prompts.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

import numpy as np

from nft_pipeline.training.data.optimality import optimality
from nft_pipeline.training.demo.report import markdown

DOCS = Path(__file__).parents[2] / "docs"
PER_PROMPT = (1, 2, 4, 8, 32)
FEATURES, RIDGE = 64, 4.0
WAYS = {
    "sigmoid": ("sigmoid", None, False),
    "rank, all pictures": ("rank", None, False),
    "rank, in the prompt": ("rank", None, True),
    "top 50 %, in the prompt": ("top", 0.5, True),
    "top 30 %, all pictures": ("top", 0.3, False),
    "top 30 %, in the prompt": ("top", 0.3, True),
    "top 10 %, in the prompt": ("top", 0.1, True),
}


def head(features: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Weights (FEATURES + 1,) of a logistic regression of r (N,) with a ridge, by Newton's method."""
    x = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    ridge = np.diag([RIDGE] * FEATURES + [0.0])
    weights = np.zeros(FEATURES + 1)
    for _ in range(12):
        alpha = 1 / (1 + np.exp(-x @ weights))
        slope = x.T @ (r - alpha) - ridge @ weights
        weights += np.linalg.solve((x * (alpha * (1 - alpha))[:, None]).T @ x + ridge, slope)
    return weights


def drawn(rng: np.random.Generator, prompt_part: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(score, deviation from the prompt's mean, features) of `count` pictures of each prompt, prompt after prompt."""
    d = np.sqrt(0.5) * rng.standard_normal(len(prompt_part) * count)
    score = np.repeat(prompt_part, count) + d
    features = rng.standard_normal((len(d), FEATURES))
    features[:, 0] += score
    features[:, 1] = np.repeat(prompt_part, count)
    return score, d, features


def measured(count: int, pictures: int, repeats: int) -> dict[str, np.ndarray]:
    """(shift, shift sqrt(e), head) of every way, with `count` pictures for each prompt, in the mean over pools."""
    rng, found = np.random.default_rng(0), {name: np.zeros(3) for name in WAYS}
    for _ in range(repeats):
        prompt_part = np.sqrt(0.5) * rng.standard_normal(pictures // count)
        score, d, features = drawn(rng, prompt_part, count)
        _, fresh_d, fresh = drawn(rng, prompt_part, count)
        group = np.repeat(np.arange(len(prompt_part)), count)
        for name, (method, share, grouped) in WAYS.items():
            if grouped and count == 1:
                continue  # nothing to compare with
            r = optimality({"score": score}, method, groups=group if grouped else None, at=share).r
            shift, size = (r * d).mean() / r.mean(), r.mean() / np.sqrt(np.square(r).mean())
            # The prompt's mean adds the same to every picture of a prompt, so that d is compared without it.
            logit, mean = fresh @ head(features, r)[:-1], fresh[:, 1]
            ranked = np.corrcoef(logit - mean * (logit @ mean) / (mean @ mean), fresh_d)[0, 1]
            found[name] += [shift, shift * size, ranked]
    return {name: sums / repeats for name, sums in found.items()}


def entry(values: np.ndarray) -> str:
    """One cell of the table."""
    return " / ".join(f"{value:.2f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1024, help="pictures in a pool (default: 1024)")
    parser.add_argument("--repeats", type=int, default=20, help="pools (default: 20)")
    parser.add_argument("--write", action="store_true", help="write docs/measured/optimality.md")
    args = parser.parse_args()
    results = {count: measured(count, args.pictures, args.repeats) for count in PER_PROMPT}
    rows = [
        [name, *(entry(results[count][name]) if count > 1 or not grouped else "" for count in PER_PROMPT)]
        for name, (_, _, grouped) in WAYS.items()
    ]
    table = markdown(["optimality", *(f"{count} a prompt" for count in PER_PROMPT)], rows)
    text = f"""# What `optimality` lets a positive adapter reach

Made by `tests/benchmarks/optimality.py` on {date.today()}, numpy, from {args.repeats} drawn pools of {args.pictures}
pictures for each column. Scores are normal, half of their variance between prompts. The columns differ in how many
pictures of each prompt a pool has. Entries are shift / shift sqrt(e) / head:

- shift: how far v_plus moves the score within a prompt, in standard deviations of all scores. The standard
  deviation within a prompt is 0.71.
- shift sqrt(e): the same times the root of e, the pool's effective share of pictures. It grows with the number of
  standard errors by which a field learned from this pool differs from none.
- head: correlation of a learned logit with the score within the prompt, on fresh pictures. The best possible is
  {np.sqrt(0.5 / 1.5):.2f}.

{table}

With one picture for each prompt, "in the prompt" has nothing to compare. From four pictures on, the best 30 % of a
prompt go further than the best 30 % of all pictures. With fewer, training compares the pictures of such prompts
together, which is the row "all pictures". Of a normal score, the best 27 % have the largest shift sqrt(share) (Kelley,
1939), so the default share is 0.3. A smaller share goes further and is learned from fewer pictures. What it costs
is a part of what the head knows: it learns from 0 and 1 and no longer from graded scores.
"""
    print(text)
    if args.write:
        (DOCS / "measured" / "optimality.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
