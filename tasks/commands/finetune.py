"""``mlm finetune``: a task's head on an encoder."""

from __future__ import annotations

from typing import Any, Literal

from mlm.arguments import CommandParser, add_activation_checkpointing, settings
from tasks.options import (
    CheckpointOptions,
    DataOptions,
    LoraOptions,
    LossOptions,
    ModelOptions,
    add_report_precision,
)

# What suits fine-tuning, where pretraining's own default would not.
_OPTIMIZER = {"name": "adamw", "lr": 1e-4, "weight_decay": 0.01, "betas": (0.9, 0.98)}
_SCHEDULE = {"warmup": 0.06}


def add_arguments(parser: CommandParser) -> None:
    """The options of ``mlm finetune``."""
    from mlm.training.guards import GuardOptions
    from mlm.training.logging import LoggingOptions
    from mlm.training.optimizers import OptimizerOptions
    from mlm.training.trainer import LIMITS, TRAINER_DEFAULTS
    from mlm.training.trainer_arguments import add_trainer_arguments

    add = parser.add_argument
    add("--train", type=str, required=True, metavar="FILE", help="the table to learn from")
    add("--validation", type=str, required=True, metavar="FILE", help="the table to choose by")
    add("--run_dir", type=str, required=True, metavar="DIR", help="a new folder for this run")
    add(
        "--task",
        type=str,
        default="text_classification",
        help="text_classification, multi_label_classification, regression, token_classification, "
        "question_answering, sentence_embedding, multiple_choice, prompt_classification, or the "
        "dotted path of your own subclass of Task",
    )
    add("--seed", type=int, default=0, help="of everything random")
    add(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="train with N seeds, from --seed on, in run_dir/seed_…, and keep the best",
    )
    add(
        "--search",
        type=Literal["none", "small"],
        default="none",
        help="small: first train with a third, the whole and three times the learning rate, and "
        "with half the batch too, in run_dir/search; go on with what validates best",
    )
    add(
        "--parallel_seeds",
        type=Literal["auto"] | int,
        default="auto",
        metavar="N|auto",
        help="how many runs to train at once; auto is one a CUDA device, and else in turn",
    )
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
        metavar="30min|2000steps",
        help="how long the run is; the schedules follow it (3 epochs where no limit is given)",
    )
    add(
        "--report",
        type=bool,
        default=True,
        help="write run_dir/report: intervals, baselines, calibration, thresholds and mistakes",
    )
    add_report_precision(parser)
    add_activation_checkpointing(parser)
    parser.add_class_arguments(GuardOptions)
    parser.add_class_arguments(DataOptions, "data")
    parser.add_class_arguments(ModelOptions, "model")
    parser.add_class_arguments(LoraOptions, "lora")
    parser.add_class_arguments(LossOptions, "loss")
    parser.add_class_arguments(OptimizerOptions, "optimizer")
    parser.set_defaults({f"optimizer.{k}": v for k, v in (_OPTIMIZER | _SCHEDULE).items()})
    # Of an interval a float is a share of an epoch, and an integer counts steps.
    add_trainer_arguments(parser, TRAINER_DEFAULTS | {"val_check_interval": 1.0})
    parser.add_class_arguments(CheckpointOptions, "checkpoint")
    parser.add_class_arguments(LoggingOptions, "logging")
    parser.add_limits(*LIMITS)


def run(args: Any) -> None:
    """Train, leave a model folder at ``run_dir/model``, and print its scores as JSON."""
    from tasks.finetuning import finetune
    from tasks.reporting.text import as_json

    if result := finetune(settings(args)):
        print(as_json(result))
