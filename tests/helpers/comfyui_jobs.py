"""The jobs that tests/comfyui/test_real.py has a real ComfyUI do, and the files they need."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from helpers.comfyui_dials import dial, tilt_map
from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import Adapter, AdapterConfig, read_adapter, write_adapter
from nft_pipeline.models import shipped_adapter

STEPS = 20
CFGS = (1.0, 3.5)
CANDIDATES, CHOSEN_AFTER = 4, 3
# What the node is set to, and what the pipeline's call is given, for the same picture.
PARITY: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "positive nft": ("warm", {"strength": 1.5, "law": "nft"}, {"nft_strength": 1.5, "nft_law": "nft"}),
    "positive nft fast": ("warm", {"law": "nft", "mode": "fast"}, {"nft_law": "nft", "nft_mode": "single"}),
    "positive odds fast": ("warm", {"law": "odds", "mode": "fast"}, {"nft_law": "odds", "nft_mode": "single"}),
    "positive auto": ("warm", {"strength": 1.5}, {"nft_strength": 1.5}),
    "positive odds": ("warm", {"strength": 1.5, "law": "odds"}, {"nft_strength": 1.5, "nft_law": "odds"}),
    "positive negative": ("warm", {"strength": -1.0}, {"nft_strength": -1.0}),
    "positive beta": ("warm", {"beta": 0.5}, {"nft_beta": 0.5}),
    "positive capped": ("warm", {"guide": "cond", "cap": 0.05}, {"nft_guide": "cond", "nft_cap": 0.05}),
    "positive fast": ("warm", {"mode": "fast"}, {"nft_mode": "single"}),
    "policy": ("policy", {"strength": 1.5}, {"nft_strength": 1.5}),
    "dialled": ("dialled", {"strength": 0.8}, {"nft_strength": 0.8}),
    "dialled exact": ("dialled", {"strength": -0.5, "mode": "exact"}, {"nft_strength": -0.5, "nft_mode": "two_pass"}),
    "dialled rate": ("dialled", {"rate": 0.75}, {"nft_rate": 0.75}),
    "dialled policy": ("swung", {"strength": 0.9}, {"nft_strength": 0.9}),
}  # fmt: skip
# The same on the shipped model emoji, with adapters that are folders.
EMOJI: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "emoji-3d": ("emoji-3d", {"strength": 1.5}, {"nft_strength": 1.5}),
    "emoji-3d nft": ("emoji-3d", {"law": "nft"}, {"nft_law": "nft"}),
    "emoji-3d odds": (
        "emoji-3d", {"law": "odds", "mode": "exact"}, {"nft_law": "odds", "nft_mode": "two_pass"}
    ),
    "emoji-3d odds fast": ("emoji-3d", {"law": "odds", "mode": "fast"}, {"nft_law": "odds", "nft_mode": "single"}),
    "emoji-words": ("emoji-words", {"strength": 0.7}, {"nft_strength": 0.7}),
}  # fmt: skip
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "truncated": ({"adapter": "truncated.safetensors"}, "truncated or damaged"),
    "empty": ({"adapter": "empty.safetensors"}, "truncated or no safetensors file"),
    "pickle renamed": ({"adapter": "pickle.safetensors"}, "is a pickle"),
    "LFS pointer": ({"adapter": "pointer.safetensors"}, "Git LFS pointer"),
    "NaN": ({"adapter": "nan.safetensors"}, "NaN or infinite"),
    "wrong family": ({"adapter": "flux.safetensors"}, "0 of 1 LoRA layers fit"),
    "wrong size": ({"adapter": "wide.safetensors"}, "do not fit"),
    "half of it": ({"adapter": "half.safetensors"}, "1 of 2 LoRA layers fit"),
    "LoHa": ({"adapter": "loha.safetensors"}, "LoHa"),
    "DoRA": ({"adapter": "dora.safetensors"}, "DoRA"),
    "text encoder": ({"adapter": "text.safetensors"}, "text encoder"),
    "gone": ({"adapter": "nosuch.safetensors"}, "nosuch.safetensors"),
    "strength nan": ({"strength": float("nan")}, "strength is nan"),
    "strength infinite": ({"strength": float("inf")}, "strength is inf"),
    "start after end": ({"start_percent": 0.8, "end_percent": 0.2}, "expected 0 <= start < end <= 1"),
    "unknown law": ({"law": "exp"}, "'exp'"),
    "unknown mode": ({"mode": "quick"}, "'quick'"),
    "unknown kind": ({"kind": "good"}, "kind is 'good'"),
    "odds for a policy": ({"adapter": "policy.safetensors", "law": "odds"}, "needs a positive adapter"),
    "no head": ({"adapter": "plain.safetensors", "kind": "positive"}, "has an alpha head"),
    "beta and strength": ({"beta": 1.0, "strength": 2.0}, "they set the same thing"),
    "beta of a plain LoRA": ({"adapter": "plain.safetensors", "beta": 1.0}, "does not record the beta"),
    "negative cap": ({"cap": -0.1}, "expected 0"),
    "rate out of reach": ({"adapter": "dialled.safetensors", "rate": 0.95}, 'to 0.80 in mode "fast"'),
    "cap in fast mode": ({"cap": 0.1, "mode": "fast"}, "needs the base model's own output"),
}


def guidance(adapter: str = "warm.safetensors", **values: Any) -> dict[str, Any]:
    return {"node": "NFTRewardGuidance", "values": {"adapter": adapter, "strength": 1.0, **values}}


def lora(file: str, strength: float = 1.0) -> dict[str, Any]:
    return {"lora": file, "strength": strength}


def choice(candidates: int) -> dict[str, Any]:
    return {"node": "NFTEarlyChoice", "values": {"candidates": candidates, "after": CHOSEN_AFTER}}


def chain(*strengths: float) -> list[dict[str, Any]]:
    load = {"node": "NFTLoadAdapter", "values": {"adapter": "policy.safetensors"}, "as": "adapter"}
    apply = [{"node": "NFTApplyAdapter", "values": {"adapter": "$adapter", "strength": s}} for s in strengths]
    return [load, *apply]


def make_jobs() -> list[dict[str, Any]]:
    """All of them, in an order that puts runs which must leave no trace between runs which would show it."""
    policy, style = "policy.safetensors", "style.safetensors"
    fade = {"node": "NFTStrengthSchedule", "as": "fade", "values": {
        "shape": "custom", "low": 0.0, "high": 1.0, "power": 1.0, "custom": "0: 0, 1: 0"}}  # fmt: skip
    jobs: list[dict[str, Any]] = [
        {"name": "base"},
        {"name": "merged", "steps": [lora(policy)]},
        {"name": "off", "steps": [guidance(strength=0.0)]},
        {"name": "policy 1", "steps": [guidance(policy)], "keep": "policy"},
        {"name": "policy 1 again", "use": "policy"},
        {"name": "base after"},
        {"name": "merged after", "steps": [lora(policy)]},
        {"name": "chained", "steps": chain(0.6, 0.4), "keep": "chained"},
        {"name": "chained on a loaded one", "use": "policy", "steps": chain(0.5)},
        {"name": "policy 1.5", "steps": [guidance(policy, strength=1.5)]},
        {"name": "style before", "steps": [lora(style, 0.7), guidance(policy)]},
        {"name": "style after", "steps": [guidance(policy), lora(style, 0.7)]},
        {"name": "both merged", "steps": [lora(style, 0.7), lora(policy)]},
        {"name": "positive", "steps": [guidance()], "keep": "positive"},
        {"name": "positive again", "use": "positive"},
        {"name": "positive, one candidate", "steps": [guidance(), choice(1)]},
        {"name": "plain", "steps": [guidance("plain.safetensors")]},
        {"name": "kohya", "steps": [guidance("kohya.safetensors")]},
        {"name": "no schedule", "steps": [fade, guidance(schedule="$fade")]},
        {"name": "first half", "steps": [guidance(end_percent=0.5)]},
        {"name": "second half", "steps": [guidance(start_percent=0.5)]},
        {"name": "two prompts", "steps": [guidance()], "prompts": 2},
        {"name": "two prompts, base", "prompts": 2},
        {"name": "heun", "sampler": "heun"},
        {"name": "heun off", "steps": [guidance(strength=0.0)], "sampler": "heun"},
        {"name": "heun guided", "steps": [guidance()], "sampler": "heun"},
        {"name": "twice", "steps": [lora(policy), guidance(policy)]},
        {"name": "interrupted", "steps": [guidance()], "stop": 5},
        {"name": "base after an interrupt"},
        {"name": "compiled base", "steps": [{"compile": True}]},
        {"name": "compiled positive", "steps": [guidance(), {"compile": True}]},
        {"name": "compiled base after", "steps": [{"compile": True}]},
    ]
    for cfg in CFGS:
        jobs.append({"name": f"parity base {cfg}", "cfg": cfg})
        for name, (adapter, values, _) in PARITY.items():
            steps = [guidance(f"{adapter}.safetensors", **values)]
            jobs.append({"name": f"parity {name} {cfg}", "cfg": cfg, "steps": steps})
        jobs.append({"name": f"parity emoji base {cfg}", "cfg": cfg, "base": "emoji"})
        for name, (adapter, values, _) in EMOJI.items():
            steps = [guidance(adapter, **values)]
            jobs.append({"name": f"parity {name} {cfg}", "cfg": cfg, "base": "emoji", "steps": steps})
        steps = [guidance(strength=0.0), choice(CANDIDATES)]
        jobs.append({"name": f"early choice {cfg}", "cfg": cfg, "steps": steps})
    for name, (values, _) in WRONG.items():
        jobs.append({"name": f"wrong {name}", "steps": [guidance(**values)]})
    return [*jobs, {"name": "base at the end"}]


def write_files(folder: Path) -> dict[str, torch.Tensor]:
    """base.safetensors, loras/, inputs.safetensors and jobs.json; returns the pipeline's latents for both parities."""
    loras = folder / "loras"
    loras.mkdir(parents=True)
    shipped = shipped_adapter("shapes-warm")
    assert shipped is not None
    base = shipped.parent / "shapes"
    shutil.copy(base / "transformer" / "diffusion_pytorch_model.safetensors", folder / "base.safetensors")
    warm = read_adapter("shapes-warm")
    policy = Adapter(replace(warm.config, kind="policy", name="policy", base_rate=None, dial=None), warm.lora)
    write_adapter(folder / "policy", policy)
    shutil.copy(shipped / "comfyui" / "shapes-warm.safetensors", loras / "warm.safetensors")
    shutil.copy(folder / "policy" / "comfyui" / "policy.safetensors", loras / "policy.safetensors")
    dials = {
        "dialled": (warm, dial(tilt_map("single", 0.5, 0.8), tilt_map("two_pass", 1.0, 0.9))),
        "swung": (policy, dial(tilt_map("single", 0.0, 0.8))),
    }
    for name, (adapter, values) in dials.items():
        config = AdapterConfig.from_dict({**adapter.config.to_dict(), "name": name, "dial": values})
        write_adapter(folder / name, replace(adapter, config=config))
        shutil.copy(folder / name / "comfyui" / f"{name}.safetensors", loras)
    _write_loras(loras, dict(warm.lora))
    reference = _reference(
        folder, {"warm": shipped, "policy": folder / "policy", **{name: folder / name for name in dials}}
    )
    (folder / "jobs.json").write_text(json.dumps(make_jobs()))
    return reference


