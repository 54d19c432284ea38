"""env, info and sample, run as a person runs them, on a tiny model with random weights."""

from __future__ import annotations

import getpass
import json
import platform
import re
import shutil
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.dials import further_dial, measured_dial, unlearned_dial
from helpers.foreign import official_checkpoint, peft_model
from helpers.tiny import tiny_adapter, tiny_pipe
from nft_pipeline.adapter import write_adapter
from nft_pipeline.cli import main
from nft_pipeline.commands import sample
from nft_pipeline.commands.columns import Columns
from nft_pipeline.commands.guided import default_adapters
from nft_pipeline.dial.measured import Dial
from nft_pipeline.dial.promise import Promise
from nft_pipeline.engine.stats import NFTStats
from nft_pipeline.grid import labelled_grid, scale_for
from nft_pipeline.models import ADAPTERS, MODELS, example_prompts
from nft_pipeline.sampling import draw


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A base model and an adapter for it, on disk."""
    folder = tmp_path_factory.mktemp("tiny")
    pipe = tiny_pipe()
    pipe.save_pretrained(folder / "model")
    defaults = {"num_inference_steps": 2, "guidance_scale": 1.0, "max_sequence_length": 4}
    (folder / "model" / "call_defaults.json").write_text(json.dumps(defaults))
    write_adapter(folder / "adapter", tiny_adapter(pipe.transformer))
    return str(folder / "model"), str(folder / "adapter")


def test_env_gives_versions_and_device_and_nothing_private(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    assert platform.python_version() in shown
    assert torch.__version__ in shown
    assert "bfloat16" in shown
    private = {str(Path.home()), str(Path.cwd()), platform.node(), torch.__file__}
    private |= {f"/{getpass.getuser()}", "/site-packages"}
    assert not [text for text in private if text and text in shown]


def test_env_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"] == torch.__version__
    assert {"python", "diffusers", "device", "bfloat16", "scipy (train)"} <= facts.keys()


def test_info_shows_what_the_adapter_is(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", folders[1]]) == 0
    shown = capsys.readouterr().out
    for text in (
        "positive (LoRA is v_plus",
        "tiny/sd3",
        "SD3Transformer2DModel",
        "1, 2 (tilt = 2/beta",
        "rank 2",
        "apache-2.0",
    ):
        assert text in shown
    assert "reads 'norm_out', sees the prompt" in shown
    assert "8 x 8 px" in shown
    assert re.search(r"^dial +not calibrated: run diffusion-nft calibrate$", shown, re.MULTILINE)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The adapter of `folders` with a dial."""
    return _dialled(tmp_path_factory.mktemp("calibrated"), measured_dial())


def _dialled(folder: Path, dial: Dial) -> str:
    adapter = tiny_adapter(tiny_pipe().transformer)
    write_adapter(folder / "adapter", replace(adapter, config=replace(adapter.config, dial=dial)))
    return str(folder / "adapter")


