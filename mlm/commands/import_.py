"""``mlm import``: a model that others trained, as a model folder."""

from __future__ import annotations

import json

import jsonargparse


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """The options of ``mlm import``."""
    add = parser.add_argument
    add(
        "--source",
        type=str,
        required=True,
        metavar="FOLDER_OR_NAME",
        help="a folder that transformers saved, or a model's name on the Hugging Face Hub",
    )
    add("--output", type=str, required=True, metavar="MODEL", help="the model folder to write")


def run(args: jsonargparse.Namespace) -> None:
    """Write the folder, and print what it holds."""
    from mlm.importing import import_model

    print(json.dumps(import_model(args.source, args.output), ensure_ascii=False))
