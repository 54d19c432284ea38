"""A LoRA out of a fully tuned model: of each layer's change the part that has a given rank, and how much that misses.

    D = W_tuned - W_base,   B A = the best approximation of D of rank r,   error = |D - B A| / |D|

with the Frobenius norm | |. B A keeps D's r largest singular values (Eckart and Young), sqrt of each in A and in B.
Linear layers and 2-D convolutions can have a LoRA; norms, biases and what else was tuned cannot, and are counted.
Layers are read one at a time, so memory holds the LoRA and one layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from ..families.registry import family_of
from .base_check import fingerprint
from .config import MAX_RANK, AdapterConfig, BaseModel, parse_json, plain_name, unrecorded
from .content import Adapter
from .foreign.adapter import resolution_of
from .foreign.layers import Layer, one_rank
from .keys import lora_key
from .weights import Weights, component_folder, empty_denoiser, find_checkpoint, open_weights

EXACT_SVD = 768  # up to this many rows or columns all singular values are computed; beyond, the largest alone
_MORE = 16  # singular values computed beyond the rank, for the accuracy of those within it


@dataclass(frozen=True)
class Extraction:
    """What came of it.

    Args:
        adapter: a policy adapter, as `write_adapter` takes it.
        errors: |D - B A| / |D| of each layer that has a LoRA, by module.
        left_out: |D| of everything else that was tuned, by the tensor's name.
        facts: what the adapter's config says of it, as plain JSON values: `layers` and `unchanged` count layers;
            `error` is that of all layers together, sqrt(sum |D - B A|^2 / sum |D|^2), beside `median_error` and
            `largest_error` of single ones; `left_out` counts biases, norms and others, and `share_left_out` is the
            part of the whole change's sum of squares that is in them, in [0, 1].
    """

    adapter: Adapter
    errors: dict[str, float]
    left_out: dict[str, float]
    facts: dict[str, Any]


def extract(
    tuned: str,
    base: str,
    rank: int = 64,
    *,
    name: str | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[str, int, int], None] = lambda module, done, count: None,
) -> Extraction:
    """Take a LoRA out of a fully tuned model.

    Args:
        tuned: the tuned model: a pipeline's folder, its denoiser's, a .safetensors file of the denoiser's weights, or a
            Hub id; in diffusers' names.
        base: the model it was tuned from: a pipeline's folder, its denoiser's folder, or a Hub id.
        rank: of the LoRA, from 1 to 4096. A layer with fewer rows or columns is exact.
        name: the adapter's; None for the tuned model's.
        device: where singular values are computed; a GPU is many times as fast.
        progress: called before each layer with its name, its place and the number of layers.

    Raises:
        AdapterError: one of them cannot be read, they are not of one architecture, or nothing was tuned.
        FamilyError: a denoiser this version cannot guide.
    """
    if not 1 <= rank <= MAX_RANK:
        raise AdapterError(f"rank is {rank}, expected a whole number from 1 to {MAX_RANK}")
    home = find_checkpoint(base)
    folder = component_folder(home)
    denoiser = empty_denoiser(folder)
    family = family_of(denoiser)
    theirs, ours = open_weights(find_checkpoint(tuned)), open_weights(folder)
    _check_same(theirs, ours, denoiser)
    layers: dict[str, Layer] = {}
    sums: dict[str, tuple[float, float]] = {}  # by module: |D|^2 and |D - B A|^2
    modules = dict(_layers(denoiser))
    for place, (module, layer) in enumerate(modules.items()):
        progress(module, place, len(modules))
        change, kept_in = _change(theirs, ours, f"{module}.weight", device)
        if change.any():
            a, b = (side.to(kept_in) for side in _factors(change.flatten(1), rank))
            missed = change.flatten(1) - b.float() @ a.float()
            sums[module] = (_square(change), _square(missed))
            if isinstance(layer, nn.Conv2d):
                a, b = a.unflatten(1, change.shape[1:]), b[:, :, None, None]
            layers[module] = Layer(a.cpu(), b.cpu())
    if not layers:
        raise AdapterError(
            f"no linear layer or convolution differs between {tuned} and {base}, so there is no LoRA to extract"
        )
    left_out: dict[str, float] = {}
    for key in sorted(set(ours) - {f"{module}.weight" for module in modules}):
        change, _ = _change(theirs, ours, key, device)
        if change.any():
            left_out[key] = _square(change) ** 0.5
    padded, rank = one_rank(layers)
    lora: dict[str, Tensor] = {}
    for module, pair in padded.items():
        for side, tensor in (("A", pair.a), ("B", pair.b)):
            lora[lora_key(family.component, module, side)] = tensor.contiguous()
    errors = {module: (lost / whole) ** 0.5 for module, (whole, lost) in sums.items()}
    facts = _facts(sums, errors, left_out, unchanged=len(modules) - len(layers))
    adapter = Adapter(_config(home, tuned, base, denoiser, rank, name, facts), lora)
    adapter.check("what was extracted")
    return Extraction(adapter, errors, left_out, facts)


def _facts(
    sums: Mapping[str, tuple[float, float]], errors: Mapping[str, float], left_out: Mapping[str, float], unchanged: int
) -> dict[str, Any]:
    whole, missed = (sum(pair[side] for pair in sums.values()) for side in (0, 1))
    beside = sum(norm**2 for norm in left_out.values())
    rising = sorted(errors.values())
    return {
        "layers": len(errors),
        "unchanged": unchanged,
        "error": (missed / whole) ** 0.5,
        "median_error": rising[len(rising) // 2],
        "largest_error": rising[-1],
        "left_out": dict(Counter(map(_kind, left_out))),
        "share_left_out": beside / (whole + beside),
    }


def _kind(key: str) -> str:
    """What a tensor that can have no LoRA is, in a word."""
    if key.endswith(".bias"):
        return "biases"
    return "norms" if "norm" in key else "others"


def _layers(denoiser: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            yield name, module


def _check_same(theirs: Weights, ours: Weights, denoiser: nn.Module) -> None:
    """Raise unless both have every tensor of the denoiser, of one shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in denoiser.state_dict().items()}
    faults = []
    for weights in (ours, theirs):
        for name, shape in expected.items():
            if name not in weights:
                faults.append(f"{weights.shown} lacks {name}")
            elif weights.shape(name) != shape:
                faults.append(f"{weights.shown}: {name} has shape {weights.shape(name)}, expected {shape}")
        faults += [f"{weights.shown}: {name} is none of the model's" for name in weights if name not in expected]
    if faults:
        raise AdapterError(
            f"the two are not both a {type(denoiser).__name__} of this architecture",
            faults,
            "Give a model and the one it was tuned from, both in diffusers' format.",
        )


