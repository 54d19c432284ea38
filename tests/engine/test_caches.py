"""Guidance under diffusers' caches, which leave out blocks and give what they gave in an earlier step instead.

A cache changes the picture, with guidance or without. So the promise is not that of the uncached call but this: each
branch is cached as if it were alone. At s = 1 the guided call is then the stock pipeline with the LoRA on, under the
same cache; mixing the memories of both branches fails that by far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import hooks
from torch import Tensor

from helpers.tiny import constant_head, tiny_transformer
from helpers.zoo import CASES, adapter_for, load_ordinarily, lora_for
from nft_pipeline.adapter import Adapter
from nft_pipeline.engine.caching import CacheBranches
from nft_pipeline.engine.engine import NFTEngine
from nft_pipeline.engine.terms import Term
from nft_pipeline.errors import GuidanceError
from nft_pipeline.pipeline import DiffusionNFTPipeline
from nft_pipeline.settings import GuidanceSettings

CASE, STEPS = CASES["FluxPipeline"], 8


def flux() -> Any:
    """A pipeline whose denoiser has blocks to leave out: two of each kind."""
    pipe = CASE.pipe()
    torch.manual_seed(0)
    config = {**pipe.transformer.config, "num_layers": 2, "num_single_layers": 2}
    pipe.transformer = diffusers.FluxTransformer2DModel(**config).eval()
    return pipe


def always(pipe: Any, alpha: float = 1.0, **config: Any) -> Adapter:
    """A positive adapter whose head always says alpha, at tilt 1: s of the law "nft" is strength times alpha."""
    adapter = adapter_for(CASE, pipe, tilt=1.0)
    head = constant_head(32, alpha)
    head.config = replace(head.config, tap="norm_out")
    return replace(adapter, head=head, config=replace(adapter.config, **config))


def with_lora(weight: float = 1.0) -> Any:
    pipe = flux()
    load_ordinarily(pipe, lora_for(pipe), "lora", ["lora"])
    pipe.transformer.set_adapters(["lora"], [weight])
    return pipe


CACHES: dict[str, Callable[[], Any]] = {
    "first_block": lambda: hooks.FirstBlockCacheConfig(threshold=0.5),
    "mag": lambda: hooks.MagCacheConfig(
        threshold=0.1, num_inference_steps=STEPS, mag_ratios=torch.tensor([1.0] + [0.98] * (STEPS - 1))
    ),
    "taylor_seer": lambda: hooks.TaylorSeerCacheConfig(cache_interval=3, taylor_factors_dtype=torch.float32),
    "taylor_seer_lite": lambda: hooks.TaylorSeerCacheConfig(
        cache_interval=3, taylor_factors_dtype=torch.float32, use_lite_mode=True
    ),
}
APPLY = {
    "first_block": hooks.apply_first_block_cache,
    "mag": hooks.apply_mag_cache,
    "taylor_seer": hooks.apply_taylorseer_cache,
}
every_cache = pytest.mark.parametrize("cache", CACHES)


def sample(pipe: Any, cache: str | None = None, **call: Any) -> tuple[Tensor, int]:
    """Latents, and how often the last block's attention ran."""
    ran = []
    if cache is not None:
        pipe.transformer.enable_cache(CACHES[cache]())
    layer = pipe.transformer.single_transformer_blocks[-1].attn.to_q
    hook = layer.register_forward_hook(lambda *_: ran.append(1))
    try:
        return CASE.sample(pipe, num_inference_steps=STEPS, **call), len(ran)
    finally:
        hook.remove()
        if cache is not None:
            pipe.transformer.disable_cache()


