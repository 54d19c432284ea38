"""A run's settings, rewards and prompts: strict, and every fault is named."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from nft_pipeline.training.errors import ConfigError
from nft_pipeline.training.rewards.find import RewardError, find_prompts, find_reward
from nft_pipeline.training.settings.config import TrainConfig
from nft_pipeline.training.settings.file import PRESETS, preset_names, read_settings

DOCS = Path(__file__).parents[2] / "docs"
NEEDED = {
    "name": "x",
    "base_model": "shapes",
    "reward": "shapes_warm",
    "prompts": "shapes_warm",
    "reward_description": "warm",
    "licence": "apache-2.0",
}


@pytest.mark.parametrize("preset", preset_names())
def test_presets_load_and_name_things_that_exist(preset):
    config = TrainConfig.from_yaml(preset)
    assert callable(find_reward(config.reward))
    assert find_prompts(config.prompts) and (config.online or find_prompts(config.held_out_prompts))
    assert TrainConfig.from_mapping(config.to_dict()) == config


def test_five_mistakes_make_one_report():
    mistakes = {**NEEDED, "stepps": 10, "lr": -1, "rank": 2.5, "precision": "fp8", "ema": 1.0}
    del mistakes["licence"]
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_mapping(mistakes)
    report = str(caught.value)
    for phrase in (
        "6 faults",
        "'stepps' is not a setting; did you mean 'steps'?",
        "'licence' is missing",
        "lr is -1, expected a number above 0",
        "rank is 2.5, expected a whole number from 1",
        "precision is 'fp8', expected auto, fp32, bf16 or fp16",
        "ema is 1.0, expected a number from 0, below 1",
    ):
        assert phrase in report


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"name": " "}, "name is ' ', expected text"),
        ({"lora_targets": "to_q"}, "lora_targets is 'to_q', expected a list"),
        ({"lora_targets": [1]}, "lora_targets is [1]"),
        ({"tilt": float("nan")}, "tilt is nan"),
        ({"steps": True}, "steps is True"),
        ({"lr": -(10**400)}, "lr is -1000"),
        ({"seed": -1}, "seed is -1, expected a whole number from 0"),
        ({"held_out_prompts": 3}, "held_out_prompts is 3, expected text"),
        ({"rewards": {"a": 0}}, "rewards is a mapping with a, expected names with weights above 0"),
        ({"rewards": {"a": 1.0}}, "and rewards has a: put all into rewards"),
        ({"reward": ""}, "'reward' is missing"),
        ({"mix": "sum"}, "mix is 'sum', expected mean or product"),
        ({"mix": "product"}, "mix is 'product' with 1 of `rewards`: it needs two or more"),
        ({"mix": "product", "reward": "", "rewards": {"a": 1, "b": 2}}, "a product has none, set each to 1"),
        (
            {"mix": "product", "reward": "", "rewards": {"a": 1, "b": 1}, "optimality": "group"},
            "mix is 'product' with optimality 'group'",
        ),
        ({"prompts": None}, "'prompts' is missing"),
        ({"group_size": 1}, "group_size is 1, expected a whole number from 2"),
        ({"old": "ema"}, "old is 'ema', expected copy, ramp, late_ramp, or a number from 0, below 1"),
        ({"refit": 1.5}, "refit is 1.5, expected a number from 0 to 1"),
        ({"refit": 0.5, "objective": "positive"}, "refit is 0.5 with objective 'positive': it belongs to 'policy'"),
        ({"old": 1}, "old is 1, expected copy, ramp, late_ramp, or a number from 0, below 1"),
        ({"old": []}, "old is [], expected copy, ramp, late_ramp, or a number from 0, below 1"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing is 1, expected true or false"),
        ({"objective": "nft"}, "objective is 'nft', expected positive, policy or paper, or null"),
        ({"data": "pictures", "rounds": 2}, "a folder is for offline runs, rounds for online ones"),
        ({"objective": "positive", "rounds": 2}, "online runs train 'policy' or 'paper'"),
        ({"eta0": 4.0}, "eta0 is 4 with objective 'positive': the anchor belongs to 'policy'"),
        ({"optimality": "threshold"}, "optimality_at is missing"),
        ({"optimality": "top", "optimality_at": 30.0}, "optimality_at is 30, expected a share inside 0 and 1"),
        ({"optimality": "exponential", "optimality_at": 0.0}, "optimality_at is 0, expected an exponent above 0"),
        ({"sweep_strengths": [1, 2]}, "sweep_strengths is [1, 2], expected a list of different strengths from 0 on, 0"),
        ({"sweep_strengths": [0, "1"]}, "sweep_strengths is [0, '1']"),
        ({"sample_prompts": "a cat"}, "sample_prompts is 'a cat', expected a list of prompts"),
        ({"trackers": ["wandbb"]}, "trackers is ['wandbb'], expected a list of wandb and trackio"),
        ({"keep_last": 0}, "keep_last is 0, expected a whole number from 1"),
        ({"watch_reward": "shapes_warm"}, "watch_reward is 'shapes_warm', which is trained on; watch one that is not"),
        ({"keep_best": True}, "keep_best is true, which needs an online run with sweeps to compare"),
        ({"optimality": "group"}, "needs groups of one prompt (rounds above 0); use top or rank"),
        ({"stop_when_hacked": True}, "stop_when_hacked is true, which needs an online run that looks for it"),
    ],
)
def test_a_bad_value_is_named(change, phrase):
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{**NEEDED, **change})
    assert phrase in str(caught.value)


def test_a_word_that_yaml_reads_as_true_or_false_is_explained(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("preset: shapes_warm\nname: off\n")
    with pytest.raises(ConfigError, match=r"name is False .YAML reads on, off, yes and no.*put a word into quotes"):
        TrainConfig.from_yaml(path)


def test_aliases_that_stand_for_billions_of_values_make_a_short_error(tmp_path):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    path = tmp_path / "run.yaml"
    path.write_text("\n".join([*lines, "preset: shapes_warm", "lr: *i", "sample_prompts: *i", ""]))
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_yaml(path)
    assert "lr is [[[..., ..., " in str(caught.value) and len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("beta", "tilt is 2 / beta: for a beta of 0.1 set tilt: 20"),
        ("learning_rate", "it is called lr here"),
        ("max_train_steps", "it is called steps here"),
        ("eval_every", "it is called sweep_every here"),
        ("network_dim", "it is called rank here"),
        ("lora_alpha", "a LoRA's alpha is its rank here"),
        ("stepss", "did you mean 'steps'?"),
    ],
)
def test_names_of_other_trainers_say_what_they_are_called_here(key, hint):
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_mapping({**NEEDED, key: 1})
    assert f"{key!r} is not a setting; {hint}" in str(caught.value)


def test_every_name_that_is_hinted_at_is_a_setting():
    from nft_pipeline.training import elsewhere

    assert elsewhere._SAME.keys() <= TrainConfig.checks.keys()
    assert not elsewhere._HINTS.keys() & TrainConfig.checks.keys()


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "1E-04", "+1e-4", "0.1e-3", ".1e-3"])
def test_a_number_in_yaml_may_have_an_exponent_alone(tmp_path, text):
    run = tmp_path / "run.yaml"
    run.write_text(f"preset: sdxl\nname: mine\nlr: {text}\n")
    assert TrainConfig.from_yaml(run).lr == pytest.approx(1e-4)
    run.write_text(f"preset: sdxl\nname: '{text}'\n")
    assert TrainConfig.from_yaml(run).name == text


def test_nothing_behind_the_colon_is_the_empty_text_wherever_that_is_the_default():
    empty = {entry.name for entry in fields(TrainConfig) if entry.default == ""}
    assert {"watch_reward", "negative_prompt", "reward"} <= empty
    for name in empty - {"reward"}:  # a run without any reward is at fault for that
        assert getattr(TrainConfig.from_yaml("shapes_warm", {name: None}), name) == ""
        assert getattr(TrainConfig.from_mapping({**read_settings("shapes_warm"), name: None}), name) == ""
    with pytest.raises(ConfigError, match="name is None, expected"):
        TrainConfig.from_yaml("shapes_warm", {"name": None})


def test_yaml_files_that_cannot_be_used(tmp_path):
    with pytest.raises(ConfigError, match=r"neither a file nor a preset; presets: emoji_3d, .*, large_model, "):
        TrainConfig.from_yaml(tmp_path / "nothing.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"broken.yaml is not YAML"):
        TrainConfig.from_yaml(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(ConfigError, match="holds list"):
        TrainConfig.from_yaml(tmp_path / "list.yaml")
    assert TrainConfig.from_yaml("shapes_warm", {"steps": 7}).steps == 7


def test_a_file_over_a_preset(tmp_path):
    run = tmp_path / "my_run.yaml"
    run.write_text("preset: sdxl\nname: mine\nlr: 0.001\n")
    config, preset, large = (TrainConfig.from_yaml(source) for source in (run, "sdxl", "large_model"))
    assert (config.name, config.lr) == ("mine", 0.001)
    assert (config.reward, config.optimality, config.prompts) == ("colourfulness", "top", "shapes_warm")
    assert (config.base_model, config.resolution) == (preset.base_model, preset.resolution) != (large.base_model, 512)
    assert config.rank == preset.rank == large.rank  # a preset may stand on another
    assert TrainConfig.from_yaml(run, {"lr": 0.5}).lr == 0.5
    run.write_text("preset: sdlx\nname: mine\n")
    with pytest.raises(ConfigError, match=r"my_run.yaml: preset is 'sdlx', expected one of .*; did you mean 'sdxl'\?"):
        TrainConfig.from_yaml(run)
    run.write_text("preset: [1]\n")
    with pytest.raises(ConfigError, match=r"preset is \[1\], expected one of"):
        TrainConfig.from_yaml(run)


@pytest.mark.parametrize(
    ("own", "kept"), [("reward: emoji_dark", False), ("data: pictures", False), ("prompts: mine.txt", True)]
)
def test_the_words_of_a_pool_belong_to_the_presets_reward(own, kept, tmp_path):
    (run := tmp_path / "my_run.yaml").write_text(f"preset: emoji_3d\nname: mine\n{own}\n")
    wordings = read_settings("emoji_3d")["pool_wordings"]
    assert wordings and read_settings(run).get("pool_wordings", []) == (wordings if kept else [])


@pytest.mark.parametrize(
    ("own", "reward", "prompts"),
    [
        ("data: pictures", "", (None, None)),
        ("prompts: mine.txt", "colourfulness", ("mine.txt", None)),
        ("reward: sharpness", "sharpness", ("shapes_warm", "shapes_warm_held_out")),
        ("rewards: {sharpness: 1.0, colourfulness: 2.0}", "", ("shapes_warm", "shapes_warm_held_out")),
    ],
)
def test_what_a_file_judges_by_or_draws_replaces_all_of_the_presets(own, reward, prompts, tmp_path):
    run = tmp_path / "my_run.yaml"
    run.write_text(f"preset: sdxl\nreward_description: mine\n{own}\n")
    config = TrainConfig.from_yaml(run)
    assert (config.reward, config.prompts, config.held_out_prompts) == (reward, *prompts)
    assert config.optimality == ("top" if own.startswith("prompts") else "raw")  # what colourfulness needs
    if not own.startswith("prompts"):
        run.write_text(f"preset: sdxl\n{own}\n")
        with pytest.raises(ConfigError, match="'reward_description' is missing"):
            TrainConfig.from_yaml(run)


def fits_first_line(first, computed):
    """Whether a preset's first comment says what it is sized for, or that nobody has computed it."""
    return bool(re.search(r"for \d+ GB" if computed else "memory not computed", first))


