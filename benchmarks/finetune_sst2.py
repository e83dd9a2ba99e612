"""What did pretraining bring? Fine-tuning from its model and from random weights, several seeds.

    python benchmarks/finetune_sst2.py --model runs/enwiki/pretrained/model \
        --train sst2/train.parquet --validation sst2/dev.parquet --work runs/sst2

The same script does any other set: ``--config imdb --seeds 1 --random no`` for one run on imdb.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from common import RESULTS, mlm, record


def run(args: argparse.Namespace, start: str) -> None:
    """Fine-tune ``args.seeds`` times from one kind of start, and record each accuracy."""
    folder = args.work / start
    words = ["finetune", "--config", args.config, "--model", args.model, "--run_dir", folder]
    words += ["--train", args.train, "--validation", args.validation, "--seeds", str(args.seeds)]
    _, seconds = mlm(*words, *(["--model.random", "true"] if start == "random" else []))
    seeds = sorted(folder.glob("seed_*")) or [folder]
    accuracies = []
    for seed in seeds:
        printed, _ = mlm(
            "evaluate", "--model", seed / "model", "--data", args.test or args.validation
        )
        accuracies.append(100 * json.loads(printed)["accuracy"])
    record(
        args.output,
        benchmark="finetune",
        case=f"{args.config} from {start}",
        ours=statistics.mean(accuracies),
        spread=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        values=accuracies,
        unit="% accuracy",
        minutes_a_seed=seconds / 60 / args.seeds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--test", type=Path, help="score this instead of the validation table")
    parser.add_argument("--config", default="sst2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--random", choices=["yes", "no"], default="yes")
    parser.add_argument("--work", type=Path, default=Path("runs/sst2"))
    parser.add_argument("--output", type=Path, default=RESULTS / "finetune.jsonl")
    args = parser.parse_args()
    run(args, "pretrained")
    if args.random == "yes":
        run(args, "random")


if __name__ == "__main__":
    main()
