"""What a run is, and how it computes: its name and base model; memory, number format, seed and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from nft_pipeline.checks import choice, flag, optional, whole

from .choices import OPTIMIZERS, PRECISIONS, QUANTISE, Optimizer, Precision, Quantise
from .section import MAY_CHANGE, TEXT, Section


@dataclass(frozen=True, kw_only=True)
class RunSettings(Section):
    """The run and its adapter.

    What is trained, and what the adapter says about itself.
    """

    name: Annotated[str, TEXT]
    """Name of the run. The run's folder is runs/NAME unless --out gives another, and trackers show the run under it.

    Give every run with other settings a name of its own: a folder holds one run.
    """

    base_model: Annotated[str, TEXT]
    """The model that is guided: a shipped one (shapes), a folder in diffusers' format, a Hub id, or one file.

    Choose the model that you want to draw with, since an adapter fits the model it was trained on and no other.
    docs/training.md has the families that can be trained. Configs of a file (.safetensors) come from the folder
    beside it that has its name without the ending, or from the Hub.
    """

    base_revision: Annotated[str | None, optional(TEXT)] = None
    """The branch, tag or commit of base_model on the Hub. Left out, it is the newest. The adapter says which it was.

    Set it when the model's repository changes, or to repeat an older run.
    """

    base_variant: Annotated[str | None, optional(TEXT)] = None
    """The variant of base_model's files that is loaded, such as fp16 for files named model.fp16.safetensors. Left out,
    it is the files without one.

    Set it where a repository has no others, or to download half as much.
    """

    base_id: Annotated[str | None, optional(TEXT), MAY_CHANGE] = None
    """The Hub id of the model that base_model is a copy of. Left out, it is base_model itself.

    Set it when base_model is a folder or a file on this machine and the adapter is to be shared: others know the model
    by its id, and `diffusion-nft push` takes no adapter that names a folder.
    """

    init_from: Annotated[str | None, optional(TEXT)] = None
    """An adapter whose weights the run begins with, in the place of new ones: a folder, a Hub id or a shipped name. It
    has to be of the same base model, objective, rank and layers. A policy's tilt counts as one that is reached.

    Set it to train an adapter further on new pictures or prompts. To make a run longer that is finished, use
    `diffusion-nft train --more` instead, which goes on with everything that the run knew.
    """

    reward_description: Annotated[str, TEXT]
    """What the adapter makes pictures more of, in a few words for its card and for the people who load it.

    Change it whenever the reward, the prompts or the folder of pictures change: nothing else tells a reader what
    the adapter likes.
    """

    licence: Annotated[str, TEXT]
    """Licence of the adapter, such as apache-2.0 or openrail++; it is written into the adapter and onto its card.

    Set it to what the base model's licence and that of the reward's weights allow.
    """


@dataclass(frozen=True, kw_only=True)
class MachineSettings(Section):
    """Memory, numbers and checkpoints.

    How the run computes on the machine it has, and how it survives being stopped.
    """

    gradient_checkpointing: Annotated[bool, flag(), MAY_CHANGE] = False
    """Whether activations inside a forward are computed again in the backward instead of being kept in memory.

    Set it to true when memory runs out with micro_batch at 1. A step then takes about one more forward; the result
    stays the same.
    """

    quantise: Annotated[Quantise, choice(*QUANTISE)] = "none"
    """Whether the frozen base model's weights are kept in 8 bits (int8) or 4 bits (nf4) while training.

    Set int8 when the base model does not fit, and nf4 when it does not fit then either. v_old is then the quantised
    model, which is nearly the full one with int8 and less so with nf4. It needs pip install 'diffusion-nft[quantise]'.
    """

    optimizer: Annotated[Optimizer, choice(*OPTIMIZERS)] = "adamw"
    """The optimiser: adamw, or adamw8bit, which keeps three quarters less state for large matrices.

    Choose adamw8bit when a LoRA of a high rank leaves too little memory. It saves little otherwise, because a LoRA is
    small. It needs pip install 'diffusion-nft[quantise]'.
    """

    precision: Annotated[Precision, choice(*PRECISIONS)] = "auto"
    """Number format of the forwards; LoRA, head and sums stay in fp32. auto is bf16 where the hardware is fast in it,
    else fp32.

    Set fp32 when losses are not finite or when two machines should agree closely, and fp16 on GPUs without bf16 when
    fp32 does not fit. On a CPU set bf16 when a model does not fit: its weights are then kept in bf16, too.
    """

    seed: Annotated[int, whole(0)] = 0
    """Seed of everything random: the LoRA and the head at their start, prompts, noise and the order of pictures.

    Change it to repeat a run and see how far its result is chance.
    """

    checkpoint_every: Annotated[int, whole(0), MAY_CHANGE] = 100
    """Optimiser steps between checkpoints; 0 writes none in between. An online run also saves after every round, and
    every run that is asked to stop saves first.

    Lower it when the machine may go away without warning and steps are slow: at most this many steps are lost.
    """

    keep_last: Annotated[int, whole(1), MAY_CHANGE] = 1
    """How many checkpoints are kept, by their step; the newest is always checkpoint.pt. While the run goes on two are
    kept at least: if the newest is damaged, the run goes on from the one before.

    Raise it when you may want to go back to an earlier step by hand, also after the run. Each checkpoint is as large
    as the first.
    """

    export_every: Annotated[int, whole(0), MAY_CHANGE] = 0
    """Optimiser steps between adapters that are kept while the run goes on, in OUT/adapters/step-000100 and so on; 0
    keeps none. They are whole adapters, which `sample`, `eval` and ComfyUI take, without a report or a calibration.

    Set it to look at an adapter before the run ends, or to choose among them afterwards. Each is as large as the
    finished one.
    """

    keep_best: Annotated[bool, flag(), MAY_CHANGE] = False
    """Whether an online run keeps the adapter of its best sweep so far in OUT/best.

    Set it to true in long online runs, whose last round need not be the best one. It needs sweep_every and sweep_size
    above 0, and 1 among sweep_strengths.
    """
