"""``mlm pretrain``: masked-language-model pretraining on a token store."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

from mlm.arguments import CommandParser, add_activation_checkpointing, add_model_path, settings


def add_arguments(parser: CommandParser) -> None:
    """The options of ``mlm pretrain``."""
    from mlm.objectives.table import ObjectiveOptions
    from mlm.training.checkpoints import CheckpointOptions
    from mlm.training.compiling import Mode
    from mlm.training.data_options import DataOptions
    from mlm.training.guards import GuardOptions
    from mlm.training.logging import LoggingOptions
    from mlm.training.optimizers import OptimizerOptions
    from mlm.training.probe import ProbeOptions
    from mlm.training.trainer import LIMITS, TRAINER_DEFAULTS
    from mlm.training.trainer_arguments import add_trainer_arguments

    add = parser.add_argument
    add("--store", type=str, required=True, metavar="STORE", help="what `mlm prepare` wrote")
    add("--run_dir", type=str, required=True, metavar="DIR", help="a new folder for this run")
    add(
        "--resume",
        type=str,
        default="never",
        metavar="auto|never|DIR",
        help="auto goes on from the newest checkpoint of run_dir; or the folder of one",
    )
    add(
        "--budget",
        type=str | None,
        default=None,
        metavar="30min|2e9tokens|2000steps",
        help="how long the run is; the schedules follow it",
    )
    add("--seed", type=int, default=0, help="of everything random")
    add(
        "--compile",
        type=bool | Mode,
        default=False,
        help="compile the training step with torch.compile: true, or one of its modes; "
        "reduce-overhead and max-autotune record CUDA graphs",
    )
    add_activation_checkpointing(parser)
    parser.add_class_arguments(GuardOptions)
    parser.add_class_arguments(DataOptions, "data")
    parser.add_class_arguments(ObjectiveOptions, "objective")
    add_model_path(parser, "go on training the encoder of this model folder", required=False)
    _add_encoder_arguments(parser)
    parser.add_class_arguments(OptimizerOptions, "optimizer")
    add_trainer_arguments(parser, {**TRAINER_DEFAULTS, "val_check_interval": 500})
    parser.add_class_arguments(CheckpointOptions, "checkpoint")
    parser.add_class_arguments(ProbeOptions, "probe")
    parser.add_class_arguments(LoggingOptions, "logging")
    parser.add_limits(*LIMITS)


def _add_encoder_arguments(parser: CommandParser) -> None:
    """A preset by family and size, and every field of the encoder on top of it."""
    from docstring_parser import parse_from_object

    from mlm.model.config import FAMILIES, NOT_CHOSEN, SIZES, EncoderConfig

    parser.add_argument("--model.family", default="modern", help=" or ".join(FAMILIES), type=str)
    parser.add_argument("--model.size", default="base", help=", ".join(SIZES), type=str)
    hints = get_type_hints(EncoderConfig)
    help_texts = {p.arg_name: p.description for p in parse_from_object(EncoderConfig).params}
    for field in fields(EncoderConfig):
        if field.name in NOT_CHOSEN:
            continue
        parser.add_argument(
            f"--model.{field.name}",
            type=hints[field.name] | None,
            default=None,
            help=f"{help_texts[field.name]} By default as the preset has it.",
        )


def run(args: Any) -> None:
    """Train, and leave a model folder at ``run_dir/model``."""
    from mlm.training.pretraining import pretrain

    pretrain(settings(args))
