"""A strength for each picture of a batch: every row is that of a call of the same batch at its own strength alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.dials import measured_dial
from helpers.tiny import CALL, sample, tiny_adapter, tiny_pipe
from helpers.zoo import CASES, adapter_for
from nft_pipeline.call import guided_call
from nft_pipeline.errors import GuidanceError
from nft_pipeline.pipeline import DiffusionNFTPipeline

STRIP = [0.0, 0.5, 1.0, -2.0]
FOUR: dict[str, Any] = {"prompt": ["a cat", "a dog", "a cat", "an owl"], "num_inference_steps": 2}


def guided_pipe(kind: str = "positive", dial: Any = None) -> Any:
    pipe = tiny_pipe()
    adapter = tiny_adapter(pipe.transformer, kind=kind)
    rate = 0.3 if kind == "positive" else None
    adapter = replace(adapter, config=replace(adapter.config, base_rate=rate, dial=dial))
    return DiffusionNFTPipeline.from_pipe(pipe, adapter)


def draw(pipe: Any, **more: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    return pipe(**{**CALL, **FOUR, "generator": generators, **more}).images


def one_by_one(pipe: Any, argument: str, values: list[Any], **more: Any) -> tuple[Tensor, list[Any]]:
    rows, stats = [], []
    for row, value in enumerate(values):
        rows.append(draw(pipe, **{argument: value}, **more)[row])
        stats.append(pipe.nft_stats)
    return torch.stack(rows), stats


@pytest.mark.parametrize("mode", ["two_pass", "batched", "single"])
@pytest.mark.parametrize("kind", ["positive", "policy"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_four_strengths_in_one_batch_are_four_calls_bit_for_bit(kind: str, mode: str, scale: float) -> None:
    pipe = guided_pipe(kind)
    expected, alone = one_by_one(pipe, "nft_strength", STRIP, nft_mode=mode, guidance_scale=scale)
    ours = draw(pipe, nft_strength=STRIP, nft_mode=mode, guidance_scale=scale)
    stats = pipe.nft_stats
    # One LoRA pass of twice the rows sums in another order than one of as many rows as the batch.
    close = 1e-5 if mode == "batched" else 0
    torch.testing.assert_close(ours, expected, atol=close, rtol=0)
    torch.testing.assert_close(stats.scale, torch.stack([s.scale[:, i] for i, s in enumerate(alone)], 1), **_NEAR)
    assert stats.tilts.tolist() == [[strength * pipe.nft_config.tilt for strength in STRIP]]
    if kind == "positive":
        forecasts = torch.stack(
            [s.forecast[:, i] if s.forecasts is not None else s.alpha[:, i] for i, s in enumerate(alone)], 1
        )
        own = torch.tensor(STRIP) != 0  # at strength 0 alone the head is not asked
        torch.testing.assert_close(stats.forecast[:, own], forecasts[:, own], **_NEAR)


_NEAR: dict[str, Any] = {"atol": 1e-5, "rtol": 0, "equal_nan": True}


def test_a_row_at_0_is_the_base_model_and_a_row_of_a_policy_at_1_is_its_lora() -> None:
    pipe = guided_pipe("policy")
    base, on = draw(pipe, nft_strength=0), draw(pipe)
    assert pipe.nft_stats.passes.tolist() == [1, 1]
    ours = draw(pipe, nft_strength=[0, 1, 0.5, 0])
    assert torch.equal(ours[0], base[0]) and torch.equal(ours[1], on[1]) and torch.equal(ours[3], base[3])
    assert not torch.equal(ours[2], base[2])
    draw(pipe, nft_strength=[1, 1, 1, 1])
    assert pipe.nft_stats.passes.tolist() == [1, 1], "one forward with the LoRA on, as for one number"
    draw(pipe, nft_strength=[0, 0, 0, 0])
    assert pipe.nft_stats.passes.tolist() == [1, 1]


def test_a_calibrated_adapter_by_strength_beta_and_rate() -> None:
    pipe = guided_pipe(dial=measured_dial())
    for argument, values in (
        ("nft_strength", STRIP),
        ("nft_beta", [0.5, 1.0, 2.0, 8.0]),
        ("nft_rate", [0.35, 0.5, 0.6, 0.45]),
    ):
        expected, _ = one_by_one(pipe, argument, values)
        assert torch.equal(draw(pipe, **{argument: values}), expected), argument


def test_lists_by_name_for_several_adapters() -> None:
    pipe = tiny_pipe()
    two = {"warm": tiny_adapter(pipe.transformer), "follow": tiny_adapter(pipe.transformer, kind="policy", seed=9)}
    guided = DiffusionNFTPipeline.from_pipe(pipe, two)
    lists = {"warm": [0.0, 1.0, 0.0, 1.0], "follow": np.array([0.0, 0.0, 1.0, 0.5])}
    rows = [{"warm": lists["warm"][i], "follow": lists["follow"][i]} for i in range(4)]
    expected, _ = one_by_one(guided, "nft_strength", rows)
    assert torch.equal(draw(guided, nft_strength=lists), expected)
    ours = draw(guided, nft_strength={**lists, "follow": 0.5})
    expected, _ = one_by_one(guided, "nft_strength", [{**row, "follow": 0.5} for row in rows])
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("numbers", [np.array([0.0, 2.0]), torch.tensor([0.0, 2.0]), (0, np.float32(2))])
def test_one_number_for_each_prompt_is_for_all_its_pictures(numbers: Any) -> None:
    pipe = guided_pipe()
    call = {"prompt": ["a cat", "a dog"], "num_images_per_prompt": 2}
    assert torch.equal(draw(pipe, nft_strength=numbers, **call), draw(pipe, nft_strength=[0, 0, 2, 2], **call))
    assert pipe.nft_stats.scale.any(0).tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nft_strength": [1, 2]}, "there are 2 strengths for the adapter 'default', and the call draws 4 pictures"),
        ({"nft_strength": []}, "nft_strength is an empty list, expected a number, or one for each picture."),
        ({"nft_strength": [0, 1, 2, True]}, "nft_strength is True, expected a finite number"),
        ({"nft_strength": [[0, 1, 2, 3]]}, "nft_strength is [0, 1, 2, 3], expected a finite number"),
        ({"nft_beta": [1, 1, 1, 0]}, "nft_beta is 0, expected a finite number above 0"),
        ({"nft_rate": [0.4, 0.5, 0.6, 1.0]}, "nft_rate is 1.0, expected a number between 0 and 1"),
        ({"nft_strength": [1] * 4, "nft_beta": [1] * 4}, "they set the same thing"),
    ],
)
def test_faults_are_named_before_anything_runs(arguments: dict, message: str) -> None:
    pipe = guided_pipe()
    pipe.encode_prompt = None  # what a call does first
    with pytest.raises(GuidanceError, match=re.escape(message)):
        draw(pipe, **arguments)


def test_a_batch_that_the_arguments_do_not_tell_is_checked_at_the_first_forward(monkeypatch: Any) -> None:
    pipe = guided_pipe()
    monkeypatch.setattr(guided_call, "prompts_and_images", lambda stock_call, call: None)
    with pytest.raises(GuidanceError, match="there are 3 strengths, and this step of the model has 4 samples"):
        draw(pipe, nft_strength=[1, 2, 3])
    assert pipe.nft_stats.steps == 0
    assert torch.equal(draw(pipe, nft_strength=[1, 2, 3, 4])[2], draw(pipe, nft_strength=3)[2])


def test_the_rows_are_changed_and_looked_at_on_the_way() -> None:
    pipe, records = guided_pipe(), []

    def change(pipe: Any, step: int, timestep: Any, inputs: dict) -> dict:
        records.append(pipe.nft_stats)
        pipe.set_nft_strength([1, 0, 0, 2])
        with pytest.raises(GuidanceError, match="there are 3 strengths for the adapter 'default'"):
            pipe.set_nft_strength([1, 0, 0])
        return inputs

    draw(pipe, nft_strength=0, callback_on_step_end=change)
    assert [record.steps for record in records] == [1, 2]
    assert records[0].tilts.tolist() == [[0, 0, 0, 0]]
    assert pipe.nft_stats.scale.bool().tolist() == [[False] * 4, [True, False, False, True]]


def test_early_choice_with_a_sign_for_each_row() -> None:
    pipe = guided_pipe()
    values = [1.0, -1.0, 0.0, 2.0]
    more = {"nft_candidates": 3, "nft_choose_after": 1}
    expected, stats = one_by_one(pipe, "nft_strength", values, **more)
    assert torch.equal(draw(pipe, nft_strength=values, **more), expected)
    assert pipe.nft_stats.seeds.tolist() == [int(s.seeds[i]) for i, s in enumerate(stats)]
    several = DiffusionNFTPipeline.from_pipe(
        pipe.unwrap(), {name: tiny_adapter(pipe.transformer) for name in ("one", "two")}
    )
    with pytest.raises(GuidanceError, match="nft_candidates with several adapters needs strengths that are the same"):
        draw(several, nft_strength=values, **more)


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "FluxPipeline", "WanPipeline", "ZImagePipeline"])
def test_a_unet_a_distilled_model_two_calls_a_step_and_lists_of_rows(name: str) -> None:
    case = CASES[name]
    pipe = case.pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe))
    ours = case.sample(guided, [0, 1, 2], cfg=True, nft_strength=[0.0, 0.7, -1.0])
    for row, strength in enumerate([0.0, 0.7, -1.0]):
        assert torch.equal(ours[row], case.sample(guided, [0, 1, 2], cfg=True, nft_strength=strength)[row])


def test_the_record_is_json() -> None:
    pipe = guided_pipe("policy")
    draw(pipe, nft_strength=[0, 1, 1, 1])
    record = json.loads(json.dumps(pipe.nft_stats.to_dict(), allow_nan=False))
    assert record["tilts"][0][0] == 0 and record["adapters"] == ["default"] and record["forecasts"] is None
    assert record["alphas"] == [[[None] * 4] * 2] and record["passes"] == [2, 2]
    assert torch.tensor(record["scales"]).shape == pipe.nft_stats.scales.shape


@pytest.mark.parametrize("one", [np.int64(1), np.float32(1), np.array(1.0), torch.tensor(1), torch.tensor(1.0)])
def test_numbers_of_numpy_and_torch_are_numbers(one: Any) -> None:
    pipe = guided_pipe()
    expected = sample(pipe, nft_strength=1, nft_cap=1)
    assert torch.equal(sample(pipe, nft_strength=one, nft_cap=one), expected)
    assert torch.equal(sample(pipe, nft_beta=one), sample(pipe, nft_beta=1))
    assert torch.equal(sample(pipe, nft_rate=one * 0.5), sample(pipe, nft_rate=0.5))
    assert torch.equal(sample(pipe, nft_interval=(0 * one, one)), sample(pipe))
    assert torch.equal(sample(pipe, nft_schedule=lambda t: one), sample(pipe))
    # Their errors are NaN, so the two are not equal.
    assert repr(pipe.promise(strength=one, rate=one * 0.5)) == repr(pipe.promise(rate=0.5))
    if "int" in str(one.dtype):
        sample(pipe, nft_candidates=one + 1, nft_choose_after=one)


@pytest.mark.parametrize("wrong", [True, np.bool_(True), torch.tensor(True), 1j, np.array([[1.0]])])
def test_what_is_no_number(wrong: Any) -> None:
    with pytest.raises(GuidanceError, match="expected a finite number"):
        sample(guided_pipe(), nft_strength=wrong)
