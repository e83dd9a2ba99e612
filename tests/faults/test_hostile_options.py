"""Every option of a training run, given what it cannot or hardly be: it runs, or one line says why.

The list is made from the parsers themselves, so that a new option is struck too.
"""

import importlib
import multiprocessing
import shutil
from itertools import islice
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import child
import pytest
from harness import FORKED, MODEL
from small_models import save_masked_lm, small_config
from sweep import FULL

from mlm import cli
from mlm.arguments import CommandParser

COMMANDS = ("pretrain", "finetune")
ONE_STEP = (
    "--trainer.accelerator cpu --trainer.precision fp32 --logging.wandb off --data.batch_size 8 "
    "--trainer.max_steps 1"
)
LIMITS = ("budget", "trainer.max_steps", "trainer.max_epochs", "trainer.max_time")

# What the tables of these words are for: paths and tasks are the matter of other tests.
PLACES = {"store", "run_dir", "train", "validation", "model.path", "config"}
# A minute a value, and of a table of names that other tests go through.
PLACES |= {"compile"}
# Lightning starts each further process with the command line of this one, which is that of pytest.
PLACES |= {"trainer.devices", "trainer.strategy", "trainer.num_nodes"}

# What only this machine makes wrong.
MORE = {"data.num_workers": ["2"]}

WHOLE = ["0", "1", "-1", "-5", str(2**31), str(2**63), str(10**30)]
REAL = ["0", "-1", "1", "0.5", "1e-300", "1e30", "1e308", str(10**30)]
WORDS = ["nonsense", "", "-1", "tpu", "0", "ä" * 300, "1e400", "1:2"]
HOSTILE: dict[Any, list[str]] = {
    int: WHOLE,
    float: REAL,
    bool: ["true", "false"],
    str: WORDS,
    NoneType: ["null"],
}


def values(hint: Any) -> list[str]:
    """What may be typed for a value of type ``hint``, and hardly fits."""
    if hint in HOSTILE:
        return HOSTILE[hint]
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return [value for part in inner for value in values(part)]
    if origin is Literal:
        return [str(value) for value in inner]
    if origin in (list, tuple):
        one = [value for value in values(inner[0]) if value and "ä" not in value]
        return ["[]", *(f"[{', '.join([value] * 2)}]" for value in one)]
    if origin is dict:
        return ["{}", "{days: -1}", "{seconds: 0}", "{nonsense: 1}"]
    return ["nonsense", "0", "-1"]  # a class, such as timedelta


def attempts(command: str) -> list[tuple[str, str]]:
    """Every option of ``command`` with every hostile value of its type."""
    parser = CommandParser(command, "")
    importlib.import_module(cli.COMMANDS[command][1]).add_arguments(parser)
    known = parser.known() - PLACES
    hints = {a.dest: getattr(a, "_typehint", None) or a.type for a in parser._actions}
    tried = {key: [*values(hints[key]), *MORE.get(key, [])] for key in sorted(known)}
    return [(key, value) for key in tried for value in dict.fromkeys(tried[key])]


def words(command: str, places: dict[str, str], run_dir, key: str, value: str) -> list[str]:
    """The command line with one option set to ``value``."""
    line = f"{command} {places[command]} --run_dir {run_dir} {ONE_STEP}"
    if command == "pretrain":
        line += f" {MODEL} --data.sequence_length 32"
    given = line.split()
    # What stands there twice is taken once: the last; and a limit replaces the limit.
    if key in LIMITS:
        at = given.index("--trainer.max_steps")
        del given[at : at + 2]
    return [*given, f"--{key}={value}"]


@pytest.fixture(scope="module")
def places(rows, tmp_path_factory):
    """{command: the words that it cannot do without}."""
    root = tmp_path_factory.mktemp("places")
    save_masked_lm(root / "model", small_config("bert"))
    lines = ["text,label", *(f"the {w} film,{n % 2}" for n, w in enumerate("abcdefghijkl" * 2))]
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    table = root / "table.csv"
    return {
        "pretrain": f"--store {rows}",
        "finetune": f"--model {root}/model --train {table} --validation {table}",
    }


