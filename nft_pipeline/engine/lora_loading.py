"""Loading a LoRA onto a denoiser: through diffusers where the class can, through peft alone where it cannot.

Some denoisers of diffusers (PixArt, Lumina) lack its LoRA methods. peft does the same for them, but without
diffusers' care for CPU offloading. So switch their offloading on after the adapter is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..adapters.keys import lora_modules


def attach_lora(denoiser: nn.Module, lora: Mapping[str, Tensor], component: str, name: str, pipe: Any = None) -> None:
    """Put a LoRA of one rank, scale 1, on the denoiser under `name`, and make it the active one.

    Args:
        denoiser: not wrapped by torch.compile.
        lora: diffusers-keyed, see `nft_pipeline.adapters.keys`.
        component: the first part of the keys.
        name: for peft.
        pipe: lets diffusers take CPU offloading off and on again.
    """
    load = getattr(denoiser, "load_lora_adapter", None)
    if load is not None:
        load(dict(lora), prefix=component, adapter_name=name, _pipeline=pipe)
        return
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    rank = next(tensor.shape[0] for key, tensor in lora.items() if key.endswith("lora_A.weight"))
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=lora_modules(lora))
    inject_adapter_in_model(config, denoiser, adapter_name=name)
    inner = {key.removeprefix(f"{component}."): tensor for key, tensor in lora.items()}
    set_peft_model_state_dict(denoiser, inner, adapter_name=name)
