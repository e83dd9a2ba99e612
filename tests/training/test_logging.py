"""Loggers: metrics.csv always; W&B for real, offline and against a stub; never in the way."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pytorch_lightning.utilities import rank_zero_only
from wandb_stub import serve

from mlm.training import wandb_run
from mlm.training.logging import (
    LoggingOptions,
    build_loggers,
    close_loggers,
    log_table,
    resolve_mode,
)
from mlm.training.metrics_csv import MetricsCSV, read_metrics
from mlm.training.wandb_run import WandbRun, has_wandb_key, run_id

KEY = "0123456789abcdef" * 2 + "01234567"  # of the right form
CONFIG = {"data": {"path": "store"}, "optimizer": {"lr": 1e-3, "betas": [0.9, 0.98]}}


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """No key and no setting of the person who runs the tests."""
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def run_dir(tmp_path):
    path = tmp_path / "first"
    path.mkdir()
    return path


def log_all(loggers, first=1, last=3):
    """What a Trainer calls."""
    for logger in loggers:
        getattr(logger, "experiment", None)
    for step in range(first, last + 1):
        for logger in loggers:
            logger.log_metrics({"train/loss": 1 / step}, step)
            logger.save()
    for logger in loggers:
        logger.finalize("success")


def has_row(run_dir, step=3):
    return read_metrics(run_dir / "metrics.csv")["step"][-1] == step


# Whether it is on


@pytest.mark.parametrize(
    ("asked", "variable", "key", "mode", "says"),
    [
        ("auto", None, True, "online", False),
        ("auto", None, False, "off", True),
        ("auto", "online", True, "online", False),
        ("auto", "online", False, "off", True),
        ("auto", "offline", True, "offline", False),
        ("auto", "dryrun", False, "offline", False),
        ("auto", "disabled", True, "off", False),
        ("online", "offline", True, "online", False),
        ("online", None, False, "off", True),
        ("offline", None, False, "offline", False),
        ("off", "online", True, "off", False),
    ],
)
def test_the_mode_is_known_before_the_start(asked, variable, key, mode, says):
    environment = {} if variable is None else {"WANDB_MODE": variable}
    found, line = resolve_mode(asked, environment, lambda: key)
    assert found == mode
    assert bool(line) == says


def test_a_key_is_found_where_wandb_finds_it(home, monkeypatch):
    assert not has_wandb_key()
    (home / ".netrc").write_text(f"machine git.example.org\n  login me\n  password {KEY}\n")
    assert not has_wandb_key()
    (home / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    assert has_wandb_key()
    (home / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert has_wandb_key()


def test_without_a_key_it_is_off_and_one_line_says_how_to_turn_it_on(run_dir, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # not even imported
    loggers = build_loggers(LoggingOptions(), run_dir, CONFIG)
    log_all(loggers)
    log_table(loggers, "val/predictions", ["text"], [["a"]], 3)
    close_loggers(loggers)
    assert [type(logger) for logger in loggers] == [MetricsCSV]
    assert [path.name for path in run_dir.iterdir()] == ["metrics.csv"]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mlm: Weights & Biases is off")
    assert err.count("\n") == 1
    assert "wandb login" in err
    build_loggers(LoggingOptions(wandb="off"), run_dir, CONFIG, resumed_step=3)
    assert capsys.readouterr().err == ""


def test_only_rank_zero_has_it(run_dir, capsys, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    loggers = build_loggers(LoggingOptions(wandb="offline"), run_dir, CONFIG)
    log_all(loggers)
    assert [type(logger) for logger in loggers] == [MetricsCSV]
    run = WandbRun(run_dir, "offline", project="mlm")  # built on rank zero and carried over
    log_all([run])
    run.close()
    assert list(run_dir.iterdir()) == []
    assert capsys.readouterr().err == ""


# What goes wrong stays there


class FakeRun:
    """What WandbRun and Lightning use of a run; each part can be made to fail or to hang."""

    id, url, dir = "abc", "http://stub", "files"

    def __init__(self, **parts):
        self.rows, self.exit_code = [], None
        self.__dict__.update(parts)

    def define_metric(self, *_, **__):
        pass

    def log(self, row):
        self.rows.append(row)

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def fake(monkeypatch):
    """Puts a fake in wandb's place."""

    def put(run=None, init=None):
        module = SimpleNamespace(
            init=init or (lambda **_: run),
            Settings=type("Settings", (SimpleNamespace,), {"model_fields": {}}),
            teardown=lambda: None,
        )
        monkeypatch.setattr(wandb_run, "import_wandb", lambda: module)
        monkeypatch.setattr(wandb_run, "START_SECONDS", 0.1)
        monkeypatch.setattr(wandb_run, "FINISH_SECONDS", 0.1)

    return put


