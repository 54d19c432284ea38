"""A tiny random Stable Diffusion 3 pipeline, adapters for it, and small tools to look at what a call did.

All weights are random but fixed by seeds; LoRA B matrices are random too, because a LoRA whose B is zero does nothing
and would pass every test.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from nft_pipeline.adapter import Adapter, AdapterConfig, BaseModel, fingerprint
from nft_pipeline.adapters.alpha_head import AlphaHead, AlphaHeadConfig
from nft_pipeline.families.registry import family_of

TEXT_WIDTH = 8
CALL: dict[str, Any] = {
    "prompt": "a cat",
    "num_inference_steps": 3,
    "guidance_scale": 1.0,
    "max_sequence_length": 4,
    "output_type": "latent",
}


def tiny_transformer(
    *, seed: int = 0, layers: int = 2, heads: int = 2, head_dim: int = 8, channels: int = 4
) -> SD3Transformer2DModel:
    """A random denoiser of two blocks, 8 x 8 latents, 16 image tokens."""
    torch.manual_seed(seed)
    width = heads * head_dim
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=layers,
        attention_head_dim=head_dim,
        num_attention_heads=heads,
        caption_projection_dim=width,
        joint_attention_dim=2 * TEXT_WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=8,
    ).eval()


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that spells every word letter by letter; at most 8 tokens."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = ["<|startoftext|>", *letters, *(letter + "</w>" for letter in letters), "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=8)


def _text_encoder(tokenizer: CLIPTokenizer, seed: int) -> CLIPTextModelWithProjection:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config).eval()


def tiny_pipe(**transformer: Any) -> StableDiffusion3Pipeline:
    """The whole pipeline: two CLIP text encoders with tokenizers, VAE, scheduler; no T5."""
    tokenizer = clip_tokenizer()
    torch.manual_seed(3)
    vae = AutoencoderKL(
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=8,
        scaling_factor=1.5,
        shift_factor=0.06,
    ).eval()
    pipe = StableDiffusion3Pipeline(
        transformer=tiny_transformer(**transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=_text_encoder(tokenizer, 1),
        tokenizer=tokenizer,
        text_encoder_2=_text_encoder(tokenizer, 2),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_lora(
    denoiser: nn.Module,
    *,
    seed: int = 7,
    rank: int = 2,
    size: float = 0.5,
    component: str = "transformer",
    targets: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """LoRA matrices for all the layers the family trains, A and B both random, in diffusers keys.

    `targets` are ends of other layers' names.
    """
    targets = family_of(denoiser).lora_targets if targets is None else targets
    generator = torch.Generator().manual_seed(seed)
    lora: dict[str, Tensor] = {}
    for name, module in denoiser.named_modules():
        name, plain = name.removesuffix(".base_layer"), isinstance(module, nn.Linear)
        if plain and any(name.endswith(target) for target in targets):
            lora[f"{component}.{name}.lora_A.weight"] = (
                torch.randn(rank, module.in_features, generator=generator) * size
            )
            lora[f"{component}.{name}.lora_B.weight"] = (
                torch.randn(module.out_features, rank, generator=generator) * size
            )
    return lora


def random_head(feature_dim: int, *, seed: int = 5, text_dim: int | None = 2 * TEXT_WIDTH) -> AlphaHead:
    """A head that is not undecided: its last layers are random, so alpha depends on sample, noise level and text."""
    torch.manual_seed(seed)
    head = AlphaHead(
        AlphaHeadConfig(feature_dim=feature_dim, text_dim=text_dim, width=16, queries=2, layers=1, heads=2)
    )
    with torch.no_grad():
        head.attention_out.weight.normal_(std=0.3)  # more would leave alpha at 0 or 1 whatever the sample
        head.evidence_out.weight.normal_(std=0.3)
    return head.eval()


def constant_head(feature_dim: int, alpha: float) -> AlphaHead:
    """A head that always says `alpha`; 1.0 is exact."""
    head = random_head(feature_dim, text_dim=None)
    with torch.no_grad():
        head.attention_out.weight.zero_()
        head.evidence_out.weight.zero_()
        head.attention_out.bias.fill_(200.0 if alpha == 1 else math.log(alpha / (1 - alpha)))
    return head


def tiny_adapter(
    denoiser: Any, *, kind: Any = "positive", tilt: float = 2.0, alpha: float | None = None, seed: int = 7
) -> Adapter:
    """An adapter for a denoiser, in memory.

    Args:
        kind: "positive" (with a head) or "policy".
        tilt: at strength 1.
        alpha: for a head that always says so; None for a random head.
        seed: of the LoRA.
    """
    head = None
    if kind == "positive":
        feature_dim = denoiser.config.num_attention_heads * denoiser.config.attention_head_dim
        head = random_head(feature_dim) if alpha is None else constant_head(feature_dim, alpha)
    config = AdapterConfig(
        kind=kind,
        name="tiny",
        beta=2 / tilt,
        tilt=tilt,
        base_model=BaseModel(id="tiny/sd3", revision=None, fingerprint=fingerprint(denoiser)),
        denoiser=type(denoiser).__name__,
        prediction="flow",
        rank=2,
        reward={"name": "nothing", "description": "random weights", "normaliser": "none"},
        guidance_scale=1.0,
        resolution=(8, 8),
        licence="apache-2.0",
    )
    return Adapter(config=config, lora=random_lora(denoiser, seed=seed), head=head)


def load_style(pipe: StableDiffusion3Pipeline, *, seed: int = 99) -> None:
    """What a user does with a LoRA of their own."""
    pipe.load_lora_weights(random_lora(pipe.transformer, seed=seed), adapter_name="style")


def sample(pipe: Any, *, seed: int = 0, **kwargs: Any) -> Tensor:
    """Latents of a call with fixed noise, on small defaults."""
    return pipe(**{**CALL, "generator": torch.Generator().manual_seed(seed), **kwargs}).images


@contextmanager
def counted_forwards(denoiser: Any) -> Iterator[list[int]]:
    """Counts real forwards of the denoiser, however they are reached: by a hook on its first block."""
    count = [0]

    def tick(module: nn.Module, args: Any) -> None:
        count[0] += 1

    hook = denoiser.transformer_blocks[0].register_forward_pre_hook(tick)
    try:
        yield count
    finally:
        hook.remove()


def state_of(denoiser: nn.Module) -> dict[str, Any]:
    """Everything about a denoiser that a call could have disturbed."""
    layers: dict[str, Any] = {n: m for n, m in denoiser.named_modules() if isinstance(m, BaseTunerLayer)}
    return {
        "hooks": {n: (len(m._forward_pre_hooks), len(m._forward_hooks)) for n, m in denoiser.named_modules()},
        "modules": {n: id(m) for n, m in denoiser.named_modules()},
        "requires_grad": {n: p.requires_grad for n, p in denoiser.named_parameters()},
        "training": {n: m.training for n, m in denoiser.named_modules()},
        "weights": {n: v.clone() for n, v in denoiser.state_dict().items()},
        "active": {n: list(layer.active_adapters) for n, layer in layers.items()},
        "disabled": {n: layer.disable_adapters for n, layer in layers.items()},
        "scaling": {n: dict(layer.scaling) for n, layer in layers.items()},
        "merged": {n: list(layer.merged_adapters) for n, layer in layers.items()},
        "attributes": sorted(denoiser.__dict__),
        "peft_config": sorted(getattr(denoiser, "peft_config", {})),
    }


def assert_same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Fails on the first difference between two `state_of`."""
    assert before.keys() == after.keys()
    for name in before:
        if name == "weights":
            assert before[name].keys() == after[name].keys()
            for key, value in before[name].items():
                assert torch.equal(value, after[name][key]), key
        else:
            assert before[name] == after[name], name
