"""A denoiser's weights on disk in diffusers' format, read one tensor at a time: no model has to fit into memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import AdapterError
from .config import parse_json
from .read import is_hub_id

COMPONENTS = ("transformer", "unet")
_NAME = "diffusion_pytorch_model"
_INDEX = (f"{_NAME}.safetensors.index.json", f"{_NAME}.safetensors.index.*.json")  # whole, and of a variant
_ORIGINAL = ("model.diffusion_model.", "diffusion_model.")


class Weights:
    """The tensors of a denoiser by name; each is read when it is asked for.

    Args:
        files: for each tensor's name the safetensors file that holds it.
        shown: how errors call the checkpoint.
    """

    def __init__(self, files: Mapping[str, Path], shown: str) -> None:
        self.shown = shown
        self._files = dict(files)
        self._open: dict[Path, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Any:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read for it."""
        return tuple(self._file(name).get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """A tensor, on the CPU, in the type it was saved in."""
        tensor: Tensor = self._file(name).get_tensor(name)
        return tensor

    def _file(self, name: str) -> Any:
        path = self._files[name]
        if path not in self._open:
            self._open[path] = _opened(path)
        return self._open[path]


def find_checkpoint(source: str | os.PathLike[str]) -> Path:
    """A checkpoint's folder or file on this machine; of a Hub id only a denoiser's files are fetched.

    Raises:
        AdapterError: there is none of that name.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not is_hub_id(source):
        raise AdapterError(f"there is no {path.absolute()}, expected a folder, a .safetensors file or a Hub id")
    from huggingface_hub import snapshot_download

    inside = [f"{name}/{pattern}" for name in COMPONENTS for pattern in (f"{_NAME}*.safetensors*", "config.json")]
    patterns = [*inside, f"{_NAME}*.safetensors*", "config.json", "model_index.json", "scheduler/*.json"]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except Exception as error:  # of the Hub, of the network, of its client
        raise AdapterError(
            f"{source} could not be fetched from the Hub: {str(error)[:200]}", advice="Give a folder on this machine."
        ) from error


def component_folder(path: Path) -> Path:
    """The denoiser's folder in a pipeline's, or the folder itself where it is the denoiser's.

    Raises:
        AdapterError: it has no config.json of a denoiser.
    """
    folder = next((path / name for name in COMPONENTS if (path / name / "config.json").is_file()), path)
    if not (folder / "config.json").is_file():
        raise AdapterError(
            f"{path} has neither {' nor '.join(f'{name}/config.json' for name in COMPONENTS)}, nor config.json",
            advice="Give a model in diffusers' format. One that is a single file is brought into it by "
            "DiffusionNFTPipeline.from_single_file(file).save_pretrained(folder).",
        )
    return folder


def empty_denoiser(folder: Path) -> nn.Module:
    """The denoiser of a folder without its weights: what its layers are, and their sizes."""
    import diffusers
    from accelerate import init_empty_weights

    config = parse_json((folder / "config.json").read_bytes(), "config.json")
    cls: Any = getattr(diffusers, str(config.get("_class_name")), None)
    if cls is None:
        raise AdapterError(f"{folder}/config.json names the class {config.get('_class_name')!r}, which diffusers lacks")
    with init_empty_weights():
        denoiser: nn.Module = cls.from_config(config)
    return denoiser


def open_weights(path: Path) -> Weights:
    """The weights of a denoiser: a .safetensors file, its folder, or the pipeline's folder around it.

    Raises:
        AdapterError: there are none, or there is no telling which they are.
    """
    if path.is_file():
        return _of_files([path], str(path))
    for folder in (*(path / name for name in COMPONENTS), path):
        index = next((file for pattern in _INDEX for file in sorted(folder.glob(pattern))), None)
        if index is not None:
            table = parse_json(index.read_bytes(), index.name)["weight_map"]
            return Weights({name: folder / file for name, file in table.items()}, str(path))
        files = sorted(folder.glob("*.safetensors"))
        plain = [file for file in files if file.name == f"{_NAME}.safetensors"] or files
        if len(plain) == 1:
            return _of_files(plain, str(path))
        if plain:
            raise AdapterError(
                f"{folder} holds {len(plain)} .safetensors files: {', '.join(file.name for file in plain[:6])}",
                advice="Give the path of the one you mean.",
            )
    raise AdapterError(
        f"{path} holds no weights of a denoiser as .safetensors", advice="Give its folder or its .safetensors file."
    )


def _of_files(files: list[Path], shown: str) -> Weights:
    names = {name: file for file in files for name in _opened(file).keys()}  # noqa: SIM118  no mapping
    if any(name.startswith(_ORIGINAL) for name in names):
        raise AdapterError(
            f"{shown} has the names of an original checkpoint, not those of diffusers",
            advice="Bring both models into diffusers' format first: "
            "DiffusionNFTPipeline.from_single_file(file).save_pretrained(folder).",
        )
    return Weights(names, shown)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} cannot be read as safetensors: {error}") from error
