"""The peer: a plain `transformers.Trainer` script that fine-tunes on a table of texts or pairs.

    python benchmarks/peers/finetune.py --model MODEL --train sst2/train.parquet \
        --validation sst2/dev.parquet --output peer.json

What it shares with `mlm finetune` is what the options say; linear warmup and decay, AdamW and
clipping at 1 are the Trainer's own. Freed memory stays in the process, as it does in `mlm`. Texts
are padded to the longest of their batch, of which `grouped` makes the most, or all to one length.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset, Value
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from mlm.memory import keep_freed_memory

# name: (labels, predictions) → a number of which more is better
CLASSIFICATION: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "macro_f1": lambda labels, found: f1_score(labels, found, average="macro"),
    "mcc": matthews_corrcoef,
}
REGRESSION: dict[str, Callable[[Any, Any], float]] = {
    "pearson": lambda labels, found: pearsonr(labels, found).statistic,
    "spearman": lambda labels, found: spearmanr(labels, found).statistic,
}


def read(path: Path, tokenizer: Any, columns: list[str], max_length: int) -> Dataset:
    """A table with texts in one column or two, and `label`; tokenised."""
    rows = Dataset(pq.read_table(path, columns=[*columns, "label"]))

    def encode(part: dict[str, list[Any]]) -> Any:
        texts = [part[name] for name in columns]
        return tokenizer(*texts, truncation=True, max_length=max_length)

    return rows.map(encode, batched=True, remove_columns=columns)


def number_labels(tables: dict[str, Dataset]) -> tuple[dict[str, Dataset], int]:
    """The tables with classes as 0, 1, … in their order, and how many there are."""
    classes = {label: place for place, label in enumerate(sorted(set(tables["train"]["label"])))}
    number = lambda row: {"label": classes[row["label"]]}  # noqa: E731
    return {name: rows.map(number) for name, rows in tables.items()}, len(classes)


@torch.inference_mode()
def predict(folder: str, rows: Dataset, collate: Any) -> np.ndarray:
    """The outputs of a saved model in fp32, as `mlm evaluate` computes them."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batches = DataLoader(rows, batch_size=64, collate_fn=collate)
    return torch.cat([model(**batch).logits for batch in batches]).numpy()


def score(metric: str, labels: Any, logits: np.ndarray) -> float:
    """One metric of a model's outputs."""
    if metric in REGRESSION:
        return float(REGRESSION[metric](labels, logits.squeeze(-1)))
    return float(CLASSIFICATION[metric](labels, logits.argmax(-1)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "train", "validation", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--test", help="score this too, with the state that validation chose")
    parser.add_argument("--columns", nargs="+", default=["text"], help="of texts, one or two")
    parser.add_argument("--metric", choices=[*CLASSIFICATION, *REGRESSION], default="accuracy")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--warmup", type=float, default=0.06, help="a share of the run")
    parser.add_argument("--weight_decay", type=float, default=0.01)
    parser.add_argument("--padding", choices=["dynamic", "grouped", "fixed"], default="dynamic")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    keep_freed_memory()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tables = {
        name: read(Path(path), tokenizer, args.columns, args.max_length)
        for name in ("train", "validation", "test")
        if (path := getattr(args, name)) is not None
    }
    if args.metric in CLASSIFICATION:
        tables, outputs = number_labels(tables)
    else:  # one output, of which the class makes a regression
        number = Value("float32")
        tables, outputs = {n: rows.cast_column("label", number) for n, rows in tables.items()}, 1
    steps = args.max_steps
    if steps < 0:
        steps = round(args.epochs * np.ceil(len(tables["train"]) / args.batch_size))
    grouped, fixed = args.padding == "grouped", args.padding == "fixed"
    collate = DataCollatorWithPadding(
        tokenizer, "max_length" if fixed else True, args.max_length if fixed else None
    )
    when = "steps" if args.max_steps > 0 else "epoch"
    with tempfile.TemporaryDirectory() as place:
        trainer = Trainer(
            AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=outputs),
            TrainingArguments(
                output_dir=place,
                learning_rate=args.lr,
                num_train_epochs=args.epochs,
                max_steps=args.max_steps,
                per_device_train_batch_size=args.batch_size,
                per_device_eval_batch_size=args.batch_size,
                warmup_steps=round(args.warmup * steps),
                weight_decay=args.weight_decay,
                bf16=args.precision == "bf16",
                use_cpu=not torch.cuda.is_available(),
                seed=args.seed,
                **({"train_sampling_strategy": "group_by_length"} if grouped else {}),
                eval_strategy=when,
                eval_steps=args.max_steps,
                save_strategy=when,
                save_steps=args.max_steps,
                save_total_limit=1,
                load_best_model_at_end=True,
                metric_for_best_model=args.metric,
                logging_steps=100,
                report_to="none",
            ),
            train_dataset=tables["train"],
            eval_dataset=tables["validation"],
            processing_class=tokenizer,
            data_collator=collate,
            compute_metrics=lambda found: {
                args.metric: score(args.metric, found.label_ids, found.predictions)
            },
        )
        seconds = trainer.train().metrics["train_runtime"]
        trainer.save_model(place)
        found: dict[str, Any] = {"seed": args.seed, "seconds": seconds, "steps": steps}
        begin = time.perf_counter()
        for name in sorted(tables.keys() - {"train"}):
            logits = predict(place, tables[name], DataCollatorWithPadding(tokenizer))
            found[name] = score(args.metric, tables[name]["label"], logits)
        found["scoring_seconds"] = time.perf_counter() - begin
    Path(args.output).write_text(json.dumps(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
