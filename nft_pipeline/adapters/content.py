"""An adapter in memory, and the checks that its three parts (config, LoRA, alpha head) belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..errors import AdapterError
from ..files.strict import tensor_faults
from .alpha_head import AlphaHead
from .config import AdapterConfig
from .keys import SECOND, lora_key, split_lora_key


@dataclass(frozen=True)
class Adapter:
    """A reward adapter: what it says about itself, its LoRA, and for `positive` ones the alpha head.

    Args:
        config: see `AdapterConfig`.
        lora: tensors under diffusers keys "<component>.<module>.lora_A.weight" (rank, in) and "... lora_B.weight"
            (out, rank), scale baked into B (lora_alpha == rank).
        head: alpha(x_t, c, t); None for policy adapters.
        old: a LoRA that belongs to v_old: it is on in the base pass and off in the second. Keys and scale are as in
            `lora`; the rank may differ. None if v_old is the base model alone. It exists only in memory: the format
            has no place for it.
    """

    config: AdapterConfig
    lora: Mapping[str, Tensor]
    head: AlphaHead | None = None
    old: Mapping[str, Tensor] | None = None

    def check(self, shown: str = "the adapter") -> None:
        """Do the parts belong together?

        Args:
            shown: how the error calls the adapter.

        Raises:
            AdapterError: all faults at once.
        """
        faults = lora_faults(self.lora, self.config) + head_faults(self.head, self.config)
        if self.old is not None:
            rank = next((t.shape[0] for key, t in self.old.items() if key.endswith(".lora_A.weight")), self.config.rank)
            faults += [f"old: {fault}" for fault in lora_faults(self.old, replace(self.config, rank=max(1, rank)))]
        if faults:
            raise AdapterError(f"{shown} has faults", faults)


def lora_faults(lora: Mapping[str, Tensor], config: AdapterConfig) -> list[str]:
    """Every fault of a LoRA, one sentence each: foreign keys, halves of pairs, ranks, shapes, NaN."""
    faults: list[str] = []
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in lora.items():
        part = split_lora_key(key)
        if part is None or part[0] not in (config.component, config.component + SECOND):
            faults.append(_foreign_key(key, config.component))
        else:
            module = part[1] if part[0] == config.component else f"{part[0]}.{part[1]}"
            layers.setdefault(module, {})[part[2]] = tensor
    if not layers:
        faults.insert(
            0,
            f'there is no LoRA layer: expected keys such as "{lora_key(config.component, "<module>", "A")}", '
            f"found {len(lora)} tensors",
        )
    for module, pair in sorted(layers.items()):
        for side, other in (("A", "B"), ("B", "A")):
            if side not in pair:
                faults.append(f"{module} has lora_{other} but no lora_{side}; the file is incomplete")
        if len(pair) == 2:
            faults += _pair_faults(module, pair["A"], pair["B"], config.rank)
    return faults + tensor_faults(dict(lora))


def head_faults(head: AlphaHead | None, config: AdapterConfig) -> list[str]:
    """The faults of a head: missing or superfluous for the adapter's kind, or numbers that are not finite."""
    if config.kind == "positive" and head is None:
        return ["kind is positive but there is no alpha head; a positive adapter cannot guide without its alpha"]
    if config.kind == "policy" and head is not None:
        return ["kind is policy but there is an alpha head; in a policy alpha is already inside and would count twice"]
    return [] if head is None else tensor_faults({f"alpha_head.{key}": t for key, t in head.state_dict().items()})


def _foreign_key(key: str, component: str) -> str:
    if key.startswith(("text_encoder", "te_", "te1_", "te2_", "lora_te")):
        return (
            f"{key} belongs to a text encoder; the prompt is encoded once for both passes, so v_old would see it too: "
            "train the denoiser alone"
        )
    if key.endswith(".alpha"):
        return (
            f"{key} is a scale tensor; here the scale is baked into lora_B (lora_alpha == rank), drop it after baking"
        )
    if "lora_magnitude_vector" in key or "dora_scale" in key:
        return f"{key} belongs to a DoRA, expected a plain LoRA"
    part = split_lora_key(key)
    if part is not None:
        return f'{key} changes "{part[0]}", but the config\'s component is "{component}"'
    return f'{key} is unknown, expected "{component}.<module>.lora_A.weight" or "... lora_B.weight"'


def _pair_faults(module: str, a: Tensor, b: Tensor, rank: int) -> list[str]:
    shapes = f"A {tuple(a.shape)}, B {tuple(b.shape)}"
    if a.ndim != b.ndim or a.ndim not in (2, 4) or (b.ndim == 4 and tuple(b.shape[2:]) != (1, 1)):
        return [
            f"{module} has shapes {shapes}, expected A (rank, in), B (out, rank), or 4-D for a convolution, B 1 x 1"
        ]
    if a.shape[0] != b.shape[1]:
        return [f"{module} has shapes {shapes}: A is of rank {a.shape[0]}, B of rank {b.shape[1]}"]
    if a.shape[0] != rank:
        return [f"{module} is of rank {a.shape[0]}, the config says rank {rank}"]
    if 0 in a.shape or 0 in b.shape:
        return [f"{module} has shapes {shapes}: a side is empty"]
    return []
