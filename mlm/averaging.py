"""Several model folders of one kind to one, whose weights are the mean of theirs.

Of late checkpoints of a run (https://arxiv.org/abs/2209.14981), or of runs that were fine-tuned
from one encoder (https://arxiv.org/abs/2203.05482): where they lie in one valley of the loss, their
mean lies nearer to its floor. Models that were pretrained from different seeds do not, and their
mean is worth nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlm.checkpoint import ModelFolder, read_folder, save_folder
from mlm.data.tokenizer import tokenizer_hash
from mlm.errors import UserError


def average_models(models: Sequence[str | Path], output: str | Path) -> dict[str, Any]:
    """Write the mean of ``models`` to ``output``; one of them is in memory at a time.

    Args:
        models: two model folders or more, of one configuration, head, labels and tokenizer.
        output: a place where nothing is yet; all but the weights is as in the last of ``models``.

    Returns:
        What is there now: the folder, how many were averaged, and their head.

    Raises:
        UserError: fewer than two, a folder that is not like the first one, saying in what, or an
            ``output`` that is there.
    """
    if len(models) < 2:
        raise UserError("models: a mean wants two model folders or more")
    if Path(output).exists():
        raise UserError(f"{output}: is there already; choose another --output")
    first = folder = read_folder(models[0])
    total = {name: tensor.double() for name, tensor in first.state.items()}
    for model in models[1:]:
        folder = read_folder(model)
        _refuse_another_kind(first, folder)
        for name, tensor in folder.state.items():
            total[name] += tensor
    state = {name: (x / len(models)).to(first.state[name].dtype) for name, x in total.items()}
    save_folder(
        output,
        config=folder.config,
        head=folder.head,
        state=state,
        tokenizer=folder.tokenizer,
        info={**folder.info, "averaged": len(models)},
        labels=folder.labels,
        card=f"The mean of the weights of {len(models)} models.\n",
    )
    return {"model": str(output), "averaged": len(models), "head": folder.head}


def _refuse_another_kind(first: ModelFolder, other: ModelFolder) -> None:
    kinds = [
        {
            "encoder": folder.config.decisive(),
            "head": folder.head,
            "labels": folder.labels,
            **{name: folder.info.get(name) for name in ("task", "pooling", "sentence_vectors")},
            "tokenizer": tokenizer_hash(folder.tokenizer),
            "weights": {name: tensor.shape for name, tensor in folder.state.items()},
        }
        for folder in (first, other)
    ]
    for what, value in kinds[0].items():
        if kinds[1][what] != value:
            raise UserError(
                f"{other.directory}: has another {what} than {first.directory}, so that there is "
                "no mean of them; leave it out"
            )
