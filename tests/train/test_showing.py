"""What a run shows of itself: that it is all there, says what is true, and changes nothing in what is learned."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event

from helpers.tiny_run import ONLINE, SHOWN, SMALL, picture_folder, save_tiny
from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import read_adapter
from nft_pipeline.hub_cards.push import make_card
from nft_pipeline.hub_cards.report import RunReport
from nft_pipeline.training.learn.export import without_paths
from nft_pipeline.training.learn.learner import Learner
from nft_pipeline.training.run import checkpoint, trainer
from nft_pipeline.training.run.check import check
from nft_pipeline.training.run.stopping import Stopped
from nft_pipeline.training.settings.config import TrainConfig
from nft_pipeline.training.show import records
from nft_pipeline.training.show.observer import Observer
from nft_pipeline.training.show.records import Records, TrackerError, check_trackers

LORA = "pytorch_lora_weights.safetensors"
PLAIN = {"positive": SMALL, "online": ONLINE}
MORE = {
    "positive": {**SHOWN, "lr": 0.05, "keep_last": 2},
    "online": {**SHOWN, "sweep_every": 1, "keep_best": True},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"))


def run(model: str, out: Path, settings: dict[str, Any], **more: Any) -> list[str]:
    lines: list[str] = []
    config = TrainConfig.from_mapping({**settings, "base_model": model, **more})
    trainer.train(config, out, say=lines.append, device="cpu")
    return lines


@pytest.fixture(scope="module", params=PLAIN)
def shown(request: pytest.FixtureRequest, model: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp(request.param)
    return request.param, out, run(model, out, PLAIN[request.param], **MORE[request.param])


def same_weights(one: Path, two: Path) -> bool:
    a, b = load_file(one / "adapter" / LORA), load_file(two / "adapter" / LORA)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(folder: Path) -> list[Any]:
    """What TensorBoard would read: records of length (8 bytes), a checksum (4), the event, a checksum (4)."""
    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def test_looking_changes_nothing(shown: Any, model: str, tmp_path: Path) -> None:
    kind, out, _ = shown
    run(model, tmp_path, PLAIN[kind], **({"lr": 0.05} if kind == "positive" else {}))
    assert same_weights(out, tmp_path)
    assert (out / "losses.jsonl").read_text() == (tmp_path / "losses.jsonl").read_text()


# 2 is while the grid of that step is drawn; 3 is inside of the second round, after its sweep.
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_that_was_stopped_shows_the_same(
    shown: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    kind, out, _ = shown
    real_step, real_grid = Learner.step, Observer.grid

    def asks_to_stop(self: Learner, pool: Any) -> dict[str, float]:
        losses = real_step(self, pool)
        if self.step_number == at != 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses

    def asks_while_drawing(self: Observer, learner: Learner) -> None:
        if learner.step_number == at == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        real_grid(self, learner)

    monkeypatch.setattr(Learner, "step", asks_to_stop)
    monkeypatch.setattr(Observer, "grid", asks_while_drawing)
    with pytest.raises(Stopped, match=f"stopped at step {at} of 4"):
        run(model, tmp_path, PLAIN[kind], **MORE[kind])
    monkeypatch.setattr(Learner, "step", real_step)
    monkeypatch.setattr(Observer, "grid", real_grid)
    if kind == "online" and at == 2:  # as if it had been killed in the middle of writing a sweep down
        (tmp_path / "sweeps.jsonl").write_text((out / "sweeps.jsonl").read_text().splitlines()[0] + "\n")
    torch.manual_seed(99)
    run(model, tmp_path, PLAIN[kind], **MORE[kind])
    assert same_weights(out, tmp_path)
    if kind == "online":
        assert (tmp_path / "best" / LORA).read_bytes() == (out / "best" / LORA).read_bytes()
    for name in ("losses.jsonl", "sweeps.jsonl", *["rounds.jsonl"] * (kind == "online")):
        assert (tmp_path / name).read_text() == (out / name).read_text(), name
    for number in (0, 2, 4):
        name = f"samples/step-{number:06d}.png"
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_the_tables_and_tensorboard_say_the_same(shown: Any) -> None:
    kind, out, _ = shown
    tables = {"losses": 4, "sweeps": 4 if kind == "online" else 2, **({"rounds": 2} if kind == "online" else {})}
    for table, count in tables.items():
        lines = lines_of(out / f"{table}.jsonl")
        assert len(lines) == count
    loss = "v_plus" if kind == "positive" else "policy"
    written = [line[loss] for line in lines_of(out / "losses.jsonl")]
    board = [(event.step, value) for event in events(out / "tensorboard") for value in event.summary.value]
    curve = [(step, value.simple_value) for step, value in board if value.tag == f"losses/{loss}"]
    assert [step for step, _ in curve] == [1, 2, 3, 4] and [v for _, v in curve] == pytest.approx(written)
    assert [step for step, value in board if value.tag == "samples"] == [0, 2, 4]
    # TensorBoard takes neither spaces nor colons in a name.
    at_one = {"sweeps/strength_1/helpers.tiny_run_bright", "sweeps/strength_1/diversity"}
    assert at_one <= {value.tag for _, value in board}
    assert yaml.safe_load((out / "settings.yaml").read_text())["watch_reward"] == "sharpness"


def test_grids_come_every_so_many_steps_and_pictures_for_the_card_at_the_end(shown: Any) -> None:
    _, out, _ = shown
    first, last = (np.asarray(Image.open(out / "samples" / f"step-00000{step}.png")) for step in (0, 4))
    assert first.shape == last.shape and not (out / "samples" / "step-000001.png").exists()
    report = RunReport.from_json((out / "adapter" / "run_report.json").read_bytes())
    assert [sample.strength for sample in report.samples] == [0, 1] * 3


def test_the_pictures_of_the_card_are_those_the_adapter_draws(shown: Any, model: str) -> None:
    kind, out, _ = shown
    report = RunReport.from_json((out / "adapter" / "run_report.json").read_bytes())
    pipe = DiffusionNFTPipeline.from_pretrained(model, nft_adapter=out / "adapter")
    pipe.set_progress_bar_config(disable=True)
    pictures = []
    for sample in report.samples[:2]:
        drawn = pipe(
            sample.prompt,
            generator=torch.Generator().manual_seed(sample.seed),
            nft_strength=sample.strength,
            num_inference_steps=2,
            guidance_scale=1.0,
        ).images[0]
        kept = np.asarray(Image.open(out / "adapter" / sample.file)).astype(int)
        assert np.abs(np.asarray(drawn).astype(int) - kept).max() <= 1, (kind, sample)
        pictures.append(kept)
    if kind == "positive":  # with a learning rate that shows after four steps
        assert not np.array_equal(*pictures)


def test_the_adapter_carries_a_report_whose_card_has_every_part(shown: Any) -> None:
    kind, out, lines = shown
    report = RunReport.from_json((out / "adapter" / "run_report.json").read_bytes())
    assert [(curve.name, curve.trained) for curve in report.rewards] == [
        ("helpers.tiny_run:bright", True),
        ("sharpness", False),
    ]
    assert all(point.n == 6 for curve in report.rewards for point in curve.points) and report.hacking is not None
    trained = report.trained
    assert trained.hours is not None and trained.hours > 0 and (trained.hardware or "").startswith("CPU, ")
    assert trained.rounds == (2 if kind == "online" else 1) and trained.passes == (2.0 if kind == "online" else 1.3333)
    assert trained.anchor == ("eta0 4" if kind == "online" else "none")
    assert bool(report.alpha) == (kind == "positive")
    said = "\n".join(lines)
    assert f"reward hacking: {report.hacking.verdict}; {report.hacking.reason}" in said
    strength = read_adapter(out / "adapter").config.strength
    assert f"recommended strength {strength:g}: " in said or "no strength is recommended: " in said
    text = make_card(out / "adapter", "someone/tiny", licence="apache-2.0").text
    for phrase in ("not trained on", "plots/strip.png", "plots/reward_light.png", "| hours |", "| hardware | CPU"):
        assert phrase in text
    assert "not recorded" not in text.replace("| prompts |", "")
    assert str(out.parent) not in (out / "adapter" / "run_report.json").read_text()


def test_the_page_has_every_part_inside_it(shown: Any) -> None:
    kind, out, _ = shown
    page = (out / "report.html").read_text()
    parts = [
        "Losses",
        "Held-out rewards over strength",
        "Statistics of the pictures over strength",
        "Samples",
        "Settings",
    ]
    parts += ["Alpha calibration"] if kind == "positive" else ["Rewards of the rounds"]
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert set(parts) <= set(headings)
    assert page.count("samples at step") == 3 and "Reward hacking: " in page
    assert "Recommended strength" in page or "No strength is recommended" in page
    sources = re.findall(r'src="(.*?)"', page)
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert str(out.parent) not in page and "http" not in re.sub(r"base64,[^\"]*", "", page)


def test_the_best_adapter_of_an_online_run_is_kept(shown: Any) -> None:
    kind, out, lines = shown
    if kind == "positive":
        assert sorted(path.name for path in out.glob("checkpoint*")) == ["checkpoint-000002.pt", "checkpoint-000004.pt"]
        assert not (out / "best").exists()
    else:
        best = read_adapter(out / "best").config
        assert best.kind == "policy" and best.tilt <= read_adapter(out / "adapter").config.tilt
        assert RunReport.from_json((out / "best" / "run_report.json").read_bytes()).rewards
        assert any(line.startswith("best so far, written to") for line in lines)
        assert {line["step"] for line in lines_of(out / "sweeps.jsonl")} == {2, 4}


def test_a_folder_of_liked_pictures_has_no_verdict_and_no_path(model: str, tmp_path: Path) -> None:
    data = picture_folder(tmp_path / "my likes")
    settings = {key: value for key, value in SMALL.items() if key not in ("reward", "prompts", "optimality")}
    run(model, tmp_path / "run", settings, **SHOWN, data=str(data))
    report = RunReport.from_json((tmp_path / "run" / "adapter" / "run_report.json").read_bytes())
    assert report.hacking is None and [curve.name for curve in report.rewards] == ["sharpness"]
    assert "not measured" in (tmp_path / "run" / "report.html").read_text()
    training = read_adapter(tmp_path / "run" / "adapter").config.training
    assert training["pool"]["source"] == training["settings"]["data"] == "my likes"
    assert str(tmp_path) not in json.dumps(training)


def test_paths_become_names_and_nothing_else_does(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    given = {"data": str(tmp_path / "a" / "b"), "targets": ["attn.to_q"], "reward": "my.module:f", "base": "owner/name"}
    assert without_paths(given) == {**given, "data": "b"}
    assert without_paths({"rewards": {"hps": {"weights": str(tmp_path / "gone.pt")}}}) == {
        "rewards": {"hps": {"weights": "gone.pt"}}
    }


def test_older_checkpoints_are_kept_by_step(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    (tmp_path / "checkpoint-mine.pt").write_bytes(b"mine")
    for step in (100, 200, 300, 1_000_000):
        checkpoint.save_checkpoint(path, {"step": step})
        checkpoint.rotate(path, step, 2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "checkpoint-000300.pt",
        "checkpoint-1000000.pt",
        "checkpoint-mine.pt",
        "checkpoint.pt",
    ]
    assert torch.load(tmp_path / "checkpoint-000300.pt")["step"] == 300
    checkpoint.rotate(path, 300, 2)  # gone back to 300: what came after is given up
    assert not (tmp_path / "checkpoint-1000000.pt").exists()


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.logged.append((-1, {}))


def test_other_trackers_get_the_same_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun: list[dict[str, Any]] = []
    fake, seen = types.ModuleType("wandb"), FakeRun()
    fake.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    fake.config = types.SimpleNamespace(update=lambda values, **_: begun.append(values))  # type: ignore[attr-defined]
    fake.init = lambda **given: begun.append(given) or seen  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = TrainConfig.from_mapping({**SMALL, "trackers": ["wandb"]})
    for step in (0, 3):  # begun, and gone on
        written = Records(tmp_path, config, step)
        written.log("losses", {"step": step + 1, "policy": 0.5, "mean": {"a b": 2}, "verdict": "none"}, step + 1)
        written.close()
    assert seen.logged == [
        (1, {"losses/policy": 0.5, "losses/mean a b": 2.0}),
        (-1, {}),
        (4, {"losses/policy": 0.5, "losses/mean a b": 2.0}),
        (-1, {}),
    ]
    assert begun[0]["id"] == begun[2]["id"] and begun[0]["project"] == "diffusion-nft" and begun[1]["rank"] == 2


def test_a_missing_package_is_named_by_check(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = records.importlib.util.find_spec
    gone = {"trackio", "tensorboardX"}
    monkeypatch.setattr(records.importlib.util, "find_spec", lambda name: None if name in gone else real(name))
    with pytest.raises(TrackerError, match=r"tensorboardX is not installed: pip install \"diffusion-nft\[train\]\""):
        check_trackers([])
    gone.remove("tensorboardX")
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "base_model": model, "trackers": ["trackio"], "watch_reward": "sharpnes"}))
    faults = "\n".join(check(path, None, tmp_path / "out", say=lambda line: None, device="cpu"))
    assert "trackers: the package trackio is not installed: pip install trackio, or take trackio out of" in faults
    assert "reward 'sharpnes' is not known; did you mean 'sharpness'?" in faults


@pytest.mark.parametrize("kind", PLAIN)
def test_check_tries_what_will_be_shown(kind: str, model: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**PLAIN[kind], **MORE[kind], "base_model": model}))
    assert check(path, None, tmp_path / "out", say=lambda line: None, device="cpu") == []
    assert os.listdir(tmp_path) == ["run.yaml"]


def test_a_line_cut_short_by_a_kill_is_forgotten(tmp_path: Path) -> None:
    config = TrainConfig.from_mapping(SMALL)
    (tmp_path / "losses.jsonl").write_text('{"step": 1, "policy": 0.5}\n{"step": 2, "policy": 0.4}\n{"step": 3, "pol')
    written = Records(tmp_path, config, 1)
    written.forget_after("losses", 1)
    written.log("losses", {"step": 2, "policy": 0.25, "alpha": 0.7}, 2)
    written.close()
    assert [line["step"] for line in lines_of(tmp_path / "losses.jsonl")] == [1, 2]
    assert written.rows("losses") == [{"step": 1, "policy": 0.5}, {"step": 2, "policy": 0.25, "alpha": 0.7}]
