"""The hacking watch: did the reward rise because pictures got better, or by a trick?

A trick shows itself when the reward that was trained on rises while something else falls: a reward that was not trained
on, or the variety and detail of the pictures. The numbers below define what counts as a fall, and the verdict names the
falls that were found. The strength to recommend comes from the same sweep. No model and no picture is needed here: a
sweep goes in, words come out.
"""

from __future__ import annotations

from dataclasses import dataclass

from nft_pipeline.hub_cards.report import Hacking

from .sweep import Estimate, Sweep, SweepPoint

CERTAIN = 2.5  # a change of so many standard errors counts as sure; by chance that happens once in 160 times
FALL = {"edge density": 0.25, "colour entropy": 0.2, "diversity": 0.25}  # as fractions of the base model's value
LIGHT = 0.3  # brightness, in either direction


@dataclass(frozen=True)
class Choice:
    """The strength that the adapter is stored with.

    Args:
        strength: above 0.
        span: the range of strengths that are trusted; None if it is one point.
        reason: in words.
        recommended: whether a sweep speaks for it; else nothing was found that does.
    """

    strength: float
    span: tuple[float, float] | None
    reason: str
    recommended: bool = True


def hacking_verdict(sweep: Sweep) -> Hacking | None:
    """The verdict on a sweep; None where nothing says whether the reward rises.

    The verdict is "seen" if the watched reward and a statistic fall at the same strength, and "suspected" if only one
    of the two falls.
    """
    if sweep.goal is None:
        return None
    rising = [point for point in sweep.points if rises(sweep, point)]
    if not rising:
        return Hacking(
            "none seen", f"{sweep.goal} does not surely rise at any strength up to {sweep.points[-1].strength:g}."
        )
    if sweep.watched is None:
        second = "No second reward watched."
    else:
        worst = min((point.changes[sweep.watched] for point in rising), key=lambda change: change.mean)
        second = f"{sweep.watched}, not trained on, changes by {_signed(worst)} at worst."
    accused = [point for point in rising if fallen(sweep, point)]
    if not accused:
        best = max(rising, key=lambda point: point.values[sweep.goal or ""].mean)
        return Hacking(
            "none seen",
            f"{sweep.goal} rises ({_signed(best.changes[sweep.goal])} at strength {best.strength:g}), and detail, "
            f"colours, light and variety hold. {second}",
        )
    seen = [point for point in accused if _watched_falls(sweep, point) and statistics_fallen(sweep, point)]
    point = (seen or accused)[0]
    return Hacking(
        "seen" if seen else "suspected",
        f"from strength {point.strength:g} on {sweep.goal} rises ({_signed(point.changes[sweep.goal])}) while "
        f"{', '.join(fallen(sweep, point))}. {second}",
    )


def choose_strength(sweep: Sweep) -> Choice:
    """The smallest strength whose reward is within a standard error of the best, among those that are trusted.

    A strength is not trusted if the watched reward or two statistics fall there. If no strength at which the reward
    rises is trusted, it is half of the smallest of these at most: an adapter that has found a trick is not stored at 1.
    Nothing is recommended then, nor where the reward rises nowhere.
    """
    if sweep.goal is None:
        return Choice(1.0, None, "no reward scores new pictures", False)
    goal = sweep.goal
    rising = [point for point in sweep.points if rises(sweep, point)]
    if not rising:
        return Choice(1.0, None, f"{goal} does not surely rise at any strength", False)
    trusted = [point for point in rising if is_trusted(sweep, point)]
    if not trusted:
        first = rising[0].strength
        reason = f"no strength from {first:g} on raises {goal} without something falling"
        return Choice(min(0.5, first / 2), None, reason, False)
    best = max(trusted, key=lambda point: point.values[goal].mean)
    enough = best.values[goal].mean - _finite(best.changes[goal].error)
    chosen = next(point for point in trusted if point.values[goal].mean >= enough)
    strengths = [point.strength for point in trusted]
    span = (strengths[0], strengths[-1]) if len(strengths) > 1 else None
    return Choice(
        chosen.strength,
        span,
        f"{goal} is {chosen.values[goal].mean:.3g} there, {round(sweep.base.values[goal].mean, 9):.3g} at 0, and at "
        f"best {best.values[goal].mean:.3g} at {best.strength:g}",
    )


def rises(sweep: Sweep, point: SweepPoint) -> bool:
    """Whether the reward that was trained on is surely higher than the base model's."""
    change = point.changes[sweep.goal or ""]
    return change.mean > 0 and change.mean > CERTAIN * _finite(change.error)


def fallen(sweep: Sweep, point: SweepPoint) -> list[str]:
    """What has fallen at this strength, in words."""
    words = statistics_fallen(sweep, point)
    if sweep.watched is not None and _watched_falls(sweep, point):
        words.insert(0, f"{sweep.watched} falls ({_signed(point.changes[sweep.watched])})")
    return words


def statistics_fallen(sweep: Sweep, point: SweepPoint) -> list[str]:
    """Statistics of the pictures that have fallen, in words."""
    words = []
    for name, most in FALL.items():
        share = _share(sweep, point, name)
        if share < -most and _surely(point.changes[name]):
            words.append(f"{name} falls by {-share:.0%}")
    light = _share(sweep, point, "brightness")
    if abs(light) > LIGHT and _surely(point.changes["brightness"]):
        words.append(f"brightness {'rises' if light > 0 else 'falls'} by {abs(light):.0%}")
    apart, usual = point.values["distance to base"].mean, sweep.base.values["diversity"].mean
    if apart > usual > 0:
        words.append(
            "pictures are further from the base model's with the same noise than two of its own are from each other"
        )
    return words


def is_trusted(sweep: Sweep, point: SweepPoint) -> bool:
    """Whether neither the watched reward nor two statistics have fallen at this strength."""
    return not _watched_falls(sweep, point) and len(statistics_fallen(sweep, point)) < 2


def _watched_falls(sweep: Sweep, point: SweepPoint) -> bool:
    change = point.changes[sweep.watched] if sweep.watched is not None else None
    return change is not None and change.mean < 0 and _surely(change)


def _share(sweep: Sweep, point: SweepPoint, name: str) -> float:
    """The change as a fraction of the base model's value."""
    before = sweep.base.values[name].mean
    return point.changes[name].mean / before if before > 0 else 0.0


def _surely(change: Estimate) -> bool:
    return abs(change.mean) > CERTAIN * _finite(change.error)


def _finite(error: float) -> float:
    return error if error == error else float("inf")


def _signed(change: Estimate) -> str:
    return f"{change.mean:+.3g} ± {change.error:.2g}"
