"""A report: a model's answers to labelled rows, and what its scores are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
        validation: other rows, that the temperature and the thresholds are chosen on; without it
            those judged by are the validation set: the temperature's effect is then measured on
            halves that it was not fitted on, and the thresholds where they were chosen.
        precision: wanted of each label from its threshold on.
    """
    reporter = task.reporter()
    decisions = task.decisions(answered.inputs, answered.examples, answered.outputs)
    report: dict[str, Any] = {
        "task": task.name,
        "data": answered.path,
        "rows": len(answered.inputs),
        "scores": _scores(reporter, decisions, answered),
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
        other = None if validation is None else _judge(reporter, validation)
        chosen_on = answered.path if validation is None else validation.path
        report["calibration"] = {"fitted_on": chosen_on, **_calibration(judged, other)}
        if judged.labels:
            report["thresholds"] = {
                "precision": precision,
                "chosen_on": chosen_on,
                "labels": _thresholds(judged, other or judged, precision),
            }
    report["mistakes"] = _mistakes(task, reporter, answered, decisions, judged)
    return report


def _scores(
    reporter: Reporter, decisions: Sequence[Any], answered: Answered
) -> dict[str, dict[str, float]]:
    """Each metric that is a number, with the ends of its interval where there is one."""
    plain = {name: float(x) for name, x in answered.metrics.items() if x.ndim == 0}
    evidence = reporter.evidence(decisions, answered.targets) if decisions else None
    intervals = {} if evidence is None else bootstrap(evidence, reporter.scores_of)
    return {
        name: {"value": value} | dict(zip(("low", "high"), intervals.get(name, ()), strict=False))
        for name, value in plain.items()
    }


def _judge(reporter: Reporter, answered: Answered) -> Judged | None:
    return reporter.judged(answered.examples, answered.outputs, answered.targets)


def _calibration(judged: Judged, other: Judged | None) -> dict[str, Any]:
    """How far probabilities are off, and what a temperature makes of it."""
    table = reliability(*confidences(judged.logits, judged.targets))
    fitted = other or judged
    temperature = fit_temperature(fitted.logits, fitted.targets)
    scaled = (
        cross_fitted_error(judged.logits, judged.targets)
        if other is None
        else calibration_error(
            reliability(*confidences(judged.logits, judged.targets, temperature))
        )
    )
    return {
        "expected_error": calibration_error(table),
        "temperature": temperature,
        "expected_error_with_temperature": scaled,
        "bins": table,
    }


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
    task: Task,
    reporter: Reporter,
    answered: Answered,
    decisions: Sequence[Any],
    judged: Judged | None,
) -> list[dict[str, Any]]:
    """The worst mistakes, the worst first; rows counted from 1."""
    wrongness = reporter.wrongness(decisions, answered.targets, judged) if decisions else None
    if wrongness is None:
        return []
    order = np.argsort(-wrongness, kind="stable")[:_SHOWN_MISTAKES]
    return [
        {
            "row": int(row) + 1,
            **task.shown(answered.inputs[row]),
            "expected": task.label_name(answered.targets[row]),
            "predicted": task.label_name(decisions[row]),
            reporter.wrongness_is: float(wrongness[row]),
        }
        for row in order
        if wrongness[row] > 0
    ]
