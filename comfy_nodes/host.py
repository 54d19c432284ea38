"""The only module that touches ComfyUI. What it uses, by name and parameter: tests/comfyui/contract.json.

Imported by `nodes`, and that by the doorway when ComfyUI asks for the nodes: never by the package itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.model_patcher
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import comfy.weight_adapter
import folder_paths
from comfy.patcher_extension import CallbacksMP, WrappersMP, get_all_wrappers
from comfy_api.latest import ComfyExtension as ComfyExtension
from comfy_api.latest import io as io
from comfy_api.latest import ui as ui
from torch import Tensor

from nft_pipeline.adapters.names import COMFYUI_FOLDER, LORA_FILE
from nft_pipeline.dial.tilts import is_off
from nft_pipeline.errors import GuidanceError
from nft_pipeline.models import ADAPTERS, shipped_adapter

from .choose import Choice
from .delta import Target
from .files.picture_notes import add_notes
from .guide import Guide
from .words.cautions import Caution

_ATTACHMENT = "nft_guide_"
MARKED = "diffusion-nft.cautions"  # the message that brings a node's badges to the page
_REGIONS = "nft_regions"  # in a MODEL's transformer_options: masks by guide


class ComfyUI:
    """What a `Guide` needs, see `guide.Host`."""

    def guides(self, options: Mapping[str, Any]) -> list[Guide]:
        """The guides that a prediction with these model options goes through, outermost first."""
        wrappers = get_all_wrappers(WrappersMP.CALC_COND_BATCH, options, is_model_options=True)
        owners = [getattr(wrapper, "__self__", None) for wrapper in wrappers]
        return [owner for owner in owners if isinstance(owner, Guide)]

    def noise_level(self, model: Any, sigma: Tensor) -> Tensor:
        """t in [0, 1]: sigma itself for flow models, sigma / (1 + sigma) where x = x_0 + sigma eps."""
        flow = isinstance(model.model_sampling, comfy.model_sampling.CONST)
        level = sigma.float() if flow else sigma.float() / (1 + sigma.float())
        return level.clamp(0, 1)

    def level_at(self, model: Any, percent: float) -> float:
        """t at a share of the sampling, by the model's own schedule: 1 at 0, 0 at 1."""
        sigma = Tensor([float(model.model_sampling.percent_to_sigma(percent))])
        return float(self.noise_level(model, sigma))

    def loaded_twice(self, model: Any, targets: Sequence[Target]) -> bool:
        """Whether a LoRA loader or a hook has put this very LoRA into the MODEL, so that v_old contains it already."""
        return any(_is_of(lora, target) for target in targets for lora in _loras_on(model, target.module))

    def guides_on(self, model: Any) -> list[Guide]:
        """The guides on a MODEL, in the order they were added."""
        return guides_of(model)

    def region(self, options: Mapping[str, Any], guide: Guide) -> Tensor | None:
        """Where a guide acts under these model options; None is everywhere."""
        region: Tensor | None = options["transformer_options"].get(_REGIONS, {}).get(guide)
        return region

    def say(self, node_id: str | None, text: str) -> None:
        """Show a line under a node; without a server nothing is shown."""
        if (page := _server()) is not None and node_id is not None:
            page.send_progress_text(text, node_id)

    def mark(self, node_id: str | None, cautions: Sequence[Caution]) -> None:
        """Show these as badges on a node, in the place of those it has (web/badges.js)."""
        if (page := _server()) is not None and node_id is not None:
            page.send_sync(MARKED, {"node": node_id, "cautions": [caution._asdict() for caution in cautions]})


def answer(path: str, function: Callable[..., str]) -> None:
    """Let the page ask for something: the JSON object that it posts to the path is the function's arguments.

    The answer is {"said": what the function returns}, or {"error": the sentence} if it raises a GuidanceError.
    """
    page = _server()
    if page is None:
        return
    from aiohttp import web

    async def respond(request: Any) -> Any:
        try:
            said = await asyncio.to_thread(function, **await request.json())
        except (GuidanceError, TypeError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"said": said})

    page.routes.post(path)(respond)


def _loras_on(model: Any, module: str) -> Iterator[Any]:
    """The LoRAs on a layer of a MODEL: of loaders, of bypass loaders, and while it samples of its prompts' hooks."""
    for patches in (model.patches, *model.hook_patches.values()):
        yield from (patch[1] for patch in patches.get(f"{module}.weight", []))
    kind = getattr(comfy.weight_adapter, "BypassInjectionManager", ())  # ComfyUI 0.3.64 has none
    for injection in chain(*model.injections.values()):
        # Nothing but the injection's own function knows what it will put on which layer.
        owners = [cell.cell_contents for cell in getattr(injection.inject, "__closure__", None) or ()]
        for bypass in chain(*(owner.hooks for owner in owners if isinstance(owner, kind))):
            if bypass.module is model.model.get_submodule(module):
                yield bypass.adapter


