"""DiffusionNFTPipeline: a diffusers pipeline with a reward dial.

    pipe = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter="shapes-warm")
    image = pipe("a circle left of a cross", nft_strength=1.0).images[0]
    print(pipe.nft_stats)
    stock = pipe.unwrap()

A guided pipeline is a copy of the stock pipeline object that shares all its components and whose class is a subclass of
the stock class, made on the fly. Its call takes a few more arguments (`guided_call.py`) and, while it runs, puts an
engine on the denoiser. The stock pipeline object is never changed; the shared denoiser carries the adapters' LoRAs,
inactive, until `unwrap`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from .call.call_defaults import (
    HasCallDefaults,
    filled,
    plain_class,
    set_call_defaults,
    write_call_defaults,
)
from .call.custom_pipeline import ADAPTER_FOLDER, DEFAULT, PIPELINE_FILE, load_beside, render_custom_pipeline
from .call.guided_call import guided_class, guided_method, refuse_without_adapter, run_guided
from .call.loaded_pipeline import LoadedPipeline
from .call.promised import promised
from .engine.injection import adapter_names, without_wrappers
from .engine.loading import LoadedAdapter, find_denoisers, load_adapter, swap_adapter, unload_adapter
from .engine.stats import NFTStats
from .errors import GuidanceError
from .files.atomic import atomic_write_bytes

if TYPE_CHECKING:
    from typing_extensions import Self

    from .adapter import Adapter, AdapterConfig
    from .call.running import RunningCall
    from .call.typed import Strength
    from .dial.promise import Promise

_OWN = ("_nft_stock", "_nft_loaded", "_nft_running", "_nft_stats", "call_defaults")  # attributes stock pipelines lack


class DiffusionNFTPipeline(LoadedPipeline):
    """Makes guided pipelines, and is the base class of all of them. Never instantiated itself.

    A subclass of this class and of a pipeline class of diffusers, in this order and without a constructor of its own,
    is a guided pipeline class: `from_pipe` makes them on the fly, a pipeline.py for the Hub writes one out
    (`nft_pipeline.call.custom_pipeline`).
    """

    _nft_stock_class: ClassVar[Any]  # the pipeline class of diffusers behind a subclass
    nft_adapter: ClassVar[str | None] = None  # what a pipeline.py loads; None for the adapters beside the model
    # Set on the instance.
    _nft_stock: Any  # the stock pipeline it was made of; None if it was made by its own constructor
    _nft_loaded: dict[str, LoadedAdapter]
    _nft_running: RunningCall | None
    _nft_stats: NFTStats | None
    call_defaults: dict[str, Any]
    scheduler: Any  # the stock pipeline's

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        stock = next(each for each in cls.__mro__ if not issubclass(each, LoadedPipeline))
        if stock is not object:
            cls._nft_stock_class = stock
            cls.__call__ = guided_method(stock)  # type: ignore[method-assign]
            if "__init__" not in cls.__dict__:
                cls.__init__ = _constructor(stock)  # type: ignore[method-assign]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(
            "DiffusionNFTPipeline is not made directly: use DiffusionNFTPipeline.from_pretrained(base, "
            "nft_adapter=...) or DiffusionNFTPipeline.from_pipe(pipe, nft_adapter=...)."
        )

    def register_to_config(self, **kwargs: Any) -> None:
        """The stock method. diffusers says by it where it found the model, last of all when it loads one."""
        super().register_to_config(**kwargs)
        if "_name_or_path" in kwargs and getattr(self, "_nft_stock", self) is None and not self._nft_loaded:
            load_beside(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Its class is made on the fly and has no name to be found by, so a copy is made anew from the stock class."""
        if type(self) is not guided_class(self._nft_stock_class, DiffusionNFTPipeline):
            return super().__reduce_ex__(protocol)
        return _empty, (self._nft_stock_class,), {**self.__dict__, "_nft_running": None}

    def _nft_begin(self, stock: Any, call_defaults: dict[str, Any]) -> None:
        """The state of a guided pipeline without an adapter."""
        self._nft_stock, self.call_defaults = stock, call_defaults
        self._nft_loaded, self._nft_running, self._nft_stats = {}, None, None

    @classmethod
    def _guided(cls, pipe: Any, nft_adapter: Any, **where: Any) -> Self:
        """As `from_pipe`; `where` is for `load_nft_adapter`."""
        stock: Any = pipe._stock() if isinstance(pipe, DiffusionNFTPipeline) else pipe
        stock_class = plain_class(type(stock))
        guided = copy.copy(stock)
        guided.__class__ = guided_class(stock_class, DiffusionNFTPipeline)
        guided._nft_begin(stock, dict(stock.call_defaults) if isinstance(stock, HasCallDefaults) else {})
        named = nft_adapter if isinstance(nft_adapter, Mapping) else {DEFAULT: nft_adapter}
        try:
            for name, source in named.items():
                if source is not None:
                    guided.load_nft_adapter(source, name=name, **where)
        except BaseException:
            guided.unload_nft_adapter()
            raise
        return guided

    @property
    def nft_stats(self) -> NFTStats | None:
        """What happened in the last call, also after an interrupt or an error; in a callback, in the running call so
        far. None if it was not guided."""
        return self._nft_stats if self._nft_running is None else self._nft_running.stats()

    @nft_stats.setter
    def nft_stats(self, stats: NFTStats | None) -> None:
        self._nft_stats = stats

    @property
    def nft_adapters(self) -> dict[str, Adapter]:
        """The loaded adapters by name."""
        return {name: loaded.adapter for name, loaded in self._nft_loaded.items()}

    @property
    def nft_config(self) -> AdapterConfig | None:
        """The loaded adapter's config, None without one.

        Raises:
            GuidanceError: several are loaded; `nft_adapters` has them all.
        """
        configs = [adapter.config for adapter in self.nft_adapters.values()]
        if len(configs) > 1:
            raise GuidanceError(
                f"{len(configs)} adapters are loaded ({', '.join(self._nft_loaded)}), so there is no one config. Use "
                "nft_adapters[name].config."
            )
        return configs[0] if configs else None

    def load_nft_adapter(
        self,
        source: str | PathLike[str] | Adapter,
        *,
        name: str = DEFAULT,
        revision: str | None = None,
        subfolder: str | None = None,
        kind: str | None = None,
        beta: float | None = None,
        use_old: bool = False,
        without_text_encoder: bool = False,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
        hotswap: bool = False,
    ) -> None:
        """Load an adapter. It replaces a loaded one of the same name. It is checked first; on an error nothing
        changes.

        Args:
            source: a shipped adapter's name, a folder, a Hub id, or an `Adapter`; for somebody else's checkpoint
                (docs/other_checkpoints.md) also a .safetensors file.
            name: its name in nft_strength={name: ...} if several are loaded.
            revision, subfolder: of a Hub repository.
            kind, beta, use_old, without_text_encoder: for somebody else's checkpoint, see `read_adapter`:
                kind="policy", beta=1.0.
            token, cache_dir, local_files_only: of the Hub, see `read_adapter`.
            hotswap: put its numbers into the loaded adapter of that name, which is quick and leaves a compiled denoiser
                compiled. The two must have the same layers, and the new one the same rank or a smaller one.

        Raises:
            AdapterError: the adapter is faulty, or made for another base model.
            GuidanceError: its head reads a module the model does not have, or it does not go with those loaded.
            FamilyError: a denoiser this version cannot guide.
        """
        from .adapter import Adapter, read_adapter
        from .adapters.read import refuse_for_own

        if isinstance(source, Adapter):
            adapter = source
            refuse_for_own(f'the adapter "{adapter.config.name}"', kind, beta)
        else:
            adapter = read_adapter(
                source,
                revision=revision,
                subfolder=subfolder,
                kind=kind,
                beta=beta,
                pipe=self,
                use_old=use_old,
                without_text_encoder=without_text_encoder,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        self._check_company(name, adapter)
        if hotswap:
            self._nft_loaded[name] = self._swapped(name, adapter)
            return
        loaded = load_adapter(self, self._nft_stock_class, adapter)
        replaced = self._nft_loaded.get(name)
        if replaced is not None and not set(replaced.injected()).isdisjoint(loaded.injected()):
            replaced = None  # a name of its was free: someone has unloaded its LoRAs already
        try:
            if replaced is not None:
                unload_adapter(self, self._nft_stock_class, replaced)
        except BaseException:
            unload_adapter(self, self._nft_stock_class, loaded)
            raise
        self._nft_loaded[name] = loaded

    def unload_nft_adapter(self, name: str | None = None) -> None:
        """Take one adapter, or all, out of the denoiser. Without an adapter calls behave as the stock pipeline's.

        Args:
            name: which one; None for all.

        Raises:
            AdapterError: the adapter's LoRA is fused into the weights.
            GuidanceError: there is none of that name.
        """
        if name is not None and name not in self._nft_loaded:
            raise GuidanceError(
                f"no adapter {name!r} is loaded, loaded are {', '.join(map(repr, self._nft_loaded)) or 'none'}."
            )
        for each in list(self._nft_loaded) if name is None else [name]:
            unload_adapter(self, self._nft_stock_class, self._nft_loaded[each])
            del self._nft_loaded[each]

    def set_nft_strength(self, strength: Strength) -> None:
        """Change the strength of the running call, from its `callback_on_step_end`, for the steps that follow.

        The mode stays that of the call's own strength. A call that goes on in two passes where one pass ends does so
        only if it begins there, or with nft_mode="two_pass".

        Args:
            strength: as the call's nft_strength.

        Raises:
            GuidanceError: no guided call is running, or a value out of range.
        """
        if self._nft_running is None:
            raise GuidanceError(
                "set_nft_strength changes a call that is running, and none is. Give nft_strength to the call, and use "
                "this in its callback_on_step_end."
            )
        self._nft_running.set_strength(strength)

    def promise(
        self,
        prompt: str | Sequence[str] | None = None,
        strength: float = 1.0,
        rate: float | Sequence[float] | None = None,
        mode: str | None = None,
        guidance_scale: float | None = None,
    ) -> Promise:
        """What a call at a strength will do to the share of liked pictures, before it is made.

        Args:
            prompt: whose own base rate counts, or several, whose promises are averaged. It is read off alpha in the
                first steps of 16 pictures, which are not finished. None promises for the prompts of the calibration.
            strength: as the call's nft_strength.
            rate: the prompt's base rate, or several, where you know them; instead of `prompt`.
            mode: as the call's nft_mode.
            guidance_scale: as the call's; None is what a call without one has.

        Returns:
            A `Promise`: print it, or take its `base`, `rate`, `error`, `measured` and `limit`.

        Raises:
            GuidanceError: no adapter or several are loaded, a value out of range, a prompt for an adapter without an
                alpha head, or nothing is known of the base rate.
        """
        return promised(self, prompt, strength, rate, mode, guidance_scale)

    def unwrap(self) -> Any:
        """The stock pipeline this one was made of, the same object, after `unload_nft_adapter`.

        One that diffusers made through custom_pipeline has none; then this is a new stock one with its components.
        Defaults that came with the model (`call_defaults`) stay in force: equal calls draw equal pictures.
        """
        self.unload_nft_adapter()
        stock = self._stock()
        if self._nft_stock is None or isinstance(stock, HasCallDefaults):
            set_call_defaults(stock, self.call_defaults)
        return stock

    def save_pretrained(
        self, save_directory: str | PathLike[str], *args: Any, custom_pipeline: bool = False, **kwargs: Any
    ) -> None:
        """Save a folder that stock diffusers loads as the base model, with the adapter in nft_adapter/ beside it.

        Several adapters go to nft_adapter/<name>/.

        Args:
            save_directory: the folder.
            custom_pipeline: whether to add a pipeline.py, by which diffusers loads model and adapter as a guided
                pipeline: DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline",
                trust_remote_code=True). For people who get the folder from the Hub.
            *args, **kwargs: of the stock save_pretrained.

        Raises:
            GuidanceError: other LoRAs are loaded, which diffusers' format of a whole model cannot hold.
            ValueError: custom_pipeline with a pipeline class that is not diffusers' own.
        """
        others = self._other_loras()
        if others:
            raise GuidanceError(
                f"LoRA {', '.join(others)} is loaded, and a saved pipeline cannot hold it. Save it by its own means, "
                "call unload_lora_weights() and load_nft_adapter(...) again, then save. (A second guided pipeline over "
                "the same model counts too: unwrap that one.)"
            )
        for name, adapter in self.nft_adapters.items():
            if adapter.old is not None:
                raise GuidanceError(
                    f"the adapter {name!r} has a LoRA for v_old, and the adapter's format has no place for one. Load "
                    "it again without use_old to save it."
                )
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_call_defaults(folder, self.call_defaults)
        stock = self._as_stock()
        if custom_pipeline:
            absent = [name for name, part in self.components.items() if part is None]
            absent = [name for name in absent if name not in self._nft_stock_class._optional_components]
            source = render_custom_pipeline(self._nft_stock_class, absent=absent)
            atomic_write_bytes(folder / PIPELINE_FILE, source.encode())
        if not self._nft_loaded:
            stock.save_pretrained(save_directory, *args, **kwargs)
            return
        from .adapter import write_adapter

        for name, adapter in self.nft_adapters.items():
            write_adapter(folder / ADAPTER_FOLDER / (name if len(self._nft_loaded) > 1 else ""), adapter)
        component = next(iter(self.nft_adapters.values())).config.component
        with contextlib.ExitStack() as stack:
            for denoiser in find_denoisers(self, self._nft_stock_class, component).values():
                stack.enter_context(without_wrappers(denoiser))
            stock.save_pretrained(save_directory, *args, **kwargs)

    def to_json_string(self) -> str:
        """The config as model_index.json has it: under the stock class's name."""
        return self._as_stock().to_json_string()

    def _as_stock(self) -> Any:
        """A stock pipeline with this one's present components."""
        stock = copy.copy(self)
        for name in _OWN:
            stock.__dict__.pop(name, None)
        stock.__class__ = self._nft_stock_class
        return stock

    def _stock(self) -> Any:
        return self._as_stock() if self._nft_stock is None else self._nft_stock

    def _check_company(self, name: str, adapter: Adapter) -> None:
        """Raise GuidanceError if the adapter cannot be used beside the others that are loaded."""
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise GuidanceError(f"the adapter's name is {name!r}, expected letters, digits, '_' and '-'.")
        others = [loaded.adapter for other, loaded in self._nft_loaded.items() if other != name]
        for other in others:
            if other.old is not None or adapter.old is not None:
                raise GuidanceError(
                    "an adapter with a LoRA of v_old cannot be used with another one: each would have its own base. "
                    "Unload the other one."
                )

    def _swapped(self, name: str, adapter: Adapter) -> LoadedAdapter:
        """The loaded adapter of that name with another's numbers in it."""
        if name not in self._nft_loaded or self._nft_running is not None:
            reason = "a call is running" if self._nft_running is not None else "none of that name is loaded"
            raise GuidanceError(
                f"hotswap puts an adapter in the place of the loaded adapter {name!r}, and {reason}. Load the first "
                "one without hotswap, and swap between calls."
            )
        return swap_adapter(self, self._nft_stock_class, self._nft_loaded[name], adapter)

    def _other_loras(self) -> list[str]:
        modules = [module for module in self.__dict__.values() if isinstance(module, torch.nn.Module)]
        ours = {name for loaded in self._nft_loaded.values() for _, name in loaded.injected()}
        return sorted({name for module in modules for name in adapter_names(module)} - ours)

    def _guided_call(self, args: tuple[Any, ...], kwargs: dict[str, Any], nft: dict[str, Any]) -> Any:
        stock_call = self._nft_stock_class.__call__
        kwargs = filled(self._nft_stock_class, self.call_defaults, args, kwargs)
        if not self._nft_loaded:
            refuse_without_adapter(nft)
            self.nft_stats = None
            return stock_call(self, *args, **kwargs)
        return run_guided(self, self._nft_loaded, args, kwargs, nft)


def _constructor(stock: Any) -> Any:
    """The constructor of a guided class. diffusers reads the components' names off its signature, the stock one's."""

    @functools.wraps(stock.__init__)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, *args, **kwargs)
        self._nft_begin(None, {})

    return __init__


def _empty(stock: Any) -> Any:
    """A guided pipeline over a pipeline class of diffusers, before anything is on it: what pickle and copy fill."""
    kind: Any = guided_class(stock, DiffusionNFTPipeline)
    return kind.__new__(kind)
