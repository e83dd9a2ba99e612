"""`mlm demo`: what it may replace, what it says, and the whole of it in miniature."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlm.cli import main
from mlm.errors import UserError
from tasks.demo import report
from tasks.demo.run import claim, learning_curve, score

OURS = '{"command": "mlm demo"}'


def test_a_new_or_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "a" / "b", tmp_path / "empty"):
        claim(folder)
        assert [path.name for path in folder.iterdir()] == ["demo.json"]


def test_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    claim(tmp_path)
    (tmp_path / "store" / "train").mkdir(parents=True)
    (tmp_path / "corpus.jsonl").write_text("old")
    elsewhere = tmp_path.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("not ours")
    (tmp_path / "pretrain").symlink_to(elsewhere)
    claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]
    assert (elsewhere / "kept").read_text() == "not ours"


@pytest.mark.parametrize(
    "files",
    [
        {"notes.txt": "mine"},
        {"demo.json": "not even JSON", "notes.txt": "mine"},
        {"demo.json": "[]"},
        {"demo.json": '{"command": "something else"}'},
        {"demo.json": OURS, "notes.txt": "mine"},
    ],
)
def test_what_no_demo_has_put_there_stays(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="--output"):
        claim(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "soon"], "--budget 'soon'"),
        (["--seeds", "0"], "--seeds 0"),
        (["--output", "file.txt"], "file.txt: is there"),
    ],
)
def test_mistakes_are_found_before_anything_is_done(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options,
    message,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("a file")
    assert main(["demo", *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_the_learning_curve_keeps_both_ends(tmp_path: Path) -> None:
    lines = ["step,seconds,tokens,train/loss,val/loss"]
    lines += [f"{step},{step / 2},{step * 10},{9 - step / 50}," for step in range(1, 101)]
    lines.insert(51, "50,,,,8.5")
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    rows = learning_curve(tmp_path / "metrics.csv", points=5)
    assert [row["step"] for row in rows] == [1, 26, 51, 75, 100]
    assert rows[-1] == {"step": 100, "seconds": 50.0, "tokens": 1000, "train/loss": 7.0}
    assert [row["step"] for row in learning_curve(tmp_path / "metrics.csv", points=500)][:3] == [
        1,
        2,
        3,
    ]


def test_scores_of_several_runs() -> None:
    test = [{"text": "", "label": label} for label in "aabb"]
    row = score("it", [["a", "a", "b", "b"], ["a", "b", "a", "b"]], test)
    assert row["accuracy"] == 0.75
    assert row["runs"] == [1.0, 0.5]
    assert row["n"] == 4
    assert row["interval"][0] < 0.75 < row["interval"][1]


@pytest.mark.parametrize(
    ("other", "said"), [(0.5, "is ahead"), (0.68, "do not decide"), (0.9, "is behind")]
)
def test_the_verdict_follows_from_the_figures(other: float, said: str) -> None:
    ours = {"accuracy": 0.7, "interval": (0.61, 0.77)}
    assert said in report.verdict(ours, {"name": "the other", "accuracy": other})


def test_what_is_printed_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    report.heading("[bold]1")
    report.command("mlm " + "word " * 60 + "[/end]")
    report.guesses(
        [{"text": "The [MASK].", "before": [{"token": "[/x]", "score": 0.5}], "after": []}]
    )
    lines = capsys.readouterr().out.split("\n")
    assert "[bold]1" in lines
    assert any(line.startswith("  $ mlm word") and line.endswith("[/end]") for line in lines)
    assert any("[/x] 50%" in line for line in lines)
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.slow
def test_the_whole_demo_in_miniature(tmp_path: Path) -> None:
    # Twice into one folder: the second replaces the first.
    words = ["demo", "--output", "demo", "--budget", "4steps", "--seeds", "1"]
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "mlm", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,  # seconds where nothing else runs; a busy machine needs minutes
            check=False,
        )
        assert done.returncode == 0, done.stderr
    for part in (
        "The documentation of this Python:",
        "  $ mlm prepare --corpus demo/corpus.jsonl",
        "  $ mlm pretrain --config demo --store demo/store",
        "A blind guess among",
        "The [MASK] statement imports a module.",
        "majority class  ",
        "bag of words, logistic regression",
        "this encoder from random weights",
        "this encoder, pretrained",
        "Done in",
        "  $ mlm finetune --config sst2",
    ):
        assert part in done.stdout, done.stdout
    figures = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert figures["corpus"]["words"] > 100_000
    assert figures["pretraining"]["curve"][0]["step"] == 1
    assert [row["n"] for row in figures["accuracy"]] == [120] * 4
    assert list(figures["seconds"]) == ["start", "prepare", "pretrain", "fill-mask", "finetune"]
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]
    # What it leaves is an ordinary model folder.
    model = str(tmp_path / "demo" / "finetune" / "model")
    assert main(["predict", "--model", model, "--text", "Not bad at all!"]) == 0
