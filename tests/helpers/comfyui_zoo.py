"""Draws the same graphs with a LoRA loader and with Reward Guidance, inside a real ComfyUI; started by tests/comfyui.

    python comfyui_zoo.py <ComfyUI checkout> <this repository> <folder>

The folder holds base.safetensors, inputs.safetensors and loras/policy.safetensors. The graphs are made from what this
ComfyUI has: each of its samplers, each node that gives a GUIDER, each node that takes one MODEL and gives one, before
the guide and after it, and neighbouring pairs of those that change the picture and agree, with the guide between them.
A choice of few options is tried with each of them. zoo.json says of each graph:

    gap       largest difference between the guided latents at strength 1 and those of the LoRA loader at 1, as a share
              of the largest of these (or of 1, if that is more)
    effect    how far the loader moves the latents; 0 where its graph does not draw
    off       whether the guided latents at strength 0 are those of the graph without a guide, bit for bit
    error     what went wrong with the guide, where the loader's graph draws; "" for nothing
    skipped   why this graph says nothing, "" where it does
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from comfyui_driver import Driver, allow_torchvision_without_its_binary

CFG = 3.5
AGREES = 1e-3  # a node that does not agree by itself is not tried in pairs
OPTIONS = 4  # choices with more options are left at their default
WIDGETS = {"INT", "FLOAT", "BOOLEAN", "STRING"}
LEFT_OUT = {"TorchCompileModel": "compiling takes minutes, and test_real.py compiles"}
Change = Callable[[Any], Any]


class Unfit(Exception):
    """A node that cannot be filled in without knowing it."""


class Zoo:
    """One ComfyUI, and graphs drawn in it."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.samplers = driver, driver.comfy.samplers
        given = driver.inputs
        self.prompts = {
            name: [[given[name], {"pooled_output": given[f"{name}_pooled"]}]]
            for name in ("positive", "negative", "third")
        }
        self.graphs: dict[str, dict[str, Any]] = {}
        self.changing: list[tuple[str, Change]] = []

    def loader(self, model: Any) -> Any:
        file = str(self.driver.folder / "loras" / "policy.safetensors")
        tensors = self.driver.comfy.utils.load_torch_file(file, safe_load=True)
        return self.driver.comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0)[0]

    def guide(self, model: Any, strength: float = 1.0) -> Any:
        values = {"model": model, "adapter": "policy.safetensors", "strength": strength, "mode": "exact"}
        return self.driver.run_node("NFTRewardGuidance", values, {})[0]

    def off(self, model: Any) -> Any:
        return self.guide(model, 0.0)

    def cfg_guider(self, model: Any) -> Any:
        guider = self.samplers.CFGGuider(model)
        guider.set_conds(self.prompts["positive"], self.prompts["negative"])
        guider.set_cfg(CFG)
        return guider

    def draw(self, guider: Any, sampler: str = "euler") -> torch.Tensor:
        noise = self.driver.inputs["noise"]
        drawn = guider.sample(
            noise,
            torch.zeros_like(noise),
            self.samplers.sampler_object(sampler),
            self.driver.inputs["sigmas"],
            disable_pbar=True,
            seed=5,
        )
        if not bool(drawn.isfinite().all()):
            raise Unfit("the latents are not finite")
        return drawn

    def compare(self, name: str, graph: Callable[[Change], torch.Tensor]) -> bool:
        """Draws one graph with each way of changing the model; whether it says anything."""
        entry = self.graphs[name] = {"gap": 0.0, "effect": 0.0, "off": True, "error": "", "skipped": ""}
        try:
            loaded, plain = graph(self.loader), graph(lambda model: model)
        except Exception as error:
            entry["skipped"] = f"{type(error).__name__}: {error}"[:200]
            return False
        try:
            entry["effect"] = (loaded - plain).abs().max().item()
            entry["gap"] = ((graph(self.guide) - loaded).abs().max() / loaded.abs().max().clamp(min=1)).item()
            entry["off"] = torch.equal(graph(self.off), plain)
        except Exception as error:
            entry["error"] = f"{type(error).__name__}: {error}"[:400]
        print(name, entry, flush=True)
        return True

    def fill(self, node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """Values for the inputs of a node, with its MODEL inputs left at None: its defaults, then other options."""
        types = node.INPUT_TYPES()
        values: dict[str, Any] = {}
        choices: dict[str, list[Any]] = {}
        for name, spec in {**types.get("required", {}), **types.get("optional", {})}.items():
            kind, facts = spec[0], spec[1] if len(spec) > 1 else {}
            options = list(kind) if isinstance(kind, (list, tuple)) else facts.get("options", [])
            if kind == "MODEL":
                values[name] = None
            elif kind == "CONDITIONING":
                negative = "neg" in name or "uncond" in name
                taken = any(value is self.prompts["positive"] for value in values.values())
                other = "third" if taken or "empty" in name else "positive"
                values[name] = self.prompts["negative" if negative else other]
            elif name not in types.get("required", {}):
                continue
            elif options:
                values[name] = facts.get("default", options[0])
                if len(options) <= OPTIONS:
                    choices[name] = [option for option in options if option != values[name]]
            elif str(kind) in WIDGETS:
                values[name] = min(facts["default"], CFG) if name.startswith("cfg") else facts.get("default", "")
                if kind == "BOOLEAN":
                    choices[name] = [not values[name]]
            else:
                raise Unfit(f"its input {name} is a {kind}")
        yield "", values
        for name, others in choices.items():
            for other in others:
                yield f" {name}={other}", {**values, name: other}

    def call(self, node: Any, values: dict[str, Any], model: Any) -> Any:
        """The first output of a node, with this model at each of its MODEL inputs."""
        types = node.INPUT_TYPES()
        kinds = {name: spec[0] for name, spec in {**types.get("required", {}), **types.get("optional", {})}.items()}
        given = {name: model if kinds[name] == "MODEL" else value for name, value in values.items()}
        out = getattr(node(), node.FUNCTION)(**given)
        return (out.args if hasattr(out, "args") else out)[0]

    def all_of_them(self, nodes: dict[str, Any]) -> None:
        for name in self.samplers.KSampler.SAMPLERS:
            self.compare(
                f"sampler {name}", lambda change, name=name: self.draw(self.cfg_guider(change(self.base)), name)
            )
        for name, node in sorted(nodes.items()):
            outputs = list(node.RETURN_TYPES)
            if outputs[:1] not in (["MODEL"], ["GUIDER"]):
                continue
            if name in LEFT_OUT:
                self.graphs[name] = {"gap": 0.0, "effect": 0.0, "off": True, "error": "", "skipped": LEFT_OUT[name]}
                continue
            try:
                variants = list(self.fill(node))
            except Exception as error:
                self.graphs[name] = {"gap": 0.0, "effect": 0.0, "off": True, "error": "", "skipped": str(error)[:200]}
                continue
            for label, values in variants:
                taken = [key for key, value in values.items() if value is None]
                if outputs[0] == "GUIDER" and taken:
                    self.of_guider(f"{name}{label}", node, values)
                elif outputs[0] == "MODEL" and len(taken) == 1:
                    self.of_node(f"{name}{label}", node, values)
        ring = [*self.changing, *self.changing[:1]]
        for (first, before), (second, after) in pairwise(ring if len(ring) > 2 else []):
            self.compare(
                f"pair {first}, guide, {second}",
                lambda change, a=before, b=after: self.draw(self.cfg_guider(b(change(a(self.base))))),
            )

    def of_guider(self, name: str, node: Any, values: dict[str, Any]) -> None:
        self.compare(f"guider {name}", lambda change: self.draw(self.call(node, values, change(self.base))))

    def of_node(self, name: str, node: Any, values: dict[str, Any]) -> None:
        def act(model: Any) -> Any:
            return self.call(node, values, model)

        said = self.compare(f"before {name}", lambda change: self.draw(self.cfg_guider(change(act(self.base)))))
        if not said:
            return
        self.compare(f"after {name}", lambda change: self.draw(self.cfg_guider(act(change(self.base)))))
        plain = self.draw(self.cfg_guider(self.base))
        changes = not torch.equal(self.draw(self.cfg_guider(act(self.base))), plain)
        if changes and self.graphs[f"before {name}"]["gap"] < AGREES:
            self.changing.append((name, act))

    @property
    def base(self) -> Any:
        return self.driver.base


def main() -> None:
    root, repository, folder = map(Path, sys.argv[1:4])
    logging.disable(logging.WARNING)
    allow_torchvision_without_its_binary()
    driver = Driver(root, repository, folder)
    import nodes

    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    core = {name: node for name, node in nodes.NODE_CLASS_MAPPINGS.items() if not getattr(node, "OUTPUT_NODE", False)}
    zoo = Zoo(driver)
    with torch.inference_mode():  # as ComfyUI's executor
        zoo.all_of_them(core)
    (folder / "zoo.json").write_text(json.dumps(zoo.graphs, indent=1))


if __name__ == "__main__":
    main()
