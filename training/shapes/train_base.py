"""Train the shapes base model: the denoiser and both text encoders, by flow matching on drawn scenes.

    python -m nft_pipeline.training.shapes.train_vae  vae/
    python -m nft_pipeline.training.shapes.train_base vae/ shapes/     # writes a StableDiffusion3Pipeline folder

(docs/shapes.md has the two rounds that made the shipped one.)

Captions name only about half of what is in the picture, and one in six names something wrong. A base model made this
way spreads evenly over what the prompt leaves open and obeys only part of what it says: there is something for a reward
to teach, as there is with real models.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm
from transformers import CLIPTokenizer

from ..devices.precision import autocast, choose_precision
from .latents import PatchComponents
from .muon import Muon
from .parts import (
    Sizes,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
    build_vae,
    embed_ids,
    tokenize,
    vocabulary,
)
from .world import Scene, caption, draw, sample_scene

CALL_DEFAULTS = {
    "guidance_scale": 1.0,
    "num_inference_steps": 14,
    "max_sequence_length": 0,
    "height": 64,
    "width": 64,
}
MUON = 5  # Muon's learning rate divided by AdamW's; with 1 the same loss took twice as many pictures
T5_PADDING = 256  # zero tokens that StableDiffusion3Pipeline appends by default when there is no T5


@dataclass(frozen=True)
class BaseTraining:
    """Settings of the shipped base model."""

    scenes: int = 60_000
    steps: int = 6_000
    batch: int = 192
    lr: float = 2e-3  # AdamW's; Muon's, for the matrices inside the blocks, is five times that
    keep: float = 0.5  # an attribute is named with this probability
    wrong: float = 0.16  # a caption has one attribute wrong with this probability
    empty: float = 0.08
    shift: float = 3.0  # of the noise levels: the sampler's, so that every one of its steps is trained alike
    stray: int = 0  # see world.scene_for
    seed: int = 0


class CountedPadding(TorchFunctionMode):
    """Lets one zero text token stand for many.

    The pipeline pads the text with up to 256 tokens that are all the same. Attention to n equal keys is attention to
    one of them with log n added to its logit, so training needs one token and this bias, not 256 tokens. The bias is
    (B, 1, 1, S) with the padding token last.
    """

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = bias

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            kwargs["attn_mask"] = self.bias.to(args[0].dtype)
        return func(*args, **kwargs)


def draw_latents(scenes: list[Scene], channels: int, batch: int = 500) -> Tensor:
    """Scaled latents of drawn scenes, exact, float16, shape (N, channels, 8, 8)."""
    components = PatchComponents.of_drawn_scenes(channels)
    latents = []
    for part in tqdm(range(0, len(scenes), batch), desc="scenes"):
        latents.append(components.encode(np.stack([draw(scene) for scene in scenes[part : part + batch]])).half())
    return torch.cat(latents)


class TextAndDenoiser(nn.Module):
    """What is trained together: velocity from noisy latents and token ids."""

    def __init__(self, sizes: Sizes, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.encoders = nn.ModuleList(build_text_encoder(sizes, self.tokenizer) for _ in range(2))
        self.transformer = build_transformer(sizes)

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor, padding: Tensor) -> Tensor:
        """v at x_t (B, 16, 8, 8), t (B,) in [0, 1], ids (B, L), padding (B,): how many zero tokens follow the text."""
        tokens, pooled = embed_ids([ids, ids], list(self.encoders))
        tokens = torch.cat([tokens, torch.zeros_like(tokens[:, :1])], dim=1)
        image_tokens = self.transformer.config.sample_size**2 // self.transformer.config.patch_size**2
        bias = torch.zeros(len(t), 1, 1, image_tokens + tokens.shape[1])
        bias[..., -1] = padding.clamp(min=1e-30).log()[:, None, None]
        with CountedPadding(bias):
            return self.transformer(
                hidden_states=x_t,
                encoder_hidden_states=tokens,
                pooled_projections=pooled,
                timestep=t * 1000,
                return_dict=False,
            )[0]

    def load(self, folder: Path) -> None:
        """Take the weights of a pipeline folder written by `save`."""
        made = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
        self.transformer.load_state_dict(made.transformer.float().state_dict())
        for own, loaded in zip(self.encoders, (made.text_encoder, made.text_encoder_2), strict=True):
            own.load_state_dict(loaded.state_dict())

    def pipeline(self, vae: AutoencoderKL) -> StableDiffusion3Pipeline:
        """The trained parts as the pipeline that is shipped."""
        return StableDiffusion3Pipeline(
            transformer=self.transformer,
            scheduler=build_scheduler(),
            vae=vae,
            text_encoder=self.encoders[0],
            tokenizer=self.tokenizer,
            text_encoder_2=self.encoders[1],
            tokenizer_2=self.tokenizer,
            text_encoder_3=None,
            tokenizer_3=None,
        )


def build_optimizers(
    model: TextAndDenoiser, lr: float, dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, input, output, norms and biases."""
    inside = [*model.transformer.transformer_blocks.parameters()]
    for encoder in model.encoders:
        inside += [p for name, p in encoder.named_parameters() if name.startswith("text_model.encoder.")]
    matrices = [parameter for parameter in inside if parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [
        Muon(matrices, lr=MUON * lr, weight_decay=0.01, dtype=dtype),
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.01, betas=(0.9, 0.99), fused=True),
    ]


