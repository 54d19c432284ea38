"""Memory of a training run on full-size models, computed without having them: bytes of all tensors alive at the peak.

    python -m tests.benchmarks.memory --write

Models are built from their published sizes over fake tensors, which have shapes and no numbers, and run as the trainer
runs them: autocast to bf16, LoRA in fp32. So the tensors are those of a real step; a GPU needs more on top, for its
context, workspaces and what its allocator cannot use. Quantised weights are counted by their formats. --write makes
docs/measured/memory.md.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from tqdm import tqdm

from nft_pipeline.families.forward_call import as_rows
from nft_pipeline.training.bases.base import PROMPTS_AT_ONCE, Conditions, TrainBase
from nft_pipeline.training.bases.registry import train_base
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.devices.precision import autocast
from nft_pipeline.training.learn.roles import LoraRoles
from nft_pipeline.training.settings.config import TrainConfig

GIB = 2**30
DOCS = Path(__file__).parents[2] / "docs"
# Bytes a weight: nf4 has a scale for 64 weights in 8 bits and one for 256 of those in fp32; int8 one for every output.
QUANTISED = {"int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}


@dataclass(frozen=True)
class Model:
    """Published sizes of a base model.

    Args:
        pipe: its pipeline's class in diffusers, and arguments of it beside its parts.
        denoiser, vae: their classes, and arguments where the class's defaults are another model's.
        encoders: weights of the text encoders, in billions.
        text: (tokens, width) of an encoded prompt.
        pooled: width of its pooled text, if any.
    """

    pipe: tuple[str, dict[str, Any]]
    denoiser: tuple[str, dict[str, Any]]
    vae: tuple[str, dict[str, Any]]
    encoders: float
    text: tuple[int, int]
    pooled: int | None = None


def _kl(channels: int) -> tuple[str, dict[str, Any]]:
    sizes: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "latent_channels": channels}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return "AutoencoderKL", {**sizes, **blocks, "layers_per_block": 2, "shift_factor": 0.0}


SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
SD35_MEDIUM: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}
KLEIN_4B = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
SANA_600M = {
    "num_layers": 28,
    "num_attention_heads": 36,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "sample_size": 16,
}
WAN_1_3B = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
DIT = "Transformer2DModel"
# By preset. Encoders: CLIP-L .12, CLIP-G .69, T5-XXL 4.76, Mistral Small 24.0, Qwen3 4.0, Qwen2.5-VL 8.3, Gemma 2 2.6,
# UMT5-XXL 5.7.
MODELS = {
    "sd15": Model(
        ("StableDiffusionPipeline", NO_CHECKER),
        ("UNet2DConditionModel", {"sample_size": 64, "cross_attention_dim": 768}),
        _kl(4),
        0.12,
        (77, 768),
    ),
    "sdxl": Model(("StableDiffusionXLPipeline", {}), ("UNet2DConditionModel", SDXL), _kl(4), 0.81, (77, 2048), 1280),
    "sd35_medium": Model(
        ("StableDiffusion3Pipeline", {}), (f"SD3{DIT}", SD35_MEDIUM), _kl(16), 5.57, (333, 4096), 2048
    ),
    "flux1_dev": Model(
        ("FluxPipeline", {}), (f"Flux{DIT}", {"guidance_embeds": True}), _kl(16), 4.88, (512, 4096), 768
    ),
    "flux2_dev": Model(("Flux2Pipeline", {}), (f"Flux2{DIT}", {}), ("AutoencoderKLFlux2", {}), 24.0, (512, 15360)),
    "flux2_klein_4b": Model(
        ("Flux2KleinPipeline", {}), (f"Flux2{DIT}", KLEIN_4B), ("AutoencoderKLFlux2", {}), 4.0, (512, 7680)
    ),
    "qwen_image": Model(
        ("QwenImagePipeline", {}), (f"QwenImage{DIT}", {}), ("AutoencoderKLQwenImage", {}), 8.3, (128, 3584)
    ),
    "z_image": Model(("ZImagePipeline", {}), (f"ZImage{DIT}", {}), _kl(16), 4.0, (128, 2560)),
    "sana_600m": Model(("SanaPipeline", {}), (f"Sana{DIT}", SANA_600M), ("AutoencoderDC", {}), 2.6, (300, 2304)),
    "wan_1_3b": Model(
        ("WanPipeline", {}), ("WanTransformer3DModel", WAN_1_3B), ("AutoencoderKLWan", {}), 5.7, (512, 4096)
    ),
}


Encoder = tuple[str, dict[str, Any], int]
CLIP_L: Encoder = (
    "CLIPText",
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    77,
)
CLIP_G: Encoder = (
    "CLIPText",
    {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20},
    77,
)
T5: dict[str, Any] = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
T5 |= {"feed_forward_proj": "gated-gelu"}
QWEN3: dict[str, Any] = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}
QWEN3 |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
QWEN25: dict[str, Any] = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
QWEN25 |= {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}
MISTRAL: dict[str, Any] = {"hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 40}
MISTRAL |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072}
# By preset: name of the classes in transformers, arguments of the config, tokens. The vision parts stay unused.
ENCODERS: dict[str, list[Encoder]] = {
    "sd15": [CLIP_L],
    "sdxl": [CLIP_L, CLIP_G],
    "sd35_medium": [CLIP_L, CLIP_G, ("T5", T5, 256)],
    "flux1_dev": [CLIP_L, ("T5", T5, 512)],
    "flux2_dev": [("Mistral", MISTRAL, 512)],
    "flux2_klein_4b": [("Qwen3", QWEN3, 512)],
    "qwen_image": [("Qwen2", QWEN25, 162)],
    "z_image": [("Qwen3", QWEN3, 512)],
    "sana_600m": [("Gemma2", {}, 300)],
    "wan_1_3b": [("UMT5", {**T5, "vocab_size": 256384}, 512)],
}
ENCODER_CLASSES = {
    "CLIPText": "CLIPTextModel",
    "T5": "T5EncoderModel",
    "UMT5": "UMT5EncoderModel",
    "Qwen3": "Qwen3ForCausalLM",
    "Qwen2": "Qwen2ForCausalLM",
    "Mistral": "MistralForCausalLM",
    "Gemma2": "Gemma2Model",
}


class Alive(TorchDispatchMode):
    """Bytes of the tensors alive: of those given, and of all that are made within. `peak` is the most there were."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}
        for tensor in tensors:
            self._see(tensor)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, result)
        return result


