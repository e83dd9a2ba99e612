"""Fine-tune and score one encoder on every set of a suite, each seed once.

What a folder of results holds: `suite.json` and `suite.md`; and of each set `set.json` (what was
asked for), `data/` (the tables as they were cut) and `seed_N/` (the run, with its `score.json`).
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlm.checkpoint import read_folder
from mlm.config_files import shortened
from mlm.errors import RunError, UserError, look_up
from mlm.files import remove_folder
from mlm.memory import keep_freed_memory
from mlm.training.logging import say
from mlm.training.precision import PRECISIONS, resolve_device
from mlm.weights import digest
from tasks.finetuning import finetune
from tasks.inference import Predictor
from tasks.reporting.text import as_json, write_json
from tasks.rows import Rows
from tasks.suite.checks import check_set
from tasks.suite.data import count_rows, cut, keep, kept, read_sources
from tasks.suite.plan import Suite, SuiteSet
from tasks.suite.report import as_markdown, summarise, write_report

# How often a run is saved decides nothing, but where it goes back to what was saved.
_OF_SAVING = ("settings.checkpoint.every_n_steps", "settings.checkpoint.keep")


@dataclass(frozen=True)
class SuiteOptions:
    """What is asked of a suite's run."""

    model: str
    """The encoder: a model folder, or a name on the Hub."""
    output: Path
    """The folder of results."""
    data_dir: Path = Path()
    """What paths of tables are relative to."""
    seeds: int = 1
    """Seeds 0, 1, … a set."""
    resume: str = "never"
    """`auto` goes on with what ``output`` holds; `never` wants it empty."""
    precision: str = "fp32"
    """Of scoring; training has its own, among its settings."""
    keep_models: bool = False
    """Whether the fine-tuned models stay when they are scored."""


def evaluate_suite(
    suite: Suite, chosen: list[SuiteSet], options: SuiteOptions
) -> Iterator[dict[str, Any]]:
    """Run ``chosen``; what each set reached comes as soon as it is known (see `report.summarise`).

    The report holds every set of the suite that ``output`` has results of.

    Raises:
        UserError: a mistake in any set or its tables, or results of other settings in ``output``;
            before anything is trained.
        RunError: some sets failed; the others are done.
    """
    keep_freed_memory()
    output, failed = options.output, dict[str, str]()
    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds}: give 1 or more")
    look_up(PRECISIONS, options.precision, "--precision")
    if (
        options.resume == "never"
        and output.exists()
        and (output.is_file() or any(output.iterdir()))
    ):
        raise UserError(
            f"{output}: is not empty; choose another --output, or go on with --resume auto"
        )
    encoder = read_folder(options.model)
    about = {"suite": suite.name, "model": options.model, "seeds": options.seeds}
    weights = digest(encoder.state)
    common = {"weights": weights, "precision": options.precision}
    asked = {entry.name: common | entry.identity() for entry in suite.sets}
    for entry in suite.sets:
        # The report has every set with scores.
        if entry in chosen or any((output / entry.name).glob("seed_*/score.json")):
            _refuse_other(output / entry.name, asked[entry.name])
    metrics = {}
    for entry in chosen:
        metrics[entry.name] = check_set(entry, encoder.config, options.data_dir)
        say(f"{entry.name}: checked, to be scored by {metrics[entry.name]}")
    del encoder
    for entry in chosen:
        folder, metric = output / entry.name, metrics[entry.name]
        try:
            _prepare(entry, folder, {**asked[entry.name], "scored_by": metric}, options)
            for seed in range(options.seeds):
                _run_seed(entry, metric, folder, seed, options)
        except Exception as error:  # whatever ends one set, the others go on
            if not isinstance(error, UserError | RunError):
                traceback.print_exc(file=sys.stderr)
            text = " ".join(f"{error}".split()) or type(error).__name__
            failed[entry.name] = shortened(text)
            say(f"{entry.name}: failed: {text}; going on with the next set")
        gc.collect()
        lines = _lines(suite, options, failed)
        write_report(output, about, lines)
        yield next(line for line in lines if line["set"] == entry.name)
    print(as_markdown(_lines(suite, options, failed)), file=sys.stderr)
    if failed:
        raise RunError(
            f"{len(failed)} of {len(chosen)} sets failed: {', '.join(failed)} (see "
            f"{output / 'suite.md'}); once mended, go on with --resume auto"
        )


