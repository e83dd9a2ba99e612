"""How far a few labels go: a prompt beside a fresh classifier, on one pretrained model.

    python benchmarks/few_shot.py --model runs/mini/model --data DATA/sst2

For each seed, `--k` balanced training rows and as many to choose by are drawn from
`train.parquet`. Both ways learn from these with each learning rate, the one that validates best is
kept, and all of `dev.parquet` is scored once. The model must have a masked-LM head.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from common import RESULTS, mlm, record

RATES = (1e-4, 3e-4, 1e-3)
QUICK = ("--logging.wandb", "off", "--trainer.devices", 1)
# name: what `mlm finetune` is told; all else is alike.
WAYS = {
    "prompt": ("--task", "prompt_classification"),
    "plain": ("--task", "text_classification"),
}


def draw(table: pa.Table, k: int, seed: int) -> list[pa.Table]:
    """Two tables of ``k`` rows, of each label as many, that have no row in common."""
    generator = random.Random(seed)
    by_label: dict[Any, list[int]] = {}
    for row, label in enumerate(table.column("label").to_pylist()):
        by_label.setdefault(label, []).append(row)
    share = k // len(by_label)
    rows = [generator.sample(found, 2 * share) for found in by_label.values()]
    halves = (slice(None, share), slice(share, None))
    return [table.take([row for found in rows for row in found[half]]) for half in halves]


def fine_tune(way: str, args: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    """The best of the learning rates by validation, and what it reaches on dev."""
    words = [*WAYS[way], "--model", args.model, "--seed", seed, *QUICK]
    words += ["--train", folder / "train.parquet", "--validation", folder / "validation.parquet"]
    words += ["--data.max_length", 128, "--data.batch_size", 8, "--trainer.max_epochs", args.epochs]
    if way == "prompt":
        words += ["--data.pattern", args.pattern, "--data.verbaliser", args.verbaliser]
    tried = []
    for rate in RATES:
        run_dir = folder / f"{way}_{rate}"
        done = mlm("finetune", *words, "--optimizer.lr", rate, "--run_dir", run_dir, log=args.log)
        tried.append({"lr": rate, **json.loads(done.printed)})
    best = max(tried, key=lambda found: (found["accuracy"], -found["loss"]))
    dev = args.data / "dev.parquet"
    scored = mlm("evaluate", "--model", best["model"], "--data", dev, log=args.log)
    accuracy = json.loads(scored.printed)["accuracy"]
    return {"lr": best["lr"], "validation": best["accuracy"], "accuracy": accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a folder of mlm pretrain")
    parser.add_argument("--data", type=Path, required=True, help="train.parquet, dev.parquet")
    parser.add_argument("--k", type=int, default=32, help="labelled rows to learn from")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--pattern", default="{text} It was [MASK].")
    parser.add_argument("--verbaliser", default="{'0': terrible, '1': great}")
    parser.add_argument("--log", type=Path, help="a file for the progress of the runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "few_shot.jsonl")
    args = parser.parse_args()
    table = pq.read_table(args.data / "train.parquet", columns=["text", "label"])
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as place:
        for seed in range(args.seeds):
            folder = Path(place) / str(seed)
            folder.mkdir()
            for name, rows in zip(("train", "validation"), draw(table, args.k, seed), strict=True):
                pq.write_table(rows, folder / f"{name}.parquet")
            for way in WAYS:
                found[way].append({"seed": seed, **fine_tune(way, args, folder, seed)})
                print(way, found[way][-1], flush=True)
    asked = {name: str(getattr(args, name)) for name in ("model", "k", "epochs", "pattern")}
    record(args.output, benchmark="few_shot", **asked, verbaliser=args.verbaliser, runs=found)
    for way, runs in found.items():
        values = [100 * run["accuracy"] for run in runs]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        print(f"{way:8} {statistics.fmean(values):.1f}{spread}  {[round(v, 1) for v in values]}")


if __name__ == "__main__":
    main()
