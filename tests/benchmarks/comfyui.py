"""What guidance costs in ComfyUI, and what the ways an artist has without these nodes cost: side by side, in one run.

    python -m tests.benchmarks.comfyui /path/to/ComfyUI --python /path/to/its/python
    python -m tests.benchmarks.comfyui /path/to/ComfyUI --check      # and exit 1 if a bar is missed
    python -m tests.benchmarks.comfyui /path/to/ComfyUI --blocks 12 --steps 4 --rounds 6 --prompts 0 \\
        --only "plain, a second time" "idle node" exact "exact, policy" fast

A random SD3 at CFG 1, of 6 blocks and 31 M weights, or with --blocks 12 of twice the width and 250 M: the wider a
model, the less the LoRA and the head add to it. Every round times each way once, after a step of the same way that is
not timed and that brings the model into its place: what is measured is drawing, not loading. One way does it the other
way round and is called so. Ratios are within a round, as in tests/benchmarks/engine.py; times are the process's own CPU
time. The three ways to the same picture (node, hook LoRA, two models) are compared before anything is timed.

Then a row of prompts, each with a strength of its own and so with a new node on the cached model, shows what the
process holds after each of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STRENGTH = 1.5
AGREE = 1e-3  # of latents of size 1, between ways that do the same arithmetic in another order
GROWTH = 0.01  # of what the process holds, from the fifth prompt to the last
SETTLED = 5  # prompts after which nothing is loaded for the first time
LIMITS = {"idle node": 1.02, "exact": 2.05, "exact, policy": 2.05, "fast": 1.08}


def write_files(folder: Path, blocks: int, size: int, steps: int, rank: int) -> None:
    """The random model, a positive adapter and a policy for it, and what a sampler starts from."""
    import torch
    from safetensors.torch import save_file

    from nft_pipeline.adapter import write_adapter
    from tests.benchmarks.random_models import TEXT, random_adapter, small_sd3

    torch.manual_seed(0)
    transformer = small_sd3(blocks, blocks, pos_embed_max_size=64).transformer
    save_file(transformer.state_dict(), folder / "base.safetensors")
    (folder / "loras").mkdir()
    for kind in ("positive", "policy"):
        written = write_adapter(folder / kind, random_adapter(transformer, rank, kind))
        os.replace(written / "comfyui" / "random.safetensors", folder / "loras" / f"{kind}.safetensors")
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "noise": torch.randn(1, 16, size // 8, size // 8, generator=generator),
        "sigmas": torch.linspace(1, 0, steps + 1),
        "text": torch.randn(1, 77, 2 * TEXT, generator=generator),
        "pooled": torch.randn(1, 2 * TEXT, generator=generator),
    }
    save_file(inputs, folder / "inputs.safetensors")


def ways(driver: Any) -> dict[str, Callable[[int], Any]]:
    """Each way as a function of how many steps to draw; called inside ComfyUI."""
    import comfy.hooks
    import comfy.sample
    import comfy.samplers
    import comfy.sd
    import comfy.utils
    import torch

    given, base = driver.inputs, driver.base
    positive = [[given["text"], {"pooled_output": given["pooled"]}]]
    lora = comfy.utils.load_torch_file(str(driver.folder / "loras" / "policy.safetensors"), safe_load=True)

    def draw(steps: int, model: Any, liked: Any = positive, cfg: float = 1.0) -> Any:
        noise, sampler = given["noise"], comfy.samplers.sampler_object("euler")
        sigmas, empty = given["sigmas"][: steps + 1], torch.zeros_like(given["noise"])
        return comfy.sample.sample_custom(
            model, noise, cfg, sampler, sigmas, liked, positive, empty, disable_pbar=True, seed=0
        )

    def node(adapter: str, strength: float, **values: Any) -> Any:
        values = {"adapter": f"{adapter}.safetensors", "strength": strength, "model": base, **values}
        return driver.run_node("NFTRewardGuidance", values, {})[0]

    def merged(model: Any) -> Any:
        return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)[0]

    other = merged(comfy.sd.load_diffusion_model(str(driver.folder / "base.safetensors")))
    two = base.clone()
    two.set_additional_models("second", [other])

    def towards_the_other(args: Mapping[str, Any]) -> Any:
        other.model.current_patcher = other  # what a sampler says to its own model
        call = (args["cond"],), args["input"], args["sigma"], args["model_options"]
        (plus,) = comfy.samplers.calc_cond_batch(other.model, *call)
        return args["denoised"] + STRENGTH * (plus - args["cond_denoised"])

    two.set_model_sampler_post_cfg_function(towards_the_other)
    # Classifier-free guidance between one prompt with the LoRA and the same without: the nearest thing to guidance
    # that ComfyUI's own nodes can be put together to.
    hooked = comfy.hooks.set_hooks_for_conditioning(positive, comfy.hooks.create_hook_lora(lora, 1.0, 0.0))
    models = {
        "plain": base,
        "plain, a second time": base,
        "idle node": node("positive", 0.0),
        "exact": node("positive", STRENGTH),
        "exact, policy": node("policy", STRENGTH),
        "fast": node("positive", STRENGTH, mode="fast"),
        "LoRA merged": merged(base),
        "LoRA merged, patched for the run": merged(base),
        "two models": two,
    }
    found: dict[str, Callable[[int], Any]] = {
        name: lambda steps, model=model: draw(steps, model) for name, model in models.items()
    }
    found["hook LoRA"] = lambda steps: draw(steps, base, hooked, STRENGTH)
    return found


def memory(driver: Any, prompts: int) -> dict[str, Any]:
    """MiB that the process holds after each prompt, and how many guides are alive after the last."""
    import comfy.sample
    import comfy.samplers
    import psutil
    import torch

    given, held = driver.inputs, []
    text = [[given["text"], {"pooled_output": given["pooled"]}]]
    noise, sampler = given["noise"], comfy.samplers.sampler_object("euler")
    for i in range(prompts):
        adapter, mode = ("positive", "policy")[i % 2], ("exact", "fast")[i // 2 % 2]
        values = {"adapter": f"{adapter}.safetensors", "strength": 1 + i / prompts, "mode": mode, "model": driver.base}
        model = driver.run_node("NFTRewardGuidance", values, {})[0]
        sigmas, empty = given["sigmas"], torch.zeros_like(noise)
        comfy.sample.sample_custom(model, noise, 3.5, sampler, sigmas, text, text, empty, disable_pbar=True, seed=i)
        held.append(psutil.Process().memory_info().rss / 2**20)
    gc.collect()
    alive = sum(type(one).__name__ == "Guide" for one in gc.get_objects())
    return {"held": held, "alive": alive}


def numbers(tensors: Any) -> int:
    return sum(tensor.numel() for tensor in tensors)


def inside(root: Path, folder: Path, rounds: int, threads: int, prompts: int, only: Sequence[str]) -> dict[str, Any]:
    """Everything that happens in ComfyUI's interpreter: seconds by way, weights that are held, memory by prompt."""
    sys.path += [str(ROOT / "tests" / "helpers"), str(ROOT / "tests" / "benchmarks")]
    import torch
    from comfyui_driver import Driver, allow_torchvision_without_its_binary
    from ratios import in_rounds
    from safetensors.torch import load_file

    torch.set_num_threads(threads)
    allow_torchvision_without_its_binary()
    driver = Driver(root, ROOT, folder)
    with torch.inference_mode():
        timed = ways(driver)
        steps = len(driver.inputs["sigmas"]) - 1
        drawn = {name: timed[name](steps) for name in ("plain", "exact, policy", "two models", "hook LoRA")}
        effect = (drawn["exact, policy"] - drawn["plain"]).abs().max().item()
        for name in ("two models", "hook LoRA"):
            gap = (drawn[name] - drawn["exact, policy"]).abs().max().item()
            if not gap < AGREE * max(1.0, effect):
                raise AssertionError(
                    f"{name} and the node differ by {gap:g}, where guidance moves latents by {effect:g}"
                )
        chosen = [name for name in timed if not only or name in {"plain", *only}]
        seconds: dict[str, list[float]] = {name: [] for name in chosen}
        for name, count in in_rounds(chosen, range(rounds + 1)):
            timed["plain" if name.endswith("patched for the run") else name](1)
            started = time.process_time()
            timed[name](steps)
            if count:
                seconds[name].append(time.process_time() - started)
        timed["LoRA merged"](1)
        backup = numbers(getattr(entry, "weight", entry) for entry in driver.base.backup.values())
        del timed, drawn
        kept = memory(driver, prompts)
    parts = load_file(folder / "loras" / "positive.safetensors")
    head = {key for key in parts if key.startswith("alpha_head.")}
    lora = {key for key in parts if key.endswith((".lora_A.weight", ".lora_B.weight"))}
    weights = {"model": numbers(driver.base.model.parameters()), "backup": backup}
    weights |= {"head": numbers(parts[key] for key in head), "LoRA": numbers(parts[key] for key in lora)}
    return {"seconds": seconds, "weights": weights, "memory": kept, "torch": torch.__version__}


