"""The models of a run on one denoiser: the base, and a LoRA for each role that training keeps apart.

    base     no LoRA of ours: v_old of an offline run, v_ref of an anchored one
    old      online only: it samples and plays v_old in the loss; it follows theta after every round
    theta    the model that is trained

A fourth model, the running average that is exported, is kept by the learner as plain tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from nft_pipeline.adapters.keys import lora_from_peft, lora_key
from nft_pipeline.engine.injection import LoraSwitch, remove_lora, tuner_layers
from nft_pipeline.engine.row_scale import RowScale
from nft_pipeline.families.family import Family

from ..errors import TrainingError

THETA, OLD = "nft", "nft_old"


class LoraRoles:
    """LoRAs on a denoiser whose own weights are frozen.

    Args:
        denoiser: the base model's denoiser, without LoRAs of these names.
        family: the denoiser's family; it names the default layers.
        rank: the rank of the LoRAs.
        targets: the layers, as peft name suffixes; [] is the family's default.
        with_old: whether there is an `old` apart from the base. It starts as theta, and theta starts as the base.
        scale: of what the LoRAs add, lora_alpha / rank.
    """

    def __init__(
        self, denoiser: nn.Module, family: Family, rank: int, targets: list[str], with_old: bool, scale: int = 1
    ) -> None:
        self.denoiser, self.family, self.rank, self.scale = denoiser, family, rank, scale
        denoiser.requires_grad_(False)
        names = (OLD, THETA) if with_old else (THETA,)
        for name in names:
            config = LoraConfig(
                r=rank,
                lora_alpha=scale * rank,
                init_lora_weights="gaussian",
                target_modules=targets or list(family.lora_targets),
            )
            with warnings.catch_warnings():
                # peft warns about a second adapter as such; having one beside the other is the point here.
                warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
                denoiser.add_adapter(config, adapter_name=name)  # type: ignore[operator]
        layers = tuner_layers(denoiser)
        self._switch = LoraSwitch(denoiser, dict.fromkeys(names, len(layers)))
        self._rows = RowScale(THETA, self._switch.inner(THETA))
        self.parameters = self._weights(THETA)
        self.old_parameters = self._weights(OLD) if with_old else []
        for parameter in denoiser.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters:
            parameter.data = parameter.data.float()  # above the base's precision, whatever that is
            parameter.requires_grad_(True)
        for parameter, theta in zip(self.old_parameters, self.parameters, strict=with_old):
            parameter.data = theta.detach().clone()

    def _weights(self, name: str) -> list[nn.Parameter]:
        found = []
        layers: Iterable[Any] = tuner_layers(self.denoiser).values()
        for layer in layers:
            found += [layer.lora_A[name].weight, layer.lora_B[name].weight]
        return found

    def use(self, role: str) -> None:
        """From now on forwards are those of "base", "old" or "theta". Without a separate `old`, "old" is the base."""
        names = {"base": (), "old": (OLD,) if self.old_parameters else (), "theta": (THETA,)}[role]
        self._switch.only(*names)

    @contextmanager
    def theta_by_row(self, scale: Tensor) -> Iterator[None]:
        """Within this context forwards are theta's, with a LoRA scale of its own for every row, shape (B,)."""
        self.use("theta")
        self._rows.set(scale)
        try:
            yield
        finally:
            self._rows.set(None)

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """old <- decay old + (1 - decay) theta."""
        torch._foreach_lerp_(tuple(self.old_parameters), [theta.detach() for theta in self.parameters], 1 - decay)

    def lora(self) -> dict[str, Tensor]:
        """Theta's LoRA under diffusers' keys, with its scale in B."""
        state: dict[str, Any] = get_peft_model_state_dict(self.denoiser, adapter_name=THETA)
        return lora_from_peft(state, alpha=self.scale * self.rank, rank=self.rank, component=self.family.component)

    @torch.no_grad()
    def load(self, lora: Mapping[str, Tensor], name: str) -> None:
        """Begin from a LoRA under diffusers' keys: theta, and `old` where there is one.

        Args:
            lora: of the same layers and rank.
            name: what errors call it.

        Raises:
            TrainingError: it is of other layers or another rank.
        """
        component, layers = self.family.component, tuner_layers(self.denoiser)
        wanted = {lora_key(component, layer, side) for layer in layers for side in "AB"}
        if lora.keys() != wanted:
            few = ", ".join(sorted(lora.keys() ^ wanted)[:3])
            raise TrainingError(
                f"init_from names {name}, whose layers are not those of this run ({few}, ...). Set lora_targets to its "
                "layers"
            )
        for layer, module in layers.items():
            tuner: Any = module
            for side, weights in (("A", tuner.lora_A), ("B", tuner.lora_B)):
                given, own = lora[lora_key(component, layer, side)], weights[THETA].weight
                if given.shape != own.shape:
                    raise TrainingError(
                        f"init_from names {name}, which has {tuple(given.shape)} in {layer} where this run has "
                        f"{tuple(own.shape)}. Set rank to its rank"
                    )
                own.copy_(given if side == "A" else given / self.scale)
        for old, theta in zip(self.old_parameters, self.parameters, strict=bool(self.old_parameters)):
            old.copy_(theta)

    @torch.no_grad()
    def norm(self) -> float:
        """The Frobenius norm of theta's LoRA as a change of the weights, over all layers."""
        pairs = zip(self.parameters[::2], self.parameters[1::2], strict=True)
        # |BA|^2 is the sum of (A A^T) * (B^T B), and BA itself is never made.
        squares = [((a.flatten(1) @ a.flatten(1).T) * (b.flatten(1).T @ b.flatten(1))).sum() for a, b in pairs]
        return self.scale * float(torch.stack(squares).sum().clamp(min=0).sqrt())

    def remove(self) -> None:
        """Take the LoRAs out. The denoiser is then as it was, except for requires_grad."""
        self._rows.remove()
        self._switch.restore()
        for name in (THETA, OLD) if self.old_parameters else (THETA,):
            remove_lora(self.denoiser, name)
