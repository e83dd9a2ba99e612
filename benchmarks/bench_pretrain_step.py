"""A pretraining step beside transformers' own: same weights, same tokens, same masks, in turns.

    python benchmarks/bench_pretrain_step.py --families modern bert --sizes mini base --alone

The peers are `BertForMaskedLM` and `ModernBertForMaskedLM`, the latter as shipped and with its own
`sparse_prediction`. All sides have one optimizer (AdamW), one allocator setting and one precision,
and step in turns on the same batches, of full sequences without filler. Before they are timed,
their losses are compared. With `--alone` each side also runs in a process of its own, in turns, as
a user would start it: ours keeps freed memory, as `mlm` does, and the peers' do as the system does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, median_ratio, python, record
from torch import Tensor, nn

from mlm.batch import Batch, ragged
from mlm.memory import keep_freed_memory
from mlm.model.config import SIZES, EncoderConfig, preset
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives import masked_lm
from mlm.training.compiling import Mode, compiled
from mlm.training.flops import flops_per_token, peak_flops

RATE = 0.15
# Tokens a step: enough to fill the machine, few enough for many steps.
TOKENS = {"tiny": 8192, "mini": 8192, "small": 4096, "medium": 4096, "base": 1024, "large": 1024}
VOCABULARY = {"tiny": 16_384, "mini": 16_384, "small": 16_384, "medium": 16_384}
_BATCHES = 4
_WARMUP = 3


@dataclass(frozen=True)
class Case:
    """What is trained, on what, and how."""

    family: str
    size: str
    length: int
    sequences: int
    device: str = "cpu"
    precision: str = "bf16"
    compile: bool | Mode = False
    """All sides, their losses included, by torch.compile; or one of its modes."""
    recompute: bool = False
    """Ours alone, each layer in the backward pass."""
    all_global: bool = False
    """Without local layers; for ours alone."""

    @property
    def name(self) -> str:
        how = [self.precision]
        how += ["compiled"] if self.compile is True else [self.compile] if self.compile else []
        how += ["layers recomputed"] if self.recompute else []
        how += ["all layers global"] if self.all_global else []
        return f"{self.family} {self.size}, {self.sequences} x {self.length}, {', '.join(how)}"

    @property
    def config(self) -> EncoderConfig:
        positions = max(512, self.length)
        vocab_size = VOCABULARY.get(self.size, 30_522)
        config = preset(
            self.family, self.size, vocab_size=vocab_size, max_position_embeddings=positions
        )
        return config.replace(attention=("global",)) if self.all_global else config


class Side:
    """One contender: a model, its optimizer, and its loss of a batch."""

    def __init__(self, model: nn.Module, loss: Callable[[Batch], Tensor], precision: str) -> None:
        self.model, self.loss, self.precision = model, loss, precision
        self.device = next(model.parameters()).device
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(self, batch: Batch) -> float:
        """One training step; the seconds it took."""
        begin = time.perf_counter()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin


def make_batches(case: Case) -> list[Batch]:
    """Random full sequences with masked positions."""
    draw = np.random.default_rng(0)
    batches = []
    for _ in range(_BATCHES):
        ids = draw.integers(5, case.config.vocab_size, (case.sequences, case.length))
        masked = np.sort(draw.choice(ids.size, int(RATE * ids.size), replace=False))
        labels = ids.reshape(-1)[masked].copy()
        ids.reshape(-1)[masked] = case.config.mask_token_id
        batch = replace(
            ragged(list(ids)),
            masked_positions=torch.from_numpy(masked),
            labels=torch.from_numpy(labels),
        )
        batches.append(batch.to(case.device))
    return batches


def our_loss(model: MaskedLanguageModel) -> Callable[[Batch], Tensor]:
    """The mean loss as `mlm pretrain` computes it."""

    def loss(batch: Batch) -> Tensor:
        total, targets, _ = masked_lm.loss(model, batch)
        return total / targets

    return loss


def their_loss(model: Any) -> Callable[[Batch], Tensor]:
    """The loss of a class of transformers, on batches that need no padding."""

    def loss(batch: Batch) -> Tensor:
        assert batch.masked_positions is not None
        assert batch.labels is not None
        shape = (batch.num_sequences, batch.max_seqlen)
        labels = torch.full_like(batch.input_ids, -100)
        labels[batch.masked_positions] = batch.labels
        found: Tensor = model(input_ids=batch.input_ids.view(shape), labels=labels.view(shape)).loss
        return found

    return loss


def names(family: str) -> list[str]:
    """The sides that there are for a family."""
    return ["ours", "transformers", *(["transformers, sparse"] if family == "modern" else [])]


def contenders(case: Case, which: list[str]) -> dict[str, Side]:
    """Sides by name, all from the same weights."""
    torch.manual_seed(0)
    model = MaskedLanguageModel(case.config)
    model.encoder.recompute = case.recompute
    peers = {name: open_peer(model, name) for name in which if name != "ours"}
    sides = {}
    for name in which:
        module, loss = (
            (model, our_loss(model)) if name == "ours" else (peers[name], their_loss(peers[name]))
        )
        module.to(case.device).train()
        sides[name] = Side(module, compiled(loss, case.compile), case.precision)
    return sides


def open_peer(model: MaskedLanguageModel, name: str) -> Any:
    """The model as transformers opens it."""
    from transformers import AutoModelForMaskedLM

    from mlm.checkpoint import save_folder
    from mlm.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["a small vocabulary"], vocab_size=64)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "model")
        state = model.state_dict()
        save_folder(
            folder, config=model.config, head="masked_lm", state=state, tokenizer=tokenizer, info={}
        )
        more = {"sparse_prediction": True} if name.endswith("sparse") else {}
        return AutoModelForMaskedLM.from_pretrained(folder, **more)


def in_turns(case: Case, which: list[str], steps: int) -> dict[str, Any]:
    """Seconds of every step of each side, step by step in turns, and the machine's speed."""
    batches, sides = make_batches(case), contenders(case, which)
    if not case.compile:  # a compiled model would be compiled once more for this
        with torch.inference_mode():
            losses = [float(side.loss(batches[0])) for side in sides.values()]
        assert max(losses) - min(losses) < 1e-3, f"not the same model: {losses}"
    precision = "bf16-mixed" if case.precision == "bf16" else "32-true"
    seconds: dict[str, Any] = {name: [] for name in sides}
    peaks = []
    for number in range(_WARMUP + steps):
        if number % 5 == 0:
            peaks.append(peak_flops(case.device, precision))
        for name, side in sides.items():
            took = side.step(batches[number % _BATCHES])
            if number >= _WARMUP:
                seconds[name].append(took)
    return seconds | {"peak": statistics.median(peaks)}


