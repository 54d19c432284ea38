"""What strength is over the sampling, and several strengths in one queue."""

from __future__ import annotations

from typing import Any

from .. import inputs
from ..build import parse_strengths
from ..curve import SHAPES, Line, draw, shape_curve
from ..host import io, ui


class NFTStrengthSchedule(io.ComfyNode):
    """Makes a curve that strength is multiplied by over the sampling."""

    @classmethod
    def define_schema(cls) -> Any:
        """A shape and its numbers go in; a curve and its picture come out."""
        return io.Schema(
            node_id="NFTStrengthSchedule",
            display_name="Reward Strength Schedule",
            category=inputs.CATEGORY,
            description="What strength is multiplied by from the first step to the last, with a preview.",
            inputs=[
                io.Combo.Input(
                    "shape",
                    options=list(SHAPES),
                    default="fade out",
                    tooltip="fade out guides composition, fade in texture, middle neither end; custom is drawn below.",
                ),
                io.Float.Input(
                    "low", default=0.0, min=-4.0, max=8.0, step=0.05, tooltip="The factor where the curve is low."
                ),
                io.Float.Input(
                    "high", default=1.0, min=-4.0, max=8.0, step=0.05, tooltip="The factor where the curve is high."
                ),
                io.Float.Input(
                    "power",
                    default=1.0,
                    min=0.1,
                    max=8.0,
                    step=0.1,
                    tooltip="1: a straight line. Above 1: low for longer. Below 1: high for longer.",
                ),
                io.String.Input(
                    "custom",
                    default="0: 1, 0.5: 1, 1: 0.2",
                    tooltip='For shape custom: "share of the sampling: factor", with commas between.',
                ),
            ],
            outputs=[
                inputs.Schedule.Output(
                    display_name="schedule", tooltip="For the schedule input of the guidance nodes."
                ),
                io.Image.Output(display_name="curve", tooltip="A picture of the curve."),
            ],
        )

    @classmethod
    def execute(cls, shape: str, low: float, high: float, power: float, custom: str) -> Any:
        """Computes the points of the curve and draws them."""
        points = shape_curve(shape, low, high, power, custom)
        ends = [(0.0, points[0][1]), *points, (1.0, points[-1][1])]
        picture = draw("strength x", [Line("factor", ends, (214, 96, 38))], "first step", "last step")
        return io.NodeOutput(points, picture, ui=ui.PreviewImage(picture, cls=cls))


class NFTStrengthSweep(io.ComfyNode):
    """Turns a text into a list of strengths, so that one queue draws a picture for each."""

    @classmethod
    def define_schema(cls) -> Any:
        """A text of numbers goes in; a list of strengths and a list of labels come out."""
        return io.Schema(
            node_id="NFTStrengthSweep",
            display_name="Reward Strength Sweep",
            category=inputs.CATEGORY,
            description="A list of strengths: connect it to strength, and one queue draws a picture for each.",
            inputs=[
                io.String.Input(
                    "strengths",
                    default="0, 0.5, 1, 1.5, 2",
                    tooltip="Numbers with commas between. 0 is your model alone, for comparison.",
                )
            ],
            outputs=[
                io.Float.Output(
                    display_name="strength", is_output_list=True, tooltip="For the strength of a guidance node."
                ),
                io.String.Output(
                    display_name="label", is_output_list=True, tooltip="What to write beside each picture."
                ),
            ],
        )

    @classmethod
    def execute(cls, strengths: str) -> Any:
        """Reads the numbers and writes a label for each."""
        values = parse_strengths(strengths)
        return io.NodeOutput(values, [f"strength {value:g}" for value in values])
