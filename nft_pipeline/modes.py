"""Modes: how guidance spends the forwards of a denoiser.

A mode is a row of `MODES` here and a module of its name in `nft_pipeline.engine.modes`, with two functions: what to do
before the denoiser's forward and after it. `import nft_pipeline.modes` does not load torch, because the command line
lists modes in its help.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """What can be said of a mode without running it.

    Args:
        help: what it costs and gives, in half a sentence for a person who has to choose.
        scales_rows: it gives each row of a batch a LoRA scale of its own.
        adds_rows: its forward has more rows than the pipeline's own, so each row has to stand by itself.
        one_pass: it never computes v_old. So the push is not known, and alpha is that of the step before, in the first
            step the adapter's base rate.
        node: what the ComfyUI nodes call it; None if they do not have it. Their own steps are in comfy_nodes/guide.py,
            which spends one pass or two and would have to learn another mode first.
        node_help: as `help`, for their user.
    """

    help: str
    scales_rows: bool = False
    adds_rows: bool = False
    one_pass: bool = False
    node: str | None = None
    node_help: str = ""


GUIDE = ("both", "cond")  # which predictions are guided under classifier-free guidance

MODES = {
    "two_pass": Mode(
        help="exact, one more forward per adapter",
        node="exact",
        node_help="a second pass of the model in each guided step, about twice the time",
    ),
    "batched": Mode(
        help="the same as two_pass in one larger forward, for a GPU that small batches leave idle",
        scales_rows=True,
        adds_rows=True,
    ),
    "single": Mode(
        help="one forward per step, half the time, an approximation",
        scales_rows=True,
        one_pass=True,
        node="fast",
        node_help="one pass with the LoRA at a varying weight, no extra time; as strong as asked if that was measured, "
        "else a little stronger",
    ),
}
