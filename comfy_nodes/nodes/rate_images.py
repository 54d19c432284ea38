"""Ratings for the trainer."""

from __future__ import annotations

from typing import Any

from .. import host, inputs
from ..host import io, ui
from ..rate import VERDICTS, facts_of_graph, rate_images, rating_folder


class NFTRateImages(io.ComfyNode):
    """Saves pictures with a like, a dislike or a score, as the trainer reads them."""

    @classmethod
    def define_schema(cls) -> Any:
        """Pictures and a verdict go in; the same pictures come out, and are saved."""
        return io.Schema(
            node_id="NFTRateImages",
            display_name="Rate Images",
            category=inputs.CATEGORY,
            description="Saves pictures and your verdict in a folder that the trainer reads. Prompt, seed, CFG and "
            "model come from the graph.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures; one verdict for all of a batch."),
                io.Combo.Input(
                    "verdict",
                    options=list(VERDICTS),
                    default="like",
                    tooltip="What you think of them. Rating the same picture again replaces the verdict.",
                ),
                io.Float.Input(
                    "score",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="For verdict score: 0 is bad, 1 is good.",
                ),
                io.String.Input("folder", default="ratings", tooltip="Inside ComfyUI's output folder."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="Leave empty to take the text that leads to the sampler's positive input.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The same pictures.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: Any, verdict: str, score: float, folder: str, prompt: str) -> Any:
        """Saves the pictures, and a line for each in the folder's metadata.jsonl."""
        facts = facts_of_graph(cls.hidden.prompt or {}, str(cls.hidden.unique_id))
        if prompt.strip():
            facts["prompt"] = prompt
        target = rating_folder(host.output_folder(), folder)
        names = rate_images(target, images, verdict, score, facts)
        return io.NodeOutput(images, ui=ui.PreviewText(f"{verdict}: {len(names)} in {folder}"))
