"""Which class a text belongs to, by the words that the masked-LM head would put into a pattern.

    text ─ "{text} It was [MASK]." ─ encoder ─ hidden (T, D) ─ at the masks ─ (N, D)
    ─ masked-LM head, its output map on the verbaliser's words alone ─ (N, W) ─ log-sum ─ (N, C)

Nothing is fresh: training starts from what pretraining has learnt to say, which is worth most where
labels are few (PET, https://arxiv.org/abs/2001.07676; LM-BFF, https://arxiv.org/abs/2012.15723).

Shapes: ``T`` tokens in all, ``N`` texts, ``D`` model width, ``W`` words of all ``C`` labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from mlm.batch import Batch
from mlm.data.tokenizer import special_ids
from mlm.errors import UserError, look_up
from mlm.model.config import EncoderConfig
from mlm.model.dropout import Dropout
from mlm.model.heads import LM_HEADS, LinearLMHead, MaskedLMHead
from tasks.encoding import Example, whole
from tasks.heads import TaskModel
from tasks.long_texts import kept, windows
from tasks.rows import Rows, find_columns
from tasks.settings import TaskSettings
from tasks.text_classification import TextClassification

if TYPE_CHECKING:
    from mlm.checkpoint import ModelFolder

MASK = "[MASK]"
"""How a pattern names the mask, whatever the tokenizer calls it."""
INPUTS = (("text",), ("sentence1", "sentence2"))
"""What a pattern calls a single text, and the two of a pair."""

_PARTS = re.compile(r"(\{[^{}]*\}|\[MASK\])")

Keep = Callable[[list[np.ndarray], int], list[np.ndarray]]
"""(the tokens of each text, how many there is room for) → those of them that each example has."""


@dataclass(frozen=True)
class PromptExample(Example):
    """One input in its pattern."""

    mask: int = 0
    """Where the pattern's mask stands."""


