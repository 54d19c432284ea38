"""What the cases of helpers/by_hand.py are made of: a pipeline of the parts of a case in the zoo, called as that is or
nearly, or a test of diffusers with other parts and inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from helpers.stock_tests import StockTests, per_sample
from helpers.zoo import CASES, GENERIC, SIBLINGS
from helpers.zoo_case import Case

ZOO = {**CASES, **SIBLINGS, **GENERIC}
Arguments = Callable[[list[int]], dict[str, Any]]


def no_more(indices: list[int]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class CaseByHand(Case):
    """A case that may say that, without guidance, a sample of a batch is not the same as alone."""

    own_rows: bool = True


@dataclass(frozen=True)
class Unconditional(CaseByHand):
    """A pipeline that is told how many pictures to draw, and gives arrays."""

    def sample(self, pipe: Any, indices: list[int] | None = None, *, cfg: bool = False, **kwargs: Any) -> Tensor:
        indices = [0] if indices is None else indices
        more = {} if "image" in inspect.signature(type(pipe).__call__).parameters else {"batch_size": len(indices)}
        result = super().sample(pipe, indices, cfg=cfg, output_type="np", **more, **kwargs)
        return torch.as_tensor(result).reshape(len(indices), -1)


class TestByHand:
    """A test of diffusers, of another class or one that cannot be used as it is, with other parts and inputs.

    Args:
        of: the class that it is of.
        inputs, parts: what to change or add.
        prepare: what to do to the pipeline.
    """

    def __init__(
        self,
        of: str,
        *,
        inputs: Callable[[], dict[str, Any]] = dict,
        parts: Callable[[], dict[str, Any]] = dict,
        prepare: Callable[[Any], Any] = lambda pipe: None,
    ) -> None:
        self.of, self._inputs, self._parts, self.prepare = of, inputs, parts, prepare
        self._test: Any = None

    def found(self, tests: StockTests) -> TestByHand:
        """The same, with the test it is made of."""
        self._test = next(iter(tests.of(self.of)))
        return self

    @property
    def batch_params(self) -> frozenset[str]:
        return per_sample(self._test) | self._inputs().keys()

    def get_dummy_components(self) -> dict[str, Any]:
        return {**self._test.get_dummy_components(), **self._parts()}

    def get_dummy_inputs(self) -> dict[str, Any]:
        wanted = inspect.signature(self._test.get_dummy_inputs).parameters
        given = self._test.get_dummy_inputs("cpu") if "device" in wanted else self._test.get_dummy_inputs()
        return {**given, **self._inputs()}


def parts_of(sibling: str) -> dict[str, Any]:
    """The parts of a case's pipeline in the zoo."""
    return dict(ZOO[sibling].pipe().components)


def made(cls: Any, parts: dict[str, Any], **more: Any) -> Any:
    """A pipeline of these parts, as far as it takes them, and of None for what else it must have."""
    taken = inspect.signature(cls.__init__).parameters
    needed = [n for n, p in taken.items() if p.default is inspect.Parameter.empty and n not in ("self", "args")]
    return cls(**{**dict.fromkeys(needed), **{n: part for n, part in parts.items() if n in taken}, **more})


def like(
    sibling: str,
    cls: Any,
    *,
    more: Arguments = no_more,
    case: dict[str, Any] | None = None,
    **parts: Callable[[], Any],
) -> Case:
    """A case called as its sibling is, with more arguments; `case` is what else is different, `parts` make others."""

    def build() -> Any:
        return made(cls, parts_of(sibling), **{name: part() for name, part in parts.items()})

    return called_as(sibling, build, more, **(case or {}))


def called_as(sibling: str, build: Callable[[], Any], more: Arguments = no_more, **case: Any) -> Case:
    """The same for a pipeline that is built in another way."""
    theirs = ZOO[sibling]
    fields = {"cfg": theirs.cfg, "start": theirs.start, "steps": theirs.steps, "alone": theirs.alone, **case}
    return CaseByHand(build, lambda indices: {**theirs.conditions(indices), **more(indices)}, **fields)
