"""Writes pipeline.py beside a saved model, through which diffusers itself loads the guided pipeline.

    pipe.save_pretrained(folder, custom_pipeline=True)
    DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True)

custom_pipeline="pipeline" names the file in a folder and in a Hub repository alike. diffusers imports the file, takes
the one pipeline class in it, reads the components' names off its constructor, makes the pipeline and last of all tells
it where it came from (`_name_or_path`): that is when the adapters in nft_adapter/ beside the model are loaded. Without
custom_pipeline the same folder loads as the stock pipeline.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..adapters.fetch import HUB_PATTERNS
from ..adapters.names import CONFIG_FILE
from ..errors import AdapterError
from .call_defaults import CALL_DEFAULTS, read_call_defaults

PIPELINE_FILE = "pipeline.py"
ADAPTER_FOLDER = "nft_adapter"
DEFAULT = "default"  # the name of an adapter that was given no name

# The package is imported "as nft" because diffusers looks through the file for plain imports, and would advise to
# install a missing one under the import's name, which is another package's.
_FILE = '''"""{stock} with a reward dial, for diffusers' custom_pipeline.

    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(
        {place}, custom_pipeline={custom}, trust_remote_code=True
    )
    image = pipe("a prompt", nft_strength=1.0).images[0]  # 0 is the base model, 1 the adapter as shipped
    print(pipe.nft_stats)

{origin}
It needs the package diffusion-nft. Without custom_pipeline the model loads as the stock pipeline.
"""

import diffusers

try:
    import nft_pipeline as nft
except ImportError as error:
    raise ImportError(
        "this pipeline needs the package diffusion-nft, which cannot be imported: pip install diffusion-nft. Without "
        "it leave custom_pipeline out, and the model loads as the stock pipeline."
    ) from error

# diffusers runs every pipeline.py of a process in this one namespace, and wants one pipeline class in it.
for _name in [name for name, value in globals().items() if isinstance(value, type)]:
    del globals()[_name]


class {name}(nft.DiffusionNFTPipeline, diffusers.{stock}):
    """{stock} whose call also takes nft_strength and its kin."""
{body}'''


def render_custom_pipeline(stock: Any, *, absent: Sequence[str] = (), nft_adapter: str | None = None) -> str:
    """The text of a pipeline.py.

    Args:
        stock: a pipeline class of diffusers, such as StableDiffusion3Pipeline.
        absent: components that the saved model does not have, such as SD3's T5 (text_encoder_3, tokenizer_3). Stock
            diffusers asks for a None for each in the call of from_pretrained; this class does not.
        nft_adapter: Hub id of an adapter that the pipeline is to load, for a repository that holds no base model:
            from_pretrained(base, custom_pipeline=<that repository>). None for the adapters beside the model.

    Raises:
        ValueError: `stock` is not a pipeline class that diffusers exports.
    """
    import diffusers

    name = getattr(stock, "__name__", repr(stock))
    own = isinstance(stock, type) and getattr(diffusers, name, None) is stock
    if not own or not issubclass(stock, diffusers.DiffusionPipeline):
        raise ValueError(
            f"a pipeline.py was asked for {name}, expected one of diffusers' own pipeline classes, such as "
            "diffusers.StableDiffusion3Pipeline: the file imports it by name."
        )
    body = []
    place, custom = "this repository or folder", "pipeline"
    origin = f"The adapters in {ADAPTER_FOLDER}/ beside the model are loaded with it."
    if nft_adapter is not None:
        body.append(f"nft_adapter = {json.dumps(nft_adapter)}")
        place, custom, origin = "the base model", nft_adapter, f"The adapter {nft_adapter} is loaded with it."
    if absent:
        body += [
            "# This model goes without these components:",
            "_optional_components = [",
            f"    *diffusers.{name}._optional_components,",
            *(f"    {json.dumps(each)}," for each in absent),
            "]",
        ]
    return _FILE.format(
        stock=name,
        name=f"{name.removesuffix('Pipeline')}NFTPipeline",
        place=json.dumps(place),
        custom=json.dumps(custom),
        origin=origin,
        body="\n" + "".join(f"    {line}\n" for line in body) if body else "",
    )


def load_beside(pipe: Any) -> None:
    """Load what belongs to a pipeline that diffusers has just made: its adapters and its call's defaults.

    Args:
        pipe: a guided pipeline whose `name_or_path` is known.

    Raises:
        AdapterError, GuidanceError, FamilyError: as `load_nft_adapter`; or the files could not be fetched.
    """
    folder = Path(pipe.name_or_path)
    if pipe.nft_adapter is None and not folder.is_dir():
        folder = _fetch(pipe)
    pipe.call_defaults = read_call_defaults(pipe._nft_stock_class, folder)
    sources: dict[str, Any] = adapters_in(folder / ADAPTER_FOLDER)
    if pipe.nft_adapter is not None:
        sources = {DEFAULT: pipe.nft_adapter}
    elif not sources:
        warnings.warn(
            f"there is no adapter in {ADAPTER_FOLDER}/ beside {pipe.name_or_path}, so this is the base model until "
            "load_nft_adapter(...) is called.",
            stacklevel=4,
        )
    for name, source in sources.items():
        pipe.load_nft_adapter(source, name=name)


def adapters_in(folder: Path) -> dict[str, Path]:
    """The adapters beside a saved pipeline, by name: one in the folder itself, or several in its subfolders."""
    if (folder / CONFIG_FILE).is_file():
        return {DEFAULT: folder}
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{CONFIG_FILE}"))}


def _fetch(pipe: Any) -> Path:
    """The local copy of a Hub repository, with what diffusers left out of it: it fetches the components alone."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # The revision and cache the caller named are known from where the components were loaded.
    revision = cache = None
    for component in pipe.components.values():
        place = Path(str(getattr(getattr(component, "config", None), "_name_or_path", None) or ""))
        if place.parent.parent.name == "snapshots":
            revision, cache = place.parent.name, place.parents[3]
    patterns = [CALL_DEFAULTS, *(f"{ADAPTER_FOLDER}/{pattern}" for pattern in HUB_PATTERNS)]
    try:
        return Path(
            snapshot_download(
                pipe.name_or_path,
                revision=revision,
                cache_dir=cache,
                allow_patterns=patterns,
                # Before 2.0 the client asks the Hub which files a commit has, even when it is offline.
                local_files_only=constants.HF_HUB_OFFLINE,
            )
        )
    except (HfHubHTTPError, OSError) as error:
        raise AdapterError(
            f"the adapters beside {pipe.name_or_path} could not be fetched from the Hub",
            [str(error) or type(error).__name__],
            "Try again; for a private repository log in with `hf auth login`. Without custom_pipeline the base model "
            "loads alone.",
        ) from error
