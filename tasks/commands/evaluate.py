"""``mlm evaluate``: metrics of a model on data, as one JSON object."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlm.arguments import CommandParser, add_data_path, add_model_path
from mlm.errors import UserError
from tasks.options import add_inference_arguments, add_report_precision, check_precision

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.base import Task
    from tasks.encoding import Example
    from tasks.inference import Predictor
    from tasks.reporting.build import Answered
    from tasks.rows import Rows


def add_arguments(parser: CommandParser) -> None:
    """The options of ``mlm evaluate``."""
    add_model_path(parser, "a model folder, fine-tuned or pretrained")
    add_data_path(
        parser,
        "for a fine-tuned model a table with labels; for a pretrained one a token store (its "
        "validation split) or text files",
    )
    add = parser.add_argument
    add("--output", type=str | None, default=None, metavar="FILE", help="also write the JSON here")
    add(
        "--data.text_column",
        type=str | list[str] | None,
        default=None,
        help="the table's column, or two for a pair; by default those trained on",
    )
    add(
        "--data.label_column",
        type=str | None,
        default=None,
        help="the table's column with the right answers; by default the one trained on",
    )
    add(
        "--data.sequence_length",
        type=int | None,
        default=None,
        help="tokens in a row of text, for a pretrained model; by default 128, or its positions",
    )
    add(
        "--report",
        type=str | None,
        default=None,
        metavar="DIR",
        help="of a fine-tuned model: write intervals, calibration, thresholds and mistakes here",
    )
    add(
        "--train",
        type=str | None,
        default=None,
        metavar="FILE",
        help="the table trained on, from which the report's baselines learn",
    )
    add(
        "--validation",
        type=str | None,
        default=None,
        metavar="FILE",
        help="the table that the report chooses its temperature and its thresholds on",
    )
    add_report_precision(parser)
    add_inference_arguments(parser, precision="fp32")


def run(args: Any) -> None:
    """Print the metrics, and write them where asked."""
    from mlm.checkpoint import read_folder
    from mlm.memory import keep_freed_memory
    from tasks.folders import has_task
    from tasks.reporting.text import as_json, write_json

    keep_freed_memory()
    check_precision(args.report_precision)
    folder = read_folder(args.model.path)
    pretrained = folder.head == "masked_lm" and not has_task(folder)
    for name in ("report", "train", "validation"):
        if getattr(args, name) is not None and (pretrained or args.report is None):
            raise UserError(
                f"--{name}: only for a fine-tuned model"
                if pretrained
                else f"--{name}: is for a report; say where with --report"
            )
    _refuse_unused(args, pretrained)
    scores = evaluate_pretrained(args) if pretrained else evaluate_task(args)
    print(as_json(scores))
    if args.output is not None:
        write_json(Path(args.output), scores)


def evaluate_task(args: Any) -> dict[str, float]:
    """A fine-tuned model's metrics on a table."""
    from dataclasses import replace

    from tasks.inference import Predictor, count_cut, say_cut
    from tasks.reporting.text import as_text
    from tasks.rows import Rows
    from tasks.settings import with_text_column

    if Path(args.data.path).is_dir():
        raise UserError(f"{args.data.path}: is a folder; a fine-tuned model takes a table")
    predictor = Predictor.from_pretrained(args.model.path, args.device, args.precision, args.task)
    task = predictor.task
    task.settings = with_text_column(task.settings, args.data.text_column)
    if args.data.label_column is not None:
        task.settings = replace(task.settings, label_column=args.data.label_column)
    tables = {
        name: Rows.read(path)
        for name, path in (
            ("data", args.data.path),
            ("train", args.train),
            ("validation", args.validation),
        )
        if path is not None
    }
    rows = tables["data"]
    examples = task.examples(rows, predictor.tokenizer)  # mistakes before warnings
    _warn_of(task, [rows])
    say_cut(task, count_cut(examples), rows.table.num_rows)
    if args.report is None:
        values = predictor.compute(examples)
    else:
        values = report(args, predictor, tables, examples)
        # Only now, as labels that the others alone have are none of these rows' scores.
        _warn_of(task, [table for name, table in tables.items() if name != "data"])
    for name, lines in task.tables(values).items():
        print(f"{name.replace('_', ' ')}:\n{as_text(lines)}", file=sys.stderr)
    return {name: float(value) for name, value in values.items() if value.ndim == 0}


