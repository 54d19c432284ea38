"""DiffusionNFTPipeline: a diffusers pipeline with a reward dial.

    pipe = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter="shapes-warm")
    image = pipe("a circle left of a cross", nft_strength=1.0).images[0]
    print(pipe.nft_stats)
    stock = pipe.unwrap()

A guided pipeline is a copy of the stock pipeline object that shares all its components and whose class is a subclass of
the stock class, made on the fly. Its call takes four more arguments and, while it runs, puts an engine on the denoiser.
The stock pipeline object is never changed; the shared denoiser carries the adapter's LoRA, inactive, until `unwrap`.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from .engine import GuidanceError, GuidanceSettings, NFTEngine, find_tap
from .families import FAMILIES, Family, FamilyError, family_of
from .injection import adapter_names, inject_lora, remove_lora, without_wrappers
from .stats import NFTStats

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from .adapter import Adapter, AdapterConfig

CALL_DEFAULTS = "call_defaults.json"
ADAPTER_FOLDER = "nft_adapter"
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")

# Shown in the signature; None stands for "not given" inside, so that an argument nobody gave is never complained about.
_ARGUMENTS: dict[str, tuple[Any, str]] = {
    "nft_strength": (1.0, "float"),
    "nft_beta": (None, "float | None"),
    "nft_law": ("nft", "str"),
    "nft_interval": ((0.0, 1.0), "tuple[float, float]"),
}
_CALL_DOC = """Generate, guided by the reward of the loaded adapter. Takes what {stock} takes, and:

Args:
    nft_strength (`float`, defaults to 1.0):
        How far to go: 0 is the base model bit for bit, 1 the adapter as its author shipped it, 2 twice the tilt;
        negative seeks what the reward dislikes. Not a LoRA weight: it scales the difference of two outputs, not
        weights. Too much looks burnt and uniform; see `nft_stats.push`.
    nft_beta (`float`, *optional*):
        DiffusionNFT's beta instead of a strength: tilt = 2 / beta, above 0; smaller is stronger.
    nft_law (`str`, defaults to "nft"):
        "nft": s = tilt * alpha, linear. "odds": s = rho alpha / (1 + rho alpha) with rho = exp(tilt) - 1, exact, and
        never past what the LoRA alone would do; positive adapters only.
    nft_interval (`tuple[float, float]`, defaults to (0.0, 1.0)):
        Noise levels that are guided, 1 being pure noise: compositions are decided near 1, fine detail near 0. Outside
        it a step costs one forward instead of two.

Raises:
    GuidanceError: one of these is out of range, contradicts another one, or was given without an adapter.
    AdapterError: the adapter's LoRA was unloaded or fused by someone else.

`nft_stats` holds what happened, also after an interrupt or an error. Below, the stock documentation.

