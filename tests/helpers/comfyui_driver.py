"""Runs sampling jobs inside a real ComfyUI; started by tests/comfyui with ComfyUI's own interpreter.

    python comfyui_driver.py <ComfyUI checkout> <this repository> <folder with jobs.json and inputs.safetensors>

Loads the repository as ComfyUI does, by path under a name of its own, samples each job with ComfyUI's functions, and
writes latents.safetensors and report.json into the folder. A job:

    {"name": ..., "steps": [{"lora": file, "strength": 1.0}, {"node": "NFTRewardGuidance", "values": {...}}, ...],
     "cfg": 1.0, "sampler": "euler", "prompts": 1 or 2 positive ones at once, "stop": step to be interrupted after,
     "use": name of a MODEL kept by an earlier job, "keep": name to keep this MODEL under,
     "base": name of a shipped model to start from, with its own prompts ("<name> text", ...), instead of base}
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch


def allow_torchvision_without_its_binary() -> None:
    """torchvision's compiled part is made for CUDA builds of torch; beside a CPU build two names must be declared."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()["_kept"] = library


class Driver:
    """One ComfyUI, one base model, many jobs."""

    def __init__(self, root: Path, repository: Path, folder: Path) -> None:
        self.folder = folder
        sys.path.insert(0, str(root))
        sys.argv = sys.argv[:1]
        from comfy.cli_args import args

        args.cpu = True
        import comfy.model_management
        import comfy.sample
        import comfy.samplers
        import comfy.sd
        import comfy.utils
        import folder_paths

        self.comfy = comfy
        folder_paths.add_model_folder_path("loras", str(folder / "loras"), is_default=True)
        spec = importlib.util.spec_from_file_location(
            "custom_nodes_x_diffusion-nft", repository / "__init__.py", submodule_search_locations=[str(repository)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        before = set(sys.modules)
        extension = asyncio.run(module.comfy_entrypoint())
        self.brought = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
        self.nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}
        from safetensors.torch import load_file

        self.inputs = load_file(folder / "inputs.safetensors")
        self.base = comfy.sd.load_diffusion_model(str(folder / "base.safetensors"))
        self.shipped: dict[str, Any] = {}
        self.kept: dict[str, Any] = {}
        self.latents: dict[str, torch.Tensor] = {}
        self.report: dict[str, Any] = {}

    def without_tooltip(self) -> list[str]:
        schemas = {name: node.GET_SCHEMA() for name, node in self.nodes.items()}
        entries = [(name, entry) for name, schema in schemas.items() for entry in [*schema.inputs, *schema.outputs]]
        return [f"{name}.{entry.id}" for name, entry in entries if not entry.tooltip]

    def run_node(self, name: str, values: dict[str, Any], outputs: dict[str, Any]) -> tuple[Any, ...]:
        node = self.nodes[name]
        called = type(node.__name__, (node,), {"hidden": SimpleNamespace(unique_id="7", prompt={}, extra_pnginfo=None)})
        values = {key: outputs[value[1:]] if str(value).startswith("$") else value for key, value in values.items()}
        return called.execute(**values).args

    def base_of(self, job: dict[str, Any]) -> Any:
        """The model that a job starts from, of which there is one, as in a graph whose nodes are cached."""
        name = job.get("base")
        if name is not None and name not in self.shipped:
            self.shipped[name] = self.run_node("NFTShapesModel", {"model": name}, {})[0]
        return self.base if name is None else self.shipped[name]

    def build(self, job: dict[str, Any], notes: list[str]) -> Any:
        model = self.kept[job["use"]] if "use" in job else self.base_of(job)
        outputs: dict[str, Any] = {}
        for step in job.get("steps", []):
            if "lora" in step:
                tensors = self.comfy.utils.load_torch_file(str(self.folder / "loras" / step["lora"]), safe_load=True)
                model, _ = self.comfy.sd.load_lora_for_models(model, None, tensors, step["strength"], 0)
            elif "compile" in step:
                from comfy_api.torch_helpers import set_torch_compile_wrapper

                model = model.clone()
                set_torch_compile_wrapper(model, backend="eager")
            else:
                values = dict(step["values"])
                takes_model = "model" in {entry.id for entry in self.nodes[step["node"]].GET_SCHEMA().inputs}
                if takes_model:
                    values["model"] = model
                given = self.run_node(step["node"], values, outputs)
                if takes_model:
                    model = given[0]
                    notes.extend(given[1:])
                else:
                    outputs[step["as"]] = given[0]
        return model

    def run(self, job: dict[str, Any]) -> None:
        notes: list[str] = []
        entry = self.report[job["name"]] = {"notes": notes, "error": None}
        try:
            model = self.build(job, notes)
            if "keep" in job:
                self.kept[job["keep"]] = model
            self.latents[job["name"]] = self.sample(model, job)
        except Exception as error:
            entry["error"] = f"{type(error).__name__}: {error}"
        loaded = [one.model.model for one in self.comfy.model_management.current_loaded_models if one.model is not None]
        weights = [one for one in loaded if type(one).__name__ == "Weights"]  # of adapters
        entry["counted"] = sum(p.numel() * p.element_size() for one in weights for p in one.parameters())
        base = self.base_of(job)
        entry["replaced_forwards"] = sum("forward" in m.__dict__ for m in base.model.modules())
        entry["patched"] = len(base.patches)

    def sample(self, model: Any, job: dict[str, Any]) -> torch.Tensor:
        samplers, own = self.comfy.samplers, f"{job['base']} " if "base" in job else ""
        given = {key: self.inputs.get(own + key, tensor) for key, tensor in self.inputs.items()}
        positive = [[given["text"], {"pooled_output": given["pooled"]}]]
        if job.get("prompts", 1) == 2:
            positive += [[given["negative_text"], {"pooled_output": given["negative_pooled"]}]]
        negative = [[given["negative_text"], {"pooled_output": given["negative_pooled"]}]]
        noise, sigmas = given["noise"], given["sigmas"]
        out = self.comfy.sample.sample_custom(
            model,
            noise,
            job.get("cfg", 1.0),
            samplers.sampler_object(job.get("sampler", "euler")),
            sigmas,
            positive,
            negative,
            torch.zeros_like(noise),
            callback=lambda step, *rest: stop_after(step, job.get("stop")),
            disable_pbar=True,
            seed=0,
        )
        return self.base.model.process_latent_in(out).float().contiguous()


def stop_after(step: int, stop: int | None) -> None:
    """As when a person presses Cancel."""
    if step == stop:
        raise InterruptedError("interrupted")


def main() -> None:
    root, repository, folder = map(Path, sys.argv[1:4])
    logging.disable(logging.INFO)
    allow_torchvision_without_its_binary()
    driver = Driver(root, repository, folder)
    with torch.inference_mode():  # as ComfyUI's executor
        for job in json.loads((folder / "jobs.json").read_text()):
            driver.run(job)
    from safetensors.torch import save_file

    save_file(driver.latents, folder / "latents.safetensors")
    sys.path.append(str(Path(__file__).parent))
    from comfyui_contract import contract_faults

    facts = {
        "jobs": driver.report,
        "brought": driver.brought,
        "nodes": sorted(driver.nodes),
        "contract": contract_faults(),
        "undocumented": driver.without_tooltip(),
    }
    (folder / "report.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
