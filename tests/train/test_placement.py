"""Which parts of a base model are on the run's device, and when.

The device of these runs is "cpu:0": the CPU under another name, which modules go to and come from as they would a GPU.
"""

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from helpers.tiny_run import ONLINE, SHOWN, SMALL, picture_folder, prompts, save_tiny, tiny_base
from helpers.whole import CALLS, whole_pipe
from nft_pipeline.training.bases.registry import train_base
from nft_pipeline.training.devices.placement import Placement
from nft_pipeline.training.run.check import check
from nft_pipeline.training.run.trainer import load_base, train
from nft_pipeline.training.settings.config import TrainConfig

DEVICE, REST = torch.device("cpu:0"), torch.device("cpu")
ENCODERS, DENOISER, VAE = "encoder", "denoiser", "vae"


class Watched:
    """Where the parts of one base model are, by their moves; each part as its own kind of work begins."""

    def __init__(self, base, monkeypatch):
        self.on = set()
        self.at_work = []
        parts = {id(part): VAE if name == "vae" else ENCODERS for name, part in base.pipe.components.items()}
        parts[id(base.denoiser)] = DENOISER
        move = nn.Module.to

        def moved(module, *args, **kwargs):
            if part := parts.get(id(module)):
                (self.on.add if args[0] == DEVICE else self.on.discard)(part)
            return move(module, *args, **kwargs)

        monkeypatch.setattr(nn.Module, "to", moved)
        for name, part in base.pipe.components.items():
            if isinstance(part, nn.Module):
                self._watch(part, parts[id(part)], monkeypatch, "decode" if name == "vae" else "forward")

    def _watch(self, module, part, monkeypatch, method):
        work = getattr(module, method)

        def watched(*args, **kwargs):
            self.at_work.append((part, frozenset(self.on)))
            return work(*args, **kwargs)

        monkeypatch.setattr(module, method, watched)

    def seen(self, part):
        """What was on the device whenever this part worked."""
        return {on for worker, on in self.at_work if worker == part}


@pytest.fixture
def watched(monkeypatch):
    """The `Watched` of the base model that a run loads."""
    found = []

    def load(*args):
        base, reason = load_base(*args)
        found.append(Watched(base, monkeypatch))
        return base, reason

    for module in ("trainer", "check"):
        monkeypatch.setattr(f"nft_pipeline.training.run.{module}.load_base", load)
    return found


def run(tmp_path, settings):
    model = save_tiny(tmp_path / "model")
    config = TrainConfig.from_mapping({**settings, "base_model": model})
    return train(config, tmp_path / "out", say=lambda line: None, device=str(DEVICE))


@pytest.mark.parametrize("kind", ["offline", "folder", "online"])
def test_encoders_and_denoiser_take_turns_and_the_vae_visits(kind, watched, tmp_path):
    settings = {**(ONLINE if kind == "online" else SMALL), **SHOWN}
    if kind == "folder":
        settings |= {"data": str(picture_folder(tmp_path / "data")), "prompts": None, "reward": ""}
        settings |= {"held_out_prompts": "helpers.tiny_run:prompts", "watch_reward": "sharpness"}
    run(tmp_path, settings)
    (parts,) = watched
    assert parts.seen(ENCODERS) == {frozenset({ENCODERS})}
    assert parts.seen(DENOISER) == {frozenset({DENOISER})}
    assert parts.seen(VAE) == {frozenset({DENOISER, VAE})}
    assert parts.on == {DENOISER}


@pytest.mark.parametrize(("quantised", "package"), [("none", "torch"), ("nf4", "bitsandbytes"), ("int8", "torchao")])
def test_a_run_learns_the_same_whichever_way_its_parts_move(quantised, package, tmp_path):
    pytest.importorskip(package, reason="the extra `quantise` is not installed")
    settings = {**SMALL, "quantise": quantised, "base_model": save_tiny(tmp_path / "model")}
    one, two = (
        train(TrainConfig.from_mapping(settings), tmp_path / name, say=lambda line: None, device=device).adapter.lora
        for name, device in (("still", "cpu"), ("moved", str(DEVICE)))
    )
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_check_lets_them_take_turns_too(watched, tmp_path):
    run_file = tmp_path / "my_run.yaml"
    run_file.write_text(yaml.safe_dump({**SMALL, **SHOWN, "base_model": save_tiny(tmp_path / "model")}))
    assert check(run_file, None, tmp_path / "out", say=lambda line: None, device=str(DEVICE)) == []
    (parts,) = watched
    assert parts.seen(ENCODERS) == {frozenset({ENCODERS})}
    assert parts.seen(DENOISER) == {frozenset({DENOISER})}


@pytest.mark.parametrize(
    ("precision", "device", "dtype"),
    [("auto", "cpu", "float32"), ("fp32", "cpu", "float32"), ("bf16", "cpu", "bfloat16"), ("bf16", "meta", "bfloat16")],
)
def test_frozen_weights_are_kept_in_what_they_compute_in(precision, device, dtype, tmp_path):
    """On a CPU where that was asked for by name: what "auto" finds there depends on the machine."""
    model = save_tiny(tmp_path / "model")
    config = TrainConfig.from_mapping({**SMALL, "base_model": model, "precision": precision})
    base, _ = load_base(config, device)
    assert {p.dtype for p in base.denoiser.parameters()} == {getattr(torch, dtype)}
    assert {p.dtype for p in base.pipe.text_encoder.parameters()} == {getattr(torch, dtype)}
    assert {p.dtype for p in base.pipe.vae.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", CALLS)
def test_a_pipeline_samples_without_its_encoders(name):
    """A call is given embeddings. The encoders rest elsewhere, and are the pipeline's own again afterwards."""
    pipe = whole_pipe(name)
    base = train_base(pipe, {**CALLS[name], "num_inference_steps": 2, "guidance_scale": 1.0})
    encoder, config, seen = pipe.text_encoder, dict(pipe.config), []
    base.denoiser.register_forward_pre_hook(lambda module, args: seen.append(pipe.text_encoder))
    base.sample_batch(base.encode_prompts(prompts()[:1]), torch.randn(base.latent_shape(1)))
    assert set(seen) == {None}
    assert pipe.text_encoder is encoder and dict(pipe.config) == config


def test_parts_that_are_on_the_device_stay():
    """A pipeline that somebody moved there as a whole."""
    base = tiny_base()
    moves = []
    base.denoiser.to = moves.append
    conditions = base.encode_prompts(prompts())
    base.predict(torch.zeros(base.latent_shape(3)), torch.full((3,), 0.5), conditions)
    assert moves == []


def test_a_split_denoiser_is_never_moved():
    denoiser, encoder = nn.Linear(2, 2), nn.Linear(2, 2)
    placement = Placement(denoiser, DEVICE)
    placement.denoiser_stays()
    denoiser.to = None
    with placement.instead_of_denoiser(encoder):
        pass
    placement.bring_denoiser()


def test_what_visits_goes_home_after_an_error():
    vae = nn.Linear(2, 2)
    moves, move = [], vae.to
    vae.to = lambda device: moves.append(device) or move(device)
    with pytest.raises(KeyError), Placement(nn.Linear(2, 2), DEVICE).visit(vae):
        raise KeyError
    assert moves == [DEVICE, REST]


def test_pictures_come_out_as_without_moving():
    latents = torch.randn(2, *tiny_base().latent_shape(1)[1:], generator=torch.Generator().manual_seed(0))
    here, there = tiny_base(), tiny_base()
    there.device = there.placement.device = DEVICE
    assert np.array_equal(here.decode_latents(latents), there.decode_latents(latents))
