"""Muon against its formula."""

import math

import pytest
import torch
from torch import nn

from mlm.training.muon import Muon, orthogonalize


def test_orthogonalize_brings_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((3, 64, 64), (2, 32, 96), (2, 96, 32)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        # A square random matrix has a few values near 0, which five steps do not lift all the way.
        assert values.quantile(0.05) > 0.4
        assert values.max() < 1.3


def by_the_formula(matrices, dtype):
    """Five steps as the formula has them."""
    x = (matrices / torch.linalg.matrix_norm(matrices, keepdim=True)).to(dtype)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.double()


@pytest.mark.parametrize("smallest", [1.0, 1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("shape", [(32, 32), (32, 40), (32, 64), (64, 32), (32, 88), (176, 32)])
def test_orthogonalize_follows_the_iteration(shape, smallest):
    """As exactly as the formula in bf16, however fast the singular values fall."""
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(3, *shape), full_matrices=False)
    values = torch.logspace(0, math.log10(smallest), min(shape))
    matrices = (u * values) @ v
    exact = by_the_formula(matrices, torch.float64)
    found = orthogonalize(matrices)
    assert found.dtype == torch.float32
    allowed = (by_the_formula(matrices, torch.bfloat16) - exact).norm()
    assert (found - exact).norm() < max(allowed, 0.1 * exact.norm())
    assert torch.linalg.svdvals(found).max() < 1.25


def test_a_muon_step_follows_the_formula():
    torch.manual_seed(0)
    linear = nn.Linear(16, 32, bias=False)
    before = linear.weight.detach().clone()
    groups = [{"params": [linear.weight], "weight_decay": 0.1, "kind": "muon", "split": 1}]
    optimizer = Muon(groups, lr=0.01, momentum=0.9)
    gradients = [torch.randn(32, 16) for _ in range(3)]
    expected, buffer = before.clone(), torch.zeros(32, 16)
    for gradient in gradients:
        linear.weight.grad = gradient.clone()
        optimizer.step()
        buffer = 0.9 * buffer + 0.1 * gradient
        update = orthogonalize((0.9 * buffer + 0.1 * gradient)[None])[0]
        expected = expected * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 32**0.5 * update
    torch.testing.assert_close(linear.weight.detach(), expected, rtol=1e-4, atol=1e-5)


def test_stacked_matrices_are_made_orthogonal_one_by_one():
    torch.manual_seed(0)
    whole = nn.Parameter(torch.zeros(48, 16))
    parts = [nn.Parameter(torch.zeros(16, 16)) for _ in range(3)]
    whole.grad = torch.randn(48, 16)
    for part, gradient in zip(parts, whole.grad.chunk(3), strict=True):
        part.grad = gradient.clone()
    common = {"weight_decay": 0.0, "kind": "muon"}
    Muon([{"params": [whole], "split": 3, **common}]).step()
    Muon([{"params": parts, "split": 1, **common}]).step()
    torch.testing.assert_close(whole.detach(), torch.cat([p.detach() for p in parts]))
