"""The pooled heads against plain references and against transformers."""

import pytest
import torch
from torch.nn import functional as F
from toy import toy_config

from mlm.batch import ragged
from mlm.checkpoint import read_folder, save_folder
from mlm.errors import UserError
from mlm.model.config import preset
from mlm.model.pooling import pool_cls, pool_max, pool_mean
from tasks.base import find_task
from tasks.folders import load_task_folder, save_task_folder, start_model
from tasks.heads import PooledHead, TaskModel, TokenHead, default_pooling
from tasks.options import ModelOptions
from tasks.pooling import AttentionPooling, ScalarMix, attention_pool
from tasks.settings import TaskSettings

SEQUENCES = [[2, 9, 8, 7, 3], [2, 3], [2, 11, 3], [2, 5, 6, 7, 8, 9, 10, 3]]


def config(family, **changes):
    return preset(
        family, "tiny", vocab_size=20, hidden_size=16, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16, **changes,
    )  # fmt: skip


def hidden_states(batch, width=16):
    return torch.randn(batch.num_tokens, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (pool_cls, lambda x: x[0]),
        (pool_mean, lambda x: x.mean(0)),
        (pool_max, lambda x: x.amax(0)),
    ],
)
def test_pooling_equals_one_sequence_at_a_time(pool, expected):
    batch = ragged(SEQUENCES)
    hidden = hidden_states(batch)
    parts = hidden.split(batch.sequence_lengths.tolist())
    torch.testing.assert_close(
        pool(hidden, batch.cu_seqlens), torch.stack([expected(part) for part in parts])
    )


def test_mean_pooling_keeps_digits_in_bfloat16():
    hidden = torch.full((4000, 1), 0.1, dtype=torch.bfloat16)
    pooled = pool_mean(hidden, torch.tensor([0, 4000], dtype=torch.int32))
    assert pooled.dtype == torch.bfloat16
    assert pooled.item() == hidden[0].item()


def test_mean_pooling_has_gradients():
    hidden = hidden_states(ragged(SEQUENCES)).double().requires_grad_()
    offsets = ragged(SEQUENCES).cu_seqlens
    pool_mean(hidden, offsets)[1].sum().backward()
    lengths = [len(s) for s in SEQUENCES]
    owner = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    expected = (owner == 1).double()[:, None].expand(-1, 16) / lengths[1]
    torch.testing.assert_close(hidden.grad, expected)


