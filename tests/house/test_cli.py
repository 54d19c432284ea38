"""The command line: help for every command, exit codes, and errors a person can act on."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from argparse import SUPPRESS

import pytest

from nft_pipeline.cli import COMMANDS, Command, command_parser, main


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "fail", Command("helpers.failing_command", "fails"))


def test_without_arguments_it_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +{re.escape(c.summary)}$", listed, re.MULTILINE) for name, c in COMMANDS.items())
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == listed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"diffusion-nft \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "nft_pipeline", "nosuch"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith("diffusion-nft: error: there is no command 'nosuch'")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_each_of_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: diffusion-nft {name} ")
    module = importlib.import_module(COMMANDS[name].module)
    parser = command_parser(name, module)
    assert parser.description
    assert " ".join(parser.description.split()) in " ".join(shown.split())
    for action in parser._actions:
        assert action.help is SUPPRESS or action.help, f"{name} {action.option_strings} has no help"


def test_a_typo_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["smaple", "a ring"]) == 2
    assert "there is no command 'smaple'; did you mean 'sample'?" in capsys.readouterr().err
    assert main(["zzz"]) == 2
    assert f"expected one of {', '.join(COMMANDS)}." in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--nosuch"], ["env", "--nosuch"], ["info"], ["sample", "x", "--steps", "few"]])
def test_wrong_options_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage: diffusion-nft" in capsys.readouterr().err


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize("code", [0, 1])
def test_the_command_decides_the_exit_code(code: int) -> None:
    assert main(["fail", "--code", str(code)]) == code


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ("value", 2, "error: beta is -1, expected a number above 0"),
        ("missing", 2, "nowhere.png"),
        ("silent", 2, "error: ValueError"),
        ("interrupt", 130, "stopped"),
        ("scipy", 2, '`fail` needs scipy, which is not installed: pip install "diffusion-nft[train]"'),
        ("peft", 2, "`fail` needs peft, which is not installed: pip install diffusion-nft"),
    ],
)
def test_errors_become_one_message(error: str, code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fail", "--raise", error]) == code
    err = capsys.readouterr().err
    assert err.startswith("diffusion-nft: ")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize("arguments", [["--debug", "fail"], ["fail", "--debug"]])
def test_debug_adds_the_traceback(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--raise", "value"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.rstrip().endswith("diffusion-nft: error: beta is -1, expected a number above 0")


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize("error", ["ours", "broken", "bug"])
def test_our_own_faults_are_not_hidden(error: str) -> None:
    with pytest.raises((ImportError, RuntimeError)):
        main(["fail", "--raise", error])


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m nft_pipeline reward list | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert (done.stdout.strip(), done.stderr) == ("141", "")
