"""Fine-tuned models in use: answers to texts, and scores on labelled rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import tokenizers
import torch
from torch import Tensor, nn

from mlm.batch import Batch, evaluation_tokens, length_batches
from mlm.console import say
from mlm.training.precision import choose_device, resolve_precision
from tasks.base import Task
from tasks.encoding import Example
from tasks.folders import load_task_folder
from tasks.heads import TaskModel

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def count_cut(examples: Sequence[Example]) -> int:
    """Of how many inputs something was cut off."""
    return len({example.row for example in examples if example.truncated})


def say_cut(task: Task, cut: int, number: int) -> None:
    """Say where ``cut`` of ``number`` inputs were longer than the model reads, and what helps."""
    if not cut:
        return
    # What reads in windows reads single texts alone; see `LongTextTask.fit`.
    windows = "long_texts" in task.reads and len(task.settings.text_column) < 2
    advice = f"{'--data.long_texts windows or ' if windows else ''}a larger --data.max_length"
    say(
        f"warning: {cut:,} of {number:,} inputs were cut to {task.settings.max_length} tokens; "
        f"to read them whole, fine-tune with {advice}"
    )


class Predictor:
    """Answers to texts by a fine-tuned model of any task.

    Args:
        model: an encoder with the task's head; in 16 bit the encoder's matrices are cast in place.
        task: what the outputs mean.
        tokenizer: what the model reads.
        device: where to compute; by default CUDA where there is some.
        precision: `auto`, `fp32`, `bf16` or `fp16`.
    """

    def __init__(
        self,
        model: TaskModel,
        task: Task,
        tokenizer: tokenizers.Tokenizer,
        device: str | torch.device = "auto",
        precision: str = "auto",
    ) -> None:
        self.device = choose_device(device)
        kind = self.device.partition(":")[0]
        self.dtype = _AUTOCAST.get(resolve_precision(precision, kind, "--precision"))
        self.model = model.to(self.device).eval()
        if self.dtype is not None:
            _cast_weights(self.model.encoder, self.dtype)
        self.task, self.tokenizer = task, tokenizer
        self.cut = 0
        """How many inputs were longer than the model reads."""

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        device: str | torch.device = "auto",
        precision: str = "auto",
        task: str | type[Task] | None = None,
    ) -> Self:
        """Load a folder that `mlm finetune` wrote.

        Args:
            directory: a model folder such as `runs/sst2/model`.
            device: `auto`, `cpu`, `cuda` or `mps`.
            precision: `auto`, `fp32`, `bf16` or `fp16`.
            task: your own task's class or dotted path, where the folder is of one.

        Raises:
            UserError: no such folder, a damaged one, or one of another task.
        """
        return cls(*load_task_folder(directory, task), device=device, precision=precision)

    def __call__(
        self, inputs: Sequence[Any], progress: Callable[[int], None] | None = None
    ) -> list[dict[str, Any]]:
        """One JSON-ready object an input, in their order.

        Args:
            inputs: texts, or for a model of pairs tuples of two.
            progress: called with the number of inputs done since the last call.

        Raises:
            UserError: a text where the model takes pairs, or the other way round.
        """
        rows = self.task.as_inputs(inputs)
        examples = self.task.encode(rows, self.tokenizer)
        self.cut += count_cut(examples)
        found: list[Tensor] = [torch.empty(0)] * len(examples)
        for places, batch, outputs in self.outputs(examples):
            for place, part in zip(places, self.task.split(outputs, batch), strict=True):
                found[place] = part
            if progress is not None:  # an input is done with its first window
                progress(sum(p == 0 or examples[p].row != examples[p - 1].row for p in places))
        answers = self.task.answers(rows, examples, found)
        return [self.task.shown(row) | a for row, a in zip(rows, answers, strict=True)]

    def outputs(self, examples: Sequence[Example]) -> Iterator[tuple[np.ndarray, Batch, Tensor]]:
        """The model's outputs, in batches of like lengths.

        Yields:
            The places of a batch's examples, the batch, and its outputs on the CPU in fp32.
        """
        tokens = evaluation_tokens(self.device)
        for places in length_batches([len(e.input_ids) for e in examples], tokens):
            batch = self.task.collate([examples[place] for place in places])
            with torch.inference_mode(), self._autocast():
                outputs = self.model(batch.to(self.device))
            yield places, batch, outputs.float().cpu()

    def evaluate(self, examples: Sequence[Example]) -> dict[str, float]:
        """The task's metrics and mean loss over labelled examples."""
        return {name: float(x) for name, x in self.compute(examples).items() if x.ndim == 0}

    def compute(self, examples: Sequence[Example], task: Task | None = None) -> dict[str, Tensor]:
        """All metrics, tables included, and the mean loss, named `loss`.

        Args:
            examples: labelled.
            task: the task that numbered their labels, where that is another object than mine.
        """
        return self.compute_and_keep(examples, task)[0]

    def compute_and_keep(
        self, examples: Sequence[Example], task: Task | None = None
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """As `compute`, and the outputs of each example, as `Task.split` gives them."""
        task = task or self.task
        metrics = task.metrics()
        for metric in metrics.values():
            metric.distributed_available_fn = lambda: False  # this process sees all examples
        loss, count = 0.0, 0
        found: list[Tensor] = [torch.empty(0)] * len(examples)
        for places, batch, outputs in self.outputs(examples):
            assert batch.labels is not None
            batch_loss, batch_count = task.loss(outputs, batch.labels)
            loss, count = loss + float(batch_loss), count + int(batch_count)
            task.update(metrics, outputs, batch)
            for place, part in zip(places, task.split(outputs, batch), strict=True):
                found[place] = part
        mean = loss / count if count else float("nan")
        values = {"loss": torch.tensor(mean, dtype=torch.float64), **metrics.compute()}
        return values, found

    def _autocast(self) -> Any:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, self.dtype)


