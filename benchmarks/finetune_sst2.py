"""What did pretraining bring? Fine-tuning from its model and from random weights, several seeds.

    python benchmarks/finetune_sst2.py --model runs/enwiki/pretrained/model \
        --train sst2/train.parquet --validation sst2/dev.parquet --work runs/sst2

The same script does any other set. One without a validation table has every tenth row of its
training table for that, so that nothing is chosen by the test set:

    python benchmarks/finetune_sst2.py --model runs/enwiki/pretrained/model --config imdb \
        --seeds 1 --random no --train imdb/train.parquet --test imdb/test.parquet --work runs/imdb
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from common import RESULTS, mlm, record


def split(train: Path, work: Path) -> tuple[Path, Path]:
    """Every tenth row of ``train`` as a table to validate on, and one of the rest."""
    table = pq.read_table(train)
    tenth = np.arange(len(table)) % 10 == 9
    work.mkdir(parents=True, exist_ok=True)
    parts = {work / "train.parquet": ~tenth, work / "validation.parquet": tenth}
    for path, rows in parts.items():
        pq.write_table(table.filter(rows), path)
    rest, validation = parts
    return rest, validation


def run(args: argparse.Namespace, start: str) -> None:
    """Fine-tune ``args.seeds`` times from one kind of start, and record each accuracy."""
    folder = args.work / start
    words = ["finetune", "--config", args.config, "--model", args.model, "--run_dir", folder]
    words += ["--train", args.train, "--validation", args.validation, "--seeds", str(args.seeds)]
    words += ["--resume", "auto"]  # what is finished is not done again
    mlm(*words, *(["--model.random", "true"] if start == "random" else []))
    seeds = sorted(folder.glob("seed_*")) or [folder]
    accuracies, seconds = [], 0.0
    for seed in seeds:
        done = mlm("evaluate", "--model", seed / "model", "--data", args.test or args.validation)
        seconds += json.loads((seed / "results.json").read_text())["seconds"]
        accuracies.append(100 * json.loads(done.printed)["accuracy"])
    record(
        args.output,
        benchmark="finetune",
        case=f"{args.config} from {start}",
        ours=statistics.mean(accuracies),
        spread=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        values=accuracies,
        unit="% accuracy",
        minutes_a_seed=seconds / 60 / len(seeds),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--validation", type=Path, help="by default a tenth of --train")
    parser.add_argument("--test", type=Path, help="score this instead of the validation table")
    parser.add_argument("--config", default="sst2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--random", choices=["yes", "no"], default="yes")
    parser.add_argument("--work", type=Path, default=Path("runs/sst2"))
    parser.add_argument("--output", type=Path, default=RESULTS / "finetune.jsonl")
    args = parser.parse_args()
    if args.validation is None:
        args.train, args.validation = split(args.train, args.work)
    run(args, "pretrained")
    if args.random == "yes":
        run(args, "random")


if __name__ == "__main__":
    main()
