"""Thousands of broken config files: each is taken, or refused in one line."""

import importlib
import random
import sys
import types

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sweep import FULL, examples

import mlm.arguments
import mlm.training.data_options
import tasks.options
from mlm import cli
from mlm.arguments import CommandParser
from mlm.config_files import shipped_configs
from mlm.data.prepare import PrepareOptions, prepare
from mlm.errors import UserError

NEEDED = {
    "pretrain": "--store s --run_dir r",
    "finetune": "--train a --validation b --run_dir r --model m",
    "prepare": "--corpus c --output o",
}
PREPARE = "vocab_size: 1000\nlowercase: true\nvalidation_share: 0.01\ntext_column: text\nseed: 0\n"
TEXTS = {
    "prepare": [PREPARE],
    **{
        command: [path.read_text() for path in sorted((shipped_configs() / command).glob("*.yaml"))]
        for command in ("pretrain", "finetune")
    },
}


@pytest.fixture(scope="module")
def attempt(tmp_path_factory):
    """What the command line makes of a config: (exit code, lines on standard error).

    All but the command itself is real; its parser, which takes a tenth of a second to build, is
    built once.
    """
    parsers = {}
    for command in NEEDED:
        parsers[command] = CommandParser(command, "")
        importlib.import_module(cli.COMMANDS[command][1]).add_arguments(parsers[command])
    only_parses = types.ModuleType("only_parses")
    only_parses.add_arguments = lambda parser: None
    only_parses.run = lambda args: None
    path = tmp_path_factory.mktemp("configs") / "run.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "only_parses", only_parses)
        patch.setattr(cli, "COMMANDS", dict.fromkeys(NEEDED, ("", "only_parses")))
        patch.setattr(mlm.arguments, "CommandParser", lambda command, _: parsers[command])

        def attempt(command, content, capsys):
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            code = cli.main([command, "--config", str(path), *NEEDED[command].split()])
            out, err = capsys.readouterr()
            assert out == ""
            return code, err.splitlines()

        yield attempt


def assert_promise(code, lines):
    """A result, or exit code 2 with one line."""
    if code == 0:
        assert lines == []
    else:
        assert code == 2
        assert len(lines) == 1, lines
        assert lines[0].startswith("mlm: ")


# --- broken values, keys and structure ---

WORDS = st.sampled_from(
    [
        *("", " ", "~", "off", "yes", "1e5", "1_000", "0x1F", "0o17", "1:30", "2020-01-01", "="),
        *("-1", "nan", "auto", "mini", "muon", "cosine", "30min", "9" * 400 + "min", "1e999tokens"),
        *("-5steps", "tokens", "\u2028", "\ud7ff", "\U0001f600", "a\nb", "\t", "\x7f", "\ufeff"),
        *("{}", "${x}", "%s %d %(a)s", "{key}", "--lr", "*a", "&a b", "!x", "'", '"', "<<", "/"),
        *("x" * 5000, ".."),
    ]
)
NUMBERS = st.one_of(
    st.sampled_from(
        [
            *(0, -1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, -(10**4000)),
            *(0.0, -0.0, 1e308, 5e-324, float("inf"), float("-inf"), float("nan")),
        ]
    ),
    st.integers(),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=20))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(WORDS, SCALARS), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def broken_settings(draw):
    """A command and one of its configs as a mapping with up to four mistakes."""
    command = draw(st.sampled_from(sorted(TEXTS)))
    root = yaml.safe_load(draw(st.sampled_from(TEXTS[command])))
    known = KNOWN[command]
    for _ in range(draw(st.integers(1, 4))):
        group = draw(st.sampled_from([root, *(v for v in root.values() if isinstance(v, dict))]))
        key = draw(st.sampled_from(sorted(map(str, group)))) if group else "seed"
        match draw(st.integers(0, 6)):
            case 0 | 1:
                group[key] = draw(VALUES)
            case 2:
                group[misspelt(key, draw(st.randoms(use_true_random=False)))] = group.pop(key, None)
            case 3:
                group[draw(st.one_of(WORDS, SCALARS))] = draw(VALUES)
            case 4 | 5:
                root[draw(st.sampled_from(known))] = draw(VALUES)
            case 6:
                root[draw(st.sampled_from(known)).split(".")[0]] = draw(VALUES)
    return command, yaml.dump(root, allow_unicode=draw(st.booleans()))


def known_keys(command):
    parser = CommandParser(command, "")
    importlib.import_module(cli.COMMANDS[command][1]).add_arguments(parser)
    return sorted(parser.known())


KNOWN = {command: known_keys(command) for command in NEEDED}


def misspelt(key, draw: random.Random):
    """``key`` with a letter too many, too few or in the wrong place."""
    at = draw.randrange(len(key) + 1)
    return draw.choice(
        [
            key[:at] + key[at + 1 :],
            key[:at] + draw.choice("aeiou._-") + key[at:],
            key[at:] + key[:at],
        ]
    )


