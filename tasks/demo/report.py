"""What the demo says: plain text on standard output, measured figures and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_BAR_WIDTH = 40


def _print(part: RenderableType = "", soft_wrap: bool = False) -> None:
    """Print without the blanks that fill lines up; nothing in a text is taken for markup."""
    console = Console(highlight=False, markup=False)
    with console.capture() as captured:
        console.print(part, soft_wrap=soft_wrap)
    print("\n".join(line.rstrip() for line in captured.get().split("\n")), end="", flush=True)


def heading(text: str) -> None:
    """The title of a step."""
    _print()
    _print(Text(text, style="bold"))


def paragraph(text: str) -> None:
    """Running text."""
    _print(Padding(text, (0, 0, 0, 2)))


def command(text: str) -> None:
    """A command, in one line, so that it can be copied."""
    _print(Text(f"  $ {text}", style="cyan"), soft_wrap=True)


def _table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    """A table without lines, whose columns ``numbers`` are set to the right."""
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left")
    return table


def corpus(size: Mapping[str, int]) -> None:
    """How much text there is."""
    paragraph(
        f"The documentation of this Python: {size['documents']:,} documents, "
        f"{size['words']:,} words, {size['bytes'] / 1e6:.1f} MB."
    )


def store(found: Mapping[str, Any]) -> None:
    """What became of the text."""
    paragraph(
        f"{found['train_tokens']:,} tokens to learn from and {found['validation_tokens']:,} held "
        f"out, {found['tokens_per_word']:.2f} a word, from a vocabulary of "
        f"{found['vocab_size']:,} that was made for this text."
    )


def pretraining(found: Mapping[str, Any]) -> None:
    """The training loss along the run, as a table with bars, and what it means."""
    vocabulary, validation_loss = found["vocab_size"], found["val/loss"]
    blind = math.log(vocabulary)
    numbers = ("step", "seconds", "tokens", "loss")
    table = _table(*numbers, "", numbers=numbers)
    for row in found["curve"]:
        loss = row["train/loss"]
        bar = "█" * max(1, round(loss / blind * _BAR_WIDTH))
        step, tokens = f"{row['step']:,}", f"{row['tokens']:,}"
        table.add_row(step, f"{row['seconds']:.0f}", tokens, f"{loss:.2f}", bar)
    _print(Padding(table, (1, 0, 1, 2)))
    paragraph(
        f"The model has {found['weights'] / 1e6:.1f} million weights. A blind guess among "
        f"{vocabulary:,} tokens has a loss of {blind:.2f}; on held-out text the model's is now "
        f"{validation_loss:.2f}, as if it had to guess among {math.exp(validation_loss):,.0f}. Its "
        f"first guess is right for {found['val/accuracy']:.0%} of the hidden tokens."
    )


def guesses(rows: Sequence[Mapping[str, Any]]) -> None:
    """The best guesses for each blank, before and after, side by side."""
    table = _table("", "random weights", "pretrained")
    for row in rows:
        table.add_row(row["text"], _tokens(row["before"]), _tokens(row["after"]))
    _print(Padding(table, (1, 0, 0, 2)))


def _tokens(found: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(f"{guess['token']} {guess['score']:.0%}" for guess in found)


def accuracy(rows: Sequence[Mapping[str, Any]]) -> None:
    """Who got how many of the test reviews right."""
    numbers = ("accuracy", "95 % interval", "each run")
    table = _table("", *numbers, numbers=numbers)
    for row in rows:
        low, high = row["interval"]
        runs = "  ".join(f"{value:.1%}" for value in row["runs"]) if len(row["runs"]) > 1 else ""
        table.add_row(row["name"], f"{row['accuracy']:.1%}", f"{low:.0%} to {high:.0%}", runs)
    _print(Padding(table, (1, 0, 1, 2)))
    last = rows[-1]
    paragraph(
        f"{last['n']} reviews are few: read no more into a difference than the intervals allow."
    )
    best_baseline = max(rows[:-1], key=lambda row: float(row["accuracy"]))
    paragraph(verdict(last, best_baseline))


def verdict(ours: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Who is ahead, or that it cannot be told."""
    low, high = ours["interval"]
    if low > other["accuracy"]:
        return f"The pretrained encoder is ahead of the next best ({other['name']})."
    if high < other["accuracy"]:
        return (
            f"The pretrained encoder is behind the best of the others ({other['name']}): a few "
            "hundred thousand words about Python say little about likes and dislikes."
        )
    return (
        f"Between the pretrained encoder and the best of the others ({other['name']}) these "
        "figures do not decide."
    )


def predictions(rows: Sequence[Mapping[str, Any]]) -> None:
    """Some test reviews, what was predicted and what is true."""
    table = _table("", "predicted", "truth", "review")
    for row in rows:
        mark = "right" if row["predicted"] == row["label"] else "wrong"
        table.add_row(mark, f"{row['predicted']} {row['score']:.0%}", row["label"], row["text"])
    _print(Padding(table, (1, 0, 0, 2)))


def farewell(output: Path, seconds: Mapping[str, float]) -> None:
    """How long it took, and what to do next."""
    parts = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    heading(f"Done in {sum(seconds.values()):.0f} seconds ({parts})")
    paragraph(f"Everything is in {output}, the figures in {output / 'demo.json'}. Try it:")
    command(f'mlm predict --model {output / "finetune" / "model"} --text "Not bad at all!"')
    paragraph("The same with files of your own:")
    command("mlm prepare --corpus texts/ --output stores/mine")
    command("mlm pretrain --config mini_cpu --store stores/mine --run_dir runs/mine")
    command(
        "mlm finetune --config sst2 --model runs/mine/model --train train.csv "
        "--validation dev.csv --run_dir runs/reviews"
    )
