"""Every setting has a check and a text, and the page, the command and the presets say what stands there."""

import re
from dataclasses import dataclass
from typing import Annotated

import pytest

from helpers.repository import ROOT
from helpers.settings_page import PAGE, page
from nft_pipeline.checks import number
from nft_pipeline.cli import main
from nft_pipeline.training.settings.config import TrainConfig
from nft_pipeline.training.settings.explain import explain, explained_section, explained_sections
from nft_pipeline.training.settings.file import PRESETS
from nft_pipeline.training.settings.section import Section

SETTINGS = [setting for section in explained_sections() for setting in section.settings]
# What a person does with a setting; a text's last paragraph begins a sentence with one of these.
ADVICE = re.compile(r"(^|[.;:] )(Add|Change|Choose|Give|Keep|Leave|Lower|Name|Raise|Set|Stay|Use) ")


def test_sections_hold_all_settings_in_their_order() -> None:
    config = TrainConfig.from_yaml("shapes_warm")
    assert [setting.name for setting in SETTINGS] == list(config.to_dict()) == list(TrainConfig.checks)
    assert all(section.title and section.text for section in explained_sections())


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_says_what_it_is_and_when_to_change_it(setting, capsys) -> None:
    assert len(setting.paragraphs) > 1, f"the text of {setting.name} needs a second paragraph: when to change it"
    meaning, advice = setting.paragraphs[0], " ".join(setting.paragraphs[1:])
    assert len(meaning) > 20 and meaning.endswith(".") and advice.endswith(".")
    assert ADVICE.search(advice), f"the text of {setting.name} has no sentence on when to change it: {advice}"
    assert main(["train", "--explain", setting.name]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert setting.facts in printed and all(paragraph in printed for paragraph in setting.paragraphs)


def test_the_page_is_made_from_the_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it again: make pages"


@pytest.mark.parametrize("arguments", [["--explain"], ["--explain", "all"], ["shapes_warm", "--explain"]])
def test_without_a_name_all_are_listed(arguments, capsys) -> None:
    assert main(["train", *arguments]) == 0
    printed = capsys.readouterr().out
    for section in explained_sections():
        assert f"{section.title}\n  {section.settings[0].name} " in printed
    assert all(setting.first_sentence in " ".join(printed.split()) for setting in SETTINGS)


def test_a_setting_that_may_be_left_out_says_so() -> None:
    facts = {setting.name: setting.facts for setting in SETTINGS}
    assert facts["eta0"] == "a number above 0, or null; left out by default"
    assert facts["tilt"] == "a number above 0; default 2.0"
    texts = " ".join(paragraph for setting in SETTINGS for paragraph in setting.paragraphs)
    assert "Nothing " not in texts and "nothing is" not in texts and "`null`" in page()


def test_an_unknown_name_gets_the_nearest_one(capsys) -> None:
    assert main(["train", "--explain", "tlit"]) == 2
    assert "'tlit' is not a setting; did you mean 'tilt'?" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'zzz' is not a setting; `diffusion-nft train --explain` lists them"):
        explain("zzz")


def test_a_setting_without_a_check_is_named_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"the setting shine of Planted has no check; write it as `shine: Annotated"):

        class Planted(Section):
            shine: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Planted(Section):
    """Planted."""

    gloss: Annotated[float, number(0)] = 1.0
    """What it is."""

    shine: Annotated[float, number(0)] = 1.0


def test_a_setting_without_a_text_is_named() -> None:
    with pytest.raises(TypeError, match="the setting shine of Planted has no text; write one under it"):
        explained_section(Planted)


def test_the_settings_that_may_change_when_a_run_goes_on() -> None:
    cost = {"micro_batch", "pool_batch", "gradient_checkpointing", "checkpoint_every"}
    looks = {"samples_every", "sample_prompts", "sweep_size", "sweep_strengths", "sweep_every", "watch_reward"}
    looks |= {"calibration_pictures", "stop_when_hacked", "sweep_steps", "sweep_rewards", "export_every"}
    assert TrainConfig.may_change == cost | looks | {"trackers", "keep_last", "keep_best", "base_id"}


@pytest.mark.parametrize("preset", ["large_model", "shapes_warm"])
def test_every_line_of_the_presets_to_copy_is_explained(preset) -> None:
    before = ""
    for line in (PRESETS / f"{preset}.yaml").read_text(encoding="utf-8").splitlines():
        if re.match(r"\w+:", line):
            assert " # " in line or before.startswith("# "), f"{preset}: {line}"
        before = line


def test_a_default_that_its_own_check_refuses_is_named_when_the_class_is_made() -> None:
    with pytest.raises(
        TypeError, match=r"the default of the setting shine of Planted is 0.0, which its own check refuses"
    ):

        class Planted(Section):
            shine: Annotated[float, number(above=0)] = 0.0
            """Shine.

            Raise it for more.
            """


def test_the_run_reads_every_setting() -> None:
    """A setting that nothing outside training/settings reads is a promise that the run does not keep."""
    sources = [path for path in (ROOT / "training").rglob("*.py") if "settings" not in path.parts]
    sources.append(ROOT / "training" / "settings" / "config.py")  # properties over several settings
    read = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    unread = [setting.name for setting in SETTINGS if not re.search(rf"\.{setting.name}\b", read)]
    assert not unread, f"nothing in training/ reads {', '.join(unread)}"
