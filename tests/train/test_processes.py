"""Two processes train what one does with the same batch."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

import nft_pipeline.training
from helpers import split_families, two_processes
from helpers.forking import free_port
from helpers.tiny_run import SMALL, save_tiny
from helpers.whole import CALLS
from nft_pipeline.training.errors import TrainingError
from nft_pipeline.training.run.check import check
from nft_pipeline.training.run.sharding import splitter
from nft_pipeline.training.run.trainer import train
from nft_pipeline.training.settings.config import TrainConfig

LORA = "pytorch_lora_weights.safetensors"
FILES = Path(nft_pipeline.training.__path__[0]) / "launch"
TESTS = Path(two_processes.__file__).parents[1]
TREE = os.pathsep.join([str(TESTS.parent), str(TESTS)])  # this checkout, whichever one is installed

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes, which this system cannot")
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed, which the extra dev has on Linux alone, is not installed"
)


def helper(module, *arguments):
    """What a helper of two processes prints."""
    run = subprocess.run(
        [sys.executable, module.__file__, *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": TREE},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@needs_fork
@pytest.mark.parametrize(
    "how",
    [
        pytest.param("whole", marks=pytest.mark.slow),
        pytest.param("FSDP", marks=pytest.mark.long),
        pytest.param("DeepSpeed", marks=[pytest.mark.long, needs_deepspeed]),
    ],
)
def test_two_processes_are_one(how):
    found = helper(two_processes, how)
    assert found.keys() == two_processes.kinds_of(None if how == "whole" else how).keys() and found
    for kind, values in found.items():
        assert values["moved"] > 1e-3, kind
        assert values["apart"] < 0.02 * values["moved"], kind
        assert values["resumed"] and values["shown"], kind
        assert values["share"] == pytest.approx(1 if how == "whole" else 0.5, abs=0.01), kind


@pytest.mark.long
@needs_fork
@needs_deepspeed
def test_every_familys_denoiser_is_split_and_computes_the_same():
    run = helper(split_families)
    assert set(run) == {f"{name}, {how}" for name in (*split_families.SAMPLED, *CALLS) for how in two_processes.SPLIT}
    for name, values in run.items():
        assert values["share"] == pytest.approx(0.5, abs=0.02), name  # a tensor with few rows is not cut evenly
        assert values["apart"] < 1e-5, name


# With stage 2 nothing is split, and the run is as with --multi_gpu.
LAUNCHES = {
    "multi_gpu": ["--multi_gpu"],
    "fsdp.yaml": ["--config_file", str(FILES / "fsdp.yaml")],
    "deepspeed.yaml": ["--config_file", str(FILES / "deepspeed.yaml")],
    "deepspeed, stage 2": ["--use_deepspeed", "--zero_stage", "2"],
}


@pytest.mark.long
@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=needs_deepspeed if "deepspeed" in how else ()) for how in LAUNCHES]
)
def test_the_launcher_of_accelerate_trains_what_one_process_does(how, tmp_path):
    """The commands of docs/training.md, on two CPU processes, with the settings in a file."""
    settings = {**SMALL, "base_model": save_tiny(tmp_path / "model"), "steps": 2, "batch": 10, "checkpoint_every": 0}
    run_file = tmp_path / "my_run.yaml"
    run_file.write_text(yaml.safe_dump(settings))
    train(TrainConfig.from_yaml(run_file), tmp_path / "one", say=lambda line: None, device="cpu")
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCHES[how], "--num_processes", "2"]
    command += ["--main_process_port", str(free_port()), "-m", "nft_pipeline", "train"]
    run = subprocess.run(
        [*command, str(run_file), "--trust", "--out", str(tmp_path / "two"), "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": TREE},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("adapter written to") == 2  # one of the two speaks, before and after it is measured
    assert ("split over 2 processes" in run.stdout) == (how.endswith(".yaml"))
    one, two = (load_file(tmp_path / name / "adapter" / LORA) for name in ("one", "two"))
    moved = max(float(value.abs().max()) for key, value in one.items() if "lora_B" in key)
    assert one.keys() == two.keys() and moved > 1e-3
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 0.02 * moved


def machine(rank, port, *arguments):
    """A started `accelerate launch` by the file for several machines, as one of two that are both this one."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FILES / "machines.yaml")]
    command += ["--num_processes", "2", "--machine_rank", str(rank), "--main_process_ip", "127.0.0.1"]
    return subprocess.Popen(
        [*command, "--main_process_port", str(port), "-m", "nft_pipeline", "train", *arguments, "--trust"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": TREE},
    )


def ended(*running):
    """What they said, and their exit codes."""
    try:
        return [process.communicate(timeout=900)[0] for process in running], [process.returncode for process in running]
    finally:
        for process in running:
            process.kill()


@pytest.mark.parametrize("name", sorted(path.name for path in FILES.glob("*.yaml")))
def test_accelerate_reads_the_launch_files(name):
    from accelerate.commands.config import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    found = load_config_from_file(str(FILES / name))
    written = yaml.safe_load((FILES / name).read_text())
    assert {key: getattr(found, key) for key in ("num_machines", "num_processes")} == {
        key: written[key] for key in ("num_machines", "num_processes")
    }
    given = ["--config_file", str(FILES / name), "-m", "nft_pipeline", "train", "my_run.yaml"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    kinds = {"deepspeed.yaml": "use_deepspeed", "fsdp.yaml": "use_fsdp", "machines.yaml": "multi_gpu"}
    assert getattr(arguments, kinds[name])
    if name == "machines.yaml":
        assert (arguments.num_machines, arguments.machine_rank) == (2, 0)
        assert (arguments.main_process_ip, arguments.main_process_port) == ("10.0.0.1", 29500)


@pytest.mark.long
def test_two_machines_train_what_one_process_does(tmp_path):
    settings = {**SMALL, "base_model": save_tiny(tmp_path / "model"), "steps": 2, "batch": 10, "checkpoint_every": 0}
    run_file = tmp_path / "my_run.yaml"
    run_file.write_text(yaml.safe_dump(settings))
    train(TrainConfig.from_yaml(run_file), tmp_path / "one", say=lambda line: None, device="cpu")
    port, arguments = free_port(), [str(run_file), "--out", str(tmp_path / "two"), "--device", "cpu"]
    said, codes = ended(*(machine(rank, port, *arguments) for rank in (0, 1)))
    assert codes == [0, 0], said
    assert "adapter written to" in said[0] and "adapter written to" not in said[1]
    one, two = (load_file(tmp_path / name / "adapter" / LORA) for name in ("one", "two"))
    moved = max(float(value.abs().max()) for key, value in one.items() if "lora_B" in key)
    assert one.keys() == two.keys() and moved > 1e-3
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 0.02 * moved


@pytest.mark.long
def test_machines_without_a_common_folder_are_told(tmp_path, monkeypatch):
    run_file = tmp_path / "my_run.yaml"
    run_file.write_text(yaml.safe_dump({**SMALL, "base_model": "nowhere", "batch": 10}))
    port = free_port()
    both = (machine(r, port, str(run_file), "--out", str(tmp_path / f"out{r}"), "--device", "cpu") for r in (0, 1))
    said, codes = ended(*both)
    assert 0 not in codes
    assert "do not have one folder" in said[0] and "on a disk that all of them share" in said[0]
    assert "It is another one for the process of rank 1 on " in said[1]


def faults_of(tmp_path, **settings):
    """What train raises before it loads anything, which is what check says too."""
    with pytest.raises(TrainingError) as caught:
        train(TrainConfig.from_mapping({**SMALL, **settings}), tmp_path, device="cpu")
    run_file = tmp_path / "my_run.yaml"
    run_file.write_text(yaml.safe_dump({**SMALL, **settings, "base_model": "nowhere"}))
    faults = check(run_file, None, tmp_path / "out", say=lambda line: None, device="cpu")
    assert any(str(caught.value) in fault for fault in faults)
    return str(caught.value)


FSDP = {"ACCELERATE_USE_FSDP": "true"}
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
WITH_FILE = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "zero.json"}


@pytest.fixture
def two_launched(monkeypatch, tmp_path):
    """As one of two processes that were launched with these variables; they are not really started."""

    def launched(variables):
        for name, value in {"WORLD_SIZE": "2", **variables}.items():
            monkeypatch.setenv(name, value)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nft_pipeline.training.devices.processes.start", lambda: None)
    return launched


@pytest.mark.parametrize(
    ("settings", "variables", "said"),
    [
        ({"batch": 9}, FSDP, "batch is 9 and FSDP has 2 processes, which must have equal shares.*such as 10"),
        ({"head_batch": 7}, DEEPSPEED, "head_batch is 7 and DeepSpeed has 2 processes"),
        ({"quantise": "nf4"}, FSDP, "quantise is 'nf4' under FSDP"),
        ({"quantise": "int8"}, DEEPSPEED, "quantise is 'int8' under DeepSpeed"),
        ({}, {**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params is set"),
        ({}, {**DEEPSPEED, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "offload_param_device is set"),
    ],
)
def test_what_cannot_be_split_is_said_before_anything_is_loaded(
    settings, variables, said, two_launched, monkeypatch, tmp_path
):
    two_launched(variables)
    assert re.search(said, faults_of(tmp_path, **settings))
    monkeypatch.setenv("WORLD_SIZE", "1")  # one process has nobody to share with
    with pytest.raises(OSError, match="nowhere"):
        train(TrainConfig.from_mapping({**SMALL, **settings, "base_model": "nowhere"}), tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "zero.json cannot be used: FileNotFoundError"),
        ("stage: 3", "zero.json cannot be used: JSONDecodeError.*Expected a JSON file"),
        ("{}", "zero.json cannot be used: KeyError: 'zero_optimization'"),
        ('{"zero_optimization": 3}', "zero.json cannot be used: (Type|Attribute)Error"),
        ('{"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}', "offload_param_device is set"),
    ],
)
def test_deepspeeds_own_file_is_read(text, said, two_launched, tmp_path):
    two_launched(WITH_FILE)
    if text is not None:
        (tmp_path / "zero.json").write_text(text)
    assert re.search(said, faults_of(tmp_path))


def test_without_deepspeed_its_extra_is_named(two_launched, monkeypatch, tmp_path):
    two_launched(DEEPSPEED)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    assert "pip install 'diffusion-nft[deepspeed]'" in faults_of(tmp_path)


@pytest.mark.parametrize(
    ("variables", "how"),
    [({}, None), (FSDP, "FSDP"), (DEEPSPEED, "DeepSpeed"), (WITH_FILE, None)],
)
def test_what_splits_the_base_model_is_what_the_launcher_says(variables, how, two_launched, tmp_path):
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    two_launched(variables)
    assert splitter() == how
