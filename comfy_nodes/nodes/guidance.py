"""Reward guidance itself: in one node, in two for chains of rewards, and as a guider with CFG."""

from __future__ import annotations

from typing import Any

from .. import host, inputs
from ..build import guide_model, load_reward_file
from ..host import io


class NFTRewardGuidance(io.ComfyNode):
    """Guides a model by an adapter: the node most people need."""

    @classmethod
    def define_schema(cls) -> Any:
        """A model and an adapter's file go in; the guided model and a description come out."""
        return io.Schema(
            node_id="NFTRewardGuidance",
            display_name="Reward Guidance",
            category=inputs.CATEGORY,
            description="Steers sampling towards what a reward adapter likes, by a dial that works after training.",
            inputs=[inputs.model(), inputs.adapter_file(), inputs.strength(), *inputs.settings()],
            outputs=inputs.guided_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: str = "", **values: Any) -> str:
        """A text that changes when the file does, so that ComfyUI runs the node again."""
        return host.file_identity(adapter)

    @classmethod
    def execute(cls, model: Any, adapter: str, kind: str = "auto", text_encoder: str = "refuse", **values: Any) -> Any:
        """Reads the file and attaches the adapter to a clone of the model."""
        reward = load_reward_file(adapter, kind, text_encoder)
        return io.NodeOutput(*guide_model(model, reward, cls.hidden.unique_id, **inputs.connected(values)))


class NFTLoadAdapter(io.ComfyNode):
    """Reads an adapter from its file, for the nodes that take one."""

    @classmethod
    def define_schema(cls) -> Any:
        """An adapter's file goes in; the adapter comes out."""
        return io.Schema(
            node_id="NFTLoadAdapter",
            display_name="Load Reward Adapter",
            category=inputs.CATEGORY,
            description="Reads a reward adapter once, for Apply Reward Adapter and Reward Guider.",
            inputs=[inputs.adapter_file(), inputs.kind(), inputs.text_encoder()],
            outputs=[
                inputs.Adapter.Output(display_name="adapter", tooltip="For Apply Reward Adapter and Reward Guider.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: str = "", **values: Any) -> str:
        """A text that changes when the file does, so that ComfyUI runs the node again."""
        return host.file_identity(adapter)

    @classmethod
    def execute(cls, adapter: str, kind: str = "auto", text_encoder: str = "refuse") -> Any:
        """Reads and checks the file."""
        return io.NodeOutput(load_reward_file(adapter, kind, text_encoder))


class NFTApplyAdapter(io.ComfyNode):
    """Does what Reward Guidance does with an adapter that is loaded already; several can be chained to mix rewards."""

    @classmethod
    def define_schema(cls) -> Any:
        """A model and a loaded adapter go in; the guided model and a description come out."""
        return io.Schema(
            node_id="NFTApplyAdapter",
            display_name="Apply Reward Adapter",
            category=inputs.CATEGORY,
            description="Reward guidance with a loaded adapter. Chain several, each with its own strength: the pushes "
            "add up, and each is measured from your model alone. A sum is all of the rewards to first order, also "
            "under odds; exact is one adapter trained on their product.",
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
        """Attaches the adapter to a clone of the model."""
        return io.NodeOutput(*guide_model(model, adapter, cls.hidden.unique_id, **inputs.connected(values)))


class NFTGuider(io.ComfyNode):
    """Makes a GUIDER that does reward guidance and classifier-free guidance."""

    @classmethod
    def define_schema(cls) -> Any:
        """A model, a loaded adapter and conditioning go in; a guider and a description come out."""
        return io.Schema(
            node_id="NFTGuider",
            display_name="Reward Guider",
            category=inputs.CATEGORY,
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
        """Attaches the adapter to a clone of the model and makes a CFG guider of it."""
        values = inputs.connected(values)
        guided, info = guide_model(model, adapter, cls.hidden.unique_id, guidance_scale=cfg, **values)
        return io.NodeOutput(host.cfg_guider(guided, positive, negative, cfg), info)
