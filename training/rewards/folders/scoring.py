"""Scoring a folder of pictures into its metadata.jsonl: resumable, and what is done is kept whatever happens next."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from nft_pipeline.files.picture_list import PictureListError, find_pictures, read_rows, update_rows
from nft_pipeline.files.picture_prompt import prompt_in
from nft_pipeline.files.pictures import read_picture

from ..contract import RewardError
from ..mix import RewardMix

WRITE_EVERY_SECONDS = 5.0


def prompts_of(
    folder: Path, pictures: Sequence[str], rows: Mapping[str, Mapping[str, Any]], prompt: str | None = None
) -> dict[str, str]:
    """Each picture's prompt: from its line in metadata.jsonl, from a text file of its name, from what ComfyUI or A1111
    wrote into the picture itself, or else `prompt`.

    Raises:
        PictureListError: some picture has none.
    """
    found: dict[str, str] = {}
    for picture in pictures:
        text = rows.get(picture, {}).get("prompt")
        beside = (folder / picture).with_suffix(".txt")
        if not isinstance(text, str) and beside.is_file():
            text = beside.read_text(encoding="utf-8").strip()
        if not isinstance(text, str):
            text = prompt_in(folder / picture) or prompt
        if text is not None:
            found[picture] = text
    without = [picture for picture in pictures if picture not in found]
    if without:
        raise PictureListError(
            f"{len(without)} pictures of {len(pictures)} have no prompt, the first is {without[0]}. Put it into a text "
            "file of its name beside the picture, or into its line of metadata.jsonl, or give --prompt TEXT for all"
        )
    return found


def score_folder(folder: Path, mix: RewardMix, *, prompt: str | None = None, again: bool = False) -> int:
    """Score every picture in `folder` that has no score by these rewards yet.

    Each line of metadata.jsonl gets `score` (r in [0, 1], the mix), `scores` (each reward's own number) and `reward`
    (the rewards and their weights, by which a later run knows what is done); all else in it stays.

    Args:
        folder: the pictures.
        mix: the rewards.
        prompt: for pictures that have none.
        again: score also what has a score.

    Returns:
        How many pictures were scored.

    Raises:
        PictureListError: no pictures, no prompts, or pictures that cannot be read (after all others were scored).
        RewardError: a reward failed; what was scored before is written, and the same call goes on from there.
    """
    pictures, rows = find_pictures(folder), {row["image"]: row for row in read_rows(folder)}
    prompts = prompts_of(folder, pictures, rows, prompt)
    done = set() if again else {name for name, row in rows.items() if row.get("reward") == mix.info.name}
    left = [picture for picture in pictures if picture not in done]
    unreadable: list[str] = []
    changes: dict[str, dict[str, Any]] = {}
    written, count = time.monotonic(), 0
    try:
        with tqdm(total=len(pictures), initial=len(pictures) - len(left), desc="scoring", unit="picture") as bar:
            for names, images in _batches(folder, left, mix.batch, unreadable):
                known = [{"image": name, **rows.get(name, {})} for name in names]
                try:
                    output = mix(images, [prompts[name] for name in names], known)
                except RewardError as error:
                    raise RewardError(f"{error}\nwhile scoring {names[0]} to {names[-1]}, {count} done") from error
                for i, (name, score) in enumerate(zip(names, output.scores.tolist(), strict=True)):
                    own = {reward: output.details[reward][i] for reward in mix.parts}
                    changes[name] = {"prompt": prompts[name], "score": score, "scores": own, "reward": mix.info.name}
                count += len(names)
                bar.update(len(names))
                if time.monotonic() - written > WRITE_EVERY_SECONDS:
                    update_rows(folder, changes)
                    changes, written = {}, time.monotonic()
    finally:
        if changes:
            update_rows(folder, changes)
    if unreadable:
        raise PictureListError(
            f"{len(unreadable)} pictures of {len(pictures)} cannot be read and have no score; the others have:\n"
            + "\n".join(f"  {fault}" for fault in unreadable[:10])
        )
    return count


def _batches(
    folder: Path, names: Sequence[str], size: int, unreadable: list[str]
) -> Iterator[tuple[list[str], list[Image.Image]]]:
    """The pictures, `size` at a time; those that cannot be read go into `unreadable` with the reason."""
    for i in range(0, len(names), size):
        good: list[str] = []
        images: list[Image.Image] = []
        for name in names[i : i + size]:
            try:
                images.append(read_picture(folder / name))
                good.append(name)
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                unreadable.append(f"{name}: {error}")
        if good:
            yield good, images
