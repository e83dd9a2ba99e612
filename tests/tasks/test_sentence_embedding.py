"""Sentence vectors: losses and scores against plain references, and the folder gives them back."""

import json
import math
import random

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as theirs
from torch.nn import functional as F
from toy import FILLER, table, toy_config, write_csv, write_folder

from mlm.checkpoint import read_folder
from mlm.cli import main
from mlm.data.tokenizer import train_tokenizer
from mlm.errors import UserError
from mlm.inference import Embedder
from tasks.heads import TaskModel
from tasks.inference import Predictor
from tasks.options import LossOptions
from tasks.pair_losses import cosent, cosines, in_batch_negatives, not_wrong, squared_error
from tasks.pair_metrics import WholeSet, retrieval
from tasks.rows import Rows
from tasks.sentence_embedding import SentenceEmbedding
from tasks.settings import TaskSettings

PAIR = ["sentence1", "sentence2"]
SCORED = TaskSettings(label_column="label")


def vectors(count, texts=2, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, texts, width, generator=generator, requires_grad=True)


def gradient(loss, at):
    return torch.autograd.grad(loss, at)[0]


def agree(ours, other, at):
    torch.testing.assert_close(ours, other)
    torch.testing.assert_close(gradient(ours, at), gradient(other, at), rtol=1e-4, atol=1e-6)


def different(count, texts=2):
    return torch.arange(count * texts).view(count, texts)


# --- losses ---


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("texts", [2, 3])
def test_in_batch_negatives_are_those_of_sentence_transformers(symmetric, texts):
    found = vectors(7, texts)
    directions = ("query_to_doc", "doc_to_query") if symmetric else ("query_to_doc",)
    mode = "per_direction" if symmetric else "joint"
    peer = theirs.MultipleNegativesRankingLoss(
        SentenceTransformer(modules=[torch.nn.Identity()], device="cpu"),
        scale=20.0,
        directions=directions,
        partition_mode=mode,
    )
    other = peer.compute_loss_from_embeddings(list(found.unbind(1)), torch.zeros(7))
    agree(in_batch_negatives(found, different(7, texts), 0.05, symmetric) / 7, other, found)


@pytest.mark.parametrize("symmetric", [False, True])
def test_false_negatives_are_left_out(symmetric):
    """Texts 0–5; pairs 0 and 1 share their second text, 0 and 2 their first, 3's second is 0."""
    texts = torch.tensor([[0, 1], [2, 1], [0, 3], [4, 0], [5, 6]])
    found = vectors(5)

    def side(queries, answers):
        total = 0
        for i in range(5):
            right = {int(texts[j, 1 - queries]) for j in range(5) if texts[j, queries] == query(i)}
            kept = [
                j for j in range(5) if j == i or int(texts[j, answers]) not in right | {query(i)}
            ]
            logits = torch.stack(
                [F.cosine_similarity(found[i, queries], found[j, answers], dim=0) for j in kept]
            )
            total = total - (logits / 0.1).log_softmax(0)[kept.index(i)]
        return total

    def query(i):
        return int(texts[i, query.column])

    query.column = 0
    expected = side(0, 1)
    if symmetric:
        query.column = 1
        expected = (expected + side(1, 0)) / 2
    agree(in_batch_negatives(found, texts, 0.1, symmetric), expected, found)


def test_a_hard_negative_that_is_right_elsewhere_is_none():
    first, second, third = torch.tensor([[0, 1, 2], [0, 3, 1]]).unbind(1)
    excluded = not_wrong(first, second, torch.cat([second, third]))
    # Text 1 answers text 0 in the first pair, so that it is wrong for neither.
    assert excluded.tolist() == [[True, True, False, True], [True, True, False, True]]


@pytest.mark.parametrize("scores", [[3, 1, 2, 5, 4, 0], [1, 1, 0, 2, 2, 2], [1, 1, 1, 1, 1, 1]])
def test_cosent_is_that_of_sentence_transformers_and_of_its_formula(scores):
    scores = torch.tensor(scores, dtype=torch.float)
    found = vectors(6)
    peer = theirs.CoSENTLoss(SentenceTransformer(modules=[torch.nn.Identity()], device="cpu"))
    other = peer.compute_loss_from_embeddings(list(found.unbind(1)), scores)
    ours = cosent(cosines(found), scores, 0.05) / 6
    cosine = F.cosine_similarity(found[:, 0], found[:, 1]) / 0.05
    differences = (cosine[:, None] - cosine)[scores[:, None] < scores]
    plain = (1 + differences.exp().sum()).log()
    torch.testing.assert_close(ours, plain)
    agree(ours, other, found)


