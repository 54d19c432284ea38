"""The call of a guided pipeline: the arguments it adds to the stock one, and what happens while it runs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..checks import is_number
from ..dial.tilts import tilts_of, tilts_of_rates
from ..engine.loading import LoadedAdapter
from ..engine.stats import StatsRecorder
from ..engine.trace import Trace
from ..errors import GuidanceError
from ..families.batch import prompts_and_images
from ..laws import COMBINATIONS, LAWS
from ..modes import MODES
from ..search.choice import EarlyChoice, judges
from ..settings import GuidanceSettings
from .early_choice import refuse_rows_of_several, run_with_choice, steps_of
from .running import RunningCall

# The defaults in the signature. Inside, None means "not given", so that no error is about an argument nobody gave.
GUIDANCE_ARGUMENTS: dict[str, tuple[Any, str]] = {
    "nft_strength": (1.0, "float | Sequence[float] | dict[str, float | Sequence[float]]"),
    "nft_beta": (None, "float | Sequence[float] | dict[str, float | Sequence[float]] | None"),
    "nft_rate": (None, "float | Sequence[float] | dict[str, float | Sequence[float]] | None"),
    "nft_law": (None, "str | dict[str, str] | None"),
    "nft_interval": ((0.0, 1.0), "tuple[float, float] | dict[str, tuple[float, float]]"),
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
    nft_strength (`float`, a list of them, or a `dict` of either, defaults to 1.0):
        How far to go: 0 is the base model bit for bit, 1 is the adapter as its author shipped it, 2 is twice its tilt,
        and a negative number seeks what the reward dislikes. It is not a LoRA weight: it scales the difference of two
        outputs, not weights. Too much looks burnt and uniform; see `nft_stats.push`. A list, an array or a tensor has a
        number for each picture of the call, or for each prompt: [0, 0.5, 1, 2] draws a strip of strengths in one batch.
        With several adapters one number is for all of them; a dict gives numbers or lists by name, and adapters that it
        leaves out are at 0.
    nft_beta (`float`, a list of them, or a `dict` of either, *optional*):
        DiffusionNFT's beta, given instead of a strength: tilt = 2 / beta. Above 0; smaller is stronger.
    nft_rate (`float`, a list of them, or a `dict` of either, *optional*):
        The share of liked pictures that is wanted, between 0 and 1, given instead of a strength. It goes through the
        adapter's calibration; what the adapter does not reach is refused, with the share that it does.
    nft_law (`str` or `dict[str, str]` by adapter, *optional*):
        How tilt and alpha become the scale s of the push. Left out, it is the adapter's own way: the map that its
        calibration measured, under which a tilt does what it says, or "odds" ("nft" for a policy) where there is none.
{laws}
    nft_interval (`tuple[float, float]` or a `dict` of them by adapter, defaults to (0.0, 1.0)):
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
        How the forwards are spent. Left out, it is what the adapter's calibration found best for the strength, which
        may go on in two passes where one pass ends; without a calibration "two_pass":
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

`nft_stats` holds what happened, also after an interrupt or an error, and in a callback what has happened so far. Below,
the stock documentation.

{doc}"""


def run_guided(
    pipe: Any,
    loaded: Mapping[str, LoadedAdapter],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    nft: Mapping[str, Any],
) -> Any:
    """The stock call with engines on the pipeline's denoisers; then and meanwhile `pipe.nft_stats` is what they did.

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
    settings, own = GuidanceSettings.of_adapters(configs, **names, guidance_scale=scale)
    if rate is None:
        tilts = tilts_of(configs, strength, beta)
    else:
        mode = None if settings.own_way else settings.mode
        maps: dict[str, Any] = {"mode": mode, "guidance_scale": settings.guidance_scale}
        tilts = tilts_of_rates(configs, rate, **maps, strength=strength, beta=beta, law=names["law"])
    settings = settings.for_tilts(configs, tilts)
    own = {name: replace(each, mode=settings.mode) for name, each in own.items()}
    batch = prompts_and_images(stock_call, call)

    def run(args: tuple[Any, ...], kwargs: Mapping[str, Any], trace: Trace) -> Any:
        return run_recorded(pipe, loaded, RunningCall(configs, tilts, settings, own, batch, trace), args, kwargs)

    if choice is None:
        return run(args, kwargs, Trace(StatsRecorder(list(loaded))))
    tilts = RunningCall(configs, tilts, settings, own, batch, Trace()).tilts
    with_head = [name for name, entry in loaded.items() if entry.adapter.head is not None]
    refuse_rows_of_several(tilts)
    asked = judges(tilts, with_head)
    return run_with_choice(
        pipe, lambda call, trace: run((), call, trace), call, choice, names=list(loaded), tilts=tilts, asked=asked
    )


def run_recorded(
    pipe: Any,
    loaded: Mapping[str, LoadedAdapter],
    running: RunningCall,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """The stock call with engines on; meanwhile and afterwards `pipe.nft_stats` is its record.

    Args:
        pipe, loaded, args, kwargs: as `run_guided`.
        running: the call, not yet begun.
    """
    running.prepare(pipe, loaded, args, kwargs)
    with running.guided():
        # Not before: a call that is refused because another one is running leaves that one's record alone.
        pipe._nft_running = running
        try:
            return pipe._nft_stock_class.__call__(pipe, *args, **kwargs)
        finally:
            pipe._nft_running = None
            pipe.nft_stats = running.record()


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
