"""No phase of a run takes more rows at once than was asked for, or than fit."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from helpers.tiny_run import ONLINE, SHOWN, SMALL, config, picture_folder, random_pool, save_tiny, tiny_base
from nft_pipeline.adapter import read_adapter
from nft_pipeline.training.data.folder import support_gap
from nft_pipeline.training.devices.fits import Fits
from nft_pipeline.training.devices.memory import ADVICE, memory_advice
from nft_pipeline.training.errors import TrainingError
from nft_pipeline.training.learn import online
from nft_pipeline.training.learn.calibration import calibrate
from nft_pipeline.training.learn.learner import Learner
from nft_pipeline.training.run.check import check
from nft_pipeline.training.run.trainer import load_base, train
from nft_pipeline.training.settings.config import TrainConfig
from nft_pipeline.training.show.observer import Observer

DEVICE = torch.device("cpu:0")  # the CPU under another name, as a GPU would be
MANY = [f"a cat number {i}" for i in range(200)]


def many_prompts():
    return MANY


def rows_per_forward(module, monkeypatch, method="forward"):
    """A list that gets the rows of every forward of the module."""
    rows, work = [], getattr(module, method)

    def counted(*args, **kwargs):
        first = args[0] if args else next(v for v in kwargs.values() if isinstance(v, torch.Tensor))
        rows.append(len(first))
        return work(*args, **kwargs)

    monkeypatch.setattr(module, method, counted)
    return rows


def test_the_calibration_of_the_head_takes_pool_batch_rows_at_once(monkeypatch):
    base = tiny_base()
    pool = random_pool(base, 30)
    learner = Learner(base, pool.conditions, config(pool_batch=4))
    rows = rows_per_forward(base.denoiser, monkeypatch)
    few = calibrate(learner.alpha, pool, noise_levels=(0.5,), draws=1)
    assert max(rows) == 4 and sum(rows) == 30
    learner.config = replace(learner.config, pool_batch=30)
    (all_at_once,) = calibrate(learner.alpha, pool, noise_levels=(0.5,), draws=1)
    assert all_at_once.mean_alpha == pytest.approx(few[0].mean_alpha, abs=1e-5)
    learner.remove()


def test_the_support_gap_takes_pool_batch_rows_at_once(monkeypatch):
    base = tiny_base()
    pool = random_pool(base, 30)
    rows = rows_per_forward(base.denoiser, monkeypatch)
    gap = support_gap(base, pool, pool.x_0(torch.arange(8)), pool.prompt[:8], batch=3)
    assert max(rows) == 3
    assert support_gap(base, pool, pool.x_0(torch.arange(8)), pool.prompt[:8], batch=30) == pytest.approx(gap, rel=1e-4)


def test_large_pictures_are_encoded_one_at_a_time(monkeypatch):
    base = tiny_base()
    encoded = rows_per_forward(base.pipe.vae, monkeypatch, "encode")
    edge = 64 * base.pixels_per_latent
    base.encode_pictures(np.zeros((3, edge, edge, 3), np.uint8))
    assert encoded == [1, 1, 1]
    encoded.clear()
    base.encode_pictures(np.zeros((3, 8, 8, 3), np.uint8))
    assert encoded == [3]


def test_prompts_are_encoded_eight_at_once(monkeypatch):
    base = tiny_base()
    rows = rows_per_forward(base.pipe.text_encoder, monkeypatch)
    base.encode_prompts(MANY[:20])
    assert max(rows) <= 8


def test_only_prompts_that_a_pool_draws_are_encoded(monkeypatch, tmp_path):
    model = save_tiny(tmp_path / "model")
    wanted = {**SMALL, "base_model": model, "prompts": f"{__name__}:many_prompts", "held_out_prompts": None}
    train(TrainConfig.from_mapping(wanted), tmp_path / "out", say=lambda line: None, device="cpu")
    from safetensors.torch import load_file

    assert len(load_file(tmp_path / "out" / "pool.safetensors")["conditions.text"]) == SMALL["pool_size"]


class Small:
    """Room for so many rows and no more."""

    def __init__(self, room):
        self.room, self.tried = room, []

    def __call__(self, rows):
        self.tried.append(len(rows))
        if len(rows) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return rows.clone()


def test_what_does_not_fit_is_halved_until_it_does_and_that_is_remembered():
    fits, act = Fits(torch.device("cpu")), Small(3)
    parts = [result for _, result in fits.parts("drawing", torch.arange(20), 16, act)]
    assert torch.equal(torch.cat(parts), torch.arange(20))
    assert act.tried == [16, 8, 4, 2, *[2] * 9]
    act.tried.clear()
    list(fits.parts("drawing", torch.arange(4), 16, act))
    assert act.tried == [2, 2]
    list(fits.parts("decoding", torch.arange(4), 16, Small(4)))


def test_one_row_that_does_not_fit_is_said_with_what_may_change():
    with pytest.raises(TrainingError, match="out of memory while drawing") as caught:
        list(Fits(torch.device("cpu")).parts("drawing", torch.arange(4), 4, Small(0)))
    assert "sweep_size" in str(caught.value)
    with pytest.raises(KeyError):
        list(Fits(torch.device("cpu")).parts("drawing", torch.arange(4), 4, {}.__getitem__))


@pytest.mark.parametrize("doing", ADVICE)
def test_advice_tells_what_may_change_in_a_run_that_goes_on_from_what_needs_a_new_one(doing):
    with pytest.raises(TrainingError) as caught, memory_advice(doing, micro_batch=4):
        raise torch.OutOfMemoryError("CUDA out of memory")
    goes_on, _, anew = str(caught.value).partition("In another folder")
    named = {part: set(re.findall(r"[a-z]+_[a-z]+|resolution|quantise|rank", part)) for part in (goes_on, anew)}
    assert named[goes_on] & set(TrainConfig.checks) <= TrainConfig.may_change
    assert not named[anew] & TrainConfig.may_change


@pytest.mark.parametrize("package", ["int8 torchao", "nf4 bitsandbytes"])
def test_a_quantised_denoiser_waits_until_the_text_encoders_are_done(package, monkeypatch, tmp_path):
    how, module = package.split()
    pytest.importorskip(module, reason="the extra `quantise` is not installed")
    on, move = set(), nn.Module.to

    def moved(module, *args, **kwargs):
        to = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.device)), None)
        if to is not None:
            for inner in module.modules():
                (on.add if to == DEVICE else on.discard)(id(inner))
        return move(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "to", moved)
    wanted = {**SMALL, "quantise": how, "base_model": save_tiny(tmp_path / "model")}
    base, _ = load_base(TrainConfig.from_mapping(wanted), "cpu:0")
    layers = {id(inner) for inner in base.denoiser.modules()}
    encoders = []
    monkeypatch.setattr(base, "_encode", lambda texts: encoders.append(on & layers) or {"text": torch.zeros(1, 4, 16)})
    base.encode_prompts(["a cat"])
    assert encoders == [set()]
    base.placement.bring_denoiser()
    assert on >= {id(base.denoiser)}
    base.encode_prompts(["a cat"])
    assert encoders[1] == set()


def test_an_adapter_is_there_when_what_comes_after_training_fails(monkeypatch, tmp_path):
    wanted = TrainConfig.from_mapping({**SMALL, "base_model": save_tiny(tmp_path / "model")})

    def fails(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    grid = Observer.grid

    def fails_at_last(self, learner):
        return fails() if learner.step_number == wanted.total_steps else grid(self, learner)

    for name, fault in {"run.trainer.calibrate": fails, "show.observer.Observer.grid": fails_at_last}.items():
        out, lines = tmp_path / name, []
        with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
            patch.setattr(f"nft_pipeline.training.{name}", fault)
            train(wanted, out, say=lines.append, device="cpu")
        early = read_adapter(out / "adapter")
        assert any("adapter written to" in line for line in lines)
    result = train(wanted, out, say=lines.append, device="cpu")
    assert "resumed at step 4" in lines
    assert all(torch.equal(early.lora[key], value) for key, value in result.adapter.lora.items())


def round_bytes(settings, out, monkeypatch):
    """What every round wrote, and the latents in it."""
    sizes = []
    from nft_pipeline.training.run import kinds

    save = kinds.save_pool

    def saved(pool, path, key):
        save(pool, path, key)
        sizes.append((path.stat().st_size, pool.buckets[0].nbytes))

    monkeypatch.setattr(kinds, "save_pool", saved)
    train(TrainConfig.from_mapping(settings), out, say=lambda line: None, device="cpu")
    return sizes


def test_conditions_of_prompts_are_neither_held_nor_written_whole_every_round(monkeypatch, tmp_path):
    more = {"prompts": f"{__name__}:many_prompts", "group_size": 24, "resolution": 16, "pool_batch": 48, "rounds": 3}
    settings = {**ONLINE, **more, "base_model": save_tiny(tmp_path / "model")}
    held, encode = [], online.TrainBase.encode_prompts

    def encoded(self, texts, *args):
        held.append(len(texts))
        return encode(self, texts, *args)

    monkeypatch.setattr(online.TrainBase, "encode_prompts", encoded)
    monkeypatch.setattr(online, "HELD", 0)
    sizes = round_bytes(settings, tmp_path / "few", monkeypatch)
    assert max(held) <= 2  # the prompts of a round
    assert len(sizes) == 3 and all(size <= 1.2 * latents + 4000 for size, latents in sizes)


def test_a_run_learns_the_same_whether_conditions_are_held_or_made_for_each_round(monkeypatch, tmp_path):
    settings = {**ONLINE, "base_model": save_tiny(tmp_path / "model")}
    results = []
    for bytes_held in (2**31, 0):
        monkeypatch.setattr(online, "HELD", bytes_held)
        out = tmp_path / str(bytes_held)
        results.append(train(TrainConfig.from_mapping(settings), out, say=lambda line: None, device="cpu").adapter.lora)
    assert all(torch.allclose(results[0][key], results[1][key], atol=1e-5) for key in results[0])


def test_pool_batch_may_change_in_a_run_that_goes_on_and_its_pool_stays(tmp_path):
    model = save_tiny(tmp_path / "model")
    wanted = TrainConfig.from_mapping({**SMALL, "base_model": model, "steps": 2})
    assert "pool_batch" in TrainConfig.may_change
    train(wanted, tmp_path / "out", say=lambda line: None, device="cpu")
    before = (tmp_path / "out" / "pool.safetensors").stat().st_mtime_ns
    train(replace(wanted, pool_batch=5), tmp_path / "out", say=lambda line: None, device="cpu")
    assert (tmp_path / "out" / "pool.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", ["offline", "folder"])
def test_check_tries_every_phase_at_the_run_s_own_batches(kind, monkeypatch, tmp_path):
    settings = {**SMALL, **SHOWN, "prompts": f"{__name__}:many_prompts", "base_model": save_tiny(tmp_path / "model")}
    if kind == "folder":
        settings |= {"data": str(picture_folder(tmp_path / "data")), "prompts": None, "reward": ""}
        settings |= {"made_by_base": True, "optimality": "raw"}
    path = tmp_path / "my_run.yaml"
    path.write_text(yaml.safe_dump(settings))
    most = {}
    parts = Fits.parts

    def counted(self, phase, rows, size, act):
        most[phase] = max(most.get(phase, 0), min(len(rows), size))
        return parts(self, phase, rows, size, act)

    monkeypatch.setattr(Fits, "parts", counted)
    assert check(path, None, tmp_path / "out", say=lambda line: None, device="cpu") == []
    assert most["drawing"] == most["reading alpha"] == settings["pool_batch"]
    assert most["decoding"] >= 1 and most["encoding prompts"] == (8 if kind == "offline" else 4)
    assert most.get("encoding pictures") == (8 if kind == "folder" else None)
