"""What guidance costs: a guided pipeline call beside a plain one, on a random SD3 with a transformer of 30 M weights.

    python -m tests.benchmarks.cost            # the table
    python -m tests.benchmarks.cost --check    # and exit 1 if a guided call takes more than 2.05 plain ones

Every round times each way once, in turn, so that a machine that slows down slows all of them; a ratio is taken within
its round, and the table gives the median of the ratios and their quartiles. On a CPU the time is the process's own CPU
time, so that other programs count little. A call is prompt to picture: two small text encoders, the steps, a small VAE.
The second table has the steps alone, which is the larger ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import Adapter, AdapterConfig, BaseModel, fingerprint
from nft_pipeline.alpha_head import AlphaHead, AlphaHeadConfig
from nft_pipeline.families import family_of

WIDTH, DEPTH, TEXT = 384, 6, 64
LIMIT = 2.05


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """A small random CLIP text encoder."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT,
        intermediate_size=2 * TEXT,
        projection_dim=TEXT,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config).eval()


def build(device: str, dtype: torch.dtype) -> StableDiffusion3Pipeline:
    """The random pipeline: SD3's layout, an 8x VAE, no T5."""
    torch.manual_seed(0)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = ["<|startoftext|>", *letters, *(letter + "</w>" for letter in letters), "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77)
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=DEPTH,
        attention_head_dim=64,
        num_attention_heads=WIDTH // 64,
        caption_projection_dim=WIDTH,
        joint_attention_dim=2 * TEXT,
        pooled_projection_dim=2 * TEXT,
        pos_embed_max_size=64,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer.eval().requires_grad_(False),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.eval(),
        text_encoder=text_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder(tokenizer),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, dtype)


def random_adapter(transformer: SD3Transformer2DModel, rank: int) -> Adapter:
    """A positive adapter on the family's default layers, with the default alpha head."""
    lora = {}
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith(family_of(transformer).lora_targets):
            lora[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, module.in_features) * 0.05
            lora[f"transformer.{name}.lora_B.weight"] = torch.randn(module.out_features, rank) * 0.05
    config = AdapterConfig(
        kind="positive",
        name="cost",
        beta=1.0,
        tilt=2.0,
        base_model=BaseModel(id="random", revision=None, fingerprint=fingerprint(transformer)),
        denoiser=type(transformer).__name__,
        prediction="flow",
        rank=rank,
        reward={"name": "nothing", "description": "random weights", "normaliser": "none"},
        guidance_scale=1.0,
        resolution=(256, 256),
        licence="apache-2.0",
    )
    return Adapter(config, lora, AlphaHead(AlphaHeadConfig(feature_dim=WIDTH, text_dim=2 * TEXT)).eval())


class StepsTimer:
    """Seconds between the first denoiser call's start and the last one's end."""

    def __init__(self, transformer: torch.nn.Module, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.begin = self.end = 0.0
        transformer.register_forward_pre_hook(self.start)

    def start(self, module: torch.nn.Module, args: Any) -> None:
        self.begin = self.begin or self.clock()

    def stop(self, pipe: Any, step: int, timestep: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        self.end = self.clock()
        return inputs


def make_clock(device: str) -> Callable[[], float]:
    """CPU seconds of this process, or wall-clock seconds with the GPU's queue emptied."""
    if device == "cpu":
        return time.process_time

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def table(title: str, times: dict[str, list[float]]) -> dict[str, float]:
    """Print the medians and ratios; returns the ratios to the first way."""
    first = next(iter(times.values()))
    print(f"\n{title:18}  {'ms (median)':>11}  {'/ plain':>8}  quartiles")
    ratios = {}
    for name, values in times.items():
        paired = [value / plain for value, plain in zip(values, first, strict=True)]
        low, ratios[name], high = statistics.quantiles(paired, n=4) if len(paired) > 1 else paired * 3
        print(f"{name:18}  {1000 * statistics.median(values):11.1f}  {ratios[name]:8.3f}  {low:.3f} to {high:.3f}")
    return ratios


def main(argv: list[str] | None = None) -> int:
    """Print the tables; with --check, return 1 if guidance is dearer than promised."""
    parser = argparse.ArgumentParser(prog="cost", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="raise it if the quartiles are far apart (default 10)")
    parser.add_argument("--steps", type=int, default=10, help="steps a call (default 10)")
    parser.add_argument("--batch", type=int, default=1, help="pictures a call (default 1, the dearest in proportion)")
    parser.add_argument(
        "--size", type=int, default=256, help="pixels, a multiple of 16 (default 256: 256 image tokens)"
    )
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA (default 16)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1; more makes CPU seconds vague)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 if guided / plain is above {LIMIT}")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)

    pipe = build(options.device, getattr(torch, options.dtype))
    weights = sum(parameter.numel() for parameter in pipe.transformer.parameters())
    guided = DiffusionNFTPipeline.from_pipe(pipe, random_adapter(pipe.transformer, options.rank))
    clock = make_clock(options.device)
    timer = StepsTimer(pipe.transformer, clock)
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "plain": (pipe, {}),
        "plain again": (pipe, {}),
        "strength 0": (guided, {"nft_strength": 0}),
        "outside interval": (guided, {"nft_interval": (0.0, 0.0)}),
        "guided, nft law": (guided, {}),
        "guided, odds law": (guided, {"nft_law": "odds"}),
    }
    calls: dict[str, list[float]] = {name: [] for name in ways}
    steps: dict[str, list[float]] = {name: [] for name in ways}
    for count in range(options.rounds + 1):
        for name, (pipeline, arguments) in ways.items():
            timer.begin, start = 0.0, clock()
            pipeline(
                "a cat",
                num_images_per_prompt=options.batch,
                num_inference_steps=options.steps if count else 1,  # the first round is for warming up
                guidance_scale=1.0,
                max_sequence_length=0,
                height=options.size,
                width=options.size,
                callback_on_step_end=timer.stop,
                **arguments,
            )
            if count:
                calls[name].append(clock() - start)
                steps[name].append(timer.end - timer.begin)

    print(
        f"{weights / 1e6:.0f} M weights, {options.size} px, {options.steps} steps, batch {options.batch}, LoRA rank "
        f"{options.rank}, {options.dtype}, {options.device}, {options.threads} threads, {options.rounds} rounds, torch "
        f"{torch.__version__}"
    )
    ratio = table("whole call", calls)["guided, nft law"]
    table("steps alone", steps)
    if options.check and ratio > LIMIT:
        print(f"a guided call takes {ratio:.3f} plain ones, above {LIMIT}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
