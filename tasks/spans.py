"""The best span in windows of a context, and metrics of it; imported where they are made.

Shapes: ``N`` windows of ``S`` tokens at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MAX_ANSWER_LENGTH = 30
"""Tokens of an answer at most, as in BERT's script for SQuAD."""


class Spans(NamedTuple):
    """The best spans of N windows."""

    start: Tensor
    """(N,) first tokens."""
    end: Tensor
    """(N,) last tokens."""
    score: Tensor
    """(N,) logits of both ends; -inf where a window has no token of the context."""
    null: Tensor
    """(N,) logits of there being no answer: those of both ends at the first token, [CLS]."""


def best_spans(outputs: Tensor, first: Tensor, stop: Tensor) -> Spans:
    """The best of all spans inside the context that are not longer than `MAX_ANSWER_LENGTH`.

    Args:
        outputs: (N, S, 2) logits of a span's first and last token.
        first: (N,) where the context begins in each window.
        stop: (N,) where it ends, one past the last token.
    """
    count, length, _ = outputs.shape
    places = torch.arange(length, device=outputs.device)
    inside = (places >= first[:, None]) & (places < stop[:, None])
    starts, ends = outputs.masked_fill(~inside[..., None], -math.inf).unbind(-1)
    best = torch.full((count,), -math.inf, device=outputs.device, dtype=outputs.dtype)
    start, end = torch.zeros_like(first), torch.zeros_like(first)
    for more in range(min(MAX_ANSWER_LENGTH, length)):
        score, place = (starts[:, : length - more] + ends[:, more:]).max(-1)
        better = score > best
        best = torch.where(better, score, best)
        start = torch.where(better, place, start)
        end = torch.where(better, place + more, end)
    return Spans(start, end, best, outputs[:, 0].sum(-1))


def context_of(places: np.ndarray) -> tuple[int, int]:
    """(s, 2) places of tokens in the context, −1 outside → its first token, and one past its last.

    >>> context_of(np.array([[-1, -1], [0, 3], [4, 6], [-1, -1]]))
    (1, 3)
    """
    inside = np.flatnonzero(places[:, 0] >= 0)
    return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)


class Answer(NamedTuple):
    """Part of a context, and the window that it was found in."""

    text: str
    """Empty where there is no answer."""
    start: int | None
    """Its first character in the context."""
    end: int | None
    window: int


@dataclass(frozen=True)
class Found:
    """The best span of one window."""

    start: int
    """Its first token."""
    end: int
    """Its last."""
    score: float
    null: float


def choose(
    context: str,
    places: Sequence[np.ndarray],
    found: Sequence[Found],
    no_answer: bool,
) -> Answer:
    """The answer that all windows of a context together give.

    Args:
        context: the whole.
        places: of each window's tokens, (s, 2), in it.
        found: in each window.
        no_answer: whether there may be none: where the least logit of that, over the windows, is
            more than the best span's (https://arxiv.org/abs/1806.03822).
    """
    best = max(range(len(found)), key=lambda window: found[window].score)
    null = min(range(len(found)), key=lambda window: found[window].null)
    span = found[best]
    if span.score == -math.inf or (no_answer and found[null].null > span.score):
        return Answer("", None, None, null)
    start, end = int(places[best][span.start, 0]), int(places[best][span.end, 1])
    text = context[start:end]  # some tokenizers count the space before a word to its token
    start += len(text) - len(text.lstrip())
    return Answer(text.strip(), start, start + len(text.strip()), best)


class Reference(NamedTuple):
    """A question's context and right answers."""

    context: str
    answers: tuple[str, ...]


class Window(NamedTuple):
    """Part of a context as the model read it."""

    reference: int
    """The number of its `Reference`."""
    places: np.ndarray
    """(s, 2) where its tokens stand in the context; -1 outside."""


def score_answers(
    ids: np.ndarray,
    logits: np.ndarray,
    windows: Sequence[Window],
    references: Sequence[Reference],
    no_answer: bool,
    score: Callable[[str, Sequence[str]], float],
) -> float:
    """The mean of ``score`` over all questions.

    Args:
        ids: (n, 3) window, first and last token of its best span.
        logits: (n, 2) of that span, and of none.
        windows: by their numbers.
        references: by theirs.
        no_answer: as in `choose`.
        score: (answer, right answers) → in [0, 1].
    """
    questions: dict[int, dict[int, Found]] = {}
    for (window, start, end), (best, null) in zip(ids.tolist(), logits.tolist(), strict=True):
        same = questions.setdefault(windows[window].reference, {})
        same[window] = Found(start, end, best, null)
    scores = []
    for number, found in questions.items():
        context, golds = references[number]
        places = [windows[window].places for window in found]
        answer = choose(context, places, list(found.values()), no_answer)
        scores.append(score(answer.text, golds))
    return sum(scores) / max(len(scores), 1)
