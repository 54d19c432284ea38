"""Adapters: what a reward adapter is, in memory and on disk, and which base model it fits.

    adapter = read_adapter("shapes-warm")                  # a shipped name, a folder, or a Hub id
    check_base(adapter.config, pipe.transformer, adapter.lora)
    write_adapter("my_adapter", adapter)

This page is the door; the rooms behind it are adapter_config (nft_config.json), adapter_content (the parts belong
together), adapter_read, adapter_write, adapter_base (does the base model fit?) and keys (tensor names).
"""

from __future__ import annotations

from .adapter_base import check_base, check_lora_modules, fingerprint
from .adapter_config import AdapterConfig, AdapterError, BaseModel
from .adapter_content import Adapter
from .adapter_read import read_adapter
from .adapter_write import write_adapter

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
