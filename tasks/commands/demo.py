"""``mlm demo``: the whole path on data that comes with Python and with this package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mlm.arguments import CommandParser


def add_arguments(parser: CommandParser) -> None:
    """The options of ``mlm demo``."""
    add = parser.add_argument
    add(
        "--output",
        type=str,
        default="runs/demo",
        metavar="DIR",
        help="where everything goes; an earlier demo there is replaced",
    )
    add(
        "--budget",
        type=str,
        default="150s",
        metavar="150s|500steps",
        help="how long pretraining takes; the rest takes about a minute and a half",
    )
    add("--seeds", type=int, default=3, help="how often the classifier is trained")


def run(args: Any) -> None:
    """Run the demo; it says on standard output what it does and what came of it."""
    start = time.monotonic()
    # What follows takes seconds to import; nobody should look at an empty screen.
    print("An encoder and a classifier from nothing: about four minutes on two cores.", flush=True)
    from tasks.demo.run import demo

    demo(Path(args.output), args.budget, args.seeds, start)
