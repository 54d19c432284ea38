"""The pictures beside the templates: what reward guidance does, before and after, from one seed.

    cd tests && python -m helpers.template_pictures

draws them anew. All are drawn with the shapes model and the adapter shapes-follow, since no other model ships. The
first is the ready template's own strip, and the others say which model their template is for.
"""

from __future__ import annotations

import torch
from PIL import Image

from helpers.comfyui_page import READY, TEMPLATES
from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.grid import labelled_grid

STEPS = 14
# Template -> what its title says, prompt, seed, strengths.
PICTURES = {
    READY: ("Ready to run", "a red circle left of a blue cross", 4, (0.0, 0.5, 1.0, 1.5, 2.0)),
    "2-sd3.5-medium": ("For Stable Diffusion 3.5 medium", "a circle left of a cross", 3, (0.0, 1.0)),
    "3-flux1-dev": ("For FLUX.1 dev", "three small rings", 5, (0.0, 1.0)),
    "4-sdxl": ("For SDXL", "two green squares", 5, (0.0, 1.0)),
    "5-z-image-turbo": ("For Z-Image Turbo", "a large cross", 1, (0.0, 2.0)),
}


def draw(pipe: DiffusionNFTPipeline, prompt: str, seed: int, strengths: tuple[float, ...]) -> list[Image.Image]:
    """One picture for each strength, all from the noise that ComfyUI draws for the seed."""
    noise = torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(seed))
    call = {"prompt": prompt, "num_inference_steps": STEPS, "guidance_scale": 1.0}
    return [pipe(**call, latents=noise.clone(), nft_strength=strength).images[0] for strength in strengths]


def main() -> None:
    """Draw all of them."""
    pipe = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter="shapes-follow")
    pipe.set_progress_bar_config(disable=True)
    for path in TEMPLATES:
        title, prompt, seed, strengths = PICTURES[path.stem]
        pair = ["without reward guidance", "with it"]
        labels = pair if len(strengths) == 2 else [f"strength {strength:g}" for strength in strengths]
        shown = "" if path.stem == READY else ", shown with the shapes model"
        pictures = draw(pipe, prompt, seed, strengths)
        sheet = labelled_grid([pictures], [""], labels, 1024 // 64 // len(pictures) + 1, f"{title}{shown}: {prompt}")
        sheet.save(path.with_suffix(".jpg"), quality=88, optimize=True)


if __name__ == "__main__":
    main()
