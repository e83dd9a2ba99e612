"""Weights & Biases, on a thread of its own."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Full, Queue
from threading import Thread, main_thread
from typing import Any, Literal
from uuid import uuid4

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.loggers.wandb import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from mlm.console import say
from mlm.files import atomic_file

START_SECONDS = 30  # how long a server may take to accept a run
FINISH_SECONDS = 30  # how long a finished run may go on uploading
MAX_WAITING = 10_000  # calls not yet taken up; beyond it Weights & Biases hangs

Calls = Queue[Callable[[WandbLogger], object] | None]  # None: no more will come


class WandbRun(Logger):
    """A run at Weights & Biases that can neither stop nor hold up training.

    Lightning's ``WandbLogger`` does the work, on a thread that takes call after call from a
    queue. What goes wrong there is said once, in one line, and training goes on. The run starts
    when the Trainer does, on rank zero alone, and ends with :meth:`close` (or the process), not
    with ``finalize``: Lightning calls that after every ``fit`` and ``validate``.

    Args:
        run_dir: files go to its ``wandb`` folder. An online run's id is kept there, so that a
            resumed run goes on under it; an offline attempt cannot, and gets an id of its own.
        mode: `online` or `offline`.
        **settings: what ``wandb.init`` takes (`project`, `name`, `group`, `tags`, `config`).
    """

    def __init__(self, run_dir: Path, mode: Literal["online", "offline"], **settings: Any) -> None:
        super().__init__()
        self._run_dir = run_dir
        self._mode = mode
        self._settings = settings
        self._run: Any = None
        self._calls: Calls | None = None
        self._thread: Thread | None = None
        self._over = False  # closed, or given up
        self._warned = False
        self._exit_code = 0

    @property
    def name(self) -> str:
        """The project."""
        return str(self._settings["project"])

    @property
    def version(self) -> str | None:
        """The run's id, once there is one."""
        return getattr(self._run, "id", None)

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return str(self._run_dir)

    @property
    def experiment(self) -> Any:
        """W&B's own run object, None before it has started; what is called on it is not guarded.

        Lightning asks for it as training begins, which starts the run.
        """
        self._start()
        return self._run

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers at a step."""
        row = dict(metrics)
        self._put(lambda logger: logger.log_metrics(row, step))

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Add to the run's config, which has the whole resolved configuration from the start."""
        self._put(lambda logger: logger.log_hyperparams(params))

    def log_table(
        self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], step: int
    ) -> None:
        """Log a table; the values of a column are of one type."""
        data = [list(row) for row in rows]
        self._put(lambda logger: logger.log_table(name, list(columns), data, step=step))

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Log a picture that is a file."""
        self._put(lambda logger: logger.log_image(name, [str(path)], step=step))

    def finalize(self, status: str) -> None:
        """Note how it went; the run itself ends with :meth:`close`."""
        self._exit_code = int(status != "success")

    def close(self) -> None:
        """End the run, waiting for what is still to be uploaded, but not for long."""
        thread, self._thread, self._over = self._thread, None, True
        if thread is None or self._calls is None:
            return
        with suppress(Full):  # then it has hung for long, and does not come to an end below
            self._calls.put_nowait(None)
            thread.join(timeout=START_SECONDS + FINISH_SECONDS)
        if thread.is_alive():
            self._warn("it does not answer")
            abandon_service()

    @rank_zero_only
    def _start(self) -> None:
        if self._thread is not None or self._over:
            return
        try:
            arguments = self._arguments()
        except Exception as error:
            self._give_up(error)
            return
        self._calls = Queue(MAX_WAITING)
        self._thread = Thread(
            target=self._work, args=(arguments, self._calls), name="wandb", daemon=True
        )
        self._thread.start()
        Thread(target=self._close_at_exit, name="wandb-exit").start()

    def _close_at_exit(self) -> None:
        # Not by `atexit`: wandb's own hook there ends the process that uploads, and would come
        # first where the run has only just begun. A thread is waited for before all of them.
        main_thread().join()
        self.close()

    @rank_zero_only
    def _put(self, call: Callable[[WandbLogger], object]) -> None:
        self._start()
        if self._over or self._calls is None:
            return
        try:
            self._calls.put_nowait(call)
        except Full:
            self._give_up("it does not answer")

    def _work(self, arguments: dict[str, Any], calls: Calls) -> None:
        wandb = import_wandb()
        try:
            self._run = wandb.init(**arguments)
            self._run.define_metric("trainer/global_step")
            self._run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
            logger = WandbLogger(experiment=self._run)
            self._announce()
        except Exception as error:
            self._give_up(error)
            abandon_service()
            return
        while (call := calls.get()) is not None:
            try:
                call(logger)
            except Exception as error:
                self._warn(error)
        try:
            self._run.finish(exit_code=self._exit_code)
        except Exception as error:
            self._warn(error)
            abandon_service()

    def _arguments(self) -> dict[str, Any]:
        """What the run is started with."""
        wandb = import_wandb()
        (self._run_dir / "wandb").mkdir(parents=True, exist_ok=True)
        online = self._mode == "online"
        limits = {
            "init_timeout": START_SECONDS,
            "finish_timeout": FINISH_SECONDS,
            "finish_timeout_raises": True,
        }
        return self._settings | {
            "dir": self._run_dir,
            "mode": self._mode,
            "id": run_id(self._run_dir) if online else None,
            "resume": "allow" if online else None,
            "reinit": "create_new",  # several runs in one process, one a seed, are kept apart
            "settings": wandb.Settings(
                silent=True,
                console="off",  # stdout and stderr stay untouched
                **{k: v for k, v in limits.items() if k in wandb.Settings.model_fields},
            ),
        }

    def _give_up(self, problem: object) -> None:
        self._over = True
        self._warn(problem)

    def _announce(self) -> None:
        if self._mode == "online":
            say(f"Weights & Biases: {self._run.url}")
        else:
            folder = Path(self._run.dir).parent
            say(f"Weights & Biases records offline; upload with: wandb sync {folder}")

    def _warn(self, problem: object) -> None:
        if self._warned:
            return
        self._warned = True
        kind = f"{type(problem).__name__}: " if isinstance(problem, Exception) else ""
        say(
            f"Weights & Biases failed ({kind}{problem}); training goes on, and metrics.csv has "
            "everything"
        )


def has_wandb_key() -> bool:
    """Whether an API key for Weights & Biases is configured: in the environment or in netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    files = (os.environ.get("NETRC"), "~/.netrc", "~/_netrc")
    if not any(name and Path(name).expanduser().is_file() for name in files):
        return False  # without importing wandb
    try:
        import_wandb()
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib.wbauth import read_netrc_auth

        return read_netrc_auth(host=wandb_setup.singleton().settings.base_url) is not None
    except Exception:  # not installed, too old, or what stands in netrc is no key
        return False


def import_wandb() -> Any:
    """The ``wandb`` package, imported where it is used alone: it may not be installed.

    Its reports of its own health are off unless asked for: they are sent in offline mode too, and
    hold up the exit where the server is silent.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ImportError:
        raise ImportError("it is not installed; pip install wandb") from None
    return wandb


def abandon_service() -> None:
    """Leave wandb's helper process to itself, after a failure: at exit wandb would wait for it."""
    wandb = import_wandb()

    def teardown() -> None:
        with suppress(Exception):
            wandb.teardown()

    # Taking the service down is what removes wandb's own hook at exit, and that comes first; what
    # may take for ever comes after it, and stays on the thread.
    thread = Thread(target=teardown, name="wandb-teardown", daemon=True)
    thread.start()
    thread.join(timeout=1)


def run_id(run_dir: Path) -> str:
    """The id of a run directory's run at Weights & Biases, the same for ever once asked for."""
    path = run_dir / "wandb" / "run_id.txt"
    if not path.exists():
        with atomic_file(path) as draft:
            draft.write_text(uuid4().hex[:8] + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
