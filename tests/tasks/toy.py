"""A toy world: reviews whose sentiment one word gives away, and small models to start from."""

import csv
import json
import random
from pathlib import Path

import torch

from mlm.checkpoint import save_folder
from mlm.data.tokenizer import train_tokenizer
from mlm.model.config import EncoderConfig, preset
from mlm.model.heads import MaskedLanguageModel
from tasks.folders import save_task_folder
from tasks.heads import TaskModel
from tasks.rows import Rows
from tasks.settings import TaskSettings

GOOD = ["wonderful", "moving", "funny", "brilliant"]
BAD = ["dull", "clumsy", "boring", "awful"]
FILLER = ["the", "film", "is", "a", "story", "about", "people", "and", "their", "house", "with"]


def toy_rows(count: int, seed: int) -> list[tuple[str, str]]:
    """(text, label): of 3 to 12 words one decides."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label, decisive = (("pos", GOOD), ("neg", BAD))[number % 2]
        words = [draw.choice(FILLER) for _ in range(draw.randint(2, 11))]
        words.insert(draw.randint(0, len(words)), draw.choice(decisive))
        rows.append((" ".join(words), label))
    return rows


def number_rows(count: int, seed: int) -> list[tuple[str, str, float]]:
    """(sentence1, sentence2, label): ten times the count of one word, and a thousand."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        hits = draw.randint(0, 5)
        words = ["funny"] * hits + [draw.choice(FILLER) for _ in range(6 - hits)]
        draw.shuffle(words)
        rows.append((" ".join(words), draw.choice(FILLER), 1000 + 10 * hits + draw.random()))
    return rows


def write_csv(path: Path, header: list[str], rows: list[tuple]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def table(tmp_path: Path, header: list[str], rows: list[tuple]) -> Rows:
    """A table read back from a file."""
    return Rows.read(write_csv(tmp_path / "table.csv", header, rows))


def toy_tokenizer():
    return train_tokenizer([t for t, _ in toy_rows(200, 0)], vocab_size=200)


def toy_config(family: str, tokenizer, **changes) -> EncoderConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64}
    vocab_size = tokenizer.get_vocab_size()
    return preset(family, "tiny", vocab_size=vocab_size, **(sizes | changes))


def write_pretrained(directory: Path, family: str, tokenizer, **changes) -> Path:
    """A folder of a masked language model with random weights."""
    torch.manual_seed(0)
    config = toy_config(family, tokenizer, **changes)
    state = MaskedLanguageModel(config).state_dict()
    save_folder(
        directory, config=config, head="masked_lm", state=state, tokenizer=tokenizer, info={}
    )
    return directory


def write_folder(directory, kind, train, tokenizer, family="modern", changes=None, **settings):
    """A folder of a task with random weights that are far from those of an initialisation."""
    config = toy_config(family, tokenizer, **(changes or {}))
    task = kind(TaskSettings(**settings))
    task.fit(Rows.read(train), config)
    torch.manual_seed(3)
    model = TaskModel(config, task.build_head(config), task.settings.layers)
    added = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    for parameter in added:
        torch.nn.init.normal_(parameter, std=0.5)
    save_task_folder(directory, model.state_dict(), config, task, tokenizer)
    return directory


# word: its tag; a person has one name or two
TAGGED = {"ann": "B-PER", "bob": "B-PER", "lee": "I-PER", "paris": "B-LOC", "rome": "B-LOC"}


def tagged_rows(count: int, seed: int) -> list[dict]:
    """Words, of which some are names, and their tags."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [draw.choice(FILLER) for _ in range(draw.randint(3, 9))]
        for name in (["ann"], ["bob", "lee"], ["paris"], ["rome"], ["ann", "lee"]):
            if draw.random() < 0.3:
                place = draw.randint(0, len(words))
                if place == len(words) or words[place] != "lee":
                    words[place:place] = [*name, "is"]
        rows.append({"tokens": words, "ner_tags": [TAGGED.get(word, "O") for word in words]})
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def question_rows(count: int, seed: int) -> list[dict]:
    """Contexts in which one word decides, and that is the answer."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [draw.choice(FILLER) for _ in range(draw.randint(10, 30))]
        place, answer = draw.randrange(len(words)), draw.choice(GOOD + BAD)
        words[place] = answer
        row = {"question": "is it a film", "context": " ".join(words), "answer_text": [answer]}
        rows.append(row | {"answer_start": [len(" ".join([*words[:place], ""]))]})
    return rows
