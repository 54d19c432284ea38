"""Reward guidance inside ComfyUI's sampling, apart from ComfyUI: torch only.

    x0 = x0_old + s (x0_lora - x0_old)        for every prediction that is asked of the model

ComfyUI's samplers work on denoised predictions, x0 = x - sigma v for flow models. At one x and sigma x0 is an affine
map of the network's output, so this is the velocity's formula for every prediction type (M9). In fp32.

The predictions are guided where they are made, before classifier-free guidance or any other node combines them. So the
guided model is a model: whatever a sampler, a guider or a CFG node does with predictions, it does with guided ones.
alpha is that of the conditional prompt, and the same s guides every prediction at one x, as in DiffusionNFTPipeline's
nft_guide. (guide="cond" guides the conditional prompt's alone, which cfg then amplifies.)

A `Guide` gives ComfyUI four functions, which only add to lists that other nodes add to as well:

    around_sampling     installs the LoRA on the modules for one run of the sampler, takes it out, and keeps the record:
                        a MODEL is cached between prompts, so nothing of a run may stay in it
    around_evaluation   one call of the guider by the sampler: a step of the record
    around_prediction   finds s and runs the model once more with the LoRA on
    around_model        keeps the tokens that alpha heads read, and gives each row its LoRA scale

Of several guides the first answers for all. Each push is then measured from the model without any of them, and the
pushes add up. Only a LoRA that the mode "fast" leaves on is a part of the model that others see.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

from torch import Tensor

from nft_pipeline.dial.tilts import Tilt
from nft_pipeline.engine.stats import NFTStats, StatsRecorder
from nft_pipeline.families.forward_call import as_tokens
from nft_pipeline.modes import MODES
from nft_pipeline.settings import GuidanceSettings

from .delta import Listener, Switch, Target, Weights, install
from .dial import promise_line, tilt_of_rate
from .passes import Part, predictions, region_over
from .reward_file import RewardFile, cautions_of_file
from .run import Conds, Evaluation, Plan, Run
from .words.cautions import FAST_IN_CHAIN, LOADED_TWICE, NO_EFFECT, NOT_ASKED, Caution
from .words.errors import speaking_as_a_node


class Host(Protocol):
    """What a guide needs of ComfyUI."""

    def guides(self, options: Mapping[str, Any]) -> list[Guide]:
        """The guides that a prediction with these model options goes through, outermost first."""

    def noise_level(self, model: Any, sigma: Tensor) -> Tensor:
        """t in [0, 1] of sigmas."""

    def level_at(self, model: Any, percent: float) -> float:
        """t at a share of the sampling: 1 at 0, 0 at 1."""

    def loaded_twice(self, model: Any, targets: Sequence[Target]) -> bool:
        """Whether a LoRA loader or a hook has put this very LoRA into a MODEL."""

    def guides_on(self, model: Any) -> list[Guide]:
        """The guides on a MODEL."""

    def region(self, options: Mapping[str, Any], guide: Guide) -> Tensor | None:
        """Where a guide acts, (pictures or 1, height, width) in [0, 1]; None is everywhere."""

    def say(self, node_id: str | None, text: str) -> None:
        """Show a line under a node."""

    def mark(self, node_id: str | None, cautions: Sequence[Caution]) -> None:
        """Show these as badges on a node, in the place of those it has."""


class Guide:
    """One adapter at work on one MODEL.

    Args:
        reward: the adapter.
        targets: its layers in the model, see `match.match_layers`.
        plan: strength, law and the rest.
        host: ComfyUI, or a stand-in for tests.
        tap: the module whose input the head reads, relative to the model; None without a head.
        node_id: under which node to show the live text.
    """

    def __init__(
        self,
        reward: RewardFile,
        targets: Sequence[Target],
        plan: Plan,
        host: Host,
        *,
        tap: str | None = None,
        node_id: str | None = None,
    ) -> None:
        self.reward, self.targets, self.plan, self.host, self.tap = reward, targets, plan, host, tap
        self.node_id = node_id
        self.stats: NFTStats | None = None
        self.run: Run | None = None
        self.weights = Weights(targets, reward.head)
        self._switch, self._listener = Switch(), Listener()

    def __deepcopy__(self, memo: Any) -> Guide:
        # Other nodes may copy a MODEL's options deeply, and with them the guide behind the wrappers: it would no longer
        # be the one that is attached, and the LoRA would be held twice.
        return self

    # Around one run of the sampler.

    @speaking_as_a_node
    def around_sampling(self, executor: Any, guider: Any, sigmas: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Wraps the sampler: executor(guider, sigmas, ...)."""
        if self.plan.tilt == 0 and not self.plan.rate:
            return executor(guider, sigmas, *args, **kwargs)
        outer = self.run
        # A guider with two scales of classifier-free guidance has no `cfg`.
        run = self.run = self._begin(guider, len(sigmas) - 1, getattr(guider, "cfg", None))
        try:
            try:
                with self._installed(run.model):
                    drawn = executor(guider, sigmas, *args, **kwargs)
            finally:
                run.settle()
            self._say_what_went_wrong(run, guider.model_patcher)
            return drawn
        finally:
            self.run = outer
            self.stats = run.stats()

    @contextmanager
    def draft(self, guider: Any, steps: int) -> Iterator[StatsRecorder]:
        """Steps that are tried and thrown away, inside a run of the sampler: with a record of their own, and with alpha
        read at strength 0 too, where nothing else is under way."""
        outer = self.run
        scale = None if outer is None else outer.settings.guidance_scale
        run = self.run = self._begin(guider, steps, scale)
        try:
            with self._installed(run.model) if outer is None else nullcontext():
                yield run.recorder
        finally:
            self.run = outer

    @contextmanager
    def _installed(self, model: Any) -> Iterator[None]:
        listeners = {} if self.tap is None else {self.tap: self._listener}
        try:
            with install(self.weights.targets(), model, self._switch, listeners):
                yield
        finally:
            self._switch.scale = self._listener.seen = None

    def _begin(self, guider: Any, steps: int, guidance_scale: float | None) -> Run:
        plan, config, model = self.plan, self.reward.config, guider.inner_model
        settings = plan.settle(lambda share: self.host.level_at(model, share), guidance_scale)
        tilt = tilt_of_rate(config, plan.rate, settings) if plan.rate else plan.tilt
        settings = settings.for_tilts({"": config}, {"": tilt})
        cautions = self.cautions(guider.model_patcher)
        self.say_before(tilt, settings, cautions)
        prompts = guider.conds.get("positive") or next(filter(None, guider.conds.values()), None)
        positive = prompts[0]["uuid"] if prompts else None
        head = self.weights.head
        return Run(
            config,
            head,
            self.tap,
            tilt,
            settings,
            steps,
            model,
            positive,
            self._say,
            [caution.text for caution in cautions],
        )

    def cautions(self, model: Any) -> list[Caution]:
        """What is wrong, or may be, with this adapter on this MODEL."""
        cautions = [LOADED_TWICE] if self.host.loaded_twice(model, self.targets) else []
        guides = self.host.guides_on(model)
        if len(guides) > 1 and any(MODES[guide.plan.settings.mode].one_pass for guide in guides):
            cautions.append(FAST_IN_CHAIN)
        return [*cautions, *cautions_of_file(self.reward)]

    def say_before(self, tilt: Tilt, settings: GuidanceSettings, cautions: Sequence[Caution]) -> None:
        """Show what is known before the first step."""
        promised = self.promised(tilt, settings)
        lines = [*([promised] if promised else []), *(caution.text for caution in cautions)]
        if lines:
            self._say("\n".join(lines))
        self.host.mark(self.node_id, cautions)

    def promised(self, tilt: Tilt, settings: GuidanceSettings) -> str:
        """What the tilt will do to the share of liked pictures, in a line; "" where nothing is known."""
        line = promise_line(self.reward.config, tilt, settings)
        return f"guided in every step and without a cap: {line}" if line and self.plan.partial else line

    def _say(self, text: str) -> None:
        self.host.say(self.node_id, text)

    def _say_what_went_wrong(self, run: Run, patcher: Any) -> None:
        caution = None
        if run.steps > 0 and not run.met:
            caution = NOT_ASKED
        elif run.compared and not run.moved:
            caution = NO_EFFECT
        if caution is not None:
            logging.warning("%s: %s", self.reward.config.name, caution.text)
            self._say(f"{self.reward.config.name}: {caution.text}")
            self.host.mark(self.node_id, [caution, *self.cautions(patcher)])

    # Around one call of the guider, one prediction, and one forward of the model.

    def around_evaluation(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Wraps the guider's answer to the sampler."""
        if self.run is None:
            return executor(*args, **kwargs)
        with _evaluating(self.run):
            return executor(*args, **kwargs)

    def around_prediction(
        self,
        executor: Any,
        model: Any,
        conds: Sequence[Conds | None],
        x: Tensor,
        sigma: Tensor,
        options: Mapping[str, Any],
    ) -> Any:
        """Wraps the denoised predictions for lists of prompts: executor(model, conds, x, sigma, options)."""
        guides = [guide for guide in self.host.guides(options) if guide.run is not None and guide.run.model is model]
        if not guides or guides[0] is not self:
            return executor(model, conds, x, sigma, options)
        t = self.host.noise_level(model, sigma.expand(x.shape[0]))

        def predict(lists: Sequence[int], names: dict[Any, Any] | None) -> list[Tensor]:
            asked = [cond if i in lists else None for i, cond in enumerate(conds)]
            if names is not None:
                # Caches of other nodes (EasyCache) go by uuid: the two models must not share an entry.
                fresh = uuid.uuid4
                asked = [cond and [{**c, "uuid": names.setdefault(c["uuid"], fresh())} for c in cond] for cond in asked]
            return list(executor(model, asked, x, sigma, options))

        with ExitStack() as stack:
            parts = []
            for guide in guides:
                assert guide.run is not None
                stack.enter_context(_evaluating(guide.run, anew=False))
                region = self.host.region(options, guide)
                parts.append(Part(guide.run, conds, x, t, None if region is None else region_over(region, x)))
            return predictions(parts, predict, conds)

    def around_model(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Wraps BaseModel.apply_model: x and t hold one part for each of transformer_options["uuids"]."""
        run, options = self.run, transformer_options or {}
        arguments = (x, t, c_concat, c_crossattn, control, options)
        if run is None:
            return executor(*arguments, **kwargs)
        on = run.on
        if isinstance(on, Tensor):
            on = on.repeat(x.shape[0] // len(on)) if bool(on.any()) else None
        with self._switch.at(on):
            out = executor(*arguments, **kwargs)
        tokens, names = self._listener.take(), options.get("uuids", [])
        if tokens is not None and run.tokens is not None and names:
            keys = zip(options["cond_or_uncond"], names, strict=True)
            run.tokens.update(zip(keys, as_tokens(tokens).chunk(len(names)), strict=True))
        return out


@contextmanager
def _evaluating(run: Run, anew: bool = True) -> Iterator[None]:
    """An evaluation of a run inside the block, `anew` or the one that is under way."""
    outer = run.evaluation
    if outer is not None and not anew:
        yield
        return
    evaluation = run.evaluation = Evaluation()
    try:
        yield
        run.finish(evaluation)
    finally:
        run.evaluation = outer
