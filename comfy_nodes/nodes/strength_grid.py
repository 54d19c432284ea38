"""The contact sheet: what a strength does, at a glance."""

from __future__ import annotations

from typing import Any

import torch

from nft_pipeline.errors import GuidanceError

from .. import build, host, inputs
from ..host import io, ui
from ..sheet.cells import cells_of, prompts_of, seeds_of, strengths_of
from ..sheet.draw import Sampling, draw_cells, sheet_of


class NFTStrengthGrid(io.ComfyNode):
    """Draws one picture for each strength and seed or prompt, and lays them out with labels."""

    @classmethod
    def define_schema(cls) -> Any:
        """A model, an adapter and what KSampler takes go in; a contact sheet and its pictures come out."""
        number, text = io.Int.Input, io.String.Input
        schema = io.Schema(
            node_id="NFTStrengthGrid",
            display_name="Reward Strength Grid",
            category=inputs.CATEGORY,
            description="Draws a labelled contact sheet: strengths from left to right, seeds or prompts from top "
            "to bottom. Everything is drawn in one run.",
            inputs=[
                io.Model.Input("model", tooltip="Your model, without Reward Guidance: this node guides it."),
                inputs.adapter_file(),
                io.Conditioning.Input("positive", tooltip="What the pictures should show, unless prompts says it."),
                io.Conditioning.Input("negative", tooltip="What they should not show; not used at CFG 1."),
                io.Latent.Input("latent_image", tooltip="As for KSampler. Every picture of a batch gets a row."),
                io.Vae.Input("vae", tooltip="Makes pictures of what was drawn."),
                text(
                    "strengths",
                    default="0, 0.5, 1, 1.5, 2",
                    tooltip='The columns: numbers with commas between, or a range such as "-1 to 2 by 0.5". 0 is '
                    "your model alone. Empty: 0 and 1.",
                ),
                text(
                    "seeds",
                    default="1, 2",
                    tooltip='The rows: seeds with commas between, or a range such as "1 to 4". Empty: 0.',
                ),
                number("steps", default=20, min=1, max=10000, step=1, tooltip="As on KSampler."),
                io.Float.Input(
                    "cfg",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="As on KSampler. Take the value the adapter was made at (see Reward Adapter Info).",
                ),
                io.Combo.Input("sampler_name", options=host.samplers(), default="euler", tooltip="As on KSampler."),
                io.Combo.Input("scheduler", options=host.schedulers(), default="simple", tooltip="As on KSampler."),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="As on KSampler."),
                text(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="One prompt a line instead of the positive input, each with every seed; needs clip. "
                    "What else the positive input carries, such as FluxGuidance, is kept.",
                ),
                number(
                    "together",
                    default=8,
                    min=1,
                    max=64,
                    step=1,
                    tooltip="Pictures in one batch at most. Fewer need less memory. Samplers that draw noise in "
                    "their steps draw one cell after the other, so that seeds stay comparable.",
                ),
                *[widget for widget in inputs.settings() if widget.id in ("law", "mode", "kind")],
                io.Clip.Input("clip", optional=True, tooltip="For prompts; not needed without them."),
                inputs.Adapter.Input(
                    "loaded", optional=True, tooltip="From another loader; used instead of the file above."
                ),
                inputs.text_encoder(),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="The contact sheet, one picture."),
                io.Image.Output(display_name="images", tooltip="Its pictures without labels, row by row."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )
        return host.findable(schema, "Strength Grid", "xy plot", "contact sheet", "compare strengths", "lora strength")

    @classmethod
    def fingerprint_inputs(cls, adapter: str = "", **values: Any) -> str:
        """A text that changes when the file does, so that ComfyUI runs the node again."""
        return host.file_identity(adapter)

    @classmethod
    def execute(
        cls,
        model: Any,
        adapter: str,
        positive: Any,
        negative: Any,
        latent_image: Any,
        vae: Any,
        strengths: str,
        seeds: str,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        prompts: str = "",
        together: int = 8,
        law: str = build.AUTO,
        mode: str = build.AUTO,
        kind: str = "auto",
        clip: Any = None,
        loaded: Any = None,
        text_encoder: str = "refuse",
    ) -> Any:
        """Draws all of it."""
        columns, lines = strengths_of(strengths), prompts_of(prompts)
        cells = cells_of(columns, seeds_of(seeds), max(1, len(lines)))
        if lines and clip is None:
            raise GuidanceError(
                "prompts has text, but no clip is connected. Connect your model's, or leave prompts empty."
            )
        reward = loaded or build.load_reward_file(adapter, kind, text_encoder)
        positives = [host.encode(clip, line, positive) for line in lines] or [positive]

        settings = {"law": law, "mode": mode, "guidance_scale": cfg}
        guided = build.guide_each(model, reward, cls.hidden.unique_id, columns, **settings)
        sampling = Sampling(steps, cfg, sampler_name, scheduler, denoise)
        pictures = draw_cells(cells, guided, latent_image, positives, negative, vae, sampling, together)
        title = f"{reward.config.name}, {steps} steps of {sampler_name}, CFG {cfg:g}"
        sheet = sheet_of(cells, pictures, columns, lines, title)
        return io.NodeOutput(sheet, torch.cat(pictures), ui=ui.PreviewImage(sheet, cls=cls))
