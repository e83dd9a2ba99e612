"""From random weights to a sentiment classifier, against the clock: text in, accuracy out.

    python benchmarks/sst2_from_nothing.py --work runs/hour \
        --corpus imdb/train.parquet imdb_unlabelled/train.txt.xz sst2/train.parquet \
        --train sst2/train.parquet --validation sst2/dev.parquet

Prepares the corpus, pretrains by a shipped configuration for --budget and fine-tunes by `--config
sst2`, one command after another, and records the minutes of all three. Labels are read of the
training table alone; what validation chooses is the best of eight looks at the validation table.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from common import RESULTS, mlm, record

from mlm.training.metrics_csv import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--config", default="mini_cpu", help="of the pretraining")
    parser.add_argument("--budget", default="48min", help="of the pretraining")
    parser.add_argument("--vocab_size", default="16384")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=RESULTS / "sst2_from_nothing.jsonl")
    args, more = parser.parse_known_args()  # the rest goes to `mlm pretrain`
    begin, store, run, tuned = time.monotonic(), *(args.work / n for n in ("store", "run", "sst2"))
    seed = ["--seed", args.seed, "--logging.wandb", "off"]
    mlm("prepare", "--output", store, "--vocab_size", args.vocab_size, "--corpus", *args.corpus)
    pretraining = ["--config", args.config, "--store", store, "--run_dir", run]
    mlm("pretrain", *pretraining, "--budget", args.budget, *seed, *more)
    tables = ["--train", args.train, "--validation", args.validation]
    tables += ["--run_dir", tuned, *seed]
    done = mlm("finetune", "--config", "sst2", "--model", run / "model", *tables)
    minutes = (time.monotonic() - begin) / 60
    losses = [x for x in read_metrics(run / "metrics.csv")["val/loss"] if x is not None]
    looks = [x for x in read_metrics(tuned / "metrics.csv")["val/accuracy"] if x is not None]
    known = json.loads((run / "model" / "config.json").read_text())["mlm"]
    record(
        args.output,
        benchmark="sst2_from_nothing",
        config=args.config,
        budget=args.budget,
        seed=args.seed,
        minutes=minutes,
        pretraining_loss=losses[-1],
        tokens=known["tokens"],
        accuracy=100 * json.loads(done.printed.splitlines()[-1])["accuracy"],
        last=100 * looks[-1],
    )


if __name__ == "__main__":
    main()
