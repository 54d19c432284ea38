"""What guidance costs, and what the ways to do without this package's engine cost: side by side, in one run.

    python -m tests.benchmarks.engine                 # a random SD3 of 31 M weights on one CPU thread
    python -m tests.benchmarks.engine --check         # and exit 1 if a bar is missed
    python -m tests.benchmarks.engine --device cuda --dtype bfloat16 --model sd3.5-medium --size 1024     # full size

Every round times each way once, in an order of its own, so that a machine that slows down slows all of them; a ratio is
taken within its round, to the mean of the plain calls in it, and the table gives the median of the ratios and their
quartiles. On a CPU the time is the process's own CPU
time, so that other programs count little. A call is prompt to picture; on a GPU the peak memory of a call is shown too.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapters.keys import lora_modules
from nft_pipeline.engine.injection import LoraSwitch, tuner_layers
from nft_pipeline.guidance import combine
from tests.benchmarks.random_models import TEXT, build, random_adapter
from tests.benchmarks.ratios import in_rounds, table

FREE, CFG = {"guidance_scale": 1.0}, {"guidance_scale": 4.0}
HOTSWAP = 0.1  # of the time that loading takes; what a compiled denoiser then takes to compile again is not counted


@dataclass(frozen=True)
class Way:
    """One way of sampling.

    Args:
        call: runs it once.
        of: the way its time is divided by.
        limit: of that ratio's median; None for what is only shown.
    """

    call: Callable[[], Any]
    of: str
    limit: float | None = None


@contextmanager
def second_pass(transformer: nn.Module, run: Callable[..., Tensor]) -> Iterator[None]:
    """Guidance by hand: after each forward `run` gives v_lora for the same inputs."""

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        return (combine(output[0], run(*args, **kwargs), 0.5),)

    hook = transformer.register_forward_hook(after, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def two_models(transformer: Any, lora: dict[str, Tensor]) -> nn.Module:
    """A second copy with the LoRA added to its weights, as a merged checkpoint has it."""
    merged = copy.deepcopy(transformer)
    with torch.no_grad():
        for module in lora_modules(lora):
            a, b = (lora[f"transformer.{module}.lora_{side}.weight"] for side in "AB")
            weight = merged.get_submodule(module).weight
            weight += (b.to(weight) @ a.to(weight)).to(weight)
    return merged


def modular(pipe: Any, guider: Any) -> Any:
    """diffusers' modular SD3 over the same transformer."""
    from diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3 import (
        StableDiffusion3T2ICoreDenoiseStep,
    )

    made = StableDiffusion3T2ICoreDenoiseStep().init_pipeline()
    made.set_progress_bar_config(disable=True)
    made.update_components(transformer=pipe.transformer, scheduler=copy.deepcopy(pipe.scheduler), guider=guider)
    return made


