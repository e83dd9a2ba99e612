"""``mlm plan``: what size, batch, rate and loss a time of training comes to on this machine."""

from __future__ import annotations

import json
from typing import Any

import jsonargparse


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """The options of ``mlm plan``."""
    add = parser.add_argument
    add("--store", type=str, required=True, metavar="STORE", help="what `mlm prepare` wrote")
    add("--budget", type=str, required=True, metavar="30min|1h", help="the time to be planned")
    add("--probe", type=float, default=60.0, metavar="SECONDS", help="to measure for, in all")
    add("--output", type=str, default=None, metavar="FILE", help="the YAML file to write")
    add("--accelerator", type=str, default="auto", help="cpu, gpu (cuda) or auto")


def run(args: jsonargparse.Namespace) -> None:
    """Measure, say what each size would come to, and print the best as JSON."""
    from dataclasses import asdict

    import torch

    from mlm.console import duration, say
    from mlm.data.store import TokenStore
    from mlm.errors import UserError, look_up
    from mlm.files import check_writable
    from mlm.memory import keep_freed_memory
    from mlm.planning import MEASURED, fit, largest_error, plans
    from mlm.training.budget import parse_budget
    from mlm.training.precision import resolve_precision

    keep_freed_memory()
    budget = parse_budget(args.budget)
    if budget.unit != "seconds":
        raise UserError(f"--budget: {args.budget} is no time; plan wants one, as in 30min or 1h")
    if not 0 < args.probe <= 3600:
        raise UserError(f"--probe: {args.probe} must lie above 0, and be at most 3600")
    has_cuda = torch.cuda.is_available()
    kinds = {"auto": "cuda" if has_cuda else "cpu", "cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}
    device = look_up(kinds, args.accelerator, "--accelerator")
    if device == "cuda" and not has_cuda:
        raise UserError(f"--accelerator: {args.accelerator} is not here; choose cpu, or auto")
    bf16 = resolve_precision("auto", device).startswith("bf16")
    if args.output is not None:
        check_writable(args.output)
    store = TokenStore.open(args.store)
    found = []
    for one in plans(store, budget.amount, args.probe, device, bf16):
        found.append(one)
        say(
            f"{one.size:<6}  {one.tokens_per_second:>11,.0f} tokens/s  {one.tokens / 1e6:>9,.1f} M "
            f"tokens  {one.steps:>6,} steps of {one.batch_size} rows  loss {one.loss:.2f}"
        )
    if not found:
        raise UserError(f"--accelerator: not even the smallest size fits in the memory of {device}")
    best = min(found, key=lambda one: one.loss)
    law = fit()
    passes = best.tokens / store.split("train").num_tokens
    say(
        f"{best.size}: {passes:.1f} passes over {args.store} in {duration(budget.amount)}. The "
        f"loss follows a law fitted to {len(MEASURED)} runs of two sizes on English text, "
        f"{largest_error(law):.2f} off at most; yours may differ by half a nat. See mlm/planning.py"
    )
    if args.output is not None:
        write(args.output, args.budget, args.store, device, best)
    print(json.dumps({**asdict(best), "passes": passes}))


def write(output: str, budget: str, store: str, device: str, best: object) -> None:
    """The proposal as a file for `mlm pretrain --config`."""
    from mlm.config_files import to_yaml
    from mlm.files import atomic_file
    from mlm.planning import ACTIVATION, Plan

    assert isinstance(best, Plan)
    settings: dict[str, Any] = {
        "budget": budget,
        "model": {"family": "modern", "size": best.size, "activation": ACTIVATION},
        "data": {"sequence_length": 128, "batch_size": best.batch_size},
        "optimizer": {"name": "muon", "lr": round(best.lr, 6)},
        "on_oom": "split",  # measured with fewer rows
    }
    if device == "cuda":
        settings["compile"] = True
    head = (
        "# By `mlm plan`, as measured on one machine.\n#\n"
        f"# command:  mlm pretrain --config {output} --store {store} --run_dir runs/planned\n"
        f"# time:     {budget}\n"
        f"# expected: validation loss {best.loss:.2f} ({best.steps:,} steps, "
        f"{best.tokens / 1e6:.1f} M tokens), by a law fitted to runs on English text that was\n"
        "#           read a few times; see mlm/planning.py\n"
    )
    with atomic_file(output) as draft:
        draft.write_text(head + to_yaml(settings), encoding="utf-8")