{doc}"""


class DiffusionNFTPipeline:
    """Makes guided pipelines, and is the base class of all of them. Never instantiated itself."""

    # Set on the generated subclass and on the instance, see `from_pipe`.
    _nft_stock_class: ClassVar[Any]
    _nft_stock: Any
    _nft_adapter: Adapter | None
    _nft_name: str | None
    nft_stats: NFTStats | None
    call_defaults: dict[str, Any]
    scheduler: Any  # the stock pipeline's

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(
            "DiffusionNFTPipeline is not made directly: use DiffusionNFTPipeline.from_pretrained(base, "
            "nft_adapter=...) or DiffusionNFTPipeline.from_pipe(pipe, nft_adapter=...)."
        )

    @classmethod
    def from_pretrained(
        cls, base: str | PathLike[str], nft_adapter: str | PathLike[str] | Adapter | None = None, **kwargs: Any
    ) -> Any:
        """Load a base model and, if given, an adapter.

        Args:
            base: a shipped model ("shapes"), a diffusers folder, or a Hub id.
            nft_adapter: a shipped adapter ("shapes-warm"), a folder, a Hub id, or an `Adapter`.
            **kwargs: for diffusers, such as dtype=torch.bfloat16, device_map, variant.

        Returns:
            A guided pipeline: an instance of the stock pipeline class and of this one.

        Raises:
            AdapterError, GuidanceError, FamilyError: as `load_nft_adapter`.
            OSError: diffusers' own, where there is no such base.
        """
        from diffusers import DiffusionPipeline

        from .models import shipped_model

        source = (shipped_model(base) if isinstance(base, str) else None) or base
        where = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
        index = DiffusionPipeline.load_config(source, **where)
        # diffusers refuses a folder saved without, say, SD3's T5 unless the caller says so again; the index says so.
        absent = {name: None for name, value in index.items() if value in ([None, None], (None, None))}
        pipe = DiffusionPipeline.from_pretrained(source, **{**absent, **kwargs})
        return cls.from_pipe(pipe, nft_adapter)

    @classmethod
    def from_pipe(cls, pipe: DiffusionPipeline | Any, nft_adapter: str | PathLike[str] | Adapter | None = None) -> Any:
        """A guided pipeline over a pipeline you have. `pipe` keeps working as before and shares all components.

        (diffusers' own from_pipe is not used: it casts the shared modules to fp32.) `call_defaults.json` beside the
        model's `model_index.json` gives stock arguments for calls that name none.

        Args:
            pipe: any diffusers pipeline; a guided one stands for the stock pipeline under it.
            nft_adapter: as in `from_pretrained`; None to load one later.

        Raises:
            AdapterError, GuidanceError, FamilyError: as `load_nft_adapter`.
            GuidanceError: `pipe` is no pipeline, or its call_defaults.json is faulty.
        """
        from diffusers import DiffusionPipeline

        if not isinstance(pipe, DiffusionPipeline):
            raise GuidanceError(
                f"from_pipe got a {type(pipe).__name__}, expected a diffusers pipeline object. To load one by name use "
                "DiffusionNFTPipeline.from_pretrained."
            )
        stock: Any = pipe._nft_stock if isinstance(pipe, DiffusionNFTPipeline) else pipe
        stock_class: Any = type(stock)
        guided = copy.copy(stock)
        guided.__class__ = _guided_class(stock_class)
        guided._nft_stock = stock
        guided._nft_adapter = guided._nft_name = guided.nft_stats = None
        guided.call_defaults = _read_call_defaults(stock)
        if nft_adapter is not None:
            guided.load_nft_adapter(nft_adapter)
        return guided

    @property
    def nft_config(self) -> AdapterConfig | None:
        """The loaded adapter's config, None without one."""
        return None if self._nft_adapter is None else self._nft_adapter.config

    def load_nft_adapter(
        self,
        source: str | PathLike[str] | Adapter,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        kind: str | None = None,
        beta: float | None = None,
        use_old: bool = True,
    ) -> None:
        """Load an adapter in the place of the present one, if any. It is checked first; on an error nothing changes.

        Args:
            source: a shipped adapter's name, a folder, a Hub id, or an `Adapter`; for somebody else's checkpoint
                (docs/other_checkpoints.md) also a .safetensors file.
            revision, subfolder: of a Hub repository.
            kind, beta, use_old: for somebody else's checkpoint, see `read_adapter`: kind="policy", beta=1.0.

        Raises:
            AdapterError: the adapter is faulty, or made for another base model.
            GuidanceError: its head reads a module the model does not have.
            FamilyError: a denoiser this version cannot guide.
        """
        from .adapter import Adapter, check_base, read_adapter
        from .adapter_read import refuse_for_own

        if isinstance(source, Adapter):
            adapter = source
            refuse_for_own(f'the adapter "{adapter.config.name}"', kind, beta)
        else:
            theirs: dict[str, Any] = {"kind": kind, "beta": beta, "use_old": use_old}
            adapter = read_adapter(source, revision=revision, subfolder=subfolder, pipe=self, **theirs)
        adapter.check(f'the adapter "{adapter.config.name}"')
        denoiser = self._denoiser(adapter.config.component)
        self._check_rows(family_of(denoiser))
        check_base(adapter.config, denoiser, adapter.lora)
        find_tap(denoiser, adapter)
        name = inject_lora(denoiser, adapter.lora, adapter.config.component, pipe=self)
        if name == self._nft_name:  # the name was free: someone has unloaded the old LoRA already
            self._nft_adapter = self._nft_name = None
        try:
            self.unload_nft_adapter()
        except BaseException:
            remove_lora(denoiser, name)
            raise
        self._nft_adapter, self._nft_name = adapter, name

    def unload_nft_adapter(self) -> None:
        """Take the adapter out of the denoiser; calls then behave as stock.

        Raises:
            AdapterError: the adapter's LoRA is fused into the weights.
        """
        if self._nft_adapter is not None and self._nft_name is not None:
            remove_lora(self._denoiser(self._nft_adapter.config.component), self._nft_name)
        self._nft_adapter = self._nft_name = None

    def unwrap(self) -> Any:
        """The stock pipeline this one was made of, the same object, after `unload_nft_adapter`."""
        self.unload_nft_adapter()
        return self._nft_stock

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save a folder that stock diffusers loads as the base model, with the adapter in nft_adapter/ beside it.

        Args:
            save_directory: the folder.
            *args, **kwargs: of the stock save_pretrained.

        Raises:
            GuidanceError: other LoRAs are loaded, which diffusers' format of a whole model cannot hold.
        """
        others = self._other_loras()
        if others:
            raise GuidanceError(
                f"LoRA {', '.join(others)} is loaded, and a saved pipeline cannot hold it. Save it by its own means, "
                "call unload_lora_weights() and load_nft_adapter(...) again, then save. (A second guided pipeline over "
                "the same model counts too: unwrap that one.)"
            )
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if self.call_defaults:
            (folder / CALL_DEFAULTS).write_text(json.dumps(self.call_defaults, indent=2) + "\n", encoding="utf-8")
        stock = self._as_stock()
        if self._nft_adapter is None:
            stock.save_pretrained(save_directory, *args, **kwargs)
            return
        from .adapter import write_adapter

        write_adapter(folder / ADAPTER_FOLDER, self._nft_adapter)
        with without_wrappers(self._denoiser(self._nft_adapter.config.component)):
            stock.save_pretrained(save_directory, *args, **kwargs)

    def to_json_string(self) -> str:
        """The config as model_index.json has it: under the stock class's name."""
        return self._as_stock().to_json_string()

    def _as_stock(self) -> Any:
        """A stock pipeline with this one's present components."""
        stock = copy.copy(self)
        stock.__class__ = self._nft_stock_class
        return stock

    def _denoiser(self, component: str) -> torch.nn.Module:
        denoiser = getattr(self, component, None)
        if not isinstance(denoiser, torch.nn.Module):
            known = ", ".join(sorted({family.component for family in FAMILIES.values()}))
            raise FamilyError(
                f"{self._nft_stock_class.__name__} has no {component!r}, which the adapter is for; this version guides "
                f"pipelines whose denoiser is called {known}. Load the base model the adapter names."
            )
        return denoiser

    def _check_rows(self, family: Family) -> None:
        """Raise unless it can be told, in a call, which rows of a batch belong to which sample."""
        stock = self._nft_stock_class
        if hasattr(stock, "do_perturbed_attention_guidance") or hasattr(stock, "image_guidance_scale"):
            reason = "its perturbed-attention or image guidance adds rows of its own to the batch"
        elif family.batched_cfg and not hasattr(stock, "do_classifier_free_guidance"):
            reason = "it does not say whether a batch holds unconditional rows (no do_classifier_free_guidance)"
        else:
            return
        raise FamilyError(
            f"{stock.__name__} cannot be guided by this version: {reason}. Use the family's plain pipeline."
        )

    def _other_loras(self) -> list[str]:
        modules = [module for module in self.__dict__.values() if isinstance(module, torch.nn.Module)]
        return sorted({name for module in modules for name in adapter_names(module)} - {self._nft_name})

    def _guided_call(self, args: tuple[Any, ...], kwargs: dict[str, Any], nft: dict[str, Any]) -> Any:
        stock_call: Callable[..., Any] = self._nft_stock_class.__call__
        names = list(inspect.signature(stock_call).parameters)[1:]
        kwargs = {**{k: v for k, v in self.call_defaults.items() if k not in names[: len(args)]}, **kwargs}
        if self._nft_adapter is None or self._nft_name is None:
            given = [name for name, value in nft.items() if value is not None]
            if given:
                raise GuidanceError(
                    f"{', '.join(given)} was given, but no adapter is loaded. Call load_nft_adapter(...) first, or "
                    "leave it out to sample from the base model."
                )
            self.nft_stats = None
            return stock_call(self, *args, **kwargs)
        config = self._nft_adapter.config
        settings = GuidanceSettings.for_adapter(
            config,
            strength=nft["nft_strength"],
            beta=nft["nft_beta"],
            law=nft["nft_law"],
            interval=nft["nft_interval"],
        )
        engine = NFTEngine(
            self._denoiser(config.component),
            self._nft_adapter,
            self._nft_name,
            settings,
            scheduler=self.scheduler,
            doubled=lambda: bool(getattr(self, "do_classifier_free_guidance", False)),
        )
        try:
            with engine:
                return stock_call(self, *args, **kwargs)
        finally:
            self.nft_stats = engine.stats()


@functools.cache
def _guided_class(stock: Any) -> type:
    """`DiffusionNFT<Stock>`: the stock class with our methods in front and the stock constructor's signature."""

    def __call__(
        self: DiffusionNFTPipeline,
        *args: Any,
        nft_strength: float | None = None,
        nft_beta: float | None = None,
        nft_law: str | None = None,
        nft_interval: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> Any:
        nft = {
            "nft_strength": nft_strength,
            "nft_beta": nft_beta,
            "nft_law": nft_law,
            "nft_interval": nft_interval,
        }
        return self._guided_call(args, kwargs, nft)

    stock_call: Any = stock.__call__
    signature = inspect.signature(stock_call)
    ours = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (default, annotation) in _ARGUMENTS.items()
    ]
    theirs = list(signature.parameters.values())
    rest = [p for p in theirs if p.kind is inspect.Parameter.VAR_KEYWORD]
    theirs = [p for p in theirs if p.kind is not inspect.Parameter.VAR_KEYWORD]
    __call__.__signature__ = signature.replace(parameters=[*theirs, *ours, *rest])  # type: ignore[attr-defined]
    __call__.__doc__ = _CALL_DOC.format(stock=stock.__name__, doc=inspect.getdoc(stock_call) or "")
    return type(
        f"DiffusionNFT{stock.__name__}",
        (DiffusionNFTPipeline, stock),
        {
            "__call__": __call__,
            # diffusers reads the components' names off the constructor's signature.
            "__init__": stock.__init__,
            "__doc__": f"A {stock.__name__} with a reward dial; see DiffusionNFTPipeline.",
            "__module__": __name__,
            "_nft_stock_class": stock,
        },
    )


def _read_call_defaults(stock: Any) -> dict[str, Any]:
    """Stock call arguments from `call_defaults.json` in the folder the pipeline was loaded from."""
    name_or_path = getattr(stock, "name_or_path", None)
    path = Path(name_or_path or "") / CALL_DEFAULTS
    if not name_or_path or not path.is_file():
        return {}
    try:
        defaults = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise GuidanceError(f"{path} is no JSON: {error}. Mend it or delete it.") from error
    known = list(inspect.signature(type(stock).__call__).parameters)[1:]
    unknown = sorted(set(defaults) - set(known)) if isinstance(defaults, dict) else [type(defaults).__name__]
    if unknown:
        raise GuidanceError(
            f"{path} has {unknown}, expected an object with arguments of {type(stock).__name__}'s call: {known}. Mend "
            "it or delete it."
        )
    return defaults
