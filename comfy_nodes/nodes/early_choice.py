"""Early choice: several noises are tried for each picture, and the most promising one is drawn."""

from __future__ import annotations

from typing import Any

from .. import host, inputs
from ..choose import AMONG, EACH, Choice
from ..host import io


class NFTEarlyChoice(io.ComfyNode):
    """Lets every sampler after it try several noises and keep the one whose alpha is highest."""

    @classmethod
    def define_schema(cls) -> Any:
        """A guided model goes in; a model whose runs begin with a choice comes out."""
        schema = io.Schema(
            node_id="NFTEarlyChoice",
            display_name="Reward Early Choice",
            category=inputs.CATEGORY,
            description="Seed scout: tries several noises for each picture for a few steps, and draws the one that "
            "promises to be liked; or scouts seeds for the whole batch and draws the best of them. At strength 0 the "
            "pictures are your model's own.",
            inputs=[
                io.Model.Input("model", tooltip="The model that comes out of Reward Guidance; strength may be 0."),
                io.Int.Input(
                    "candidates",
                    default=4,
                    min=1,
                    max=64,
                    step=1,
                    tooltip="Noises tried for each picture; the sampler's own is one of them. 1: no choice. More: more "
                    "liked pictures, which are more alike, and more time.",
                ),
                io.Int.Input(
                    "after",
                    default=3,
                    min=1,
                    max=100,
                    step=1,
                    tooltip="The step after which they are compared: about a seventh of the sampler's steps. Each "
                    "candidate takes that many steps.",
                ),
                io.Combo.Input(
                    "among",
                    options=list(AMONG),
                    default=EACH,
                    tooltip=f"{EACH}: every picture of the batch keeps the best of its own noises. the whole batch: "
                    "with 4 pictures in the latent and 8 candidates, the best 4 of 32 are drawn. More of these are "
                    "liked, and it needs a latent whose pictures start alike.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For any sampler or guider.")],
            hidden=[io.Hidden.unique_id],
        )
        return host.findable(schema, "Seed Scout", "best of n", "seed search", "pick best seed")

    @classmethod
    def execute(cls, model: Any, candidates: int, after: int, among: str = EACH) -> Any:
        """Attaches the choice to a clone of the model."""
        choice = Choice(host.guides_of(model), candidates, after, host.ComfyUI(), cls.hidden.unique_id, among)
        return io.NodeOutput(host.attach_choice(model, choice))