def _is_of(lora: Any, target: Target) -> bool:
    """Whether a LoRA as ComfyUI holds it, perhaps cast to another dtype, is a layer's of an adapter."""
    weights: tuple[Any, ...] = getattr(lora, "weights", ())
    down = weights[1] if len(weights) > 1 and isinstance(weights[1], Tensor) else None
    if down is None or down.numel() != target.a.numel():
        return False
    return bool((down.flatten().cpu() == target.a.flatten().cpu().to(down.dtype)).all())


def _server() -> Any:
    """ComfyUI's server; None where there is none."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def key_map(model: Any) -> dict[str, Any]:
    """ComfyUI's map from the names of LoRA layers to a MODEL's weights."""
    return dict(comfy.lora.model_lora_keys_unet(model.model, {}))


def name_of(model: Any) -> str:
    """What ComfyUI calls the base model of a MODEL, such as "SD3" or "Flux"."""
    return type(model.model).__name__


def attach(model: Any, guide: Guide) -> Any:
    """A clone of the MODEL that is guided; the MODEL itself is as before."""
    key = _ATTACHMENT + uuid.uuid4().hex
    guided = model.clone()
    guided.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, key, guide.around_sampling)
    guided.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, guide.around_evaluation)
    guided.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, key, guide.around_prediction)
    guided.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, guide.around_model)
    guided.add_callback_with_key(CallbacksMP.ON_CLONE, key, _refuse_to_be_merged)
    guided.set_attachments(key, guide)
    _refuse_to_be_merged(model, guided)
    if not is_off(guide.plan.tilt) or guide.plan.rate:
        # What the adapter takes on the device, for ComfyUI to count, to make room for, and to take off again.
        guide.weights.matrices_in(model.model.manual_cast_dtype or model.model_dtype())
        patcher = comfy.model_patcher.ModelPatcher(guide.weights, model.load_device, model.offload_device)
        guided.set_additional_models(key, [patcher])
    return guided


def _refuse_to_be_merged(model: Any, guided: Any) -> None:
    """Nodes that merge a MODEL into another ask for its weights under a prefix, and guidance would be lost without a
    word; hooks ask for all of them, for the MODEL itself."""
    weights, itself = type(guided).get_key_patches, weakref.ref(guided)  # a MODEL is to be freed when nobody needs it

    def get_key_patches(filter_prefix: str | None = None) -> Any:
        if filter_prefix is not None:
            raise GuidanceError(
                "A guided model cannot be merged into another one, because guidance is no part of its weights. Put "
                "Reward Guidance behind the merge, or connect the guided model as the merge's first one (model1)."
            )
        return weights(itself())

    guided.get_key_patches = get_key_patches


def guides_of(model: Any) -> list[Guide]:
    """The guides on a MODEL, in the order they were added."""
    return [guide for key, guide in model.attachments.items() if key.startswith(_ATTACHMENT)]


def attach_region(model: Any, guides: Sequence[Guide], mask: Tensor) -> Any:
    """A clone of the MODEL on which these guides act in the mask alone; the MODEL itself is as before."""
    limited = model.clone()
    options = limited.model_options["transformer_options"]
    options[_REGIONS] = {**options.get(_REGIONS, {}), **dict.fromkeys(guides, mask)}
    return limited


def regions_of(model: Any) -> Mapping[Guide, Tensor]:
    """The masks on a MODEL, by guide."""
    regions: Mapping[Guide, Tensor] = model.model_options["transformer_options"].get(_REGIONS, {})
    return regions


def attach_choice(model: Any, choice: Choice) -> Any:
    """A clone of the MODEL whose runs begin with a choice among noises; the MODEL itself is as before."""
    chosen = model.clone()
    chosen.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, f"nft_choice_{uuid.uuid4().hex}", choice.around_sampling)
    return chosen


def offer_shipped_adapters() -> None:
    """Let the files of the shipped adapters be found beside those in models/loras."""
    folders = [folder / COMFYUI_FOLDER for folder in map(shipped_adapter, ADAPTERS) if folder is not None]
    for folder in filter(Path.is_dir, folders):
        folder_paths.add_model_folder_path("loras", str(folder))


def _shipped_as_folders() -> dict[str, Path]:
    """The LoRA's file by name, of shipped adapters without a file for models/loras: those of the emoji model, whose
    weights would ship twice. The nodes read their folders."""
    folders = {name: folder for name in ADAPTERS if (folder := shipped_adapter(name)) is not None}
    return {name: folder / LORA_FILE for name, folder in folders.items() if not (folder / COMFYUI_FOLDER).is_dir()}


def convert_lora(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A LoRA's tensors under the names that ComfyUI's own loader gives them."""
    return dict(comfy.lora_convert.convert_lora(dict(tensors)))


