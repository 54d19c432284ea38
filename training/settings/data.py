"""Where pictures and their scores come from, and how scores become r."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from nft_pipeline.checks import Check, choice, flag, number, optional
from nft_pipeline.laws import EXPONENT, LARGEST_EXPONENT

from .choices import METHODS, MIXES, Method, Mix
from .public import public_names, public_reward, revealed
from .section import TEXT, TEXT_OR_EMPTY, Section


def _entry(value: Any) -> tuple[Any, dict[str, Any]]:
    """Weight and options of one of `rewards`."""
    if not isinstance(value, dict):
        return value, {}
    return value.get("weight", 1.0), {key: option for key, option in value.items() if key != "weight"}


def _are_weights(value: Any) -> bool:
    right = isinstance(value, dict) and all(TEXT.holds(name) for name in value)
    return right and all(number(above=0).holds(_entry(weight)[0]) for weight in value.values())


_WEIGHTS = Check(_are_weights, "names with weights above 0, such as {aesthetic: 1.0, text: 0.5}")


@dataclass(frozen=True, kw_only=True)
class DataSettings(Section):
    """Pictures and scores.

    A run learns from scored pictures. Either it samples them from the base model, for which it needs prompts and a
    reward, or it reads them from a folder.
    """

    reward: Annotated[str, TEXT_OR_EMPTY] = ""
    """The reward that scores the pictures: a built-in name, or module:function for one of yours. "" is for runs with
    a folder of judged pictures, and for runs with several rewards.

    Set it to what you want more of. docs/rewards.md lists the built-in rewards and says how to write one.
    """

    rewards: Annotated[dict[str, Any], _WEIGHTS] = field(default_factory=dict)
    """Several rewards, in the place of `reward`: each name with its weight, which is above 0, or with a mapping of its
    weight and options, such as {pickscore: {weight: 1.0, device: cuda}}. `mix` says how they become one r.

    Use it when one reward alone is easy to trick, or when one needs options. Raise the weight of a reward that the
    run neglects.
    """

    mix: Annotated[Mix, choice(*MIXES)] = "mean"
    """How several `rewards` become one r: mean, their weighted mean, or product, the product of the r of each, which
    asks for all of them at once and takes no weights.

    Set product for a joint adapter of several wishes: a picture is then liked as far as every reward likes it, and one
    dial turns all of it. Such pictures are rarer than those that one reward likes, so look at the mean reward that the
    run prints. Keep mean where a good score may make up for a bad one.
    """

    prompts: Annotated[str | None, optional(TEXT)] = None
    """The prompts that pictures are sampled for: a built-in list, a text file with one prompt per line, a .jsonl file,
    or module:function. A .jsonl file has one object per line, {"prompt": ...} with whatever else a reward wants to know
    of the prompt, which it gets as `metadata`.

    Choose prompts like those you will draw with. A few hundred different ones are better than many pictures of a few.
    Leave it out with a folder of pictures, which brings its own prompts.
    """

    held_out_prompts: Annotated[str | None, optional(TEXT)] = None
    """Prompts that the run measures itself on and never trains on, given as `prompts` are. Without them it measures on
    the prompts of training, with noise that training never uses.

    Set it when you want to know whether the adapter helps with prompts it has not met. A few dozen are enough.
    """

    data: Annotated[str | None, optional(TEXT)] = None
    """A folder of pictures with metadata.jsonl that scores or likes them. The run then learns from these pictures
    offline, and samples none itself.

    Set it to train on your own taste (`diffusion-nft rate`) or on pictures that a reward has scored already
    (`diffusion-nft score`). Leave `prompts` and `rounds` out then.
    """

    made_by_base: Annotated[bool, flag()] = False
    """Whether the pictures in `data` were sampled from this very base model. If so the run learns a positive adapter by
    default, else a policy, which stands foreign pictures better. A folder whose every line names the base model as its
    `model` and no `strength` other than 0, as those of `diffusion-nft draw` do, counts as such without it.

    Set it to true only when all of them were: the positive objective and its promise depend on it.
    """

    optimality: Annotated[Method, choice(*METHODS)] = "raw"
    """How scores become r, the probability that a picture is a good one. raw takes scores in [0, 1] as they are, likes
    takes 0 and 1, threshold calls everything from optimality_at on good, sigmoid squashes standard deviations from the
    mean of all, rank counts the share of pictures with a lower score, group is the normalisation of DiffusionNFT's
    authors, top calls the best 30 % good, and exponential takes e^(4 (score - 1)) of the scores of raw. rank, group and
    top compare pictures of one prompt with each other; offline the pictures of prompts that have fewer than four are
    compared together.

    Choose top when scores have a unit of their own: a positive adapter goes two to three times as far with it as with
    sigmoid or rank, which call the middling pictures half good. Choose rank or group in online runs of a policy. Keep
    raw for built-in rewards whose r you trust. Choose exponential for a graded reward, beside a second adapter with
    raw, to draw its exponential tilts up to 4: docs/theory.md, M15.
    """

    optimality_at: Annotated[float | None, optional(number())] = None
    """With optimality: threshold, the score from which on a picture counts as good, in the reward's own unit. With
    optimality: top, the share of pictures that count as good, inside 0 and 1; left out it is 0.3. With optimality:
    exponential, the exponent, above 0 and at most 8; left out it is 4.

    Set a threshold so that about a third of the base model's pictures pass. Raise it, or lower the share to 0.1, to ask
    for more, as long as enough pictures pass to learn from. Other methods do not read it.
    """

    @property
    def weights(self) -> dict[str, float]:
        """Rewards by name with their weights; empty where the data brings its scores."""
        weights = {name: _entry(value)[0] for name, value in self.rewards.items()}
        return {self.reward: 1.0} if self.reward else weights

    @property
    def public_weights(self) -> dict[str, float]:
        """`weights` by the names that may stand in records and reports."""
        shown = public_names(self.weights)
        return {shown[name]: weight for name, weight in self.weights.items()}

    @property
    def reward_options(self) -> dict[str, dict[str, Any]]:
        """What each of `rewards` is made with, by name, secrets among it."""
        return {name: revealed(_entry(value)[1]) for name, value in self.rewards.items()}

    @property
    def reward_name(self) -> str:
        """For reports: "aesthetic", "aesthetic + 0.5 text", or "aesthetic x text" for a product."""
        parts = [name if weight == 1 else f"{weight:g} {name}" for name, weight in self.public_weights.items()]
        return (" x " if self.mix == "product" else " + ").join(parts) or "the scores in metadata.jsonl"

    def data_faults(self) -> list[str]:
        """Settings of this section that are sound one by one and do not go together, one sentence each."""
        faults = []
        if self.data is None and not self.reward and not self.rewards:
            faults.append("'reward' is missing: without data the run samples pictures itself, and scores them")
        if self.data is None and self.prompts is None:
            faults.append("'prompts' is missing: without data the run samples pictures itself")
        if self.reward and self.rewards:
            names = ", ".join(map(public_reward, self.rewards))
            faults.append(f"reward is {public_reward(self.reward)!r} and rewards has {names}: put all into rewards")
        if len(self.rewards) > 1 and self.optimality in ("likes", "threshold"):
            faults.append(
                f"optimality is {self.optimality!r} with {len(self.rewards)} rewards; use group, rank, sigmoid or top"
            )
        if self.mix == "product":
            faults += self._product_faults()
        if self.optimality == "threshold" and self.optimality_at is None:
            faults.append(
                "optimality is 'threshold' and optimality_at is missing: from which score on is a picture liked?"
            )
        if self.optimality == "top" and not 0 < (0.5 if self.optimality_at is None else self.optimality_at) < 1:
            faults.append(
                f"optimality is 'top' and optimality_at is {self.optimality_at:g}, expected a share inside 0 and 1"
            )
        exponent = EXPONENT if self.optimality_at is None else self.optimality_at
        if self.optimality == "exponential" and not 0 < exponent <= LARGEST_EXPONENT:
            faults.append(
                f"optimality is 'exponential' and optimality_at is {exponent:g}, expected an exponent above 0 and at "
                f"most {LARGEST_EXPONENT:g}"
            )
        return faults

    def _product_faults(self) -> list[str]:
        faults = []
        if len(self.rewards) < 2:
            faults.append(f"mix is 'product' with {len(self.weights)} of `rewards`: it needs two or more to multiply")
        if any(weight != 1 for weight in self.weights.values()):
            faults.append(f"mix is 'product' with the weights {self.public_weights}: a product has none, set each to 1")
        if self.optimality == "group":
            faults.append(
                "mix is 'product' with optimality 'group', whose r stays near 1/2 for all pictures; use raw, rank or "
                "sigmoid"
            )
        return faults