def ways(model: str, device: str, dtype: torch.dtype, size: int, steps: int, batch: int, rank: int) -> dict[str, Way]:
    """Everything that is timed, each over the same transformer."""
    pipe = build(model, device, dtype)
    transformer = pipe.transformer
    positive, policy = random_adapter(transformer, rank), random_adapter(transformer, rank, "policy")
    lora = {key: tensor.to(device, dtype) for key, tensor in positive.lora.items()}
    merged = two_models(transformer, lora)
    call: dict[str, Any] = {"height": size, "width": size, "num_inference_steps": steps}
    if model == "flux.1-dev":
        text = torch.randn(batch, 512, transformer.config.joint_attention_dim, device=device, dtype=dtype)
        pooled = torch.randn(batch, transformer.config.pooled_projection_dim, device=device, dtype=dtype)
        call |= {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
    else:
        call |= {"prompt": "a cat", "num_images_per_prompt": batch, "max_sequence_length": 0}
    guided = DiffusionNFTPipeline.from_pipe(pipe, positive)
    changing = DiffusionNFTPipeline.from_pipe(pipe, positive)
    with_policy = DiffusionNFTPipeline.from_pipe(pipe, policy)

    def on(pipeline: Any, **more: Any) -> Callable[[], Any]:
        return lambda: pipeline(**{**call, **more})

    def by_hand(run: Callable[..., Tensor]) -> Callable[[], Any]:
        def sample() -> Any:
            with second_pass(transformer, run):
                return pipe(**call, **FREE)

        return sample

    def lora_on() -> None:
        switch = LoraSwitch(transformer, {"nft": len(lora_modules(lora))})
        switch.only("nft")
        try:
            pipe(**call, **FREE)
        finally:
            switch.restore()

    def swap(*args: Any, **kwargs: Any) -> Tensor:
        """What a script does that knows nothing but load and unload."""
        transformer.load_lora_adapter(lora, prefix="transformer", adapter_name="swapped")
        try:
            return transformer.forward(*args, **kwargs)[0]
        finally:
            transformer.delete_adapters("swapped")
            for layer in tuner_layers(transformer).values():  # peft has switched one of ours on instead
                layer._active_adapter = []

    found = {
        "plain": Way(on(pipe, **FREE), "plain"),
        "plain, a second time": Way(on(pipe, **FREE), "plain"),
        "strength 0": Way(on(guided, nft_strength=0, **FREE), "plain", 1.03),
        "guided": Way(on(guided, **FREE), "plain", 2.05),
        "guided, odds law": Way(on(guided, nft_law="odds", **FREE), "plain", 2.05),
        "guided in (0.2, 0.8)": Way(on(guided, nft_interval=(0.2, 0.8), **FREE), "plain"),
        "batched": Way(on(guided, nft_mode="batched", **FREE), "plain"),
        "single": Way(on(guided, nft_mode="single", **FREE), "plain", 1.08),
        "stock, LoRA on": Way(lora_on, "plain"),
        "policy at strength 1": Way(on(with_policy, **FREE), "stock, LoRA on", 1.03),
        "two models in memory": Way(by_hand(lambda *a, **k: merged.forward(*a, **k)[0]), "plain"),
        "LoRA loaded and unloaded": Way(by_hand(swap), "plain"),
        "adapter loaded again": Way(lambda: changing.load_nft_adapter(positive), "adapter loaded again"),
        "adapter swapped": Way(
            lambda: changing.load_nft_adapter(positive, hotswap=True), "adapter loaded again", HOTSWAP
        ),
    }
    if model == "flux.1-dev":  # guidance is distilled into it: one forward per step whatever guidance_scale is
        return found
    four: dict[str, Any] = {"num_images_per_prompt": 4, **FREE}
    found |= {
        "four pictures, one strength": Way(on(guided, **four), "four pictures, one strength"),
        "four pictures, four strengths": Way(
            on(guided, nft_strength=[0.0, 0.5, 1.0, 2.0], **four), "four pictures, one strength", 1.05
        ),
        "CFG": Way(on(pipe, **CFG), "CFG"),
        "CFG, a second time": Way(on(pipe, **CFG), "CFG"),
        "CFG, guided both": Way(on(guided, **CFG), "CFG", 2.05),
        "CFG, guided cond": Way(on(guided, nft_guide="cond", **CFG), "CFG", 1.6),
    }
    from diffusers.guiders import AutoGuidance, ClassifierFreeGuidance

    from nft_pipeline import DiffusionNFTGuidance

    tokens = torch.randn(batch, 77, 2 * TEXT, device=device, dtype=dtype)
    embeds = {"prompt_embeds": tokens, "pooled_prompt_embeds": tokens[:, 0]}
    inputs = {**embeds, "height": size, "width": size, "num_inference_steps": steps, "output": "latents"}
    negative = {f"negative_{name}": value for name, value in embeds.items()}
    ours = DiffusionNFTGuidance()
    ours.load_nft_adapter(transformer, positive)
    # The block's MLP alone: skipping a whole block of SD3 hands on text for picture in diffusers 0.42.
    layers = {"fqn": "transformer_blocks", "indices": [1], "skip_attention": False, "skip_ff": True}
    guiders = {
        "modular, no guidance": (ClassifierFreeGuidance(guidance_scale=1.0), {}),
        "modular, AutoGuidance": (AutoGuidance(guidance_scale=2.0, auto_guidance_config=layers), negative),
        "modular, DiffusionNFTGuidance": (ours, {}),
    }
    for name, (guider, more) in guiders.items():
        made = modular(pipe, guider)
        found[name] = Way(lambda made=made, more=more: made(**inputs, **more), "modular, no guidance")  # type: ignore[misc]
    return found


def added_memory(model: str, rank: int) -> str:
    """Bytes of weights that guidance adds, beside a second copy of the model."""
    on_cpu = model in ("small", "wide")
    pipe = build(model, "cpu" if on_cpu else "meta", torch.float32)
    adapter = random_adapter(pipe.transformer, rank)
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter) if on_cpu else None
    own = sum(p.numel() for n, p in pipe.transformer.named_parameters() if ".lora_" not in n)
    carried = sum(p.numel() for n, p in pipe.transformer.named_parameters() if ".lora_" in n)
    lora = sum(tensor.numel() for tensor in adapter.lora.values())
    head = sum(p.numel() for p in adapter.head.parameters()) if adapter.head is not None else 0
    if guided is not None and carried != lora:
        raise AssertionError(f"the LoRA has {lora} numbers, the transformer carries {carried}")
    return (
        f"weights added: {lora / 1e6:.2f} M of the LoRA and {head / 1e6:.2f} M of the head, "
        f"{100 * (lora + head) / own:.1f} % of the model; a second model is 100 %"
    )


