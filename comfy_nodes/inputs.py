"""What several nodes ask a person for: inputs and outputs with their ranges, defaults and tooltips."""

from __future__ import annotations

from typing import Any

from nft_pipeline.laws import LAWS, laws_explained
from nft_pipeline.modes import GUIDE, MODES

from . import build, host
from .host import io
from .reward_file import KINDS, TEXT_ENCODER

CATEGORY = "guidance/reward"
Adapter = io.Custom("NFT_ADAPTER")
Schedule = io.Custom("NFT_SCHEDULE")


def advanced(widget: Any) -> Any:
    """Hidden behind "Show advanced inputs" where the frontend has that. (The argument of that name is newer.)"""
    widget.extra_dict["advanced"] = True
    return widget


def text_encoder() -> Any:
    """What to do with layers of a text encoder, one of `TEXT_ENCODER`."""
    return advanced(
        io.Combo.Input(
            "text_encoder",
            options=list(TEXT_ENCODER),
            optional=True,
            default="refuse",
            tooltip="For a LoRA that has layers of a text encoder too, as kohya's often do. refuse: an error. ignore: "
            "its other layers are used alone, and the node says so.",
        )
    )


def slider(widget: Any) -> Any:
    """A number that is dragged, in the classic canvas too."""
    widget.extra_dict["display"] = "slider"
    return widget


def connected(values: dict[str, Any]) -> dict[str, Any]:
    """A node's values without those of sockets that nothing is connected to."""
    return {name: value for name, value in values.items() if value is not None}


def model() -> Any:
    """The MODEL that is guided."""
    return io.Model.Input(
        "model",
        tooltip="Your model, with any style LoRAs on it. Do not also load the reward adapter with a LoRA loader.",
    )


def adapter_file() -> Any:
    """A choice among the files of models/loras."""
    return io.Combo.Input(
        "adapter",
        options=host.adapter_names(),
        tooltip="A reward adapter in models/loras: the file in an adapter's comfyui folder, or any plain LoRA that was "
        "trained with a reward (DiffusionNFT, Flow-GRPO and the like).",
    )


def kind() -> Any:
    """What an adapter's file is, one of `KINDS`."""
    return advanced(
        io.Combo.Input(
            "kind",
            options=list(KINDS),
            default="auto",
            tooltip="What the file is. auto: what it says it is; a plain LoRA is a policy. policy: push every picture "
            "alike and leave an alpha head out. positive: insist on an alpha head.",
        )
    )


def strength() -> Any:
    """How much of the reward is wanted: 0 is off, 1 as the author shipped it."""
    return slider(
        io.Float.Input(
            "strength",
            default=1.0,
            min=-4.0,
            max=8.0,
            step=0.05,
            tooltip="How much of the reward you want. 0: your model, unchanged. 1: as the author shipped it. Above 1: "
            "more. Below 0: away from it. Not a LoRA weight: it multiplies the odds that a picture is liked, and the "
            "line under the node says what that comes to.",
        )
    )


def settings() -> list[Any]:
    """What can be set for a guided run beside its strength, in the order in which workflows store it."""
    return [
        advanced(
            io.Float.Input(
                "start_percent",
                default=0.0,
                min=0.0,
                max=1.0,
                step=0.01,
                tooltip="Where in the sampling guidance begins. 0 is the first step; the early steps "
                "decide composition.",
            )
        ),
        advanced(
            io.Float.Input(
                "end_percent",
                default=1.0,
                min=0.0,
                max=1.0,
                step=0.01,
                tooltip="Where guidance ends. 0.8 keeps your model's fine texture and saves a fifth of the extra time.",
            )
        ),
        io.Combo.Input(
            "law",
            options=[build.AUTO, *LAWS],
            default=build.AUTO,
            tooltip="How strength becomes a push. auto: so that strength gives the share of liked pictures that was "
            f"measured for this adapter; the law odds, or for a policy nft, if nobody measured. {laws_explained()}",
        ),
        io.Combo.Input(
            "mode",
            options=[build.AUTO, *build.MODES],
            default=build.AUTO,
            tooltip="auto: the mode that was measured to be the adapter's best; exact if nobody measured, or with "
            "another law or a cap. "
            + " ".join(f"{mode.node}: {mode.node_help}." for mode in MODES.values() if mode.node is not None),
        ),
        advanced(
            io.Float.Input(
                "beta",
                default=0.0,
                min=0.0,
                max=100.0,
                step=0.01,
                tooltip="DiffusionNFT's beta instead of a strength; smaller is stronger. 0: off, strength counts.",
            )
        ),
        kind(),
        advanced(
            io.Float.Input(
                "cap",
                default=0.0,
                min=0.0,
                max=2.0,
                step=0.01,
                tooltip="The most a step may move the predicted picture, as a fraction of its size. 0: no limit. Try "
                "0.3 when pictures look burnt; the live text shows the push.",
            )
        ),
        advanced(
            io.Combo.Input(
                "guide",
                options=list(GUIDE),
                default="both",
                tooltip="At CFG above 1. both: guide every prediction, by the alpha of the positive prompt. cond: "
                "that of the positive prompt alone, which is cheaper and which CFG amplifies.",
            )
        ),
        Schedule.Input(
            "schedule",
            optional=True,
            tooltip="From Reward Strength Schedule: a curve that strength is multiplied by over the sampling.",
        ),
        advanced(
            io.Float.Input(
                "rate",
                optional=True,
                default=0.0,
                min=0.0,
                max=0.99,
                step=0.01,
                tooltip="The share of pictures that the reward shall like, instead of a strength: 0.8 is 80 %. 0: off, "
                "strength counts. A rate that the adapter does not reach ends in a sentence that says what it reaches.",
            )
        ),
        text_encoder(),
    ]


def settings_of_a_loaded_adapter() -> list[Any]:
    """The same without what is asked for where the file is read."""
    return [widget for widget in settings() if widget.id not in ("kind", "text_encoder")]


def guided_outputs() -> list[Any]:
    """The guided MODEL, and a text about it."""
    return [
        io.Model.Output(display_name="model", tooltip="The guided model, for any sampler, detailer or upscaler."),
        io.String.Output(display_name="info", tooltip="What the adapter is, and how many of its layers are active."),
    ]


def adapter_socket() -> Any:
    """An adapter that another node loaded."""
    return Adapter.Input("adapter", tooltip="From Load Reward Adapter.")
