"""Is this the base model the adapter was trained on?

An adapter on the wrong base draws noise, or nothing happens at all because no layer matches; other tools print a
warning for each key and go on. Here it is one error, before anything is changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor, nn

from ..errors import AdapterError
from ..families.registry import unwrap_compiled
from .config import AdapterConfig
from .keys import component_lora, lora_key, lora_modules, strip_injected


def fingerprint(denoiser: nn.Module) -> str:
    """A short name for the architecture: "sha256:" and 16 hex digits over the sorted (name, shape) of all tensors.

    Parameters and saved buffers count; values, dtypes and devices do not, so fine-tunes share it. LoRAs injected by
    peft and torch.compile's wrapper leave it unchanged. So does quantisation: for a layer whose class derives from
    nn.Linear or a convolution, the sizes that it declares count, not its packed weights, scales and zero points.
    """
    lines = []
    inside = None
    for path, module in denoiser.named_modules(remove_duplicate=False):
        if inside is not None and path.startswith(inside):
            continue  # what a quantised layer keeps in modules of its own; they come right behind it
        sizes = _layer_sizes(module)
        if sizes is not None:
            inside = f"{path}."
            for own, size in sizes.items():
                name = strip_injected(f"{path}.{own}" if path else own)
                if name is not None:
                    lines.append(f"{name} {'x'.join(map(str, size))}")
            continue
        saved = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for own, tensor in [*module._parameters.items(), *saved.items()]:
            name = strip_injected(f"{path}.{own}" if path else own)
            if name is not None and tensor is not None:
                lines.append(f"{name} {'x'.join(map(str, tensor.shape))}")
    return "sha256:" + hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def _layer_sizes(module: nn.Module) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the weight and bias that a linear layer or convolution of a quantiser's class stands for.

    None for other modules, and for PyTorch's own layers, whose tensors have these shapes.
    """
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    weight: tuple[int, ...]
    if type(module) in (nn.Linear, *convolutions):
        return None
    if isinstance(module, nn.Linear):
        weight = (module.out_features, module.in_features)
    elif isinstance(module, convolutions):
        weight = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    else:
        return None
    return {"weight": weight} if module.bias is None else {"weight": weight, "bias": weight[:1]}


def check_base(config: AdapterConfig, denoiser: nn.Module, lora: Mapping[str, Tensor] | None = None) -> None:
    """Raise unless `denoiser` is of the class and architecture the adapter was trained on.

    Args:
        config: the adapter's.
        denoiser: the loaded model's transformer or unet, with or without LoRAs injected.
        lora: the adapter's LoRA; if given, the error also counts how many of its layers would match.

    Raises:
        AdapterError: naming the adapter's base, the loaded model, and what to do.
    """
    loaded = unwrap_compiled(denoiser)
    found = fingerprint(denoiser)
    if type(loaded).__name__ == config.denoiser and found == config.base_model.fingerprint:
        return
    base = config.base_model
    revision = f" at {base.revision}" if base.revision else ""
    faults = [
        f"the adapter needs {base.id}{revision}: {config.denoiser}, {base.fingerprint}",
        f"the loaded model is{_origin(loaded)} {type(loaded).__name__}, {found}",
    ]
    if lora is not None:
        names = lora_modules(component_lora(lora, config.component))
        matched = sum(not _module_faults(module, lora, config.component, loaded) for module in names)
        faults.append(f"{matched} of {len(names)} LoRA layers match")
    raise AdapterError(
        f'the adapter "{config.name}" was made for another base model',
        faults,
        f"Load {base.id}{revision}, or a fine-tune of it, or take an adapter made for the model you have.",
    )


def check_lora_modules(lora: Mapping[str, Tensor], denoiser: nn.Module, component: str = "transformer") -> int:
    """Raise unless every layer of the LoRA finds its module in the denoiser, with the right shapes.

    Args:
        lora: diffusers-keyed, see `nft_pipeline.adapters.keys`; keys of this component only.
        denoiser: the module that `component` names, with or without LoRAs injected.
        component: the first part of the keys.

    Returns:
        The number of layers, all of which match.

    Raises:
        AdapterError: naming every layer that does not match and why, with the count of those that do.
    """
    loaded = unwrap_compiled(denoiser)
    names = lora_modules(lora)
    faults = [fault for module in names for fault in _module_faults(module, lora, component, loaded)[:1]]
    if faults or not names:
        raise AdapterError(
            f"{len(names) - len(faults)} of {len(names)} LoRA layers match the loaded{_origin(loaded)} "
            f"{type(loaded).__name__}",
            faults,
            "Load the base model the adapter was made for (nft_config.json names it).",
        )
    return len(names)


def _origin(denoiser: nn.Module) -> str:
    """Where diffusers says the model came from, if it says."""
    name = getattr(getattr(denoiser, "config", None), "_name_or_path", None)
    return f" {name}" if name else ""


def _module_faults(module: str, lora: Mapping[str, Tensor], component: str, denoiser: nn.Module) -> list[str]:
    a, b = lora.get(lora_key(component, module, "A")), lora.get(lora_key(component, module, "B"))
    if a is None or b is None:
        return [f'{module}: not a complete A and B of "{component}"']
    try:
        layer = denoiser.get_submodule(module)
    except AttributeError:
        return [f"{module}: the model has no such module"]
    layer = getattr(layer, "base_layer", layer)
    # Sizes as attributes, not from the weight: quantised layers pack theirs.
    if isinstance(layer, nn.Conv2d):
        needs_a = (layer.in_channels, *layer.kernel_size)
        needs_b = (layer.out_channels,)
    elif isinstance(layer, nn.Linear):
        needs_a, needs_b = (layer.in_features,), (layer.out_features,)
    else:
        return [f"{module}: is a {type(layer).__name__}, expected a linear layer or a 2-D convolution"]
    if (*a.shape[1:],) != needs_a or (b.shape[0],) != needs_b:
        return [
            f"{module}: A {tuple(a.shape)} and B {tuple(b.shape)} do not fit, "
            f"expected A (rank, {', '.join(map(str, needs_a))}) and B ({needs_b[0]}, rank)"
        ]
    return []
