"""Looking at what there is: an adapter's file, and a guided run after it."""

from __future__ import annotations

from typing import Any

import torch

from .. import host, inputs
from ..build import load_reward_file
from ..curve import Line, draw
from ..host import io, ui
from ..reward_file import describe

NOTHING_GUIDED = (
    "No step was guided: strength is 0, or guidance begins and ends between two steps. "
    "The pictures are your model's own."
)
NO_ADAPTER = "There is no reward adapter on this model. Connect the model that comes out of Reward Guidance."


class NFTAdapterInfo(io.ComfyNode):
    """Says what an adapter's file is, without loading a model."""

    @classmethod
    def define_schema(cls) -> Any:
        """An adapter's file goes in; a text comes out."""
        return io.Schema(
            node_id="NFTAdapterInfo",
            display_name="Reward Adapter Info",
            category=inputs.CATEGORY,
            description="Reads an adapter without loading a model: reward, base model, what each strength was measured "
            "to do, and whether it would load at half strength elsewhere.",
            inputs=[inputs.adapter_file()],
            outputs=[io.String.Output(display_name="info", tooltip="The same text as shown on the node.")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: str = "", **values: Any) -> str:
        """A text that changes when the file does, so that ComfyUI runs the node again."""
        return host.file_identity(adapter)

    @classmethod
    def execute(cls, adapter: str) -> Any:
        """Reads the file and describes it."""
        text = describe(load_reward_file(adapter, text_encoder="ignore"))
        return io.NodeOutput(text, ui=ui.PreviewText(text))


class NFTAlphaPlot(io.ComfyNode):
    """Shows what alpha was and how far it pushed, step by step."""

    @classmethod
    def define_schema(cls) -> Any:
        """A latent and the model that made it go in; the latent, plots and a table come out."""
        return io.Schema(
            node_id="NFTAlphaPlot",
            display_name="Reward Alpha Plot",
            category=inputs.CATEGORY,
            description="Draws alpha, scale, push and the chance of being liked in each step of the run that made the "
            "latent: why a picture is burnt, or not changed.",
            inputs=[
                io.Latent.Input("latent", tooltip="The sampler's, so that this comes after it; handed on unchanged."),
                io.Model.Input("model", tooltip="The guided model that the sampler used."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The same latent."),
                io.Image.Output(display_name="plot", tooltip="A plot for each adapter on the model."),
                io.String.Output(display_name="table", tooltip="The same in numbers."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent: Any, model: Any) -> Any:
        """Draws one plot for each adapter on the model; the plots make a batch."""
        guides = host.guides_of(model)
        runs = [(guide.reward.config.name, guide.stats) for guide in guides if guide.stats and guide.stats.steps]
        if not runs:
            nothing = NOTHING_GUIDED if guides else NO_ADAPTER
            picture = draw("nothing to plot", [], "first step", "last step", note=nothing)
            return io.NodeOutput(latent, picture, nothing, ui=ui.PreviewImage(picture, cls=cls))
        pictures, tables = [], []
        for adapter, stats in runs:
            lines: list[Line] = []
            series = [
                ("alpha", stats.alpha, (38, 110, 214)),
                ("scale", stats.scale, (214, 96, 38)),
                ("push", stats.push, (40, 40, 40)),
            ]
            if stats.forecasts is not None:
                series.append(("liked", stats.forecast, (46, 140, 70)))
            for name, values, colour in series:
                means = values.mean(1).tolist()
                last = max(1, len(means) - 1)
                points = [(i / last, mean) for i, mean in enumerate(means) if mean == mean]
                lines += [Line(name, points, colour)] if points else []
            pictures.append(draw(adapter, lines, "first step", "last step"))
            tables.append(f"{adapter}\n{stats.summary()}")
        batch = torch.cat(pictures)
        return io.NodeOutput(latent, batch, "\n\n".join(tables), ui=ui.PreviewImage(batch, cls=cls))
