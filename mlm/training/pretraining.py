"""A pretraining run, from its settings to a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from mlm.checkpoint import ModelFolder, read_folder, save_folder, start_masked_lm
from mlm.data.extension import extends
from mlm.data.keys import check_seed
from mlm.data.packing import num_rows
from mlm.data.store import TokenStore
from mlm.data.tokenizer import load_tokenizer, special_ids
from mlm.errors import UserError
from mlm.extending import extend_vocabulary
from mlm.huggingface import native_class
from mlm.memory import keep_freed_memory
from mlm.model.attention import backend_names
from mlm.model.config import NOT_CHOSEN, EncoderConfig, preset
from mlm.model.encoder import Encoder
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives.table import OBJECTIVES, ObjectiveOptions, check_objective
from mlm.training.anomaly import naming_anomalies
from mlm.training.batches import check_pairs, row_lengths
from mlm.training.budget import Spent, check_budget, check_rest
from mlm.training.callbacks import EndOfBudget, MakeUpValidation, StepMetrics, StopOnSignal
from mlm.training.checkpoint_io import FolderCheckpointIO, check_same_kind, without_prefix
from mlm.training.checkpoints import CheckpointOptions, Checkpoints
from mlm.training.compiling import check_compile
from mlm.training.data_options import DataOptions, Share
from mlm.training.datamodule import PretrainingDataModule
from mlm.training.flops import objective_flops, peak_flops
from mlm.training.guards import GO_ON, GuardOptions, guard, guard_callbacks, guarded
from mlm.training.guesses import log_guesses
from mlm.training.logging import LoggingOptions, build_loggers, close_loggers, say
from mlm.training.module import PretrainingModule
from mlm.training.optimizers import OptimizerOptions
from mlm.training.precision import resolve_device, resolve_precision
from mlm.training.probe import ProbeOptions, build_probe
from mlm.training.progress import BudgetProgress
from mlm.training.run_directory import (
    choose_checkpoint,
    is_rank_zero,
    resumed_step,
    write_config,
)
from mlm.training.starting import check_start, start
from mlm.training.trainer import build_trainer, check_trainer, choose_accelerator, choose_budget


def pretrain(settings: dict[str, Any]) -> dict[str, float]:
    """Pretrain as ``settings`` say and leave a model folder at ``run_dir/model``.

    Args:
        settings: the options of ``mlm pretrain``, nested by group.

    Returns:
        The metrics of the last validation.

    Raises:
        UserError: settings that cannot be run.
        RunError: the machine, or numbers that are not finite, ended the run.
        SystemExit: 143; a signal ended the run early, and its state is saved.
    """
    keep_freed_memory()
    return guarded(_pretrain, settings)


def _pretrain(settings: dict[str, Any]) -> dict[str, float]:
    run_dir, guards = Path(settings["run_dir"]), GuardOptions.of(settings)
    data = DataOptions(**settings["data"])
    optimizer = OptimizerOptions(**settings["optimizer"])
    objective = ObjectiveOptions(**settings["objective"])
    kept = CheckpointOptions(**settings["checkpoint"])
    negatives = OBJECTIVES[objective.name].negatives
    trainer_settings = dict(settings["trainer"])
    check_trainer(trainer_settings)
    if isinstance(interval := trainer_settings["val_check_interval"], float):
        raise UserError(
            f"trainer.val_check_interval: {interval} is a share of an epoch, and pretraining has "
            "none; give a whole number of steps"
        )
    check_seed(settings["seed"])
    trainer_settings["accelerator"] = choose_accelerator(trainer_settings["accelerator"])
    device = resolve_device(trainer_settings["accelerator"])
    precision = resolve_precision(trainer_settings["precision"], device)
    trainer_settings["precision"] = precision
    seed, compile = settings["seed"], settings["compile"]
    accumulation = trainer_settings["accumulate_grad_batches"]
    check_compile(compile, accumulation)
    if compile and data.is_ramped:
        raise UserError("data: a ramp changes shapes at each step; leave it out, or --compile")
    if negatives and data.sequence_length_start is not None:
        raise UserError(
            f"data.sequence_length_start: {objective.name} has pairs, which cannot be cut; leave "
            "one of the two out"
        )

    store = TokenStore.open(settings["store"])
    check_pairs(store, data.sequence_length, negatives)
    # What stands between the two of a pair takes a place of each row.
    rows = num_rows(store.split("train").ends, data.sequence_length - bool(negatives))
    budget = choose_budget(settings["budget"], trainer_settings, rows / data.batch_size)
    if budget is None:
        raise UserError("say how long the run is: --budget 30min, 2e9tokens or 2000steps")
    checkpoint = choose_checkpoint(run_dir, settings["resume"])
    if is_rank_zero() and not store.is_verified:
        say(f"{store.path}: verifying its checksums")
        store.verify()

    probe = build_probe(ProbeOptions(**settings["probe"]), load_tokenizer(store.tokenizer_dir))
    torch.manual_seed(seed)
    model = _build_model(settings["model"], store, data)
    trained = settings["model"]["path"] is not None
    check_start(objective, model, trained)
    check_objective(objective, model.config)
    resolved = {
        **settings,
        "model": {"path": settings["model"]["path"], **_describe(settings["model"], model.config)},
        "trainer": trainer_settings,
    }
    _say_what_runs(model.config, device, precision, data, objective, bool(compile))

    module = PretrainingModule(
        model,
        data,
        optimizer,
        budget,
        seed,
        compile,
        store.characters_per_token("validation"),
        probe,
        objective,
    )
    for part in module.modules():
        if isinstance(part, Encoder):
            part.recompute = settings["activation_checkpointing"]
    guard(module, guards, run_dir)
    datamodule = PretrainingDataModule(
        store, data, seed, accumulation, bool(compile), guards.stall_timeout, negatives
    )
    lengths = row_lengths(store.split("train"), data.sequence_length)
    mean_rate = (data.mlm_probability + data.mlm_probability_end) / 2
    token_flops = objective_flops(objective, model.config, lengths, mean_rate)
    every_n_steps, peak = trainer_settings["log_every_n_steps"], peak_flops(device, precision)
    metrics = StepMetrics(every_n_steps, token_flops, peak)
    save = _ModelSaver(model.config, store.tokenizer_dir, module)
    step = resumed_step(checkpoint, settings["resume"])
    loggers = build_loggers(LoggingOptions(**settings["logging"]), run_dir, resolved, step)
    files = FolderCheckpointIO(save, save.check)
    trainer = build_trainer(
        trainer_settings,
        [
            EndOfBudget(),
            metrics,
            BudgetProgress(every_n_steps, lambda: metrics.tokens_per_second),
            *guard_callbacks(guards, run_dir, files.load_checkpoint),
            Checkpoints(run_dir, kept.every_n_steps, kept.keep, kept.first),
            StopOnSignal(),
            MakeUpValidation(),
        ],
        loggers,
        files,
    )
    step_tokens = (data.batch_size_start or data.batch_size) * (data.sequence_length - 2)
    check_budget(budget, step_tokens, step_tokens * token_flops / peak / trainer.world_size)
    Share(0, trainer.world_size, accumulation).check(data)
    if not trained and checkpoint is None and is_rank_zero():  # the other ranks get its weights
        module.spent = Spent(seconds=start(model, store, objective, seed))
        check_rest(budget, module.spent.seconds)
    write_config(run_dir, resolved)
    with naming_anomalies(model, lambda: module.spent.steps + 1, guards.detect_anomaly):
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero:
        save(run_dir / "model", without_prefix(module.state_dict()))
        log_guesses(module, store, data.sequence_length, loggers)
    close_loggers(loggers)
    if module.stop_agreed:
        say(f"stopped after step {module.spent.steps}; {GO_ON}")
        raise SystemExit(143)
    module.clock.close()
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _build_model(
    options: dict[str, Any], store: TokenStore, data: DataOptions
) -> MaskedLanguageModel:
    """A fresh model for the store's tokenizer, or the one that is to be trained on."""
    tokenizer = load_tokenizer(store.tokenizer_dir)
    special = special_ids(tokenizer)
    changes = {
        name: value
        for name, value in options.items()
        if value is not None and name not in ("path", "family", "size")
    }
    if options["path"] is not None:
        folder = read_folder(options["path"])
        if extends(tokenizer, folder.tokenizer):
            say(
                f"{store.path} has more tokens than {options['path']}; their rows are the means "
                "of their pieces'"
            )
            folder = extend_vocabulary(folder, tokenizer)
        store.check_tokenizer(folder.tokenizer, options["path"])
        model = start_masked_lm(folder)
        asked = folder.config.replace(**changes)
        if asked != folder.config:
            fresh = MaskedLanguageModel(asked)
            try:
                fresh.load_state_dict(model.state_dict())
            except RuntimeError:
                raise UserError(
                    f"model: {', '.join(changes)} cannot be changed in {options['path']}; its "
                    "weights would not fit"
                ) from None
            model = fresh
    else:
        model = MaskedLanguageModel(
            preset(
                options["family"],
                options["size"],
                vocab_size=store.vocab_size,
                pad_token_id=special.pad,
                cls_token_id=special.cls,
                sep_token_id=special.sep,
                mask_token_id=special.mask,
                **changes,
            )
        )
    longest = model.config.max_position_embeddings
    if data.sequence_length > longest:
        raise UserError(
            f"data.sequence_length: {data.sequence_length} is beyond the model's {longest} "
            "positions; shorten it or raise --model.max_position_embeddings"
        )
    return model.train()


