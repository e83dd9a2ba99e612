"""The parser of a command: shorthands, config files, limits, and every mistake in one line."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from mlm.arguments import (
    CommandParser,
    add_data_path,
    add_model_path,
    describe_type,
    expand,
    settings,
    typed_keys,
)
from mlm.config_files import to_yaml
from mlm.errors import UserError


@dataclass
class Schedule:
    name: str = "linear"
    """Shape of the learning rate; 100 % of it at the peak."""
    warmup: int = 10
    """Steps until the peak."""


@dataclass
class Options:
    """How the run learns."""

    lr: float = 1e-3
    """Peak learning rate."""
    steps: int = -1
    """How many steps."""
    wandb: Literal["online", "off"] | None = None
    """Where the log goes."""
    columns: list[str] | None = None
    """Columns."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the moments."""
    nesterov: bool = True
    """Look ahead."""
    extra: dict[str, float] | None = None
    """Anything else."""
    schedule: Schedule = field(default_factory=Schedule)


@pytest.fixture
def parser():
    parser = CommandParser("pretrain", "trains")
    parser.add_argument("--output", type=str, required=True, help="where to")
    parser.add_argument("--budget", type=str | None, default=None, help="how long")
    parser.add_argument("text", type=str, nargs="*")
    add_model_path(parser, required=False)
    add_data_path(parser, "a table", required=False)
    parser.add_argument("--data.label_column", type=str, default="label")
    parser.add_class_arguments(Options, "optimizer")
    parser.add_limits("budget", "optimizer.steps")
    return parser


@pytest.fixture
def config(tmp_path):
    def write(text):
        (tmp_path / "run.yaml").write_text(text)
        return str(tmp_path / "run.yaml")

    return write


# --- pure functions ---

KNOWN = {"data.path", "data.x", "model.path", "optimizer.lr", "output"}


@pytest.mark.parametrize(
    ("argv", "words", "configs"),
    [
        ("--data a", "--data.path a", []),
        ("--data=a --model=b=c", "--data.path=a --model.path=b=c", []),
        ("--data.x 1 --data a", "--data.x 1 --data.path a", []),
        ("--config a --output o --config=b", "--output o", ["a", "b"]),
        ("one two -- --data a --config b", "one two -- --data a --config b", []),
        ("--text --data a", "--text --data.path a", []),
        ("--dataset a --unknown", "--dataset a --unknown", []),
    ],
)
def test_expand(argv, words, configs):
    assert expand(argv.split(), KNOWN) == (words.split(), configs)


def test_expand_leaves_data_alone_where_the_command_has_no_such_path():
    assert expand(["--data", "a"], {"output"}) == (["--data", "a"], [])


@pytest.mark.parametrize("argv", [["--config"], ["--config="], ["--config", "--output", "o"]])
def test_expand_wants_a_name_after_config(argv):
    with pytest.raises(UserError, match="--config: name a YAML file"):
        expand(argv, KNOWN)


def test_expand_refuses_a_group_as_an_option():
    with pytest.raises(UserError, match=r"--optimizer: this is a group .* as --optimizer\.lr"):
        expand(["--optimizer", "x.yaml"], KNOWN)


def test_typed_keys():
    assert typed_keys(["text", "--a.b", "1", "--c=2", "--d+=3", "-e", "--", "--f"]) == {"a.b", "c"}


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (int, "an integer"),
        (float | None, "a number or null"),
        (str | list[str], "a text or a list of texts"),
        (Literal["a", "b"], "one of a, b"),
        (tuple[float, float], "a list of 2 values, as in [1, 2]"),
        (tuple[str, ...], "a list of texts"),
        (dict[str, int], "a mapping"),
        (Schedule, "Schedule"),
    ],
)
def test_describe_type(hint, said):
    assert describe_type(hint) == said


# --- values ---


def test_defaults_config_and_options_in_that_order(parser, config):
    path = config("optimizer:\n  lr: 1e-4\n  steps: 5\n  wandb: off\n")
    # An option wins even where it stands before the config.
    args = parser.parse(["--optimizer.lr", "2e-4", "--config", path, "--output", "o"])
    assert args.optimizer.lr == 2e-4
    assert args.optimizer.steps == 5
    assert args.optimizer.wandb == "off"
    assert args.optimizer.schedule.warmup == 10
    assert "config" not in args


