"""Every YAML under configs/ opens with what to expect, loads, builds and runs."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from mlm.arguments import CommandParser, settings
from mlm.cli import COMMANDS, main
from mlm.config_files import find_config, shipped_configs, to_yaml

CONFIGS = sorted(
    pytest.param(path.parent.name, path.stem, id=f"{path.parent.name}/{path.stem}")
    for path in shipped_configs().rglob("*.yaml")
    if path.parent.name != "suites"  # of sets, not of settings: tests/tasks/test_suite.py
)
each_config = pytest.mark.parametrize(("command", "name"), CONFIGS)


def parse(command, *options):
    """The settings of a command, with a value for each required option that is not given."""
    parser = CommandParser(command, "")
    importlib.import_module(COMMANDS[command][1]).add_arguments(parser)
    needed = [f"--{a.dest}" for a in parser._actions if a.required and a.option_strings]
    return settings(parser.parse([*(word for n in needed for word in (n, "x")), *options]))


def test_there_are_configs_and_nothing_else():
    files = [path for path in shipped_configs().rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == {"pretrain", "finetune", "suites"}
    assert {path.suffix for path in files} == {".yaml"}


@each_config
def test_it_opens_with_the_command_the_time_and_the_score(command, name):
    text = find_config(name, command).read_text()
    lines = text.splitlines()
    header = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    words = {m[1]: m[2] for line in header if (m := re.match(r"# (\w+): +(.+)", line))}
    assert header[0].endswith("."), "the first line says what it is, in a sentence"
    assert words.keys() >= {"command", "time", "expected"}
    assert f"mlm {command} --config {name} " in "\n".join(header)


@each_config
def test_it_loads_and_reads_back_the_same(command, name, tmp_path):
    loaded = parse(command, "--config", name)
    (tmp_path / "again.yaml").write_text(to_yaml(loaded))
    assert parse(command, "--config", str(tmp_path / "again.yaml")) == loaded
    assert loaded != parse(command)


@each_config
def test_it_builds(command, name):
    loaded = parse(command, "--config", name)
    build = {"pretrain": build_pretraining, "finetune": build_fine_tuning}[command]
    build(loaded)


def build_pretraining(loaded):
    from mlm.model.config import preset
    from mlm.model.heads import MaskedLanguageModel
    from mlm.training.data_options import DataOptions
    from mlm.training.logging import LoggingOptions
    from mlm.training.optimizers import OptimizerOptions
    from mlm.training.trainer import choose_budget

    options = loaded["model"]
    options = {k: v for k, v in options.items() if v is not None}
    data = DataOptions(**loaded["data"])
    OptimizerOptions(**loaded["optimizer"])
    LoggingOptions(**loaded["logging"])
    assert choose_budget(loaded["budget"], loaded["trainer"], 1000.0) is not None
    with torch.device("meta"):
        model = MaskedLanguageModel(preset(options.pop("family"), options.pop("size"), **options))
    assert data.sequence_length <= model.config.max_position_embeddings


def build_fine_tuning(loaded):
    from mlm.training.logging import LoggingOptions
    from mlm.training.optimizers import OptimizerOptions
    from mlm.training.trainer import choose_budget
    from tasks.base import find_task
    from tasks.options import CheckpointOptions, DataOptions, ModelOptions
    from tasks.settings import task_settings

    data = DataOptions(**loaded["data"])
    assert data.labels is None, "a shipped config never fixes the label set"
    OptimizerOptions(**loaded["optimizer"])
    LoggingOptions(**loaded["logging"])
    CheckpointOptions(**loaded["checkpoint"])
    choose_budget(loaded["budget"], loaded["trainer"], 1000.0)
    find_task(loaded["task"])(task_settings(data, ModelOptions(**loaded["model"])))


# --- every config in miniature ---

SMALL = (
    *("--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.devices", "1"),
    *("--trainer.val_check_interval", "2", "--data.batch_size", "4", "--data.num_workers", "0"),
    *("--logging.wandb", "off"),
)
SMALL_MODEL = (
    *("--model.hidden_size", "32", "--model.num_hidden_layers", "2"),
    *("--model.num_attention_heads", "2", "--model.intermediate_size", "32"),
    *("--data.sequence_length", "32", "--compile", "false"),
)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with a corpus and a token store, as `mlm prepare` leaves it."""
    folder: Path = tmp_path_factory.mktemp("workshop")
    lines = [f"A text about {i} cats, {i % 7} dogs and {i % 5} birds.\n\n" for i in range(400)]
    (folder / "corpus.txt").write_text("".join(lines))
    corpus, store = str(folder / "corpus.txt"), str(folder / "store")
    assert main(["prepare", "--corpus", corpus, "--output", store, "--vocab_size", "300"]) == 0
    return folder


def pretrain(workshop, name):
    run = workshop / f"pretrain_{name}"
    if not run.exists():
        options = ["--store", str(workshop / "store"), "--run_dir", str(run), *SMALL, *SMALL_MODEL]
        assert main(["pretrain", "--config", name, *options]) == 0
    return run / "model"


def tagged(i):
    return {"tokens": [str(i), "cats", "and", "dogs"], "ner_tags": ["O", "B-PET", "O", "B-PET"]}


def asked(i):
    context = f"{i} cats and dogs"
    answer = {"answer_text": ["cats"], "answer_start": [context.index("cats")]}
    return {"question": "who", "context": context, **answer}


def chosen(i):
    return {"sent1": f"{i} cats", "sent2": "and", "label": i % 4} | {
        f"ending{place}": "dogs" if place == i % 4 else "birds" for place in range(4)
    }


# What stands in a row, where that is not texts and a label.
ROWS = {
    "token_classification": tagged,
    "question_answering": asked,
    "multiple_choice": chosen,
    "multi_label_classification": lambda i: {"text": f"{i} cats", "labels": ["a", "b"][i % 2 :]},
}
# Words that the small tokenizer has.
WORDS = {"prompt_classification": ["--data.verbaliser", "{'0': cats, '1': dogs}"]}
SCORED = ("regression", "sentence_embedding")


def table(folder, loaded):
    """A table with the columns that a config reads."""
    data = loaded["data"]
    columns = data["text_column"] or "text"
    columns = columns if isinstance(columns, list) else [columns]

    def labelled(i):
        label = i % 5 if loaded["task"] in SCORED else str(i % 2)
        texts = dict.fromkeys(columns, f"{i} cats and dogs")
        return texts | {data["label_column"] or "label": label}

    rows = map(ROWS.get(loaded["task"], labelled), range(24))
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.slow
@each_config
def test_it_runs_in_miniature(command, name, workshop, tmp_path):
    if command == "pretrain":
        assert (pretrain(workshop, name) / "model.safetensors").is_file()
        return
    rows = table(tmp_path, parse(command, "--config", name))
    model = str(pretrain(workshop, "mini_cpu"))
    options = ["--train", rows, "--validation", rows, "--run_dir", str(tmp_path / "run"), *SMALL]
    options += WORDS.get(parse(command, "--config", name)["task"], [])
    assert main([command, "--config", name, "--model", model, *options]) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