def _prepare(
    entry: SuiteSet, folder: Path, asked: Mapping[str, Any], options: SuiteOptions
) -> None:
    """Lay out a set's folder: its tables, and then what they are of."""
    if not (folder / "set.json").is_file():
        keep(folder / "data", cut(entry, read_sources(entry, options.data_dir)))
        write_json(folder / "set.json", asked)


def _refuse_other(folder: Path, asked: Mapping[str, Any]) -> None:
    """Refuse to mix results of one set by two protocols or of two encoders."""
    found = {k: v for k, v in _read(folder).items() if k != "scored_by"}
    if not found:
        return
    before, now = dict(_flat(found)), dict(_flat(json.loads(as_json(dict(asked)))))
    before.setdefault("precision", now["precision"])  # older results do not say
    ignored = _OF_SAVING if now["settings.on_spike"] == "record" else ()
    keys = [key for key in {**before, **now} if key not in ignored]
    differ = [key for key in keys if before.get(key) != now.get(key)]
    if differ:
        raise UserError(
            f"{folder}: holds results with another {' and '.join(differ[:3])}; choose another "
            "--output, or take that folder away"
        )


def _run_seed(entry: SuiteSet, metric: str, folder: Path, seed: int, options: SuiteOptions) -> None:
    """Fine-tune with one seed and score the test table, unless that is done."""
    run, data = folder / f"seed_{seed}", folder / "data"
    if (run / "score.json").is_file():
        say(f"{entry.name}: seed {seed} is finished")
        return
    settings = entry.settings
    model, checkpoint = settings["model"] | {"path": options.model}, settings["checkpoint"]
    monitor = (checkpoint["monitor"] or metric).removeprefix("val/")
    trained = finetune(
        settings
        | {
            "train": str(kept(data, "train")),
            "validation": str(kept(data, "validation")),
            "run_dir": str(run),
            "seed": seed,
            "seeds": 1,
            "resume": "auto",
            "model": model,
            "checkpoint": checkpoint | {"monitor": monitor},
        }
    )
    begin = time.perf_counter()
    scores = _score(run / "model", Rows.read(kept(data, "test")), entry, options)
    write_json(
        run / "score.json",
        {
            "seed": seed,
            "seconds": trained["seconds"],
            "scoring_seconds": time.perf_counter() - begin,
            "validation": trained[monitor],
            "scores": scores,
        },
    )
    for done in ("checkpoints", "before_cooldown", *(() if options.keep_models else ("model",))):
        if (run / done).is_dir():
            remove_folder(run / done)


def _score(model: Path, rows: Rows, entry: SuiteSet, options: SuiteOptions) -> dict[str, float]:
    device = resolve_device(entry.settings["trainer"]["accelerator"])
    predictor = Predictor.from_pretrained(model, device, options.precision, entry.task)
    for line in predictor.task.remarks(rows):
        say(f"warning: {line}")
    return predictor.evaluate(predictor.task.examples(rows, predictor.tokenizer))


def _lines(suite: Suite, options: SuiteOptions, failed: Mapping[str, str]) -> list[dict[str, Any]]:
    """The report's lines, from what the folder of results holds, in the suite's order."""
    lines = []
    for entry in suite.sets:
        folder = options.output / entry.name
        error = {"error": failed[entry.name]} if entry.name in failed else {}
        paths = [folder / f"seed_{seed}" / "score.json" for seed in range(options.seeds)]
        runs = [json.loads(p.read_text(encoding="utf-8")) for p in paths if p.is_file()]
        if runs and (known := _read(folder)):
            metric = known["scored_by"]
            for run in runs:
                run["scores"] = {k: math.nan if v is None else v for k, v in run["scores"].items()}
            rows = count_rows(folder / "data")
            lines.append(summarise(entry.name, entry.task, metric, rows, runs) | error)
        elif error:
            lines.append({"set": entry.name, "task": entry.task, **error})
    return lines


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "set.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
