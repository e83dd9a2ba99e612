"""StableAdamW and LAMB, against AdamW where they are the same and against their formulas."""

import math

import pytest
import torch
from torch import nn

from mlm.model.config import preset
from mlm.model.heads import MaskedLanguageModel
from mlm.training import scaled_adam
from mlm.training.optimizers import OptimizerOptions, build_optimizer, set_learning_rate
from mlm.training.scaled_adam import ScaledAdam, as_long_as_the_matrix, shorter_in_leaps


def groups(*parameters, weight_decay=0.1):
    return [{"params": list(parameters), "weight_decay": weight_decay}]


def matrix(seed=0):
    return nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)))


def test_with_steady_gradients_stable_adamw_is_adamw():
    """Of gradients that are always the same, no square is above its mean."""
    ours, theirs = matrix(), matrix()
    one = ScaledAdam(groups(ours), shorter_in_leaps, lr=0.01, betas=(0.9, 0.98), eps=1e-8)
    other = torch.optim.AdamW(groups(theirs), lr=0.01, betas=(0.9, 0.98), eps=1e-8)
    for _ in range(20):
        for parameter, optimizer in ((ours, one), (theirs, other)):
            parameter.grad = matrix(1).data
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_a_leap_of_the_gradient_takes_a_shorter_step():
    parameter = nn.Parameter(torch.ones(4))
    optimizer = ScaledAdam(
        groups(parameter, weight_decay=0.0), shorter_in_leaps, lr=0.01, betas=(0.9, 0.98)
    )
    for _ in range(400):
        parameter.grad = torch.ones(4)
        optimizer.step()
    before = parameter.detach().clone()
    parameter.grad = torch.full((4,), 100.0)
    optimizer.step()
    square = 0.98 + 0.02 * 100**2  # the run before is long enough to have no bias left
    excess = math.sqrt(100**2 / square)
    plain = 0.01 * (0.9 + 0.1 * 100) / math.sqrt(square)
    assert excess > 7
    assert (before - parameter).tolist() == pytest.approx([plain / excess] * 4, rel=1e-3)


def test_lamb_is_its_formula():
    parameter, vector = matrix(), nn.Parameter(torch.ones(3))
    optimizer = ScaledAdam(
        groups(parameter, vector), as_long_as_the_matrix, lr=0.01, betas=(0.9, 0.98), eps=1e-6
    )
    found = {id(p): (torch.zeros_like(p), torch.zeros_like(p)) for p in (parameter, vector)}
    expected = {id(p): p.detach().clone() for p in (parameter, vector)}
    for step in range(1, 5):
        for p in (parameter, vector):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            mean, square = found[id(p)]
            mean.mul_(0.9).add_(0.1 * p.grad)
            square.mul_(0.98).add_(0.02 * p.grad**2)
            at = expected[id(p)]
            update = (mean / (1 - 0.9**step)) / ((square / (1 - 0.98**step)).sqrt() + 1e-6)
            update = update + 0.1 * at
            ratio = at.norm() / update.norm() if p is parameter else 1.0
            at.sub_(0.01 * ratio * update)
        optimizer.step()
    for p in (parameter, vector):
        torch.testing.assert_close(p.detach(), expected[id(p)], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scale", [shorter_in_leaps, as_long_as_the_matrix])
def test_all_at_once_is_one_by_one(scale, monkeypatch):
    """As on a GPU, and as on a CPU."""
    results = []
    for together in (lambda some: [some], lambda some: [[one] for one in some]):
        monkeypatch.setattr(scaled_adam, "_together", together)
        parameters = [matrix(1), nn.Parameter(torch.ones(4)), matrix(2)]
        optimizer = ScaledAdam(groups(*parameters), scale, lr=0.01)
        for step in range(4):
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) * step
            optimizer.step()
        results.append(parameters)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_all_zero_takes_adamws_step():
    parameter = nn.Parameter(torch.zeros(2, 2))
    parameter.grad = torch.ones(2, 2)
    ScaledAdam(groups(parameter), as_long_as_the_matrix, lr=0.5).step()
    assert parameter.flatten().tolist() == pytest.approx([-0.5] * 4)


@pytest.mark.parametrize("name", ["stable_adamw", "lamb"])
def test_they_learn_follow_the_schedule_and_go_on_where_they_were(name):
    torch.manual_seed(0)
    config = preset("bert", "tiny", vocab_size=50)

    def fresh():
        torch.manual_seed(0)
        model = MaskedLanguageModel(config)
        return model, build_optimizer(model, OptimizerOptions(name=name, lr=0.01))

    def steps(model, optimizer, numbers):
        for number in numbers:
            set_learning_rate(optimizer, 1.0 - number / 20)
            loss = sum(((p - 0.1) ** 2).sum() for p in model.parameters())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss)

    whole = fresh()
    first, last = steps(*whole, range(1)), steps(*whole, range(1, 10))
    assert last < first
    half = fresh()
    steps(*half, range(5))
    again = fresh()
    again[0].load_state_dict(half[0].state_dict())
    again[1].load_state_dict(half[1].state_dict())
    steps(*again, range(5, 10))
    for a, b in zip(whole[0].parameters(), again[0].parameters(), strict=True):
        assert torch.equal(a, b)
