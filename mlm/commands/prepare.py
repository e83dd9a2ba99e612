"""``mlm prepare``: text to a tokenizer and a token store."""

from __future__ import annotations

import json

import jsonargparse

from mlm.arguments import settings


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """The options of ``mlm prepare``."""
    from mlm.data.prepare import PrepareOptions

    parser.add_argument(
        "--corpus",
        type=str,
        nargs="+",
        required=True,
        metavar="PATH",
        help="files and folders of .txt, .jsonl, .csv, .tsv (all also .xz or .gz) and .parquet, "
        "or hub:NAME[:CONFIG[:SPLIT]]",
    )
    parser.add_class_arguments(PrepareOptions, skip={"corpus"})


def run(args: jsonargparse.Namespace) -> None:
    """Make the token store, and print the report."""
    from mlm.data.prepare import PrepareOptions, prepare

    if args.tokenizer is not None:
        from mlm.hub import model_directory

        args.tokenizer = str(model_directory(args.tokenizer, weights=False))
    print(json.dumps(prepare(PrepareOptions(**settings(args)))))
