"""The command line as a process: what it imports, what it prints, how it ends."""

import importlib
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from mlm import __version__, cli
from mlm.errors import UserError

# A command that ends in the way that it is told to.
THROWAWAY = """
import os, signal, sys, time

def add_arguments(parser):
    parser.add_argument("--end", type=str, default="well")
    parser.add_argument("--seed", type=int, default=0)

def run(args):
    import mlm.errors
    if args.end == "user":
        raise mlm.errors.UserError("table.csv, row 3: the label is empty;\\nfill it in")
    if args.end == "bug":
        raise KeyError("a bug")
    if args.end == "saved":
        raise SystemExit(143)
    if args.end == "words":
        raise SystemExit("in words")
    if args.end == "keyboard":
        raise KeyboardInterrupt
    if args.end == "forbidden":
        raise PermissionError(13, "Permission denied", "/there")
    if args.end == "missing":
        open("/no/such/file")
    if args.end == "pipe":
        end, start = os.pipe()
        os.close(end)
        os.write(start, b"x")
    if args.end == "lines":
        for i in range(200_000):
            print("a line", i)
    if args.end == "one line":
        print("a line")
        time.sleep(0.5)
    if args.end == "pool":
        import multiprocessing
        with multiprocessing.get_context("fork").Pool(2) as pool:
            pool.map(abs, range(8))
    if args.end == "wait":
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("tidied", flush=True)
"""
CALL = """
import sys
from mlm import cli
cli.COMMANDS["throwaway"] = ("ends as told", "throwaway")
sys.exit(cli.main(["throwaway", *sys.argv[1:]]))
"""


@pytest.fixture
def throwaway(tmp_path):
    """Start ``mlm throwaway`` with the given options, in a process of its own."""
    (tmp_path / "throwaway.py").write_text(THROWAWAY)

    def start(*options):
        return subprocess.Popen(
            [sys.executable, "-c", CALL, *options],
            env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def registered(monkeypatch):
    """Add a command made of functions to the table."""

    def register(name, run, add_arguments=lambda parser: None):
        module = types.SimpleNamespace(run=run, add_arguments=add_arguments)
        monkeypatch.setitem(sys.modules, f"throwaway_{name}", module)
        monkeypatch.setitem(cli.COMMANDS, name, ("a throwaway", f"throwaway_{name}"))

    return register


# --- before a command is known ---


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_names_each_command_in_a_line(argv, capsys):
    assert cli.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (help_line, _) in cli.COMMANDS.items():
        assert [line for line in lines if line.split()[:1] == [name] and line.endswith(help_line)]
    assert max(map(len, lines)) <= 80


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"mlm {__version__}\n"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_nothing_heavy_is_imported_before_a_command_is_known(option):
    heavy = ["torch", "jsonargparse", "numpy", "yaml", "pytorch_lightning", "datasets", "tasks"]
    code = (
        "import sys; from mlm.cli import main; main([sys.argv[1]]);"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, option], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("pretrian", "did you mean `mlm pretrain`?"),
        ("fill_mask", "did you mean `mlm fill-mask`?"),
        ("zzz", "choose one of demo, prepare"),
        ("--zzz", "choose one of demo, prepare"),
    ],
)
def test_an_unknown_command(name, hint, capsys):
    assert cli.main([name]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"mlm: '{name}' is not a command; {hint}")
    assert printed.count("\n") == 1


# --- one command ---


def test_only_the_chosen_module_is_imported(registered, monkeypatch):
    imported = []
    find = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda n: imported.append(n) or find(n))
    registered("one", lambda args: None)
    registered("two", lambda args: None)
    assert cli.main(["two"]) == 0
    assert [name for name in imported if name.startswith("throwaway")] == ["throwaway_two"]


def test_a_command_gets_what_was_typed(registered):
    seen = []
    registered(
        "one", seen.append, lambda parser: parser.add_argument("--seed", type=int, default=1)
    )
    assert cli.main(["one", "--seed", "7"]) == 0
    assert seen[0].seed == 7


def test_a_commands_own_help_and_config(registered, capsys):
    registered("one", lambda args: None, lambda parser: parser.add_argument("--seed", type=int))
    assert cli.main(["one", "--help"]) == 0
    assert "a throwaway" in capsys.readouterr().out
    assert cli.main(["one", "--print_config", "--seed", "7"]) == 0
    assert capsys.readouterr().out == "seed: 7\n"


def test_a_mistake_of_the_callers_is_one_line(registered, capsys):
    def fail(args):
        raise UserError("table.csv, row 3: the label is empty;\nfill it in")

    registered("one", fail)
    assert cli.main(["one"]) == 2
    assert capsys.readouterr().err == "mlm: table.csv, row 3: the label is empty; fill it in\n"


def test_the_sigterm_handler_is_put_back(registered):
    before = signal.getsignal(signal.SIGTERM)
    inside = []
    registered("one", lambda args: inside.append(signal.getsignal(signal.SIGTERM)))
    assert cli.main(["one"]) == 0
    assert signal.getsignal(signal.SIGTERM) == before != inside[0]


@pytest.mark.parametrize(
    ("end", "code", "error"),
    [
        ("well", 0, ""),
        ("user", 2, "mlm: table.csv, row 3: the label is empty; fill it in\n"),
        ("forbidden", 2, "mlm: /there: Permission denied\n"),
        ("saved", 143, ""),
        ("keyboard", 130, "mlm: interrupted\n"),
        ("words", 1, "mlm: in words\n"),
        ("pool", 0, ""),
    ],
)
def test_exit_codes(throwaway, end, code, error):
    process = throwaway("--end", end)
    assert process.communicate(timeout=60) == ("", error)
    assert process.returncode == code


@pytest.mark.parametrize(
    ("end", "said"),
    [("bug", "KeyError: 'a bug'"), ("missing", "FileNotFoundError"), ("pipe", "BrokenPipeError")],
)
def test_a_bug_keeps_its_traceback(throwaway, end, said):
    process = throwaway("--end", end)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.startswith("Traceback")
    assert said in error


def test_unknown_options_are_the_callers_mistake(throwaway):
    process = throwaway("--sede", "3")
    assert (
        process.communicate(timeout=60)[1] == "mlm: --sede: no such option; did you mean --seed?\n"
    )
    assert process.returncode == 2


@pytest.mark.parametrize("end", ["lines", "one line"])
def test_a_reader_that_leaves_ends_it_quietly(throwaway, end):
    process = throwaway("--end", end)
    if end == "lines":
        assert process.stdout.readline() == "a line 0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signals_unwind_the_stack(throwaway, sent):
    process = throwaway("--end", "wait")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(sent)
    output, error = process.communicate(timeout=60)
    assert output == "tidied\n"
    assert "Traceback" not in error
    assert process.returncode == (143 if sent == signal.SIGTERM else 130)


# --- what is shipped ---


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    assert cli.main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: mlm {name} ")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_says_what_is_wrong_in_one_line(name, capsys):
    assert cli.main([name, "--sede", "1"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("mlm: --sede: no such option")
    assert printed.count("\n") == 1
