"""What learns, the LoRA and the alpha head, and how: steps, batches, rates and noise levels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from nft_pipeline.checks import Check, flag, number, optional, whole

from .section import MAY_CHANGE, Section, texts


def _is_range(value: Any) -> bool:
    right = isinstance(value, list) and len(value) == 2 and all(number(0, 1).holds(end) for end in value)
    return right and value[0] < value[1]


_RANGE = Check(_is_range, "a list of two numbers from 0 to 1, the smaller one first")


@dataclass(frozen=True, kw_only=True)
class AdapterSettings(Section):
    """LoRA and alpha head.

    What learns. The head is a small network that reads the denoiser's image tokens and predicts alpha; positive runs
    have one, and so have policies with baseline alpha.
    """

    rank: Annotated[int, whole(1)] = 16
    """Rank of the LoRA in every layer it is put on. The adapter's file and its memory grow in proportion.

    Raise it, to 32 or 64, for rewards about many things at once. Lower it for a simple preference on style or colour,
    or when the LoRA learns single pictures by heart.
    """

    lora_targets: Annotated[list[str], texts("a list of layer names, or [] for the default")] = field(
        default_factory=list
    )
    """Layers that get a LoRA, by the ends of their names in the denoiser, such as [attn.to_q, attn.to_v]. [] is the
    family's attention layers.

    Add the layers of the MLPs when rank alone does not help. Name fewer layers to save memory.
    """

    head_width: Annotated[int, whole(1)] = 128
    """Width of the alpha head, a multiple of 4.

    Raise it, to 256, when the calibration table shows that alpha hardly tells good from bad and more pictures did not
    help. Lower it when you have few pictures, which a wide head learns by heart.
    """

    head_queries: Annotated[int, whole(1)] = 8
    """Learned queries with which the alpha head looks at the picture: how many places or things it can look for at
    once.

    Raise it for rewards about many objects or places in one picture. Other rewards seldom need another number.
    """

    head_layers: Annotated[int, whole(1)] = 2
    """Rounds of attention in the alpha head.

    Raise it, to 3 or 4, for rewards that depend on how the prompt relates things to each other. Lower it to 1 when
    pictures are few.
    """


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings(Section):
    """Optimiser.

    How it learns. If the reward does not move, more steps come first, then more pictures, then a larger lr.
    """

    steps: Annotated[int, whole(1)] = 300
    """Optimiser steps of an offline run. An online run takes rounds times round_steps instead.

    Raise it first when the adapter is too weak. Lower it when the held-out reward falls while the loss still does: the
    run then learns its pictures by heart.
    """

    passes: Annotated[float | None, optional(number(above=0))] = None
    """How often an offline run goes through a folder of pictures, at most: where `steps` times `batch` would be more,
    it takes fewer steps, but 64 at least. Left out, it takes as many as `steps` says, whatever the folder holds.

    Lower it when a run of few pictures learns them by heart. The presets have 100.
    """

    stop_early: Annotated[int, whole(0)] = 0
    """After how many looks without gain an offline positive run ends before its steps are over; 0 never ends it. Every
    twentieth of the run it looks at its losses on held-out samples, and exports the weights that were best there.

    Set it to 3 when a run learns its pictures by heart before it ends. A run that still gains is not changed by it.
    """

    batch: Annotated[int, whole(1)] = 192
    """Pairs of picture and noise in each step of the LoRA. With several processes it must be a multiple of their
    number.

    Raise it when the loss is too noisy to fall. For memory lower micro_batch rather than this, since that leaves the
    result as it is.
    """

    head_batch: Annotated[int, whole(1)] = 96
    """Pairs of picture and noise in each step of a positive run's alpha head, which draws pairs of its own. The head of
    a policy shares those of `batch`.

    Raise it when alpha is poor at high noise. Lower it for speed.
    """

    micro_batch: Annotated[int, whole(0), MAY_CHANGE] = 0
    """Samples that go through the model at a time; 0 is the whole batch. The result stays the same but for rounding.

    Lower it, down to 1, when memory runs out while training. Raise it as far as memory goes for speed.
    """

    lr: Annotated[float, number(above=0)] = 2e-3
    """Learning rate of the LoRA. It rises over the first twentieth of the run; then an offline run lowers it to zero
    along a cosine, and an online run keeps it level.

    Lower it, to 0.0003 or less, for models of a billion parameters and more, or when the loss jumps or is not finite.
    Raise it when the loss hardly falls and more steps are too slow.
    """

    head_lr: Annotated[float, number(above=0)] = 2e-3
    """Learning rate of the alpha head. It rises and falls over the run as lr does.

    Lower it when alpha's loss jumps. Raise it when alpha is still improving at the end of the run.
    """

    weight_decay: Annotated[float, number(0)] = 0.01
    """Weight decay of AdamW, on the LoRA and on the head: in each step a weight shrinks by lr times this share of
    itself.

    Raise it, to 0.1, when pictures are few and the run learns them by heart. Lower it, to 0.0001 or 0, in long online
    runs, where it pulls the policy back in every step.
    """

    ema: Annotated[float, number(0, below=1)] = 0.98
    """Decay per step of the running average of the weights, which is what is exported. 0 exports the last weights; 0.98
    averages about the last 50 steps.

    Raise it towards 0.999 in runs of thousands of steps. Lower it in runs of a few dozen steps.
    """

    noise_shift: Annotated[float, number(above=0)] = 2.0
    """Where noise levels are drawn for the LoRA: t = shift u / (1 + (shift - 1) u), with u even in (0, 1). 1 is even in
    t, and above 1 more levels are near t = 1, which is pure noise.

    Raise it, to 3 or 4, for rewards about colours, places and composition, which are decided at high noise. Lower it
    towards 1 for rewards about fine detail.
    """

    noise_spread: Annotated[float | None, optional(number(above=0))] = None
    """The standard deviation of the logit-normal law, by which noise levels are then drawn for the LoRA: logit(t) is
    normal, with mean log(noise_shift). Left out, they are drawn as noise_shift says, and reach both ends.

    Set it to 1 to train as SD 3 and FLUX were, with few levels near pure noise and near the finished picture. Lower it
    to narrow the levels further.
    """

    noise_within: Annotated[list[float], _RANGE] = field(default_factory=lambda: [0.0, 1.0])
    """The lowest and the highest noise level that the LoRA is trained at, as shares of the range that the model knows.
    Levels between them keep their proportions. The head of a positive run is trained at all levels.

    Set it to [0.5, 1] for composition alone, or to [0, 0.5] for fine detail alone. The LoRA is on at the other levels
    too when pictures are drawn, and has learned nothing there.
    """

    head_noise_shift: Annotated[float, number(above=0)] = 4.0
    """Where noise levels are drawn for a positive run's alpha head, by the formula of noise_shift. The head of a policy
    shares the LoRA's noise levels.

    Raise it when the calibration table shows a poor alpha at high noise. Lower it when alpha is poor at low noise.
    """

    adaptive_noise: Annotated[bool, flag()] = False
    """Whether more noise levels are drawn where the steps so far have met noisy gradients. Samples weigh less there, so
    that the objective stays the same.

    Set it to true when rewards are decided in a narrow range of noise and steps are expensive. It saves a tenth to a
    quarter of the samples at best.
    """
