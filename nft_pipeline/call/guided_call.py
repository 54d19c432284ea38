"""The call of a guided pipeline: the arguments it adds to the stock one, and what happens while it runs."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..adapters.config import AdapterConfig
from ..dial.forecast import forecast
from ..engine.engine import NFTEngine
from ..engine.loading import LoadedAdapter, find_denoisers
from ..engine.stats import NFTStats, StatsRecorder
from ..engine.terms import Term
from ..engine.trace import Trace
from ..errors import GuidanceError
from ..families.batch import batch_reader
from ..families.registry import family_of
from ..laws import COMBINATIONS, LAWS
from ..modes import MODES
from ..search.choice import EarlyChoice, judges
from ..settings import GuidanceSettings, check_signs, is_number, tilts_of, tilts_of_rates
from .early_choice import run_with_choice, steps_of

# The defaults in the signature. Inside, None means "not given", so that no error is about an argument nobody gave.
GUIDANCE_ARGUMENTS: dict[str, tuple[Any, str]] = {
    "nft_strength": (1.0, "float | dict[str, float]"),
    "nft_beta": (None, "float | dict[str, float] | None"),
    "nft_rate": (None, "float | dict[str, float] | None"),
    "nft_law": (None, "str | None"),
    "nft_interval": ((0.0, 1.0), "tuple[float, float]"),
    "nft_schedule": (None, "Callable[[float], float] | list[tuple[float, float]] | None"),
    "nft_guide": ("both", "str"),
    "nft_cap": (None, "float | None"),
    "nft_mode": (None, "str | None"),
    "nft_combine": ("all", "str"),
    "nft_candidates": (1, "int"),
    "nft_choose_after": (None, "int | None"),
}
_CALL_DOC = """Generate, guided by the reward of the loaded adapter. Takes what {stock} takes, and:

Args:
    nft_strength (`float` or `dict[str, float]`, defaults to 1.0):
        How far to go: 0 is the base model bit for bit, 1 is the adapter as its author shipped it, 2 is twice its tilt,
        and a negative number seeks what the reward dislikes. It is not a LoRA weight: it scales the difference of two
        outputs, not weights. Too much looks burnt and uniform; see `nft_stats.push`. With several adapters one number
        is for all of them; a dict gives numbers by name, and adapters that it leaves out are at 0.
    nft_beta (`float` or `dict[str, float]`, *optional*):
        DiffusionNFT's beta, given instead of a strength: tilt = 2 / beta. Above 0; smaller is stronger.
    nft_rate (`float` or `dict[str, float]`, *optional*):
        The share of liked pictures that is wanted, between 0 and 1, given instead of a strength. It goes through the
        adapter's calibration; what the adapter does not reach is refused, with the share that it does.
    nft_law (`str`, *optional*):
        How tilt and alpha become the scale s of the push. Left out, it is the adapter's own way: the map that its
        calibration measured, under which a tilt does what it says, or "odds" ("nft" for a policy) where there is none.
{laws}
    nft_interval (`tuple[float, float]`, defaults to (0.0, 1.0)):
        The noise levels that are guided, where 1 is pure noise. Compositions are decided near 1, fine detail near 0. A
        step outside the interval costs one forward instead of two.
    nft_schedule (`Callable[[float], float]` or `list[tuple[float, float]]`, *optional*):
        The factor by which the tilt is multiplied at noise level t: a function of t, or points (t, factor) with
        straight lines between them, such as [(0.0, 0.2), (0.7, 1.0)].
    nft_guide (`str`, defaults to "both"):
        Under classifier-free guidance "both" guides the conditional and the unconditional prediction, with one alpha.
        "cond" guides the conditional one alone. It costs 1.5 times an unguided call instead of twice, and the guidance
        scale amplifies it.
    nft_cap (`float`, *optional*):
        The largest fraction of its size by which guidance may move the predicted picture in a step; larger pushes are
        shortened to it. `nft_stats.push` shows which pushes are usual.
    nft_mode (`str`, *optional*):
        How the forwards are spent. Left out, it is what the adapter's calibration found best, or "two_pass":
{modes}
    nft_combine (`str`, defaults to "all"):
        What several adapters at once mean:
{combinations}
    nft_candidates (`int`, defaults to 1):
        Early choice: how many noises to try for each picture. Each takes a few steps, the one with the highest alpha is
        kept, and the call is made from it, guided or not. At strength 0 the pictures are the base model's own. With k
        candidates compared after step j a picture costs k j more steps. It needs an alpha head, and no `latents`.
    nft_choose_after (`int`, *optional*):
        The step after which the candidates are compared. Default: a seventh of the steps. Later knows more and costs
        more.

