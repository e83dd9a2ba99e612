"""A fine-tuned model as an ONNX graph, and what the graph scores."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mlm.batch import Batch
from mlm.errors import UserError
from mlm.exporting.onnx import PaddedEncoder
from tasks.heads import PooledHead, TaskModel
from tasks.inference import Predictor
from tasks.rows import Rows


class PaddedClassifier(PaddedEncoder):
    """(B, S) ids and mask → (B, C): `logits`."""

    output = "logits"

    def __init__(self, model: TaskModel, pooling: str) -> None:
        super().__init__(model.encoder)
        if not isinstance(model.head, PooledHead):
            raise UserError("--format onnx: only heads that read one vector a text are supported")
        self.head, self.pooling = model.head, pooling

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """The head's outputs."""
        hidden = super().forward(input_ids, attention_mask, token_type_ids)
        return self.head.classify(PADDED_POOLINGS[self.pooling](hidden, attention_mask))


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    real = mask[..., None].to(hidden.dtype)
    return (hidden * real).sum(1) / real.sum(1)


PADDED_POOLINGS = {"cls": lambda hidden, mask: hidden[:, 0], "mean": _mean}


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