def made(of: tuple[str, dict[str, Any]], **more: Any) -> Any:
    name, arguments = of
    return getattr(diffusers, name)(**arguments, **more)


def built(model: Model, config: TrainConfig) -> TrainBase:
    """The trainer's view of the model: no numbers anywhere, no text encoders, the denoiser in bf16."""
    with torch.device("meta"):
        vae = made(model.vae)
        torch.set_default_dtype(torch.bfloat16)
        try:
            denoiser = made(model.denoiser)
        finally:
            torch.set_default_dtype(torch.float32)
    name = "unet" if "UNet" in model.denoiser[0] else "transformer"
    scheduler = diffusers.DDIMScheduler() if name == "unet" else diffusers.FlowMatchEulerDiscreteScheduler()
    words = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    known = getattr(diffusers, model.pipe[0]).__init__.__code__.co_varnames
    parts = {name: denoiser, "vae": vae, "scheduler": scheduler, **{word: None for word in words if word in known}}
    call: dict[str, Any] = {"guidance_scale": config.guidance_scale, "num_inference_steps": config.pool_steps}
    if config.resolution:
        call |= {"height": config.resolution, "width": config.resolution}
    base = train_base(made(model.pipe, **parts), call, torch.bfloat16, torch.device("cpu"))
    base.placement.denoiser_stays()
    return base


