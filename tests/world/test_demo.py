"""The demo as a command: what it writes, and that it can be asked for again."""

from pathlib import Path

import pytest

from nft_pipeline.adapter import read_adapter
from nft_pipeline.cli import main
from nft_pipeline.models import MODELS, shipped_adapter
from nft_pipeline.training.demo.worlds import DEMOS
from nft_pipeline.training.run import trainer
from nft_pipeline.training.settings.config import TrainConfig

WRITTEN = {"run", "strengths.png", "promise.png", "table.md", "table.json", "adapter"}


def test_a_demo_whose_run_is_finished_measures_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A finished run gives back its adapter without a new look at alpha."""
    folder = shipped_adapter("shapes-warm")
    assert folder is not None
    finished = trainer.TrainResult(read_adapter("shapes-warm"), folder, [], {})
    (tmp_path / "demo" / "run").mkdir(parents=True)
    monkeypatch.setattr(trainer, "train", lambda config, out: finished)
    assert main(["demo", "--model", "shapes", "--n", "60", "--out", str(tmp_path / "demo")]) == 0
    assert {path.name for path in (tmp_path / "demo").iterdir()} == WRITTEN
    assert "run/report.html has it" in (tmp_path / "demo" / "table.md").read_text(encoding="utf-8")


def test_every_shipped_model_has_a_demo_of_its_own() -> None:
    assert set(DEMOS) == set(MODELS)
    for model, world in DEMOS.items():
        config = TrainConfig.from_yaml(world.preset)
        assert (config.base_model, config.held_out_prompts) == (model, world.held_out)
