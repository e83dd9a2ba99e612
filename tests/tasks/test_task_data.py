"""Columns to batches: encoding, order, workers and ranks."""

import collections

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from toy import table, toy_config, toy_rows

from mlm.arguments import CommandParser
from mlm.errors import UserError
from mlm.training.data_options import Share
from mlm.training.datamodule import From
from tasks.base import TASKS, Task, find_task
from tasks.commands.finetune import add_arguments
from tasks.datamodule import TrainingBatches, pool_rows
from tasks.encoding import encode_texts
from tasks.options import DataOptions, ModelOptions
from tasks.rows import Rows
from tasks.settings import TaskSettings, task_settings, with_text_column
from tasks.text_classification import TextClassification


@pytest.fixture(scope="session")
def task_and_examples(tmp_path_factory, tokenizer):
    rows = table(tmp_path_factory.mktemp("rows"), ["text", "label"], toy_rows(100, 5))
    task = TextClassification(TaskSettings())
    task.fit(rows, toy_config("modern", tokenizer))
    return task, task.examples(rows, tokenizer)


# --- columns ---


def test_columns_have_defaults(tmp_path, tokenizer):
    config = toy_config("bert", tokenizer)
    for header, expected in (
        (["text", "label"], ("text",)),
        (["label", "sentence1", "sentence2", "more"], ("sentence1", "sentence2")),
    ):
        rows = [["x"] * len(header), ["y"] * len(header)]
        task = TextClassification(TaskSettings())
        task.fit(table(tmp_path, header, rows), config)
        assert task.settings.text_column == expected


def test_a_table_without_the_columns_lists_those_it_has(tmp_path, tokenizer):
    config = toy_config("bert", tokenizer)
    rows = table(tmp_path, ["review", "stars"], [("x", 1), ("y", 2)])
    with pytest.raises(UserError, match=r"no column 'text', nor .*'review', 'stars'"):
        TextClassification(TaskSettings()).fit(rows, config)
    task = TextClassification(TaskSettings(text_column=("review",)))
    with pytest.raises(UserError, match=r"table\.csv: no column 'label' among 'review', 'stars'"):
        task.fit(rows, config)


def test_an_empty_table_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\n")
    with pytest.raises(UserError, match=r"t\.csv: has no rows"):
        Rows.read(tmp_path / "t.csv")


def test_a_setting_that_the_task_does_not_read_is_refused():
    class Plain(TextClassification):
        name = "plain"
        reads = frozenset()

    for changes in ({"stride": 8}, {"truncation": "tail"}, {"long_texts": "windows"}):
        settings = task_settings(DataOptions(**changes), ModelOptions("x"))
        (name,) = changes
        with pytest.raises(UserError, match=rf"data\.{name}: the task plain has no use for it"):
            Plain(settings)


def test_more_than_two_columns_are_refused():
    with pytest.raises(UserError, match=r"data\.text_column: 3 columns given"):
        TextClassification(
            task_settings(DataOptions(text_column=["a", "b", "c"]), ModelOptions("x"))
        )
    with pytest.raises(UserError, match="2 given, but the model was trained on 1"):
        with_text_column(TaskSettings(text_column=("text",)), ["a", "b"])


def test_length_and_pooling_are_checked_against_the_model(tmp_path, tokenizer):
    rows = table(tmp_path, ["text", "label"], toy_rows(10, 0))
    config = toy_config("bert", tokenizer)
    with pytest.raises(UserError, match=r"data\.max_length: 65 is beyond the model's 64 positions"):
        TextClassification(TaskSettings(max_length=65)).fit(rows, config)
    with pytest.raises(UserError, match=r"model\.pooling: 'men'.*did you mean mean"):
        TextClassification(TaskSettings(pooling="men")).fit(rows, config)
    task = TextClassification(TaskSettings())
    task.fit(rows, config)
    assert (task.settings.max_length, task.settings.pooling) == (64, "cls")


# --- tasks by name ---


def test_every_task_of_the_table_is_there_and_named_so():
    for name in TASKS:
        assert find_task(name).name == name


def test_the_help_names_every_task():
    parser = CommandParser("finetune", "")
    add_arguments(parser)
    text = parser.format_help()
    assert all(name in text for name in TASKS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("regresion", "did you mean regression"),
        ("no_such_module.Task", "cannot be imported"),
        ("tasks.regression.Nothing", "cannot be imported"),
        ("pathlib.Path", "is not a subclass"),
    ],
)
def test_an_unknown_task_is_one_line(name, message):
    with pytest.raises(UserError, match=message):
        find_task(name)


def test_a_task_of_ones_own_is_found_in_the_working_directory(tmp_path, monkeypatch):
    source = "from tasks.text_classification import TextClassification\n"
    (tmp_path / "sarcasm_task.py").write_text(
        source + "class Sarcasm(TextClassification):\n    '''Mine.'''\n"
    )
    monkeypatch.chdir(tmp_path)
    found = find_task("sarcasm_task.Sarcasm")
    assert issubclass(found, Task)
    assert found.name == "sarcasm_task.Sarcasm"


# --- texts → ids ---


