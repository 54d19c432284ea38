"""A FAKE of the little of ComfyUI that the nodes use, written for these tests: names and parameters are those of
tests/comfyui/contract.json, behaviour is the least that shows what the nodes do. The real one: test_real.py.
"""

from __future__ import annotations

import copy
import sys
import types
import uuid
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import nft_pipeline.comfy_nodes

WIDTH, TEXT = 6, 5


class WrappersMP:
    SAMPLER_SAMPLE = "sampler_sample"
    PREDICT_NOISE = "predict_noise"
    CALC_COND_BATCH = "calc_cond_batch"
    APPLY_MODEL = "apply_model"


class CallbacksMP:
    ON_CLONE = "on_clone"


class WrapperExecutor:
    def __init__(self, original: Callable[..., Any], class_obj: Any, wrappers: list[Any], index: int = 0) -> None:
        self.original, self.class_obj, self.wrappers, self.index = original, class_obj, wrappers, index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return WrapperExecutor(self.original, self.class_obj, self.wrappers, self.index + 1).execute(*args, **kwargs)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        if self.index == len(self.wrappers):
            return self.original(*args, **kwargs)
        return self.wrappers[self.index](self, *args, **kwargs)


def get_all_wrappers(
    wrapper_type: str, transformer_options: dict[str, Any], is_model_options: bool = False
) -> list[Any]:
    options = transformer_options["transformer_options"] if is_model_options else transformer_options
    return [wrapper for group in options.get("wrappers", {}).get(wrapper_type, {}).values() for wrapper in group]


class CONST:
    def percent_to_sigma(self, percent: float) -> float:
        return 1.0 - percent


