"""Ratings for the trainer."""

from __future__ import annotations

from typing import Any

from .. import host, inputs
from ..files.ratings import UNRATED, VERDICTS, Shown, facts_of_graph, pictures_of, rate_images, rating_folder
from ..host import io, ui

SHOWN = Shown()  # what the buttons on the nodes judge


class NFTRateImages(io.ComfyNode):
    """Saves pictures with a like, a dislike or a score, as the trainer reads them."""

    @classmethod
    def define_schema(cls) -> Any:
        """Pictures and a verdict go in; the same pictures come out, and are saved."""
        return io.Schema(
            node_id="NFTRateImages",
            display_name="Rate Images",
            category=inputs.CATEGORY,
            description="Shows pictures with buttons to like or dislike each, and saves your verdicts in a folder that "
            "the trainer reads. Prompt, seed, CFG and model come from the graph.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures. Nothing is saved of one until you rate it."),
                io.Combo.Input(
                    "verdict",
                    options=list(VERDICTS),
                    default=UNRATED,
                    tooltip="not rated yet: look at the pictures first, and rate them by the buttons under them. The "
                    "others rate every picture of each Run. Rating the same picture again replaces the verdict.",
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
                inputs.advanced(
                    io.String.Input(
                        "pictures",
                        optional=True,
                        default="",
                        tooltip="Which pictures of the batch the verdict is for: numbers from 1 with commas between. "
                        "Empty: all of them.",
                    )
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The same pictures.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: Any, verdict: str, score: float, folder: str, prompt: str, pictures: str = "") -> Any:
        """Shows the pictures, and saves those that are rated, with a line for each in the folder's metadata.jsonl."""
        facts = facts_of_graph(cls.hidden.prompt or {}, str(cls.hidden.unique_id))
        if prompt.strip():
            facts["prompt"] = prompt
        target = rating_folder(host.output_folder(), folder)
        rated = rate_images(target, images, verdict, score, facts, pictures)
        every = pictures_of(images, facts)
        SHOWN.show(target, every)
        files = ui.PreviewImage(images, cls=cls).as_dict()["images"]
        shown = [
            {"name": picture.name, "file": file, "verdict": verdict if picture.name in rated else UNRATED}
            for picture, file in zip(every, files, strict=True)
        ]
        return io.NodeOutput(images, ui={"rated": shown, "text": [f"{verdict}: {len(rated or every)} in {folder}"]})