@contextmanager
def mixed_memories() -> Iterator[None]:
    """All passes in the pipeline's own context, as they would run if nobody cared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CacheBranches, "enter", lambda self, branch: None)
        yield


@pytest.mark.parametrize(
    ("cache", "cfg"), [*((cache, False) for cache in CACHES), ("first_block", True), ("taylor_seer", True)]
)
def test_each_branch_is_cached_as_if_it_were_alone(cache: str, cfg: bool) -> None:
    calls = 2 * STEPS if cfg else STEPS
    stock, computed = sample(flux(), cache, cfg=cfg)
    expected, computed_on = sample(with_lora(), cache, cfg=cfg)
    assert computed < calls and computed_on < calls, "the cache leaves blocks out"
    pipe = flux()
    guided = DiffusionNFTPipeline.from_pipe(pipe, always(pipe))
    assert torch.equal(sample(guided, cache, cfg=cfg, nft_strength=0)[0], stock)
    for _ in range(2):  # nothing is remembered from call to call
        result, ran = sample(guided, cache, cfg=cfg, nft_law="nft")
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)
        assert guided.nft_stats.forwards == 2 * calls and ran < 2 * calls
    with mixed_memories():
        wrong, _ = sample(guided, cache, cfg=cfg, nft_law="nft")
    assert (wrong - expected).norm() > 0.02 * (expected - stock).norm()


@every_cache
@pytest.mark.parametrize("mode", ["two_pass", "batched"])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.8)], ids=["everywhere", "interval"])
def test_in_between_the_error_is_the_caches_own(cache: str, mode: str, interval: tuple[float, float]) -> None:
    pipe = flux()
    guided = DiffusionNFTPipeline.from_pipe(pipe, always(pipe))
    call = {"nft_strength": 0.5, "nft_interval": interval, "nft_mode": mode}
    exact, cached = sample(guided, **call)[0], sample(guided, cache, **call)[0]
    base = sample(guided, nft_strength=0)[0]
    of_stock = (sample(with_lora(), cache)[0] - sample(with_lora())[0]).norm()
    assert 0 < (cached - exact).norm() < min(of_stock, 0.4 * (exact - base).norm())


@every_cache
def test_single_is_the_lora_at_its_scale(cache: str) -> None:
    pipe = flux()
    guided = DiffusionNFTPipeline.from_pipe(pipe, always(pipe, base_rate=0.999999))
    expected, _ = sample(with_lora(0.5), cache)
    result, _ = sample(guided, cache, nft_strength=0.5, nft_mode="single", nft_law="nft")
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("cache", [cache for cache in CACHES if cache != "first_block"])
def test_batched_is_two_passes(cache: str) -> None:
    """But for the first-block cache, which decides for a whole batch whether to leave blocks out."""
    pipe = flux()
    guided = DiffusionNFTPipeline.from_pipe(pipe, always(pipe))
    expected, result = (sample(guided, cache, nft_strength=0.5, nft_mode=m)[0] for m in ("two_pass", "batched"))
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


def test_a_branch_that_missed_a_step_begins_anew() -> None:
    """And the forward with the LoRA simply on shares its memory with the LoRA's pass, not with the base's."""
    pipe = flux()
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(CASE, pipe, kind="policy"))
    pipe.transformer.enable_cache(CACHES["mag"]())
    (manager,) = CacheBranches(pipe.transformer)._managers
    strengths = [0.5, 0.5, 1.0, 1.0, 0.5, 0.0, 0.5]
    kept: list[dict[str, int]] = []

    def change(pipe: Any, step: int, timestep: Any, inputs: dict) -> dict:
        kept.append({name: state.step_index for name, state in manager._state_cache.items()})
        pipe.set_nft_strength(strengths[min(step + 1, len(strengths) - 1)])
        return inputs

    CASE.sample(guided, num_inference_steps=len(strengths), callback_on_step_end=change, nft_strength=strengths[0])
    assert kept == [
        {"cond": 1, "cond/nft": 1},
        {"cond": 2, "cond/nft": 2},
        {"cond/nft": 3},  # one forward, the LoRA on
        {"cond/nft": 4},
        {"cond": 1, "cond/nft": 5},
        {"cond": 2},  # strength 0: the base alone
        {"cond": 3, "cond/nft": 1},
    ]


def test_contexts_of_the_passes_are_restored() -> None:
    pipe = flux()
    guided = DiffusionNFTPipeline.from_pipe(pipe, always(pipe))
    pipe.transformer.enable_cache(CACHES["mag"]())
    (manager,) = CacheBranches(pipe.transformer)._managers
    names: list[str] = []
    hook = pipe.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda *_: names.append(manager._context.name)
    )
    CASE.sample(guided, num_inference_steps=2, cfg=True)
    hook.remove()
    assert names == ["cond", "cond/nft", "uncond", "uncond/nft"] * 2
    assert manager._context is None and manager._state_cache == {}

    def stop(*_: Any) -> dict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CASE.sample(guided, callback_on_step_end=stop)
    assert set(manager._state_cache) == {"cond"}, "what is left is what the stock pipeline leaves"


@pytest.mark.parametrize("cache", APPLY)
def test_caches_that_were_applied_by_function(cache: str) -> None:
    """The model does not know of these (its _cache_config is None); the hooks are what counts."""

    def cached(pipe: Any) -> Any:
        APPLY[cache](pipe.transformer, CACHES[cache]())
        return pipe

    # On models that have not run yet: later, diffusers would not tell the new hooks their context.
    expected, _ = sample(cached(with_lora()))
    guided = DiffusionNFTPipeline.from_pipe(cached(flux()), always(flux()))
    for _ in range(2):
        torch.testing.assert_close(sample(guided, nft_law="nft")[0], expected, atol=1e-4, rtol=0)


def test_sea_cache() -> None:
    """It needs to be told where the loop is, which of diffusers' pipelines only some do: so the loop is here."""
    config = hooks.SeaCacheConfig(
        threshold=0.6,
        raw_vision_callback=lambda module, args, kwargs: [x.T[:, None, None] for x in kwargs["hidden_states"]],
    )

    def loop(transformer: Any, **cache: Any) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        x, text = torch.randn(1, 16, 16, generator=generator), torch.randn(1, 5, 16, generator=generator)
        sigmas = torch.linspace(1, 0, STEPS + 1)
        for i in range(STEPS):
            with transformer.cache_context("cond", step_index=i, sigma=sigmas[i].item(), num_inference_steps=STEPS):
                v = transformer(
                    hidden_states=x,
                    timestep=sigmas[i : i + 1],
                    encoder_hidden_states=text,
                    pooled_projections=text[:, 0],
                    img_ids=torch.zeros(16, 3),
                    txt_ids=torch.zeros(5, 3),
                ).sample
            x = x + (sigmas[i + 1] - sigmas[i]) * v
        transformer._reset_stateful_cache()
        return x

    def counted(transformer: Any) -> tuple[Tensor, int]:
        ran: list[int] = []
        layer = transformer.single_transformer_blocks[-1].attn.to_q
        hook = layer.register_forward_hook(lambda *_: ran.append(1))
        with torch.no_grad():
            result = loop(transformer)
        hook.remove()
        return result, len(ran)

    on = with_lora().transformer
    on.enable_cache(config)
    expected, computed = counted(on)
    assert computed < STEPS, "the cache leaves blocks out"
    pipe = flux()
    guided = DiffusionNFTPipeline.from_pipe(pipe, always(pipe))
    transformer = guided.transformer
    transformer.enable_cache(config)
    stock, _ = counted(transformer)
    term = Term(guided.nft_adapters["default"], "nft", 1.0)
    with NFTEngine(transformer, [term], GuidanceSettings(law="nft"), scheduler=pipe.scheduler):
        result, _ = counted(transformer)
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)
        with mixed_memories():
            wrong, _ = counted(transformer)
    assert (wrong - expected).norm() > 0.1 * (expected - stock).norm()
    assert torch.equal(counted(transformer)[0], stock)


