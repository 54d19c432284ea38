"""A switchable LoRA beside the weights: against weights merged by hand, and without a trace afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nft_pipeline.comfy_nodes.delta import Dispatcher, Listener, Switch, Target, install
from nft_pipeline.errors import GuidanceError

RANK = 3


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Net(nn.Module):
    """A linear layer with q, k and v in one matrix, and a strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(5, 12)
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.double()
        for i, parameter in enumerate(self.parameters()):
            parameter.data = numbers(*parameter.shape, seed=10 + i)

    def forward(self, x: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        return self.qkv(x), self.conv(picture)


TARGETS = [
    Target("qkv", numbers(RANK, 5, seed=1), numbers(4, RANK, seed=2), start=0, size=4, layer="to_q"),
    Target("qkv", numbers(RANK, 5, seed=3), numbers(4, RANK, seed=4), start=8, size=4, layer="to_v"),
    Target("conv", numbers(RANK, 4, 3, 3, seed=5), numbers(6, RANK, 1, 1, seed=6), layer="conv"),
]
INPUT = (numbers(2, 7, 5, seed=7), numbers(2, 4, 8, 8, seed=8))


def merged(scale: float, targets: list[Target] = TARGETS) -> Net:
    net = Net()
    for target in targets:
        weight = net.get_submodule(target.module).weight
        change = scale * (target.b.flatten(1) @ target.a.flatten(1)).reshape(-1, *weight.shape[1:])
        rows = slice(target.start, target.start + (target.size or weight.shape[0]))
        weight.data[rows] += change
    return net


def close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("scale", [1.0, -0.5, 2.25])
def test_on_it_is_the_merged_model(scale: float) -> None:
    net, switch = Net(), Switch()
    with install(TARGETS, net, switch), switch.at(scale):
        found = net(*INPUT)
    close(found, merged(scale)(*INPUT))
    assert not torch.allclose(found[0], Net()(*INPUT)[0])


def test_off_it_is_the_model_bit_for_bit_and_nothing_is_left() -> None:
    net, switch = Net(), Switch()
    with install(TARGETS, net, switch):
        equal(net(*INPUT), Net()(*INPUT))
    assert "forward" not in net.qkv.__dict__ and "forward" not in net.conv.__dict__


def test_the_rows_of_a_fused_matrix_that_are_not_meant_are_untouched() -> None:
    net, switch = Net(), Switch(1.0)
    with install(TARGETS, net, switch):
        out = net(*INPUT)[0]
    assert torch.equal(out[..., 4:8], Net()(*INPUT)[0][..., 4:8])


def test_every_row_of_a_batch_can_have_its_own_scale() -> None:
    net, switch = Net(), Switch(torch.tensor([0.0, 1.5]))
    with install(TARGETS, net, switch):
        found = net(*INPUT)
    first = Net()(*(x[:1] for x in INPUT))
    second = merged(1.5)(*(x[1:] for x in INPUT))
    close(found, tuple(torch.cat(pair) for pair in zip(first, second, strict=True)))


def test_scales_of_another_number_of_rows_are_refused_by_name() -> None:
    net, switch = Net(), Switch(torch.tensor([1.0, 1.0, 2.0]))
    with install(TARGETS, net, switch), pytest.raises(GuidanceError, match=r"to_q sees 2 rows where the batch has 3"):
        net(*INPUT)
    assert "forward" not in net.qkv.__dict__


def test_one_scale_for_all_rows_needs_no_telling_apart() -> None:
    net, switch = Net(), Switch(torch.full((3,), 0.5))
    with install(TARGETS, net, switch):
        close(net(*INPUT), merged(0.5)(*INPUT))


def test_two_loras_add_up_in_any_order_of_leaving() -> None:
    net, one, two = Net(), Switch(0.6), Switch(0.4)
    first, second = install(TARGETS, net, one), install(TARGETS, net, two)
    first.__enter__()
    second.__enter__()
    close(net(*INPUT), merged(1.0)(*INPUT))
    first.__exit__(None, None, None)
    close(net(*INPUT), merged(0.4)(*INPUT))
    second.__exit__(None, None, None)
    equal(net(*INPUT), Net()(*INPUT))
    assert "forward" not in net.qkv.__dict__


def replace_forward(module: nn.Module) -> Callable[[], None]:
    """As other nodes do it: keep the forward, put another in its place, and later put the kept one back."""
    kept = module.forward

    def louder(*args: Any) -> Tensor:
        return 2 * kept(*args)

    module.forward = louder  # type: ignore[method-assign]

    def restore() -> None:
        module.forward = kept  # type: ignore[method-assign]

    return restore


def test_a_replacement_that_was_there_before_is_put_back() -> None:
    net = Net()
    replace_forward(net.qkv)
    theirs = net.qkv.forward
    switch = Switch(1.0)
    with install(TARGETS, net, switch):
        out = net(*INPUT)[0]
    plain = Net()(*INPUT)[0]
    torch.testing.assert_close(out, 2 * plain + (merged(1.0)(*INPUT)[0] - plain))
    assert net.qkv.forward is theirs


def test_what_another_nodes_forward_gives_is_not_written_into() -> None:
    net, kept = Net(), []
    forward = net.qkv.forward

    def keeping(x: Tensor) -> Tensor:
        kept.append(forward(x))
        return kept[-1]

    net.qkv.forward = keeping  # type: ignore[method-assign]
    with install(TARGETS, net, Switch(1.0)):
        out = net(*INPUT)[0]
    assert torch.equal(kept[0], Net()(*INPUT)[0])
    close((out,), (merged(1.0)(*INPUT)[0],))


@pytest.mark.parametrize(("rows", "dtype"), [(2, torch.float64), (1, torch.float64), (2, torch.float32)])
def test_an_output_that_lies_across_memory_or_has_another_dtype_is_changed_as_any(
    rows: int, dtype: torch.dtype
) -> None:
    class Across(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).to(dtype).transpose(0, 1).contiguous().transpose(0, 1)

    net, x = Net(), INPUT[0][:rows]
    across = Across(5, 12).double()
    across.load_state_dict(net.qkv.state_dict())
    net.qkv = across
    with install(TARGETS, net, Switch(1.0)):
        found = net(x, INPUT[1])[0]
    assert found.dtype == dtype
    torch.testing.assert_close(found, merged(1.0)(x, INPUT[1])[0].to(dtype))


def test_a_replacement_made_meanwhile_is_left_alone_and_may_leave_when_it_likes() -> None:
    net, switch = Net(), Switch(1.0)
    with install(TARGETS, net, switch):
        restore = replace_forward(net.qkv)
        close((net(*INPUT)[0],), (2 * merged(1.0)(*INPUT)[0],))
    equal((net(*INPUT)[0],), (2 * Net()(*INPUT)[0],))
    restore()  # puts our dispatcher back, which is empty
    assert isinstance(net.qkv.__dict__["forward"], Dispatcher)
    equal(net(*INPUT), Net()(*INPUT))
    with install(TARGETS, net, switch):
        close(net(*INPUT), merged(1.0)(*INPUT))
    assert "forward" not in net.qkv.__dict__


def test_an_error_inside_leaves_nothing() -> None:
    net, switch = Net(), Switch()
    with pytest.raises(RuntimeError, match="boom"), install(TARGETS, net, switch), switch.at(1.0):
        raise RuntimeError("boom")
    assert switch.scale is None
    assert not [module for module in net.modules() if "forward" in module.__dict__]


def test_a_listener_keeps_the_input_once() -> None:
    net, listener = Net(), Listener()
    with install([], net, Switch(), {"conv": listener}):
        net(*INPUT)
    assert listener.take() is INPUT[1]
    assert listener.take() is None


def test_a_compiled_model_keeps_its_graphs_between_guided_runs() -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    net, switch = Net(), Switch()
    compiled, counts = torch.compile(net, backend=backend), []
    try:
        for _ in range(6):
            with install(TARGETS, net, switch):
                compiled(*INPUT)
                with switch.at(1.0):
                    compiled(*INPUT)
            compiled(*INPUT)
            counts.append(len(graphs))
    finally:
        torch._dynamo.reset()
    assert counts[0] > 1 and counts[2:] == [counts[1]] * 4


def test_a_compiled_model_obeys_the_switch_in_every_order() -> None:
    net, switch = Net(), Switch()
    compiled = torch.compile(net, backend="eager")
    plain = Net()(*INPUT)
    try:
        close(compiled(*INPUT), plain)  # compiled before the LoRA came
        for _ in range(2):
            with install(TARGETS, net, switch):
                close(compiled(*INPUT), plain)
                with switch.at(1.0):
                    close(compiled(*INPUT), merged(1.0)(*INPUT))
            close(compiled(*INPUT), plain)
    finally:
        torch._dynamo.reset()
