"""Groups, rates, states, and AdamW against torch's."""

import copy

import pytest
import torch

from mlm.errors import UserError
from mlm.model.config import preset
from mlm.model.heads import MaskedLanguageModel
from mlm.training.muon import Muon
from mlm.training.optimizers import (
    OptimizerOptions,
    build_optimizer,
    parameter_groups,
    set_learning_rate,
)


def model() -> MaskedLanguageModel:
    torch.manual_seed(0)
    return MaskedLanguageModel(preset("bert", "tiny", vocab_size=50))


def names_by_kind(groups, module):
    name_of = {id(p): n for n, p in module.named_parameters()}
    return {
        (g["kind"], g["weight_decay"] > 0, g["split"]): {name_of[id(p)] for p in g["params"]}
        for g in groups
    }


def test_groups_cover_every_parameter_once():
    module = model()
    for matrices in ("adamw", "muon"):
        groups = parameter_groups(module, 0.1, matrices)
        ids = [id(p) for g in groups for p in g["params"]]
        assert sorted(ids) == sorted(id(p) for p in module.parameters())


def test_norms_and_biases_do_not_decay_and_embeddings_stay_with_adamw():
    module = model()
    found = names_by_kind(parameter_groups(module, 0.1, "muon"), module)
    assert all(n.endswith("bias") or "norm" in n for n in found[("adamw", False, 1)])
    assert found[("adamw", True, 1)] == {
        f"encoder.embeddings.{n}.weight" for n in ("word", "position", "token_type")
    }
    assert "head.dense.weight" in found[("muon", True, 1)]
    assert found[("muon", True, 3)] == {f"encoder.layers.{i}.mixer.qkv.weight" for i in range(2)}


def test_the_adamw_half_equals_torch():
    ours, theirs = model(), model()
    options = OptimizerOptions(name="adamw", lr=1e-3)
    reference = build_optimizer(theirs, options)
    groups = parameter_groups(ours, options.weight_decay)
    optimizer = Muon(groups, options.lr, betas=options.betas, eps=options.eps)
    for step in range(3):
        torch.manual_seed(step)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        optimizer.step()
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_state_is_plain_and_continues_exactly(name, tmp_path):
    options = OptimizerOptions(name=name)
    first = model()
    optimizer = build_optimizer(first, options)

    def step(module, opt, seed):
        torch.manual_seed(seed)
        for p in module.parameters():
            p.grad = torch.randn_like(p)
        opt.step()

    step(first, optimizer, 0)
    second = copy.deepcopy(first)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    other = build_optimizer(second, options)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    step(first, optimizer, 1)
    step(second, other, 1)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_loaded_state_is_where_its_parameters_are(name):
    options, trained = OptimizerOptions(name=name), model()
    optimizer = build_optimizer(trained, options)
    for parameter in trained.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    other = build_optimizer(model().to("meta"), options)  # any device that is not the state's
    other.load_state_dict(optimizer.state_dict())
    states = [x for state in other.state.values() for x in state.values()]
    assert {x.device.type for x in states if isinstance(x, torch.Tensor)} == {"meta"}
    assert any("step" in state for state in other.state.values())


def test_learning_rate_reaches_every_group():
    optimizer = build_optimizer(model(), OptimizerOptions(lr=0.01))
    set_learning_rate(optimizer, 0.5)
    set_learning_rate(optimizer, 0.25)
    assert {g["lr"] for g in optimizer.param_groups} == {0.0025}


SHARES = {"encoder.embeddings.": 0.125, "encoder.layers.0.": 0.25, "encoder.layers.1.": 0.5}


def share(name):
    return next((share for part, share in SHARES.items() if name.startswith(part)), 1.0)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_layers_learn_slower_the_lower_they_are(name):
    module = model()  # of two layers
    options = OptimizerOptions(name=name, lr=0.01, layer_decay=0.5)
    optimizer = build_optimizer(module, options)
    set_learning_rate(optimizer, 0.5)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for parameter_name, parameter in module.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.005 * share(parameter_name)), parameter_name
    assert {g["kind"] for g in optimizer.param_groups} == {"adamw", name}


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_first_step_is_as_long_as_its_rate(name):
    whole, slow = model(), model()
    for module, decay in ((whole, 1.0), (slow, 0.5)):
        options = OptimizerOptions(name=name, lr=0.01, weight_decay=0.0, layer_decay=decay)
        optimizer = build_optimizer(module, options)
        torch.manual_seed(0)
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    before = dict(model().named_parameters())
    pairs = zip(whole.named_parameters(), slow.parameters(), strict=True)
    for (parameter_name, fast), other in pairs:
        moved, less = fast - before[parameter_name], other - before[parameter_name]
        torch.testing.assert_close(less, share(parameter_name) * moved, rtol=0, atol=1e-6)


def test_frozen_weights_are_in_no_group():
    module = model()
    module.encoder.layers[0].requires_grad_(False)
    for matrices in ("adamw", "muon"):
        groups = parameter_groups(module, 0.1, matrices, 0.5)
        found = {id(p) for g in groups for p in g["params"]}
        assert found == {id(p) for p in module.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"momentum": 1.0}, "momentum: 1.0"),
        ({"name": "adamw", "momentum": 0.9}, "momentum: adamw has none"),
        ({"layer_decay": 1.1}, "layer_decay"),
        ({"name": "mun"}, "muon"),
        ({"schedule": "cosin"}, "cosine"),
        ({"lr": 0.0}, "lr"),
        ({"schedule": "wsd", "warmup": 0.8, "cooldown": 0.5}, "exceed"),
        ({"schedule": "wsd", "warmup": 0.8}, "exceed"),
        ({"warmup": 1.1}, "exceed"),
        ({"schedule": "linear", "cooldown": 0.2}, "linear has none"),
    ],
)
def test_mistakes_are_named(changes, named):
    with pytest.raises(UserError, match=named):
        OptimizerOptions(**changes)


@pytest.mark.parametrize(
    ("changes", "cooling"),
    [
        ({"schedule": "wsd"}, 0.3),
        ({"schedule": "wsd_linear", "cooldown": 0.6}, 0.6),
        ({"schedule": "linear", "warmup": 0.9}, 0.0),
        ({"schedule": "cosine", "cooldown": 0.0}, 0.0),
    ],
)
def test_only_schedules_with_such_a_phase_cool_down(changes, cooling):
    assert OptimizerOptions(**changes).cooling == cooling


@pytest.mark.parametrize(
    ("changes", "rising"),
    [({}, 0.05), ({"schedule": "one_cycle"}, 0.5), ({"schedule": "one_cycle", "warmup": 0.3}, 0.3)],
)
def test_one_cycle_rises_for_half_of_the_run_unless_told_otherwise(changes, rising):
    assert OptimizerOptions(**changes).rising == rising
