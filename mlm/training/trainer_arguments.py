"""Lightning's own Trainer options, as ``--trainer.…``."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import jsonargparse

# What a run decides itself: its folder, logs, checkpoints and callbacks, and, because rows come in
# an order of our own that is already split among the ranks, how data is loaded. That stream has no
# end and the budget alone ends a run: options that cut epochs would repeat its beginning.
OWNED = {
    "barebones",
    "callbacks",
    "check_val_every_n_epoch",
    "default_root_dir",
    "detect_anomaly",
    "enable_autolog_hparams",
    "enable_checkpointing",
    "fast_dev_run",
    "limit_predict_batches",
    "limit_test_batches",
    "limit_train_batches",
    "logger",
    "min_epochs",
    "min_steps",
    "model_registry",
    "num_sanity_val_steps",
    "overfit_batches",
    "plugins",
    "precision",
    "reload_dataloaders_every_n_epochs",
    "use_distributed_sampler",
}

# Lightning takes objects here too. jsonargparse would make them of a `class_path`, and so import
# whatever a config file names: here they are names, of what Lightning has itself.
NAMES = {
    "accelerator": "`cpu`, `gpu`, …; `auto` is CUDA where there is some, else the CPU",
    "strategy": "`ddp`, …: how the devices share the work",
    "profiler": "`simple`, `advanced` or `pytorch`: where the time goes",
}

# Where 1 is one and 1.0 is all. Of unions that differ in order alone `typing` gives whichever it
# was asked for first, so by Lightning's own type either might be read.
NUMBERS = {"limit_val_batches": "validate on so many batches, or on such a share of them"}


def add_trainer_arguments(parser: jsonargparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    """Add ``--trainer.…`` to ``parser``: all of Lightning's options but those that a run owns.

    Args:
        parser: the command's parser.
        defaults: values to use instead of Lightning's, by their names there. `precision` is ours:
            `auto` by default.
    """
    # Seconds to import, so not before a command that trains is known.
    from pytorch_lightning import Trainer

    from mlm.training.precision import PRECISIONS

    parser.add_class_arguments(Trainer, "trainer", skip={*OWNED, *NAMES, *NUMBERS})
    options = inspect.signature(Trainer.__init__).parameters
    for name, meaning in NAMES.items():
        default = options[name].default
        kind = str if default is not None else str | None
        parser.add_argument(f"--trainer.{name}", type=kind, default=default, help=meaning)
    for name, meaning in NUMBERS.items():
        default = options[name].default
        parser.add_argument(
            f"--trainer.{name}", type=int | float | None, default=default, help=meaning
        )
    parser.add_argument(
        "--trainer.precision",
        type=Literal[tuple(PRECISIONS)],
        default="auto",
        help="`auto` is bf16 where the processor or GPU has bf16 matrix instructions, else fp32",
    )
    parser.set_defaults({f"trainer.{name}": value for name, value in defaults.items()})
