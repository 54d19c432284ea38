"""The shipped model."""

from __future__ import annotations

from typing import Any

from nft_pipeline.models import shipped_model

from .. import host, inputs
from ..host import io
from ..shapes import WEIGHTS, ShapesText, ShapesVAE, refuse_large_pictures


class NFTShapesModel(io.ComfyNode):
    """Loads the small model that ships with the nodes, for trying them without a download."""

    @classmethod
    def define_schema(cls) -> Any:
        """Nothing goes in; MODEL, CLIP and VAE come out."""
        return io.Schema(
            node_id="NFTShapesModel",
            display_name="Load Shapes Model",
            category=inputs.CATEGORY,
            description="The small model that ships with these nodes: coloured shapes at 64 x 64, in seconds without a "
            "GPU. For trying reward guidance with the adapters shapes-follow and shapes-warm.",
            inputs=[],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="As from Load Checkpoint; a Stable Diffusion 3 in small."
                ),
                io.Clip.Output(display_name="clip", tooltip="For CLIP Text Encode: a red circle left of a blue cross."),
                io.Vae.Output(display_name="vae", tooltip="For VAE Decode and VAE Encode."),
            ],
        )

    @classmethod
    def execute(cls) -> Any:
        """Loads the three from the files of the package."""
        folder = shipped_model("shapes")
        assert folder is not None
        model = host.load_model(str(folder / "transformer" / WEIGHTS), refuse_large_pictures)
        return io.NodeOutput(model, ShapesText(folder), ShapesVAE(folder))
