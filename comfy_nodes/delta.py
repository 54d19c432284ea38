"""A LoRA beside a model's weights, switchable for single forwards: torch only.

    target = Target("diffusion_model.joint_blocks.0.x_block.attn.qkv", a, b, start=0, size=192)
    with install([target], model, switch):     # module.forward is replaced
        switch.scale = 1.0                     # W x + B A x from here on
        switch.scale = None                    # W x again, bit for bit

One `Dispatcher` a module replaces its forward, whatever number of LoRAs there are. It must be the forward that is
replaced: torch.compile skips forward hooks that were added after it has compiled. And it must be one: replacements that
are nested in one order and taken out in another leave a stale forward behind. A dispatcher whose place was taken by
somebody else's replacement stays where it is, empty, and passes its calls on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nft_pipeline.engine.row_scale import scale_rows
from nft_pipeline.errors import GuidanceError
from nft_pipeline.families.forward_call import first_argument

if TYPE_CHECKING:
    from nft_pipeline.adapters.alpha_head import AlphaHead

_IDLE = "_nft_idle_dispatcher"


@dataclass(frozen=True)
class Target:
    """The change of one weight, or of some of its rows: W[start : start + size] + B A.

    Args:
        module: name of a linear layer or 2-D convolution inside the model.
        a: (rank, in), or (rank, in, kh, kw) for a convolution.
        b: (rows, rank), or (rows, rank, 1, 1).
        start: the first output row it changes: models that keep q, k and v in one matrix get three of these.
        size: how many rows; None for all.
        layer: what the adapter's file calls it, for errors.
    """

    module: str
    a: Tensor
    b: Tensor
    start: int = 0
    size: int | None = None
    layer: str = ""


class Weights(nn.Module):
    """A LoRA's matrices and its adapter's head as a module that is moved between devices as a whole.

    ComfyUI counts such a module beside the model, makes room for it, and takes it off a device that is full. It may put
    other tensors in the place of the parameters, so whoever computes with them asks for them anew.

    Args:
        targets: the LoRA.
        head: the adapter's head, which is copied; None without one.
    """

    def __init__(self, targets: Sequence[Target], head: AlphaHead | None = None) -> None:
        super().__init__()
        self._targets = targets
        self.down = nn.ParameterList(nn.Parameter(target.a, requires_grad=False) for target in targets)
        self.up = nn.ParameterList(nn.Parameter(target.b, requires_grad=False) for target in targets)
        self.head = copy.deepcopy(head)

    def matrices_in(self, dtype: torch.dtype) -> None:
        """Keep the LoRA in the dtype that the model computes in, of at least 16 bits; the head stays as it is."""
        if dtype.itemsize > 1:
            self.down.to(dtype)
            self.up.to(dtype)

    def targets(self) -> list[Target]:
        """The LoRA with its matrices where they are now."""
        matrices = zip(self._targets, self.down, self.up, strict=True)
        return [replace(target, a=a.data, b=b.data) for target, a, b in matrices]


@dataclass
class Switch:
    """What a LoRA's change is multiplied by in the forwards to come.

    Args:
        scale: None is off: outputs are the module's own, bit for bit. A number, or a Tensor (rows,) with one for each
            row of the batch.
    """

    scale: float | Tensor | None = None

    @contextmanager
    def at(self, scale: float | Tensor | None) -> Iterator[None]:
        """At this inside the block; afterwards as before, also after an error."""
        before, self.scale = self.scale, scale
        try:
            yield
        finally:
            self.scale = before


class Guest(Protocol):
    """What may live in a dispatcher."""

    def before(self, x: Tensor) -> None:
        """Sees the module's input."""

    def after(self, module: nn.Module, x: Tensor, out: Tensor, shared: bool) -> Tensor:
        """Gives the module's output, changed or not. If it may be `shared` with somebody, it is not written into."""