def test_text_kv_cache_does_nothing_to_these_models() -> None:
    pipe = flux()
    guided = DiffusionNFTPipeline.from_pipe(pipe, always(pipe))
    expected, _ = sample(guided)
    pipe.transformer.enable_cache(hooks.TextKVCacheConfig())
    assert torch.equal(sample(guided)[0], expected)


def _pyramid(transformer: Any) -> Any:
    config = hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    return hooks.apply_pyramid_attention_broadcast, config


def _faster(transformer: Any) -> Any:
    return hooks.apply_faster_cache, hooks.FasterCacheConfig(current_timestep_callback=lambda: 500)


@pytest.mark.parametrize("by_function", [False, True], ids=["enable_cache", "apply"])
@pytest.mark.parametrize(
    ("made", "name"),
    [(_pyramid, "PyramidAttentionBroadcast"), (_faster, "FasterCacheDenoiser")],
    ids=["pyramid", "faster"],
)
def test_caches_whose_memory_has_no_contexts_are_refused(made: Callable, name: str, by_function: bool) -> None:
    pipe = flux()
    guided = DiffusionNFTPipeline.from_pipe(pipe, always(pipe))
    apply, config = made(pipe.transformer)
    if by_function:
        apply(pipe.transformer, config)
    else:
        pipe.transformer.enable_cache(config)
    with pytest.raises(GuidanceError, match=f"caches by {name}, whose memory guidance's passes would mix up"):
        sample(guided)


def test_a_model_without_contexts() -> None:
    """SD3's pipeline names no contexts; diffusers' first-block cache cannot run there, MagCache names one itself."""
    case = CASES["StableDiffusion3Pipeline"]

    def cached(pipe: Any) -> Any:
        hooks.apply_mag_cache(
            pipe.transformer,
            hooks.MagCacheConfig(threshold=0.3, num_inference_steps=STEPS, mag_ratios=torch.full((STEPS,), 0.98)),
        )
        return pipe

    on = case.pipe()
    on.transformer = tiny_transformer(channels=16)
    load_ordinarily(on, lora_for(on), "lora", ["lora"])
    expected = case.sample(cached(on), num_inference_steps=STEPS)
    pipe = case.pipe()
    pipe.transformer = tiny_transformer(channels=16)
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe, kind="policy", tilt=1.0))
    cached(pipe)
    torch.testing.assert_close(case.sample(guided, num_inference_steps=STEPS), expected, atol=1e-4, rtol=0)
    half = [case.sample(guided, num_inference_steps=STEPS, nft_strength=0.5) for _ in range(2)]
    assert torch.equal(*half), "nothing is remembered from call to call"