def without_numbers(*modules: nn.Module) -> None:
    """Put fake tensors of the CPU in the place of tensors; its kernels of attention keep no scores, as a GPU's."""

    def fake(value: Tensor) -> Tensor:
        empty = torch.empty(value.shape, dtype=value.dtype)
        return nn.Parameter(empty, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else empty

    for module in (inner for outer in modules for inner in outer.modules()):
        for held in (module._parameters, module._buffers, vars(module)):
            held.update({name: fake(value) for name, value in held.items() if isinstance(value, Tensor)})


def conditions_of(model: Model, count: int) -> Conditions:
    """Of prompts that fill all tokens."""
    found = {"text": torch.zeros(count, *model.text), "mask": torch.ones(count, model.text[0])}
    return found if model.pooled is None else {**found, "pooled": torch.zeros(count, model.pooled)}


@dataclass(frozen=True)
class Bytes:
    """What a run's phases need at their peaks, with the base model's weights in bf16.

    Args:
        encoders: text encoders with `PROMPTS_AT_ONCE` prompts at work.
        pictures: one picture of a folder as it is encoded, by the VAE alone.
        drawing: `pool_batch` samples, or one of them as it is decoded, whichever is more.
        step: an optimiser step, its state included.
        linear: weights of the denoiser's linear layers, and of the largest: what quantising changes.
    """

    encoders: int
    pictures: int
    drawing: int
    step: int
    linear: tuple[int, int]

    def quantised(self, how: str) -> Bytes:
        """With linear layers in 8 or 4 bits; one at a time is made large again to compute with."""
        whole, largest = self.linear
        saved = int(whole - whole / 2 * QUANTISED[how] - largest) if how != "none" else 0
        return Bytes(self.encoders, self.pictures, self.drawing - saved, self.step - saved, self.linear)

    @property
    def most(self) -> int:
        return max(self.encoders, self.pictures, self.drawing, self.step)


def _forward(base: TrainBase, model: Model, rows: int, then: Callable[[Tensor], object]) -> int:
    """Peak of a forward of so many rows and of what is done with its output, the denoiser's weights included."""
    x_t, conditions = torch.zeros(base.latent_shape(rows)), conditions_of(model, rows)
    inputs = base.inputs(x_t, torch.full((rows,), 0.5), conditions)  # with numbers: masks are looked into
    with FakeTensorMode():
        without_numbers(base.denoiser)
        inputs = tree_map_only(Tensor, lambda value: torch.empty(value.shape, dtype=value.dtype), inputs)
        held = [*base.denoiser.parameters(), *base.denoiser.buffers(), *tree_leaves(inputs)]
        with Alive(part for part in held if isinstance(part, Tensor)) as alive, autocast(base.device, base.dtype):
            then(as_rows(base.denoiser(**inputs, return_dict=False)[0]))
    return alive.peak


def _decoding(base: TrainBase) -> int:
    """Peak of one picture's decoding, the VAE's weights included."""
    vae, shape = base.pipe.vae, base.latent_shape(1)
    with FakeTensorMode(), torch.no_grad():
        without_numbers(vae)
        latents = torch.empty(shape)
        with Alive([*vae.parameters(), *vae.buffers(), latents]) as alive, autocast(base.device, base.dtype):
            base.decode_vae(latents)
    return alive.peak


def _encoding_pictures(base: TrainBase) -> int:
    """Peak of one picture's encoding in fp32, the VAE's weights included."""
    vae, (height, width) = base.pipe.vae, base.resolution
    with FakeTensorMode(), torch.no_grad():
        without_numbers(vae)
        picture = torch.empty(1, 3, height, width)
        with Alive([*vae.parameters(), *vae.buffers(), picture]) as alive:
            base.encode_vae(picture)
    return alive.peak


def encoding_prompts(encoders: Iterable[Encoder]) -> int:
    """Peak of `PROMPTS_AT_ONCE` prompts that fill all tokens, all encoders on the device, without their weights."""
    most = 0
    for name, arguments, tokens in encoders:
        config = getattr(transformers, f"{name}Config")(**arguments)
        with torch.device("meta"):
            model = getattr(transformers, ENCODER_CLASSES[name])._from_config(config, dtype=torch.bfloat16)
        model.requires_grad_(False)
        with FakeTensorMode(), torch.no_grad():
            without_numbers(model)
            words = torch.empty(PROMPTS_AT_ONCE, tokens, dtype=torch.int64)
            held = [*model.parameters(), *model.buffers()]
            with Alive(held) as alive:
                weights = alive.now
                model.eval()(input_ids=words, output_hidden_states=True)
        most = max(most, alive.peak - weights)
    return most


def bytes_of(model: Model, config: TrainConfig, encoders: Iterable[Encoder]) -> Bytes:
    """What a run with these settings needs; its `quantise` is left to `Bytes.quantised`."""
    base = built(model, config)
    linear = [2 * module.weight.numel() for module in base.denoiser.modules() if type(module) is nn.Linear]
    weights = sum(part.numel() * part.element_size() for part in base.denoiser.parameters())
    with torch.no_grad():
        drawing = _forward(base, model, config.pool_batch, lambda output: None)
    drawing, pictures = max(drawing, weights + _decoding(base)), _encoding_pictures(base)

    base = built(model, config)
    roles = LoraRoles(base.denoiser, base.family, config.rank, config.lora_targets, with_old=False)
    roles.use("theta")
    if config.gradient_checkpointing:
        base.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    # AdamW's two moments and the running average; gradients are made in the step.
    state = 3 * sum(4 * parameter.numel() for parameter in roles.parameters)
    step = _forward(base, model, config.micro_batch, lambda output: output.float().square().mean().backward())
    encoding = int(2e9 * model.encoders) + encoding_prompts(encoders)
    return Bytes(encoding, pictures, drawing, step + state, (sum(linear), max(linear)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/measured/memory.md")
    args = parser.parse_args()
    rows, others = [], []
    for preset, model in tqdm(MODELS.items(), desc="presets"):
        config = TrainConfig.from_yaml(preset)
        kinds = {
            on: bytes_of(model, replace(config, gradient_checkpointing=on), ENCODERS[preset]) for on in (False, True)
        }
        own = kinds[config.gradient_checkpointing].quantised(config.quantise)
        saving = [config.quantise] if config.quantise != "none" else []
        saving += ["checkpointing"] if config.gradient_checkpointing else []
        phases = (own.encoders, own.pictures, own.drawing, own.step, own.most)
        rows.append(
            [
                preset,
                f"{config.resolution}",
                f"{config.micro_batch}",
                ", ".join(saving) or "nothing",
                *(f"{size / GIB:.1f}" for size in phases),
            ]
        )
        variants = [(on, how) for how in ("none", "int8", "nf4") for on in (False, True)]
        others.append([preset, *(f"{kinds[on].quantised(how).step / GIB:.1f}" for on, how in variants)])
    text = PAGE.format(
        day=date.today().isoformat(),
        torch=torch.__version__,
        diffusers=diffusers.__version__,
        presets=markdown(
            ["preset", "pixels", "micro_batch", "saves by", "prompts", "pictures", "drawing", "a step", "the most"],
            rows,
        ),
        steps=markdown(
            ["preset", *(f"{how}{', checkpointing' * on}" for how in ("bf16", "int8", "nf4") for on in (False, True))],
            others,
        ),
    )
    print(text)
    if args.write:
        (DOCS / "measured" / "memory.md").write_text(text, encoding="utf-8")


PAGE = """# Memory of the presets

Computed by `tests/benchmarks/memory.py` on {day} (torch {torch}, diffusers {diffusers}), **not measured on a GPU**:
bytes of all tensors alive at the peak, on models of the published sizes without their numbers. LoRA of rank 32 on the
family's layers. A GPU needs more: a CUDA context (about half a GiB), workspaces, and what an allocator cannot use; the
presets' own words leave a tenth and a GiB for that. This is the CPU's autocast; CUDA's runs norms in fp32, which takes
up to a GiB more. Left out: the alpha head, which is small, and a reward's own model.

GiB by phase; they come one after another, so the largest has to fit. Prompts is the text encoders in bf16 and eight
prompts that fill all tokens. Pictures is the VAE in fp32 and one picture of a folder. Drawing is `pool_batch` samples
without classifier-free guidance, or one picture's decoding; sweeps, the calibration of the dial and of the alpha head
take no more. A step is `micro_batch` samples at a time. Where memory runs out in any phase but a step, what is taken at
once is halved until it fits.

{presets}

A step of the same presets otherwise:

{steps}
"""

if __name__ == "__main__":
    main()
