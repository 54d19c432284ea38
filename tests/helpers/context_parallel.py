"""Draws with guidance in one process, and in two over gloo that split each picture's tokens (Ulysses). Says how far the
latents and alphas of both processes are apart from each other, and from those of one process alone.

    PYTHONPATH=tests python tests/helpers/context_parallel.py
"""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ContextParallelConfig, TensorParallelConfig

from helpers.forking import together
from helpers.zoo import CASES, adapter_for, denoiser_of
from nft_pipeline.pipeline import DiffusionNFTPipeline

# Which case, and what its call takes; their numbers of tokens and heads are even.
DRAWN: dict[str, tuple[str, dict[str, Any]]] = {
    "positive": ("FluxPipeline", {}),
    "positive, batched": ("FluxPipeline", {"nft_mode": "batched"}),
    "positive, cfg": ("FluxPipeline", {"cfg": True}),
    "positive, one pass": ("FluxPipeline", {"nft_mode": "single"}),
}


def _prompt_of_even_length(name: str) -> dict[str, Any]:
    """The zoo's prompts have five tokens, which two processes cannot share."""
    conditions = {**CASES[name].conditions([0, 1]), **CASES[name].cfg([0, 1])}
    return {key: value[:, :4] for key, value in conditions.items() if key.endswith("prompt_embeds") and value.ndim == 3}


def draw(kind: str, file: Path, processes: int) -> None:
    """Latents and alphas of two samples, drawn by this process, into a file."""
    name, call = DRAWN[kind]
    case, text = CASES[name], _prompt_of_even_length(name)
    if not call.get("cfg"):
        text = {key: value for key, value in text.items() if not key.startswith("negative")}
    pipe = case.pipe()
    adapter = adapter_for(case, pipe)
    guided = DiffusionNFTPipeline.from_pipe(pipe, replace(adapter, config=replace(adapter.config, base_rate=0.4)))
    denoiser: Any = denoiser_of(pipe)
    if processes > 1:
        denoiser.enable_parallelism(config=ContextParallelConfig(ulysses_degree=processes))
    latents = case.sample(guided, [0, 1], **text, **call)
    torch.save({"latents": latents, "alpha": guided.nft_stats.alpha}, file)


def tensor_parallel() -> str:
    """What is said when weights are to be split under an adapter."""
    pipe = CASES["FluxPipeline"].pipe()
    DiffusionNFTPipeline.from_pipe(pipe, adapter_for(CASES["FluxPipeline"], pipe))
    try:
        pipe.transformer.enable_parallelism(config=TensorParallelConfig(tp_degree=2))
    except ValueError as error:
        return str(error)
    return ""


def _draw_all(folder: Path, rank: int) -> None:
    torch.distributed.init_process_group("gloo")
    torch.accelerator.device_count = lambda: 1  # diffusers counts devices, and divides by their number
    for kind in DRAWN:
        draw(kind, folder / f"{kind}-{rank}", 2)
    (folder / f"refused-{rank}").write_text(tensor_parallel())
    torch.distributed.destroy_process_group()


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        together(2, functools.partial(_draw_all, folder))
        for kind in DRAWN:
            draw(kind, folder / kind, 1)
            alone, first, second = (torch.load(folder / file) for file in (kind, f"{kind}-0", f"{kind}-1"))
            found[kind] = {
                what: {
                    "equal": torch.equal(first[what], second[what]),
                    "apart": float((alone[what] - first[what]).abs().max()),
                }
                for what in ("latents", "alpha")
            }
        found["tensor parallel"] = (folder / "refused-0").read_text()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
