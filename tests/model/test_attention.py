"""Every attention path against the formula, gradients included."""

import pytest
import torch

from mlm.model.attention import BACKENDS, attend, choose_backend
from mlm.model.layout import Layout

CPU_PATHS = [name for name in BACKENDS if name not in ("reference", "varlen")]
LENGTHS = {
    "mixed": [1, 9, 30, 2, 17],
    "equal": [8, 8, 8],
    "one": [25],
    "empty_at_end": [7, 3, 0, 0],
    "several_pieces": [300, 1, 64, 65, 128],
}


KINDS = {
    "plain": {},
    "causal": {"causal": True},
    "sloped": {"slopes": torch.tensor([0.5, 0.03])},
    "sloped_causal": {"causal": True, "slopes": torch.tensor([0.5, 0.03])},
}


def layout(lengths: list[int], backend: str | None, **kind: object) -> Layout:
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    return Layout(ends, max(lengths), sum(lengths), backend, **kind)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("window", [None, 1, 4, 64])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("backend", CPU_PATHS)
def test_outputs_and_gradients_equal_the_reference(backend, lengths, window, kind):
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, 2, 8, dtype=torch.float64)
    upstream = torch.randn(sum(lengths), 2, 8, dtype=torch.float64)
    results = []
    for path in (backend, "reference"):
        x = qkv.clone().requires_grad_()
        y = attend(x, layout(lengths, path, **kind), window)
        y.backward(upstream)
        results.append((y.detach(), x.grad))
    (y, grad), (y_reference, grad_reference) = results
    torch.testing.assert_close(y, y_reference, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grad, grad_reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("window", [None, 64])
def test_sequences_of_unlike_lengths_are_padded_apart(window, kind):
    lengths = [300, 5, 0, 280, 100, 700, 130, 1]
    lay = layout(lengths, None, **kind)
    found = [group.layout.cu_seqlens.diff().tolist() for group in lay.groups]
    assert found == [[700], [300, 280], [130, 100], [5, 1]]
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, 2, 8, dtype=torch.float64)
    results = []
    for some in (lay, layout(lengths, "reference", **kind)):
        x = qkv.clone().requires_grad_()
        y = attend(x, some, window)
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lengths", [[128, 3, 50], [500, 500, 500], [500, 400], [*[256] * 15, 40]])
def test_sequences_of_like_lengths_stay_together(lengths):
    assert layout(lengths, None).groups == []


@pytest.mark.parametrize("window", [None, 3])
def test_what_comes_after_changes_no_causal_output(window):
    torch.manual_seed(0)
    qkv = torch.randn(20, 3, 2, 8, dtype=torch.float64)
    before = attend(qkv, layout([12, 8], "reference", causal=True), window)
    qkv[8:12] = torch.randn(4, 3, 2, 8)
    after = attend(qkv, layout([12, 8], "reference", causal=True), window)
    assert torch.equal(before[:8], after[:8])
    assert torch.equal(before[12:], after[12:])
    assert not torch.isclose(before[8:12], after[8:12]).all(-1).any()


def test_reference_weights_are_distributions_inside_the_window():
    weights = []
    lay = layout([5, 12], "reference")
    lay.weights = weights
    attend(torch.randn(17, 3, 2, 8), lay, window=2)
    assert [tuple(w.shape) for w in weights[0]] == [(2, 5, 5), (2, 12, 12)]
    for w in weights[0]:
        torch.testing.assert_close(w.sum(-1), torch.ones(w.shape[:2]))
        place = torch.arange(w.shape[-1])
        assert (w[:, (place[:, None] - place).abs() > 2] == 0).all()


@pytest.mark.parametrize("backend", CPU_PATHS)
def test_dropout_keeps_the_mean(backend):
    torch.manual_seed(0)
    qkv = torch.randn(6, 3, 2, 8)
    lay = layout([6], backend)
    plain = attend(qkv, lay)
    mean = torch.stack([attend(qkv, lay, dropout=0.5) for _ in range(4000)]).mean(0)
    assert (mean - plain).abs().max() < 0.12
    assert not torch.equal(attend(qkv, lay, dropout=0.5), plain)