def train_base(vae: Path, settings: BaseTraining, out: Path, start: Path | None = None, save_every: int = 500) -> None:
    """Train, from the weights of the pipeline folder `start` if given, and save.

    The averaged weights are what is saved, in half precision, every `save_every` steps.

    The VAE in the folder `vae` is only read when saving, so it may be in training at the same time.
    """
    torch.manual_seed(settings.seed)
    dtype, _ = choose_precision("auto", torch.device("cpu"))
    rng = np.random.default_rng(settings.seed)
    scenes = [sample_scene(rng, settings.stray) for _ in range(settings.scenes)]
    latents = draw_latents(scenes, Sizes().latent_channels)
    model = TextAndDenoiser(Sizes(), build_tokenizer(Sizes(), vocabulary()))
    if start is not None:
        model.load(start)
    average = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(max(0.0, 1 - 4 / settings.steps))
    )  # about the last quarter
    optimizers = build_optimizers(model, settings.lr)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer, lr, total_steps=settings.steps, pct_start=0.04, cycle_momentum=False, div_factor=25
        )
        for optimizer, lr in zip(optimizers, (MUON * settings.lr, settings.lr), strict=True)
    ]
    began, losses = time.monotonic(), []
    for step in (bar := tqdm(range(settings.steps), desc="base", smoothing=0.05)):
        chosen = rng.integers(len(scenes), size=settings.batch)
        prompts = [
            caption(scenes[i], rng, keep=settings.keep, wrong=settings.wrong, empty=settings.empty).text()
            for i in chosen
        ]
        x_0 = latents[torch.from_numpy(chosen)].float()
        loss = flow_loss(model, x_0, prompts, settings.shift, dtype)
        descend(model, loss, optimizers)
        for schedule in schedules:
            schedule.step()
        average.update_parameters(model)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            bar.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}")
            print(f"step {step + 1} loss {np.mean(losses[-100:]):.4f} {time.monotonic() - began:.0f}s", flush=True)
        if (step + 1) % save_every == 0 or step + 1 == settings.steps:
            save(average.module, load_vae(vae, Sizes()), out)


def flow_loss(
    model: TextAndDenoiser,
    x_0: Tensor,
    prompts: list[str],
    shift: float,
    dtype: torch.dtype,
    order: Callable[[int], Tensor] = torch.arange,
) -> Tensor:
    """Flow matching's loss on a batch: the mean square of v - (eps - x_0) at noise levels of its own.

    Args:
        model: learns.
        x_0: scaled latents, (B, C, h, w).
        prompts: their captions.
        shift: of the noise levels.
        dtype: bf16 computes under autocast.
        order: which stretch of [0, 1] each picture's level comes from, (B,) from B. `torch.randperm` where pictures of
            one kind stand together in the batch.
    """
    eps = torch.randn_like(x_0)
    u = (order(len(x_0)) + torch.rand(len(x_0))) / len(x_0)  # stratified: less noise in the gradient
    t = shift * u / (1 + (shift - 1) * u)
    x_t = (1 - t)[:, None, None, None] * x_0 + t[:, None, None, None] * eps
    padding = (torch.rand(len(x_0)) < 0.25) * float(T5_PADDING)
    ids = tokenize(prompts, model.tokenizer)
    with autocast(x_t.device, dtype), sdpa_kernel(SDPBackend.MATH):
        v = model(x_t, t, ids, padding).float()
    return F.mse_loss(v, eps - x_0)


def descend(model: nn.Module, loss: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """One step of all optimisers down the loss, its gradient clipped to length 1."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()


def load_vae(folder: Path, sizes: Sizes) -> AutoencoderKL:
    """The VAE in a folder written by train_vae, without that folder's name in its config."""
    vae = build_vae(sizes)
    vae.load_state_dict(AutoencoderKL.from_pretrained(folder).state_dict())
    return vae


def save(model: Any, vae: AutoencoderKL, out: Path) -> None:
    """Write the pipeline folder and the call arguments it was trained for.

    Denoiser and VAE are stored in half precision (diffusers loads them as float32); the text encoders are not, because
    transformers would keep them in half.
    """
    halved = [copy.deepcopy(part).half() for part in (model.transformer, vae)]
    pipe = model.pipeline(vae)
    pipe.register_modules(transformer=halved[0], vae=halved[1])
    pipe.save_pretrained(out)
    (out / "call_defaults.json").write_text(json.dumps(CALL_DEFAULTS, indent=2) + "\n")


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vae", type=Path, help="folder written by train_vae")
    parser.add_argument("out", type=Path, help="folder to write the pipeline into")
    parser.add_argument("--steps", type=int, default=BaseTraining.steps, help="fewer leaves shapes ragged")
    parser.add_argument("--scenes", type=int, default=BaseTraining.scenes, help="drawn pictures to train on")
    parser.add_argument("--start", type=Path, help="begin with the weights of this pipeline folder: a second round")
    parser.add_argument("--lr", type=float, default=BaseTraining.lr, help="AdamW's; Muon's is five times as large")
    parser.add_argument(
        "--stray", type=int, default=BaseTraining.stray, help="grid steps that things may stand off their places"
    )
    parser.add_argument("--seed", type=int, default=BaseTraining.seed, help="use another one for a second round")
    args = parser.parse_args()
    if not (args.vae / "config.json").is_file():
        parser.error(f"{args.vae} is not a VAE folder; make one with python -m nft_pipeline.training.shapes.train_vae")
    settings = BaseTraining(steps=args.steps, scenes=args.scenes, lr=args.lr, stray=args.stray, seed=args.seed)
    train_base(args.vae, settings, args.out, args.start)


if __name__ == "__main__":
    main()
