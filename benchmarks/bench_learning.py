"""Which recipe learns most in equal time on equal data?

    python benchmarks/bench_learning.py --store runs/enwiki/store --seconds 480 --seeds 3 \
        --work runs/learning

Each recipe is `mlm pretrain` with some options changed, or a plain `transformers.Trainer` script
(`peers/pretrain.py`) at one of four learning rates. All recipes of a seed run at once but one at a
time, in turns of some seconds by clocks of their own (`turns.py`), so that a busy machine wrongs
none of them. What is compared is the loss at the fixed 15 % masks of the validation split, as
`mlm evaluate` finds it, so that the peers are scored by the same code on the same masks; and with
`--train sst2/train.parquet --validation sst2/dev.parquet` the accuracy after fine-tuning too, by
which objectives can be compared that leave no masked language model.
"""

from __future__ import annotations

import argparse
import json
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import RESULTS, mlm, record
from turns import Turn, in_turns

from mlm.checkpoint import read_folder
from mlm.training.metrics_csv import read_metrics

PEER = Path(__file__).parent / "peers" / "pretrain.py"
_RATES = ("3e-4", "5e-4", "1e-3", "2e-3")

# name: what is added to `mlm pretrain`; each is the default with one thing changed.
RECIPES: dict[str, str] = {
    "default": "",
    "adamw 1e-3": "--optimizer.name adamw --optimizer.lr 1e-3",
    "adamw 2e-3": "--optimizer.name adamw --optimizer.lr 2e-3",
    "adamw 4e-3": "--optimizer.name adamw --optimizer.lr 4e-3",
    "adamw 8e-3": "--optimizer.name adamw --optimizer.lr 8e-3",
    "stable_adamw 2e-3": "--optimizer.name stable_adamw --optimizer.lr 2e-3",
    "lamb 1e-2": "--optimizer.name lamb --optimizer.lr 1e-2",
    "muon 2e-3": "--optimizer.lr 2e-3",
    "muon 8e-3": "--optimizer.lr 8e-3",
    "heads begin anywhere": "--model.attention_bias false",
    "words begin anywhere": "--objective.start_at_cooccurrences false",
    "the peer's settings": "--model.attention_bias false"
    " --objective.start_at_cooccurrences false --optimizer.name adamw --optimizer.lr 2e-3"
    " --optimizer.betas [0.9,0.999] --optimizer.weight_decay 0.01 --data.batch_size 32"
    " --model.activation gelu"
    " --data.mlm_probability 0.15 --data.mlm_probability_end 0.15",
    "frequencies at first": "--objective.start_at_frequencies true",
    "masks 15 %": "--data.mlm_probability 0.15 --data.mlm_probability_end 0.15",
    "masks 30 %": "--data.mlm_probability 0.3 --data.mlm_probability_end 0.3",
    "whole words": "--data.masking word",
    "spans": "--data.masking span",
    "rare tokens": "--data.mask_rarity 0.5",
    "sentence order": "--objective.name sentence_order",
    "next sentence": "--objective.name next_sentence",
    "causal steps": "--objective.name masked_and_causal",
    "replaced tokens": "--objective.name replaced_tokens",
    "cosine": "--optimizer.schedule cosine",
    "stable, cooldown of 30 %": "--optimizer.schedule wsd",
    "stable, cooldown of 60 %": "--optimizer.schedule wsd --optimizer.cooldown 0.6",
    "one cycle": "--optimizer.schedule one_cycle",
    "batches of 32": "--data.batch_size 32",
    "batches of 128": "--data.batch_size 128",
    "batches from 32 to 128": "--data.batch_size 128 --data.batch_size_start 32",
    "sequences of 64": "--data.sequence_length 64 --data.batch_size 128",
    "sequences from 32": "--data.sequence_length_start 32",
    "bert": "--model.family bert",
    "gelu": "--model.activation gelu",
    "no gates": "--model.feed_forward mlp --model.intermediate_size 1024",
    "learned positions": "--model.position learned",
    "alibi": "--model.position alibi",
    "global attention": "--model.attention [global]",
    "fourier": "--model.attention [fourier] --model.position learned",
    "lstm": "--model.attention [lstm] --model.position none",
}
PEERS: dict[str, tuple[str, str]] = {
    f"transformers {family} {rate}": (family, rate)
    for family in ("modern", "bert")
    for rate in _RATES
}


def start(name: str, place: Path, args: argparse.Namespace, seed: int) -> Turn:
    """One contender, halted, to leave its work in ``place``."""
    place.mkdir(parents=True)
    words: list[Any]
    if name in PEERS:
        family, rate = PEERS[name]
        words = [PEER, "--store", args.store, "--family", family, "--lr", rate, "--size", args.size]
        words += ["--seconds", args.seconds, "--seed", seed, "--output", place / "run"]
    else:
        words = ["-m", "mlm", "pretrain", "--config", "mini_cpu", "--store", args.store]
        words += ["--run_dir", place / "run", "--budget", f"{args.seconds}s", "--seed", seed]
        words += ["--model.size", args.size, "--logging.wandb", "off", *RECIPES[name].split()]
        words += ["--checkpoint.every_n_steps", "null"]
        if args.val_check_interval is not None:  # a closer curve, paid for by the contender
            words += ["--trainer.val_check_interval", args.val_check_interval]
    return Turn(place / "clock", words, place / "log.txt")


