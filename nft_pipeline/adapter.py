"""Adapters: what a reward adapter is, in memory and on disk, and which base model it fits.

    adapter = read_adapter("shapes-warm")                  # a shipped name, a folder, or a Hub id
    check_base(adapter.config, pipe.transformer, adapter.lora)
    write_adapter("my_adapter", adapter)

This page is the door; the rooms behind it are adapter_config (nft_config.json), adapter_content (the parts belong
together), adapter_read, adapter_write, adapter_base (does the base model fit?) and keys (tensor names).
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