class Denoiser(nn.Module):
    """Tokens (B, N, WIDTH) in, velocity out; the text is added to every token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.words = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(TEXT, WIDTH)
        self.final_layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        one, two = self.qkv(x).chunk(2, -1)
        return self.final_layer(torch.tanh(one) * two + self.words(text).mean(1, keepdim=True))


class BaseModel(nn.Module):
    manual_cast_dtype: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.diffusion_model, self.model_sampling, self.calls = Denoiser(), CONST(), 0
        self.requires_grad_(False)

    def apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Any = None,
        **kwargs: Any,
    ) -> Any:
        options = transformer_options or {}
        run = WrapperExecutor(self._apply_model, self, get_all_wrappers(WrappersMP.APPLY_MODEL, options))
        return run.execute(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def _apply_model(self, x: Tensor, t: Tensor, c_concat: Any, text: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        return x - t.reshape(-1, 1, 1) * self.diffusion_model(x, text)


class ModelPatcher:
    def __init__(self, model: Any, load_device: Any = "cpu", offload_device: Any = "cpu") -> None:
        self.model, self.patches, self.attachments, self.callbacks = model, {}, {}, {}
        self.load_device, self.offload_device = load_device, offload_device
        self.additional_models: dict[str, list[ModelPatcher]] = {}
        self.hook_patches: dict[str, dict[str, Any]] = {}
        self.injections: dict[str, list[Any]] = {}
        self.model_options: dict[str, Any] = {"transformer_options": {"wrappers": {}}, "sampler_post_cfg_function": []}

    def clone(self) -> ModelPatcher:
        other = ModelPatcher(self.model)
        other.patches, other.attachments = dict(self.patches), dict(self.attachments)
        other.hook_patches, other.injections = dict(self.hook_patches), dict(self.injections)
        other.additional_models = {key: [one.clone() for one in some] for key, some in self.additional_models.items()}
        ours = self.model_options["transformer_options"]["wrappers"]
        copied = {kind: {key: list(group) for key, group in groups.items()} for kind, groups in ours.items()}
        # ComfyUI copies the options deeply.
        other.model_options["transformer_options"] = copy.deepcopy(self.model_options["transformer_options"])
        other.model_options["transformer_options"]["wrappers"] = copied
        functions = copy.deepcopy(self.model_options["sampler_post_cfg_function"])  # ComfyUI 0.3.64 copies them too
        other.model_options["sampler_post_cfg_function"] = functions
        other.callbacks = {key: list(group) for key, group in self.callbacks.items()}
        for callback in [callback for group in other.callbacks.values() for callback in group]:
            callback(self, other)
        return other

    def get_key_patches(self, filter_prefix: str | None = None) -> dict[str, Any]:
        return {
            name: [weight] for name, weight in self.model.state_dict().items() if name.startswith(filter_prefix or "")
        }

    def add_callback_with_key(self, call_type: str, key: str, callback: Any) -> None:
        assert call_type == CallbacksMP.ON_CLONE
        self.callbacks.setdefault(key, []).append(callback)

    def set_model_sampler_post_cfg_function(self, post_cfg_function: Any) -> None:
        self.model_options["sampler_post_cfg_function"].append(post_cfg_function)

    def add_wrapper_with_key(self, wrapper_type: str, key: str, wrapper: Any) -> None:
        groups = self.model_options["transformer_options"]["wrappers"].setdefault(wrapper_type, {})
        groups.setdefault(key, []).append(wrapper)

    def model_dtype(self) -> torch.dtype:
        return torch.float32

    def set_additional_models(self, key: str, models: list[ModelPatcher]) -> None:
        self.additional_models[key] = models

    def set_attachments(self, key: str, attachment: Any) -> None:
        self.attachments[key] = attachment


def calc_cond_batch(model: Any, conds: list[Any], x_in: Tensor, timestep: Tensor, model_options: Any) -> list[Tensor]:
    found = get_all_wrappers(WrappersMP.CALC_COND_BATCH, model_options, is_model_options=True)
    return WrapperExecutor(_calc_cond_batch, None, found).execute(model, conds, x_in, timestep, model_options)


def _calc_cond_batch(model: Any, conds: list[Any], x_in: Tensor, timestep: Tensor, model_options: Any) -> list[Tensor]:
    """All conds in one batch, last first, as ComfyUI does; several of one list are averaged."""
    entries = [(i, cond) for i, group in enumerate(conds) if group is not None for cond in group][::-1]
    rows = x_in.shape[0]
    if not entries:
        return [torch.zeros_like(x_in) for _ in conds]
    text = torch.cat([cond["model_conds"]["c_crossattn"].cond.expand(rows, -1, -1) for _, cond in entries])
    names = {"uuids": [cond["uuid"] for _, cond in entries], "cond_or_uncond": [i for i, _ in entries]}
    options = {**model_options["transformer_options"], **names}
    t, x = timestep.repeat(len(entries)), x_in.repeat(len(entries), 1, 1)
    parts = model.apply_model(x, t, c_crossattn=text, transformer_options=options).chunk(len(entries))
    given = [[part for (j, _), part in zip(entries, parts, strict=True) if j == i] for i in range(len(conds))]
    return [torch.stack(found).mean(0) if found else torch.zeros_like(x_in) for found in given]


def conditioning(seed: int) -> list[dict[str, Any]]:
    text = torch.randn(1, 3, TEXT, generator=torch.Generator().manual_seed(seed))
    return [{"uuid": uuid.uuid4(), "model_conds": {"c_crossattn": types.SimpleNamespace(cond=text)}}]


class CFGGuider:
    """Euler steps with classifier-free guidance."""

    def __init__(self, model_patcher: ModelPatcher) -> None:
        self.model_patcher, self.inner_model, self.cfg = model_patcher, model_patcher.model, 1.0
        self.conds: dict[str, Any] = {}

    def set_conds(self, positive: Any, negative: Any) -> None:
        self.conds = {"positive": positive, "negative": negative}

    def set_cfg(self, cfg: float) -> None:
        self.cfg = cfg

    def sample(self, noise: Tensor, sigmas: Tensor, callback: Any = None, seed: int = 3) -> Tensor:
        options = self.model_patcher.model_options
        found = get_all_wrappers(WrappersMP.SAMPLER_SAMPLE, options, is_model_options=True)
        return WrapperExecutor(self._sample, None, found).execute(self, sigmas, {"seed": seed}, callback, noise)

    def _sample(self, guider: Any, sigmas: Tensor, extra_args: Any, callback: Any, x: Tensor) -> Tensor:
        for i, (sigma, lower) in enumerate(pairwise(sigmas)):
            x0 = self(x, sigma.expand(len(x)), self.model_patcher.model_options, 3)
            x = x + (x - x0) / sigma * (lower - sigma)
            if callback is not None:
                callback(i, x0, x, len(sigmas) - 1)
        return x

    def __call__(self, *args: Any) -> Tensor:
        options = self.model_patcher.model_options
        found = get_all_wrappers(WrappersMP.PREDICT_NOISE, options, is_model_options=True)
        return WrapperExecutor(self.predict_noise, self, found).execute(*args)

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None) -> Tensor:
        negative = None if self.cfg == 1 else self.conds["negative"]
        c, u = calc_cond_batch(self.inner_model, [self.conds["positive"], negative], x, timestep, model_options)
        result = u + self.cfg * (c - u)
        for function in model_options["sampler_post_cfg_function"]:
            args = {"denoised": result, "cond": self.conds["positive"], "uncond": negative, "cond_scale": self.cfg,
                    "input": x, "cond_denoised": c, "uncond_denoised": u, "sigma": timestep, "model": self.inner_model,
                    "model_options": model_options}  # fmt: skip
            result = function(args)
        return result


def model_lora_keys_unet(model: Any, key_map: dict[str, Any]) -> dict[str, Any]:
    rows = (0, 0, WIDTH), (0, WIDTH, WIDTH)
    names = {f"transformer.block.to_{n}": ("diffusion_model.qkv.weight", r) for n, r in zip("qv", rows, strict=True)}
    return {**key_map, **names, "transformer.proj_out": "diffusion_model.final_layer.weight"}


def convert_lora(sd: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("core_writes_it_so.", "transformer."): tensor for key, tensor in sd.items()}


class KSampler:
    SAMPLERS, SCHEDULERS = ("euler", "euler_ancestral"), ("simple",)


def fix_empty_latent_channels(model: ModelPatcher, latent_image: Tensor) -> Tensor:
    return latent_image


def prepare_noise(latent_image: Tensor, seed: int, noise_inds: Any = None) -> Tensor:
    return torch.randn(latent_image.shape, generator=torch.Generator().manual_seed(seed))


def sample(
    model: ModelPatcher,
    noise: Tensor,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Any,
    negative: Any,
    latent_image: Tensor,
    denoise: float = 1.0,
    noise_mask: Any = None,
    callback: Any = None,
    disable_pbar: bool = False,
    seed: Any = None,
) -> Tensor:
    """Euler from the noise; a mask keeps what is outside it, and an ancestral sampler adds noise once, at the end."""
    guider = CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    drawn = guider.sample(noise, torch.linspace(denoise, 0, steps + 1), callback, seed)
    if sampler_name == "euler_ancestral":
        drawn = drawn + torch.randn(drawn.shape, generator=torch.Generator().manual_seed(seed))
    return drawn if noise_mask is None else drawn * noise_mask + latent_image * (1 - noise_mask)


class ProgressBar:
    """Ends the job like ComfyUI's when `cancelled_at` is reached."""

    told: ClassVar[list[tuple[int, int]]] = []
    cancelled_at: ClassVar[int | None] = None

    def __init__(self, total: int) -> None:
        self.total = total

    def update_absolute(self, value: int) -> None:
        self.told.append((value, self.total))
        if value == self.cancelled_at:
            raise InterruptedError("cancelled")


