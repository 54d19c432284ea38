"""The work of tests/benchmarks/dial.py: pools, ratings, trainings and measured points, each kept when it is done.

Everything lies in one folder, and what lies there is not made again:

    pools/seed0/                      what the base model draws for the training prompts, and the pictures it decodes to
    base/seed0_n1024_cfg1.npy         what it draws for the prompts of the measurement
    tastes.json                       the words of the tastes, in order, with their rates in the first pool
    cells/TASTE/size40_seed0/run/     a training's folder, with its adapter
    cells/TASTE/size40_seed0/*.json   the points measured of it, one file each

Several processes may work in one folder: each works on what no other is working on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import AdapterConfig, read_adapter, write_adapter
from nft_pipeline.files.atomic import atomic_write_bytes
from nft_pipeline.files.picture_list import update_rows
from nft_pipeline.modes import MODES
from nft_pipeline.training.data.pool import Pool, PoolError, load_pool, save_pool
from nft_pipeline.training.data.scorers import RunRewards
from nft_pipeline.training.data.sources import offline_pools
from nft_pipeline.training.demo.measure import Workload, with_lora
from nft_pipeline.training.devices.precision import choose_precision
from nft_pipeline.training.dial.measure_adapter import Judging, calibrate_adapter
from nft_pipeline.training.rewards.find import find_reward
from nft_pipeline.training.run.trainer import load_base, train
from nft_pipeline.training.settings.config import TrainConfig
from nft_pipeline.training.shapes.score import judge_look, look
from nft_pipeline.training.shapes.world import Prompt
from nft_pipeline.training.show.picture_stats import diversity, shrunk

from .tastes import candidates, dial_prompts, draw_tastes, measurement_prompts, training_prompts

POOL_SIZE = 4096
TILTS = (-2.0, -1.0, 0.5, 1.0, 2.0)
WEIGHTS = (-0.5, 0.125, 0.25, 0.5, 1.0, 1.5)
CFG = 3.0
NOISE_SEED = 91_000_000  # of the measurement; no training and no calibration draws with it
APART = 100_000  # between the noises of two calibrations, so that they share none
PICTURES = 4800  # of a calibration
WATCHED = "shapes_eval"  # as the preset watches it; helps a calibration to choose between ways of drawing
BATCH = 256
REWARD = f"{__package__}.tastes:Taste"
PROMPTS = f"{__package__}.tastes:training_prompts"
HELD_OUT = f"{__package__}.tastes:calibration_prompts"


@dataclass(frozen=True)
class Cell:
    """One training: a taste by its words, how many ratings (POOL_SIZE: a pool that the reward scores), a seed."""

    taste: str
    size: int
    seed: int

    def folder(self, work: Path) -> Path:
        """Where its run and its points are kept."""
        return work / "cells" / slug(self.taste) / f"size{self.size}_seed{self.seed}"


def slug(words: str) -> str:
    """Words as the name of a folder."""
    return words.replace(",", "").replace(" ", "-")


@contextmanager
def claimed(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether nobody else works on this; as long as the block runs, nobody else begins. Ends with the process, too.

    Args:
        path: a file that stands for the work.
        wait: wait until nobody else works on it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def seed_pools(seed: int, work: Path) -> Path:
    """The folder of what the base model draws with a seed for the training prompts: a run's own two pools.

    They hold the scores of one taste; `taste_pool` scores them by another.
    """
    folder = work / "pools" / f"seed{seed}"
    with claimed(folder / "claimed", wait=True):
        if not (folder / "pictures.npy").is_file():
            config = settings_of(Cell("everything is large", POOL_SIZE, seed), folder)
            base, _ = load_base(config)
            pool, _ = offline_pools(base, config, folder, print, RunRewards(config, base.device))
            pictures = base.decode_latents(pool.x_0(torch.arange(len(pool))))
            _save(folder / "pictures.npy", pictures)
    return folder


def draw(work: Path) -> dict[str, float]:
    """The tastes with their rates in the first pool: drawn if that was not done yet."""
    path = work / "tastes.json"
    if not path.is_file():
        pictures = np.load(seed_pools(0, work) / "pictures.npy")
        prompt = np.arange(len(pictures)) % len(training_prompts())
        write_json(path, draw_tastes([look(picture) for picture in pictures], prompt))
    return dict(json.loads(path.read_text()))


def settings_of(cell: Cell, ratings: Path) -> TrainConfig:
    """The settings of a cell's training: those of shapes_warm, on ratings in a folder or on a pool that is scored."""
    changed: dict[str, Any] = {
        "name": slug(cell.taste)[:60],
        "reward_description": cell.taste,
        "seed": cell.seed,
        "samples_every": 0,
        "sweep_size": 0,
        "calibration_pictures": 0,
        "watch_reward": "",
        "reward": "",
    }
    if cell.size == POOL_SIZE:
        source: dict[str, Any] = {"rewards": {REWARD: {"words": cell.taste}}, "prompts": PROMPTS}
        source["held_out_prompts"] = HELD_OUT
    else:
        source = {"data": str(ratings), "made_by_base": True, "prompts": None, "held_out_prompts": None}
    return TrainConfig.from_yaml("shapes_warm", {**changed, **source})