def each_alone(words: list[str], which: list[str], rounds: int) -> dict[str, Any]:
    """As `in_turns`, each side in a process of its own: medians of each of ``rounds`` rounds."""
    seconds: dict[str, Any] = {name: [] for name in which}
    for _ in range(rounds):
        for name in which:
            found = json.loads(python(__file__, *words, "--only", name).printed)
            seconds[name].append(statistics.median(found[name]))
            seconds["peak"] = found["peak"]
    return seconds


def speed(case: Case, seconds: list[float], peak: float) -> tuple[float, float]:
    """Tokens a second by the median step, and the share of ``peak`` that our arithmetic needs."""
    tokens = case.sequences * case.length / statistics.median(seconds)
    lengths = np.full(case.sequences, case.length)
    return tokens, tokens * flops_per_token(case.config, lengths, RATE) / peak


def report(case: Case, more: str, seconds: dict[str, Any], output: Path) -> None:
    """Record each peer's speed beside ours, or ours alone where there is no peer."""
    peak = seconds.pop("peak")
    ours, mfu = speed(case, seconds["ours"], peak)
    result = {"benchmark": "pretrain_step", "unit": "tokens/s", "ours": ours, "mfu": mfu}
    result["gflops"] = peak / 1e9
    peers = [name for name in seconds if name != "ours"]
    for name in peers:
        ratio = median_ratio(seconds["ours"], seconds[name])
        beside = f"{case.name}{more}, beside {name}"
        peer, _ = speed(case, seconds[name], peak)
        record(output, case=beside, peer=peer, ratio=ratio, **result)
    if not peers:
        record(output, case=f"{case.name}{more}", **result)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", default=["modern", "bert"])
    parser.add_argument("--sizes", nargs="+", default=["mini", "base"], choices=SIZES)
    parser.add_argument("--lengths", nargs="+", type=int, default=[128])
    parser.add_argument("--tokens", type=int, help="a step; by default by size")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--compile", action="store_true", help="all sides, by torch.compile")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--alone", action="store_true", help="also in processes of their own")
    parser.add_argument("--rounds", type=int, default=3, help="of such processes")
    parser.add_argument("--only", help="one side, by name: print the seconds of its steps")
    parser.add_argument("--output", type=Path, default=RESULTS / "pretrain_step.jsonl")
    args = parser.parse_args()
    how = [args.device, args.precision, args.compile]
    if args.only in (None, "ours"):
        keep_freed_memory()
    for family, size, length in itertools.product(args.families, args.sizes, args.lengths):
        tokens = args.tokens or TOKENS[size]
        case = Case(family, size, length, max(1, tokens // length), *how)
        if args.only:
            print(json.dumps(in_turns(case, [args.only], args.steps)))
            continue
        report(case, "", in_turns(case, names(family), args.steps), args.output)
        if args.alone:
            words = ["--families", family, "--sizes", size, "--lengths", str(length)]
            words += ["--tokens", str(tokens), "--device", args.device, "--steps", str(args.steps)]
            words += ["--precision", args.precision, *(["--compile"] if args.compile else [])]
            seconds = each_alone(words, names(family), args.rounds)
            report(case, ", processes of their own", seconds, args.output)


if __name__ == "__main__":
    main()
