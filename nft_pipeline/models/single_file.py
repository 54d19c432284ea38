"""A base model in one file, as most checkpoints that people share are: which pipeline it is, and where its configs are.

Such a file holds weights under the names of the original code. diffusers renames them (`from_single_file`), but it does
not say which pipeline class the file is for, and it fetches configs and tokenizers from the Hub. Two keys that some
files hold beside their weights, "v_pred" and "ztsnr", say that the model predicts velocity and that its noise ends in
pure noise; diffusers does not read them, and a scheduler that does not know draws noise.
"""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import GuidanceError

ENDINGS = (".safetensors", ".ckpt")
_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
_SITES = ("https://huggingface.co/", "https://hf.co/", "huggingface.co/", "hf.co/")


def is_single_file(source: str | PathLike[str]) -> bool:
    """Is this base model one file: on this machine, by the ending of its name, or by its address on the Hub?"""
    text = os.fspath(source)
    return (text.endswith(ENDINGS) and not os.path.isdir(text)) or os.path.isfile(text)


def load_single_file(
    file: str | PathLike[str],
    pipeline_class: Any = None,
    config: str | PathLike[str] | None = None,
    **kwargs: Any,
) -> Any:
    """The stock pipeline that a file is.

    Args:
        file, pipeline_class, config, **kwargs: see `DiffusionNFTPipeline.from_single_file`.

    Raises:
        GuidanceError: the file is none, its configs cannot be had, or diffusers cannot load it as what it is.
    """
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    path = Path(file).expanduser()
    address = os.fspath(file).startswith(_SITES)
    if not address and not path.is_file():
        raise GuidanceError(
            f"there is no file {path.absolute()}, expected a checkpoint (.safetensors or .ckpt), or its address on the "
            "Hub, such as https://huggingface.co/OWNER/NAME/blob/main/FILE.safetensors."
        )
    source = os.fspath(file) if address else str(path)
    hub = {name: kwargs[name] for name in _HUB if name in kwargs}
    checkpoint = _weights(source, hub)
    beside = path.with_suffix("")
    if config is None and not address and (beside / "model_index.json").is_file():
        config = beside
    where = os.fspath(config) if config is not None else _default_config(source, checkpoint)
    stock: Any = pipeline_class or _class_of(source, where, hub)
    try:
        pipe = stock.from_single_file(source, config=where, **kwargs)
    except (SingleFileComponentError, OSError, ValueError, KeyError) as error:
        raise GuidanceError(
            f"{source} could not be loaded as a {stock.__name__} with the configs of {where}: {_short(error)}. A file "
            "that holds the denoiser alone needs the other parts as arguments (vae=, text_encoder=, ...); for another "
            "kind of model give pipeline_class= and config=. Offline, config= is a folder that has every part's config "
            "and the tokenizers."
        ) from error
    _follow_marks(pipe, checkpoint, given="scheduler" in kwargs)
    return pipe


def _weights(source: str, hub: dict[str, Any]) -> Any:
    """The file's tensors by name. Those of a .safetensors file are not read before they are used."""
    from diffusers.loaders.single_file_utils import load_single_file_checkpoint

    try:
        return load_single_file_checkpoint(source, **hub)
    except Exception as error:  # of safetensors, of torch.load, of the Hub's client
        raise GuidanceError(f"{source} could not be read as a checkpoint: {_short(error)}") from error


def _default_config(source: str, checkpoint: Any) -> str:
    """The model on the Hub that diffusers takes this file for."""
    from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS, fetch_diffusers_config

    default = fetch_diffusers_config(checkpoint)
    # diffusers takes what it does not know for Stable Diffusion 1.5.
    is_unet = any(key.startswith("model.diffusion_model.input_blocks.") for key in checkpoint)
    if default == DIFFUSERS_DEFAULT_PIPELINE_PATHS["v1"] and not is_unet:
        names = ", ".join(list(checkpoint)[:3])
        raise GuidanceError(
            f"diffusers does not know which model {source} is; its first keys are {names}. A LoRA is loaded with "
            "load_nft_adapter; for another base model give config=, a diffusers folder or a Hub id of its family."
        )
    return str(default["pretrained_model_name_or_path"])


def _class_of(source: str, config: str, hub: dict[str, Any]) -> Any:
    """The pipeline class that the configs name."""
    import diffusers

    try:
        name = diffusers.DiffusionPipeline.load_config(config, **hub)["_class_name"]
    except (OSError, ValueError, KeyError) as error:
        raise GuidanceError(
            f"{source} holds weights alone, and the configs and tokenizers that go with it, those of {config}, cannot "
            f"be had: {_short(error)} Go online once, which keeps them in the Hub's cache; or give config=, a folder "
            "with model_index.json and the folders of the parts, from any model of the same family (weights are not "
            f"needed); or put such a folder beside the file, under the name {Path(source).with_suffix('').name}, where "
            "it is found by every command and by base_model in a run's settings."
        ) from error
    name = name[0] if isinstance(name, list | tuple) else name
    kind: Any = getattr(diffusers, name, None)
    if not hasattr(kind, "from_single_file"):
        raise GuidanceError(
            f"{config} is a {name}, and diffusers loads none of that class from one file. Give pipeline_class= and "
            "config=, or load the model from a folder in diffusers' format."
        )
    return kind


def _follow_marks(pipe: Any, checkpoint: Any, given: bool) -> None:
    """A scheduler as the file's own marks say, unless the caller gave one."""
    config = pipe.scheduler.config
    marked: dict[str, Any] = {}
    if "v_pred" in checkpoint and config.get("prediction_type") == "epsilon":
        marked["prediction_type"] = "v_prediction"
        if "ztsnr" in checkpoint and "rescale_betas_zero_snr" in config:
            marked["rescale_betas_zero_snr"] = True
    if marked and not given:
        pipe.register_modules(scheduler=type(pipe.scheduler).from_config(config, **marked))


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:300].rstrip(".") + "." if text else f"{type(error).__name__}."
