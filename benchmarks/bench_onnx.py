"""How fast is an exported graph in onnxruntime, beside the model in torch?

    python benchmarks/bench_onnx.py --model runs/sst2/model --texts sst2/dev.parquet

Latency at batch 1 and throughput at batch 32, fp32, the two in turns on the same padded batches of
real texts, and ours ragged, as `mlm predict` computes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import torch
from common import RESULTS, mlm, record

from mlm.batch import ragged
from mlm.memory import keep_freed_memory
from tasks.exporting import PaddedClassifier
from tasks.folders import load_task_folder


def milliseconds(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median time of each, called in turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(rounds + 2):  # two to warm up
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            if round_ > 1:
                times[name].append(time.perf_counter() - begin)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a fine-tuned model folder")
    parser.add_argument("--texts", type=Path, required=True, help="a table with a column `text`")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, default=RESULTS / "bench_onnx.jsonl")
    args = parser.parse_args()
    keep_freed_memory()
    model, task, tokenizer = load_task_folder(args.model)
    padded = PaddedClassifier(model, str(task.settings.pooling)).eval()
    texts = pq.read_table(args.texts).column("text").to_pylist()
    encoded = [np.array(e.ids) for e in tokenizer.encode_batch_fast(texts)]
    with tempfile.TemporaryDirectory() as place:
        graph = Path(place, "onnx")
        mlm(
            "export", "--model", args.model, "--format", "onnx", "--int8", "true", "--output", graph
        )
        # Its idle threads would spin, and so slow whoever is measured next.
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        sessions = {
            name: onnxruntime.InferenceSession(graph / file, options)
            for name, file in (("onnx", "model.onnx"), ("onnx int8", "model_int8.onnx"))
        }
        for size in (1, 32):
            run(args, padded, encoded[:size], sessions)


@torch.inference_mode()
def run(args: argparse.Namespace, padded: PaddedClassifier, batch: list, sessions: dict) -> None:
    """One batch by every way."""
    longest = max(map(len, batch))
    ids = np.zeros((len(batch), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    names = [node.name for node in next(iter(sessions.values())).get_inputs()]
    inputs = {name: arrays[name] for name in names}
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}

    def ours() -> torch.Tensor:
        together = ragged(batch)
        hidden = padded.encoder(together)
        return padded.head(hidden, together)

    ways: dict[str, Callable[[], object]] = {
        "torch, ragged": ours,
        "torch, padded": lambda: padded(**tensors),
    }
    for name, session in sessions.items():
        ways[name] = lambda session=session: session.run(None, inputs)
    found = milliseconds(ways, args.rounds)
    for name, value in found.items():
        record(
            args.output,
            benchmark="bench_onnx",
            case=f"{name}, batch {len(batch)}, up to {longest} tokens",
            ours=value,
            unit="ms a batch",
            ratio=found["torch, ragged"] / value,
        )


if __name__ == "__main__":
    main()
