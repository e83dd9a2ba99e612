"""From a model folder to a model with a task's head on it, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor

from mlm.checkpoint import ModelFolder, read_folder, save_folder
from mlm.errors import UserError
from mlm.model.config import EncoderConfig
from tasks.base import TASKS, Task, find_task
from tasks.freezing import freeze_parts
from tasks.heads import TaskModel
from tasks.options import ModelOptions

# The task of a folder that names none: of those that transformers saved.
TASK_OF_LAYOUT = {
    "sequence_classification": "text_classification",
    "token_classification": "token_classification",
    "question_answering": "question_answering",
    "multiple_choice": "multiple_choice",
}
# What transformers calls the kinds of sequence classification, beside one class of several.
TASK_OF_PROBLEM = {
    "regression": "regression",
    "multi_label_classification": "multi_label_classification",
}


def load_task_folder(
    directory: str | Path, task: str | type[Task] | None = None
) -> tuple[TaskModel, Task, tokenizers.Tokenizer]:
    """A fine-tuned model folder, ready to answer.

    Args:
        directory: the folder.
        task: a task of the caller's own, as a class or by its dotted path; what the folder itself
            names is only ever looked up in `TASKS`.

    Returns:
        The model in eval mode, its task and its tokenizer.

    Raises:
        UserError: no such folder, a damaged one, one of another kind, or a task that is not known.
    """
    return build_task(read_folder(directory), task)


def build_task(
    folder: ModelFolder, task: str | type[Task] | None = None
) -> tuple[TaskModel, Task, tokenizers.Tokenizer]:
    """As `load_task_folder`, of a folder that is read already."""
    kind = task_class(folder, task)
    try:
        restored = kind.restore(folder.info, folder.labels or ())
        restored.open_folder(folder)
        restored.settle(folder.config)
    except UserError as error:
        raise UserError(f"{folder.directory}/config.json: {error}") from None
    model = restored.build_model(folder.config)
    load_state(model, folder.state, folder.directory)
    return model.eval(), restored, folder.tokenizer


def has_task(folder: ModelFolder) -> bool:
    """Whether it was fine-tuned; a task may answer by the masked-LM head itself."""
    return folder.head not in ("masked_lm", "encoder") or "task" in folder.info


def task_class(folder: ModelFolder, task: str | type[Task] | None = None) -> type[Task]:
    """The class of a folder's task; a `UserError` where it has none, or not the one asked for."""
    if not has_task(folder):
        raise UserError(
            f"{folder.directory}: is a pretrained model without a task; fine-tune it first "
            "(mlm finetune)"
        )
    usual = _usual_task(folder)
    named = str(folder.info.get("task", usual))
    if named != usual and usual in TASK_OF_PROBLEM.values() and named in TASKS:
        raise UserError(
            f"{folder.directory}/config.json: problem_type is that of the task {usual!r}, but "
            f"mlm.task says {named!r}"
        )
    kind = find_task(task) if isinstance(task, str) else task
    if kind is None and named in TASKS:
        kind = find_task(named)
    if kind is None:
        raise UserError(
            f"{folder.directory}: its task {named!r} is none of {', '.join(TASKS)}; if it is your "
            f"own and you trust it, name it: --task {named}"
        )
    if folder.head in ("masked_lm", "encoder") and kind.layout != folder.head:
        raise UserError(f"{folder.directory}: holds no head of the task {named!r} that it names")
    if kind.name != named:
        raise UserError(f"{folder.directory}: is a folder of task {named!r}, not {kind.name!r}")
    return kind


def _usual_task(folder: ModelFolder) -> str:
    """The task of a folder by its head, and by its `problem_type` where that tells more."""
    usual = TASK_OF_LAYOUT.get(folder.head, "")
    if usual != "text_classification":
        return usual
    if (problem := str(folder.info.get("problem_type"))) in TASK_OF_PROBLEM:
        return TASK_OF_PROBLEM[problem]
    return "regression" if len(folder.labels or ()) == 1 else usual


def start_model(
    options: ModelOptions, folder: ModelFolder, task: Task, config: EncoderConfig
) -> TaskModel:
    """The model that training starts from: the folder's encoder with a fresh classifier.

    A task that answers by the masked-LM head starts from all of the folder's.
    The part of the head below the classifier starts from the folder's where it has the same shape
    and meaning, as in ModernBERT, whose masked-LM head has that part too.
    """
    model = task.build_model(config, options.dropout)
    freeze_parts(model.encoder, options.freeze)
    if options.random:
        return model
    own = model.state_dict()
    whole = task.layout == folder.head == "masked_lm"
    state = {
        name: tensor
        for name, tensor in folder.state.items()
        if whole
        or name.startswith("encoder.")
        or (same_head(folder, config) and name in own and _below_classifier(name))
    }
    load_state(model, own | state, folder.directory)
    return model


def _below_classifier(name: str) -> bool:
    return name.startswith("head.") and not name.startswith("head.classifier.")


def same_head(folder: ModelFolder, config: EncoderConfig) -> bool:
    """Whether the folder's head does below its last map what a task's head does there.

    A masked-LM head has dense, activation and norm, as ModernBERT's other heads; BERT's pooler
    has a tanh that no masked-LM head was trained with. BERT's bare encoder comes with its pooler.
    """
    if folder.head == "masked_lm":
        return config.pooler == config.lm_head == "transform"
    return folder.head in ("encoder", *TASK_OF_LAYOUT)


def load_state(model: TaskModel, state: dict[str, Tensor], directory: Path) -> None:
    """Put ``state`` into ``model``; a `UserError` names what does not fit."""
    own = model.state_dict()
    if missing := sorted(own.keys() - state.keys()):
        raise UserError(f"{directory}: has no weights {missing[0]!r}; is it of this kind?")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"{directory}: weights {name!r} have shape {tuple(state[name].shape)}, "
                f"the configuration wants {tuple(tensor.shape)}"
            )
    with torch.no_grad():
        model.load_state_dict({name: state[name] for name in own})


def save_task_folder(
    directory: Path,
    state: dict[str, Tensor],
    config: EncoderConfig,
    task: Task,
    tokenizer: tokenizers.Tokenizer,
    info: dict[str, Any] | None = None,
    card: str = "",
) -> None:
    """Write a fine-tuned model folder.

    Args:
        directory: replaced if it is there.
        state: a `TaskModel`'s.
        config: its encoder's.
        task: what it answers.
        tokenizer: what it reads.
        info: more to keep under "mlm" in config.json.
        card: the text of README.md.
    """
    save_folder(
        directory,
        config=config,
        head=task.layout,
        state=task.saved_state(state),
        tokenizer=tokenizer,
        info={**(info or {}), **task.info()},
        labels=list(task.settings.labels) or None,
        card=card,
    )