class Clip:
    """A text's conditioning is that of its length."""

    def tokenize(self, text: str) -> int:
        return len(text)

    def encode_from_tokens_scheduled(self, tokens: int) -> Any:
        return [[conditioning(tokens)[0]["model_conds"]["c_crossattn"].cond, {"pooled_output": None}]]


class VAE:
    """Pictures of 8 x 8 pixels from tokens (B, 4, WIDTH)."""

    def decode(self, samples: Tensor) -> Tensor:
        pixels = samples[:, :2, :].sigmoid().reshape(len(samples), 2, 2, 3)
        return pixels.repeat_interleave(4, 1).repeat_interleave(4, 2)


class BypassInjectionManager:
    """What a bypass loader puts beside one layer."""

    def __init__(self, module: Any, adapter: Any) -> None:
        self.hooks = [types.SimpleNamespace(module=module, adapter=adapter)]

    def create_injections(self) -> list[Any]:
        return [types.SimpleNamespace(inject=lambda patcher: [hook.module for hook in self.hooks])]


def load_diffusion_model(unet_path: str) -> ModelPatcher:
    return ModelPatcher(BaseModel())


class Entry:
    """An input or output of a node."""

    def __init__(self, id: str = "", **facts: Any) -> None:
        self.id, self.extra_dict, self.optional = id, {}, facts.get("optional", False)
        self.tooltip, self.facts = facts.get("tooltip"), facts