def test_later_configs_win(parser, config, tmp_path):
    (tmp_path / "two.yaml").write_text("output: two\n")
    args = parser.parse(
        ["--config", config("output: one\nbudget: 1h"), f"--config={tmp_path}/two.yaml"]
    )
    assert (args.output, args.budget) == ("two", "1h")


def test_a_required_value_may_stand_in_a_config(parser, config):
    assert parser.parse(["--config", config("output: o\n")]).output == "o"


def test_shorthand_stands_beside_the_group(parser, config):
    args = parser.parse(
        ["--data", "d.csv", "--data.label_column", "y", "--model=m", "--output", "o"]
    )
    assert args.data.path == "d.csv"
    assert args.data.label_column == "y"
    assert args.model.path == "m"
    args = parser.parse(["--config", config("data: d.csv\nmodel: m\noutput: o\n")])
    assert (args.data.path, args.model.path) == ("d.csv", "m")


def test_a_list_grows_by_plus(parser, config):
    path = config("output: o\noptimizer:\n  columns: [a]\n")
    args = parser.parse(["--config", path, "--optimizer.columns+=b"])
    assert args.optimizer.columns == ["a", "b"]


def test_texts_stay_as_typed(parser):
    args = parser.parse(
        ["--output", "1e5", "--budget", "007", "The [MASK] sat.", "[1, 2]", "null: 1"]
    )
    assert (args.output, args.budget) == ("1e5", "007")
    assert args.text == ["The [MASK] sat.", "[1, 2]", "null: 1"]


def test_positional_text_may_look_like_an_option_after_two_dashes(parser):
    args = parser.parse(["--output", "o", "--", "--data", "-1 point"])
    assert args.text == ["--data", "-1 point"]


@pytest.mark.parametrize(
    ("argv", "budget", "steps"),
    [
        ("", "30min", 100),
        ("--budget 1h", "1h", -1),
        ("--optimizer.steps=7", None, 7),
        ("--optimizer.steps 7 --budget 1h", "1h", 7),
        ("--optimizer.lr 7", "30min", 100),
    ],
)
def test_a_limit_on_the_command_line_replaces_those_of_the_config(
    parser, config, argv, budget, steps
):
    path = config("output: o\nbudget: 30min\noptimizer:\n  steps: 100\n")
    args = parser.parse([*argv.split(), "--config", path])
    assert (args.budget, args.optimizer.steps) == (budget, steps)


def test_settings_are_a_config_that_gives_the_same_values(parser, config):
    args = parser.parse(["--output", "off", "--model", "1e-3", "--optimizer.extra.a", "1"])
    again = parser.parse(["--config", config(to_yaml(settings(args)))])
    assert settings(again) == settings(args)
    assert settings(args)["optimizer"]["schedule"] == {"name": "linear", "warmup": 10}


def test_what_is_needed_is_called_as_people_type_it(capsys):
    parser = CommandParser("predict", "predicts")
    add_model_path(parser)
    parser.add_argument("texts", type=str, nargs="+", metavar="TEXT")
    with pytest.raises(UserError, match=r"mlm predict needs --model and TEXT \(see"):
        parser.parse([])
    with pytest.raises(SystemExit):
        parser.parse(["--help"])
    assert capsys.readouterr().out.startswith("usage: mlm predict --model MODEL TEXT… [options]\n")


def test_print_config_shows_what_is_in_force(parser, config, capsys):
    path = config("budget: 30min\noptimizer:\n  wandb: off\n")
    with pytest.raises(SystemExit) as stop:
        parser.parse(
            ["--print_config", "--config", path, "--optimizer.steps", "3", "--model", "1e-3"]
        )
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert settings(parser.parse(["--config", config(printed), "--output", "o"])) == settings(
        parser.parse(
            [
                "--output",
                "o",
                "--optimizer.wandb",
                "off",
                "--optimizer.steps",
                "3",
                "--model",
                "1e-3",
            ]
        )
    )


