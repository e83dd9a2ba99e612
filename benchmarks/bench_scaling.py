"""What does size cost? Tokens in the store, sequence length, model size, loader workers, ranks.

    python benchmarks/bench_scaling.py --work runs/scaling --largest 1000

Stores are made up: random tokens in documents of 500, from a million tokens up. For each, a short
`mlm pretrain` of the same steps is run in a process of its own: tokens a second, the seconds until
its first step, and the peak memory that is its own (mapped pages of the store, which the system may
drop at any time, do not count).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from common import RESULTS, record

from mlm.data.store_writer import SplitWriter, new_store
from mlm.data.tokenizer import save_tokenizer, tokenizer_hash, train_tokenizer
from mlm.training.metrics_csv import read_metrics

_DOCUMENT = 500
_PIECE = 1 << 22
_STEPS = 40


def make_store(path: Path, tokens: int) -> Path:
    """A store of ``tokens`` random tokens to train on, and 100,000 held out."""
    if path.is_dir():
        return path
    words = [f"w{number}" for number in range(2000)]
    tokenizer = train_tokenizer([" ".join(words)] * 3, vocab_size=2000)
    size = tokenizer.get_vocab_size()
    draw = np.random.default_rng(0)
    splits = {}
    with new_store(path) as (draft, manifest):
        for name, count in (("train", tokens), ("validation", 100_000)):
            writer = SplitWriter(draft / name, name, np.dtype(np.uint16))
            for start in range(0, count, _PIECE):
                length = min(_PIECE, count - start)
                ids = draw.integers(5, size, length, dtype=np.uint16)
                writer.add(ids, np.append(np.arange(_DOCUMENT, length, _DOCUMENT), length))
            writer.close()
            splits[name] = {"documents": writer.documents, "tokens": writer.tokens}
            splits[name] |= {"characters": 5 * count, "words": count, "unknown": 0}
        save_tokenizer(tokenizer, draft / "tokenizer", 1_000_000, False)
        manifest |= {"vocab_size": size, "tokenizer_hash": tokenizer_hash(tokenizer)}
        manifest["splits"] = splits
    return path


def own_memory(process: int) -> int:
    """Bytes of a process and all below it, mapped files aside; what they share counts once."""
    try:
        status = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    mine = sum(int(line.split()[1]) * 1024 for line in status if line.startswith("Pss_Anon"))
    return mine + sum(own_memory(int(child)) for child in children)


def run(store: Path, run_dir: Path, *words: str) -> dict[str, float]:
    """A short `mlm pretrain`: tokens a second, seconds in all, and its own memory in MB."""
    command = [sys.executable, "-m", "mlm", "pretrain", "--config", "mini_cpu", "--store", store]
    command += ["--run_dir", run_dir, "--budget", f"{_STEPS}steps"]
    command += ["--checkpoint.every_n_steps", "null", "--trainer.log_every_n_steps", "5"]
    command += ["--trainer.limit_val_batches", "1", *words]
    begin, peak = time.perf_counter(), 0
    log = run_dir.with_suffix(".log").open("w")
    with log, subprocess.Popen([*map(str, command)], stdout=log, stderr=log) as process:
        while process.poll() is None:
            peak = max(peak, own_memory(process.pid))
            time.sleep(0.5)  # looking costs the process time
    if process.returncode:
        raise SystemExit(f"failed: see {log.name}")
    speeds = [x for x in read_metrics(run_dir / "metrics.csv")["tokens_per_second"] if x]
    return {
        "tokens_per_second": statistics.median(speeds[2:]),
        "seconds": time.perf_counter() - begin,
        "megabytes": peak / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smallest", type=float, default=1e6, help="tokens")
    parser.add_argument("--largest", type=int, default=1000, help="times that")
    parser.add_argument(
        "--kinds", nargs="+", default=["store", "length", "size", "workers", "ranks"]
    )
    parser.add_argument("--work", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling.jsonl")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    smallest = int(args.smallest)
    stores = {
        f"store x{times:,}": (make_store(args.work / f"store_{times}", smallest * times), ())
        for times in (1, 10, 100, 1000, 10_000)
        if times <= args.largest
    }
    first = args.work / "store_1"
    cases: dict[str, tuple[Path, tuple[str, ...]]] = {
        **stores,
        **{
            f"length {length}": (
                first,
                ("--data.sequence_length", str(length), "--data.batch_size", str(4096 // length)),
            )
            for length in (64, 128, 512, 1024)
        },
        **{f"size {s}": (first, ("--model.size", s)) for s in ("tiny", "mini", "small", "base")},
        **{f"workers {n}": (first, ("--data.num_workers", str(n))) for n in (0, 1, 2)},
        "ranks 1": (first, ("--trainer.devices", "1")),
        "ranks 2": (first, ("--trainer.devices", "2", "--trainer.strategy", "ddp")),
    }
    cases = {case: what for case, what in cases.items() if case.split()[0] in args.kinds}
    for number, (case, (store, words)) in enumerate(cases.items()):
        found = run(store, args.work / f"run_{number}_{int(time.time())}", *words)
        record(
            args.output,
            benchmark="scaling",
            case=case,
            ours=found["tokens_per_second"],
            unit="tokens/s",
            **{k: v for k, v in found.items() if k != "tokens_per_second"},
        )


if __name__ == "__main__":
    main()
