"""What a suite found, a line a set: as JSON and as a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlm.files import atomic_file
from tasks.reporting.text import write_json

_HEADER = ("set", "metric", "mean", "std", "median", "values", "train", "test", "seconds")


def summarise(
    name: str, task: str, metric: str, rows: Mapping[str, int], runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One set's line.

    Args:
        name: the set's.
        task: the set's.
        metric: which of the scores counts.
        rows: of each table.
        runs: of each seed its `seed`, `seconds` and `scores`, at least one.
    """
    values = [run["scores"][metric] for run in runs]
    return {
        "set": name,
        "task": task,
        "metric": metric,
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "median": statistics.median(values),
        "values": values,
        "seeds": [run["seed"] for run in runs],
        "rows": dict(rows),
        "seconds": statistics.fmean(run["seconds"] for run in runs),
        "scores": {score: [run["scores"][score] for run in runs] for score in runs[0]["scores"]},
    }


def mean_of(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean of the sets' means; None where a set has none."""
    means = [line.get("mean") for line in lines]
    return statistics.fmean(means) if means and None not in means else None  # type: ignore[arg-type]


def as_markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table: scores in hundredths, seconds of training a seed.

    >>> run = {"seed": 0, "seconds": 2.0, "scores": {"f1": 0.5}}
    >>> line = summarise("mrpc", "text_classification", "f1", {"train": 9, "test": 4}, [run])
    >>> print(as_markdown([line, {"set": "rte", "error": "no memory"}]))
    | set | metric | mean | std | median | values | train | test | seconds |
    | --- | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |
    | mrpc | f1 | 50.0 |  | 50.0 | 50.0 | 9 | 4 | 2 |
    | rte | failed: no memory |  |  |  |  |  |  |  |
    """
    rules = ["---", "---", "---:", "---:", "---:", "---", "---:", "---:", "---:"]
    table: list[Sequence[str]] = [_HEADER, rules, *map(_cells, lines)]
    if len(lines) > 1 and (mean := mean_of(lines)) is not None:
        table.append(["mean", "", _percent(mean), *[""] * 6])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def write_report(
    output: Path, about: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]
) -> None:
    """Write `suite.json` and `suite.md` into ``output``."""
    write_json(output / "suite.json", {**about, "mean": mean_of(lines), "sets": list(lines)})
    seeds = f"{about['seeds']} seed{'s' if about['seeds'] > 1 else ''}"
    title = f"# {about['suite']}: {about['model']}, {seeds}"
    with atomic_file(output / "suite.md") as draft:
        draft.write_text(f"{title}\n\n{as_markdown(lines)}\n", encoding="utf-8")


def _cells(line: Mapping[str, Any]) -> list[str]:
    error = f"failed: {line['error'].replace('|', '/')}" if "error" in line else ""
    if "mean" not in line:
        return [line["set"], error, *[""] * 7]
    rows = line["rows"]
    scores = [_percent(line[key]) for key in ("mean", "std", "median")]
    values = " ".join(map(_percent, line["values"]))
    numbers = [f"{rows['train']:,}", f"{rows['test']:,}", f"{line['seconds']:,.0f}"]
    metric = [line["metric"], error] if error else [line["metric"]]
    return [line["set"], ", ".join(metric), *scores, values, *numbers]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
