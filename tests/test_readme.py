"""Every command and every Python snippet of the README runs, in the order in which it stands there.

They run one after another in one temporary folder, in miniature. What is changed for that is all in
the two tables below, and nothing in the README itself: its text stays as people copy it.

- `MINIATURE` adds options to the end of a command, where they override those before them, so that
  it takes seconds instead of minutes. The command itself still runs as written.
- `NOT_RUN` names commands that are not run here, with the reason. An entry that no command of the
  README matches any more is an error.
- A block of Python whose first line is the name of a file, as a comment, is written there.
- `lay_out` puts the files that the README's reader is said to have into the folder.

Commands are the lines of ```bash blocks, comments aside, and the lines after a `$ ` of ```console
blocks, whose other lines are output. A line that ends in a backslash, or inside quotes, goes on.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"

_TRAINING = "--budget 4steps --trainer.val_check_interval 4 --trainer.devices 1 --data.batch_size 4"
_OFF = "--trainer.accelerator cpu --trainer.strategy auto --logging.wandb off --data.num_workers 0"
_TINY = (
    "--model.hidden_size 32 --model.num_hidden_layers 2 --model.num_attention_heads 2 "
    "--model.intermediate_size 32 --data.sequence_length 32 --compile false"
)
MINIATURE = {  # a command that matches: options added to it
    r"mlm prepare (?!.*--tokenizer )": "--vocab_size 400",
    r"mlm pretrain (?!.*--model )": f"{_TRAINING} {_OFF} {_TINY}",
    r"mlm pretrain .*--model ": f"{_TRAINING} {_OFF} --data.sequence_length 32 --compile false",
    r"mlm finetune ": f"{_TRAINING} {_OFF}",
}
NOT_RUN = {  # a command that matches: why it does not run here
    r"make demo$": "installs, and then is `mlm demo`, which has a test of its own",
    r"mlm import --source answerdotai/": "asks the Hub; tests/test_import.py imports from folders",
    r"mlm export .*--push_to_hub": "writes to the Hub; tests/test_export.py has a stand-in for it",
    r"mlm evaluate-suite .*--suite glue": "asks the Hub; tests/tasks/test_suite.py has tables",
    r"make test$": "is what runs this test",
    r"source \.venv/bin/activate$": "this environment is active already",
}


@dataclass(frozen=True)
class Snippet:
    """One command, or one block of Python."""

    language: str
    text: str
    line: int


def snippets(markdown):
    """What a reader would run, in order."""
    found = []
    language, block, start = None, [], 0
    for number, line in enumerate(markdown.splitlines(), 1):
        if language is None:
            if match := re.match(r"\s*```(\w+)", line):
                language, block, start = match[1], [], number
            elif line.strip().startswith("```"):
                language, block, start = "text", [], number
        elif line.strip() == "```":
            if language == "python":
                found.append(Snippet("python", "\n".join(block), start + 1))
            elif language in {"bash", "console"}:
                found.extend(commands(block, language == "console", start + 1))
            language = None
        else:
            block.append(line)
    assert language is None, f"the block that opens in line {start} is never closed"
    return found


def commands(lines, has_output, first_line):
    """The commands in ``lines``; with output between them, only what follows a `$ `."""
    found, pending, start = [], "", 0
    for number, line in enumerate(lines, first_line):
        text = line
        if not pending:
            if has_output:
                if not line.startswith("$ "):
                    continue
                text = line[2:]
            if not text.strip() or text.lstrip().startswith("#"):
                continue
            start = number
        elif has_output:
            text = text.removeprefix("> ")
        pending = f"{pending}\n{text}" if pending else text
        if complete(pending):
            found.append(Snippet("bash", pending, start))
            pending = ""
    assert not pending, f"line {start}: the command never ends"
    return found


def complete(text):
    """Whether ``text`` is whole, rather than going on in the next line."""
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return not text.endswith("\\")


def in_miniature(command):
    """The command with the options that make it quick, put before a pipe or redirection."""
    added = [options for pattern, options in MINIATURE.items() if re.match(pattern, command)]
    if not added:
        return command
    end = re.search(r"\s+(\||>|&&|#)\s*.*\Z|\Z", command, re.DOTALL)
    return f"{command[: end.start()]} {' '.join(added)}{command[end.start() :]}"


def reason_not_to_run(command):
    """Why the command is left out, None where it is not."""
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command)), None)


def run(snippet, folder):
    """Run one snippet in ``folder`` with this environment's `mlm` and `python`."""
    text = snippet.text
    if snippet.language == "python" and (named := re.match(r"# (\w+\.py)\n", text)):
        (folder / named[1]).write_text(text)
        return ""
    if snippet.language == "bash":
        argv = ["bash", "-euo", "pipefail", "-c", in_miniature(text)]
    else:
        argv = [sys.executable, "-c", text]
    here = Path(sys.executable).parent
    done = subprocess.run(
        argv,
        cwd=folder,
        env=os.environ
        | {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}", "WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, (
        f"README line {snippet.line}: {argv[-1]}\n{done.stdout}{done.stderr}"
    )
    return done.stdout


def lay_out(folder):
    """The files that the README's reader has: texts of their own, and tables with labels."""
    (folder / "texts").mkdir()
    for part in range(3):
        text = [f"Part {part}, story {i}: {i % 7} cats met {i % 5} dogs.\n\n" for i in range(200)]
        (folder / "texts" / f"part_{part}.txt").write_text("".join(text))
    (folder / "words.txt").write_text("dogcat\nstorybook\n")
    (folder / "reviews").mkdir()
    for name in ("train", "dev"):
        rows = [f"{['a fine film', 'a dull film'][i % 2]} number {i},{i % 2}\n" for i in range(40)]
        (folder / "reviews" / f"{name}.csv").write_text("".join(["text,label\n", *rows]))


# --- the tests of the reader ---

SAMPLE = """
# Title

```bash
# a comment
mlm prepare --corpus texts \\
    --output store   # where to
mlm predict --model m --text 'two
lines'
```

Text with `mlm nothing` in it.

```console
$ mlm evaluate --model m > out.json
{"accuracy": 1.0}
$ mlm fill-mask \\
>   --model m "The [MASK] sat."
{"text": "…"}
```

```python
from mlm import FillMask
print(FillMask)
```

```
mlm not a command
```

```yaml
seed: 1
```
"""


def test_snippets_are_found_in_order():
    found = snippets(SAMPLE)
    assert [(s.language, s.line) for s in found] == [
        *[("bash", 6), ("bash", 8), ("bash", 15), ("bash", 17)],
        ("python", 23),
    ]
    assert found[0].text == "mlm prepare --corpus texts \\\n    --output store   # where to"
    assert found[1].text.endswith("'two\nlines'")
    assert found[3].text == 'mlm fill-mask \\\n  --model m "The [MASK] sat."'
    assert found[4].text == "from mlm import FillMask\nprint(FillMask)"


@pytest.mark.parametrize("text", ["```bash\nmlm demo\n", "```bash\necho 'open\n```\n"])
def test_what_never_ends_is_an_error(text):
    with pytest.raises(AssertionError, match="never"):
        snippets(text)


def test_options_are_added_where_they_belong():
    assert in_miniature("mlm prepare --corpus a   # a comment") == (
        "mlm prepare --corpus a --vocab_size 400   # a comment"
    )
    assert in_miniature("mlm prepare --corpus a 2> log").startswith("mlm prepare --corpus a")
    assert in_miniature("mlm prepare --corpus a | tee log") == (
        "mlm prepare --corpus a --vocab_size 400 | tee log"
    )
    assert in_miniature("mlm pretrain --store s --model m").count("hidden_size") == 0
    assert in_miniature("mlm predict --model m") == "mlm predict --model m"


def test_commands_run_in_the_folder_and_fail_loudly(tmp_path):
    run(Snippet("bash", "echo hello > greeting", 1), tmp_path)
    assert run(Snippet("python", "print(open('greeting').read())", 1), tmp_path) == "hello\n\n"
    assert run(Snippet("bash", "mlm --version", 1), tmp_path).startswith("mlm ")
    with pytest.raises(AssertionError, match=r"README line 7: false \| true"):
        run(Snippet("bash", "false | true", 7), tmp_path)


# --- the README ---


def test_a_task_of_ones_own_is_short():
    (task,) = [s for s in snippets(README.read_text()) if s.text.startswith("# stars.py")]
    assert task.text.count("\n") + 1 < 40


def test_every_exception_is_still_needed():
    texts = [s.text for s in snippets(README.read_text()) if s.language == "bash"]
    unused = [p for p in NOT_RUN if not any(re.match(p, text) for text in texts)]
    assert unused == []


@pytest.mark.slow
def test_every_command_runs(tmp_path):
    found = snippets(README.read_text())
    assert found
    lay_out(tmp_path)
    for snippet in found:
        if reason_not_to_run(snippet.text) is None:
            run(snippet, tmp_path)
