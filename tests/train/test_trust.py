"""A settings file that names code is asked about before anything of it is imported."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from nft_pipeline.cli import main
from nft_pipeline.training.errors import ConfigError
from nft_pipeline.training.settings.file import preset_names, read_settings
from nft_pipeline.training.settings.trust import ask_before_code, code_in


class Terminal(io.StringIO):
    """A person at the keyboard."""

    def isatty(self) -> bool:
        """Yes."""
        return True


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settings file and the module it names, which leaves a trace when it is imported."""
    (tmp_path / "evil_reward.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "run.yaml"
    path.write_text(
        yaml.safe_dump({"preset": "shapes_warm", "reward": "evil_reward:Reward", "reward_description": "x"})
    )
    return path


@pytest.mark.parametrize("command", ["train", "check"])
def test_nobody_to_ask_is_a_no(command: str, theirs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main([command, str(theirs), "--device", "cpu"]) == 2
    said = capsys.readouterr()
    assert "names code of your own or of somebody else: evil_reward:Reward" in said.out + said.err
    assert "--trust" in said.out + said.err and not Path("ran").exists()


@pytest.mark.parametrize(("answer", "goes_on"), [("y", True), ("YES", True), ("", False), ("n", False)])
def test_a_person_is_asked(answer: str, goes_on: bool, theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(f"{answer}\n"))
    if goes_on:
        ask_before_code(str(theirs), {}, trust=False)
    else:
        with pytest.raises(ConfigError, match="look at it first, then give --trust"):
            ask_before_code(str(theirs), {}, trust=False)


def test_what_is_ones_own_is_not_asked_about(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    ask_before_code(str(theirs), {}, trust=True)
    ask_before_code(str(theirs), {"reward": "mine:Reward"}, trust=False)
    for preset in preset_names():
        assert code_in(read_settings(preset)) == []
    settings = {"rewards": {"remote:http://x:1": 1, "a:B": 1, "ocr": 1}, "prompts": "c:d", "watch_reward": "a:B"}
    assert code_in(settings) == ["a:B", "c:d"]
