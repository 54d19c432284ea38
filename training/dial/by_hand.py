"""A calibration by a person: a small sweep of pictures in random order, rated on the page of `diffusion-nft rate`.

Where only likes exist and no reward can be run, this is the truest judge there is. 64 pictures are few: the share of
liked pictures at a strength is then known to about a tenth, and the dial says so. Only 16 of them are the base model's
own, and how often the base model is liked is where every promise starts. So the ratings that the person gave to such
pictures before, to train on, are taken too where they are a fair sample (`fair_ratings`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from nft_pipeline.dial.measured import Dial
from nft_pipeline.files.atomic import atomic_write_bytes
from nft_pipeline.files.picture_list import CHOSEN_BY, drawn_by, read_lines, read_rows, update_rows

from .calibrate import SEED, Calibrated, identity_map, invert
from .choose import Way
from .curve import fit_curve, rate_between_prompts
from .draws import Draws

WEIGHTS = (0.0, 0.3, 0.6, 1.0)
PICTURES = 64
WEIGHTS_FILE = "weights.json"
SURE = 3.5  # standard errors between two base rates, from which on they are not of one person and the same prompts


Rating = tuple[str, bool]  # a picture's prompt, and whether it is liked


class NotRated(ValueError):
    """Pictures are there, and are not rated yet."""


def draw_for_rating(draws: Draws, folder: Path, seed: int = 0) -> int:
    """Draw the sweep into a new folder, and return how many pictures it has.

    The pictures' names are in random order and do not say the weight, so that nobody can rate by it; the weights are in
    a file beside them.

    Raises:
        Interrupted: it was asked to stop; nothing was written.
    """
    each = PICTURES // len(WEIGHTS)
    places = np.random.default_rng(SEED).permutation(len(draws.texts))[:each]
    rows = [(int(places[i % len(places)]), SEED + seed + i) for i in range(each)]
    weighed = [(weight, row) for weight in WEIGHTS for row in rows]
    pictures = draws.draw([row for _, row in weighed], [weight for weight, _ in weighed], "single", 0.0).pictures
    drawn = [(weight, row, picture) for (weight, row), picture in zip(weighed, pictures, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(len(drawn))
    weights, lines = {}, {}
    for number, place in enumerate(order.tolist()):
        weight, (prompt, _), picture = drawn[place]
        name = f"{number:03d}.png"
        Image.fromarray(picture).save(folder / name)
        weights[name], lines[name] = weight, {"prompt": draws.texts[prompt]}
    atomic_write_bytes(folder / WEIGHTS_FILE, json.dumps(weights, indent=1).encode())
    update_rows(folder, lines)
    return len(drawn)


def fair_ratings(folder: Path, models: Collection[str], guidance_scale: float) -> list[Rating]:
    """The ratings of a folder that are a fair sample of what a base model draws: of its own pictures, not guided, and
    not chosen by what an adapter was unsure of, unless all that were drawn are rated, so that no choice was left.

    Args:
        folder: with the lines that `draw` and `rate` write.
        models: the names that the model has in them.
        guidance_scale: that counts; pictures of another are left out.

    Raises:
        PictureListError: its list is not UTF-8 text.
    """
    own = [
        row
        for row in (line.row for line in read_lines(folder) if not line.faults)
        if drawn_by(row) in models
        and row.get("guidance_scale") == guidance_scale
        and isinstance(row.get("prompt"), str)
    ]
    rated = [row for row in own if isinstance(row.get("liked"), bool)]
    fair = rated if len(rated) == len(own) else [row for row in rated if CHOSEN_BY not in row]
    return [(row["prompt"], row["liked"]) for row in fair]


def calibrate_by_hand(draws: Draws, folder: Path, before: Sequence[Rating] = ()) -> Calibrated:
    """The dial that the ratings in a folder of `draw_for_rating` say: one pass, one weight for all.

    Args:
        draws: draws the adapter.
        folder: the sweep, rated.
        before: ratings of the base model's pictures by the same person. Where they surely say another base rate than
            the sweep does, they are of other prompts or another mind, and are left alone.

    Raises:
        NotRated: some pictures are not rated, or all are rated alike.
    """
    weights = json.loads((folder / WEIGHTS_FILE).read_text(encoding="utf-8"))
    rows = [row for row in read_rows(folder) if row["image"] in weights]
    rated = [row for row in rows if isinstance(row.get("liked"), bool)]
    if len(rated) < len(weights):
        raise NotRated(
            f"{len(weights) - len(rated)} of {len(weights)} pictures in {folder} are not rated. Rate them with "
            f"diffusion-nft rate {folder}, then give this command again."
        )
    w = np.array([weights[row["image"]] for row in rated])
    r = np.array([float(row["liked"]) for row in rated])
    texts = [row["prompt"] for row in rated]
    if r.min() == r.max():
        raise NotRated(
            f"all {len(r)} pictures in {folder} are rated alike, which says nothing about the dial. Rate them again."
        )
    earlier = np.array([float(liked) for _, liked in before])
    if before and _agree(r[w == 0], earlier):
        texts += [prompt for prompt, _ in before]
        w, r = np.concatenate([w, np.zeros(len(before))]), np.concatenate([r, earlier])
    prompts = np.unique(texts, return_inverse=True)[1]
    curve = fit_curve(w, r, prompts)
    base = w == 0
    _, error, spread = rate_between_prompts(r[base], prompts[base])
    tilt_map = invert(curve, spread, "single", 0.0, draws.base.stock_guidance_scale, int((~base).sum()))
    way = Way(tilt_map, curve, w, prompts, {})
    learned = tilt_map.rises
    reason = (
        f"one pass, at one weight for all, as LoRA weight is; {len(r)} pictures were rated by hand"
        if learned
        else f"not to be told from {len(r)} ratings: no weight surely raises the share of liked pictures"
    )
    dial = Dial(
        judged_by="person", judge="a person, by hand", prompts=len(np.unique(prompts)),
        pictures=int(base.sum()), rate=float(np.clip(curve.rate(0.0), 0.01, 0.99)),
        rate_error=min(max(error, float(curve.error(0.0))), 1.0), spread=spread,
        steps=int(draws.base.call.get("num_inference_steps", 1)), slope=1.0, offsets=(),
        maps=(identity_map(draws.base.stock_guidance_scale),),
    )  # fmt: skip
    return Calibrated(
        replace(dial, maps=(tilt_map,), note="" if learned else reason), learned, reason, (), draws.forwards, (way,)
    )


def _agree(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two samples of likes may have one mean."""
    mean = (one.sum() + other.sum() + 1) / (len(one) + len(other) + 2)
    return bool(abs(one.mean() - other.mean()) < SURE * (mean * (1 - mean) * (1 / len(one) + 1 / len(other))) ** 0.5)
