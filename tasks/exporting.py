"""A fine-tuned model as an ONNX graph."""

from __future__ import annotations

from torch import Tensor

from mlm.errors import UserError
from mlm.exporting.onnx import PaddedEncoder
from tasks.heads import PooledHead, TaskModel


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