def _warn_of(task: Task, tables: Iterable[Rows]) -> None:
    from mlm.training.logging import say

    for rows in tables:
        for line in task.remarks(rows):
            say(f"warning: {line}")


def report(
    args: Any, predictor: Predictor, tables: Mapping[str, Rows], examples: list[Example]
) -> dict[str, Tensor]:
    """Write what the scores are worth to the folder asked for; the metrics.

    Args:
        args: of the command.
        predictor: the model.
        tables: `data`, and `train` and `validation` where they are given.
        examples: of `data`.
    """
    from tasks.reporting.build import Baselines, answer, build_report
    from tasks.reporting.write import write_report

    task, baselines, validation = predictor.task, None, None

    def answered(rows: Rows, examples: list[Example]) -> Answered:
        return answer(
            predictor, task, str(rows.path), examples, task.inputs(rows), task.targets(rows)
        )

    found = answered(tables["data"], examples)
    if (train := tables.get("train")) is not None:
        decisions = task.reporter().baselines(train, found.inputs)
        baselines = Baselines(str(train.path), decisions)
    if (rows := tables.get("validation")) is not None:
        validation = answered(rows, task.examples(rows, predictor.tokenizer))
    write_report(
        Path(args.report),
        build_report(task, found, baselines, validation, args.report_precision),
    )
    return found.metrics


def _refuse_unused(args: Any, pretrained: bool) -> None:
    """Refuse options that the other kind of model has."""
    if not pretrained:
        if args.data.sequence_length is not None:
            raise UserError("--data.sequence_length: only for a pretrained model; leave it out")
        return
    unused = {
        "--precision": args.precision != "fp32",
        "--task": args.task is not None,
        "--data.label_column": args.data.label_column is not None,
        "--data.text_column": isinstance(args.data.text_column, list),
    }
    for name, is_given in unused.items():
        if is_given:
            raise UserError(f"{name}: a pretrained model takes fp32, one column and no labels")


def evaluate_pretrained(args: Any) -> dict[str, float]:
    """A pretrained model's masked loss on a token store's validation split or on text files."""
    from mlm.checkpoint import build_masked_lm, read_folder
    from mlm.data.packing import Split
    from mlm.data.store import MANIFEST, TokenStore
    from mlm.data.tokenizer import num_ids, special_ids
    from mlm.objectives.masked_lm import Vocabulary
    from mlm.training.evaluation import evaluate_masked_lm
    from mlm.training.precision import choose_device

    folder, path = read_folder(args.model.path), Path(args.data.path)
    longest = folder.config.max_position_embeddings
    length = args.data.sequence_length
    if length is None:
        length = min(128, longest)
    if not 8 <= length <= longest:
        raise UserError(
            f"--data.sequence_length: {length} must lie between 8 and the model's {longest} "
            "positions"
        )
    split: Split
    if (path / MANIFEST).is_file():
        store = TokenStore.open(path)
        store.check_tokenizer(folder.tokenizer, args.model.path)
        split = store.split("validation")
        characters = store.manifest["splits"]["validation"]["characters"]
    else:
        split = TextSplit(path, folder.tokenizer, args.data.text_column or "text")
        characters = split.characters
    special, size = special_ids(folder.tokenizer), num_ids(folder.tokenizer)
    vocabulary = Vocabulary(size, special.cls, special.sep, special.mask, special.ids)
    model = build_masked_lm(folder).to(choose_device(args.device))
    return evaluate_masked_lm(model, split, vocabulary, characters, length)


class TextSplit:
    """Text files as a split of a token store, in memory.

    Raises:
        UserError: as `mlm.data.corpus.read_documents`, or there is no text.
    """

    def __init__(self, path: Path, tokenizer: Any, text_column: str) -> None:
        import numpy as np

        from mlm.data.corpus import read_documents

        documents = list(read_documents([path], text_column))
        encodings = tokenizer.encode_batch_fast(documents, add_special_tokens=False)
        parts = [np.asarray(e.ids, np.int32) for e in encodings if e.ids]
        if not parts:
            raise UserError(f"{path}: holds no text")
        self.ids, self.ends = np.concatenate(parts), np.cumsum([len(part) for part in parts])
        self.characters = sum(map(len, documents))

    def tokens(self, start: int, stop: int) -> Any:
        """The ids from ``start`` up to ``stop``."""
        return self.ids[start:stop]
