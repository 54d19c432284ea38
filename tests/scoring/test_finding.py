"""Rewards by name, path and entry point; several as one; faults in one report."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import my_rewards
from helpers.plain_pictures import noise, plain
from nft_pipeline.cli import main
from nft_pipeline.training.rewards import RewardError, load_reward, load_rewards, parse_rewards, registry
from nft_pipeline.training.rewards.find import as_probability, find_reward
from nft_pipeline.training.rewards.pictures import to_arrays

MINE = "helpers.my_rewards"


def test_a_mapping_is_parsed() -> None:
    entries = parse_rewards({"image_reward": 1, f"{MINE}:redness": 0.2, "ocr": {"weight": 0.5, "device": "cpu"}})
    assert [(e.name, e.weight, dict(e.options)) for e in entries] == [
        ("image_reward", 1.0, {}),
        (f"{MINE}:redness", 0.2, {}),
        ("ocr", 0.5, {"device": "cpu"}),
    ]


def test_all_faults_make_one_report() -> None:
    with pytest.raises(RewardError) as caught:
        parse_rewards({"image_rewrd": 1.0, "ocr": "much", "likes": True, "zzz": 1, 3: 1})
    report = str(caught.value)
    for phrase in (
        "5 faults",
        "reward 'image_rewrd' is not known; did you mean 'image_reward'?",
        "weight of 'ocr' is 'much', expected a number",
        "weight of 'likes' is True",
        f"known: {', '.join(registry.known_rewards())}",
        "3 is not a reward's name",
    ):
        assert phrase in report


@pytest.mark.parametrize(
    ("spec", "phrase"), [({}, "expected a mapping"), ("ocr", "expected a mapping"), ({"ocr": 0}, "every weight is 0")]
)
def test_a_spec_without_rewards_is_refused(spec: object, phrase: str) -> None:
    with pytest.raises(RewardError, match=phrase):
        parse_rewards(spec)


def test_a_mix_is_the_weighted_mean_of_probabilities() -> None:
    pictures = [plain("rgb(255,0,0)"), plain("rgb(51,102,102)")]
    mix = load_rewards({f"{MINE}:redness": 3.0, f"{MINE}:Darkness": {"weight": -1, "batch": 1}}, device="cuda:7")
    output = mix(pictures, ["", ""])
    red, light = torch.tensor([1.0, 0.2]), torch.tensor([85 / 255, 85 / 255])
    # Darkness says smaller is better, the weight below 0 turns that round: lighter is better.
    assert torch.allclose(output.scores, 0.75 * red + 0.25 * light)
    assert output.details[f"{MINE}:Darkness"] == pytest.approx([85.0, 85.0])
    assert output.details[f"{MINE}:Darkness.prompt"] == ["", ""]
    assert mix.parts[f"{MINE}:Darkness"][0].device == "cuda:7"  # type: ignore[attr-defined]
    assert not mix.differentiable and load_rewards({f"{MINE}:Darkness": 1}).differentiable


def test_a_mix_is_cached_only_if_every_part_has_a_version() -> None:
    assert load_rewards({f"{MINE}:Darkness": 1}).info.version
    assert not load_rewards({f"{MINE}:Darkness": 1, f"{MINE}:redness": 1}).info.version


def test_a_reward_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = metadata.EntryPoint("tidy", f"{MINE}:Darkness", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [point] * (group == registry.ENTRY_POINTS))
    assert type(load_reward("tidy", batch=3)).__name__ == "Darkness"
    with pytest.raises(RewardError, match="did you mean 'tidy'"):
        load_reward("tidi")


def test_an_instance_is_taken_as_it_is() -> None:
    assert load_reward(f"{MINE}:made_already") is my_rewards.made_already


def test_a_module_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_my_yaml.py").write_text(
        "def half(images, prompts, metadata):\n    return [0.5] * len(images)\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_reward("beside_my_yaml:half")([plain("red")], [""]).scores.tolist() == [0.5]
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "options", "phrase"),
    [
        ("no.such.module:f", {}, "cannot be imported: No module named 'no'"),
        (f"{MINE}:nothing", {}, "has no attribute 'nothing'"),
        (f"{MINE}:number", {}, "is a int; expected a Reward or a function"),
        (f"{MINE}:redness", {"device": "cpu"}, "is a function and takes no options, got device"),
        (f"{MINE}:made_already", {"device": "cpu"}, "is made already"),
        (f"{MINE}:Darkness", {"devise": "cpu"}, "has no option 'devise'; did you mean 'device'?"),
        ("jpeg_size", {"x": 1}, "has no option 'x'; it takes: none"),
    ],
)
def test_what_cannot_be_loaded_is_named(name: str, options: dict, phrase: str) -> None:
    with pytest.raises(RewardError) as caught:
        load_reward(name, **options)
    assert phrase in str(caught.value)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(RewardError, match=r'pip install "diffusion-nft\[ocr\]"'):
        load_reward("ocr")


def test_every_built_in_name_leads_to_a_reward() -> None:
    for name, path in registry.built_in().items():
        assert issubclass(registry.import_path(path, name), registry.Reward), name


def test_every_file_of_the_room_of_rewards_says_which_rewards_it_holds() -> None:
    silent = [file for file, literals in registry._literals(registry._ROOM).items() if "REWARDS" not in literals]
    assert not silent, f"{silent} in training/rewards/kinds: say REWARDS = {{name: class}}, or move it to models"


def planted_room(room: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    for name, source in files.items():
        (room / f"{name}.py").write_text(source)
    monkeypatch.setattr(registry, "_ROOM", room)


def test_a_literal_may_have_a_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted_room(tmp_path, monkeypatch, gloss='REWARDS: dict[str, str] = {"gloss": "Gloss"}\nNEEDS: dict[str, str]\n')
    assert registry.built_in() == {"gloss": "nft_pipeline.training.rewards.kinds.gloss:Gloss"}


def test_a_name_that_two_files_declare_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = 'REWARDS = {"jpeg_size": "JpegSize"}\n'
    planted_room(tmp_path, monkeypatch, pixels=copied, texture=copied, silent="")
    with pytest.raises(RewardError, match=r"'jpeg_size' is declared in pixels.py and in texture.py; .* another name"):
        registry.known_rewards()


def test_a_reward_of_others_says_what_it_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registry.lacking(my_rewards.Tidy) == "needs no_such_package, which is not installed"
    monkeypatch.setattr(my_rewards.Tidy, "needs", ("rapidocr",))
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "rapidocr", None)
        assert registry.lacking(my_rewards.Tidy) == 'needs rapidocr: pip install "diffusion-nft[ocr]"'
    monkeypatch.setattr(my_rewards.Tidy, "needs", ("no_such_package", "torch"))
    point = metadata.EntryPoint("tidy", f"{MINE}:Tidy", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [point] * (group == registry.ENTRY_POINTS))
    assert main(["reward", "list"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tidy ")]
    assert line.endswith("How tidy it is.  [needs no_such_package, which is not installed]")
    with pytest.raises(RewardError, match=r"'tidy' cannot be loaded: .*; it needs no_such_package, which is not"):
        load_reward("tidy")


def test_a_reward_made_from_a_built_in_one_needs_what_that_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = type("Reading", (registry.find_target("ocr"),), {"needs": ("no_such_package",)})
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert registry.lacking(reading) == "needs no_such_package, rapidocr, onnxruntime, which are not installed"


def test_a_module_of_others_is_not_taken_for_a_file_of_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(my_rewards.Tidy, "__module__", "ocr")
    assert registry.lacking(my_rewards.Tidy) == "needs no_such_package, which is not installed"


def test_importing_the_registry_imports_no_scorer() -> None:
    heavy = ("transformers", "diffusers", "ImageReward", "rapidocr", "open_clip", "fastapi", "requests", "scipy")
    code = (
        "import sys; from nft_pipeline.training.rewards import known_rewards; assert 'ocr' in known_rewards(); "
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_trainer_gets_probabilities_from_uint8_pictures() -> None:
    pictures = np.stack(to_arrays([noise(0, 256), plain("red", (256, 256))]))
    scores = find_reward("jpeg_size")(pictures, ["", ""])
    assert scores[0] > 0.99 and scores[1] < 0.5
    own = find_reward("jpeg_size", own_scale=True)(pictures, ["", ""])
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(2.0 - own)), rtol=1e-5)
    mix = as_probability(load_rewards({"jpeg_size": -1}))
    assert mix(pictures, ["", ""]) == pytest.approx(1 - scores, abs=1e-6)
    with pytest.raises(RewardError, match="did you mean 'jpeg_size'"):
        find_reward("jpg_size")
    spoilt = find_reward("helpers.my_rewards:spoilt")(pictures, ["good", "nan"])
    assert np.isfinite(spoilt[0]) and np.isnan(spoilt[1])


def test_the_list_names_every_reward_and_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda package: None)
    assert main(["reward", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    described = {line.split()[0]: line for line in lines if not line.startswith(("entry", "Besides")) and line}
    assert set(described) == set(registry.known_rewards())
    assert 'needs rapidocr, onnxruntime: pip install "diffusion-nft[ocr]"' in described["ocr"]
    assert all(len(line.split()) > 4 for line in described.values()) and "needs" not in described["sharpness"]
