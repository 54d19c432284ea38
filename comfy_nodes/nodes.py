"""The nodes. What they do is elsewhere; here are their names, inputs, and the words a person reads.

Ids are stored in people's workflows and never change; new inputs go to the end, since widgets are stored by position.
"""

from __future__ import annotations

from typing import Any

import torch

from nft_pipeline.errors import GuidanceError
from nft_pipeline.models import shipped_model

from . import host, inputs
from .build import guide_model, parse_strengths
from .curve import SHAPES, Line, draw, shape_curve
from .host import io, ui
from .rate import VERDICTS, facts_of_graph, rate_images, rating_folder
from .reward_file import describe, read_reward_file
from .shapes import WEIGHTS, ShapesText, ShapesVAE

CATEGORY = "guidance/reward"


class NFTRewardGuidance(io.ComfyNode):
    """Model and adapter in, guided model out: the node most people need."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's face."""
        return io.Schema(
            node_id="NFTRewardGuidance",
            display_name="Reward Guidance",
            category=CATEGORY,
            description="Steers sampling towards what a reward adapter likes, by a dial that works after training.",
            inputs=[inputs.model(), inputs.adapter_file(), inputs.strength(), *inputs.settings()],
            outputs=inputs.guided_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: str = "", **values: Any) -> str:
        """Changes with the file."""
        return host.file_identity(adapter)

    @classmethod
    def execute(cls, model: Any, adapter: str, kind: str = "auto", **values: Any) -> Any:
        """Read, match, attach."""
        reward = read_reward_file(host.adapter_path(adapter), kind)
        return io.NodeOutput(*guide_model(model, reward, cls.hidden.unique_id, **_given(values)))


