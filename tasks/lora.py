"""Fine-tuning by adapters (see mlm/adapters.py): the encoder stays, they and the head learn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor, nn

from mlm.adapter_folder import About, Adapter, base_digest, read_adapter, save_adapter
from mlm.adapters import (
    adapter_state,
    add_lora,
    check_rank,
    find_targets,
    load_adapter,
    merge_state,
)
from mlm.checkpoint import ModelFolder, read_folder
from mlm.errors import UserError
from mlm.model.config import EncoderConfig
from mlm.model.encoder import Encoder
from tasks.base import Task
from tasks.folders import build_task, load_state
from tasks.freezing import freeze_parts
from tasks.heads import TaskModel
from tasks.options import LoraOptions, ModelOptions


@dataclass(frozen=True)
class Lora:
    """The adapters of a run."""

    base: str
    """The checksum of the encoder that they are put on."""
    rank: int
    alpha: float
    dropout: float
    targets: list[str]
    """The layers' names in the encoder."""
    start: Adapter | None = None
    """What they start from; None is nothing."""

    def put_on(self, model: TaskModel, task: Task) -> None:
        """Freeze the encoder of ``model`` and put the adapters on it.

        Where they start from others, the head does so too if it answers the same.
        """
        add_lora(model.encoder, self.targets, self.rank, self.alpha, self.dropout)
        if self.start is None:
            return
        load_adapter(model, adapter_state(self.start.state))
        about, own = self.start.about, model.state_dict()
        head = {n: t for n, t in self.start.state.items() if not n.startswith("encoder.")}
        same = about.info.get("task") == task.name and about.labels == _labels(task)
        if same and all(n in own and own[n].shape == t.shape for n, t in head.items()):
            load_state(model, task.training_state(own | head), Path())

    def merged(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """A `TaskModel`'s weights without adapters, that answer the same."""
        return merge_state(weights, self.alpha)

    def save(
        self, directory: Path, weights: dict[str, Tensor], task: Task, folder: ModelFolder
    ) -> None:
        """Write the adapters and the head among ``weights``, on ``folder`` as base."""
        state = task.saved_state(weights)
        learnt = {n: t for n, t in state.items() if not n.startswith("encoder.")}
        about = About(
            self.base, self.rank, self.alpha, self.targets, task.layout, task.info(), _labels(task)
        )
        adapter = Adapter(about, learnt | adapter_state(state))
        save_adapter(directory, adapter, folder.config, str(folder.directory), self.dropout)

    def kept(self, weights: dict[str, Tensor]) -> dict[str, object]:
        """What a checkpoint keeps beside its model folder, where adapters are merged."""
        return {"base": self.base, "alpha": self.alpha, "tensors": adapter_state(weights)}

    def restored(
        self, model: TaskModel, weights: dict[str, Tensor], kept: dict[str, object] | None
    ) -> dict[str, Tensor]:
        """A checkpoint's weights as they were trained: what `merged` and `kept` gave.

        Raises:
            UserError: they were trained on another base, or with other adapters.
        """
        if kept is None or (kept["base"], kept["alpha"]) != (self.base, self.alpha):
            raise UserError(
                "--resume: this checkpoint was trained on another --model, or with another "
                "--lora.alpha or none; go on with the same"
            )
        tensors = kept["tensors"]
        assert isinstance(tensors, dict)
        load_adapter(model, tensors)
        frozen = {n: t for n, t in model.state_dict().items() if n.startswith("encoder.")}
        return weights | frozen


def plan_lora(
    options: LoraOptions, model: ModelOptions, folder: ModelFolder, config: EncoderConfig
) -> Lora | None:
    """What ``options`` mean for the encoder of ``folder``; None where there are no adapters.

    Raises:
        UserError: they cannot be put on it.
    """
    if not options.wanted:
        return None
    if model.random:
        raise UserError("lora: random weights are not worth adapting; leave out model.random")
    base = base_digest(folder.state)
    start = read_adapter(options.adapter, config, base) if options.adapter else None
    given = options
    if start is not None:
        about = start.about
        found: dict[str, Any] = {
            "rank": about.rank,
            "alpha": about.alpha,
            "targets": about.targets,
        }
        for name, value in found.items():
            if getattr(options, name) not in (value, None, 0):
                raise UserError(f"lora.{name}: {options.adapter} has its own; leave this out")
        given = replace(options, **found)
    with torch.device("meta"):
        encoder = Encoder(config)
    freeze_parts(encoder, model.freeze)
    if start is None:
        targets = find_targets(encoder, given.chosen_targets)
    else:
        targets = start.about.targets
        if not all(encoder.get_parameter(f"{t}.weight").requires_grad for t in targets):
            raise UserError("lora.adapter: model.freeze freezes layers that it is on; choose less")
    check_rank(encoder, targets, given.rank)
    return Lora(base, given.rank, given.chosen_alpha, options.dropout, targets, start)


def describe_learning(model: nn.Module) -> str:
    """How much of ``model`` learns, for people."""
    whole = sum(p.numel() for p in model.parameters())
    learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"trains {100 * learns / whole:.2g} % of {whole / 1e6:.3g} M weights"


def load_task_adapter(
    base: str | Path, adapter: str | Path, task: str | type[Task] | None = None
) -> tuple[TaskModel, Task, tokenizers.Tokenizer]:
    """A base and an adapter that a run left beside its model: the fine-tuned model again.

    Args:
        base: the model folder that it was trained on.
        adapter: such as `runs/sst2/adapter`.
        task: as in `load_task_folder`.

    Returns:
        The merged model in eval mode, its task and its tokenizer, as `load_task_folder`; so
        ``Predictor(*load_task_adapter(base, adapter))`` answers.

    Raises:
        UserError: as `read_folder` and `read_adapter`.
    """
    folder = read_folder(base)
    found = read_adapter(adapter, folder.config, base_digest(folder.state))
    about = found.about
    encoder = {n: t for n, t in folder.state.items() if n.startswith("encoder.")}
    return build_task(
        replace(
            folder,
            directory=Path(adapter),
            head=about.head,
            state=merge_state(encoder | found.state, about.alpha),
            info=about.info,
            labels=about.labels,
        ),
        task,
    )


def _labels(task: Task) -> list[str] | None:
    return list(task.settings.labels) or None
