"""Batched and single mode: the same results as two passes where they should be, and the forwards they save."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from helpers.tiny import counted_forwards, load_style, sample, tiny_adapter, tiny_pipe
from helpers.zoo import CASES, Case, adapter_for, denoiser_of, load_ordinarily
from helpers.zoo_odd import PANORAMA
from nft_pipeline.errors import FamilyError, GuidanceError
from nft_pipeline.families.registry import family_of
from nft_pipeline.pipeline import DiffusionNFTPipeline

CFG: dict[str, Any] = {"guidance_scale": 4.0, "negative_prompt": "a dog"}
# One pipeline of each family: what differs between a family's pipelines is tested in test_families.py.
ONE_EACH = {
    family_of(denoiser_of(case.pipe())).denoiser: name for name, case in reversed(CASES.items()) if not case.alone
}
every_family = pytest.mark.parametrize("case", [CASES[name] for name in ONE_EACH.values()], ids=ONE_EACH)
# Its text goes through layers of attention whose rows are tokens.
FOLDED = "Krea2Pipeline"
UNFOLDED = {denoiser: name for denoiser, name in ONE_EACH.items() if name != FOLDED}
every_unfolded_family = pytest.mark.parametrize("case", [CASES[name] for name in UNFOLDED.values()], ids=UNFOLDED)


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=1e-5 * max(1.0, expected.abs().max().item()), rtol=0)


def with_base_rate(adapter: Any, rate: float = 0.4) -> Any:
    return dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, base_rate=rate))


@every_unfolded_family
@pytest.mark.parametrize("guide", ["both", "cond"])
def test_batched_is_two_passes_in_one_forward(case: Case, guide: str) -> None:
    pipe = case.pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe, tilt=1.5))
    for cfg in (False, True):
        call = {"cfg": cfg, "nft_guide": guide}
        expected = case.sample(guided, [0, 1], **call)
        alpha, push = guided.nft_stats.alpha, guided.nft_stats.push
        runs: list[int] = []
        hook = denoiser_of(pipe).register_forward_hook(lambda *_, runs=runs: runs.append(1))
        close(case.sample(guided, [0, 1], nft_mode="batched", **call), expected)
        hook.remove()
        assert guided.nft_stats.forwards == len(runs)
        torch.testing.assert_close(guided.nft_stats.alpha, alpha, atol=1e-5, rtol=0)
        torch.testing.assert_close(guided.nft_stats.push, push, atol=1e-4, rtol=1e-4)


def test_batched_is_refused_where_rows_may_belong_together() -> None:
    """As the frames of a video do, to whose first one others attend (Text2Video-Zero)."""
    pipe = PANORAMA.pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(PANORAMA, pipe, kind="policy"))
    with pytest.raises(FamilyError, match=r'a batch of 2 rows, .* may belong together.*nft_mode="two_pass"'):
        PANORAMA.sample(guided, cfg=True, nft_strength=0.5, nft_mode="batched")


def test_batched_is_refused_where_a_layer_folds_the_rows() -> None:
    pipe = CASES[FOLDED].pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(CASES[FOLDED], pipe))
    with pytest.raises(GuidanceError, match=r"folds the batch into another dimension.*two_pass"):
        CASES[FOLDED].sample(guided, [0, 1], nft_mode="batched")


@every_family
def test_guiding_the_conditional_rows_differs_under_cfg_only(case: Case) -> None:
    pipe = case.pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe))
    close(case.sample(guided, [0, 1], nft_guide="cond"), case.sample(guided, [0, 1]))
    both, cond = (case.sample(guided, [0, 1], cfg=True, nft_guide=guide) for guide in ("both", "cond"))
    if not case.cfg([0]):  # FLUX.2 knows no other guidance than the one distilled into it
        return
    assert (both - cond).abs().max() > 1e-4 * both.abs().max()
    close(case.sample(guided, [1], cfg=True, nft_guide="cond"), cond[1:])


@every_family
@pytest.mark.parametrize("cfg", [False, True], ids=["cfg_free", "cfg"])
def test_single_is_the_lora_at_the_scale_of_each_sample(case: Case, cfg: bool) -> None:
    """At the first step: alpha is the base rate, and the prediction the stock one with the LoRA at that weight."""
    pipe = case.pipe()
    adapter = with_base_rate(adapter_for(case, pipe, tilt=1.5))
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    result = case.predict(guided, [0, 1], nft_mode="single", nft_law="nft", cfg=cfg)
    stock = case.pipe()
    weaker = {key: tensor * (1.5 * 0.4 if "lora_B" in key else 1.0) for key, tensor in adapter.lora.items()}
    load_ordinarily(stock, weaker, "x", ["x"])
    close(result, case.predict(stock, [0, 1], cfg=cfg))


def test_single_uses_the_alpha_of_the_step_before_one_a_sample() -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, with_base_rate(tiny_adapter(pipe.transformer, tilt=1.5)))
    call = {"num_images_per_prompt": 3, "num_inference_steps": 4, "nft_mode": "single", "nft_law": "nft"}
    for more in ({}, CFG, {**CFG, "nft_guide": "cond"}):
        with counted_forwards(pipe.transformer) as forwards:
            sample(guided, **call, **more)
        stats = guided.nft_stats
        assert forwards == [4] and stats.passes.tolist() == [1, 1, 1, 1]
        torch.testing.assert_close(stats.scale[0], torch.full((3,), 1.5 * 0.4))
        torch.testing.assert_close(stats.scale[1:], 1.5 * stats.alpha[:-1])
        assert stats.alpha.std(1).min() > 1e-4 and stats.push.isnan().all()


def test_single_tells_the_head_at_which_scale_the_lora_is() -> None:
    pipe = tiny_pipe()
    adapter = with_base_rate(tiny_adapter(pipe.transformer, tilt=1.5))
    assert adapter.head is not None
    heard: list[torch.Tensor | None] = []
    adapter.head.register_forward_pre_hook(lambda module, args: heard.append(args[3]))
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    sample(guided, num_inference_steps=3, num_images_per_prompt=2, nft_mode="single", nft_interval=(0.0, 0.9))
    stats = guided.nft_stats
    assert stats.scale[0].eq(0).all() and heard[0] is None  # outside the interval the LoRA is off
    assert all(torch.equal(one, scale) for one, scale in zip(heard[1:], stats.scale[1:], strict=True))
    heard.clear()
    sample(guided, num_inference_steps=3)
    assert heard == [None] * 3


def test_single_reads_alpha_before_the_interval_begins() -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, with_base_rate(tiny_adapter(pipe.transformer)))
    sample(guided, num_inference_steps=4, nft_mode="single", nft_interval=(0.0, 0.95), nft_law="odds")
    scale, alpha = guided.nft_stats.scale[:, 0], guided.nft_stats.alpha[:, 0]
    assert scale[0] == 0 and not alpha[0].isnan()
    rho = torch.tensor(2.0).expm1()
    torch.testing.assert_close(scale[1:], rho * alpha[:-1] / (1 + rho * alpha[:-1]))


def test_single_at_strength_0_is_the_stock_pipeline() -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, with_base_rate(tiny_adapter(pipe.transformer)))
    for mode in ("single", "batched"):
        assert torch.equal(sample(guided, nft_mode=mode, nft_strength=0), sample(pipe))


@pytest.mark.parametrize("mode", ["batched", "single"])
def test_a_style_lora_stays_in_every_row(mode: str) -> None:
    pipe = tiny_pipe()
    load_style(pipe)
    adapter = with_base_rate(tiny_adapter(pipe.transformer, alpha=0.4))
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    one: dict[str, Any] = {"num_inference_steps": 1, "joint_attention_kwargs": {"scale": 0.5}, "nft_law": "nft"}
    result = sample(guided, nft_mode=mode, **one)
    if mode == "batched":
        expected = sample(guided, **one)
    else:
        stock = tiny_pipe()
        load_style(stock)
        stock.transformer.load_lora_adapter(dict(adapter.lora), prefix="transformer", adapter_name="x")
        stock.transformer.set_adapters(["style", "x"], [1.0, 2.0 * 0.4 / 0.5])
        del one["nft_law"]
        expected = sample(stock, **one)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["batched", "single"])
def test_a_model_that_folds_its_batch_is_refused_by_name(mode: str) -> None:
    """A layer that sees more rows than the batch has: scales of one row each cannot be told apart there."""
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, with_base_rate(tiny_adapter(pipe.transformer)))
    layer = pipe.transformer.transformer_blocks[0].attn.to_q
    forward = layer.forward
    layer.forward = lambda x: forward(x.reshape(-1, 1, x.shape[-1])).reshape(*x.shape[:-1], -1)
    call: dict[str, Any] = {"num_images_per_prompt": 2, "nft_mode": mode}
    with pytest.raises(GuidanceError, match=r'folds the batch into another dimension.*Use nft_mode="two_pass"'):
        sample(guided, **call)
    if mode == "single":  # the same scale for all rows needs no telling apart
        sample(guided, num_inference_steps=1, num_images_per_prompt=2, nft_mode=mode)
    sample(guided, num_images_per_prompt=2)
