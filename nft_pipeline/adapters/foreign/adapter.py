"""Reading adapters that others made: peft folders, diffusers files, kohya and ComfyUI files, without nft_config.json.

    adapter = read_adapter("checkpoint-300", kind="policy", beta=1.0, pipe=pipe)

Such a checkpoint does not say what kind of LoRA it is and how far it goes, so the caller gives `kind` and `beta`.
The official DiffusionNFT checkpoints are kind "policy", beta the training's config.beta (1.0, or 0.1 for OCR and the
multi-reward run). Those are trained online, with v_old following v_theta: against the base model their tilt has
accumulated over the rounds (docs/theory.md, M8) and is not 2 / beta, so only strengths 0 and 1 mean what they say and
the ones between and beyond are a heuristic. For a policy, beta is no more than the unit `nft_beta` counts in: strength
is the scale s itself.

What is read, and what is refused: docs/other_checkpoints.md. In this room `files` says where the files are, `layers`,
`peft_scale` and `rename` what their layers are called and at which scale they count.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ...errors import AdapterError
from ...families.registry import FAMILIES, family_of, unwrap_compiled
from ..base_check import fingerprint
from ..config import UNKNOWN, AdapterConfig, BaseModel, plain_name, unrecorded
from ..content import Adapter
from ..names import LORA_FILE
from .files import PEFT_WEIGHTS, ForeignFiles, find_files, peft_folder, read_lora
from .layers import bake, scales_of
from .rename import name_as_diffusers

WHAT_TO_PASS = (
    "Pass kind and beta to load_nft_adapter or read_adapter (--kind and --beta on the command line): "
    'kind="policy" for a LoRA that is the trained model itself, with beta the one it was trained '
    'with. For checkpoints of the official DiffusionNFT code: kind="policy", beta=the training\'s config.beta, 1.0 for '
    "GenEval, PickScore and HPS, 0.1 for OCR and the multi-reward run."
)


def read_foreign(
    path: Path,
    *,
    kind: str | None,
    beta: float | None,
    denoiser: nn.Module | None,
    component: str | None = None,
    pipe: Any = None,
    use_old: bool = False,
    without_text_encoder: bool = False,
    name: str | None = None,
) -> Adapter:
    """Read somebody else's checkpoint as an adapter for the loaded model.

    Args:
        path: see `find_files`.
        kind: "policy"; "positive" needs an alpha head, which no such checkpoint has.
        beta: of its training, > 0; tilt = 2 / beta is what strength 1 stands for. After online training the tilt has
            accumulated, and strengths other than 0 and 1 are heuristic.
        denoiser: the model it was trained on: names and shapes are checked against it, and it gives the fingerprint.
        component: the pipeline's part that the denoiser is; None for its family's usual one.
        pipe: the pipeline, where there is one; its class knows other names of its layers.
        use_old: whether an adapter "old" beside it is v_old. Then strength 0 is that model, not the base model, and the
            dial spans the last round of training; False (default) measures from the base model.
        without_text_encoder: whether layers of text encoders, which kohya trains by default, are left out with a
            warning that counts them. False (default) refuses such a file: the prompt is encoded once for both passes,
            so what changes a text encoder cannot be dialled.
        name: for the config; None for the checkpoint's own.

    Returns:
        The adapter, on the CPU. What the checkpoint does not record is filled in and listed in
        `config.training["not_recorded"]`: reward and licence are "unknown", guidance_scale 1 and resolution the base
        model's own are mere guesses.

    Raises:
        AdapterError: kind or beta missing or impossible, or anything about the files; nothing is guessed in silence.
        FamilyError: a denoiser this version cannot guide.
    """
    shown = f"the checkpoint {path}"
    files = find_files(path, component or "transformer")
    beta = _check_arguments(shown, files.form, kind, beta)
    if denoiser is None:
        raise AdapterError(
            f"{shown} has no nft_config.json, so only the model it is for can say whether its layers fit",
            advice="Load it with pipe.load_nft_adapter(..., kind=..., beta=...), or give read_adapter pipe=pipe.",
        )
    family = family_of(denoiser)
    component = family.component if component is None else component
    pipeline_class = type(pipe) if pipe is not None else _pipeline_class(family.layer_names.pipeline)
    where = (denoiser, component, pipeline_class)
    lora, peft_config, left_out = _read_lora(shown, files, *where, leave_out_text=without_text_encoder)
    old = None
    if use_old:
        if files.old is None:
            raise AdapterError(
                f"{shown}: use_old=True, but no adapter called old lies beside it",
                advice="Leave use_old out: v_old is then the base model.",
            )
        old, *_ = _read_lora(f"{shown}, its adapter old", peft_folder(files.old), *where)
        if old.keys() == lora.keys() and all(torch.equal(lora[key], old[key]) for key in lora):
            raise AdapterError(
                f"{shown}: its adapter and the one called old are the same, so v_lora - v_old is zero everywhere",
                advice="Read it with use_old=False, so that v_old is the base model.",
            )
    said = peft_config or {}
    config = AdapterConfig(
        **unrecorded("checkpoint"),
        kind=cast(Literal["policy"], kind),
        name=plain_name(name or _name_of(path), "checkpoint"),
        beta=beta,
        tilt=2 / beta,
        base_model=BaseModel(
            id=_text(said.get("base_model_name_or_path")) or UNKNOWN,
            revision=_text(said.get("revision")),
            fingerprint=fingerprint(denoiser),
        ),
        denoiser=family.denoiser,
        prediction=family.output(getattr(pipe, "scheduler", None)),
        rank=next(iter(lora.values())).shape[0],
        resolution=resolution_of(unwrap_compiled(denoiser), pipe),
        component=component,
        training={
            "read_from": files.form,
            "v_old": "the adapter old beside it" if old is not None else "the base model",
            "not_recorded": ["reward", "licence", "guidance_scale", "resolution"],
            **({"left_out": dict(left_out)} if left_out else {}),
        },
    )
    adapter = Adapter(config, lora, old=old)
    adapter.check(shown)
    if left_out:
        count = sum(left_out.values())
        warnings.warn(
            f"{shown}: {count} layers of text encoders are left out ({counted(left_out)}). Strength 1 is this LoRA "
            "without them; pictures differ from those of tools that apply them.",
            stacklevel=2,
        )
    return adapter


def counted(left_out: Mapping[str, int]) -> str:
    """Counts of layers by part, in words."""
    return ", ".join(f"{part}: {count}" for part, count in left_out.items())


def describe_foreign(path: Path) -> dict[str, Any]:
    """What can be said of somebody else's checkpoint without its base model, as plain JSON values.

    Returns:
        form, file, base_model (None if not recorded), layers, parameters, ranks and scales (each value that occurs,
        rising), old (whether an adapter of that name lies beside it), text_encoders (layers of each, not counted in
        `layers`).

    Raises:
        AdapterError: as `read_foreign`, but for what only the model can tell.
    """
    files = find_files(path)
    try:
        found = read_lora(files, leave_out_text=True)
        scales = scales_of(found.layers, found.peft_config)
    except AdapterError as error:
        raise AdapterError(f"the checkpoint {path}: {error.what}", error.faults, error.advice) from None
    return {
        "form": files.form,
        "file": str(files.weights),
        "base_model": _text((found.peft_config or {}).get("base_model_name_or_path")),
        "layers": len(found.layers),
        "parameters": sum(layer.a.numel() + layer.b.numel() for layer in found.layers.values()),
        "ranks": sorted({layer.rank for layer in found.layers.values()}),
        "scales": sorted(set(scales.values())),
        "old": files.old is not None,
        "text_encoders": dict(found.left_out),
    }


def denoiser_of(pipe: Any) -> tuple[str, nn.Module]:
    """The part of a pipeline that is guided, and its name.

    Raises:
        AdapterError: the pipeline has no part under a name that any known family uses.
    """
    names = sorted({family.component for family in FAMILIES.values()})
    for name in names:
        denoiser = getattr(pipe, name, None)
        if isinstance(denoiser, nn.Module):
            return name, denoiser
    raise AdapterError(f"{type(pipe).__name__} has none of {', '.join(names)}, which a LoRA could be for")


def _check_arguments(shown: str, form: str, kind: str | None, beta: float | None) -> float:
    """beta as a float, or an error that says what to pass."""
    if kind is None or beta is None:
        missing = " and ".join(n for n, value in (("kind", kind), ("beta", beta)) if value is None)
        raise AdapterError(
            f"{shown} has no nft_config.json and looks like a {form}, which does not say its kind and beta; not given: "
            f"{missing}",
            advice=WHAT_TO_PASS,
        )
    if kind == "positive":
        raise AdapterError(
            f'{shown} cannot be read as kind "positive": such an adapter needs an alpha head, and there is none in it',
            advice='Pass kind="policy": the LoRA alone is what strength 1 gives.',
        )
    if kind != "policy":
        raise AdapterError(f'kind is {kind!r}, expected "policy"', advice=WHAT_TO_PASS)
    if type(beta) not in (int, float) or not 1e-6 <= beta <= 1e6:
        raise AdapterError(f"beta is {beta!r}, expected a number from 1e-06 to 1e+06", advice=WHAT_TO_PASS)
    return float(beta)


def _read_lora(
    shown: str,
    files: ForeignFiles,
    denoiser: nn.Module,
    component: str,
    pipeline_class: Any,
    *,
    leave_out_text: bool = False,
) -> tuple[dict[str, Tensor], Mapping[str, Any] | None, Mapping[str, int]]:
    try:
        found = read_lora(files, leave_out_text=leave_out_text)
        baked = bake(found.layers, found.peft_config)
        return name_as_diffusers(baked, denoiser, component, pipeline_class), found.peft_config, found.left_out
    except AdapterError as error:
        advice = error.advice
        if any("belongs to a text encoder" in fault for fault in error.faults):
            advice += (
                " To dial the denoiser's part alone, pass without_text_encoder=True (--without-text-encoder on the "
                "command line); what is left out is then counted in a warning."
            )
        raise AdapterError(f"{shown}: {error.what}", error.faults, advice) from None


def _pipeline_class(name: str | None) -> Any:
    import diffusers

    return None if name is None else getattr(diffusers, name)


def resolution_of(denoiser: nn.Module, pipe: Any) -> tuple[int, int]:
    """The base model's own edge in pixels, where model and pipeline tell it; else 1024."""
    size = getattr(pipe, "default_sample_size", None) or getattr(getattr(denoiser, "config", None), "sample_size", None)
    factor = getattr(pipe, "vae_scale_factor", None)
    edge = size * factor if isinstance(size, int) and isinstance(factor, int) else 1024
    return (edge, edge) if 8 <= edge <= 16384 else (1024, 1024)


def _name_of(path: Path) -> str:
    """The nearest name that tells checkpoints apart: not "lora" or "default", which all of them are called."""
    if path.is_file():
        path = path.parent if path.name in (LORA_FILE, PEFT_WEIGHTS) else path.with_suffix("")
    return (
        path.absolute().parent.name if path.name in ("lora", "default", "transformer", "unet") else path.absolute().name
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None