@dataclass
class LoraGuest:
    """Adds a LoRA's change to the output of its module while its switch is on."""

    targets: Sequence[Target]
    switch: Switch
    _cast: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def before(self, x: Tensor) -> None:
        """Nothing to see."""

    def after(self, module: nn.Module, x: Tensor, out: Tensor, shared: bool) -> Tensor:
        """out + scale B A x, in the rows that are meant."""
        scale = self.switch.scale
        if scale is None:
            return out
        dim = 1 if isinstance(module, nn.Conv2d) else -1
        if shared or not out.is_contiguous():
            out = out.clone(memory_format=torch.contiguous_format)
        for target, (a, b) in zip(self.targets, self._matrices(x), strict=True):
            part = out if target.size is None else out.narrow(dim, target.start, target.size)
            _add_change(part, module, x, a, b, scale, target.layer)
        return out

    def _matrices(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """A and B where x is and as x is, cast once."""
        key = (x.device, x.dtype)
        if key not in self._cast:
            self._cast = {key: [(t.a.to(*key), t.b.to(*key)) for t in self.targets]}
        return self._cast[key]


@dataclass
class Listener:
    """Keeps the input of its module: the tokens that an alpha head reads."""

    seen: Tensor | None = None

    def before(self, x: Tensor) -> None:
        """Keep it."""
        self.seen = x

    def after(self, module: nn.Module, x: Tensor, out: Tensor, shared: bool) -> Tensor:
        """Unchanged."""
        return out

    def take(self) -> Tensor | None:
        """What was seen last, once."""
        seen, self.seen = self.seen, None
        return seen


class Dispatcher:
    """Stands for the forward of a module while it has guests.

    Afterwards it lies idle on the module and is taken again the next time. torch.compile drops the graphs it made of a
    forward when that object is gone, and stops compiling after eight: with a new one each run it would, after two.
    """

    module: nn.Module
    original: Callable[..., Any]
    own: bool  # somebody replaced the forward before us, and may keep what comes out of it

    def __init__(self) -> None:
        self.guests: list[Guest] = []

    def enter(self, module: nn.Module) -> None:
        """Take the place of the module's forward."""
        self.module, self.original, self.own = module, module.forward, "forward" in module.__dict__
        module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward, and the guests."""
        x = first_argument(args, kwargs)
        for guest in self.guests:
            guest.before(x)
        out = self.original(*args, **kwargs)
        for guest in self.guests:
            out = guest.after(self.module, x, out, shared=self.own)
        return out

    def leave(self, guest: Guest) -> None:
        """Remove a guest; the last one puts the forward back, if it is still this one."""
        self.guests = [other for other in self.guests if other is not guest]
        module = self.module
        if not self.guests and module.__dict__.get("forward") is self:
            if self.own:
                module.forward = self.original
            else:
                del module.forward
            del self.module, self.original  # idle, it must not keep the module's weights in memory
            module.__dict__[_IDLE] = self


def join(module: nn.Module, guest: Guest) -> Dispatcher:
    """Add a guest to the module's dispatcher, made if there is none."""
    dispatcher = module.__dict__.get("forward")
    if not isinstance(dispatcher, Dispatcher):
        dispatcher = module.__dict__.pop(_IDLE, None) or Dispatcher()
        dispatcher.enter(module)
    dispatcher.guests = [*dispatcher.guests, guest]
    return dispatcher


@contextmanager
def install(
    targets: Sequence[Target], model: nn.Module, switch: Switch, listeners: Mapping[str, Listener] | None = None
) -> Iterator[None]:
    """A LoRA and listeners on a model, inside the block; afterwards its own forwards again, also after an error.

    Args:
        targets: checked against the model (`nft_pipeline.comfy_nodes.match`).
        model: what the targets' names are relative to.
        switch: turns the LoRA on; the caller's.
        listeners: by module name.
    """
    by_module: dict[str, list[Target]] = {}
    for target in targets:
        by_module.setdefault(target.module, []).append(target)
    guests: list[tuple[str, Guest]] = [(name, LoraGuest(parts, switch)) for name, parts in by_module.items()]
    guests += list((listeners or {}).items())
    with ExitStack() as stack:
        for name, guest in guests:
            stack.callback(join(model.get_submodule(name), guest).leave, guest)
        yield


def _add_change(
    out: Tensor, module: nn.Module, x: Tensor, a: Tensor, b: Tensor, scale: float | Tensor, layer: str
) -> None:
    """out += B (scale A x): A's output is as wide as the rank, and often a hundred times less to scale than B's.

    In one multiplication that adds to what is there: a change of its own, as large as the output, would be written and
    read once more, which on a narrow layer takes as long as computing it.
    """
    if isinstance(module, nn.Conv2d):
        inner = F.conv2d(x, a, None, module.stride, module.padding, module.dilation)
        out.add_(F.conv2d(_scaled(inner, scale, layer), b))
        return
    inner = _scaled(F.linear(x, a), scale, layer)
    if out.dtype == inner.dtype:
        # Rows of a contiguous output are one matrix, also where they are cut out of wider ones.
        out.view(-1, out.shape[-1]).addmm_(inner.reshape(-1, inner.shape[-1]), b.T)
    else:
        out.add_(F.linear(inner, b))


def _scaled(inner: Tensor, scale: float | Tensor, layer: str) -> Tensor:
    if not isinstance(scale, Tensor):
        return inner if scale == 1 else inner * scale
    scaled = scale_rows(inner, scale)
    if scaled is None:
        raise GuidanceError(
            f"the layer {layer} sees {inner.shape[0]} rows where the batch has {len(scale)}: this model folds the "
            'batch into another dimension, so no picture can have a scale of its own. Use mode "exact".'
        )
    return scaled
