"""Does `mlm prepare` keep up with the bare tokenizer, and what memory does it take?

    python benchmarks/bench_prepare.py --corpus enwiki/train.txt.xz --work runs/prepare

First the whole command, tokenizer training included, with the memory of its processes. Then, in
turns, the command with that tokenizer (reading, tokenising and writing, timed by itself) and
`Tokenizer.encode_batch_fast` on the same text in memory, on all cores, its result thrown away.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import RESULTS, record

from mlm.data.corpus import read_documents
from mlm.data.tokenizer import load_tokenizer

# Documents in one call of the bare tokenizer: all at once would not fit into memory.
BATCH = 1000


def bare(corpus: str, tokenizer: str) -> None:
    """The peer, in a process of its own: print MB/s."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    documents = list(read_documents([corpus]))
    size = sum(len(document.encode()) for document in documents)
    encode = load_tokenizer(tokenizer).encode_batch_fast
    begin = time.perf_counter()
    for start in range(0, len(documents), BATCH):
        encode(documents[start : start + BATCH], add_special_tokens=False)
    print(size / 1e6 / (time.perf_counter() - begin))


def memory_of(process: int) -> list[int]:
    """Resident bytes of a process and of all below it."""
    try:
        status = Path(f"/proc/{process}/status").read_text().splitlines()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    resident = [int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS")]
    return resident + [size for child in children for size in memory_of(int(child))]


def run(*words: str | Path) -> tuple[dict[str, float], float, float]:
    """Run `mlm prepare`: its report, and the peak in MB of its processes' sum and of one."""
    command = [sys.executable, "-m", "mlm", "prepare", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak_sum = peak_one = 0
    while process.poll() is None:
        sizes = memory_of(process.pid)
        peak_sum, peak_one = max(peak_sum, sum(sizes)), max(peak_one, *sizes, 0)
        time.sleep(0.02)
    printed, _ = process.communicate()
    if process.returncode:
        sys.exit(process.returncode)
    return json.loads(printed), peak_sum / 1e6, peak_one / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/prepare"))
    parser.add_argument("--vocab_size", type=int, default=16_384)
    parser.add_argument("--tokenizer_kind", default="wordpiece")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "prepare.jsonl")
    args = parser.parse_args()
    case = f"{Path(args.corpus).parent.name}, {args.tokenizer_kind} {args.vocab_size}"
    shutil.rmtree(args.work, ignore_errors=True)
    store, again = args.work / "store", args.work / "again"

    words = ["--vocab_size", args.vocab_size, "--tokenizer_kind", args.tokenizer_kind]
    report, peak_sum, peak_one = run("--corpus", args.corpus, "--output", store, *words)
    ours, peer = [], []
    for _ in range(args.repeats):
        tokenizer = store / "tokenizer"
        command = [sys.executable, __file__, "--bare", args.corpus, tokenizer]
        peer.append(float(subprocess.check_output(list(map(str, command)))))
        shutil.rmtree(again, ignore_errors=True)
        once, *_ = run("--corpus", args.corpus, "--output", again, "--tokenizer", tokenizer)
        ours.append(once["megabytes_per_second"])

    rows = [
        ("tokenising, reading and writing", statistics.median(ours), "MB/s"),
        ("bare encode_batch_fast", statistics.median(peer), "MB/s"),
        ("the whole command, training included", report["seconds"], "s"),
        ("peak memory, all processes", peak_sum, "MB"),
        ("peak memory, the largest process", peak_one, "MB"),
    ]
    for name, value, unit in rows:
        print(f"{name:<38} {value:>9.1f} {unit}")
    record(
        args.output,
        benchmark="prepare",
        case=case,
        ours=statistics.median(ours),
        peer=statistics.median(peer),
        ratio=statistics.median(a / b for a, b in zip(ours, peer, strict=True)),  # turn by turn
        unit="MB/s",
        values={"ours": ours, "peer": peer},
        whole_command_seconds=report["seconds"],
        peak_megabytes_sum=round(peak_sum),
        peak_megabytes_largest=round(peak_one),
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        bare(*sys.argv[2:])
    else:
        main()