class PromptModel(TaskModel):
    """A masked language model, asked at one mask a text for the verbaliser's words alone.

    Its weights are those of `mlm.model.heads.MaskedLanguageModel`, by the same names.

    Args:
        config: the encoder's.
        head: one of `LM_HEADS`.
        words: the token ids of each label's words.
        dropout: before the output map, in training.
    """

    def __init__(
        self,
        config: EncoderConfig,
        head: nn.Module,
        words: Sequence[Sequence[int]],
        dropout: float = 0.0,
    ) -> None:
        super().__init__(config, head)
        self.counts = [len(ids) for ids in words]
        self.dropout = Dropout(dropout)
        self.words: Tensor
        flat = torch.tensor([i for ids in words for i in ids])
        self.register_buffer("words", flat, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """Log-sums of the words' logits, (N, C) in fp32.

        Their softmax is the share of each label's words in what the head gives all of them.
        """
        assert batch.masked_positions is not None
        assert isinstance(self.head, MaskedLMHead | LinearLMHead)
        hidden = self.encoder(batch).index_select(0, batch.masked_positions)
        features = self.dropout(self.head.features(hidden))
        weight, bias = self.head.projection(self.encoder.embeddings.word.weight)
        with torch.autocast(features.device.type, enabled=False):  # 16 bit would round logits
            weight = weight.index_select(0, self.words).float()
            bias = None if bias is None else bias.index_select(0, self.words).float()
            logits = F.linear(features.float(), weight, bias)
        return torch.stack([part.logsumexp(-1) for part in logits.split(self.counts, -1)], -1)


class PromptClassification(TextClassification):
    """One label a text or pair, by the word that fills a pattern's mask best."""

    name = "prompt_classification"
    layout = "masked_lm"
    reads = TextClassification.reads | {"pattern", "verbaliser"}
    labels_option = "data.verbaliser"

    def __init__(self, settings: TaskSettings) -> None:
        if settings.pattern is None:
            raise UserError("data.pattern: give one, as in --data.pattern '{text} It was [MASK].'")
        if settings.verbaliser is None:
            raise UserError(
                "data.verbaliser: name a word for each label, as in "
                "--data.verbaliser '{negative: terrible, positive: great}'"
            )
        self.pattern = settings.pattern
        self.names = pattern_inputs(self.pattern)
        self.verbaliser = in_order(settings.verbaliser, settings.labels)
        if settings.pooling is not None or settings.layers != 1:
            raise UserError(
                f"model.{'layers' if settings.pooling is None else 'pooling'}: the task "
                f"{self.name} reads the last layer at the mask alone; leave it out"
            )
        if settings.text_column and len(settings.text_column) != len(self.names):
            raise UserError(
                f"data.text_column: {len(settings.text_column)} given, where data.pattern has "
                f"{' and '.join(f'{{{name}}}' for name in self.names)}"
            )
        labels = tuple(self.verbaliser)
        super().__init__(replace(settings, labels=labels, verbaliser=self.verbaliser))
        self.words: list[list[int]] = []

    def open_folder(self, folder: ModelFolder) -> None:
        """Find the words among the model's tokens."""
        if folder.head != "masked_lm":
            raise UserError(
                f"{folder.directory}: has no masked-LM head, which the task {self.name} starts "
                "from; take a folder of mlm pretrain, or import a masked language model"
            )
        self.words = word_ids(self.verbaliser, self.pattern, folder.tokenizer)

    def settle(self, config: EncoderConfig) -> None:
        """Settle all but a pooling, for there is none."""
        super().settle(config)
        self.settings = replace(self.settings, pooling=None)

    def encode(self, inputs: Sequence[Any], tokenizer: Tokenizer) -> list[Example]:
        """Inputs in their pattern → token ids; long texts are cut, or in windows."""
        length = self.settings.max_length
        assert length is not None
        return list(encode_prompts(inputs, tokenizer, self.pattern, length, self._keep))

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Also where the masks are."""
        batch = super().collate(examples)
        places = torch.tensor([e.mask for e in examples if isinstance(e, PromptExample)])
        return replace(batch, masked_positions=batch.cu_seqlens[:-1] + places)

    def build_head(self, config: EncoderConfig, dropout: float = 0.0) -> nn.Module:
        """The masked-LM head: (N, D) → (N, D) `features`, and their `projection`."""
        return look_up(LM_HEADS, config.lm_head, "model.lm_head")(config)

    def build_model(self, config: EncoderConfig, dropout: float = 0.0) -> PromptModel:
        """The masked language model, for the words alone; after `open_folder`."""
        return PromptModel(config, self.build_head(config), self.words, dropout)

    def _columns(self, rows: Rows) -> tuple[str, ...]:
        return self.settings.text_column or find_columns(rows, [self.names])

    def _keep(self, texts: list[np.ndarray], room: int) -> list[np.ndarray]:
        """`Keep` as the settings say; of a pair the longer text is cut first."""
        if len(texts) == 2:
            short = min(*map(len, texts), room // 2)
            first = short if len(texts[0]) <= len(texts[1]) else room - short
            return [np.concatenate([texts[0][:first], texts[1][: room - first]])]
        settings, (text,) = self.settings, texts
        if not self.windowed:
            return [text[kept(len(text), room, str(settings.truncation))]]
        assert settings.stride is not None
        if settings.stride >= room:
            raise UserError(
                f"data.stride: {settings.stride} is as long as a window, which has room for {room} "
                "tokens beside the pattern; choose less"
            )
        return [text[part] for part in windows(len(text), room, settings.stride)]


def pattern_inputs(pattern: str) -> tuple[str, ...]:
    """The names of the texts in ``pattern``, one of `INPUTS`.

    Raises:
        UserError: not one mask, an unknown name, or one that is missing or there twice.

    >>> pattern_inputs("{sentence1} ? [MASK], {sentence2}")
    ('sentence1', 'sentence2')
    """
    if (masks := pattern.count(MASK)) != 1:
        raise UserError(f"data.pattern: {pattern!r} has {masks} {MASK}, where one is needed")
    names = re.findall(r"\{([^{}]*)\}", pattern)
    known = "write {text}, or for pairs {sentence1} and {sentence2}"
    if unknown := [name for name in names if not any(name in inputs for inputs in INPUTS)]:
        raise UserError(f"data.pattern: {{{unknown[0]}}} is not known; {known}")
    for inputs in INPUTS:
        if sorted(names) == sorted(inputs):
            return inputs
    raise UserError(f"data.pattern: {pattern!r} needs each of its texts once; {known}")


def in_order(verbaliser: Mapping[str, list[str]], labels: Sequence[str]) -> dict[str, list[str]]:
    """``verbaliser`` in the order of ``labels``, where there are any.

    Raises:
        UserError: a label in one and not in the other, or one without a word.
    """
    for label, words in verbaliser.items():
        if not words or not all(word.strip() for word in words):
            raise UserError(f"data.verbaliser: the label {label!r} has no word, or an empty one")
    labels = labels or tuple(verbaliser)
    if strays := sorted(set(labels) ^ set(verbaliser)):
        where = "data.verbaliser" if strays[0] in labels else "data.labels"
        raise UserError(f"{where}: lacks the label {strays[0]!r}; it must name the same labels")
    return {label: verbaliser[label] for label in labels}


def word_ids(
    verbaliser: Mapping[str, Sequence[str]], pattern: str, tokenizer: Tokenizer
) -> list[list[int]]:
    """The token of each word of each label, as it would stand in place of the pattern's mask.

    Raises:
        UserError: a word of several tokens or none, an unknown one, or two of the same token.
    """
    before = _PARTS.split(pattern.partition(MASK)[0])[-1]  # spaces before a word may be part of it
    unknown = special_ids(tokenizer).unk
    seen: dict[int, str] = {}
    found: list[list[int]] = []
    for label, words in verbaliser.items():
        found.append([])
        for word in words:
            encoding = whole(tokenizer).encode(before + word, add_special_tokens=False)
            spans = zip(encoding.ids, encoding.offsets, strict=True)
            ids = [i for i, (_, end) in spans if end > len(before)]
            where = f"data.verbaliser: {word!r}, of the label {label!r}"
            if len(ids) != 1:
                pieces = ", ".join(str(tokenizer.id_to_token(i)) for i in ids)
                raise UserError(
                    f"{where}, is {len(ids)} tokens of the model's ({pieces}); choose a word that "
                    "is one token"
                )
            if ids[0] == unknown:
                raise UserError(f"{where}, is unknown to the model's tokenizer; choose another")
            if ids[0] in seen:
                raise UserError(f"{where}, is the same token as {seen[ids[0]]}; choose another")
            seen[ids[0]] = f"{word!r} of {label!r}"
            found[-1].append(ids[0])
    return found


def fill(
    pattern: str, names: Sequence[str], texts: Sequence[str], mask: str
) -> tuple[str, list[tuple[int, int]], int]:
    """A pattern with its texts.

    Returns:
        It, from where to where each text stands in it (spaces before count as the text's, as they
        do in byte-level tokens), and where the mask does.

    >>> fill("So: {text} It was [MASK].", ["text"], ["a film."], "<mask>")
    ('So: a film. It was <mask>.', [(3, 11)], 19)
    """
    values = {f"{{{name}}}": text for name, text in zip(names, texts, strict=True)}
    filled, spans, place = "", {}, 0
    for part in _PARTS.split(pattern):
        value = values.get(part, mask if part == MASK else part)
        if part in values:
            spans[part] = (len(filled.rstrip()), len(filled) + len(value))
        elif part == MASK:
            place = len(filled)
        filled += value
    return filled, [spans[part] for part in values], place


def encode_prompts(
    inputs: Sequence[Sequence[str]],
    tokenizer: Tokenizer,
    pattern: str,
    max_length: int,
    keep: Keep,
) -> Iterator[PromptExample]:
    """Texts → token ids of the pattern with them; what is too long loses of its texts alone.

    Args:
        inputs: tuples of one text, or all of two, as the pattern has.
        tokenizer: left as it is.
        pattern: see `pattern_inputs`.
        max_length: tokens at most, special ones included.
        keep: what stays of texts that are too long, one example each.

    Raises:
        UserError: a ``max_length`` that leaves no room beside the pattern.
    """
    names, mask = pattern_inputs(pattern), special_ids(tokenizer).mask
    reader, name = whole(tokenizer), str(tokenizer.id_to_token(mask))
    empty, _, _ = fill(pattern, names, [""] * len(names), name)
    _room(max_length, len(reader.encode(empty).ids), len(names))
    for start in range(0, len(inputs), 1_000):  # encodings are ten times as large as their ids
        filled = [fill(pattern, names, texts, name) for texts in inputs[start : start + 1_000]]
        encodings = reader.encode_batch([text for text, _, _ in filled])
        for row, (encoding, (_, spans, place)) in enumerate(
            zip(encodings, filled, strict=True), start
        ):
            ids = np.asarray(encoding.ids, np.int32)
            begins, ends = np.asarray(encoding.offsets).T
            here = int(np.flatnonzero((ids == mask) & (begins <= place) & (place < ends))[0])
            if len(ids) <= max_length:
                yield PromptExample(ids, row=row, mask=here)
                continue
            texts = [
                np.flatnonzero((begins >= first) & (ends <= last) & (begins < ends))
                for first, last in spans
            ]
            rest = np.setdiff1d(np.arange(len(ids)), np.concatenate(texts))
            found = keep(texts, _room(max_length, len(rest), len(names)))
            for part in found:  # one alone is less than the text
                places = np.sort(np.concatenate([rest, part]))
                mask_place = int(np.searchsorted(places, here))
                yield PromptExample(
                    ids[places], truncated=len(found) == 1, row=row, mask=mask_place
                )


def _room(max_length: int, fixed: int, texts: int) -> int:
    """How many tokens of the texts fit; a `UserError` where it is fewer than one each."""
    if max_length < fixed + texts:
        raise UserError(
            f"data.max_length: {max_length} leaves no room beside the pattern's {fixed} tokens; "
            f"choose at least {fixed + texts}"
        )
    return max_length - fixed
