"""Where a guided pipeline comes from: a base model's name, folder or file, or a pipeline that there is already."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import GuidanceError
from .call_defaults import read_call_defaults, set_call_defaults
from .typed import StockPipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from typing_extensions import Self

_ACCESS = ("cache_dir", "local_files_only", "token")  # to the Hub, for the base model and the adapter alike
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


class LoadedPipeline(StockPipeline):
    """The loading half of `nft_pipeline.DiffusionNFTPipeline`, its one subclass."""

    _guided: ClassVar[Callable[..., Any]]  # from_pipe, with what `load_nft_adapter` takes; the subclass has it

    @classmethod
    def from_pretrained(
        cls,
        base: str | PathLike[str],
        nft_adapter: Any = None,
        *,
        nft_revision: str | None = None,
        nft_subfolder: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a base model and, if given, an adapter.

        `call_defaults.json` beside the model's `model_index.json` gives stock arguments for calls that name none, of
        the guided pipeline and of the stock one that `unwrap` returns; both have them as their `call_defaults`.

        Args:
            base: a shipped model ("shapes"), a diffusers folder, a Hub id, or a checkpoint in one file, which
                `from_single_file` loads.
            nft_adapter: a shipped adapter ("shapes-warm"), a folder, a Hub id, or an `Adapter`; a dict of several by
                the names they are to have.
            nft_revision, nft_subfolder: of the adapter, see `load_nft_adapter`.
            **kwargs: for diffusers, such as dtype=torch.bfloat16, device_map, variant, and the base model's own
                revision. Its token, cache_dir and local_files_only are the adapter's too.

        Returns:
            A guided pipeline: an instance of the stock pipeline class and of this one.

        Raises:
            AdapterError, GuidanceError, FamilyError: as `load_nft_adapter`.
            GuidanceError: the model's call_defaults.json is faulty.
            OSError: diffusers' own, where there is no such base.
        """
        from diffusers import DiffusionPipeline

        from ..models import shipped_model
        from ..models.single_file import is_single_file

        source = (shipped_model(base) if isinstance(base, str) else None) or base
        if is_single_file(source):
            return cls.from_single_file(source, nft_adapter, **kwargs)
        where = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
        index = DiffusionPipeline.load_config(source, **where)
        # diffusers refuses a folder saved without, say, SD3's T5 unless the caller says so again; the index says so.
        absent = {name: None for name, value in index.items() if value in ([None, None], (None, None))}
        pipe = DiffusionPipeline.from_pretrained(source, **{**absent, **kwargs})
        set_call_defaults(pipe, read_call_defaults(type(pipe), pipe.name_or_path))
        access = {name: kwargs[name] for name in _ACCESS if name in kwargs}
        return cls._guided(pipe, nft_adapter, revision=nft_revision, subfolder=nft_subfolder, **access)

    @classmethod
    def from_single_file(
        cls,
        file: str | PathLike[str],
        nft_adapter: Any = None,
        *,
        pipeline_class: type | None = None,
        config: str | PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a base model that is one file, as Illustrious, NoobAI, Pony and other checkpoints are, and an adapter.

        The file holds weights alone. Configs and tokenizers come from `config`; without it from the folder beside the
        file that has its name without the ending; else from the model on the Hub that diffusers takes the file for.

        Args:
            file: a .safetensors or .ckpt file on this machine, or its address on the Hub.
            nft_adapter: as in `from_pretrained`.
            pipeline_class: diffusers' class; None for the one that the configs name, such as
                StableDiffusionXLPipeline. Give StableDiffusionXLImg2ImgPipeline, say, for another use of the model.
            config: a folder with model_index.json and the folders of the parts as diffusers saves them, weights not
                needed, or a Hub id.
            **kwargs: for diffusers' from_single_file, such as dtype=torch.bfloat16 and local_files_only, and parts of
                the pipeline, such as vae or scheduler.

        Returns:
            As `from_pretrained`.

        Raises:
            GuidanceError: the file is none, its configs cannot be had, or diffusers cannot load it as what it is.
            AdapterError, FamilyError: as `load_nft_adapter`.
        """
        from ..models.single_file import load_single_file

        return cls.from_pipe(load_single_file(file, pipeline_class, config, **kwargs), nft_adapter)

    @classmethod
    def from_pipe(cls, pipe: DiffusionPipeline | Any, nft_adapter: Any = None) -> Self:
        """A guided pipeline over a pipeline that you have. `pipe` keeps working as before; both share all components.

        (diffusers' own from_pipe is not used: it casts the shared modules to fp32.) A call takes the defaults that
        `pipe` itself has: at strength 0 it draws what the same call of `pipe` does.

        Args:
            pipe: any diffusers pipeline; for a guided one the stock pipeline under it is taken.
            nft_adapter: as in `from_pretrained`; None to load one later.

        Raises:
            AdapterError, GuidanceError, FamilyError: as `load_nft_adapter`.
            GuidanceError: `pipe` is no pipeline.
        """
        from diffusers import DiffusionPipeline

        if not isinstance(pipe, DiffusionPipeline):
            raise GuidanceError(
                f"from_pipe got a {type(pipe).__name__}, expected a diffusers pipeline object. To load one by name use "
                "DiffusionNFTPipeline.from_pretrained; modular pipelines have DiffusionNFTGuidance (docs/modular.md)."
            )
        return cls._guided(pipe, nft_adapter)