def _describe(options: dict[str, Any], config: EncoderConfig) -> dict[str, Any]:
    """Every field in force that may be chosen, beside the preset's name."""
    chosen = {name: x for name, x in config.to_dict().items() if name not in NOT_CHOSEN}
    return {"family": options["family"], "size": options["size"], **chosen}


@rank_zero_only
def _say_what_runs(
    config: EncoderConfig,
    device: str,
    precision: str,
    data: DataOptions,
    objective: ObjectiveOptions,
    compile: bool,
) -> None:
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    windows = config.attention_windows()
    common = device, dtype, config.attention_dropout, data.sequence_length
    paths = backend_names(*common, windows, config.position == "alibi", config.head_dim)
    native = native_class(config, OBJECTIVES[objective.name].head)
    fits = f"loads in transformers as {native.name}" if native.name else f"own: {native.reason}"
    say(f"{device}, {precision}, attention by {paths}; the model {fits}")
    if not windows and config.position in ("rope", "alibi"):
        say(
            f"warning: {config.position} tells attention where tokens stand, and no layer of this "
            "model attends; --model.position learned tells every kind"
        )
    if device == "cuda" and not compile:
        say("--compile true would train faster, once it has compiled")


class _ModelSaver:
    """Writes the weights of the present step as a model folder."""

    def __init__(self, config: EncoderConfig, tokenizer: Path, module: PretrainingModule) -> None:
        self.config, self.module = config, module
        self.tokenizer = load_tokenizer(tokenizer)

    def __call__(self, directory: Path, weights: dict[str, Tensor]) -> None:
        spent, metrics = self.module.spent, self.module.trainer.callback_metrics
        found = "".join(f"- {name}: {float(value):.4f}\n" for name, value in metrics.items())
        head = self.module.objective.head
        what = "A masked language model" if head == "masked_lm" else "An encoder"
        card = f"{what} after {spent.steps:,} steps and {spent.tokens:,} tokens"
        if (objective := self.module.objective_options.name) != "masked_lm":
            card += f" of {objective.replace('_', ' ')}"
        card += ".\n\n"
        if found:
            card += f"Last validation (15 % of the tokens masked):\n\n{found}"
        info = {"steps": spent.steps, "tokens": spent.tokens}
        save_folder(
            directory,
            config=self.config,
            head=head,
            state=self.module.folder_weights(weights),
            tokenizer=self.tokenizer,
            info=info,
            card=card,
        )

    def check(self, folder: ModelFolder) -> None:
        """Refuse a checkpoint that the run cannot go on from."""
        check_same_kind(folder, self.config, self.tokenizer)