def _write_loras(loras: Path, lora: dict[str, torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(11)
    save_file(lora, loras / "plain.safetensors")
    style = {key: 0.2 * t.std() * torch.randn(t.shape, generator=generator) if ".lora_B." in key else t.clone()
             for key, t in lora.items()}  # fmt: skip
    save_file(style, loras / "style.safetensors")
    kohya: dict[str, torch.Tensor] = {}
    for key, tensor in lora.items():
        path, _, side = key.removesuffix(".weight").rpartition(".lora_")
        name = "lora_transformer_" + path.removeprefix("transformer.").replace(".", "_")
        if side == "A":
            kohya |= {f"{name}.lora_down.weight": tensor, f"{name}.alpha": torch.tensor(tensor.shape[0] / 2.0)}
        else:
            kohya[f"{name}.lora_up.weight"] = 2 * tensor
    save_file(kohya, loras / "kohya.safetensors")
    path = "transformer.transformer_blocks.0.attn.to_q"
    a, b = lora[f"{path}.lora_A.weight"], lora[f"{path}.lora_B.weight"]

    def pair(name: str, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        return {f"{name}.lora_A.weight": a.clone(), f"{name}.lora_B.weight": b.clone()}

    wide = torch.cat([a, a], 1)
    files = {
        "nan": pair(path, a * float("nan"), b),
        "flux": pair("transformer.single_transformer_blocks.0.attn.to_q", a, b),
        "wide": pair(path, wide, b),
        "half": {**pair(path, a, b), **pair("transformer.nosuch", a, b)},
        "loha": {f"{path}.hada_w1_a": a.clone(), f"{path}.hada_w1_b": b.clone()},
        "dora": {**pair(path, a, b), f"{path}.dora_scale": torch.ones(b.shape[0])},
        "text": {**pair(path, a, b), "text_encoder.x.lora_A.weight": a.clone()},
    }
    for name, tensors in files.items():
        save_file(tensors, loras / f"{name}.safetensors")
    (loras / "truncated.safetensors").write_bytes((loras / "warm.safetensors").read_bytes()[:-1000])
    (loras / "empty.safetensors").write_bytes(b"")
    torch.save({"x": a}, loras / "pickle.safetensors")
    (loras / "pointer.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def _reference(folder: Path, adapters: dict[str, Path]) -> dict[str, torch.Tensor]:
    """Latents of DiffusionNFTPipeline from the noise and the embeddings that inputs.safetensors holds."""
    noise = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(5))
    pipes = {name: DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter=path) for name, path in adapters.items()}
    pipes["base"] = DiffusionNFTPipeline.from_pretrained("shapes")
    for name in {adapter for adapter, _, _ in EMOJI.values()}:
        pipes[name] = DiffusionNFTPipeline.from_pretrained("emoji", nft_adapter=name)
    pipes["emoji base"] = DiffusionNFTPipeline.from_pretrained("emoji")
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    prompts = {
        "": _conditioning(pipes["base"], "a circle left of a cross", "a red square"),
        "emoji ": _conditioning(pipes["emoji base"], "cat face", "automobile on yellow"),
    }

    def draw(name: str, cfg: float, values: dict[str, Any], noise: torch.Tensor = noise) -> torch.Tensor:
        given = prompts["emoji " if name.startswith("emoji") else ""]
        return pipes[name](
            prompt_embeds=given["text"].expand(2, -1, -1),
            negative_prompt_embeds=given["negative_text"].expand(2, -1, -1),
            pooled_prompt_embeds=given["pooled"].expand(2, -1),
            negative_pooled_prompt_embeds=given["negative_pooled"].expand(2, -1),
            guidance_scale=cfg,
            latents=noise.clone(),
            num_inference_steps=STEPS,
            output_type="latent",
            **values,
        ).images

    found = {}
    for cfg in CFGS:
        found[f"parity base {cfg}"] = draw("base", cfg, {})
        found[f"parity emoji base {cfg}"] = draw("emoji base", cfg, {})
        for name, (adapter, _, values) in (PARITY | EMOJI).items():
            found[f"parity {name} {cfg}"] = draw(adapter, cfg, values)
        others = torch.randint(2**32, (1, CANDIDATES - 1), generator=torch.Generator().manual_seed(0))[0].tolist()
        noises = [noise, *(torch.randn(noise.shape, generator=torch.Generator().manual_seed(s)) for s in others)]
        pictures = torch.stack([draw("base", cfg, {}, each) for each in noises])
        alphas = []
        for each in noises:
            draw("warm", cfg, {"nft_strength": 1e-9}, each)
            alphas.append(pipes["warm"].nft_stats.alpha[CHOSEN_AFTER - 1])
        kept = torch.stack(alphas).argmax(0)
        found[f"early choice {cfg}"] = pictures[kept, torch.arange(len(kept))]
    inputs = {"noise": noise, "sigmas": pipes["base"].scheduler.sigmas}
    inputs |= {prefix + key: tensor for prefix, given in prompts.items() for key, tensor in given.items()}
    save_file({name: tensor.clone().contiguous() for name, tensor in inputs.items()}, folder / "inputs.safetensors")
    return found


def _conditioning(pipe: Any, prompt: str, negative: str) -> dict[str, torch.Tensor]:
    """A prompt and a negative one, as the pipeline's denoiser sees them."""
    text, negative_text, pooled, negative_pooled = pipe.encode_prompt(
        prompt=prompt,
        prompt_2=None,
        prompt_3=None,
        negative_prompt=negative,
        max_sequence_length=0,
        do_classifier_free_guidance=True,
    )
    return {"text": text, "negative_text": negative_text, "pooled": pooled, "negative_pooled": negative_pooled}
