"""``mlm fill-mask``: the likeliest tokens for each mask in a text."""

from __future__ import annotations

import json

import jsonargparse

from mlm.arguments import add_model_path
from mlm.errors import UserError


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """The options of ``mlm fill-mask``."""
    add_model_path(parser, "a pretrained model's folder, such as RUN_DIR/model")
    add = parser.add_argument
    add("texts", type=str, nargs="+", metavar="TEXT", help='such as "The [MASK] sat."')
    add("--top_k", type=int, default=5, help="tokens for each mask")


def run(args: jsonargparse.Namespace) -> None:
    """Print one JSON object a text, in their order."""
    from mlm.data.tokenizer import special_ids
    from mlm.inference import FillMask

    fill = FillMask(args.model.path)
    answers = fill(args.texts, args.top_k)
    for number, answer in enumerate(answers, start=1):
        if not answer["masks"]:
            mask = fill.tokenizer.id_to_token(special_ids(fill.tokenizer).mask)
            raise UserError(f"text {number} has no mask; this model's is {mask!r}")
    for answer in answers:
        print(json.dumps(answer, ensure_ascii=False))