def note_in_pictures() -> None:
    """Have what guides a picture written into its file, see `files.picture_notes`."""
    server = _server()
    if server is not None:
        server.add_on_prompt_handler(_with_notes)


def _with_notes(job: dict[str, Any]) -> dict[str, Any]:
    return add_notes(job, adapter_path)


def load_model(path: str, around_sampling: Callable[..., Any]) -> Any:
    """A MODEL from a transformer's file, with what wraps its sampler."""
    model = comfy.sd.load_diffusion_model(path)
    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "nft_model", around_sampling)
    return model


def adapter_names() -> list[str]:
    """The files of models/loras, and shipped adapters that are folders, by their names."""
    return [*folder_paths.get_filename_list("loras"), *_shipped_as_folders()]


def adapter_path(name: str) -> str:
    """Where such a file is; of a folder, the LoRA in it. Raises FileNotFoundError if it is gone."""
    return str(_shipped_as_folders().get(name) or folder_paths.get_full_path_or_raise("loras", name))


def loras_folder() -> Path:
    """The folder models/loras itself."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def file_identity(name: str) -> str:
    """Changes when the file does, so that ComfyUI reads it again."""
    try:
        status = os.stat(adapter_path(name))
    except (OSError, FileNotFoundError) as error:
        return f"{name}: {error}"
    return f"{name}:{status.st_mtime_ns}:{status.st_size}"


def output_folder() -> str:
    """ComfyUI's folder of pictures."""
    return str(folder_paths.get_output_directory())


def cfg_guider(model: Any, positive: Any, negative: Any, cfg: float) -> Any:
    """A GUIDER for SamplerCustomAdvanced."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def samplers() -> list[str]:
    """What KSampler offers."""
    return list(comfy.samplers.KSampler.SAMPLERS)


def schedulers() -> list[str]:
    """What KSampler offers."""
    return list(comfy.samplers.KSampler.SCHEDULERS)


def latent_of(model: Any, latent: Mapping[str, Any]) -> Tensor:
    """The tensor of a LATENT as KSampler starts from it; an empty one gets the shape that this model wants."""
    ratios = {key: latent[key] for key in ("downscale_ratio_spacial", "downscale_ratio_temporal") if key in latent}
    return comfy.sample.fix_empty_latent_channels(model, latent["samples"], **ratios)


def noise_of(latent_image: Tensor, seed: int, latent: Mapping[str, Any]) -> Tensor:
    """The noise that KSampler draws for this seed."""
    return comfy.sample.prepare_noise(latent_image, seed, latent.get("batch_index"))


def sample(
    model: Any,
    noise: Tensor,
    latent_image: Tensor,
    positive: Any,
    negative: Any,
    *,
    steps: int,
    cfg: float,
    sampler: str,
    scheduler: str,
    denoise: float,
    mask: Tensor | None,
    seed: int,
    callback: Callable[..., None],
) -> Tensor:
    """What KSampler does, from a noise that is given. callback(step, x0, x, steps) is called after every step."""
    return comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        sampler,
        scheduler,
        positive,
        negative,
        latent_image,
        denoise=denoise,
        noise_mask=mask,
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )


def progress(total: int) -> Any:
    """The bar of the node that is running; telling it of progress also ends a job that a person has cancelled."""
    return comfy.utils.ProgressBar(total)


def encode(clip: Any, text: str, like: Any) -> Any:
    """CONDITIONING of a prompt, with what else another conditioning carries (FluxGuidance, a reference picture)."""
    more = like[0][1] if like else {}
    return [[words, {**more, **given}] for words, given in clip.encode_from_tokens_scheduled(clip.tokenize(text))]


def decode(vae: Any, samples: Tensor) -> Tensor:
    """Pictures of latents, (B, H, W, 3); the middle frame of a video."""
    pictures: Tensor = vae.decode(samples)
    return pictures if pictures.ndim == 4 else pictures[:, pictures.shape[1] // 2]


def findable(schema: Any, *words: str) -> Any:
    """A node's schema that a search for these words finds, where the frontend has that. (The argument is newer.)"""
    schema.search_aliases = list(words)
    return schema


def warn(text: str) -> None:
    """To ComfyUI's log."""
    logging.warning("[diffusion-nft] %s", text)
