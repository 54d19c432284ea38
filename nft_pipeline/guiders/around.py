"""A guider of diffusers around another one: what a pipeline or a person asks of it, the other one answers."""

from __future__ import annotations

from typing import Any

from diffusers.guiders import BaseGuidance


class GuiderAround(BaseGuidance):
    """Passes everything on to `guider`; a subclass changes what it wants to change.

    Attributes that begin with "nft_" or an underscore, and `guider` itself, belong to this object. All others are
    those of the other guider where it has them, for reading and for setting, so that there is one state and one value
    of each setting. A subclass sets `guider` itself and does not call BaseGuidance's __init__, for which nothing is
    left to remember.
    """

    guider: BaseGuidance

    def __getattr__(self, name: str) -> Any:
        """What the other guider has: its settings, and the state that diffusers keeps in a guider."""
        if name in ("guider", "_internal_dict") or name.startswith("__"):  # the second is the config, which is our own
            raise AttributeError(f"{type(self).__name__} has no {name}")
        return getattr(self.guider, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Settings of the other guider are set there, where they work."""
        ours = name.startswith(("_", "nft_")) or name == "guider"
        target = self if ours or not hasattr(self.guider, name) else self.guider
        object.__setattr__(target, name, value)

    @property
    def _input_predictions(self) -> Any:
        return self.guider._input_predictions

    @property
    def is_conditional(self) -> bool:
        """As the other guider says."""
        return bool(self.guider.is_conditional)

    @property
    def num_conditions(self) -> int:
        """How many predictions the other guider asks for in a step."""
        return int(self.guider.num_conditions)

    def enable(self) -> None:
        """Switch guidance on."""
        self.guider.enable()

    def disable(self) -> None:
        """Switch guidance off: a step is the base's conditional prediction."""
        self.guider.disable()

    def get_state(self) -> dict[str, Any]:
        """The other guider's state."""
        return self.guider.get_state()

    def prepare_inputs(self, data: Any) -> Any:
        """The inputs of a step's forwards."""
        return self.guider.prepare_inputs(data)

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Any) -> Any:
        """The inputs of a step's forwards."""
        return self.guider.prepare_inputs_from_block_state(data, input_fields)

    def __call__(self, data: Any) -> Any:
        """The predictions combined."""
        return self.guider(data)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The predictions combined."""
        return self.guider.forward(*args, **kwargs)
