"""Which number format a run computes in, and why."""

from __future__ import annotations

import contextlib

import torch

from ..settings.choices import Precision


def choose_precision(wanted: Precision, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of the forwards (weights and sums stay fp32) and the reason, in words.

    "auto" is bf16 where the hardware multiplies in bf16, which is about twice as fast there and slower elsewhere.
    fp16 is for older GPUs without it; the trainer then scales its losses so that small gradients survive.
    """
    if wanted != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted], f"{wanted} as asked for"
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
        name = "this CPU"
    else:
        fast, name = False, device.type
    if fast:
        return torch.bfloat16, f"bf16: {name} multiplies in bf16"
    return torch.float32, f"fp32: {name} has no fast bf16"


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """torch.autocast to `dtype`, or nothing for fp32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)