Raises:
    GuidanceError: one of these is out of range, contradicts another one, or was given without an adapter.
    AdapterError: the adapter's LoRA was unloaded or fused by someone else.

`nft_stats` holds what happened, also after an interrupt or an error. Below, the stock documentation.

{doc}"""


def run_guided(
    pipe: Any,
    loaded: Mapping[str, LoadedAdapter],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    nft: Mapping[str, Any],
) -> Any:
    """The stock call with engines on the pipeline's denoisers; afterwards `pipe.nft_stats` holds what they did.

    Args:
        pipe: the guided pipeline.
        loaded: its adapters by name, at least one.
        args, kwargs: the arguments of the stock call.
        nft: the guidance arguments; None for those not given.

    Raises:
        GuidanceError: an argument is out of range; nothing has run.
    """
    configs = {name: entry.adapter.config for name, entry in loaded.items()}
    names = {argument.removeprefix("nft_"): value for argument, value in nft.items()}
    stock_call = pipe._nft_stock_class.__call__
    call = {**dict(zip(list(inspect.signature(stock_call).parameters)[1:], args, strict=False)), **kwargs}
    choice = EarlyChoice.of_call(names.pop("candidates"), names.pop("choose_after"), steps_of(stock_call, call))
    strength, beta, rate = (names.pop(name) for name in ("strength", "beta", "rate"))
    scale = guidance_scale_of(pipe._nft_stock_class, args, kwargs)
    settings = GuidanceSettings.of_call(list(configs.values()), **names, guidance_scale=scale)
    tilts = (
        tilts_of(configs, strength, beta) if rate is None else tilts_of_rates(configs, rate, settings, strength, beta)
    )
    check_signs(settings.combine, tilts)
    if choice is None:
        return run_recorded(pipe, loaded, tilts, settings, args, kwargs, Trace(StatsRecorder(list(loaded))))
    with_head = [name for name, entry in loaded.items() if entry.adapter.head is not None]
    return run_with_choice(
        pipe,
        lambda call, trace: run_recorded(pipe, loaded, tilts, settings, (), call, trace),
        call,
        choice,
        names=list(loaded),
        tilts=tilts,
        asked=judges(tilts, with_head),
    )


def run_recorded(
    pipe: Any,
    loaded: Mapping[str, LoadedAdapter],
    tilts: Mapping[str, float],
    settings: GuidanceSettings,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    trace: Trace,
) -> Any:
    """The stock call with engines on, recorded in a trace; afterwards `pipe.nft_stats` is its record.

    Args:
        pipe, loaded, args, kwargs: as `run_guided`.
        tilts: of the adapters, by name.
        settings: of the call.
        trace: a new one.
    """
    configs = {name: entry.adapter.config for name, entry in loaded.items()}
    component = next(iter(configs.values())).component
    engines = []
    for part, denoiser in find_denoisers(pipe, pipe._nft_stock_class, component).items():
        terms = [
            Term(
                entry.adapter,
                entry.loras[part],
                tilts[name],
                name=name,
                old_name=entry.old.get(part),
                component=part,
            )
            for name, entry in loaded.items()
            if part in entry.loras
        ]
        if terms:
            doubled = batch_reader(family_of(denoiser), pipe, args, kwargs)
            engines.append(NFTEngine(denoiser, terms, settings, scheduler=pipe.scheduler, doubled=doubled, trace=trace))
    with contextlib.ExitStack() as stack:
        for engine in engines:
            stack.enter_context(engine)
        # Not before: a call that is refused because another one is running leaves that one's record alone.
        pipe._nft_engines = engines
        try:
            return pipe._nft_stock_class.__call__(pipe, *args, **kwargs)
        finally:
            pipe._nft_engines = []
            ended = {term.name: term.tilt for engine in engines for term in engine.terms}
            pipe.nft_stats = _recorded(trace, configs, ended, settings)


def guidance_scale_of(stock_class: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float | None:
    """The scale of guidance that a stock call is made with; None if the pipeline has none.

    True classifier-free guidance comes first where it is on. A distilled model has its guidance as an input beside it.

    Args:
        stock_class: diffusers' class of the pipeline.
        args, kwargs: of its call.
    """
    call = inspect.signature(stock_class.__call__)
    named = dict(zip(list(call.parameters)[1:], args, strict=False)) | dict(kwargs)
    scales = ("true_cfg_scale", "guidance_scale")
    values = [named.get(name, call.parameters[name].default) for name in scales if name in call.parameters]
    numbers = [float(value) for value in values if is_number(value)]
    return next((value for value in numbers if value > 1), numbers[0] if numbers else None)


def _recorded(
    trace: Trace, configs: Mapping[str, AdapterConfig], tilts: Mapping[str, float], settings: GuidanceSettings
) -> NFTStats | None:
    """The record of a call, or None with a warning: whatever is wrong with it, the pictures are there."""
    try:
        return _with_forecasts(trace.recorder.stats(), configs, tilts, settings)
    except Exception as error:
        warnings.warn(f"the record of this call could not be made, so nft_stats is None: {error}", stacklevel=2)
        return None


def _with_forecasts(
    stats: NFTStats, configs: Mapping[str, AdapterConfig], tilts: Mapping[str, float], settings: GuidanceSettings
) -> NFTStats:
    if not stats.steps or not bool(stats.alphas.isfinite().any()):
        return stats
    forecasts = [
        forecast(config, settings.map_for(config), alpha, tilts[name], stats.noise_level)
        for (name, config), alpha in zip(configs.items(), stats.alphas, strict=True)
    ]
    return replace(stats, forecasts=torch.stack(forecasts))


@functools.cache
def guided_class(stock: Any, base: type) -> type:
    """`DiffusionNFT<Stock>`: the stock class with `base` in front.

    Args:
        stock: a pipeline class of diffusers.
        base: DiffusionNFTPipeline.
    """
    return type(
        f"DiffusionNFT{stock.__name__}",
        (base, stock),
        {"__doc__": f"A {stock.__name__} with a reward dial; see DiffusionNFTPipeline.", "__module__": __name__},
    )


def guided_method(stock: Any) -> Callable[..., Any]:
    """`__call__` of a guided class: the stock one's signature and documentation with the guidance arguments added.

    Args:
        stock: a pipeline class of diffusers.
    """

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        nft = {name: kwargs.pop(name, None) for name in GUIDANCE_ARGUMENTS}
        return self._guided_call(args, kwargs, nft)

    stock_call: Any = stock.__call__
    __call__.__signature__ = guided_signature(stock_call)  # type: ignore[attr-defined]
    __call__.__doc__ = _CALL_DOC.format(
        stock=stock.__name__,
        laws="\n".join(
            f'        "{name}": {law.formula}. {law.help[:1].upper()}{law.help[1:]}.' for name, law in LAWS.items()
        ),
        modes="\n".join(f'        "{name}": {mode.help}.' for name, mode in MODES.items()),
        combinations="\n".join(f'        "{name}": {combination.help}.' for name, combination in COMBINATIONS.items()),
        doc=inspect.getdoc(stock_call) or "",
    )
    return __call__


def guided_signature(stock_call: Callable[..., Any]) -> inspect.Signature:
    """The stock call's signature with the guidance arguments behind its own."""
    signature = inspect.signature(stock_call)
    ours = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (default, annotation) in GUIDANCE_ARGUMENTS.items()
    ]
    theirs = list(signature.parameters.values())
    rest = [p for p in theirs if p.kind is inspect.Parameter.VAR_KEYWORD]
    theirs = [p for p in theirs if p.kind is not inspect.Parameter.VAR_KEYWORD]
    return signature.replace(parameters=[*theirs, *ours, *rest])


def refuse_without_adapter(nft: Mapping[str, Any]) -> None:
    """Raise GuidanceError if a guidance argument was given although no adapter is loaded."""
    given = [name for name, value in nft.items() if value is not None]
    if given:
        raise GuidanceError(
            f"{', '.join(given)} was given, but no adapter is loaded. Call load_nft_adapter(...) first, or leave it "
            "out to sample from the base model."
        )
