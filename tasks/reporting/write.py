"""A report as files: JSON for programs, Markdown and a picture for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlm.files import atomic_file
from tasks.reporting.text import write_json

PICTURE = "reliability.png"
_SHOWN = 20
_LONGEST = 200


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """`report.json`, `report.md`, and `reliability.png` where it applies, in a folder."""
    write_json(folder / "report.json", dict(report))
    with atomic_file(folder / "report.md") as draft:
        draft.write_text(as_markdown(report), encoding="utf-8")
    if "calibration" in report:
        with atomic_file(folder / PICTURE) as draft:
            draw_reliability(draft, report["calibration"])


def score_table(report: Mapping[str, Any]) -> list[list[str]]:
    """A line a score: value, interval, and that of each baseline."""
    baselines = report["baselines"]
    lines = [["score", "value", "95 % interval", *baselines]]
    for name, found in report["scores"].items():
        interval = f"{found['low']:.4f} to {found['high']:.4f}" if "low" in found else ""
        others = [f"{scores[name]:.4f}" if name in scores else "" for scores in baselines.values()]
        lines.append([name, f"{found['value']:.4f}", interval, *others])
    return lines


def mistake_table(report: Mapping[str, Any]) -> list[list[str]]:
    """A line a mistake, the worst first."""
    mistakes = report["mistakes"]
    return [list(mistakes[0]), *([_text(v) for v in m.values()] for m in mistakes)]


def as_markdown(report: Mapping[str, Any]) -> str:
    """The whole report."""
    name = report["task"].rpartition(".")[2].replace("_", " ").capitalize()
    parts = [f"# {name} on {report['data']}", "", f"{report['rows']:,} rows.", ""]
    parts += _table(score_table(report))
    if any("low" in found for found in report["scores"].values()):
        parts += [
            "",
            "The intervals are of this model on other rows of the same kind (1,000 bootstrap "
            "samples of the rows). They say nothing of another seed: for that use `--seeds`.",
        ]
    if report["baselines"]:
        parts += ["", f"The baselines learnt from {report['baseline_data']}."]
    if "calibration" in report:
        parts += _calibration(report)
    if "thresholds" in report:
        parts += _thresholds(report["thresholds"], report["data"])
    if table := report.get("confusion_matrix"):
        parts += ["", "## Confusion matrix", "", *_table(table)]
    if table := report.get("per_class"):
        parts += ["", "## Classes", "", *_table(table)]
    if report["mistakes"]:
        shown = mistake_table(report)[: _SHOWN + 1]
        parts += ["", "## Worst mistakes", "", *_table(shown)]
    return "\n".join(parts) + "\n"


def _calibration(report: Mapping[str, Any]) -> list[str]:
    lines = [f"Expected calibration error {report['calibration']['expected_error']:.4f}."]
    if found := report.get("temperature"):
        where = (
            "each half of the rows by a temperature of the other half"
            if found["fitted_on"] == report["data"]
            else f"fitted on {found['fitted_on']}"
        )
        lines.append(
            f"With logits divided by {found['temperature']:.3f} it is "
            f"{found['expected_error']:.4f} ({where})."
        )
    picture = f"![How often answers of a confidence are right]({PICTURE})"
    return ["", "## Calibration", "", " ".join(lines), "", picture]


def _thresholds(found: Mapping[str, Any], data: str) -> list[str]:
    lines = [["label", "threshold", "precision", "recall", "rows"]]
    for label, numbers in found["labels"].items():
        cells = ["none", "", "", ""]
        if numbers is not None:
            shares = [f"{numbers[name]:.4f}" for name in ("threshold", "precision", "recall")]
            cells = [*shares, f"{numbers['rows']:,}"]
        lines.append([label, *cells])
    same = " the same rows, so expect somewhat less on others" if found["chosen_on"] == data else ""
    return [
        "",
        f"## Thresholds for a precision of {found['precision']}",
        "",
        f"Chosen on {same or found['chosen_on']}.",
        "",
        *_table(lines),
    ]


def _table(lines: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of cells as Markdown; a bar in a cell ends none."""
    cells = [[_text(value).replace("|", "\\|") for value in line] for line in lines]
    rows = ["| " + " | ".join(line) + " |" for line in cells]
    return [rows[0], "| " + " | ".join("---" for _ in lines[0]) + " |", *rows[1:]]


def _text(value: Any) -> str:
    """A value in one line, of a long one the beginning."""
    if isinstance(value, list):
        value = " / ".join(map(str, value))
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def draw_reliability(path: Path, calibration: Mapping[str, Any]) -> None:
    """How often answers are right, by how sure they are; the bars below show how many there are."""
    from matplotlib.figure import Figure

    confidence, right, count = zip(*calibration["bins"], strict=True)
    figure = Figure(figsize=(4.5, 5.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    above.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="as sure as right")
    above.plot(confidence, right, marker="o", color="C0", label="this model")
    above.set(ylabel="share that is right", xlim=(0, 1.02), ylim=(0, 1.02))
    above.set_title(f"expected calibration error {calibration['expected_error']:.3f}", fontsize=10)
    above.legend(loc="upper left", frameon=False)
    below.bar(confidence, count, width=0.04, color="C0")
    below.set(xlabel="confidence", ylabel="answers")
    figure.savefig(path, dpi=120, format="png")
