"""``mlm predict``: a fine-tuned model's answer to each text, as JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mlm.arguments import CommandParser, add_model_path
from mlm.errors import UserError
from tasks.options import add_inference_arguments

if TYPE_CHECKING:
    from tasks.inference import Predictor

# Answers are written after so many inputs: enough for batches of like lengths.
_CHUNK = 8192


def add_arguments(parser: CommandParser) -> None:
    """The options of ``mlm predict``."""
    add_model_path(parser, "a fine-tuned model folder, such as RUN_DIR/model")
    add = parser.add_argument
    add(
        "--text",
        type=str,
        nargs="+",
        default=None,
        help="one text or more; for a model of pairs, two by two; for one that chooses, a text and "
        "the choices",
    )
    add("--input", type=str | None, default=None, metavar="FILE", help="a text a line, or a table")
    add("--output", type=str | None, default=None, metavar="FILE", help="a .jsonl; else stdout")
    add(
        "--data.text_column",
        type=str | list[str] | None,
        default=None,
        help="the input table's column, or two for a pair; by default those trained on",
    )
    add_inference_arguments(parser, precision="auto")


def run(args: Any) -> None:
    """Answer every input, in order."""
    if (args.text is None) == (args.input is None):
        raise UserError("give either --text or --input")
    if args.output is not None and Path(args.output).suffix.lower() not in ("", ".jsonl"):
        raise UserError(f"{args.output}: answers are JSON lines; choose the ending .jsonl")
    from mlm.memory import keep_freed_memory
    from tasks.inference import Predictor, say_cut

    keep_freed_memory()
    predictor = Predictor.from_pretrained(args.model.path, args.device, args.precision, args.task)
    if args.text is not None:
        inputs = predictor.task.from_words(args.text)
    else:
        inputs = read_inputs(args.input, predictor, args.data.text_column)
    with _open(args.output) as file, _progress(len(inputs)) as advance:
        for start in range(0, len(inputs), _CHUNK):
            for answer in predictor(inputs[start : start + _CHUNK], advance):
                file.write(json.dumps(answer, ensure_ascii=False) + "\n")
    say_cut(predictor.task, predictor.cut, len(inputs))


def read_inputs(path: str, predictor: Predictor, columns: str | list[str] | None) -> list[Any]:
    """The inputs in a file: a table with the task's columns, or a `.txt` with one a line."""
    from mlm.data.tables import read_table, read_texts
    from tasks.rows import Rows
    from tasks.settings import with_text_column

    task = predictor.task
    task.settings = with_text_column(task.settings, columns)
    if Path(path).suffix.lower() != ".txt":
        return task.inputs(Rows(read_table(path), Path(path)))
    if len(task.settings.text_column) == 2:
        first, second = task.settings.text_column
        raise UserError(
            f"{path}: this model takes pairs; give a table with columns {first!r} and {second!r}"
        )
    return list(read_texts(path))


@contextmanager
def _open(path: str | None) -> Iterator[TextIO]:
    """Standard output, or a file that is there whole or not at all."""
    if path is None:
        yield sys.stdout
        return
    from mlm.files import atomic_file

    with atomic_file(path) as draft, draft.open("w", encoding="utf-8") as file:
        yield file


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on standard error, where that is a terminal and there is enough to do."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    hidden = total <= 256 or not console.is_terminal
    with Progress(console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task("predicting", total=total)
        yield lambda done: bar.advance(task, done)