class NFTLoadAdapter(io.ComfyNode):
    """An adapter from its file, for the nodes that take one."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's face."""
        return io.Schema(
            node_id="NFTLoadAdapter",
            display_name="Load Reward Adapter",
            category=CATEGORY,
            description="Reads a reward adapter once, for Apply Reward Adapter and Reward Guider.",
            inputs=[inputs.adapter_file(), inputs.kind()],
            outputs=[
                inputs.Adapter.Output(display_name="adapter", tooltip="For Apply Reward Adapter and Reward Guider.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: str = "", **values: Any) -> str:
        """Changes with the file."""
        return host.file_identity(adapter)

    @classmethod
    def execute(cls, adapter: str, kind: str = "auto") -> Any:
        """Read it."""
        return io.NodeOutput(read_reward_file(host.adapter_path(adapter), kind))


class NFTApplyAdapter(io.ComfyNode):
    """As Reward Guidance, for an adapter that is loaded; chain several to mix rewards."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's face."""
        return io.Schema(
            node_id="NFTApplyAdapter",
            display_name="Apply Reward Adapter",
            category=CATEGORY,
            description="Reward guidance with a loaded adapter. Chain several, each with its own strength: the pushes "
            "add up, and each is measured from your model alone.",
            inputs=[
                inputs.model(),
                inputs.adapter_socket(),
                inputs.strength(),
                *inputs.settings_of_a_loaded_adapter(),
            ],
            outputs=inputs.guided_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, adapter: Any, **values: Any) -> Any:
        """Match, attach."""
        return io.NodeOutput(*guide_model(model, adapter, cls.hidden.unique_id, **_given(values)))


class NFTGuider(io.ComfyNode):
    """Guidance and CFG in one GUIDER."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's face."""
        return io.Schema(
            node_id="NFTGuider",
            display_name="Reward Guider",
            category=CATEGORY,
            description="A guider for SamplerCustomAdvanced: CFG and reward guidance in one node.",
            inputs=[
                inputs.model(),
                inputs.adapter_socket(),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show; not used at CFG 1."),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Classifier-free guidance. Take the value the adapter was made at (see info); 1 is off.",
                ),
                inputs.strength(),
                *inputs.settings_of_a_loaded_adapter(),
            ],
            outputs=[
                io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced."),
                io.String.Output(display_name="info", tooltip="What the adapter is, and how many layers are active."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, adapter: Any, positive: Any, negative: Any, cfg: float, **values: Any) -> Any:
        """Guide the model, then make the guider."""
        guided, info = guide_model(model, adapter, cls.hidden.unique_id, **_given(values))
        return io.NodeOutput(host.cfg_guider(guided, positive, negative, cfg), info)


class NFTStrengthSchedule(io.ComfyNode):
    """A curve that strength is multiplied by."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's face."""
        return io.Schema(
            node_id="NFTStrengthSchedule",
            display_name="Reward Strength Schedule",
            category=CATEGORY,
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
        """The points, and a picture of them."""
        points = shape_curve(shape, low, high, power, custom)
        ends = [(0.0, points[0][1]), *points, (1.0, points[-1][1])]
        picture = draw("strength x", [Line("factor", ends, (214, 96, 38))], "first step", "last step")
        return io.NodeOutput(points, picture, ui=ui.PreviewImage(picture, cls=cls))


class NFTStrengthSweep(io.ComfyNode):
    """Several strengths in one queue."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's face."""
        return io.Schema(
            node_id="NFTStrengthSweep",
            display_name="Reward Strength Sweep",
            category=CATEGORY,
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
        """The numbers, and labels of them."""
        values = parse_strengths(strengths)
        return io.NodeOutput(values, [f"strength {value:g}" for value in values])


class NFTAlphaPlot(io.ComfyNode):
    """What alpha was, and how far it pushed, step by step."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's face."""
        return io.Schema(
            node_id="NFTAlphaPlot",
            display_name="Reward Alpha Plot",
            category=CATEGORY,
            description="Draws alpha, scale and push of each step of the run that made the latent: why a picture is "
            "burnt, or not changed.",
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
        """A plot for each guide, below each other as a batch."""
        found = [(guide.reward.config.name, guide.stats) for guide in host.guides_of(model)]
        runs = [(name, stats) for name, stats in found if stats is not None and stats.steps]
        if not runs:
            raise GuidanceError(
                "there is nothing to plot: no guided run of this model was recorded. Connect the model that comes out "
                "of Reward Guidance and goes into the sampler, and a strength other than 0."
            )
        pictures, tables = [], []
        for adapter, stats in runs:
            lines: list[Line] = []
            series = [
                ("alpha", stats.alpha, (38, 110, 214)),
                ("scale", stats.scale, (214, 96, 38)),
                ("push", stats.push, (40, 40, 40)),
            ]
            for name, values, colour in series:
                means = values.mean(1).tolist()
                last = max(1, len(means) - 1)
                points = [(i / last, mean) for i, mean in enumerate(means) if mean == mean]
                lines += [Line(name, points, colour)] if points else []
            pictures.append(draw(adapter, lines, "first step", "last step"))
            tables.append(f"{adapter}\n{stats.summary()}")
        batch = torch.cat(pictures)
        return io.NodeOutput(latent, batch, "\n\n".join(tables), ui=ui.PreviewImage(batch, cls=cls))


class NFTAdapterInfo(io.ComfyNode):
    """What a file is."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's face."""
        return io.Schema(
            node_id="NFTAdapterInfo",
            display_name="Reward Adapter Info",
            category=CATEGORY,
            description="Reads an adapter without loading a model: reward, base model, strength, and whether it would "
            "load at half strength elsewhere.",
            inputs=[inputs.adapter_file()],
            outputs=[io.String.Output(display_name="info", tooltip="The same text as shown on the node.")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: str = "", **values: Any) -> str:
        """Changes with the file."""
        return host.file_identity(adapter)

    @classmethod
    def execute(cls, adapter: str) -> Any:
        """Describe it."""
        text = describe(read_reward_file(host.adapter_path(adapter)))
        return io.NodeOutput(text, ui=ui.PreviewText(text))


class NFTRateImages(io.ComfyNode):
    """Likes and dislikes for the trainer."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's face."""
        return io.Schema(
            node_id="NFTRateImages",
            display_name="Rate Images",
            category=CATEGORY,
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
        """Save them."""
        facts = facts_of_graph(cls.hidden.prompt or {}, str(cls.hidden.unique_id))
        if prompt.strip():
            facts["prompt"] = prompt
        target = rating_folder(host.output_folder(), folder)
        names = rate_images(target, images, verdict, score, facts)
        return io.NodeOutput(images, ui=ui.PreviewText(f"{verdict}: {len(names)} in {folder}"))


class NFTShapesModel(io.ComfyNode):
    """Something to try all this on, without a download."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's face."""
        return io.Schema(
            node_id="NFTShapesModel",
            display_name="Load Shapes Model",
            category=CATEGORY,
            description="The small model that ships with these nodes: coloured shapes at 64 x 64, in seconds without a "
            "GPU. For trying reward guidance with the adapter shapes-warm.",
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
        """Load them from the package."""
        folder = shipped_model("shapes")
        assert folder is not None
        model = host.load_model(str(folder / "transformer" / WEIGHTS))
        return io.NodeOutput(model, ShapesText(folder), ShapesVAE(folder))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Without the sockets that nothing is connected to."""
    return {name: value for name, value in values.items() if value is not None}


NODES = [
    NFTRewardGuidance,
    NFTLoadAdapter,
    NFTApplyAdapter,
    NFTGuider,
    NFTStrengthSchedule,
    NFTStrengthSweep,
    NFTAlphaPlot,
    NFTAdapterInfo,
    NFTRateImages,
    NFTShapesModel,
]


class Extension(host.ComfyExtension):
    """What ComfyUI asks for."""

    async def get_node_list(self) -> list[Any]:
        """All nodes; adapters that ship are in their lists."""
        host.offer_shipped_adapters()
        return NODES
