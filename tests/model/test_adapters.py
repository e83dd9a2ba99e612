"""LoRA layers against the plain formula, and their names."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlm.adapters import (
    LoRALinear,
    adapter_state,
    add_lora,
    find_targets,
    load_adapter,
    merge_state,
)
from mlm.batch import ragged
from mlm.errors import UserError
from mlm.model.config import preset
from mlm.model.encoder import Encoder
from mlm.training.optimizers import OptimizerOptions, build_optimizer

ALL = ["mixer", "feed_forward"]


def encoder(family="modern", **changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    return Encoder(preset(family, "tiny", vocab_size=50, **(sizes | changes))).eval()


def a_batch():
    return ragged([[2, 7, 8, 9, 3], [2, 11, 3]])


def stir(model):
    """Adapters that do something."""
    torch.manual_seed(1)
    for tensor in adapter_state(model.state_dict()).values():
        nn.init.normal_(tensor, std=0.1)
    return model


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_at_the_start_nothing_has_changed(family):
    model = encoder(family)
    before = model(a_batch())
    names = add_lora(model, ALL, rank=4, alpha=8.0)
    assert len(names) == 4 * len(model.layers)
    assert torch.equal(model(a_batch()), before)
    assert not model.training


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_merged_weights_give_the_same(family):
    model = encoder(family)
    add_lora(model, ALL, rank=4, alpha=8.0)
    before = encoder(family)(a_batch())
    expected = stir(model)(a_batch())
    plain = encoder(family)
    plain.load_state_dict(merge_state(model.state_dict(), alpha=8.0))
    torch.testing.assert_close(plain(a_batch()), expected, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(expected, before, atol=0.01)


def test_merging_rounds_once_and_leaves_what_it_is_given():
    layer = LoRALinear.around(nn.Linear(6, 4), 2, 6.0).requires_grad_(False)
    layer = stir(layer).bfloat16()
    state = layer.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    merged = merge_state({f"x.{name}": tensor for name, tensor in state.items()}, 6.0)
    w, a, b = (state[name].double() for name in ("weight", "lora_A", "lora_B"))
    assert merged.keys() == {"x.weight", "x.bias"}
    assert torch.equal(merged["x.weight"], (w + 3 * b @ a).bfloat16())
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_values_and_gradients_are_those_of_the_formula():
    linear = nn.Linear(10, 7).double()
    layer = LoRALinear.around(linear, 3, 12.0)
    stir(layer)
    x = torch.randn(5, 10, dtype=torch.double, requires_grad=True)
    weight, bias = linear.weight.detach(), linear.bias.detach()
    a, b, y = (t.detach().clone().requires_grad_() for t in (layer.lora_A, layer.lora_B, x))
    found, expected = layer(x), F.linear(y, weight + 4 * b @ a, bias)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for mine, theirs in ((layer.lora_A, a), (layer.lora_B, b), (x, y)):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert layer.weight is linear.weight
    assert layer.weight.grad is None
    assert layer.bias.grad is None


@pytest.mark.parametrize("recompute", [False, True])
def test_only_adapters_have_gradients_also_when_recomputed(recompute):
    gradients = []
    for again in (False, recompute):
        model = encoder()
        add_lora(model, ALL, 4, 8.0)
        stir(model).recompute = again
        model(a_batch()).square().sum().backward()
        learns = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert learns.keys() == adapter_state(model.state_dict()).keys()
        gradients.append(learns)
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name])


def test_dropout_is_of_the_adapter_alone_and_in_training_alone():
    layer = stir(LoRALinear.around(nn.Linear(64, 8).eval(), 4, 4.0, dropout=0.5))
    x = torch.randn(3, 64)
    still = layer(x)
    assert torch.equal(still, layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    layer.lora_B.data.zero_()
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_targets_are_parts_of_names_with_wildcards():
    model = encoder(num_hidden_layers=2)
    assert find_targets(model, ["qkv"]) == ["layers.0.mixer.qkv", "layers.1.mixer.qkv"]
    assert find_targets(model, ["layers.[1].*down"]) == ["layers.1.feed_forward.down"]
    assert len(find_targets(model, ["out", "mixer.out", "up"])) == 4
    model.layers[0].requires_grad_(False)
    assert find_targets(model, ["out"]) == ["layers.1.mixer.out"]


@pytest.mark.parametrize(
    ("targets", "rank", "named"),
    [
        (["qkw"], 4, r"'qkw' matches no linear layer; there are mixer\.qkv, .*did you mean qkv\?"),
        (["qkv", "final_norm"], 4, "'final_norm' matches no linear layer"),
        (["qkv"], 33, r"lora\.rank: 33 must lie between 1 and 32, the rank of layers\.0"),
        (["qkv"], 0, r"lora\.rank: 0 must lie"),
        (["qkv"], -1, r"lora\.rank: -1 must lie"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(targets, rank, named):
    model = encoder()
    with pytest.raises(UserError, match=named) as caught:
        add_lora(model, targets, rank, 16.0)
    assert "\n" not in str(caught.value)
    assert all(p.requires_grad for p in model.parameters())


def test_adapters_go_from_model_to_model():
    one, other = encoder(), encoder()
    for model in (one, other):
        add_lora(model, ["qkv"], 4, 8.0)
    load_adapter(other, adapter_state(stir(one).state_dict()))
    assert torch.equal(one(a_batch()), other(a_batch()))
    third = encoder()
    add_lora(third, ["qkv"], 2, 8.0)
    with pytest.raises(UserError, match=r"lora_A is \[4, 32\], where this model wants \[2, 32\]"):
        load_adapter(third, adapter_state(one.state_dict()))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizers_know_the_adapters_alone_and_lower_layers_learn_slower(name):
    model = nn.ModuleDict({"encoder": encoder(num_hidden_layers=2)})
    add_lora(model["encoder"], ["qkv"], 4, 8.0)
    optimizer = build_optimizer(model, OptimizerOptions(name, lr=1.0, layer_decay=0.5))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {n: rates[id(p)] for n, p in model.named_parameters() if id(p) in rates}
    layers = "encoder.layers.{}.mixer.qkv.lora_{}"
    assert found == {layers.format(i, x): (0.25, 0.5)[i] for i in (0, 1) for x in "AB"}
    assert {group["kind"] for group in optimizer.param_groups} == {"adamw"}
