"""What is said of a dial, in the same words in `info`, in a run's report and on the card.

Standard library and numpy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .measured import Dial, Reach, TiltMap
from .promise import Promise, promise

if TYPE_CHECKING:
    from ..adapters.config import AdapterConfig

STRENGTHS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
APART = 0.1  # a strength nearer than this to an end of the map is not shown beside it
UNCALIBRATED = "not calibrated: run diffusion-nft calibrate"
_JUDGES = {
    "reward": "the reward {!r}",
    "alpha": "its own alpha ({}), since no reward could be run: a rougher judge than a reward or a person",
    "person": "{}",
}


def promises(config: AdapterConfig) -> list[tuple[float, Promise]]:
    """Strengths with what each does in the adapter's own mode, rising; the ends of its reach are the first and the
    last. Empty for an adapter that was not calibrated."""
    if config.dial is None:
        return []
    own = config.dial.own_reach
    low, high = own.lowest / config.tilt, own.highest / config.tilt
    inner = [s for s in STRENGTHS if low + APART < s < high - APART]
    return [(strength, promise(config, strength)) for strength in [low, *inner, high]]


def share(value: Promise) -> str:
    """The share that is promised, with its error."""
    return f"{value.rate:.0%} ± {value.error:.1%}"


def reach(config: AdapterConfig) -> str:
    """How far the adapter goes, or that it learned nothing; "" for one that was not calibrated."""
    dial = config.dial
    if dial is None:
        return ""
    own = dial.own_reach
    if not dial.own.rises:
        return dial.note or "not learned: no strength surely raises the share of liked pictures"
    down = (
        f", and {own.rates[0]:.0%} at {own.lowest / config.tilt:.2g}"
        if own.lowest < 0
        else "; negative strengths do nothing"
    )
    one, *two = own.maps
    further = f" (beyond {one.highest / config.tilt:.2g} in two passes)" if two else ""
    end = f"{own.rates[-1]:.0%} at strength {own.highest / config.tilt:.2g}{further}"
    return f"reaches {end}{down}; more is not to be had from this adapter"


def judged(dial: Dial) -> str:
    """Who said which pictures are liked, and how many there were."""
    drawn = dial.pictures + sum(entry.pictures for entry in dial.maps)
    return f"{_JUDGES[dial.judged_by].format(dial.judge)}, from {drawn} pictures of {dial.prompts} prompts"


def scales(dial: Dial) -> str:
    """At which guidance scales which modes were measured."""
    by_scale: dict[float, list[str]] = {}
    for entry in dial.maps:
        by_scale.setdefault(entry.guidance_scale, []).append(entry.mode)
    return ", ".join(f"{scale:g} ({', '.join(modes)})" for scale, modes in sorted(by_scale.items()))


def reach_words(reach: Reach, tilt_of_one: float) -> str:
    """A way of drawing, and where it goes on in another.

    Args:
        reach: the way.
        tilt_of_one: the tilt of strength 1.
    """
    first, *then = reach.maps
    further = "".join(f"; beyond strength {first.highest / tilt_of_one:.2g} {way_words(entry)}" for entry in then)
    return f"{way_words(first)}{further}"


def way_words(tilt_map: TiltMap) -> str:
    """A way of drawing: how many passes, and what alpha has to say in it."""
    passes = "one pass" if tilt_map.mode == "single" else "two passes"
    if tilt_map.slope == 0:
        return f"{passes}, at one weight for all" + (", as LoRA weight is" if tilt_map.mode == "single" else "")
    return f"{passes}, with alpha trusted by {tilt_map.slope:.2f}"
