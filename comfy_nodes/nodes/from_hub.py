"""Adapters by the id of their repository."""

from __future__ import annotations

from typing import Any

from .. import host, inputs
from ..build import read_file
from ..files.hub import keep_from_hub
from ..host import io


class NFTHubAdapter(io.ComfyNode):
    """Reads an adapter by the id of its repository on the Hub; its file is kept in models/loras."""

    @classmethod
    def define_schema(cls) -> Any:
        """A repository's id goes in; the adapter comes out, and the name of its file."""
        text = io.String.Input
        schema = io.Schema(
            node_id="NFTHubAdapter",
            display_name="Load Reward Adapter from Hub",
            category=inputs.CATEGORY,
            description="Reads a reward adapter, or any LoRA that was trained with a reward, by the id of its "
            "repository on the Hugging Face Hub. It is fetched once and kept in models/loras.",
            inputs=[
                text("repo", default="", tooltip='"owner/name", as on the repository\'s page; or its address.'),
                inputs.kind(),
                inputs.advanced(
                    text("file", default="", tooltip="Which file, if the repository has several. Empty: the only one.")
                ),
                inputs.advanced(
                    text("revision", default="", tooltip="A branch, tag or commit. Empty: the newest there is.")
                ),
                inputs.text_encoder(),
            ],
            outputs=[
                inputs.Adapter.Output(
                    display_name="adapter",
                    tooltip="For Apply Reward Adapter, Reward Guider and Reward Strength Grid.",
                ),
                io.String.Output(display_name="name", tooltip="Where the file is in models/loras."),
            ],
            hidden=[io.Hidden.unique_id],
        )
        return host.findable(schema, "hub", "hugging face", "download adapter", "reward lora")

    @classmethod
    def execute(
        cls, repo: str, kind: str = "auto", file: str = "", revision: str = "", text_encoder: str = "refuse"
    ) -> Any:
        """Finds or fetches the file, and reads it."""
        loras = host.loras_folder()
        path = keep_from_hub(loras, repo, revision, file)
        name = str(path.relative_to(loras))
        host.ComfyUI().say(cls.hidden.unique_id, f"kept as {name}")
        return io.NodeOutput(read_file(path, kind, text_encoder), name)