def train_cell(cell: Cell, work: Path) -> None:
    """Train a cell's adapter, or go on with a training that was stopped."""
    folder = cell.folder(work)
    pools, ratings, run = seed_pools(cell.seed, work), folder / "ratings", folder / "run"
    if cell.size == POOL_SIZE:
        run.mkdir(parents=True, exist_ok=True)
        for name in ("pool.safetensors", "held_out.safetensors"):
            taste_pool(pools / name, run / name, cell)
    elif not (ratings / "metadata.jsonl").is_file():
        write_ratings(np.load(pools / "pictures.npy")[: cell.size], cell.taste, ratings)
    started = time.monotonic()
    try:
        result = train(settings_of(cell, ratings), run)
    except PoolError as error:
        write_json(folder / "trained.json", {"refused": str(error)})
        return
    finally:
        for name in ("pool.safetensors", "held_out.safetensors"):
            (run / name).unlink(missing_ok=True)
    calibration = [level.to_dict() for level in result.calibration]
    write_json(folder / "trained.json", {"seconds": time.monotonic() - started, "calibration": calibration})


def taste_pool(source: Path, target: Path, cell: Cell) -> None:
    """A pool of the base model's samples with a taste's scores in the place of those it has."""
    with safe_open(source, "pt") as file:
        key = file.metadata()["pool_key"]
    pool = load_pool(source, key)
    assert pool is not None
    base, _ = load_base(settings_of(cell, source.parent))
    pictures = base.decode_latents(pool.x_0(torch.arange(len(pool))))
    liked = find_reward(REWARD, words=cell.taste)(pictures, [""] * len(pictures))
    scored: Pool = replace(pool, r=torch.from_numpy(liked).float())
    save_pool(scored, target, key)


def write_ratings(pictures: np.ndarray, taste: str, folder: Path) -> None:
    """A folder of pictures with likes, as `diffusion-nft rate` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    texts, liked = training_prompts(), find_reward(REWARD, words=taste)(pictures, [""] * len(pictures))
    rows = {}
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i:04d}.png")
        rows[f"{i:04d}.png"] = {"prompt": texts[i % len(texts)], "liked": bool(liked[i])}
    update_rows(folder, rows)


@dataclass(frozen=True)
class Setting:
    """One way of drawing: arguments of the call beside an adapter, or the weight of its LoRA.

    Args:
        kind: "base"; "before" and "after" the calibration; "weight".
        mode: one of `MODES`, "" for those that have none.
        value: the tilt, or the weight.
        n: pictures.
        guidance_scale: of classifier-free guidance.
        steering: the further arguments of the pipeline's call.
        asked: the tilt that `value` stands in for where the adapter does not reach it.
        role: after a calibration "own mode" or "other mode".
    """

    kind: str
    mode: str
    value: float
    n: int
    guidance_scale: float = 1.0
    steering: dict[str, Any] = field(default_factory=dict)
    asked: float = 0.0
    role: str = ""

    @property
    def name(self) -> str:
        """The name of its file."""
        mode = f"_{self.mode}" if self.mode else ""
        return f"{self.kind}{mode}_{self.value:+g}_cfg{self.guidance_scale:g}_n{self.n}"

    @property
    def forwards(self) -> int:
        """Forwards per step and picture; classifier-free guidance doubles them."""
        guided = 2 if self.mode and not MODES[self.mode].one_pass else 1
        return guided * (2 if self.guidance_scale > 1 else 1)


def settings_before(n: int, tilt: float, guidance_scale: float) -> list[Setting]:
    """The odds law without a measured dial, in two passes and in one. `tilt` is the adapter's at strength 1."""
    settings = []
    for mode in ("two_pass", "single"):
        for value in TILTS:
            steering = {"nft_strength": value / tilt, "nft_law": "odds", "nft_mode": mode}
            settings.append(Setting("before", mode, value, n, guidance_scale, steering, asked=value))
    return settings


