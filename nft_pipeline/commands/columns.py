"""The columns of a grid of `diffusion-nft sample`: at which strength each is drawn, what was promised and measured."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .particles import of_the_law

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..dial.promise import Promise


@dataclass(frozen=True)
class Columns:
    """What is drawn in each column, and what was promised of it.

    Args:
        strengths: one per column.
        asked: the share of liked pictures that each was found for; () where strengths were given.
        promises: one per column; () where nothing can be promised.
    """

    strengths: tuple[float, ...]
    asked: tuple[float, ...] = ()
    promises: tuple[Promise, ...] = ()

    @classmethod
    def of(cls, pipe: Any, args: argparse.Namespace, stock: Mapping[str, Any], rows: int) -> Columns:
        """From the arguments of the command.

        Args:
            pipe: the guided pipeline.
            args: the command's.
            stock: arguments of the stock call.
            rows: how many there are; alpha is not read for more pictures than are drawn.

        Raises:
            GuidanceError: a rate that the adapter does not reach.
            ValueError: --rate beside --law or --also.
        """
        from ..call.guided_call import guidance_scale_of
        from ..call.promised import prompt_rates
        from ..dial.promise import promise, tilt_for_rate

        for other in ("law", "also"):
            if args.rate is not None and getattr(args, other):
                raise ValueError(
                    f"--rate finds the strength of one adapter through its calibration, so it does not go with "
                    f"--{other}; leave one of them out"
                )
        if args.also or args.law is not None:
            return cls(tuple(args.strengths))
        config = pipe.nft_config if args.particles is None else of_the_law(pipe.nft_config)
        scale = guidance_scale_of(pipe._nft_stock_class, (), {**pipe.call_defaults, **stock})
        drawn: dict[str, Any] = {"mode": args.mode, "guidance_scale": scale}
        strengths, asked = tuple(args.strengths), tuple(args.rate or ())
        if asked:
            strengths = tuple(tilt_for_rate(config, rate, **drawn) / config.tilt for rate in asked)
        if config.dial is None and config.base_rate is None:
            return cls(strengths, asked)
        rates = None
        if pipe.nft_adapters["default"].head is not None:
            wanted = {**stock, "guidance_scale": scale}
            rates = prompt_rates(pipe, args.prompts, noises=rows * len(strengths), progress=True, **wanted)
        return cls(strengths, asked, tuple(promise(config, strength, rate=rates, **drawn) for strength in strengths))

    def label(self, place: int, measured: tuple[float, int] | None) -> str:
        """The heading of a column.

        Args:
            place: which one.
            measured: the share that was liked and the number of pictures; None if nobody judged.
        """
        lines = [f"strength {self.strengths[place]:.3g}"]
        if self.promises:
            lines.append(f"promised {self.promises[place].rate:.0%}")
        if measured is not None:
            lines.append(f"measured {measured[0]:.0%} (n {measured[1]})")
        return "\n".join(lines)

    def words(self, place: int, measured: tuple[float, int] | None) -> str:
        """The same in a line, with what the promise rests on; "" if there is nothing to say."""
        parts = []
        if self.promises:
            parts.append(str(self.promises[place]))
        if measured is not None:
            parts.append(f"measured {measured[0]:.0%} of {measured[1]} pictures")
        asked = f" (for {self.asked[place]:.0%} over the prompts of the calibration)" if self.asked else ""
        return f"strength {self.strengths[place]:.3g}{asked}: {'; '.join(parts)}" if parts else ""


def liked(pictures: Sequence[Image], prompts: Sequence[str], reward: str) -> tuple[float, int]:
    """The mean of a reward's r over pictures, and how many of them it could score.

    Raises:
        RewardError: there is no such reward, or it failed.
    """
    import numpy as np

    from nft_pipeline.training.rewards.find import find_reward

    r = find_reward(reward)(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]), prompts)
    r = r[np.isfinite(r)]
    return (float(r.mean()) if len(r) else float("nan")), len(r)