class _FloatInput(Entry):
    def __init__(
        self,
        id: str,
        optional: bool = False,
        tooltip: Any = None,
        default: Any = None,
        min: Any = None,
        max: Any = None,
        step: Any = None,
    ) -> None:
        super().__init__(id, optional=optional, tooltip=tooltip, default=default, min=min, max=max, step=step)


class _IntInput(_FloatInput):
    pass


class _ComboInput(Entry):
    def __init__(
        self, id: str, options: Any = None, optional: bool = False, tooltip: Any = None, default: Any = None
    ) -> None:
        super().__init__(id, options=options, optional=optional, tooltip=tooltip, default=default)


class _StringInput(Entry):
    def __init__(
        self, id: str, optional: bool = False, tooltip: Any = None, multiline: bool = False, default: Any = None
    ) -> None:
        super().__init__(id, optional=optional, tooltip=tooltip, multiline=multiline, default=default)


class _SocketInput(Entry):
    def __init__(self, id: str, optional: bool = False, tooltip: Any = None) -> None:
        super().__init__(id, optional=optional, tooltip=tooltip)


class _Output(Entry):
    def __init__(self, display_name: Any = None, tooltip: Any = None, is_output_list: bool = False) -> None:
        super().__init__("", tooltip=tooltip, display_name=display_name, is_output_list=is_output_list)


def _type(io_type: str, input_class: type = _SocketInput) -> Any:
    named = {"io_type": io_type}
    return type(
        "Type", (), {"Input": type("Input", (input_class,), named), "Output": type("Output", (_Output,), named)}
    )


class Schema:
    def __init__(
        self,
        node_id: str,
        display_name: Any = None,
        category: str = "",
        inputs: Any = None,
        outputs: Any = None,
        hidden: Any = None,
        description: str = "",
        is_output_node: bool = False,
    ) -> None:
        self.node_id, self.display_name, self.category, self.description = node_id, display_name, category, description
        self.inputs, self.outputs, self.hidden = inputs or [], outputs or [], hidden or []


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui


class ComfyNode:
    hidden = types.SimpleNamespace(unique_id="7", prompt={})


class PreviewImage:
    def __init__(self, image: Any, cls: Any = None) -> None:
        self.image = image

    def as_dict(self) -> dict[str, Any]:
        return {"images": [{"filename": f"{i}.png", "subfolder": "", "type": "temp"} for i in range(len(self.image))]}


