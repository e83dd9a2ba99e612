"""What the encoder computes otherwise while it is compiled, against what it computes otherwise."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlm.model.feed_forward import halves
from mlm.model.gelu import _Gelu
from mlm.model.positions import rotate, rotation


def compiled(function):
    torch.compiler.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def with_gradients(function, *inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*inputs)
    # Weights that every precision holds, and that differ.
    weights = (torch.arange(output.numel()) % 7 - 3.0).view_as(output)
    output.backward(weights.to(output.dtype))
    return [output.detach(), *(x.grad for x in inputs)]


def test_gelu_from_one_exponential():
    x = torch.linspace(-12, 12, 100_001)
    found = with_gradients(_Gelu.apply, x)
    wanted = with_gradients(F.gelu, x.double())
    for ours, exact in zip(found, wanted, strict=True):
        assert (ours - exact).abs().max() < 1.5e-6


def test_gelu_rounds_once_to_bfloat16():
    x = torch.linspace(-6, 6, 10_001).bfloat16()
    found = with_gradients(_Gelu.apply, x)
    wanted = with_gradients(F.gelu, x.double())
    for ours, exact in zip(found, wanted, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.double(), exact, rtol=2**-8, atol=1e-6)


def test_gelu_of_the_extremes():
    x = torch.tensor([-torch.inf, -1e4, -0.0, 0.0, 1e4])
    value, gradient = with_gradients(_Gelu.apply, x)
    assert value[1:].tolist() == [0.0, 0.0, 0.0, 1e4]
    assert gradient.isfinite()[1:].all()


@pytest.mark.parametrize("bias", [True, False])
def test_halves_of_a_linear_map(bias):
    torch.manual_seed(0)
    linear = nn.Linear(8, 12, bias=bias)

    def gated(x):
        gate, value = halves(linear, x)
        return gate.sigmoid() * value

    x = torch.randn(5, 8)
    for ours, plain in zip(
        with_gradients(compiled(gated), x), with_gradients(gated, x), strict=True
    ):
        torch.testing.assert_close(ours, plain)


def test_halves_of_more_than_a_linear_map():
    """An adapter is not passed over."""

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    linear, x = Doubled(8, 12), torch.randn(5, 8)
    gate, value = compiled(lambda x: halves(linear, x))(x)
    torch.testing.assert_close(torch.cat([gate, value], dim=-1), linear(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation(dtype):
    torch.manual_seed(0)
    positions = torch.tensor([0, 1, 2, 3, 0, 1, 511])

    def turned(qkv):
        found = rotate(qkv, rotation(positions, 16, 10_000.0))
        return torch.stack(found, 1) if isinstance(found, tuple) else found

    qkv = torch.randn(7, 3, 2, 16, dtype=dtype)
    for ours, plain in zip(
        with_gradients(compiled(turned), qkv), with_gradients(turned, qkv), strict=True
    ):
        # In bfloat16 the plain formula rounds between its products.
        near = {} if dtype == torch.float32 else {"rtol": 2**-6, "atol": 2**-6}
        torch.testing.assert_close(ours, plain, **near)


def test_a_rotation_is_computed_once_for_all_layers():
    """In a compiler's eyes it is one opaque step, not sines to be computed wherever one is read."""
    steps = []

    def look(graph, _):
        steps.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compiler.reset()
    torch.compile(lambda p: rotation(p, 16, 1e4), backend=look)(torch.arange(4))
    assert [step for step in steps if "rotation" in step] == ["mlm.rotation.default"]
    assert not any("cos" in step for step in steps)
