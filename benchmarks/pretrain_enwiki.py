"""How far does 30 minutes of pretraining get on two cores, and what does the curve look like?

    python benchmarks/pretrain_enwiki.py --corpus enwiki/train.txt.xz --work runs/enwiki

Leaves the store, the run and its model under ``--work``, the curve as a picture in
``benchmarks/results/`` and one JSON line beside it.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from common import RESULTS, mlm, record
from matplotlib import pyplot as plt

from mlm.training.metrics_csv import read_metrics


def draw(run: Path, picture: Path) -> None:
    """The training loss, smoothed, and the validation losses over time."""
    rows = read_metrics(run / "metrics.csv")
    minutes_at = {
        int(step): seconds / 60
        for step, seconds in zip(rows["step"], rows["seconds"], strict=True)
        if seconds is not None
    }
    train = [
        (seconds / 60, loss)
        for seconds, loss in zip(rows["seconds"], rows["train/loss"], strict=True)
        if loss is not None
    ]
    validation = [
        (minutes_at[int(step)], loss)
        for step, loss in zip(rows["step"], rows["val/loss"], strict=True)
        if loss is not None and int(step) in minutes_at
    ]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(
        *zip(*train, strict=True),
        color="tab:blue",
        alpha=0.5,
        lw=1,
        label="training, masking 30 to 15 %",
    )
    axes.plot(
        *zip(*validation, strict=True),
        "o-",
        color="tab:orange",
        label="validation, fixed masks at 15 %",
    )
    last_minutes, last_loss = validation[-1]
    axes.annotate(
        f"{last_loss:.3f}", (last_minutes, last_loss), (-10, 12), textcoords="offset points"
    )
    axes.set(
        xlabel="minutes", ylabel="loss (nats per masked token)", title=f"{run.name}: masked-LM loss"
    )
    axes.set_ylim(math.floor(min(loss for _, loss in validation) * 2) / 2, train[0][1])
    axes.grid(alpha=0.3)
    axes.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/enwiki"))
    parser.add_argument("--config", default="mini_cpu")
    parser.add_argument("--budget", default="30min")
    parser.add_argument("--output", type=Path, default=RESULTS / "pretrain_enwiki.jsonl")
    args = parser.parse_args()
    store, run = args.work / "store", args.work / "pretrained"
    mlm("prepare", "--corpus", args.corpus, "--output", store, "--vocab_size", "16384")
    mlm(
        "pretrain",
        "--config",
        args.config,
        "--store",
        store,
        "--run_dir",
        run,
        "--budget",
        args.budget,
    )
    rows = read_metrics(run / "metrics.csv")
    picture = args.output.parent / "pretrain_enwiki.png"
    draw(run, picture)
    last = {name: [v for v in values if v is not None][-1] for name, values in rows.items()}
    speeds = sorted(v for v in rows["tokens_per_second"] if v is not None)
    record(
        args.output,
        benchmark="pretrain_enwiki",
        case=f"{args.config} {args.budget}",
        ours=last["val/loss"],
        unit="nats",
        accuracy=last["val/accuracy"],
        steps=last["step"],
        tokens=last["tokens"],
        seconds=last["seconds"],
        tokens_per_second_median=speeds[len(speeds) // 2],
        data_wait_median=sorted(v for v in rows["data_wait"] if v is not None)[len(speeds) // 2],
        picture=picture.name,
    )


if __name__ == "__main__":
    main()