def test_a_preset_without_computed_memory_says_so():
    sized, unknown = "# A model at 512 px, for 8 GB.", "# A model at 512 px; memory not computed."
    assert fits_first_line(sized, True) and fits_first_line(unknown, False)
    assert not fits_first_line(sized, False) and not fits_first_line(unknown, True)


def test_every_preset_of_a_family_says_what_memory_it_needs():
    """Its row in docs/measured/memory.md, of these very settings; or that nobody has computed one."""
    table = (DOCS / "measured" / "memory.md").read_text(encoding="utf-8").split("A step of")[0]
    rows = [
        line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ") and " pixels " not in line
    ]
    texts = {path.stem: path.read_text(encoding="utf-8") for path in PRESETS.glob("*.yaml")}
    families = {name: text.partition("\n")[0] for name, text in texts.items() if "\npreset: large_model\n" in text}
    computed = [row[0] for row in rows]
    gone = sorted(set(computed) - set(families))
    assert families and not gone, f"docs/measured/memory.md has rows of presets that are gone: {gone}"
    for name, first in families.items():
        assert fits_first_line(first, name in computed), (
            f"training/presets/{name}.yaml begins with {first!r}; expected a line with 'for N GB' and a row of the "
            "preset in docs/measured/memory.md (tests/benchmarks/memory.py writes it), or with 'memory not computed' "
            "and no row"
        )
    for name, resolution, micro_batch, saved, *phases in rows:
        config = TrainConfig.from_yaml(name)
        saving = [config.quantise] * (config.quantise != "none") + ["checkpointing"] * config.gradient_checkpointing
        assert (resolution, micro_batch) == (str(config.resolution), str(config.micro_batch)), name
        assert saved == (", ".join(saving) or "nothing"), name
        card = int(re.findall(r"for (\d+) GB", families[name])[0])
        assert 1.1 * max(map(float, phases)) <= card, f"{name} is for {card} GB and needs {phases} GiB, phase by phase"