def make_clock(device: str) -> Callable[[], float]:
    """CPU seconds of this process, or wall-clock seconds with the GPU's queue emptied."""
    if device == "cpu":
        return time.process_time

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def main(argv: list[str] | None = None) -> int:
    """Print the table; with --check, return 1 if something is dearer than promised."""
    parser = argparse.ArgumentParser(prog="engine", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8, help="raise it if the quartiles are far apart (default 8)")
    parser.add_argument("--steps", type=int, default=8, help="steps a call (default 8)")
    parser.add_argument("--batch", type=int, default=1, help="pictures a call (default 1, the dearest in proportion)")
    parser.add_argument("--size", type=int, default=256, help="pixels, a multiple of 16 (default 256: 256 tokens)")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA (default 16)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1; more makes CPU seconds vague)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    parser.add_argument(
        "--model",
        choices=("small", "wide", "sd3.5-medium", "flux.1-dev"),
        default="small",
        help="random weights of these shapes; the full-size ones need a GPU. wide has two blocks of SD3.5-medium's "
        "width: what a LoRA and a head cost falls with width (default small, 31 M weights)",
    )
    parser.add_argument("--only", nargs="+", metavar="WAY", help="time these ways and what they are divided by alone")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a ratio is above its bar")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)

    dtype = getattr(torch, options.dtype)
    timed = ways(options.model, options.device, dtype, options.size, options.steps, options.batch, options.rank)
    if options.only:
        unknown = sorted(set(options.only) - set(timed))
        if unknown:
            parser.error(f"no way is called {', '.join(unknown)}; there are {', '.join(timed)}")
        kept = set(options.only)
        for _ in range(2):  # what a way is divided by may itself be divided by something
            kept |= {timed[name].of for name in kept}
        kept |= {f"{name}, a second time" for name in kept}
        timed = {name: way for name, way in timed.items() if name in kept}
    clock = make_clock(options.device)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    peaks: dict[str, float] = {}
    for name, count in in_rounds(timed, tqdm(range(options.rounds + 1), desc="rounds")):
        if options.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        started = clock()
        with torch.no_grad():
            timed[name].call()
        if count:
            seconds[name].append(clock() - started)
        if options.device != "cpu":
            peaks[name] = torch.cuda.max_memory_allocated() / 2**30

    print(
        f"{options.model}, {options.size} px, {options.steps} steps, batch {options.batch}, LoRA rank {options.rank}, "
        f"{options.dtype}, {options.device}, {options.threads} threads, {options.rounds} rounds, "
        f"torch {torch.__version__}"
    )
    print(added_memory(options.model, options.rank))
    divided_by, limits = ({name: getattr(way, what) for name, way in timed.items()} for what in ("of", "limit"))
    more = ("peak GiB", lambda name: f"{peaks[name]:.1f}") if peaks else None
    shown, missed = table(seconds, divided_by, limits, more)
    print("\n" + shown)
    if options.check and missed:
        print("\n".join(missed), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
