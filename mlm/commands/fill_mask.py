"""``mlm fill-mask``: the likeliest tokens for each mask in a text."""

from __future__ import annotations

import json

import jsonargparse

from mlm.arguments import add_model_path


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """The options of ``mlm fill-mask``."""
    add_model_path(parser, "a pretrained model's folder, such as RUN_DIR/model")
    add = parser.add_argument
    add("texts", type=str, nargs="+", metavar="TEXT", help='such as "The [MASK] sat."')
    add("--top_k", type=int, default=5, help="tokens for each mask")


def run(args: jsonargparse.Namespace) -> None:
    """Print one JSON object a text, in their order."""
    from mlm.inference import FillMask

    for answer in FillMask(args.model.path)(args.texts, args.top_k):
        print(json.dumps(answer, ensure_ascii=False))