def loss_of(model: Path, store: Path, length: int) -> float | None:
    """What `mlm evaluate` says of a model on the store's validation split; None without a head."""
    if read_folder(model).head != "masked_lm":
        return None
    words = ["--model", model, "--data", store, "--data.sequence_length", length]
    return float(json.loads(mlm("evaluate", *words).printed)["loss"])


def accuracy_of(model: Path, place: Path, args: argparse.Namespace, seed: int) -> dict[str, float]:
    """The accuracy in % after fine-tuning, where that is asked for."""
    if args.train is None:
        return {}
    words = ["--config", "sst2", "--model", model, "--train", args.train, "--seed", seed]
    words += ["--validation", args.validation, "--run_dir", place / "tuned", "--logging.wandb=off"]
    printed = mlm("finetune", *words, log=place / "log.txt").printed
    return {"accuracy": 100 * json.loads(printed.splitlines()[-1])["accuracy"]}


def result(name: str, place: Path, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The final loss of a contender, its curve, how much it read, and what it is good for."""
    run = place / "run"
    if name in PEERS:
        snapshots = sorted(run.glob("snapshot_*"), key=lambda path: int(path.name.split("_")[1]))
        last = int(snapshots[-1].name.split("_")[1])
        losses = [loss_of(path, args.store, 128) for path in snapshots]
        shares = [int(path.name.split("_")[1]) / last for path in snapshots]
        curve = [[share * args.seconds, x] for share, x in zip(shares, losses, strict=True)]
        found = json.loads((run / "found.json").read_text())
        more = accuracy_of(snapshots[-1], place, args, seed)
        return {"loss": losses[-1], "curve": curve, **found, **more}
    rows = read_metrics(run / "metrics.csv")
    seconds = {s: t for s, t in zip(rows["step"], rows["seconds"], strict=True) if t is not None}
    pairs = zip(rows["step"], rows["val/loss"], strict=True)
    known = config_of(run / "model")
    return {
        "loss": loss_of(run / "model", args.store, 128),
        "curve": [[seconds[s], x] for s, x in pairs if x is not None and s in seconds],
        "steps": known["steps"],
        "tokens": known["tokens"],
        **accuracy_of(run / "model", place, args, seed),
    }


def config_of(model: Path) -> dict[str, Any]:
    """What a model folder says of its training."""
    found: dict[str, Any] = json.loads((model / "config.json").read_text())["mlm"]
    return found


def draw(results: dict[str, list[dict[str, Any]]], picture: Path) -> None:
    """The curves of every recipe, a line a seed."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    for number, (name, runs) in enumerate(results.items()):
        for seed, run in enumerate(runs):
            label = name if seed == 0 else None
            color, style = f"C{number % 10}", ("-", "--", ":")[number // 10 % 3]
            axes.plot(*zip(*run["curve"], strict=True), style, marker=".", color=color, label=label)
    axes.set(xlabel="seconds of its own", ylabel="validation loss, fixed masks at 15 % (nats)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [*RECIPES, *PEERS]
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=every, choices=every, metavar="NAME")
    parser.add_argument("--size", default="mini")
    parser.add_argument("--seconds", type=float, default=480.0, help="of training, each")
    parser.add_argument("--slice", type=float, default=20.0, help="seconds a turn")
    parser.add_argument("--val_check_interval", type=int, help="steps, where not mini_cpu's")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first_seed", type=int, default=0, help="to share them among machines")
    parser.add_argument("--train", type=Path, help="a table to fine-tune on")
    parser.add_argument("--validation", type=Path, help="and one to score it by")
    parser.add_argument("--work", type=Path, default=Path("runs/learning"))
    parser.add_argument("--output", type=Path, default=RESULTS / "learning.jsonl")
    parser.add_argument("--picture", type=Path, help="where not beside the output")
    args = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in args.recipes}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        places = {name: args.work / f"{name.replace(' ', '_')}_{seed}" for name in args.recipes}
        with ExitStack() as stack:
            turns = [stack.enter_context(start(n, p, args, seed)) for n, p in places.items()]
            in_turns(turns, args.slice)
        for name, place in places.items():
            found = result(name, place, args, seed)
            results[name].append(found)
            asked = {"recipe": name, "size": args.size, "seconds": args.seconds, "seed": seed}
            record(args.output, benchmark="learning", **asked, **found)
    draw(results, args.picture or args.output.with_suffix(".png"))
    for what in ("loss", "accuracy"):
        print(f"{'recipe':<34} {what}, mean and deviation of {args.seeds} seeds")
        found = {name: [r[what] for r in runs if r.get(what)] for name, runs in results.items()}
        known = {name: values for name, values in found.items() if values}
        for name, values in sorted(known.items(), key=lambda item: statistics.mean(item[1])):
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            print(f"{name:<34} {statistics.mean(values):.3f}{spread}")


if __name__ == "__main__":
    main()