def test_rewards_and_prompts_are_found_by_name_by_function_and_by_file(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    bright = find_reward("helpers.tiny_run:bright")(pictures, ["", ""])
    np.testing.assert_allclose(bright, pictures.mean(axis=(1, 2, 3)) / 255, rtol=1e-6)
    with pytest.raises(RewardError, match="'jpeg_size' has no option 'quality'"):
        find_reward("jpeg_size", quality=10)
    assert find_prompts("shapes_warm") == find_prompts("nft_pipeline.training.shapes.prompts:warm_prompts")
    (tmp_path / "prompts.txt").write_text("a circle\n\n  a cross \n")
    assert find_prompts(str(tmp_path / "prompts.txt")) == ["a circle", "a cross"]


def test_prompts_of_a_file_or_a_function_are_found_without_the_shapes_world(tmp_path):
    (tmp_path / "prompts.txt").write_text("a circle\n")
    (tmp_path / "my_texts.py").write_text("def mine():\n    return ['a cross']\n")
    code = (
        "import sys; from nft_pipeline.training.rewards.find import find_prompts; "
        "print(find_prompts('prompts.txt') + find_prompts('my_texts:mine'), 'scipy' in sys.modules)"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "['a circle', 'a cross'] False", done.stderr


@pytest.mark.parametrize(
    ("find", "name", "phrase"),
    [
        (find_reward, "shape_warm", "did you mean 'shapes_warm'?"),
        (find_reward, "no.such.module:f", "cannot be imported"),
        (find_reward, "math:no_such", "cannot be imported"),
        (find_prompts, "missing.txt", "the path of a text file"),
    ],
)
def test_a_reward_or_prompt_list_that_is_not_there_is_named(find, name, phrase):
    with pytest.raises(RewardError, match=phrase.replace("?", r"\?")):
        find(name)


def test_an_empty_prompt_list_is_named(tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(RewardError, match="is an empty list"):
        find_prompts(str(tmp_path / "empty.txt"))