class PreviewText:
    def __init__(self, value: str) -> None:
        self.value = value


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """Put the fake in the place of ComfyUI for one test; returns the list that live texts are added to."""
    texts: list[str] = []
    monkeypatch.setattr(ProgressBar, "told", [])

    class PromptServer:
        messages: ClassVar[list[Any]] = []
        handlers: ClassVar[list[Any]] = []
        answers: ClassVar[dict[str, Any]] = {}
        instance: Any = types.SimpleNamespace(
            send_progress_text=lambda text, node_id: texts.append(text),
            send_sync=lambda event, data: PromptServer.messages.append((event, data)),
            add_on_prompt_handler=lambda handler: PromptServer.handlers.append(handler),
            routes=types.SimpleNamespace(post=lambda path: lambda answer: PromptServer.answers.update({path: answer})),
        )

    io = types.SimpleNamespace(
        Custom=_type,
        Combo=_type("COMBO", _ComboInput),
        Float=_type("FLOAT", _FloatInput),
        Int=_type("INT", _IntInput),
        String=_type("STRING", _StringInput),
        **{
            name: _type(name.upper())
            for name in ("Model", "Conditioning", "Latent", "Image", "Guider", "Clip", "Vae", "Mask")
        },
        Schema=Schema,
        NodeOutput=NodeOutput,
        ComfyNode=ComfyNode,
        Hidden=types.SimpleNamespace(unique_id="UNIQUE_ID", prompt="PROMPT"),
    )
    ui = types.SimpleNamespace(PreviewImage=PreviewImage, PreviewText=PreviewText)

    folders = [folder / "loras"]  # of models/loras, the only kind that the nodes ask for

    def add_folder(folder_name: str, full_folder_path: str) -> None:
        folders.append(Path(full_folder_path))

    def full_path(folder_name: str, filename: str) -> str:
        found = next((path for place in folders if (path := place / filename).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"Model in folder '{folder_name}' with filename '{filename}' not found.")
        return str(found)

    modules: dict[str, dict[str, Any]] = {
        "comfy": {},
        "comfy.lora": {"model_lora_keys_unet": model_lora_keys_unet},
        "comfy.lora_convert": {"convert_lora": convert_lora},
        "comfy.model_sampling": {"CONST": CONST},
        "comfy.model_base": {"BaseModel": BaseModel},
        "comfy.model_patcher": {"ModelPatcher": ModelPatcher},
        "comfy.sample": {
            "fix_empty_latent_channels": fix_empty_latent_channels,
            "prepare_noise": prepare_noise,
            "sample": sample,
        },
        "comfy.samplers": {"calc_cond_batch": calc_cond_batch, "CFGGuider": CFGGuider, "KSampler": KSampler},
        "comfy.utils": {"ProgressBar": ProgressBar, "PROGRESS_BAR_ENABLED": False},
        "comfy.patcher_extension": {
            "WrappersMP": WrappersMP,
            "CallbacksMP": CallbacksMP,
            "WrapperExecutor": WrapperExecutor,
            "get_all_wrappers": get_all_wrappers,
        },
        "comfy.sd": {"load_diffusion_model": load_diffusion_model},
        "comfy.weight_adapter": {"BypassInjectionManager": BypassInjectionManager},
        "comfy_api": {},
        "comfy_api.latest": {"io": io, "ui": ui, "ComfyExtension": type("ComfyExtension", (), {})},
        "server": {"PromptServer": PromptServer},
        "aiohttp": {"web": types.SimpleNamespace(json_response=lambda data, status=200: (status, data))},
        "folder_paths": {
            "add_model_folder_path": add_folder,
            "get_filename_list": lambda folder_name: sorted({p.name for place in folders for p in place.glob("*")}),
            "get_folder_paths": lambda folder_name: [str(place) for place in folders],
            "get_full_path_or_raise": full_path,
            "get_output_directory": lambda: str(folder / "output"),
        },
    }
    for name, contents in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(contents)
        module.__path__ = []  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    room = "nft_pipeline.comfy_nodes"
    for name in ("nodes", "host", "build", "inputs", "sheet"):  # imported anew, on this fake
        for module_name in [known for known in sys.modules if f"{known}.".startswith(f"{room}.{name}.")]:
            monkeypatch.delitem(sys.modules, module_name)
        monkeypatch.delattr(nft_pipeline.comfy_nodes, name, raising=False)
    return texts