def main(argv: list[str] | None = None) -> int:
    """Print the table; with --check, return 1 if something is dearer than promised."""
    parser = argparse.ArgumentParser(prog="comfyui", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("comfyui", type=Path, help="a checkout of ComfyUI")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has what ComfyUI needs")
    parser.add_argument("--rounds", type=int, default=8, help="raise it if the quartiles are far apart (default 8)")
    parser.add_argument(
        "--blocks", type=int, default=6, help="of the model, whose width is 64 times as much (default 6)"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="WAY", help="time these and plain (default: all)")
    parser.add_argument("--steps", type=int, default=8, help="steps per picture (default 8)")
    parser.add_argument("--size", type=int, default=256, help="pixels, a multiple of 16 (default 256: 256 tokens)")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA (default 16)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1; more makes CPU seconds vague)")
    parser.add_argument("--prompts", type=int, default=40, help="after the rounds, for what is held (default 40)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a ratio is above its bar")
    options = parser.parse_args(argv)
    from tests.benchmarks.ratios import table

    with tempfile.TemporaryDirectory() as place:
        write_files(Path(place), options.blocks, options.size, options.steps, options.rank)
        command = [options.python, __file__, "--inside", options.comfyui.absolute(), place]
        command += [options.rounds, options.threads, options.prompts, *options.only]
        done = subprocess.run([*map(str, command)], cwd=place)
        if done.returncode:
            print("ComfyUI ended with an error; what it said is above", file=sys.stderr)
            return 1
        found = json.loads((Path(place) / "found.json").read_text())
    weights, held = found["weights"], {}
    model = weights["model"]
    held |= dict.fromkeys(("exact", "fast", "idle node"), weights["LoRA"] + weights["head"])
    held |= dict.fromkeys(("LoRA merged", "LoRA merged, patched for the run"), weights["LoRA"] + weights["backup"])
    held |= {"exact, policy": weights["LoRA"], "two models": model + weights["LoRA"]}
    print(
        f"{options.comfyui.name}, {model / 1e6:.1f} M weights, {options.size} px, {options.steps} steps, CFG 1, LoRA "
        f"rank {options.rank}, float32, CPU, {options.threads} threads, {options.rounds} rounds, "
        f"torch {found['torch']}\nweights added by the node: {weights['LoRA'] / 1e6:.2f} M of the LoRA and "
        f"{weights['head'] / 1e6:.2f} M of the head, {100 * (weights['LoRA'] + weights['head']) / model:.1f} % of the "
        "model\n"
    )
    names = list(found["seconds"])
    shares = ("weights added", lambda name: f"{100 * held[name] / model:.0f} %" if name in held else "")
    shown, missed = table(found["seconds"], dict.fromkeys(names, "plain"), {n: LIMITS.get(n) for n in names}, shares)
    print(shown)
    kept = found["memory"]["held"]
    if len(kept) > SETTLED:
        settled, last, alive = kept[SETTLED - 1], kept[-1], found["memory"]["alive"]
        print(f"\nheld after prompt {SETTLED}: {settled:.0f} MiB, after prompt {len(kept)}: {last:.0f} MiB")
        print(f"guides alive: {alive}")
        if last > (1 + GROWTH) * settled:
            missed.append(f"memory grew by {last / settled - 1:.1%} in {len(kept)} prompts, at most {GROWTH:.0%}")
    if options.check and missed:
        print("\n".join(missed), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        checkout, place = Path(sys.argv[2]), Path(sys.argv[3])
        report = inside(checkout, place, *map(int, sys.argv[4:7]), sys.argv[7:])
        (place / "found.json").write_text(json.dumps(report))
    else:
        sys.exit(main())
