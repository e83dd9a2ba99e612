"""A fine-tuned model as an ONNX graph, and what the graph scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mlm.batch import Batch
from mlm.errors import UserError
from mlm.exporting.onnx import PaddedEncoder
from mlm.model.layout import Layout
from tasks.heads import PooledHead, TaskModel
from tasks.inference import Predictor
from tasks.pooling import AttentionPooling
from tasks.rows import Rows


class PaddedClassifier(PaddedEncoder):
    """(B, S) ids and mask → (B, C): `logits`."""

    output = "logits"

    def __init__(self, model: TaskModel, pooling: str) -> None:
        super().__init__(model.encoder)
        if not isinstance(model.head, PooledHead):
            raise UserError("--format onnx: only heads that read one vector a text are supported")
        self.model, self.head, self.pooling = model, model.head, pooling

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """The head's outputs."""
        hidden = super().forward(input_ids, attention_mask, token_type_ids)
        pooled = PADDED_POOLINGS[self.pooling](self.head, hidden, attention_mask)
        return self.head.classify(pooled)

    def encode(self, batch: Batch, layout: Layout) -> Tensor:
        """(B · S, D): the encoder's output, or several of its layers in one."""
        states: list[Tensor] = []
        hidden = self.encoder.encode(batch, layout, states)
        return self.model.mixed(hidden, states)


def _cls(head: PooledHead, hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[:, 0]


def _mean(head: PooledHead, hidden: Tensor, mask: Tensor) -> Tensor:
    real = mask[..., None].to(hidden.dtype)
    return (hidden * real).sum(1) / real.sum(1)


def _max(head: PooledHead, hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(~mask[..., None].bool(), -torch.inf).amax(1)


def _attention(head: PooledHead, hidden: Tensor, mask: Tensor) -> Tensor:
    assert isinstance(head.pool, AttentionPooling)
    scores = hidden @ head.pool.query / math.sqrt(hidden.shape[-1])
    weights = scores.masked_fill(~mask.bool(), -torch.inf).softmax(1)
    return (weights[..., None] * hidden).sum(1)


# The poolings of tasks/pooling.py on (B, S, D) and a mask (B, S).
PADDED_POOLINGS: dict[str, Callable[[PooledHead, Tensor, Tensor], Tensor]] = {
    "cls": _cls,
    "mean": _mean,
    "max": _max,
    "attention": _attention,
}


class OnnxModel(nn.Module):
    """A graph in the place of a `TaskModel`: a ragged batch → (N, C)."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        super().__init__()
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def forward(self, batch: Batch) -> Tensor:
        """The batch, padded, through the graph."""
        lengths = batch.sequence_lengths.tolist()
        ids, types = batch.input_ids, batch.token_type_ids
        values = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": torch.zeros_like(ids) if types is None else types,
        }
        inputs = {
            node.name: pad_sequence(values[node.name].split(lengths), batch_first=True).numpy()
            for node in self.session.get_inputs()
        }
        return torch.from_numpy(self.session.run(None, inputs)[0])


class Comparison:
    """What a fine-tuned model, and graphs of it, score on the same labelled table.

    Args:
        folder: the model's.
        table: a file with the columns that it was trained on.

    Raises:
        UserError: the folder has no task, or the table cannot be read.
    """

    def __init__(self, folder: Path, table: str) -> None:
        self.predictor: Any = Predictor.from_pretrained(folder, "cpu", "fp32")
        task = self.predictor.task
        self.examples = task.examples(Rows.read(table), self.predictor.tokenizer)

    def __call__(self, graphs: Iterable[Path]) -> dict[str, dict[str, float]]:
        """The task's metrics in torch, and of each graph by its file's name, in fp32."""
        found = {"torch": self.predictor.evaluate(self.examples)}
        for path in graphs:
            self.predictor.model = OnnxModel(path).eval()
            found[path.name] = self.predictor.evaluate(self.examples)
        return found
