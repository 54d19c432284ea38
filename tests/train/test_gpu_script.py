"""The script that a person with a GPU runs, `python -m tests.gpu`, on tiny models without one."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    """Its modules, imported as the package that `-m` runs."""
    sys.path.insert(0, str(ROOT))
    try:
        names = ("tests.gpu.__main__", "tests.gpu.family", "tests.benchmarks.whole_models")
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(ROOT))


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tests.gpu", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.long
def test_a_dry_run_goes_through_phases_a_run_and_the_engine():
    done = command("--tiny", "--device", "cpu", "--only", "sd15", "--minutes", "28")
    assert done.returncode == 0, done.stdout + done.stderr
    memory, times, runs = [line for line in done.stdout.splitlines() if line.startswith("| sd15 |")]
    assert memory.count("|") == 10 and times.count("|") == 7
    assert runs.endswith("| 3 | finite |")
    assert "Nothing was left out, and nothing failed." in done.stdout
    assert "| guided |" in done.stdout and "models, which measure nothing" in done.stdout


@pytest.mark.long
def test_every_preset_goes_through_it(script, tmp_path):
    _, family, whole = script
    for preset in whole.MODELS:
        found = family.measure(preset, tmp_path / preset, "cpu", True)
        assert found["finite"] and found["steps"] == family.SMALL["steps"], preset
        assert all(seconds > 0 for seconds in found["phases"].values()), (preset, found["phases"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is no CUDA device here"),
        (["--device", "cpu"], "models of real size are for a CUDA device; give --tiny with it"),
        (["--device", "cpu", "--tiny", "--write"], "tiny models measure nothing worth a page"),
        (["--only", "sd14"], "invalid choice: 'sd14'"),
    ],
)
def test_what_cannot_be_measured_is_said(arguments, said, script, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        script[0].main(arguments)
    assert stop.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_what_does_not_fit_is_left_out_by_name(script):
    main = script[0]
    gib, soon = 2**30, time.monotonic() + 300
    limits = main.Limits(card=8 * gib, disk=20 * gib, ends=soon)
    assert main.why_not({"unet": gib}, limits, 4.0) is None
    assert main.why_not({"transformer": 9 * gib}, limits, 4.0) == "its largest part has 9 GiB, the card 8"
    parts = {name: 7 * gib for name in ("transformer", "text_encoder", "text_encoder_2")}
    assert main.why_not(parts, limits, 4.0).startswith("its model has 21 GiB, and 20 are free on the disk")
    assert main.why_not({"unet": 5 * gib}, limits, 50.0).startswith("it takes about 280 s, and ")
    assert main.why_not({"unet": gib}, main.Limits(8 * gib, 20 * gib, time.monotonic()), 4.0).endswith(
        "0 are left for it"
    )


def test_a_preset_that_fails_or_takes_too_long_is_told_from_one_that_is_done(script):
    main = script[0]
    assert main.started(["json.tool", "--help"], 60)[0] == 0
    code, said = main.started(["nft_pipeline", "no-such-command"], 120)
    assert code == 2 and "no-such-command" in main.last_line(said)
    assert main.started(["http.server", "0"], 1)[0] == 124


@pytest.mark.parametrize(
    ("preset", "billions"),
    [("sd15", 1.07), ("sdxl", 3.47), ("sd35_medium", 7.9), ("flux1_dev", 16.9), ("z_image", 10.3), ("sana_600m", 3.57)],
)
def test_random_models_have_the_published_sizes(preset, billions, script):
    assert sum(script[2].weights(preset).values()) / 2e9 == pytest.approx(billions, rel=0.02)


def test_weights_keep_activations_at_their_size(script):
    import torch

    with torch.device("meta"):
        layers = torch.nn.Sequential(torch.nn.Linear(1500, 900), torch.nn.LayerNorm(900), torch.nn.Linear(900, 40))
    filled = script[2].fill(layers, torch.device("cpu"))
    out = filled(torch.randn(64, 1500))
    assert torch.isfinite(out).all() and 0.2 < out.std() < 2
    assert len(torch.unique(filled[0].weight[:, 0])) == 900  # rows differ


def test_the_page_of_what_was_measured_says_what_it_is(script):
    main = script[0]
    peaks = {"loading": 1.0, "drawing": 2.25, "training": 3.0}
    one = {"preset": "sdxl", "peaks": peaks, "phases": {"drawing": 0.5, "training": 1.25}, "steps": 3, "finite": False}
    one["seconds"] = {"model written": 10.2, "model loaded": 5.0, "the run": 61.0}
    memory, times, runs = main.rows_of([json.loads(json.dumps(one))])
    assert memory == [["sdxl", "-", "-", "2.2", "-", "3.0", "-", "-", "3.0"]]
    assert times == [["sdxl", "0.5", "1.25"]]
    assert runs == [["sdxl", "10", "5", "61", "3", "**not finite**"]]
