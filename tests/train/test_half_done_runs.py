"""Runs that an older version began go on: same settings, a setting more, a setting less.

tests/fixtures/version_1/runs holds two half-done runs of version 1, and adapters/ what that version made of them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers import tiny_run
from nft_pipeline.files.versions import Format
from nft_pipeline.training.data import pool as pool_module
from nft_pipeline.training.data.pool import PoolError, load_pool, pool_key, save_pool
from nft_pipeline.training.run import checkpoint, trainer
from nft_pipeline.training.run.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from nft_pipeline.training.settings import stored
from nft_pipeline.training.settings.config import TrainConfig

VERSION_1 = Path(__file__).parents[1] / "fixtures" / "version_1"
LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture
def one_setting_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for a later version, which has the setting `beat`, 4 by default."""
    defaults = stored.default_settings()
    monkeypatch.setattr(stored, "default_settings", lambda: {**defaults, "beat": 4})
    monkeypatch.setattr(TrainConfig, "to_dict", lambda config: {**asdict(config), "beat": 4})


def half_done(kind: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(VERSION_1 / "runs" / kind, tmp_path / kind))


def settings_of(kind: str) -> dict[str, Any]:
    import yaml

    return yaml.safe_load((VERSION_1 / "runs" / kind / "settings.yaml").read_text("utf-8"))


def go_on(config: TrainConfig, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], int]:
    """What the rest of the run said, and how many pictures it scored."""
    scored, lines = [], list[str]()
    bright = tiny_run.bright

    def counting(images: Any, prompts: Any, metadata: Any) -> Any:
        scored.extend(prompts)
        return bright(images, prompts, metadata)

    monkeypatch.setattr(tiny_run, "bright", counting)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer.train(config, out, say=lines.append, device="cpu")
    finally:
        torch.set_num_threads(threads)
    return lines, len(scored)


def largest_difference(one: Path, two: Path) -> float:
    a, b = load_file(one), load_file(two)
    assert a.keys() == b.keys()
    return max((a[key] - b[key]).abs().max().item() for key in a)


@pytest.mark.parametrize("more", [False, True], ids=["same settings", "one setting more"])
@pytest.mark.parametrize(("kind", "step"), [("offline", 2), ("online", 3)])
def test_a_run_of_version_1_goes_on_to_the_same_weights(
    kind: str, step: int, more: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if more:
        request.getfixturevalue("one_setting_more")
    out = half_done(kind, tmp_path)
    lines, scored = go_on(TrainConfig.from_mapping(settings_of(kind)), out, monkeypatch)
    assert f"resumed at step {step}" in lines
    assert scored == 0  # what a reward said once is not asked again
    # On the machine that began the runs the weights are the same bits; other processors round otherwise.
    folder = VERSION_1 / "adapters" / f"half-done-{kind}"
    assert largest_difference(out / "adapter" / LORA, folder / LORA) < 1e-5
    if kind == "offline":
        head = Path("alpha_head", "diffusion_pytorch_model.safetensors")
        assert largest_difference(out / "adapter" / head, folder / head) < 1e-5


@pytest.mark.usefixtures("one_setting_more")
def test_a_new_setting_away_from_its_default_is_another_run(tmp_path: Path) -> None:
    settings = {**TrainConfig.from_mapping(settings_of("online")).to_dict(), "beat": 5}
    with pytest.raises(CheckpointError, match=r"other settings \(beat 4 -> 5\)"):
        load_checkpoint(half_done("online", tmp_path) / "checkpoint.pt", settings)
    key = pool_key({"settings": settings, "round": 1})
    assert load_pool(tmp_path / "online" / "round.safetensors", key) is None


def test_a_setting_that_the_file_lacks_is_its_default(tmp_path: Path) -> None:
    path, settings = tmp_path / "checkpoint.pt", TrainConfig.from_mapping(settings_of("offline")).to_dict()
    saved = {name: value for name, value in settings.items() if name not in ("noise_shift", "lora_targets")}
    save_checkpoint(path, {"settings": saved})
    with pytest.raises(CheckpointError, match=r"other settings \(lora_targets \[\] -> \['to_q'\]\)"):
        load_checkpoint(path, settings)
    assert load_checkpoint(path, settings | {"lora_targets": []}) is not None


def test_a_setting_that_there_is_no_more_is_named(tmp_path: Path) -> None:
    path, settings = tmp_path / "checkpoint.pt", TrainConfig.from_mapping(settings_of("offline")).to_dict()
    save_checkpoint(path, {"settings": {**settings, "beat": 4}})
    with pytest.raises(CheckpointError, match=r"\(beat = 4\)\. Finish the run with the version that began it"):
        load_checkpoint(path, settings)


def test_a_checkpoint_of_a_newer_version_is_never_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"format_version": 2, "everything": "else"}, path)
    with pytest.raises(CheckpointError, match=r"made by a newer version.*pip install -U diffusion-nft"):
        load_checkpoint(path, {})


def test_a_checkpoint_of_an_older_version_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "settings": {"steps": state["settings"]["length"]}}

    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"settings": {"length": 7}})
    monkeypatch.setattr(checkpoint, "FORMAT", Format(version=2, migrations={1: renamed}))
    loaded = load_checkpoint(path, {"steps": 7})
    assert loaded is not None and loaded["settings"] == {"steps": 7}


def test_every_older_version_has_a_migration() -> None:
    for form in (checkpoint.FORMAT, pool_module.FORMAT):
        assert set(form.migrations) == set(range(1, form.version))


def test_a_pool_of_today_stands_for_the_same_settings_in_a_later_version(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = tiny_run.config()
    base = tiny_run.tiny_base()
    path, pool = tmp_path / "round.safetensors", tiny_run.random_pool(base)
    prompts = [f"a cat with {n} hats" for n in range(1000)]
    save_pool(pool, path, pool_key({"settings": config.to_dict(), "round": 0, "prompts": prompts}))
    with safe_open(path, "pt") as file:
        assert len(file.metadata()["pool_key"]) < 4000
    request.getfixturevalue("one_setting_more")
    later = config.to_dict()

    def load(settings: dict[str, Any], prompts: list[str] = prompts, number: int = 0) -> Any:
        return load_pool(path, pool_key({"settings": settings, "round": number, "prompts": prompts}))

    assert load(later) is not None
    assert load({**later, "micro_batch": 4, "sweep_every": 9}) is not None  # they do not change a pool
    assert load({**later, "beat": 5}) is None
    assert load({**later, "seed": 1}) is None
    assert load(later, prompts[1:]) is None
    assert load(later, number=1) is None


def test_a_pool_of_a_newer_version_is_never_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "pool.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"pool_key": "?", "format_version": "2"})
    with pytest.raises(PoolError, match=r"made by a newer version.*pip install -U diffusion-nft"):
        load_pool(path, pool_key({"seed": 1}))


def test_the_first_settings_are_those_of_version_1() -> None:
    assert set(settings_of("offline")) == stored.FIRST_SETTINGS
    assert json.loads(pool_key({"seed": 1}))["hash"] == "a4bbadc1c78966d2"
