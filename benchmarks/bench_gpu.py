"""All that a machine with one CUDA GPU can answer within ten minutes, without a network.

    python benchmarks/bench_gpu.py

Wants torch, NumPy and this repository; with transformers installed its models step beside ours. For
each case: tokens a second, the share of the GPU's bf16 peak (MFU), and the largest memory; before
them the paths of attention, of the loss over the vocabulary, and the optimizers. Results are
written as they come, as one JSON object. `--try` runs the same in miniature on any machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_pretrain_step import Case, in_turns, names, speed
from common import RESULTS, machine, median_ratio, versions
from torch import Tensor
from torch.nn import functional as F

from mlm.model.attention import BACKENDS, attend
from mlm.model.heads import MaskedLanguageModel
from mlm.model.layout import Layout
from mlm.objectives.cross_entropy import projected_cross_entropy
from mlm.training.optimizers import OPTIMIZERS, OptimizerOptions, build_optimizer

# The most wanted first: what does not fit into the time is left out, and said so.
CASES = [
    Case("bert", "base", 512, 128, "cuda", compile=True),
    Case("modern", "base", 1024, 64, "cuda", compile=True),
    Case("modern", "large", 512, 128, "cuda", compile=True),
    Case("bert", "base", 512, 256, "cuda", compile=True),
    Case("modern", "base", 1024, 128, "cuda", compile=True),
    Case("bert", "base", 512, 128, "cuda"),
    Case("modern", "base", 8192, 4, "cuda", compile=True),
    Case("modern", "base", 8192, 4, "cuda", compile=True, all_global=True),
    Case("bert", "base", 512, 128, "cuda", compile="reduce-overhead"),
    Case("modern", "large", 8192, 4, "cuda", compile=True, recompute=True),
    Case("bert", "base", 128, 512, "cuda", compile=True),
]
MINIATURE = [
    Case("bert", "tiny", 32, 4),
    Case("modern", "tiny", 64, 2, recompute=True),
    Case("modern", "tiny", 256, 1, all_global=True),
]
# Only these are timed beside the peers too: each side takes a minute to compile.
BESIDE = 2


def measure(case: Case, which: list[str], steps: int) -> dict[str, Any]:
    """Speed, MFU and memory of the sides of a case."""
    torch.compiler.reset()
    if case.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    seconds = in_turns(case, which, steps)
    peak = seconds.pop("peak")
    found: dict[str, Any] = {"case": case.name, "seconds": time.perf_counter() - begin}
    for name, each in seconds.items():
        found[name] = dict(zip(("tokens_per_second", "mfu"), speed(case, each, peak), strict=True))
        if name != "ours":
            found[name]["ratio"] = median_ratio(seconds["ours"], each)
    if case.device == "cuda":
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def milliseconds(run: Callable[[], Any], device: str, rounds: int = 10) -> float | str:
    """The median of some rounds after two, or what went wrong."""
    times = []
    try:
        for _ in range(rounds):
            begin = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - begin))
    except (RuntimeError, ImportError) as error:  # not on this device, or out of memory
        return str(error).splitlines()[0][:100]
    return statistics.median(times[2:])


def attention_paths(device: str, length: int, tokens: int) -> dict[str, Any]:
    """Milliseconds of attention, forward and backward, by each path that runs on the device."""
    cu_seqlens = torch.arange(0, tokens + 1, length, dtype=torch.int32, device=device)
    found: dict[str, Any] = {"case": f"attention, {tokens // length} x {length}, 12 heads of 64"}
    shape = (tokens, 3, 12, 64)
    qkv = torch.randn(shape, dtype=torch.bfloat16, device=device, requires_grad=True)

    def run(backend: str, window: int | None) -> None:
        layout = Layout(cu_seqlens, length, tokens, backend)
        attend(qkv, layout, window).sum().backward()

    for backend in [name for name in BACKENDS if name != "reference"]:
        for window in (None, 64):
            found[f"{backend}, window {window}"] = milliseconds(
                partial(run, backend, window), device
            )
    return found


def losses(device: str, positions: int, width: int, vocabulary: int) -> dict[str, Any]:
    """Milliseconds and memory of the projection to the vocabulary and its loss, with gradients."""
    hidden = torch.randn(positions, width, device=device, requires_grad=True)
    weight = torch.randn(vocabulary, width, device=device, requires_grad=True)
    labels = torch.randint(0, vocabulary, (positions,), device=device)
    plain = partial(F.cross_entropy, reduction="sum")
    paths: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: plain(F.linear(hidden, weight).float(), labels),
        "in pieces": lambda: projected_cross_entropy(hidden, weight, None, labels),
    }
    if device == "cuda":
        paths["plain, compiled"] = torch.compile(paths["plain"])

    def run(loss: Callable[[], Tensor]) -> None:
        with torch.autocast(device, torch.bfloat16):
            total = loss()
        torch.autograd.grad(total, [hidden, weight])

    found: dict[str, Any] = {"case": f"loss, {positions} x {width} x {vocabulary}, bf16"}
    for name, loss in paths.items():
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found[name] = milliseconds(partial(run, loss), device)
        if device == "cuda":
            found[f"{name}, peak GB"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def optimizers(device: str, size: str) -> dict[str, Any]:
    """Milliseconds of a step of each optimizer for *modern* of a size."""
    found: dict[str, Any] = {"case": f"optimizers, modern {size}"}
    for name in OPTIMIZERS:
        model = MaskedLanguageModel(Case("modern", size, 512, 1).config).to(device)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        found[name] = milliseconds(build_optimizer(model, OptimizerOptions(name)).step, device)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--limit", type=float, default=540, help="seconds; no case begins later")
    parser.add_argument("--try", dest="trial", action="store_true", help="tiny models, any device")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    args = parser.parse_args()
    if not args.trial and not torch.cuda.is_available():
        raise SystemExit("no CUDA device was found; --try runs in miniature without one")
    begin, device = time.perf_counter(), "cpu" if args.trial else "cuda"
    results: list[dict[str, Any]] = []
    whole = {"benchmark": "gpu", "machine": machine(), "versions": versions(), "results": results}
    args.output.parent.mkdir(parents=True, exist_ok=True)

    def keep(found: dict[str, Any]) -> None:
        print(json.dumps(found), flush=True)
        results.append(found)
        args.output.write_text(json.dumps(whole, indent=2) + "\n")

    keep(attention_paths(device, *((64, 256) if args.trial else (512, 65_536))))
    keep(losses(device, *((64, 32, 500) if args.trial else (9_830, 768, 30_522))))
    keep(optimizers(device, "tiny" if args.trial else "base"))
    peers = importlib.util.find_spec("transformers") is not None
    for number, case in enumerate(MINIATURE if args.trial else CASES):
        if time.perf_counter() - begin > args.limit:
            keep({"case": case.name, "left out": "no time"})
            continue
        which = names(case.family) if peers and number < BESIDE else ["ours"]
        try:
            keep(measure(case, which, args.steps))
        except torch.OutOfMemoryError as error:
            keep({"case": case.name, "error": str(error).splitlines()[0]})


if __name__ == "__main__":
    main()
