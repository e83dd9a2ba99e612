"""Lightning's Trainer options on the command line."""

import inspect

import pytest
from pytorch_lightning import Trainer

from mlm.arguments import CommandParser, settings
from mlm.errors import UserError
from mlm.training.trainer import _say_how_many
from mlm.training.trainer_arguments import OWNED, add_trainer_arguments


@pytest.fixture
def parser():
    parser = CommandParser("pretrain", "trains")
    add_trainer_arguments(parser, {"log_every_n_steps": 20})
    parser.add_limits("trainer.max_steps", "trainer.max_time")
    return parser


def test_all_of_lightnings_options_but_those_a_run_owns(parser):
    options = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert options > OWNED, "Lightning has no such option any more"
    assert set(settings(parser.parse([]))["trainer"]) == options - OWNED | {"precision"}


def test_values_are_read_as_lightning_takes_them(parser):
    typed = {
        "max_steps": ("10", 10),
        "devices": ("2", "2"),
        "strategy": ("ddp", "ddp"),
        "accelerator": ("cpu", "cpu"),
        "log_every_n_steps": ("5", 5),
        "val_check_interval": ("0.5", 0.5),
        "precision": ("bf16-mixed", "bf16-mixed"),
        "gradient_clip_val": ("null", None),
    }
    args = parser.parse([f"--trainer.{name}={text}" for name, (text, _) in typed.items()])
    assert {name: args.trainer[name] for name in typed} == {n: v for n, (_, v) in typed.items()}
    Trainer(
        **{k: v for k, v in settings(args)["trainer"].items() if k != "precision"}, logger=False
    )


def test_our_defaults_and_lightnings(parser):
    args = parser.parse([])
    assert args.trainer.log_every_n_steps == 20
    assert args.trainer.precision == "auto"
    assert args.trainer.max_steps == -1


def test_a_config_and_its_limits(parser, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("trainer:\n  max_steps: 100\n  devices: 2\n")
    options = ["--config", str(tmp_path / "run.yaml"), "--trainer.max_time.minutes", "3"]
    args = parser.parse(options)
    assert (args.trainer.max_steps, args.trainer.devices) == (-1, 2)
    assert args.trainer.max_time == {"minutes": 3}
    with pytest.raises(SystemExit):
        parser.parse([*options, "--print_config"])
    assert "  devices: 2\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.max_stps=3", r"did you mean --trainer\.max_steps\?"),
        ("--max_steps=3", r"did you mean --trainer\.max_steps\?"),
        ("--trainer.precision=bf", r"--trainer\.precision: expected one of auto, "),
        ("--trainer.max_steps=1.5", r"--trainer\.max_steps: expected an integer, got '1\.5'"),
        ("--trainer.logger=false", r"--trainer\.logger: no such option"),
        ("--trainer.strategy.x=1", r"--trainer\.strategy\.x: no such option"),
    ],
)
def test_mistakes(parser, option, message):
    with pytest.raises(UserError, match=message):
        parser.parse([option])


@pytest.mark.parametrize(("word", "value"), [("1", 1), ("1.0", 1.0), ("null", None)])
def test_one_batch_and_all_of_them_are_told_apart(parser, word, value):
    found = settings(parser.parse(["--trainer.limit_val_batches", word]))["trainer"]
    assert found["limit_val_batches"] == value
    assert type(found["limit_val_batches"]) is type(value)


@pytest.mark.parametrize(
    ("processes", "devices", "said"),
    [(1, 1, ""), (2, 2, "2 processes, with a device each"), (1, 8, "8 devices are asked for, but")],
)
def test_how_many_processes_there_are_is_said(processes, devices, said, capsys):
    _say_how_many(processes, devices)
    assert said in capsys.readouterr().err