def answer(argv: list[str], output) -> tuple[int | None, str]:
    """Exit code (None where it hangs) and output of a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*FORKED, "tasks.finetuning", "tasks.commands.finetune"])
    process = context.Process(target=child.attempt, args=(argv, output))
    process.start()
    process.join(25)
    code = process.exitcode
    process.kill()
    return code, output.read_text(errors="replace")


def broken(command: str, key: str, value: str, places, place) -> str | None:
    """How the promise was broken; None where it was kept."""
    argv = words(command, places, place / "run", key, value)
    code, text = answer(argv, place / "output.txt")
    shutil.rmtree(place / "run", ignore_errors=True)
    (place / "output.txt").unlink()
    lines = text.splitlines()
    if code in (0, 143) and "Traceback" not in text:
        return None
    # 1 is a run that ended for what numbers or memory became.
    if code in (1, 2) and "Traceback" not in text and lines[-1].startswith("mlm: "):
        return None
    return f"{command} --{key}={value[:60]!r}: {code}\n{text[-1500:]}"


def chosen(command: str) -> list[tuple[str, str]]:
    """All of `attempts` in the whole sweep, else every fortieth, spread over the options."""
    return list(islice(attempts(command), 0, None, 1 if FULL else 40))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_hostile_option_runs_or_is_refused_in_one_line(command, places, tmp_path):
    tried = chosen(command)
    found = [broken(command, key, value, places, tmp_path) for key, value in tried]
    assert len(tried) >= 10
    assert [text for text in found if text] == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("trainer.accumulate_grad_batches", "0", "trainer.accumulate_grad_batches: 0"),
        ("trainer.log_every_n_steps", "-1", "trainer.log_every_n_steps: -1"),
        ("trainer.val_check_interval", "0", "trainer.val_check_interval: 0"),
        ("trainer.limit_val_batches", "1e30", "trainer.limit_val_batches: 1e+30 is neither"),
        ("trainer.gradient_clip_val", "-1", "trainer.gradient_clip_val: -1"),
        ("optimizer.lr", "1e30", "optimizer.lr: 1e+30"),
        ("optimizer.eps", "-1", "optimizer.eps: -1"),
        ("optimizer.betas", "[0.9, 1]", "optimizer.betas: 1"),
        ("seed", "-1", "seed: -1 must lie between"),
        ("data.num_workers", "1000", "data.num_workers: 1000 must lie between 0 and"),
        ("trainer.profiler", "nonsense", "trainer: "),
        ("trainer.num_nodes", "0", "trainer.num_nodes: 0"),
        ("trainer.devices", "100000", "trainer.devices: 100000 must lie between 1 and"),
        ("resume", "..", "--resume"),
    ],
)
def test_what_is_wrong_is_named(command, key, value, said, places, tmp_path, capsys):
    assert cli.main(words(command, places, tmp_path / "run", key, value)) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if said in x]
    assert line.startswith("mlm: ")
    assert not list((tmp_path / "run").rglob("*.safetensors"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_needs_no_progress_bar(command, places, tmp_path):
    argv = words(command, places, tmp_path / "run", "trainer.enable_progress_bar", "false")
    assert cli.main(argv) == 0


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hidden_size", "0", "model.hidden_size: 0 must lie between 1 and"),
        ("hidden_size", "9223372036854775808", "model.hidden_size: 9223372036854775808 must lie"),
        ("num_hidden_layers", "-1", "model.num_hidden_layers: -1 must lie between 1 and 4096"),
        ("num_hidden_layers", "2147483648", "model.num_hidden_layers: 2147483648 must lie between"),
        ("num_attention_heads", "0", "model.num_attention_heads: 0 must lie between 1"),
        ("type_vocab_size", "-1", "model.type_vocab_size: -1 must lie between 0"),
        ("norm_eps", "-1", "model.norm_eps: -1.0 must be at least 0"),
        ("initializer_range", "-1", "model.initializer_range: -1.0 must be at least 0"),
        ("rope_theta", "0", "model.rope_theta: 0.0 must be above 0"),
        ("attention", "[nonsense]", "model.attention: 'nonsense' is not known"),
    ],
)
def test_a_model_that_cannot_be_is_named(key, value, said, places, tmp_path, capsys):
    argv = words("pretrain", places, tmp_path / "run", f"model.{key}", value)
    assert cli.main(argv) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
