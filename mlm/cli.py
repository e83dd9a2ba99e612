"""The command line: ``mlm COMMAND …``. Assembles, decides nothing.

Only the chosen command's module is imported, so that ``mlm --help`` answers at once. Each such
module has ``add_arguments(parser) -> None`` and ``run(args) -> None``; see `mlm.arguments` for what
a parser and its values offer.

Exit codes: 0 done, 2 the caller's mistake (one line, no traceback), 143 stopped by SIGTERM, or a
training that was asked to stop and saved its state, 130 interrupted from the keyboard, 1 anything
else (one line where it is the machine's doing).
"""

from __future__ import annotations

import errno
import importlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from mlm import __version__
from mlm.console import say
from mlm.errors import RunError, UserError
from mlm.memory import restart_without_small_caches

# command: (what it does, the module that does it)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("the whole path on built-in data, under five minutes", "tasks.commands.demo"),
    "prepare": ("text files to a tokenizer and a token store", "mlm.commands.prepare"),
    "plan": ("what size, batch and rate a time is worth on this machine", "mlm.commands.plan"),
    "pretrain": ("train an encoder on a token store by hiding tokens", "mlm.commands.pretrain"),
    "finetune": (
        "put a task's head on an encoder and train it on a table",
        "tasks.commands.finetune",
    ),
    "evaluate": ("metrics of a model on data, as JSON", "tasks.commands.evaluate"),
    "evaluate-suite": (
        "fine-tune and score an encoder on many sets",
        "tasks.commands.evaluate_suite",
    ),
    "predict": (
        "a fine-tuned model's answer to each text, as JSON lines",
        "tasks.commands.predict",
    ),
    "fill-mask": ("the likeliest tokens for each [MASK], as JSON lines", "mlm.commands.fill_mask"),
    "embed": ("one vector per text", "mlm.commands.embed"),
    "average": ("several models to the mean of their weights", "mlm.commands.average"),
    "export": ("a model folder to ONNX or sentence-transformers", "tasks.commands.export"),
    "import": ("a Hugging Face model to a model folder", "mlm.commands.import_"),
}

# Those that train for long, and would grow with every step.
_TRAINING = {"pretrain", "finetune", "evaluate-suite"}

# What the machine refuses is for the caller to mend, and a traceback would not help: rights, room,
# and paths that cannot be.
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
_REFUSED |= {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


def usage() -> str:
    """What ``mlm --help`` prints: each command with a line of help."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {help_line}" for name, (help_line, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: mlm COMMAND [options]",
            "",
            "Pretrain a BERT-style encoder on your own text and fine-tune it.",
            "",
            *lines,
            "",
            "`mlm COMMAND --help` lists a command's options, `mlm --version` the version.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    Args:
        argv: the words after ``mlm``; by default those of this process.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if argv is None and _TRAINING.intersection(words[:1]):  # this process is the command's own
        restart_without_small_caches()
    # A handler can be set in the main thread only; a caller elsewhere keeps its own.
    try:
        previous = signal.signal(signal.SIGTERM, _exit_on_sigterm(os.getpid()))
    except ValueError:
        previous = None
    try:
        _dispatch(words)
        sys.stdout.flush()
    except UserError as error:
        return _fail(str(error), 2)
    except RunError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except SystemExit as error:
        if isinstance(error.code, str):
            return _fail(error.code, 1)
        return error.code or 0
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            # `mlm … | head`: whatever is still buffered would raise again when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        if error.errno in _REFUSED:
            return _fail(f"{error.filename or 'writing'}: {error.strerror}", 2)
        raise
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)
    return 0


def _dispatch(argv: list[str]) -> None:
    """Import the command that ``argv`` names, parse the rest with it and run it."""
    if not argv or argv[0] in {"-h", "--help"}:
        print(usage())
        return
    if argv[0] == "--version":
        print(f"mlm {__version__}")
        return
    name, *rest = argv
    if name not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `mlm {near[0]}`?" if near else f"choose one of {', '.join(COMMANDS)}"
        raise UserError(f"{name!r} is not a command; {hint}")
    help_line, module_name = COMMANDS[name]

    from mlm.arguments import CommandParser

    command = importlib.import_module(module_name)
    parser = CommandParser(name, help_line)
    command.add_arguments(parser)
    command.run(parser.parse(rest))


def _fail(message: str, code: int) -> int:
    say(message)
    return code


def _exit_on_sigterm(pid: int) -> signal._HANDLER:
    """A handler that unwinds the stack, so that half-written files are taken away on the way.

    A training run puts its own handler in this one's place, to save first.
    """

    def handler(signum: int, frame: FrameType | None) -> None:
        if os.getpid() == pid:
            raise SystemExit(128 + signum)
        # A forked worker inherits the handler, but ending a pool must not print its traceback.
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)

    return handler


def _stdout_is_closed() -> bool:
    """Whether whoever read our output has gone; a pipe of our own may break too, and is a bug."""
    poll = select.poll()
    poll.register(sys.stdout, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