def settings_after(config: AdapterConfig, own: int, other: int, guidance_scale: float) -> list[Setting]:
    """The dial that a calibration has measured, each mode that has a map at this guidance scale; none without a dial.

    Args:
        own, other: pictures in the adapter's own mode and in others.
    """
    dial, settings = config.dial, list[Setting]()
    for tilt_map in () if dial is None else dial.maps:
        if tilt_map.guidance_scale != guidance_scale:
            continue
        is_own = tilt_map.mode == dial.own.mode
        for asked in TILTS:
            value = round(min(max(asked, tilt_map.lowest), tilt_map.highest), 4)
            steering = {"nft_strength": value / config.tilt, **({} if is_own else {"nft_mode": tilt_map.mode})}
            role = "own mode" if is_own else "other mode"
            n = own if is_own else other
            settings.append(Setting("after", tilt_map.mode, value, n, guidance_scale, steering, asked, role))
    return settings


def settings_of_weight(n: int) -> list[Setting]:
    """The rival, the LoRA's weight in one pass."""
    return [Setting("weight", "", weight, n) for weight in WEIGHTS]


def workload(cell_seed: int, n: int, guidance_scale: float, call: dict[str, Any]) -> Workload:
    """The prompts of the measurement, with the noise of a training seed."""
    dtype, _ = choose_precision("auto", torch.device("cpu"))
    steered = {**call, "guidance_scale": guidance_scale}
    return Workload(measurement_prompts(), n=n, seed=NOISE_SEED + cell_seed, batch=BATCH, call=steered, dtype=dtype)


def measured(pictures: np.ndarray, taste: str) -> dict[str, Any]:
    """Of each picture: liked and prompt right, 0 or 1, quality, and how unlike the others of its prompt it is."""
    texts = measurement_prompts()
    prompt = np.arange(len(pictures)) % len(texts)
    looks = [look(picture) for picture in pictures]
    judged = [judge_look(seen, Prompt.parse(texts[i])) for seen, i in zip(looks, prompt, strict=True)]
    return {
        "liked": [int(candidates()[taste].holds(seen)) for seen in looks],
        "right": [int(one.correct) for one in judged],
        "quality": [round(one.quality, 4) for one in judged],
        "diversity": [round(float(value), 4) for value in diversity(shrunk(pictures), prompt)],
    }


def base_point(taste: str, seed: int, n: int, guidance_scale: float, work: Path) -> dict[str, Any]:
    """What the base model draws for the measurement, by a taste. The pictures are the same for all tastes."""
    path = work / "base" / slug(taste) / f"seed{seed}_n{n}_cfg{guidance_scale:g}.json"
    if not path.is_file():
        write_json(path, measured(np.load(_base_pictures(seed, n, guidance_scale, work)), taste))
    return dict(json.loads(path.read_text()))


def _base_pictures(seed: int, n: int, guidance_scale: float, work: Path) -> Path:
    path = work / "base" / f"seed{seed}_n{n}_cfg{guidance_scale:g}.npy"
    with claimed(path.with_suffix(".claimed"), wait=True):
        if not path.is_file():
            guided = DiffusionNFTPipeline.from_pretrained("shapes")
            load = workload(seed, n, guidance_scale, dict(guided.call_defaults))
            _save(path, load.pictures(guided.unwrap(), "base"))
    return path


def adapter_of(cell: Cell, work: Path) -> Path:
    """The folder of a cell's adapter: the calibrated one if there is one, else the run's."""
    folder = cell.folder(work)
    trained, calibrated = folder / "run" / "adapter", folder / "calibrated"
    is_of_this = calibrated.is_dir() and digest_of(calibrated, "weight") == digest_of(trained, "weight")
    return calibrated if is_of_this else trained


