"""What of a base model is on the run's device, so that a GPU needs room for its largest part and not for all of it.

The denoiser is there, but while the text encoders are at work: then it rests on the CPU, as they do otherwise. The VAE
visits for each batch. A pipeline that is on the device as a whole stays there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

REST = torch.device("cpu")


class Placement:
    """Moves the parts of one base model.

    Args:
        denoiser: which has not been moved to the device yet, or has.
        device: of the run.
    """

    def __init__(self, denoiser: nn.Module, device: torch.device) -> None:
        self.denoiser, self.device = denoiser, device
        self._is_in, self._stays = _device_of(denoiser) == device, False

    def bring_denoiser(self) -> None:
        """To the device, if it is not there."""
        if not self._is_in:
            self.denoiser.to(self.device)
            self._is_in = True

    def denoiser_stays(self) -> None:
        """From now on it is not moved: it is split over the processes of the run."""
        self._is_in = self._stays = True

    @contextmanager
    def visit(self, *modules: nn.Module) -> Iterator[None]:
        """Within, the modules are on the device; afterwards each is where it was."""
        homes = [_device_of(module) for module in modules]
        try:
            for module in modules:
                module.to(self.device)
            yield
        finally:
            for module, home in zip(modules, homes, strict=True):
                module.to(home)

    @contextmanager
    def instead_of_denoiser(self, *modules: nn.Module) -> Iterator[None]:
        """As `visit`; if a module comes from the CPU, the denoiser makes room for it, until it is brought again."""
        if self._is_in and not self._stays and any(_device_of(module) == REST != self.device for module in modules):
            self.denoiser.to(REST)
            self._is_in = False
            self.forget()
        with self.visit(*modules):
            yield
        self.forget()

    def forget(self) -> None:
        """Memory that nothing uses any more, kept by torch for the next tensor of its size."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _device_of(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), REST)