def test_encoding_equals_the_tokenizer_and_leaves_it_alone(tokenizer):
    texts = [text for text, _ in toy_rows(20, 1)] + ["", "東京 🎉"]
    examples = encode_texts([(t,) for t in texts], tokenizer, 64)
    for text, example in zip(texts, examples, strict=True):
        assert example.input_ids.tolist() == tokenizer.encode(text).ids
        assert example.token_type_ids is None
        assert not example.truncated
    assert tokenizer.truncation is None


def test_truncation_keeps_the_special_tokens(tokenizer):
    (example,) = encode_texts([("film " * 50,)], tokenizer, 10)
    assert len(example.input_ids) == 10
    assert example.truncated
    assert example.input_ids[[0, -1]].tolist() == [2, 3]


def test_of_a_pair_the_longer_text_is_cut_first(tokenizer):
    (example,) = encode_texts([("film " * 50, "story " * 4)], tokenizer, 16)
    film, story = tokenizer.token_to_id("film"), tokenizer.token_to_id("story")
    assert len(example.input_ids) == 16
    assert (example.input_ids == story).sum() == 4
    assert (example.input_ids == film).sum() == 16 - 3 - 4
    first = np.flatnonzero(example.input_ids == 3)[0]
    assert example.token_type_ids.tolist() == [0] * (first + 1) + [1] * (15 - first)


def test_no_room_for_the_text_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"data\.max_length: 2 leaves no room"):
        encode_texts([("a",)], tokenizer, 2)
    with pytest.raises(UserError, match="choose at least 5"):
        encode_texts([("a", "b")], tokenizer, 4)
    assert len(encode_texts([("a b", "b c")], tokenizer, 5)[0].input_ids) == 5


# --- order ---


def test_every_example_comes_once_an_epoch(task_and_examples):
    task, examples = task_and_examples
    batches = TrainingBatches(task, examples, DataOptions(batch_size=10, length_pool=5), Share(), 3)
    seen = [row for i in range(20) for row in batches.rows(i)]
    for epoch in (seen[:100], seen[100:]):
        assert sorted(epoch) == list(range(100))
    assert seen[:100] != seen[100:]


def test_pools_are_sorted_and_batches_of_a_pool_are_not(task_and_examples):
    task, examples = task_and_examples
    lengths = np.array([len(e.input_ids) for e in examples])
    pool = pool_rows(0, lengths, 50, seed=0)
    assert (np.diff(lengths[pool]) >= 0).all()
    batches = TrainingBatches(task, examples, DataOptions(batch_size=10, length_pool=5), Share(), 0)
    rows = [batches.rows(i) for i in range(5)]
    assert sorted(np.concatenate(rows)) == sorted(pool)
    means = [lengths[r].mean() for r in rows]
    assert means != sorted(means)
    spread = np.mean([np.ptp(lengths[r]) for r in rows])
    assert spread < np.ptp(lengths) / 2


def test_without_pools_the_stream_is_plain(task_and_examples):
    task, examples = task_and_examples
    batches = TrainingBatches(task, examples, DataOptions(batch_size=10, length_pool=1), Share(), 3)
    lengths = np.array([len(e.input_ids) for e in examples])
    for step in range(3):
        assert batches.rows(step).tolist() == pool_rows(step, lengths, 10, 3).tolist()


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (1, 4), (2, 2)])
def test_ranks_and_micro_batches_only_divide_a_step(task_and_examples, world, accumulation):
    task, examples = task_and_examples
    options = DataOptions(batch_size=20, length_pool=3)
    whole = TrainingBatches(task, examples, options, Share(), 7)
    for step in range(8):
        parts = [
            TrainingBatches(task, examples, options, Share(rank, world, accumulation), 7).rows(
                step * accumulation + part
            )
            for rank in range(world)
            for part in range(accumulation)
        ]
        assert {len(part) for part in parts} == {20 // world // accumulation}
        together = collections.Counter(np.concatenate(parts).tolist())
        assert together == collections.Counter(whole.rows(step).tolist())


def test_a_batch_that_cannot_be_divided_is_refused(task_and_examples):
    task, examples = task_and_examples
    with pytest.raises(UserError, match=r"data\.batch_size: 10 rows cannot be divided"):
        TrainingBatches(task, examples, DataOptions(batch_size=10), Share(0, 2, 2), 0)


def test_batches_are_the_same_for_0_and_2_workers(task_and_examples):
    task, examples = task_and_examples
    options = DataOptions(batch_size=8, length_pool=4)
    found = []
    for workers in (0, 2):
        batches = TrainingBatches(task, examples, options, Share(), 11)
        loader = DataLoader(batches, sampler=From(3, stop=23), batch_size=None, num_workers=workers)
        found.append(list(loader))
    assert len(found[0]) == 20
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.cu_seqlens, other.cu_seqlens)


def test_the_order_is_fixed_for_ever():
    lengths = np.array([5, 9, 4, 7, 8, 6, 3, 10, 12, 11])
    assert pool_rows(0, lengths, 8, seed=1).tolist() == [6, 2, 0, 5, 4, 1, 7, 8]
    assert pool_rows(0, lengths, 8, seed=2).tolist() != [6, 2, 0, 5, 4, 1, 7, 8]