@pytest.mark.parametrize(
    ("device", "dtype", "dropout", "length", "path"),
    [
        ("cuda", torch.bfloat16, 0.0, 512, "varlen"),
        ("cuda", torch.bfloat16, 0.1, 512, "sdpa"),
        ("cuda", torch.float32, 0.0, 512, "sdpa"),
        ("cuda", torch.float16, 0.0, 512, "sdpa"),
        ("cpu", torch.bfloat16, 0.0, 512, "matmul"),
        ("cpu", torch.bfloat16, 0.1, 8192, "pieces"),
        ("cpu", torch.float32, 0.0, 8192, "sdpa"),
        ("mps", torch.float32, 0.0, 128, "sdpa"),
    ],
)
def test_the_path_follows_from_device_precision_dropout_and_length(
    device, dtype, dropout, length, path
):
    assert choose_backend(device, dtype, dropout, length) == path


def test_heads_of_widths_that_the_kernel_refuses_take_another_path():
    paths = [choose_backend("cuda", torch.bfloat16, 0.0, 512, width=w) for w in (26, 32, 256, 264)]
    assert paths == ["sdpa", "varlen", "varlen", "sdpa"]


def test_slopes_take_a_path_that_knows_them():
    assert choose_backend("cuda", torch.bfloat16, 0.0, 512, sloped=True) == "sdpa"


def test_windows_that_the_kernel_does_not_know_take_another_path(monkeypatch):
    monkeypatch.setattr("mlm.model.attention._WINDOWS_IN_VARLEN", False)
    paths = [choose_backend("cuda", torch.bfloat16, 0.0, 512, window) for window in (None, 64)]
    assert paths == ["varlen", "sdpa"]


def test_a_narrow_window_of_a_long_sequence_is_cut_into_blocks_on_a_cpu():
    def path(length, window):
        return choose_backend("cpu", torch.bfloat16, 0.0, length, window)

    assert [path(n, 64) for n in (128, 256, 257, 8192)] == ["matmul", "matmul", "banded", "banded"]
    assert path(512, 128) == "matmul"
    assert path(512, None) == "matmul"


def test_pieces_do_not_keep_their_weights_for_the_backward_pass():
    qkv = torch.randn(1024, 3, 1, 8, requires_grad=True)
    largest = {}
    for path in ("matmul", "pieces"):
        kept = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t
        )
        with hooks:
            attend(qkv, layout([1024], path))
        largest[path] = max(kept)
    assert largest["matmul"] == 1024**2
    assert largest["pieces"] <= qkv.numel()


def test_without_gradients_a_cpu_takes_the_fused_kernel_in_fp32():
    assert choose_backend("cpu", torch.float32, 0.0, 512, learns=False) == "sdpa"
    assert choose_backend("cpu", torch.bfloat16, 0.0, 512, learns=False) == "matmul"


@pytest.mark.gpu
@pytest.mark.parametrize("path", ["varlen", "sdpa", "matmul", "pieces", "banded"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("window", [None, 4, 64])
@pytest.mark.parametrize("kind", ["plain", "causal"])
def test_paths_equal_the_reference_on_cuda(path, lengths, window, kind):
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, 2, 64, device="cuda")
    results = []
    for name, dtype in ((path, torch.bfloat16), ("reference", torch.float32)):
        x = qkv.to(dtype).requires_grad_()
        lay = layout(lengths, name, **KINDS[kind])
        lay.cu_seqlens = lay.cu_seqlens.cuda()
        y = attend(x, lay, window)
        y.float().square().sum().backward()
        results.append((y.float().detach(), x.grad.float()))
    for ours, reference in zip(*results, strict=True):
        assert (ours - reference).abs().max() < 0.02 * reference.abs().max()