def calibrate_cell(cell: Cell, work: Path, guidance_scales: Sequence[float]) -> None:
    """Calibrate a cell's adapter at these scales of classifier-free guidance, unless that was done.

    The taste itself judges, on prompts that are neither trained nor measured on, and on noises of the cell's own.
    """
    adapter = read_adapter(adapter_of(cell, work))
    mapped = () if adapter.config.dial is None else adapter.config.dial.maps
    due = [scale for scale in guidance_scales if scale not in {entry.guidance_scale for entry in mapped}]
    judging = Judging({"taste": find_reward(REWARD, words=cell.taste)}, {}, watch=find_reward(WATCHED))
    for scale in due:
        guided = DiffusionNFTPipeline.from_pretrained("shapes")
        guided.load_nft_adapter(adapter, name="taste")
        adapter, found = calibrate_adapter(
            guided,
            "taste",
            dial_prompts(),
            judging,
            pictures=PICTURES,
            seed=calibration_seed(cell),
            batch=BATCH,
            call={"guidance_scale": scale},
        )
        print(f"guidance scale {scale:g}: {found.reason}", flush=True)
    if due:
        write_adapter(cell.folder(work) / "calibrated", adapter)


def calibration_seed(cell: Cell) -> int:
    """The seed of a cell's calibrations. Its noises are no other cell's, and they are not the measurement's."""
    digest = hashlib.sha256(f"{cell.taste}, {cell.size}, {cell.seed}".encode()).digest()
    return 2 * NOISE_SEED + APART * int.from_bytes(digest[:3], "big")


def digest_of(adapter: Path, kind: str) -> str:
    """Changes with the weights of an adapter, so that points of an older training are measured again.

    Args:
        adapter: its folder.
        kind: of the setting. What is measured after a calibration is measured again after another one, too.
    """
    files = sorted((*adapter.glob("*.safetensors"), *(adapter / "alpha_head").glob("*.safetensors")))
    digest = hashlib.sha256()
    for path in files:  # the tensors alone: the headers hold the config, which a calibration changes
        for name, tensor in sorted(load_file(path).items()):
            digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    if kind == "after":
        digest.update((adapter / "nft_config.json").read_bytes())
    return digest.hexdigest()[:16]


def measure_cell(cell: Cell, settings: Sequence[Setting], work: Path) -> None:
    """Measure what was not measured yet of a cell's adapter."""
    folder, adapter = cell.folder(work), adapter_of(cell, work)
    digests = {kind: digest_of(adapter, kind) for kind in ("before", "after", "weight")}
    unmeasured = [setting for setting in settings if read_point(folder, setting, digests[setting.kind]) is None]
    due = list({setting.name: setting for setting in unmeasured}.values())  # several tilts may stand for one end
    if not due:
        return
    guided = DiffusionNFTPipeline.from_pretrained("shapes")
    guided.load_nft_adapter(read_adapter(adapter))
    stock = DiffusionNFTPipeline.from_pretrained("shapes").unwrap()
    with with_lora(stock, adapter) as lora:
        for setting in due:
            load = workload(cell.seed, setting.n, setting.guidance_scale, dict(guided.call_defaults))
            started = time.monotonic()
            if setting.kind == "weight":
                stock.set_adapters(lora, setting.value)
                pictures = load.pictures(stock, setting.name)
            else:
                pictures = load.pictures(guided, setting.name, **setting.steering)
            seconds = time.monotonic() - started
            point = {**measured(pictures, cell.taste), "seconds": seconds, "adapter": digests[setting.kind]}
            write_json(folder / f"{setting.name}.json", point)


def read_point(folder: Path, setting: Setting, digest: str) -> dict[str, Any] | None:
    """A point that was measured of this very adapter; else None."""
    path = folder / f"{setting.name}.json"
    if not path.is_file():
        return None
    point = json.loads(path.read_text())
    return dict(point) if point["adapter"] == digest else None


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, json.dumps(value).encode())


def _save(path: Path, pictures: np.ndarray) -> None:
    """The same for pictures."""
    part = path.with_suffix(".part.npy")
    np.save(part, pictures)
    part.replace(path)
