"""The peer of `mlm evaluate-suite`: a plain `transformers.Trainer` on the same suite.

    python benchmarks/suite_peer.py --model MODEL --suite benchmarks/suite.yaml --data_dir DATA

It takes the sets of texts and pairs that are classified or given a number, with the rows, learning
rates, epochs, batch sizes and seeds of the suite; AdamW, linear schedule, dynamic padding and bf16
are the Trainer's own. A line of JSON a seed is added to `--output`, and what stands there already,
of the same model, set and settings, is not trained again. Sets that the suite reads in windows are
left out, since the Trainer knows none. The script that trains is `peers/finetune.py`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, python, record

from mlm.hub import model_directory
from tasks.base import find_task
from tasks.commands.evaluate_suite import find_suite
from tasks.rows import find_columns
from tasks.suite.data import cut, keep, kept, read_sources
from tasks.suite.plan import SuiteSet, choose_sets
from tasks.suite.report import as_markdown, summarise

SCRIPT = Path(__file__).parent / "peers" / "finetune.py"
TASKS = ("text_classification", "regression")


def options(entry: SuiteSet, precision: str) -> dict[str, Any]:
    """What the script is told of a set: the suite's settings, by the script's names."""
    settings = entry.settings
    data, trainer, optimizer = settings["data"], settings["trainer"], settings["optimizer"]
    if optimizer["name"] != "adamw":
        raise SystemExit(f"{entry.where}: the Trainer has AdamW alone; the suite has another")
    if settings["budget"] is not None or (trainer["max_epochs"] or 0) < 0:
        raise SystemExit(f"{entry.where}: give its length as trainer.max_epochs or max_steps")
    found: dict[str, Any] = {
        "metric": entry.metric or find_task(entry.task).monitor,
        "lr": optimizer["lr"],
        "batch_size": data["batch_size"],
        "warmup": optimizer["warmup"],
        "weight_decay": optimizer["weight_decay"],
        "epochs": trainer["max_epochs"] or 3,
        "precision": precision,
    }
    if data["max_length"] is not None:
        found["max_length"] = data["max_length"]
    if trainer["max_steps"] > 0:
        found["max_steps"] = trainer["max_steps"]
    return found


def columns(entry: SuiteSet, train: Any) -> list[str]:
    """Where its texts are."""
    given = entry.settings["data"]["text_column"]
    if given is None:
        return list(find_columns(train, find_task(entry.task).columns))
    return [given] if isinstance(given, str) else given


def train(args: argparse.Namespace, entry: SuiteSet, found: list[dict[str, Any]]) -> dict[str, Any]:
    """The table's line of a set, after the seeds that are not in ``found``."""
    told = options(entry, args.precision)
    asked = {"model": args.model, "suite": args.suite, "set": entry.name, "settings": told}
    with tempfile.TemporaryDirectory() as place:
        sources = read_sources(entry, args.data_dir)
        tables = cut(entry, sources)
        keep(Path(place) / "data", tables)
        words = ["--columns", *columns(entry, sources["train"][0])]
        for split in tables:
            words += [f"--{split}", kept(Path(place) / "data", split)]
        for name, value in told.items():
            words += [f"--{name}", value]
        for seed in range(args.seeds):
            if any(line["seed"] == seed and asked.items() <= line.items() for line in found):
                continue
            output = Path(place) / "found.json"
            model = model_directory(args.model)
            python(SCRIPT, "--model", model, "--seed", seed, "--output", output, *words)
            result = json.loads(output.read_text())
            line = {"benchmark": "suite_peer", **asked, **result}
            record(args.output, **line)
            found.append(line)
        rows = {split: table.num_rows for split, table in tables.items()}
    runs = [
        {**line, "scores": {told["metric"]: line["test"]}}
        for seed in range(args.seeds)
        for line in found
        if line["seed"] == seed and asked.items() <= line.items()
    ]
    return summarise(entry.name, entry.task, told["metric"], rows, runs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a folder, or a name on the Hub")
    parser.add_argument("--suite", required=True, help="a YAML file, or a shipped suite's name")
    parser.add_argument("--data_dir", type=Path, default=Path())
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these sets alone")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--output", type=Path, default=RESULTS / "suite_peer.jsonl")
    args = parser.parse_args()
    sets = [entry for entry in choose_sets(find_suite(args.suite), args.only) if fits(entry)]
    lines = args.output.read_text().splitlines() if args.output.is_file() else []
    found = [json.loads(line) for line in lines]
    print(as_markdown([train(args, entry, found) for entry in sets]))


def fits(entry: SuiteSet) -> bool:
    """Whether the script can train on a set; windows are not the Trainer's."""
    return entry.task in TASKS and entry.settings["data"]["long_texts"] != "windows"


if __name__ == "__main__":
    main()
