"""The optimiser of the shapes model."""

import pytest
import torch

from nft_pipeline.training.shapes.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 24, 40), (2, 16, 64), (2, 64, 16)])
def test_orthogonalise_brings_every_singular_value_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.4 and values.max() < 1.3
    one_by_one = torch.stack([orthogonalise(matrix[None])[0] for matrix in matrices])
    torch.testing.assert_close(orthogonalise(matrices), one_by_one)


def test_muon_is_torch_muon_in_float32():
    """The same steps as torch.optim.Muon, up to its bfloat16."""
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(24, 40, generator=generator), torch.randn(40, 24, generator=generator)]
    gradients = [[torch.randn(p.shape, generator=generator) for p in start] for _ in range(4)]
    ends = []
    for optimizer in (Muon, lambda ps, **kw: torch.optim.Muon(ps, adjust_lr_fn="match_rms_adamw", **kw)):
        parameters = [torch.nn.Parameter(p.clone()) for p in start]
        muon = optimizer(parameters, lr=0.05, weight_decay=0.1)
        for step in gradients:
            for parameter, gradient in zip(parameters, step, strict=True):
                parameter.grad = gradient
            muon.step()
        ends.append([p.detach() for p in parameters])
    for ours, theirs, begin in zip(*ends, start, strict=True):
        moved = (theirs - begin).norm()
        assert (ours - theirs).norm() < 0.05 * moved