def _change(theirs: Weights, ours: Weights, key: str, device: torch.device | str) -> tuple[Tensor, torch.dtype]:
    """What was added to a tensor, fp32; and the type that a LoRA for it is kept in: fp16 where it is known no better.

    A base model that has more digits than the tuned one is rounded to its format first: rounding is no tuning.
    """
    tuned, base = theirs.read(key).to(device), ours.read(key).to(device)
    if not tuned.is_floating_point() or not base.is_floating_point():
        return (tuned.double() - base.double()).float(), torch.float32
    if torch.finfo(tuned.dtype).eps > torch.finfo(base.dtype).eps:
        base = base.to(tuned.dtype)
    change = tuned.float() - base.float()
    if not change.isfinite().all():
        raise AdapterError(
            f"{key} holds numbers that are NaN or infinite in {theirs.shown} or in {ours.shown}",
            advice="Download it again, or ask its author.",
        )
    return change, torch.float32 if tuned.dtype.itemsize >= 4 else torch.float16


def _square(tensor: Tensor) -> float:
    return tensor.double().square().sum().item()


def _factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) whose product B A is the best of that rank, or of the full rank where that is less."""
    kept = min(rank, *change.shape)
    if min(change.shape) <= max(EXACT_SVD, 2 * kept):
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[change.device] if change.is_cuda else []):
            torch.manual_seed(0)  # the same files give the same LoRA
            u, s, v = torch.svd_lowrank(change, q=kept + _MORE, niter=6)
        vh = v.mT
    root = s[:kept].sqrt()
    return root[:, None] * vh[:kept], u[:, :kept] * root


def _config(
    home: Any, tuned: str, base: str, denoiser: nn.Module, rank: int, name: str | None, facts: dict[str, Any]
) -> AdapterConfig:
    family = family_of(denoiser)
    file = home / "scheduler" / "scheduler_config.json"
    scheduler = parse_json(file.read_bytes(), "scheduler_config.json") if file.is_file() else {}
    prediction = SimpleNamespace(config=SimpleNamespace(prediction_type=scheduler.get("prediction_type")))
    return AdapterConfig(
        **unrecorded("checkpoint"),
        kind="policy",
        name=plain_name(name or find_checkpoint(tuned).with_suffix("").name, "extracted"),
        beta=1.0,
        tilt=2.0,
        base_model=BaseModel(id=base, revision=None, fingerprint=fingerprint(denoiser)),
        denoiser=family.denoiser,
        prediction=family.output(prediction),
        rank=rank,
        resolution=resolution_of(denoiser, None),
        component=family.component,
        training={
            "read_from": "a fully tuned model",
            "tuned": plain_name(tuned.rstrip("/").rpartition("/")[2], "tuned"),
            "not_recorded": ["reward", "licence", "guidance_scale", "resolution"],
            **facts,
        },
    )
