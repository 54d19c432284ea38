"""Pipelines that edit pictures: the reference's tokens stand behind those of the picture that is drawn."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import PIL.Image
import pytest
import torch

from helpers.zoo import CASES, Case, adapter_for, load_ordinarily, lora_for
from nft_pipeline.pipeline import DiffusionNFTPipeline

PICTURES = [PIL.Image.new("RGB", (64, 64), colour) for colour in ("teal", "orange")]
EDIT = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit"


def edited(name: str, image: Any, build: Callable[[], Any] | None = None, *, alone: bool = False, **more: Any) -> Case:
    """A case of the zoo with reference pictures."""
    case = CASES[name]
    return replace(
        case,
        build=build or case.build,
        conditions=lambda indices: {**case.conditions(indices), "image": image, **more},
        alone=alone,
    )


def qwen(cls: Any) -> Any:
    bare = CASES["QwenImageImg2ImgPipeline"].build()
    return cls(**bare.components, processor=None)


def flux2(name: str) -> Any:
    """With a VAE that makes pictures a quarter as large, since 64 pixels are the least that a reference may have."""
    pipe = CASES[name].build()
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=1,
    )
    return type(pipe)(**{**pipe.components, "vae": vae.eval()})


EDITS = {
    "QwenImageEditPipeline": edited(
        "QwenImagePipeline", PICTURES[0], lambda: qwen(diffusers.QwenImageEditPipeline), height=16, width=16
    ),
    "QwenImageEditPlusPipeline": edited(
        "QwenImagePipeline",
        PICTURES,
        lambda: qwen(diffusers.QwenImageEditPlusPipeline),
        alone=True,
        height=16,
        width=16,
    ),
    "Flux2Pipeline": edited("Flux2Pipeline", PICTURES, lambda: flux2("Flux2Pipeline"), height=32, width=32),
    "Flux2KleinPipeline": edited(
        "Flux2KleinPipeline", PICTURES, lambda: flux2("Flux2KleinPipeline"), height=32, width=32
    ),
}
every_edit = pytest.mark.parametrize("case", EDITS.values(), ids=EDITS)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen-Image's pipelines scale references to a million pixels; here to those of a tiny picture."""
    for name, size in ((EDIT, (16, 16, None)), (f"{EDIT}_plus", (16, 16))):
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "calculate_dimensions", lambda area, ratio, size=size: size)


@every_edit
def test_strength_0_is_stock_and_1_is_the_lora_on_in_one_pass_and_in_two(case: Case) -> None:
    pipe, lora_on = case.pipe(), case.pipe()
    load_ordinarily(lora_on, lora_for(lora_on), "x", ["x"])
    guided = DiffusionNFTPipeline.from_pipe(case.pipe(), adapter_for(case, case.pipe(), kind="policy"))
    for cfg in (False, True):
        stock, expected = case.sample(pipe, cfg=cfg), case.sample(lora_on, cfg=cfg)
        assert torch.equal(case.sample(guided, cfg=cfg, nft_strength=0), stock)
        assert (expected - stock).abs().max() > 1e-3 * stock.abs().max()
        for strength in (1.0, 1 - 1e-6):
            ours = case.sample(guided, cfg=cfg, nft_strength=strength)
            torch.testing.assert_close(ours, expected, atol=2e-5 * max(1.0, expected.abs().max().item()), rtol=0)


@every_edit
def test_the_reference_counts(case: Case) -> None:
    """So that the tests above are about a pipeline that sees it."""
    seen = case.sample(case.pipe())
    other = PIL.Image.new("RGB", (64, 64), "black")
    assert not torch.allclose(seen, case.sample(case.pipe(), image=other), atol=1e-4)


@pytest.mark.parametrize("name", [name for name, case in EDITS.items() if not case.alone])
def test_alpha_is_one_a_sample(name: str) -> None:
    case = EDITS[name]
    guided = DiffusionNFTPipeline.from_pipe(case.pipe(), adapter_for(case, case.pipe()))
    for cfg in (False, True):
        case.sample(guided, [0, 1], cfg=cfg)
        both = guided.nft_stats.alpha
        assert both.shape == (case.steps, 2)
        for i in range(2):
            case.sample(guided, [i], cfg=cfg)
            torch.testing.assert_close(guided.nft_stats.alpha[:, 0], both[:, i], atol=1e-4, rtol=0)
