"""Metrics of answers, over all windows and ranks; imported where they are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from tasks.spans import Reference, Spans, Window, score_answers
from tasks.squad import best_over


class AnswerScore(Metric):
    """The mean score of the answers to all questions.

    Args:
        score: (answer, right answer) → in [0, 1].
        windows: by the numbers that `update` gets.
        references: the questions' contexts and right answers.
        no_answer: whether there may be no answer.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(
        self,
        score: Callable[[str, str], float],
        windows: Sequence[Window],
        references: Sequence[Reference],
        no_answer: bool,
    ) -> None:
        super().__init__()
        self.score, self.no_answer = score, no_answer
        self.windows, self.references = windows, references
        self.ids: list[Tensor]
        self.logits: list[Tensor]
        self.add_state("ids", [], dist_reduce_fx="cat")
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all answers."""
        super().reset()
        # A rank that sees no batch must gather what the others do.
        self.ids.append(torch.empty((0, 3), dtype=torch.int64, device=self.device))
        self.logits.append(torch.empty((0, 2), dtype=torch.float32, device=self.device))

    def update(self, windows: Tensor, spans: Spans) -> None:
        """See the best spans of N windows, whose numbers are ``windows`` (N,)."""
        self.ids.append(torch.stack([windows, spans.start, spans.end], -1))
        self.logits.append(torch.stack([spans.score, spans.null], -1).float())

    def compute(self) -> Tensor:
        """() in [0, 1]."""
        mean = score_answers(
            dim_zero_cat(self.ids).cpu().numpy(),
            dim_zero_cat(self.logits).cpu().numpy(),
            self.windows,
            self.references,
            self.no_answer,
            lambda answer, golds: best_over(self.score, answer, golds),
        )
        return torch.tensor(mean, dtype=torch.float64)
