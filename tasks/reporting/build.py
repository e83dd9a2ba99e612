"""A report: a model's answers to labelled rows, and what its scores are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from tasks.base import Task
from tasks.encoding import Example
from tasks.reporting.kinds import Judged, Reporter
from tasks.reporting.statistics import (
    at_threshold,
    bootstrap,
    calibration_error,
    confidences,
    cross_fitted_error,
    fit_temperature,
    reliability,
    threshold_for,
)

if TYPE_CHECKING:
    from tasks.inference import Predictor

_SHOWN_MISTAKES = 50
_MOST_LABELS = 50


@dataclass(frozen=True)
class Answered:
    """Labelled rows, and what a model made of them."""

    path: str
    inputs: Sequence[Any]
    targets: Sequence[Any]
    examples: Sequence[Example]
    outputs: Sequence[Tensor]
    """Of each example, on the CPU in fp32."""
    metrics: dict[str, Tensor]
    """As `Predictor.compute` gives them."""
    decisions: Sequence[Any]
    """As `Task.decisions` gives them."""

    def scores(self) -> dict[str, float]:
        """The metrics that are one number each."""
        return {name: float(x) for name, x in self.metrics.items() if x.ndim == 0}


def answer(
    predictor: Predictor,
    task: Task,
    path: str,
    examples: Sequence[Example],
    inputs: Sequence[Any],
    targets: Sequence[Any],
) -> Answered:
    """What a model makes of the rows of a table.

    Args:
        predictor: the model.
        task: that made the rest of the table.
        path: the table's.
        examples: labelled, as `Task.examples` gives them.
        inputs: as `Task.inputs` gives them.
        targets: as `Task.targets` gives them.
    """
    metrics, outputs = predictor.compute_and_keep(examples, task)
    decisions = task.decisions(inputs, examples, outputs)
    return Answered(path, inputs, targets, examples, outputs, metrics, decisions)


@dataclass(frozen=True)
class Baselines:
    """What simpler ways decide of the same rows, as `Reporter.baselines` gives it."""

    path: str
    """What they learnt from."""
    decisions: Mapping[str, Sequence[Any]]


def build_report(
    task: Task,
    answered: Answered,
    baselines: Baselines | None = None,
    validation: Answered | None = None,
    precision: float = 0.9,
) -> dict[str, Any]:
    """All that can be said of a model on some rows; JSON-ready.

    Args:
        task: that numbered the targets.
        answered: the rows that it is judged by.
        baselines: what simpler ways decide of the rows.
        validation: the rows that the temperature and the thresholds are chosen on; without any
            there are none. Where these are the rows judged by themselves, the temperature's effect
            is measured on halves that it was not fitted on.
        precision: wanted of each label from its threshold on.
    """
    reporter = task.reporter()
    report: dict[str, Any] = {
        "task": task.name,
        "data": answered.path,
        "rows": len(answered.inputs),
        "scores": _scores(reporter, answered),
        "baselines": {},
    }
    if baselines is not None:
        report["baseline_data"] = baselines.path
        for name, found in baselines.decisions.items():
            evidence = reporter.evidence(found, answered.targets)
            assert evidence is not None
            report["baselines"][name] = dict(reporter.scores_of(evidence))
    for name, table in task.tables(answered.metrics).items():
        report[name] = table
    judged = _judge(reporter, answered)
    if judged is not None:
        report["calibration"] = _calibration(judged)
        if validation is not None:
            other = judged if validation is answered else _judge(reporter, validation)
            assert other is not None
            report["temperature"] = {"fitted_on": validation.path, **_temperature(judged, other)}
            if judged.labels:
                report["thresholds"] = {
                    "precision": precision,
                    "chosen_on": validation.path,
                    "labels": _thresholds(judged, other, precision),
                }
    report["mistakes"] = _mistakes(task, reporter, answered, judged)
    return report


def _scores(reporter: Reporter, answered: Answered) -> dict[str, dict[str, float]]:
    """Each metric that is a number, with the ends of its interval where there is one."""
    decided = answered.decisions
    evidence = reporter.evidence(decided, answered.targets) if decided else None
    intervals = {} if evidence is None else bootstrap(evidence, reporter.scores_of)
    return {
        name: {"value": value} | dict(zip(("low", "high"), intervals.get(name, ()), strict=False))
        for name, value in answered.scores().items()
    }


def _judge(reporter: Reporter, answered: Answered) -> Judged | None:
    return reporter.judged(answered.examples, answered.outputs, answered.targets)


def _calibration(judged: Judged) -> dict[str, Any]:
    """How far probabilities are off."""
    bins = reliability(*confidences(judged.logits, judged.targets))
    return {"expected_error": calibration_error(bins), "bins": bins}


def _temperature(judged: Judged, fitted_on: Judged) -> dict[str, float]:
    """What to divide logits by, and what that makes of how far probabilities are off."""
    temperature = fit_temperature(fitted_on.logits, fitted_on.targets)
    if fitted_on is judged:
        error = cross_fitted_error(judged.logits, judged.targets)
    else:
        found = confidences(judged.logits, judged.targets, temperature)
        error = calibration_error(reliability(*found))
    return {"temperature": temperature, "expected_error": error}


def _thresholds(judged: Judged, chosen_on: Judged, precision: float) -> dict[str, Any]:
    """Of each label the lowest threshold with the precision wanted, and what it does here."""
    found: dict[str, Any] = {}
    for place, label in enumerate(judged.labels[:_MOST_LABELS]):
        threshold = threshold_for(
            chosen_on.probabilities[:, place], chosen_on.members[:, place], precision
        )
        columns = judged.probabilities[:, place], judged.members[:, place]
        found[label] = None
        if threshold is not None:
            found[label] = {"threshold": threshold, **at_threshold(*columns, threshold)}
    return found


def _mistakes(
    task: Task, reporter: Reporter, answered: Answered, judged: Judged | None
) -> list[dict[str, Any]]:
    """The worst mistakes, the worst first; rows counted from 1."""
    decided = answered.decisions
    wrongness = reporter.wrongness(decided, answered.targets, judged) if decided else None
    if wrongness is None:
        return []
    order = np.argsort(-wrongness, kind="stable")[:_SHOWN_MISTAKES]
    return [
        {
            "row": int(row) + 1,
            **task.shown(answered.inputs[row]),
            "expected": task.label_name(answered.targets[row]),
            "predicted": task.label_name(decided[row]),
            reporter.wrongness_is: float(wrongness[row]),
        }
        for row in order
        if wrongness[row] > 0
    ]
