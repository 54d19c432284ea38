"""What the page draws with: a guided pipeline that stays loaded, and pictures of one noise at many strengths."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..call.forwards import before_each_forward
from ..call.guided_call import guidance_scale_of
from ..call.promised import prompt_rates
from ..dial.scale import BARELY
from ..pipeline import DiffusionNFTPipeline
from ..sampling import pick_device, pick_dtype, pictures_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..adapter import Adapter, AdapterConfig
    from ..dial.promise import Promise
    from ..engine.stats import NFTStats

KEPT = 32  # pictures that are not drawn anew when somebody comes back to them
EVERY = 0.2  # seconds between two looks at a picture that is being drawn
WITHOUT_DIAL = (-2.0, 4.0)  # strengths that are offered of an adapter that was not calibrated


@dataclass(frozen=True)
class Wish:
    """What a person wants to see.

    Args:
        adapter: a name in `Studio.adapters`.
        prompt: not empty.
        seed: of the noise.
        strength: 0 is the base model.
    """

    adapter: str
    prompt: str
    seed: int
    strength: float


@dataclass(frozen=True)
class Drawn:
    """A picture as the model drew it, the record of its call, and how long that took in seconds."""

    picture: Image
    stats: NFTStats | None
    seconds: float


@dataclass(frozen=True)
class View:
    """How far a wish has come. What is None is not there yet.

    Args:
        wish: what is being drawn.
        before: the picture at strength 0.
        after: the picture at the strength that was wished for.
        running: the record so far of `after`, while it is being drawn.
        promise: what the strength does to the pictures of this prompt; None also where nothing is known of it.
        done: whether nothing more will come.
    """

    wish: Wish
    before: Drawn | None = None
    after: Drawn | None = None
    running: NFTStats | None = None
    promise: Promise | None = None
    done: bool = False


class Unwanted(Exception):
    """Somebody wants to see something else by now."""


class Studio:
    """A pipeline with one of several adapters at a time, which draws one picture at a time.

    Args:
        pipe: a guided pipeline.
        adapters: by the names that a person chooses among; at least one.
        mode: how the forwards are spent, as nft_mode.
        stock: arguments of the stock call, such as num_inference_steps.
    """

    def __init__(
        self,
        pipe: Any,
        adapters: Mapping[str, Adapter],
        *,
        mode: str | None = None,
        stock: Mapping[str, Any] | None = None,
    ) -> None:
        self.pipe, self.adapters = pipe, dict(adapters)
        self.mode, self.stock = mode, dict(stock or {})
        self.guidance_scale = guidance_scale_of(pipe._nft_stock_class, (), {**pipe.call_defaults, **self.stock})
        self._drawn: OrderedDict[Wish, Drawn] = OrderedDict()
        self._rates: dict[tuple[str, str], float] = {}
        self._one_at_a_time = threading.Lock()
        pipe.set_progress_bar_config(disable=True)

    @classmethod
    def open(
        cls,
        model: str,
        adapters: Sequence[str],
        *,
        device: str = "auto",
        dtype: str = "auto",
        foreign: Mapping[str, Any] | None = None,
        mode: str | None = None,
        stock: Mapping[str, Any] | None = None,
    ) -> Studio:
        """Load a base model and adapters for it.

        Args:
            model: as the base of `DiffusionNFTPipeline.from_pretrained`.
            adapters: shipped names, folders or Hub ids; at least one.
            device, dtype: as the command line has them, "auto" for the best there is.
            foreign: further arguments of `load_nft_adapter`, for a LoRA of another tool.
            mode, stock: as of the class.

        Raises:
            AdapterError, GuidanceError, FamilyError, OSError: as `from_pretrained` and `load_nft_adapter`.
            ValueError: no such device.
        """
        where = pick_device(device)
        pipe = DiffusionNFTPipeline.from_pretrained(model, dtype=pick_dtype(dtype, where))
        loaded: dict[str, Adapter] = {}
        for source, name in zip(adapters, short_names(adapters), strict=True):
            pipe.load_nft_adapter(source, **(foreign or {}))
            loaded[name] = next(iter(pipe.nft_adapters.values()))
        return cls(pipe.to(where), loaded, mode=mode, stock=stock)

    def config(self, adapter: str) -> AdapterConfig:
        """The config of an adapter by its name."""
        return self.adapters[adapter].config

    def range(self, adapter: str) -> tuple[float, float]:
        """The strengths to offer: as far as the calibration reaches, in tenths, and 0 and 1 in any case."""
        config = self.config(adapter)
        reach = None if config.dial is None else config.dial.reach(self.mode, self.guidance_scale)
        if reach is None:
            return WITHOUT_DIAL
        low, high = sorted((reach.lowest / config.tilt, reach.highest / config.tilt))
        return min(0.0, math.floor(low * 10) / 10), max(1.0, math.ceil(high * 10) / 10)

    def follow(self, wish: Wish, wanted: Callable[[], bool] = lambda: True) -> Iterator[View]:
        """Draw what is wished for, in a thread of its own, and see how far it is.

        Args:
            wish: the strength 0 picture comes first, then that of the strength, last the promise.
            wanted: asked before every forward of the model; once it says no, the drawing stops and the views end.

        Yields:
            Views. If it is wanted to the end, the last is done.

        Raises:
            Exception: whatever the drawing raises.
        """
        views: queue.SimpleQueue[View | Exception | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                self._work(wish, wanted, views.put)
            except Unwanted:
                pass
            except Exception as error:
                views.put(error)
            finally:
                views.put(None)

        threading.Thread(target=work, daemon=True).start()
        while (view := views.get()) is not None:
            if isinstance(view, Exception):
                raise view
            yield view

    def draw(self, wish: Wish, look: Callable[[], None] = lambda: None) -> Drawn:
        """A picture, drawn or kept from before.

        Args:
            wish: what to draw. At strength 0 it takes one forward per step, at which an alpha head is read too.
            look: called before every forward; what it raises ends the drawing.

        Raises:
            GuidanceError: the model does not draw pictures.
            Exception: what the pipeline or `look` raises.
        """
        with self._one_at_a_time:
            look()
            if wish not in self._drawn:
                self._use(wish.adapter)
                self._drawn[wish] = self._draw(wish, look)
            self._drawn.move_to_end(wish)
            while len(self._drawn) > KEPT:
                self._drawn.popitem(last=False)
            return self._drawn[wish]

    def promise(self, wish: Wish, look: Callable[[], None] = lambda: None) -> Promise | None:
        """What the strength does to pictures of this prompt; None if nothing is known.

        With an alpha head it is by the prompt's own base rate, which is read off the model once.

        Args:
            wish: its seed does not matter.
            look: as in `draw`.
        """
        adapter = self.adapters[wish.adapter]
        config = adapter.config
        if adapter.head is None and config.dial is None and config.base_rate is None:
            return None
        with self._one_at_a_time:
            look()
            self._use(wish.adapter)
            key = (wish.adapter, wish.prompt)
            if adapter.head is not None and key not in self._rates:
                with torch.inference_mode(), before_each_forward(self.pipe, look):
                    drawn_with = {**self.stock, "guidance_scale": self.guidance_scale}
                    self._rates[key] = prompt_rates(self.pipe, [wish.prompt], **drawn_with)[0]
            rate = self._rates.get(key)
            how: dict[str, Any] = {"mode": self.mode, "guidance_scale": self.guidance_scale}
            promise: Promise = self.pipe.promise(strength=wish.strength, rate=rate, **how)
            return promise

    def _work(self, wish: Wish, wanted: Callable[[], bool], show: Callable[[View], None]) -> None:
        last = time.monotonic()
        view = View(wish)

        def look() -> None:
            if not wanted():
                raise Unwanted

        def look_at_after() -> None:
            nonlocal last
            look()
            if time.monotonic() - last >= EVERY and self.pipe._nft_running is not None:
                last = time.monotonic()
                show(replace(view, running=self.pipe.nft_stats))

        view = replace(view, before=self.draw(replace(wish, strength=0.0), look))
        if wish.strength:
            show(view)
        view = replace(view, after=self.draw(wish, look_at_after))
        show(view)
        show(replace(view, promise=self.promise(wish, look), done=True))

    def _use(self, name: str) -> None:
        """Have this adapter in the pipeline."""
        adapter = self.adapters[name]
        if adapter not in self.pipe.nft_adapters.values():
            self.pipe.load_nft_adapter(adapter)
            self.pipe.to(self.pipe.device)

    def _draw(self, wish: Wish, look: Callable[[], None]) -> Drawn:
        adapter = self.adapters[wish.adapter]
        strength, mode = wish.strength, self.mode
        if not strength and adapter.head is not None:
            strength, mode = BARELY / adapter.config.tilt, "single"
        start = time.perf_counter()
        with torch.inference_mode(), before_each_forward(self.pipe, look):
            result = self.pipe(
                prompt=wish.prompt,
                generator=torch.Generator("cpu").manual_seed(wish.seed),
                nft_strength=strength,
                nft_mode=mode,
                **self.stock,
            )
        return Drawn(pictures_of(result, self.pipe)[0], self.pipe.nft_stats, time.perf_counter() - start)


def short_names(sources: Sequence[str]) -> list[str]:
    """The last part of each path or Hub id; all of it where two would be called the same."""
    short = [source.replace("\\", "/").rstrip("/").rpartition("/")[2] for source in sources]
    return [name if short.count(name) == 1 else source for name, source in zip(short, sources, strict=True)]