def test_info_says_what_each_strength_does(calibrated: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", calibrated]) == 0
    rows = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (
        rows["dial"]
        == "30% ± 1.2% liked without guidance, judged by the reward 'red', from 1500 pictures of 48 prompts"
    )
    assert rows["strength 1"] == "70% ± 2.0% liked" and rows["strength -1"] == "10% ± 1.0% liked"
    assert rows["strength 2.5"] == "92% ± 1.0% liked" and "strength 3" not in rows
    assert rows["reach"].startswith("reaches 92% at strength 2.5, and 10% at -1; more is not to be had")
    assert rows["drawn in"].startswith("one pass, at one weight for all, as LoRA weight is (mode single)")
    assert rows["measured at"] == "guidance scale 1 (single, two_pass), 3 (single), 3 steps"
    assert rows["strength"].startswith("1 recommended")


def test_info_says_where_the_own_way_goes_on_in_two_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", _dialled(tmp_path, further_dial())]) == 0
    rows = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["strength 1"] == "70% ± 2.0% liked" and rows["strength 4"] == "97% ± 1.0% liked"
    assert rows["strength 3"].startswith("9"), "between the ends of one pass and of two"
    assert rows["reach"].startswith("reaches 97% at strength 4 (beyond 2.5 in two passes), and 10% at -1; more is not")
    assert rows["drawn in"] == (
        "one pass, at one weight for all, as LoRA weight is; beyond strength 2.5 two passes, at one weight for all "
        "(mode single and then two_pass) unless a mode is asked for"
    )


def test_info_recommends_nothing_that_was_not_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", _dialled(tmp_path, unlearned_dial())]) == 0
    shown = capsys.readouterr().out
    assert "none recommended" in shown and "1 recommended" not in shown
    assert re.search(r"^  reach +not learnable from this: no weight surely raises", shown, re.MULTILINE)


def test_info_as_json(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", folders[1], "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "positive"
    assert facts["tilt"] == 2.0
    assert facts["lora_layers"] > 0
    assert facts["alpha_head_parameters"] > 0


def test_info_of_nothing_is_one_clean_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("diffusion-nft: error: ")
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of the official trainer for the base model in `folders`."""
    model = peft_model(tiny_pipe().transformer, old=True)
    return str(official_checkpoint(tmp_path_factory.mktemp("official"), model))


def test_info_of_somebody_elses_checkpoint(official: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", official]) == 0
    shown = capsys.readouterr().out
    for text in ("peft folder, not an adapter of this package", "not recorded", "rank 4, 15 layers", "--kind policy"):
        assert text in shown
    assert re.search(r"^scale +2 \(multiplied into the LoRA", shown, re.MULTILINE)
    assert "the adapter called old beside it" in shown
    assert main(["info", official, "--subfolder", "lora/old", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["ranks"], facts["scales"], facts["old"]) == ([2], [3.0], False)
    spoilt = shutil.copytree(Path(official) / "lora" / "old", tmp_path / "spoilt")
    (spoilt / "adapter_config.json").write_text('{"use_dora": true}')
    assert main(["info", str(spoilt)]) == 2
    assert "it is a DoRA" in capsys.readouterr().err


def test_sample_of_somebody_elses_checkpoint(
    folders: tuple[str, str], official: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "sample",
        "a ring",
        "--seeds",
        "0",
        "--strengths",
        "0",
        "1",
        "--model",
        folders[0],
        "--adapter",
        official,
    ]
    command += ["--device", "cpu", "--out", str(tmp_path / "grid.png")]
    assert main(command) == 2
    assert "not given: kind and beta" in capsys.readouterr().err
    assert main([*command, "--kind", "policy", "--beta", "1", "--use-old"]) == 0
    assert (tmp_path / "grid.png").is_file()


@pytest.mark.parametrize("model", MODELS)
def test_sample_takes_an_adapter_of_the_model_it_is_told(model: str, tmp_path: Path) -> None:
    """Another model's adapter would be refused."""
    command = ["sample", example_prompts(model)[0], "--model", model, "--seeds", "0", "--steps", "2"]
    assert main([*command, "--strengths", "1", "--device", "cpu", "--out", str(tmp_path / "grid.png")]) == 0


def test_the_default_adapters_are_those_of_the_model() -> None:
    assert [default_adapters(model)[0] for model in ("shapes", "emoji")] == ["shapes-warm", "emoji-3d"]
    assert sorted(name for model in MODELS for name in default_adapters(model)) == sorted(ADAPTERS)


@pytest.mark.parametrize("command", [["sample", "a ring"], ["play"]])
def test_a_model_without_adapters_asks_for_one(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--model", "someone/else"]) == 2
    assert "no shipped adapter is for the model 'someone/else'; give one with --adapter" in capsys.readouterr().err


def test_sample_writes_a_grid_and_says_what_guidance_did(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "grid.png"
    command = ["sample", "a ring", "two rings", "--seeds", "0", "1", "--strengths", "-1", "0", "1", "--batch", "3"]
    command += ["--model", folders[0], "--adapter", folders[1], "--device", "cpu", "--law", "odds", "--out", str(out)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[0] == "4 rows x 3 strengths on cpu, float32"
    table = [line.split() for line in lines[2:5]]
    assert [row[0] for row in table] == ["-1", "0", "1"]
    assert float(table[0][-2]) > 0  # the largest push
    assert float(table[1][-2]) == 0
    assert float(table[2][-2]) > 0
    assert [row[-1] for row in table] == ["2.00", "1.00", "2.00"]  # two forwards per step, one at strength 0
    with Image.open(out) as grid:
        assert grid.format == "PNG"
        assert f"({grid.width} x {grid.height} px)" in lines[-1]
        # 8 px pictures enlarged 20 times: 3 columns of 160 and the labels.
        assert grid.width > 3 * 160
        assert grid.height > 4 * 160
        assert np.asarray(grid).std() > 10


def test_sample_draws_at_the_size_that_is_asked_for(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def seen(rows: Any, *rest: Any, **more: Any) -> Image.Image:
        sizes.append(rows[0][0].size)
        return labelled_grid(rows, *rest, **more)

    monkeypatch.setattr(sample, "labelled_grid", seen)
    command = ["sample", "a ring", "--seeds", "0", "--strengths", "1", "--model", folders[0], "--adapter", folders[1]]
    command += ["--device", "cpu", "--out", str(tmp_path / "grid.png")]
    for asked in ([], ["--width", "4"], ["--width", "4", "--height", "6"]):
        assert main([*command, *asked]) == 0
    assert sizes == [(8, 8), (4, 8), (4, 6)]


def test_sample_says_what_was_promised_and_what_was_measured(
    folders: tuple[str, str], calibrated: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", "a ring", "two rings", "--seeds", "0", "1", "--model", folders[0], "--adapter", calibrated]
    command += ["--device", "cpu", "--out", str(tmp_path / "grid.png")]
    assert main([*command, "--strengths", "0", "1", "--reward", "helpers.tiny_run:bright"]) == 0
    nothing, full = capsys.readouterr().out.splitlines()[-3:-1]
    (base,) = re.findall(r"^strength 0: (\d+)% liked becomes \1%", nothing)
    assert re.fullmatch(rf"strength 1: {base}% liked becomes \d+% ± 2%; measured \d+% of 4 pictures", full)
    assert main([*command, "--rate", "0.5", "0.9"]) == 0
    half, most = capsys.readouterr().out.splitlines()[-3:-1]
    assert half.startswith("strength 0.5 (for 50% over the prompts of the calibration): ")
    assert most.startswith("strength 2.36 (for 90% over the prompts of the calibration): ")
    assert main([*command, "--rate", "0.97"]) == 2
    assert "reaches shares from 0.10 to 0.92" in capsys.readouterr().err
    for other in (["--law", "odds"], ["--also", calibrated]):
        assert main([*command, "--rate", "0.5", *other]) == 2
        assert f"does not go with {other[0]}" in capsys.readouterr().err


def test_the_heading_of_a_column_says_what_is_known() -> None:
    promised = Promise(2.0, 0.3, 0.7, 0.02, True, "single")
    columns = Columns((1.0, 2.5), promises=(promised, promised))
    assert columns.label(0, (0.75, 4)) == "strength 1\npromised 70%\nmeasured 75% (n 4)"
    assert columns.label(1, None) == "strength 2.5\npromised 70%"
    nothing = Columns((1.0,))
    assert nothing.label(0, None) == "strength 1" and nothing.words(0, None) == ""


def test_sample_with_several_adapters(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", "a ring", "--seeds", "0", "--strengths", "1", "--model", folders[0], "--adapter", folders[1]]
    command += ["--also", folders[1], "--device", "cpu", "--out", str(tmp_path / "grid.png")]
    scales = {}
    for options in ([], ["--combine", "all"], ["--combine", "any"]):
        assert main([*command, "--law", "odds", *options]) == 0
        line = capsys.readouterr().out.splitlines()[2].split()
        assert line[-1] == "3.00"  # two forwards more
        scales[tuple(options)] = float(line[4])  # of both, in the mean
    alone, _, together = scales.values()
    assert together == pytest.approx(alone / (1 + alone), abs=0.01)  # twice the same odds weight g: g / (1 + 2 g)
    assert main([*command, "--combine", "any", "--law", "nft"]) == 2
    assert 'the scale of nft_law="nft" is none. Use nft_law="odds"' in capsys.readouterr().err


def test_sample_tries_candidates_and_counts_their_forwards(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", "a ring", "--seeds", "0", "--strengths", "0", "1", "--out", str(tmp_path / "grid.png")]
    command += ["--model", folders[0], "--adapter", folders[1], "--device", "cpu"]
    assert main([*command, "--candidates", "3", "--choose-after", "2"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()[2:4]]
    # Two steps; three drafts of two forwards at strength 0, of three in two passes.
    assert [row[-1] for row in table] == [f"{(2 + 6) / 2:.2f}", f"{(4 + 9) / 2:.2f}"]


def test_sample_draws_particles_and_promises_the_odds_law(
    folders: tuple[str, str], calibrated: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", "a ring", "two rings", "--particles", "3", "--strengths", "0", "2", "--model", folders[0]]
    command += ["--adapter", calibrated, "--device", "cpu", "--out", str(tmp_path / "grid.png")]
    assert main([*command, "--reward", "helpers.tiny_run:bright"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("6 rows x 2 strengths")
    assert [line.split()[-1] for line in lines[2:4]] == ["1.00", "1.00"], "one forward per step at every strength"
    assert "not measured: what the odds law promises" in lines[5] and "measured" in lines[5]
    assert lines[5].endswith("of 6 pictures")
    for line in lines[6:8]:
        assert re.fullmatch(r"strength [02]: [123](\.\d+)? of 3 noises have descendants among the pictures", line)
    assert lines[6].startswith("strength 0: 3 of 3 "), "without a tilt nothing is drawn anew"
    first = (tmp_path / "grid.png").read_bytes()
    assert main([*command, "--reward", "helpers.tiny_run:bright"]) == 0
    assert (tmp_path / "grid.png").read_bytes() == first
    capsys.readouterr()
    assert main([*command, "--particles", "1"]) == 2
    assert "particles is 1, expected a whole number of at least 2" in capsys.readouterr().err


def test_a_picture_depends_on_seed_and_prompt_but_not_on_the_batch(folders: tuple[str, str]) -> None:
    from nft_pipeline import DiffusionNFTPipeline

    pipe = DiffusionNFTPipeline.from_pretrained(folders[0], nft_adapter=folders[1])
    rows = [("a ring", 0), ("a ring", 1), ("two rings", 0)]
    drawn = []
    for batch in (1, 2):
        columns, stats = draw(pipe, rows, [0.0, 1.0], batch=batch)
        assert [len(batches) for batches in stats] == [4 - batch, 4 - batch]
        drawn.append(np.stack([np.stack([np.asarray(p, dtype=int) for p in column]) for column in columns]))
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
    assert (drawn[0][0, 0] != drawn[0][0, 1]).any()
    assert (drawn[0][0] != drawn[0][1]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "grid.jpg"], "ends in .png"),
        (["--steps", "0"], "--steps is 0"),
        (["--batch", "0"], "--batch is 0"),
        (["--cap", "-1"], "nft_cap is -1.0, expected a number above 0"),
        (["--candidates", "0"], "nft_candidates is 0, expected a whole number of at least 1"),
        (["--scale", "-1"], "--scale is -1"),
        (["--particles", "8", "--candidates", "4", "--law", "nft"], "so --law, --candidates would do nothing"),
        (["--particles", "8", "--interval", "0.2", "1"], "so --interval would do nothing"),
        (["--device", "nosuch"], "--device is 'nosuch', which cannot be used here"),
        (["--model", "./nosuch"], "nosuch"),
    ],
)
def test_sample_refuses_before_it_draws(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "a ring", *options]) == 2
    assert message in capsys.readouterr().err


def test_the_stats_table_reads_like_the_stats() -> None:
    ones = torch.ones(3, 2)
    stats = NFTStats(
        ones, torch.tensor([[[0.2, 0.4], [0.5, 0.5], [0.9, 0.7]]]), ones[None] * 2, ones / 4, torch.tensor([2, 2, 1])
    )
    nan, once = ones * float("nan"), torch.tensor([1, 1, 1])
    unread, policy = (
        NFTStats(ones, nan[None], ones[None] * 0, ones * 0, once),
        NFTStats(ones, nan[None], ones[None], nan, once),
    )
    table = sample.stats_table([1.0, 0.0, 1.0, 3.0], [[stats, stats], [unread], [policy], []])
    _, guided, base, on, nothing = table.splitlines()
    assert guided.split() == ["1", "0.300", "->", "0.800", "2.000", "0.250", "0.250", "1.67"]
    assert base.split() == ["0", "not", "read", "0.000", "0.000", "0.000", "1.00"]
    assert on.split() == ["1", "not", "read", "1.000", "-", "-", "1.00"]
    assert nothing.split() == ["3", "-", "-", "-", "-", "-"]


def test_row_labels_name_what_differs() -> None:
    assert sample.row_labels(["a ring"], [3, 4]) == ["seed 3", "seed 4"]
    assert sample.row_labels(["a ring", "a cross"], [0]) == ["a ring", "a cross"]
    assert sample.row_labels(["a ring"], [3, 4], 2) == ["seed 3, 1", "seed 3, 2", "seed 4, 1", "seed 4, 2"]
    assert sample.row_labels(["a", "b"], [0, 1]) == ["a\nseed 0", "a\nseed 1", "b\nseed 0", "b\nseed 1"]


def test_the_title_holds_no_path() -> None:
    args = Namespace(prompts=["a ring"], model="some/where/model/", adapter="C:\\adapters\\warm", also=[], law="nft")
    assert sample.title(args) == "a ring  (model + warm, nft law)"
    assert sample.title(Namespace(**{**vars(args), "prompts": ["a", "b"]})) == "model + warm, nft law"
    assert sample.title(Namespace(**{**vars(args), "law": None})) == "a ring  (model + warm)"


@pytest.mark.parametrize(("width", "scale"), [(8, 20), (64, 2), (128, 1), (256, 1), (1024, 1)])
def test_small_pictures_are_enlarged(width: int, scale: int) -> None:
    assert scale_for(width) == scale


def test_negative_strengths_are_numbers_not_options() -> None:
    parser = ArgumentParser()
    sample.add_arguments(parser)
    assert parser.parse_args(["x", "--strengths", "-2", "-0.5", "1e1"]).strengths == [-2.0, -0.5, 10.0]