def test_help_comes_from_the_docstrings_under_the_fields(parser, capsys):
    with pytest.raises(SystemExit) as stop:
        parser.parse(["--help"])
    assert stop.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Peak learning rate. (type: float, default: 0.001)" in printed
    assert "100 % of it at the peak" in printed
    assert "--data.path PATH a table (--data for short)" in printed
    assert "--optimizer CONFIG" not in printed


# --- mistakes ---


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("", "mlm pretrain needs --output (see mlm pretrain --help)"),
        ("--output", "--output: expected one argument"),
        ("--ouput o", "--ouput: no such option; did you mean --output?"),
        ("--outpu o", "--outpu: no such option; did you mean --output?"),
        ("--lr=3", "--lr: no such option; did you mean --optimizer.lr?"),
        ("--data.zebra 3", "--data.zebra: no such option (see mlm pretrain --help)"),
        ("-z", "-z: no such option (see mlm pretrain --help)"),
        ("--optimizer.lr fast", "--optimizer.lr: expected a number, got 'fast'"),
        ("--optimizer.steps 1.5", "--optimizer.steps: expected an integer, got '1.5'"),
        ("--optimizer.steps=", "--optimizer.steps: expected an integer, got ''"),
        ("--optimizer.nesterov 3", "--optimizer.nesterov: expected true or false, got '3'"),
        (
            "--optimizer.wandb on",
            "--optimizer.wandb: expected one of online, off or null, got 'on'",
        ),
        (
            "--optimizer.betas [1]",
            "--optimizer.betas: expected a list of 2 values, as in [1, 2], got '[1]'",
        ),
        ("--optimizer.columns a", "--optimizer.columns: expected a list of texts or null, got 'a'"),
        (
            "--optimizer.columns [1]",
            "--optimizer.columns: expected a list of texts or null, got '[1]'",
        ),
        ("--optimizer.lr .inf", "--optimizer.lr: expected a finite number, got inf"),
        ("--optimizer.lr 1e999", "--optimizer.lr: expected a finite number, got inf"),
        ("--optimizer.extra.a .nan", "optimizer.extra.a: expected a finite number, got nan"),
        ("--optimizer.lr 1" + "0" * 400, "--optimizer.lr: this number is too large"),
        (
            "--optimizer.schedule.warmup x",
            "--optimizer.schedule.warmup: expected an integer, got 'x'",
        ),
        ("--optimizer x.yaml", "--optimizer: this is a group of settings; name one, as --opt"),
        ("--print_config=foo", 'Invalid option "foo" for --print_config'),
        ("--config nowhere.yaml", "--config nowhere.yaml: no such file"),
    ],
)
def test_a_mistake_on_the_command_line(parser, argv, message):
    needed = [] if "needs" in message else ["--output", "o"]
    with pytest.raises(UserError) as caught:
        parser.parse([*needed, *argv.split()])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer:\n  lr: fast\n", "line 2: optimizer.lr: expected a number, got 'fast'"),
        ("optimizer.columns: [1]\n", "line 1: optimizer.columns: expected a list of texts or null"),
        ("optimizer:\n  lr: .inf\n", "line 2: optimizer.lr: expected a finite number, got inf"),
        (
            "optimizer:\n  lrr: 3\n",
            "line 2: optimizer.lrr: no such setting; did you mean optimizer.lr?",
        ),
        ("budget: 3\n", "line 1: budget: expected a text or null, got '3'"),
        ("optimizer.lr: 1" + "0" * 400, "line 1: optimizer.lr: this number is too large"),
        ("config: other.yaml\n", "line 1: config: no such setting"),
    ],
)
def test_a_mistake_in_a_config_names_file_and_line(parser, config, text, message):
    path = config(text)
    with pytest.raises(UserError) as caught:
        parser.parse(["--output", "o", "--config", path])
    assert str(caught.value).startswith(f"{path}, {message}")
    assert "\n" not in str(caught.value)


def test_a_value_that_an_option_replaces_is_not_complained_about(parser, config):
    path = config("optimizer:\n  lr: fast\n")
    args = parser.parse(["--output", "o", "--config", path, "--optimizer.lr", "1"])
    assert args.optimizer.lr == 1.0
