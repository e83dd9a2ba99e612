"""``mlm export``: a model folder in other people's formats."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jsonargparse

from mlm.arguments import add_data_path, add_model_path, add_vector_arguments
from mlm.errors import UserError

if TYPE_CHECKING:
    from mlm.checkpoint import ModelFolder
    from mlm.exporting.onnx import PaddedEncoder
    from tasks.exporting import Comparison


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """The options of ``mlm export``."""
    add_model_path(parser)
    add = parser.add_argument
    add(
        "--format",
        type=Literal["onnx", "sentence-transformers"] | None,
        default=None,
        help="to what; without it, --push_to_hub uploads the model folder itself",
    )
    add("--output", type=str | None, default=None, metavar="DIR", help="the folder to write")
    add_vector_arguments(parser, "sentence-transformers: ")
    add("--int8", type=bool, default=False, help="onnx: also write a model with 8-bit weights")
    add_data_path(
        parser,
        "onnx: a labelled table, on which the model and each graph of it are scored",
        required=False,
    )
    add(
        "--push_to_hub",
        type=str | None,
        default=None,
        metavar="OWNER/NAME",
        help="upload it to the Hugging Face Hub, with a card of the run",
    )
    add("--license", type=str | None, default=None, help="on the card, in the Hub's words: mit, …")
    add("--private", type=bool, default=False, help="a new repository is private")


def run(args: jsonargparse.Namespace) -> None:
    """Write the folder, upload it where asked, and print what was found on the way."""
    from mlm.checkpoint import read_folder
    from tasks.reporting.text import as_json

    if args.format is None and args.push_to_hub is None:
        raise UserError("say what to export to: --format onnx|sentence-transformers, --push_to_hub")
    if (args.format is None) != (args.output is None):
        raise UserError("--format and --output belong together; give both or neither")
    _refuse_unused(args)
    folder = read_folder(args.model.path)
    found: dict[str, Any] = {}
    directory = folder.directory
    if args.format is not None:
        directory = Path(args.output)
        if directory.exists():
            raise UserError(f"{directory}: is there already; choose another --output")
        found = {"output": str(directory), **_export(args, folder, directory)}
    if args.push_to_hub is not None:
        from mlm.exporting.push import push_to_hub

        found["url"] = push_to_hub(directory, folder, args.push_to_hub, args.license, args.private)
    print(as_json(found))


def _refuse_unused(args: jsonargparse.Namespace) -> None:
    """Refuse options of another format than the one asked for."""
    onnx, vectors = args.format == "onnx", args.format == "sentence-transformers"
    for name, is_given, is_used, where in (
        ("--data", args.data.path is not None, onnx, "--format onnx"),
        ("--int8", args.int8, onnx, "--format onnx"),
        ("--pooling", args.pooling is not None, vectors, "--format sentence-transformers"),
        ("--normalize", args.normalize is not None, vectors, "--format sentence-transformers"),
        ("--license", args.license is not None, args.push_to_hub is not None, "--push_to_hub"),
        ("--private", args.private, args.push_to_hub is not None, "--push_to_hub"),
    ):
        if is_given and not is_used:
            raise UserError(f"{name}: is of {where}; leave it out")


def _export(args: jsonargparse.Namespace, folder: ModelFolder, output: Path) -> dict[str, Any]:
    if args.format == "onnx":
        from mlm.exporting.onnx import export_onnx

        compare = _comparison(folder, args.data.path)  # a bad table is found before the long work
        beside = functools.partial(_write_beside, folder)
        found: dict[str, Any] = {**export_onnx(_padded(folder), output, beside, args.int8)}
        if compare is not None:
            found["scores"] = scores = compare(sorted(output.glob("*.onnx")))
            if args.int8:
                full, small = scores["torch"], scores["model_int8.onnx"]
                found["int8_score_difference"] = {name: small[name] - full[name] for name in full}
        return found
    from mlm.exporting.sentence_transformers import export_sentence_transformers

    name = export_sentence_transformers(folder, output, args.pooling, args.normalize)
    return {"class": name}


def _comparison(folder: ModelFolder, table: str | None) -> Comparison | None:
    if table is None:
        return None
    if folder.head in ("masked_lm", "encoder"):
        raise UserError(
            f"--data: {folder.directory} has no head that a graph could be scored by; leave it out"
        )
    from tasks.exporting import Comparison

    return Comparison(folder.directory, table)


def _padded(folder: ModelFolder) -> PaddedEncoder:
    from mlm.checkpoint import build_encoder, build_masked_lm
    from mlm.exporting.onnx import PaddedEncoder, PaddedMaskedLM

    if folder.head == "masked_lm":
        return PaddedMaskedLM(build_masked_lm(folder)).eval()
    if folder.head == "encoder":
        return PaddedEncoder(build_encoder(folder)).eval()
    from tasks.exporting import PaddedClassifier
    from tasks.folders import load_task_folder

    model, task, _ = load_task_folder(folder.directory)
    return PaddedClassifier(model, str(task.settings.pooling)).eval()


def _write_beside(folder: ModelFolder, place: Path) -> None:
    """The tokenizer, and what config.json says, beside the graph."""
    from mlm.data.tokenizer import save_tokenizer

    config = folder.config
    save_tokenizer(
        folder.tokenizer, place, config.max_position_embeddings, config.type_vocab_size > 1
    )
    text = (folder.directory / "config.json").read_text(encoding="utf-8")
    (place / "config.json").write_text(text, encoding="utf-8")