sweep = settings(
    deadline=None,
    derandomize=not FULL,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@settings(sweep, max_examples=examples(150, 6000))
@given(broken_settings())
def test_mistakes_in_settings(attempt, capsys, config):
    assert_promise(*attempt(*config, capsys))


def test_a_setting_that_may_be_named_values_may_have_one_without_a_name(attempt, capsys):
    assert_promise(*attempt("pretrain", "trainer: {val_check_interval: {null: 0}}", capsys))


# --- broken text ---

BYTES = [
    *(b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\r\n", b"\t", b"\x85", b"\n"),
    *(": ", "- ", "? ", "| ", "> ", "|9\n", "[", "]", "{", "}", ", ", "'", '"', "\\", "#", "%"),
    *("&a ", "*a", "*a ", "&a [*a]", "&a {b: *a}", "<<: *a\n", "model: &m\n  <<: *m\n"),
    *("%YAML 9.9\n", "%TAG ! x\n", "---\n", "...\n", "\u2028", "\ufeff", "\U0010ffff"),
    *("!!int ", "!!float ", "!!bool ", "!!null ", "!!binary ", "!!set ", "!!omap ", "!!pairs "),
    *("!!timestamp ", "!!str ", "!!seq ", "!!map ", "!!python/name:os.system ", "!x ", "! "),
    *("seed: ", "data:\n", "optimizer: {lr: 1}\n", "data: [1]\n", "? {a: b}\n: c\n", "1e9999"),
    *("seed: !!int 0x\n", "seed: !!float x\n", "seed: !!bool x\n", "seed: !!null x\n"),
    *("!!timestamp 9999-99-99", "!!set {a, b}", "!!omap [a: 1]", "!!binary =", "!!map [a]"),
    *("9" * 5000, "[" * 2000, "? " * 500, "- " * 500, "'\\U00110000'", '"\\ud800"', '"\\x0"'),
]
FRAGMENTS = st.sampled_from([x if isinstance(x, bytes) else x.encode() for x in BYTES])


@st.composite
def broken_text(draw):
    """A command and one of its configs with up to five cuts, repeats and foreign bytes."""
    command = draw(st.sampled_from(sorted(TEXTS)))
    data = draw(st.sampled_from(TEXTS[command])).encode()
    lines = [line for line in data.splitlines(keepends=True) if not line.startswith(b"#")]
    data = b"".join(lines)
    for _ in range(draw(st.integers(1, 5))):
        start, end = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        match draw(st.integers(0, 3)):
            case 0:
                data = data[:start] + draw(FRAGMENTS) + data[start:]
            case 1:
                data = data[:start] + draw(st.binary(max_size=4)) + data[start + 1 :]
            case 2:
                data = data[:end] + data[start:end] + data[end:]
            case 3:
                data = data[:start] + data[end:]
    return command, data


@settings(sweep, max_examples=examples(200, 6000))
@given(broken_text())
def test_damaged_text(attempt, capsys, config):
    assert_promise(*attempt(*config, capsys))


# --- what was found, and must stay mended ---


def bomb(depth=9):
    """A list of lists that each hold the one before nine times: 9 ** depth values."""
    lists = ["&l0 [1]", *(f"&l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, depth))]
    return f"[{', '.join(lists)}]"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"data.labels: {bomb()}", "aliases (*) have no end, or stand for too much"),
        (f"seed: {bomb()}", "aliases (*) have no end, or stand for too much"),
        (f"data: {bomb()}", "aliases (*) have no end, or stand for too much"),
        ("data.labels: &a [*a]", "aliases (*) have no end, or stand for too much"),
        ("optimizer.betas: &a {b: *a}", "aliases (*) have no end, or stand for too much"),
        ("data: &a {labels: *a}", "aliases (*) have no end, or stand for too much"),
        ("data.labels: [&a !!str x, *a]", None),
        (f"data.labels: {bomb(3)}", "expected a list of a text or an integer or null"),
        ("seed: !!bool maybe", "line 1: seed: a value does not fit its tag"),
        ("data: !!bool maybe", "line 1: data: a value does not fit its tag"),
        ("seed: !!timestamp then", "line 1: seed: a value does not fit its tag"),
        (f"seed: {'[' * 330}{']' * 330}", "the values are nested too deeply"),
        (f"data: [{'1, ' * 9999}]", "got [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1"),
    ],
)
def test_aliases_that_explode_tags_that_do_not_fit_and_deep_nests(attempt, capsys, text, problem):
    code, lines = attempt("finetune", text, capsys)
    assert_promise(code, lines)
    assert (problem or "") in "".join(lines)
    assert sum(map(len, lines)) < 400
    assert code == (2 if problem else 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tasks.options.DataOptions(num_workers=2**31),
        lambda: mlm.training.data_options.DataOptions(num_workers=2**31),
        lambda: prepare(PrepareOptions(["x"], "y", num_processes=2**31)),
    ],
)
def test_processes_without_end_are_refused_before_one_is_started(make):
    with pytest.raises(
        UserError, match=r"num_(workers|processes): 2147483648 must lie between . and \d+"
    ):
        make()


@pytest.mark.parametrize("more", [{"batch_size": 2**31}, {"length_pool": 10**30}])
def test_batches_that_take_for_ever_to_order_are_refused(more):
    with pytest.raises(UserError, match=r"data\.batch_size: .* are ordered at once"):
        tasks.options.DataOptions(**more)
