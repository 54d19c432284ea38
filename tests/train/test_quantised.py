"""A base in 4 or 8 bits with a LoRA in fp32, and an optimiser with its state in 8."""

import sys
import warnings

import pytest
import torch
import yaml
from peft.tuners.tuners_utils import BaseTunerLayer

from helpers.tiny import tiny_transformer
from helpers.tiny_run import SMALL, config, random_pool, save_tiny, tiny_base
from nft_pipeline.adapter import fingerprint, read_adapter
from nft_pipeline.training.devices.quantised import make_optimizer, quantise
from nft_pipeline.training.errors import TrainingError
from nft_pipeline.training.learn.learner import Learner
from nft_pipeline.training.run.check import check
from nft_pipeline.training.run.trainer import train
from nft_pipeline.training.settings.config import TrainConfig

CPU = torch.device("cpu")
PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao"}


@pytest.fixture
def no_package(monkeypatch):
    for name in PACKAGES.values():
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes", reason="the extra `quantise` is not installed")


@pytest.fixture(params=PACKAGES)
def how(request):
    pytest.importorskip(PACKAGES[request.param], reason="the extra `quantise` is not installed")
    return request.param


def bytes_of(denoiser):
    """Of all parameters; a torchao weight says the dtype it stands for, and has tensors inside."""
    found = 0
    for parameter in denoiser.parameters():
        inner = getattr(parameter, "__tensor_flatten__", None)
        parts = [parameter] if inner is None else [getattr(parameter, name) for name in inner()[0]]
        found += sum(part.numel() * part.element_size() for part in parts)
    return found


@pytest.mark.parametrize("wanted", PACKAGES)
def test_without_the_package_the_setting_and_the_extra_are_named(wanted, no_package):
    with pytest.raises(
        TrainingError,
        match=rf"quantise: {wanted} needs {PACKAGES[wanted]}.*pip install 'diffusion-nft\[quantise\]'",
    ):
        quantise(tiny_transformer(), wanted, torch.float32, CPU)


def test_without_the_package_the_optimiser_is_named(no_package):
    with pytest.raises(TrainingError, match=r"optimizer: adamw8bit needs bitsandbytes.*leave the setting out"):
        make_optimizer("adamw8bit", [], 0.01)


def test_check_says_so_before_the_run(no_package, tmp_path):
    run_file = tmp_path / "my_run.yaml"
    run_file.write_text(yaml.safe_dump({**SMALL, "base_model": save_tiny(tmp_path / "model"), "quantise": "nf4"}))
    faults = check(run_file, None, tmp_path / "out", say=lambda line: None, device="cpu")
    assert len(faults) == 1 and faults[0].startswith("base model: quantise: nf4 needs bitsandbytes")


def test_the_frozen_weights_shrink_and_the_model_stays_itself(how):
    denoiser = tiny_transformer(heads=8, head_dim=8)
    before, name = bytes_of(denoiser), fingerprint(denoiser)
    linear = [module for module in denoiser.modules() if type(module) is torch.nn.Linear]
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call = {"hidden_states": x, "timestep": torch.tensor([500.0]), "return_dict": False}
    call |= {"encoder_hidden_states": torch.ones(1, 3, 16), "pooled_projections": torch.ones(1, 16)}
    with torch.no_grad():
        plain = denoiser(**call)[0]
        assert quantise(denoiser, how, torch.float32, CPU) == len(linear)
        small = denoiser(**call)[0]
    share, error = {"nf4": (0.3, 0.3), "int8": (0.4, 0.03)}[how]
    assert bytes_of(denoiser) < share * before
    assert fingerprint(denoiser) == name
    assert 0 < (small - plain).norm() < error * plain.norm()


def test_a_run_on_a_quantised_base_ends_in_an_ordinary_adapter(how, tmp_path):
    pytest.importorskip("bitsandbytes", reason="the extra `quantise` is not installed")
    settings = {**SMALL, "base_model": save_tiny(tmp_path / "model"), "quantise": how, "optimizer": "adamw8bit"}
    settings |= {"samples_every": 2}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="TorchaoLoraLinear")
        result = train(TrainConfig.from_mapping(settings), tmp_path / "out", say=lambda line: None, device="cpu")
    adapter = read_adapter(result.folder)
    assert {value.dtype for value in adapter.lora.values()} == {torch.float32}
    assert any(value.abs().max() > 0 for key, value in adapter.lora.items() if "lora_B" in key)
    assert adapter.config.base_model.fingerprint == fingerprint(tiny_transformer())


def test_steps_with_8_bit_state_go_on_bit_for_bit(bitsandbytes):
    """A rank at which the LoRA's matrices are large enough for 8 bits."""

    def learner():
        base = tiny_base()
        quantise(base.denoiser, "nf4", torch.float32, CPU)
        pool = random_pool(base)
        return Learner(base, pool.conditions, config(rank=256, optimizer="adamw8bit", objective="policy")), pool

    whole, pool = learner()
    for _ in range(4):
        whole.step(pool)
    first, pool = learner()
    layers = [module for module in first.base.denoiser.modules() if isinstance(module, BaseTunerLayer)]
    assert layers and all(type(layer.base_layer).__name__ == "Linear4bit" for layer in layers)
    for _ in range(2):
        first.step(pool)
    states = [state for state in first.optimizer.state.values() if state["state1"].dtype == torch.uint8]
    assert states and {parameter.dtype for parameter in first.parameters} == {torch.float32}
    second, pool = learner()
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.step(pool)
    for a, b in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(a, b)
