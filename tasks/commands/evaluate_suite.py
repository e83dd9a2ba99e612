"""``mlm evaluate-suite``: one encoder on many sets, by one fixed protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlm.arguments import CommandParser, add_model_path, settings
from mlm.config_files import Setting, find_config

if TYPE_CHECKING:
    from tasks.suite.plan import FineTuneOptions, Suite


def add_arguments(parser: CommandParser) -> None:
    """The options of ``mlm evaluate-suite``."""
    add_model_path(parser, "the encoder: a model folder, or a model's name on the Hub")
    add = parser.add_argument
    add(
        "--suite",
        type=str,
        required=True,
        metavar="FILE|NAME",
        help="a YAML file of sets and settings, or the name of a shipped one",
    )
    add("--output", type=str, required=True, metavar="DIR", help="a new folder for the results")
    add(
        "--data_dir",
        type=str,
        default=".",
        metavar="FOLDER",
        help="what the suite's paths are relative to",
    )
    add("--seeds", type=int, default=1, metavar="N", help="train with N seeds a set, from 0 on")
    add("--only", nargs="+", type=str, default=None, metavar="NAME", help="these sets alone")
    add(
        "--resume",
        type=Literal["auto", "never"],
        default="never",
        help="auto goes on with what --output holds; what is finished is not trained again",
    )
    add("--precision", type=str, default="fp32", help="of scoring: auto, fp32, bf16 or fp16")
    add(
        "--keep_models",
        type=bool,
        default=False,
        help="keep each fine-tuned model, rather than its scores and metrics alone",
    )


def run(args: Any) -> None:
    """Write `suite.json` and `suite.md`, and print a line of JSON a set."""
    from tasks.reporting.text import as_json
    from tasks.suite.plan import choose_sets
    from tasks.suite.run import SuiteOptions, evaluate_suite

    suite = find_suite(args.suite)
    options = SuiteOptions(
        model=args.model.path,
        output=Path(args.output),
        data_dir=Path(args.data_dir),
        seeds=args.seeds,
        resume=args.resume,
        precision=args.precision,
        keep_models=args.keep_models,
    )
    for line in evaluate_suite(suite, choose_sets(suite, args.only), options):
        print(as_json(line), flush=True)


def find_suite(name: str) -> Suite:
    """The suite in a file, or the shipped one of that name.

    Raises:
        UserError: no such file, or a mistake in it.
    """
    from tasks.suite.plan import read_suite

    return read_suite(find_config(name, "suites", option="--suite"), _fine_tune_options())


def _fine_tune_options() -> FineTuneOptions:
    """What `mlm finetune` takes, on one device where nobody says more."""
    from tasks.commands import finetune
    from tasks.suite.plan import FineTuneOptions

    parser = CommandParser("finetune", "")
    finetune.add_arguments(parser)
    parser.set_defaults({"trainer.devices": 1})
    # What a suite fills in itself, run by run.
    filled = [word for name in ("train", "validation", "run_dir") for word in (f"--{name}", "-")]

    def parse(given: Mapping[str, Setting], task: str) -> dict[str, Any]:
        return settings(parser.parse([*filled, "--model=-", f"--task={task}"], given))

    return FineTuneOptions(parser.known(), parser.limits, parse)
