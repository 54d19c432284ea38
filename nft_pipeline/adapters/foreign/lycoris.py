"""LyCORIS adapters that are a plain LoRA in other clothes: LoHa and LoKr of linear layers, written as B @ A exactly.

    LoHa   (a_1 b_1) o (a_2 b_2), elementwise     B: row by row all products of a_1 and a_2; A: the same of b_1 and b_2,
                                                  column by column
    LoKr   w_1 (x) (a b), Kronecker's product     B = w_1 (x) a, A = 1 (x) b

A LoHa of rank r has rank r^2, a LoKr with w_1 of k columns has rank k r. Anything else stays as it was, and is refused
by its name: factors of a convolution (Tucker), a LoKr whose second factor is not split, and what would get too large.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LARGEST_RANK = 256  # beyond it the pair would be about as large as the weight itself
_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def as_plain_lora(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, with the LoHa and LoKr layers that can be as pairs of A and B, at their own scale.

    Args:
        tensors: by key, of a file of any kind.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        path, _, part = key.rpartition(".")
        if part.startswith(("hada_", "lokr_")):
            parts.setdefault(path, {})[part] = tensor.float()
    plain = dict(tensors)
    for path, found in parts.items():
        pair = _pair(found)
        if pair is None:
            continue
        rank = next(value for name, value in found.items() if name.endswith("_b")).shape[0]
        alpha = plain.pop(f"{path}.alpha", None)
        scale = 1.0 if alpha is None else float(alpha) / rank
        for name in found:
            del plain[f"{path}.{name}"]
        a, b = pair
        down, up = ("lora_A", "lora_B") if "." in path else ("lora_down", "lora_up")
        plain |= {f"{path}.{down}.weight": a, f"{path}.{up}.weight": b * scale}
        plain[f"{path}.alpha"] = torch.tensor(float(len(a)))
    return plain


def _pair(found: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """A and B of one layer without its scale; None where there is no exact pair, or too large a one."""
    if any(tensor.ndim != 2 for tensor in found.values()):
        return None
    if found.keys() == set(_LOHA):
        a_1, b_1, a_2, b_2 = (found[name] for name in _LOHA)
        if a_1.shape != a_2.shape or b_1.shape != b_2.shape or a_1.shape[1] != len(b_1) or len(b_1) ** 2 > LARGEST_RANK:
            return None
        return torch.einsum("in,jn->ijn", b_1, b_2).flatten(0, 1), torch.einsum("oi,oj->oij", a_1, a_2).flatten(1)
    if found.keys() in ({"lokr_w1", "lokr_w2_a", "lokr_w2_b"}, {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}):
        w_1 = found["lokr_w1"] if "lokr_w1" in found else found["lokr_w1_a"] @ found["lokr_w1_b"]
        a, b = found["lokr_w2_a"], found["lokr_w2_b"]
        if a.shape[1] != len(b) or w_1.shape[1] * len(b) > LARGEST_RANK:
            return None
        return torch.kron(torch.eye(w_1.shape[1]), b), torch.kron(w_1, a.contiguous())
    return None
