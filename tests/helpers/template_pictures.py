"""The pictures beside the templates: what reward guidance does, before and after, from one seed.

    cd tests && python -m helpers.template_pictures

draws them anew. Those of the ready templates are their own strips. The others are drawn with the shapes model and the
adapter shapes-follow, since no model of theirs ships, and say which model their template is for.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from PIL import Image

from helpers.comfyui_page import ALL_READY, READY, READY_WITH_EMOJI, TEMPLATES
from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.grid import labelled_grid

STEPS = 14
PAIR = ("without reward guidance", "with it")


class Picture(NamedTuple):
    """What is drawn for a template, and what its title says."""

    title: str
    prompt: str
    seed: int
    strengths: tuple[float, ...]
    model: str = "shapes"
    adapter: str = "shapes-follow"


PICTURES = {
    READY_WITH_EMOJI: Picture(
        "Ready to run",
        'a sign that says "OPEN" on yellow',
        7,
        (0.0, 0.25, 0.5, 0.75, 1.0),
        "emoji",
        "emoji-words",
    ),
    READY: Picture("Ready to run", "a red circle left of a blue cross", 4, (0.0, 0.5, 1.0, 1.5, 2.0)),
    "2-sd3.5-medium": Picture("For Stable Diffusion 3.5 medium", "a circle left of a cross", 3, (0.0, 1.0)),
    "3-flux1-dev": Picture("For FLUX.1 dev", "three small rings", 5, (0.0, 1.0)),
    "4-sdxl": Picture("For SDXL", "two green squares", 5, (0.0, 1.0)),
    "5-z-image-turbo": Picture("For Z-Image Turbo", "a large cross", 1, (0.0, 2.0)),
}


def draw(picture: Picture) -> list[Image.Image]:
    """One picture for each strength, all from the noise that ComfyUI draws for the seed."""
    pipe = DiffusionNFTPipeline.from_pretrained(picture.model, nft_adapter=picture.adapter)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(picture.seed))
    call = {"prompt": picture.prompt, "num_inference_steps": STEPS, "guidance_scale": 1.0}
    return [pipe(**call, latents=noise.clone(), nft_strength=strength).images[0] for strength in picture.strengths]


def main() -> None:
    """Draw all of them."""
    for path in TEMPLATES:
        picture = PICTURES[path.stem]
        labels = PAIR if len(picture.strengths) == 2 else [f"strength {strength:g}" for strength in picture.strengths]
        shown = "" if path.stem in ALL_READY else ", shown with the shapes model"
        drawn = draw(picture)
        sheet = labelled_grid(
            [drawn], [""], labels, 1024 // 64 // len(drawn) + 1, f"{picture.title}{shown}: {picture.prompt}"
        )
        sheet.save(path.with_suffix(".jpg"), quality=88, optimize=True)


if __name__ == "__main__":
    main()
