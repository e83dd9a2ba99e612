"""Dropout: the rate, the independence of neighbours, the gradient, and what keys it."""

import pytest
import torch

from mlm.model.dropout import Dropout, drop, random_int16

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_rate_is_right_and_the_mean_is_kept(p, dtype):
    torch.manual_seed(1)
    dropped = drop(torch.ones(1000, 1000, dtype=dtype), p).float()
    spread = (p * (1 - p) / 1e6) ** 0.5
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=5 * spread)
    kept = dropped[dropped != 0]
    assert kept.unique().numel() == 1
    assert kept[0].item() == pytest.approx(1 / (1 - p), rel=1e-4 if dtype.itemsize == 4 else 4e-3)


def test_elements_are_dropped_independently_of_each_other():
    """The four that share a draw, too."""
    torch.manual_seed(2)
    dropped = (drop(torch.ones(4_000_000), 0.5) == 0).view(-1, 4).long()
    patterns = (dropped * torch.tensor([1, 2, 4, 8])).sum(1).bincount(minlength=16)
    expected = 1_000_000 / 16
    assert ((patterns - expected).square() / expected).sum() < 45  # χ², 15 degrees: p = 1e-4


def test_random_numbers_are_uniform():
    torch.manual_seed(3)
    counts = (random_int16(torch.Size([655_360])).int() + 32_768).bincount(minlength=65_536)
    # χ² with 65,535 degrees of freedom: mean 65,535, deviation 362.
    assert ((counts - 10.0).square() / 10).sum().item() == pytest.approx(65_535, abs=5 * 362)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (2, 3, 4, 5)])
def test_the_gradient_is_dropped_where_the_value_was(shape, dtype):
    x = torch.ones(shape, dtype=dtype, requires_grad=True)
    dropped = drop(x, 0.4)
    dropped.backward(torch.ones_like(dropped))
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert torch.equal(x.grad, dropped.detach())


def test_the_same_seed_drops_the_same_and_another_call_something_else():
    x = torch.ones(1000)
    torch.manual_seed(4)
    first, second = drop(x, 0.5), drop(x, 0.5)
    torch.manual_seed(4)
    assert torch.equal(drop(x, 0.5), first)
    assert not torch.equal(first, second)


def test_nothing_or_all_is_dropped_at_the_ends_and_nothing_outside_training():
    x = torch.ones(1000)
    assert drop(x, 0.0) is x
    assert drop(x, 1.0).count_nonzero() == 0
    assert drop(x, 1e-9).equal(x)
    assert drop(x, 1 - 1e-9).count_nonzero() == 0
    assert Dropout(0.5).eval()(x) is x
    assert not Dropout(0.5)(x).equal(x)
