"""Where in the picture a reward acts."""

from __future__ import annotations

from typing import Any

from nft_pipeline.errors import GuidanceError
from nft_pipeline.modes import MODES

from .. import host, inputs
from ..host import io


class NFTRegion(io.ComfyNode):
    """Limits the guidance that is on a model to a part of the picture."""

    @classmethod
    def define_schema(cls) -> Any:
        """A guided model and a mask go in; a model that is guided in the mask alone comes out."""
        schema = io.Schema(
            node_id="NFTRegion",
            display_name="Reward Region",
            category=inputs.CATEGORY,
            description="Guides a part of the picture: a mask multiplies, pixel by pixel, what the rewards before this "
            "node do. Its help says what that does and what it cannot do.",
            inputs=[
                io.Model.Input("model", tooltip="The model that comes out of Reward Guidance, in mode exact."),
                io.Mask.Input(
                    "mask",
                    tooltip="White: guided as set. Black: your model alone. Grey: that share of the push. It is scaled "
                    "to the picture; several masks are for the pictures of a batch in turn.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For any sampler, or for further rewards.")],
        )
        return host.findable(schema, "regional strength", "mask strength", "masked lora", "area")

    @classmethod
    def execute(cls, model: Any, mask: Any) -> Any:
        """Gives the mask to every reward on the model that has none yet."""
        limited = [guide for guide in host.guides_of(model) if guide not in host.regions_of(model)]
        if not limited:
            raise GuidanceError(
                "there is no reward on this model that could be limited to a region. Connect the model that comes out "
                "of Reward Guidance; a reward that has a region keeps it."
            )
        for guide in limited:
            if MODES[guide.plan.settings.mode].one_pass:
                raise GuidanceError(
                    f'{guide.reward.config.name} is drawn in mode "fast", which knows no push that a mask could '
                    'multiply. Set mode to "exact" on the node before.'
                )
        return io.NodeOutput(host.attach_region(model, limited, mask))
