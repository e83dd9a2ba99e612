"""The peer: a plain `transformers.Trainer` script that fine-tunes a classifier on a table.

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
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from mlm.memory import keep_freed_memory


def read(path: Path, tokenizer: Any, max_length: int) -> Dataset:
    """A table with columns `text` and `label`, tokenised."""
    rows = Dataset(pq.read_table(path, columns=["text", "label"]))
    encode = lambda part: tokenizer(part["text"], truncation=True, max_length=max_length)  # noqa: E731
    return rows.map(encode, batched=True, remove_columns=["text"])


def accuracy(prediction: Any) -> dict[str, float]:
    """The share of rows whose largest logit is the label's."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@torch.inference_mode()
def score(folder: str, rows: Dataset, collate: Any) -> float:
    """The accuracy of a saved model in fp32, as `mlm evaluate` finds it."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batches = DataLoader(rows, batch_size=64, collate_fn=collate)
    right = [model(**batch).logits.argmax(-1) == batch["labels"] for batch in batches]
    return float(torch.cat(right).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "train", "validation", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--test", help="score this too, with the state that validation chose")
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
        name: read(Path(path), tokenizer, args.max_length)
        for name in ("train", "validation", "test")
        if (path := getattr(args, name)) is not None
    }
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
            AutoModelForSequenceClassification.from_pretrained(
                args.model, num_labels=len(set(tables["train"]["label"]))
            ),
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
                metric_for_best_model="accuracy",
                logging_steps=100,
                report_to="none",
            ),
            train_dataset=tables["train"],
            eval_dataset=tables["validation"],
            processing_class=tokenizer,
            data_collator=collate,
            compute_metrics=accuracy,
        )
        seconds = trainer.train().metrics["train_runtime"]
        trainer.save_model(place)
        found: dict[str, Any] = {"seed": args.seed, "seconds": seconds, "steps": steps}
        for name in sorted(tables.keys() - {"train"}):
            found[name] = score(place, tables[name], DataCollatorWithPadding(tokenizer))
    Path(args.output).write_text(json.dumps(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
