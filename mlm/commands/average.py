"""``mlm average``: several models to the mean of their weights."""

from __future__ import annotations

import json

import jsonargparse


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """The options of ``mlm average``."""
    add = parser.add_argument
    add(
        "--models",
        type=str,
        nargs="+",
        required=True,
        metavar="MODEL",
        help="model folders of one kind: late checkpoints of a run, or runs from one encoder",
    )
    add("--output", type=str, required=True, metavar="MODEL", help="the model folder to write")


def run(args: jsonargparse.Namespace) -> None:
    """Write the folder, and print what it holds."""
    from mlm.averaging import average_models

    print(json.dumps(average_models(args.models, args.output), ensure_ascii=False))