def test_the_cosine_loss_is_the_squared_error():
    found, scores = vectors(6), torch.rand(6, generator=torch.Generator().manual_seed(1))
    expected = F.mse_loss(F.cosine_similarity(found[:, 0], found[:, 1]), scores, reduction="sum")
    agree(squared_error(cosines(found), scores, 0.05), expected, found)


def test_autocast_rounds_no_cosine():
    found = vectors(7, width=64)
    plain = in_batch_negatives(found, different(7), 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(in_batch_negatives(found, different(7), 0.01), plain)


@pytest.mark.parametrize("name", ["cosent", "cosine"])
def test_scores_of_any_range_train_alike(tmp_path, tokenizer, name):
    found, losses = vectors(4), []
    for factor, shift in ((1, 0), (5, -20)):
        scores = [factor * s + shift for s in (0, 0.25, 0.5, 1)]
        rows = table(tmp_path, [*PAIR, "label"], [("a", "b", s) for s in scores])
        task = SentenceEmbedding(SCORED)
        task.train_with(LossOptions(name=name))
        task.fit(rows, toy_config("bert", tokenizer))
        loss, count = task.loss(found.view(8, -1), torch.tensor(task.targets(rows)))
        assert count == 4
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# --- scores ---


def test_retrieval_is_counted_by_hand():
    """Duplicates are one candidate; what is right for another row is no mistake."""
    draw = np.random.default_rng(0)
    texts = np.stack([draw.integers(0, 12, 60), draw.integers(8, 40, 60)], 1)
    by_text = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    found = by_text[torch.from_numpy(texts)]
    near = F.normalize(by_text, dim=-1).double().numpy() @ F.normalize(by_text, dim=-1).numpy().T
    ranks, losses = [], []
    for query, answer in texts:
        right = {b for a, b in texts if a == query} | {query}
        wrong = [text for text in set(texts[:, 1]) if text not in right - {answer}]
        wrong = [text for text in wrong if text != answer]
        ranks.append(1 + sum(near[query, text] >= near[query, answer] for text in wrong))
        logits = np.array([near[query, text] for text in [answer, *wrong]]) / 0.05
        losses.append(np.log(np.exp(logits - logits[0]).sum()))
    values = retrieval(found, torch.from_numpy(texts), 0.05)
    for k in (1, 5, 10):
        assert values[f"recall@{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]))
    assert values["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert values["loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_retrieval_in_pieces_is_the_same(monkeypatch):
    found, texts = vectors(50).detach(), different(50)
    whole = retrieval(found, texts, 0.05)
    monkeypatch.setattr("tasks.pair_metrics._MOST", 350)
    for name, value in retrieval(found, texts, 0.05).items():
        torch.testing.assert_close(value, whole[name])


@pytest.mark.parametrize("value", [1.0, 0.0, math.nan])
def test_vectors_that_are_all_the_same_find_nothing(value):
    found = retrieval(torch.full((20, 2, 4), value), different(20), 0.05)
    assert found["recall@1"] == found["recall@10"] == 0


def test_correlations_are_those_of_scipy_over_the_whole_set():
    task = SentenceEmbedding(SCORED)
    metrics, found = task.metrics(), vectors(40).detach()
    scores = torch.rand(40, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    for part in torch.arange(40).split(7):
        metrics.update(cosines(found[part]), scores[part])
    values = metrics.compute()
    expected = cosines(found).numpy()
    assert values["spearman"] == pytest.approx(spearmanr(expected, scores).statistic, abs=1e-6)
    assert values["pearson"] == pytest.approx(pearsonr(expected, scores).statistic, abs=1e-6)
    assert values["loss"] == pytest.approx(float(cosent(cosines(found), scores, 0.05)) / 40)


def test_a_rank_without_pairs_is_no_hindrance():
    metric = WholeSet(lambda o, t: {"n": torch.tensor(o.shape)}, torch.empty(0, 2).long())
    metric.update(vectors(3).detach(), different(3))
    assert metric.compute()["n"].tolist() == [3, 16]


# --- what is read, and refused ---


def fitted(rows, config, settings=None, **loss):
    task = SentenceEmbedding(settings or TaskSettings())
    task.train_with(LossOptions(**loss))
    task.fit(rows, config)
    return task


def test_a_pair_is_two_sequences_and_a_hard_negative_a_third(tmp_path, tokenizer):
    config = toy_config("bert", tokenizer)
    rows = table(tmp_path, [*PAIR, "no"], [("the film", "a story", "is"), ("a story", "", "about")])
    task = fitted(rows, config, TaskSettings(negative_column="no"))
    batch = task.collate(task.examples(rows, tokenizer))
    texts = ["the film", "a story", "is", "a story", "", "about"]
    expected = [tokenizer.encode(text).ids for text in texts]
    assert [part.tolist() for part in batch.input_ids.split(batch.sequence_lengths.tolist())] == (
        expected
    )
    assert batch.labels.tolist() == [[0, 1, 2], [1, 3, 4]]
    held_out = table(tmp_path, PAIR, [("a", "b"), ("c", "d")])  # has none, and needs none
    assert task.collate(task.examples(held_out, tokenizer)).labels.shape == (2, 2)


@pytest.mark.parametrize("value", ["", "good", "nan", "inf", "-inf"])
def test_a_score_that_is_no_number_is_named_with_its_row(tmp_path, value):
    rows = table(tmp_path, [*PAIR, "label"], [("a", "b", 1), ("a", "b", value)])
    with pytest.raises(UserError, match=r"table\.csv: row 2: column 'label': .* is not a number"):
        SentenceEmbedding(SCORED).targets(rows)


def test_nothing_to_rank_and_nothing_to_find(tmp_path):
    same = table(tmp_path, [*PAIR, "label"], [("a", "b", 2.0), ("c", "b", 2)])
    with pytest.raises(UserError, match=r"table\.csv: column 'label' holds one number only"):
        SentenceEmbedding(SCORED).targets(same)
    with pytest.raises(UserError, match=r"table\.csv: column 'sentence2' holds one text only"):
        SentenceEmbedding(TaskSettings()).targets(same)


def test_scores_that_are_not_read_are_mentioned(tmp_path, tokenizer):
    rows = table(tmp_path, [*PAIR, "label"], [("a", "b", 2.0), ("c", "d", 3)])
    config = toy_config("bert", tokenizer)
    (line,) = SentenceEmbedding(TaskSettings()).fit(rows, config)
    assert "add --data.label_column label" in line
    assert SentenceEmbedding(SCORED).fit(rows, config) == []


@pytest.mark.parametrize(
    ("settings", "loss", "said"),
    [
        ({"labels": ("a",)}, {}, "data.labels"),
        ({"text_column": ("a",)}, {}, "data.text_column: name two"),
        ({"label_column": "s", "negative_column": "n"}, {}, "data.negative_column"),
        ({"pooling": "attention"}, {}, "model.pooling: 'attention' is not known"),
        ({"layers": 2}, {}, "model.layers"),
        ({"stride": 3}, {}, "data.stride: the task sentence_embedding has no use for it"),
        ({}, {"name": "cosent"}, "loss.name: cosent needs scores"),
        ({}, {"name": "cosin"}, "did you mean cosine"),
        ({"label_column": "s"}, {"name": "in_batch_negatives"}, "has no use for scores"),
        ({"label_column": "s"}, {"symmetric": True}, "loss.symmetric"),
        ({"label_column": "s"}, {"name": "cosine", "temperature": 0.1}, "loss.temperature"),
        ({}, {"r_drop": 1.0}, "loss.r_drop: the task sentence_embedding has no use for it"),
        ({}, {"temperature": 0.0}, "loss.temperature: 0.0 must be above 0"),
    ],
)
def test_what_contradicts_itself_is_refused(settings, loss, said, tokenizer):
    def begin():
        task = SentenceEmbedding(TaskSettings(**settings))
        task.train_with(LossOptions(**loss))
        task.settle(toy_config("bert", tokenizer))

    with pytest.raises(UserError, match=said):
        begin()


def test_pairs_must_meet():
    task = SentenceEmbedding(TaskSettings())
    assert task.check_batches(2, 1) == []
    for size, parts in ((1, 1), (4, 4), (7, 4)):
        with pytest.raises(UserError, match=r"data\.batch_size: .* leaves no two pairs"):
            task.check_batches(size, parts)
    (line,) = task.check_batches(32, 4)
    assert "with 8 at once, not with all 32" in line
    task = SentenceEmbedding(SCORED)
    task.train_with(LossOptions(name="cosine"))
    assert task.check_batches(1, 1) == []


# --- the whole path ---

WORDS = [f"word{letter}{digit}" for letter in "abcdefgh" for digit in range(5)]


def word_pairs(count, seed):
    """Two texts of other fillers that share two words."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        shared = draw.sample(WORDS, 2)
        texts = []
        for _ in range(2):
            words = shared + [draw.choice(FILLER) for _ in range(4)]
            draw.shuffle(words)
            texts.append(" ".join(words))
        rows.append(tuple(texts))
    return rows


def scored_pairs(count, seed):
    """Texts that share none to three of three words, and five times that share."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        first, shared = draw.sample(WORDS, 3), draw.randint(0, 3)
        second = first[:shared] + draw.sample(WORDS, 3 - shared)
        rows.append((" ".join(first), " ".join(second), 5 * shared / 3))
    return rows


@pytest.fixture(scope="module")
def words():
    return train_tokenizer([" ".join(WORDS + FILLER)] * 5, vocab_size=400)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    made = {}
    for split, count, seed in (("train", 400, 1), ("validation", 80, 2)):
        made[split] = write_csv(root / f"{split}.csv", PAIR, word_pairs(count, seed))
        rows = scored_pairs(count, seed)
        made[f"scored_{split}"] = write_csv(root / f"s_{split}.csv", [*PAIR, "label"], rows)
    return made


@pytest.fixture(scope="module")
def start(tmp_path_factory, words):
    from toy import write_pretrained

    root = tmp_path_factory.mktemp("start")
    return {f: write_pretrained(root / f, f, words) for f in ("bert", "modern")}


def run(capsys, *words):
    assert main([*map(str, words)]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out or "null"), captured.err


def finetune(capsys, model, tables, run_dir, prefix="", *more):
    return run(
        capsys,
        *("finetune", "--task", "sentence_embedding", "--model", model, "--run_dir", run_dir),
        *("--train", tables[f"{prefix}train"], "--validation", tables[f"{prefix}validation"]),
        *("--trainer.accelerator", "cpu", "--trainer.precision", "fp32", "--logging.wandb", "off"),
        *("--optimizer.lr", "0.003", "--trainer.max_epochs", "4", *more),
    )


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_partners_are_found_and_the_folder_gives_the_vectors(
    family, tables, start, tmp_path, capsys
):
    untrained = Predictor.from_pretrained(
        write_folder(
            tmp_path / "raw",
            SentenceEmbedding,
            tables["train"],
            read_folder(start[family]).tokenizer,
            family,
        ),
        "cpu",
    )
    raw = untrained.evaluate(
        untrained.task.examples(Rows.read(tables["validation"]), untrained.tokenizer)
    )
    more = ("--model.normalize", "true", "--data.max_length", "16", "--loss.symmetric", "true")
    found, said = finetune(capsys, start[family], tables, tmp_path / "run", "", *more)
    assert "loads in transformers as" in said
    assert found["recall@1"] > raw["recall@1"] + 0.3
    assert {"recall@1", "recall@5", "recall@10", "mrr", "loss"} <= found.keys()

    model = tmp_path / "run" / "model"
    folder = read_folder(model)
    assert folder.head == "encoder"
    assert folder.info["sentence_vectors"] == {
        "pooling": "mean",
        "normalize": True,
        "max_length": 16,
    }
    scores, _ = run(capsys, "evaluate", "--model", model, "--data", tables["validation"])
    assert scores["recall@1"] == found["recall@1"]
    assert scores["loss"] == pytest.approx(found["loss"], rel=1e-4)

    # What the trained module computes, what `mlm embed` writes, what the export's reader computes.
    texts = [text for pair in word_pairs(20, 9) for text in pair] + ["", "word " * 99]
    predictor = Predictor.from_pretrained(model, "cpu", "fp32")
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    batch = predictor.task.collate(predictor.task.encode(pairs, predictor.tokenizer))
    with torch.inference_mode():
        trained = F.normalize(predictor.model(batch), dim=-1).numpy()
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in texts))
    output = tmp_path / "out.npy"
    run(capsys, "embed", "--model", model, "--input", tmp_path / "in.txt", "--output", output)
    assert np.abs(np.load(output) - trained).max() < 1e-5
    export = tmp_path / "export"
    words = ("--format", "sentence-transformers", "--output", export)
    run(capsys, "export", "--model", model, *words)
    peer = SentenceTransformer(str(export), device="cpu")
    assert np.abs(peer.encode(texts) - trained).max() < 1e-5

    answers = predictor(pairs)
    assert answers[0]["text"] == list(pairs[0])
    cosine = (trained[::2] * trained[1::2]).sum(1)
    assert [a["score"] for a in answers] == pytest.approx(cosine.tolist(), abs=1e-5)


@pytest.mark.parametrize("name", ["cosent", "cosine"])
def test_scores_are_learnt(name, tables, start, tmp_path, capsys):
    more = ("--data.label_column", "label", "--loss.name", name, "--model.pooling", "cls")
    found, _ = finetune(capsys, start["bert"], tables, tmp_path / "run", "scored_", *more)
    assert found["spearman"] > 0.5
    model = tmp_path / "run" / "model"
    table = tables["scored_validation"]
    scores, _ = run(capsys, "evaluate", "--model", model, "--data", table)
    embed, rows = Embedder(model, device="cpu"), scored_pairs(80, 2)
    assert embed.pooling == "cls"
    first, second = (torch.from_numpy(embed([row[i] for row in rows])) for i in (0, 1))
    cosine = F.cosine_similarity(first, second).numpy()
    expected = spearmanr(cosine, [row[2] for row in rows]).statistic
    assert scores["spearman"] == pytest.approx(expected, abs=1e-4)
    assert scores["loss"] == pytest.approx(found["loss"], rel=1e-4)
    # The same model, asked to find partners instead.
    words = ("--data", tables["validation"], "--data.label_column", "")
    other, _ = run(capsys, "evaluate", "--model", model, *words)
    assert set(other) == {"recall@1", "recall@5", "recall@10", "mrr", "loss"}


def test_one_pair_a_batch_is_refused_before_anything_is_written(tables, start, tmp_path, capsys):
    words = ["finetune", "--task", "sentence_embedding", "--model", start["bert"]]
    words += ["--train", tables["train"], "--validation", tables["validation"]]
    words += ["--run_dir", tmp_path / "run", "--data.batch_size", "1"]
    assert main([*map(str, words)]) == 2
    assert "data.batch_size: 1 in 1 parts leaves no two pairs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_hard_negatives_and_accumulation_run(tables, start, tmp_path, capsys):
    rows = [(*pair, "a house") for pair in word_pairs(64, 3)]
    more = {
        "train": write_csv(tmp_path / "t.csv", [*PAIR, "other"], rows),
        "validation": tables["validation"],
    }
    options = ("--data.negative_column", "other", "--trainer.accumulate_grad_batches", "2")
    _, said = finetune(capsys, start["modern"], more, tmp_path / "run", "", *options)
    assert "with 16 at once, not with all 32 of a step" in said


def test_a_folder_stays_what_it_is_when_it_is_imported(tables, words, tmp_path):
    from mlm.importing import import_model

    folder = write_folder(tmp_path / "a", SentenceEmbedding, tables["train"], words, pooling="max")
    import_model(folder, tmp_path / "b")
    texts = ["worda1 wordb2", "the film"]
    assert np.array_equal(Embedder(folder)(texts), Embedder(tmp_path / "b")(texts))
    assert Predictor.from_pretrained(tmp_path / "b").task.settings.pooling == "max"


def test_16_bit_vectors_are_pooled_in_32(words, tmp_path):
    config = toy_config("modern", words)
    task = SentenceEmbedding(TaskSettings(pooling="mean", max_length=16))
    model = TaskModel(config, task.build_head(config))
    batch = task.collate(task.encode([("the film", "a story")], words))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(batch).dtype == torch.float32
