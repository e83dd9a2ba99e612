"""A look at what an encoder in training is good for: a linear classifier on its frozen vectors.

A loss says how well words are guessed; whether a text's vector knows more with it, the accuracy of
a logistic regression tells (https://arxiv.org/abs/1610.01644), seconds after each validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from mlm.data.tables import column_values, read_table, text_column
from mlm.embedding import embed_ids, encode_texts, shorten
from mlm.errors import UserError
from mlm.model.encoder import Encoder

_FEWEST = 10


@dataclass(frozen=True)
class ProbeOptions:
    """A linear classifier that is fitted anew at each validation."""

    train: str | None = None
    """A table of texts and labels to fit it on; none, no probe."""
    validation: str | None = None
    """A table to score it on."""
    text_column: str = "text"
    """The tables' column of texts."""
    label_column: str = "label"
    """The tables' column of labels; each value is a class."""
    rows: int = 1000
    """How many rows of each table are read, from the first on; the time is the encoder's."""


@dataclass(frozen=True)
class LabelledTexts:
    """N texts and what each of them is."""

    texts: list[str]
    labels: list[str]


class Probe:
    """Fits and scores the classifier; always the same on the same weights.

    Args:
        train: texts of two classes at least.
        validation: to be classified; longer texts than the encoder reads are cut.
        tokenizer: the encoder's.
    """

    def __init__(
        self, train: LabelledTexts, validation: LabelledTexts, tokenizer: Tokenizer
    ) -> None:
        self.known, self.wanted = train.labels, validation.labels
        self.ids = encode_texts(tokenizer, train.texts + validation.texts)

    def __call__(self, encoder: Encoder) -> float:
        """The share of the validation texts classified right, by means over their tokens' vectors.

        Args:
            encoder: in eval mode.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        vectors = embed_ids(encoder, shorten(self.ids, encoder.config.max_position_embeddings))
        count = len(self.known)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
        classifier.fit(vectors[:count], self.known)
        return float(classifier.score(vectors[count:], self.wanted))


def build_probe(options: ProbeOptions, tokenizer: Tokenizer) -> Probe | None:
    """The probe that ``options`` ask for, None where they ask for none.

    Raises:
        UserError: one table without the other, or one that cannot be used, by its name.
    """
    if options.train is None and options.validation is None:
        if options != ProbeOptions():
            raise UserError("probe: there is none; add --probe.train and --probe.validation")
        return None
    if options.train is None or options.validation is None:
        missing = "train" if options.train is None else "validation"
        raise UserError(f"probe: needs two tables; say --probe.{missing} too")
    if options.rows < _FEWEST:
        raise UserError(f"probe.rows: {options.rows} are too few; choose {_FEWEST} or more")
    train, validation = (_read(path, options) for path in (options.train, options.validation))
    if len(set(train.labels)) < 2:
        raise UserError(
            f"{options.train}: only one class in its first {len(train.labels)} rows; shuffle the "
            "table or raise --probe.rows"
        )
    return Probe(train, validation, tokenizer)


def _read(path: str, options: ProbeOptions) -> LabelledTexts:
    table = read_table(path)
    table = table.slice(0, min(options.rows, len(table)))
    texts = text_column(table, options.text_column, path)
    if not texts:
        raise UserError(f"{path}: has no rows")
    return LabelledTexts(texts, _labels(column_values(table, options.label_column, path), path))


def _labels(values: Sequence[object], path: str) -> list[str]:
    for row, value in enumerate(values, start=1):
        if not isinstance(value, str | int | float):
            kind = "nothing" if value is None else type(value).__name__
            raise UserError(f"{path}: row {row}: its label is {kind}, not a text or a number")
    return [str(value) for value in values]
