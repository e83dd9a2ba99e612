"""Is the model ever kept waiting for data, and for how long is a person?

    python benchmarks/bench_data.py --store runs/enwiki/store

Masking beside `DataCollatorForLanguageModeling` and the whole loader of `mlm pretrain`, one process
each, on the same rows, in turns; and whole commands as a person starts them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import RESULTS, in_turns, median_ratio, mlm, python, record

from mlm.data.store import TokenStore
from mlm.objectives import masked_lm
from mlm.training.batches import TrainingBatches, vocabulary_of
from mlm.training.data_options import DataOptions, Share


def masking(args: argparse.Namespace, store: TokenStore) -> None:
    """Our collator beside that of transformers, on rows in memory."""
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    split, vocabulary = store.split("train"), vocabulary_of(store)
    length, batch = args.length, args.batch_size
    rows = [
        split.tokens(n * (length - 2), (n + 1) * (length - 2)) for n in range(args.batches * batch)
    ]
    framed = [
        {
            "input_ids": [vocabulary.cls, *row.tolist(), vocabulary.sep],
            "attention_mask": [1] * length,
        }
        for row in rows
    ]
    tokenizer = AutoTokenizer.from_pretrained(store.tokenizer_dir)
    starts = range(0, len(rows), batch)

    def ours() -> None:
        for start in starts:
            chosen = [[row] for row in rows[start : start + batch]]
            made = masked_lm.collate(chosen, list(range(start, start + batch)), vocabulary, 0.15)
            masked_lm.at_rate(made, 0.15)

    def theirs(kind: str) -> Callable[[], None]:
        collator = DataCollatorForLanguageModeling(
            tokenizer, mlm_probability=0.15, return_tensors=kind
        )

        def run() -> None:
            for start in starts:
                collator(framed[start : start + batch])

        return run

    seconds = in_turns({"ours": ours, "pt": theirs("pt"), "np": theirs("np")}, args.rounds)
    best = min(("pt", "np"), key=lambda name: statistics.median(seconds[name]))
    tokens = len(rows) * length
    record(
        args.output,
        benchmark="data",
        case=f"masking collator, {batch}x{length}, one process",
        ours=tokens / statistics.median(seconds["ours"]),
        peer=tokens / statistics.median(seconds[best]),
        ratio=median_ratio(seconds["ours"], seconds[best]),
        peer_returns=best,
        unit="tokens/s",
    )


def loading(args: argparse.Namespace, store: TokenStore) -> None:
    """All that `mlm pretrain` does for a batch: order, rows, masks, tensors."""
    options = DataOptions(sequence_length=args.length, batch_size=args.batch_size)
    batches = TrainingBatches(store, options, Share(), seed=0)
    tokens = 0

    def run() -> None:
        nonlocal tokens
        tokens = sum(batches[number].num_tokens for number in range(args.batches))

    seconds = in_turns({"ours": run}, args.rounds)["ours"]
    record(
        args.output,
        benchmark="data",
        case=f"loader, {args.batch_size}x{args.length}, one process",
        ours=tokens / statistics.median(seconds),
        unit="tokens/s",
    )


def starting(args: argparse.Namespace) -> None:
    """Seconds until a person sees something."""
    with tempfile.TemporaryDirectory() as place:
        numbers = iter(range(10_000))

        def first_step() -> None:
            words = ["--store", args.store, "--run_dir", Path(place, str(next(numbers)))]
            words += ["--config", "mini_cpu", "--budget", "1steps", "--checkpoint.every_n_steps"]
            mlm("pretrain", *words, "null", "--trainer.limit_val_batches", 1)

        sides = {
            "mlm --help": lambda: mlm("--help"),
            "mlm pretrain --help": lambda: mlm("pretrain", "--help"),
            "mlm pretrain, one step and its model folder": first_step,
            "import torch": lambda: python("-c", "import torch"),
        }
        for name, seconds in in_turns(sides, args.rounds).items():
            median = statistics.median(seconds)
            record(args.output, benchmark="data", case=name, ours=median, unit="s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "data.jsonl")
    args = parser.parse_args()
    store = TokenStore.open(args.store)
    masking(args, store)
    loading(args, store)
    starting(args)


if __name__ == "__main__":
    main()