def _cast_weights(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights that autocast would cast at every call, once: the same numbers, sooner."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)


class OneTask(Predictor):
    """A `Predictor` for models of one task."""

    takes: ClassVar[str]

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        device: str | torch.device = "auto",
        precision: str = "auto",
        task: str | type[Task] | None = None,
    ) -> Self:
        """As `Predictor.from_pretrained`; a folder of another task is refused."""
        return super().from_pretrained(directory, device, precision, task or cls.takes)


class Classifier(OneTask):
    """Labels for texts.

    >>> Classifier.from_pretrained("runs/sst2/model")(["a gripping film"])  # doctest: +SKIP
    [{'text': 'a gripping film', 'label': '1', 'score': 0.98, 'scores': {'0': 0.02, '1': 0.98}}]
    """

    takes = "text_classification"


class Tagger(OneTask):
    """Tags of words, and entities in texts.

    >>> Tagger.from_pretrained("runs/conll2003/model")(["She left Paris"])  # doctest: +SKIP
    [{'text': 'She left Paris', 'tokens': ['She', 'left', 'Paris'], 'tags': ['O', 'O', 'B-LOC'],
    'entities': [{'type': 'LOC', 'text': 'Paris', 'start': 9, 'end': 14, 'start_word': 2,
    'end_word': 3, 'score': 0.99}]}]
    """

    takes = "token_classification"


class QuestionAnswerer(OneTask):
    """Answers to questions, out of a context each.

    >>> pair = ("Where did she go?", "She left for Paris.")
    >>> QuestionAnswerer.from_pretrained("runs/xquad_en/model")([pair])  # doctest: +SKIP
    [{'question': 'Where did she go?', 'context': 'She left for Paris.', 'answer': 'Paris',
    'start': 13, 'end': 18, 'score': 0.9}]
    """

    takes = "question_answering"