def fail(*_, **__):
    raise RuntimeError("the server\nis down")


def hang(*_, **__):
    threading.Event().wait(60)


def warnings(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "failed" in line]


def timed_run(run_dir):
    start = time.monotonic()
    loggers = build_loggers(LoggingOptions(wandb="offline"), run_dir, CONFIG)
    log_all(loggers)
    logged = time.monotonic() - start
    close_loggers(loggers)
    close_loggers(loggers)
    return loggers, logged, time.monotonic() - start


@pytest.mark.parametrize(
    "parts",
    [
        {"init": fail},
        {"init": hang},
        {"run": FakeRun(log=fail)},
        {"run": FakeRun(log=hang)},
        {"run": FakeRun(finish=fail)},
        {"run": FakeRun(finish=hang)},
    ],
    ids=["init fails", "init hangs", "log fails", "log hangs", "finish fails", "finish hangs"],
)
def test_a_failure_is_one_line_and_training_goes_on(parts, fake, run_dir, capsys):
    fake(**parts)
    _, logged, closed = timed_run(run_dir)
    assert logged < 20
    assert closed < 40
    assert has_row(run_dir)
    (line,) = warnings(capsys)
    assert "the server is down" in line or "does not answer" in line
    assert "metrics.csv has everything" in line


def test_one_bad_table_does_not_end_the_run(fake, run_dir, capsys):
    rows = []

    def log(row):
        if row["trainer/global_step"] == 2:
            raise TypeError("mixed types")
        rows.append(row)

    run = FakeRun(log=log)
    fake(run)
    timed_run(run_dir)
    assert [row["trainer/global_step"] for row in rows] == [1, 3]
    assert run.exit_code == 0
    assert warnings(capsys) == [
        "mlm: Weights & Biases failed (TypeError: mixed types); training goes on, and metrics.csv "
        "has everything"
    ]


def test_what_it_does_not_take_up_does_not_fill_the_memory(fake, run_dir, capsys, monkeypatch):
    monkeypatch.setattr(wandb_run, "MAX_WAITING", 2)
    fake(init=hang)
    loggers, logged, closed = timed_run(run_dir)
    assert logged < 20
    assert closed < 40
    assert len(warnings(capsys)) == 1
    assert loggers[1]._calls.qsize() == 2


def test_a_failed_training_is_a_failed_run(fake, run_dir):
    run = FakeRun()
    fake(run)
    loggers = build_loggers(LoggingOptions(wandb="offline"), run_dir, CONFIG)
    log_all(loggers)
    loggers[1].finalize("failed")
    close_loggers(loggers)
    assert run.exit_code == 1
    assert len(run.rows) == 3


