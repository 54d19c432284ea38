"""Adapters: what a reward adapter is, in memory and on disk, and which base model it fits.

    adapter = read_adapter("shapes-warm")                  # a shipped name, a folder, or a Hub id
    check_base(adapter.config, pipe.transformer, adapter.lora)
    write_adapter("my_adapter", adapter)

This module is the door to the room `nft_pipeline.adapters`. Its modules are config (nft_config.json), content (do the
parts belong together?), read, write, base_check (does the base model fit?) and keys (the names of tensors).
"""

from __future__ import annotations

from .adapters.base_check import check_base, check_lora_modules, fingerprint
from .adapters.config import AdapterConfig, BaseModel
from .adapters.content import Adapter
from .adapters.read import read_adapter
from .adapters.write import write_adapter
from .errors import AdapterError

__all__ = [
    "Adapter",
    "AdapterConfig",
    "AdapterError",
    "BaseModel",
    "check_base",
    "check_lora_modules",
    "fingerprint",
    "read_adapter",
    "write_adapter",
]
