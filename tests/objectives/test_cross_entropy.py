"""The sum and its gradient are those of the plain formula."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mlm.batch import ragged
from mlm.data.masking import IGNORE_INDEX
from mlm.model.config import preset
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives import cross_entropy, masked_lm
from mlm.objectives.cross_entropy import (
    projected_cross_entropy,
    projects_in_pieces,
    summed_cross_entropy,
)


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


def projections(dtype, biased, ignored, device):
    """(hidden, weight, bias, labels) of 7 positions, width 16 and 50 words."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 16).to(dtype), torch.randn(50, 16)
    bias = torch.randn(50).to(device).requires_grad_() if biased else None
    labels = torch.randint(0, 50, (7,))
    labels[torch.randperm(7)[:ignored]] = IGNORE_INDEX
    return [x.to(device).requires_grad_() for x in (hidden, weight)] + [bias, labels.to(device)]


def loss_and_gradients(loss, arguments, low):
    """The loss and its gradients, from a loss multiplied by 0.25; ``low`` under autocast."""
    with torch.autocast(arguments[0].device.type, torch.bfloat16, enabled=low):
        total = loss(*arguments)
    assert total.dtype in (torch.float32, torch.float64)
    wanted = [x for x in arguments[:3] if x is not None]
    found = torch.autograd.grad(0.25 * total, wanted)
    assert [x.dtype for x in found] == [x.dtype for x in wanted]
    return [x.detach().double() for x in (total, *found)]


def plain(hidden, weight, bias, labels):
    logits = F.linear(hidden, weight, bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")


def as_a_model_does(hidden, weight, bias, labels):
    if projects_in_pieces(weight):
        return projected_cross_entropy(hidden, weight, bias, labels)
    return summed_cross_entropy(F.linear(hidden, weight, bias), labels)


def check(loss, dtype, ignored, biased, device="cpu"):
    """As exact as the plain formula in the same precision."""
    low = dtype == torch.bfloat16
    arguments = projections(dtype, biased, ignored, device)
    found = loss_and_gradients(loss, arguments, low)
    formula = loss_and_gradients(plain, arguments, low)
    exact = [
        x if x is None or x.dtype == torch.long else x.detach().double().requires_grad_()
        for x in arguments
    ]
    truth = loss_and_gradients(plain, exact, low=False)
    for ours, theirs, right in zip(found, formula, truth, strict=True):
        # What a GPU adds in another order may fall on the other side of a rounding.
        slack = 1.2 if device == "cpu" else 2.0
        bound = slack * (theirs - right).norm() + 1e-6 * right.norm() + 1e-6
        assert (ours - right).norm() <= bound


@pytest.mark.parametrize("piece", [1, 100, 1 << 27])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("ignored", [0, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projected_in_pieces(monkeypatch, dtype, ignored, biased, piece):
    monkeypatch.setattr(cross_entropy, "_CUDA_PIECE", piece)
    check(projected_cross_entropy, dtype, ignored, biased)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled(dtype):
    torch.compiler.reset()
    check(torch.compile(as_a_model_does, backend="aot_eager", fullgraph=True), dtype, 3, True)


@pytest.mark.gpu
@pytest.mark.parametrize("loss", [projected_cross_entropy, as_a_model_does])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda(dtype, loss):
    check(loss, dtype, 3, True, "cuda")


@pytest.mark.gpu
def test_compiled_on_cuda():
    torch.compiler.reset()
    check(torch.compile(as_a_model_does, fullgraph=True), torch.bfloat16, 3, True, "cuda")


@pytest.mark.gpu
def test_the_logits_are_never_whole_on_cuda():
    hidden = torch.randn(40_000, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(30_000, 64, device="cuda", requires_grad=True)
    labels = torch.randint(0, 30_000, (40_000,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    with torch.autocast("cuda", torch.bfloat16):
        as_a_model_does(hidden, weight, None, labels).backward()
    assert torch.cuda.max_memory_allocated() < 2 * 40_000 * 30_000  # bytes of them in 16 bit


@pytest.mark.parametrize("head", ["transform", "linear"])
def test_a_model_has_the_same_loss_in_pieces(monkeypatch, head):
    torch.manual_seed(0)
    config = preset("bert", "tiny", vocab_size=60).replace(lm_head=head, hidden_dropout=0.0)
    model = MaskedLanguageModel(config.replace(attention_dropout=0.0))
    batch = replace(
        ragged([[5, 6, 7, 8], [9, 10]]),
        masked_positions=torch.tensor([1, 3, 5, 0]),
        labels=torch.tensor([7, 9, 11, IGNORE_INDEX]),
    )
    results = []
    for pieces in (False, True):
        monkeypatch.setattr(masked_lm, "projects_in_pieces", lambda weight, p=pieces: p)
        found = masked_lm.loss(model, batch)
        assert found.targets == 3
        results.append((found.sum, *torch.autograd.grad(found.sum, list(model.parameters()))))
    for whole, in_pieces in zip(*results, strict=True):
        torch.testing.assert_close(in_pieces, whole)
