"""The shipped models."""

from __future__ import annotations

from typing import Any

from nft_pipeline.errors import GuidanceError
from nft_pipeline.models import MODELS, shipped_model

from .. import host, inputs
from ..host import io
from ..shipped import WEIGHTS, ShippedText, ShippedVAE, refuse_large_pictures


class NFTShapesModel(io.ComfyNode):
    """Loads a small model that ships with the nodes, for trying them without a download."""

    @classmethod
    def define_schema(cls) -> Any:
        """Which model; MODEL, CLIP and VAE come out."""
        return io.Schema(
            node_id="NFTShapesModel",
            display_name="Load Shapes Model",
            category=inputs.CATEGORY,
            description="The small model that ships with these nodes: coloured shapes at 64 x 64, in seconds without a "
            "GPU. For trying reward guidance with the adapters shapes-follow and shapes-warm. A clone of the "
            "repository also has emoji, things that people recognise.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(MODELS),
                    optional=True,
                    default="shapes",
                    tooltip="shapes: coloured shapes, for the adapters shapes-follow and shapes-warm. emoji: things, "
                    "faces and words on signs, for emoji-3d, emoji-words and emoji-likes; offered where the nodes are "
                    "a clone of the repository, as the node pack of ComfyUI's registry leaves it out for its size.",
                )
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="As from Load Checkpoint; a Stable Diffusion 3 in small."
                ),
                io.Clip.Output(display_name="clip", tooltip="For CLIP Text Encode: a red circle left of a blue cross."),
                io.Vae.Output(display_name="vae", tooltip="For VAE Decode and VAE Encode."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model: str = "shapes") -> bool:
        """Every name, so that `execute` can say where a model is to be had that this installation does not have."""
        return True

    @classmethod
    def execute(cls, model: str = "shapes") -> Any:
        """Loads the three from the files of the package."""
        folder = shipped_model(model)
        if folder is None:
            raise GuidanceError(
                f"model is {model!r}, and these nodes have {', '.join(MODELS)}: the node pack of ComfyUI's registry "
                "leaves the model emoji out for its size, so clone the repository into custom_nodes in its place."
            )
        weights = host.load_model(str(folder / "transformer" / WEIGHTS), refuse_large_pictures)
        return io.NodeOutput(weights, ShippedText(folder), ShippedVAE(folder))
