"""``mlm export``: a model folder in other people's formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jsonargparse

from mlm.arguments import add_model_path
from mlm.errors import UserError

if TYPE_CHECKING:
    from mlm.checkpoint import ModelFolder
    from mlm.exporting.onnx import PaddedEncoder


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """The options of ``mlm export``."""
    add_model_path(parser)
    add = parser.add_argument
    add("--format", type=Literal["onnx", "sentence-transformers"], required=True, help="to what")
    add("--output", type=str, required=True, metavar="DIR", help="the folder to write")
    add(
        "--pooling",
        type=Literal["mean", "cls"] | None,
        default=None,
        help="sentence-transformers: of a text's tokens; by default as the model was trained",
    )
    add(
        "--normalize",
        type=bool | None,
        default=None,
        help="sentence-transformers: vectors of length 1; by default as the model was trained",
    )
    add("--int8", type=bool, default=False, help="onnx: also write a model with 8-bit weights")


def run(args: jsonargparse.Namespace) -> None:
    """Write the folder, and print what was found on the way."""
    from mlm.checkpoint import read_folder
    from mlm.exporting.onnx import export_onnx
    from mlm.exporting.sentence_transformers import export_sentence_transformers

    output = Path(args.output)
    if output.exists():
        raise UserError(f"{output}: is there already; choose another --output")
    folder = read_folder(args.model.path)
    found: dict[str, Any] = {"output": str(output)}
    if args.format == "onnx":
        model = _padded(folder)
        found |= export_onnx(model, output, lambda place: _write_beside(folder, place), args.int8)
    else:
        found["class"] = export_sentence_transformers(folder, output, args.pooling, args.normalize)
    print(json.dumps(found))


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
    from mlm.checkpoint import save_tokenizer

    config = folder.config
    save_tokenizer(
        folder.tokenizer, place, config.max_position_embeddings, config.type_vocab_size > 1
    )
    text = (folder.directory / "config.json").read_text(encoding="utf-8")
    (place / "config.json").write_text(text, encoding="utf-8")
