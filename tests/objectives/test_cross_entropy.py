"""The sum and its gradient are those of the plain formula."""

import pytest
import torch
from torch.nn import functional as F

from mlm.data.masking import IGNORE_INDEX
from mlm.objectives import cross_entropy
from mlm.objectives.cross_entropy import summed_cross_entropy


def both(logits, labels):
    """(loss, gradient) of the plain formula and of ours, from a loss multiplied by 0.25."""
    plain = logits.detach().clone().requires_grad_()
    expected = F.cross_entropy(plain.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")
    (0.25 * expected).backward()
    leaf = logits.detach().clone().requires_grad_()
    found = summed_cross_entropy(leaf * 1, labels)
    (0.25 * found).backward()
    return (expected, plain.grad), (found, leaf.grad)


@pytest.mark.parametrize("piece", [1, 100, 1 << 19])
@pytest.mark.parametrize("ignored", [0, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sum_and_gradient(monkeypatch, dtype, ignored, piece):
    monkeypatch.setattr(cross_entropy, "_PIECE", piece)
    torch.manual_seed(0)
    logits = (5 * torch.randn(7, 50)).to(dtype)
    labels = torch.randint(0, 50, (7,))
    labels[torch.randperm(7)[:ignored]] = IGNORE_INDEX
    (expected, wanted), (found, gradient) = both(logits, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, wanted)


def test_extreme_logits_give_finite_numbers():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]])
    (expected, wanted), (found, gradient) = both(logits, torch.tensor([1, 2]))
    assert found.isfinite()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, wanted)


def test_no_position_at_all():
    (_, _), (found, gradient) = both(torch.zeros(0, 9), torch.zeros(0, dtype=torch.long))
    assert found == 0
    assert gradient.shape == (0, 9)


def test_logits_stay_where_no_gradient_is_wanted():
    logits = torch.randn(3, 5)
    before = logits.clone()
    summed_cross_entropy(logits, torch.tensor([0, 1, 2]))
    assert torch.equal(logits, before)


def test_whoever_needs_the_spent_logits_is_told():
    leaf = torch.randn(3, 5, requires_grad=True)
    logits = leaf.tanh()  # its gradient needs its output
    loss = summed_cross_entropy(logits, torch.tensor([0, 1, 2]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
