"""What a run's page says of the dial: what each strength does, who judged, and whether the head can be believed."""

from __future__ import annotations

from dataclasses import dataclass

from nft_pipeline.adapter import AdapterConfig
from nft_pipeline.dial.words import judged, promises, reach, scales, share

from ..dial.calibrate import Calibrated

OFF = 0.05  # how far mean alpha may lie from the base rate without a warning


@dataclass(frozen=True)
class DialWords:
    """The words.

    Args:
        learned: whether the share of liked pictures surely rises with the strength.
        rows: strengths, with the share of liked pictures that each promises and its error.
        base: the share of liked pictures without guidance, with its error.
        reach: how far the adapter goes, as a sentence without a subject.
        judged: who said which pictures are liked.
        scales: the guidance scales it was measured at.
        reason: why it is drawn as it is, or why nothing was learned.
        alpha: the test of the head that needs no labels, in a sentence or two; "" without a head.
        alpha_off: whether the head failed it.
    """

    learned: bool
    rows: tuple[tuple[float, str], ...]
    base: str
    reach: str
    judged: str
    scales: str
    reason: str
    alpha: str
    alpha_off: bool


def dial_words(config: AdapterConfig, calibrated: Calibrated) -> DialWords:
    """The words for what a calibration found.

    Args:
        config: the adapter's, with the calibration's dial.
        calibrated: the calibration.
    """
    dial = calibrated.dial
    alpha, is_off = alpha_words(calibrated)
    return DialWords(
        calibrated.learned,
        tuple((strength, share(value)) for strength, value in promises(config)),
        f"{dial.rate:.0%} ± {dial.rate_error:.1%}",
        reach(config),
        judged(dial),
        scales(dial),
        calibrated.reason,
        alpha,
        is_off,
    )


def alpha_words(calibrated: Calibrated) -> tuple[str, bool]:
    """Whether the mean of alpha stays at the base rate from step to step, as it must without guidance (M12).

    Returns:
        Words, "" without a head, and whether it is off by more than `OFF`.
    """
    if not calibrated.mean_alphas:
        return "", False
    rate = calibrated.dial.rate
    worst_level, worst = max(calibrated.mean_alphas, key=lambda at: abs(at[1] - rate))
    means = [mean for _, mean in calibrated.mean_alphas]
    words = (
        f"Without guidance the mean of alpha must stay at the base rate, {rate:.2f}, from step to step. It lies "
        f"between {min(means):.2f} and {max(means):.2f}"
    )
    if abs(worst - rate) <= OFF:
        return f"{words}: the head keeps to it.", False
    return (
        f"{words}, and is off by {abs(worst - rate):.2f} at noise level {worst_level:.2f}: the head misjudges what it "
        "sees there. What a strength does was measured on pictures and does not rest on it; forecasts and the base "
        "rates of single prompts do, and are the less sure.",
        True,
    )