@pytest.mark.parametrize("loud", [1.0, 1000.0])  # at which exp alone would be infinite
def test_attention_pooling_is_a_softmax_over_each_sequence(loud):
    batch = ragged(SEQUENCES)
    hidden = hidden_states(batch).double().float().requires_grad_()
    query = (loud * torch.randn(16, generator=torch.Generator().manual_seed(1))).requires_grad_()
    found = attention_pool(hidden, batch.cu_seqlens, query)
    expected = torch.stack(
        [
            (part @ query / 4.0).softmax(0) @ part
            for part in hidden.split(batch.sequence_lengths.tolist())
        ]
    )
    torch.testing.assert_close(found, expected)
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(2))
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), (hidden, query)),
        torch.autograd.grad((expected * weight).sum(), (hidden, query)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_attention_pooling_starts_as_the_mean_and_learns():
    batch = ragged(SEQUENCES)
    hidden, pool = hidden_states(batch), AttentionPooling(16)
    torch.testing.assert_close(pool(hidden, batch.cu_seqlens), pool_mean(hidden, batch.cu_seqlens))
    pool(hidden, batch.cu_seqlens).square().sum().backward()
    assert pool.query.grad.abs().max() > 0


def test_max_pooling_has_the_gradients_of_the_largest():
    hidden = hidden_states(ragged(SEQUENCES)).requires_grad_()
    pool_max(hidden, ragged(SEQUENCES).cu_seqlens).sum().backward()
    parts = hidden.detach().split([len(s) for s in SEQUENCES])
    expected = torch.cat([(part == part.amax(0)).float() for part in parts])
    torch.testing.assert_close(hidden.grad, expected)


def test_layers_are_mixed_by_a_softmax():
    mix = ScalarMix(3)
    states = list(torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(mix(states), torch.stack(states).mean(0))
    mix.weights.data, mix.scale.data = torch.tensor([0.0, 1.0, -2.0]), torch.tensor(1.5)
    a, b, c = torch.tensor([0.0, 1.0, -2.0]).softmax(0)
    torch.testing.assert_close(mix(states), 1.5 * (a * states[0] + b * states[1] + c * states[2]))


@pytest.mark.parametrize("family", ["bert", "modern"])
@pytest.mark.parametrize("layers", [2, 3])  # of two, so that three takes the embeddings
def test_a_head_reads_the_last_layers(family, layers):
    torch.manual_seed(0)
    c = config(family)
    model = TaskModel(c, PooledHead(c, 3, "mean"), layers).eval()
    model.mix.weights.data.normal_()
    batch, states = ragged(SEQUENCES), []
    model.encoder(batch, states=states)
    weights = model.mix.weights.softmax(0)
    normed = [model.encoder.final_norm(state) for state in states[-layers:]]
    expected = sum(w * state for w, state in zip(weights, normed, strict=True))
    torch.testing.assert_close(model(batch), model.head(expected, batch))
    model(batch).sum().backward()
    assert all(p.grad is not None for p in model.parameters())  # as DDP wants it


@pytest.mark.parametrize("layers", [0, 4])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(UserError, match=rf"model\.layers: {layers} must lie between 1 and 3"):
        TaskModel(config("bert"), PooledHead(config("bert"), 2, "cls"), layers)


def test_bert_head_is_dense_tanh_classifier():
    head = PooledHead(config("bert"), 3, "cls").eval()
    batch = ragged(SEQUENCES)
    hidden = hidden_states(batch)
    first = hidden[batch.cu_seqlens[:-1].long()]
    dense, out = head.dense, head.classifier
    expected = F.linear(torch.tanh(F.linear(first, dense.weight, dense.bias)), out.weight, out.bias)
    torch.testing.assert_close(head(hidden, batch), expected)


def test_modern_head_is_dense_gelu_norm_classifier():
    head = PooledHead(config("modern"), 3, "mean").eval()
    batch = ragged(SEQUENCES)
    hidden = hidden_states(batch)
    mean = torch.stack([p.mean(0) for p in hidden.split(batch.sequence_lengths.tolist())])
    inner = F.gelu(F.linear(mean, head.dense.weight))
    normed = F.layer_norm(inner, (16,), head.norm.weight, eps=1e-5)
    expected = F.linear(normed, head.classifier.weight, head.classifier.bias)
    assert head.dense.bias is None
    assert head.norm.bias is None
    torch.testing.assert_close(head(hidden, batch), expected)


def test_an_answer_does_not_depend_on_its_neighbours():
    torch.manual_seed(0)
    for family in ("bert", "modern"):
        c = config(family)
        model = TaskModel(c, PooledHead(c, 2, default_pooling(c))).eval()
        together = model(ragged(SEQUENCES))
        changed = model(ragged([SEQUENCES[0], [2, 4], *SEQUENCES[2:]]))
        assert torch.equal(together[[0, 2, 3]], changed[[0, 2, 3]])
        alone = torch.cat([model(ragged([s])) for s in SEQUENCES])
        torch.testing.assert_close(together, alone)


def test_unknown_pooling_names_the_nearest():
    with pytest.raises(UserError, match=r"model\.pooling: 'maen'.*did you mean mean\?"):
        PooledHead(config("bert"), 2, "maen")


@pytest.mark.parametrize(
    ("family", "pooling"), [("bert", "cls"), ("modern", "cls"), ("modern", "mean")]
)
def test_logits_equal_those_of_transformers(family, pooling, tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")

    torch.manual_seed(1)
    c = toy_config(family, tokenizer)
    model = TaskModel(c, PooledHead(c, 3, pooling)).eval()
    for parameter in model.parameters():  # so that biases and norms count too
        torch.nn.init.normal_(parameter, std=0.2)
    save_folder(
        tmp_path / "model", config=c, head="sequence_classification", state=model.state_dict(),
        tokenizer=tokenizer, info={"pooling": pooling}, labels=["a", "b", "c"],
    )  # fmt: skip
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    length = max(map(len, SEQUENCES))
    ids = torch.tensor([s + [0] * (length - len(s)) for s in SEQUENCES])
    mask = torch.tensor([[1] * len(s) + [0] * (length - len(s)) for s in SEQUENCES])
    with torch.inference_mode():
        expected = theirs.eval()(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(model(ragged(SEQUENCES)), expected, atol=1e-4, rtol=0)


# --- heads that read every token ---


def test_token_heads_are_those_of_their_family():
    batch = ragged(SEQUENCES)
    hidden = hidden_states(batch)
    head = TokenHead(config("bert"), 3).eval()
    assert {name for name, _ in head.named_parameters()} == {"classifier.weight", "classifier.bias"}
    expected = F.linear(hidden, head.classifier.weight, head.classifier.bias)
    torch.testing.assert_close(head(hidden, batch), expected)
    head = TokenHead(config("modern"), 3).eval()
    inner = F.layer_norm(
        F.gelu(F.linear(hidden, head.dense.weight)), (16,), head.norm.weight, eps=1e-5
    )
    expected = F.linear(inner, head.classifier.weight, head.classifier.bias)
    torch.testing.assert_close(head(hidden, batch), expected)


def test_token_heads_keep_digits_in_bfloat16():
    batch = ragged(SEQUENCES)
    head = TokenHead(config("bert"), 3).eval()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = head(hidden_states(batch).bfloat16(), batch)
    assert outputs.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "labels"), [("token_classification", ("O", "B-A", "I-A")), ("question_answering", ())]
)
@pytest.mark.parametrize("changes", [{"position": "sinusoidal"}, {"norm": "rms_norm"}])
def test_a_folder_of_our_own_layout_answers_the_same(tmp_path, tokenizer, name, labels, changes):
    c = toy_config("bert", tokenizer, **changes)
    task = find_task(name)(TaskSettings(labels=labels))
    task.settle(c)
    torch.manual_seed(2)
    model = TaskModel(c, task.build_head(c)).eval()
    save_task_folder(tmp_path / "m", model.state_dict(), c, task, tokenizer)
    folder = read_folder(tmp_path / "m")
    assert folder.head == name
    loaded, again, _ = load_task_folder(tmp_path / "m")
    assert again.settings.labels == labels
    assert torch.equal(model(ragged(SEQUENCES)), loaded(ragged(SEQUENCES)))


@pytest.mark.parametrize("name", ["token_classification", "question_answering"])
def test_what_a_masked_lm_head_has_learnt_goes_on(pretrained, name):
    for family, model in pretrained.items():
        folder = read_folder(model)
        task = find_task(name)(TaskSettings(labels=("O", "X") if name.startswith("token") else ()))
        task.settle(folder.config)
        state = start_model(ModelOptions(str(model)), folder, task, folder.config).state_dict()
        kept = {n for n in state if n.startswith("head.") and n in folder.state}
        assert kept == ({"head.dense.weight", "head.norm.weight"} if family == "modern" else set())
        assert all(torch.equal(state[n], folder.state[n]) for n in kept)