def test_an_image_without_wandb_is_one_line(run_dir, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    timed_run(run_dir)
    assert has_row(run_dir)
    (line,) = capsys.readouterr().err.splitlines()
    assert "not installed; pip install wandb" in line


def test_it_travels_before_it_starts(run_dir):
    run = pickle.loads(pickle.dumps(WandbRun(run_dir, "offline", project="mlm")))
    assert (run.name, run.version, run.save_dir) == ("mlm", None, str(run_dir))


def test_the_id_is_kept(run_dir):
    assert run_id(run_dir) == run_id(run_dir) == (run_dir / "wandb/run_id.txt").read_text().strip()


# For real


def run_python(code, *arguments, **environment):
    """Run code in a process of its own, as W&B lives as long as the process does."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=Path(__file__).parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
    )


LOG = """
import sys
from pathlib import Path
from mlm.training import wandb_run
from matplotlib.figure import Figure
from mlm.training.logging import (
    LoggingOptions, build_loggers, close_loggers, log_image, log_table
)
from test_logging import CONFIG, log_all

wandb_run.START_SECONDS = wandb_run.FINISH_SECONDS = float(sys.argv[3])
options = LoggingOptions(wandb=sys.argv[1], project="reviews", group="seeds", tags=["quick"])
for attempt in range(2):
    loggers = build_loggers(options, Path(sys.argv[2]), CONFIG, resumed_step=3 * attempt)
    log_all(loggers, 1 + 3 * attempt, 3 + 3 * attempt)
    if sys.argv[1] == "offline":
        log_table(loggers, "val/predictions", ["text", "score"], [["fine", 0.75]], 3)
        Figure(figsize=(1, 1)).savefig(sys.argv[2] + "/picture.png")
        log_image(loggers, "val/reliability", Path(sys.argv[2], "picture.png"), 3)
    if attempt == 0:
        close_loggers(loggers)  # the second is left to the end of the process
"""


def records(path):
    """What a .wandb file holds, in W&B's own reading of it."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    return [json.loads(line) for line in lines.stdout.splitlines()]


@pytest.mark.slow
def test_offline_records_everything_and_sends_nothing(run_dir, home):
    with serve() as server:
        done = run_python(
            LOG, "offline", run_dir, 120, WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url
        )
        assert server.runs == server.rows == []
        assert server.requests == 0
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all("records offline; upload with: wandb sync" in line for line in lines), lines
    first, second = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime)
    assert first.name != second.name
    for path in (first, second):
        assert [p.read_bytes() for p in path.parent.glob("files/media/images/val/*.png")] == [
            (run_dir / "picture.png").read_bytes()
        ]
    for path, steps in ((first, [1, 2, 3]), (second, [4, 5, 6])):
        found = records(path)
        run = next(r["run"] for r in found if r["type"] == "run")
        assert {k: run[k] for k in ("project", "run_group", "display_name", "tags")} == {
            "project": "reviews",
            "run_group": "seeds",
            "display_name": "first",
            "tags": ["quick"],
        }
        assert CONFIG.items() <= run["config"]["update"].items()
        rows = [r["history"]["item"] for r in found if r["type"] == "history"]
        assert [r["trainer/global_step"] for r in rows if "train/loss" in r] == steps
        assert [r["train/loss"] for r in rows if "train/loss" in r] == [1 / n for n in steps]
        assert [r["exit"]["exit_code"] for r in found if r["type"] == "exit"] == [0]
    tables = list(run_dir.glob("wandb/offline-run-*/files/media/table/val/*.table.json"))
    assert len(tables) == 2
    assert json.loads(tables[0].read_text())["data"] == [["fine", 0.75]]
    assert has_row(run_dir, 6)
    assert_no_key(run_dir, home)


def assert_no_key(*folders):
    for folder in folders:
        for path in folder.rglob("*"):
            assert not path.is_file() or KEY.encode() not in path.read_bytes()


@pytest.mark.slow
def test_online_goes_on_under_the_same_id(run_dir, home):
    with serve() as server:
        done = run_python(LOG, "auto", run_dir, 120, WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
    assert "failed" not in done.stderr, done.stderr
    assert f"mlm: Weights & Biases: {server.url}/me/reviews/runs/{run_id(run_dir)}" in done.stderr
    assert {run["name"] for run in server.runs} == {run_id(run_dir)}
    assert {run["project"] for run in server.runs} == {"reviews"}
    assert any('"lr":' in run["config"] for run in server.runs)
    assert [row["trainer/global_step"] for row in server.rows] == [1, 2, 3, 4, 5, 6]
    assert [row["train/loss"] for row in server.rows] == [1 / n for n in range(1, 7)]
    assert_no_key(run_dir, home)


@pytest.mark.slow
def test_a_server_that_falls_silent_holds_nothing_up(run_dir, home):
    with serve(hangs_after=3) as server:
        begin = time.monotonic()
        done = run_python(LOG, "auto", run_dir, 5, WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
        assert time.monotonic() - begin < 120
        assert server.requests > 3
    assert "mlm: Weights & Biases failed" in done.stderr
    assert has_row(run_dir, 6)
    assert_no_key(run_dir, home)


@pytest.mark.slow
def test_a_server_that_cannot_be_reached_costs_a_line(run_dir):
    done = run_python(
        LOG, "auto", run_dir, 2, WANDB_API_KEY=KEY, WANDB_BASE_URL="http://127.0.0.1:9"
    )
    assert done.stderr.count("mlm: Weights & Biases failed") == 2  # for each of the two runs
    assert has_row(run_dir, 6)
    assert_no_key(run_dir)
