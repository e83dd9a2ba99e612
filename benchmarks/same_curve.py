"""Do one process, two processes and accumulation take the same steps?

    python benchmarks/same_curve.py --store runs/enwiki/store --work runs/same_curve

Trains the same model three times (AdamW, no dropout, fp32) and prints the largest difference of
any step's loss from the single process's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import RESULTS, mlm, record

from mlm.training.metrics_csv import read_metrics

CASES = {
    "one process": [],
    "two gloo processes": ["--trainer.devices", "2", "--trainer.strategy", "ddp"],
    "accumulation 2": ["--trainer.accumulate_grad_batches", "2"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/same_curve"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=Path, default=RESULTS / "same_curve.jsonl")
    args = parser.parse_args()
    common = [
        "pretrain",
        "--config",
        "mini_cpu",
        "--store",
        args.store,
        "--optimizer.name",
        "adamw",
    ]
    common += ["--trainer.accelerator", "cpu", "--trainer.precision", "fp32"]
    common += ["--trainer.max_steps", str(args.steps), "--trainer.log_every_n_steps", "1"]
    common += ["--data.batch_size", "8", "--optimizer.lr", "0.001"]
    curves: dict[str, list[float]] = {}
    for case, words in CASES.items():
        run = args.work / case.replace(" ", "_")
        mlm(*common, *words, "--run_dir", run)
        losses = read_metrics(run / "metrics.csv")["train/loss"]
        curves[case] = [loss for loss in losses if loss is not None]
        assert len(curves[case]) == args.steps
    for case, curve in curves.items():
        reference = curves["one process"]
        largest = max(abs(a - b) for a, b in zip(curve, reference, strict=True))
        record(
            args.output,
            benchmark="same_curve",
            case=f"{case}, {args.steps} steps, from {curve[0]:.3f} to {curve[-1]:.3f}",
            ours=largest,
            unit="nats, largest difference of a step's loss",
        )


if __name__ == "__main__":
    main()
