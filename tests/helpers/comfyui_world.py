"""A FAKE ComfyUI with one model and adapters in models/loras, and the same pictures computed by hand.

The fake itself is helpers/fake_comfyui.py.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from helpers import fake_comfyui as fake
from helpers.adapters import config_values, random_head
from nft_pipeline.adapter import Adapter, AdapterConfig, write_adapter

SIGMAS = torch.linspace(1, 0, 6)
STEPS = len(SIGMAS) - 1
LAYERS = {"block.to_q": fake.WIDTH, "block.to_v": fake.WIDTH, "proj_out": fake.WIDTH}


def random_lora(seed: int, size: float = 0.3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for name in LAYERS:
        lora[f"transformer.{name}.lora_A.weight"] = torch.randn(2, fake.WIDTH, generator=generator)
        lora[f"transformer.{name}.lora_B.weight"] = size * torch.randn(fake.WIDTH, 2, generator=generator)
    return lora


def words_of(conds: list[dict[str, Any]]) -> Tensor:
    return conds[0]["model_conds"]["c_crossattn"].cond.expand(2, -1, -1)


class World:
    """A fake ComfyUI with one model, and adapters in models/loras."""

    def __init__(self, folder: Path, texts: list[str]) -> None:
        from nft_pipeline.comfy_nodes import nodes

        self.nodes = SimpleNamespace(NODES=nodes.NODES, **{node.__name__: node for node in nodes.NODES})
        self.folder, self.texts = folder, texts
        self.model = fake.ModelPatcher(fake.BaseModel())
        self.positive, self.negative = fake.conditioning(1), fake.conditioning(2)
        self.noise = torch.randn(2, 4, fake.WIDTH, generator=torch.Generator().manual_seed(3))
        self.adapters: dict[str, Adapter] = {}
        (folder / "loras").mkdir()
        self.add("liked", "positive", 4)
        self.add("policy", "policy", 4)
        self.add("other", "policy", 5)

    def add(self, name: str, kind: str, seed: int, **changed: Any) -> None:
        """An adapter in models/loras; `changed` overrides fields of its config."""
        config = AdapterConfig.from_dict(config_values(kind=kind, name=name, rank=2, **changed))
        head = random_head(fake.WIDTH, fake.TEXT) if kind == "positive" else None
        self.adapters[name] = Adapter(config, random_lora(seed), head)
        written = write_adapter(self.folder / "written" / name, self.adapters[name])
        shutil.copy(written / "comfyui" / f"{name}.safetensors", self.folder / "loras")

    def guided(self, adapter: str = "liked", model: Any = None, strength: float = 1.0, **values: Any) -> Any:
        node = self.nodes.NFTRewardGuidance
        return node.execute(model or self.model, f"{adapter}.safetensors", strength=strength, **values).args[0]

    def sample(self, model: Any, cfg: float = 1.0) -> Tensor:
        guider = fake.CFGGuider(model)
        guider.set_conds(self.positive, self.negative)
        guider.set_cfg(cfg)
        return guider.sample(self.noise, SIGMAS)

    def merged(self, adapter: str, scale: float = 1.0) -> fake.BaseModel:
        """The model with the LoRA in its weights."""
        model = copy.deepcopy(self.model.model)
        lora = self.adapters[adapter].lora
        delta = {name: scale * lora[f"transformer.{name}.lora_B.weight"] @ lora[f"transformer.{name}.lora_A.weight"]
                 for name in LAYERS}  # fmt: skip
        model.diffusion_model.qkv.weight += torch.cat([delta["block.to_q"], delta["block.to_v"]])
        model.diffusion_model.final_layer.weight += delta["proj_out"]
        return model

    def by_hand(self, scale_of: Callable[[Tensor, float], Tensor], adapter: str, cfg: float, guide: str) -> Tensor:
        """Both predictions guided before classifier-free guidance, as the pipeline does it."""
        base, plus = self.model.model, self.merged(adapter)
        text = [
            conds[0]["model_conds"]["c_crossattn"].cond.expand(2, -1, -1) for conds in (self.positive, self.negative)
        ]
        x = self.noise
        for sigma, lower in pairwise(SIGMAS):
            seen: list[Tensor] = []
            hook = base.diffusion_model.final_layer.register_forward_pre_hook(lambda m, a, seen=seen: seen.append(a[0]))
            old = [base.diffusion_model(x, words) for words in text]
            hook.remove()
            new = [plus.diffusion_model(x, words) for words in text]
            head = self.adapters[adapter].head
            alpha = torch.ones(2) if head is None else head.alpha(seen[0], sigma.expand(2), text[0])
            s = scale_of(alpha, float(sigma)).reshape(-1, 1, 1)
            c = old[0] + s * (new[0] - old[0])
            u = old[1] + s * (new[1] - old[1]) if guide == "both" else old[1]
            x = x + (u + cfg * (c - u)) * (lower - sigma)
        return x
